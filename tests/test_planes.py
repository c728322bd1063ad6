"""Planes through states, and how well they tell classes: on states that were made for it."""

import math
from typing import Any

import numpy as np
import pytest

from rnncls.inspect.states.halves import Array, Halves, accuracy_of, halves_of
from rnncls.inspect.states.planes import discriminant_plane, frequency_planes, principal_plane
from rnncls.inspect.states.whitening import accuracy_everywhere, fisher_whitening, ledoit_wolf


def ring(
    frequency: int, count: int = 3000, modulus: int = 10, noise: float = 5
) -> tuple[Array, Any]:
    """States with a ring of radius 0.05 in two directions, noise of this size in ten others.

    A rotation hides which directions they are.
    """
    rng = np.random.default_rng(0)
    classes = rng.integers(0, modulus, count)
    angles = 2 * np.pi * frequency * classes / modulus
    points = 0.05 * np.stack([np.cos(angles), np.sin(angles)], 1)
    points += 0.003 * rng.normal(size=points.shape)
    states = np.concatenate([points, noise * rng.normal(size=(count, 10))], 1)
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    return states @ rotation, classes


@pytest.mark.parametrize(("frequency", "order"), [(1, "0123456789"), (3, "0741852963")])
def test_a_ring_in_small_directions_is_found(frequency: int, order: str) -> None:
    states, classes = ring(frequency)
    halves = halves_of(states, classes, seed=0)
    principal = principal_plane(halves)
    assert principal.accuracy < 0.2

    best, *others = frequency_planes(halves, 10)
    assert best.frequency == frequency
    assert best.accuracy > 0.99
    assert best.share > 0.99
    assert best.is_cyclic
    assert "".join(map(str, best.order)) == order
    assert accuracy_everywhere(halves, fisher_whitening(halves)) > 0.99
    assert {plane.frequency for plane in others} == {1, 2, 3, 4, 5} - {frequency}


def test_a_ring_begins_at_the_top_and_goes_clockwise() -> None:
    states, classes = ring(1)
    best = frequency_planes(halves_of(states, classes, seed=0), 10)[0]
    angles = 2 * np.pi * np.arange(10) / 10
    clock = np.stack([np.sin(angles), np.cos(angles)], 1)
    radius = np.linalg.norm(best.means, axis=1, keepdims=True)
    assert np.allclose(best.means / radius, clock, atol=0.05)


def test_a_wrong_order_is_seen() -> None:
    states, classes = ring(1)
    # Classes 2 and 3 change places.
    swapped = np.array([0, 1, 3, 2, 4, 5, 6, 7, 8, 9])[classes]
    planes = frequency_planes(halves_of(states, swapped, seed=0), 10)
    plane = next(plane for plane in planes if plane.frequency == 1)
    assert plane.order == (0, 1, 3, 2, 4, 5, 6, 7, 8, 9)
    assert not plane.is_cyclic


def isotropic(means: Array) -> Halves:
    """Two equal halves whose covariance within each class is a multiple of the unit matrix."""
    num_classes, width = means.shape
    steps = np.concatenate([np.eye(width), -np.eye(width)])
    states = (means[:, None] + steps).reshape(-1, width)
    classes = np.repeat(np.arange(num_classes), len(steps))
    return Halves(states, classes, states, classes, np.arange(num_classes))


def test_shares_of_the_power() -> None:
    # A ring of radius 3, once around, and even against odd, 2 to each side.
    angles = 2 * np.pi * np.arange(6) / 6
    sides = 2 * (-1.0) ** np.arange(6)
    means = np.stack([3 * np.cos(angles), 3 * np.sin(angles), sides], 1)
    planes = {plane.frequency: plane for plane in frequency_planes(isotropic(means), 6)}

    # |F_1|^2 = 2 (6 * 3 / 2)^2, as |F_5|^2, and |F_3|^2 = (6 * 2)^2.
    assert planes[1].share == pytest.approx(324 / (324 + 144))
    assert planes[3].share == pytest.approx(144 / (324 + 144))
    assert planes[2].share == pytest.approx(0, abs=1e-12)
    assert planes[3].means.shape == (6, 1)
    assert set(planes[3].order[:3]) == {0, 2, 4}
    assert planes[3].accuracy < planes[1].accuracy


def test_halves_have_no_state_in_common() -> None:
    classes = np.array([4] * 5 + [7] * 2 + [9])
    states = np.arange(16, dtype=np.float64).reshape(8, 2)
    halves = halves_of(states, classes, seed=1)
    assert halves.numbers.tolist() == [4, 7]
    assert np.bincount(halves.fit_classes).tolist() == [3, 1]
    assert np.bincount(halves.held_out_classes).tolist() == [2, 1]

    fit = {float(state[0]) for state in halves.fit}
    held_out = {float(state[0]) for state in halves.held_out}
    assert not fit & held_out
    assert fit | held_out == set(states[:7, 0].tolist())
    for state, number in zip(halves.fit, halves.fit_classes, strict=True):
        assert classes[int(state[0]) // 2] == halves.numbers[number]


def test_the_nearest_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnncls.inspect.states.halves.MOST_DISTANCES", 30)
    rng = np.random.default_rng(0)
    rows, means = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    classes = rng.integers(0, 4, 50)
    nearest = [min(range(4), key=lambda c: math.dist(row, means[c])) for row in rows]
    assert accuracy_of(rows, classes, means) == np.mean(np.array(nearest) == classes)


@pytest.mark.parametrize(("number", "width"), [(5, 12), (40, 12), (2000, 3)])
def test_ledoit_and_wolf_by_their_definition(number: int, width: int) -> None:
    rng = np.random.default_rng(number)
    rows = rng.normal(size=(number, width)) * np.arange(1, width + 1)
    sample = sum(np.outer(row, row) for row in rows) / number
    target = np.trace(sample) / width * np.eye(width)
    distance = np.linalg.norm(sample - target) ** 2
    errors = [np.linalg.norm(np.outer(row, row) - sample) ** 2 for row in rows]
    expected = min(sum(errors) / number**2, distance) / distance

    assert ledoit_wolf(rows) == pytest.approx(expected, rel=1e-10)
    assert ledoit_wolf(1e30 * rows) == pytest.approx(expected, rel=1e-10)
    assert 0 < expected <= 1


def test_states_that_are_all_the_same_are_shrunk_to_the_end() -> None:
    assert ledoit_wolf(np.zeros((4, 3))) == 1


def test_discriminants_tell_what_the_largest_directions_do_not() -> None:
    states, classes = ring(1, modulus=3, noise=0.1)
    halves = halves_of(states, classes, seed=0)
    plane = discriminant_plane(halves)
    assert plane.accuracy > 0.99
    assert plane.share == pytest.approx(1)
    assert principal_plane(halves).accuracy < 0.5

    # What is drawn has about the unit matrix for its covariance within the classes.
    points = plane.of(halves.fit) - plane.means[halves.fit_classes]
    covariance = points.T @ points / len(points)
    assert np.allclose(covariance, covariance[0, 0] * np.eye(2), atol=0.1)


def test_two_classes_have_one_discriminant_and_the_largest_direction_left() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 2000)
    states = rng.normal(size=(2000, 6))
    states[:, 2] += 8 * classes
    plane = discriminant_plane(halves_of(states, classes, seed=0))
    assert plane.accuracy > 0.99
    assert abs(plane.means[0, 0] - plane.means[1, 0]) == pytest.approx(8, rel=0.05)
    assert plane.means[0, 1] == pytest.approx(plane.means[1, 1], abs=1e-6)


def test_dead_units_and_one_unit() -> None:
    states, classes = ring(1)
    dead = np.concatenate([states, np.zeros((len(states), 4))], 1)
    halves = halves_of(dead, classes, seed=0)
    assert frequency_planes(halves, 10)[0].accuracy > 0.99

    for narrow in (states[:, :1], np.zeros((len(states), 1)), np.zeros((len(states), 3))):
        halves = halves_of(narrow, classes, seed=0)
        for plane in (*frequency_planes(halves, 10), principal_plane(halves)):
            assert np.isfinite(plane.means).all()
            assert 0 <= plane.accuracy <= 1
        assert np.isfinite(discriminant_plane(halves).means).all()
