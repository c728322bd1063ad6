"""Writing files so that a kill, a full disk or an I/O error at any call leaves the old file or the new one, whole.

The order is: temporary file in the same folder, fsync, rename, fsync of the folder (Pillai et al. 2014, "All File
Systems Are Not Created Equal", on what happens without it). A temporary file's name begins with `.tmp-`; only a kill
leaves one behind, and the next owner of the folder removes it.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rnncls.errors import MachineError, Problem, WriteError

_LIMITS = (errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE)

_NO_LINKS = (
    errno.EPERM,
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EMLINK,
)  # what file systems without links say


def replace(path: Path, content: bytes, durable: bool = True) -> None:
    """All of `content` under `path`, or what was there before. Not `durable`: it need not survive a power cut.

    Raises OSError; the temporary file is gone then.
    """
    temporary = _temporary(path)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_folder(path.parent)


@contextmanager
def new_file(path: Path) -> Iterator[TextIO]:
    """A text file that is written bit by bit and appears under `path` when the body ends without an exception.

    What is there and no plain file (a device, a pipe, a link) stays what it is and is written into.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a directory is there")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        with path.open("w", encoding="utf-8", newline="") as file:
            yield file
        return
    temporary = _temporary(path)
    try:
        with temporary.open("x", encoding="utf-8", newline="") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def link(existing: Path, path: Path) -> None:
    """Make `path` another name of `existing` in the same folder, or a copy where links are refused. Raises OSError."""
    temporary = _temporary(path)
    try:
        os.link(existing, temporary)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        replace(path, existing.read_bytes())
        return
    try:
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)  # renaming onto another link of the same file leaves both
    fsync_folder(path.parent)


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a regular file that is no symbolic link. Raises OSError for anything else; never blocks."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def open_text(path: Path, flags: int) -> TextIO:
    """Open a regular file for writing text, with `flags` beside O_WRONLY. Raises OSError."""
    descriptor = open_regular(path, os.O_WRONLY | flags)
    return os.fdopen(descriptor, "w", encoding="utf-8", newline="")


def read_regular(path: Path, most: int) -> bytes:
    """All of such a file. Raises OSError, also when it has more than `most` bytes."""
    with open(open_regular(path), "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"more than {most:,} bytes")
    return content


def fsync_folder(folder: Path) -> None:
    """Make the folder's entries survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process was writing. Only the owner of the folder may."""
    for path in folder.glob(".tmp-*"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


@contextmanager
def writing(path: Path, what: str = "cannot write", needed: int = 0) -> Iterator[None]:
    """Turns an OSError of the body into a WriteError that names `path`, and the space if that ran out.

    A limit of the machine (open files, length of a name) becomes a MachineError. `needed`: bytes.
    """
    try:
        yield
    except OSError as error:
        what = f"{what}: {error.strerror}"
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG):
            limits = f"at most {os.sysconf('SC_OPEN_MAX'):,} open files, names of {os.pathconf('/', 'PC_NAME_MAX')} bytes"
            raise MachineError(
                Problem(
                    what,
                    str(path),
                    expected=limits,
                    remedy="ulimit -n, or a shorter path",
                    id="R30",
                )
            ) from None
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        found = _space(path, needed) if full else ""
        remedy = (
            "free some space" if full else "another folder"
        ) + "; what was saved before is unharmed"
        raise WriteError(Problem(what, str(path), found=found, remedy=remedy, id="R9")) from None


def free_bytes(path: Path) -> int:
    """Free space where `path` is, or would be; 0 when that cannot be said."""
    existing = next((folder for folder in (path, *path.parents) if folder.exists()), Path("/"))
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return 0


def _space(path: Path, needed: int) -> str:
    wanted = f", {needed:,} needed" if needed else ""
    return f"{free_bytes(path):,} bytes free{wanted}"


def _temporary(path: Path) -> Path:
    return path.with_name(
        f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{path.name}"
    )  # other hosts count alike
