"""Turns what the machine refuses into errors that say what, where, and what to do about it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rnncls.errors import (
    MachineError,
    Problem,
    RnnclsError,
    WriteError,
    as_out_of_memory,
    limit_reached,
)
from rnncls.system.files import new_file

# A limit of the machine was reached; another place to write would not help.
_LIMITS = (errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE)

# There is no more room, or writing is not allowed at all.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# The message of Python's RuntimeError.
_NO_THREAD = "can't start new thread"


@contextmanager
def writing(path: Path, what: str = "cannot write", needed: int = 0) -> Iterator[None]:
    """Turn an OSError raised by the body into an error that names `path`. Writes nothing itself.

    `what` begins the message, and `needed` is the number of bytes to be written, if known.

    Raises: MachineError if a limit of the machine was reached (open files, length of a name).
    OutOfMemory. WriteError for any other OSError, with the free space if that ran out.
    """
    try:
        yield
    except OSError as error:
        out_of_memory = as_out_of_memory(error)
        if out_of_memory is not None:
            raise out_of_memory from None

        what = f"{what}: {error.strerror}"
        if error.errno in _LIMITS:
            raise limit_reached(what, str(path)) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            space = _space(path, needed)
            remedy = "free some space; what was saved before is unharmed"
        else:
            space = ""
            remedy = "another folder; what was saved before is unharmed"
        raise WriteError(Problem(what, str(path), found=space, remedy=remedy, id="R9")) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file that somebody asked for, whole or not at all. Raises: WriteError."""
    with writing(path), new_file(path) as file:
        file.buffer.write(content)


def error_of_machine(error: Exception) -> RnnclsError | None:
    """Return the error to end with for what the machine refuses, and None for anything else.

    This is for what nothing closer to its cause has explained. Machines refuse in more ways than
    there are places that could ask: memory or threads that they have not, a folder that may not be
    entered, a disk that fails, a current folder that was deleted.
    """
    out_of_memory = as_out_of_memory(error)
    if out_of_memory is not None:
        return out_of_memory

    # Python says no more than this of a thread that the system has not started. To start a process
    # fails with EAGAIN.
    is_refused_thread = isinstance(error, RuntimeError) and str(error) == _NO_THREAD
    if is_refused_thread or isinstance(error, BlockingIOError):
        what = "the system starts no more threads or processes for this user"
        remedy = "a higher limit (ulimit -u), fewer --jobs, or fewer other programs"
        return MachineError(Problem(what, found=str(error), remedy=remedy, id="R30"))
    return _error_of_system(error) if isinstance(error, OSError) else None


def _error_of_system(error: OSError) -> RnnclsError:
    reason = error.strerror or str(error)
    place = error.filename
    where = os.fsdecode(place) if isinstance(place, str | bytes | os.PathLike) else ""
    if error.errno == errno.ENAMETOOLONG:
        # Whole, it would be the longest line of the message.
        return limit_reached(f"{reason}: {where:.60}...", "", "a shorter path")
    if error.errno in _LIMITS:
        return limit_reached(reason, where)
    if error.errno in _CANNOT_WRITE:
        remedy = "free some space, or another folder; what was saved before is unharmed"
        return WriteError(Problem(f"cannot write: {reason}", where, remedy=remedy, id="R9"))

    # Paths that are not absolute lead nowhere then, and the message of the system says only that.
    if isinstance(error, FileNotFoundError) and not _has_current_folder():
        what = "the current folder was deleted"
        return MachineError(Problem(what, where, remedy="cd to another folder", id="R30"))

    remedy = "another path, or the right to read it" if where else ""
    return MachineError(Problem(f"the system refuses: {reason}", where, remedy=remedy, id="R30"))


def _has_current_folder() -> bool:
    try:
        os.getcwd()  # noqa: PTH109  # Path.cwd() is the same call
    except OSError:
        return False
    return True


def free_bytes(path: Path) -> int:
    """Return the free space where `path` is, or would be; 0 if that is unknown."""
    # The nearest folder that exists is on the file system that would be written to.
    candidates = (path, *path.parents)
    existing = next((folder for folder in candidates if folder.exists()), Path("/"))
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return 0


def _space(path: Path, needed: int) -> str:
    free = f"{free_bytes(path):,} bytes free"
    return f"{free}, {needed:,} needed" if needed else free
