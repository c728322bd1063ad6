"""rnncls eval"""

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from rnncls.cli.options import Device, Json
from rnncls.config.ranges import DEFAULT_SAMPLES, MAX_SAMPLES, parse_lengths
from rnncls.errors import ConfigError, NonFiniteError, Problem
from rnncls.sweep.paths import is_sweep
from rnncls.system.waiting import load_torch


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
            min=1,
            max=MAX_SAMPLES,
            help=f"Sequences sampled per length (default {DEFAULT_SAMPLES:,}).",
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
    # Before torch is imported, so that a wrong list is reported at once.
    chosen = None if lengths is None else parse_lengths(lengths)
    load_torch()

    if not is_sweep(checkpoint):
        _evaluate_checkpoint(checkpoint, chosen, samples, confusion, data, device, as_json)
        return

    # Members are evaluated on their own data, on the device of their config.
    if confusion or data or device:
        raise ConfigError(
            Problem(
                "option not available for sweeps",
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
    from rnncls.data.dataset import dataset_warnings
    from rnncls.evaluation.evaluate import evaluate
    from rnncls.rundir.checkpoint_files import load_checkpoint
    from rnncls.rundir.restore import held_out_data, is_finite

    loaded, model = load_checkpoint(checkpoint, device)

    # Only a warning: if these weights matter, the loss is not finite either, an error below.
    if not is_finite(loaded):
        print(f"rnncls: warning[K13]: weights in {loaded.path} are not finite", file=sys.stderr)

    dataset = held_out_data(loaded, data, progress=True)

    # Printed before the evaluation, which may take minutes.
    if dataset is not None:
        for warning in dataset_warnings(dataset):
            print(warning, file=sys.stderr)

    report = evaluate(
        model,
        loaded.config,
        lengths,
        samples or DEFAULT_SAMPLES,
        confusion,
        progress=True,
        dataset=dataset,
    )

    # Logits that are NaN stand for no class, so the rest of the report would not be meaningful.
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
    from rnncls.sweep.evaluate import evaluate_all
    from rnncls.sweep.text import accuracy_table

    accuracies = evaluate_all(folder, lengths, samples)
    if as_json:
        print(json.dumps(accuracies.to_json()))
    else:
        print(accuracy_table(accuracies))
