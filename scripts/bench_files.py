"""How long the user's files take to load, and how much memory that needs.

    python scripts/bench_files.py --rows 1000000 --mean-length 20

Writes JSONL, CSV and gzipped JSONL files of random ids, loads each in a process of its own, and prints seconds, rows
per second, and the peak of resident memory with what was resident before loading (torch, mostly).
"""

import json
import random
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
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started_at = time.perf_counter()
task = load_task(load_config(sys.argv[1]), progress=True)
seconds = time.perf_counter() - started_at
print(seconds, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, sum(map(len, task.dataset.splits.values())))
"""


def write(path: Path, rows: int, mean_length: int) -> None:
    """`rows` sequences of 1 to 2 * mean_length - 1 ids below 1,000, labelled with their sum mod 10."""
    rng = random.Random(0)
    with path.open("w") as file:
        if path.suffix == ".csv":
            file.write("sequence,label\n")
        for _ in range(rows):
            ids = rng.choices(range(1000), k=rng.randint(1, 2 * mean_length - 1))
            label = sum(ids) % 10
            line = (
                f"{' '.join(map(str, ids))},{label}"
                if path.suffix == ".csv"
                else json.dumps({"sequence": ids, "label": label})
            )
            file.write(line + "\n")


def main(
    rows: Annotated[int, typer.Option()] = 1_000_000,
    mean_length: Annotated[int, typer.Option()] = 20,
) -> None:
    """Write the files, load them, print the figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for suffix in ("jsonl", "csv"):
            write(folder / f"data.{suffix}", rows, mean_length)
        subprocess.run(["gzip", "-k", "-1", folder / "data.jsonl"], check=True)
        for file in ("data.jsonl", "data.csv", "data.jsonl.gz"):
            (folder / "c.yaml").write_text(f"data: {{source: files, train: {file}, tokens: ids}}")
            command = [sys.executable, "-c", LOADING, str(folder / "c.yaml")]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, before, after, loaded = map(float, done.stdout.split())
            assert loaded == rows
            size = (folder / file).stat().st_size / 1e6
            memory = f"peak {after / 1024:,.0f} MiB ({before / 1024:,.0f} MiB before)"
            print(
                f"{file}: {rows:,} rows, {size:,.0f} MB: {seconds:.1f} s, {rows / seconds:,.0f} rows/s, {memory}",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
