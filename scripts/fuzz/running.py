"""Run cases of every kind in shares, each share in a process, and count how they end."""

import multiprocessing
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rnncls.errors import RnnclsError
from scripts.fuzz.inputs import (
    one_checkpoint,
    one_command_line,
    one_config,
    one_dataset,
    whole_checkpoint,
)
from scripts.fuzz.links import one_link
from scripts.fuzz.memory import SKIPPED, one_memory
from scripts.fuzz.reads import one_read
from scripts.fuzz.scene import Failed, remove_all, scene
from scripts.fuzz.terminal import one_terminal

# Cases that take longer are printed.
SLOW_S = 10.0
SLOW = "slow"

# Of a failure. What a user's files bring may be long.
MOST_SHOWN = 1000

# A case makes a broken input in a folder and reads it. It returns "accepted", or how it was
# refused; an RnnclsError means refused, and every other exception is a failure.
Case = Callable[[random.Random, Path], str]


class Kind(NamedTuple):
    """A kind of input, and how many cases of it there are, in full and in short."""

    case: Case
    cases: int
    short: int


KINDS = {
    "config": Kind(one_config, 1500, 50),
    "checkpoint": Kind(one_checkpoint, 3000, 100),
    "dataset": Kind(one_dataset, 3000, 100),
    "command line": Kind(one_command_line, 500, 30),
    "link": Kind(one_link, 200, 10),
    "terminal": Kind(one_terminal, 240, 10),
    "read": Kind(one_read, 160, 8),
    "memory": Kind(one_memory, 16, 3),
}

# What one process does before it reports: of the kinds that fork, a case takes 0.2 s and more.
SHARE = 100


class Share(NamedTuple):
    """Some cases of a kind."""

    kind: str
    first: int
    cases: int


def run_all(counts: dict[str, int], first: int = 0) -> int:
    """Run the cases of each kind and return the number of failures."""
    # Here, so that the processes that follow have it, and all that was imported late.
    whole_checkpoint()
    scene()

    shares = []
    for kind, count in counts.items():
        # One that needs memory begins first, because it takes longest.
        size = SHARE if kind != "memory" else 10
        last = first + count
        shares += [Share(kind, at, min(size, last - at)) for at in range(first, last, size)]

    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in counts}
    workers = min(os.cpu_count() or 1, len(shares))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for share, ended in zip(shares, pool.map(run_share, shares), strict=True):
            outcomes[share.kind] += ended
    failures = sum(report(kind, outcomes[kind]) for kind in counts)
    summarise(sum(outcomes.values(), Counter()))
    return failures


def run_share(share: Share) -> Counter[str]:
    """Run some cases in this process; print what fails, and return how they ended."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(share.first, share.first + share.cases):
            started_at = time.perf_counter()
            outcomes[run_one(share.kind, number, Path(folder).resolve())] += 1
            seconds = time.perf_counter() - started_at
            if seconds > SLOW_S and share.kind != "memory":
                outcomes[SLOW] += 1
                print(f"{share.kind} {number}: slow, {seconds:.1f} s", flush=True)
        remove_all(Path(folder))
    return outcomes


def run_one(kind: str, number: int, folder: Path) -> str:
    """Run one case and return how it ended."""
    try:
        return KINDS[kind].case(random.Random(f"{kind}-{number}"), folder)
    except RnnclsError as error:
        if error.exit_code in (2, 3, 4) and error.render():
            return "refused"
        failed = Failed(f"exit {error.exit_code}", error.render())
    except Failed as error:
        failed = error
    except Exception as error:
        failed = Failed(type(error).__name__, str(error))

    print(
        f"FAILED: python -m scripts.fuzz --only {kind!r} --first {number} --cases 1: "
        f"{str(failed)[:MOST_SHOWN]}",
        flush=True,
    )
    return f"FAILED ({failed.kind})"


def report(kind: str, outcomes: Counter[str]) -> int:
    """Print the line of a kind and return its number of failures."""
    num_slow = outcomes.pop(SLOW, 0)
    listed = ", ".join(f"{key} {value}" for key, value in sorted(outcomes.items()))
    slow = f"; {num_slow} slow" if num_slow else ""
    print(f"{kind}: {outcomes.total()} cases; {listed}{slow}")

    failures = sum(value for key, value in outcomes.items() if key.startswith("FAILED"))
    # A kind that this system cannot run.
    if outcomes[SKIPPED] == outcomes.total():
        return failures
    # One case, which is run again, is accepted or refused.
    if outcomes.total() > 1 and not 0 < outcomes["accepted"] < outcomes.total() - failures:
        print(f"{kind}: FAILED: all were accepted, or all refused")
        failures += 1
    return failures


def summarise(total: Counter[str]) -> None:
    """Print what came of all cases together."""
    kinds = ("exit 1", "traceback", "wrote outside")
    found = ", ".join(f"{total[f'FAILED ({kind})']} {kind}" for kind in kinds)
    print(f"{total.total():,} generated cases: {found}")


def counts_of(short: bool) -> dict[str, int]:
    """Return how many cases there are of each kind, the slowest first."""
    return {name: kind.short if short else kind.cases for name, kind in reversed(KINDS.items())}
