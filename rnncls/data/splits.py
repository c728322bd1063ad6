"""Decides which rows are for training, which for validation, and which for the test.

Copies of a sequence are never in two splits, and where a row goes does not depend on the order of
the rows. By `split: hash`, a sequence goes where its hash falls. By `split: stratified`, each class
shares its sequences out by itself:

- A sequence with several labels belongs to the most frequent one; among equals, to the smaller.
- The sequences of a class stand in the order of their hashes: the first are for validation, the
  next for the test, the others for training. Each held-out split has at least one.
- A class of fewer than 3 sequences is in training alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnncls.config import FilesConfig
from rnncls.data.copies import Copies, copies_of, order_of
from rnncls.data.table import Array, SplitRows, Table
from rnncls.errors import DataError, Problem
from rnncls.system.rows import shortened

SPLITS = ("train", "val", "test")
LEAST_SEQUENCES = 3  # of a class with sequences in all splits

TRAIN, VAL, TEST, DROPPED = range(4)  # where a row goes
MOST_SHOWN = 20  # rare classes
MOST_LETTERS = 60  # of each
ROUNDING = 1e-6  # of a share of sequences


@dataclass(frozen=True)
class RareClasses:
    """Classes of fewer than 3 different sequences, where rows are held out."""

    sequences: dict[str, int]  # how many each class has; if `has_others`, of its own
    num_rows: int  # with these labels
    are_dropped: bool = False

    # Rows that are not where the others are: their sequences belong to other classes.
    num_elsewhere: int = 0
    has_others: bool = False  # whether a class has 3 sequences or more, with those of other classes

    @property
    def told(self) -> str:
        """What becomes of them, in one line."""
        rows = "row is" if self.num_rows == 1 else "rows are"
        place = "left out" if self.are_dropped else "in training"
        if self.num_elsewhere:
            place += f", but for {self.num_elsewhere:,} whose sequences have other labels, too"
        elif not self.are_dropped:
            place += " alone"
        their = "its" if len(self.sequences) == 1 else "their"
        return f"{self.counted}; {their} {self.num_rows:,} {rows} {place}: {self.shown}"

    @property
    def shown(self) -> str:
        """The first of them, each with its number of sequences."""
        parts = [
            f"{shortened(label, MOST_LETTERS)} ({count})" for label, count in self.sequences.items()
        ]
        return ", ".join(parts[:MOST_SHOWN]) + (", ..." if len(parts) > MOST_SHOWN else "")

    @property
    def counted(self) -> str:
        """How many there are."""
        is_one = len(self.sequences) == 1
        of_them = "class has" if is_one else "classes have"
        what = f"{len(self.sequences):,} {of_them} fewer than {LEAST_SEQUENCES} different sequences"
        if not self.has_others:
            return what
        # Those that are more often of another class do not count.
        return f"{what} of {'its' if is_one else 'their'} own"


NO_RARE_CLASSES = RareClasses({}, 0)


@dataclass(frozen=True)
class Shares:
    """The rows of each split, and what was noticed on the way."""

    rows: dict[str, SplitRows]
    copies: Copies  # of the training files, but for dropped rows
    rare: RareClasses
    known_labels: Array  # numbers of the labels that a model learns to tell apart

    def only_held_out(self, label: int) -> tuple[str, int]:
        """Return where a label is that only held-out rows of the training files have.

        That is the split with most of these rows, and how many there are in all; "" and 0 if the
        label is in training, or in other files alone. `label` is its number.
        """
        if label in self.known_labels:
            return "", 0
        train_file = self.rows["train"].table
        counts = {
            name: int((rows.labels == label).sum())
            for name, rows in self.rows.items()
            if rows.table is train_file
        }
        if not sum(counts.values()):
            return "", 0
        return max(counts, key=lambda name: counts[name]), sum(counts.values())


def assign_splits(tables: dict[str, Table], data: FilesConfig, labels: list[str]) -> Shares:
    """Return the rows of each split.

    A split with its own files has all rows of these; the others share the training files. `labels`
    are the texts of the numbers in the tables.

    Raises: DataError for rare classes where the config wants none.
    """
    train_file = tables["train"]
    copies = copies_of([train_file], labels)
    val = 0.0 if "val" in tables else data.val_fraction
    test = 0.0 if "test" in tables else data.test_fraction

    places, kept = shared_out(copies, data, val, test)

    # A training file that is read as a whole has no class that is too rare.
    rare = NO_RARE_CLASSES
    if (val or test) and (data.split == "stratified" or data.rare_classes != "keep"):
        rare = _rare_classes(copies, kept, places, train_file, labels, data)

    rows = {name: SplitRows(train_file, places == place) for place, name in enumerate(SPLITS)}
    for name in ("val", "test"):
        if name in tables:
            rows[name] = whole(tables[name])
    return Shares(rows, kept, rare, _known_labels(rows, data))


def whole(table: Table) -> SplitRows:
    """Return all rows of a table."""
    return SplitRows(table, np.ones(len(table.labels), dtype=bool))


def shared_out(copies: Copies, data: FilesConfig, val: float, test: float) -> tuple[Array, Copies]:
    """Return where each row goes, (R,) int8, and the copies among the rows that are not dropped.

    `val` and `test` are the shares that are held out.
    """
    if data.rare_classes == "drop" and (val or test):
        kept = copies.num_sequences[copies.labels] >= LEAST_SEQUENCES
        # Without the other rows, some sequences belong to another class.
        copies = copies if kept.all() else copies.only(kept)

    if data.split == "stratified":
        return stratified(copies, val, test), copies
    places = by_hash(copies.hashes, val, test)
    if len(copies.order) < len(places):
        places = copies.of_rows(places[copies.order[copies.starts]], DROPPED)
    return places, copies


def _known_labels(rows: dict[str, SplitRows], data: FilesConfig) -> Array:
    """Return the numbers of the labels that training has, of its sequences or of their prefixes.

    A label that only sequences of other classes have may be without a row in training. By a
    stratified split, it is nevertheless one that the model knows.
    """
    known = [rows["train"].labels]
    if data.split == "stratified":
        table = rows["train"].table
        known += [rows[name].labels for name in ("val", "test") if rows[name].table is table]

    # Some labels may be those of prefixes alone, such as one that says "not yet".
    prefix_labels = rows["train"].prefix_labels
    if prefix_labels is not None:
        known.append(np.flatnonzero(np.bincount(prefix_labels)))
    numbers: Array = np.flatnonzero(np.bincount(np.concatenate(known)))
    return numbers


def by_hash(hashes: Array, val: float, test: float) -> Array:
    """Return where each row goes, (R,) int8: a row's hash decides, and nothing else.

    Adding rows moves no other row, and a larger share of the test leaves validation as it is.
    """
    # A hash is uniform, so its place on 0..1 is, too: val has the places from 0 to val, test those
    # from there to val + test, train the rest.
    place = hashes / 2.0**64
    places = np.full(len(hashes), TRAIN, dtype=np.int8)
    places[place < val + test] = TEST
    places[place < val] = VAL
    return places


def stratified(copies: Copies, val: float, test: float) -> Array:
    """Return where each row goes, (R,) int8: each class has its share in every split.

    `val` and `test` are the shares of the different sequences of each class.
    """
    if not (val or test):
        return np.full(len(copies.hashes), TRAIN, dtype=np.int8)

    classes = copies.classes
    num_classes = copies.num_labels
    sizes = np.bincount(classes, minlength=num_classes)
    num_val, num_test = _shares_of(sizes, val, test)

    # A sequence with a rare label beside its own stands last in its class, to be in training if it
    # can: the model would not know the rare label otherwise. Its copies go with it.
    counts = copies.counts
    is_last = np.zeros(len(classes), dtype=np.int64)
    is_last[counts.sequences[sizes[counts.labels] < LEAST_SEQUENCES]] = 1

    # The sequences are numbered in the order of their hashes, and a sort that is stable keeps it.
    order = order_of(2 * classes.astype(np.int64) + is_last, 2 * num_classes)
    begins = np.cumsum(sizes) - sizes
    of_sorted = classes[order]
    ranks = np.arange(len(classes)) - begins[of_sorted]

    places = np.full(len(classes), TRAIN, dtype=np.int8)
    places[order[ranks < (num_val + num_test)[of_sorted]]] = TEST
    places[order[ranks < num_val[of_sorted]]] = VAL
    return copies.of_rows(places, DROPPED)


def _shares_of(sizes: Array, val: float, test: float) -> tuple[Array, Array]:
    """Return how many sequences of each class are for validation, and how many for the test.

    Each split, training too, is within one sequence of its share, or has the one sequence that it
    must have.
    """
    num_val = _rounded(sizes, val)
    num_test = _rounded(sizes, test)

    # Training has at least one, and no more than one below its share. What it lacks is taken where
    # it is furthest above the share: two at most, one for each split that was rounded up.
    least = np.maximum(1, (1 - val - test) * sizes - 1 - ROUNDING)
    for _ in range(2):
        too_few = sizes - num_val - num_test < least
        val_above = np.where(num_val > 1, num_val - val * sizes, -np.inf)
        test_above = np.where(num_test > 1, num_test - test * sizes, -np.inf)
        num_val -= too_few & (num_val > 1) & (val_above > test_above)
        num_test -= too_few & (num_test > 1) & (val_above <= test_above)

    has_enough = sizes >= LEAST_SEQUENCES
    return num_val * has_enough, num_test * has_enough


def _rounded(sizes: Array, share: float) -> Array:
    """Return the nearest numbers to a share of each class, at least 1 if there is a share."""
    nearest = np.floor(share * sizes + 0.5).astype(np.int64)
    return np.maximum(nearest, 1 if share else 0)


def _rare_classes(
    copies: Copies,
    kept: Copies,
    places: Array,
    train_file: Table,
    labels: list[str],
    data: FilesConfig,
) -> RareClasses:
    """Return the rare classes as a person knows them.

    `copies` are all rows, and `kept` those that are not dropped. Raises: DataError for rare classes
    where the config wants none.
    """
    number = copies.num_sequences
    own = np.bincount(kept.classes, minlength=len(number))
    is_few = (number > 0) & (number < LEAST_SEQUENCES)
    is_dropped = is_few & (data.rare_classes == "drop")
    is_refused = is_few & (data.rare_classes == "error")

    # A hash alone does not know a class.
    is_rare = is_few
    if data.split == "stratified" and not is_refused.any():
        is_rare = (number > 0) & (own < LEAST_SEQUENCES)

    # A row of each class tells its text.
    row_of_class = np.zeros(len(number), dtype=np.int64)
    row_of_class[copies.labels] = np.arange(len(copies.labels))
    has_others = bool((number >= LEAST_SEQUENCES)[is_rare].any())
    shown = np.where(is_dropped, number, own) if has_others else number
    sequences = {}
    for rank in np.flatnonzero(is_rare).tolist():
        label = labels[train_file.labels[int(row_of_class[rank])]]
        sequences[label] = int(shown[rank])

    of_rare = places[is_rare[copies.labels]]
    place = DROPPED if is_dropped.any() else TRAIN
    rare = RareClasses(
        sequences,
        len(of_rare),
        are_dropped=place == DROPPED,
        num_elsewhere=int((of_rare != place).sum()),
        has_others=has_others,
    )
    if is_refused.any():
        raise _rare_classes_error(rare, train_file)
    return rare


def _rare_classes_error(rare: RareClasses, train_file: Table) -> DataError:
    expected = f"at least {LEAST_SEQUENCES} of each class, where rows are held out"
    remedy = "more rows of these classes, or data.rare_classes=keep or drop"
    return DataError(
        Problem(
            rare.counted,
            train_file.where,
            expected=expected,
            found=rare.shown,
            remedy=remedy,
            id="D6",
        )
    )


def num_shared(rows: SplitRows, others: SplitRows) -> int:
    """Return how many of the sequences are among the others, too."""
    # Copies in one file are always in one split, and a sort of all rows would take long.
    if rows.table is others.table:
        return 0

    # Sorted, both of them: four times as fast as np.isin.
    known = np.sort(others.hashes)
    hashes = np.sort(rows.hashes)
    begins = np.searchsorted(known, hashes, side="left")
    ends = np.searchsorted(known, hashes, side="right")
    return int((begins < ends).sum())
