"""Whether several processes train a run faster than one would.

Where a step is short, the exchange of their gradients takes longer than what they save.
"""

import math
import time
from collections.abc import Sequence
from contextlib import closing
from typing import TypeVar

from torch import Tensor

from rnncls.data import Task
from rnncls.errors import NonFiniteError
from rnncls.rundir.log import RunLog
from rnncls.steps.beside import copy_of, same_random_state
from rnncls.steps.eager import eager_steps
from rnncls.steps.engines import SharedEngine
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World

# Steps of one process that take longer are worth sharing.
LONGEST_STEP = 0.005  # seconds

# About so long each way is timed, by no fewer and no more steps than these.
MEASURED_SECONDS = 0.1
FEWEST_STEPS = 3
MOST_STEPS = 100

# No CPU takes a step of more floating-point operations, or of more parameters, in LONGEST_STEP. It
# is not tried then, which would take long.
MOST_OPERATIONS = 1e10
MOST_PARAMETERS = 2e7
LEAST_OF_TOKEN = 1000  # of the smallest model, in parameters whose products take as long

T = TypeVar("T")


def warn_of_processes(
    state: TrainState, task: Task, engine: str, world: World, log: RunLog
) -> None:
    """Say so if one process would be faster than these.

    All processes call this. The first one takes steps of a copy beside the run, and then all of
    them together do; the run keeps its bits. `engine`: the name of the one that takes the steps.

    Raises: PeerError.
    """
    num_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    if not _may_be_short(state, task, num_parameters):
        return

    def measure_alone() -> float:
        first = _seconds_of_step(state, task, engine, _Alone(), FEWEST_STEPS)
        if first >= LONGEST_STEP:
            return first
        return _seconds_of_step(state, task, engine, _Alone(), _steps_for(first))

    alone = world.first(measure_alone)
    if alone >= LONGEST_STEP:
        return
    own = _seconds_of_step(state, task, engine, world, _steps_for(alone))
    warning = _warning_of_seconds(alone, max(world.gather(own)), world.size)
    if warning:
        log.say(warning)


def _warning_of_seconds(alone: float, together: float, size: int) -> str:
    """Return the warning for these seconds of a step; "" if several processes are faster."""
    if together < alone:
        return ""
    return (
        f"rnncls: warning: one process would be faster: its step takes {1e3 * alone:.2g} ms at "
        f"most, one of {size} processes {1e3 * together:.2g} ms (docs/distributed.md)"
    )


def _steps_for(seconds: float) -> int:
    """Return how many steps of so many seconds are to be timed."""
    return max(FEWEST_STEPS, min(MOST_STEPS, int(MEASURED_SECONDS / seconds)))


def _may_be_short(state: TrainState, task: Task, num_parameters: int) -> bool:
    """Return whether a step of one process may take less than LONGEST_STEP, here as anywhere."""
    if state.device.type != "cpu" or state.step >= task.max_steps:
        return False

    # What is looked up in tables takes no products.
    in_products = num_parameters - state.model.num_in_tables
    tokens = task.config.train.batch_size * task.mean_length
    # Forward one product and one sum for each token and parameter; backward twice as many.
    operations = 6 * tokens * max(in_products, LEAST_OF_TOKEN)
    return operations <= MOST_OPERATIONS and num_parameters <= MOST_PARAMETERS


def _seconds_of_step(state: TrainState, task: Task, engine: str, world: World, count: int) -> float:
    """Return the seconds of a step of a copy, the mean of `count`; infinite if it has no end."""
    copied = copy_of(state, task.config)
    try:
        with (
            same_random_state(copied),
            closing(_engine(engine)(copied, task, world=world)) as steps,
        ):
            # The first one draws batches, and may compile.
            next(steps, 0)
            started_at = time.perf_counter()
            taken = 0
            for _ in range(count):
                taken += next(steps, 0)
            # A run may have fewer steps left.
            return (time.perf_counter() - started_at) / max(1, taken)
    # All processes meet it at the same step. The run itself will say so.
    except NonFiniteError:
        return math.inf


class _Alone(World):
    """One process, as if it were the first of several: it takes steps as they do, by itself."""

    def __init__(self) -> None:
        self.rank = 0
        self.size = 1

    def reduce(
        self,
        gradients: Sequence[Tensor],  # noqa: ARG002
        loss: Tensor,
        correct: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return loss, correct

    def gather(self, value: T) -> list[T]:
        return [value]


def _engine(name: str) -> SharedEngine:
    """Return the engine of this name, for steps that are shared.

    One process alone may take steps faster: many in one call of a compiled program. But that part
    of it may have to be compiled first, which takes seconds.
    """
    if not name.startswith("compiled"):
        return eager_steps

    from rnncls.steps.compiled.engine import compiled_steps

    return compiled_steps
