"""What the pictures of a run are made of: recorded at evaluations, kept until they are drawn."""

from dataclasses import dataclass

MOST_CLASSES = 30  # in a picture of the confusion


@dataclass(frozen=True)
class Confusion:
    """How often each class is taken for each: rows are true classes, columns predicted ones."""

    classes: tuple[str, ...]  # at most MOST_CLASSES, in the order of their ids
    counts: tuple[tuple[int, ...], ...]  # (classes, classes)
    num_classes: int  # of the task: where there are more, those most involved in errors are shown


@dataclass(frozen=True)
class Bin:
    """Predictions of about the same confidence."""

    count: int
    confidence: float  # mean probability of the predicted class
    accuracy: float


@dataclass(frozen=True)
class Error:
    """A sequence for which the model predicts another class than the true one."""

    sequence: str  # as a person reads it, shortened
    length: int
    true: str
    predicted: str
    probability: float  # of the predicted class
    probability_of_true: float


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the validation sequences, as far as pictures and tables need it."""

    step: int
    accuracy: float
    loss: float  # mean cross-entropy in nats
    calibration_error: float
    confusion: Confusion
    bins: tuple[Bin, ...]
    errors: tuple[Error, ...]  # the most confident first


@dataclass(frozen=True)
class Levels:
    """The lines that a run is held against. None: there is no such line."""

    guessing_loss: float | None  # in nats: ln N for N classes of equal size
    num_classes: int
    majority: float  # the accuracy of always predicting the most frequent class
    max_grad_norm: float | None
    is_smoothed: bool = False  # whether the training loss is that of smoothed labels
    least_loss: float | None = None  # in nats: below it the training loss cannot be
