"""The user's files as a dataset: splits of sequences, as ids of a vocabulary.

The files are read into tables (table.py), whose rows are shared out among the splits (splits.py).
Then the vocabulary is made of what the training split has, and numbers are changed to its ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from rnncls.config import FilesConfig
from rnncls.data.files.bad_rows import without_keys
from rnncls.data.files.opening import fingerprint, require_unchanged_files
from rnncls.data.labels import strip_labels
from rnncls.data.sequences import Sequences
from rnncls.data.splits import SPLITS, assign_splits, num_shared
from rnncls.data.table import Array, Numbering, SplitRows, Table, read_table
from rnncls.data.vocabulary import UNKNOWN, UNKNOWN_ID, Vocabulary, in_order
from rnncls.errors import CheckpointError, DataError, Problem

MAX_TOKENS = 2**20  # in a vocabulary

# A checkpoint keeps its vocabulary in its header, which may have 16 MiB.
MAX_VOCABULARY_BYTES = 12 * 2**20
MOST_LABELS_SHOWN = 10


@dataclass
class Dataset:
    """All splits of the user's data, and what was noticed while they were read."""

    splits: dict[str, Sequences]
    vocabulary: Vocabulary
    fingerprints: dict[str, str]  # SHA-256 by file

    # Where each split was read: its file, and the line of each of its sequences, (R,) int32.
    files: dict[str, str] = field(default_factory=dict)
    lines: dict[str, torch.Tensor] = field(default_factory=dict)

    # How many sequences were dropped because they were empty, and how many were truncated, by the
    # file that was read: a split without a file of its own is counted with the training file.
    dropped: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)

    # Likewise: bad rows that were skipped, labels with white space around them, and texts that look
    # like lists, with the place of the first.
    skipped: dict[str, int] = field(default_factory=dict)
    spaced_labels: dict[str, int] = field(default_factory=dict)
    like_lists: dict[str, tuple[int, str]] = field(default_factory=dict)

    # How many tokens of each split the vocabulary lacks.
    unknown_tokens: dict[str, int] = field(default_factory=dict)

    # How many sequences of val and test are in train too, and how many of test are in val too: a
    # model may have memorised them.
    in_train: dict[str, int] = field(default_factory=dict)
    in_val: dict[str, int] = field(default_factory=dict)

    def held_out(self) -> str:
        """Return the name of the split that a model is evaluated on.

        That is the test split; if it is empty the validation split, and if that is empty too the
        training split, or the one file that was read.
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

    # Hashed before it is read: a file that changes in between is noticed on resume.
    fingerprints = {name: fingerprint(path) for name, path in data_paths(data).items()}

    tables: dict[str, Table] = {}
    for name, path in data_paths(data).items():
        tables[name] = read_table(path, data, token_numbers, label_numbers, progress)
    tables["train"].is_train_file = True
    labels = strip_labels(tables.values(), list(label_numbers), vocabulary)

    # Before the vocabulary, which is made of the training rows alone: what only the other splits
    # have must stay unknown to the model.
    rows = assign_splits(tables, data)
    if not rows["train"].chosen.any():
        remedy = "the file, or smaller data.val_fraction and data.test_fraction"
        raise DataError(Problem("0 sequences to train on", data.train, remedy=remedy, id="D2"))

    # A dict keeps the order of insertion: the text of number i is at position i.
    tokens = list(token_numbers)
    if vocabulary is None:
        vocabulary = _build_vocabulary(rows["train"], tokens, labels, data)

    dataset = Dataset({}, vocabulary, fingerprints)
    for name in SPLITS:
        _add_split(dataset, name, rows[name], tokens, labels)
    for name, table in tables.items():
        _note_counts(dataset, name, table)

    dataset.in_train = {name: num_shared(rows[name], rows["train"]) for name in ("val", "test")}
    dataset.in_val = {"test": num_shared(rows["test"], rows["val"])}
    return dataset


def load_held_out(
    data: FilesConfig, vocabulary: Vocabulary, known: dict[str, str], progress: bool = False
) -> Dataset:
    """Read what a run is evaluated on, with the vocabulary of its checkpoint.

    `known` are the checkpoint's fingerprints, by split. If the run has a test file, nothing else is
    read.

    Raises: CheckpointError if a file has changed, DataError as `load_dataset` does.
    """
    remedy = "the old file, or --data FILE for another one"
    if data.test is None:
        # The held-out rows are part of the training file, chosen by their hashes.
        require_unchanged_data(data, known, remedy)
        return load_dataset(data, vocabulary, progress)

    require_unchanged_data(data, known, remedy, splits=("test",))
    return load_labelled_file(data.test, data, vocabulary, progress, "test")


def require_unchanged_data(
    data: FilesConfig, known: dict[str, str], remedy: str, splits: Sequence[str] = SPLITS
) -> None:
    """Raise CheckpointError unless the files of these splits are as they were when the run began.

    `known` are the fingerprints of the run, by split; a file without one is not checked.

    Raises: CheckpointError, too, if the run had a file that the config lacks. DataError if a file
    cannot be read.
    """
    paths = data_paths(data)
    checked = [name for name in splits if name in paths and name in known]
    for name in checked:
        try:
            require_unchanged_files([(paths[name], known[name])], "run", remedy)
        except DataError as error:
            # Most likely the file was moved.
            place = f"data.{name}=PATH behind train --resume RUN, or --data PATH behind eval RUN"
            problems = [replace(problem, remedy=place) for problem in error.problems]
            raise DataError(*problems) from None

    # Without its file, a split would silently be taken from the training file instead.
    missing = sorted(known.keys() - paths.keys())
    if missing:
        what = f"the run had a {missing[0]} file"
        raise CheckpointError(Problem(what, data.train, remedy=remedy, id="D18"))


def data_paths(data: FilesConfig) -> dict[str, str]:
    """Return the file of each split that has its own."""
    paths = {"train": data.train, "val": data.val, "test": data.test}
    return {name: path for name, path in paths.items() if path is not None}


def load_labelled_file(
    path: str,
    data: FilesConfig,
    vocabulary: Vocabulary,
    progress: bool = False,
    name: str | None = None,
) -> Dataset:
    """Read one file of labelled sequences, with the vocabulary of a checkpoint.

    The split is called `name`, or else by the file's path.

    Raises: DataError. Its remedies name no config key: the run's own config decides how the file
    is read.
    """
    try:
        return _load_labelled_file(path, data, vocabulary, progress, name or path)
    except DataError as error:
        # Another data.tokens, say, would not help: the model was trained with the run's own.
        remedy = "fix the file; the config of the run decides how it is read"
        raise without_keys(error, remedy) from None


def _load_labelled_file(
    path: str, data: FilesConfig, vocabulary: Vocabulary, progress: bool, name: str
) -> Dataset:
    token_numbers = Numbering()
    label_numbers = Numbering()
    table = read_table(path, data, token_numbers, label_numbers, progress)

    labels = strip_labels([table], list(label_numbers), vocabulary)

    dataset = Dataset({}, vocabulary, {name: fingerprint(path)})
    _note_counts(dataset, name, table)

    every_row = SplitRows(table, np.ones(len(table.labels), dtype=bool))
    _add_split(dataset, name, every_row, list(token_numbers), labels)
    if not len(table.labels):
        raise DataError(Problem("0 sequences", path, remedy="a file with sequences", id="D2"))
    return dataset


def _note_counts(dataset: Dataset, name: str, table: Table) -> None:
    """Note what was counted while the file of a split was read."""
    dataset.dropped[name] = table.dropped
    dataset.truncated[name] = table.truncated
    dataset.skipped[name] = table.skipped
    dataset.spaced_labels[name] = table.spaced_labels
    dataset.like_lists[name] = (table.like_lists, table.first_like_list)


def _build_vocabulary(
    train: SplitRows, tokens: list[str], labels: list[str], data: FilesConfig
) -> Vocabulary:
    """Return the vocabulary of the training split. Raises: DataError if it is too large."""
    # Only tokens of the training rows are counted; those of other splits alone have the count 0,
    # and min_count is at least 1.
    counts = np.bincount(train.tokens, minlength=len(tokens))
    frequent = np.flatnonzero(counts >= data.min_count)
    known = in_order(tokens[number] for number in frequent)

    # `<unk>` in a file is not a token of its own; it gets its id below.
    known = tuple(token for token in known if token != UNKNOWN)
    classes = in_order(labels[number] for number in np.unique(train.labels))

    # A checkpoint holds it as JSON, which is a text within the JSON of its header.
    size = len(json.dumps(json.dumps([known, classes])))
    if len(known) > MAX_TOKENS or size > MAX_VOCABULARY_BYTES:
        bytes_allowed = f"{MAX_VOCABULARY_BYTES:,} bytes as JSON"
        raise DataError(
            Problem(
                "a very large vocabulary",
                train.table.path,
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
    dataset: Dataset, name: str, rows: SplitRows, tokens: list[str], labels: list[str]
) -> None:
    """Add the rows of a split to the dataset, as ids of its vocabulary.

    `tokens` and `labels` are the texts of the numbers in the rows.

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
        raise DataError(Problem(what, rows.table.path, remedy=remedy, id="D8"))

    # The arrays are copies by now: the tensors share their memory, not that of the table.
    classes = _classes_of(name, rows, dataset.vocabulary, labels)
    dataset.splits[name] = Sequences(
        torch.from_numpy(ids), torch.from_numpy(offsets), torch.from_numpy(classes)
    )
    dataset.files[name] = rows.table.path
    dataset.lines[name] = torch.from_numpy(rows.lines)


def _ids_of(rows: SplitRows, vocabulary: Vocabulary, tokens: list[str]) -> Array:
    """Return the ids of the rows' tokens, int32; -1 for those that the vocabulary lacks."""
    # Each different token is looked up once; the rows then index the result.
    ids = (vocabulary.index.get(token, -1) for token in tokens)
    id_of_number = np.fromiter(ids, dtype=np.int32, count=len(tokens))
    of_rows: Array = id_of_number[rows.tokens]
    return of_rows


def _classes_of(name: str, rows: SplitRows, vocabulary: Vocabulary, labels: list[str]) -> Array:
    """Return the class of each row, int64. Raises: DataError for a label that training lacks."""
    index = {label: number for number, label in enumerate(vocabulary.labels)}
    classes = (index.get(label, -1) for label in labels)
    class_of_number = np.fromiter(classes, dtype=np.int64, count=len(labels))
    of_rows: Array = class_of_number[rows.labels]

    # Unlike tokens, labels have no stand-in: the model has no output for another class.
    unknown = of_rows < 0
    if unknown.any():
        row = int(unknown.argmax())
        shown = ", ".join(vocabulary.labels[:MOST_LABELS_SHOWN])
        if vocabulary.num_classes > MOST_LABELS_SHOWN:
            shown += ", ..."
        raise DataError(
            Problem(
                f"a label of {name} that training lacks",
                rows.place(row),
                expected=f"one of {shown}",
                found=labels[rows.labels[row]],
                remedy="fix the line" + _or_no_split(name, rows),
                id="D6",
            )
        )
    return of_rows


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
    return f", or data.{name}_fraction=0, as the row is in {name} by its hash"
