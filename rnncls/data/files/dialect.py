"""How a file is to be read: what a config says, and what the file itself shows."""

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.encodings import ENCODING_NAMES, key_of
from rnncls.data.files.formats import COLUMNAR, format_of
from rnncls.data.files.headers import first_row_is_data
from rnncls.data.files.lines import encoding_in, read_lines
from rnncls.data.files.plausible import Plausible
from rnncls.data.files.splitting import (
    SEPARATORS,
    Span,
    SplitLines,
    TooManyOpenQuotes,
    have_width,
    one_or_several,
    parsed_rows,
    plain_rows,
    quoted_rows,
)
from rnncls.errors import DataError, Problem

TABLES = ("csv", "tsv")  # whose rows are lines of text, or several

# What is looked at to find out how a table is to be read, so that its size does not matter.
SAMPLE_CHARACTERS = 2**16
MOST_FIRST_LINES = 50  # for the separator

_NAMES = {
    "jsonl": "JSON lines",
    "json": "a JSON array",
    "parquet": "Parquet",
    "arrow": "Arrow",
    "xlsx": "the first sheet of a workbook",
}
_SEPARATED = {",": "comma-separated", ";": "semicolon-separated", "tab": "tab-separated"}


class Dialect(NamedTuple):
    """How a file is read. The values are those of the config; after `sniff`, none is `auto`."""

    format: str = "auto"  # one of FORMATS
    separator: str = "auto"  # a name of SEPARATORS
    quoting: str = "auto"  # standard or none
    header: bool = True
    encoding: str = "utf-8"
    max_record_bytes: int = 2**24
    max_columns: int = 2**14

    # Whether somebody has said that there is a header, so that its names are not doubted.
    is_header_known: bool = False
    # Whether the quoting was found, so that a row of several lines may have to be doubted.
    is_quoting_found: bool = False
    # Whether the last one of several fields that a table must have is that of the label.
    has_label: bool = True

    def label_in(self, fields: Sequence[str]) -> str | None:
        """Return which one of the fields is that of the label, None if none is."""
        return fields[-1] if self.has_label and len(fields) > 1 else None


def dialect_of(data: FilesConfig) -> Dialect:
    """Return what a config says about its files."""
    return Dialect(
        data.format,
        data.separator,
        data.quoting,
        data.header,
        data.encoding,
        data.max_record_bytes,
        data.max_columns,
        is_header_known="header" in data.model_fields_set,
    )


def sniff(path: str | Path, wanted: Dialect, fields: list[str]) -> Dialect:
    """Return how a file is read: as `wanted`, and where that says `auto`, as the file shows.

    `fields` are the columns that a table must have, [] if any will do: those of the sequence and
    then, if there are several, that of the label.

    Raises: DataError if the file cannot be read, or if it cannot be told how to.
    """
    dialect = wanted._replace(format=format_of(path, wanted.format, wanted.encoding))
    if dialect.format not in COLUMNAR:
        dialect = dialect._replace(encoding=encoding_in(path, wanted.encoding))
    if dialect.format not in TABLES:
        return dialect._replace(
            separator="," if wanted.separator == "auto" else wanted.separator,
            quoting="standard" if wanted.quoting == "auto" else wanted.quoting,
        )

    lines, is_whole = _sample_of(path, dialect)
    texts = [text for _, text in lines]
    if dialect.separator == "auto":
        dialect = dialect._replace(separator=_separator_of(path, texts, fields, dialect))
    if dialect.quoting == "auto":
        quoting = _quoting_of(path, lines, is_whole, dialect, fields)
        dialect = dialect._replace(quoting=quoting, is_quoting_found=True)

    if dialect.header and not dialect.is_header_known and lines:
        _require_names(path, lines, dialect, fields)
    return dialect


def _sample_of(path: str | Path, dialect: Dialect) -> tuple[list[tuple[int, str]], bool]:
    """Return the first lines of a file that are not blank, and whether they are all of it.

    Raises: DataError if the header cannot be decoded: a row below it is none.
    """
    lines: list[tuple[int, str]] = []
    characters = 0
    # What else cannot be decoded is reported when the file is read.
    bad = BadRows(path)
    most = dialect.max_record_bytes
    for number, text in read_lines(path, bad, dialect.encoding, most):
        if not lines:
            _require_header(bad, dialect)
        # A blank line above the header means nothing; another one may be a part of a cell.
        if text or lines:
            lines.append((number, text))
        characters += len(text) + 1
        if characters > SAMPLE_CHARACTERS:
            return lines, False
    if not lines:
        _require_header(bad, dialect)
    return lines, True


def _require_header(bad: BadRows, dialect: Dialect) -> None:
    """Raise DataError if a line was bad before the first one that is not, the header."""
    if dialect.header and bad.problems:
        raise DataError(bad.problems[0])


def _separator_of(
    path: str | Path, texts: Sequence[str], fields: Sequence[str], dialect: Dialect
) -> str:
    if dialect.format == "csv":
        return find_separator(path, texts, fields, dialect) or ","
    # A TSV with one column has no tab, and what else is in its texts separates nothing.
    header = texts[0] if texts else ""
    is_other = "\t" not in header and any(sign in header for sign in SEPARATORS.values())
    found = find_separator(path, texts, fields, dialect) if is_other else None
    return found or "tab"


def find_separator(
    path: str | Path, texts: Sequence[str], fields: Sequence[str], dialect: Dialect
) -> str | None:
    """Return the name of the separator of a table's first lines; None if it has one column.

    That is the first one with which the header row has the fields. If there is none, or if there
    are no fields, that with which most rows have the same number of columns, and many columns.

    Raises: DataError if two separators are equally good.
    """
    quoting = "none" if dialect.quoting == "none" else "standard"
    first_lines = texts[:MOST_FIRST_LINES]
    best: list[str] = []
    best_score = (0.0, 0)
    for name, delimiter in SEPARATORS.items():
        rows = [row for row in parsed_rows(first_lines, delimiter, quoting) if row]
        if not rows:
            continue
        if fields and dialect.header and all(field in rows[0] for field in fields):
            return name

        width = len(rows[0])
        score = (sum(len(row) == width for row in rows) / len(rows), width)
        if width > 1 and score > best_score:
            best = [name]
            best_score = score
        elif width > 1 and score == best_score:
            best.append(name)

    # One row is no evidence: a comma or a semicolon in it may be text. There, the first one.
    if len(best) > 1 and best_score[0] == 1.0 and len(first_lines) > 2:
        raise _two_separators(path, texts[0], best)
    return best[0] if best else None


def _two_separators(path: str | Path, text: str, names: Sequence[str]) -> DataError:
    readings = []
    for name in names[:2]:
        cells = " | ".join(cell[:30] for cell in text.split(SEPARATORS[name])[:3])
        readings.append(f"{cells} (separated by {name})")
    return DataError(
        Problem(
            "cannot tell what separates the columns",
            f"{path}:1",
            expected="rows that have several columns with one separator alone",
            found=", or ".join(readings),
            remedy=" or ".join(f"data.separator='{name}'" for name in names),
            id="D14",
        )
    )


def _quoting_of(
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
    rows = list(_quoted(lines, delimiter, dialect))
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


def _quoted(lines: list[tuple[int, str]], delimiter: str, dialect: Dialect) -> SplitLines:
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


def _require_names(
    path: str | Path, lines: list[tuple[int, str]], dialect: Dialect, fields: Sequence[str]
) -> None:
    """Raise DataError if the first row has the fields and looks like data nevertheless."""
    delimiter = SEPARATORS[dialect.separator]
    rows = (
        plain_rows(iter(lines), delimiter, dialect.max_columns)
        if dialect.quoting == "none"
        else _quoted(lines, delimiter, dialect)
    )
    header: list[str] = next(rows, (1, [], None))[1]
    if not all(name in header for name in fields):
        return
    where = f"{path}:{lines[0][0]}"
    below = (cells for _, cells, _ in rows)
    problem = first_row_is_data(header, fields, dialect.label_in(fields), below, where)
    if problem is not None:
        raise DataError(problem)


def described(dialect: Dialect) -> str:
    """Return how a file is read, for people: "tab-separated, no quoting, UTF-8 with mark"."""
    parts = [_NAMES.get(dialect.format, dialect.format)]
    if dialect.format in TABLES:
        parts = [_SEPARATED.get(dialect.separator, f"separated by {dialect.separator}")]
        parts.append("no quoting" if dialect.quoting == "none" else "standard quoting")
        if not dialect.header:
            parts.append("no header")
    if dialect.format in (*TABLES, "jsonl", "json"):
        parts.append(ENCODING_NAMES[dialect.encoding])
    return ", ".join(parts)


def keys_of(dialect: Dialect) -> dict[str, Any]:
    """Return the keys of a config without which a file would not be read as the dialect says.

    The format is none of them: whether a name says it, the dialect does not know.
    """
    keys: dict[str, Any] = {}
    usual = Dialect()
    if dialect.format in TABLES:
        separator, quoting = ("tab", "none") if dialect.format == "tsv" else (",", "standard")
        keys["separator"] = dialect.separator if dialect.separator != separator else None
        keys["quoting"] = dialect.quoting if dialect.quoting != quoting else None
        is_said = dialect.is_header_known or not dialect.header
        keys["header"] = dialect.header if is_said else None

    # What has a mark is known by it.
    encoding = key_of(dialect.encoding)
    keys["encoding"] = encoding if encoding != usual.encoding else None
    for key in ("max_record_bytes", "max_columns"):
        value = getattr(dialect, key)
        keys[key] = value if value != getattr(usual, key) else None
    return {key: value for key, value in keys.items() if value is not None}


def is_remarkable(dialect: Dialect) -> bool:
    """Return whether a user should know how a file is read: JSON lines in UTF-8 go without."""
    return dialect.format != "jsonl" or dialect.encoding != "utf-8"
