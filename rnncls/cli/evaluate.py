"""rnncls eval"""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.options import DEFAULT_SAMPLES, Device, Json
from rnncls.config.ranges import parse_lengths
from rnncls.errors import ConfigError, NonFiniteError, Problem

if TYPE_CHECKING:
    from rnncls.data.dataset import Dataset
    from rnncls.rundir.checkpoint import Checkpoint


def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint, run directory (its best), or sweep.", readable=False)
    ],
    lengths: Annotated[
        str | None, typer.Option(help="For example 1-5,10,100, instead of the training lengths.")
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=10**8, help=f"Sequences per length, where not all; else {DEFAULT_SAMPLES:,}."
        ),
    ] = None,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Also the confusion matrix.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Another file of labelled sequences, for a run on files.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint: overall, by length, by class."""
    chosen = None if lengths is None else parse_lengths(lengths)
    if _is_sweep(checkpoint):
        if confusion or data or device:
            expected = "--lengths, --samples and --json"
            raise ConfigError(
                Problem(
                    "an option that is not for sweeps", str(checkpoint), expected=expected, id="C17"
                )
            )
        _evaluate_sweep(checkpoint, chosen, samples, as_json)
        return
    from rnncls.evaluation.evaluate import evaluate
    from rnncls.rundir.checkpoint import is_finite, read_checkpoint, restore_model
    from rnncls.rundir.checkpoint_files import find_checkpoint
    from rnncls.system.device import resolve_device

    loaded = read_checkpoint(find_checkpoint(checkpoint))
    model = restore_model(loaded).to(resolve_device(device or loaded.config.device))
    if not is_finite(loaded):
        print(f"rnncls: warning[K13]: weights in {loaded.path} are not finite", file=sys.stderr)
    dataset = _held_out(data, loaded)
    report = evaluate(
        model,
        loaded.config,
        chosen,
        samples or DEFAULT_SAMPLES,
        confusion,
        progress=True,
        dataset=dataset,
    )
    if not math.isfinite(report.loss):
        remedy = "an earlier checkpoint of the run"
        raise NonFiniteError(
            Problem("the loss is not finite", str(loaded.path), remedy=remedy, id="K13")
        )
    if as_json:
        print(
            json.dumps(
                {"checkpoint": str(loaded.path), "step": loaded.state.step, **report.to_json()}
            )
        )
    else:
        print(f"checkpoint: {loaded.path}, step {loaded.state.step:,}")
        print(report.to_text())


def _is_sweep(folder: Path) -> bool:
    try:
        return (folder / "sweep.yaml").is_file()
    except OSError:  # a folder that must not be looked into is reported as a checkpoint
        return False


def _evaluate_sweep(
    folder: Path, lengths: list[int] | None, samples: int | None, as_json: bool
) -> None:
    """Every member's last checkpoint: a line each, and their median and minimum."""
    from rnncls.config import require_generated_data
    from rnncls.sweep.plan import load_sweep
    from rnncls.sweep.summary import evaluate_all
    from rnncls.sweep.text import table

    sweep = load_sweep(folder)
    if lengths is not None:
        require_generated_data(sweep.members[0].config, "--lengths")
    found = evaluate_all(sweep, lengths, samples)
    print(json.dumps(found) if as_json else table(found))


def _held_out(path: str | None, checkpoint: "Checkpoint") -> "Dataset | None":
    """What is to be evaluated: the file at `path`, else the run's own held-out data; None: generated sequences."""
    from rnncls.config import FilesConfig
    from rnncls.data.dataset import dataset_warnings, load_held_out, load_labelled_file

    data = checkpoint.config.data
    if checkpoint.vocabulary is None or not isinstance(data, FilesConfig):
        if path is None:
            return None
        remedy = "--lengths, or a checkpoint that was trained on files"
        raise ConfigError(
            Problem(
                "this checkpoint was trained on generated data", "--data", remedy=remedy, id="C15"
            )
        )
    if path is None:
        dataset = load_held_out(
            data, checkpoint.vocabulary, checkpoint.state.fingerprints, progress=True
        )
    else:
        dataset = load_labelled_file(
            path, data.model_copy(update={"format": "auto"}), checkpoint.vocabulary, progress=True
        )
    for warning in dataset_warnings(dataset):
        print(warning, file=sys.stderr)
    return dataset
