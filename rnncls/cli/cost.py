"""rnncls cost"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.options import Device, Json, OptionalConfig, Overrides, refuse_to_replace
from rnncls.cli.words import config_of, with_device
from rnncls.config.ranges import parse_lengths, parse_sizes
from rnncls.errors import OutOfMemory, Problem, RnnclsError
from rnncls.system.rows import json_text
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.config import Config
    from rnncls.cost.cases import Case
    from rnncls.cost.processes import Outcome


def cost(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    hidden: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES",
            help="Hidden sizes to measure, e.g. 64,128,256 (default: the config's own).",
            show_default=False,
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths to measure, e.g. 50,100,200,500 (default: the longest of the training "
            "data).",
            show_default=False,
        ),
    ] = None,
    stock: Annotated[
        bool,
        typer.Option(
            "--stock", help="Measure torch.nn's own RNN, LSTM or GRU as well, in a textbook loop."
        ),
    ] = False,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.001, max=3600, help="How long to measure each of forward, backward and step."
        ),
    ] = 1.0,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw time and memory into this PNG.", readable=False),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Measure what a config costs, in time and memory, by hidden size and length.

    Each case runs in a process of its own, on batches of which every sequence has the same length.
    Of files, only the numbers of different tokens and classes are used: the tokens of the batches
    are drawn at random, which costs the same. Nothing is trained or written.

    Examples:
        rnncls cost configs/smoke.yaml --hidden 16,32 --lengths 10,20
        rnncls cost configs/smoke.yaml model.cell=gru --lengths 50 --stock
    """
    path, words = config_of(config, overrides)
    from rnncls.config import load_config, sizes
    from rnncls.cost.cases import require_possible

    # Before torch is imported, which takes seconds: what is wrong is reported at once.
    resolved = load_config(path, with_device(words, device))
    hidden_sizes = [resolved.model.hidden_size]
    if hidden is not None:
        hidden_sizes = parse_sizes(hidden, "--hidden")
    wanted_lengths = None if lengths is None else parse_lengths(lengths)
    # Files may have more tokens and classes: that is seen when they have been read.
    require_possible(resolved, sizes(resolved), hidden_sizes, wanted_lengths or [1])
    if plot is not None:
        refuse_to_replace("--plot", plot, path)

    load_torch()
    outcomes = _measure_all(_plan(resolved, hidden_sizes, wanted_lengths, seconds, stock))

    from rnncls.cost import report

    rows = report.rows_of(outcomes)
    if as_json:
        print(json_text({"config": str(path), **report.to_json(resolved, rows)}), flush=True)
    else:
        print(report.to_text(resolved, rows), flush=True)

    # Last, so that a picture that cannot be written costs no measurements.
    if plot is not None:
        from rnncls.cost.plot import draw_cost

        draw_cost(rows, plot)
    _raise_failure(outcomes)


def _plan(
    config: "Config",
    hidden_sizes: list[int],
    lengths: list[int] | None,
    seconds: float,
    with_stock: bool,
) -> "list[Case]":
    """Return the cases to measure.

    Raises: ConfigError. DataError for files. MachineError for a device or an engine that is not
    there.
    """
    from rnncls.cost.cases import plan_cases
    from rnncls.data import load_task
    from rnncls.steps.engines import choose
    from rnncls.system.device import resolve_device

    resolved_device = resolve_device(config.device)
    task = load_task(config, progress=True)
    cases = plan_cases(
        task.config,
        task.sizes,
        hidden_sizes,
        lengths or [task.longest],
        seconds,
        with_stock,
    )

    # Once for each size. It also compiles, where that was never done, so that no case has to.
    for case in {case.hidden_size: case for case in cases}.values():
        choose(case.config, resolved_device)
    return cases


def _measure_all(cases: "list[Case]") -> "list[Outcome]":
    """Measure one case after another, with a progress bar."""
    from tqdm import tqdm

    from rnncls.cost.processes import measure_apart

    outcomes = []
    with tqdm(total=len(cases), unit="case", disable=None) as bar:
        for case in cases:
            bar.set_description(f"hidden {case.hidden_size:,}, length {case.length:,}")
            outcomes.append(measure_apart(case))
            bar.update()
    return outcomes


def _raise_failure(outcomes: "list[Outcome]") -> None:
    """Raise the error of the first case that failed; for want of memory, if no case had enough.

    One that has no memory is a result: its line in the table says so.
    """
    from rnncls.cost.report import name_of

    for outcome in outcomes:
        if outcome.status == "failed":
            what = "a case could not be measured; the others are above"
            where = name_of(outcome.case)
            error = RnnclsError(Problem(what, where, found=outcome.reason, id="R18"))
            error.exit_code = outcome.exit_code
            raise error

    if all(outcome.times is None for outcome in outcomes):
        remedy = "smaller --hidden, --lengths or train.batch_size"
        what = "out of memory: not even the smallest case could be measured"
        raise OutOfMemory(Problem(what, found=outcomes[0].reason, remedy=remedy, id="R16"))
