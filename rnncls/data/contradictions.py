"""Counts the sequences that have different labels in several rows: no model can be right in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rnncls.data.copies import Copies, copies_of
from rnncls.data.table import Table

EXAMPLES = 3
MOST_LABELS = 4  # of an example
MOST_LETTERS = 60  # of an example's sequence


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
            parts.append(f"{label!r} ({place}{number})")
        return f"{self.sequence!r} is {', '.join(parts)}"


@dataclass(frozen=True)
class Contradictions:
    """What different labels of the same sequence mean for all rows."""

    sequences: int
    rows: int  # of these sequences
    most_accuracy: float  # over all rows: no model can exceed it
    examples: list[Contradiction]

    @property
    def shown(self) -> str:
        """The numbers, in one line."""
        of_them = "sequence has" if self.sequences == 1 else "sequences have"
        what = f"{self.sequences:,} {of_them} different labels in {self.rows:,} rows"
        # Rounded down: 100 % would be wrong.
        accuracy = np.floor(1e4 * self.most_accuracy) / 1e2
        return f"{what}: no accuracy over all rows can exceed {accuracy:.2f}%"


NO_CONTRADICTIONS = Contradictions(0, 0, 1.0, [])


def find_contradictions(
    tables: Sequence[Table],
    tokens: list[str],
    labels: list[str],
    kind: str,
    copies: Copies | None = None,
) -> Contradictions:
    """Count the sequences with different labels, and show the first three.

    `tokens` and `labels` are the texts of the numbers in the tables, `kind` is data.tokens.
    `copies` are the rows of the tables, if they have been grouped already.
    """
    if copies is None:
        copies = copies_of(tables, labels)
    glue = "" if kind == "characters" else " "
    counts = copies.counts
    firsts = counts.firsts
    sequences = counts.sequences[firsts]
    num_rows = int(copies.sizes[sequences].sum())

    # A model that knows all of it is right where it says the most frequent label.
    wrong = num_rows - int(counts.counts[firsts].sum())
    most_accuracy = 1 - wrong / max(1, len(copies.order))

    # Those that come first in the files: a sequence begins with the first of its rows.
    first_rows = copies.order[copies.starts[sequences]]
    examples = []
    for sequence in sequences[np.argsort(first_rows)[:EXAMPLES]].tolist():
        examples.append(_example(copies, sequence, tables, tokens, labels, glue))
    return Contradictions(len(sequences), num_rows, most_accuracy, examples)


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
