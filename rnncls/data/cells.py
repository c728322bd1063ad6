"""Reads what the fields of a row hold: the tokens of a sequence, and a label."""

from collections.abc import Callable
from typing import Any

from rnncls.data.files.bad_rows import NO_ID_REMEDY
from rnncls.errors import Problem


def empty_sequence(remedy: str) -> Problem:
    """Return the problem of a row without tokens."""
    return Problem("an empty sequence", expected="at least one token", remedy=remedy, id="D9")


def is_label(value: Any) -> bool:
    """Return whether a field's value is a label: text, though not empty, or an integer."""
    # true and false are ints to Python, and a float has no one way to be written.
    return isinstance(value, str | int) and not isinstance(value, bool) and value != ""


def bad_label(row: dict[str, Any], field: str) -> Problem:
    if field in row and row[field] == "":
        what = "an empty label"
        found = ""
    elif field in row:
        what = "bad label"
        found = f"{row[field]!r:.60}"
    else:
        what = f'no field "{field}"'
        found = fields_of(row)
    remedy = "data.label_field, or fix the line"
    return Problem(what, expected="text or an integer", found=found, remedy=remedy, id="D5")


def fields_of(row: dict[str, Any]) -> str:
    return f"the fields {', '.join(row)}" if row else "no fields"


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
