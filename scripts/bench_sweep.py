"""Measure sixteen members of one config: in parallel, as one stack, and one after another.

    python -m scripts.bench_sweep
    python -m scripts.bench_sweep --device cuda

B64 H32 L3, lengths 2-5, steady state: steps only, as `rnncls train` and `rnncls sweep` take them,
with batch making but without evaluation, logging and saving. "Together" is what a sweep does on the
CPU; the stack is what it does on CUDA; one after another, with the fastest engine and with eager
steps, is the comparison. Rounds take turns. Printed are medians, and the median of the per-round
ratios with its range, against the way that is a sweep's on this device. No timing is asserted.
"""

import platform
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Annotated

import torch
import typer

from rnncls.config import Config
from rnncls.data import load_task
from rnncls.steps.captured.graphs import StepRequest, pad_block
from rnncls.steps.captured.stack import StackedRuns
from rnncls.steps.chunks import with_rates
from rnncls.steps.engines import choose
from rnncls.system.machine import usable_cores
from rnncls.training.states import new_state
from scripts.bench.regimes import REGIMES
from scripts.bench.torch_ways import Run

MEMBERS = 16


def config_of(seed: int, engine: str, device: str) -> Config:
    """Return the config of one member."""
    return REGIMES["tiny"].config(engine).model_copy(update={"seed": seed, "device": device})


def member(seed: int, engine: str, device: str) -> Run:
    """Return a function that takes at least so many steps of this member, and returns how many."""
    config = config_of(seed, engine, device)
    task = load_task(config)
    state = new_state(task)
    take_steps, _ = choose(config, state.device)
    taken = take_steps(state, task)

    def run(steps: int) -> int:
        torch.set_num_threads(1)
        done = 0
        while done < steps:
            done += next(taken)
        return done

    return run


def stack(device: str) -> Run:
    """Return a function that takes at least so many steps of all members as one stack."""
    configs = [config_of(seed, "eager", device) for seed in range(MEMBERS)]
    tasks = [load_task(config) for config in configs]
    batch_size = configs[0].train.batch_size
    states = [new_state(task) for task in tasks]
    stacked = StackedRuns(list(zip(states, tasks, strict=True)))

    def turns() -> Iterator[tuple[dict[int, StepRequest], int]]:
        """Yield what the members take next, by their place in the stack, and how many steps."""
        for blocks in zip(*(with_rates(task, 0) for task in tasks), strict=True):
            staged = [
                pad_block(block, rates, batch_size, states[0].device) for block, rates in blocks
            ]
            first_block, _ = blocks[0]
            # On CUDA as many steps as a sweep takes between two log lines.
            count = 1 if device == "cpu" else 100
            for first in range(0, first_block.num_steps, count):
                pairs = zip(staged, states, strict=True)
                requests = {
                    place: StepRequest(batch, first, state.totals)
                    for place, (batch, state) in enumerate(pairs)
                }
                yield requests, min(count, first_block.num_steps - first)

    coming = turns()

    def run(steps: int) -> int:
        done = 0
        while done < steps * MEMBERS:
            done += sum(stacked.take_steps(*next(coming)))
        return done

    return run


def measure(ways: dict[str, Callable[[], int]], rounds: int) -> dict[str, list[float]]:
    """Return the microseconds per member and step of each way, by round."""
    us: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            started_at = time.perf_counter()
            done = ways[name]()
            if turn:  # the first round warms up
                us[name].append(1e6 * (time.perf_counter() - started_at) / done)
    return us


def main(
    rounds: Annotated[int, typer.Option()] = 10,
    steps: Annotated[int, typer.Option()] = 1000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
) -> None:
    """Measure all ways and print a line for each."""
    torch.set_num_threads(1)
    cores = usable_cores()
    engine = "compiled" if device == "cpu" else "captured"
    fastest = [member(seed, engine, device) for seed in range(MEMBERS)]
    eager = [member(seed, "eager", device) for seed in range(MEMBERS)]
    stack_of_all = stack(device)

    with ThreadPoolExecutor(cores) as pool:
        # The slow ones take a tenth of the steps.
        ways: dict[str, Callable[[], int]] = {
            "together": lambda: sum(pool.map(lambda run: run(steps), fastest)),
            "as one stack": lambda: stack_of_all(steps // 10),
            f"{engine}, one after another": lambda: sum(run(steps) for run in fastest),
            "eager, one after another": lambda: sum(run(steps // 10) for run in eager),
        }
        ours = "together"
        if device != "cpu":
            # What a sweep does there is the stack, and it is no slow one.
            del ways[ours]
            ours = "as one stack"
            ways[ours] = lambda: stack_of_all(steps)
        us = measure(ways, rounds)

    machine = f"{platform.machine()}, {cores} cores"
    if device != "cpu":
        machine = torch.cuda.get_device_name()
    print(f"{machine}, torch {torch.__version__}; {MEMBERS} members, {rounds} rounds")
    for name, times in us.items():
        ratios = [our / theirs for our, theirs in zip(us[ours], times, strict=True)]
        spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{name:<28} {median(times):8.1f} us per member and step   {ours} / this: {spread}")


if __name__ == "__main__":
    typer.run(main)
