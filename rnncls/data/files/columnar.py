"""Reads Parquet, Arrow and Excel files, batch by batch, where the extra `files` is installed."""

import datetime
import importlib
import io
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.batch_sizes import (
    BATCH_ROWS,
    MOST_BATCH_BYTES,
    PIECE_BYTES,
    largest_batch,
    longest_of_dictionaries,
    pieces_of,
)
from rnncls.data.files.dialect import Dialect
from rnncls.data.files.encodings import can_be_written
from rnncls.data.files.formats import COLUMNAR
from rnncls.data.files.headers import bad_columns, many_columns
from rnncls.data.files.json_rows import NumberedRows
from rnncls.data.files.lines import too_long
from rnncls.data.files.opening import ReportBytes
from rnncls.data.files.packing import MAX_RATIO, RATIO_FROM, archive_of, damaged
from rnncls.errors import DataError, Problem

# To find the longest text of its dictionaries, a group of rows of a Parquet file is read so far.
MOST_PROBED_BYTES = 2**26

# All texts of an Excel file are in memory while it is read. Short ones take three times as much as
# in the file.
MOST_SHEET_BYTES = 2**27

# The number of each row, and what is wrong with it if it cannot be read.
RowsOrProblems = Iterator[tuple[int, dict[str, Any] | Problem]]

_PACKAGES = {"parquet": "pyarrow", "arrow": "pyarrow", "xlsx": "openpyxl"}


def columnar_rows(
    path: str | Path,
    file: io.BufferedReader,
    dialect: Dialect,
    fields: list[str],
    bad: BadRows,
    report_bytes: ReportBytes,
) -> NumberedRows:
    """Yield each row of a file of one of the formats COLUMNAR, with its number.

    Values are those that JSON has. In an Excel file they are texts, as in a CSV file made of it,
    and the numbers are those of the first sheet.

    Raises: DataError if the file is damaged, lacks a field, or needs a package that is missing.
    """
    format = dialect.format
    package = _PACKAGES[format]
    try:
        importlib.import_module(package)
    except ImportError:
        raise _no_package(path, format, package) from None

    rows = _sheet_rows if format == "xlsx" else _arrow_rows
    try:
        for number, row in rows(path, file, dialect, fields, report_bytes):
            if isinstance(row, Problem):
                bad.add_problem(number, row)
            else:
                yield number, row
    except (DataError, GeneratorExit):
        raise
    # What these packages raise for a damaged file is of any kind, such as KeyError.
    except Exception as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
        raise damaged(path, COLUMNAR[format], found) from None


def _no_package(path: str | Path, format: str, package: str) -> DataError:
    return DataError(
        Problem(
            f"{package} is needed to read {COLUMNAR[format]}s",
            str(path),
            remedy="pip install 'rnncls[files]'",
            id="D14",
        )
    )


def _arrow_rows(
    path: str | Path,
    file: io.BufferedReader,
    dialect: Dialect,
    fields: list[str],
    report: ReportBytes,
) -> RowsOrProblems:
    is_parquet = dialect.format == "parquet"
    names, batches = _parquet(path, file) if is_parquet else _arrow(path, file)
    _require_columns(str(path), names, fields, dialect)

    number = 0
    reported = 0  # bytes
    unpacked = 0
    packed = Path(path).stat().st_size
    for batch in batches:
        # What is in the file is not to be trusted: an offset may point anywhere.
        batch.validate(full=True)
        most = dialect.max_record_bytes
        for piece, size in pieces_of(batch, min(most, PIECE_BYTES)):
            # What the file says of its size counts a text of a dictionary once.
            unpacked += size
            _require_ratio(path, COLUMNAR[dialect.format], unpacked, packed)
            if size > most:
                number += 1
                yield number, too_long("a very long row", most, "a shorter sequence")
                continue
            for row in piece.to_pylist():
                number += 1
                try:
                    _make_json(row)
                except UnicodeDecodeError as error:
                    yield number, Problem("bytes that are no UTF-8", found=str(error), id="D11")
                else:
                    yield number, row
        position = file.tell()
        report(max(0, position - reported))
        reported = max(position, reported)


def _parquet(path: str | Path, file: io.BufferedReader) -> tuple[list[str], Iterator[Any]]:
    """Return the names of the columns of a Parquet file, and its batches of rows."""
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    metadata = table.metadata
    size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    _require_ratio(path, COLUMNAR["parquet"], size, Path(path).stat().st_size)
    return list(table.schema_arrow.names), _parquet_batches(table, file)


def _parquet_batches(table: Any, file: io.BufferedReader) -> Iterator[Any]:
    """Yield the rows of a Parquet file, at most BATCH_ROWS at a time, and fewer of large ones."""
    import pyarrow.parquet

    # As numbers of its dictionary's values, a column takes little memory, but more time.
    columns = table.metadata.num_columns
    names = [table.metadata.schema.column(number).path for number in range(columns)]
    as_numbers = pyarrow.parquet.ParquetFile(file, metadata=table.metadata, read_dictionary=names)
    for group in range(table.metadata.num_row_groups):
        about = table.metadata.row_group(group)
        size = about.total_byte_size // max(1, about.num_rows)
        rows = max(1, min(BATCH_ROWS, PIECE_BYTES // max(1, size)))
        source = table
        # A larger group has mostly texts of its own, and looking at it would take much memory.
        if about.total_byte_size <= MOST_PROBED_BYTES:
            first = next(as_numbers.iter_batches(batch_size=1, row_groups=[group]), None)
            if first is not None and longest_of_dictionaries(first) * rows > MOST_BATCH_BYTES:
                source = as_numbers
        yield from source.iter_batches(batch_size=rows, row_groups=[group])


def _arrow(path: str | Path, file: io.BufferedReader) -> tuple[list[str], Iterator[Any]]:
    """Return the names of the columns of an Arrow file or stream, and its batches of rows."""
    import pyarrow.ipc

    # A file is a stream as well, between its first bytes and a table of where its batches are.
    is_file = file.peek(6).startswith(b"ARROW1")
    _require_small(path, largest_batch(path, is_file))
    if is_file:
        # It may be cut off there. Batches are read in their order, as their sizes were.
        pyarrow.ipc.open_file(file)
        file.seek(8)
    stream = pyarrow.ipc.open_stream(file)
    return list(stream.schema.names), iter(stream)


def _require_small(path: str | Path, size: int) -> None:
    """Raise DataError for a batch of an Arrow file that takes more memory than it may."""
    if size > MOST_BATCH_BYTES:
        raise DataError(
            Problem(
                "a very large batch of rows",
                str(path),
                expected=f"at most {MOST_BATCH_BYTES:,} bytes",
                found=f"{size:,} bytes",
                remedy="write the file in smaller batches of rows, or as Parquet",
                id="D13",
            )
        )


def _make_json(row: dict[str, Any]) -> None:
    """Replace what JSON does not have, such as dates, by text. Raises: UnicodeDecodeError."""
    for name, value in row.items():
        if value is None or isinstance(value, str | int | list | float | dict):
            continue
        if isinstance(value, bytes):
            row[name] = value.decode()
        elif isinstance(value, datetime.date | datetime.time):
            row[name] = value.isoformat()
        else:
            row[name] = str(value)


def _require_ratio(path: str | Path, kind: str, size: int, packed: int) -> None:
    """Raise DataError if content of `size` bytes is beyond reason for so few packed ones."""
    if size > RATIO_FROM and size > MAX_RATIO * packed:
        raise damaged(path, kind, f"it unpacks to more than {MAX_RATIO} times its size")


def _require_columns(where: str, names: Sequence[str], fields: list[str], dialect: Dialect) -> None:
    """Raise DataError unless there are the fields, each column once, and not too many of them."""
    # Only a sheet may lack names.
    is_named = dialect.header or dialect.format != "xlsx"
    label = dialect.label_in(fields)
    problem = many_columns(names, dialect.max_columns, where)
    problem = problem or bad_columns(names, fields, label, where, is_named)
    if problem is not None:
        raise DataError(problem)


def _sheet_rows(
    path: str | Path,
    file: io.BufferedReader,
    dialect: Dialect,
    fields: list[str],
    report: ReportBytes,
) -> RowsOrProblems:
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
            _require_columns(f"{path}:{number}", names, fields, dialect)
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
            _require_ratio(path, COLUMNAR["xlsx"], info.file_size, info.compress_size)
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
