"""Sixteen members of one config: together, as one stack, one after another compiled, and one after another eager.

    python -m scripts.bench_sweep

B64 H32 L3, lengths 2-5, steady state: steps only, as `rnncls train` and `rnncls sweep` take them, with batch making but
without evaluation, logging and saving. Together is what a sweep does on the CPU; the stack is what it does on CUDA.
Rounds take turns; medians, and the median of the per-round ratios with its range. No timing is asserted.
"""

import os
import platform
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Annotated

import torch
import typer

from rnncls.data import load_task
from rnncls.steps.captured.graphs import StepRequest, pad_block
from rnncls.steps.captured.stack import StackedRuns
from rnncls.steps.chunks import with_rates
from rnncls.steps.engines import choose
from rnncls.training.states import new_state
from scripts.bench import REGIMES

MEMBERS = 16


def member(seed: int, engine: str) -> Callable[[int], int]:
    """Something that takes at least so many steps of this member, and says how many."""
    config = REGIMES["tiny"].config(engine).model_copy(update={"seed": seed})
    task = load_task(config)
    state = new_state(task)
    take_steps, _ = choose(config, torch.device("cpu"))
    taken = take_steps(state, task)

    def run(steps: int) -> int:
        torch.set_num_threads(1)
        done = 0
        while done < steps:
            done += next(taken)
        return done

    return run


def stack() -> Callable[[int], int]:
    """The same for all members as one stack."""
    configs = [
        REGIMES["tiny"].config("eager").model_copy(update={"seed": seed}) for seed in range(MEMBERS)
    ]
    tasks = [load_task(config) for config in configs]
    states = [new_state(task) for task in tasks]
    stacked = StackedRuns(list(zip(states, tasks, strict=True)))
    batches = zip(*(with_rates(task, 0) for task in tasks), strict=True)

    def turns() -> Iterator[dict[int, StepRequest]]:
        for blocks in batches:
            staged = [
                pad_block(block, rates, configs[0].train.batch_size, torch.device("cpu"))
                for block, rates in blocks
            ]
            for first in range(blocks[0][0].num_steps):
                pairs = zip(staged, states, strict=True)
                yield {
                    place: StepRequest(batch, first, state.totals)
                    for place, (batch, state) in enumerate(pairs)
                }

    coming = turns()

    def run(steps: int) -> int:
        return sum(sum(stacked.take_steps(next(coming), 1)) for _ in range(steps))

    return run


def main(
    rounds: Annotated[int, typer.Option()] = 10, steps: Annotated[int, typer.Option()] = 1000
) -> None:
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    members = {
        engine: [member(seed, engine) for seed in range(MEMBERS)]
        for engine in ("compiled", "eager")
    }
    stack_of_all = stack()
    with ThreadPoolExecutor(cores) as pool:
        ways: dict[str, Callable[[], int]] = {
            "together": lambda: sum(pool.map(lambda run: run(steps), members["compiled"])),
            "as one stack": lambda: stack_of_all(steps // 10),
            "compiled, one after another": lambda: sum(run(steps) for run in members["compiled"]),
            "eager, one after another": lambda: sum(run(steps // 10) for run in members["eager"]),
        }
        us: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name in random.sample(list(ways), len(ways)):
                started_at = time.perf_counter()
                done = ways[name]()
                if turn:  # the first round warms up
                    us[name].append(1e6 * (time.perf_counter() - started_at) / done)
    print(
        f"{platform.machine()}, {cores} cores, torch {torch.__version__}; {MEMBERS} members, {rounds} rounds"
    )
    for name, times in us.items():
        ratios = [our / theirs for our, theirs in zip(us["together"], times, strict=True)]
        spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"{name:<28} {median(times):8.1f} us per member and step   together / this: {spread}")


if __name__ == "__main__":
    typer.run(main)
