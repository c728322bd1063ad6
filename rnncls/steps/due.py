"""Logging, evaluation, checkpoints and histograms are due after every so many steps."""

from rnncls.config import TrainConfig


def is_due(step: int, every: int | None) -> bool:
    """Return whether a task done every `every` steps is due after step number `step`.

    With `every` 0 or None it is never due.
    """
    if not every:
        return False
    return step % every == 0


def next_due(train: TrainConfig, step: int) -> int:
    """Return the first step after `step` that has something due after it.

    The last step of a run, after which nearly everything is due, is not considered: the length
    of a run is known to the task alone.
    """
    intervals = [train.log_every, train.eval_every, train.checkpoint_every, train.histogram_every]
    return min((step // every + 1) * every for every in intervals if every)
