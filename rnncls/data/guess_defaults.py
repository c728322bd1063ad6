"""The keys of a config that is made from a file, each with its reason: data, model and training."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any

from rnncls.config import FilesConfig
from rnncls.data.columns import Layout
from rnncls.data.files.dialect import Dialect, keys_of
from rnncls.data.guess_shown import listed
from rnncls.data.held_out import SHARES, SMALL_FILE, shares_of
from rnncls.data.seen import Entry, Seen
from rnncls.system.file_kinds import format_by_name

# The model and the length of a run, chosen on real sets: docs/data.md has the table, and
# scripts/file_defaults.py measures it. Small files get small batches, and epochs follow from the
# rows.
EMBEDDING_DIM = 64
EMBEDDING_GAIN = 0.1
HIDDEN_SIZE = 128
LEARNING_RATE = {"ids": 5e-3, "words": 1e-2, "characters": 1e-2, "subwords": 1e-2}
WEIGHT_DECAY = 0.01
TOKEN_DROPOUT = 0.1
NGRAM_DROPOUT = 0.3
HEAD_DROPOUT = 0.2
NGRAMS: dict[str, list[int]] = {
    "ids": [],
    "words": [2],
    "characters": [2, 3, 4, 5],
    "subwords": [2, 3],
}
# Rows of the table of n-grams: a small file needs few, which are quick to train and to save. Only
# powers of two, one row for so many n-grams of the file.
NGRAMS_OF_ROW = 16
LEAST_TABLE = 4096
LARGEST_TABLE = 65536
BATCH_SIZES = {2_000: 16, 5_000: 32, 100_000: 64}  # up to so many rows
LARGEST_BATCH_SIZE = 128
SEQUENCES = 64_000  # trained on in all epochs together
MOST_EPOCHS = 60
LEAST_STEPS = 500
MOST_STEPS_PER_EVALUATION = 2_000  # at most an epoch, and a third of the run
LEAST_STEPS_PER_EVALUATION = 25
PATIENCE = 5  # evaluations
NO_LIMIT = 1_000_000  # of steps, where the epochs decide

# From so many rows on, batches are of similar lengths, and padded: with them, a GRU's step on a CPU
# takes less than half of its time (20,000 rows of 40 words: 31 ms instead of 76). In a smaller
# file, such batches would hardly differ from epoch to epoch.
BUCKETED = 2_000

# Longer sequences than nearly all others are cut, and so are those that take too long.
LONG = 4  # times the 99th percentile
LONGEST = 1_000  # tokens
SHORT = 200  # tokens; below it no length is worth a cut

# Classes are uneven from this ratio on, and weighed if each has enough rows.
UNEVEN = 5
LEAST_ROWS_OF_CLASS = 10

# About the tokens of a text, and nothing that a file could tell.
KEYS_OF_TEXT = ("lowercase", "word_boundaries", "vocabulary_size", "end_token")
_WHY_OF_TEXT = {
    "lowercase": "The and the are one word",
    "word_boundaries": "marks are words of their own, as in sentences",
    "end_token": "n-grams tell how a sequence ends",
}
SUBWORDS_OF_WORD = 2  # at most, of nearly all texts


def data_entries(seen: Seen) -> Iterator[Entry]:
    layout = seen.layout
    yield Entry("data", "source", "files", "")
    where = "the file as it was given"
    if not os.path.isabs(seen.path):  # noqa: PTH117  # the path as text
        where = "relative to the folder of this config"
    yield Entry("data", "train", seen.path, where)

    # Only what the names do not say.
    if layout.format != format_by_name(seen.path):
        yield Entry("data", "format", layout.format, "by the content: the name does not say it")
    yield from _reading_entries(layout.dialect)

    others = [name for name in layout.columns if name not in layout.sequence_fields]
    why = f"{layout.why_sequence}; others: {listed(others)}"
    name = layout.sequence_field
    field = name if isinstance(name, str) else list(name)
    yield Entry("data", "sequence_field", field, why)
    others = [name for name in layout.columns if name != layout.label_field]
    why = f"{layout.why_label}; others: {listed(others)}"
    yield Entry("data", "label_field", layout.label_field, why)
    if seen.reading.prefix_labels_field is not None:
        field = seen.reading.prefix_labels_field
        yield Entry("data", "prefix_labels_field", field, "as given; for train.objective: prefix")
    kinds = "ids | words | characters | subwords"
    yield Entry("data", "tokens", layout.tokens, f"{layout.why_tokens}; {kinds}")
    for key, value in keys_of_text(layout, seen.reading).items():
        is_given = key in seen.reading.model_fields_set
        yield Entry("data", key, value, "as given" if is_given else _WHY_OF_TEXT[key])
    yield Entry("data", "token_dropout", TOKEN_DROPOUT, "share of tokens that a step does not see")
    yield from _length_entries(seen)

    if seen.total > BUCKETED:
        yield Entry("data", "batching", "bucket", "batches of similar lengths")
        yield Entry("data", "layout", "padded", "fastest so; auto for model.bidirectional")

    val, test = shares_of_seen(seen)
    if (val, test) != SHARES[0]:
        why = "few rows: training keeps every class, and validation has some rows"
        if not val:
            why = "too few rows to hold some out"
        yield Entry("data", "val_fraction", val, why)
        yield Entry("data", "test_fraction", test, "")


def _length_entries(seen: Seen) -> Iterator[Entry]:
    """Yield what becomes of empty and of long sequences."""
    if seen.num_empty:
        have = "1 row has" if seen.num_empty == 1 else f"{seen.num_empty:,} rows have"
        why = f"{have} an empty sequence"
        yield Entry("data", "empty", "drop", why)
    limit = _length_limit(seen)
    if seen.has_positions:
        yield Entry("data", "max_length", seen.longest, "the length of all of them")
    elif limit is not None:
        longer = sum(length > limit for length in seen.lengths)
        why = f"cuts {longer:,} sequences, which would take long; the longest has {seen.longest:,}"
        yield Entry("data", "max_length", limit, why)


def _reading_entries(dialect: Dialect) -> Iterator[Entry]:
    """Yield the keys without which the file would not be read as it was here."""
    why = {
        "separator": "by the first rows",
        "quoting": "by the first rows; standard | none: quotes are around cells, or text",
        "header": "false: the columns are called 1, 2, 3 and so on",
    }
    for key, value in keys_of(dialect).items():
        yield Entry("data", key, value, why.get(key, ""))


def _length_limit(seen: Seen) -> int | None:
    """Return the length at which sequences are cut, or None if none of them is long."""
    usual = seen.percentile(0.99)
    if seen.layout.tokens == "subwords":
        # Words were counted, and not one of them is less than a subword.
        usual *= SUBWORDS_OF_WORD
    if seen.longest > max(SHORT, LONG * usual):
        return min(LONGEST, max(SHORT, usual))
    return LONGEST if seen.longest > LONGEST else None


def shares_of_seen(seen: Seen) -> tuple[float, float]:
    """Return the shares of validation and test: the first of SHARES that training can begin with.

    Those of a large file are always the first ones.
    """
    if seen.total > SMALL_FILE:
        return SHARES[0]
    return shares_of(seen.small, seen.reading)


def keys_of_text(layout: Layout, reading: FilesConfig) -> dict[str, Any]:
    """Return the keys about how texts become tokens: those that were given, and what suits."""
    found: dict[str, Any] = {}
    if layout.tokens == "words" and layout.has_marks:
        found["lowercase"] = True
    if layout.tokens in ("words", "subwords") and layout.has_marks:
        found["word_boundaries"] = "punctuation"
    # A label for each prefix stands for a token of the text.
    if layout.tokens == "characters" and reading.prefix_labels_field is None:
        found["end_token"] = True

    given = {key: getattr(reading, key) for key in KEYS_OF_TEXT if key in reading.model_fields_set}
    return found | given


def _rows_of_table(seen: Seen) -> int:
    """Return how many rows the table of n-grams has: the nearest power of two, within bounds."""
    num_tokens = sum(seen.lengths) / seen.num_rows * seen.total
    wanted = num_tokens * len(NGRAMS[seen.layout.tokens]) / NGRAMS_OF_ROW
    nearest = 1 << round(math.log2(max(1, wanted)))
    return max(LEAST_TABLE, min(LARGEST_TABLE, nearest))


def model_entries(seen: Seen) -> Iterator[Entry]:
    kind = seen.layout.tokens
    yield Entry("model", "cell", "gru", "rnn | lstm | gru; none: the n-gram control alone")
    yield Entry("model", "embedding_dim", EMBEDDING_DIM, f"of each of the {kind}")
    yield Entry("model", "embedding_gain", EMBEDDING_GAIN, "rare tokens begin with little to say")
    yield Entry("model", "ngrams", NGRAMS[kind], "n-grams of tokens with embeddings; []: none")
    if NGRAMS[kind]:
        rows = "rows of embeddings, which a hash gives to n-grams"
        yield Entry("model", "ngram_table", _rows_of_table(seen), rows)
        yield Entry("model", "ngram_dropout", NGRAM_DROPOUT, "")
    if seen.has_positions:
        yield Entry("model", "positions", "learned", "each place may have a meaning of its own")
    yield Entry("model", "hidden_size", HIDDEN_SIZE, "")
    yield Entry("model", "pooling", "last_mean_max", "what the head sees of the states")
    yield Entry("model", "skip", True, "the head also sees the mean of the embeddings")
    yield Entry("model", "head_dropout", HEAD_DROPOUT, "")


def train_entries(seen: Seen) -> Iterator[Entry]:
    lr = LEARNING_RATE[seen.layout.tokens]
    yield Entry("optimizer", "lr", lr, f"at most; {lr / 2:g} and {2 * lr:g} are worth a try")
    yield Entry("optimizer", "weight_decay", WEIGHT_DECAY, "")

    fitting = [size for rows, size in BATCH_SIZES.items() if seen.total <= rows]
    batch_size = fitting[0] if fitting else LARGEST_BATCH_SIZE
    trained_on = seen.total * (1 - sum(shares_of_seen(seen)))
    per_epoch = math.ceil(trained_on / batch_size)

    # Enough steps for a small file, not too many for a large one; at least one epoch.
    epochs = max(1, min(MOST_EPOCHS, round(SEQUENCES / trained_on)))
    epochs = max(epochs, math.ceil(LEAST_STEPS / per_epoch))
    yield Entry("train", "batch_size", batch_size, f"steps per epoch: about {per_epoch:,}")
    yield Entry("train", "max_epochs", epochs, f"about {epochs * per_epoch:,} steps")
    limit = max(NO_LIMIT, 2 * epochs * per_epoch)
    yield Entry("train", "max_steps", limit, "no limit: max_epochs ends the run")

    # Once per epoch, but not after a few steps; three times in a short run, and a long epoch in
    # equal parts.
    longest = min(MOST_STEPS_PER_EVALUATION, math.ceil(epochs * per_epoch / 3))
    parts = math.ceil(per_epoch / longest)
    every = max(LEAST_STEPS_PER_EVALUATION, math.ceil(per_epoch / parts))
    yield Entry("train", "eval_every", every, "steps")
    yield Entry("train", "log_every", min(100, every), "steps")
    yield Entry("train", "patience", PATIENCE, "evaluations without a better one end the run")
    yield Entry("train", "baseline", "control", "the n-gram control is trained, too; none: not")

    if _is_uneven(seen):
        why = "the most frequent class would else be chosen too often"
        yield Entry("train", "class_weights", "balanced", why)
        yield Entry("train", "best_metric", "macro_f1", "counts each class the same")


def _is_uneven(seen: Seen) -> bool:
    """Return whether classes are uneven, and none is so rare that a weight would be of no use."""
    counts = seen.classes.values()
    return max(counts) > UNEVEN * min(counts) and min(counts) >= LEAST_ROWS_OF_CLASS
