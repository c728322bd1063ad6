"""Finds out what quotes are in a table: around cells, or characters like any other."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from rnncls.data.files.dialect import Dialect
from rnncls.data.files.plausible import Plausible
from rnncls.data.files.splitting import (
    SEPARATORS,
    Span,
    SplitLines,
    TooManyOpenQuotes,
    have_width,
    one_or_several,
    quoted_rows,
)
from rnncls.errors import DataError


def quoting_of(
    path: str | Path,
    lines: list[tuple[int, str]],
    is_whole: bool,
    dialect: Dialect,
    fields: Sequence[str],
) -> str:
    """Return whether quotes in a table are around cells (standard) or characters (none).

    What a CSV writer makes speaks for the one: cells in quotes that need them, or all of a column.
    A quote that opens a cell of a line, does not close it, and yet the line has all of the columns,
    speaks for the other. Without either, TSV is taken to have none, because most programs write it
    without; CSV is taken to have them.

    Raises: DataError for a TSV of which nothing tells rows with a quote each from one row.
    """
    usual = "none" if dialect.format == "tsv" else "standard"
    if not any('"' in text for _, text in lines):
        return usual

    delimiter = SEPARATORS[dialect.separator]
    header = lines[0][1].split(delimiter)
    if all(_is_in_quotes(cell) for cell in header):
        return "standard"

    evidence = _evidence(lines, is_whole, delimiter, dialect, fields)
    if usual == "standard":
        # A single open quote is a mistake. Several, and no cell that is closed, are text.
        is_text = evidence.num_broken > 1 and not evidence.num_ragged
        is_quoted = evidence.num_closed or evidence.num_doubtful
        return "none" if is_text and not is_quoted else "standard"
    num_against = evidence.num_broken + evidence.num_doubtful
    if not evidence.is_written:
        # With columns of other names, the names are what is wrong first.
        has_fields = not dialect.header or all(field in header for field in fields)
        if evidence.one_or_several and not num_against and has_fields:
            where = f"{path}:{evidence.one_or_several[0]}"
            raise DataError(one_or_several(where, *evidence.one_or_several))
        return "none"
    return "standard" if num_against < max(1, evidence.num_ragged) else "none"


class _Evidence(NamedTuple):
    """What the quotes of a sample say."""

    num_closed: int  # rows with a cell in quotes
    num_broken: int  # rows that cannot be read if quotes are around cells, but can if they are not
    num_doubtful: int  # rows of several lines that may be rows of their own
    num_ragged: int  # lines of another width than the header if quotes are characters
    is_written: bool  # whether there are cells as a CSV writer writes them
    # First and last line of a row that may be several, none of which looks like one.
    one_or_several: tuple[int, int] | None


def _evidence(
    lines: list[tuple[int, str]],
    is_whole: bool,
    delimiter: str,
    dialect: Dialect,
    fields: Sequence[str],
) -> _Evidence:
    texts = dict(lines)
    rows = list(quoted(lines, delimiter, dialect))
    header = rows[0][1]
    width = lines[0][1].count(delimiter) + 1
    num_ragged = sum(bool(text) and text.count(delimiter) + 1 != width for _, text in lines)
    plausible = Plausible(iter(rows[1:]), header, dialect.label_in(fields), fields)

    counts: Counter[str] = Counter()
    undecided = None
    in_quotes = [0] * width  # cells of each column
    plain = [0] * width
    for number, cells, span in rows[1:]:
        text = texts[number]
        has_width = text.count(delimiter) + 1 == width
        if span is not None and span.error:
            # Where the sample ends, a quote may close below.
            is_cut = span.is_open and span.reached_end and not is_whole
            counts["broken"] += has_width and not is_cut
        elif span is not None:
            kind = _kind_of_span(span, len(cells), delimiter, dialect, plausible)
            counts[kind] += 1
            if kind == "undecided":
                undecided = undecided or (number, span.last_line)
        else:
            counts[_kind_of_line(text, cells, len(header), width, delimiter)] += 1
            if has_width:
                for position, cell in enumerate(text.split(delimiter)):
                    in_quotes[position] += _is_in_quotes(cell)
                    plain[position] += bool(cell) and not _is_in_quotes(cell)

    # Some writers put quotes around each text, others around each text with a comma in it.
    num_closed = counts["closed"] + counts["closed as written"]
    is_written = counts["written"] + counts["closed as written"] > 0
    for position in range(width):
        is_written = is_written or (in_quotes[position] > 1 and not plain[position])
    is_written = is_written or (num_closed > 1 and _only_commas_are_in_quotes(lines[1:], delimiter))
    return _Evidence(
        num_closed, counts["broken"], counts["doubtful"], num_ragged, is_written, undecided
    )


def _kind_of_span(
    span: Span, num_cells: int, delimiter: str, dialect: Dialect, plausible: Plausible
) -> str:
    """Return what a row of several lines says: doubtful, undecided, written, or "" for nothing."""
    is_tsv = dialect.format == "tsv"
    if plausible.are_rows(span.texts, delimiter):
        # Without a row that is a line, there is nothing to compare these lines with.
        return "undecided" if is_tsv and not plausible.has_plain else "doubtful"
    if num_cells != plausible.width:
        return ""
    # In a TSV, lines that have all of the columns are no evidence for one row.
    is_text = is_tsv and have_width(span.texts, delimiter, plausible.width)
    return "undecided" if is_text else "written"


def _kind_of_line(text: str, cells: list[str], num_columns: int, width: int, delimiter: str) -> str:
    """Return what a row of one line says: broken, closed, closed as written, or "" for nothing.

    `width` is that of the header if quotes are characters.
    """
    plain = text.split(delimiter)
    if len(cells) != num_columns:
        return "broken" if len(plain) == width else ""
    if '"' not in text or cells == plain:
        return ""
    is_written = len(plain) != width or any(map(_has_doubled_quotes, plain))
    return "closed as written" if is_written else "closed"


def quoted(lines: list[tuple[int, str]], delimiter: str, dialect: Dialect) -> SplitLines:
    """Yield the rows of the first lines, with quotes around cells, as far as they can be read."""
    try:
        yield from quoted_rows(iter(lines), delimiter, dialect.max_record_bytes)
    except TooManyOpenQuotes:
        return


def _has_doubled_quotes(cell: str) -> bool:
    return _is_in_quotes(cell) and '""' in cell[1:-1]


def _is_in_quotes(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"'


def _only_commas_are_in_quotes(lines: list[tuple[int, str]], delimiter: str) -> bool:
    """Return whether exactly the cells with a comma are in quotes, as spreadsheets write a TSV."""
    if delimiter == ",":
        return False
    cells = chain.from_iterable(text.split(delimiter) for _, text in lines)
    return all(_is_in_quotes(cell) == ("," in cell) for cell in cells)
