"""How good is a model: overall, by length, by class."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from rnncls.config import Config
from rnncls.data import Batch, all_sequences, num_sequences, samples
from rnncls.errors import ConfigError, Problem
from rnncls.metrics import confusion_matrix, sequence_losses, wilson_interval
from rnncls.model import RNNClassifier

EXHAUSTIVE_LIMIT = 2**17  # sequences of one length; there are 100,000 of 5 decimal digits
MOST_CLASSES_SHOWN = 1000  # in a confusion matrix


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
    trained: bool  # whether training drew sequences of this length
    exhaustive: bool  # whether every sequence of this length was evaluated


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
    by_length: list[LengthReport]
    confusion: list[list[int]] | None = None  # rows: true class; columns: predicted class

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def to_text(self) -> str:
        """The report as a person reads it."""
        extent = f"all {self.examples:,} sequences" if self.exhaustive else f"95 % interval {_interval(self.ci95)}"
        lines = [
            f"accuracy: {self.accuracy:.4f} ({self.errors:,} errors of {self.examples:,}; {extent})",
            f"loss: {self.loss:.4g}; chance: {self.chance:.4f}; always the most frequent class: {self.majority:.4f}",
            "",
            "length   examples     errors  accuracy  95 % interval     trained",
        ]
        for row in self.by_length:
            interval = "all of them" if row.exhaustive else _interval(row.ci95)
            lines.append(
                f"{row.length:>6,} {row.examples:>10,} {row.errors:>10,}    {row.accuracy:.4f}  {interval:<16}  "
                + ("yes" if row.trained else "no")
            )
        if self.confusion is not None:
            width = max(len(str(count)) for row in self.confusion for count in row) + 1
            lines += ["", "confusion (row: true class, column: predicted class)"]
            lines.append("     " + "".join(f"{label:>{width}}" for label in range(len(self.confusion))))
            lines += [
                f"{label:>4} " + "".join(f"{n:>{width}}" for n in row) for label, row in enumerate(self.confusion)
            ]
        return "\n".join(lines)


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
    """(examples, errors) of each length that occurs."""
    wrong = (scores.predictions != scores.labels).double()
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
) -> Report:
    """Evaluate on every sequence of a length where there are at most `EXHAUSTIVE_LIMIT`, else on a sample.

    With `lengths`, `num_samples` sequences of each longer length are drawn from the test stream. Without, the training
    lengths are evaluated: all sequences if every length allows it, else `num_samples` as training draws them.
    `progress` shows a bar on stderr when that is a terminal. Raises ConfigError when a confusion matrix would be huge.
    """
    data = config.data
    if confusion and data.num_classes > MOST_CLASSES_SHOWN:
        expected = f"at most {MOST_CLASSES_SHOWN} classes"
        raise ConfigError(Problem("too many classes for a confusion matrix", "--confusion", expected, id="C15"))
    trained = range(data.min_length, data.max_length + 1)
    digit_bits = math.log2(data.num_embeddings)
    exhaustive = {n for n in lengths or trained if n * digit_bits <= math.log2(EXHAUSTIVE_LIMIT)}
    sources: list[tuple[int, Iterable[Batch]]]  # number of sequences, batches
    if lengths is None and len(exhaustive) < len(trained):
        exhaustive = set()
        sources = [(num_samples, samples(data, config.seed, "test", num_samples))]
    else:
        sources = [_of_length(config, n, num_samples, n in exhaustive) for n in sorted(set(lengths or trained))]
    with tqdm(total=sum(count for count, _ in sources), unit="seq", disable=None if progress else True) as bar:
        scores = score(model, _watched(chain.from_iterable(batches for _, batches in sources), bar))
    return _report(scores, config, trained, exhaustive, confusion)


def _of_length(config: Config, length: int, num_samples: int, exhaustive: bool) -> tuple[int, Iterable[Batch]]:
    if exhaustive:
        return num_sequences(config.data, length), all_sequences(config.data, length)
    data = config.data.model_copy(update={"min_length": length, "max_length": length})
    return num_samples, samples(data, config.seed, "test", num_samples)


def _watched(batches: Iterable[Batch], bar: "tqdm[Any]") -> Iterator[Batch]:
    for batch in batches:
        yield batch
        bar.update(len(batch.labels))


def _report(scores: Scores, config: Config, trained: range, exhaustive: set[int], confusion: bool) -> Report:
    num_classes = config.data.num_classes
    rows = [
        LengthReport(
            length=length,
            examples=examples,
            errors=errors,
            accuracy=1 - errors / examples,
            ci95=wilson_interval(examples - errors, examples),
            trained=length in trained,
            exhaustive=length in exhaustive,
        )
        for length, (examples, errors) in count_by_length(scores).items()
    ]
    examples, errors = sum(row.examples for row in rows), sum(row.errors for row in rows)
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
        by_length=rows,
        confusion=matrix,
    )
