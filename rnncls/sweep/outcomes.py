"""The outcome of each member: how far it came, how it ended, and its accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

from rnncls.config.ranges import NOTHING_LONG, Long
from rnncls.errors import ConfigError, NonFiniteError
from rnncls.rundir.status import read_status
from rnncls.rundir.tables import TrainingTime, read_metrics
from rnncls.sweep.plan import Member, Sweep, tested_lengths
from rnncls.sweep.results import Evaluation, read_evaluation, trained_accuracy

# Accuracy from which the task counts as solved: in validation, whose first such step is reported,
# and at each length of a horizon.
SOLVED = 0.999


@dataclass(frozen=True)
class Outcome:
    """The state of one member, and its results so far."""

    member: Member
    state: str  # of its status.json, or "not begun"
    exit_code: int | None  # None while it is running
    error_id: str  # of what it failed with
    step: int
    evaluation: Evaluation | None
    tested: tuple[int, ...]  # the lengths that are evaluated; none for data files
    steps_to_solved: int | None  # None if validation accuracy never reached SOLVED
    train_s: float | None
    long: Long = NOTHING_LONG  # sequences that are read a few digits at a time

    @property
    def diverged(self) -> bool:
        """Whether numbers were not finite: a result of the config, which other errors are not."""
        return self.exit_code == NonFiniteError.exit_code

    @property
    def ended(self) -> bool:
        """Whether there is a result."""
        return self.diverged or self.evaluation is not None

    @property
    def accuracies(self) -> dict[int, float]:
        """Accuracy by length: empty until the member is evaluated, and 0 if it diverged."""
        if self.diverged:
            return dict.fromkeys(self.tested, 0.0)
        if self.evaluation is None:
            return {}
        return {result.length: result.accuracy for result in self.evaluation.by_length}

    @property
    def accuracy(self) -> float:
        """Accuracy over the training lengths; 0 if the member diverged or is not evaluated."""
        if self.diverged or self.evaluation is None:
            return 0.0
        return trained_accuracy(self.evaluation, self.member.config)


def outcomes(sweep: Sweep) -> list[Outcome]:
    """Return the outcome of every member, in the order of the plan."""
    return [_outcome(sweep, member) for member in sweep.members]


def by_setting(members: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """Return the outcomes by the setting of their members: those of one list differ in the seed."""
    settings: dict[str, list[Outcome]] = {}
    for outcome in members:
        settings.setdefault(outcome.member.setting, []).append(outcome)
    return settings


def accuracies_at(length: int, ended: Sequence[Outcome]) -> list[float]:
    """Return the accuracy of each member tested at this length, and 0 for each that diverged."""
    # On data files the lengths come from the evaluation, and a member that diverged has none: it
    # must count as 0 nevertheless, or diverging would raise the median.
    accuracies = []
    for outcome in ended:
        accuracy = outcome.accuracies.get(length)
        if outcome.diverged:
            accuracies.append(0.0)
        elif accuracy is not None:
            accuracies.append(accuracy)
    return accuracies


def _outcome(sweep: Sweep, member: Member) -> Outcome:
    run_dir = sweep.run_dir(member)

    # Damaged files are the trouble of one member; they must not hide the others.
    evaluation: Evaluation | None = None
    training_time = TrainingTime(member.config.train.batch_size)
    steps_to_solved: int | None = None
    damage_id = ""
    try:
        evaluation = read_evaluation(run_dir)
        for row in read_metrics(run_dir):
            training_time.add(row)
            # Most rows are of steps without an evaluation; a value that was not finite is None.
            accuracy = row.get("val/accuracy")
            if steps_to_solved is None and accuracy is not None and accuracy >= SOLVED:
                steps_to_solved = row["step"]
    except ConfigError as error:
        evaluation = None
        damage_id = error.problems[0].id
    except OSError:
        evaluation = None
        damage_id = "R9"

    status = read_status(run_dir)
    step = status.get("step", 0)

    # An evaluation of another step is of no use: the member was trained further since.
    if evaluation is not None and evaluation.step != step:
        evaluation = None

    # Damage is named first: the run may well have finished before its files were damaged.
    error_id = damage_id or status.get("error_id", "")

    return Outcome(
        member,
        state=status.get("state", "not begun"),
        exit_code=status.get("exit_code"),
        error_id=error_id,
        step=step,
        evaluation=evaluation,
        tested=tuple(tested_lengths(sweep, member.config)),
        steps_to_solved=steps_to_solved,
        train_s=training_time.seconds,
        long=sweep.long,
    )
