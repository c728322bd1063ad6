"""What a model gets wrong: its most confident errors, and the classes that it confuses."""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rnncls.errors import on_one_line
from rnncls.evaluation.examples import Examples, Readable, unpacked
from rnncls.evaluation.scores import Scored, Scores
from rnncls.system.rows import shortened, text_of

MOST_PAIRS = 10
MOST_CLASSES = 20  # in a picture of the classes that are confused

# In a table of errors, in characters.
MOST_OF_SEQUENCE = 60
MOST_OF_LABEL = 24


@dataclass(frozen=True)
class Mistake:
    """A sequence for which the model predicts another class than the true one."""

    confidence: float  # probability of the predicted class
    predicted: str
    true: str
    length: int
    sequence: Readable  # as the model saw it: truncated, with `<unk>` for unknown tokens
    sum: int | None  # of a generated sequence
    file: str | None
    line: int | None  # in the file


@dataclass(frozen=True)
class ConfusedPair:
    """A class that is taken for another one."""

    true: str
    predicted: str
    count: int
    share: float  # of the sequences of the true class


@dataclass(frozen=True)
class Confused:
    """Which classes are taken for which others."""

    pairs: list[ConfusedPair]  # the most frequent, at most 10

    # The classes most involved in errors, at most 20, in the order of their ids, and how often each
    # is taken for each. Rows: true class; columns: predicted class.
    classes: list[str]
    counts: list[list[int]]


class MostConfident:
    """Keeps the most confident errors of what passes, and no more than are asked for.

    Of errors that are equally confident, those come first that are first in the file.
    """

    def __init__(self, most: int, examples: Examples) -> None:
        self.most = most
        self.examples = examples
        self.passed = 0

        # A heap, the least confident first. (confidence, -number, true, predicted, ids)
        self.kept: list[tuple[float, int, int, int, list[int]]] = []

    def watch(self, parts: Iterable[Scored]) -> Iterator[Scored]:
        """Yield the parts, and keep the errors among them."""
        for part in parts:
            if self.most:
                self._keep(part)
            self.passed += len(part.batch.labels)
            yield part

    def _keep(self, part: Scored) -> None:
        # (B,) each. Without finite logits there is no prediction that could be wrong.
        predictions = part.predictions.cpu()
        wrong = (predictions != part.batch.labels) & part.losses.cpu().isfinite()
        confidences = probability_of(part.predictions, part.logits)
        if len(self.kept) == self.most:
            wrong &= confidences >= self.kept[0][0]
        places = wrong.nonzero().flatten().tolist()
        if not places:
            return

        numbers = self.examples.numbers(self.passed, len(wrong))
        sequences = list(unpacked(part.batch))
        for place in places:
            error = (
                float(confidences[place]),
                -numbers[place],
                int(part.batch.labels[place]),
                int(predictions[place]),
                sequences[place],
            )
            if len(self.kept) < self.most:
                heapq.heappush(self.kept, error)
            else:
                heapq.heappushpop(self.kept, error)

    def mistakes(self) -> list[Mistake]:
        """Return the errors that were kept, the most confident first."""
        labels = self.examples.labels
        mistakes = []
        for confidence, negative, true, predicted, ids in sorted(self.kept, reverse=True):
            mistakes.append(
                Mistake(
                    confidence=confidence,
                    predicted=labels[predicted],
                    true=labels[true],
                    length=len(ids),
                    sequence=self.examples.readable(ids),
                    sum=self.examples.sum(ids),
                    file=self.examples.file(-negative),
                    line=self.examples.line(-negative),
                )
            )
        return mistakes


def probability_of(classes: Tensor, logits: Tensor) -> Tensor:
    """Return the probability of a class (B,) of each sequence, from its logits (B, N)."""
    return logits.softmax(1).gather(1, classes.unsqueeze(1)).squeeze(1).cpu()


def confused_classes(scores: Scores, labels: tuple[str, ...]) -> Confused:
    """Count which classes are taken for which others."""
    wrong = (scores.predictions != scores.labels) & scores.losses.isfinite()
    true = scores.labels[wrong]
    predicted = scores.predictions[wrong]

    # One number for each (true, predicted), and only for the pairs that there are: of thousands of
    # classes there would be millions. Stable: of equally frequent pairs, those of smaller ids.
    pairs, counts = torch.unique(true * len(labels) + predicted, return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MOST_PAIRS]
    examples = torch.bincount(scores.labels, minlength=len(labels))
    most = []
    for pair, count in zip(pairs[order].tolist(), counts[order].tolist(), strict=True):
        one, other = divmod(pair, len(labels))
        most.append(ConfusedPair(labels[one], labels[other], count, count / int(examples[one])))

    # The classes that most errors are about, as truth or as prediction.
    classes, counts = torch.unique(torch.cat([true, predicted]), return_counts=True)
    order = counts.argsort(descending=True, stable=True)[:MOST_CLASSES]
    shown = sorted(classes[order].tolist())
    return Confused(most, [labels[number] for number in shown], _counts_between(scores, shown))


def _counts_between(scores: Scores, classes: list[int]) -> list[list[int]]:
    """Return how often each of a few classes (row) is taken for each (column), itself included."""
    rows = []
    for true in classes:
        predictions = scores.predictions[scores.labels == true]
        rows.append([int((predictions == predicted).sum()) for predicted in classes])
    return rows


def mistake_lines(mistakes: list[Mistake], errors: int, num_classes: int) -> list[str]:
    """Return the table of the most confident errors, of which there are `errors` in all."""
    if not mistakes:
        return ["no errors"]

    file = mistakes[0].file
    of_file = "" if file is None else f"; lines of {on_one_line(file)}"
    line_heading = "" if file is None else f"{'line':>9}  "
    rows = [(_label(mistake.predicted), _label(mistake.true)) for mistake in mistakes]
    width = max(9, *(len(label) for labels in rows for label in labels))

    lines = [f"most confident errors ({len(mistakes):,} of {errors:,}{of_file})"]
    lines.append(
        f"confidence  {'predicted':<{width}}  {'true':<{width}}  length  {line_heading}sequence"
    )
    for mistake, (predicted, true) in zip(mistakes, rows, strict=True):
        line = "" if mistake.line is None else f"{mistake.line:>9}  "
        lines.append(
            f"{mistake.confidence:>10.4f}  {predicted:<{width}}  {true:<{width}}  "
            f"{mistake.length:>6,}  {line}{_sequence(mistake, num_classes)}"
        )

    if any("<unk>" in mistake.sequence for mistake in mistakes):
        lines.append("<unk>: a token that the training data lacks")
    return lines


def _sequence(mistake: Mistake, num_classes: int) -> str:
    """Return the beginning and the end of a sequence, on one line, and its sum if it has one."""
    shown = on_one_line(shortened(text_of(mistake.sequence), MOST_OF_SEQUENCE))
    if mistake.sum is None:
        return shown
    return f"{shown} = {mistake.sum:,}, mod {num_classes:,} = {mistake.true}"


def _label(label: str) -> str:
    return on_one_line(shortened(label, MOST_OF_LABEL))


def confused_lines(confused: Confused) -> list[str]:
    """Return the table of the pairs of classes that are confused most often."""
    rows = [(_label(pair.true), _label(pair.predicted)) for pair in confused.pairs]
    width = max(9, *(len(label) for labels in rows for label in labels))

    lines = ["classes most often confused"]
    lines.append(f"{'true':<{width}}  -> {'predicted':<{width}}     errors  of the true class")
    for pair, (true, predicted) in zip(confused.pairs, rows, strict=True):
        lines.append(
            f"{true:<{width}}  -> {predicted:<{width}} {pair.count:>10,}  {pair.share:>17.2%}"
        )
    return lines
