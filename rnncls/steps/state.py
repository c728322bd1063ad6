"""Everything that changes during a run: in memory (`TrainState`) and in a file (`Counters`)."""

import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnncls.config import TrainConfig
from rnncls.model.classifier import RNNClassifier
from rnncls.model.rules import LATEST, StepRules

# Stands before the names of the totals in a checkpoint.
TOTALS = "totals_"

Value = TypeVar("Value")


class Sums(NamedTuple, Generic[Value]):
    """The five sums that grow with every training step, in the order in which engines keep them.

    An engine may add to them where it computes, as one array of five numbers for each run.
    """

    loss: Value  # over sequences, in nats
    correct: Value  # sequences
    sequences: Value
    grad_norm: Value  # over steps, before clipping
    clipped: Value  # steps


@dataclass
class Totals:
    """Sums over the training steps since the last log line."""

    loss: float = 0.0  # over sequences, in nats
    correct: int = 0
    sequences: int = 0
    grad_norm: float = 0.0  # over steps, before clipping
    clipped: int = 0
    steps: int = 0
    seconds: float = 0.0  # spent on training alone, not on evaluation and saving

    def add(
        self, loss: float, grad_norm: float, correct: int, sequences: int, max_norm: float | None
    ) -> None:
        """Add one step: its mean loss, gradient norm before clipping, and correct sequences."""
        # Batches may differ in size, and the average is over sequences, not over batches.
        self.loss += loss * sequences
        self.correct += correct
        self.sequences += sequences
        self.grad_norm += grad_norm
        self.clipped += max_norm is not None and grad_norm > max_norm
        self.steps += 1

    def sums(self) -> Sums[float]:
        """Return the sums from which an engine continues adding."""
        return Sums(self.loss, self.correct, self.sequences, self.grad_norm, self.clipped)

    def replace_sums(self, sums: Sums[float], steps: int) -> None:
        """Take the sums to which an engine has added this many steps."""
        # Engines add in float64, which holds whole numbers exactly up to 2**53.
        self.loss = float(sums.loss)
        self.correct = int(sums.correct)
        self.sequences = int(sums.sequences)
        self.grad_norm = float(sums.grad_norm)
        self.clipped = int(sums.clipped)
        self.steps += steps

    def averages(self) -> dict[str, float]:
        """Return the averages by TensorBoard tag; nothing if no step was added."""
        if not self.steps:
            return {}
        return {
            "train/loss": self.loss / self.sequences,
            "train/accuracy": self.correct / self.sequences,
            "train/grad_norm": self.grad_norm / self.steps,
            "train/clip_fraction": self.clipped / self.steps,
            "train/sequences_per_second": self.sequences / self.seconds,
        }


class Due(NamedTuple):
    """The work that is due after a step."""

    evaluation: bool
    log: bool
    histograms: bool
    diagnostics: bool
    checkpoint: bool


def due_after(train: TrainConfig, step: int) -> Due:
    """Return what is due after this step, by the config's `..._every` keys.

    What has no interval is never due.
    """
    histogram_every = train.histogram_every
    diagnostics_every = train.diagnostics_every
    return Due(
        evaluation=step % train.eval_every == 0,
        log=step % train.log_every == 0,
        histograms=histogram_every is not None and step % histogram_every == 0,
        diagnostics=diagnostics_every is not None and step % diagnostics_every == 0,
        checkpoint=step % train.checkpoint_every == 0,
    )


def next_due(train: TrainConfig, step: int) -> int:
    """Return the first step after `step` that has something due after it.

    The last step of a run, after which nearly everything is due, is not considered: the length
    of a run is known to the task alone.
    """
    # The next multiple of each interval; an interval of None has none.
    intervals = (
        train.log_every,
        train.eval_every,
        train.checkpoint_every,
        train.histogram_every,
        train.diagnostics_every,
    )
    return min((step // every + 1) * every for every in intervals if every)


@dataclass
class TrainState:
    """Everything that changes during a run. The rest is a function of config and step."""

    model: RNNClassifier
    optimizer: torch.optim.Optimizer
    step: int = 0  # batches trained on
    due: bool = False  # whether `after_step` of this step is still to be done
    skipped: int = 0  # batches in a row whose update was left out because it was not finite
    totals: Totals = field(default_factory=Totals)  # since the last log line
    best_step: int | None = None
    best_score: float = -math.inf  # of `train.best_metric`, larger is better
    best_accuracy: float = -math.inf  # of the best step
    best_metric: str = "accuracy"  # `train.best_metric`, the same for the whole run
    stale_evaluations: int = 0  # in a row, without a higher score
    stopped: bool = False  # whether the run is over, be it before its last step
    step_rules: StepRules = LATEST  # the same for the whole run
    # With `train.average_weights`: a model that has the running average, and of how many updates.
    average: RNNClassifier | None = None
    averaged: int = 0

    @property
    def evaluated(self) -> RNNClassifier:
        """The model to evaluate and to predict with: the average of the weights if there is one."""
        return self.model if self.average is None else self.average

    @property
    def device(self) -> torch.device:
        """The device that the model's parameters are on."""
        return next(self.model.parameters()).device

    @property
    def best_value(self) -> float | None:
        """The value of `train.best_metric` at the best step; None before the first evaluation."""
        if self.best_step is None:
            return None
        # The score of a loss is its negative, so that a larger score is always better.
        return -self.best_score if self.best_metric == "loss" else self.best_score

    def counters(self) -> dict[str, float | int | None]:
        """Return what a checkpoint keeps besides weights, optimizer state and step.

        The keys are the fields of `Counters`, in their order.
        """
        values = dict(vars(self))
        for name, total in asdict(self.totals).items():
            values[TOTALS + name] = total

        # JSON has no infinity, which stands in memory for "no evaluation yet".
        if self.best_step is None:
            values["best_score"] = None
            values["best_accuracy"] = None

        kept: dict[str, float | int | None] = {}
        for name in Counters.model_fields:
            if name == "averaged" and self.average is None:
                continue
            value = values[name]
            # Flags are written as 0 and 1.
            kept[name] = int(value) if isinstance(value, bool) else value
        return kept

    def restore_counters(self, counters: dict[str, Any]) -> None:
        """Set what `counters` returned, in a state whose step is set already.

        Raises: ValueError, with the names of the counters that make no sense.
        """
        # All of them are checked before any is set, so that a bad file changes nothing.
        kept = _validated(counters, self.step)

        # A counter belongs to the totals or to this state, as its name says.
        self.totals = Totals()
        for name, value in kept:
            if name.startswith(TOTALS):
                setattr(self.totals, name.removeprefix(TOTALS), value)
            else:
                setattr(self, name, value)

        # The loop has set the values of the file: 0 or 1 for a flag, None for "no evaluation yet".
        self.due = bool(kept.due)
        self.stopped = bool(kept.stopped)
        if kept.best_step is None:
            self.best_score = -math.inf
            self.best_accuracy = -math.inf


# Checkpoints are input like any other. These bounds are far beyond every real run, and what is
# added to a number within them still fits into 64 bits.
NonNegative = Annotated[int, Field(ge=0, le=2**62)]
Sum = Annotated[float, Field(ge=0, le=1e300)]


class Counters(BaseModel):
    """The counters that a checkpoint keeps, in their order, and what values they may have.

    Fields with the prefix "totals_" are those of `Totals`; the others are those of `TrainState`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    due: Literal[0, 1]
    skipped: NonNegative
    best_step: NonNegative | None
    # An accuracy or a macro F1, at most 1, or the negative of a loss, which has no lower bound.
    best_score: Annotated[float, Field(ge=-1e300, le=1)] | None
    best_accuracy: Annotated[float, Field(ge=0, le=1)] | None
    stale_evaluations: NonNegative
    stopped: Literal[0, 1]
    totals_loss: Sum
    totals_correct: NonNegative
    totals_sequences: NonNegative
    totals_grad_norm: Sum
    totals_clipped: NonNegative
    totals_steps: NonNegative
    totals_seconds: Sum
    # Of runs that average their weights alone.
    averaged: NonNegative = 0


def _validated(counters: dict[str, Any], step: int) -> Counters:
    """Return the counters of a run at this step. Raises: ValueError if they make no sense."""
    try:
        kept = Counters.model_validate(counters)
    except ValidationError as error:
        names = [str(detail["loc"][0]) for detail in error.errors()[:5]]
        raise ValueError(", ".join(names)) from None

    # The best step is known with its score and accuracy or not at all, and is not in the future.
    best = (kept.best_step, kept.best_score, kept.best_accuracy)
    unknown = [value is None for value in best]
    if any(unknown) and not all(unknown):
        raise ValueError("best_step, best_score, best_accuracy")
    if kept.best_step is not None and kept.best_step > step:
        raise ValueError("best_step, best_score, best_accuracy")

    # A skipped step is no update.
    if kept.averaged > step:
        raise ValueError("averaged")

    # A step has sequences and takes time, and averages divide by both.
    if kept.totals_steps and not (kept.totals_sequences and kept.totals_seconds):
        raise ValueError("totals_steps, totals_sequences, totals_seconds")
    return kept
