"""Whether several processes train a run faster than one would.

Where a step is short, the sum of their gradients takes longer than what they save by sharing it.
"""

import math
from collections.abc import Sequence
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
from rnncls.training.check import rate_of

# Steps of one process that take longer are worth sharing.
LONGEST_STEP = 0.005  # seconds
MEASURED_SECONDS = 0.1  # of each way

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

    All processes call this. The first one takes steps of a copy beside the run, which keeps its
    bits, and then all of them time the sum of as many numbers as the model has parameters.

    `engine`: the name of the one that takes the steps. Raises: PeerError.
    """
    num_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    if not _may_be_short(state, task, num_parameters):
        return

    whole, share = world.first(lambda: _seconds_of_steps(state, task, engine, world.size))
    if whole >= LONGEST_STEP:
        return
    adding_up = max(world.gather(world.seconds_of_sum(num_parameters)))
    warning = _warning_of_seconds(whole, share, adding_up, world.size)
    if warning:
        log.say(warning)


def _warning_of_seconds(whole: float, share: float, adding_up: float, size: int) -> str:
    """Return the warning for these seconds; an empty text if several processes are faster."""
    if share + adding_up < whole:
        return ""
    return (
        f"rnncls: warning: one process would be faster: its step takes {1e3 * whole:.2g} ms at "
        f"most, that of {size} processes {1e3 * share:.2g} ms and {1e3 * adding_up:.2g} ms "
        "to add up the gradients (docs/distributed.md)"
    )


def _may_be_short(state: TrainState, task: Task, num_parameters: int) -> bool:
    """Return whether a step of one process may take less than LONGEST_STEP, here as anywhere."""
    if state.device.type != "cpu" or state.step >= task.max_steps:
        return False

    # An embedding is looked up: it takes no products.
    in_products = num_parameters - state.model.embedding.weight.numel()
    tokens = task.config.train.batch_size * task.mean_length
    # Forward one product and one sum for each token and parameter; backward twice as many.
    operations = 6 * tokens * max(in_products, LEAST_OF_TOKEN)
    return operations <= MOST_OPERATIONS and num_parameters <= MOST_PARAMETERS


def _seconds_of_steps(state: TrainState, task: Task, engine: str, size: int) -> tuple[float, float]:
    """Return how long one process takes for a step, and for its share of one of `size` processes.

    Without adding up, which one process does not do. Infinite if that cannot be measured.
    """
    seconds = []
    for each in (1, size):
        copied = copy_of(state, task.config)
        try:
            with same_random_state(copied):
                steps = _engine(engine)(copied, task, world=_Deaf(each))
                seconds.append(1 / rate_of(steps, MEASURED_SECONDS))
        # The run itself will say so.
        except NonFiniteError:
            return math.inf, math.inf
        if seconds[0] >= LONGEST_STEP:
            return math.inf, math.inf
    return seconds[0], seconds[1]


class _Deaf(World):
    """The first of some processes, which hears nothing of the others, as if they were not there."""

    def __init__(self, size: int) -> None:
        self.rank = 0
        self.size = size

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
