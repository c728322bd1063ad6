"""Splits the lines of a table into the cells of its rows.

A row is a line, unless a quoted cell extends over several lines.
"""

import csv
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import NamedTuple

from rnncls.data.files.lines import Lines
from rnncls.errors import Problem

# What may stand between the columns of a table, by its name in a config. The comma is first: a
# header row that can be read with commas always was.
SEPARATORS = {",": ",", ";": ";", "tab": "\t", "|": "|"}

# Before the newline of a line, where it belongs to the end of the line, but for a quoted cell.
_RETURN = "\r"

MOST_LINES_OF_ROW = 1_000

# Lines below an open quote are read again. Without a bound, a file made for it would take days.
# A line takes its time, however short it is.
MOST_READ_AGAIN = 2**30  # characters
_LINE = 512  # characters that take as long as a line without any

# Python's own limit of 128 KiB per cell would refuse long sequences. A row has a bound of its own.
_NO_LIMIT = 2**31 - 1


class Span(NamedTuple):
    """The lines of a row that has several of them, or that cannot be read."""

    texts: list[str]
    last_line: int
    error: str = ""  # in the words of csv
    is_open: bool = False  # whether it has a quote without a second one
    reached_end: bool = False  # of the file


SplitLines = Iterator[tuple[int, list[str], Span | None]]  # first line, cells, lines if need be


class TooManyOpenQuotes(Exception):
    """Lines were read again too often."""


def parsed_rows(
    lines: Iterable[str], delimiter: str, quoting: str = "standard"
) -> Iterator[list[str]]:
    """Yield the rows of a piece of a table, up to the first that is none or is cut off."""
    if quoting == "none":
        yield from (line.split(delimiter) if line else [] for line in lines)
        return
    csv.field_size_limit(_NO_LIMIT)
    with suppress(csv.Error):
        yield from csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)


def plain_rows(lines: Lines, delimiter: str, most_columns: int) -> SplitLines:
    """Yield each line as a row whose quotes are characters like any other.

    A row with more cells than `most_columns` has one more: the last one holds the rest.
    """
    for number, text in lines:
        text = text.removesuffix(_RETURN)
        yield number, text.split(delimiter, most_columns) if text else [], None


def quoted_rows(lines: Lines, delimiter: str, most_bytes: int) -> SplitLines:
    """Yield each row; a quoted cell may extend over several lines.

    A row that cannot be read has no cells, and its span says why. It takes one line: those below
    are read again, as rows of their own. So it is with a row of another width than the first, if
    each of its lines has the width of the first: there, its quotes most likely are characters.

    Raises: TooManyOpenQuotes for a file in which that happens very often.
    """
    given_back: deque[tuple[int, str]] = deque()
    reader = _RowReader(lines, given_back, delimiter, most_bytes)
    width = 0  # of the first row
    while True:
        line = given_back.popleft() if given_back else next(lines, None)
        if line is None:
            return
        number, text = line

        # Most lines have no quote, and this is much faster than csv.
        if '"' not in text:
            text = text.removesuffix(_RETURN)
            cells = text.split(delimiter) if text else []
            span = None
        else:
            cells, span = reader.row_of(number, text, width)
        width = width or len(cells)
        yield number, cells, span
        # A large row is not kept while the next one is read.
        del line, text, cells, span


class _RowReader:
    """Reads rows with quotes, each from its first line and as many of those below as it takes."""

    def __init__(
        self, lines: Lines, given_back: deque[tuple[int, str]], delimiter: str, most_bytes: int
    ) -> None:
        self.lines = lines
        self.given_back = given_back
        self.delimiter = delimiter
        self.most_bytes = most_bytes
        self.first: str | None = None  # line of the row that csv has not taken yet
        self.below: list[tuple[int, str]] = []  # the lines of the row under it
        self.reached_end = False
        self.num_read_again = 0  # characters
        csv.field_size_limit(_NO_LIMIT)
        self._begin()

    def _begin(self) -> None:
        # csv asks for a line when it needs one: it takes no more than those of the row.
        self.reader = csv.reader(self._texts(), delimiter=self.delimiter, strict=True)

    def _texts(self) -> Iterator[str]:
        size = 0
        while True:
            text = self.first
            if text is not None:
                self.first = None
                size = len(text)
                yield text + "\n"
                continue

            # Within a quoted cell.
            line = self.given_back.popleft() if self.given_back else next(self.lines, None)
            if line is None:
                self.reached_end = True
                return
            self.below.append(line)
            size += len(line[1].encode(errors="surrogatepass")) + 1
            if len(self.below) >= MOST_LINES_OF_ROW or size > self.most_bytes:
                return
            yield line[1] + "\n"

    def row_of(self, number: int, text: str, width: int) -> tuple[list[str], Span | None]:
        """Return the cells of the row that begins with a line, and its lines if need be."""
        self.first = text
        error = ""
        try:
            cells: list[str] = next(self.reader)
            if not self.below:
                return cells, None
        except csv.Error as problem:
            error = str(problem)
            cells = []

        texts = [line.removesuffix(_RETURN) for line in (text, *(line for _, line in self.below))]
        last_line = self.below[-1][0] if self.below else number
        # A line that could not be decoded never came here. What is left of the row is not the row.
        if not error and last_line - number != len(self.below):
            error = "a line of it cannot be read"
        width = width or len(cells)
        if not error and len(cells) != width and have_width(texts, self.delimiter, width):
            error = f"{len(cells)} columns if its quotes belong together, {width} if they do not"

        span = Span(texts, last_line, error, "end of data" in error, self.reached_end)
        if error:
            cells = []
            self._give_back()
        self.below.clear()
        return cells, span

    def _give_back(self) -> None:
        self.given_back.extendleft(reversed(self.below))
        self.reached_end = False
        self._begin()
        self.num_read_again += sum(len(text) + _LINE for _, text in self.below)
        if self.num_read_again > MOST_READ_AGAIN:
            raise TooManyOpenQuotes


def one_or_several(where: str, first: int, last: int) -> Problem:
    """Return the problem of lines that can be read as one row, and as a row each."""
    return Problem(
        "one row with a quoted cell, or rows with a quote each",
        where,
        expected="a quote that closes in its own line, or data.quoting",
        found=f"lines {first} to {last}, which can be read as both",
        remedy="data.quoting=standard for one row, data.quoting=none for several",
        id="D14",
    )


def have_width(texts: list[str], delimiter: str, width: int) -> bool:
    """Return whether each of the lines has so many columns if quotes are characters."""
    return all(text.count(delimiter) == width - 1 for text in texts)
