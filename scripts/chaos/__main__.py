"""Kill, starve, stop and damage runs; then resume them and compare with an undisturbed run.

    python -m scripts.chaos                     everything (make chaos)
    python -m scripts.chaos --short             what the tests run
    python -m scripts.chaos kills signals       some parts
    python -m scripts.chaos --jobs 2            two parts at a time

Prints one line per part on stdout, and at last the number of failures and what was skipped. The
exit code is 1 if anything went wrong. A part that injected no fault has shown nothing and counts
as a failure too.

Every attempt is `rnncls` in a process of its own, forked from one that has imported torch, so that
it is imported once. The parts `strace` and `failing_reads` start real processes and have the kernel
inject the faults; where strace is not installed, or may not trace, they are skipped and the last
line says how many cases that were.
"""

import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from scripts.chaos.compiling import compiling
from scripts.chaos.crowds import crowds
from scripts.chaos.damage import damage, mutations
from scripts.chaos.file_errors import disk_errors, failpoints
from scripts.chaos.kernel import failing_reads, strace
from scripts.chaos.machines import clocks, limits, rights
from scripts.chaos.part import Result
from scripts.chaos.several import several
from scripts.chaos.signals import kills, signals, stops
from scripts.fuzz.inputs import whole_checkpoint
from scripts.processes import end_all, exit_on_signals

# The two that take longest first: of two jobs, neither waits long for the other at the end.
PARTS: dict[str, Callable[[Path, bool], Result]] = {
    "several": several,
    "mutations": mutations,
    "failpoints": failpoints,
    "disk_errors": disk_errors,
    "kills": kills,
    "signals": signals,
    "stops": stops,
    "damage": damage,
    "limits": limits,
    "rights": rights,
    "clocks": clocks,
    "compiling": compiling,
    "crowds": crowds,
    "strace": strace,
    "failing_reads": failing_reads,
}


def run_parts(names: Sequence[str], folder: Path, short: bool, jobs: int) -> list[Result]:
    """Run the parts, `jobs` of them at the same time, and return their results in order."""
    run = partial(run_part, folder=folder, short=short)
    if jobs == 1:
        return [run(name) for name in names]

    # Each part in a fork: what it starts has one parent, as without jobs.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(jobs, context) as pool:
        try:
            return list(pool.map(run, names))
        except BaseException:
            # The pool would wait for parts that take minutes.
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def run_part(name: str, folder: Path, short: bool) -> Result:
    """Run a part and print its line. A part that breaks off, or injects nothing, has failed.

    The part has a folder of its own in `folder`. Nothing that it started is left running.
    """
    started_at = time.monotonic()
    try:
        result = PARTS[name](folder / name, short)
    except Exception:
        traceback.print_exc()
        result = Result("broke off", 0, 1)
    finally:
        end_all()

    failures = result.failures
    if not result.injected and not result.skipped:
        print(f"FAILED: {name}: no fault was injected", file=sys.stderr)
        failures += 1

    seconds = time.monotonic() - started_at
    print(f"{name}: {result.figure}; {failures} failures, {seconds:.0f} s", flush=True)
    return Result(result.figure, result.injected, failures, result.skipped)


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=", ".join(PARTS))] = None,
    short: Annotated[bool, typer.Option("--short", help="Fewer cases of each part.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Parts at the same time.")] = 1,
) -> None:
    """Run the parts and print their figures."""
    chosen = parts or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        raise typer.BadParameter(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")

    torch.set_num_threads(1)
    exit_on_signals()
    try:
        with tempfile.TemporaryDirectory() as folder:
            # A run in this process: all that is imported late is there before the first fork.
            whole_checkpoint()
            results = run_parts(chosen, Path(folder), short, jobs)
    finally:
        end_all()

    failures = sum(result.failures for result in results)
    skipped = []
    for name, result in zip(chosen, results, strict=True):
        if result.skipped:
            skipped.append(f"{name} ({result.figure})")
    left_out = f"; not run: {', '.join(skipped)}" if skipped else ""
    print(f"{failures} failures in all{left_out}")
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
