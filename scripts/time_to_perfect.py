"""How many seconds of one core training takes until a model is right on every sequence.

    python -m scripts.time_to_perfect                        configs/fast.yaml, the seeds 0-63
    python -m scripts.time_to_perfect CONFIG --seeds 0-19    another one

Every 25 steps the model answers the sequences of all training lengths but the longest, and, if it
is right on each of them, all sequences. Printed are the steps and the processor time of the steps
alone until it first makes no error, and how many of the runs make none after their last step. One
run after the other, on one thread; batches are drawn within the time, while importing, compiling
and evaluating are outside of it.
"""

import time
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from rnncls.config import SumModConfig, load_config
from rnncls.config.ranges import parse_seeds
from rnncls.data import Task, load_task
from rnncls.evaluation.evaluate import evaluate
from rnncls.model.classifier import RNNClassifier
from rnncls.steps.engines import choose
from rnncls.training.states import new_state

STEPS_BETWEEN = 25
WORDS = [f"train.log_every={STEPS_BETWEEN}", "device=cpu"]


def main(
    config: Annotated[Path, typer.Argument()] = Path("configs/fast.yaml"),
    seeds: Annotated[str, typer.Option(help="For example 0-63.")] = "0-63",
) -> None:
    """Train each seed and print the steps and seconds to the first evaluation without an error."""
    if not isinstance(load_config(config).data, SumModConfig):
        raise typer.BadParameter(f"{config}: it needs generated data, to know all sequences")
    torch.set_num_threads(1)
    steps: list[float] = []
    seconds: list[float] = []
    at_end = 0
    tasks = [
        load_task(load_config(config, [*WORDS, f"seed={seed}"])) for seed in parse_seeds(seeds)
    ]
    for number, task in enumerate(tasks):
        if number == 0:
            # Whatever has to be compiled is compiled before anything counts.
            train(task)
        first_step, first_seconds, last_errors = train(task)
        steps.append(first_step)
        seconds.append(first_seconds)
        at_end += last_errors == 0
        print(f"seed {task.config.seed}: {first_step:g} steps, {first_seconds:.3f} s", flush=True)

    print(f"without an error after {tasks[0].max_steps:,} steps: {at_end} of {len(tasks)}")
    print(f"first without an error: median {median(steps):g} steps, {median(seconds):.3f} s")
    print(f"slowest: {max(steps):g} steps, {max(seconds):.3f} s")


def train(task: Task) -> tuple[float, float, int]:
    """Train a run; return its steps and seconds to the first time without an error, and its last.

    The first two are infinite if there was no such time. The last is a number of errors.
    """
    state = new_state(task)
    take_steps, _ = choose(task.config, state.device)
    taken = take_steps(state, task)
    first = (float("inf"), float("inf"))
    seconds = 0.0
    errors = 0
    while state.step < task.max_steps:
        started_at = time.process_time()
        next(taken)
        seconds += time.process_time() - started_at
        is_last = state.step == task.max_steps
        is_due = state.step % STEPS_BETWEEN == 0 and first[0] > state.step
        if not is_due and not is_last:
            continue

        # Once it has been right, the last step alone counts.
        errors = errors_of(state.model, task)
        if errors == 0 and is_due:
            first = (float(state.step), seconds)
    return *first, errors


def errors_of(model: RNNClassifier, task: Task) -> int:
    """Return how many sequences of the training lengths the model answers wrongly.

    The longest ones are most of them: they are read only if it is right on all others.
    """
    data = task.config.data
    assert isinstance(data, SumModConfig)
    if data.min_length < data.max_length:
        shorter = data.model_copy(update={"max_length": data.max_length - 1})
        errors = evaluate(model, task.config.model_copy(update={"data": shorter})).errors
        if errors:
            return errors
    return evaluate(model, task.config).errors


if __name__ == "__main__":
    typer.run(main)
