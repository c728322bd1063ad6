"""Measure what a run pays for what it shows: CPU seconds with a feature over those without.

    python -m scripts.bench_dashboard
    python -m scripts.bench_dashboard --case "diagnostics every 500" --pairs 20

Trains the default run, as `rnncls train` does, in pairs: once as it is and once with the feature,
in random order. Printed are, for each feature, the medians of the pairs' ratios with an interval of
95 % by bootstrap: of the CPU seconds of the whole run, and of the seconds that its steps take. All
of it is in one process, whose first run is not counted: what is imported and compiled once belongs
to no feature.

Then runs with pictures and texts, each in a process of its own, say how long they take after the
last checkpoint, imports included. No timing is asserted.

A feature is a line of CASES: the keys that turn it on.
"""

import platform
import random
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer

from rnncls.config import load_config
from rnncls.rundir.tables import TrainingTime, read_metrics
from rnncls.training.fit import fit

# The keys of each feature, by its name. "nothing" says how much two equal runs differ.
CASES: dict[str, list[str]] = {
    "nothing": [],
    "pictures and texts": ["train.plots=true"],
    "diagnostics every 500": ["train.diagnostics_every=500"],
    "diagnostics every 100": ["train.diagnostics_every=100"],
    "histograms every 500": ["train.histogram_every=500"],
}

# What the features are compared with.
BASE = ["train.plots=false"]

RESAMPLES = 10_000


class Cost(NamedTuple):
    """What one run takes, in seconds."""

    cpu: float  # of all threads, reading the config included
    steps: float  # by the clock, of the training steps alone


def cost_of(path: Path, overrides: list[str]) -> Cost:
    """Train once in this process."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        run_dir = Path(folder) / "run"
        config = load_config(path, overrides)
        started_at = time.process_time()
        fit(config, run_dir)
        cpu = time.process_time() - started_at

        time_of_steps = TrainingTime(config.train.batch_size)
        for row in read_metrics(run_dir):
            time_of_steps.add(row)
        return Cost(cpu, time_of_steps.seconds or 0.0)


def costs_of_pairs(
    path: Path, base: list[str], keys: list[str], pairs: int
) -> list[tuple[Cost, Cost]]:
    """Return the costs of each pair of runs: without the keys, and with them."""
    found = []
    for _ in range(pairs):
        ways = {"without": base, "with": _with(base, keys)}
        costs = {name: cost_of(path, ways[name]) for name in random.sample(list(ways), len(ways))}
        found.append((costs["without"], costs["with"]))
    return found


def seconds_after_training(path: Path, overrides: list[str]) -> float:
    """Train in a process of its own; return its seconds from the last checkpoint to its end."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = ["train", str(path), *overrides, "--run-dir", str(run_dir)]
        subprocess.run([sys.executable, "-m", "rnncls", *words], check=True, capture_output=True)
        ended_at = time.time()
        checkpoints = (run_dir / "checkpoints").glob("*.safetensors")
        return ended_at - max(file.stat().st_mtime for file in checkpoints)


def interval_of(values: list[float]) -> tuple[float, float]:
    """Return an interval of 95 % for the median, by the bootstrap's percentiles."""
    rng = random.Random(0)
    medians = sorted(median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="Keys of both runs.")] = None,
    config: Annotated[Path, typer.Option("--config", "-c")] = Path("configs/sum_mod_10_plain.yaml"),
    pairs: Annotated[int, typer.Option()] = 10,
    processes: Annotated[int, typer.Option(help="Runs in processes of their own.")] = 5,
    case: Annotated[list[str] | None, typer.Option(help="One of CASES; all by default.")] = None,
) -> None:
    """Measure the features and print a line for each."""
    base = [*BASE, *(overrides or [])]
    everything = ["train.max_steps=20", "train.diagnostics_every=10", "train.plots=true"]
    cost_of(config, _with(base, everything))
    print(f"{platform.machine()}, torch {torch.__version__}; {config}, {pairs} pairs of runs")
    print(f"{'':<22} {'CPU of the run':<30} {'steps':<30} without, CPU s")
    for name in case or CASES:
        found = costs_of_pairs(config, base, CASES[name], pairs)
        of_cpu = _more([after.cpu / before.cpu for before, after in found])
        of_steps = _more([after.steps / before.steps for before, after in found])
        seconds = median(before.cpu for before, _ in found)
        print(f"{name:<22} {of_cpu:<30} {of_steps:<30} {seconds:.2f}", flush=True)

    for name, keys in (("without pictures", []), ("with pictures", ["train.plots=true"])):
        after = [seconds_after_training(config, _with(base, keys)) for _ in range(processes)]
        low, high = min(after), max(after)
        what = f"{name}, from the last checkpoint to the end of the process"
        print(f"{what}: {median(after):.2f} s ({low:.2f} to {high:.2f}, {processes} runs)")


def _with(base: list[str], keys: list[str]) -> list[str]:
    """Return both, with the value of `keys` where both name a key."""
    named = {each.partition("=")[0] for each in keys}
    return [each for each in base if each.partition("=")[0] not in named] + keys


def _more(ratios: list[float]) -> str:
    """Return how much more it is, with its interval."""
    low, high = interval_of(ratios)
    return f"{median(ratios) - 1:+.2%} ({low - 1:+.2%} to {high - 1:+.2%})"


if __name__ == "__main__":
    typer.run(main)
