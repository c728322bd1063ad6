"""Reads labelled sequences from JSONL, CSV and TSV files, line by line, and names every bad line.

    JSONL   {"sequence": [3, 1, 4], "label": 8}     or {"sequence": "some text", "label": "code"}
    CSV     a header row, then one row each, separated by commas, semicolons, tabs or bars
    TSV     the same with tabs

Any of them may be gzipped. Lines end with LF or CRLF; a byte order mark is accepted. Only the
current line is kept in memory.
"""

import csv
import gzip
import hashlib
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.errors import CheckpointError, DataError, Problem

# Only the current line is in memory: this bounds what a file without line ends can take.
MAX_LINE_BYTES = 16 * 2**20

# Ids among which one is none are mistyped. Where most rows have no ids, they are words.
NO_ID_REMEDY = "fix the line"
NO_IDS_REMEDY = "data.tokens=words"

MOST_SHOWN = 5  # bad lines of a file, and lines with the same cause

# What may stand between the columns of a table, by its name in a config. The comma is first: a
# header row that can be read with commas always was.
SEPARATORS = {",": ",", ";": ";", "tab": "\t", "|": "|"}

# A progress bar does not need more, and asking a file for its position takes a system call.
LINES_PER_REPORT = 1024  # lines between two calls of `report_bytes`

# A gzip file may be a bomb. Text hardly shrinks to a hundredth; below 64 MiB no ratio does harm.
MAX_RATIO = 500
RATIO_FROM = 64 * 2**20
RATIO_EVERY = 2**20  # bytes between two checks

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

ReportBytes = Callable[[int], object]  # gets the number of bytes read since its last call
Lines = Iterator[tuple[int, str]]  # number of the line, from 1, and its text
NumberedRows = Iterator[tuple[int, dict[str, Any]]]  # number of the row's first line, its fields


class Record(NamedTuple):
    """One good row: its line in the file, its tokens (at least one) and its label."""

    line: int
    tokens: list[str]
    label: str


class BadRows:
    """Collects the bad rows of one file: the first few in full, the others counted.

    What is wrong with more than a few rows is told once, with the lines of the first.
    """

    remedy = "fix or remove the line"  # of rows that have none of their own

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.count = 0
        self.problems: list[Problem] = []  # the first of each cause
        self.causes: Counter[tuple[str, str, str]] = Counter()
        self.num_without_ids = 0  # rows

    def add(
        self,
        line: int,
        what: str,
        expected: str = "",
        found: str = "",
        remedy: str = "",
        id: str = "D14",
    ) -> None:
        """Add a bad row by its line; the other arguments are those of a `Problem`."""
        self.count += 1
        self.num_without_ids += id == "D7"
        self.note(
            Problem(
                what,
                f"{self.path}:{line}",
                expected=expected,
                found=found,
                remedy=remedy or self.remedy,
                id=id,
            )
        )

    def note(self, problem: Problem) -> None:
        """Keep the problem, if it is one of the first with its cause."""
        cause = _cause_of(problem)
        if cause in self.causes or len(self.causes) < MOST_SHOWN:
            self.causes[cause] += 1
            if self.causes[cause] <= MOST_SHOWN:
                self.problems.append(problem)

    def add_problem(self, line: int, problem: Problem) -> None:
        """Add a problem that does not know its line."""
        self.add(
            line,
            problem.what,
            expected=problem.expected,
            found=problem.found,
            remedy=problem.remedy,
            id=problem.id or "D14",
        )

    def raise_if_any(self, num_good: int | None = None) -> None:
        """Raise DataError if there are bad rows, with the first of them and their number.

        `num_good` is the number of the other rows, None if nobody has counted them.
        """
        if not self.problems:
            return

        num_rows = None if num_good is None else self.count + num_good
        shown: list[Problem] = []
        num_told = 0  # bad rows that are shown, or counted in what is shown
        told = set()
        for problem in self.problems:
            cause = _cause_of(problem)
            if cause in told or len(shown) == MOST_SHOWN:
                continue

            count = self.causes[cause]
            if count > MOST_SHOWN or 1 < count == num_rows:
                shown.append(self._told_once(cause, num_rows))
                num_told += count
                told.add(cause)
            else:
                shown.append(problem)
                num_told += 1

        # The last problem says how many there are in all, if not every one is shown.
        if self.count > num_told:
            what = f"{self.count:,} bad rows in all"
            shown.append(Problem(what, str(self.path), id=shown[0].id))
        raise DataError(*(self._with_remedy(problem, num_rows) for problem in shown))

    def _with_remedy(self, problem: Problem, num_rows: int | None) -> Problem:
        """Return the problem with what helps where most of the rows have no ids."""
        if problem.id != "D7" or problem.remedy != NO_ID_REMEDY or num_rows is None:
            return problem
        if 2 * self.num_without_ids <= num_rows:
            return problem
        return replace(problem, remedy=NO_IDS_REMEDY)

    def _told_once(self, cause: tuple[str, str, str], num_rows: int | None) -> Problem:
        """Return the problem of all rows with this cause: that of the first, with the others."""
        first, *others = [problem for problem in self.problems if _cause_of(problem) == cause]
        count = self.causes[cause]
        if count == num_rows:
            share = f"in all {count:,} rows"
        else:
            share = (
                f"in {count:,} rows" if num_rows is None else f"in {count:,} of {num_rows:,} rows"
            )

        lines = ", ".join(problem.where.rpartition(":")[2] for problem in others)
        also = f"likewise in lines {lines}" + (", ..." if count > MOST_SHOWN else "")
        found = f"{first.found}; {also}" if first.found else also
        return replace(first, what=f"{first.what}, {share}", found=found)


def _cause_of(problem: Problem) -> tuple[str, str, str]:
    """Return what problems of the same cause have in common; places and values differ."""
    return problem.what, problem.expected, problem.remedy


def without_keys(error: DataError, remedy: str) -> DataError:
    """Return the error with `remedy` in place of those that name a key of the config.

    For a file that is read as a finished run read its own: there, no key can be changed.
    """
    problems = []
    for problem in error.problems:
        if "data." in problem.remedy:
            problem = replace(problem, remedy=remedy)
        problems.append(problem)
    return DataError(*problems)


@contextmanager
def opened(path: str | Path) -> Iterator[IO[bytes]]:
    """Open a regular file for reading bytes; never blocks.

    Raises: DataError if it cannot be read or is not a regular file.
    """
    try:
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        what = f"cannot read the data: {error.strerror}"
        remedy = "the path of a JSONL, CSV or TSV file"
        raise DataError(Problem(what, str(path), remedy=remedy, id="D1")) from None

    # Asked of the open file, not of the path, which could be another file by then.
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        remedy = "a file; a pipe can be saved to one first"
        raise DataError(Problem("not a regular file", str(path), remedy=remedy, id="D1"))

    with open(descriptor, "rb") as file:
        yield file


def fingerprint(path: str | Path) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal. Raises: DataError."""
    with opened(path) as file:
        digest = hashlib.file_digest(file, "sha256")  # type: ignore[arg-type]  # a BufferedReader
    return digest.hexdigest()


def require_unchanged_files(
    paths_and_hashes: Iterable[tuple[str, str]], of_what: str, remedy: str
) -> None:
    """Raise CheckpointError unless every file still has the SHA-256 that it is given with.

    `of_what` began when the files were as expected: "run" or "sweep".

    Raises: DataError, too, if a file cannot be read.
    """
    for path, known in paths_and_hashes:
        now = fingerprint(path)
        if now != known:
            what = f"the data has changed since the {of_what} began"
            expected = f"SHA-256 {known}"
            raise CheckpointError(
                Problem(what, path, expected=expected, found=now, remedy=remedy, id="D18")
            )


def format_of(path: str | Path, format: str) -> str:
    """Return jsonl, csv or tsv. Raises: DataError if `auto` cannot tell."""
    if format != "auto":
        return format

    suffix = Path(str(path).removesuffix(".gz")).suffix[1:].lower()
    synonyms = {"json": "jsonl", "ndjson": "jsonl", "tab": "tsv"}
    suffix = synonyms.get(suffix, suffix)
    if suffix not in ("jsonl", "csv", "tsv"):
        what = "unknown format"
        expected = "a name that ends in .jsonl, .csv or .tsv, with or without .gz"
        remedy = "data.format=jsonl"
        raise DataError(Problem(what, str(path), expected=expected, remedy=remedy, id="D14"))
    return suffix


def read_records(
    path: str | Path,
    data: FilesConfig,
    bad: BadRows,
    report_bytes: ReportBytes = lambda _: None,
) -> Iterator[Record | int]:
    """Yield the good rows of a file; a number stands for an empty sequence dropped on that line.

    Bad rows are added to `bad`. Raises: DataError if the file cannot be read any further.
    """
    format = format_of(path, data.format)
    fields = [data.sequence_field, data.label_field]
    for line, row in read_rows(path, format, data.separator, fields, bad, report_bytes):
        record = _record_of(line, row, data)
        if isinstance(record, Problem):
            bad.add_problem(line, record)
        else:
            yield record


def read_rows(
    path: str | Path,
    format: str,
    separator: str,
    fields: list[str],
    bad: BadRows,
    report_bytes: ReportBytes = lambda _: None,
) -> NumberedRows:
    """Yield (line, row) for the rows of a file, by field; a table must have the columns `fields`.

    `format` is jsonl, csv or tsv, `separator` a value of data.separator. Rows that cannot be read
    are added to `bad`; what the fields hold is not looked at.

    Raises: DataError if the file cannot be read any further.
    """
    with opened(path) as file:
        lines = _lines(path, file, bad, report_bytes)
        if format == "jsonl":
            yield from _json_rows(lines, bad)
            return

        if separator == "auto" and format == "tsv":
            separator = "tab"
        elif separator == "auto":
            first_lines = list(islice(lines, 1))
            separator = find_separator([text for _, text in first_lines], fields)
            lines = chain(first_lines, lines)
        yield from _table_rows(lines, path, fields, bad, SEPARATORS[separator])


def read_lines(path: str | Path, bad: BadRows) -> Lines:
    """Yield the number and the text of each line that is UTF-8; the others are added to `bad`.

    Raises: DataError if the file cannot be read any further.
    """
    with opened(path) as file:
        yield from _lines(path, file, bad, report_bytes=lambda _: None)


def find_separator(first_lines: list[str], fields: list[str]) -> str:
    """Return the name of the separator with which a header row has the fields.

    That is the comma if several have them, or none.
    """
    for name, delimiter in SEPARATORS.items():
        header = next(parsed_rows(first_lines, delimiter), [])
        if all(field in header for field in fields):
            return name
    return ","


def parsed_rows(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    """Yield the rows of a piece of a table, up to the first that is none or is cut off."""
    csv.field_size_limit(MAX_LINE_BYTES)
    with suppress(csv.Error):
        yield from csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)


def _record_of(line: int, row: dict[str, Any], data: FilesConfig) -> Record | int | Problem:
    """Return the record of a row, its line if its sequence is empty and dropped, or a Problem."""
    if data.sequence_field not in row:
        return _no_sequence(row, data.sequence_field)
    tokens = tokens_of(row[data.sequence_field], data.tokens)
    if isinstance(tokens, Problem):
        return tokens

    label = row.get(data.label_field)
    if not is_label(label):
        return _bad_label(row, data.label_field)

    # The label was checked first: a bad one is named even if the sequence is dropped.
    if tokens:
        return Record(line, tokens, str(label))
    if data.empty == "drop":
        return line
    return empty_sequence("data.empty=drop")


def empty_sequence(remedy: str) -> Problem:
    """Return the problem of a row without tokens."""
    return Problem("an empty sequence", expected="at least one token", remedy=remedy, id="D9")


def _no_sequence(row: dict[str, Any], field: str) -> Problem:
    return Problem(
        f'no sequence: no field "{field}"',
        expected="a field with a list or a text",
        found=_fields_of(row),
        remedy="data.sequence_field=..., or fix the line",
        id="D14",
    )


def _fields_of(row: dict[str, Any]) -> str:
    return f"the fields {', '.join(row)}" if row else "no fields"


def is_label(value: Any) -> bool:
    """Return whether a field's value is a label: text, though not empty, or an integer."""
    # true and false are ints to Python, and a float has no one way to be written.
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def _bad_label(row: dict[str, Any], field: str) -> Problem:
    if field in row and row[field] == "":
        what = "an empty label"
        found = ""
    elif field in row:
        what = "bad label"
        found = f"{row[field]!r:.60}"
    else:
        what = f'no field "{field}"'
        found = _fields_of(row)
    remedy = "data.label_field, or fix the line"
    return Problem(what, expected="text or an integer", found=found, remedy=remedy, id="D5")


def tokens_of(value: Any, kind: str) -> list[str] | Problem:
    """Return the tokens of a field's value, or a Problem.

    `kind` is data.tokens: ids, words or characters. Ids are checked, and returned as text.
    """
    # None stands for a field that is missing, and for null.
    if value is None:
        remedy = "data.sequence_field, or fix the line"
        expected = "a field with a list or a text"
        return Problem("no sequence", expected=expected, remedy=remedy, id="D14")
    if isinstance(value, str):
        return _tokens_of_text(value, kind)
    if isinstance(value, list):
        return _tokens_of_list(value, kind)

    expected = "a list or a text"
    found = f"{value!r:.60}"
    return Problem("a sequence of the wrong kind", expected=expected, found=found, id="D14")


def _tokens_of_text(text: str, kind: str) -> list[str] | Problem:
    if kind == "characters":
        return list(text)

    # White space of any kind and number, so that no token is empty.
    tokens = text.split()
    if kind == "ids" and not all(map(_is_id_text, tokens)):
        # They may stand as in a list, "[3, 1, 4]", or between commas alone.
        tokens = _without_brackets(text).replace(",", " ").split()
        if not all(map(_is_id_text, tokens)):
            return _bad_id(tokens, _is_id_text)
    return tokens


def _without_brackets(text: str) -> str:
    """Return what is between the brackets of a list; another text as it is."""
    inner = text.strip()
    if inner.startswith("[") and inner.endswith("]"):
        return inner[1:-1]
    return text


def _tokens_of_list(values: list[Any], kind: str) -> list[str] | Problem:
    # Whole lists are checked at once, by the set of their types: this is the hot path of reading.
    types = set(map(type, values))
    if kind == "ids":
        # type() tells True from 1, where isinstance() would not.
        if types <= {int} and (not values or min(values) >= 0):
            return list(map(str, values))
        return _bad_id(values, _is_id)

    if types <= {str} and "" not in values:
        return values
    expected = f"a text or a list of {kind}"
    found = f"{values!r:.60}"
    return Problem(
        "a token of the wrong kind", expected=expected, found=found, remedy="data.tokens", id="D14"
    )


def _is_id(value: Any) -> bool:
    # True and False are ints, too, but no ids.
    return type(value) is int and value >= 0


def _is_id_text(text: str) -> bool:
    """Return whether the text is an id in its only notation: without sign or leading zeros."""
    # isdigit() alone accepts the digits of every script, and "²".
    return text.isascii() and text.isdigit() and (text[0] != "0" or text == "0")


def _bad_id(values: list[Any], is_good: Callable[[Any], bool]) -> Problem:
    """Return the problem of the first value that is not an id."""
    position = next(position for position, value in enumerate(values) if not is_good(value))
    return Problem(
        "not an integer id",
        expected="integers >= 0",
        found=f"{values[position]!r:.60} at position {position + 1}",
        remedy=NO_ID_REMEDY,
        id="D7",
    )


def decode_line(content: bytes, is_first: bool) -> str | Problem:
    """Return the text of a line without its end, or a Problem if it is not UTF-8.

    The first line of a file may begin with a byte order mark, which is removed.
    """
    if is_first:
        content = content.removeprefix(BYTE_ORDER_MARK)

    # Exactly one line end: other white space may be a token of the sequence.
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at offset {error.start} of the line"
        return Problem("not UTF-8", found=found, remedy="save the text as UTF-8", id="D11")


def _lines(path: str | Path, file: IO[bytes], bad: BadRows, report_bytes: ReportBytes) -> Lines:
    """Yield every line that is UTF-8, without its end. U+2028 does not end a line."""
    # By its first two bytes, because a name may be missing .gz or have it without reason.
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    source: IO[bytes] = gzip.GzipFile(fileobj=file) if is_gzip else file  # type: ignore[assignment]

    number = 0
    unpacked = 0  # bytes
    check_at = RATIO_FROM  # unpacked bytes at which the ratio is checked next
    reported = 0  # bytes of the file passed to `report_bytes`
    try:
        # One byte more than allowed tells a line that is too long from one that just fits.
        while content := source.readline(MAX_LINE_BYTES + 1):
            number += 1
            unpacked += len(content)
            if len(content) > MAX_LINE_BYTES:
                raise long_line(path, number)

            if number % LINES_PER_REPORT == 0:
                report_bytes(file.tell() - reported)
                reported = file.tell()

            # The position in the packed file is that of the unpacked text, give or take a buffer.
            if is_gzip and unpacked > check_at:
                check_at = unpacked + RATIO_EVERY
                if unpacked > MAX_RATIO * file.tell():
                    raise _gzip_error(path, f"it unpacks to more than {MAX_RATIO} times its size")

            text = decode_line(content, is_first=number == 1)
            if isinstance(text, Problem):
                bad.add_problem(number, text)
            else:
                yield number, text
    # EOFError is a gzip file that was cut off.
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _gzip_error(path, str(error)) from None
    except OSError as error:
        what = f"cannot read the data: {error.strerror}"
        raise DataError(Problem(what, f"{path}:{number}", id="D1")) from None

    report_bytes(file.tell() - reported)


def long_line(path: str | Path, number: int) -> DataError:
    """Return the error to raise for a line of more than MAX_LINE_BYTES."""
    expected = f"at most {MAX_LINE_BYTES:,} bytes"
    remedy = "one sequence per line"
    where = f"{path}:{number}"
    return DataError(Problem("a very long line", where, expected=expected, remedy=remedy, id="D13"))


def _gzip_error(path: str | Path, found: str) -> DataError:
    what = "the gzip file is damaged or a bomb"
    expected = "a complete gzip file"
    remedy = "gzip -t, or unpack it yourself"
    return DataError(
        Problem(what, str(path), expected=expected, found=found, remedy=remedy, id="D20")
    )


def _json_rows(lines: Lines, bad: BadRows) -> NumberedRows:
    """Yield the JSON object of each line that has one. Blank lines are skipped."""
    for number, text in lines:
        if not text or text.isspace():
            continue

        # RecursionError is how Python answers thousands of nested brackets.
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            bad.add(number, "not JSON", found=f"{str(error)[:60]}: {text[:40]!r}")
            continue

        # Python reads "\ud800" as text that no file can hold. Looking for the escape is much
        # faster than looking at every value.
        if "\\ud" in text.lower() and not _is_text(row):
            bad.add(
                number,
                "half of a surrogate pair",
                expected="Unicode text",
                found=f"{text:.60}",
                id="D11",
            )
        elif isinstance(row, dict):
            yield number, row
        else:
            bad.add(
                number,
                "not a JSON object",
                expected='{"sequence": ..., "label": ...}',
                found=f"{text:.60}",
            )


def _is_text(value: Any) -> bool:
    """Return whether all text in a JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _table_rows(
    lines: Lines, path: str | Path, fields: list[str], bad: BadRows, delimiter: str
) -> NumberedRows:
    """Yield each row of a table by column. Raises: DataError if the header lacks a field."""
    rows = _split_rows(lines, path, bad, delimiter)
    line, header = next(rows, (1, None))
    # An empty file has no rows, and is reported where its sequences are missed.
    if header is None:
        return

    # Of two columns with the same name, only one would be read.
    has_fields = all(name in header for name in fields)
    has_duplicates = len(set(header)) < len(header)
    if has_duplicates or not has_fields:
        raise _bad_header(f"{path}:{line}", header, fields)

    for line, row in rows:
        if len(row) == len(header):
            yield line, dict(zip(header, row, strict=True))
        # A row without fields is a blank line, which is skipped.
        elif row:
            remedy = bad.remedy
            if len(row) > len(header):
                remedy = f"quotes around a text that has {delimiter!r} in it, or fix the line"
            bad.add(
                line,
                "wrong number of columns",
                expected=f"{len(header)} columns",
                found=f"{len(row)} columns",
                remedy=remedy,
            )


def _bad_header(where: str, header: list[str], fields: list[str]) -> DataError:
    columns = f"the columns {' and '.join(fields)}, each once" if fields else "each column once"
    remedy = "data.sequence_field=..., data.label_field=..."
    if fields:
        # Without a header, the first row of the data stands where it would be.
        remedy += f"; or, if this row is data, a line {','.join(fields)} above it"
    return DataError(
        Problem(
            "bad header",
            where,
            expected=f"a header row with {columns}",
            found=", ".join(header),
            remedy=remedy,
            id="D14",
        )
    )


def _split_rows(
    lines: Lines, path: str | Path, bad: BadRows, delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, fields) of each row. A quoted field may extend over several lines."""
    # csv.reader tells only how many lines it has taken, and lines that are not UTF-8 never reach
    # it: so the lines are counted as they pass.
    first_line = 0  # of the row that is being read; 0 before its first line
    number = 0  # of the last line read

    def texts() -> Iterator[str]:
        nonlocal first_line, number
        for number, text in lines:
            first_line = first_line or number
            yield text + "\n"

    # Python's own limit of 128 KiB per field would refuse long sequences.
    csv.field_size_limit(MAX_LINE_BYTES)
    reader = csv.reader(texts(), delimiter=delimiter, strict=True)
    while True:
        first_line = 0
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                # Every row behind the quote was taken for a part of this one: nothing is left.
                raise _open_quote(path, first_line, number) from None
            remedy = "close the quotes, or fix the line"
            bad.add(first_line, "not a row of the table", found=str(error), remedy=remedy)
        else:
            yield first_line, row


def _open_quote(path: str | Path, first_line: int, last_line: int) -> DataError:
    return DataError(
        Problem(
            "an open quote",
            f"{path}:{first_line}",
            expected="a second quote",
            found=f"the end of the file, {last_line - first_line} lines below",
            remedy="close it, or double it",
            id="D14",
        )
    )
