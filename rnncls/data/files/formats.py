"""Finds out what a file is: by its first bytes, by its name, and by what stands in it."""

import csv
import json
import re
from contextlib import suppress
from pathlib import PurePath
from typing import NamedTuple

from rnncls.data.files.encodings import HEAD_BYTES, as_utf_8
from rnncls.data.files.opening import opened
from rnncls.data.files.packing import member_names, unpacked, without_packing
from rnncls.errors import DataError, Problem

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "xlsx")
COLUMNAR = ("parquet", "arrow", "xlsx")  # that are no text, and need the extra `files`

# What the end of a name says. A .json file may be one array or a line for each object: its first
# character shows.
_SUFFIXES = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "parquet": "parquet",
    "pq": "parquet",
    "arrow": "arrow",
    "arrows": "arrow",
    "ipc": "arrow",
    "feather": "arrow",
    "xlsx": "xlsx",
    "xlsm": "xlsx",
}

_MAGIC = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream, which has no beginning of its own
}

_NAMES = {"parquet": "a Parquet file", "arrow": "an Arrow file", "xlsx": "an Excel file"}

_AS_CSV = "save its rows as CSV or JSON lines"


class _Kind(NamedTuple):
    """A kind of file that is not read, and what to do with it."""

    name: str
    remedy: str


_IMAGE = _Kind("an image", "a file with a sequence in each row")
_PICKLE = _Kind(
    "a pickle (which could run any program)", "pandas.read_pickle(...).to_csv(..., index=False)"
)
_NUMPY = _Kind("a NumPy file", _AS_CSV)
_OFFICE = _Kind("an old Office file (such as .xls)", "save it as .xlsx or CSV")
_DOCUMENT = _Kind("a document", _AS_CSV)
_DATABASE = _Kind("an SQLite database", "sqlite3 -header -csv FILE 'SELECT ...' > rows.csv")
_FEATHER = _Kind("a Feather file of version 1", "pandas.read_feather(...).to_parquet(...)")
_HDF = _Kind("an HDF5 file", _AS_CSV)
_STATISTICS = _Kind("a file of a statistics program", _AS_CSV)
_WEIGHTS = _Kind("a file of weights", "a file with a sequence in each row")
_SHEET = _Kind("an OpenDocument file", "save it as .xlsx or CSV")

_OTHER_MAGIC = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": _OFFICE,
    b"\x93NUMPY": _NUMPY,
    b"FEA1": _FEATHER,
    b"%PDF-": _DOCUMENT,
    b"SQLite format 3\0": _DATABASE,
    b"\x89HDF\r\n": _HDF,
    b"Obj\x01": _Kind("an Avro file", _AS_CSV),
    b"\x89PNG\r\n": _IMAGE,
    b"\xff\xd8\xff": _IMAGE,
    b"GIF87a": _IMAGE,
    b"GIF89a": _IMAGE,
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"<!DOCTYPE html": _Kind("a page of the web", "download the file itself"),
    b"<!doctype html": _Kind("a page of the web", "download the file itself"),
    b"version https://git-lfs.": _Kind("a pointer of Git LFS, not the file", "git lfs pull"),
}

# Files in a zip by which it is known to be something else.
_MEMBERS = {
    "word/document.xml": _DOCUMENT,
    "ppt/presentation.xml": _DOCUMENT,
    "mimetype": _SHEET,
}

# Of files whose beginning says nothing. What is text is read as that, whatever its name.
_OTHER_SUFFIXES = {
    "xls": _OFFICE,
    "doc": _OFFICE,
    "docx": _DOCUMENT,
    "pdf": _DOCUMENT,
    "ods": _SHEET,
    "pkl": _PICKLE,
    "pickle": _PICKLE,
    "npy": _NUMPY,
    "npz": _NUMPY,
    "h5": _HDF,
    "hdf5": _HDF,
    "db": _DATABASE,
    "sqlite": _DATABASE,
    "avro": _Kind("an Avro file", _AS_CSV),
    "orc": _Kind("an ORC file", "pandas.read_orc(...).to_parquet(...)"),
    "rds": _STATISTICS,
    "rdata": _STATISTICS,
    "sav": _STATISTICS,
    "dta": _STATISTICS,
    "sas7bdat": _STATISTICS,
    "mat": _STATISTICS,
    "pt": _WEIGHTS,
    "pth": _WEIGHTS,
    "safetensors": _WEIGHTS,
}

# The beginning of an array of objects.
_ARRAY = re.compile(r"\[\s*(\{|\]|$)")

MOST_FIRST_LINES = 50


def format_by_name(path: object) -> str:
    """Return the format that the name of a file says, "" if it says none."""
    return _SUFFIXES.get(_suffix_of(str(path)), "")


def _suffix_of(name: str) -> str:
    return PurePath(without_packing(name)).suffix[1:].lower()


def format_of(path: object, format: str = "auto", encoding: str = "utf-8") -> str:
    """Return which one of FORMATS a file has.

    Its first bytes come before its name, and its name before the rest of what stands in it.
    `encoding` is that of a text without a mark, as data.encoding names it.

    Raises: DataError if it cannot be read, or if `auto` cannot tell.
    """
    if format != "auto":
        return format

    with opened(str(path)) as file:
        head = file.peek(16)
        members = member_names(file) if head.startswith(b"PK") else []
        found = _binary_format(path, head, members)
        if found:
            return found

        # A zip that holds one file is read as that file is, or else by what stands before `.zip`.
        name = members[0] if len(members) == 1 else str(path)
        if members and not format_by_name(name):
            name = PurePath(str(path)).stem
        file.seek(0)
        source = unpacked(path, file)
        refuse_other_kinds(path, source.peek(16))
        by_name = format_by_name(name)
        if by_name in COLUMNAR:
            return by_name
        # Other bytes than those of UTF-8 are no reason to stop here: they make bad lines.
        order = encoding if encoding == "utf-16" else "latin-1"
        text = as_utf_8(path, source, order).read(HEAD_BYTES).decode(errors="replace")

    text = text.removeprefix("\ufeff").lstrip()
    if by_name == "jsonl" and _ARRAY.match(text):
        return "json"
    found = by_name or _format_by_content(text)
    if not found:
        raise _unknown(path, name)
    return found


def _binary_format(path: object, head: bytes, members: list[str]) -> str:
    """Return the format of a file that is no text, "" if it is. Raises: DataError for others."""
    for magic, format in _MAGIC.items():
        if head.startswith(magic):
            return format
    if "xl/workbook.xml" in members:
        return "xlsx"
    for name, kind in _MEMBERS.items():
        if name in members:
            raise _other_kind(path, kind)
    if members and all(name.endswith(".npy") for name in members):
        raise _other_kind(path, _NUMPY)
    if any(name.endswith("data.pkl") for name in members):
        raise _other_kind(path, _WEIGHTS)
    return ""


def refuse_other_kinds(path: object, head: bytes) -> None:
    """Raise DataError if a file that is read as text begins as one that is none."""
    for magic, kind in _OTHER_MAGIC.items():
        if head.startswith(magic):
            raise _other_kind(path, kind)
    for magic, format in _MAGIC.items():
        if head.startswith(magic):
            remedy = "data.format=auto, and a name without .gz or the like"
            raise _other_kind(path, _Kind(f"{_NAMES[format]}, and no text", remedy))


def _other_kind(path: object, kind: _Kind) -> DataError:
    return DataError(
        Problem(
            f"{kind.name} is not read",
            str(path),
            expected="JSON lines, a JSON array, CSV, TSV, Parquet, Arrow or .xlsx",
            remedy=kind.remedy,
            id="D14",
        )
    )


def _format_by_content(text: str) -> str:
    """Return the format of a file that begins with this text, "" if it is not clear."""
    if _ARRAY.match(text):
        return "json"

    lines = [line for line in text.split("\n")[:MOST_FIRST_LINES] if line.strip()]
    if not lines:
        return ""
    if lines[0].startswith("{"):
        with suppress(ValueError, RecursionError):
            return "jsonl" if isinstance(json.loads(lines[0]), dict) else ""
        return ""

    # Columns are clear where each line has the same number of them. The last line may be cut off.
    whole = lines if len(text) < HEAD_BYTES else lines[:-1]
    if len(whole) < 2:
        return ""
    if len({line.count("\t") for line in whole}) == 1 and "\t" in whole[0]:
        return "tsv"
    return "csv" if any(_has_columns(whole, delimiter) for delimiter in ",;|") else ""


def _has_columns(lines: list[str], delimiter: str) -> bool:
    widths = set()
    with suppress(csv.Error):
        for row in csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True):
            widths.add(len(row))
    return len(widths) == 1 and widths.pop() > 1


def _unknown(path: object, name: str) -> DataError:
    kind = _OTHER_SUFFIXES.get(_suffix_of(name))
    if kind is not None:
        return _other_kind(path, kind)
    return DataError(
        Problem(
            "unknown format",
            str(path),
            expected="a name that ends in .jsonl, .json, .csv, .tsv, .parquet, .arrow or .xlsx, "
            "also with .gz, .bz2, .xz or in a .zip",
            remedy="data.format=jsonl, csv or tsv",
            id="D14",
        )
    )
