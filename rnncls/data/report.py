"""Describes a task's data by its statistics."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rnncls.data.contradictions import NO_CONTRADICTIONS, Contradictions
from rnncls.data.dataset import Dataset
from rnncls.data.sequences import (
    Sequences,
    epoch_order,
    from_batches,
    padding_waste,
    steps_per_epoch,
)
from rnncls.data.splits import NO_RARE_CLASSES
from rnncls.data.table import Noticed
from rnncls.data.task import FilesTask, Task
from rnncls.errors import on_one_line
from rnncls.system.rows import shortened
from rnncls.system.shown import visible

MOST_SHOWN = 20  # tokens or classes
MOST_OF_NAME = 60  # characters of a token or a class
BAR = 40  # characters
MOST_TEXT_BINS = 16  # of the lengths, as text

GENERATED = 10_000  # sequences of generated data that statistics are made of, or one more batch


@dataclass(frozen=True)
class LengthStats:
    """Lengths of a split, in tokens."""

    min: int
    median: int
    mean: float
    max: int


@dataclass(frozen=True)
class SplitStats:
    """The content of one split. For an empty split, `length` and `majority` are None."""

    sequences: int
    tokens: int
    length: LengthStats | None
    classes: dict[str, int]  # number of sequences of each label
    majority: float | None  # share of the most frequent class
    empty_dropped: int  # the rows of training files are counted with training, whatever their split
    truncated: int
    bad_skipped: int
    labels_with_space: int  # around them
    like_lists: int  # texts
    unknown_tokens: int
    also_in_train: int  # sequences
    also_in_val: int


@dataclass(frozen=True)
class VocabularyStats:
    """The tokens of the training split."""

    size: int
    has_unknown: bool
    most_frequent: dict[str, int]


@dataclass(frozen=True)
class Stats:
    """Statistics of a task's files."""

    read_as: dict[str, str]  # how each table was read, by file
    split: str  # the rule by which rows are held out
    splits: dict[str, SplitStats]
    prefix_labels: dict[str, int]  # of train, how many of each class; empty if there are none
    rare_classes: dict[str, int]  # different sequences of each class that is too rare to hold out
    rare_rows: int  # of these classes
    rare_dropped: bool  # whether they are left out
    contradictions: Contradictions  # sequences with different labels
    vocabulary: VocabularyStats
    padding_waste: dict[str, float]  # share of padding in padded batches, by batching
    steps_per_epoch: int | None  # None: generated data never ends

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as plain values, in the order of the fields."""
        return asdict(self)


def splits_of(task: Task) -> dict[str, Sequences]:
    """Return the sequences of each split; of generated data, the first ones that a run would have.

    The test of generated data has every sequence of short lengths, and is no sample like these.
    """
    if isinstance(task, FilesTask):
        return task.dataset.splits
    num_batches = -(-GENERATED // task.config.train.batch_size)
    train = from_batches(task.batches(0, num_batches))
    return {"train": train.without_prefix_labels(), "val": task.validation_sequences(GENERATED)}


def class_names(task: Task) -> Sequence[str]:
    """Return the names of all classes."""
    if task.vocabulary is not None:
        return task.vocabulary.labels
    return list(map(str, range(task.sizes[1])))


def token_names(task: Task) -> Sequence[str]:
    """Return the names of all tokens, by id."""
    if task.vocabulary is not None:
        return task.vocabulary.tokens
    return list(map(str, range(task.sizes[0])))


def stats(task: Task) -> Stats:
    """Return the statistics of all splits, and of vocabulary and padding of the training split.

    Those of generated data are of some sequences, whose batches are never sorted by length.
    """
    if not isinstance(task, FilesTask):
        return _stats_of_generated(task)
    dataset = task.dataset
    batch_size = task.config.train.batch_size
    # Padding as it would be in the first epoch, with either way of forming batches.
    waste: dict[str, float] = {}
    for batching in ("shuffle", "bucket"):
        order = epoch_order(task.train, task.config.seed, 0, batch_size, batching)
        waste[batching] = padding_waste(task.train, order)

    splits: dict[str, SplitStats] = {}
    for name, sequences in dataset.splits.items():
        splits[name] = _split_stats(dataset, name, sequences)

    rare = dataset.rare or NO_RARE_CLASSES
    return Stats(
        read_as=dataset.read_as,
        split=task.data.split,
        splits=splits,
        prefix_labels=_prefix_labels(dataset),
        rare_classes=rare.sequences,
        rare_rows=rare.num_rows,
        rare_dropped=rare.are_dropped,
        contradictions=dataset.contradictions or NO_CONTRADICTIONS,
        vocabulary=_vocabulary_stats(task, task.train),
        padding_waste=waste,
        steps_per_epoch=steps_per_epoch(task.train, batch_size),
    )


def _stats_of_generated(task: Task) -> Stats:
    sequences = splits_of(task)
    train = sequences["train"]
    names = class_names(task)
    known = set(_tuples(train))
    in_train = sum(each in known for each in _tuples(sequences["val"]))

    rows = list(torch.split(torch.arange(len(train)), task.config.train.batch_size))
    return Stats(
        read_as={},
        split="generated",
        splits={
            "train": _counts(train, names, Noticed()),
            "val": _counts(sequences["val"], names, Noticed(), also_in_train=in_train),
        },
        prefix_labels={},
        rare_classes={},
        rare_rows=0,
        rare_dropped=False,
        contradictions=NO_CONTRADICTIONS,
        vocabulary=_vocabulary_stats(task, train),
        padding_waste={"shuffle": padding_waste(train, rows)},
        steps_per_epoch=None,
    )


def _tuples(sequences: Sequences) -> Iterator[tuple[int, ...]]:
    """Yield the ids of each sequence."""
    for ids in torch.split(sequences.tokens, sequences.lengths.tolist()):
        yield tuple(ids.tolist())


def _vocabulary_stats(task: Task, train: Sequences) -> VocabularyStats:
    names = token_names(task)
    # Stable: of equally frequent tokens, those with the smaller ids.
    counts = torch.bincount(train.tokens, minlength=len(names))
    frequent = counts.argsort(descending=True, stable=True)[:MOST_SHOWN].tolist()
    most_frequent = {names[index]: int(counts[index]) for index in frequent}
    has_unknown = task.vocabulary is not None and task.vocabulary.has_unknown
    return VocabularyStats(len(names), has_unknown, most_frequent)


def _prefix_labels(dataset: Dataset) -> dict[str, int]:
    """Return how many prefixes of the training split have each label."""
    numbers = dataset.splits["train"].prefix_labels
    if numbers is None:
        return {}
    labels = dataset.vocabulary.labels
    counts = torch.bincount(numbers, minlength=len(labels)).tolist()
    return dict(zip(labels, counts, strict=True))


def _split_stats(dataset: Dataset, name: str, sequences: Sequences) -> SplitStats:
    # A split without files of its own is counted with the training files.
    noticed = dataset.noticed.get(name, Noticed())
    return _counts(
        sequences,
        dataset.vocabulary.labels,
        noticed,
        unknown_tokens=dataset.unknown_tokens.get(name, 0),
        also_in_train=dataset.in_train.get(name, 0),
        also_in_val=dataset.in_val.get(name, 0),
    )


def _counts(
    sequences: Sequences,
    labels: Sequence[str],
    noticed: Noticed,
    unknown_tokens: int = 0,
    also_in_train: int = 0,
    also_in_val: int = 0,
) -> SplitStats:
    classes = torch.bincount(sequences.labels, minlength=len(labels)).tolist()

    # An empty split has neither a shortest sequence nor a most frequent class.
    length = None
    majority = None
    if len(sequences):
        lengths = sequences.lengths
        length = LengthStats(
            int(lengths.min()),
            int(lengths.median()),
            float(lengths.double().mean()),
            int(lengths.max()),
        )
        majority = max(classes) / len(sequences)

    return SplitStats(
        sequences=len(sequences),
        tokens=len(sequences.tokens),
        length=length,
        classes=dict(zip(labels, classes, strict=True)),
        majority=majority,
        empty_dropped=noticed.dropped,
        truncated=noticed.truncated,
        bad_skipped=noticed.skipped,
        labels_with_space=noticed.spaced_labels,
        like_lists=noticed.like_lists,
        unknown_tokens=unknown_tokens,
        also_in_train=also_in_train,
        also_in_val=also_in_val,
    )


def to_text(task: Task) -> str:
    """Return the statistics as a person reads them."""
    statistics = stats(task)
    train = statistics.splits["train"]
    vocabulary = statistics.vocabulary

    # By frequency; sorted() keeps the vocabulary's order among equals.
    classes = sorted(train.classes.items(), key=lambda pair: -pair[1])
    with_unknown = "included" if vocabulary.has_unknown else "none"

    return "\n".join(
        [
            "split    sequences      tokens   length: min median   mean    max"
            "   unknown  also in train",
            *(_split_line(name, split) for name, split in statistics.splits.items()),
            *_about_generated(statistics),
            "",
            f"classes of train ({len(classes):,}; majority-class baseline: {train.majority:.4f})",
            *_bars(classes),
            *_about_labels(task),
            *_about_prefixes(statistics.prefix_labels),
            "",
            f"tokens of train ({vocabulary.size:,}, <unk> {with_unknown})",
            *_bars(list(vocabulary.most_frequent.items())),
            "",
            "lengths of train",
            *_bars(_length_bins(splits_of(task)["train"])),
            "",
            *_about_batches(statistics),
        ]
    )


def _about_generated(statistics: Stats) -> list[str]:
    """Return the line that says which sequences of generated data were looked at."""
    if statistics.steps_per_epoch is not None:
        return []
    return ["generated: the first sequences of training, which never ends, and those of validation"]


def _about_batches(statistics: Stats) -> list[str]:
    """Return lines about padding, and about epochs where there are some."""
    waste = [f"{share:.1%} with batching: {way}" for way, share in statistics.padding_waste.items()]
    if statistics.steps_per_epoch is None:
        waste = [f"{share:.1%}" for share in statistics.padding_waste.values()]
    lines = [
        f"padding in a padded batch: {', '.join(waste)}",
        "(packed batches have none; see data.layout)",
    ]
    if statistics.steps_per_epoch is not None:
        lines.append(f"steps per epoch: {statistics.steps_per_epoch:,}")
    return lines


def _about_labels(task: Task) -> list[str]:
    """Return lines about rare classes and sequences with different labels, below the classes."""
    if not isinstance(task, FilesTask):
        return []
    lines = []
    rare = task.dataset.rare
    if rare is not None and rare.sequences:
        lines.append(on_one_line(rare.told))

    contradictions = task.dataset.contradictions
    if contradictions is not None and contradictions.sequences:
        lines.append(on_one_line(contradictions.shown))
        lines += [f"  {on_one_line(example.shown)}" for example in contradictions.examples]
    else:
        lines.append("no sequence has different labels")
    return lines


def _about_prefixes(counts: dict[str, int]) -> list[str]:
    """Return lines with the classes of the prefixes, none if they have no labels."""
    if not counts:
        return []
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return ["", f"labels of prefixes of train ({sum(counts.values()):,})", *_bars(ordered)]


def _split_line(name: str, split: SplitStats) -> str:
    """Return a split's line of the table."""
    length = split.length
    if length is None:
        return f"{name:<6} {0:>11}"

    # The widths are those of the header in `to_text`.
    sizes = f"{split.sequences:>11,} {split.tokens:>11,}"
    lengths = f"{length.min:>11,} {length.median:>6,} {length.mean:>6.1f} {length.max:>6,}"
    unknown = split.unknown_tokens / split.tokens
    return f"{name:<6} {sizes}   {lengths}   {unknown:>7.2%}  {split.also_in_train:>13,}"


def _length_bins(sequences: Sequences) -> list[tuple[str, int]]:
    """Return at most 16 bins of equal width, each with its number of sequences."""
    # The width is rounded up, so that there are never more bins than fit.
    lengths = sequences.lengths
    width = -(-int(lengths.max()) // MOST_TEXT_BINS)
    counts = torch.bincount((lengths - 1) // width).tolist()

    bins: list[tuple[str, int]] = []
    for index, count in enumerate(counts):
        first = index * width + 1
        last = (index + 1) * width
        bins.append((f"{first}-{last}" if width > 1 else f"{first}", count))
    return bins


def _bars(pairs: list[tuple[str, int]]) -> list[str]:
    """Return a line with a name, its count and a bar for each of the first 20 names."""
    shown = [(visible(shortened(name, MOST_OF_NAME)), count) for name, count in pairs[:MOST_SHOWN]]
    width = max(len(name) for name, _ in shown)
    # At least 1, so that counts that are all 0 divide by something.
    highest = max(1, *(count for _, count in shown))

    lines: list[str] = []
    for name, count in shown:
        lines.append(f"  {name:>{width}} {count:>10,} {'#' * round(BAR * count / highest)}")
    if len(pairs) > MOST_SHOWN:
        lines.append(f"  ... and {len(pairs) - MOST_SHOWN:,} more")
    return lines
