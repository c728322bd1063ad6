"""Reads Parquet, Arrow and Excel files, where the extra `files` is installed."""

import importlib
import io
from pathlib import Path

from rnncls.data.files.arrow import arrow_rows
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import Dialect
from rnncls.data.files.formats import COLUMNAR
from rnncls.data.files.json_rows import NumberedRows
from rnncls.data.files.opening import ReportBytes
from rnncls.data.files.packing import damaged
from rnncls.data.files.sheets import sheet_rows
from rnncls.errors import DataError, Problem

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

    rows = sheet_rows if format == "xlsx" else arrow_rows
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
