"""Read the sequences that `rnncls predict` is given: arguments, files and pipes.

Each source is a few groups of `Row`s. A file is one group. A pipe is a group for each time that
something comes through it, so that every group can be answered before the next one is waited for.
"""

import os
import select
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

from rnncls.data.cells import label_of, sequence_of
from rnncls.data.files.bad_rows import BadRows, without_keys
from rnncls.data.files.dialect import Dialect, sniff
from rnncls.data.files.lines import MAX_LINE_BYTES, decode_line, long_line
from rnncls.data.files.rows import read_rows
from rnncls.errors import DataError, Problem, RnnclsError
from rnncls.predict.predictor import CHUNK, Label, Predictor, encode

READ_BYTES = 2**16  # as much as a pipe holds
CHUNK_TOKENS = 2**22  # of long sequences, fewer than CHUNK are predicted together

NumberedLines = Iterable[tuple[str | bytes, int]]  # each line with its number, from 1


class Row(NamedTuple):
    """One good sequence to predict."""

    line: int  # where it came from, counted from 1
    ids: list[int]
    sequence: Any  # as it was given: text, or a list of tokens
    true: Label | None = None  # its label, if the file says it


def rows_of_file(predictor: Predictor, path: str | Path, bad: BadRows) -> Iterator[Row]:
    """Yield the sequences of a JSONL, CSV or TSV file, with their labels where it has any.

    The fields are named as in training. Bad rows go to `bad`.

    Raises: DataError if the file cannot be read. Its remedies name no config key: the run's own
    config says what its fields are called.
    """
    try:
        yield from _rows_of_file(predictor, path, bad)
    except DataError as error:
        names = '", "'.join(predictor.data.sequence_fields)
        remedy = f'call the column "{names}", as in training'
        raise without_keys(error, remedy) from None


def _rows_of_file(predictor: Predictor, path: str | Path, bad: BadRows) -> Iterator[Row]:
    # Neither the format nor the separator of this file need be that of the training file.
    data = predictor.data
    dialect = sniff(path, Dialect(quoting="standard"), list(data.sequence_fields))
    known = {str(label): label for label in predictor.labels}

    # A table needs no column of labels.
    for line, fields in read_rows(path, dialect, list(data.sequence_fields), bad):
        sequence = sequence_of(fields, data.sequence_fields)
        if sequence is None:
            bad.add_problem(line, _no_sequence(data.sequence_fields, fields))
            continue
        ids = encode(predictor, sequence)
        if isinstance(ids, Problem):
            bad.add_problem(line, ids)
            continue

        # A label of another kind, such as null, is no label to compare with.
        label = fields.get(data.label_field)
        text = label_of(label)
        true = None if text is None else known.get(text, known.get(text.strip(), label))
        yield Row(line, ids, sequence, true)


def _no_sequence(names: tuple[str, ...], fields: dict[str, Any]) -> Problem:
    """Return the problem of a row without the field that training read, or with null in it."""
    if any(name in fields for name in names):
        found = "null"
    else:
        found = f"the fields {', '.join(fields)}" if fields else "no fields"
    named = ", ".join(f'"{name}"' for name in names)
    expected = f"a list or a text in {named}, as in the training data"
    return Problem("no sequence", expected=expected, found=found, id="D14")


def rows_of_lines(predictor: Predictor, lines: NumberedLines, bad: BadRows) -> Iterator[Row]:
    """Yield one sequence per (line, number); bytes are lines of UTF-8. Bad ones go to `bad`."""
    for line, number in lines:
        # Text from the command line has been decoded already.
        text = decode_line(line, is_first=number == 1) if isinstance(line, bytes) else line
        ids = text if isinstance(text, Problem) else encode(predictor, text)
        if isinstance(ids, Problem):
            bad.add_problem(number, replace(ids, remedy=""))
        else:
            yield Row(number, ids, text)


def numbered_lines(file: IO[bytes], name: str) -> NumberedLines:
    """Yield the lines of a file with their numbers.

    Raises: DataError for a line of more than MAX_LINE_BYTES, or if the file cannot be read.
    """
    for number in count(1):
        # One byte more than allowed tells a line that is too long from one that just fits.
        line = _read(name, file.readline, MAX_LINE_BYTES + 1)
        if len(line) > MAX_LINE_BYTES:
            raise long_line(name, number)
        if not line:
            return
        yield line, number


def line_groups(file: IO[bytes], name: str) -> Iterator[NumberedLines]:
    """Yield the lines of a stream with their numbers, in groups, so that none waits for another.

    Of a pipe or a terminal, a group is what is there: at least one line, and not many more than
    CHUNK. A regular file is one group.

    Raises: DataError for a line of more than MAX_LINE_BYTES, once the lines before it were given,
    or if the stream cannot be read.
    """
    # Nobody waits for the lines of a file, and they are read faster so.
    if _never_waits(file):
        yield numbered_lines(file, name)
        return

    numbers = count(1)
    lines: list[bytes] = []  # of the next group
    size = 0  # bytes read for it
    line = bytearray()  # whose end has not come yet
    read: Callable[[int], bytes] = file.read1  # type: ignore[attr-defined]  # of a BufferedReader

    # read1() waits for the first byte alone, and returns all that is there.
    while block := _read(name, read, READ_BYTES):
        first, *others = block.split(b"\n")
        line += first
        if len(line) > MAX_LINE_BYTES:
            yield list(zip(lines, numbers, strict=False))
            raise long_line(name, next(numbers))

        if others:
            lines += [bytes(line), *others[:-1]]
            line = bytearray(others[-1])

        # A pipe that is written fast is read in large groups, which take less time in all.
        size += len(block)
        is_full = len(lines) >= CHUNK or size >= MAX_LINE_BYTES
        if lines and (is_full or not _has_more(file)):
            yield list(zip(lines, numbers, strict=False))
            lines = []
            size = 0

    # The last line may have no end.
    if line:
        lines.append(bytes(line))
    yield list(zip(lines, numbers, strict=False))


def _read(name: str, read: Callable[[int], bytes], most: int) -> bytes:
    try:
        return read(most)
    except OSError as error:
        raise DataError(Problem(f"cannot read: {error.strerror}", name, id="D1")) from None


def _never_waits(file: IO[bytes]) -> bool:
    """Return whether all that there will be is there already, as in a regular file."""
    try:
        return stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    except OSError:  # a stream in memory has no descriptor
        return True


def _has_more(file: IO[bytes]) -> bool:
    """Return whether more of a pipe, or its end, can be read without waiting."""
    ready, _, _ = select.select([file], [], [], 0)
    return bool(ready)


def chunks_of(groups: Iterable[Iterable[Row]]) -> Iterator[list[Row]]:
    """Yield the rows of each group, at most CHUNK and not many more than CHUNK_TOKENS at a time.

    An error of the groups comes after the rows before it: what is answered does not depend on how
    many lines came through a pipe together.
    """
    for group in groups:
        chunk: list[Row] = []
        num_tokens = 0
        try:
            for row in group:
                chunk.append(row)
                num_tokens += len(row.ids)
                if len(chunk) == CHUNK or num_tokens >= CHUNK_TOKENS:
                    yield chunk
                    chunk = []
                    num_tokens = 0
        except RnnclsError:
            if chunk:
                yield chunk
            raise
        if chunk:
            yield chunk
