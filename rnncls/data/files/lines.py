"""Reads a text file line by line, whatever it is packed and encoded with."""

import io
from collections.abc import Iterator
from pathlib import Path

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.encodings import (
    BYTE_ORDER_MARK,
    HEAD_BYTES,
    as_utf_8,
    encoding_of,
    undecodable,
)
from rnncls.data.files.formats import refuse_other_kinds
from rnncls.data.files.opening import LINES_PER_REPORT, ReportBytes, opened
from rnncls.data.files.packing import unpacked
from rnncls.errors import Problem

# Only the current line is in memory: this bounds what a file without line ends can take, where no
# `data.max_record_bytes` does.
MAX_LINE_BYTES = 16 * 2**20

# A run of blank lines is passed on so far, and what is left of it is skipped as a whole: a packed
# file can have 2^28 of them in 260 kB. It is as many as a quoted cell may have.
MOST_BLANK_LINES = 1_000

MOST_RECORD_BYTES = 2**30  # the largest value of that key

Lines = Iterator[tuple[int, str]]  # number of the line, from 1, and its text


def read_lines(
    path: str | Path, bad: BadRows, encoding: str = "utf-8", most: int = MAX_LINE_BYTES
) -> Lines:
    """Yield the number and the text of each line of a file, as `lines_of` does.

    Raises: DataError if the file cannot be read any further.
    """
    with opened(path) as file:
        yield from lines_of(path, file, bad, lambda _: None, encoding, most)


def encoding_in(path: str | Path, wanted: str) -> str:
    """Return the encoding of a file, one of ENCODING_NAMES, where a config says `wanted`.

    Raises: DataError if the file cannot be read, or is no text in that encoding.
    """
    with opened(path) as file:
        source = unpacked(path, file)
        return encoding_of(path, source.peek(HEAD_BYTES), wanted)


def text_of(path: object, file: io.BufferedReader, encoding: str) -> io.BufferedReader:
    """Return the text of a file, unpacked and in UTF-8. A mark of UTF-8 stays at its beginning.

    Raises: DataError if it is no text, or cannot be unpacked.
    """
    source = unpacked(path, file)
    refuse_other_kinds(path, source.peek(HEAD_BYTES))
    return as_utf_8(path, source, encoding)


def decode_line(
    content: bytes, is_first: bool, encoding: str = "utf-8", keeps_return: bool = False
) -> str | Problem:
    """Return the text of a line of UTF-8 without its end, or a Problem if it is no text.

    The first line of a file may begin with a byte order mark, which is removed. `encoding` is what
    the line was before it was turned into UTF-8. With `keeps_return`, the end is a newline alone.
    """
    if is_first:
        content = content.removeprefix(BYTE_ORDER_MARK)

    # Exactly one line end: other white space may be a token of the sequence.
    content = content.removesuffix(b"\n")
    if not keeps_return:
        content = content.removesuffix(b"\r")
    try:
        return content.decode()
    except UnicodeDecodeError:
        return undecodable(content, encoding)


def lines_of(
    path: str | Path,
    file: io.BufferedReader,
    bad: BadRows,
    report_bytes: ReportBytes,
    encoding: str = "utf-8",
    most: int = MAX_LINE_BYTES,
    keeps_return: bool = False,
) -> Lines:
    """Yield the number and the text of every line, without its end. U+2028 does not end a line.

    With `keeps_return`, a carriage return before a newline is left in the text: whoever reads a
    table takes it away, unless it stands in a quoted cell.

    A line that is no text, or has more than `most` bytes, is added to `bad`. Of very many blank
    lines, some are left out.

    Raises: DataError if the file cannot be read any further.
    """
    source = text_of(path, file, encoding)
    number = 0
    num_blank = 0  # lines above this one
    reported = 0  # bytes of the file passed to `report_bytes`
    # One byte more than allowed tells a line that is too long from one that just fits.
    while content := source.readline(most + 1):
        number += 1
        if number % LINES_PER_REPORT == 0:
            report_bytes(file.tell() - reported)
            reported = file.tell()

        if len(content) > most:
            bad.add_problem(number, long_line(most))
            skip_line(source, content)
            continue

        text = decode_line(content, number == 1, encoding, keeps_return)
        if isinstance(text, Problem):
            bad.add_problem(number, text)
        else:
            yield number, text

        if text:
            num_blank = 0
        else:
            num_blank += 1
            if num_blank >= MOST_BLANK_LINES:
                number += _skip_blank_lines(source)

        # While the next line is read, this one is not kept: it may be a large one.
        del content, text

    report_bytes(file.tell() - reported)


def skip_line(source: io.BufferedReader, content: bytes) -> None:
    """Read to the end of the line that begins with `content`."""
    while content and not content.endswith(b"\n"):
        content = source.readline(HEAD_BYTES)


def _skip_blank_lines(source: io.BufferedReader) -> int:
    """Read all blank lines that come next, and return how many they are."""
    number = 0
    while block := source.peek(HEAD_BYTES):
        blank = len(block) - len(block.lstrip(b"\n"))
        source.read(blank)
        number += blank
        if blank < len(block):
            break
    return number


def long_line(most: int) -> Problem:
    """Return the problem of a line of more than `most` bytes."""
    return too_long("a very long line", most, "one sequence per line")


def too_long(what: str, most: int, remedy: str) -> Problem:
    """Return the problem of what has more than `most` bytes, with a larger bound as a remedy."""
    larger = min(8 * most, MOST_RECORD_BYTES)
    return Problem(
        what,
        expected=f"at most {most:,} bytes",
        remedy=f"{remedy}; or data.max_record_bytes={larger}",
        id="D13",
    )
