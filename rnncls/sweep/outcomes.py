"""What became of each member."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rnncls.errors import ConfigError, NonFiniteError
from rnncls.rundir.status import read_status
from rnncls.rundir.tables import read_metrics
from rnncls.sweep.plan import Member, Sweep
from rnncls.sweep.results import Evaluation, read_evaluation, tested_lengths, trained_accuracy

SOLVED = 0.999  # validation accuracy whose first step is reported, and that of a horizon


@dataclass(frozen=True)
class Outcome:
    """One member, as far as it is known."""

    member: Member
    state: str  # of its status.json, or "not begun"
    exit_code: int | None  # None while it is running
    error_id: str  # of what it failed with
    step: int
    evaluation: Evaluation | None
    tested: tuple[int, ...]  # the lengths of an evaluation; of files none
    steps_to_solved: int | None  # None: not reached
    train_s: float | None

    @property
    def diverged(self) -> bool:
        """Numbers that were not finite: a result, and a failure. Other errors say nothing about the config."""
        return self.exit_code == NonFiniteError.exit_code

    @property
    def ended(self) -> bool:
        return self.diverged or self.evaluation is not None

    @property
    def accuracies(self) -> dict[int, float]:
        """By length; empty while it is not evaluated, and 0 of one that diverged."""
        if self.diverged:
            return dict.fromkeys(self.tested, 0.0)
        return (
            {row.length: row.accuracy for row in self.evaluation.by_length}
            if self.evaluation
            else {}
        )

    @property
    def accuracy(self) -> float:
        """Over the training lengths; of one that diverged 0."""
        evaluation = None if self.diverged else self.evaluation
        return trained_accuracy(evaluation, self.member.config) if evaluation else 0.0


def outcomes(sweep: Sweep) -> list[Outcome]:
    """Of all members, in their order."""
    return [_outcome(sweep, member) for member in sweep.members]


def _outcome(sweep: Sweep, member: Member) -> Outcome:
    run_dir, damaged = sweep.run_dir(member), ""
    try:
        found, metrics = read_evaluation(run_dir), read_metrics(run_dir)
    except (ConfigError, OSError) as error:  # that is one member's trouble
        found, metrics, damaged = (
            None,
            [],
            error.problems[0].id if isinstance(error, ConfigError) else "R9",
        )
    status = read_status(run_dir)
    step = status.get("step")
    step = step if isinstance(step, int) else 0
    reached = (row["step"] for row in metrics if (row.get("val/accuracy") or 0) >= SOLVED)
    return Outcome(
        member,
        str(status.get("state", "not begun")),
        status.get("exit_code"),
        damaged or str(status.get("error_id") or ""),
        step,
        found if found and found.step == step else None,  # else it was trained further
        tuple(tested_lengths(sweep, member.config)),
        next(reached, None),
        _train_seconds(metrics, member.config.train.batch_size),
    )


def _train_seconds(metrics: list[dict[str, Any]], batch_size: int) -> float | None:
    """Time spent on steps alone, from the rates that were logged."""
    spent, before = 0.0, 0
    for row in metrics:
        if rate := row.get("train/sequences_per_second"):
            spent, before = spent + batch_size * (row["step"] - before) / rate, row["step"]
    return spent or None


def accuracies_at(length: int, ended: Sequence[Outcome]) -> list[float]:
    """Of those that were tested at this length, and 0 of those that diverged."""
    found = [(outcome.diverged, outcome.accuracies.get(length)) for outcome in ended]
    return [accuracy or 0.0 for diverged, accuracy in found if diverged or accuracy is not None]
