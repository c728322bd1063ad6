"""Scores as a report, for people and as JSON."""

import math
from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rnncls.errors import printable
from rnncls.evaluation.metrics import class_counts, confusion_matrix, wilson_interval
from rnncls.evaluation.scores import Scores, count_by_length

MOST_CLASSES_SHOWN = 1000  # in a confusion matrix, and by class
MOST_LENGTHS_SHOWN = 24  # in the text of a report


@dataclass(frozen=True)
class LengthReport:
    """Accuracy on the sequences of one length."""

    length: int
    examples: int
    errors: int
    accuracy: float
    ci95: tuple[
        float, float
    ]  # Wilson interval; says nothing where `exhaustive`: then the accuracy is exact
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
        extent = (
            f"all {self.examples:,} sequences"
            if self.exhaustive
            else f"95 % interval {_interval(self.ci95)}"
        )
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
            lines += [
                f"{name:>{first}} " + "".join(f"{n:>{width}}" for n in row) for name, row in rows
            ]
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


def _length_report(
    length: int, examples: int, errors: int, trained: bool | None, exhaustive: bool
) -> LengthReport:
    interval = wilson_interval(examples - errors, examples)
    return LengthReport(
        length, examples, errors, 1 - errors / examples, interval, trained, exhaustive
    )


def _interval(bounds: tuple[float, float]) -> str:
    return f"{bounds[0]:.4f} to {bounds[1]:.4f}"


def _report(
    scores: Scores,
    labels: tuple[str, ...],
    trained: Container[int] | None,
    exhaustive: set[int],
    confusion: bool,
) -> Report:
    num_classes = len(labels)
    rows = [
        _length_report(
            length,
            examples,
            errors,
            None if trained is None else length in trained,
            length in exhaustive,
        )
        for length, (examples, errors) in count_by_length(scores).items()
    ]
    examples, errors = sum(row.examples for row in rows), sum(row.errors for row in rows)
    counts = class_counts(scores.labels, scores.predictions, num_classes)
    columns = (column.tolist() for column in (counts.true.long(), *counts.precision_recall_f1()))
    by_class = [ClassReport(*row) for row in zip(labels, *columns, strict=True)]
    matrix = (
        confusion_matrix(scores.labels, scores.predictions, num_classes).tolist()
        if confusion
        else None
    )
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
