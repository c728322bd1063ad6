"""Labels of prefixes: for each token of a sequence, the label of what has been read up to there.

The last prefix is the sequence itself, and has its label.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rnncls.data.cells import LONG_ROW, fields_of, items_of, label_of, shared, words_of_text
from rnncls.data.files.encodings import can_be_written
from rnncls.data.files.headers import SEQUENCE_NAMES, key_of_field, words_of
from rnncls.data.files.json_rows import MOST_BRACKETS
from rnncls.errors import Problem

OTHERWISE = "data.prefix_labels_field, or fix the line"

# A column of them is known by its first rows, as far as they have few letters and items.
MOST_ROWS = 100
MOST_SIZE = 2**20
LEAST_ROWS = 2  # of several tokens


def prefix_labels_of(
    row: dict[str, Any], field: str, num_tokens: int, label: str
) -> list[str] | Problem:
    """Return the labels of the prefixes of a row's sequence, or a Problem.

    `num_tokens` is the length of the sequence, and `label` its own label.
    """
    value = row.get(field)
    values = _list_of(value)
    if values is None:
        return _no_list(row, field)
    labels = _texts_of(values)
    if isinstance(labels, Problem):
        return labels

    # White space around labels is taken away later on.
    is_right = len(labels) == num_tokens
    if is_right and (labels[-1] == label or labels[-1].strip() == label.strip()):
        return labels

    what = "the last prefix label is not the label of the sequence"
    expected = "the same: the last prefix is the whole sequence"
    remedy = OTHERWISE
    if is_right:
        found = f"{labels[-1]!r:.60}, the label is {label!r:.60}"
    else:
        what = "not as many prefix labels as the sequence has tokens"
        expected = "one for each token"
        found = f"{_counted(len(labels), 'label')}, {_counted(num_tokens, 'token')}"
        if isinstance(value, str) and len(label.split()) > 1:
            remedy = 'a JSON list: ["a label", "another one"], as labels have spaces in them'
    return Problem(what, expected=expected, found=found, remedy=remedy, id="D24")


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


@dataclass
class _Candidate:
    """A column that may have the labels of prefixes, and the columns that it may go with."""

    sequences: set[str]  # which had as many tokens in each row
    labels: set[str]  # and which had the last item
    num_long: int = 0  # rows of several tokens

    @property
    def is_likely(self) -> bool:
        return self.num_long >= LEAST_ROWS and bool(self.sequences) and bool(self.labels)


def columns_of_prefix_labels(rows: Iterable[dict[str, Any]], most_columns: int) -> set[str]:
    """Return which columns look like labels of prefixes: no sequences, and no labels of them.

    In each of the first rows, such a column has as many items as another one has tokens, and the
    last item is what a third column has, the label.
    """
    candidates: dict[str, _Candidate] = {}
    for row in _first_rows(rows):
        values = dict(islice(row.items(), most_columns))
        lengths = {name: _lengths_of(value) for name, value in values.items()}
        labels = {name: _label_in(value) for name, value in values.items()}
        for name, value in values.items():
            # What is missing says nothing, and one item says little: all numbers are one.
            if value is None or (max(lengths[name]) < 2 and name not in candidates):
                continue
            others = values.keys() - {name}
            candidate = candidates.setdefault(name, _Candidate(set(others), set(others)))
            if candidate.sequences and candidate.labels:
                _compare(candidate, value, lengths, labels)

    likely = {name: each for name, each in candidates.items() if each.is_likely}
    # Where a sequence ends with its label, it looks the same beside its prefix labels: they are
    # all but the one with the usual name, or else the first.
    usual = [name for name in likely if not set(words_of(name)).isdisjoint(SEQUENCE_NAMES)]
    if all(each.sequences <= likely.keys() for each in likely.values()):
        return set(likely) - set((usual or list(likely))[:1])
    return set(likely)


def _first_rows(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    size = 0
    for row in islice(rows, MOST_ROWS):
        size += sum(len(value) for value in row.values() if isinstance(value, str | list))
        if size > MOST_SIZE:
            return
        yield row


def _compare(
    candidate: _Candidate, value: Any, lengths: dict[str, set[int]], labels: dict[str, str | None]
) -> None:
    """Leave only those columns that the candidate goes with in this row, where it has `value`."""
    items = _list_of(value) or []
    texts = _texts_of(items)
    if isinstance(texts, Problem) or not texts:
        candidate.sequences.clear()
        return

    number = len(texts)
    last = texts[-1].strip()
    candidate.num_long += number > 1
    candidate.sequences &= {name for name in candidate.sequences if number in lengths.get(name, ())}
    candidate.labels &= {name for name in candidate.labels if labels.get(name) == last}


def _lengths_of(value: Any) -> set[int]:
    """Return how many tokens a value may have, by the several ways to read it."""
    if isinstance(value, list):
        return {len(value)}
    if isinstance(value, str):
        return {len(value), len(value.split()), len(items_of(value))}
    return {1}


def _label_in(value: Any) -> str | None:
    label = label_of(value)
    return None if label is None else label.strip()
