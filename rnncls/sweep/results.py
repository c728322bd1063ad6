"""The result of a member: the evaluation of its last checkpoint, stored as evaluation.json."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field

from rnncls.config import COUNTED, Config, FilesConfig, SumModConfig, flatten, with_numbers
from rnncls.config.ranges import DEFAULT_READ, Long
from rnncls.data.files.search import Search
from rnncls.data.read_tables import DATA_KEYS, data_files
from rnncls.errors import ConfigError, Problem
from rnncls.evaluation.evaluate import evaluate
from rnncls.evaluation.long_sequences import LongReport, evaluate_long
from rnncls.evaluation.report import Report
from rnncls.rundir.checkpoint import Checkpoint, read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest, model_on_device
from rnncls.rundir.restore import held_out_data
from rnncls.sweep.paths import EVALUATION
from rnncls.sweep.plan import Member, Sweep, tested_lengths
from rnncls.system.files import read_regular, write_atomically
from rnncls.system.refusals import writing

# A report has a row per length, and on data files there may be a million lengths. The bound keeps a
# file that is not a report from filling the memory.
MAX_EVALUATION_BYTES = 64 * 2**20


@dataclass(frozen=True)
class MemberReport:
    """What evaluation.json says about a member."""

    step: int  # of the checkpoint that was evaluated
    report: Report
    long: LongReport = field(default_factory=LongReport)

    def to_json(self) -> dict[str, Any]:
        """Return the content of evaluation.json."""
        return {"step": self.step, **self.report.to_json(), **self.long.to_json()}


class LengthResult(BaseModel):
    """The part of a `LengthReport` that the statistics read."""

    # Longer than any sequence. Beyond it a float, in which axes count, is not exact.
    length: Annotated[int, Field(ge=1, le=2**53)]
    accuracy: Annotated[float, Field(ge=0, le=1)]
    trained: bool | None


class KindResult(BaseModel):
    """The part of a `KindReport` that the statistics read."""

    kind: str
    longest_right: Annotated[int, Field(ge=0)]


class StructuredResult(BaseModel):
    """The part of a `StructuredReport` that the statistics read."""

    longest: int
    all_right: bool
    kinds: list[KindResult]


class UntilWrongResult(BaseModel):
    """The part of an `UntilWrongReport` that the statistics read."""

    longest: int
    sequences: Annotated[int, Field(ge=1)]
    never: Annotated[int, Field(ge=0)]
    lowest: int | None
    median: int | None


class Evaluation(BaseModel):
    """The part of evaluation.json that the statistics read."""

    step: int
    accuracy: Annotated[float, Field(ge=0, le=1)]
    chance: Annotated[float, Field(gt=0, le=1)]
    by_length: Annotated[list[LengthResult], Field(min_length=1)]
    structured: StructuredResult | None = None
    until_wrong: UntilWrongResult | None = None


def evaluate_member(
    member: Member,
    run_dir: Path,
    lengths: list[int] | None,
    sweep: Sweep,
    check: Callable[[], object] | None = None,
    search: Search | None = None,
    long: Long | None = None,
) -> MemberReport:
    """Return the report on the member's last checkpoint, and that checkpoint's step.

    The last checkpoint, not the best one: nothing is selected by test accuracy. `lengths` and
    `long`: None for those of the sweep; data files are evaluated as a whole. `check` is called
    before each batch. `search`: where data files are looked for that were moved.

    Raises: ConfigError if the run has another config than the member. CheckpointError if the
    checkpoint or the data files are damaged. What `check` raises.
    """
    checkpoint = read_checkpoint(find_newest(run_dir))

    # Before the model is built: that of a foreign run may be huge, or on a device that is not here.
    _require_planned(member, checkpoint, sweep.fingerprints)
    config = checkpoint.config
    model = model_on_device(checkpoint)

    dataset = held_out_data(checkpoint, search=search)
    if isinstance(config.data, FilesConfig):
        lengths = None
    elif lengths is None:
        lengths = tested_lengths(sweep, config)

    # Members are evaluated in parallel threads, so each must leave the other cores alone. The
    # setting belongs to the thread, which trains another member afterwards.
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    long = sweep.long if long is None else long
    num_read = min(sweep.samples, DEFAULT_READ)
    try:
        report = evaluate(model, config, lengths, sweep.samples, dataset=dataset, check=check)
        on_long = evaluate_long(model, config, long, num_read, check=check)
    finally:
        torch.set_num_threads(num_threads)

    return MemberReport(checkpoint.state.step, report, on_long)


def _require_planned(member: Member, checkpoint: Checkpoint, fingerprints: dict[str, str]) -> None:
    """Raise ConfigError if the checkpoint is of another config than the sweep planned.

    `fingerprints` are those of the sweep's data files, by path.
    """
    # Somebody may have trained in the member's folder by hand, or resumed it with overrides.
    planned = flatten(with_numbers(member.config))
    actual = flatten(checkpoint.config)

    changes = []
    for key, value in actual.items():
        # A number that the plan could not know: it was counted when the member began.
        was_counted = key in COUNTED and planned[key] is None
        # Files may have been moved; then their hashes are what was planned.
        was_moved = key in DATA_KEYS and _has_files(member, checkpoint, fingerprints)
        if value != planned.get(key) and not was_counted and not was_moved:
            changes.append(f"{key}: {planned.get(key)} -> {value}")

    if changes:
        problem = Problem(
            "the run is not the one that the sweep planned",
            str(checkpoint.path),
            found=", ".join(changes),
            remedy="move it away, and sweep --resume",
            id="C19",
        )
        raise ConfigError(problem)


def _has_files(member: Member, checkpoint: Checkpoint, fingerprints: dict[str, str]) -> bool:
    """Return whether a checkpoint's data files are those of the member, wherever they are."""
    if not isinstance(member.config.data, FilesConfig):
        return False
    planned = {}
    for name, paths in data_files(member.config.data).items():
        planned[name] = tuple(fingerprints.get(path, "") for path in paths)
    return planned == checkpoint.state.fingerprints


def trained_accuracy(evaluation: Evaluation, config: Config) -> float:
    """Return the accuracy that success is counted by.

    For generated data, the mean over the training lengths; for files, that of all sequences.
    """
    if not isinstance(config.data, SumModConfig):
        return evaluation.accuracy

    # Every length counts the same, although there are far more sequences of the longer ones: else
    # the short ones would hardly matter.
    accuracies = [result.accuracy for result in evaluation.by_length if result.trained]
    return math.fsum(accuracies) / max(1, len(accuracies))


def write_evaluation(run_dir: Path, report: MemberReport) -> Evaluation:
    """Write evaluation.json and return the part that the statistics read. Raises WriteError."""
    # JSON has no NaN. The report replaces a loss that is not finite; any other NaN would be a bug.
    path = run_dir / EVALUATION
    content = report.to_json()
    with writing(path):
        write_atomically(path, json.dumps(content, allow_nan=False).encode())
    return Evaluation.model_validate(content)


def read_evaluation(run_dir: Path) -> Evaluation | None:
    """Return what evaluation.json says; None without one. Raises ConfigError if it is damaged."""
    path = run_dir / EVALUATION
    try:
        return Evaluation.model_validate_json(read_regular(path, MAX_EVALUATION_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError):
        problem = Problem(
            "not an evaluation",
            str(path),
            expected="a file written by rnncls sweep",
            remedy="delete it, and sweep --resume",
            id="C4",
        )
        raise ConfigError(problem) from None
