"""Reads JSON: lines with an object each, or one array of objects."""

import codecs
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.encodings import can_be_written, undecodable
from rnncls.data.files.lines import Lines, text_of, too_long
from rnncls.data.files.opening import ReportBytes
from rnncls.errors import DataError, Problem

END_OF_FILE = "the end of the file"

# Of a row: an object in it takes up to 40 times as much memory as its text.
MOST_BRACKETS = 2**20

BLOCK_BYTES = 2**18  # of an array, read at a time

NumberedRows = Iterator[tuple[int, dict[str, Any]]]  # number of the row's first line, its fields

# Possessive: what was matched is not tried again, and takes no memory.
_QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"', re.DOTALL)

_decode = json.JSONDecoder().raw_decode


def json_rows(lines: Lines, bad: BadRows) -> NumberedRows:
    """Yield the JSON object of each line that has one. Blank lines are skipped."""
    for number, text in lines:
        if not text or text.isspace():
            continue

        if len(text) > MOST_BRACKETS and _has_many_brackets(text):
            bad.add_problem(number, _many_brackets())
            continue

        # RecursionError is how Python answers thousands of nested brackets.
        try:
            row = _value_of(text)
        except (ValueError, RecursionError) as error:
            _add_no_json(bad, number, text, error)
            continue

        # Python reads "\ud800" as text that no file can hold. Looking for an escape is much
        # faster than looking at every value.
        is_plain = type(row) is dict and "\\u" not in text
        if is_plain or _is_good(row, text, number, bad):
            yield number, row
        # A large row is not kept while the next one is read.
        del text, row


def _has_many_brackets(text: str) -> bool:
    # Most texts have few of them even where they are characters of a text.
    if text.count("{") + text.count("[") <= MOST_BRACKETS:
        return False
    outside = _QUOTED.sub("", text)
    return outside.count("{") + outside.count("[") > MOST_BRACKETS


def _many_brackets() -> Problem:
    return Problem(
        "very many lists and objects in a row",
        expected=f"at most {MOST_BRACKETS:,}",
        remedy="the fields of the sequence and the label alone",
        id="D13",
    )


def _value_of(text: str) -> Any:
    """Return the JSON value of a line, as json.loads does. Raises: ValueError, RecursionError."""
    # Nearly every line is a value from its first character to its last, which is found faster.
    try:
        value, end = _decode(text)
    except ValueError:
        return json.loads(text)
    return value if end == len(text) else json.loads(text)


def _add_no_json(bad: BadRows, number: int, text: str, error: Exception) -> None:
    bad.add(number, "not JSON", found=f"{str(error)[:60]}: {text[:40]!r}")


def _is_good(row: Any, text: str, number: int, bad: BadRows) -> bool:
    """Return whether a JSON value is a row. Otherwise it is added to `bad`."""
    if "\\ud" in text.lower() and not _is_text(row):
        bad.add(
            number,
            "half of a surrogate pair",
            expected="Unicode text",
            found=f"{text:.60}",
            id="D11",
        )
        return False
    if not isinstance(row, dict):
        bad.add(
            number,
            "not a JSON object",
            expected='{"sequence": ..., "label": ...}',
            found=f"{text:.60}",
        )
        return False
    return True


def _is_text(value: Any) -> bool:
    """Return whether all text in a JSON value can be written as UTF-8."""
    return can_be_written(json.dumps(value, ensure_ascii=False))


_SPACE = re.compile(r"[ \t\r\n]*")

# Where a value ends: a bracket or a brace outside texts. A text may hold anything, and has no
# second quote where it goes on behind what was read.
_TEXT = r'"[^"\\]*(?:\\.[^"\\]*)*'
_TEXT_OR_BRACKET = re.compile(rf'{_TEXT}("?)|[][{{}}]', re.DOTALL)
_TEXT_OR_WORD = re.compile(rf'{_TEXT}"|[^][{{}},"\s]+', re.DOTALL)

# What stands between two objects. In the middle of a bad one, nobody knows how many it is.
_BETWEEN = re.compile(r"\}\s*,?\s*\{")


def array_rows(
    path: str | Path,
    file: io.BufferedReader,
    bad: BadRows,
    report_bytes: ReportBytes,
    encoding: str,
    most: int,
) -> NumberedRows:
    """Yield each object of a JSON array, with the line on which it begins.

    At most `most` bytes of the text, and a block, are in memory.

    Raises: DataError if the file is no such array, ends within it, or if it cannot be told where
    one of its objects ends.
    """
    array = _Array(path, file, report_bytes, encoding, most)
    array.skip_space()
    if array.is_at_end():
        return
    if not array.take("["):
        raise array.error("not a JSON array", "an array of objects: [{...}, {...}]")

    is_empty = array.take("]")
    while not is_empty:
        line, text, row = array.element()
        if _is_good_element(array, line, text, row, bad, encoding):
            yield line, row

        if array.take("]"):
            break
        if not array.take(","):
            raise array.error("not a JSON array", "a comma or ] behind an object")

    array.skip_space()
    if not array.is_at_end():
        raise array.error("not a JSON array", "nothing behind the end of the array")


def _is_good_element(
    array: "_Array", line: int, text: str, row: Any, bad: BadRows, encoding: str
) -> bool:
    """Return whether a value of an array is a row. Otherwise it is added to `bad`.

    Raises: DataError if it cannot be told where the value ends.
    """
    if len(text) > array.most:
        bad.add_problem(line, _long_object(array.most))
        return False
    if not can_be_written(text):
        content = text.encode(errors="surrogateescape")
        bad.add_problem(line, undecodable(content, encoding))
        return False
    if not isinstance(row, Exception):
        return _is_good(row, text, line, bad)

    # In the middle of a bad object, nobody knows how many it is.
    if _BETWEEN.search(text):
        raise array.error_at(line, "not JSON", str(row)[:60])
    _add_no_json(bad, line, text, row)
    return False


def _long_object(most: int) -> Problem:
    return too_long("a very long JSON object", most, "close the object")


class _Array:
    """The text of a JSON array, of which no more than the current value is kept."""

    def __init__(
        self,
        path: str | Path,
        file: io.BufferedReader,
        report_bytes: ReportBytes,
        encoding: str,
        most: int,
    ) -> None:
        self.path = path
        self.file = file
        self.source = text_of(path, file, encoding)
        self.report_bytes = report_bytes
        self.reported = 0  # bytes of the file passed to `report_bytes`
        self.most = most  # bytes of a value

        # What is no UTF-8 becomes halves of surrogate pairs, and is found in its object.
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text = ""
        self.at = 0  # position in `text`
        self.line = 1  # of that position
        self.has_ended = False
        self.more()
        self.text = self.text.removeprefix("\ufeff")

    def more(self) -> bool:
        """Read a block behind the text that is left, and return whether there was one."""
        if self.has_ended:
            return False

        # As much as there is already: a long object is then looked at a few times, not often.
        left = self.text[self.at :]
        block = self.source.read(max(BLOCK_BYTES, len(left)))
        self.report_bytes(self.file.tell() - self.reported)
        self.reported = self.file.tell()
        self.has_ended = not block
        self.text = left + self.decoder.decode(block, self.has_ended)
        self.at = 0
        return not self.has_ended

    def is_at_end(self) -> bool:
        """Return whether nothing is left of the file."""
        return self.at == len(self.text) and self.has_ended

    def advance(self, end: int) -> str:
        """Go on to a position, and return the text before it."""
        taken = self.text[self.at : end]
        self.line += taken.count("\n")
        self.at = end
        return taken

    def skip_space(self) -> None:
        while True:
            match = _SPACE.match(self.text, self.at)
            self.advance(match.end() if match else self.at)
            if self.at < len(self.text) or not self.more():
                return

    def take(self, character: str) -> bool:
        """Skip white space, and this character if it comes next; return whether it did."""
        self.skip_space()
        found = self.text.startswith(character, self.at)
        if found:
            self.at += 1
        return found

    def element(self) -> tuple[int, str, Any]:
        """Return the line on which the next value begins, its text, and the value.

        In place of the value stands an exception if it is no JSON.
        """
        self.skip_space()
        line = self.line
        while True:
            end, value = self._value()
            if end is not None:
                return line, self.advance(end), value

            if len(self.text) - self.at > self.most:
                raise DataError(replace(_long_object(self.most), where=f"{self.path}:{line}"))
            if not self.more() and self._value()[0] is None:
                what = "the JSON array ends too early"
                raise self.error_at(line, what, END_OF_FILE, "the end of this object")

    def _value(self) -> tuple[int | None, Any]:
        """Return where the value ends that begins here, and the value, or why it is none.

        The end is None if it is not in the text yet.
        """
        # A number or a word may go on behind the text, and is no row anyway.
        match = _TEXT_OR_WORD.match(self.text, self.at)
        if match and match.end() == len(self.text) and not self.has_ended:
            return None, None
        most = MOST_BRACKETS
        if len(self.text) - self.at > most and _has_many_brackets(self.text[self.at :]):
            end = match.end() if match else self._end_of_brackets()
            if end is None or _has_many_brackets(self.text[self.at : end]):
                return end, ValueError(_many_brackets().what)
        try:
            value, end = _decode(self.text, self.at)
        except (ValueError, RecursionError) as error:
            return match.end() if match else self._end_of_brackets(), error
        return end, value

    def _end_of_brackets(self) -> int | None:
        depth = 0
        for match in _TEXT_OR_BRACKET.finditer(self.text, self.at):
            part = match[0]
            if part[0] == '"':
                # A text without its second quote goes on in the next block.
                if not match[1]:
                    return None
            else:
                depth += 1 if part in "[{" else -1
                if depth == 0:
                    return match.end()
                if depth < 0:
                    raise self.error("not a JSON array", "an object")
        return None

    def error(self, what: str, expected: str) -> DataError:
        """Return the error of a file that does not go on as expected here."""
        self.skip_space()
        found = repr(self.text[self.at : self.at + 40]) if self.text[self.at :] else ""
        return self.error_at(self.line, what, found or END_OF_FILE, expected)

    def error_at(self, line: int, what: str, found: str, expected: str = "") -> DataError:
        where = f"{self.path}:{line}"
        remedy = "fix the file here: what follows cannot be told apart"
        if found == END_OF_FILE:
            remedy = "make the file anew: it was cut off"
        return DataError(
            Problem(what, where, expected=expected, found=found, remedy=remedy, id="D14")
        )
