"""The training loop: `fit` has steps taken (see `steps`), `after_step` does what is due after them."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing, nullcontext

from rnncls.config import TrainConfig
from rnncls.data import Batch, Task
from rnncls.errors import Interrupted
from rnncls.evaluation.metrics import class_counts
from rnncls.evaluation.scores import count_by_length, score
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir.checkpoint import save
from rnncls.rundir.checkpoint_files import mark_best, prune
from rnncls.rundir.log import RunLog
from rnncls.rundir.status import note_status
from rnncls.steps.engines import Engine
from rnncls.steps.optim import learning_rate
from rnncls.steps.state import Totals, TrainState
from rnncls.system.device import describe, describe_precision
from rnncls.system.files import free_bytes
from rnncls.system.signals import StopRequest
from rnncls.training.profiling import TRACE, traced


def _loop(
    state: TrainState, task: Task, log: RunLog, stop: StopRequest, engine: tuple[Engine, str]
) -> None:
    device = next(state.model.parameters()).device
    take_steps, name = engine
    how = f"{describe(device)}, {describe_precision(task.config.train.precision, device)}, {name}"
    log.say(f"training on {how}" + (f", from step {state.step:,}" if state.step else ""))
    _warn_of_little_space(state, log)
    try:
        if state.due and after_step(state, task, log, stop):
            return
        stop.check(state.step, str(log.run_dir))
        with _tracing(state, task, log) as count, closing(take_steps(state, task)) as steps:
            started_at = time.perf_counter()
            for taken in steps:
                state.totals.seconds += time.perf_counter() - started_at
                log.advance(taken)
                count(taken)
                if after_step(state, task, log, stop):
                    return
                stop.check(state.step, str(log.run_dir))
                started_at = time.perf_counter()
    except Interrupted:
        save(state, task, log.run_dir)
        raise


def _tracing(
    state: TrainState, task: Task, log: RunLog
) -> AbstractContextManager[Callable[[int], None]]:
    """With `train.profile` a trace of some steps; gives a function to be told of steps."""
    if not task.config.train.profile:
        return nullcontext(lambda _: None)
    return traced(log.run_dir, task.max_steps - state.step, lambda action: log.write(TRACE, action))


def after_step(state: TrainState, task: Task, log: RunLog, stop: StopRequest) -> bool:
    """Evaluate, log and save, whatever is due after this step. Returns whether the run is over.

    A signal interrupts the evaluation; then all of it is still due.
    """
    train, step = task.config.train, state.step
    over = step >= task.max_steps
    scalars: dict[str, float] = {}
    is_best = False
    if over or step % train.eval_every == 0:
        scalars = validate(
            state.model, task, stop.checked(task.validation(), step, str(log.run_dir))
        )
        is_best = note_score(state, scalars, train.best_metric)
        over = over or _may_stop(state, train, scalars["val/accuracy"], log)
    if over or step % train.log_every == 0:
        config = task.config
        lr = learning_rate(step - 1, task.max_steps, config.optimizer.lr, config.schedule)
        rates = {"train/lr": lr} if state.totals.steps else {}
        scalars = state.totals.averages() | rates | scalars
        state.totals = Totals()
    if scalars:
        log.log(step, scalars)
    if train.histogram_every and step % train.histogram_every == 0:
        log.histograms(step, state.model)
    state.due = False
    if over or is_best or step % train.checkpoint_every == 0 or stop.save:
        state.stopped, stop.save = over, False
        path = save(state, task, log.run_dir)
        if is_best:
            mark_best(path)
        prune(path.parent, train.keep_checkpoints)
        note_status(log.run_dir, state, "running")
    return over


def validate(model: RNNClassifier, task: Task, validation: Iterable[Batch]) -> dict[str, float]:
    """Loss, accuracy and macro-F1 on the validation sequences, and accuracy by length, by TensorBoard tag."""
    scores = score(model, validation)
    by_length = count_by_length(scores)
    correct = (scores.predictions == scores.labels).double()
    counts = class_counts(scores.labels, scores.predictions, task.sizes[1])
    return {
        "val/loss": float(scores.losses.double().mean()),
        "val/accuracy": float(correct.mean()),
        "val/macro_f1": counts.macro_f1(),
        **{
            f"val/accuracy_by_length/{n}": 1 - by_length[n][1] / by_length[n][0]
            for n in task.logged_lengths()
            if n in by_length
        },
    }


def note_score(state: TrainState, scalars: dict[str, float], metric: str) -> bool:
    """Update the best so far; returns whether this step is the best.

    Of equal scores the latest is the best: once every sequence in range is right, it is further training that
    makes longer ones right too. Patience counts only strict improvements.
    """
    value = scalars[f"val/{metric}"] * (-1 if metric == "loss" else 1)
    score = value if math.isfinite(scalars["val/loss"]) else -math.inf
    state.stale_evaluations = 0 if score > state.best_score else state.stale_evaluations + 1
    if score < state.best_score or score == -math.inf:
        return False
    state.best_score, state.best_step, state.best_accuracy = (
        score,
        state.step,
        scalars["val/accuracy"],
    )
    return True


def _may_stop(state: TrainState, train: TrainConfig, accuracy: float, log: RunLog) -> bool:
    if train.stop_at_accuracy is not None and accuracy >= train.stop_at_accuracy:
        log.say(
            f"stopped at step {state.step:,}: val/accuracy {accuracy:.4f} reached train.stop_at_accuracy"
        )
        return True
    if train.patience is not None and state.stale_evaluations >= train.patience:
        how = f"{state.stale_evaluations} evaluations without a better val/{train.best_metric}"
        log.say(f"stopped at step {state.step:,}: {how}")
        return True
    return False


def _warn_of_little_space(state: TrainState, log: RunLog) -> None:
    """A checkpoint and the one it replaces exist side by side for a moment, and best is a third."""
    size = 3 * sum(
        4 * parameter.numel() for parameter in state.model.parameters()
    )  # weights and two moments
    if (free := free_bytes(log.run_dir)) < 3 * size:
        log.say(
            f"rnncls: warning[R9]: {free:,} bytes free; checkpoints of this run take about {size:,} bytes each"
        )
