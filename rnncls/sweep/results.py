"""evaluation.json of a member."""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field

from rnncls.config import Config, FilesConfig, SumModConfig, flatten
from rnncls.data import spread_lengths
from rnncls.data.dataset import load_held_out
from rnncls.errors import ConfigError, Problem
from rnncls.evaluation.evaluate import evaluate
from rnncls.rundir.checkpoint import Checkpoint, read_checkpoint, restore_model
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.sweep.plan import Member, Sweep
from rnncls.system.device import resolve_device
from rnncls.system.files import read_regular
from rnncls.system.signals import StopRequest

EVALUATION = "evaluation.json"
MAX_EVALUATION_BYTES = 64 * 2**20


class LengthFound(BaseModel):
    """What the statistics need of a `LengthReport`."""

    length: Annotated[int, Field(ge=1)]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    trained: bool | None


class Evaluation(BaseModel):
    """evaluation.json, the report of a member; what the statistics need of it."""

    step: int
    accuracy: Annotated[float, Field(ge=0, le=1)]
    chance: Annotated[float, Field(gt=0, le=1)]
    by_length: list[LengthFound]


def evaluate_member(
    member: Member,
    run_dir: Path,
    lengths: list[int] | None,
    sweep: Sweep,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """The report on its last checkpoint, because nothing is selected by test accuracy, and the step of that.

    `lengths`: None for those of the sweep. Raises ConfigError where the run is of another config than the member.
    """
    checkpoint = read_checkpoint(find_newest(run_dir))
    _require_planned(member, checkpoint)
    model = restore_model(checkpoint).to(resolve_device(checkpoint.config.device))
    config, dataset = checkpoint.config, None
    if isinstance(config.data, FilesConfig):
        if checkpoint.vocabulary is not None:
            dataset = load_held_out(
                config.data, checkpoint.vocabulary, checkpoint.state.fingerprints
            )
        lengths = None
    elif lengths is None:
        lengths = tested_lengths(sweep, config)
    step = checkpoint.state.step
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # members are evaluated beside each other
    try:
        check = None if stop is None else lambda: stop.check(step, str(run_dir))
        report = evaluate(model, config, lengths, sweep.samples, dataset=dataset, check=check)
    finally:
        torch.set_num_threads(threads)
    return {"step": step, **report.to_json()}


def tested_lengths(sweep: Sweep, config: Config) -> list[int]:
    """Those of training, or of very many some, and those that were asked for. Files are tested as a whole: none."""
    return (
        sorted({*spread_lengths(config.data), *sweep.lengths})
        if isinstance(config.data, SumModConfig)
        else []
    )


def _require_planned(member: Member, checkpoint: Checkpoint) -> None:
    found, wanted = flatten(checkpoint.config), flatten(member.config)
    changes = [
        f"{key}: {wanted.get(key)} -> {found[key]}"
        for key in found
        if found[key] != wanted.get(key)
    ]
    if changes:
        what, remedy = (
            "the run is not the one that the sweep planned",
            "move it away, and sweep --resume",
        )
        raise ConfigError(
            Problem(what, str(checkpoint.path), found=", ".join(changes), remedy=remedy, id="C19")
        )


def trained_accuracy(found: Evaluation, config: Config) -> float:
    """What success is counted by: the mean over the training lengths, or over the sequences of a file."""
    if not isinstance(config.data, SumModConfig):
        return found.accuracy
    accuracies = [row.accuracy for row in found.by_length if row.trained]
    return math.fsum(accuracies) / max(1, len(accuracies))


def read_evaluation(run_dir: Path) -> Evaluation | None:
    """What `evaluation.json` says; None where there is none. Raises ConfigError when it is damaged."""
    path = run_dir / EVALUATION
    try:
        return Evaluation.model_validate_json(read_regular(path, MAX_EVALUATION_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        remedy = "delete it, and sweep --resume"
        raise ConfigError(
            Problem(
                "no evaluation",
                str(path),
                expected="what rnncls sweep wrote",
                remedy=remedy,
                id="C4",
            )
        ) from None
