"""Finds the rows that have the same sequence, and which labels they give it.

Rows of one sequence are its copies. A million rows are grouped by one sort of their hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from rnncls.data.table import Array, Table
from rnncls.data.vocabulary import in_order

# NumPy sorts numbers of 16 bits in a time that does not depend on their order.
MOST_FOR_16_BITS = 2**15


class Counts(NamedTuple):
    """How often sequences with more than one label have each of them.

    One entry for each pair of a sequence and a label: sequences in their order, and the labels of a
    sequence from the most frequent one on, among equally frequent ones the smaller first.
    """

    sequences: Array
    labels: Array
    counts: Array

    @property
    def firsts(self) -> Array:
        """Where the entries of each sequence begin."""
        return np.flatnonzero(np.diff(self.sequences, prepend=-1))


@dataclass(frozen=True)
class Copies:
    """Rows as S different sequences, which are numbered in the order of their hashes."""

    hashes: Array  # (R,) uint64
    labels: Array  # (R,) int32; a smaller number is a smaller label
    order: Array  # the rows that are grouped, those of a sequence side by side
    starts: Array  # (S,): where the rows of each sequence begin in `order`

    @cached_property
    def sizes(self) -> Array:
        """The number of rows of each sequence, (S,)."""
        return np.diff(self.starts, append=len(self.order))

    @cached_property
    def counts(self) -> Counts:
        """The labels of the sequences that have more than one."""
        labels = self.labels[self.order]
        if not len(labels):
            return Counts(labels, labels, labels)
        lowest = np.minimum.reduceat(labels, self.starts)
        mixed = lowest != np.maximum.reduceat(labels, self.starts)

        # A number for each pair of a sequence and a label, in 64 bits.
        sequences = np.repeat(np.flatnonzero(mixed), self.sizes[mixed])
        labels = labels[np.repeat(mixed, self.sizes)]
        pairs, counts = np.unique(sequences * self.num_labels + labels, return_counts=True)

        sequences, labels = np.divmod(pairs, self.num_labels)
        order = np.lexsort((labels, -counts, sequences))
        return Counts(sequences[order], labels[order], counts[order])

    @property
    def num_labels(self) -> int:
        return int(self.labels.max(initial=-1)) + 1

    @cached_property
    def classes(self) -> Array:
        """The label that each sequence belongs to, (S,): its most frequent one, or the smaller."""
        classes: Array = self.labels[self.order[self.starts]]
        counts = self.counts
        classes[counts.sequences[counts.firsts]] = counts.labels[counts.firsts]
        return classes

    @cached_property
    def num_sequences(self) -> Array:
        """How many different sequences have each label, (num_labels,)."""
        # A sequence has its own class once, and what other labels it has beside it.
        others = np.delete(self.counts.labels, self.counts.firsts)
        own = np.bincount(self.classes, minlength=self.num_labels)
        number: Array = own + np.bincount(others, minlength=self.num_labels)
        return number

    def only(self, rows: Array) -> Copies:
        """Return the copies among the rows that are marked, (R,) bool; rows keep their numbers."""
        return _grouped(self.hashes, self.labels, self.order[rows[self.order]])

    def rows_of(self, sequence: int) -> Array:
        """Return the rows of a sequence, in their order."""
        start = int(self.starts[sequence])
        rows: Array = self.order[start : start + int(self.sizes[sequence])]
        return rows

    def of_rows(self, values: Array, other: int = 0) -> Array:
        """Return what each row's sequence has, (R,), of values of the sequences, (S,).

        A row that is not grouped has the `other` value.
        """
        of_rows = np.full(len(self.hashes), other, dtype=values.dtype)
        of_rows[self.order] = np.repeat(values, self.sizes)
        return of_rows


def copies_of(tables: Sequence[Table], labels: list[str]) -> Copies:
    """Group the rows of the tables, one table after another.

    `labels` are the texts of the numbers in the tables.
    """
    hashes = [np.frombuffer(table.hashes, dtype=np.uint64) for table in tables]
    numbers = [np.frombuffer(table.labels, dtype=np.int32) for table in tables]
    return group(np.concatenate(hashes), _ranks(np.concatenate(numbers), labels))


def group(hashes: Array, labels: Array) -> Copies:
    """Group rows by the hashes of their sequences. A smaller number is a smaller label."""
    # Stable, so that the first row of a sequence is the first one in its file.
    return _grouped(hashes, labels, np.argsort(hashes, kind="stable"))


def _grouped(hashes: Array, labels: Array, order: Array) -> Copies:
    """Return the copies of rows that are in the order of their hashes."""
    of_sorted = hashes[order]
    is_first = np.ones(len(order), dtype=bool)
    np.not_equal(of_sorted[1:], of_sorted[:-1], out=is_first[1:])
    return Copies(hashes, labels, order, np.flatnonzero(is_first))


def _ranks(numbers: Array, labels: list[str]) -> Array:
    """Return the labels of rows, (R,) int32, numbered in the order in which a vocabulary has them.

    Labels that no row has count for nothing: whether all are integers does not depend on them.
    """
    used = np.flatnonzero(np.bincount(numbers, minlength=len(labels)))
    names = [labels[number] for number in used]
    rank_of_name = {name: rank for rank, name in enumerate(in_order(names))}

    rank_of_number = np.zeros(len(labels), dtype=np.int32)
    rank_of_number[used] = [rank_of_name[name] for name in names]
    ranks: Array = rank_of_number[numbers]
    return ranks


def order_of(numbers: Array, below: int) -> Array:
    """Return the order that sorts numbers from 0 to `below` - 1; equal ones stay in theirs."""
    if below <= MOST_FOR_16_BITS:
        numbers = numbers.astype(np.int16)
    return np.argsort(numbers, kind="stable")
