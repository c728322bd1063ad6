"""Measures one case, in a process that does nothing else: its memory, or its time.

These are two processes. Where memory is measured, everything that is freed is given back to the
system at once, so that what is left is what is needed; that takes time.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from rnncls.cost.cases import Case
from rnncls.cost.ways import Way, task_of, way_of
from rnncls.steps.engines import choose
from rnncls.system.device import describe, describe_precision
from rnncls.system.process_memory import forget_peak, peak_bytes, resident_bytes
from rnncls.training.check import steps_per_second

LEAST_ROUNDS = 3
# A case whose rounds take very long has fewer: it ends when it took so many times its time.
MOST_OVERTIME = 10

# Tokens of each sequence of the batch that takes the first step.
SHORT = 8


@dataclass(frozen=True)
class Memory:
    """What a case needs in memory, in bytes: on the GPU, if the model is there."""

    activations_bytes: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int

    @property
    def parameters_bytes(self) -> int:
        """What stays from step to step: weights, gradients and the optimizer's state."""
        return self.weights_bytes + self.gradients_bytes + self.optimizer_bytes


@dataclass(frozen=True)
class Times:
    """What a case takes, as medians over rounds, and the most memory that its process had."""

    device: str  # with its precision, for people
    rounds: int
    forward_ms: float
    backward_ms: float
    step_ms: float  # one eager step on one batch
    engine: str  # the steps that a run takes; "" for torch's own module
    run_step_ms: float  # a step of a run, with the making of its batch
    tokens_per_second: float  # of a run
    process_bytes: int  # of main memory
    gpu_bytes: int | None  # of the GPU; None without one


def measure_memory(case: Case) -> Memory:
    """Measure the memory of a case. Raises: MachineError, and what torch raises without memory."""
    way = way_of(case)

    # One step on a short batch: from here on there are gradients, the optimizer's state and what is
    # needed once, such as the buffers of products, and what torch imports to run pieces again.
    recompute_every = case.config.train.recompute_every or 0
    way.take_batch(min(max(SHORT, recompute_every + 1), case.length))
    way.step()
    weights, gradients, state = _parameter_bytes(way)

    way.take_batch(case.length)
    return Memory(_activations(way), weights, gradients, state)


def measure_time(case: Case) -> Times:
    """Measure the time of a case. Raises: MachineError, and what torch raises without memory."""
    way = way_of(case)
    device = way.device
    way.take_batch(case.length)
    forward, backward, step = _times(way, case.seconds)

    # With a model of its own, which must not stand beside this one.
    engine = ""
    run_step = median(step)
    del way
    if case.implementation == "rnncls":
        engine, run_step = _engine_step(case, device)

    return Times(
        device=f"{describe(device)}, {describe_precision(case.config.train.precision, device)}",
        rounds=len(step),
        forward_ms=1e3 * median(forward),
        backward_ms=1e3 * median(backward),
        step_ms=1e3 * median(step),
        engine=engine,
        run_step_ms=1e3 * run_step,
        tokens_per_second=case.num_tokens / run_step,
        process_bytes=peak_bytes(),
        gpu_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
    )


def _activations(way: Way) -> int:
    """Return how far the peak of forward and backward is above what there was before, in bytes.

    Before, there are weights, gradients, the optimizer's state and the batch.
    """
    on_gpu = way.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(way.device)
        before = torch.cuda.memory_allocated(way.device)
        torch.cuda.reset_peak_memory_stats(way.device)
    else:
        # Where the peak cannot be forgotten, what is above it is all that can be seen.
        before = resident_bytes() if forget_peak() else peak_bytes()

    _compute_gradients(way)
    after = torch.cuda.max_memory_allocated(way.device) if on_gpu else peak_bytes()
    return max(0, after - before)


def _times(way: Way, seconds: float) -> tuple[list[float], list[float], list[float]]:
    """Return the seconds of forward, backward and the whole step, round by round."""
    wait = torch.cuda.synchronize if way.device.type == "cuda" else _not_at_all

    way.step()  # a warm-up
    wait()

    # Three quantities are measured together.
    wanted = 3 * seconds
    forward: list[float] = []
    backward: list[float] = []
    step: list[float] = []
    started_at = time.perf_counter()
    elapsed = 0.0
    while elapsed < wanted or (len(step) < LEAST_ROUNDS and elapsed < MOST_OVERTIME * wanted):
        with _timing_backward(wait) as spent:
            gradients = _seconds_of(lambda: _compute_gradients(way), wait)
        backward.append(sum(spent))
        forward.append(gradients - sum(spent))
        step.append(_seconds_of(way.step, wait))
        elapsed = time.perf_counter() - started_at
    return forward, backward, step


def _not_at_all() -> None:
    """Wait for the CPU, which is done when a function returns."""


def _compute_gradients(way: Way) -> None:
    """Go forward and backward once."""
    # Without a gradient from before, backward stores the new one instead of adding to it.
    for parameter in way.parameters:
        parameter.grad = None
    way.compute_gradients()


def _seconds_of(action: Callable[[], None], wait: Callable[[], None]) -> float:
    """Return the seconds of an action. `wait` waits for the GPU, if there is one."""
    started_at = time.perf_counter()
    action()
    wait()
    return time.perf_counter() - started_at


@contextmanager
def _timing_backward(wait: Callable[[], None]) -> Iterator[list[float]]:
    """Give a list that gets the seconds of each `backward` in the block.

    There may be several: a batch whose gradients are truncated goes forward and backward in turn.
    """
    seconds: list[float] = []
    backward: Any = torch.Tensor.backward

    def timed(*arguments: Any, **options: Any) -> None:
        wait()
        seconds.append(_seconds_of(lambda: backward(*arguments, **options), wait))

    torch.Tensor.backward = timed  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        torch.Tensor.backward = backward  # type: ignore[method-assign]


def _engine_step(case: Case, device: torch.device) -> tuple[str, float]:
    """Return the name of the steps that a run takes, and the seconds of one."""
    task = task_of(case, case.length)
    engine, name = choose(task.config, device)
    return name, 1 / steps_per_second(engine, task, measured_seconds=case.seconds)


def _parameter_bytes(way: Way) -> tuple[int, int, int]:
    """Return the bytes of the weights, of their gradients, and of the optimizer's state."""
    weights = sum(parameter.nbytes for parameter in way.parameters)
    gradients = sum(one.grad.nbytes for one in way.parameters if one.grad is not None)
    state = 0
    for of_parameter in way.optimizer.state.values():
        state += sum(value.nbytes for value in of_parameter.values() if torch.is_tensor(value))
    return weights, gradients, state
