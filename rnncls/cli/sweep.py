"""rnncls sweep"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.completion import complete_override, complete_word
from rnncls.cli.options import (
    DataDir,
    Json,
    OptionalConfig,
    Structured,
    StructuredLength,
    UntilWrong,
    length_of_structured,
    require_resuming,
)
from rnncls.cli.words import config_of, load
from rnncls.config.ranges import DEFAULT_READ, DEFAULT_SAMPLES, MAX_SAMPLES, Long
from rnncls.errors import ConfigError, Interrupted, NonFiniteError, Problem, RnnclsError
from rnncls.sweep.shards import shard_of
from rnncls.system.rows import json_text
from rnncls.system.streams import say
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.sweep.plan import Member, Sweep
    from rnncls.sweep.summary import Summary

DEFAULT_SEEDS = "0-9"


def sweep(
    config: OptionalConfig = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG] [SECTION.KEY=VALUE,...]...",
            help="YAML config file, and values that replace some of its own; several values of one "
            "key make an axis of the grid.",
            autocompletion=complete_word,
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help=f"For example 0-63 or 0,3,5 (default {DEFAULT_SEEDS})."),
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SECTION.KEY=VALUE,...",
            help="An axis of the grid: a key with several values. May be repeated.",
            autocompletion=complete_override,
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Lengths to test besides the training lengths, e.g. 10,100,1000."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_SAMPLES,
            help=f"Test sequences per length (default {DEFAULT_SAMPLES:,}); --until-wrong reads as "
            f"many, but at most {DEFAULT_READ:,}.",
        ),
    ] = None,
    structured: Structured = False,
    structured_length: StructuredLength = None,
    until_wrong: UntilWrong = None,
    sweep_dir: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the sweep (default runs/CONFIG/DATE_TIME-sweep).", readable=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="SWEEP",
            help="Directory of a sweep to resume, without a config.",
            readable=False,
        ),
    ] = None,
    data_dir: DataDir = None,
    shard: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            help="Train only part I of N: every Nth member; auto for what torchrun or Slurm says.",
        ),
    ] = "1/1",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Members that train at the same time (default: all cores)."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train one config with many seeds and grids of values, and summarise the results.

    Examples:
        rnncls sweep configs/smoke.yaml --seeds 0-2
        rnncls sweep configs/smoke.yaml --seeds 0,1 optimizer.lr=1e-3,2e-3
        rnncls sweep configs/smoke.yaml --seeds 0,1 --structured --until-wrong 100
    """
    shared = sweep_dir is not None or resume is not None
    chosen_shard = shard_of(shard, shared)

    # These define a sweep and cannot change when it is resumed. They default to None, because any
    # other default would look as if it had been given.
    settings = {
        "--config": config,
        "config or overrides": words,
        "--seeds": seeds,
        "--grid": grid,
        "--lengths": lengths,
        "--samples": samples,
        "--structured": structured or None,
        "--structured-length": structured_length,
        "--until-wrong": until_wrong,
        "--sweep-dir": sweep_dir,
    }
    given = [name for name, value in settings.items() if value is not None]

    long = Long(length_of_structured(structured, structured_length), until_wrong)
    if resume is None:
        require_resuming(data_dir)
    if resume is not None:
        planned = _resume(resume, given)
    elif config is not None or words:
        path, overrides = config_of(config, words)
        planned = _plan(path, overrides, seeds, grid or [], lengths, samples, long, sweep_dir)
    else:
        what = "nothing to run: pass a config or --resume SWEEP"
        raise ConfigError(Problem(what, remedy="rnncls sweep configs/smoke.yaml", id="C17"))

    _run(planned, chosen_shard, jobs, data_dir, as_json)


def _plan(
    config: Path,
    words: list[str],
    seeds: str | None,
    grid: list[str],
    lengths: str | None,
    samples: int | None,
    long: Long,
    sweep_dir: Path | None,
) -> "Sweep":
    """Plan a new sweep from the command line. Raises: ConfigError. DataError."""
    axes = [word for word in words if _is_axis(word)]
    overrides = [word for word in words if not _is_axis(word)]

    # Before torch is imported, which takes seconds: a wrong config is reported at once.
    base = load(config, overrides)

    # The config's own seed is replaced by each member's, so an override would do nothing.
    if any(_key_of(word) == "seed" for word in words):
        what = "seed cannot be an override of a sweep"
        raise ConfigError(Problem(what, "seed", remedy="--seeds", id="C17"))

    if base.train.baseline == "control":
        say("members of a sweep have no n-gram control: train.baseline is none for them")

    load_torch()
    from rnncls.rundir.paths import default_run_dir
    from rnncls.sweep.plan import plan_sweep

    return plan_sweep(
        base,
        seeds or DEFAULT_SEEDS,
        _parse_grid(grid, axes),
        lengths,
        samples or DEFAULT_SAMPLES,
        sweep_dir or default_run_dir(config, "sweep"),
        origin=f"from {config}",
        numbered=sweep_dir is None,
        long=long,
    )


def _resume(folder: Path, given: list[str]) -> "Sweep":
    """Load a sweep. Raises: ConfigError, also if options are given that only a new sweep has."""
    if given:
        what = "a resumed sweep keeps its original settings"
        remedy = "--shard, --jobs and --json only, or another sweep without --resume"
        raise ConfigError(Problem(what, found=", ".join(given), remedy=remedy, id="C17"))

    load_torch()
    from rnncls.sweep.plan import load_sweep

    return load_sweep(folder)


def _run(
    sweep: "Sweep",
    shard: tuple[int, int],
    jobs: int | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Run the members of a shard and print the summary of the sweep.

    Raises the first error of a member, unless it diverged: that is a result.
    """
    from rnncls.dashboard.link import how_to_look
    from rnncls.sweep.members import run_sweep
    from rnncls.sweep.report import updated_summary

    # On stderr, because stdout is for the summary, which may be JSON.
    say(f"sweep directory: {sweep.folder}")
    try:
        failed = run_sweep(sweep, shard, jobs, data_dir)
    except Interrupted:
        # Whoever sent the signal may not wait for pictures.
        with updated_summary(sweep, plots=False) as summary:
            _warn_without_scipy(summary)
        raise

    _print_failures(failed)
    with updated_summary(sweep, plots=True) as summary:
        _warn_without_scipy(summary)
        _print_summary(summary, as_json)
    for line in how_to_look(sweep.folder, sweep=True):
        say(line)

    # After all else, so that one broken member does not keep the summary from being written.
    for _, error in failed:
        if not isinstance(error, NonFiniteError):
            raise error


def _print_failures(failed: "list[tuple[Member, RnnclsError]]") -> None:
    for member, error in failed:
        say(f"rnncls: member failed: {member.name}")
        print(error.render(), file=sys.stderr)


def _print_summary(summary: "Summary", as_json: bool) -> None:
    from rnncls.sweep.text import summary_text

    text = json_text(summary.to_json()) if as_json else summary_text(summary)
    print(text, flush=True)


def _warn_without_scipy(summary: "Summary") -> None:
    """Warn if settings could have been compared, but scipy is not installed."""
    for setting in summary.settings:
        p_values = setting.p_against_first or {}
        if None in p_values.values():
            message = "comparing settings needs scipy: pip install 'rnncls[sweep]'"
            say(f"rnncls: warning[R33]: {message}")
            return


def _parse_grid(grid: list[str], axes: list[str]) -> dict[str, list[str]]:
    """Return the values of each key: "a.b=1,2" -> {"a.b": ["1", "2"]}.

    `grid` are the axes of --grid, `axes` those among the overrides. Raises: ConfigError.
    """
    parsed: dict[str, list[str]] = {}
    for word in [*grid, *axes]:
        key = _key_of(word)
        texts = _split(word.partition("=")[2])

        # The same value twice, or one key in two axes, would make members that are the same.
        has_values = "=" in word and all(texts)
        if not has_values or len(set(texts)) < len(texts) or key in parsed:
            problem = Problem(
                "malformed axis of a grid",
                "--grid",
                expected="section.key=value,value,... with different values, each key once",
                found=word,
                id="C17",
            )
            raise ConfigError(problem)

        _require_known(word, option="--grid " if word in grid else "")
        parsed[key] = texts
    return parsed


def _require_known(word: str, option: str) -> None:
    """Raise ConfigError, with the axis to use instead, if there is no such key."""
    from rnncls.config.names import advice, known_keys

    key, _, values = word.partition("=")
    if key.strip() not in known_keys():
        raise ConfigError(
            Problem(
                f'unknown key "{key.strip()}"',
                f"axis {word}",
                expected="section.key=value,value,... with a key of the config",
                found=key.strip(),
                remedy=advice(key, values, option=option),
                id="C5",
            )
        )


def _key_of(word: str) -> str:
    return word.partition("=")[0].strip()


def _is_axis(word: str) -> bool:
    """Return whether an override has several values."""
    return len(_split(word.partition("=")[2])) > 1


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes: "[1, 2],[3, 4]" -> ["[1, 2]", "[3, 4]"]."""
    # A part is brackets, quotes or anything but a comma; two commas in a row have an empty one
    # between them, and so has a comma at either end.
    parts = re.findall(r"""(?:\[[^\]]*\]|"[^"]*"|'[^']*'|[^,])+|(?<=,)(?=,|$)|^(?=,)""", text)
    return [part.strip() for part in parts] or [""]
