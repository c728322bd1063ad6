"""Reading labelled sequences from JSONL, CSV and TSV files, line by line, with every bad line named.

    JSONL   {"sequence": [3, 1, 4], "label": 8}     or {"sequence": "some text", "label": "code"}
    CSV     a header row, then one row each; TSV is the same with tabs

Any of them may be gzipped. Lines end with LF or CRLF; a byte order mark is accepted. Nothing is kept but the line at
hand.
"""

import csv
import gzip
import hashlib
import json
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.errors import DataError, Problem

MAX_LINE_BYTES = 16 * 2**20
MAX_RATIO, RATIO_FROM = 500, 64 * 2**20  # of gzip: text hardly shrinks to a hundredth
MOST_SHOWN = 5  # bad lines of a file

Watch = Callable[
    [int], object
]  # is told how many bytes of the file were read since it was last told


class Record(NamedTuple):
    """One good row: its line in the file, its tokens (at least one) and its label."""

    line: int
    tokens: list[str]
    label: str


class BadRows:
    """The bad rows of one file: the first few in full, the others counted."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.count, self.problems = path, 0, list[Problem]()

    def add(
        self,
        line: int,
        what: str,
        expected: str = "",
        found: str = "",
        remedy: str = "",
        id: str = "D14",
    ) -> None:
        self.count += 1
        if len(self.problems) < MOST_SHOWN:
            remedy = remedy or "mend or remove the line"
            self.problems.append(
                Problem(
                    what,
                    f"{self.path}:{line}",
                    expected=expected,
                    found=found,
                    remedy=remedy,
                    id=id,
                )
            )

    def raise_if_any(self) -> None:
        """Raises DataError with the first bad rows and, if there are more, how many there are."""
        if self.count > len(self.problems):
            self.problems.append(
                Problem(f"{self.count:,} bad rows in all", str(self.path), id=self.problems[0].id)
            )
        if self.problems:
            raise DataError(*self.problems)


@contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """The file's bytes. Raises DataError unless it is a regular file that can be read; never blocks."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what, remedy = (
            f"cannot read the data: {error.strerror}",
            "the path of a JSONL, CSV or TSV file",
        )
        raise DataError(Problem(what, str(path), remedy=remedy, id="D1")) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        remedy = "a file; a pipe can be saved to one first"
        raise DataError(Problem("not a regular file", str(path), remedy=remedy, id="D1"))
    with open(descriptor, "rb") as file:
        yield file


def fingerprint(path: str | Path) -> str:
    """SHA-256 of the file's bytes. Raises DataError."""
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # it is a BufferedReader


def format_of(path: str | Path, format: str) -> str:
    """jsonl, csv or tsv. Raises DataError where `auto` cannot tell."""
    if format != "auto":
        return format
    suffix = Path(str(path).removesuffix(".gz")).suffix[1:].lower()
    suffix = {"json": "jsonl", "ndjson": "jsonl", "tab": "tsv"}.get(suffix, suffix)
    if suffix not in ("jsonl", "csv", "tsv"):
        expected = "a name that ends in .jsonl, .csv or .tsv, with or without .gz"
        raise DataError(
            Problem(
                "which format is it?",
                str(path),
                expected=expected,
                remedy="data.format=jsonl",
                id="D14",
            )
        )
    return suffix


def read(
    path: str | Path,
    data: FilesConfig,
    bad: BadRows,
    watch: Watch = lambda _: None,
    labelled: bool = True,
) -> Iterator[Record | int]:
    """The good rows of a file; a number stands for an empty sequence on that line, dropped by policy.

    Bad rows go to `bad`. Not `labelled`: labels are not looked for and are "". Raises DataError for a file that cannot
    be read on.
    """
    format = format_of(path, data.format)
    with opened(path) as file:
        rows = _json_rows if format == "jsonl" else _table_rows
        fields = (data.sequence_field, data.label_field) if labelled else (data.sequence_field,)
        for line, row in rows(
            _lines(path, file, bad, watch), path, fields, bad, "\t" if format == "tsv" else ","
        ):
            tokens = tokens_of(row.get(data.sequence_field), data.tokens)
            label = row.get(data.label_field) if labelled else 0
            if isinstance(tokens, Problem):
                bad.add(line, tokens.what, tokens.expected, tokens.found, tokens.remedy, tokens.id)
            elif not isinstance(label, str | int) or isinstance(label, bool) or label == "":
                found = (
                    f"{label!r:.60}" if data.label_field in row else f"the fields {', '.join(row)}"
                )
                what = "bad label" if data.label_field in row else f'no field "{data.label_field}"'
                bad.add(
                    line,
                    what,
                    "text or an integer",
                    found,
                    "data.label_field, or mend the line",
                    "D5",
                )
            elif tokens:
                yield Record(line, tokens, str(label) if labelled else "")
            elif data.empty == "drop":
                yield line
            else:
                bad.add(
                    line,
                    "an empty sequence",
                    "at least one token",
                    remedy="data.empty=drop",
                    id="D9",
                )


def tokens_of(value: Any, kind: str) -> list[str] | Problem:
    """The tokens of what a field holds, or what is wrong with it. Ids are checked and written as text."""
    if isinstance(value, str):
        tokens: list[Any] = list(value) if kind == "characters" else value.split()
        if kind == "ids":
            return tokens if all(map(_is_id, tokens)) else _bad_id(tokens, _is_id)
        return tokens
    if value is None:
        what, remedy = "no sequence", "data.sequence_field, or mend the line"
        return Problem(what, expected="a field with a list or a text", remedy=remedy, id="D14")
    if not isinstance(value, list):
        return Problem(
            "a sequence of the wrong kind",
            expected="a list or a text",
            found=f"{value!r:.60}",
            id="D14",
        )
    if kind == "ids":
        good = set(map(type, value)) <= {int} and (not value or min(value) >= 0)
        return (
            list(map(str, value))
            if good
            else _bad_id(value, lambda item: type(item) is int and item >= 0)
        )
    if set(map(type, value)) <= {str} and "" not in value:
        return value
    expected, found = f"a text or a list of {kind}", f"{value!r:.60}"
    return Problem(
        "a token of the wrong kind", expected=expected, found=found, remedy="data.tokens", id="D14"
    )


def _is_id(text: str) -> bool:
    return text.isascii() and text.isdigit() and (text[0] != "0" or text == "0")


def _bad_id(values: list[Any], is_good: Callable[[Any], bool]) -> Problem:
    position = next(position for position, value in enumerate(values) if not is_good(value))
    found = f"{values[position]!r:.60} at position {position + 1}"
    return Problem(
        "a token that is no id",
        expected="integers >= 0",
        found=found,
        remedy="data.tokens=words",
        id="D7",
    )


def _lines(
    path: str | Path, file: IO[bytes], bad: BadRows, watch: Watch
) -> Iterator[tuple[int, str]]:
    """(line number from 1, text without its end) of every line that is UTF-8. U+2028 ends no line."""
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    source: IO[bytes] = gzip.GzipFile(fileobj=file) if is_gzip else file  # type: ignore[assignment]
    number = size = told = 0
    check_at = RATIO_FROM
    try:
        while content := source.readline(MAX_LINE_BYTES + 1):
            number, size = number + 1, size + len(content)
            if len(content) > MAX_LINE_BYTES:
                expected, remedy = f"at most {MAX_LINE_BYTES:,} bytes", "one sequence per line"
                raise DataError(
                    Problem(
                        "a very long line",
                        f"{path}:{number}",
                        expected=expected,
                        remedy=remedy,
                        id="D13",
                    )
                )
            if number % 1024 == 0:
                told = _tell(watch, told, file.tell())
            if is_gzip and size > check_at:
                check_at = size + 2**20
                if size > MAX_RATIO * file.tell():
                    raise _gzip_error(path, f"it unpacks to more than {MAX_RATIO} times its size")
            if number == 1:
                content = content.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, content.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                found = f"byte 0x{content[error.start]:02x} at offset {error.start} of the line"
                bad.add(number, "not UTF-8", found=found, remedy="save the file as UTF-8", id="D11")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _gzip_error(path, str(error)) from None
    except OSError as error:
        raise DataError(
            Problem(f"cannot read the data: {error.strerror}", f"{path}:{number}", id="D1")
        ) from None
    _tell(watch, told, file.tell())


def _tell(watch: Watch, told: int, position: int) -> int:
    watch(position - told)
    return position


def _gzip_error(path: str | Path, found: str) -> DataError:
    what = "the gzip file is damaged or a bomb"
    return DataError(
        Problem(
            what,
            str(path),
            expected="a whole gzip file",
            found=found,
            remedy="gzip -t, or unpack it yourself",
            id="D20",
        )
    )


Rows = Iterator[tuple[int, dict[str, Any]]]
Lines = Iterator[tuple[int, str]]


def _json_rows(
    lines: Lines, _path: str | Path, _fields: tuple[str, ...], bad: BadRows, _delimiter: str
) -> Rows:
    for number, text in lines:
        if not text or text.isspace():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            bad.add(number, "not JSON", found=f"{str(error)[:60]}: {text[:40]!r}")
            continue
        if "\\ud" in text.lower() and not _is_text(row):
            bad.add(number, "half of a surrogate pair", "Unicode text", f"{text:.60}", id="D11")
        elif isinstance(row, dict):
            yield number, row
        else:
            bad.add(number, "not a JSON object", '{"sequence": ..., "label": ...}', f"{text:.60}")


def _is_text(value: Any) -> bool:
    """Whether all of its text can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _table_rows(
    lines: Lines, path: str | Path, fields: tuple[str, ...], bad: BadRows, delimiter: str
) -> Rows:
    rows = _split_rows(lines, path, bad, delimiter)
    line, header = next(rows, (1, None))
    if header is None:
        return
    missing = [name for name in fields if name not in header]
    if missing or len(set(header)) < len(header):
        expected = f"a header row with the columns {' and '.join(fields)}, each once"
        remedy = "data.sequence_field=..., data.label_field=..."
        raise DataError(
            Problem(
                "bad header",
                f"{path}:{line}",
                expected=expected,
                found=", ".join(header),
                remedy=remedy,
                id="D14",
            )
        )
    for line, row in rows:
        if len(row) == len(header):
            yield line, dict(zip(header, row, strict=True))
        elif row:
            bad.add(line, "a row of another width", f"{len(header)} columns", f"{len(row)} columns")


def _split_rows(
    lines: Lines, path: str | Path, bad: BadRows, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """(first line, fields) of each row, which may be several lines where a field is quoted."""
    begin = number = 0  # first line of the row, and the last one read

    def texts() -> Iterator[str]:
        nonlocal begin, number
        for number, text in lines:
            begin = begin or number
            yield text + "\n"

    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        begin = 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(
                error
            ):  # every row behind it was taken for a part of this one
                found, remedy = (
                    f"the end of the file, {number - begin} lines below",
                    "close it, or double it",
                )
                where, expected = f"{path}:{begin}", "a second quote"
                raise DataError(
                    Problem(
                        "an open quote",
                        where,
                        expected=expected,
                        found=found,
                        remedy=remedy,
                        id="D14",
                    )
                ) from None
            bad.add(
                begin,
                "not a row of the table",
                found=str(error),
                remedy="close the quotes, or mend the line",
            )
        else:
            yield begin, row
