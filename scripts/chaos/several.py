"""Runs of several processes, one of which is killed: the others end, and the run goes on."""

import os
import random
import signal
import time
from pathlib import Path

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from scripts.chaos.part import SHORTER, Part, Result, saved_step
from scripts.chaos.restarted import MOMENTS, kill_at, kill_at_random
from scripts.processes import HUNG, fork, wait
from tests.helpers import Outcome, outcome
from tests.together import start_together

LOST = 9

# Where one is killed while they meet, the others wait so long for it. A busy machine needs longer
# for a run that is to go on: such a run has the usual time-out.
SOON = ("--dist-timeout", "5")

# The kill may come after the end of the run. A part that misses more often than this gives up.
TRIES_PER_HIT = 8


# Of each process, the SIGKILLs that --resume mends, and those that torchrun's --max-restarts does:
# 7 at random moments in all.
RESUMED = 4
RESTARTED = 3


def several(folder: Path, short: bool) -> Result:
    """SIGKILL to each of 2 and of 3 processes at random moments, then --resume, or torchrun's own.

    The others end with 9, none hangs, and the weights are those of the undisturbed run to the bit.
    Under torchrun the launch ends with 0 by itself.
    """
    part = Part(folder, *SHORTER)
    rng = random.Random(3)
    resumed = 0
    restarted = 0

    for size in (2, 3):
        whole = folder / f"whole-of-{size}"
        end(part, whole, size, f"{size} undisturbed processes")
        expected = outcome(whole)
        restarted += kill_at_each_moment(part, size, expected, short)
        if short and size > 2:
            continue

        run_s = seconds(part, size)
        for rank in [1] if short else range(size):
            resumed += kill_some(part, size, rank, expected, run_s, rng, 1 if short else RESUMED)
            if not short:
                restarted += restart_some(part, size, rank, expected, run_s, rng)

    hits = resumed + restarted
    figure = (
        f"{hits} SIGKILLs to one of 2 or 3 processes, {restarted} of them under torchrun: "
        "all ended, one outcome"
    )
    return Result(figure, hits, part.failures)


def kill_some(
    part: Part,
    size: int,
    rank: int,
    expected: Outcome,
    run_s: float,
    rng: random.Random,
    wanted: int,
) -> int:
    """Kill a process of so many runs, and resume each; return how often it was hit."""
    hits = 0
    what = f"rank {rank} of {size} killed"
    for _ in range(TRIES_PER_HIT * wanted):
        run_dir = part.next_run_dir()
        hits += kill(part, run_dir, size, rank, rng.uniform(0, run_s))
        end(part, run_dir, size, what)
        check_outcome(part, run_dir, expected, what)
        if hits == wanted:
            break
    part.check(hits == wanted, f"too few SIGKILLs came before the end of {size} processes")
    return hits


def kill_at_each_moment(part: Part, size: int, expected: Outcome, short: bool) -> int:
    """Kill processes under torchrun at each of MOMENTS; return how often one was hit.

    Of 2 processes each is killed, and of 3 another one at each moment.
    """
    hits = 0
    for number, moment in enumerate(MOMENTS):
        victims = [number % size] if short or size > 2 else range(size)
        # A save of the first process, and the second one between first checkpoint and status.
        if short and (size, number) not in ((2, 1), (3, 3)):
            continue
        for victim in victims:
            run_dir = part.next_run_dir()
            hits += kill_at(part, run_dir, size, victim, moment)
            what = f"torchrun: rank {victim} of {size} killed {moment}"
            check_outcome(part, run_dir, expected, what)
    return hits


def restart_some(
    part: Part, size: int, rank: int, expected: Outcome, run_s: float, rng: random.Random
) -> int:
    """Kill a process under torchrun, up to three times in a launch; return how often it was hit."""
    hits = 0
    for _ in range(TRIES_PER_HIT * RESTARTED):
        run_dir = part.next_run_dir()
        most = RESTARTED - hits
        hits += kill_at_random(part, run_dir, size, rank, run_s, rng, most)
        check_outcome(part, run_dir, expected, f"torchrun: rank {rank} of {size} killed")
        if hits == RESTARTED:
            break
    part.check(hits == RESTARTED, f"too few SIGKILLs came before the end of {size} processes")
    return hits


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
    # So it is, too, for a process that has heard of the last checkpoint, and nothing after it.
    if saved_step(run_dir) == part.num_steps:
        allowed.add(0)
    good = allowed.issuperset(codes)
    part.check(good, f"rank {rank} of {size} killed: {codes}\n{'' if good else part.last_words()}")
    return killed == -signal.SIGKILL


def check_outcome(part: Part, run_dir: Path, expected: Outcome, what: str) -> None:
    """The run must have ended as the undisturbed one did and have left nothing behind."""
    part.check(outcome(run_dir) == expected, f"{what}: another outcome")
    left = [path.name for path in run_dir.rglob("*") if ".tmp-" in path.name]
    part.check(not left, f"{what}: left behind {left}")
