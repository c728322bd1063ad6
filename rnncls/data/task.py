"""A config with its data: how many tokens and classes there are, and the batches of training and evaluation."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from pydantic_core import PydanticCustomError
from torch import Tensor

from rnncls.config import Config, FilesConfig, SumModConfig, check_size
from rnncls.data import dataset as files
from rnncls.data import sequences, sum_mod
from rnncls.data.batches import Batch, Block
from rnncls.data.sum_mod import BATCH_TOKENS
from rnncls.data.vocabulary import Vocabulary
from rnncls.errors import ConfigError, Problem

MOST_LENGTHS_LOGGED = 20  # more curves than this in one chart tell nobody anything


class Task(ABC):
    """What a run is about. Two kinds: generated sequences, and the user's files."""

    config: Config
    vocabulary: Vocabulary | None = None  # None: tokens and labels are the numbers themselves
    fingerprints: dict[str, str] = {}  # noqa: RUF012  # SHA-256 of each file
    class_weights: Tensor | None = None  # (num_classes,)

    @property
    @abstractmethod
    def sizes(self) -> tuple[int, int]:
        """(number of different tokens, number of classes)."""

    @property
    @abstractmethod
    def max_steps(self) -> int:
        """Steps of the whole run."""

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """The training batches of the steps start, ..., stop - 1: a function of (config, data, step)."""

    @abstractmethod
    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """The same batches, many at a time."""

    @abstractmethod
    def validation(self) -> Iterator[Batch]:
        """The sequences each evaluation during training uses, always the same ones."""

    @abstractmethod
    def logged_lengths(self) -> list[int]:
        """The lengths whose validation accuracy is logged on its own."""


def spread_lengths(data: SumModConfig) -> list[int]:
    """All training lengths, or evenly spread ones when they are many, from the shortest to the longest."""
    first, last = data.min_length, data.max_length
    number = min(MOST_LENGTHS_LOGGED, last - first + 1)
    return sorted(
        {first + round(index * (last - first) / max(1, number - 1)) for index in range(number)}
    )


class SumModTask(Task):
    """Digits labelled with their sum mod N, generated."""

    def __init__(self, config: Config, data: SumModConfig) -> None:
        self.config, self.data = config, data

    @property
    def sizes(self) -> tuple[int, int]:
        return self.data.num_embeddings, self.data.num_classes

    @property
    def max_steps(self) -> int:
        return self.config.train.max_steps

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """As of Task."""
        batch_size = self.config.train.batch_size
        return sum_mod.batches(self.data, self.config.seed, "train", batch_size, start, stop)

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """As of Task."""
        return sum_mod.blocks(
            self.data, self.config.seed, "train", self.config.train.batch_size, start, stop
        )

    def validation(self) -> Iterator[Batch]:
        """As of Task."""
        return sum_mod.samples(self.data, self.config.seed, "val", self.config.train.eval_samples)

    def logged_lengths(self) -> list[int]:
        """All training lengths, or evenly spread ones when they are many."""
        return spread_lengths(self.data)


class FilesTask(Task):
    """Labelled sequences from files, in memory."""

    def __init__(self, config: Config, data: FilesConfig, dataset: files.Dataset) -> None:
        self.config, self.data, self.dataset = config, data, dataset
        self.vocabulary, self.fingerprints = dataset.vocabulary, dataset.fingerprints
        self.train = dataset.splits["train"]
        if config.train.class_weights == "balanced":
            counts = torch.bincount(self.train.labels, minlength=self.vocabulary.num_classes)
            self.class_weights = len(self.train) / (len(counts) * counts.clamp(min=1)).float()

    @property
    def sizes(self) -> tuple[int, int]:
        return self.dataset.vocabulary.num_embeddings, self.dataset.vocabulary.num_classes

    @property
    def max_steps(self) -> int:
        train = self.config.train
        if train.max_epochs is None:
            return train.max_steps
        return min(
            train.max_steps,
            train.max_epochs * sequences.steps_per_epoch(self.train, train.batch_size),
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """As of Task."""
        config = self.config
        batch_size, batching = config.train.batch_size, self.data.batching
        return sequences.batches(self.train, config.seed, batch_size, batching, start, stop)

    def blocks(self, start: int, stop: int) -> Iterator[Block]:
        """As of Task."""
        config = self.config
        return sequences.blocks(
            self.train, config.seed, config.train.batch_size, self.data.batching, start, stop
        )

    def validation(self) -> Iterator[Batch]:
        """Of the split val; where there is none, of train."""
        chosen = self.dataset.splits["val"] if len(self.dataset.splits["val"]) else self.train
        return sequences.evaluation_batches(
            chosen, self.config.train.eval_samples, self.config.seed, BATCH_TOKENS
        )

    def logged_lengths(self) -> list[int]:
        """The most frequent lengths of the training data."""
        counts = torch.bincount(self.train.lengths)
        frequent = counts.argsort(descending=True, stable=True)[:MOST_LENGTHS_LOGGED]
        return sorted(int(length) for length in frequent if counts[length])


def load_task(config: Config, vocabulary: Vocabulary | None = None, progress: bool = False) -> Task:
    """The task of a config; files are read, and what is remarkable about them is said on stderr.

    `vocabulary`: a checkpoint's, which its files must fit. Raises DataError, and ConfigError for a model that the
    vocabulary makes too large.
    """
    if isinstance(config.data, SumModConfig):
        return SumModTask(config, config.data)
    dataset = files.load(config.data, vocabulary, progress)
    for warning in files.warnings(dataset):
        print(warning, file=sys.stderr)
    task = FilesTask(config, config.data, dataset)
    train, epoch = config.train, sequences.steps_per_epoch(task.train, config.train.batch_size)
    if train.max_epochs and train.max_steps < train.max_epochs * epoch:
        what = f"train.max_steps = {train.max_steps:,} ends the run in epoch {-(-train.max_steps // epoch):,}"
        print(
            f"rnncls: warning[D21]: {what} of {train.max_epochs:,}, of {epoch:,} steps each",
            file=sys.stderr,
        )
    if 0 < task.max_steps <= config.schedule.warmup_steps and task.max_steps < train.max_steps:
        what = f"the run has {task.max_steps:,} steps, all of them within schedule.warmup_steps"
        print(f"rnncls: warning[D21]: {what} = {config.schedule.warmup_steps:,}", file=sys.stderr)
    try:
        check_size(config, *task.sizes)
    except PydanticCustomError as error:
        context = error.context or {}
        found = f"{context['found']}, {task.sizes[0]:,} tokens, {task.sizes[1]:,} classes"
        problem = Problem(
            context["what"],
            "model.hidden_size",
            expected=context["expected"],
            found=found,
            remedy="data.min_count=2",
            id="C12",
        )
        raise ConfigError(problem) from None
    return task
