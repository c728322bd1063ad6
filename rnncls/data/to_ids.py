"""Turns the rows of tables into ids: the vocabulary of the training rows, then each split by it.

In a table, tokens and labels are numbers in the order in which they first occurred. A model gets
ids of the vocabulary, which has its tokens and labels in an order of their own.
"""

from __future__ import annotations

import json

import numpy as np
import torch

from rnncls.config import FilesConfig
from rnncls.data.sequences import Sequences
from rnncls.data.splits import Shares
from rnncls.data.table import Array, SplitRows
from rnncls.data.vocabulary import UNKNOWN, UNKNOWN_ID, Vocabulary, in_order
from rnncls.errors import DataError, Problem

MAX_TOKENS = 2**20  # in a vocabulary

# A checkpoint keeps its vocabulary in its header, which may have 16 MiB.
MAX_VOCABULARY_BYTES = 12 * 2**20
MOST_LABELS_SHOWN = 10


def build_vocabulary(
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


def split_of(
    name: str,
    rows: SplitRows,
    vocabulary: Vocabulary,
    tokens: list[str],
    labels: list[str],
    shares: Shares | None = None,
) -> tuple[Sequences, int]:
    """Return the rows of a split as ids of the vocabulary, and how many tokens it lacks.

    `tokens` and `labels` are the texts of the numbers in the rows. `shares` are all of the splits,
    if there are others.

    Raises: DataError for a token or label that the vocabulary lacks.
    """
    # (R + 1,): where each row begins, and the end of the last one.
    offsets = np.concatenate([[0], np.cumsum(rows.lengths)])

    # (L,) each.
    ids = _ids_of(rows, vocabulary, tokens)
    unknown = ids < 0
    if vocabulary.has_unknown:
        # `<unk>` written out in the file says no more than a token that training lacks.
        unknown |= ids == UNKNOWN_ID
        ids[unknown] = UNKNOWN_ID
    elif unknown.any():
        raise _unknown_tokens(name, rows, offsets, unknown)

    # Not one known token is a mistake, such as words read as characters: no result would count.
    if len(ids) and unknown.all():
        what = f"no token of {name} is in the training data"
        remedy = "data.tokens, or data like the training data" + _or_no_split(name, rows)
        raise DataError(Problem(what, rows.table.where, remedy=remedy, id="D8"))

    # The arrays are copies by now: the tensors share their memory, not that of the table.
    classes = _classes_of(name, rows, vocabulary, labels, shares)
    sequences = Sequences(
        torch.from_numpy(ids), torch.from_numpy(offsets), torch.from_numpy(classes)
    )
    return sequences, int(unknown.sum())


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
    split = ""
    if shares is not None:
        split, count = shares.only_held_out(int(number))
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
