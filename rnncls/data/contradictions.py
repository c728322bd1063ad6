"""Counts the sequences that have different labels in several rows: no model can be right in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rnncls.data.copies import Copies, copies_of
from rnncls.data.table import Array, SplitRows, Table
from rnncls.system.rows import shortened

EXAMPLES = 3
MOST_LABELS = 4  # of an example
MOST_LETTERS = 60  # of an example's sequence, and of each label


@dataclass(frozen=True)
class Contradiction:
    """A sequence with different labels."""

    sequence: str
    labels: dict[str, int]  # how many rows have each of the first labels, most frequent first
    places: list[str]  # the first row of each, as `file:line`

    @property
    def shown(self) -> str:
        """The sequence with its labels, in one line."""
        parts = []
        for (label, count), place in zip(self.labels.items(), self.places, strict=True):
            number = "" if count == 1 else f", {count:,} rows"
            parts.append(f"{shortened(label, MOST_LETTERS)!r} ({place}{number})")
        return f"{self.sequence!r} is {', '.join(parts)}"


@dataclass(frozen=True)
class Contradictions:
    """What different labels of the same sequence mean for all rows."""

    sequences: int
    rows: int  # of these sequences
    most_accuracy: float  # over all rows: no model can exceed it
    examples: list[Contradiction]
    most_accuracy_of: dict[str, float] = field(default_factory=dict)  # the same, by split

    @property
    def shown(self) -> str:
        """The numbers, in one line."""
        of_them = "sequence has" if self.sequences == 1 else "sequences have"
        what = f"{self.sequences:,} {of_them} different labels in {self.rows:,} rows"
        limits = f"no accuracy over all rows can exceed {_percent(self.most_accuracy)}"
        # A model is judged by one split, which may have more of them than others.
        if len(self.most_accuracy_of) > 1:
            of_splits = self.most_accuracy_of.items()
            limits += "".join(f", on {name} {_percent(most)}" for name, most in of_splits)
        return f"{what}: {limits}"


NO_CONTRADICTIONS = Contradictions(0, 0, 1.0, [])


def _percent(accuracy: float) -> str:
    # Rounded down: 100 % would be wrong. The little more is for what is a whole number but for the
    # rounding of floats.
    return f"{np.floor(1e4 * accuracy + 1e-6) / 1e2:.2f}%"


def find_contradictions(
    splits: dict[str, SplitRows],
    tokens: list[str],
    labels: list[str],
    kind: str,
    copies: Copies | None = None,
) -> Contradictions:
    """Count the sequences with different labels in the splits, and show the first three.

    `tokens` and `labels` are the texts of the numbers in the tables, `kind` is data.tokens.
    `copies` are the rows of the splits, if they are of one table and have been grouped already.
    """
    tables = list({id(rows.table): rows.table for rows in splits.values()}.values())
    if copies is None:
        copies = copies_of(tables, labels)
        is_in_split = _split_of_row(splits, tables) < len(splits)
        copies = copies if is_in_split.all() else copies.only(is_in_split)

    glue = "" if kind == "characters" else " "
    counts = copies.counts
    firsts = counts.firsts
    sequences = counts.sequences[firsts]
    most_accuracy_of = {name: 1.0 for name, rows in splits.items() if rows.chosen.any()}
    if not len(sequences):
        return Contradictions(0, 0, 1.0, [], most_accuracy_of)
    num_rows = int(copies.sizes[sequences].sum())

    # A model that knows all of it is right where it says the most frequent label.
    wrong = num_rows - int(counts.counts[firsts].sum())
    most_accuracy = 1 - wrong / len(copies.order)

    # Those that come first in the files: a sequence begins with the first of its rows.
    first_rows = copies.order[copies.starts[sequences]]
    examples = []
    for sequence in sequences[np.argsort(first_rows)[:EXAMPLES]].tolist():
        examples.append(_example(copies, sequence, tables, tokens, labels, glue))

    wrong_of = _wrong_of_splits(copies, _split_of_row(splits, tables), len(splits))
    for (name, rows), number in zip(splits.items(), wrong_of, strict=True):
        if number:
            most_accuracy_of[name] = 1 - number / int(rows.chosen.sum())
    return Contradictions(len(sequences), num_rows, most_accuracy, examples, most_accuracy_of)


def _split_of_row(splits: dict[str, SplitRows], tables: Sequence[Table]) -> Array:
    """Return the number of each row's split, int8, for the rows of all tables.

    A row of no split has the number of splits.
    """
    of_tables = []
    for table in tables:
        of_rows = np.full(len(table.labels), len(splits), dtype=np.int8)
        for number, rows in enumerate(splits.values()):
            if rows.table is table:
                of_rows[rows.chosen] = number
        of_tables.append(of_rows)
    return np.concatenate(of_tables)


def _wrong_of_splits(copies: Copies, split_of_row: Array, num_splits: int) -> list[int]:
    """Return in how many rows of each split a model must be wrong."""
    sequences = copies.counts.sequences[copies.counts.firsts]
    is_mixed = np.zeros(len(copies.starts), dtype=bool)
    is_mixed[sequences] = True
    rows = copies.order[np.repeat(is_mixed, copies.sizes)]

    # A number for each sequence within a split, and one for each of its labels there.
    of_sequence = np.repeat(sequences, copies.sizes[sequences])
    within = of_sequence * num_splits + split_of_row[rows]
    labels, counts = np.unique(within * copies.num_labels + copies.labels[rows], return_counts=True)
    within_of_label = labels // copies.num_labels
    firsts = np.flatnonzero(np.diff(within_of_label, prepend=-1))

    # Right are the rows with the most frequent label of their sequence in the split.
    right = np.zeros(num_splits, dtype=np.int64)
    splits = within_of_label[firsts] % num_splits
    np.add.at(right, splits, np.maximum.reduceat(counts, firsts))
    wrong: list[int] = (np.bincount(split_of_row[rows], minlength=num_splits) - right).tolist()
    return wrong


def _example(
    copies: Copies,
    sequence: int,
    tables: Sequence[Table],
    tokens: list[str],
    labels: list[str],
    glue: str,
) -> Contradiction:
    """Return a sequence with the first of its labels."""
    rows = copies.rows_of(sequence)
    of_sequence = copies.counts.sequences == sequence
    numbers = copies.counts.labels[of_sequence][:MOST_LABELS].tolist()
    counts = copies.counts.counts[of_sequence].tolist()

    shown: dict[str, int] = {}
    places: list[str] = []
    for number, count in zip(numbers, counts, strict=False):
        first = int(rows[(copies.labels[rows] == number).argmax()])
        table, row = _located(first, tables)
        shown[labels[table.labels[row]]] = count
        places.append(table.place(row))

    table, row = _located(int(rows[0]), tables)
    return Contradiction(_sequence(table, row, tokens, glue), shown, places)


def _located(row: int, tables: Sequence[Table]) -> tuple[Table, int]:
    """Return the table of a row of all tables, and its number there."""
    for table in tables:
        if row < len(table.labels):
            return table, row
        row -= len(table.labels)
    raise IndexError(row)


def _sequence(table: Table, row: int, tokens: list[str], glue: str) -> str:
    """Return the beginning of a row's sequence as text."""
    start = sum(table.lengths[:row])
    length = min(table.lengths[row], MOST_LETTERS + 1)
    text = glue.join(tokens[number] for number in table.tokens[start : start + length])
    return text if len(text) <= MOST_LETTERS else f"{text[:MOST_LETTERS]}..."
