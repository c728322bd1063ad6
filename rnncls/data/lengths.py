"""Which lengths are looked at one by one, and which together."""

from collections.abc import Collection
from typing import NamedTuple

from rnncls.config import SumModConfig

MOST_LENGTHS_TESTED = 20  # of the training lengths, by a sweep

# Up to so many different lengths are logged one by one. Of more, those within a factor of 2 share a
# value: 1, 2, 3-4, 5-8 and so on.
MOST_SINGLE_LENGTHS = 10


class Lengths(NamedTuple):
    """Sequences whose accuracy is logged as one value: those of first to last tokens."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"{self.first}" if self.first == self.last else f"{self.first}-{self.last}"


def spread_lengths(data: SumModConfig) -> list[int]:
    """Return all training lengths, or 20 spread evenly from the shortest to the longest."""
    # Both ends are among them: the easiest and the hardest length.
    span = data.max_length - data.min_length
    number = min(MOST_LENGTHS_TESTED, span + 1)
    if number == 1:
        return [data.min_length]

    lengths = {data.min_length + round(index * span / (number - 1)) for index in range(number)}
    return sorted(lengths)


def grouped_lengths(lengths: Collection[int]) -> list[Lengths]:
    """Return the lengths one by one if they are few, else those within a factor of 2 together.

    >>> [str(group) for group in grouped_lengths(range(2, 17))]
    ['2', '3-4', '5-8', '9-16']
    """
    if len(lengths) <= MOST_SINGLE_LENGTHS:
        return [Lengths(length, length) for length in sorted(lengths)]

    powers = sorted({(length - 1).bit_length() for length in lengths})
    return [Lengths(2**power // 2 + 1, 2**power) for power in powers]
