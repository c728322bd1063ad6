"""Sums, intervals and counts against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rnncls.evaluation.metrics import confusion_matrix, wilson_interval
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
