"""Whitening: states in units of how far they are from the mean of their class.

Letters as in halves.py: n states of `width` numbers each, C classes.
"""

from typing import NamedTuple

import numpy as np

from rnncls.inspect.states.halves import Array, Halves, accuracy_of, class_means

# How much of the mean variance is added to every direction before whitening. It only keeps the
# numbers finite where units are dead: what a state encodes may lie in very small directions. For
# eight networks of three cells on sum_mod with N = 3, 7 and 10, any share from 1e-14 to 1e-2 gives
# the best plane the same accuracy within 0.022, and 1e-6 within 0.001 of next to no addition.
RIDGE = 1e-6


class Whitening(NamedTuple):
    """z = (x - centre) matrix has about the unit matrix for its covariance within the classes."""

    centre: Array  # (width,)
    matrix: Array  # (width, width)

    def of(self, states: Array) -> Array:
        """Return whitened states."""
        return (states - self.centre) @ self.matrix


def fisher_whitening(halves: Halves) -> Whitening:
    """Whiten by the pooled covariance within the classes, with next to nothing added to it."""
    covariance = _covariance_within(halves)
    mean_variance = float(np.trace(covariance)) / len(covariance)
    ridge = RIDGE * mean_variance * np.eye(len(covariance))
    return _whitening(halves, covariance + ridge)


def shrunk_whitening(halves: Halves) -> Whitening:
    """Whiten by the pooled covariance within the classes, shrunk as Ledoit and Wolf do."""
    covariance = _covariance_within(halves)
    mean_variance = float(np.trace(covariance)) / len(covariance)
    shrinkage = ledoit_wolf(_residuals(halves))
    target = mean_variance * np.eye(len(covariance))
    return _whitening(halves, (1 - shrinkage) * covariance + shrinkage * target)


def ledoit_wolf(rows: Array) -> float:
    """Return how far to shrink the covariance of `rows` (n, p), whose mean is 0: from 0 to 1.

    With S = rows' rows / n and m = tr(S) / p, the estimate is (1 - r) S + r m I, and r is
    b^2 / d^2 with d^2 = |S - m I|^2 and b^2 = min(d^2, sum over k of |x_k x_k' - S|^2 / n^2), where
    |A|^2 is the sum of squares: Ledoit and Wolf 2004, "A well-conditioned estimator for
    large-dimensional covariance matrices", section 3.2.
    """
    number, width = rows.shape

    # The formula has no unit. Squares of squares of large states would overflow.
    largest = np.abs(rows).max()
    if largest == 0:
        return 1.0
    rows = rows / largest
    sample = rows.T @ rows / number
    mean_variance = np.trace(sample) / width
    distance = ((sample - mean_variance * np.eye(width)) ** 2).sum()

    # |x x' - S|^2 = |x|^4 - 2 x' S x + |S|^2, and the mean of x' S x over the rows is |S|^2.
    fourth_powers = ((rows**2).sum(1) ** 2).mean()
    spread = (fourth_powers - (sample**2).sum()) / number
    return float(min(spread, distance) / distance) if distance > 0 else 1.0


def _residuals(halves: Halves) -> Array:
    """Return the states to fit less the mean of their class."""
    means = class_means(halves.fit, halves.fit_classes, halves.num_classes)
    residuals: Array = halves.fit - means[halves.fit_classes]
    return residuals


def _covariance_within(halves: Halves) -> Array:
    residuals = _residuals(halves)
    degrees = max(1, len(residuals) - halves.num_classes)
    covariance: Array = residuals.T @ residuals / degrees
    return covariance


def _whitening(halves: Halves, covariance: Array) -> Whitening:
    """Return the whitening by a covariance, about the mean of the class means."""
    variances, vectors = np.linalg.eigh(covariance)
    largest = variances[-1]
    if largest > 0:
        # Rounding makes a variance of 0 negative, and in single precision a state of its own.
        scales = 1 / np.sqrt(variances.clip(largest * 1e-12))
    else:
        scales = np.ones(len(variances))

    means = class_means(halves.fit, halves.fit_classes, halves.num_classes)
    return Whitening(means.mean(0), vectors * scales)


def accuracy_everywhere(halves: Halves, whitening: Whitening) -> float:
    """Return the accuracy of the nearest class mean in the whole whitened space, held out."""
    means = class_means(whitening.of(halves.fit), halves.fit_classes, halves.num_classes)
    return accuracy_of(whitening.of(halves.held_out), halves.held_out_classes, means)
