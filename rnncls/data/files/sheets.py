"""The rows of the first sheet of an Excel file."""

import datetime
import io
from itertools import count
from pathlib import Path
from typing import Any

from rnncls.data.files.arrow import RowsOrProblems
from rnncls.data.files.dialect import Dialect
from rnncls.data.files.encodings import can_be_written
from rnncls.data.files.formats import COLUMNAR
from rnncls.data.files.headers import require_columns
from rnncls.data.files.opening import ReportBytes
from rnncls.data.files.packing import archive_of, require_ratio
from rnncls.errors import DataError, Problem

# All texts of an Excel file are in memory while it is read. Short ones take three times as much as
# in the file.
MOST_SHEET_BYTES = 2**27


def sheet_rows(
    path: str | Path,
    file: io.BufferedReader,
    dialect: Dialect,
    fields: list[str],
    report: ReportBytes,
) -> RowsOrProblems:
    """Yield each row with its number, or what is wrong with it; cells are texts.

    Raises: DataError, and what openpyxl raises for a damaged file.
    """
    import openpyxl

    _require_small_sheets(path, file)
    book = openpyxl.load_workbook(file, read_only=True, data_only=True)
    sheet = book.worksheets[0]
    # What a file says of its own size is often wrong.
    sheet.reset_dimensions()

    names: list[str] | None = None
    for number, cells in zip(count(1), sheet.iter_rows(values_only=True), strict=False):
        texts = [_cell_text(value) for value in cells]
        while texts and not texts[-1]:
            texts.pop()
        # A row without a text is a blank line, which is skipped.
        if not texts:
            continue

        if names is None:
            names = texts
            if not dialect.header:
                names = [str(column) for column in range(1, len(texts) + 1)]
            require_columns(f"{path}:{number}", names, fields, dialect)
            if dialect.header:
                continue

        # Empty cells at the end of a row are not in the file.
        texts += [""] * (len(names) - len(texts))
        if len(texts) > len(names):
            expected = f"{len(names)} columns"
            found = f"{len(texts)} columns"
            what = "wrong number of columns"
            yield number, Problem(what, expected=expected, found=found, id="D14")
        elif not can_be_written("".join(texts)):
            what = "half of a surrogate pair"
            yield number, Problem(what, expected="Unicode text", id="D11")
        else:
            yield number, dict(zip(names, texts, strict=True))
    report(Path(path).stat().st_size)


def _require_small_sheets(path: str | Path, file: io.BufferedReader) -> None:
    """Raise DataError for an Excel file that takes more memory than it may."""
    with archive_of(file) as archive:
        size = 0
        for info in archive.infolist():
            require_ratio(path, COLUMNAR["xlsx"], info.file_size, info.compress_size)
            if info.filename.endswith("sharedStrings.xml"):
                size += info.file_size
    file.seek(0)
    if size > MOST_SHEET_BYTES:
        raise DataError(
            Problem(
                "a very large Excel file",
                str(path),
                expected=f"at most {MOST_SHEET_BYTES:,} bytes of texts",
                found=f"{size:,} bytes",
                remedy="save it as CSV",
                id="D13",
            )
        )


def _cell_text(value: Any) -> str:
    """Return the value of a cell as a CSV file has it: whole numbers without a fraction."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return str(value)
