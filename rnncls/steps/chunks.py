"""Draws the batches of many steps at once, for engines that take many steps per call."""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from rnncls.data import Block, Task
from rnncls.steps.eager import train_step
from rnncls.steps.optim import learning_rate
from rnncls.steps.state import TrainState, next_due
from rnncls.system.distributed import World

# A chunk is never interrupted, so this is also how long a signal may have to wait.
CHUNK_SECONDS = 0.1

Rates = np.ndarray[Any, np.dtype[np.float64]]  # (K,) learning rates of a block's steps
TakeChunk = Callable[[Block, Rates, int, int], int]  # see `in_chunks`
T = TypeVar("T")


class Pace:
    """Finds how many steps fit into CHUNK_SECONDS."""

    def __init__(self) -> None:
        # The largest size of the next chunk. Nothing is known yet of how long a step takes, so the
        # first chunk is a single step.
        self.steps = 1

    def note(self, taken: int, seconds: float) -> None:
        """Set the size of the next chunk by the time that these steps took.

        It at most doubles, because the next steps may be slower: their sequences may be longer.
        """
        fitting = int(taken * CHUNK_SECONDS / seconds)
        self.steps = max(1, min(fitting, 2 * self.steps))


def in_chunks(
    state: TrainState,
    task: Task,
    take_chunk: TakeChunk,
    pace: Pace | None = None,
    world: World | None = None,
) -> Generator[int, None, None]:
    """Train from the state's step to the task's last as an engine does (see `engines.Engine`).

    `take_chunk(block, rates, first, last)` takes the steps numbered from `first` up to but not
    including `last` of a block, whose learning rates are `rates`. It adds them to `state.totals`
    and returns how many it took. It stops before a step that it cannot take, for example because
    loss or gradient is not finite; `train_step` then takes that step, or reports what is wrong.

    `pace`: one that several runs share, which `take_chunk` then notes itself; None for one of this
    run alone. With other processes, in `world`, each step is a chunk: all must stop after the same.
    """
    notes_pace = pace is None and world is None
    pace = pace or Pace()
    for block, rates in ahead(with_rates(task, state.step)):
        first = 0
        while first < block.num_steps:
            # A chunk ends with the block, with the pace's time, or where something is due.
            until_due = next_due(task.config.train, state.step) - state.step
            last = min(block.num_steps, first + pace.steps, first + until_due)

            started_at = time.perf_counter()
            taken = take_chunk(block, rates, first, last)
            seconds = time.perf_counter() - started_at

            # Steps of a chunk are never skipped ones: the engine stops before those. So any of them
            # ends a row of skipped steps, and the caller has something to do after the last.
            if taken:
                state.step += taken
                state.due = True
                state.skipped = 0
                if notes_pace:
                    pace.note(taken, seconds)

            # What stopped the engine is the next step, whatever the reason: that one is eager.
            if taken < last - first:
                train_step(state, block.batch(first + taken), task, world)
                taken += 1

            first += taken
            yield taken


def ahead(items: Iterator[T]) -> Iterator[T]:
    """Yield the items, and make each in a thread while the one before it is used."""
    # None marks the end. An error of the iterator is raised where its item would have been used.
    # No more than two items are in memory: the one in use, and the one that is being made.
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item


def with_rates(task: Task, step: int) -> Iterator[tuple[Block, Rates]]:
    """Yield the blocks from this step on, each with the learning rates (K,) of its K steps."""
    config = task.config
    for block in task.blocks(step, task.max_steps):
        # From the same function as in `train_step`, so that all engines use the very same rates.
        rates = np.empty(block.num_steps)
        for number in range(block.num_steps):
            rates[number] = learning_rate(
                step + number, task.max_steps, config.optimizer.lr, config.schedule
            )
        yield block, rates
        step += block.num_steps
