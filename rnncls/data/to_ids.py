"""Turns the rows of tables into ids: the vocabulary of the training rows, then each split by it.

In a table, tokens and labels are numbers in the order in which they first occurred. A model gets
ids of the vocabulary, which has its tokens and labels in an order of their own.
"""

from __future__ import annotations

import json
from array import array
from dataclasses import replace

import numpy as np
import torch

from rnncls.config import FilesConfig
from rnncls.data.cells import SEPARATOR
from rnncls.data.sequences import Sequences
from rnncls.data.splits import Shares
from rnncls.data.subwords import MARK, Subwords, train_subwords
from rnncls.data.table import Array, SplitRows
from rnncls.data.vocabulary import END, UNKNOWN, UNKNOWN_ID, Vocabulary, in_order, too_long
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
    subwords = None
    if data.tokens == "subwords":
        number_of = {tokens[number]: int(counts[number]) for number in frequent.tolist()}
        subwords = _subwords_of(number_of, train.table.where, data)
        known = _listed_parts(subwords)
    else:
        known = in_order(tokens[number] for number in frequent)

    # `<unk>` in a file is not a token of its own; it gets its id below.
    known = tuple(token for token in known if token != UNKNOWN)
    if data.end_token:
        # Behind all others, whose ids are the same without it. A file may have it, too.
        known = (*(token for token in known if token != END), END)
    classes = in_order(labels[number] for number in shares.known_labels.tolist())

    # A checkpoint holds it as JSON, which is a text within the JSON of its header.
    rules = () if subwords is None else subwords.merges
    size = len(json.dumps(json.dumps([known, classes, rules])))
    if len(known) > MAX_TOKENS or size > MAX_VOCABULARY_BYTES:
        bytes_allowed = f"{MAX_VOCABULARY_BYTES:,} bytes as JSON"
        raise DataError(
            Problem(
                "a very large vocabulary",
                train.table.where,
                expected=f"at most {MAX_TOKENS:,} different tokens, and {bytes_allowed}",
                found=f"{len(known):,} tokens, {len(classes):,} labels, {size:,} bytes",
                remedy="data.min_count, data.tokens" if not rules else "data.vocabulary_size",
                id="D7",
            )
        )

    has_unknown = data.unknown == "unk"
    if has_unknown:
        # In the first place, because its id is UNKNOWN_ID.
        known = (UNKNOWN, *known)
    return Vocabulary(known, classes, has_unknown, subwords)


def _subwords_of(counts: dict[str, int], where: str, data: FilesConfig) -> Subwords:
    """Return the subwords of the words of training. Raises: DataError, MachineError."""
    special = [UNKNOWN] if data.unknown == "unk" else []
    if len(data.sequence_fields) > 1:
        special.append(SEPARATOR)
    if data.end_token:
        special.append(END)
    of_text = {word: count for word, count in counts.items() if word not in special}

    characters = {MARK}.union(*of_text)
    if data.unknown == "error" and len(characters) > data.vocabulary_size:
        what = "more characters than data.vocabulary_size, and unknown ones are an error"
        expected = f"at most {data.vocabulary_size:,} different ones"
        found = f"{len(characters):,}, with the sign in front of words"
        remedy = "data.vocabulary_size, or data.unknown=unk"
        raise DataError(
            Problem(what, where, expected=expected, found=found, remedy=remedy, id="D8")
        )
    return train_subwords(of_text, data.vocabulary_size, special)


def _listed_parts(subwords: Subwords) -> tuple[str, ...]:
    """Return the parts: characters first, then what rules make of them, and <sep> if it is one."""
    made = [first + second for first, second in subwords.merges]
    parts = [*sorted(subwords.characters), *made]
    if SEPARATOR in subwords.special:
        parts.append(SEPARATOR)
    # Two rules may make the same part.
    return tuple(dict.fromkeys(parts))


def split_of(
    name: str,
    rows: SplitRows,
    vocabulary: Vocabulary,
    tokens: list[str],
    labels: list[str],
    data: FilesConfig,
    shares: Shares | None = None,
) -> tuple[Sequences, int]:
    """Return the rows of a split as ids of the vocabulary, and how many tokens it lacks.

    `tokens` and `labels` are the texts of the numbers in the rows. `shares` are all of the splits,
    if there are others.

    Raises: DataError for a token or label that the vocabulary lacks.
    """
    # (R + 1,): where each row begins, and the end of the last one.
    offsets = _offsets_of(rows.lengths)

    # (L,) each.
    if vocabulary.subwords is None:
        ids = _ids_of(rows, vocabulary, tokens)
    else:
        ids, offsets = _ids_of_parts(rows, vocabulary, vocabulary.subwords, tokens, offsets)
        ids, offsets = _truncated(ids, offsets, rows, data)
    unknown = ids < 0
    if vocabulary.has_unknown:
        # `<unk>` written out in the file says no more than a token that training lacks.
        unknown |= ids == UNKNOWN_ID
        ids[unknown] = UNKNOWN_ID
    elif unknown.any():
        raise _unknown_tokens(name, rows, offsets, unknown)

    # Not one known token is a mistake, such as words read as characters: no result would count.
    if len(ids) and _says_nothing(ids, unknown, vocabulary):
        what = f"no token of {name} is in the training data"
        remedy = "data.tokens, or data like the training data" + _or_no_split(name, rows)
        raise DataError(Problem(what, rows.table.where, remedy=remedy, id="D8"))

    # The arrays are copies by now: the tensors share their memory, not that of the table.
    classes = _classes_of(name, rows, vocabulary, labels, shares)
    # What is held out of the training files has prefix labels, too, which nobody asks for.
    of_prefixes = None
    prefix_labels = rows.prefix_labels if name == "train" else None
    if prefix_labels is not None:
        numbers = _prefix_classes_of(rows, prefix_labels, offsets, vocabulary, labels)
        of_prefixes = torch.from_numpy(numbers)
    if data.end_token:
        ids = np.insert(ids, offsets[1:], vocabulary.index[END])
        offsets = offsets + np.arange(len(offsets))
    sequences = Sequences(
        torch.from_numpy(ids), torch.from_numpy(offsets), torch.from_numpy(classes), of_prefixes
    )
    return sequences, int(unknown.sum())


def _offsets_of(lengths: Array) -> Array:
    """Return where each of many lengths begins, and the end of the last one, (R + 1,) int64."""
    offsets: Array = np.concatenate([[0], np.cumsum(lengths)])
    return offsets


def _says_nothing(ids: Array, unknown: Array, vocabulary: Vocabulary) -> bool:
    """Return whether no token is known, but for where words begin."""
    if vocabulary.subwords is None:
        return bool(unknown.all())
    return bool((unknown | (ids == vocabulary.index[MARK])).all())


def _ids_of_parts(
    rows: SplitRows,
    vocabulary: Vocabulary,
    subwords: Subwords,
    tokens: list[str],
    offsets: Array,
) -> tuple[Array, Array]:
    """Return the ids of the subwords of the rows' words, as `_ids_of`, and where each row begins.

    `offsets` says where it begins in words.
    """
    # Each different word of the rows is taken apart once: its ids stand in `flat` at `starts`.
    numbers = rows.tokens
    flat = array("i")
    starts = np.zeros(len(tokens), dtype=np.int64)
    counts = np.zeros(len(tokens), dtype=np.int64)
    id_of = vocabulary.index.get
    for number in np.flatnonzero(np.bincount(numbers, minlength=len(tokens))).tolist():
        parts = subwords.parts_of([tokens[number]])
        starts[number] = len(flat)
        counts[number] = len(parts)
        flat.extend(id_of(part, -1) for part in parts)

    # A place in the result is as far behind the beginning of its word as one in `flat` is.
    of_words = counts[numbers]
    ends = _offsets_of(of_words)
    places = np.arange(ends[-1]) + np.repeat(starts[numbers] - ends[:-1], of_words)
    ids: Array = np.frombuffer(flat, dtype=np.int32)[places]
    return ids, ends[offsets]


def _truncated(
    ids: Array, offsets: Array, rows: SplitRows, data: FilesConfig
) -> tuple[Array, Array]:
    """Return what truncation leaves of the ids, and where each row begins; cut rows are counted.

    Raises: DataError for a long row, if none is to be cut.
    """
    limit = data.max_length
    lengths = np.diff(offsets)
    if limit is None or not (lengths > limit).any():
        return ids, offsets
    is_long = lengths > limit
    if data.truncate == "error":
        row = int(is_long.argmax())
        problem = too_long(limit, int(lengths[row]))
        more = f"; {int(is_long.sum()):,} rows are longer" if is_long.sum() > 1 else ""
        found = f"{problem.found} subwords{more}"
        raise DataError(replace(problem, where=rows.place(row), found=found))

    rows.table.noticed.truncated += int(is_long.sum())
    within = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    kept = within < limit
    if data.truncate == "tail":
        kept = within >= np.repeat(lengths - limit, lengths)
    return ids[kept], _offsets_of(np.minimum(lengths, limit))


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
    of_rows: Array = _class_of_number(vocabulary, labels)[rows.labels]

    # Unlike tokens, labels have no stand-in: the model has no output for another class.
    unknown = of_rows < 0
    if unknown.any():
        row = int(unknown.argmax())
        if name == "train":
            number = int(rows.labels[row])
            raise _unknown_to_source("label", rows, row, labels[number], vocabulary)
        raise _unknown_label(name, rows, row, vocabulary, labels, shares)
    return of_rows


def _class_of_number(vocabulary: Vocabulary, labels: list[str]) -> Array:
    """Return the class of each label's number, int64; -1 for those that the vocabulary lacks."""
    index = {label: number for number, label in enumerate(vocabulary.labels)}
    classes = (index.get(label, -1) for label in labels)
    return np.fromiter(classes, dtype=np.int64, count=len(labels))


def _prefix_classes_of(
    rows: SplitRows,
    prefix_labels: Array,
    offsets: Array,
    vocabulary: Vocabulary,
    labels: list[str],
) -> Array:
    """Return the class of the prefix that ends at each token, int32.

    Raises: DataError for a label that the vocabulary lacks.
    """
    class_of_number = _class_of_number(vocabulary, labels).astype(np.int32)
    classes: Array = class_of_number[prefix_labels]
    unknown = classes < 0
    if unknown.any():
        first = int(unknown.argmax())
        label = labels[prefix_labels[first]]
        row = _row_of_token(offsets, first)
        raise _unknown_to_source("prefix label", rows, row, label, vocabulary)
    return classes


def _unknown_to_source(
    what: str, rows: SplitRows, row: int, label: str, vocabulary: Vocabulary
) -> DataError:
    """Return the error of a training row with a label that the vocabulary lacks."""
    # It is then that of another run.
    return DataError(
        Problem(
            f"a {what} that the run of --init-from lacks",
            rows.place(row),
            expected=_one_of_labels(vocabulary),
            found=label,
            remedy="train without --init-from, or fix the line",
            id="D6",
        )
    )


def _unknown_label(
    name: str,
    rows: SplitRows,
    row: int,
    vocabulary: Vocabulary,
    labels: list[str],
    shares: Shares | None,
) -> DataError:
    """Return the error of a row that is not trained on, and whose label training lacks."""
    number = rows.labels[row]
    found = labels[number]
    what = f"a label of {name} that training lacks"
    remedy = "fix the line" + _or_no_split(name, rows)

    # The label may be in the training files, in rows that were held out by their hashes.
    split = ""
    if shares is not None:
        split, count = shares.only_held_out(int(number))
    if split:
        have = "row of the training files has" if count == 1 else "rows of the training files have"
        found += f", which {count:,} {have}, all of them held out"
        remedy = f"data.split=stratified, or data.{split}_fraction=0"

    expected = _one_of_labels(vocabulary)
    return DataError(
        Problem(what, rows.place(row), expected=expected, found=found, remedy=remedy, id="D6")
    )


def _one_of_labels(vocabulary: Vocabulary) -> str:
    """Return what labels there are, for people: the first of them."""
    shown = ", ".join(vocabulary.labels[:MOST_LABELS_SHOWN])
    if vocabulary.num_classes > MOST_LABELS_SHOWN:
        shown += ", ..."
    return f"one of {shown}"


def _unknown_tokens(name: str, rows: SplitRows, offsets: Array, unknown: Array) -> DataError:
    """Return the error of unknown tokens in a vocabulary without <unk>."""
    row = _row_of_token(offsets, int(unknown.argmax()))
    what = f"{int(unknown.sum()):,} tokens of {name} are not in the training data"
    remedy = "data.unknown=unk, or fix the line"
    return DataError(Problem(what, rows.place(row), remedy=remedy, id="D8"))


def _row_of_token(offsets: Array, token: int) -> int:
    # The last one that begins at or before it.
    return int(np.searchsorted(offsets, token, side="right")) - 1


def _or_no_split(name: str, rows: SplitRows) -> str:
    """Return a second remedy for what a split of the training file has and training lacks."""
    if name == "train" or not rows.table.is_train_file:
        return ""
    return f", or data.{name}_fraction=0, as the row is in {name} by data.split"
