"""The finalizer of SplitMix64, of numbers in NumPy's and torch's signed integers.

Source: Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators".
"""

from typing import Any


def signed(number: int) -> int:
    """Return the int64 of the same 64 bits: torch's integers are signed, and wrap around."""
    return number - 2**64 if number >= 2**63 else number


GOLDEN = signed(0x9E3779B97F4A7C15)
_FIRST_FACTOR = signed(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = signed(0x94D049BB133111EB)


def finalize(numbers: Any) -> Any:
    """Apply the finalizer in place to int64 numbers, NumPy's or torch's, and return them."""
    # A shift of signed numbers fills up with the sign, which does not belong there.
    for count, factor in ((30, _FIRST_FACTOR), (27, _SECOND_FACTOR), (31, 1)):
        shifted = numbers >> count
        shifted &= 2 ** (64 - count) - 1
        numbers ^= shifted
        if factor != 1:
            numbers *= factor
    return numbers
