"""How good is a model: overall, by length, by class."""

import math
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from rnncls.config import Config, SumModConfig
from rnncls.data import Batch, all_sequences, files, num_sequences, samples
from rnncls.data.files import Dataset
from rnncls.data.sequences import evaluation_batches
from rnncls.data.sum_mod import BATCH_TOKENS
from rnncls.errors import ConfigError, DataError, Problem, printable
from rnncls.metrics import class_counts, confusion_matrix, sequence_losses, wilson_interval
from rnncls.model import RNNClassifier

EXHAUSTIVE_LIMIT = 2**17  # sequences of one length; there are 100,000 of 5 decimal digits
MOST_CLASSES_SHOWN = 1000  # in a confusion matrix, and by class
MOST_LENGTHS_SHOWN = 24  # in the text of a report


class Scores(NamedTuple):
    """What a model said about each of R sequences. All are (R,) and on the CPU."""

    lengths: Tensor
    labels: Tensor
    predictions: Tensor
    losses: Tensor  # cross-entropy in nats


@dataclass(frozen=True)
class LengthReport:
    """Accuracy on the sequences of one length."""

    length: int
    examples: int
    errors: int
    accuracy: float
    ci95: tuple[float, float]  # Wilson interval; says nothing where `exhaustive`: then the accuracy is exact
    trained: bool | None  # whether training had sequences of this length; None: not known here
    exhaustive: bool  # whether every sequence of this length was evaluated


@dataclass(frozen=True)
class ClassReport:
    """How well one class is found."""

    label: str
    examples: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Report:
    """What `rnncls eval` prints, and `--json` writes."""

    accuracy: float
    ci95: tuple[float, float]
    loss: float  # mean cross-entropy in nats
    examples: int
    errors: int
    exhaustive: bool
    chance: float  # accuracy of guessing each class alike
    majority: float  # accuracy of always saying the most frequent class of these examples
    macro_f1: float  # mean F1 of the classes that occur
    by_class: list[ClassReport] | None  # None for very many classes
    by_length: list[LengthReport]
    confusion: list[list[int]] | None = None  # rows: true class; columns: predicted class
    data: str | None = None  # which file or split was evaluated; None: generated sequences

    def to_json(self) -> dict[str, Any]:
        """JSON has no NaN and no infinity: a loss that is not finite is null."""
        return asdict(self) | {"loss": self.loss if math.isfinite(self.loss) else None}

    def to_text(self) -> str:
        """The report as a person reads it."""
        extent = f"all {self.examples:,} sequences" if self.exhaustive else f"95 % interval {_interval(self.ci95)}"
        lines = [] if self.data is None else [f"evaluated on: {printable(self.data)}"]
        lines += [
            f"accuracy: {self.accuracy:.4f} ({self.errors:,} errors of {self.examples:,}; {extent})",
            f"loss: {self.loss:.4g}; macro-F1: {self.macro_f1:.4f}; chance: {self.chance:.4f}; "
            f"always the most frequent class: {self.majority:.4f}",
            "",
            "length   examples     errors  accuracy  95 % interval     trained",
        ]
        for low, high, row in _shown_lengths(self.by_length):
            interval = "all of them" if row.exhaustive else _interval(row.ci95)
            length = f"{high:,}" if low == high else f"{low:,}-{high:,}"
            lines.append(
                f"{length:>6} {row.examples:>10,} {row.errors:>10,}    {row.accuracy:.4f}  {interval:<16}  "
                + {True: "yes", False: "no", None: "?"}[row.trained]
            )
        if self.by_class is not None and self.data is not None:
            lines += _class_lines(self.by_class)
        if self.confusion is not None:
            width = max(len(str(count)) for row in self.confusion for count in row) + 1
            lines += ["", "confusion (row: true class, column: predicted class)"]
            names = [printable(row.label) for row in self.by_class or []]
            width, first = max(width, *(len(name) + 1 for name in names)), max(4, *map(len, names))
            lines.append(" " * (first + 1) + "".join(f"{name:>{width}}" for name in names))
            rows = zip(names, self.confusion, strict=True)
            lines += [f"{name:>{first}} " + "".join(f"{n:>{width}}" for n in row) for name, row in rows]
        return "\n".join(lines)


def _class_lines(classes: list[ClassReport]) -> list[str]:
    width = max(5, *(len(printable(row.label)) for row in classes))
    lines = ["", f"{'class':<{width}}   examples  precision  recall      F1"]
    return lines + [
        f"{printable(row.label):<{width}} {row.examples:>10,}     {row.precision:.4f}  {row.recall:.4f}  {row.f1:.4f}"
        for row in classes
    ]


def _shown_lengths(rows: list[LengthReport]) -> list[tuple[int, int, LengthReport]]:
    """(from, to, report) of each length; of many lengths, added up between powers of two."""
    if len(rows) <= MOST_LENGTHS_SHOWN:
        return [(row.length, row.length, row) for row in rows]
    groups: dict[int, list[LengthReport]] = {}
    for row in rows:
        groups.setdefault((row.length - 1).bit_length(), []).append(row)
    shown = []
    for group in groups.values():
        examples, errors = sum(row.examples for row in group), sum(row.errors for row in group)
        exhaustive = all(row.exhaustive for row in group)
        trained = None if group[0].trained is None else any(row.trained for row in group)
        merged = _length_report(group[-1].length, examples, errors, trained, exhaustive)
        shown.append((group[0].length, group[-1].length, merged))
    return shown


def _length_report(length: int, examples: int, errors: int, trained: bool | None, exhaustive: bool) -> LengthReport:
    interval = wilson_interval(examples - errors, examples)
    return LengthReport(length, examples, errors, 1 - errors / examples, interval, trained, exhaustive)


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


@torch.inference_mode()
def score(model: RNNClassifier, batches: Iterable[Batch]) -> Scores:
    """Run the model over the batches in evaluation mode; its training mode is put back afterwards."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    try:
        for batch in batches:
            tokens, labels, lengths = batch.to(device)
            logits = model(tokens)  # (B, N)
            parts.append((lengths, labels, logits.argmax(1), sequence_losses(logits, labels)))
    finally:
        model.train(was_training)
    return Scores(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def count_by_length(scores: Scores) -> dict[int, tuple[int, int]]:
    """(examples, errors) of each length that occurs. Logits that are not finite say nothing: an error."""
    wrong = ((scores.predictions != scores.labels) | ~scores.losses.isfinite()).double()
    examples = torch.bincount(scores.lengths)
    errors = torch.bincount(scores.lengths, weights=wrong).long()
    return {n: (int(examples[n]), int(errors[n])) for n in examples.nonzero().flatten().tolist()}


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
            remedy = "leave it out: a file is evaluated as a whole, and the report goes by length"
            raise ConfigError(
                Problem("lengths are drawn for generated data only", "--lengths", remedy=remedy, id="C17")
            )
        dataset = dataset or files.load(config.data, progress=progress)
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
        sources = [(len(chosen), evaluation_batches(chosen, None, config.seed, BATCH_TOKENS))]
    if confusion and len(labels) > MOST_CLASSES_SHOWN:
        expected = f"at most {MOST_CLASSES_SHOWN} classes"
        raise ConfigError(Problem("too many classes for a confusion matrix", "--confusion", expected, id="C15"))
    with tqdm(total=sum(count for count, _ in sources), unit="seq", disable=None if progress else True) as bar:
        scores = score(model, _watched(chain.from_iterable(batches for _, batches in sources), bar, check))
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


def _watched(batches: Iterable[Batch], bar: "tqdm[Any]", check: Callable[[], object] | None) -> Iterator[Batch]:
    for batch in batches:
        if check is not None:
            check()
        yield batch
        bar.update(len(batch.labels))


def _report(
    scores: Scores, labels: tuple[str, ...], trained: Container[int] | None, exhaustive: set[int], confusion: bool
) -> Report:
    num_classes = len(labels)
    rows = [
        _length_report(length, examples, errors, None if trained is None else length in trained, length in exhaustive)
        for length, (examples, errors) in count_by_length(scores).items()
    ]
    examples, errors = sum(row.examples for row in rows), sum(row.errors for row in rows)
    counts = class_counts(scores.labels, scores.predictions, num_classes)
    columns = (column.tolist() for column in (counts.true.long(), *counts.precision_recall_f1()))
    by_class = [ClassReport(*row) for row in zip(labels, *columns, strict=True)]
    matrix = confusion_matrix(scores.labels, scores.predictions, num_classes).tolist() if confusion else None
    return Report(
        accuracy=1 - errors / examples,
        ci95=wilson_interval(examples - errors, examples),
        loss=float(scores.losses.double().mean()),
        examples=examples,
        errors=errors,
        exhaustive=all(row.exhaustive for row in rows),
        chance=1 / num_classes,
        majority=int(torch.bincount(scores.labels).max()) / examples,
        macro_f1=counts.macro_f1(),
        by_class=by_class if num_classes <= MOST_CLASSES_SHOWN else None,
        by_length=rows,
        confusion=matrix,
    )
