"""Reads tables: CSV and TSV, and whatever else separates columns.

No row is taken for a part of another one where it may as well be a row of its own: if a file does
not tell, the row is bad, and the config must.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import Dialect
from rnncls.data.files.headers import bad_columns, many_columns
from rnncls.data.files.json_rows import NumberedRows
from rnncls.data.files.lines import Lines, read_lines
from rnncls.data.files.plausible import Plausible
from rnncls.data.files.splitting import (
    MOST_LINES_OF_ROW,
    SEPARATORS,
    Span,
    SplitLines,
    TooManyOpenQuotes,
    have_width,
    one_or_several,
    plain_rows,
    quoted_rows,
)
from rnncls.errors import DataError, Problem

# Of remedies, where quotes may be meant as text, and where they may be meant as quotes.
AS_TEXT = "data.quoting=none, if quotes are text here"
AS_QUOTES = "data.quoting=standard, if quotes are around cells here"


def table_rows(
    lines: Lines, path: str | Path, fields: list[str], bad: BadRows, dialect: Dialect
) -> NumberedRows:
    """Yield each row of a table by column.

    Raises: DataError if there is no column for a field, or if very many quotes do not close.
    """
    try:
        yield from _table_rows(lines, path, fields, bad, dialect)
    except TooManyOpenQuotes:
        what = "open quotes in very many rows"
        raise DataError(Problem(what, str(path), remedy=AS_TEXT, id="D14")) from None


def _table_rows(
    lines: Lines, path: str | Path, fields: list[str], bad: BadRows, dialect: Dialect
) -> NumberedRows:
    rows = _split(lines, dialect)
    # Blank lines above the header mean as little as those below it.
    first = next((row for row in rows if row[1] or row[2]), None)
    # An empty file has no rows, and is reported where its sequences are missed.
    if first is None:
        return

    line, header, span = first
    where = f"{path}:{line}"
    if span is not None and span.error:
        raise DataError(replace(_problem_of(span, line), where=where))
    problem = many_columns(header, dialect.max_columns, where)
    if not dialect.header:
        header = [str(number) for number in range(1, len(header) + 1)]
        rows = chain([first], rows)
    label = dialect.label_in(fields)
    problem = problem or bad_columns(header, fields, label, where, dialect.header)
    if problem is not None:
        raise DataError(problem)

    width = len(header)
    doubts = _Doubts(path, header, fields, dialect)
    for line, cells, span in rows:
        if span is not None and doubts.of(line, span, cells, bad):
            continue
        if len(cells) == width:
            yield line, dict(zip(header, cells, strict=True))
        # A row without cells is a blank line, which is skipped.
        elif cells:
            bad.add_problem(line, _wrong_width(cells, width, bad, dialect))
        # A large row is not kept while the next one is read.
        del cells, span


class _Doubts:
    """Whether rows of several lines are what they seem to be."""

    def __init__(
        self, path: str | Path, header: list[str], fields: list[str], dialect: Dialect
    ) -> None:
        self.path = path
        self.header = header
        self.fields = fields
        self.dialect = dialect
        self.plausible: Plausible | None = None  # made when it is needed, by reading the file

    def of(self, line: int, span: Span, cells: list[str], bad: BadRows) -> bool:
        """Return whether a row was added to `bad`: it cannot be read, or it may be several."""
        if span.error:
            bad.add_problem(line, _problem_of(span, line))
            return True
        if not self.dialect.is_quoting_found or len(cells) != len(self.header):
            return False

        delimiter = SEPARATORS[self.dialect.separator]
        if not have_width(span.texts, delimiter, len(self.header)):
            return False
        if self.plausible is None:
            self.plausible = _plausible(self.path, self.header, self.fields, self.dialect)
        if not self.plausible.are_rows(span.texts, delimiter):
            return False
        _add_doubtful(line, span, bad)
        return True


def _split(lines: Lines, dialect: Dialect) -> SplitLines:
    delimiter = SEPARATORS[dialect.separator]
    if dialect.quoting == "none":
        return plain_rows(lines, delimiter, dialect.max_columns)
    return quoted_rows(lines, delimiter, dialect.max_record_bytes)


def _plausible(
    path: str | Path, header: list[str], fields: list[str], dialect: Dialect
) -> Plausible:
    """Return what the rows of the whole file look like."""

    def rows() -> Iterator[tuple[int, list[str], Span | None]]:
        most = dialect.max_record_bytes
        rows = _split(read_lines(path, BadRows(path), dialect.encoding, most), dialect)
        if dialect.header:
            next(rows, None)
        yield from rows

    return Plausible(rows(), header, dialect.label_in(fields), fields)


def _add_doubtful(line: int, span: Span, bad: BadRows) -> None:
    """Add the lines that may be one row or several: nobody is to lose a row, or to get one."""
    for number in range(line, span.last_line + 1):
        bad.add_problem(number, one_or_several("", line, span.last_line))


def _problem_of(span: Span, line: int) -> Problem:
    """Return the problem of a row that cannot be read."""
    num_below = span.last_line - line
    if span.is_open:
        found = f"the end of the file, {num_below} {'line' if num_below == 1 else 'lines'} below"
        if not span.reached_end:
            found = f"none in {num_below:,} lines below: one cell has at most "
            found += f"{MOST_LINES_OF_ROW:,} lines, and data.max_record_bytes"
        return Problem(
            "an open quote",
            expected="a second quote",
            found=found,
            remedy=f"close it, or double it; or {AS_TEXT}",
            id="D14",
        )

    found = span.error
    if num_below:
        found += f"; the quote that opens in this line closes in line {span.last_line}"
    return Problem(
        "not a row of the table",
        found=found,
        remedy=f"close the quotes, or fix the line; or {AS_TEXT}",
        id="D14",
    )


def _wrong_width(cells: list[str], width: int, bad: BadRows, dialect: Dialect) -> Problem:
    delimiter = SEPARATORS[dialect.separator]
    found = "1 column" if len(cells) == 1 else f"{len(cells):,} columns"
    if len(cells) > dialect.max_columns:
        found = f"more than {dialect.max_columns:,} columns"

    remedy = bad.remedy
    if dialect.quoting == "none":
        if any('"' in cell for cell in cells):
            remedy = f"{remedy}; or {AS_QUOTES}"
    elif len(cells) > width:
        remedy = f"quotes around a text that has {delimiter!r} in it, or fix the line"
    return Problem(
        "wrong number of columns",
        expected="1 column" if width == 1 else f"{width} columns",
        found=found,
        remedy=remedy,
        id="D14",
    )
