"""Measure how long the user's files take to load, and how much memory that needs.

    python -m scripts.bench_files --rows 1000000 --mean-length 20
    python -m scripts.bench_files --other ../before --rounds 5

Writes JSONL, CSV, TSV and gzipped JSONL files of random ids, loads each in a process of its own,
and prints seconds, rows per second, and the peak of resident memory with what was resident before
loading (torch, mostly). Then `rnncls predict` reads the CSV file and writes a table, which has all
of its columns.

Seconds are those of the processor, on one thread: other programs on the machine hardly change them.

With --other, the path of another checkout of the project, both take turns. Printed is the median of
the ratios of the rounds, with its 95 % interval by the bootstrap.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from scripts.bench.measuring import ratio

ROOT = Path(__file__).resolve().parent.parent
FILES = ("data.jsonl", "data.csv", "data.tsv", "data.jsonl.gz")

LOADING = """
import resource, sys, time
from rnncls.config import load_config
from rnncls.data import load_task

def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak_kib()
started_at = time.process_time()
task = load_task(load_config(sys.argv[1]), progress=True)
seconds = time.process_time() - started_at
print(seconds, before, peak_kib(), sum(map(len, task.dataset.splits.values())))
"""


class Loaded(NamedTuple):
    """What loading a file took, and the peak of memory before and after."""

    seconds: float
    before_kib: float
    after_kib: float


def write(path: Path, rows: int, mean_length: int) -> None:
    """Write random sequences, labelled with their sum mod 10.

    A sequence has 1 to 2 * mean_length - 1 ids below 1,000. A table has a column that numbers the
    rows.
    """
    rng = random.Random(0)
    separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix)
    with path.open("w") as file:
        if separator:
            file.write(separator.join(("id", "sequence", "label")) + "\n")
        for row in range(rows):
            ids = rng.choices(range(1000), k=rng.randint(1, 2 * mean_length - 1))
            label = sum(ids) % 10
            if separator:
                line = separator.join((str(row), " ".join(map(str, ids)), str(label)))
            else:
                line = json.dumps({"sequence": ids, "label": label})
            file.write(line + "\n")


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment in which `rnncls` is that of a checkout, on one thread."""
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


def config_of(path: Path) -> Path:
    """Write a config that trains on a file."""
    config = path.parent / "c.yaml"
    config.write_text(
        f"data: {{source: files, train: {path.name}, tokens: ids}}\n"
        "model: {embedding_dim: 4, hidden_size: 8}\n"
        "train: {max_steps: 0, engine: eager}\n"
        "device: cpu\n"
    )
    return config


def load(checkout: Path, path: Path, rows: int) -> Loaded:
    """Load a file in a process of its own."""
    command = [sys.executable, "-c", LOADING, str(config_of(path))]
    done = subprocess.run(
        command, env=environment(checkout), stdout=subprocess.PIPE, text=True, check=True
    )
    seconds, before_kib, after_kib, loaded = map(float, done.stdout.split())
    assert loaded == rows
    return Loaded(seconds, before_kib, after_kib)


def predict(checkout: Path, run_dir: Path, path: Path) -> float:
    """Predict a file into a table; returns the processor seconds of the whole command."""
    words = ["predict", run_dir, "--input", path, "--output", path.parent / "out.csv"]
    command = [sys.executable, "-m", "rnncls", *map(str, words)]
    before = os.times()
    quiet = subprocess.DEVNULL
    subprocess.run(command, env=environment(checkout), stdout=quiet, stderr=quiet, check=True)
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def make_run(checkout: Path, path: Path) -> Path:
    """Save a model that has not learnt anything: it takes as long as another one."""
    # Of a few rows: the model knows all digits and labels nevertheless.
    few = path.parent / "few.csv"
    few.write_text("".join(path.open().readlines()[:1000]))
    run_dir = path.parent / "run"
    words = ["train", config_of(few), "--run-dir", run_dir]
    command = [sys.executable, "-m", "rnncls", *map(str, words)]
    subprocess.run(command, env=environment(checkout), capture_output=True, check=True)
    return run_dir


def measure_loading(path: Path, rows: int, rounds: int, other: Path | None) -> str:
    """Load a file by turns with both checkouts and return the line of figures."""
    own: list[Loaded] = []
    others: list[float] = []
    for _ in range(rounds):
        if other is not None:
            others.append(load(other, path, rows).seconds)
        own.append(load(ROOT, path, rows))

    size = f"{rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB"
    peak = max(loaded.after_kib for loaded in own) / 1024
    memory = f"peak {peak:,.0f} MiB ({own[0].before_kib / 1024:,.0f} MiB before)"
    speed = compared([loaded.seconds for loaded in own], others, rows)
    return f"{path.name}: {size}: {speed}; {memory}"


def measure_predicting(path: Path, rows: int, rounds: int, other: Path | None) -> str:
    """Predict a file by turns with both checkouts and return the line of figures."""
    # Each of the two can read a run of the older one.
    run_dir = make_run(other or ROOT, path)
    own: list[float] = []
    others: list[float] = []
    for _ in range(rounds):
        if other is not None:
            others.append(predict(other, run_dir, path))
        own.append(predict(ROOT, run_dir, path))
    return f"predict {path.name}: {compared(own, others, rows)}"


def compared(own: list[float], others: list[float], rows: int) -> str:
    """Return the median of the seconds, in words, and its ratio to those of another checkout."""
    median = statistics.median(own)
    line = f"{median:.1f} s, {rows / median:,.0f} rows/s"
    if others:
        middle, low, high = ratio(own, others)
        line += f"; the other checkout {statistics.median(others):.1f} s"
        line += f"; ratio {middle:.3f} ({low:.3f} to {high:.3f})"
    return line


def main(
    rows: Annotated[int, typer.Option(help="Rows of each file.")] = 1_000_000,
    mean_length: Annotated[int, typer.Option(help="Mean length of a sequence.")] = 20,
    rounds: Annotated[int, typer.Option(help="Times that each file is read.")] = 1,
    other: Annotated[Path | None, typer.Option(help="Another checkout to compare with.")] = None,
) -> None:
    """Write the files, load them, predict one, print the figures."""
    # SIGTERM raises KeyboardInterrupt as Ctrl-C does; then subprocess.run kills what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    checkout = None if other is None else other.resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in FILES[:3]:
            write(folder / file, rows, mean_length)
        subprocess.run(["gzip", "-k", "-1", folder / "data.jsonl"], check=True)

        for file in FILES:
            print(measure_loading(folder / file, rows, rounds, checkout), flush=True)
        print(measure_predicting(folder / "data.csv", rows, rounds, checkout), flush=True)


if __name__ == "__main__":
    typer.run(main)
