"""Scores as a report, for people and as JSON."""

import math
from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.evaluation.control import ControlReport, control_lines
from rnncls.evaluation.metrics import (
    calibration_error,
    class_counts,
    confusion_matrix,
    wilson_interval,
)
from rnncls.evaluation.mistakes import Confused, Mistake, confused_lines, mistake_lines
from rnncls.evaluation.scores import Scores, count_by_length
from rnncls.system.rows import shortened

MOST_CLASSES_SHOWN = 1000  # in a confusion matrix, and by class
MOST_LENGTHS_SHOWN = 24  # in the text of a report
MOST_OF_NAME = 60  # characters of a class


@dataclass(frozen=True)
class LengthReport:
    """Accuracy on the sequences of one length."""

    length: int
    examples: int
    errors: int
    accuracy: float
    # The Wilson interval. It has no meaning if `exhaustive`: then the accuracy is exact.
    ci95: tuple[float, float]

    # Whether training had sequences of this length; None if that is unknown.
    trained: bool | None

    # Whether every sequence of this length was evaluated.
    exhaustive: bool


@dataclass(frozen=True)
class ClassReport:
    """Precision, recall and F1 of one class."""

    label: str
    examples: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Report:
    """The result of an evaluation, which `rnncls eval` prints and `--json` writes."""

    accuracy: float
    ci95: tuple[float, float]
    loss: float  # mean cross-entropy in nats
    examples: int
    errors: int
    exhaustive: bool
    chance: float  # accuracy of guessing each class alike
    majority: float  # accuracy of always predicting the most frequent class of these examples
    macro_f1: float  # mean F1 of the classes that occur
    ece: float  # expected calibration error: mean gap between confidence and accuracy
    by_class: list[ClassReport] | None  # None for very many classes
    by_length: list[LengthReport]
    confusion: list[list[int]] | None = None  # rows: true class; columns: predicted class
    data: str | None = None  # which file or split was evaluated; None: generated sequences

    # Of generated sequences: the share of predictions that stay the same when tokens are shuffled.
    shuffled: float | None = None

    # The n-gram control of the run on the same sequences, if it has one.
    control: ControlReport | None = None

    # Only on request: the most confident errors, best first, and the classes that are confused.
    mistakes: list[Mistake] | None = None
    confused: Confused | None = None

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for JSON; a number that is not finite is null, as JSON has no NaN.

        What it gets wrong is there only if it was asked for, the n-gram control only if the run has
        one.
        """
        content = asdict(self)
        for name in ("loss", "ece"):
            content[name] = content[name] if math.isfinite(content[name]) else None
        for name in ("mistakes", "confused", "control"):
            if content[name] is None:
                del content[name]
        return content

    def to_text(self) -> str:
        """Return the report as a person reads it."""
        lines = _summary_lines(self)
        lines += ["", *_length_lines(self.by_length)]

        # The classes of generated data are alike: a table of them would say nothing.
        if self.by_class is not None and self.data is not None:
            lines += ["", *_class_lines(self.by_class)]

        if self.confusion is not None:
            lines += ["", *_confusion_lines(self.confusion, self.by_class or [])]

        # Without errors, it is said that there are none.
        if self.mistakes is not None and (self.mistakes or not self.errors):
            num_classes = round(1 / self.chance)
            lines += ["", *mistake_lines(self.mistakes, self.errors, num_classes)]
        if self.confused is not None and self.confused.pairs:
            lines += ["", *confused_lines(self.confused)]

        return "\n".join(lines)


def _summary_lines(report: Report) -> list[str]:
    lines = []
    if report.data is not None:
        lines.append(f"evaluated on: {on_one_line(report.data)}")

    # An interval allows for sequences that were not evaluated; an exhaustive report has none.
    if report.exhaustive:
        extent = f"all {report.examples:,} sequences"
    else:
        extent = f"95 % interval {_interval(report.ci95)}"

    errors = "1 error" if report.errors == 1 else f"{report.errors:,} errors"
    lines.append(f"accuracy: {report.accuracy:.4f} ({errors} of {report.examples:,}; {extent})")
    lines.append(
        f"loss: {report.loss:.4g}; macro-F1: {report.macro_f1:.4f}; chance: {report.chance:.4f}; "
        f"majority-class baseline: {report.majority:.4f}"
    )

    calibration = f"expected calibration error: {report.ece:.4f}"
    if report.shuffled is not None:
        calibration += f"; predictions that survive shuffling: {report.shuffled:.4f}"
    lines.append(calibration)
    if report.control is not None:
        lines += control_lines(report.control, report.accuracy, report.majority)
    return lines


def _length_lines(rows: list[LengthReport]) -> list[str]:
    lines = ["length   examples     errors  accuracy  95 % interval     seen in training"]
    for shortest, longest, row in _shown_lengths(rows):
        length = f"{longest:,}" if shortest == longest else f"{shortest:,}-{longest:,}"
        # The accuracy on every sequence of a length is exact and needs no interval.
        interval = "all of them" if row.exhaustive else _interval(row.ci95)
        lines.append(
            f"{length:>6} {row.examples:>10,} {row.errors:>10,}    {row.accuracy:.4f}  "
            f"{interval:<16}  {_yes_or_no(row.trained)}"
        )
    return lines


def _name(label: str) -> str:
    """Return a label, which comes from the user's files, as the tables show it."""
    return on_one_line(shortened(label, MOST_OF_NAME))


def _class_lines(classes: list[ClassReport]) -> list[str]:
    labels = [_name(row.label) for row in classes]
    width = max(5, *map(len, labels))

    lines = [f"{'class':<{width}}   examples  precision  recall      F1"]
    for label, row in zip(labels, classes, strict=True):
        lines.append(
            f"{label:<{width}} {row.examples:>10,}     "
            f"{row.precision:.4f}  {row.recall:.4f}  {row.f1:.4f}"
        )
    return lines


def _confusion_lines(confusion: list[list[int]], classes: list[ClassReport]) -> list[str]:
    labels = [_name(row.label) for row in classes]
    largest = max(max(row) for row in confusion)

    # Counts and the labels above them share the columns; the labels at the left have their own.
    width = 1 + max(len(str(largest)), *map(len, labels))
    left_width = max(4, *map(len, labels))

    lines = ["confusion (row: true class, column: predicted class)"]
    lines.append(" " * (left_width + 1) + "".join(f"{label:>{width}}" for label in labels))
    for label, counts in zip(labels, confusion, strict=True):
        cells = "".join(f"{count:>{width}}" for count in counts)
        lines.append(f"{label:>{left_width}} {cells}")
    return lines


def _shown_lengths(rows: list[LengthReport]) -> list[tuple[int, int, LengthReport]]:
    """Return (shortest, longest, report) for each line of the table.

    Each length has a line of its own. If there are very many, those between two powers of two are
    added up.
    """
    if len(rows) <= MOST_LENGTHS_SHOWN:
        return [(row.length, row.length, row) for row in rows]

    # Rows come in the order of their lengths, and so do the groups.
    groups: dict[int, list[LengthReport]] = {}
    for row in rows:
        # 2**(exponent - 1) < length <= 2**exponent
        exponent = (row.length - 1).bit_length()
        groups.setdefault(exponent, []).append(row)

    shown = []
    for group in groups.values():
        shortest = group[0].length
        longest = group[-1].length
        shown.append((shortest, longest, _added_up(group)))
    return shown


def _added_up(rows: list[LengthReport]) -> LengthReport:
    """Return one report for several lengths; it counts as seen in training if one of them was."""
    # Whether it is known is the same for all lengths.
    trained = None if rows[0].trained is None else any(row.trained for row in rows)
    return _length_report(
        length=rows[-1].length,
        examples=sum(row.examples for row in rows),
        errors=sum(row.errors for row in rows),
        trained=trained,
        exhaustive=all(row.exhaustive for row in rows),
    )


def _length_report(
    length: int, examples: int, errors: int, trained: bool | None, exhaustive: bool
) -> LengthReport:
    return LengthReport(
        length=length,
        examples=examples,
        errors=errors,
        accuracy=1 - errors / examples,
        ci95=wilson_interval(examples - errors, examples),
        trained=trained,
        exhaustive=exhaustive,
    )


def _interval(bounds: tuple[float, float]) -> str:
    low, high = bounds
    return f"{low:.4f} to {high:.4f}"


def _yes_or_no(answer: bool | None) -> str:
    if answer is None:
        return "?"
    return "yes" if answer else "no"


def make_report(
    scores: Scores,
    confidences: Tensor,
    labels: tuple[str, ...],
    trained: Container[int] | None,
    exhaustive: Container[int],
    confusion: bool,
) -> Report:
    """Turn the scores of at least one sequence into a report.

    `confidences` (R,) are the probabilities of the predicted classes, in the order of the scores.
    `labels` are the names of the classes, `trained` the lengths seen in training (None: unknown),
    `exhaustive` the lengths of which every sequence was scored. `confusion` asks for the matrix.
    """
    by_length = []
    for length, (examples, errors) in count_by_length(scores).items():
        seen = None if trained is None else length in trained
        by_length.append(_length_report(length, examples, errors, seen, length in exhaustive))

    examples = sum(row.examples for row in by_length)
    errors = sum(row.errors for row in by_length)

    # One row for each class, in the order of the ids.
    # (num_classes,) each; int64 for the examples, so that JSON shows them without a decimal point.
    num_classes = len(labels)
    counts = class_counts(scores.labels, scores.predictions, num_classes)
    columns = [counts.true.long().tolist()]
    columns += [column.tolist() for column in counts.precision_recall_f1()]
    by_class = [ClassReport(*row) for row in zip(labels, *columns, strict=True)]

    # (num_classes, num_classes), and only on request: it grows with the square.
    matrix = None
    if confusion:
        matrix = confusion_matrix(scores.labels, scores.predictions, num_classes).tolist()

    return Report(
        accuracy=1 - errors / examples,
        ci95=wilson_interval(examples - errors, examples),
        loss=float(scores.losses.double().mean()),
        examples=examples,
        errors=errors,
        exhaustive=all(row.exhaustive for row in by_length),
        chance=1 / num_classes,
        majority=int(torch.bincount(scores.labels).max()) / examples,
        macro_f1=counts.macro_f1(),
        ece=calibration_error(confidences, ~scores.wrong()),
        by_class=by_class if num_classes <= MOST_CLASSES_SHOWN else None,
        by_length=by_length,
        confusion=matrix,
    )


def require_few_classes(num_classes: int) -> None:
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
