"""Rows of results: in JSONL, CSV and TSV files, and shortened for people."""

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

FORMATS = ("jsonl", "csv", "tsv")

NEAR = 8  # characters that may be left out so that a token is not cut


def format_of_name(path: Path) -> str:
    """Return jsonl, csv or tsv, by the end of a file's name; "" for any other name."""
    suffix = path.suffix[1:].lower()
    return suffix if suffix in FORMATS else ""


def write_json_line(file: IO[str], fields: dict[str, Any]) -> None:
    """Write one row of a JSONL file."""
    # What people write in any script stays readable. What stdout cannot encode is escaped there.
    file.write(json.dumps(fields, ensure_ascii=False) + "\n")


def table_writer(file: IO[str], format: str) -> Callable[[Iterable[Any]], object]:
    """Return a function that writes one row of a table, of which the header row is the first.

    `format` is csv or tsv.
    """
    delimiter = "\t" if format == "tsv" else ","
    return csv.writer(_LineEnds(file), delimiter=delimiter).writerow


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
