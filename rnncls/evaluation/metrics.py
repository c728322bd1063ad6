"""Sums and counts, divided once. Never a mean of batch means."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def wilson_interval(correct: int, examples: int) -> tuple[float, float]:
    """95 % confidence interval of a success rate (Wilson 1927, score interval); (0, 1) for no examples.

    >>> [round(bound, 3) for bound in wilson_interval(100, 100)]
    [0.963, 1.0]
    """
    if examples == 0:
        return 0.0, 1.0
    z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
    rate, square = correct / examples, z * z / examples
    centre = (rate + square / 2) / (1 + square)
    radius = z / (1 + square) * math.sqrt(rate * (1 - rate) / examples + square / (4 * examples))
    low = 0.0 if correct == 0 else centre - radius
    high = 1.0 if correct == examples else centre + radius
    return low, high


class ClassCounts(NamedTuple):
    """For each class c, (num_classes,) each: how often it was right, how often it was said, how often it was true."""

    correct: Tensor
    predicted: Tensor
    true: Tensor

    def precision_recall_f1(self) -> tuple[Tensor, Tensor, Tensor]:
        """(num_classes,) each; 0 where a class was never said, or never true."""
        precision = self.correct / self.predicted.clamp(min=1)
        recall = self.correct / self.true.clamp(min=1)
        return precision, recall, 2 * self.correct / (self.predicted + self.true).clamp(min=1)

    def macro_f1(self) -> float:
        """The mean F1 of the classes that occur, as truth or prediction (scikit-learn's f1_score, average="macro")."""
        occurs = self.predicted + self.true > 0
        return float(self.precision_recall_f1()[2][occurs].mean()) if occurs.any() else 0.0


def class_counts(labels: Tensor, predictions: Tensor, num_classes: int) -> ClassCounts:
    """From labels and predictions (R,)."""
    correct = labels[labels == predictions]
    counts = (
        torch.bincount(part, minlength=num_classes).double()
        for part in (correct, predictions, labels)
    )
    return ClassCounts(*counts)


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Counts (num_classes, num_classes): row = true class, column = predicted class."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(
        num_classes, num_classes
    )
