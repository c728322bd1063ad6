"""Finds out how a file is to be read where the config says auto: by its name and first rows."""

from collections.abc import Sequence
from pathlib import Path

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import TABLES, Dialect
from rnncls.data.files.formats import COLUMNAR, format_of
from rnncls.data.files.headers import first_row_is_data
from rnncls.data.files.lines import encoding_in, read_lines
from rnncls.data.files.quoting import quoted, quoting_of
from rnncls.data.files.splitting import SEPARATORS, parsed_rows, plain_rows
from rnncls.errors import DataError, Problem

# What is looked at to find out how a table is to be read, so that its size does not matter.
SAMPLE_CHARACTERS = 2**16
MOST_FIRST_LINES = 50  # for the separator


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
        quoting = quoting_of(path, lines, is_whole, dialect, fields)
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


def _require_names(
    path: str | Path, lines: list[tuple[int, str]], dialect: Dialect, fields: Sequence[str]
) -> None:
    """Raise DataError if the first row has the fields and looks like data nevertheless."""
    delimiter = SEPARATORS[dialect.separator]
    rows = (
        plain_rows(iter(lines), delimiter, dialect.max_columns)
        if dialect.quoting == "none"
        else quoted(lines, delimiter, dialect)
    )
    header: list[str] = next(rows, (1, [], None))[1]
    if not all(name in header for name in fields):
        return
    where = f"{path}:{lines[0][0]}"
    below = (cells for _, cells, _ in rows)
    problem = first_row_is_data(header, fields, dialect.label_in(fields), below, where)
    if problem is not None:
        raise DataError(problem)
