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
from rnncls.sweep.paths import is_sweep

if TYPE_CHECKING:
    from rnncls.data.dataset import Dataset
    from rnncls.rundir.checkpoint import Checkpoint


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint file, run directory (its best checkpoint) or sweep directory.",
            readable=False,
        ),
    ],
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths to evaluate instead of the training lengths, for example 1-5,10,100."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=10**8, help=f"Sequences sampled per length (default {DEFAULT_SAMPLES:,})."
        ),
    ] = None,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Also print the confusion matrix.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="File of labelled sequences to evaluate instead of the run's held-out data."
        ),
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint: overall, by length, by class. Or evaluate every member of a sweep."""
    chosen = None if lengths is None else parse_lengths(lengths)

    if not is_sweep(checkpoint):
        _evaluate_checkpoint(checkpoint, chosen, samples, confusion, data, device, as_json)
        return

    if confusion or data or device:
        raise ConfigError(
            Problem(
                "an option that is not for sweeps",
                str(checkpoint),
                expected="--lengths, --samples and --json",
                id="C17",
            )
        )
    _evaluate_sweep(checkpoint, chosen, samples, as_json)


def _evaluate_checkpoint(
    checkpoint: Path,
    lengths: list[int] | None,
    samples: int | None,
    confusion: bool,
    data: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Print the report of one checkpoint. Raises: NonFiniteError if its loss is not finite."""
    from rnncls.evaluation.evaluate import evaluate
    from rnncls.rundir.checkpoint import read_checkpoint
    from rnncls.rundir.checkpoint_files import find_checkpoint
    from rnncls.rundir.restore import is_finite, restore_model
    from rnncls.system.device import resolve_device

    loaded = read_checkpoint(find_checkpoint(checkpoint))
    model = restore_model(loaded).to(resolve_device(device or loaded.config.device))
    if not is_finite(loaded):
        print(f"rnncls: warning[K13]: weights in {loaded.path} are not finite", file=sys.stderr)

    report = evaluate(
        model,
        loaded.config,
        lengths,
        samples or DEFAULT_SAMPLES,
        confusion,
        progress=True,
        dataset=_held_out(data, loaded),
    )
    if not math.isfinite(report.loss):
        remedy = "an earlier checkpoint of the run"
        raise NonFiniteError(
            Problem("the loss is not finite", str(loaded.path), remedy=remedy, id="K13")
        )

    # Which file a run directory stood for is part of the result.
    step = loaded.state.step
    if as_json:
        print(json.dumps({"checkpoint": str(loaded.path), "step": step, **report.to_json()}))
    else:
        print(f"checkpoint: {loaded.path}, step {step:,}")
        print(report.to_text())


def _evaluate_sweep(
    folder: Path, lengths: list[int] | None, samples: int | None, as_json: bool
) -> None:
    """Print the accuracy of every member's last checkpoint, and statistics for each setting."""
    from rnncls.config.ranges import require_generated_data
    from rnncls.sweep.evaluate import evaluate_all
    from rnncls.sweep.plan import load_sweep
    from rnncls.sweep.text import accuracy_table

    sweep = load_sweep(folder)
    if lengths is not None:
        require_generated_data(sweep.members[0].config)

    accuracies = evaluate_all(sweep, lengths, samples)
    if as_json:
        print(json.dumps(accuracies.to_json()))
    else:
        print(accuracy_table(accuracies))


def _held_out(path: str | None, checkpoint: "Checkpoint") -> "Dataset | None":
    """Read the file at `path`, or else the run's own held-out data, and print warnings about it.

    Returns None for a run on generated data. Raises: ConfigError if that has a `path`. DataError if
    the file is bad. CheckpointError if the run's data has changed.
    """
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
        fingerprints = checkpoint.state.fingerprints
        dataset = load_held_out(data, checkpoint.vocabulary, fingerprints, progress=True)
    else:
        # The name of this file says its format, which may not be that of the training file.
        data = data.model_copy(update={"format": "auto"})
        dataset = load_labelled_file(path, data, checkpoint.vocabulary, progress=True)

    for warning in dataset_warnings(dataset):
        print(warning, file=sys.stderr)
    return dataset
