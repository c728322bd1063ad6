"""Measure how long the user's files take to load, and how much memory that needs.

    python scripts/bench_files.py --rows 1000000 --mean-length 20

Writes JSONL, CSV and gzipped JSONL files of random ids, loads each in a process of its own, and
prints seconds, rows per second, and the peak of resident memory with what was resident before
loading (torch, mostly).
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

LOADING = """
import resource, sys, time
from rnncls.config import load_config
from rnncls.data import load_task

def peak_kib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak_kib()
started_at = time.perf_counter()
task = load_task(load_config(sys.argv[1]), progress=True)
seconds = time.perf_counter() - started_at
print(seconds, before, peak_kib(), sum(map(len, task.dataset.splits.values())))
"""


def write(path: Path, rows: int, mean_length: int) -> None:
    """Write random sequences, labelled with their sum mod 10.

    A sequence has 1 to 2 * mean_length - 1 ids below 1,000.
    """
    rng = random.Random(0)
    is_csv = path.suffix == ".csv"
    with path.open("w") as file:
        if is_csv:
            file.write("sequence,label\n")
        for _ in range(rows):
            ids = rng.choices(range(1000), k=rng.randint(1, 2 * mean_length - 1))
            label = sum(ids) % 10
            if is_csv:
                line = f"{' '.join(map(str, ids))},{label}"
            else:
                line = json.dumps({"sequence": ids, "label": label})
            file.write(line + "\n")


def measure(path: Path, rows: int) -> str:
    """Load a file in a process of its own and return its line of figures."""
    config = path.parent / "c.yaml"
    config.write_text(f"data: {{source: files, train: {path.name}, tokens: ids}}")
    command = [sys.executable, "-c", LOADING, str(config)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, before_kib, after_kib, loaded = map(float, done.stdout.split())
    assert loaded == rows

    size = f"{rows:,} rows, {path.stat().st_size / 1e6:,.0f} MB"
    speed = f"{seconds:.1f} s, {rows / seconds:,.0f} rows/s"
    memory = f"peak {after_kib / 1024:,.0f} MiB ({before_kib / 1024:,.0f} MiB before)"
    return f"{path.name}: {size}: {speed}, {memory}"


def main(
    rows: Annotated[int, typer.Option()] = 1_000_000,
    mean_length: Annotated[int, typer.Option()] = 20,
) -> None:
    """Write the files, load them, print the figures."""
    # SIGTERM raises KeyboardInterrupt as Ctrl-C does; then subprocess.run kills what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "data.jsonl", rows, mean_length)
        write(folder / "data.csv", rows, mean_length)
        subprocess.run(["gzip", "-k", "-1", folder / "data.jsonl"], check=True)

        for file in ("data.jsonl", "data.csv", "data.jsonl.gz"):
            print(measure(folder / file, rows), flush=True)


if __name__ == "__main__":
    typer.run(main)
