"""Runs of several processes, one of which is killed: the others end, and the run goes on."""

import os
import random
import signal
import time
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rnncls.rundir.status import read_status
from scripts.chaos.part import SHORTER, Part, Result
from scripts.processes import HUNG, fork, wait
from tests.helpers import Outcome, outcome
from tests.together import start_together

LOST = 9

# Where one is killed while they meet, the others wait so long for it. A busy machine needs longer
# for a run that is to go on: such a run has the usual time-out.
SOON = ("--dist-timeout", "5")

# The kill may come after the end of the run. A part that misses more often than this gives up.
TRIES_PER_HIT = 8


def several(folder: Path, short: bool) -> Result:
    """SIGKILL to each of 2 and of 3 processes at random moments, then --resume.

    The others end with 9, none hangs, and the weights are those of the undisturbed run to the bit.
    """
    part = Part(folder, *SHORTER)
    rng = random.Random(3)
    wanted = 2 if short else 20
    hits = 0
    tries = 0

    for size in (2, 3):
        whole = folder / f"whole-of-{size}"
        end(part, whole, size, f"{size} undisturbed processes")
        expected = outcome(whole)
        run_s = seconds(part, size)

        for rank in range(size):
            enough = hits + wanted
            give_up = tries + TRIES_PER_HIT * wanted
            while hits < enough and tries < give_up:
                run_dir = part.next_run_dir()
                what = f"rank {rank} of {size} killed"
                tries += 1
                hits += kill(part, run_dir, size, rank, rng.uniform(0, run_s))
                end(part, run_dir, size, what)
                check_outcome(part, run_dir, expected, what)
            part.check(hits >= enough, f"too few SIGKILLs came before the end of {size} processes")

    figure = f"{hits} SIGKILLs to one of 2 or 3 processes: all ended, one outcome"
    return Result(figure, hits, part.failures)


def start(part: Part, run_dir: Path, size: int, *options: str) -> tuple[list[int], TCPStore]:
    """Start or resume a run in so many processes; return their ids, and where they meet."""
    variables: dict[str, str] = {}
    store = start_together(size, variables)
    # Once for all of them: the first may begin the run before the last has been started.
    words = [*part.command(run_dir), *options]
    pids = []
    for rank in range(size):

        def prepare(rank: int = rank) -> None:
            os.environ.update(variables, RANK=str(rank))

        # Each has a log of its own, and the part shows that of the first.
        log = part.log if rank == 0 else part.folder / f"rnncls-{rank}.log"
        pids.append(fork(words, log, prepare))
    return pids, store


def end(part: Part, run_dir: Path, size: int, what: str) -> None:
    """Start or resume a run in so many processes, all of which must end with 0."""
    pids, _store = start(part, run_dir, size)
    for pid in pids:
        part.check_exit(wait(pid), 0, what)


def seconds(part: Part, size: int) -> float:
    """Return how long an undisturbed run takes: the shorter of two, as one may be delayed."""
    times = []
    for _ in range(2):
        started_at = time.monotonic()
        end(part, part.next_run_dir(), size, "a run that is timed")
        times.append(time.monotonic() - started_at)
    return min(times)


def kill(part: Part, run_dir: Path, size: int, rank: int, after: float) -> bool:
    """Kill one of the processes of a run after some seconds; return whether it still ran."""
    pids, _store = start(part, run_dir, size, *SOON)
    time.sleep(after)
    os.kill(pids[rank], signal.SIGKILL)

    codes = [wait(pid) for pid in pids]
    killed = codes.pop(rank)
    part.check(killed in (0, -signal.SIGKILL), f"rank {rank} of {size}: exit code {killed}")
    part.check(HUNG not in codes, f"rank {rank} of {size} killed: the others hung: {codes}")

    # What is killed on its last steps may be missed by nobody: the run is finished then.
    allowed = {LOST} if killed else {0}
    if read_status(run_dir).get("state") == "finished":
        allowed.add(0)
    good = allowed.issuperset(codes)
    part.check(good, f"rank {rank} of {size} killed: {codes}\n{'' if good else part.last_words()}")
    return killed == -signal.SIGKILL


def check_outcome(part: Part, run_dir: Path, expected: Outcome, what: str) -> None:
    """The run must have ended as the undisturbed one did and have left nothing behind."""
    part.check(outcome(run_dir) == expected, f"{what}: another outcome")
    left = [path.name for path in run_dir.rglob("*") if ".tmp-" in path.name]
    part.check(not left, f"{what}: left behind {left}")
