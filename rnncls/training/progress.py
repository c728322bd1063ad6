"""How training is going: the numbers to log, the best evaluation so far, when to stop early."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import NamedTuple

from torch import Tensor

from rnncls.config import TrainConfig
from rnncls.data import Batch, Task
from rnncls.evaluation.calibration import Confidences
from rnncls.evaluation.metrics import calibration_error, class_counts
from rnncls.evaluation.scores import LogitsOf, Scored, Scores, gather, scored
from rnncls.evaluation.ways import compiled_model
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir.log import BY_LENGTH
from rnncls.steps.optim import learning_rate
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World

# Sees what a model says about each batch, and hands it on.
Watch = Callable[[Iterable[Scored]], Iterator[Scored]]


def way_of_validation(state: TrainState, task: Task) -> LogitsOf | None:
    """Return the compiled way of computing the logits of validation; None: the model itself.

    It depends on the config and the data, so that a resumed run and the members of a sweep get the
    numbers of an undisturbed run.
    """
    # A run that began before there was this way goes on as it began.
    if state.step_rules == 1:
        return None
    compiled = compiled_model(state.evaluated, task.validation_tokens)
    return None if compiled is None else compiled.of_packed


class Validation(NamedTuple):
    """An evaluation on the validation sequences: what is logged, and what pictures are made of."""

    scalars: dict[str, float]  # by TensorBoard tag
    scores: Scores
    confidences: Tensor  # (R,) probabilities of the predicted classes


def validate(
    model: RNNClassifier,
    task: Task,
    batches: Iterable[Batch],
    logits_of: LogitsOf | None = None,
    watch: Watch | None = None,
    world: World | None = None,
) -> Validation:
    """Evaluate on the validation sequences: loss, accuracy, macro-F1, calibration, by length.

    `logits_of` gives the logits, if it is not the model itself that computes them. `watch` sees
    what the model says about each batch. Lengths that do not occur have no accuracy. With other
    processes, in `world`, each runs the model over some of the batches, and all return the same.
    """
    confidences = Confidences()
    with closing(scored(model, batches, logits_of, world)) as parts:
        watched = confidences.watch(parts)
        scores = gather(watched if watch is None else watch(watched))

    found = confidences.all()
    wrong = scores.wrong()
    _, num_classes = task.sizes
    counts = class_counts(scores.labels, scores.predictions, num_classes)

    # In float64: the mean of many thousand values shall not lose digits.
    correct = (scores.predictions == scores.labels).double()
    scalars = {
        "val/loss": float(scores.losses.double().mean()),
        "val/accuracy": float(correct.mean()),
        "val/macro_f1": counts.macro_f1(),
        "val/calibration_error": calibration_error(found, ~wrong),
    }
    for lengths in task.logged_lengths:
        among = (scores.lengths >= lengths.first) & (scores.lengths <= lengths.last)
        examples = int(among.sum())
        if examples:
            errors = int(wrong[among].sum())
            scalars[f"{BY_LENGTH}{lengths}"] = 1 - errors / examples
    return Validation(scalars, scores, found)


def note_score(state: TrainState, scalars: dict[str, float], metric: str) -> bool:
    """Update the best evaluation so far, and return whether it is the one of this step.

    `scalars`: validation results by tag. `metric`: the one that decides, `train.best_metric`.

    Of equal scores the latest is the best: once every sequence in range is right, it is further
    training that makes longer ones right too. Patience counts only strict improvements.
    """
    score = scalars[f"val/{metric}"]
    if metric == "loss":
        score = -score  # larger is better
    # A model that has diverged may still get sequences right, but is never the best.
    if not math.isfinite(scalars["val/loss"]):
        score = -math.inf

    if score > state.best_score:
        state.stale_evaluations = 0
    else:
        state.stale_evaluations += 1

    is_best = score >= state.best_score and score != -math.inf
    if is_best:
        state.best_score = score
        state.best_step = state.step
        state.best_accuracy = scalars["val/accuracy"]
    return is_best


def reason_to_stop(state: TrainState, train: TrainConfig, accuracy: float) -> str:
    """Return why training may end before its last step; empty if it may not.

    `accuracy`: that of the evaluation at this step.
    """
    if train.stop_at_accuracy is not None and accuracy >= train.stop_at_accuracy:
        return f"val/accuracy {accuracy:.4f} reached train.stop_at_accuracy"
    if train.patience is not None and state.stale_evaluations >= train.patience:
        return f"{state.stale_evaluations} evaluations without a better val/{train.best_metric}"
    return ""


def training_scalars(state: TrainState, task: Task) -> dict[str, float]:
    """Return the averages since the last log line, and the learning rate of the last step.

    Empty if no step was taken since.
    """
    if not state.totals.steps:
        return {}
    config = task.config
    # Steps are counted from 0, and the state's step is the next one.
    last_step = state.step - 1
    rate = learning_rate(last_step, task.max_steps, config.optimizer.lr, config.schedule)
    seen = task.sequences_seen(state.step)
    return {**state.totals.averages(), "train/lr": rate, "train/sequences_seen": float(seen)}
