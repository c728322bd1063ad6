"""Rows of results: in JSONL, CSV and TSV files, and shortened for people."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

FORMATS = ("jsonl", "csv", "tsv")
TABLES = ("csv", "tsv")

# How a cell begins that spreadsheets take for a formula, the wide forms of these signs included. A
# number with a sign does no harm.
_FORMULA = re.compile("[-=+@\t\r\n\uff0d\uff1d\uff0b\uff20]")
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?([eE][-+]?[0-9]+)?")

NEAR = 8  # characters that may be left out so that a token is not cut


def format_of_name(path: Path) -> str:
    """Return jsonl, csv or tsv, by the end of a file's name; "" for any other name."""
    suffix = path.suffix[1:].lower()
    return suffix if suffix in FORMATS else ""


# What people write in any script stays readable. JSON has no NaN.
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_to_ascii_json = json.JSONEncoder(allow_nan=False).encode

_OTHER_THAN_ASCII = re.compile(r"[^ -~]")


def json_text(value: Any, readable: bool = False) -> str:
    """Return a value as JSON on one line, which any parser reads and no terminal acts upon.

    What is not ASCII is escaped; if `readable`, only what is not printable. NaN and infinity, which
    JSON lacks, become null.
    """
    encode = _to_json if readable else _to_ascii_json
    try:
        text = encode(value)
    except ValueError:
        text = encode(_finite(value))

    # Nearly every text is printable as it is.
    return text if text.isprintable() else _OTHER_THAN_ASCII.sub(_json_escape, text)


def _json_escape(character: re.Match[str]) -> str:
    # Two escapes for what is beyond U+FFFF, as JSON wants it.
    return character[0] if character[0].isprintable() else json.dumps(character[0])[1:-1]


def _finite(value: Any) -> Any:
    """Return a value of JSON with None for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return value


def write_json_line(file: IO[str], fields: dict[str, Any]) -> None:
    """Write one row of a JSONL file."""
    file.write(json_for(file, fields) + "\n")


def json_for(file: IO[str], value: Any) -> str:
    """Return a value as JSON on one line, as readable as the encoding of a file allows."""
    text = json_text(value, readable=True)
    # The escapes of stdout for what its encoding lacks are not those of JSON.
    if not text.isascii() and not _has_all_characters(file):
        return json_text(value)
    return text


def _has_all_characters(file: IO[str]) -> bool:
    encoding = getattr(file, "encoding", None) or "utf-8"
    return encoding.lower().startswith("utf")


def table_writer(
    file: IO[str], format: str, is_safe: bool = False
) -> Callable[[Iterable[Any]], object]:
    """Return a function that writes one row of a table, of which the header row is the first.

    `format` is csv or tsv. A table that `is_safe` has no cell that a spreadsheet takes for a
    formula; what is read from it again differs where there would have been one.
    """
    delimiter = "\t" if format == "tsv" else ","
    if not is_safe:
        return csv.writer(_LineEnds(file), delimiter=delimiter).writerow

    # In quotes: a spreadsheet may take another character for what separates cells.
    write_row = csv.writer(_LineEnds(file), delimiter=delimiter, quoting=csv.QUOTE_ALL).writerow
    return lambda cells: write_row(map(_as_no_formula, cells))


def _as_no_formula(cell: Any) -> Any:
    """Return a cell with an apostrophe before it if a spreadsheet would take it for a formula."""
    if not isinstance(cell, str) or not _FORMULA.match(cell) or _NUMBER.fullmatch(cell):
        return cell
    return f"'{cell}"


class _LineEnds:
    """Ends each row as JSONL does, in place of the CRLF of csv.

    With CRLF for its end, csv puts a cell with either of the two in quotes. With "\\n" alone, some
    versions of Python leave "\\r" bare, which no reader takes for a part of a cell.
    """

    def __init__(self, file: IO[str]) -> None:
        self._write = file.write

    def write(self, row: str) -> int:
        """Write a row, which ends in CRLF."""
        return self._write(row[:-2] + "\n")


def text_of(sequence: Any) -> str:
    """Return a sequence as text; of a list, the tokens between spaces."""
    return sequence if isinstance(sequence, str) else " ".join(map(str, sequence))


def shortened(text: str, most: int) -> str:
    """Return a text of at most `most` characters: all of it, or its beginning and its end.

    It is cut at spaces that are near, so that no number looks like a shorter one.
    """
    if len(text) <= most:
        return text

    gap = " ... "
    half = (most - len(gap)) // 2
    beginning = text[: most - len(gap) - half]
    end = text[-half:]

    space = beginning.rfind(" ", len(beginning) - NEAR)
    if space > 0:
        beginning = beginning[:space]
    space = end.find(" ", 0, NEAR)
    if space >= 0:
        end = end[space + 1 :]
    return f"{beginning}{gap}{end}"
