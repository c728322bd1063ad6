"""States in two halves: one to fit class means by, one to see how well they tell the classes.

States stand in rows, n of them, each with `width` numbers and one of C classes. Half of the states
of each class fit everything: means, covariances, planes. Accuracies are those of the other half.
All is float64.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnncls.seeds import mix

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

# Distances to class means that are in memory together.
MOST_DISTANCES = 2**22


class Halves(NamedTuple):
    """States to fit, and states that are held out. Class i has the number numbers[i]."""

    fit: Array  # (n, width)
    fit_classes: Numbers  # (n,), from 0 to C - 1
    held_out: Array  # (m, width)
    held_out_classes: Numbers  # (m,)
    numbers: Numbers  # (C,), rising

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.numbers)


def halves_of(states: Array, classes: Numbers, seed: int) -> Halves:
    """Return the states in two halves of each class; classes with one state alone are left out."""
    # A plane needs two dimensions, even of a network with one unit.
    if states.shape[1] == 1:
        states = np.pad(states, ((0, 0), (0, 1)))

    numbers, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    order = np.random.default_rng(mix(seed, "halves")).permutation(len(states))
    fit: list[int] = []
    held_out: list[int] = []
    for number in np.flatnonzero(counts > 1):
        rows = order[inverse[order] == number].tolist()
        half = (len(rows) + 1) // 2
        fit += rows[:half]
        held_out += rows[half:]

    kept = numbers[counts > 1]
    fit_classes = np.searchsorted(kept, classes[fit])
    held_out_classes = np.searchsorted(kept, classes[held_out])
    return Halves(states[fit], fit_classes, states[held_out], held_out_classes, kept)


def class_means(rows: Array, classes: Numbers, num_classes: int) -> Array:
    """Return the mean of each class, (C, width); every class has a row."""
    sums = np.zeros((num_classes, rows.shape[1]))
    np.add.at(sums, classes, rows)
    return sums / np.bincount(classes, minlength=num_classes)[:, None]


def accuracy_of(rows: Array, classes: Numbers, means: Array) -> float:
    """Return the share of rows (m, width) whose nearest class mean, of (C, width), is their own."""
    squares = (means**2).sum(1)
    num_right = 0
    size = max(1, MOST_DISTANCES // len(means))
    for first in range(0, len(rows), size):
        # Squared distances, but for the square of the row itself, which is the same for all means.
        part = rows[first : first + size]
        nearest = (squares - 2 * part @ means.T).argmin(1)
        num_right += int((nearest == classes[first : first + size]).sum())
    return num_right / len(rows)
