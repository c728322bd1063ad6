"""Read the sequences that `rnncls predict` is given: arguments, files and pipes.

Each source is a few groups of `Row`s. A file is one group. A pipe is a group for each time that
something comes through it, so that every group can be answered before the next one is waited for.
"""

import os
import select
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.cells import is_label, sequence_of
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import dialect_of, sniff
from rnncls.data.files.lines import MAX_LINE_BYTES, decode_line, long_line
from rnncls.data.files.rows import read_rows
from rnncls.data.new_files import as_new_file, with_options
from rnncls.errors import DataError, Problem, RnnclsError, printable
from rnncls.predict.headers import refuse_header, similar_field
from rnncls.predict.predictor import CHUNK, Label, Predictor, encode

MOST_SKIPPED_SHOWN = 100  # the others are counted

READ_BYTES = 2**16  # as much as a pipe holds
CHUNK_TOKENS = 2**22  # of long sequences, fewer than CHUNK are predicted together

NumberedLines = Iterable[tuple[str | bytes, int]]  # each line with its number, from 1


Fields = dict[str, Any]

NO_FIELDS: Fields = {}


class Row(NamedTuple):
    """One sequence to predict, or a row that was skipped because its sequence is none."""

    line: int  # where it came from, counted from 1
    number: int  # of the row, from 1: lines may be blank, or a row have several
    ids: list[int]  # [] of a row that was skipped
    sequence: Any  # as it was given: text, or a list of tokens
    fields: Fields  # all that the row has, by column; none if nobody asked for them
    true: Label | None = None  # its label, if the file says it


class Skipping(BadRows):
    """Reports each bad row on stderr, or raises DataError at the first one if `stop`."""

    remedy = "--bad skip"

    def __init__(self, path: str | Path, stop: bool) -> None:
        super().__init__(path)
        self.stop = stop

    def note(self, problem: Problem) -> None:
        """Report one bad row. Raises: DataError if `stop`."""
        if self.stop:
            raise DataError(problem)
        if self.count > MOST_SKIPPED_SHOWN:
            return

        # Values from a file are shown, so control characters are escaped.
        detail = f": {problem.found}" if problem.found else ""
        message = f"rnncls: skipped {problem.where}: {problem.what}{detail}"
        print(printable(message), file=sys.stderr)

    def finish(self, num_predicted: int) -> None:
        """Report how many rows were skipped. Raises: DataError if there was no good one."""
        if not self.count:
            return

        # Of all skipped rows, also those that were not shown.
        total = self.count + num_predicted
        print(f"rnncls: skipped {self.count:,} of {total:,} sequences", file=sys.stderr)
        if not num_predicted:
            raise DataError(Problem("0 sequences to predict", str(self.path), id="D2"))


def rows_of_file(
    predictor: Predictor,
    path: str | Path,
    bad: BadRows,
    overrides: Sequence[str] = (),
    keep_fields: bool = False,
) -> Iterator[Row]:
    """Yield the sequences of a file of any format, with their labels where it has any.

    The fields are named as in training, but for what `overrides` say. Bad rows go to `bad`; with
    `keep_fields`, those of which only the sequence is bad are yielded as well, without ids.

    Raises: DataError if the file cannot be read. Its remedies name options: the run's own config
    says what its fields are called. ConfigError for bad overrides.
    """
    data = as_new_file(predictor.data, path, overrides)
    try:
        yield from _rows_of_file(predictor, path, data, bad, keep_fields)
    except DataError as error:
        name = data.sequence_fields[0]
        remedy = f'--sequence-field NAME, or call the column "{name}", as in training'
        raise with_options(error, remedy, has_bad=True) from None


def _rows_of_file(
    predictor: Predictor, path: str | Path, data: FilesConfig, bad: BadRows, keep_fields: bool
) -> Iterator[Row]:
    names = data.sequence_fields
    dialect = sniff(path, dialect_of(data), list(names))
    known = {str(label): label for label in predictor.labels}

    # Rows that cannot be read at all are never seen here, but are counted in `bad`, and are rows of
    # the file all the same. Those whose sequence is bad are seen and counted.
    num_seen = 0
    num_bad = 0

    # A table needs no column of labels.
    for line, fields in read_rows(path, dialect, list(names), bad):
        num_seen += 1
        number = num_seen + bad.count - num_bad
        kept = fields if keep_fields else NO_FIELDS

        sequence = sequence_of(fields, names)
        ids = _no_sequence(names, fields) if sequence is None else encode(predictor, sequence)
        if isinstance(ids, Problem):
            num_bad += 1
            bad.add_problem(line, ids)
            if keep_fields:
                yield Row(line, number, [], sequence, kept)
            continue

        # A label of another kind, such as null, is no label to compare with.
        label = fields.get(data.label_field)
        true = known.get(str(label), label) if is_label(label) else None
        yield Row(line, number, ids, sequence, kept, true)


def _no_sequence(names: tuple[str, ...], fields: Fields) -> Problem:
    """Return the problem of a row without the field that training read, or with null in it."""
    wanted = " or ".join(f'"{name}"' for name in names)
    expected = f"a list or a text in {wanted}, as in the training data"
    if any(name in fields for name in names):
        return Problem("no sequence", expected=expected, found="null", id="D14")

    found = f"the fields {', '.join(fields)}" if fields else "no fields"
    remedy = ""
    if fields:
        remedy = f"--sequence-field {similar_field(names[0], fields) or 'NAME'}, or --bad skip"
    return Problem("no sequence", expected=expected, found=found, remedy=remedy, id="D14")


def rows_of_lines(predictor: Predictor, lines: NumberedLines, bad: BadRows) -> Iterator[Row]:
    """Yield one sequence per (line, number); bytes are lines of UTF-8. Bad ones go to `bad`.

    Those that are text, but no sequence, are yielded as well, without ids.

    Raises: ConfigError if the first line is none of a text, but of a table or of JSONL.
    """
    for line, number in lines:
        # Text from the command line has been decoded already.
        text = decode_line(line, is_first=number == 1) if isinstance(line, bytes) else line
        if isinstance(text, Problem):
            bad.add_problem(number, replace(text, remedy=""))
            continue

        if number == 1 and isinstance(line, bytes):
            refuse_header(predictor, text, bad.path)
        ids = encode(predictor, text)
        if isinstance(ids, Problem):
            bad.add_problem(number, replace(ids, remedy=""))
            ids = []
        yield Row(number, number, ids, text, {"sequence": text})


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
        size = 0
        try:
            for row in group:
                chunk.append(row)
                size += len(row.ids)
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
