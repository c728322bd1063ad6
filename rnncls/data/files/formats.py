"""Finds out what a file is: by its first bytes, by its name, and by what stands in it."""

import csv
import json
import re
from contextlib import suppress
from pathlib import PurePath

from rnncls.data.files.encodings import HEAD_BYTES, as_utf_8
from rnncls.data.files.opening import opened
from rnncls.data.files.packing import member_names, unpacked
from rnncls.errors import DataError, Problem
from rnncls.system.file_kinds import (
    NUMPY,
    OTHER_MAGIC,
    OTHER_MEMBERS,
    WEIGHTS,
    Kind,
    format_by_name,
    other_kind_by_name,
)

FORMATS = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "xlsx")
# Those that are no text and need the extra `files`, and what such a file is called.
COLUMNAR = {"parquet": "Parquet file", "arrow": "Arrow file", "xlsx": "Excel file"}

_MAGIC = {
    b"PAR1": "parquet",
    b"ARROW1": "arrow",
    b"\xff\xff\xff\xff": "arrow",  # a stream, which has no beginning of its own
}

# The beginning of an array of objects.
_ARRAY = re.compile(r"\[\s*(\{|\]|$)")

MOST_FIRST_LINES = 50


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
    for name, kind in OTHER_MEMBERS.items():
        if name in members:
            raise _other_kind(path, kind)
    if members and all(name.endswith(".npy") for name in members):
        raise _other_kind(path, NUMPY)
    if any(name.endswith("data.pkl") for name in members):
        raise _other_kind(path, WEIGHTS)
    return ""


def refuse_other_kinds(path: object, head: bytes) -> None:
    """Raise DataError if a file that is read as text begins as one that is none."""
    for magic, kind in OTHER_MAGIC.items():
        if head.startswith(magic):
            raise _other_kind(path, kind)
    for magic, format in _MAGIC.items():
        if head.startswith(magic):
            article = "a" if format == "parquet" else "an"
            remedy = "data.format=auto, and a name without .gz or the like"
            raise _other_kind(path, Kind(f"{article} {COLUMNAR[format]}, and no text", remedy))


def _other_kind(path: object, kind: Kind) -> DataError:
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
    kind = other_kind_by_name(name)
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
