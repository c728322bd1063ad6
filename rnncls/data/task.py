"""Joins a config with its data: numbers of tokens and classes, batches of training and validation.

`Task` is what training needs to know about data, wherever that comes from.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from pydantic_core import PydanticCustomError
from torch import Tensor

from rnncls.config import (
    Config,
    FilesConfig,
    SumModConfig,
    check_size,
    number,
    with_numbers,
)
from rnncls.data import sequences, sum_mod
from rnncls.data.batches import Batch, Block
from rnncls.data.dataset import Dataset, Fingerprints
from rnncls.data.files.places import named
from rnncls.data.lengths import Lengths, grouped_lengths
from rnncls.data.loading import load_dataset
from rnncls.data.read_tables import with_files_found
from rnncls.data.sequences import Sequences
from rnncls.data.vocabulary import Vocabulary
from rnncls.data.warnings import dataset_warnings, files_found, how_read
from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.system.streams import say


class Task(ABC):
    """The data of a run, with its config. Two kinds: generated sequences, and the user's files."""

    config: Config  # with numbers for all defaults of the data source
    max_steps: int  # of the whole run
    steps_per_epoch: int | None = None  # None where data is generated, and never ends
    logged_lengths: list[Lengths]  # those whose validation accuracy is logged separately
    # Without a vocabulary, tokens and labels are the numbers themselves.
    vocabulary: Vocabulary | None = None

    fingerprints: Fingerprints = {}  # noqa: RUF012
    class_weights: Tensor | None = None  # (num_classes,)

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """Numbers of (different tokens, classes)."""

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the training batches of the steps start, ..., stop - 1.

        The batch of a step is a function of (config, data, step): a run can resume anywhere. It has
        prefix labels if `train.objective` is prefix.
        """

    @abstractmethod
    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """Yield the same batches, many at a time."""

    @abstractmethod
    def validation(self) -> Iterator[Batch]:
        """Yield the sequences that every evaluation during training uses, always the same ones."""

    @abstractmethod
    def validation_sequences(self, most: int) -> Sequences:
        """Return at most so many sequences of validation, of any length, always the same ones."""

    @property
    @abstractmethod
    def validation_sizes(self) -> tuple[int, int | None]:
        """Numbers of validation sequences: (used by an evaluation, available).

        None where data is generated, and there are as many as anyone wants.
        """

    @property
    @abstractmethod
    def validation_tokens(self) -> int:
        """About how many tokens an evaluation has: a function of config and data."""

    @property
    @abstractmethod
    def longest(self) -> int:
        """Length of the longest training sequence, in tokens."""

    @property
    @abstractmethod
    def mean_length(self) -> float:
        """Mean length of the training sequences, in tokens: a function of config and data."""

    @property
    @abstractmethod
    def filled(self) -> float:
        """The share of a padded training batch that is tokens, the rest being padding.

        A function of the config without its seed, and of the data.
        """

    @property
    def described_split(self) -> str:
        """How many sequences are for what, in one line; "" where data is generated."""
        return ""

    @property
    def token_counts(self) -> Tensor:
        """How often each token occurs in the training sequences, (num_tokens,); of files alone."""
        raise NotImplementedError

    @property
    @abstractmethod
    def class_shares(self) -> Tensor:
        """The share of each class in the training sequences, (num_classes,) float64."""

    @property
    def trained_shares(self) -> Tensor:
        """The share of each class in what the training loss asks for, (num_classes,) float64."""
        return self.class_shares

    @abstractmethod
    def sequences_seen(self, step: int) -> int:
        """Return how many training sequences the steps before `step` have had."""


class SumModTask(Task):
    """Generated digits, labelled with their sum modulo N."""

    def __init__(self, config: Config, data: SumModConfig) -> None:
        self.config = config
        self.data = data
        self.max_steps = config.train.max_steps
        self.logged_lengths = grouped_lengths(range(data.min_length, data.max_length + 1))

    @property
    def sizes(self) -> tuple[int, int]:
        return self.data.num_embeddings, self.data.num_classes

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the training batches of the steps start, ..., stop - 1."""
        train = self.config.train
        return sum_mod.batches(
            self.data,
            self.config.seed,
            "train",
            train.batch_size,
            start,
            stop,
            with_prefix_labels=train.objective == "prefix",
        )

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """Yield the same batches, many at a time."""
        batch_size = self.config.train.batch_size
        return sum_mod.blocks(self.data, self.config.seed, "train", batch_size, start, stop)

    def validation(self) -> Iterator[Batch]:
        """Yield `train.eval_samples` sequences of the validation stream."""
        count = number(self.config.train.eval_samples)
        return sum_mod.samples(self.data, self.config.seed, "val", count)

    def validation_sequences(self, most: int) -> Sequences:
        """Return the first ones of the validation stream."""
        found: list[Batch] = []
        count = 0
        for batch in self.validation():
            found.append(batch)
            count += len(batch.labels)
            if count >= most:
                break
        every = sequences.from_batches(found)
        return every.select(torch.arange(min(most, count)))

    @property
    def validation_sizes(self) -> tuple[int, int | None]:
        return number(self.config.train.eval_samples), None

    @property
    def validation_tokens(self) -> int:
        # Lengths are uniform.
        used, _ = self.validation_sizes
        return used * (self.data.min_length + self.data.max_length) // 2

    @property
    def longest(self) -> int:
        return self.data.max_length

    @property
    def mean_length(self) -> float:
        # Lengths are uniform.
        return (self.data.min_length + self.data.max_length) / 2

    @property
    def filled(self) -> float:
        return sum_mod.filled(self.data, self.config.train.batch_size)

    @property
    def class_shares(self) -> Tensor:
        # Exact where digits go up to modulus - 1, which makes every sum equally likely.
        return torch.full((self.data.num_classes,), 1 / self.data.num_classes, dtype=torch.float64)

    def sequences_seen(self, step: int) -> int:
        """Return how many training sequences the steps before `step` have had."""
        return step * self.config.train.batch_size


class FilesTask(Task):
    """Labelled sequences from files, in memory."""

    def __init__(self, config: Config, data: FilesConfig, dataset: Dataset) -> None:
        self.data = data
        self.dataset = dataset
        self.vocabulary = dataset.vocabulary
        self.fingerprints = dataset.fingerprints
        self.train = dataset.splits["train"]
        if config.train.objective != "prefix":
            # The files may have labels of prefixes nevertheless.
            self.train = self.train.without_prefix_labels()

        self.steps_per_epoch = sequences.steps_per_epoch(self.train, config.train.batch_size)
        self.logged_lengths = grouped_lengths(torch.unique(self.train.lengths).tolist())

        # Whichever ends first: the epochs or the steps.
        self.max_steps = config.train.max_steps
        if config.train.max_epochs is not None:
            self.max_steps = min(self.max_steps, config.train.max_epochs * self.steps_per_epoch)

        # An empty validation split was warned of while the files were read.
        self.validated = dataset.splits["val"]
        if not len(self.validated):
            self.validated = self.train

        # The numbers that stand in the run's config.yaml and in its checkpoints: resumed with more
        # steps, the run keeps its warm-up.
        self.config = with_numbers(config, self.max_steps, len(self.validated))

        if config.train.class_weights == "balanced":
            # R / (classes * count): a class of average frequency weighs 1. A class that the loss
            # never asks for, such as one of a checkpoint's vocabulary, has a weight that none uses.
            counts = self.train.class_counts(self.vocabulary.num_classes)
            counts = torch.where(counts > 0, counts, 1)
            self.class_weights = len(self.train) / (len(counts) * counts).float()

    @property
    def sizes(self) -> tuple[int, int]:
        vocabulary = self.dataset.vocabulary
        return vocabulary.num_embeddings, vocabulary.num_classes

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the training batches of the steps start, ..., stop - 1, epoch after epoch."""
        seed = self.config.seed
        batch_size = self.config.train.batch_size
        return sequences.batches(self.train, seed, batch_size, self.data.batching, start, stop)

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """Yield the same batches, many at a time."""
        seed = self.config.seed
        batch_size = self.config.train.batch_size
        return sequences.blocks(self.train, seed, batch_size, self.data.batching, start, stop)

    def validation(self) -> Iterator[Batch]:
        """Yield sequences of the validation split; if that is empty, of the training split."""
        count = number(self.config.train.eval_samples)
        return sequences.evaluation_batches(self.validated, count, self.config.seed)

    def validation_sequences(self, most: int) -> Sequences:
        """Return some of those that `validation` yields, in random order if it takes a sample."""
        used, _ = self.validation_sizes
        count = min(used, most)
        rows = sequences.evaluation_rows(self.validated, count, self.config.seed)
        return self.validated.select(rows)

    @property
    def validation_sizes(self) -> tuple[int, int | None]:
        available = len(self.validated)
        return min(number(self.config.train.eval_samples), available), available

    @property
    def validation_tokens(self) -> int:
        used, available = self.validation_sizes
        return len(self.validated.tokens) * used // (available or 1)

    @property
    def longest(self) -> int:
        return int(self.train.lengths.max())

    @property
    def mean_length(self) -> float:
        return len(self.train.tokens) / len(self.train)

    @property
    def filled(self) -> float:
        # Of some order, always the same one: a choice must not change with the seed.
        batch_size = self.config.train.batch_size
        order = sequences.epoch_order(self.train, 0, 0, batch_size, self.data.batching)
        return 1 - sequences.padding_waste(self.train, order)

    @property
    def described_split(self) -> str:
        own_files = {"val": self.data.val, "test": self.data.test}
        parts = [f"{len(self.train):,} sequences for training"]
        for name, purpose in (("val", "validation"), ("test", "the test")):
            part = f"{len(self.dataset.splits[name]):,}"
            own = own_files[name]
            if own is not None:
                part += f" of {named(own)}"
            parts.append(f"{part} for {purpose}{self._held_out(name)}")
        return on_one_line(", ".join(parts))

    def described_size(self, name: str) -> str:
        """Return how many sequences a split has, in one line."""
        split = self.dataset.splits[name]
        sequences = "1 sequence" if len(split) == 1 else f"{len(split):,} sequences"
        size = f"{sequences}, {len(split.tokens):,} tokens"
        return on_one_line(f"{name}: {size}{self._held_out(name)}")

    def _held_out(self, name: str) -> str:
        """Return which key took a split from the training files, "" if that needs no word.

        Who has files for one split may not know that the other one takes rows of training.
        """
        own_files = {"train": self.data.train, "val": self.data.val, "test": self.data.test}
        if own_files[name] is not None or not len(self.dataset.splits[name]):
            return ""
        if self.data.val is None and self.data.test is None:
            return ""
        fraction = getattr(self.data, f"{name}_fraction")
        return f", held out of {named(self.data.train)} (data.{name}_fraction={fraction:g})"

    @property
    def token_counts(self) -> Tensor:
        return torch.bincount(self.train.tokens, minlength=self.sizes[0])

    @property
    def class_shares(self) -> Tensor:
        counts = torch.bincount(self.train.labels, minlength=self.sizes[1])
        return counts.double() / len(self.train)

    @property
    def trained_shares(self) -> Tensor:
        return self.train.class_counts(self.sizes[1]).double() / len(self.train)

    def sequences_seen(self, step: int) -> int:
        """Return how many training sequences the steps before `step` have had."""
        # The last batch of an epoch may be smaller.
        batch_size = self.config.train.batch_size
        epochs, steps = divmod(step, sequences.steps_per_epoch(self.train, batch_size))
        return epochs * len(self.train) + min(steps * batch_size, len(self.train))


def load_task(
    config: Config,
    vocabulary: Vocabulary | None = None,
    progress: bool = False,
    said: set[str] | None = None,
) -> Task:
    """Return the task of a config. Files are read, and warnings about them printed on stderr.

    `vocabulary` is that of a checkpoint, which the files must fit. `said` has the lines that need
    not be printed again, and gets those that are.

    Raises: DataError. ConfigError if the vocabulary makes the model too large.
    """
    if isinstance(config.data, SumModConfig):
        return SumModTask(config, config.data)

    said = set() if said is None else said
    data = with_files_found(config.data)
    _say_once(files_found(config.data, data), said)
    config = config.model_copy(update={"data": data})
    dataset = load_dataset(data, vocabulary, progress)
    _say_once(how_read(dataset), said)
    task = FilesTask(config, data, dataset)
    _say_once([*dataset_warnings(dataset), *_warnings_of_length(task)], said)
    _require_size(task)
    return task


def _say_once(lines: Iterable[str], said: set[str]) -> None:
    """Print lines on stderr, but for those that were `said`."""
    for line in lines:
        if line not in said:
            said.add(line)
            say(line)


def _warnings_of_length(task: FilesTask) -> Iterator[str]:
    """Yield warnings about a run that ends before the config's epochs or within its warm-up."""
    train = task.config.train
    epoch = sequences.steps_per_epoch(task.train, train.batch_size)

    # A user who asks for epochs hardly means the default of max_steps to cut them short.
    if train.max_epochs and train.max_steps < train.max_epochs * epoch:
        last_epoch = -(-train.max_steps // epoch)
        ends = f"train.max_steps = {train.max_steps:,} ends the run in epoch {last_epoch:,}"
        of_all = f"of {train.max_epochs:,}, of {epoch:,} steps each"
        yield f"rnncls: warning[D21]: {ends} {of_all}"

    # Only where the epochs cut the run short: a run that max_steps keeps short is on purpose.
    warmup = number(task.config.schedule.warmup_steps)
    if 0 < task.max_steps <= warmup and task.max_steps < train.max_steps:
        what = f"the run has {task.max_steps:,} steps, all of them within schedule.warmup_steps"
        yield f"rnncls: warning[D21]: {what} = {warmup:,}"


def _require_size(task: FilesTask) -> None:
    """Raise ConfigError if the vocabulary makes the model larger than any machine's memory."""
    # The config's own check could not know these sizes: they come from the files.
    num_tokens, num_classes = task.sizes
    try:
        check_size(task.config, num_tokens, num_classes)
    except PydanticCustomError as error:
        context = error.context or {}
        found = f"{context['found']}, {num_tokens:,} tokens, {num_classes:,} classes"
        problem = Problem(
            context["what"],
            "model.hidden_size",
            expected=context["expected"],
            found=found,
            remedy="data.min_count=2",
            id="C12",
        )
        raise ConfigError(problem) from None
