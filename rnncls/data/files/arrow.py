"""The rows of Parquet and Arrow files, batch by batch."""

import datetime
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rnncls.data.files.batch_sizes import (
    BATCH_ROWS,
    MOST_BATCH_BYTES,
    PIECE_BYTES,
    largest_batch,
    longest_of_dictionaries,
    pieces_of,
)
from rnncls.data.files.dialect import Dialect
from rnncls.data.files.formats import COLUMNAR
from rnncls.data.files.headers import require_columns
from rnncls.data.files.lines import too_long
from rnncls.data.files.opening import ReportBytes
from rnncls.data.files.packing import require_ratio
from rnncls.errors import DataError, Problem

# To find the longest text of its dictionaries, a group of rows of a Parquet file is read so far.
MOST_PROBED_BYTES = 2**26

# The number of each row, and what is wrong with it if it cannot be read.
RowsOrProblems = Iterator[tuple[int, dict[str, Any] | Problem]]


def arrow_rows(
    path: str | Path,
    file: io.BufferedReader,
    dialect: Dialect,
    fields: list[str],
    report: ReportBytes,
) -> RowsOrProblems:
    """Yield each row with its number, or what is wrong with it.

    Raises: DataError, and what pyarrow raises for a damaged file.
    """
    is_parquet = dialect.format == "parquet"
    names, batches = _parquet(path, file) if is_parquet else _arrow(path, file)
    require_columns(str(path), names, fields, dialect)

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
            require_ratio(path, COLUMNAR[dialect.format], unpacked, packed)
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
    require_ratio(path, COLUMNAR["parquet"], size, Path(path).stat().st_size)
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
