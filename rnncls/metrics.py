"""Sums and counts, divided once. Never a mean of batch means."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class Totals:
    """Sums over the training steps since the last log line."""

    loss: float = 0.0  # over sequences, in nats
    correct: int = 0
    sequences: int = 0
    grad_norm: float = 0.0  # over steps, before clipping
    clipped: int = 0
    steps: int = 0
    seconds: float = 0.0  # spent on training alone, not on evaluation and saving

    def add(self, loss: float, grad_norm: float, correct: int, sequences: int, max_norm: float | None) -> None:
        """One step: its mean loss, the norm before clipping, and how many of its sequences were right."""
        self.loss += loss * sequences
        self.correct += correct
        self.sequences += sequences
        self.grad_norm += grad_norm
        self.clipped += max_norm is not None and grad_norm > max_norm
        self.steps += 1

    def averages(self) -> dict[str, float]:
        """The averages by TensorBoard tag; empty when nothing was added."""
        if not self.steps:
            return {}
        return {
            "train/loss": self.loss / self.sequences,
            "train/accuracy": self.correct / self.sequences,
            "train/grad_norm": self.grad_norm / self.steps,
            "train/clip_fraction": self.clipped / self.steps,
            "train/sequences_per_second": self.sequences / self.seconds,
        }


def sequence_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sequence in nats, (B,), from logits (B, N) and labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")


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
    counts = (torch.bincount(part, minlength=num_classes).double() for part in (correct, predictions, labels))
    return ClassCounts(*counts)


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Counts (num_classes, num_classes): row = true class, column = predicted class."""
    return torch.bincount(labels * num_classes + predictions, minlength=num_classes**2).view(num_classes, num_classes)
