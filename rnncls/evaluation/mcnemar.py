"""McNemar's exact test: whether two models that are asked the same differ by more than chance."""

import math
from decimal import Decimal, localcontext

# Up to so many examples whole numbers are summed up, which is exact.
_FEW = 500

# Between a factorial and Stirling's formula: 1/12 n - 1/360 n^3 + 1/1260 n^5 - ...
_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360)

# From here on six of its terms are exact in float64.
_LARGE = 16


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the two-sided p of McNemar's exact test.

    `only_first`: how many examples the first of two models alone gets right, `only_second`: how
    many the second one alone. If both are equally good, each of these examples is as likely to be
    one of the first as of the second model: the smaller count is binomial with probability 1/2, and
    p is twice the probability of at most so many, at most 1. It is 1 without such examples.

    Source: McNemar 1947, "Note on the sampling error of the difference between correlated
    proportions or percentages", in the exact form, a sign test of the discordant pairs.

    >>> mcnemar(8, 1)
    0.0390625
    """
    count = only_first + only_second
    least = min(only_first, only_second)
    if 2 * least == count:
        return 1.0

    if count <= _FEW:
        ways = sum(math.comb(count, k) for k in range(least + 1))
        return float(2 * ways / 2**count)

    # The probabilities of least, least - 1, ... heads, as multiples of the first of them. They fall
    # at least as fast as a geometric series.
    term = 1.0
    terms = [term]
    for k in range(least, 0, -1):
        term *= k / (count - k + 1)
        terms.append(term)
        if term < 1e-20:
            break
    return min(1.0, 2 * _probability(least, count) * math.fsum(terms))


def _probability(k: int, count: int) -> float:
    """Return the probability of k heads in `count` throws of a fair coin, 0 <= k < count / 2.

    By Stirling's formula. Its large terms nearly cancel, which would cost float64 nine digits.

    Source: Loader 2000, "Fast and accurate computation of binomial probabilities".
    """
    if k == 0:
        return math.ldexp(1.0, -count)

    with localcontext(prec=50):
        deviance = Decimal(0)
        for part in (k, count - k):
            deviance += part * (Decimal(2 * part) / count).ln()
        likely = float((-deviance).exp())
    beyond = _beyond_stirling(count) - _beyond_stirling(k) - _beyond_stirling(count - k)
    return likely * math.exp(beyond) * math.sqrt(count / (2 * math.pi * k * (count - k)))


def _beyond_stirling(n: int) -> float:
    """Return log n! less Stirling's approximation log(sqrt(2 pi n) (n / e)^n), n > 0."""
    if n < _LARGE:
        return math.lgamma(n + 1) - (n + 0.5) * math.log(n) + n - math.log(2 * math.pi) / 2
    return math.fsum(factor / n ** (2 * j + 1) for j, factor in enumerate(_STIRLING))
