"""Reads the rows of a file of any format."""

from pathlib import Path

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.columnar import columnar_rows
from rnncls.data.files.dialect import Dialect
from rnncls.data.files.formats import COLUMNAR
from rnncls.data.files.json_rows import NumberedRows, array_rows, json_rows
from rnncls.data.files.lines import lines_of
from rnncls.data.files.opening import ReportBytes, opened
from rnncls.data.files.tables import table_rows


def read_rows(
    path: str | Path,
    dialect: Dialect,
    fields: list[str],
    bad: BadRows,
    report_bytes: ReportBytes = lambda _: None,
) -> NumberedRows:
    """Yield (line, row) for the rows of a file, by field; a table must have the columns `fields`.

    `dialect` comes from `sniff`. Rows that cannot be read are added to `bad`; what the fields hold
    is not looked at.

    Raises: DataError if the file cannot be read any further.
    """
    with opened(path) as file:
        encoding = dialect.encoding
        most = dialect.max_record_bytes
        if dialect.format in COLUMNAR:
            yield from columnar_rows(path, file, dialect, fields, bad, report_bytes)
            return
        if dialect.format == "json":
            yield from array_rows(path, file, bad, report_bytes, encoding, most)
            return

        is_table = dialect.format != "jsonl"
        lines = lines_of(path, file, bad, report_bytes, encoding, most, keeps_return=is_table)
        if is_table:
            yield from table_rows(lines, path, fields, bad, dialect)
        else:
            yield from json_rows(lines, bad)
