"""Measure how fast `rnncls predict` answers a pipe and reads files.

    python scripts/bench_predict.py --lines 1000 --rows 1000000
    python scripts/bench_predict.py --other ../before --rounds 3
    python scripts/bench_predict.py --lines 0 --rows 0 --memory 1000000

A pipe: one line is written and its answer read before the next one, in a process that has answered
a few lines already; percentiles of the times in between.

Files: processor seconds, on one thread, for a JSONL file and for lines on stdin, from the start of
the process to its end. Other programs on the machine hardly change them.

Memory: the peak of the process for a tenth of the rows and for all of them, of each kind of
input and output. Nothing is to be kept of a row.

With --other, the path of another checkout of the project, both take turns, and the ratio of their
medians is printed. The model is that of configs/sum_mod_10_plain.yaml, with its initial weights.
"""

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 20  # lines


def environment(checkout: Path) -> dict[str, str]:
    """Return the environment in which `python -m rnncls` is that of a checkout, on one thread."""
    # Buffered as it is by default: what flushes is the program.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**inherited, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}


def rnncls(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "rnncls", *map(str, words)]


def make_run(checkout: Path, run_dir: Path) -> None:
    """Save a model that has not learnt anything: it takes as long as another one."""
    config = checkout / "configs" / "sum_mod_10_plain.yaml"
    words: list[str | Path] = ["train", "--config", config, "device=cpu"]
    words += ["train.max_steps=0", "train.engine=eager", "--run-dir", run_dir]
    quiet = subprocess.DEVNULL
    command = rnncls(*words)
    subprocess.run(command, env=environment(checkout), stdout=quiet, stderr=quiet, check=True)


def random_sequences(count: int, mean_length: int) -> list[list[int]]:
    """Draw sequences of 1 to 2 * mean_length - 1 digits."""
    rng = random.Random(0)
    return [rng.choices(range(10), k=rng.randint(1, 2 * mean_length - 1)) for _ in range(count)]


def write_files(folder: Path, rows: int, mean_length: int) -> None:
    sequences = random_sequences(rows, mean_length)
    with (folder / "rows.jsonl").open("w") as jsonl, (folder / "rows.txt").open("w") as text:
        for sequence in sequences:
            jsonl.write(json.dumps({"sequence": sequence}) + "\n")
            text.write(" ".join(map(str, sequence)) + "\n")


def answer_times(checkout: Path, run_dir: Path, lines: int, *options: str) -> list[float]:
    """Return the milliseconds from each line to its answer."""
    texts = [" ".join(map(str, ids)) for ids in random_sequences(WARM_UP + lines, 5)]
    command = rnncls("predict", run_dir, "-", *options)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, env=environment(checkout), stdin=pipe, stdout=pipe, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        times = [_answer_time(process.stdin, process.stdout, text) for text in texts]
        process.stdin.close()
    return times[WARM_UP:]


def _answer_time(stdin: IO[str], stdout: IO[str], text: str) -> float:
    started_at = time.perf_counter()
    stdin.write(text + "\n")
    assert stdout.readline()
    return 1000 * (time.perf_counter() - started_at)


def seconds_of_file(checkout: Path, run_dir: Path, folder: Path, kind: str) -> float:
    """Return the processor time that the command takes for one of the two files."""
    words: list[str | Path] = ["predict", run_dir, "--output", folder / "out.jsonl"]
    source = Path(os.devnull)
    if kind == "jsonl":
        words += ["--input", folder / "rows.jsonl"]
    else:
        source = folder / "rows.txt"

    before = os.times()
    with source.open() as stdin:
        subprocess.run(rnncls(*words), env=environment(checkout), stdin=stdin, check=True)
    after = os.times()
    user = after.children_user - before.children_user
    return user + after.children_system - before.children_system


def distinct_rows(kind: str, rows: int) -> Iterator[str]:
    """Yield the lines of an input whose every row has a label and an unknown token of its own."""
    if kind == "csv":
        yield "sequence,label\n"
    for number in range(rows):
        text = f"{number % 10} {number // 10 % 10} {number if number % 2 else 1}"
        if kind == "csv":
            yield f"{text},{number}\n"
        elif kind == "jsonl":
            yield json.dumps({"sequence": text, "label": number}) + "\n"
        else:
            yield text + "\n"


def peak_bytes(run_dir: Path, folder: Path, kind: str, rows: int, *options: str) -> int:
    """Return the peak of the memory of `rnncls predict` for rows of a kind: stdin or a suffix."""
    words: list[str | Path] = ["predict", run_dir, "--bad", "skip", *options]
    path = folder / f"distinct.{'txt' if kind == 'stdin' else kind}"
    with path.open("w") as file:
        file.writelines(distinct_rows(kind, rows))
    if kind != "stdin":
        words += ["--input", path]

    with path.open() as source:
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(
            rnncls(*words), env=environment(ROOT), stdin=source, stdout=quiet, stderr=quiet
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 2**10)


def print_memory(run_dir: Path, folder: Path, rows: int) -> None:
    for kind in ("stdin", "txt", "csv", "jsonl"):
        for options in (["--json"], ["--output", str(folder / "out.csv")]):
            few = peak_bytes(run_dir, folder, kind, rows // 10, *options)
            many = peak_bytes(run_dir, folder, kind, rows, *options)
            print(
                f"memory of {kind} {options[0]}: {rows // 10:,} rows {few / 2**20:.0f} MiB, "
                f"{rows:,} rows {many / 2**20:.0f} MiB",
                flush=True,
            )


def main(
    lines: Annotated[int, typer.Option(help="Lines that are sent through the pipe.")] = 1000,
    rows: Annotated[int, typer.Option(help="Rows of the files; 0 for none.")] = 1_000_000,
    mean_length: Annotated[int, typer.Option(help="Mean length of a sequence.")] = 5,
    rounds: Annotated[int, typer.Option(help="Times that each file is predicted.")] = 3,
    memory: Annotated[int, typer.Option(help="Rows whose memory is measured; 0 for none.")] = 0,
    other: Annotated[Path | None, typer.Option(help="Another checkout to compare with.")] = None,
) -> None:
    """Make a run and files, measure, print the figures."""
    # SIGTERM raises KeyboardInterrupt as Ctrl-C does; then subprocess.run kills what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run_dir = folder / "run"
        # Each of the two can read a run of the older one.
        make_run(other or ROOT, run_dir)

        for options in ([], ["--json"]) if lines else ():
            times = sorted(answer_times(ROOT, run_dir, lines, *options))
            shown = ", ".join(
                f"{percent} %: {times[min(lines - 1, lines * percent // 100)]:.2f} ms"
                for percent in (50, 95, 99)
            )
            print(f"pipe {' '.join(options)}: {lines:,} lines, {shown}", flush=True)

        if rows:
            write_files(folder, rows, mean_length)
            for kind in ("jsonl", "stdin"):
                print(compare_files(run_dir, folder, kind, rows, rounds, other), flush=True)

        if memory:
            print_memory(run_dir, folder, memory)


def compare_files(
    run_dir: Path, folder: Path, kind: str, rows: int, rounds: int, other: Path | None
) -> str:
    """Predict a file by turns with both checkouts, and return the line of figures."""
    own: list[float] = []
    others: list[float] = []
    for _ in range(rounds):
        if other is not None:
            others.append(seconds_of_file(other.resolve(), run_dir, folder, kind))
        own.append(seconds_of_file(ROOT, run_dir, folder, kind))

    median = statistics.median(own)
    line = f"{kind}: {rows:,} rows, {median:.1f} s, {rows / median:,.0f} rows/s"
    if others:
        of_other = statistics.median(others)
        line += f"; the other checkout {of_other:.1f} s; ratio {median / of_other:.3f}"
    return line


if __name__ == "__main__":
    typer.run(main)
