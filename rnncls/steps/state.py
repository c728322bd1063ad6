"""All that changes during a run, in memory and as a checkpoint keeps it."""

import math
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rnncls.config import TrainConfig
from rnncls.model.classifier import RNNClassifier


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
        """One step: its mean loss, the norm before clipping, and how many of its sequences were right."""
        self.loss += loss * sequences
        self.correct += correct
        self.sequences += sequences
        self.grad_norm += grad_norm
        self.clipped += max_norm is not None and grad_norm > max_norm
        self.steps += 1

    def averages(self) -> dict[str, float]:
        """The averages by TensorBoard tag; empty when nothing was added."""
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
    """What is to be done after a step."""

    evaluation: bool
    log: bool
    histograms: bool
    checkpoint: bool


def due_after(step: int, train: TrainConfig) -> Due:
    """Return what the config's cadences ask for after this step; one that is 0 never comes."""

    def is_due(every: int) -> bool:
        return every > 0 and step % every == 0

    return Due(
        evaluation=is_due(train.eval_every),
        log=is_due(train.log_every),
        histograms=is_due(train.histogram_every or 0),
        checkpoint=is_due(train.checkpoint_every),
    )


@dataclass
class TrainState:
    """All that changes during a run. The rest is a function of config and step."""

    model: RNNClassifier
    optimizer: torch.optim.Optimizer
    step: int = 0  # batches trained on
    due: bool = False  # whether `after_step` of this step is still to be done
    skipped: int = 0  # batches in a row whose update was left out because it was not finite
    totals: Totals = field(default_factory=Totals)  # since the last log line
    best_step: int | None = None
    best_score: float = -math.inf  # of `train.best_metric`, larger is better
    best_accuracy: float = -math.inf  # of the best step
    stale_evaluations: int = 0  # in a row, without a higher score
    stopped: bool = False  # whether the run is over, be it before its last step

    @property
    def device(self) -> torch.device:
        """The device of the model's parameters."""
        return next(self.model.parameters()).device

    def counters(self) -> dict[str, float | int | None]:
        """What a checkpoint keeps beside weights, optimizer state and step."""
        own: dict[str, float | int | None] = {
            "due": int(self.due),
            "skipped": self.skipped,
            "best_step": self.best_step,
            "best_score": None if self.best_step is None else self.best_score,
            "best_accuracy": None if self.best_step is None else self.best_accuracy,
            "stale_evaluations": self.stale_evaluations,
            "stopped": int(self.stopped),
        }
        return own | {f"totals_{name}": value for name, value in asdict(self.totals).items()}

    def restore_counters(self, counters: dict[str, Any]) -> None:
        """The inverse of `counters`, for a state whose step is set. Raises ValueError where they make no sense."""
        try:
            kept = Counters.model_validate(counters)
        except ValidationError as error:
            raise ValueError(
                ", ".join(str(detail["loc"][0]) for detail in error.errors()[:5])
            ) from None
        known = (kept.best_step is None, kept.best_score is None, kept.best_accuracy is None)
        if len(set(known)) > 1 or (kept.best_step or 0) > self.step:
            raise ValueError("best_step, best_score, best_accuracy")
        self.due, self.stopped = bool(kept.due), bool(kept.stopped)
        self.skipped, self.stale_evaluations = kept.skipped, kept.stale_evaluations
        self.best_step = kept.best_step
        self.best_score = -math.inf if kept.best_score is None else kept.best_score
        self.best_accuracy = -math.inf if kept.best_accuracy is None else kept.best_accuracy
        self.totals = Totals(**{name: getattr(kept, f"totals_{name}") for name in asdict(Totals())})


Number = Annotated[int, Field(ge=0, le=2**62)]
Sum = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Counters(BaseModel):
    """What `TrainState.counters` may be when it comes out of a file."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    due: Literal[0, 1]
    stopped: Literal[0, 1]
    skipped: Number
    stale_evaluations: Number
    best_step: Number | None
    best_score: Annotated[float, Field(ge=-1e300, le=1)] | None
    best_accuracy: Annotated[float, Field(ge=0, le=1)] | None
    totals_loss: Sum
    totals_correct: Number
    totals_sequences: Number
    totals_grad_norm: Sum
    totals_clipped: Number
    totals_steps: Number
    totals_seconds: Sum
