"""The user's files as a dataset: splits of sequences, as ids of a vocabulary.

The files are read into tables (table.py), whose rows are shared out among the splits (splits.py).
Then the vocabulary is made of what the training split has, and numbers are changed to its ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from rnncls.config import FilesConfig
from rnncls.data.contradictions import Contradictions, find_contradictions
from rnncls.data.files.bad_rows import without_keys
from rnncls.data.files.opening import fingerprint
from rnncls.data.files.places import as_in_config, files_of, named
from rnncls.data.labels import strip_labels
from rnncls.data.new_files import with_options
from rnncls.data.sequences import Sequences
from rnncls.data.splits import SPLITS, RareClasses, Shares, assign_splits, num_shared
from rnncls.data.table import Array, Numbering, SplitRows, Table, read_table
from rnncls.data.vocabulary import UNKNOWN, UNKNOWN_ID, Vocabulary, in_order
from rnncls.errors import DataError, Problem

MAX_TOKENS = 2**20  # in a vocabulary

# A checkpoint keeps its vocabulary in its header, which may have 16 MiB.
MAX_VOCABULARY_BYTES = 12 * 2**20
MOST_LABELS_SHOWN = 10

Fingerprints = dict[str, tuple[str, ...]]  # SHA-256 of each file of a split, by split


@dataclass
class Dataset:
    """All splits of the user's data, and what was noticed while they were read."""

    splits: dict[str, Sequences]
    vocabulary: Vocabulary
    fingerprints: Fingerprints

    # Where each split was read: its files, the number among them of each sequence's file, (R,)
    # int32, and the line of each sequence in its file, (R,) int32.
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    file_numbers: dict[str, torch.Tensor] = field(default_factory=dict)
    lines: dict[str, torch.Tensor] = field(default_factory=dict)

    # How many sequences were dropped because they were empty, and how many were truncated, by the
    # files that were read: a split without files of its own is counted with the training files.
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)

    # Likewise: bad rows that were skipped, labels with white space around them, and texts that look
    # like lists, with the place of the first.
    skipped: dict[str, int] = field(default_factory=dict)
    spaced_labels: dict[str, int] = field(default_factory=dict)
    like_lists: dict[str, tuple[int, str]] = field(default_factory=dict)

    # How each file was read, in words, if that is worth a word.
    read_as: dict[str, str] = field(default_factory=dict)

    # How many tokens of each split the vocabulary lacks.
    unknown_tokens: dict[str, int] = field(default_factory=dict)

    # How many sequences of val and test are in train too, and how many of test are in val too: a
    # model may have memorised them.
    in_train: dict[str, int] = field(default_factory=dict)
    in_val: dict[str, int] = field(default_factory=dict)

    # What the labels of all rows say: classes of too few sequences to be held out, and sequences
    # with different labels. None where nobody has counted them.
    rare: RareClasses | None = None
    contradictions: Contradictions | None = None

    def file_of(self, split: str, row: int) -> str:
        """Return the file of a sequence of a split."""
        return self.files[split][int(self.file_numbers[split][row])]

    def place(self, split: str, row: int) -> str:
        """Return `file:line` of a sequence of a split."""
        return f"{self.file_of(split, row)}:{int(self.lines[split][row])}"

    def held_out(self) -> str:
        """Return the name of the split that a model is evaluated on.

        That is the test split; if it is empty the validation split, and if that is empty too the
        training split, or what was read for evaluation alone.
        """
        for name in ("test", "val", "train", *self.splits):
            if len(self.splits.get(name, ())):
                return name
        raise ValueError("a dataset without sequences")


def load_dataset(
    data: FilesConfig, vocabulary: Vocabulary | None = None, progress: bool = False
) -> Dataset:
    """Read the files of a config.

    `vocabulary` is that of a checkpoint; without it, one is made of the training split. `progress`
    shows a bar on stderr if that is a terminal.

    Raises: DataError with the bad rows by line, or for a split without sequences, or for a token or
    label that the training split lacks.
    """
    # All files share one numbering: the same token has the same number in each of them.
    token_numbers = Numbering()
    label_numbers = Numbering()

    # Hashed before they are read: a file that changes in between is noticed on resume.
    files = data_files(data)
    fingerprints = {name: tuple(map(fingerprint, paths)) for name, paths in files.items()}

    tables: dict[str, Table] = {}
    for name, paths in files.items():
        tables[name] = read_table(paths, data, token_numbers, label_numbers, progress)
    tables["train"].is_train_file = True
    labels = strip_labels(tables.values(), list(label_numbers), vocabulary)

    # A dict keeps the order of insertion: the text of number i is at position i.
    tokens = list(token_numbers)

    # Before the vocabulary, which is made of the training rows alone: what only the other splits
    # have must stay unknown to the model.
    shares = assign_splits(tables, data, labels)
    rows = shares.rows
    if not rows["train"].chosen.any():
        raise _nothing_to_train_on(shares, data)
    if vocabulary is None:
        vocabulary = _build_vocabulary(shares, tokens, labels, data)

    dataset = Dataset({}, vocabulary, fingerprints, rare=shares.rare)
    for name in SPLITS:
        _add_split(dataset, name, rows[name], tokens, labels, shares)
    for name, table in tables.items():
        _note_counts(dataset, name, table)

    dataset.in_train = {name: num_shared(rows[name], rows["train"]) for name in ("val", "test")}
    dataset.in_val = {"test": num_shared(rows["test"], rows["val"])}

    copies = shares.copies if len(tables) == 1 else None
    dataset.contradictions = find_contradictions(rows, tokens, labels, data.tokens, copies)
    return dataset


def _nothing_to_train_on(shares: Shares, data: FilesConfig) -> DataError:
    remedy = "the file"
    if len(shares.rows["train"].table.labels) and data.val_fraction + data.test_fraction > 0:
        remedy = "the file, or smaller data.val_fraction and data.test_fraction"
    if shares.rare.are_dropped:
        remedy = "data.rare_classes=keep"
    where = shares.rows["train"].table.where
    return DataError(Problem("0 sequences to train on", where, remedy=remedy, id="D2"))


def load_held_out(data: FilesConfig, vocabulary: Vocabulary, progress: bool = False) -> Dataset:
    """Read what a run is evaluated on, with the vocabulary of its checkpoint.

    If the run has test files, nothing else is read. Raises: DataError as `load_dataset` does.
    """
    if data.test is None:
        # The held-out rows are part of the training files, chosen by their hashes.
        return load_dataset(data, vocabulary, progress)
    return load_labelled_files(data.test, data, vocabulary, progress, "test")


def data_files(data: FilesConfig) -> dict[str, tuple[str, ...]]:
    """Return the files of each split that has its own. Raises: DataError, as `files_of` does."""
    paths = {"train": data.train, "val": data.val, "test": data.test}
    return {name: files_of(path) for name, path in paths.items() if path is not None}


def with_files_found(data: FilesConfig) -> FilesConfig:
    """Return the config with the files that its folders and patterns stand for.

    A run keeps these: what else comes into a folder later is none of its files.

    Raises: DataError, as `files_of` does.
    """
    found: dict[str, str | tuple[str, ...]] = {}
    for name, paths in data_files(data).items():
        found[name] = as_in_config(paths)
    return data.model_copy(update=found)


def load_labelled_files(
    paths: str | Sequence[str],
    data: FilesConfig,
    vocabulary: Vocabulary,
    progress: bool = False,
    name: str | None = None,
) -> Dataset:
    """Read files of labelled sequences, with the vocabulary of a checkpoint.

    `paths` may be a folder or a pattern, too. The split is called `name`, or else by the paths.

    Raises: DataError. Its remedies name no config key, but options of `eval` where `name` is None:
    the run's own config decides how the files are read.
    """
    files = files_of(paths)
    shown = paths if isinstance(paths, str) else named(files)
    try:
        return _load_labelled_files(files, data, vocabulary, progress, name or shown)
    except DataError as error:
        # Another data.tokens, say, would not help: the model was trained with the run's own.
        remedy = "fix the file; the config of the run decides how it is read"
        if name is not None:
            raise without_keys(error, remedy) from None
        # Of a file that is not the run's own, options say how it is read.
        raise with_options(error, remedy) from None


def _load_labelled_files(
    files: tuple[str, ...], data: FilesConfig, vocabulary: Vocabulary, progress: bool, name: str
) -> Dataset:
    token_numbers = Numbering()
    label_numbers = Numbering()
    table = read_table(files, data, token_numbers, label_numbers, progress)

    labels = strip_labels([table], list(label_numbers), vocabulary)

    dataset = Dataset({}, vocabulary, {name: tuple(map(fingerprint, files))})
    _note_counts(dataset, name, table)

    tokens = list(token_numbers)
    every_row = SplitRows(table, np.ones(len(table.labels), dtype=bool))
    _add_split(dataset, name, every_row, tokens, labels)
    dataset.contradictions = find_contradictions({name: every_row}, tokens, labels, data.tokens)
    if not len(table.labels):
        what = "0 sequences"
        raise DataError(Problem(what, table.where, remedy="a file with sequences", id="D2"))
    return dataset


def _note_counts(dataset: Dataset, name: str, table: Table) -> None:
    """Note what was counted while the file of a split was read."""
    dataset.dropped[name] = table.dropped
    dataset.truncated[name] = table.truncated
    dataset.skipped[name] = table.skipped
    dataset.spaced_labels[name] = table.spaced_labels
    dataset.like_lists[name] = (table.like_lists, table.first_like_list)
    dataset.read_as.update(table.read_as)


def _build_vocabulary(
    shares: Shares, tokens: list[str], labels: list[str], data: FilesConfig
) -> Vocabulary:
    """Return the vocabulary of the training split. Raises: DataError if it is too large."""
    train = shares.rows["train"]
    # Only tokens of the training rows are counted; those of other splits alone have the count 0,
    # and min_count is at least 1.
    counts = np.bincount(train.tokens, minlength=len(tokens))
    frequent = np.flatnonzero(counts >= data.min_count)
    known = in_order(tokens[number] for number in frequent)

    # `<unk>` in a file is not a token of its own; it gets its id below.
    known = tuple(token for token in known if token != UNKNOWN)
    classes = in_order(labels[number] for number in shares.known_labels.tolist())

    # A checkpoint holds it as JSON, which is a text within the JSON of its header.
    size = len(json.dumps(json.dumps([known, classes])))
    if len(known) > MAX_TOKENS or size > MAX_VOCABULARY_BYTES:
        bytes_allowed = f"{MAX_VOCABULARY_BYTES:,} bytes as JSON"
        raise DataError(
            Problem(
                "a very large vocabulary",
                train.table.where,
                expected=f"at most {MAX_TOKENS:,} different tokens, and {bytes_allowed}",
                found=f"{len(known):,} tokens, {len(classes):,} labels, {size:,} bytes",
                remedy="data.min_count, data.tokens",
                id="D7",
            )
        )

    has_unknown = data.unknown == "unk"
    if has_unknown:
        # In the first place, because its id is UNKNOWN_ID.
        known = (UNKNOWN, *known)
    return Vocabulary(known, classes, has_unknown)


def _add_split(
    dataset: Dataset,
    name: str,
    rows: SplitRows,
    tokens: list[str],
    labels: list[str],
    shares: Shares | None = None,
) -> None:
    """Add the rows of a split to the dataset, as ids of its vocabulary.

    `tokens` and `labels` are the texts of the numbers in the rows. `shares` are all of the splits,
    if there are others.

    Raises: DataError for a token or label that the vocabulary lacks.
    """
    # (R + 1,): where each row begins, and the end of the last one.
    offsets = np.concatenate([[0], np.cumsum(rows.lengths)])

    # (L,) each.
    ids = _ids_of(rows, dataset.vocabulary, tokens)
    unknown = ids < 0
    if dataset.vocabulary.has_unknown:
        # `<unk>` written out in the file says no more than a token that training lacks.
        unknown |= ids == UNKNOWN_ID
        ids[unknown] = UNKNOWN_ID
    elif unknown.any():
        raise _unknown_tokens(name, rows, offsets, unknown)

    # Not one known token is a mistake, such as words read as characters: no result would count.
    dataset.unknown_tokens[name] = int(unknown.sum())
    if len(ids) and unknown.all():
        what = f"no token of {name} is in the training data"
        remedy = "data.tokens, or data like the training data" + _or_no_split(name, rows)
        raise DataError(Problem(what, rows.table.where, remedy=remedy, id="D8"))

    # The arrays are copies by now: the tensors share their memory, not that of the table.
    classes = _classes_of(name, rows, dataset.vocabulary, labels, shares)
    dataset.splits[name] = Sequences(
        torch.from_numpy(ids), torch.from_numpy(offsets), torch.from_numpy(classes)
    )
    dataset.files[name] = rows.table.paths
    dataset.file_numbers[name] = torch.from_numpy(rows.file_numbers)
    dataset.lines[name] = torch.from_numpy(rows.lines)


def _ids_of(rows: SplitRows, vocabulary: Vocabulary, tokens: list[str]) -> Array:
    """Return the ids of the rows' tokens, int32; -1 for those that the vocabulary lacks."""
    # Each different token is looked up once; the rows then index the result.
    ids = (vocabulary.index.get(token, -1) for token in tokens)
    id_of_number = np.fromiter(ids, dtype=np.int32, count=len(tokens))
    of_rows: Array = id_of_number[rows.tokens]
    return of_rows


def _classes_of(
    name: str,
    rows: SplitRows,
    vocabulary: Vocabulary,
    labels: list[str],
    shares: Shares | None,
) -> Array:
    """Return the class of each row, int64. Raises: DataError for a label that training lacks."""
    index = {label: number for number, label in enumerate(vocabulary.labels)}
    classes = (index.get(label, -1) for label in labels)
    class_of_number = np.fromiter(classes, dtype=np.int64, count=len(labels))
    of_rows: Array = class_of_number[rows.labels]

    # Unlike tokens, labels have no stand-in: the model has no output for another class.
    unknown = of_rows < 0
    if unknown.any():
        row = int(unknown.argmax())
        raise _unknown_label(name, rows, row, vocabulary, labels, shares)
    return of_rows


def _unknown_label(
    name: str,
    rows: SplitRows,
    row: int,
    vocabulary: Vocabulary,
    labels: list[str],
    shares: Shares | None,
) -> DataError:
    """Return the error of a row whose label training lacks."""
    number = rows.labels[row]
    found = labels[number]
    what = f"a label of {name} that training lacks"
    remedy = "fix the line" + _or_no_split(name, rows)
    if name == "train":
        # The vocabulary is then that of another run.
        what = "a label that the run of --init-from lacks"
        remedy = "train without --init-from, or fix the line"

    # The label may be in the training files, in rows that were held out by their hashes.
    split, count = ("", 0) if shares is None else shares.only_held_out(int(number))
    if split:
        have = "row of the training files has" if count == 1 else "rows of the training files have"
        found += f", which {count:,} {have}, all of them held out"
        remedy = f"data.split=stratified, or data.{split}_fraction=0"

    shown = ", ".join(vocabulary.labels[:MOST_LABELS_SHOWN])
    if vocabulary.num_classes > MOST_LABELS_SHOWN:
        shown += ", ..."
    return DataError(
        Problem(
            what,
            rows.place(row),
            expected=f"one of {shown}",
            found=found,
            remedy=remedy,
            id="D6",
        )
    )


def _unknown_tokens(name: str, rows: SplitRows, offsets: Array, unknown: Array) -> DataError:
    """Return the error of unknown tokens in a vocabulary without <unk>."""
    # The row of a token is the last one that begins at or before it.
    first = int(unknown.argmax())
    row = int(np.searchsorted(offsets, first, side="right")) - 1
    what = f"{int(unknown.sum()):,} tokens of {name} are not in the training data"
    remedy = "data.unknown=unk, or fix the line"
    return DataError(Problem(what, rows.place(row), remedy=remedy, id="D8"))


def _or_no_split(name: str, rows: SplitRows) -> str:
    """Return a second remedy for what a split of the training file has and training lacks."""
    if name == "train" or not rows.table.is_train_file:
        return ""
    return f", or data.{name}_fraction=0, as the row is in {name} by data.split"
