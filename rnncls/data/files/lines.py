"""Reads a text file line by line."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.opening import (
    LINES_PER_REPORT,
    MAX_RATIO,
    RATIO_EVERY,
    RATIO_FROM,
    ReportBytes,
    opened,
)
from rnncls.errors import DataError, Problem

# Only the current line is in memory: this bounds what a file without line ends can take.
MAX_LINE_BYTES = 16 * 2**20

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

Lines = Iterator[tuple[int, str]]  # number of the line, from 1, and its text


def read_lines(path: str | Path, bad: BadRows) -> Lines:
    """Yield the number and the text of each line that is UTF-8; the others are added to `bad`.

    Raises: DataError if the file cannot be read any further.
    """
    with opened(path) as file:
        yield from lines_of(path, file, bad, report_bytes=lambda _: None)


def decode_line(content: bytes, is_first: bool) -> str | Problem:
    """Return the text of a line without its end, or a Problem if it is not UTF-8.

    The first line of a file may begin with a byte order mark, which is removed.
    """
    if is_first:
        content = content.removeprefix(BYTE_ORDER_MARK)

    # Exactly one line end: other white space may be a token of the sequence.
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at offset {error.start} of the line"
        return Problem("not UTF-8", found=found, remedy="save the text as UTF-8", id="D11")


def lines_of(path: str | Path, file: IO[bytes], bad: BadRows, report_bytes: ReportBytes) -> Lines:
    """Yield every line that is UTF-8, without its end. U+2028 does not end a line."""
    # By its first two bytes, because a name may be missing .gz or have it without reason.
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    source: IO[bytes] = gzip.GzipFile(fileobj=file) if is_gzip else file  # type: ignore[assignment]

    number = 0
    unpacked = 0  # bytes
    check_at = RATIO_FROM  # unpacked bytes at which the ratio is checked next
    reported = 0  # bytes of the file passed to `report_bytes`
    try:
        # One byte more than allowed tells a line that is too long from one that just fits.
        while content := source.readline(MAX_LINE_BYTES + 1):
            number += 1
            unpacked += len(content)
            if len(content) > MAX_LINE_BYTES:
                raise long_line(path, number)

            if number % LINES_PER_REPORT == 0:
                report_bytes(file.tell() - reported)
                reported = file.tell()

            # The position in the packed file is that of the unpacked text, give or take a buffer.
            if is_gzip and unpacked > check_at:
                check_at = unpacked + RATIO_EVERY
                if unpacked > MAX_RATIO * file.tell():
                    raise _gzip_error(path, f"it unpacks to more than {MAX_RATIO} times its size")

            text = decode_line(content, is_first=number == 1)
            if isinstance(text, Problem):
                bad.add_problem(number, text)
            else:
                yield number, text
    # EOFError is a gzip file that was cut off.
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _gzip_error(path, str(error)) from None
    except OSError as error:
        what = f"cannot read the data: {error.strerror}"
        raise DataError(Problem(what, f"{path}:{number}", id="D1")) from None

    report_bytes(file.tell() - reported)


def long_line(path: str | Path, number: int) -> DataError:
    """Return the error to raise for a line of more than MAX_LINE_BYTES."""
    expected = f"at most {MAX_LINE_BYTES:,} bytes"
    remedy = "one sequence per line"
    where = f"{path}:{number}"
    return DataError(Problem("a very long line", where, expected=expected, remedy=remedy, id="D13"))


def _gzip_error(path: str | Path, found: str) -> DataError:
    what = "the gzip file is damaged or a bomb"
    expected = "a complete gzip file"
    remedy = "gzip -t, or unpack it yourself"
    return DataError(
        Problem(what, str(path), expected=expected, found=found, remedy=remedy, id="D20")
    )
