"""Evaluate a model: overall, by length, by class."""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

from tqdm import tqdm

from rnncls.config import Config, SumModConfig
from rnncls.config.ranges import DEFAULT_SAMPLES, require_generated_data
from rnncls.data import Batch, all_sequences, num_sequences, samples
from rnncls.data.dataset import Dataset, load_dataset
from rnncls.data.sequences import evaluation_batches
from rnncls.errors import ConfigError, DataError, Problem
from rnncls.evaluation.report import MOST_CLASSES_SHOWN, Report, make_report
from rnncls.evaluation.scores import score
from rnncls.model.classifier import RNNClassifier

# If a length has at most so many sequences, all of them are evaluated. The limit admits the longest
# length of the default task: there are 100,000 sequences of 5 decimal digits.
EXHAUSTIVE_LIMIT = 2**17


class Examples(NamedTuple):
    """The sequences to evaluate, and what the report says about them."""

    total: int  # number of sequences
    batches: Iterable[Batch]
    labels: tuple[str, ...]  # the names of the classes
    trained: Container[int] | None  # lengths seen in training; None: unknown
    exhaustive: Container[int]  # lengths of which every sequence is evaluated
    data: str | None  # the name of the split or file; None: generated sequences


def evaluate(
    model: RNNClassifier,
    config: Config,
    lengths: Sequence[int] | None = None,
    num_samples: int = DEFAULT_SAMPLES,
    confusion: bool = False,
    progress: bool = False,
    dataset: Dataset | None = None,
    check: Callable[[], object] | None = None,
) -> Report:
    """Evaluate a model on generated sequences, or on files.

    Generated: on every sequence of a length that has at most `EXHAUSTIVE_LIMIT`, else on a sample.
    With `lengths`, `num_samples` sequences of each longer length are drawn from the test stream.
    Without, the training lengths are evaluated: on all sequences if every length allows it, else on
    `num_samples` sequences, drawn as training draws them.

    Files: on the whole test split of `dataset`, or on its validation split if the test split is
    empty. Without `dataset`, the config's files are read; they must be those of training.

    `progress` shows a bar on stderr if that is a terminal. `check` is called before each batch.

    Raises: ConfigError for lengths with files, or if a confusion matrix would be huge. DataError if
    the files cannot be read or are not those of training.
    """
    # What to score, and what the report says about it, differs between the two kinds of data.
    if isinstance(config.data, SumModConfig):
        examples = _generated_examples(config.data, config.seed, lengths, num_samples)
    else:
        if lengths is not None:
            require_generated_data(config)
        # Read without the checkpoint's vocabulary, which a model alone does not have.
        dataset = dataset or load_dataset(config.data, progress=progress)
        _require_sizes(dataset, model, config.data.train)
        examples = _held_out_examples(dataset, config.seed)

    # Refused before the model runs over everything.
    if confusion:
        _require_few_classes(len(examples.labels))

    # disable=None leaves the bar out unless stderr is a terminal.
    with tqdm(total=examples.total, unit="seq", disable=None if progress else True) as bar:
        scores = score(model, _with_progress(examples.batches, bar, check))

    report = make_report(scores, examples.labels, examples.trained, examples.exhaustive, confusion)
    return replace(report, data=examples.data)


def _generated_examples(
    data: SumModConfig, seed: int, lengths: Sequence[int] | None, num_samples: int
) -> Examples:
    """Choose the generated sequences to evaluate; see `evaluate`."""
    labels = tuple(map(str, range(data.num_classes)))
    trained = range(data.min_length, data.max_length + 1)
    chosen = sorted(set(lengths or trained))

    # In logarithms, because the number of sequences of a long length is astronomical.
    bits_per_token = math.log2(data.num_embeddings)
    limit = math.log2(EXHAUSTIVE_LIMIT)
    exhaustive = {length for length in chosen if length * bits_per_token <= limit}

    # The training lengths are too many to enumerate: one sample of them all, as in training.
    if lengths is None and len(exhaustive) < len(trained):
        drawn = samples(data, seed, "test", num_samples)
        return Examples(num_samples, drawn, labels, trained, exhaustive=(), data=None)

    total = 0
    parts: list[Iterable[Batch]] = []
    for length in chosen:
        if length in exhaustive:
            total += num_sequences(data, length)
            parts.append(all_sequences(data, length))
        else:
            # A stream of its own for each length: a sample does not depend on the other lengths.
            of_length = data.model_copy(update={"min_length": length, "max_length": length})
            total += num_samples
            parts.append(samples(of_length, seed, "test", num_samples))

    return Examples(total, chain.from_iterable(parts), labels, trained, exhaustive, data=None)


def _held_out_examples(dataset: Dataset, seed: int) -> Examples:
    """Take the whole test split, or the validation split if that is empty."""
    # A file that was read for evaluation alone says nothing about training.
    train = dataset.splits.get("train")
    trained = None if train is None else set(train.lengths.tolist())

    # Without a count, all sequences are evaluated, and the seed decides nothing.
    name, split = dataset.held_out()
    batches = evaluation_batches(split, None, seed)
    labels = dataset.vocabulary.labels
    return Examples(len(split), batches, labels, trained, exhaustive=(), data=name)


def _require_sizes(dataset: Dataset, model: RNNClassifier, path: str) -> None:
    """Raise DataError unless the model has as many tokens and classes as the data."""
    # The only trace that a model has of its data, without its checkpoint.
    data_sizes = (dataset.vocabulary.num_embeddings, dataset.vocabulary.num_classes)
    model_sizes = (model.embedding.num_embeddings, model.head.out_features)
    if data_sizes != model_sizes:
        raise DataError(
            Problem(
                "the data is not what this model was trained on",
                path,
                remedy="the old file, or `dataset` from the checkpoint",
                id="D18",
            )
        )


def _require_few_classes(num_classes: int) -> None:
    """Raise ConfigError if a confusion matrix would be huge."""
    if num_classes > MOST_CLASSES_SHOWN:
        raise ConfigError(
            Problem(
                "too many classes for a confusion matrix",
                "--confusion",
                expected=f"at most {MOST_CLASSES_SHOWN:,} classes",
                found=f"{num_classes:,}",
                id="C15",
            )
        )


def _with_progress(
    batches: Iterable[Batch], bar: "tqdm[Any]", check: Callable[[], object] | None
) -> Iterator[Batch]:
    """Yield the batches, calling `check` before each and moving the bar after it."""
    for batch in batches:
        if check is not None:
            check()
        yield batch
        bar.update(len(batch.labels))
