"""Who owns a directory: a lock that the kernel releases when its process ends, however it ends."""

import fcntl
import os
import socket
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rnncls.errors import MachineError, Problem
from rnncls.rundir.paths import CHECKPOINTS, FOLDERS, LOCK
from rnncls.system.files import open_regular, remove_leftovers
from rnncls.system.folders import refuse_links
from rnncls.system.refusals import writing


@contextmanager
def locked(run_dir: Path, make: bool = False) -> Iterator[None]:
    """Hold a run directory for this process, and remove what a killed owner was writing.

    `make`: make the directory first, if it is not there.

    Raises: MachineError, which names the owner, while another process holds the directory.
    CheckpointError if one of its folders is a link. WriteError if the directory or the lock file
    cannot be written.
    """
    refuse_links(run_dir, *FOLDERS)
    with _lock_file(run_dir, make) as descriptor:
        if not _try_lock(descriptor):
            # Read without a lock: the text may be that of an owner who has just left.
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
            raise MachineError(
                Problem(
                    "the run directory is in use",
                    str(run_dir),
                    found=owner or "another process",
                    remedy="wait for it, stop it, or choose another --run-dir",
                    id="R26",
                )
            )

        # For people alone. What counts is the lock, which no killed owner can leave behind.
        now = datetime.now(UTC).isoformat(timespec="seconds")
        owner = f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n"
        with writing(run_dir / LOCK):
            # A copy that shares its files with another folder (`cp -al`) has that folder's text.
            if os.fstat(descriptor).st_nlink == 1:
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, owner.encode(), 0)

            # Whoever was writing these is gone, or there would be no lock to take.
            remove_leftovers(run_dir)
            remove_leftovers(run_dir / CHECKPOINTS)
        yield


@contextmanager
def holding(folder: Path, inside: Collection[str]) -> Iterator[None]:
    """Wait until no other process writes into a shared folder, and hold it for the duration.

    `inside`: its own folders.

    Raises: CheckpointError if one of these is a link. WriteError if the lock file cannot be
    written.
    """
    refuse_links(folder, *inside)

    # Waits without a limit: others hold the folder for the seconds in which they write a summary.
    with _lock_file(folder) as descriptor:
        with writing(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            remove_leftovers(folder)
        yield


def is_locked(run_dir: Path) -> bool:
    """Return whether a living process holds the directory. Changes nothing."""
    try:
        descriptor = open_regular(run_dir / LOCK)
    except OSError:
        return False

    # A shared lock, so that several processes can look at the same time.
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


@contextmanager
def _lock_file(folder: Path, make: bool = False) -> Iterator[int]:
    """Open the folder's lock file. Closing its descriptor releases the lock."""
    if make:
        with writing(folder):
            (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)

    # The file is never deleted: a process could then hold a lock that no other one sees.
    with writing(folder / LOCK):
        descriptor = open_regular(folder / LOCK, os.O_RDWR | os.O_CREAT)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    """Take the lock unless another process has it.

    `is_locked` holds it for an instant in order to ask; hence some tries instead of one.
    """
    for _ in range(20):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False
