"""Metrics from sums and counts, which are divided once: never a mean of batch means."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

# The 97.5 % quantile of the standard normal distribution: 2.5 % lie above it, 2.5 % below -_Z_95.
_Z_95 = 1.959963984540054

CALIBRATION_BINS = 15  # as in Guo et al. 2017


def wilson_interval(correct: int, examples: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a success rate; (0, 1) for no examples.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference" (the
    score interval).

    >>> [round(bound, 3) for bound in wilson_interval(100, 100)]
    [0.963, 1.0]
    """
    if examples == 0:
        return 0.0, 1.0

    # The bounds p solve (rate - p)^2 = z^2 p (1 - p) / examples.
    rate = correct / examples
    square = _Z_95 * _Z_95 / examples
    centre = (rate + square / 2) / (1 + square)
    variance = rate * (1 - rate) / examples + square / (4 * examples)
    radius = _Z_95 / (1 + square) * math.sqrt(variance)

    # At both ends the formula gives 0 and 1 up to rounding.
    low = 0.0 if correct == 0 else centre - radius
    high = 1.0 if correct == examples else centre + radius
    return low, high


class ClassCounts(NamedTuple):
    """Counts of each class c, (num_classes,) each."""

    correct: Tensor  # c was predicted and true
    predicted: Tensor
    true: Tensor

    def precision_recall_f1(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return three tensors, (num_classes,) each; 0 where the denominator is 0."""
        # Where the denominator is 0, so is the numerator.
        precision = self.correct / self.predicted.clamp(min=1)
        recall = self.correct / self.true.clamp(min=1)
        f1 = 2 * self.correct / (self.predicted + self.true).clamp(min=1)
        return precision, recall, f1

    def macro_f1(self) -> float:
        """Return the mean F1 of the classes that occur, as truth or prediction.

        Source: scikit-learn's f1_score with average="macro".
        """
        # A class that neither occurs nor is predicted has no F1, not one of 0.
        occurs = self.predicted + self.true > 0
        if not occurs.any():
            return 0.0
        _, _, f1 = self.precision_recall_f1()
        return float(f1[occurs].mean())


def class_counts(labels: Tensor, predictions: Tensor, num_classes: int) -> ClassCounts:
    """Count how often each class is correct, predicted and true, in R examples, (R,) each."""
    # float64, because counts above 2**24 are not exact in float32.
    correct = labels[labels == predictions]
    return ClassCounts(
        correct=torch.bincount(correct, minlength=num_classes).double(),
        predicted=torch.bincount(predictions, minlength=num_classes).double(),
        true=torch.bincount(labels, minlength=num_classes).double(),
    )


def confusion_matrix(labels: Tensor, predictions: Tensor, num_classes: int) -> Tensor:
    """Count the pairs in (num_classes, num_classes): row = true class, column = predicted class."""
    # One number for each (true, predicted).
    pairs = labels * num_classes + predictions
    counts = torch.bincount(pairs, minlength=num_classes**2)
    return counts.view(num_classes, num_classes)


def entropy(shares: Tensor) -> float:
    """Return the entropy of shares (N,) that add up to 1, in nats: ln N if they are equal."""
    shares = shares[shares > 0]
    return float(-(shares * shares.log()).sum())


def calibration_error(confidences: Tensor, correct: Tensor) -> float:
    """Return the expected calibration error of R examples, R > 0; NaN if a confidence is.

    `confidences` (R,) are the probabilities of the predicted classes, `correct` (R,) says which
    predictions are right. By their confidence examples are put into CALIBRATION_BINS bins of equal
    count, whose differences between accuracy and mean confidence are averaged over the examples:
    sum over bins of |number of right ones - sum of confidences| / R. 0 is perfect.

    Equal confidences share a bin, that of the first of them: the result does not depend on the
    order of the examples. Of fewer examples than bins each has its own, so that chance alone gives
    a large error.

    Source: Guo et al. 2017, "On calibration of modern neural networks", with the bins of Nguyen and
    O'Connor 2015, "Posterior calibration and exploratory analysis for natural language processing".

    >>> always_sure = torch.tensor([1.0, 1.0, 1.0, 1.0])
    >>> calibration_error(always_sure, torch.tensor([True, False, False, False]))
    0.75
    """
    confidences, correct, bins = _into_bins(confidences, correct)
    excess = correct.double() - confidences.double()

    sums = torch.bincount(bins, weights=excess)
    return float(sums.abs().sum()) / len(confidences)


def calibration_bins(confidences: Tensor, correct: Tensor) -> list[tuple[int, float, float]]:
    """Return the bins of `calibration_error` that have examples, the least confident ones first.

    Each is (count, mean confidence, accuracy). The sum of count * |accuracy - mean confidence| over
    the bins, divided by the number of examples, is the error. There are none without examples.

    >>> calibration_bins(torch.tensor([0.5, 1.0, 1.0]), torch.tensor([False, True, False]))
    [(1, 0.5, 0.0), (2, 1.0, 0.5)]
    """
    if not len(confidences):
        return []
    confidences, correct, bins = _into_bins(confidences, correct)

    counts = torch.bincount(bins)
    means = torch.bincount(bins, weights=confidences.double()) / counts
    accuracies = torch.bincount(bins, weights=correct.double()) / counts

    # A bin is empty where equal confidences went into the one of the first of them.
    columns = (counts.tolist(), means.tolist(), accuracies.tolist())
    return [part for part in zip(*columns, strict=True) if part[0]]


def _into_bins(confidences: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return both sorted by confidence, and the number of the bin of each example, (R,) each."""
    confidences, order = confidences.sort()

    # Of each group of equal confidences, the place of the first; then the bin of that place.
    _, counts = torch.unique_consecutive(confidences, return_counts=True)
    first = counts.cumsum(0) - counts
    bins = first * CALIBRATION_BINS // len(confidences)
    return confidences, correct[order], bins.repeat_interleave(counts)
