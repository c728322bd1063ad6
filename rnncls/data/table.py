"""Reads the user's files into flat arrays: tokens end to end, where each row ends, labels.

One pass numbers tokens and labels in the order in which they first occur, and hashes each sequence.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rnncls.config import FilesConfig
from rnncls.data.files.bad_rows import bad_rows_of
from rnncls.data.files.dialect import described, dialect_of, is_remarkable
from rnncls.data.files.opening import ReportBytes
from rnncls.data.files.places import named
from rnncls.data.files.sniffing import sniff
from rnncls.data.records import read_records
from rnncls.data.vocabulary import cut, truncate
from rnncls.errors import DataError, Problem, on_one_line
from rnncls.system.rows import shortened

# What the texts of all different tokens may take in memory, and so those of the labels; with every
# number of them in the rows, a little more, and for tokens with every row, too. Ten million short
# messages have about eight million different words, most of them names, links and typing errors.
MOST_TEXT_BYTES = 2**28
BYTES_PER_NUMBER = 4
BYTES_PER_ROW = 32
_ENTRY_BYTES = 112  # of a dict, and the number in it

Array = np.ndarray[Any, Any]  # one-dimensional

MOST_OF_NAME = 60  # characters, beside a progress bar


@dataclass
class Noticed:
    """What a user should know of the files of a split, noticed while they were read."""

    # How each file was read, in words, if that is worth a word.
    read_as: dict[str, str] = field(default_factory=dict)

    dropped: int = 0  # empty sequences
    truncated: int = 0  # sequences
    skipped: int = 0  # bad rows
    spaced_labels: int = 0  # labels with white space around them
    like_lists: int = 0  # texts that look like lists of numbers or of quoted texts
    first_like_list: str = ""  # its place


@dataclass
class Table:
    """The rows of one file, or of several that are read as one.

    Tokens and labels are numbered in the order in which they first occur.
    """

    paths: tuple[str, ...]

    # For each file, the number of rows when its last one had been read.
    ends: list[int] = field(default_factory=list)

    # Arrays grow like lists, hold 4 or 8 bytes a number, and NumPy reads them without a copy.
    # The tokens of all rows, or the words of which subwords are parts, stand end to end; `lengths`
    # says where each row ends.
    tokens: array[int] = field(default_factory=lambda: array("i"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    lines: array[int] = field(default_factory=lambda: array("i"))

    # A hash of each sequence as it was before truncation.
    hashes: array[int] = field(default_factory=lambda: array("Q"))

    # The label of the prefix that ends at each token, end to end like `tokens`; None where no field
    # of them was read.
    prefix_labels: array[int] | None = None

    noticed: Noticed = field(default_factory=Noticed)
    is_train_file: bool = False

    @property
    def where(self) -> str:
        """The files, as messages name them."""
        return named(self.paths)

    @property
    def file_numbers(self) -> Array:
        """For each row, the number of its file in `paths`, (R,) int32."""
        # Not kept with each row: rows come file after file.
        counts = np.diff(self.ends, prepend=0)
        return np.repeat(np.arange(len(self.ends), dtype=np.int32), counts)

    def place(self, row: int) -> str:
        """Return `file:line` of a row."""
        return f"{self.paths[bisect_right(self.ends, row)]}:{self.lines[row]}"


@dataclass(frozen=True)
class SplitRows:
    """The rows of one split: those of a table that `chosen` marks."""

    table: Table
    chosen: Array  # bool, one for each row of the table

    @property
    def tokens(self) -> Array:
        """Numbers of the tokens, end to end."""
        return self._of_tokens(self.table.tokens)

    @property
    def prefix_labels(self) -> Array | None:
        """Numbers of the labels of the prefixes that end at each token, None if there are none."""
        numbers = self.table.prefix_labels
        return None if numbers is None else self._of_tokens(numbers)

    def _of_tokens(self, of_table: array[int]) -> Array:
        """Return what the tokens of the rows have, of an array of what each token has."""
        numbers = np.frombuffer(of_table, dtype=np.int32)
        # Most files are one split as a whole, and the tokens are the largest array: no copy then.
        if self.chosen.all():
            return numbers

        # A row is chosen with all of its tokens.
        lengths = np.frombuffer(self.table.lengths, dtype=np.int64)
        of_rows: Array = numbers[np.repeat(self.chosen, lengths)]
        return of_rows

    @property
    def lengths(self) -> Array:
        return np.frombuffer(self.table.lengths, dtype=np.int64)[self.chosen]

    @property
    def labels(self) -> Array:
        """Numbers of the labels."""
        return np.frombuffer(self.table.labels, dtype=np.int32)[self.chosen]

    @property
    def hashes(self) -> Array:
        return np.frombuffer(self.table.hashes, dtype=np.uint64)[self.chosen]

    @property
    def lines(self) -> Array:
        """Line of each row in its file."""
        return np.frombuffer(self.table.lines, dtype=np.int32)[self.chosen]

    @property
    def file_numbers(self) -> Array:
        """Number of each row's file in the table's `paths`."""
        return self.table.file_numbers[self.chosen]

    def place(self, row: int) -> str:
        """Return `file:line` of a row of the split."""
        return self.table.place(int(np.flatnonzero(self.chosen)[row]))


class Numbering(dict[str, int]):
    """Gives each new key the next number.

    Raises: TooManyTexts if all keys take more memory than they may.
    """

    def __init__(self, what: str = "tokens") -> None:
        super().__init__()
        self.what = what  # the keys are, for people
        # What was read, and the bytes that texts may take for each number in it.
        self.kept: list[tuple[array[int], int]] = []
        self.size = 0  # bytes
        self.most = MOST_TEXT_BYTES

    def __missing__(self, key: str) -> int:
        number = len(self)
        self.size += sys.getsizeof(key) + _ENTRY_BYTES
        if self.size > self.most:
            self._allow_more()
        self[key] = number
        return number

    def _allow_more(self) -> None:
        # A large file may have more of them, and is in memory itself.
        self.most = MOST_TEXT_BYTES + sum(len(numbers) * size for numbers, size in self.kept)
        if self.size > self.most:
            raise TooManyTexts


class TooManyTexts(Exception):
    """Texts that differ from row to row would take more memory than the rows."""


def read_table(
    paths: tuple[str, ...],
    data: FilesConfig,
    token_numbers: Numbering,
    label_numbers: Numbering,
    progress: bool,
) -> Table:
    """Read the rows of files and number their tokens and labels. Raises: DataError.

    Where tokens are subwords, these are the whole words of each row: how many subwords they are is
    not known before the training rows are.
    """
    table = Table(paths)
    if data.tokens == "subwords":
        data = data.model_copy(update={"max_length": None})
    if data.prefix_labels_field is not None:
        table.prefix_labels = array("i")
        label_numbers.kept.append((table.prefix_labels, BYTES_PER_NUMBER))
    token_numbers.kept += [(table.tokens, BYTES_PER_NUMBER), (table.lengths, BYTES_PER_ROW)]
    label_numbers.kept.append((table.labels, BYTES_PER_NUMBER))
    with progress_bar(paths, progress) as bar:
        for path in paths:
            try:
                _read_file(path, table, data, token_numbers, label_numbers, bar.update)
            except TooManyTexts:
                raise _too_many_texts(path, table, token_numbers, label_numbers) from None
            table.ends.append(len(table.lengths))
    return table


def _too_many_texts(
    path: str, table: Table, token_numbers: Numbering, label_numbers: Numbering
) -> DataError:
    too_many = next(each for each in (token_numbers, label_numbers) if each.size > each.most)
    count = len(table.lengths)
    label_keys = "data.label_field"
    if table.prefix_labels is not None:
        label_keys += ", data.prefix_labels_field"
    return DataError(
        Problem(
            f"very many different {too_many.what}, or very long ones",
            path,
            expected=f"{too_many.what} that occur again, or that take at most "
            f"{too_many.most:,} bytes in memory",
            found=f"{len(too_many):,} different ones in the first {count:,} sequences",
            remedy="data.tokens" if too_many is token_numbers else label_keys,
            id="D7",
        )
    )


def _read_file(
    path: str,
    table: Table,
    data: FilesConfig,
    token_numbers: Numbering,
    label_numbers: Numbering,
    report_bytes: ReportBytes,
) -> None:
    """Add the rows of a file to the table. Raises: DataError."""
    noticed = table.noticed
    bad = bad_rows_of(path, data.bad)
    num_before = len(table.lengths) + noticed.dropped
    dialect = sniff(path, dialect_of(data), [*data.sequence_fields, data.label_field])
    if is_remarkable(dialect):
        noticed.read_as[path] = described(dialect)

    # Called once for each token of the data: `map` over a bound method is the fastest way.
    number_of = token_numbers.__getitem__
    for record in read_records(path, data, dialect, bad, report_bytes):
        # A number instead of a record is the line of an empty sequence.
        if isinstance(record, int):
            noticed.dropped += 1
            continue

        tokens = truncate(record.tokens, data)
        if isinstance(tokens, Problem):
            bad.add_problem(record.line, tokens)
            continue

        if len(tokens) < len(record.tokens):
            noticed.truncated += 1

        # The hash is of the whole sequence: max_length must not move rows between splits.
        table.hashes.append(hash_of(record.tokens))
        table.tokens.extend(map(number_of, tokens))
        table.lengths.append(len(tokens))
        table.labels.append(label_numbers[record.label])
        table.lines.append(record.line)
        if record.prefix_labels is not None:
            _add_prefix_labels(table, cut(record.prefix_labels, data), label_numbers)
        # A large row is not kept while the next one is read.
        del record, tokens

    # Only after the last row: a user fixes several bad lines at once.
    num_good = len(table.lengths) + noticed.dropped - num_before
    bad.finish(num_good)
    noticed.skipped += bad.count
    noticed.like_lists += bad.num_like_lists
    noticed.first_like_list = noticed.first_like_list or bad.first_like_list


def _add_prefix_labels(table: Table, labels: list[str], label_numbers: Numbering) -> None:
    if table.prefix_labels is not None:
        table.prefix_labels.extend(map(label_numbers.__getitem__, labels))


def progress_bar(paths: tuple[str, ...], progress: bool) -> tqdm[Any]:
    """Return a bar of the bytes of all the files, on stderr if that is a terminal."""
    size = 0
    for path in paths:
        # A missing file is reported when it is opened, with an id: the bar must not fail before.
        with suppress(OSError):
            size += Path(path).stat().st_size

    # disable=None leaves the bar out unless stderr is a terminal.
    disable = None if progress else True
    # A name may be of any length, and steer the terminal.
    name = shortened(named((Path(paths[0]).name, *paths[1:])), MOST_OF_NAME)
    return tqdm(total=size, unit="B", unit_scale=True, desc=on_one_line(name), disable=disable)


def hash_of(tokens: list[str]) -> int:
    """Return 64 bits that depend on the sequence alone: equal sequences stay in one split."""
    # Python's own hash of text differs from process to process; this one never changes.
    text = "\x1f".join(tokens).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
