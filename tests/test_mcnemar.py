"""McNemar's exact p is that of scipy's binomial test, and of sums of whole numbers."""

import math
import random
from fractions import Fraction

import pytest
from scipy.stats import binomtest

from rnncls.evaluation.mcnemar import mcnemar


def exact(k: int, n: int) -> float:
    """Return the p of k among n discordant pairs by whole numbers alone."""
    total = sum(math.comb(n, i) for i in range(min(k, n - k) + 1))
    return float(min(Fraction(1), Fraction(2 * total, 2**n)))


def close(p: float, expected: float) -> bool:
    # Below the normal numbers of float64 there are fewer digits.
    return math.isclose(p, expected, rel_tol=1e-12, abs_tol=1e-300)


def test_every_pair_of_small_counts() -> None:
    for n in range(1, 150):
        for k in range(n + 1):
            assert close(mcnemar(k, n - k), exact(k, n)), (k, n)


def test_it_is_that_of_scipy() -> None:
    rng = random.Random(0)
    for _ in range(300):
        n = int(10 ** rng.uniform(1, 6))
        # Most of them where p is neither 0 nor 1.
        k = round(n / 2 + rng.gauss(0, 4) * math.sqrt(n) / 2)
        k = min(n, max(0, k))
        assert close(mcnemar(k, n - k), binomtest(k, n, 0.5).pvalue), (k, n)


@pytest.mark.parametrize("n", [10_001, 100_000, 999_999, 1_000_000])
@pytest.mark.parametrize("deviations", [0, 0.01, 1, 5, 20, 36, 1e9])
def test_it_is_that_of_scipy_far_from_the_middle(n: int, deviations: float) -> None:
    k = max(0, round(n / 2 - deviations * math.sqrt(n) / 2))
    # Against whole numbers scipy itself is off by 1.6e-12 at 20 deviations of 999,999.
    expected = binomtest(k, n, 0.5).pvalue
    assert math.isclose(mcnemar(k, n - k), expected, rel_tol=1e-11, abs_tol=1e-300)


@pytest.mark.parametrize("n", [501, 999, 2000])
def test_it_is_exact_in_whole_numbers(n: int) -> None:
    for deviations in (0.1, 1, 3, 9, 20):
        k = max(0, round(n / 2 - deviations * math.sqrt(n) / 2))
        assert close(mcnemar(k, n - k), exact(k, n))


def test_its_ends() -> None:
    assert mcnemar(0, 0) == 1
    assert mcnemar(1, 0) == mcnemar(0, 1) == 1
    assert mcnemar(500_000, 500_000) == 1
    assert mcnemar(0, 1_000_000) == 0
    # Which of the two models comes first does not matter.
    assert mcnemar(3, 17) == mcnemar(17, 3) == exact(3, 20)
