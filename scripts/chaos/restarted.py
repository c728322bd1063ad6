"""Runs under torchrun, a process of which is killed: torchrun starts all again, and they go on.

It is torchrun itself, but for one thing: it forks its processes instead of starting programs, so
that torch is imported once. Those that outlive a killed one get their SIGTERM from it as well, and
it waits for them without a limit. tests/test_distributed_faults.py has torchrun start programs.
"""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing import api

from rnncls.rundir import run_directory
from rnncls.rundir.paths import CHECKPOINTS
from rnncls.steps import eager
from rnncls.system.distributed import World
from scripts.chaos.part import Part
from scripts.file_calls import intercept
from scripts.processes import fork_to, run_here, wait, write_output_to

MAX_RESTARTS = 3

POLL_S = 0.001

Kill = Callable[[], None]


# --- a launch


def launch(part: Part, run_dir: Path, size: int, moment: str = "", victim: int = 0) -> int:
    """Begin a run under torchrun, in so many processes; return the process id of torchrun.

    At `moment`, one of MOMENTS, one process of the first start kills the `victim`.
    """
    shutil.rmtree(pids_of(part), ignore_errors=True)
    pids_of(part).mkdir()
    # Each start gets the same words, as under torchrun; what the run has come to does not matter.
    words = part.command(run_dir)

    def work() -> int:
        return _work(part, run_dir, words, moment, victim)

    return fork_to(lambda: _launch(part, size, work))


def pids_of(part: Part) -> Path:
    """Return the folder with a file for each process that torchrun has started."""
    return part.folder / "pids"


def pid_file(part: Part, start: int, rank: int) -> Path:
    return pids_of(part) / f"{start}-{rank}"


def _launch(part: Part, size: int, work: Callable[[], int]) -> int:
    """Be torchrun; return its exit code."""
    write_output_to(part.folder / "torchrun.log")
    original = torchrun.config_from_args

    def forking(arguments: Any) -> Any:
        config, _program, _words = original(arguments)
        config.start_method = "fork"
        return config, work, []

    torchrun.config_from_args = forking  # type: ignore[assignment]
    api._wrap = _run_in_fork  # type: ignore[assignment]
    options = ["--standalone", "--nproc-per-node", str(size), "--max-restarts", str(MAX_RESTARTS)]
    torchrun.main([*options, "rnncls"])
    return 0


def _run_in_fork(
    local_rank: int, work: Callable[[], int], _arguments: Any, variables: Any, *others: Any
) -> None:
    """Be a fork of torchrun: as PyTorch's own, but it ends as a program does, without waiting.

    PyTorch's wait for a word of torchrun, which never comes where one of them was killed.
    """
    os.environ.update(variables[local_rank])
    results = others[2]
    results[local_rank].put(work())


def _work(part: Part, run_dir: Path, words: list[str], moment: str, victim: int) -> int:
    """Be one of the processes. Returns 0, or ends this process with another exit code."""
    rank = int(os.environ["RANK"])
    start = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    written = pids_of(part) / f".{start}-{rank}"
    written.write_text(str(os.getpid()))
    written.rename(pid_file(part, start, rank))

    def kill() -> None:
        os.kill(int(pid_file(part, start, victim).read_text()), signal.SIGKILL)

    def prepare() -> None:
        if moment and start == 0:
            MOMENTS[moment](run_dir, kill if rank in (0, victim) else lambda: None)

    log = part.log if rank == 0 else part.folder / f"rnncls-{rank}.log"
    code = run_here(words, log, prepare)
    sys.stdout.flush()
    sys.stderr.flush()
    # Another code than 0 is for torchrun: as a program's, it is not an exception of Python.
    if code:
        os._exit(code)
    return 0


# --- moments at which a process is killed


def _before(owner: Any, name: str, number: int, kill: Kill) -> None:
    """Kill before the call with this number of a function."""
    original = getattr(owner, name)
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            kill()
        return original(*arguments, **options)

    setattr(owner, name, call)


def _in_save(run_dir: Path, kill: Kill) -> None:
    """Kill when the second checkpoint is written, and has its name not yet."""
    flushed = 0

    def act(_number: int, call: str, path: str, _arguments: tuple[Any, ...]) -> None:
        nonlocal flushed
        if call == "fsync" and path.startswith(f"{run_dir / CHECKPOINTS}/"):
            flushed += 1
            if flushed == 2:
                kill()

    intercept(run_dir, act)


MOMENTS: dict[str, Callable[[Path, Kill], None]] = {
    "before the first checkpoint": lambda _, kill: _before(
        run_directory.RunDirectory, "save", 1, kill
    ),
    "before the first status": lambda _, kill: _before(run_directory, "write_status", 1, kill),
    "in a step": lambda _, kill: _before(eager, "train_step", 5, kill),
    "in a save": _in_save,
    "in an evaluation": lambda _, kill: _before(World, "gather_rows", 2, kill),
}


# --- kills


def kill_at(part: Part, run_dir: Path, size: int, victim: int, moment: str) -> bool:
    """Have a process killed at a moment; the launch must end with 0. Return whether it was."""
    what = f"torchrun: rank {victim} of {size} killed {moment}"
    agent = launch(part, run_dir, size, moment, victim)
    _end(part, agent, what)
    # Started again: the kill has been.
    return part.check(pid_file(part, 1, 0).exists(), f"{what}: nobody was killed")


def kill_at_random(
    part: Part,
    run_dir: Path,
    size: int,
    victim: int,
    run_s: float,
    rng: random.Random,
    most: int = MAX_RESTARTS,
) -> int:
    """Kill a process of each start at a random moment, `most` times; return how many were hit."""
    agent = launch(part, run_dir, size)
    hits = 0
    for start in range(min(most, MAX_RESTARTS)):
        path = pid_file(part, start, victim)
        while not path.exists() and _runs(agent):
            time.sleep(POLL_S)
        if not path.exists():
            break
        time.sleep(rng.uniform(0, run_s))
        pid = int(path.read_text())
        # What has ended waits for the others, and torchrun for it, or it is gone.
        if not _runs(pid):
            break
        os.kill(pid, signal.SIGKILL)
        hits += 1
    _end(part, agent, f"torchrun: rank {victim} of {size} killed {hits} times")
    return hits


def _end(part: Part, agent: int, what: str) -> None:
    """Wait for torchrun, which must end with 0 and leave no process behind."""
    part.check_exit(wait(agent), 0, what)
    left = [path.name for path in pids_of(part).iterdir() if _runs(int(path.read_text()))]
    part.check(not left, f"{what}: left running (start-rank): {left}")


def _runs(pid: int) -> bool:
    """Return whether a process is there and has not ended, whoever started it."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"
