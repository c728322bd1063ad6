"""Planes through states that show what the states encode, and how well a plane tells the classes.

States stand in rows, n of them, each with `width` numbers and one of C classes. Half of the states
of each class fit everything here: means, covariances, planes. Accuracies are those of the other
half. All is float64.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnncls.seeds import mix

Array = NDArray[np.float64]
Numbers = NDArray[np.int64]

# How much of the mean variance is added to every direction before whitening. It only keeps the
# numbers finite where units are dead: what a state encodes may lie in very small directions. For
# eight networks of three cells on sum_mod with N = 3, 7 and 10, any share from 1e-14 to 1e-2 gives
# the best plane the same accuracy within 0.022, and 1e-6 within 0.001 of next to no addition.
RIDGE = 1e-6

# Distances to class means that are in memory together.
MOST_DISTANCES = 2**22

# Frequencies whose accuracy is measured: those with the largest shares of the power. Of thousands
# of classes they are fewer, as each compares all states with all class means.
MOST_TRIED = 50
LEAST_TRIED = 5
MOST_COMPARED = 2**29


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


class Whitening(NamedTuple):
    """z = (x - centre) matrix has about the unit matrix for its covariance within the classes."""

    centre: Array  # (width,)
    matrix: Array  # (width, width)

    def of(self, states: Array) -> Array:
        """Return whitened states."""
        return (states - self.centre) @ self.matrix


class Plane(NamedTuple):
    """Two directions, or one, and what is seen in them."""

    kind: str  # frequency, discriminants or principal
    directions: Array  # (width, 2), or (width, 1) for a line
    centre: Array  # (width,): the origin of the plane
    share: float  # of the variance of the states, or of the class means' power; NaN where that is 0
    means: Array  # (C, 2 or 1): class means of the states to fit, in the plane
    accuracy: float  # nearest class mean, of the states that are held out
    accuracy_fit: float  # the same, of the states to fit
    frequency: int = 0  # for that kind
    # For a frequency: the classes' numbers around the ring, by the means of the states held out,
    # and whether that is the order in which the frequency has them.
    order: tuple[int, ...] = ()
    is_cyclic: bool = False

    def of(self, states: Array) -> Array:
        """Return the coordinates of states in the plane, (n, 2 or 1)."""
        return (states - self.centre) @ self.directions


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


def accuracy_everywhere(halves: Halves, whitening: Whitening) -> float:
    """Return the accuracy of the nearest class mean in the whole whitened space, held out."""
    means = class_means(whitening.of(halves.fit), halves.fit_classes, halves.num_classes)
    return accuracy_of(whitening.of(halves.held_out), halves.held_out_classes, means)


# --- whitening


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


# --- planes


def principal_plane(halves: Halves) -> Plane:
    """Return the plane in which the states vary most, whatever their class."""
    centre = halves.fit.mean(0)
    directions, share = _largest_directions(halves.fit - centre, 2)
    return _plane(halves, "principal", directions, centre, share)


def discriminant_plane(halves: Halves) -> Plane:
    """Return the plane of the first two linear discriminants, with shrunk covariance.

    Two classes have one discriminant: the other direction is the largest of what is left. The share
    is that of the variance between whitened class means.
    """
    whitening = shrunk_whitening(halves)
    states = whitening.of(halves.fit)
    means = class_means(states, halves.fit_classes, halves.num_classes)

    # Each class counts by its number of states.
    counts = np.bincount(halves.fit_classes)
    between = (means - states.mean(0)) * np.sqrt(counts)[:, None]
    if halves.num_classes > 2:
        axes, share = _largest_directions(between, 2)
    else:
        first, share = _largest_directions(between, 1)
        left = states - states @ first @ first.T
        second, _ = _largest_directions(left - left.mean(0), 1)
        axes = np.concatenate([first, second], axis=1)

    return _plane(halves, "discriminants", whitening.matrix @ axes, whitening.centre, share)


def frequency_planes(halves: Halves, modulus: int) -> list[Plane]:
    """Return the planes of the class means' frequencies, the best one first, then by their shares.

    Class c is the sum c modulo N. The whitened class means have a Fourier component of frequency k,
    F_k = sum over c of mean_c exp(-2 pi i k c / N), whose real and imaginary part span the plane.
    Its share is that of the power, |F_k|^2 together with |F_(N - k)|^2. For k = N / 2 it is a line.
    The best plane is chosen by the states to fit. At most MOST_TRIED are returned.
    """
    whitening = fisher_whitening(halves)
    means = class_means(whitening.of(halves.fit), halves.fit_classes, halves.num_classes)

    # (N, width): a sum that never occurs adds nothing. Of it (N // 2, width), without frequency 0.
    of_all = np.zeros((modulus, means.shape[1]))
    of_all[halves.numbers] = means
    components = np.fft.rfft(of_all, axis=0)[1:]
    frequencies = np.arange(1, modulus // 2 + 1)
    power = (np.abs(components) ** 2).sum(1) * np.where(2 * frequencies == modulus, 1, 2)
    shares = power / power.sum() if power.sum() > 0 else np.full(len(power), np.nan)

    planes = []
    most = MOST_COMPARED // (len(halves.fit) * halves.num_classes)
    num_tried = min(MOST_TRIED, max(LEAST_TRIED, most))
    for index in np.argsort(-power, kind="stable")[:num_tried]:
        frequency = int(frequencies[index])
        axes = _axes_of(components[index], is_line=2 * frequency == modulus)
        directions = whitening.matrix @ axes
        share = float(shares[index])
        plane = _plane(halves, "frequency", directions, whitening.centre, share)

        held_out = plane.of(halves.held_out)
        found = class_means(held_out, halves.held_out_classes, halves.num_classes)
        order, is_cyclic = _around(found, halves.numbers, frequency, modulus)
        planes.append(plane._replace(frequency=frequency, order=tuple(order), is_cyclic=is_cyclic))

    # Few states are told apart by any plane: then by one that could tell all classes apart.
    def goodness(plane: Plane) -> tuple[float, int]:
        return plane.accuracy_fit, told_apart(plane.frequency, modulus)

    best = max(planes, key=goodness)
    return [best, *(plane for plane in planes if plane is not best)]


def _axes_of(component: NDArray[np.complex128], is_line: bool) -> Array:
    """Return orthonormal axes (width, 2) of a Fourier component, or one (width, 1) of a line.

    The frequency goes around clockwise from the top: class 0 is up, and classes further on in a
    turn come to the right of it.
    """
    # mean_c is along the real part as cos(2 pi k c / N), and against the imaginary one as sin.
    if is_line:
        line = component.real[:, None]
        norm = np.linalg.norm(line)
        return line / norm if norm > 0 else np.eye(len(line), 1)

    # The nearest orthonormal pair, which favours neither of the two.
    both = np.stack([-component.imag, component.real], axis=1)
    left, _, right = np.linalg.svd(both, full_matrices=False)
    axes: Array = left @ right
    return axes


def _around(means: Array, numbers: Numbers, frequency: int, modulus: int) -> tuple[list[int], bool]:
    """Return the classes in their order around the ring, and whether it is that of the frequency.

    Around a ring of frequency k, the classes c stand in the order of k c modulo N. Some may share
    a place: those that the frequency cannot tell apart.
    """
    if means.shape[1] == 1:
        # A line has two ends: the even sums at one, the odd ones at the other.
        order = np.argsort(-means[:, 0], kind="stable")
    else:
        # Clockwise from the top, the first class first.
        offsets = means - means.mean(0)
        angles = np.arctan2(offsets[:, 0], offsets[:, 1])
        order = np.argsort((angles - angles[0]) % (2 * math.pi), kind="stable")
    steps = [int(number) * frequency % modulus for number in numbers[order]]

    # Once around, the next place comes first again: a single step down.
    turns = sum(after < before for before, after in zip(steps, steps[1:] + steps[:1], strict=True))
    return numbers[order].tolist(), turns <= 1


def _largest_directions(rows: Array, count: int) -> tuple[Array, float]:
    """Return the directions (width, count) of most variance of centred rows, and their share."""
    variances, vectors = np.linalg.eigh(rows.T @ rows)
    directions = vectors[:, ::-1][:, :count]

    # A direction has no sign: its largest part is positive, on any machine.
    largest = np.abs(directions).argmax(0)
    directions = directions * np.where(directions[largest, np.arange(count)] < 0, -1, 1)
    total = variances.clip(0).sum()
    share = float(variances[-count:].clip(0).sum() / total) if total > 0 else math.nan
    return directions, share


def _plane(halves: Halves, kind: str, directions: Array, centre: Array, share: float) -> Plane:
    """Return a plane with its class means and accuracies."""
    plane = Plane(kind, directions, centre, share, np.empty((0, 2)), math.nan, math.nan)
    fit = plane.of(halves.fit)
    means = class_means(fit, halves.fit_classes, halves.num_classes)
    return plane._replace(
        means=means,
        accuracy=accuracy_of(plane.of(halves.held_out), halves.held_out_classes, means),
        accuracy_fit=accuracy_of(fit, halves.fit_classes, means),
    )


def told_apart(frequency: int, modulus: int) -> int:
    """Return how many classes a frequency can tell apart: N / gcd(k, N)."""
    return modulus // math.gcd(frequency, modulus)
