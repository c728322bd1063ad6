"""Seeds for every random draw, as a pure function of what the draw is for.

The state of a run is its weights, its optimizer and its counters; everything else is derived. Each
draw gets its own seed from the run's seed and the names and numbers that identify the draw, so that
no draw can shift another: evaluation does not disturb training, and the batch of step 4711 can be
made without making the 4710 before it.
"""

import zlib

_MASK = 2**64 - 1  # SplitMix64 computes modulo 2**64


def mix(*parts: int | str) -> int:
    """Return a seed in [0, 2**63) that depends on every part and on their order.

    Each part goes through the finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
    pseudorandom number generators"); names enter as their CRC-32.
    """
    state = 0
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part

        # Steele, Lea and Flood's constants. The state goes into the next part: the order counts.
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    # 63 bits, so that the seed is a signed 64-bit integer for whoever wants one.
    return state >> 1
