"""What the ingredients of length generalisation cost a compiled step, as ratios within one run.

All are steps of one process on one thread, batches included, that take turns in random order. What
counts is processor time, which other programs on the machine hardly change.
"""

import random
import time
from statistics import median
from typing import Any

from rnncls.config.load import parse_config
from rnncls.data import load_task
from rnncls.steps.engines import choose
from rnncls.training.states import new_state
from scripts.bench.measuring import ratio, with_threads
from scripts.bench.regimes import LR, MOST_STEPS, N
from scripts.bench.torch_ways import Run

PLAIN = "without"

# The keys of each, by what the table calls them.
WAYS: dict[str, dict[str, dict[str, Any]]] = {
    PLAIN: {},
    "label_smoothing": {"train": {"label_smoothing": 0.3}},
    "state_noise": {"model": {"state_noise": 0.3}},
    "repeat_share": {"data": {"repeat_share": 0.5}},
    "all three": {
        "train": {"label_smoothing": 0.3},
        "model": {"state_noise": 0.3},
        "data": {"repeat_share": 0.5},
    },
}

Microseconds = dict[str, list[float]]


def measure_ingredients(cell: str, longest: int, rounds: int, steps: int) -> Microseconds:
    """Return the processor time of a step of each way, by round of at least so many steps.

    Hidden 128, batches of 128 sequences of one digit to `longest`, one layer.
    """
    runs = {name: with_threads(1, _steps_of(cell, longest, keys)) for name, keys in WAYS.items()}
    for run in runs.values():
        run(steps)

    taken_us: Microseconds = {name: [] for name in WAYS}
    for _ in range(rounds):
        for name in random.sample(list(runs), len(runs)):
            started_at = time.process_time()
            done = runs[name](steps)
            taken_us[name].append(1e6 * (time.process_time() - started_at) / done)
    return taken_us


def ingredients_table(of_cells: dict[str, Microseconds]) -> str:
    """Return the figures of all cells as a table in Markdown."""
    lines = [
        "**ingredients** (compiled steps, B128 H128 L1, one thread)",
        "",
        "| cell, lengths | with | us of a processor per step | of a step without (95 %) |",
        "|---|---|---|---|",
    ]
    for title, taken_us in of_cells.items():
        for name, own in taken_us.items():
            times, low, high = ratio(own, taken_us[PLAIN])
            figures = f"{median(own):,.0f} | {times:.3f} ({low:.3f} to {high:.3f})"
            lines.append(f"| {title} | {name} | {figures} |")
    return "\n".join(lines)


def _steps_of(cell: str, longest: int, keys: dict[str, dict[str, Any]]) -> Run:
    """Return what takes the steps of a run with these keys."""
    model = {"cell": cell, "hidden_size": 128, **keys.get("model", {})}
    if cell == "rnn":
        model["nonlinearity"] = "relu"
    data = {"modulus": N, "min_length": 1, "max_length": longest, **keys.get("data", {})}
    train = {
        "batch_size": 128,
        "max_steps": MOST_STEPS,
        "engine": "compiled",
        **keys.get("train", {}),
    }
    sections = {
        "data": data,
        "model": model,
        "optimizer": {"lr": LR},
        "train": train,
        "device": "cpu",
    }
    task = load_task(parse_config(sections, "bench"))
    state = new_state(task)
    take_steps, _ = choose(task.config, state.device)
    taken = take_steps(state, task)

    def run(steps: int) -> int:
        done = 0
        while done < steps:
            done += next(taken)
        return done

    return run
