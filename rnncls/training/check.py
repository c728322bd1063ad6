"""`rnncls train --check`: whether a config trains here, and for how long, with nothing written.

The data is read and the model built as for a run. One batch is fitted, one batch is evaluated, and
the run's own engine takes steps for a second.
"""

import copy
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from rnncls.config import Config
from rnncls.data import Batch, Task, load_task
from rnncls.errors import on_one_line
from rnncls.evaluation.scores import score
from rnncls.rundir.checkpoint import Checkpoint, read_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.steps.eager import train_step
from rnncls.steps.engines import Engine, choose
from rnncls.system.device import describe, describe_precision
from rnncls.system.memory import reporting_memory
from rnncls.training.states import new_state, say_unread_vectors, warn_of_other_split

# Steps on one and the same batch. Whatever can learn remembers a batch within so many.
FIT_STEPS = 50

# The loss of that batch afterwards, as a share of the one before, up to which it fell clearly.
FELL = 0.95

MEASURED_SECONDS = 1.0


@dataclass(frozen=True)
class Check:
    """What was found. Losses are means over a batch, in nats."""

    task: Task
    num_parameters: int
    loss_before: float  # of the first training batch
    loss_after: float  # of the same batch, FIT_STEPS steps on it later
    val_loss: float  # of one validation batch, with the first weights
    val_accuracy: float
    val_sequences: int  # of that batch
    engine: str
    steps_per_second: float
    seconds: float  # of the whole run, an estimate

    @property
    def falls(self) -> bool:
        """Whether the loss of one batch falls clearly when the model is trained on it."""
        return self.loss_after <= FELL * self.loss_before


def check_training(config: Config, init_from: str | Path | None = None) -> Check:
    """Try out a config as `fit` would train it, and write nothing.

    `init_from` is as for `fit`. Raises: what `fit` raises before it has a run directory, and
    NonFiniteError.
    """
    source = None
    if init_from is not None:
        source = read_checkpoint(find_checkpoint(init_from))

    with reporting_memory(config):
        task = load_task(config, None if source is None else source.vocabulary, progress=True)
        if source is not None:
            warn_of_other_split(task, source)
            say_unread_vectors(task)
        state = new_state(task, source)
        engine, engine_name = choose(config, state.device)

        # Before the engine's steps: these change the weights of the state.
        started_at = time.perf_counter()
        val_batch = next(iter(task.validation()))
        scores = score(state.evaluated, [val_batch])
        eval_seconds_per_sequence = (time.perf_counter() - started_at) / len(scores.labels)

        batch = next(task.batches(0, 1))
        loss_before, loss_after = _fit_one_batch(task, batch, source)
        rate = steps_per_second(engine, task, source)

    evaluations = task.max_steps // config.train.eval_every + 1
    sequences, _ = task.validation_sizes
    seconds = task.max_steps / rate
    seconds += evaluations * sequences * eval_seconds_per_sequence

    device = state.device
    precision = describe_precision(config.train.precision, device)
    return Check(
        task=task,
        num_parameters=sum(parameter.numel() for parameter in state.model.parameters()),
        loss_before=loss_before,
        loss_after=loss_after,
        val_loss=float(scores.losses.double().mean()),
        val_accuracy=float((scores.predictions == scores.labels).double().mean()),
        val_sequences=len(scores.labels),
        engine=f"{engine_name} on {describe(device)}, {precision}",
        steps_per_second=rate,
        seconds=seconds,
    )


def _fit_one_batch(task: Task, batch: Batch, source: Checkpoint | None) -> tuple[float, float]:
    """Take steps on one batch with a fresh model; return its loss before the first and the last."""
    # At the full rate: within the warm-up of a run so few steps would change nothing.
    config = task.config
    schedule = config.schedule.model_copy(update={"name": "constant", "warmup_steps": 0})
    task = copy.copy(task)
    task.config = config.model_copy(update={"schedule": schedule})

    state = new_state(task, source)
    batch = batch.to(state.device)
    losses = []
    for _ in range(FIT_STEPS):
        before = state.totals.loss
        train_step(state, batch, task)
        losses.append((state.totals.loss - before) / len(batch.labels))
    return losses[0], losses[-1]


def steps_per_second(
    engine: Engine,
    task: Task,
    source: Checkpoint | None = None,
    measured_seconds: float = MEASURED_SECONDS,
) -> float:
    """Return how many steps per second the engine takes on this task."""
    taken = 0
    seconds = 0.0
    with closing(engine(new_state(task, source), task)) as steps:
        # The first call compiles, captures, or draws the first block: it would count too much.
        started_at = time.perf_counter()
        first = next(steps, 0)
        first_seconds = time.perf_counter() - started_at

        started_at = time.perf_counter()
        for more in steps:
            taken += more
            seconds = time.perf_counter() - started_at
            if seconds >= measured_seconds:
                break
    # A run of few steps has nothing after the first call.
    return taken / seconds if taken else max(1, first) / first_seconds


def describe_check(check: Check) -> str:
    """Return what was found as lines for people."""
    task = check.task
    train = task.config.train
    num_tokens, num_classes = task.sizes
    used, available = task.validation_sizes

    data = f"data: {num_tokens:,} tokens, {num_classes:,} classes"
    if available is not None:
        data += f"; {used:,} of {available:,} validation sequences"
    if task.steps_per_epoch is not None:
        data += f"; {task.steps_per_epoch:,} steps per epoch"

    # Weights, gradients and, at most, two moments; float32.
    megabytes = 4 * 4 * check.num_parameters / 1e6
    rate = f"{check.steps_per_second:,.0f} steps/s"
    return "\n".join(
        [
            data,
            f"model: {check.num_parameters:,} parameters, {megabytes:,.1f} MB with gradients and "
            "optimizer",
            f"engine: {on_one_line(check.engine)}",
            f"one batch of {train.batch_size:,}, {FIT_STEPS} steps on it: "
            f"loss {check.loss_before:.4f} -> {check.loss_after:.4f}",
            f"validation, {check.val_sequences:,} sequences, untrained: loss {check.val_loss:.4f}, "
            f"accuracy {check.val_accuracy:.4f}",
            f"time: about {_duration(check.seconds)} for {task.max_steps:,} steps ({rate})",
        ]
    )


def warning_of_check(check: Check) -> str:
    """Return a warning if the loss of one batch did not fall clearly; else an empty text."""
    if check.falls:
        return ""
    rate = check.task.config.optimizer.lr
    # A loss that rises comes from steps that are too large.
    better_rate = rate / 10 if check.loss_after > check.loss_before else rate * 10
    return (
        f"rnncls: warning[T2]: {FIT_STEPS} steps on one batch hardly change its loss, "
        f"{check.loss_before:.4f} -> {check.loss_after:.4f}\n"
        f"  expected: less than {FELL:.0%} of it: a model that learns remembers one batch\n"
        f"  try:      optimizer.lr={better_rate:g}"
    )


def _duration(seconds: float) -> str:
    """Return a duration in the largest unit of which there are at least two: "90 s", "3 min"."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(1, seconds):.0f} s"
