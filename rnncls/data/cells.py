"""Reads what the fields of a row hold: the tokens of a sequence, and a label."""

import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.files.bad_rows import FRACTIONS, FRACTIONS_REMEDY, NO_ID_REMEDY
from rnncls.data.files.headers import LABEL_NAMES, key_of_field
from rnncls.errors import Problem

# Between the tokens of two fields that make one sequence.
SEPARATOR = "<sep>"

MOST_LETTERS_OF_NUMBER = 40

# In a row from this length on, equal tokens are one text: each of its own takes up to 80 bytes.
LONG_ROW = 2**18
MOST_SHARED = 2**16  # different ones
_WORD = re.compile(r"\S+")
_PLAIN_WORDS_AND_MARKS = re.compile(r"\w+|[^\w\s]")

# What may stand around the items of a list: white space, and the quotes of texts.
_AROUND_ITEMS = " \t\r\n\"'"

# Not `nan`, which is a word like any other where there are no numbers beside it.
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", re.ASCII)
_ZERO_IN_FRONT = re.compile(" 0[0-9]")
_WHOLE = re.compile(r"\d+\.0*", re.ASCII)

_TIGHT_COMMA = re.compile(r"\d[,;]\d", re.ASCII)

# "[laughs]" and "[a, b]" may well be text.
_LIST = re.compile(r"""\s*\[\s*((?P<quote>['"]).*(?P=quote)|[-+.\d][-+.,;\deE\s]*)\s*\]\s*""", re.S)


class TokenRule(NamedTuple):
    """How the text of a field becomes tokens."""

    kind: str  # data.tokens
    lowercase: bool = False
    at_marks: bool = False  # whether words also end at punctuation


def rule_of(data: FilesConfig) -> TokenRule:
    """Return how a config has texts read."""
    return TokenRule(data.tokens, data.lowercase, data.word_boundaries == "punctuation")


def empty_sequence(remedy: str) -> Problem:
    """Return the problem of a row without tokens."""
    return Problem("an empty sequence", expected="at least one token", remedy=remedy, id="D9")


def label_of(value: Any) -> str | None:
    """Return a field's value as the text of its label, None if it is no label.

    JSON's true and 1.0 are what a table writes as `true` and `1`. White space around a label is
    taken away where labels are numbered (labels.py).
    """
    # Nearly all of them, and the fastest way to ask: this is the hot path of reading.
    if type(value) is str:
        return None if not value or value.isspace() else value
    # True and False are integers, too.
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    return None


def is_label(value: Any) -> bool:
    """Return whether a field's value is a label: text, but for white space, or a whole number."""
    return label_of(value) is not None


def bad_label(row: dict[str, Any], field: str) -> Problem:
    """Return the problem of a row whose field holds no label."""
    value = row.get(field)
    found = f"{value!r:.60}"
    expected = "text or an integer"
    remedy = "data.label_field, or fix the line"

    if field not in row:
        what = f'no field "{field}"'
        found = fields_of(row)
        remedy = f"{key_of_field('label_field', field, row, LABEL_NAMES)}, or fix the line"
    elif value is None:
        what = "bad label"
        found = "null"
    elif isinstance(value, str):
        what = "an empty label"
        found = found if value else ""
    elif isinstance(value, float):
        what = "a number with a fraction is no label"
        expected = "classes: text, integers, true or false"
        remedy = "data.label_field, or classes such as low and high in its place"
    else:
        what = "bad label"

    return Problem(what, expected=expected, found=found, remedy=remedy, id="D5")


def fields_of(row: dict[str, Any]) -> str:
    """Return the names of a row's fields, for messages."""
    return f"the fields {', '.join(row)}" if row else "no fields"


def sequence_of(row: dict[str, Any], fields: tuple[str, ...]) -> Any:
    """Return the value of a row's sequence, which `tokens_of` reads; None if the row has none.

    That of several fields is a tuple of their values.
    """
    if len(fields) == 1:
        return row.get(fields[0])
    values = tuple(map(row.get, fields))
    # One of several may be missing; where all are, their names are wrong.
    return values if any(field in row for field in fields) else None


def tokens_of(value: Any, rule: TokenRule) -> list[str] | Problem:
    """Return the tokens of a field's value, or a Problem.

    Ids are checked, and returned as text. Of subwords, the words are returned: what they consist of
    follows from the training data. The tokens of several values, in a tuple, are joined by <sep>.
    """
    if isinstance(value, str):
        return _tokens_of_text(value, rule)
    if isinstance(value, list):
        return _tokens_of_list(value, rule)
    if isinstance(value, tuple):
        return _tokens_of_several(value, rule)
    # A table cannot tell 7 from "7".
    if type(value) is int:
        return _tokens_of_text(str(value), rule)

    expected = "a list or a text"
    # None stands for a field that is missing, and for null.
    if value is None:
        remedy = "data.sequence_field, or fix the line"
        expected = "a field with a list or a text"
        return Problem("no sequence", expected=expected, remedy=remedy, id="D14")
    if isinstance(value, float) and rule.kind == "ids":
        return _bad_id([value], _is_id)
    found = f"{value!r:.60}"
    return Problem("a sequence of the wrong kind", expected=expected, found=found, id="D14")


def _tokens_of_several(values: tuple[Any, ...], rule: TokenRule) -> list[str] | Problem:
    """Return the tokens of several fields, with <sep> between two; none if all are empty."""
    joined: list[str] = []
    is_empty = True
    for position, value in enumerate(values):
        tokens = [] if value is None else tokens_of(value, rule)
        if isinstance(tokens, Problem):
            return tokens

        # Also beside an empty one: the model can tell which of them it was.
        if position:
            joined.append(SEPARATOR)
        joined += tokens
        is_empty = is_empty and not tokens
    return [] if is_empty else joined


def _tokens_of_text(text: str, rule: TokenRule) -> list[str] | Problem:
    # The whole text at once: some letters become small in a way that depends on those beside them.
    if rule.lowercase:
        text = text.lower()
    if rule.kind == "characters":
        return list(text) if len(text) < LONG_ROW else shared(iter(text))
    if rule.at_marks:
        return words_at_marks(text)

    tokens = words_of_text(text)
    if rule.kind == "ids" and not (_has_ids_alone(text) or all(map(_is_id_text, tokens))):
        # Of a very long text, one list of tokens is enough.
        tokens.clear()
        tokens = items_of(text)
        if not all(map(_is_id_text, tokens)):
            return _bad_id(tokens, _is_id_text)
    return tokens


def words_of_text(text: str) -> list[str]:
    """Return the words of a text, between white space of any kind and number: none is empty."""
    if len(text) < LONG_ROW:
        return text.split()
    return shared(match[0] for match in _WORD.finditer(text))


def words_at_marks(text: str) -> list[str]:
    """Return the words of a text, and every other sign that is no white space by itself.

    A word is a run of letters, digits and underscores. Whatever combines with the sign before it,
    such as an accent or the vowel of an Indic syllable, stays with it.
    """
    # Most texts have nothing that combines, and the short pattern is several times as fast.
    pattern = _PLAIN_WORDS_AND_MARKS if text.isascii() else _words_and_marks()
    if len(text) < LONG_ROW:
        return pattern.findall(text)
    return shared(match[0] for match in pattern.finditer(text))


@cache
def _words_and_marks() -> re.Pattern[str]:
    # Python's \w has no combining characters. They are looked up where they are asked for, because
    # that takes some milliseconds, by the version of Unicode that \w has, too.
    combining = []
    for code in (*range(0x300, 0x20000), *range(0xE0000, 0xE0200)):
        if unicodedata.category(chr(code))[0] == "M":
            combining.append(chr(code))
    # With the two that join letters without being seen, in Persian and in signs of several.
    joined = "".join(combining) + "\u200c\u200d"
    return re.compile(rf"\w++(?:[{joined}]++\w*+)*+|[^\w\s][{joined}]*+")


def shared(tokens: Iterator[str]) -> list[str]:
    """Return tokens of which equal ones are the same text, as far as they are not too many."""
    known: dict[str, str] = {}
    texts: list[str] = []
    for token in tokens:
        if len(known) < MOST_SHARED:
            texts.append(known.setdefault(token, token))
        else:
            texts.append(known.get(token, token))
    return texts


def items_of(text: str) -> list[str]:
    """Return the items of a list as people write it: "[3, 1, 4]", "(3;1;4)", "['3', '1']"."""
    inner = text.strip()
    if inner[:1] + inner[-1:] in ("[]", "()"):
        inner = inner[1:-1]

    separator = next((each for each in ",;" if each in inner), None)
    items = [item.strip(_AROUND_ITEMS) for item in inner.split(separator)]
    # "1,5 2,3" are numbers with decimal commas, or pairs, and no list of four; "1, 5 2, 3" is one.
    if not _TIGHT_COMMA.search(inner):
        items = [part for item in items for part in item.split() or [""]]
    # Behind the last one, too, there may be a separator.
    if items and not items[-1]:
        items.pop()
    return items


def is_measured(text: str) -> bool:
    """Return whether a text holds nothing but numbers, and one with a fraction among them."""
    items = items_of(text)
    return all(map(_NUMBER.fullmatch, items)) and any(map(_has_fraction, items))


def looks_like_list(text: str) -> bool:
    """Return whether a text is a list of numbers or of quoted texts in brackets."""
    return _LIST.fullmatch(text) is not None


def _tokens_of_list(values: list[Any], rule: TokenRule) -> list[str] | Problem:
    # Whole lists are checked at once, by the set of their types: this is the hot path of reading.
    types = set(map(type, values))
    if rule.kind == "ids":
        # type() tells True from 1, where isinstance() would not.
        if types <= {int} and (not values or min(values) >= 0):
            return list(map(str, values)) if len(values) < LONG_ROW else shared(map(str, values))
        # As a table's cell would hold them.
        if types == {str} and all(map(_is_id_text, values)):
            return values
        return _bad_id(values, _is_id)

    if types <= {str} and "" not in values:
        return list(map(str.lower, values)) if rule.lowercase else values
    if any(map(_has_fraction, values)):
        return _bad_id(values, _is_id)
    unit = "words" if rule.kind == "subwords" else rule.kind
    expected = f"a text or a list of {unit}"
    found = f"{values!r:.60}"
    remedy = "write each of them as a text"
    # Programs make 3.0 of a 3 where a value is missing.
    if types <= {int, float}:
        remedy = "data.tokens=ids, with integers that have no decimal point"
    return Problem(
        "a token of the wrong kind", expected=expected, found=found, remedy=remedy, id="D14"
    )


def _is_id(value: Any) -> bool:
    # True and False are ints, too, but no ids.
    return type(value) is int and value >= 0


def _has_ids_alone(text: str) -> bool:
    """Return whether a text has ids between spaces, and nothing else: nearly all have.

    The whole text is looked at, which takes a fraction of the time of looking at each token.
    """
    # Asked first, because it takes no time.
    if not text.isascii():
        return False
    digits = text.replace(" ", "")
    return digits.isdigit() and _ZERO_IN_FRONT.search(f" {text}") is None


def _is_id_text(text: str) -> bool:
    """Return whether the text is an id in its only notation: without sign or leading zeros."""
    # isdigit() alone accepts the digits of every script, and "²".
    return text.isascii() and text.isdigit() and (text[0] != "0" or text == "0")


def _bad_id(values: list[Any], is_good: Callable[[Any], bool]) -> Problem:
    """Return the problem of the first value with a fraction, or else of the first that is no id."""
    what = "not an integer id"
    remedy = NO_ID_REMEDY
    position = next((place for place, value in enumerate(values) if _has_fraction(value)), None)
    if position is not None:
        what = FRACTIONS
        remedy = FRACTIONS_REMEDY
    else:
        position = next(place for place, value in enumerate(values) if not is_good(value))
        text = str(values[position])
        if _WHOLE.fullmatch(text):
            remedy = "write it as an integer, without a decimal point"
        elif len(text.split()) > 1:
            remedy = "one separator between ids: spaces, or commas"

    return Problem(
        what,
        expected="integers >= 0",
        found=f"{values[position]!r:.60} at position {position + 1}",
        remedy=remedy,
        id="D7",
    )


def _has_fraction(value: Any) -> bool:
    """Return whether a value is a number with a fraction, as JSON or a text has it."""
    if isinstance(value, float):
        return math.isfinite(value) and not value.is_integer()
    # Not of a text of any length: a number is short.
    if not isinstance(value, str) or len(value) > MOST_LETTERS_OF_NUMBER:
        return False
    return _NUMBER.fullmatch(value) is not None and not float(value).is_integer()
