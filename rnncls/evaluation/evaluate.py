"""How good is a model: overall, by length, by class."""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from tqdm import tqdm

from rnncls.config import Config, SumModConfig, require_generated_data
from rnncls.data import Batch, all_sequences, num_sequences, samples
from rnncls.data.dataset import Dataset, load_dataset
from rnncls.data.sequences import evaluation_batches
from rnncls.errors import ConfigError, DataError, Problem
from rnncls.evaluation.report import MOST_CLASSES_SHOWN, Report, _report
from rnncls.evaluation.scores import score
from rnncls.model.classifier import RNNClassifier

EXHAUSTIVE_LIMIT = 2**17  # sequences of one length; there are 100,000 of 5 decimal digits


def evaluate(
    model: RNNClassifier,
    config: Config,
    lengths: Sequence[int] | None = None,
    num_samples: int = 10_000,
    confusion: bool = False,
    progress: bool = False,
    dataset: Dataset | None = None,
    check: Callable[[], object] | None = None,
) -> Report:
    """Evaluate a model on generated sequences, or on files.

    Generated: on every sequence of a length where there are at most `EXHAUSTIVE_LIMIT`, else on a sample. With
    `lengths`, `num_samples` sequences of each longer length are drawn from the test stream. Without, the training
    lengths are evaluated: all sequences if every length allows it, else `num_samples` as training draws them.

    Files: on the whole test split of `dataset`, which is read from the config's files if it is not given (they must be
    what they were in training); where that is empty, on the validation split.

    `progress` shows a bar on stderr when that is a terminal; `check` is called before each batch. Raises ConfigError
    when a confusion matrix would be huge, and DataError.
    """
    exhaustive: set[int] = set()
    sources: list[tuple[int, Iterable[Batch]]]  # number of sequences, batches
    trained: Container[int] | None
    evaluated: str | None = None
    if isinstance(config.data, SumModConfig):
        data = config.data
        labels = tuple(map(str, range(data.num_classes)))
        trained = range(data.min_length, data.max_length + 1)
        sources, exhaustive = _generated(data, config.seed, lengths, num_samples)
    else:
        if lengths is not None:
            require_generated_data(config, "--lengths")
        dataset = dataset or load_dataset(config.data, progress=progress)
        labels = dataset.vocabulary.labels
        if (dataset.vocabulary.num_embeddings, len(labels)) != (
            model.embedding.num_embeddings,
            model.head.out_features,
        ):
            what, remedy = (
                "the data is not what this model was trained on",
                "the old file, or `dataset` from the checkpoint",
            )
            raise DataError(Problem(what, config.data.train, remedy=remedy, id="D18"))
        known = dataset.splits.get("train")
        trained = None if known is None else set(known.lengths.tolist())
        evaluated, chosen = dataset.held_out()
        sources = [(len(chosen), evaluation_batches(chosen, None, config.seed))]
    if confusion and len(labels) > MOST_CLASSES_SHOWN:
        expected = f"at most {MOST_CLASSES_SHOWN} classes"
        raise ConfigError(
            Problem(
                "too many classes for a confusion matrix",
                "--confusion",
                expected=expected,
                id="C15",
            )
        )
    with tqdm(
        total=sum(count for count, _ in sources), unit="seq", disable=None if progress else True
    ) as bar:
        scores = score(
            model, _watched(chain.from_iterable(batches for _, batches in sources), bar, check)
        )
    return replace(_report(scores, labels, trained, exhaustive, confusion), data=evaluated)


def _generated(
    data: SumModConfig, seed: int, lengths: Sequence[int] | None, num_samples: int
) -> tuple[list[tuple[int, Iterable[Batch]]], set[int]]:
    """What is to be scored, and the lengths of which that is every sequence."""
    trained = range(data.min_length, data.max_length + 1)
    digit_bits = math.log2(data.num_embeddings)
    exhaustive = {n for n in lengths or trained if n * digit_bits <= math.log2(EXHAUSTIVE_LIMIT)}
    if lengths is None and len(exhaustive) < len(trained):
        return [(num_samples, samples(data, seed, "test", num_samples))], set()
    sources: list[tuple[int, Iterable[Batch]]] = []
    for n in sorted(set(lengths or trained)):
        if n in exhaustive:
            sources.append((num_sequences(data, n), all_sequences(data, n)))
        else:
            of_length = data.model_copy(update={"min_length": n, "max_length": n})
            sources.append((num_samples, samples(of_length, seed, "test", num_samples)))
    return sources, exhaustive


def _watched(
    batches: Iterable[Batch], bar: "tqdm[Any]", check: Callable[[], object] | None
) -> Iterator[Batch]:
    for batch in batches:
        if check is not None:
            check()
        yield batch
        bar.update(len(batch.labels))
