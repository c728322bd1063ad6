"""Planes through states that show what the states encode, and how well a plane tells the classes.

Letters as in halves.py: n states of `width` numbers each, C classes.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rnncls.inspect.states.halves import Array, Halves, Numbers, accuracy_of, class_means
from rnncls.inspect.states.whitening import fisher_whitening, shrunk_whitening

# Frequencies whose accuracy is measured: those with the largest shares of the power. Of thousands
# of classes they are fewer, as each compares all states with all class means.
MOST_TRIED = 50
LEAST_TRIED = 5
MOST_COMPARED = 2**29


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
