"""Measure what a run pays for what it shows: CPU seconds with a feature over those without.

    python -m scripts.bench_dashboard
    python -m scripts.bench_dashboard --case "diagnostics every 500" --pairs 20

Trains the default run, as `rnncls train` does, in pairs: once as it is and once with the feature,
in random order. Printed are, for each feature, the median of the pairs' ratios with an interval of
95 % by bootstrap, and the CPU seconds of a run without. Everything is in one process, whose first
run is not counted: what is imported and compiled once belongs to no feature. No timing is asserted.

A feature is a line of CASES: the keys that turn it on.
"""

import platform
import random
import tempfile
import time
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer

from rnncls.config import load_config
from rnncls.training.fit import fit

# The keys of each feature, by its name. "nothing" says how much two equal runs differ.
CASES: dict[str, list[str]] = {
    "nothing": [],
    "diagnostics every 500": ["train.diagnostics_every=500"],
    "diagnostics every 100": ["train.diagnostics_every=100"],
    "histograms every 500": ["train.histogram_every=500"],
}

RESAMPLES = 10_000


def seconds_of(path: Path, overrides: list[str]) -> float:
    """Train once and return the CPU seconds of all threads, reading the config included."""
    with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
        started_at = time.process_time()
        fit(load_config(path, overrides), Path(folder) / "run")
        return time.process_time() - started_at


def seconds_of_pairs(
    path: Path, base: list[str], keys: list[str], pairs: int
) -> list[tuple[float, float]]:
    """Return the CPU seconds of each pair of runs: without the keys, and with them."""
    found = []
    for _ in range(pairs):
        ways = {"without": base, "with": [*base, *keys]}
        seconds = {
            name: seconds_of(path, ways[name]) for name in random.sample(list(ways), len(ways))
        }
        found.append((seconds["without"], seconds["with"]))
    return found


def interval_of(values: list[float]) -> tuple[float, float]:
    """Return an interval of 95 % for the median, by the bootstrap's percentiles."""
    rng = random.Random(0)
    medians = sorted(median(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES)]


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="Keys of both runs.")] = None,
    config: Annotated[Path, typer.Option("--config", "-c")] = Path("configs/sum_mod_10.yaml"),
    pairs: Annotated[int, typer.Option()] = 10,
    case: Annotated[list[str] | None, typer.Option(help="One of CASES; all by default.")] = None,
) -> None:
    """Measure the features and print a line for each."""
    base = overrides or []
    seconds_of(config, [*base, "train.max_steps=20", "train.diagnostics_every=10"])
    print(f"{platform.machine()}, torch {torch.__version__}; {config}, {pairs} pairs of runs")
    for name in case or CASES:
        found = seconds_of_pairs(config, base, CASES[name], pairs)
        ratios = [after / before for before, after in found]
        low, high = interval_of(ratios)
        cost = f"{median(ratios) - 1:+.2%} ({low - 1:+.2%} to {high - 1:+.2%})"
        print(f"{name:<24} {cost:<32} of {median(before for before, _ in found):.2f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
