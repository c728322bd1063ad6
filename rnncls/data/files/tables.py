"""Reads tables: CSV and TSV, and whatever else separates columns."""

import csv
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.json_rows import NumberedRows
from rnncls.data.files.lines import MAX_LINE_BYTES, Lines
from rnncls.errors import DataError, Problem

# What may stand between the columns of a table, by its name in a config. The comma is first: a
# header row that can be read with commas always was.
SEPARATORS = {",": ",", ";": ";", "tab": "\t", "|": "|"}


def find_separator(first_lines: list[str], fields: list[str]) -> str:
    """Return the name of the separator with which a header row has the fields.

    That is the comma if several have them, or none.
    """
    for name, delimiter in SEPARATORS.items():
        header = next(parsed_rows(first_lines, delimiter), [])
        if all(field in header for field in fields):
            return name
    return ","


def parsed_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the rows of a piece of a table, up to the first that is none or is cut off."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with suppress(csv.Error):
        yield from csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)


def table_rows(
    lines: Lines, path: str | Path, fields: list[str], bad: BadRows, delimiter: str
) -> NumberedRows:
    """Yield each row of a table by column. Raises: DataError if the header lacks a field."""
    rows = _split_rows(lines, path, bad, delimiter)
    line, header = next(rows, (1, None))
    # An empty file has no rows, and is reported where its sequences are missed.
    if header is None:
        return

    # Of two columns with the same name, only one would be read.
    has_fields = all(name in header for name in fields)
    has_duplicates = len(set(header)) < len(header)
    if has_duplicates or not has_fields:
        raise _bad_header(f"{path}:{line}", header, fields)

    for line, row in rows:
        if len(row) == len(header):
            yield line, dict(zip(header, row, strict=True))
        # A row without fields is a blank line, which is skipped.
        elif row:
            remedy = bad.remedy
            if len(row) > len(header):
                remedy = f"quotes around a text that has {delimiter!r} in it, or fix the line"
            bad.add(
                line,
                "wrong number of columns",
                expected=f"{len(header)} columns",
                found=f"{len(row)} columns",
                remedy=remedy,
            )


def _bad_header(where: str, header: list[str], fields: list[str]) -> DataError:
    columns = f"the columns {' and '.join(fields)}, each once" if fields else "each column once"
    remedy = "data.sequence_field=..., data.label_field=..."
    if fields:
        # Without a header, the first row of the data stands where it would be.
        remedy += f"; or, if this row is data, a line {','.join(fields)} above it"
    return DataError(
        Problem(
            "bad header",
            where,
            expected=f"a header row with {columns}",
            found=", ".join(header),
            remedy=remedy,
            id="D14",
        )
    )


def _split_rows(
    lines: Lines, path: str | Path, bad: BadRows, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, fields) of each row. A quoted field may extend over several lines."""
    # csv.reader tells only how many lines it has taken, and lines that are not UTF-8 never reach
    # it: so the lines are counted as they pass.
    first_line = 0  # of the row that is being read; 0 before its first line
    number = 0  # of the last line read

    def texts() -> Iterator[str]:
        nonlocal first_line, number
        for number, text in lines:
            first_line = first_line or number
            yield text + "\n"

    # Python's own limit of 128 KiB per field would refuse long sequences.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        first_line = 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                # Every row behind the quote was taken for a part of this one: nothing is left.
                raise _open_quote(path, first_line, number) from None
            remedy = "close the quotes, or fix the line"
            bad.add(first_line, "not a row of the table", found=str(error), remedy=remedy)
        else:
            yield first_line, row


def _open_quote(path: str | Path, first_line: int, last_line: int) -> DataError:
    return DataError(
        Problem(
            "an open quote",
            f"{path}:{first_line}",
            expected="a second quote",
            found=f"the end of the file, {last_line - first_line} lines below",
            remedy="close it, or double it",
            id="D14",
        )
    )
