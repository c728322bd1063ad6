"""Write files so that after a kill, a full disk or an I/O error, the old or the new one is whole.

The order is: temporary file in the same folder, fsync, rename, fsync of the folder (Pillai et al.
2014, "All File Systems Are Not Created Equal", on what happens without it). A temporary file's name
begins with `TEMPORARY`. Only a kill leaves one behind, and the next owner of the folder removes it.
"""

import errno
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rnncls.errors import (
    CheckpointError,
    MachineError,
    Problem,
    RnnclsError,
    WriteError,
    as_out_of_memory,
    on_one_line,
)

TEMPORARY = ".tmp-"  # how the names of temporary files begin

# A limit of the machine was reached; another place to write would not help.
_LIMITS = (errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE)

# There is no more room, or writing is not allowed at all.
_CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# The message of Python's RuntimeError.
_NO_THREAD = "can't start new thread"

# What file systems without hard links answer. The two "not supported" are one number on Linux and
# two on macOS.
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


def write_atomically(path: Path, content: bytes, durable: bool = True) -> None:
    """Write a file atomically: afterwards `path` has all of `content`, or what it had before.

    A file that is not `durable` need not survive a power cut, and is written faster.

    Raises: OSError if it cannot be written; no temporary file stays behind.
    """
    temporary = temporary_path(path)
    try:
        _write_new(temporary, content, durable)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    # The rename itself is a change of the folder.
    if durable:
        fsync_folder(path.parent)


def _write_new(path: Path, content: bytes, durable: bool) -> None:
    """Create a file, which must not be there yet, and write `content`. Raises: OSError."""
    # O_EXCL: a file or link that somebody else has put there is never written into.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        rest = memoryview(content)
        while rest:
            # One write may take only a part.
            rest = rest[os.write(descriptor, rest) :]
        if durable:
            flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """Open a text file that appears under `path` only when the body ends without an exception.

    A device, a pipe or a link that is already there stays what it is and is written into.

    Raises: OSError, also if `path` is a directory.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a directory is there")

    # A rename would put a plain file in the place of /dev/stdout or of the link.
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return

    temporary = temporary_path(path)
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            flush_to_disk(file.fileno())
        temporary.replace(path)
    # Also after Ctrl-C: what is not whole must not stay behind.
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def link(existing: Path, path: Path) -> None:
    """Make `path` another name of `existing`, which is in the same folder.

    Where the file system refuses links, `path` becomes a copy. What was at `path` is replaced.

    Raises: OSError.
    """
    # os.link cannot replace a name that is taken, but a rename can.
    temporary = temporary_path(path)
    try:
        os.link(existing, temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        write_atomically(path, existing.read_bytes())
        return

    try:
        temporary.replace(path)
    finally:
        # Renaming a link onto another link of the same file does nothing and leaves both.
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file that is not a symbolic link and return its descriptor; never block.

    Raises: OSError, also for anything that is not such a file.
    """
    # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        # The system's own words, of too many levels of links, would mislead.
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "symbolic links are not followed", path) from None
        raise
    # Asked of the open file: the path may lead to another one by now.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def open_text(path: Path, flags: int) -> TextIO:
    """Open a regular file for writing text, with `flags` beside O_WRONLY.

    With O_TRUNC it is a new file: what had this name keeps its content under any other name, as in
    a copy that shares its files with the original (`cp -al`).

    Raises: OSError.
    """
    if flags & os.O_TRUNC:
        path.unlink(missing_ok=True)
        flags |= os.O_CREAT | os.O_EXCL
    descriptor = open_regular(path, os.O_WRONLY | flags)
    return os.fdopen(descriptor, "w", encoding="utf-8", newline="")


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file that is not a symbolic link.

    Raises: OSError, also if the file has more than `most` bytes.
    """
    # One byte more than allowed tells that there are more; the size could change meanwhile.
    with open(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes")
    return content


def commented(comment: str, text: str) -> str:
    """Return YAML text under a comment of one line, if there is one."""
    if not comment:
        return text
    # A file's name may have line breaks, and what follows one would be a part of the YAML.
    return f"# {on_one_line(comment)}\n{text}"


def refuse_links(root: Path, *paths: str) -> None:
    """Raise if a folder of these paths in `root` is a symbolic link. It need not be there.

    Whoever writes, renames or deletes in a folder inside a run or a sweep calls this before: the
    files would be those of somebody else. `root` itself may be a link, as the user named it.

    Raises: CheckpointError.
    """
    for path in paths:
        folder = root
        for part in Path(path).parts:
            folder /= part
            if folder.is_symlink():
                raise CheckpointError(
                    Problem(
                        "a symbolic link in place of a folder",
                        str(folder),
                        expected="a folder, or nothing",
                        remedy="the directory that it belongs to; only the one that is named on "
                        "the command line may be a link",
                        id="K7",
                    )
                )


def make_numbered(folder: Path) -> Path:
    """Make a folder, with a number behind its name if that is taken, and return its path.

    Each of several processes that want the same name at once gets a folder of its own. One that is
    there is never used, not even if it is empty: it may be that of a process which has just begun.

    Raises: OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder
    number = 1
    while True:
        # Only one process can make it; to ask first whether it is there would not tell which.
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            path = folder.with_name(f"{folder.name}-{number}")
        else:
            return path


def fsync_folder(folder: Path) -> None:
    """Make the names in the folder survive a power cut. Raises: OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def flush_to_disk(descriptor: int) -> None:
    """Make what was written to a file or folder survive a power cut. Raises: OSError."""
    # On macOS fsync leaves the data in the disk's own cache; this call empties that, too (man 2
    # fsync). Not every file system there has it.
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:
        try:
            fcntl.fcntl(descriptor, full_sync)
        except OSError:
            pass
        else:
            return
    os.fsync(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete the temporary files of killed processes. Only the owner of the folder may do so."""
    # A link is removed, not followed; a folder of that name is not ours.
    for path in folder.glob(f"{TEMPORARY}*"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def walk(folder: Path, closed: list[OSError]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder below `folder`, itself first, and the names of its folders and files.

    The caller may take names out of the folders: those are not entered. Links are not followed.
    Why a folder could not be looked into is appended to `closed`.

    Raises: OSError if `folder` itself cannot be looked into.
    """
    # os.walk calls itself for each level on Python 3.11, and ends at a thousand.
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    names = folders if entry.is_dir(follow_symlinks=False) else files
                    names.append(entry.name)
            # The names may be read without the right to what they stand for.
            os.stat(os.path.join(path, os.curdir))  # noqa: PTH116, PTH118  # Path drops the dot
        except OSError as error:
            if path == folder:
                raise
            closed.append(error)
            continue

        yield path, folders, files
        waiting += [path / name for name in sorted(folders, reverse=True)]


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
            raise _limit_reached(what, str(path)) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            space = _space(path, needed)
            remedy = "free some space; what was saved before is unharmed"
        else:
            space = ""
            remedy = "another folder; what was saved before is unharmed"
        raise WriteError(Problem(what, str(path), found=space, remedy=remedy, id="R9")) from None


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
        return _limit_reached(f"{reason}: {where:.60}...", "", "a shorter path")
    if error.errno in _LIMITS:
        return _limit_reached(reason, where)
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


def _limit_reached(
    what: str, where: str, remedy: str = "ulimit -n, or a shorter path"
) -> MachineError:
    open_files = os.sysconf("SC_OPEN_MAX")
    name_bytes = os.pathconf("/", "PC_NAME_MAX")
    return MachineError(
        Problem(
            what,
            where,
            expected=f"at most {open_files:,} open files, names of {name_bytes} bytes",
            remedy=remedy,
            id="R30",
        )
    )


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


def temporary_path(path: Path) -> Path:
    """Return another name in the folder of `path`, for a file that will be renamed to `path`."""
    # Nobody can guess it, and so put a link there that the file would be written through.
    # Processes on other hosts may have the same number.
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
