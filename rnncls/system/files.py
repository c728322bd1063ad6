"""Write files so that after a kill, a full disk or an I/O error, the old or the new one is whole.

The order is: temporary file in the same folder, fsync, rename, fsync of the folder (Pillai et al.
2014, "All File Systems Are Not Created Equal", on what happens without it). A temporary file's name
begins with `TEMPORARY`. Only a kill leaves one behind, and the next owner of the folder removes it.
"""

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rnncls.errors import on_one_line

TEMPORARY = ".tmp-"  # how the names of temporary files begin

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


def temporary_path(path: Path) -> Path:
    """Return another name in the folder of `path`, for a file that will be renamed to `path`."""
    # Nobody can guess it, and so put a link there that the file would be written through.
    # Processes on other hosts may have the same number.
    return path.with_name(f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
