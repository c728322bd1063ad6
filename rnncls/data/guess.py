"""Makes a config from a file: what `rnncls init` prints, and what `rnncls train FILE` trains.

A first pass over the file finds its columns (columns.py). A second one reads it as training will,
and counts rows, classes and lengths. The config follows from these, each key with its reason.
"""

from __future__ import annotations

import json
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from rnncls.config import FilesConfig, parse_config
from rnncls.data.cells import empty_sequence
from rnncls.data.columns import MOST_ROWS, Layout, find_layout
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import TABLES, Dialect, described, dialect_of, keys_of
from rnncls.data.held_out import MOST_TOKENS_KEPT, SHARES, SMALL_FILE, SmallRow, shares_of
from rnncls.data.records import Record, read_records
from rnncls.data.table import hash_of
from rnncls.errors import DataError, Problem, on_one_line
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

_TOKENS = "--tokens ids|words|characters|subwords"

MOST_CLASSES_SHOWN = 10
COMMENT_COLUMN = 30


# Text that needs no quotes in YAML, if it is none of the words that mean true, false or nothing.
_PLAIN = re.compile(r"([A-Za-z]|\.{0,2}/)[A-Za-z0-9_./-]*")
_MEANS_OTHER = re.compile(r"true|false|null|yes|no|on|off|y|n", re.IGNORECASE)


class Guess(NamedTuple):
    """A config made from a file."""

    raw: dict[str, Any]  # for `parse_config`, in the current folder
    text: str  # the same as YAML, with comments
    assumed: list[str]  # what a person should look at, one line each


class _Entry(NamedTuple):
    """One key of the config."""

    section: str
    key: str
    value: Any
    why: str


@dataclass
class _Seen:
    """What was counted in the rows that were looked at."""

    path: str
    layout: Layout
    reading: FilesConfig
    num_rows: int = 0
    num_empty: int = 0
    total: int = 0  # rows of the whole file; an estimate unless `is_all`
    is_all: bool = True
    classes: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    example: str = ""
    small: list[SmallRow] = field(default_factory=list)

    def percentile(self, share: float) -> int:
        """Return the length that this share of the sequences does not exceed."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))]

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    @property
    def rows(self) -> str:
        """The number of rows, for people."""
        if self.is_all:
            return "1 row" if self.num_rows == 1 else f"{self.num_rows:,} rows"
        return f"about {self.total:,} rows; the first {self.num_rows:,} were looked at"


def guess_config(
    path: str | Path,
    sequence_field: str | tuple[str, ...] | None = None,
    label_field: str | None = None,
    tokens: str | None = None,
    path_in_text: str = "",
    asked: Set[str] = frozenset(),
    reading: FilesConfig | None = None,
) -> Guess:
    """Make a config from a data file. What is not None is taken as it is.

    The path stands in the config as it is given here; in its text `path_in_text` stands, if given.
    `asked` are the keys that others will replace: nothing is said to be assumed of them. `reading`
    says how the file is to be read, and by which rule rows are held out.

    Raises: DataError if the file cannot be read, has bad rows, or does not say what to train on.
    """
    reading = reading or FilesConfig(source="files", train=str(path))
    layout = find_layout(
        path,
        sequence_field,
        label_field,
        tokens,
        dialect_of(reading),
        reading.prefix_labels_field,
    )
    seen = _look(path, layout, reading)
    entries = [*_data_entries(seen), *_model_entries(seen), *_train_entries(seen)]

    raw: dict[str, Any] = {}
    for entry in entries:
        raw.setdefault(entry.section, {})[entry.key] = entry.value

    if path_in_text:
        entries = [
            entry._replace(value=path_in_text) if entry.key == "train" else entry
            for entry in entries
        ]
    return Guess(raw, _to_yaml(seen, entries), _assumptions(seen, raw, asked))


def _look(path: str | Path, layout: Layout, reading: FilesConfig) -> _Seen:
    """Count what is in the first rows. Raises: DataError for bad rows, or if there is no row."""
    data = _data_of(path, layout, reading)
    seen = _Seen(str(path), layout, reading)
    stops_at_bad = reading.bad == "error"
    bad = BadRows(path, stops=stops_at_bad)
    bytes_read: list[int] = []

    for record in read_records(path, data, layout.dialect, bad, bytes_read.append):
        # A file that has bad rows is read to its end, because a user fixes all of them at once.
        has_bad = bad.count > seen.num_empty and stops_at_bad
        if seen.num_rows + seen.num_empty >= MOST_ROWS and not has_bad:
            seen.is_all = False
            break
        # A number instead of a record is the line of an empty sequence.
        if isinstance(record, Record):
            _count(seen, record)
        else:
            seen.num_empty += 1
            bad.add_problem(record, empty_sequence("fix the line, or it is left out"))
        # A large row is not kept while the next one is read.
        del record

    # Empty sequences are no error; they are only named among the errors. Rows to be skipped are
    # named by whoever reads the file next.
    if bad.count > seen.num_empty and (stops_at_bad or not seen.num_rows):
        bad.raise_if_any(seen.num_rows)
    if not seen.num_rows:
        raise DataError(Problem("0 sequences", str(path), found="empty ones", id="D2"))

    seen.lengths = array("q", sorted(seen.lengths))
    seen.total = seen.num_rows
    if not seen.is_all:
        # As many rows in the rest of the file as in its beginning.
        share = sum(bytes_read) / Path(path).stat().st_size
        seen.total = max(seen.num_rows, int(round(seen.num_rows / share, -4)))
    return seen


def _data_of(path: str | Path, layout: Layout, reading: FilesConfig) -> FilesConfig:
    """Return how the rows are read. Raises: ConfigError for keys that do not fit the tokens."""
    raw: dict[str, Any] = {
        "source": "files",
        "train": "given",  # the path itself is passed beside it
        "sequence_field": layout.sequence_field,
        "label_field": layout.label_field,
        "prefix_labels_field": reading.prefix_labels_field,
        "tokens": layout.tokens,
        "empty": "drop",
    }
    raw |= _keys_of_text(layout, reading)
    data = parse_config({"data": raw}, f"the config made from {path}").data
    return cast(FilesConfig, data)


def _keys_of_text(layout: Layout, reading: FilesConfig) -> dict[str, Any]:
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


def _count(seen: _Seen, record: Record) -> None:
    seen.num_rows += 1
    seen.lengths.append(len(record.tokens))
    # Classes beyond any reason would fill the memory.
    label = record.label.strip()[:200]
    seen.classes[label] += 1

    if not seen.example:
        glue = "" if seen.layout.tokens == "characters" else " "
        seen.example = f"{_shown(glue.join(record.tokens))} -> {_shown(label)}"
    if seen.num_rows <= SMALL_FILE:
        tokens = frozenset(record.tokens[:MOST_TOKENS_KEPT])
        seen.small.append(SmallRow(hash_of(record.tokens), label, tokens))


def _data_entries(seen: _Seen) -> Iterator[_Entry]:
    layout = seen.layout
    yield _Entry("data", "source", "files", "")
    where = "the file as it was given"
    if not os.path.isabs(seen.path):  # noqa: PTH117  # the path as text
        where = "relative to the folder of this config"
    yield _Entry("data", "train", seen.path, where)

    # Only what the names do not say.
    if layout.format != format_by_name(seen.path):
        yield _Entry("data", "format", layout.format, "by the content: the name does not say it")
    yield from _reading_entries(layout.dialect)

    others = [name for name in layout.columns if name not in layout.sequence_fields]
    why = f"{layout.why_sequence}; others: {_listed(others)}"
    name = layout.sequence_field
    field = name if isinstance(name, str) else list(name)
    yield _Entry("data", "sequence_field", field, why)
    others = [name for name in layout.columns if name != layout.label_field]
    why = f"{layout.why_label}; others: {_listed(others)}"
    yield _Entry("data", "label_field", layout.label_field, why)
    if seen.reading.prefix_labels_field is not None:
        field = seen.reading.prefix_labels_field
        yield _Entry("data", "prefix_labels_field", field, "as given; for train.objective: prefix")
    kinds = "ids | words | characters | subwords"
    yield _Entry("data", "tokens", layout.tokens, f"{layout.why_tokens}; {kinds}")
    for key, value in _keys_of_text(layout, seen.reading).items():
        is_given = key in seen.reading.model_fields_set
        yield _Entry("data", key, value, "as given" if is_given else _WHY_OF_TEXT[key])
    yield _Entry("data", "token_dropout", TOKEN_DROPOUT, "share of tokens that a step does not see")
    yield from _length_entries(seen)

    if seen.total > BUCKETED:
        yield _Entry("data", "batching", "bucket", "batches of similar lengths")
        yield _Entry("data", "layout", "padded", "fastest so; auto for model.bidirectional")

    val, test = _shares(seen)
    if (val, test) != SHARES[0]:
        why = "few rows: training keeps every class, and validation has some rows"
        if not val:
            why = "too few rows to hold some out"
        yield _Entry("data", "val_fraction", val, why)
        yield _Entry("data", "test_fraction", test, "")


def _length_entries(seen: _Seen) -> Iterator[_Entry]:
    """Yield what becomes of empty and of long sequences."""
    if seen.num_empty:
        have = "1 row has" if seen.num_empty == 1 else f"{seen.num_empty:,} rows have"
        why = f"{have} an empty sequence"
        yield _Entry("data", "empty", "drop", why)
    limit = _length_limit(seen)
    if _has_positions(seen):
        yield _Entry("data", "max_length", seen.longest, "the length of all of them")
    elif limit is not None:
        longer = sum(length > limit for length in seen.lengths)
        why = f"cuts {longer:,} sequences, which would take long; the longest has {seen.longest:,}"
        yield _Entry("data", "max_length", limit, why)


def _reading_entries(dialect: Dialect) -> Iterator[_Entry]:
    """Yield the keys without which the file would not be read as it was here."""
    why = {
        "separator": "by the first rows",
        "quoting": "by the first rows; standard | none: quotes are around cells, or text",
        "header": "false: the columns are called 1, 2, 3 and so on",
    }
    for key, value in keys_of(dialect).items():
        yield _Entry("data", key, value, why.get(key, ""))


def _length_limit(seen: _Seen) -> int | None:
    """Return the length at which sequences are cut, or None if none of them is long."""
    usual = seen.percentile(0.99)
    if seen.layout.tokens == "subwords":
        # Words were counted, and not one of them is less than a subword.
        usual *= SUBWORDS_OF_WORD
    if seen.longest > max(SHORT, LONG * usual):
        return min(LONGEST, max(SHORT, usual))
    return LONGEST if seen.longest > LONGEST else None


def _shares(seen: _Seen) -> tuple[float, float]:
    """Return the shares of validation and test: the first of SHARES that training can begin with.

    Those of a large file are always the first ones.
    """
    if seen.total > SMALL_FILE:
        return SHARES[0]
    return shares_of(seen.small, seen.reading)


def _has_positions(seen: _Seen) -> bool:
    """Return whether all sequences are of one length, so that a place may have its own meaning."""
    return seen.is_all and seen.num_rows > 1 and seen.lengths[0] == seen.longest > 1


def _rows_of_table(seen: _Seen) -> int:
    """Return how many rows the table of n-grams has: the nearest power of two, within bounds."""
    num_tokens = sum(seen.lengths) / seen.num_rows * seen.total
    wanted = num_tokens * len(NGRAMS[seen.layout.tokens]) / NGRAMS_OF_ROW
    nearest = 2 ** round(math.log2(max(1, wanted)))
    return max(LEAST_TABLE, min(LARGEST_TABLE, nearest))


def _model_entries(seen: _Seen) -> Iterator[_Entry]:
    kind = seen.layout.tokens
    yield _Entry("model", "cell", "gru", "rnn | lstm | gru; none: the n-gram control alone")
    yield _Entry("model", "embedding_dim", EMBEDDING_DIM, f"of each of the {kind}")
    yield _Entry("model", "embedding_gain", EMBEDDING_GAIN, "rare tokens begin with little to say")
    yield _Entry("model", "ngrams", NGRAMS[kind], "n-grams of tokens with embeddings; []: none")
    if NGRAMS[kind]:
        rows = "rows of embeddings, which a hash gives to n-grams"
        yield _Entry("model", "ngram_table", _rows_of_table(seen), rows)
        yield _Entry("model", "ngram_dropout", NGRAM_DROPOUT, "")
    if _has_positions(seen):
        yield _Entry("model", "positions", "learned", "each place may have a meaning of its own")
    yield _Entry("model", "hidden_size", HIDDEN_SIZE, "")
    yield _Entry("model", "pooling", "last_mean_max", "what the head sees of the states")
    yield _Entry("model", "skip", True, "the head also sees the mean of the embeddings")
    yield _Entry("model", "head_dropout", HEAD_DROPOUT, "")


def _train_entries(seen: _Seen) -> Iterator[_Entry]:
    lr = LEARNING_RATE[seen.layout.tokens]
    yield _Entry("optimizer", "lr", lr, f"at most; {lr / 2:g} and {2 * lr:g} are worth a try")
    yield _Entry("optimizer", "weight_decay", WEIGHT_DECAY, "")

    fitting = [size for rows, size in BATCH_SIZES.items() if seen.total <= rows]
    batch_size = fitting[0] if fitting else LARGEST_BATCH_SIZE
    trained_on = seen.total * (1 - sum(_shares(seen)))
    per_epoch = math.ceil(trained_on / batch_size)

    # Enough steps for a small file, not too many for a large one; at least one epoch.
    epochs = max(1, min(MOST_EPOCHS, round(SEQUENCES / trained_on)))
    epochs = max(epochs, math.ceil(LEAST_STEPS / per_epoch))
    yield _Entry("train", "batch_size", batch_size, f"steps per epoch: about {per_epoch:,}")
    yield _Entry("train", "max_epochs", epochs, f"about {epochs * per_epoch:,} steps")
    limit = max(NO_LIMIT, 2 * epochs * per_epoch)
    yield _Entry("train", "max_steps", limit, "no limit: max_epochs ends the run")

    # Once per epoch, but not after a few steps; three times in a short run, and a long epoch in
    # equal parts.
    longest = min(MOST_STEPS_PER_EVALUATION, math.ceil(epochs * per_epoch / 3))
    parts = math.ceil(per_epoch / longest)
    every = max(LEAST_STEPS_PER_EVALUATION, math.ceil(per_epoch / parts))
    yield _Entry("train", "eval_every", every, "steps")
    yield _Entry("train", "log_every", min(100, every), "steps")
    yield _Entry("train", "patience", PATIENCE, "evaluations without a better one end the run")
    yield _Entry("train", "baseline", "control", "the n-gram control is trained, too; none: not")

    if _is_uneven(seen):
        why = "the most frequent class would else be chosen too often"
        yield _Entry("train", "class_weights", "balanced", why)
        yield _Entry("train", "best_metric", "macro_f1", "counts each class the same")


def _is_uneven(seen: _Seen) -> bool:
    """Return whether classes are uneven, and none is so rare that a weight would be of no use."""
    counts = seen.classes.values()
    return max(counts) > UNEVEN * min(counts) and min(counts) >= LEAST_ROWS_OF_CLASS


def _assumptions(seen: _Seen, raw: dict[str, Any], asked: Set[str]) -> list[str]:
    """Return what was assumed, and with which option that changes.

    Of the keys that are `asked` for, nothing was.
    """
    layout = seen.layout
    # How a table is read is said on its own, as it is for the files of a config.
    lines = [f"{seen.path}: {_name_of_format(layout)}, {seen.rows}"]
    for what, names, why, option in (
        ("sequence", layout.sequence_fields, layout.why_sequence, "--sequence-field"),
        ("label", (layout.label_field,), layout.why_label, "--label-field"),
    ):
        others = [other for other in layout.columns if other not in names]
        lines.append(f"{what}: {_listed(list(names))}, {why} ({option}: {_listed(others)})")
    lines.append(f"tokens: {layout.tokens}, {layout.why_tokens} ({_TOKENS})")
    lines.append(_described_classes(seen))
    lines.append(_described_lengths(seen))

    if seen.num_empty and "data.empty" not in asked:
        rows = "1 row" if seen.num_empty == 1 else f"{seen.num_empty:,} rows"
        are = "is" if seen.num_empty == 1 else "are"
        lines.append(f"{rows} with an empty sequence {are} left out (data.empty)")
    if "max_length" in raw["data"] and "data.max_length" not in asked:
        limit = raw["data"]["max_length"]
        cut = f"longer sequences are cut after {limit:,} tokens (data.max_length)"
        if _has_positions(seen):
            cut = f"all have one length: {cut}, and each place is learned (model.positions)"
        lines.append(cut)
    held_out = []
    for name, purpose in (("val", "validation"), ("test", "the test")):
        key = f"{name}_fraction"
        # A split with its own file takes none of the rows.
        if key in raw["data"] and asked.isdisjoint({f"data.{key}", f"data.{name}"}):
            held_out.append(f"for {purpose} {raw['data'][key]:.0%}")
    if held_out:
        lines.append(f"held out {', '.join(held_out)}, because there are few rows")

    for_uneven = [
        f"{key}: {raw['train'][key]}"
        for key in ("class_weights", "best_metric")
        if key in raw["train"] and f"train.{key}" not in asked
    ]
    if for_uneven:
        lines.append(f"classes are uneven: {', '.join(for_uneven)}")
    return [_one_line(line) for line in lines]


def _name_of_format(layout: Layout) -> str:
    return layout.format.upper() if layout.format in TABLES else described(layout.dialect)


def _described_format(layout: Layout) -> str:
    if layout.format in TABLES:
        return f"{_name_of_format(layout)}, {described(layout.dialect)}"
    return described(layout.dialect)


def _described_classes(seen: _Seen) -> str:
    number = len(seen.classes)
    shown = []
    for label, count in seen.classes.most_common(MOST_CLASSES_SHOWN):
        shown.append(f"{_shown(label)} ({count:,})")
    if number > MOST_CLASSES_SHOWN:
        shown.append("...")
    return f"{number:,} {'class' if number == 1 else 'classes'}: {', '.join(shown)}"


def _described_lengths(seen: _Seen) -> str:
    median = seen.percentile(0.5)
    usual = seen.percentile(0.99)
    unit = "words" if seen.layout.tokens == "subwords" else seen.layout.tokens
    return f"length in {unit}: median {median:,}, 99 % up to {usual:,}, longest {seen.longest:,}"


def _listed(names: list[str]) -> str:
    """Return the first names, for people."""
    shown = [_shown(name) for name in names[:MOST_CLASSES_SHOWN]]
    if len(names) > MOST_CLASSES_SHOWN:
        shown.append("...")
    return ", ".join(shown) or "none"


def _shown(text: str) -> str:
    """Return a text from the file as it can stand in a line: cut, and in quotes if need be."""
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    is_plain = shown.isprintable() and shown and shown == shown.strip()
    return shown if is_plain else json.dumps(shown)


def _to_yaml(seen: _Seen, entries: list[_Entry]) -> str:
    """Return the entries as YAML, below what was seen of the file. Each reason is a comment."""
    lines = [
        f"# Made from {_shown(seen.path)}. Train: rnncls train THIS_FILE.yaml",
        "#",
        f"# {_described_format(seen.layout)}, {seen.rows}",
        f"# {_described_classes(seen)}",
        f"# {_described_lengths(seen)}",
        f"# example: {seen.example}",
    ]
    section = ""
    for entry in entries:
        if entry.section != section:
            section = entry.section
            lines.append(f"{section}:")

        line = f"  {entry.key}: {_to_scalar(entry.value)}"
        if entry.why:
            line = f"{line.ljust(COMMENT_COLUMN)}  # {entry.why}"
        lines.append(line)

    # A comment ends with its line: nothing that stands in the file may end it before.
    return "".join(f"{_one_line(line)}\n" for line in lines)


def _one_line(line: str) -> str:
    return on_one_line(line.replace("\t", " "))


def _to_scalar(value: Any) -> str:
    """Return a value as YAML. Text that could be read as something else is quoted."""
    if not isinstance(value, str):
        return json.dumps(value)

    # Words such as `no` and `y` mean something else to one reader or another.
    if _PLAIN.fullmatch(value) and not _MEANS_OTHER.fullmatch(value):
        return value

    # Between double quotes, YAML reads what JSON writes, and the escapes of `on_one_line`.
    return json.dumps(value, ensure_ascii=False)
