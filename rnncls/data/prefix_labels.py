"""Labels of prefixes: for each token of a sequence, the label of what has been read up to there.

The last prefix is the sequence itself, and has its label.
"""

import json
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from rnncls.data.cells import LONG_ROW, fields_of, items_of, label_of, shared, words_of_text
from rnncls.data.files.encodings import can_be_written
from rnncls.data.files.headers import SEQUENCE_NAMES, key_of_field, words_of
from rnncls.data.files.json_rows import MOST_BRACKETS
from rnncls.errors import Problem

OTHERWISE = "data.prefix_labels_field, or fix the line"

# A column of them is known by its first rows.
MOST_ROWS = 100
LEAST_ROWS = 2  # of several tokens


def prefix_labels_of(
    row: dict[str, Any], field: str, num_tokens: int, label: str
) -> list[str] | Problem:
    """Return the labels of the prefixes of a row's sequence, or a Problem.

    `num_tokens` is the length of the sequence, and `label` its own label.
    """
    values = _list_of(row.get(field))
    if values is None:
        return _no_list(row, field)
    labels = _texts_of(values)
    if isinstance(labels, Problem):
        return labels

    what = ""
    if len(labels) != num_tokens:
        what = "not as many prefix labels as the sequence has tokens"
        expected = "one for each token"
        found = f"{_counted(len(labels), 'label')}, {_counted(num_tokens, 'token')}"
    # White space around labels is taken away later on.
    elif labels[-1] != label and labels[-1].strip() != label.strip():
        what = "the last prefix label is not the label of the sequence"
        expected = "the same: the last prefix is the whole sequence"
        found = f"{labels[-1]!r:.60}, the label is {label!r:.60}"
    if what:
        return Problem(what, expected=expected, found=found, remedy=OTHERWISE, id="D24")
    return labels


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _list_of(value: Any) -> Sequence[Any] | None:
    """Return the items of a field's value, whatever they are; None if it is nothing like a list.

    In a text they stand as ids may stand there: "a b", "a, b" or '["a", "b"]'.
    """
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return _items_of_text(value)
    # A table cannot tell 7 from "7", of a sequence of one token.
    return None if label_of(value) is None else [value]


def _items_of_text(text: str) -> Sequence[Any]:
    begins = text.lstrip()[:1]
    if begins == "[":
        values = _json_list(text)
        if values is not None:
            return values
    if begins in ("[", "(") or "," in text or ";" in text:
        return items_of(text)
    # The usual case, and the fastest.
    return words_of_text(text)


def _json_list(text: str) -> list[Any] | None:
    """Return the list that a text is as JSON, None if it is none: labels may have spaces there."""
    if text.count("[") + text.count("{") > MOST_BRACKETS:
        return None
    # RecursionError is how Python answers thousands of nested brackets.
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    # Python reads "\ud800" as text that no file can hold.
    if "\\u" in text and not can_be_written(json.dumps(values, ensure_ascii=False)):
        return None
    return values if isinstance(values, list) else None


def _texts_of(values: Sequence[Any]) -> list[str] | Problem:
    """Return the items of a list as the texts of labels, or the problem of the first that is none.

    Whole lists are checked at once, by the set of their types: this is the hot path of reading.
    """
    types = set(map(type, values))
    if types == {int}:
        texts = map(str, values)
        return list(texts) if len(values) < LONG_ROW else shared(texts)
    if types == {str} and all(values) and not any(map(str.isspace, values)):
        return list(values)

    labels = list(map(label_of, values))
    good = [label for label in labels if label is not None]
    if len(good) == len(labels):
        return good
    position = labels.index(None)
    return Problem(
        "a prefix label that is none",
        expected="texts, integers, true or false",
        found=f"{values[position]!r:.60} at position {position + 1}",
        remedy=OTHERWISE,
        id="D24",
    )


def _no_list(row: dict[str, Any], field: str) -> Problem:
    """Return the problem of a row whose field has nothing like a list of labels."""
    value = row.get(field)
    what = "no list of prefix labels"
    found = "null" if value is None else f"{value!r:.60}"
    remedy = OTHERWISE
    if field not in row:
        what = f'no field "{field}", for the labels of prefixes'
        found = fields_of(row)
        remedy = f"{key_of_field('prefix_labels_field', field, row, [])}, or fix the line"
    expected = "a list of labels, one for each token"
    return Problem(what, expected=expected, found=found, remedy=remedy, id="D24")


def columns_of_prefix_labels(rows: Iterable[dict[str, Any]], most_columns: int) -> set[str]:
    """Return which columns look like labels of prefixes: no sequences, and no labels of them.

    In each of the first rows, such a column has as many items as another one has tokens, and the
    last item is what a third column has, the label.
    """
    as_long: dict[str, set[str]] = {}  # for each column, those whose prefixes it may be about
    same_end: dict[str, set[str]] = {}  # and those with the label
    num_long: dict[str, int] = {}
    for row in islice(rows, MOST_ROWS):
        values = dict(islice(row.items(), most_columns))
        for name, value in values.items():
            # One item says little: every column of numbers has one.
            items = _list_of(value) or []
            if len(items) < 2 and name not in as_long:
                continue
            labels = _texts_of(items)
            ends = "" if isinstance(labels, Problem) or not labels else labels[-1].strip()

            others = {key: other for key, other in values.items() if key != name}
            longs = {key for key, other in others.items() if len(items) in _lengths_of(other)}
            as_long[name] = as_long.get(name, longs) & longs
            labelled = {key for key, other in others.items() if ends == _label_in(other)}
            same_end[name] = same_end.get(name, labelled) & labelled
            num_long[name] = num_long.get(name, 0) + (len(items) > 1)

    found = []
    for name, count in num_long.items():
        if count >= LEAST_ROWS and as_long[name] and same_end[name]:
            found.append(name)
    # Where a sequence ends with its label, it looks the same beside its prefix labels: they are
    # all but the one with the usual name, or else the first.
    usual = [name for name in found if not set(words_of(name)).isdisjoint(SEQUENCE_NAMES)]
    kept = (usual or found)[:1] if all(as_long[name] <= set(found) for name in found) else []
    return set(found) - set(kept)


def _lengths_of(value: Any) -> set[int]:
    """Return how many tokens a value may have, by the several ways to read it."""
    if isinstance(value, list):
        return {len(value)}
    if isinstance(value, str):
        return {len(value), len(value.split()), len(items_of(value))}
    return set() if value is None else {1}


def _label_in(value: Any) -> str | None:
    label = label_of(value)
    return None if label is None else label.strip()
