"""Opens data files, packed ones too, and knows them by their SHA-256."""

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rnncls.errors import DataError, Problem, require_more_files

# A progress bar does not need more, and asking a file for its position takes a system call.
LINES_PER_REPORT = 1024  # lines between two calls of `report_bytes`

_REMEDY = "the path of a data file"

ReportBytes = Callable[[int], object]  # gets the number of bytes read since its last call


@contextmanager
def opened(path: str | Path) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading bytes; never blocks.

    Raises: DataError if it cannot be opened or is not a regular file; so does reading, if it fails.
    MachineError if no more files can be open.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = f"cannot read the data: {error.strerror}"
        require_more_files(error, what, str(path))
        raise DataError(Problem(what, str(path), remedy=_REMEDY, id="D1")) from None
    # No file has a NUL in its name.
    except ValueError as error:
        what = f"cannot read the data: {error}"
        raise DataError(Problem(what, str(path), remedy=_REMEDY, id="D1")) from None

    # Asked of the open file, not of the path, which could be another file by then.
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        is_folder = stat.S_ISDIR(mode)
        remedy = "one of its files" if is_folder else "a file; a pipe can be saved to one first"
        what = "a folder, not a file" if is_folder else "not a regular file"
        raise DataError(Problem(what, str(path), remedy=remedy, id="D1"))

    with _Bytes(descriptor, path) as raw:
        yield io.BufferedReader(raw)


class _Bytes(io.FileIO):
    """The bytes of a data file. Whoever reads them, a disk that fails is a DataError."""

    def __init__(self, descriptor: int, path: str | Path) -> None:
        super().__init__(descriptor)
        self.path = path

    def readinto(self, buffer: Any) -> int | None:
        try:
            return super().readinto(buffer)
        except OSError as error:
            what = f"cannot read the data: {error.strerror}"
            remedy = "the disk, or a copy of the file"
            raise DataError(Problem(what, str(self.path), remedy=remedy, id="D1")) from None


def fingerprint(path: str | Path) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal. Raises: DataError."""
    with opened(path) as file:
        digest = hashlib.file_digest(file, "sha256")
    return digest.hexdigest()
