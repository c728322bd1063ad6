"""Sums, intervals and counts against their definitions."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnncls.evaluation.metrics import (
    calibration_bins,
    calibration_error,
    confusion_matrix,
    wilson_interval,
)
from rnncls.model.losses import sequence_losses
from rnncls.seeds import mix
from rnncls.steps.state import Totals


def test_totals_divide_sums_once() -> None:
    totals = Totals()
    totals.add(loss=2.0, grad_norm=0.5, correct=1, sequences=1, max_norm=1.0)
    totals.add(loss=1.0, grad_norm=1.5, correct=0, sequences=3, max_norm=1.0)
    totals.seconds = 2.0
    assert totals.averages() == {
        "train/loss": 5 / 4,  # not the mean of batch means, 1.5
        "train/accuracy": 1 / 4,
        "train/grad_norm": 1.0,
        "train/clip_fraction": 0.5,
        "train/sequences_per_second": 2.0,
    }
    assert Totals().averages() == {}


def test_without_a_limit_nothing_counts_as_clipped() -> None:
    totals = Totals(seconds=1.0)
    totals.add(loss=1.0, grad_norm=1e9, correct=0, sequences=1, max_norm=None)
    assert totals.averages()["train/clip_fraction"] == 0


@pytest.mark.parametrize(
    ("correct", "examples", "low", "high"),
    [  # as statsmodels.stats.proportion.proportion_confint(..., method="wilson") gives them
        (75, 100, 0.6569, 0.8245),
        (100, 100, 0.9630, 1.0),
        (0, 100, 0.0, 0.0370),
        (3, 3, 0.4385, 1.0),
        (64, 64, 0.9434, 1.0),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson_interval_against_published_values(
    correct: int, examples: int, low: float, high: float
) -> None:
    assert wilson_interval(correct, examples) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_bounds_solve_the_score_equation(counts: tuple[int, int]) -> None:
    """Each bound p satisfies (rate - p)^2 = z^2 p (1 - p) / n, the definition of the interval."""
    correct, examples = counts
    rate = correct / examples
    low, high = wilson_interval(correct, examples)
    assert 0 <= low <= rate <= high <= 1
    for p in (low, high):
        assert (rate - p) ** 2 == pytest.approx(
            1.959963984540054**2 * p * (1 - p) / examples, abs=1e-12
        )


def test_the_confusion_matrix_counts_pairs() -> None:
    labels, predictions = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 1, 1, 2, 2, 0])
    assert confusion_matrix(labels, predictions, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 2]]


def reference_error(confidences: list[float], correct: list[bool], bins: int = 15) -> float:
    """The expected calibration error, bin by bin, from Guo et al.'s formula (3)."""
    values = np.asarray(confidences, dtype=np.float64)
    right = np.asarray(correct, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    values, right = values[order], right[order]

    count = len(values)
    error = 0.0
    for number in range(bins):
        # Bin b has the places from b N / 15 to (b + 1) N / 15; ties move to where they begin.
        first, last = math.ceil(number * count / bins), math.ceil((number + 1) * count / bins)
        begins = np.searchsorted(values, values)
        members = (first <= begins) & (begins < last)
        if members.any():
            gap = abs(right[members].mean() - values[members].mean())
            error += members.sum() / count * gap
    return error


# Few different values, so that there are ties.
EXAMPLES = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.25, 0.5, 0.75, 1.0]) | st.floats(0, 1, width=32), st.booleans()
    ),
    min_size=1,
    max_size=80,
)


@given(EXAMPLES, st.randoms(use_true_random=False))
def test_the_calibration_error_is_that_of_its_definition_in_any_order(
    examples: list[tuple[float, bool]], random: Any
) -> None:
    def error() -> float:
        confidences, correct = zip(*examples, strict=True)
        return calibration_error(torch.tensor(confidences), torch.tensor(correct))

    found = error()
    assert 0 <= found <= 1
    confidences, correct = zip(*examples, strict=True)
    # In float32, as the model's own.
    exact = torch.tensor(confidences).tolist()
    assert found == pytest.approx(reference_error(exact, list(correct)), abs=1e-12)

    random.shuffle(examples)
    assert error() == pytest.approx(found, abs=1e-12)


def test_a_calibrated_model_has_no_calibration_error() -> None:
    """Of 100 examples with confidence c/100, c are right, for each of 15 confidences."""
    confidences = torch.tensor([6 * number / 100 for number in range(1, 16)]).repeat_interleave(100)
    correct = torch.cat([torch.arange(100) < 6 * number for number in range(1, 16)])
    assert calibration_error(confidences, correct) < 1e-7
    # Half as often right as it says: the mean of c / 2.
    half = torch.cat([torch.arange(100) < 3 * number for number in range(1, 16)])
    assert calibration_error(confidences, half) == pytest.approx(0.24)


def test_outcomes_drawn_with_the_confidence_itself_have_nearly_no_calibration_error() -> None:
    generator = torch.Generator().manual_seed(0)
    confidences = torch.rand(100_000, generator=generator)
    correct = torch.rand(100_000, generator=generator) < confidences
    assert calibration_error(confidences, correct) < 0.01


@pytest.mark.parametrize("examples", [1, 7, 15, 1000])
def test_who_is_always_sure_and_wrong_has_a_calibration_error_of_1(examples: int) -> None:
    sure = torch.ones(examples)
    assert calibration_error(sure, torch.zeros(examples, dtype=torch.bool)) == 1
    assert calibration_error(sure, torch.ones(examples, dtype=torch.bool)) == 0


def test_of_fewer_examples_than_bins_each_has_its_own() -> None:
    """Gaps do not cancel: 0.4 and 0.6, one right and one wrong, are 0.6 off each."""
    error = calibration_error(torch.tensor([0.6, 0.4]), torch.tensor([False, True]))
    assert error == pytest.approx(0.6)


def test_a_confidence_that_is_not_a_number_makes_the_error_none() -> None:
    confidences = torch.tensor([0.5, math.nan, 0.7])
    assert math.isnan(calibration_error(confidences, torch.tensor([True, False, True])))


@given(EXAMPLES)
def test_the_bins_of_the_calibration_error_hold_every_example_and_make_the_error(
    examples: list[tuple[float, bool]],
) -> None:
    values, right = zip(*examples, strict=True)
    confidences, correct = torch.tensor(values), torch.tensor(right)
    bins = calibration_bins(confidences, correct)
    assert 1 <= len(bins) <= 15
    assert all(count > 0 for count, _, _ in bins)
    assert [mean for _, mean, _ in bins] == sorted(mean for _, mean, _ in bins)

    # Together they have all examples, all their confidence and all that are right.
    assert sum(count for count, _, _ in bins) == len(examples)
    total = float(confidences.double().sum())
    assert sum(count * mean for count, mean, _ in bins) == pytest.approx(total)
    assert sum(count * accuracy for count, _, accuracy in bins) == pytest.approx(sum(right))

    # Each bin has the examples between those of its neighbours.
    ordered = sorted(zip(confidences.tolist(), right, strict=True))
    start = 0
    for count, mean, accuracy in bins:
        part = ordered[start : start + count]
        start += count
        assert mean == pytest.approx(sum(value for value, _ in part) / count)
        assert accuracy == pytest.approx(sum(is_right for _, is_right in part) / count)
        assert start == len(ordered) or ordered[start][0] > part[-1][0]

    error = sum(count * abs(accuracy - mean) for count, mean, accuracy in bins) / len(examples)
    assert error == pytest.approx(calibration_error(confidences, correct), abs=1e-12)


def test_without_examples_there_are_no_calibration_bins() -> None:
    assert calibration_bins(torch.tensor([]), torch.tensor([], dtype=torch.bool)) == []


def test_sequence_losses_are_negative_log_probabilities() -> None:
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1, 0])
    expected = -logits.softmax(1).log()[torch.arange(5), labels]
    torch.testing.assert_close(sequence_losses(logits, labels), expected)


def test_seeds_differ_by_every_part_and_by_order() -> None:
    parts = [
        (0, "train", 0),
        (0, "train", 1),
        (1, "train", 0),
        (0, "val", 0),
        (0,),
        (0, 0),
        ("train", 0, 0),
        (1, 0),
    ]
    seeds = {mix(*part) for part in parts}
    assert len(seeds) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert (
        mix(0, "train", 0) == mix(0, "train", 0) == 9213736073596245862
    )  # pinned: else every run changes
