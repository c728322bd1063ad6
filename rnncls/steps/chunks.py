"""Steps taken several at a time, for the ways that are faster so."""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from rnncls.config import TrainConfig
from rnncls.data import Block, Task
from rnncls.steps.eager import train_step
from rnncls.steps.optim import learning_rate
from rnncls.steps.state import TrainState

CHUNK_SECONDS = 0.1  # how long a signal may have to wait

Rates = np.ndarray[Any, np.dtype[np.float64]]
Take = Callable[[Block, Rates, int, int], int]
T = TypeVar("T")


class Pace:
    """How many steps take CHUNK_SECONDS."""

    def __init__(self) -> None:
        self.most = 1

    def note(self, taken: int, seconds: float) -> None:
        """Steps need not be as fast as those before: at most twice as many the next time."""
        self.most = max(1, min(int(taken * CHUNK_SECONDS / seconds), 2 * self.most))


def in_chunks(
    state: TrainState, task: Task, take: Take, shared: Pace | None = None
) -> Generator[int, None, None]:
    """Train up to the task's last step; yields how many steps were taken, none beyond one after which something is due.

    `take(block, rates, first, last)` takes the steps `first` to `last` of a block, whose learning rates are `rates`,
    adds them to `state.totals` and returns how many it took. It stops before one that it cannot take, because loss or
    gradient is not finite for example; that is left to `train_step`, which says what is wrong or skips it. With a
    `shared` pace, `take` waits for others and sees to the pace itself.
    """
    device = next(state.model.parameters()).device
    pace = shared or Pace()
    for block, rates in ahead(with_rates(task, state.step)):
        first = 0
        while first < block.num_steps:
            until = next_due(task.config.train, state.step)
            last = min(block.num_steps, first + pace.most, first + until - state.step)
            started_at = time.perf_counter()
            taken = take(block, rates, first, last)
            if taken:
                state.step, state.due, state.skipped = state.step + taken, True, 0
                if shared is None:
                    pace.note(taken, time.perf_counter() - started_at)
            if taken < last - first:
                train_step(state, block.batch(first + taken).to(device), task)
                taken += 1
            first += taken
            yield taken


def next_due(train: TrainConfig, step: int) -> int:
    """The first step behind `step` with something to log, evaluate or save after it; the last step left aside."""
    cadences = [train.log_every, train.eval_every, train.checkpoint_every, train.histogram_every]
    return min((step // every + 1) * every for every in cadences if every)


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is made in a thread while the last is used."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def with_rates(task: Task, step: int) -> Iterator[tuple[Block, Rates]]:
    """The blocks from this step on, and the learning rates of their steps."""
    config = task.config
    for block in task.blocks(step, task.max_steps):
        steps = range(step, step + block.num_steps)
        rates = [
            learning_rate(number, task.max_steps, config.optimizer.lr, config.schedule)
            for number in steps
        ]
        yield block, np.array(rates)
        step += block.num_steps
