"""Read the sequences that `rnncls predict` is given: arguments, pipes, and lines of text.

Files of data are read in data_files.py.

Each source is a few groups of `Row`s. A file is one group. A pipe is a group for each time that
something comes through it, so that every group can be answered before the next one is waited for.
"""

import io
import os
import select
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from typing import IO, Any, NamedTuple

from rnncls.data.cells import SEPARATOR
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.encodings import ToUtf8
from rnncls.data.files.lines import MAX_LINE_BYTES, decode_line, long_line, skip_line
from rnncls.data.files.lines import text_of as text_of_file
from rnncls.errors import DataError, Problem, RnnclsError
from rnncls.predict.headers import refuse_header
from rnncls.predict.predictor import CHUNK, Label, Predictor, read_tokens
from rnncls.system.rows import text_of

READ_BYTES = 2**16  # as much as a pipe holds
CHUNK_TOKENS = 2**20  # of long sequences, fewer than CHUNK are predicted together

# Each line with its number, from 1. What is wrong with a line that is too long to be kept.
NumberedLines = Iterable[tuple[str | bytes | Problem, int]]

Fields = dict[str, Any]


class Row(NamedTuple):
    """One sequence to predict, or a row that was skipped because its sequence is none."""

    line: int  # where it came from, counted from 1
    number: int  # of the row, from 1: lines may be blank, or a row have several
    ids: list[int]  # [] of a row that was skipped
    sequence: Any  # as it was given: text, or a list of tokens
    fields: Fields  # all that the row has, by column; none if nobody asked for them
    true: Label | None = None  # its label, if the file says it
    tokens: Sequence[str] = ()  # one for each id, as they were given; none if nobody asked for them


def as_given(sequence: Any) -> Any:
    """Return a sequence as its text or its list; of several fields, the text that they make."""
    if isinstance(sequence, tuple):
        texts = ("" if value is None else text_of(as_given(value)) for value in sequence)
        return f" {SEPARATOR} ".join(texts)
    # A single id is a number in JSON.
    return sequence if isinstance(sequence, str | list) else str(sequence)


def rows_of_lines(
    predictor: Predictor, lines: NumberedLines, bad: BadRows, keep_tokens: bool = False
) -> Iterator[Row]:
    """Yield one sequence per (line, number); bytes are lines of UTF-8. Bad ones go to `bad`.

    Those that are text, but no sequence, are yielded as well, without ids.

    Raises: ConfigError if the first line is none of a text, but of a table or of JSONL.
    """
    for line, number in lines:
        # Text from the command line has been decoded already.
        text = decode_line(line, is_first=number == 1) if isinstance(line, bytes) else line
        if isinstance(text, Problem):
            remedy = "one sequence per line" if text.id == "D13" else ""
            bad.add_problem(number, replace(text, remedy=remedy))
            continue

        if number == 1 and isinstance(line, bytes):
            refuse_header(predictor, text, bad.path)
        read = read_tokens(predictor, text)
        fields = {"sequence": text}
        if isinstance(read, Problem):
            bad.add_problem(number, replace(read, remedy=""))
            yield Row(number, number, [], text, fields)
            continue

        tokens = read.names if keep_tokens else ()
        row = Row(number, number, read.ids, text, fields, tokens=tokens)
        # Millions of tokens may not stay here while the row is answered.
        del read, tokens
        yield row


def numbered_lines(
    file: IO[bytes], name: str, encoding: str = "utf-8", most: int = MAX_LINE_BYTES
) -> NumberedLines:
    """Yield the lines of a file in UTF-8, with their numbers, whatever it is packed with.

    `encoding` is that of a file without a mark. Of a line of more than `most` bytes, the problem is
    yielded, and no more of it than `most` bytes is ever in memory.

    Raises: DataError if the file cannot be read.
    """
    # A stream in memory cannot be looked into before it is read.
    is_buffered = isinstance(file, io.BufferedReader)
    whole: Any = file if is_buffered else io.BufferedReader(file)
    source = reading(name, text_of_file, name, whole, encoding)
    for number in count(1):
        # One byte more than allowed tells a line that is too long from one that just fits.
        line = reading(name, source.readline, most + 1)
        if not line:
            return
        if len(line) <= most:
            yield line, number
            continue

        yield long_line(most), number
        reading(name, skip_line, source, line)


def line_groups(file: IO[bytes], name: str, most: int = MAX_LINE_BYTES) -> Iterator[NumberedLines]:
    """Yield the lines of a stream with their numbers, in groups, so that none waits for another.

    Of a pipe or a terminal, a group is what is there: at least one line, and not many more than
    CHUNK. A regular file is one group. Text is UTF-8 unless it begins with another mark.

    Of a line of more than `most` bytes, the problem is given as soon as it is that long.

    Raises: DataError if the stream cannot be read.
    """
    # Nobody waits for the lines of a file, and they are read faster so.
    if size_of_file(file) is not None:
        yield numbered_lines(file, name, most=most)
        return

    numbers = count(1)
    lines: list[bytes] = []  # of the next group
    size = 0  # bytes read for it
    line = bytearray()  # whose end has not come yet
    is_rest = False  # whether that line was given already, because it is too long
    read: Callable[[int], bytes] = file.read1  # type: ignore[attr-defined]  # of a BufferedReader

    # read1() waits for the first byte alone, and returns all that is there.
    to_utf_8 = ToUtf8(name, "utf-8")
    while block := reading(name, read, READ_BYTES):
        first, *others = to_utf_8.feed(block).split(b"\n")
        if not is_rest:
            line += first
        if others:
            lines += others[:-1] if is_rest else [bytes(line), *others[:-1]]
            line = bytearray(others[-1])
            is_rest = False
        # Its end may never come.
        elif len(line) > most:
            lines.append(bytes(line))
            line.clear()
            is_rest = True

        # A pipe that is written fast is read in large groups, which take less time in all.
        size += len(block)
        is_full = len(lines) >= CHUNK or size >= MAX_LINE_BYTES or is_rest
        if lines and (is_full or not _has_more(file)):
            yield _numbered(lines, numbers, most)
            lines = []
            size = 0

    # The last line may have no end.
    line += to_utf_8.feed(b"", is_last=True)
    if line and not is_rest:
        lines.append(bytes(line))
    yield _numbered(lines, numbers, most)


def first_line(file: IO[bytes], name: str, most: int = MAX_LINE_BYTES) -> str:
    """Return the first line of a stream without its end; nothing after it is waited for.

    Raises: DataError if it cannot be read, has more than `most` bytes or is no text.
    """
    for lines in line_groups(file, name, most):
        for line, _ in lines:
            text = decode_line(line, is_first=True) if isinstance(line, bytes) else line
            if isinstance(text, Problem):
                raise DataError(replace(text, where=name, remedy="one sequence in its first line"))
            return text
    return ""


def _numbered(lines: list[bytes], numbers: Iterator[int], most: int) -> NumberedLines:
    """Return the lines with their numbers, and a problem in place of one that is too long."""
    short = [line if len(line) <= most else long_line(most) for line in lines]
    return list(zip(short, numbers, strict=False))


def reading(name: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """Call what reads a stream. Raises: DataError, which names the stream, for an OSError."""
    try:
        return read(*arguments)
    except OSError as error:
        raise DataError(Problem(f"cannot read: {error.strerror}", name, id="D1")) from None


def size_of_file(file: IO[bytes]) -> int | None:
    """Return the bytes of a file in which all that there will be is there already.

    None for a pipe or a terminal, which may have any number of them. 0 for a stream in memory.
    """
    try:
        status = os.fstat(file.fileno())
    except OSError:  # a stream in memory has no descriptor
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _has_more(file: IO[bytes]) -> bool:
    """Return whether more of a pipe, or its end, can be read without waiting."""
    ready, _, _ = select.select([file], [], [], 0)
    return bool(ready)


def chunks_of(
    groups: Iterable[Iterable[Row]], of_answer: int = 0, of_token: int = 1
) -> Iterator[list[Row]]:
    """Yield the rows of each group, at most CHUNK and not many more than CHUNK_TOKENS at a time.

    The answer to a row takes as much memory as `of_answer` tokens. Each of its own tokens takes,
    with what is answered after it, as much as `of_token`.

    An error of the groups comes after the rows before it: what is answered does not depend on how
    many lines came through a pipe together.
    """
    for group in groups:
        chunk: list[Row] = []
        size = 0
        try:
            for row in group:
                chunk.append(row)
                size += of_token * len(row.ids) + of_answer
                if row.fields:
                    size += _size_of(row.fields)
                if len(chunk) == CHUNK or size >= CHUNK_TOKENS:
                    yield chunk
                    chunk = []
                    size = 0
        except RnnclsError:
            if chunk:
                yield chunk
            raise
        if chunk:
            yield chunk


def _size_of(fields: Fields) -> int:
    """Return about how many tokens take as much memory as the fields of a row."""
    # A token has an id and more, and takes some ten times as much as a character.
    size = 0
    for value in fields.values():
        if isinstance(value, str):
            size += len(value)
        elif isinstance(value, list | dict):
            # The whole of what is nested; of a list of tokens, their number says enough.
            is_flat = isinstance(value, list) and not isinstance(next(iter(value), 0), list | dict)
            size += 8 * len(value) if is_flat else len(str(value))
    return size // 8
