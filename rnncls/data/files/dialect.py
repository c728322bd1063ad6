"""How a file is to be read: what a config says, and what the file itself shows."""

from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.formats import format_of
from rnncls.data.files.lines import read_lines
from rnncls.data.files.tables import find_separator

TABLES = ("csv", "tsv")  # whose rows are lines of text, or several


class Dialect(NamedTuple):
    """How a file is read. The values are those of the config; after `sniff`, none is `auto`."""

    format: str = "auto"  # one of FORMATS
    separator: str = "auto"  # a name of SEPARATORS
    quoting: str = "auto"  # standard or none
    header: bool = True
    encoding: str = "utf-8"
    max_record_bytes: int = 2**24


def dialect_of(data: FilesConfig) -> Dialect:
    """Return what a config says about its files."""
    return Dialect(
        data.format,
        data.separator,
        data.quoting,
        data.header,
        data.encoding,
        data.max_record_bytes,
    )


def sniff(path: str | Path, wanted: Dialect, fields: list[str]) -> Dialect:
    """Return how a file is read: as `wanted`, and where that says `auto`, as the file shows.

    `fields` are the columns that a table must have, [] if any will do.

    Raises: DataError if the file cannot be read, or if it cannot be told how to.
    """
    format = format_of(path, wanted.format)
    separator = wanted.separator
    if separator == "auto" and format == "tsv":
        separator = "tab"
    elif separator == "auto" and format == "csv":
        first_lines = [text for _, text in islice(read_lines(path, BadRows(path)), 1)]
        separator = find_separator(first_lines, fields)

    quoting = "standard" if wanted.quoting == "auto" else wanted.quoting
    return wanted._replace(format=format, separator=separator, quoting=quoting)


def described(dialect: Dialect) -> str:
    """Return how a file is read, for people: "tab-separated, no quoting, UTF-8 with mark"."""
    return dialect.format
