"""Who owns a run directory and how its run stands: a lock that dies with its process, and status.json.

A run directory comes into being with its first checkpoint, that of step 0. What a process was killed over before is
nothing but a lock file and an empty folder, and may be used again.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rnncls.errors import ConfigError, MachineError, Problem
from rnncls.rundir.paths import CHECKPOINTS, LOCK
from rnncls.system.files import open_regular, remove_leftovers, writing


@contextmanager
def created(run_dir: Path) -> Iterator[None]:
    """Make a new run directory and hold it. Raises ConfigError when it is used already, and then touches nothing.

    Also raises WriteError when it cannot be made, and MachineError while another process holds it.
    """
    require_unused(run_dir)
    with writing(run_dir):
        (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    with locked(run_dir):
        require_unused(run_dir)  # nobody came first
        yield


def require_unused(run_dir: Path) -> None:
    """Raises ConfigError for a directory that a new run may not use, MachineError for a name that is no text."""
    if any(
        "\ud800" <= letter <= "\udfff" for letter in str(run_dir)
    ):  # how Python shows bytes that are none
        remedy = "another --run-dir, or a UTF-8 locale such as LANG=C.UTF-8"
        what = "the name of the run directory is no text in this locale"
        raise MachineError(
            Problem(what, ascii(str(run_dir)), expected="UTF-8", remedy=remedy, id="R30")
        )
    with writing(run_dir):
        if not run_dir.exists():
            return
        names = {path.name for path in run_dir.iterdir()} if run_dir.is_dir() else {"a file"}
        if names <= {LOCK, CHECKPOINTS}:
            names = {
                path.name
                for path in (run_dir / CHECKPOINTS).glob("*")
                if not path.name.startswith(".tmp-")
            }
    if names:
        remedy = "another --run-dir, --resume to go on with a run, or neither for a fresh directory"
        raise ConfigError(
            Problem("the run directory is not empty", str(run_dir), remedy=remedy, id="C19")
        )


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the directory for this process, without what a killed one left. The kernel lets go when the process ends.

    Raises MachineError, naming the owner, while another process holds it, and WriteError.
    """
    with writing(run_dir / LOCK):
        descriptor = open_regular(run_dir / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        if not _lock(descriptor):
            owner = (
                os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            )
            remedy = "wait for it, stop it, or choose another --run-dir"
            raise MachineError(
                Problem(
                    "the run directory is in use",
                    str(run_dir),
                    found=owner,
                    remedy=remedy,
                    id="R26",
                )
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with writing(run_dir / LOCK):
            os.ftruncate(descriptor, 0)
            os.pwrite(
                descriptor,
                f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n".encode(),
                0,
            )
            for folder in (run_dir, run_dir / CHECKPOINTS):
                remove_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Wait until no other process writes into a folder that several share, and then be the one who does.

    Raises WriteError.
    """
    with writing(folder / LOCK):
        descriptor = open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        with writing(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            remove_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Take the lock; try again for a moment, because whoever asks `is_locked` holds it for an instant."""
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False


def is_locked(run_dir: Path) -> bool:
    """Whether a living process holds the directory. Changes nothing."""
    try:
        descriptor = open_regular(run_dir / LOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)
