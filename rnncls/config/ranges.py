"""Numbers and ranges as people write them: 1-5,10,100."""

import re
from collections.abc import Callable

from rnncls.errors import ConfigError, Problem

MAX_LENGTH = 2**20  # as in the config
MOST_NUMBERS = 2**20
MAX_SEED = 2**32 - 1


def parse_lengths(text: str, source: str = "--lengths") -> list[int]:
    """Positive numbers and ranges, in order and once each: "1-3,10" -> [1, 2, 3, 10]. Raises ConfigError."""
    expected = f"positive numbers and ranges up to {MAX_LENGTH:,}, for example 1-5,10,100"
    return sorted(
        set(_parse(text, 1, MAX_LENGTH, lambda part: _bad("lengths", source, expected, part)))
    )


def parse_seeds(text: str, source: str = "--seeds") -> list[int]:
    """Numbers and ranges from 0 on, as they are written: "7,0-2" -> [7, 0, 1, 2]. Raises ConfigError."""
    return _parse(
        text, 0, MAX_SEED, lambda part: _bad("seeds", source, "for example 0-63 or 0,3,5", part)
    )


def _parse(text: str, least: int, most: int, bad: Callable[[str], ConfigError]) -> list[int]:
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not least <= low <= high <= most or len(numbers) + high - low >= MOST_NUMBERS:
            raise bad(part)
        numbers += range(low, high + 1)
    return numbers


def _bad(what: str, source: str, expected: str, part: str) -> ConfigError:
    return ConfigError(
        Problem(f"bad list of {what}", source, expected=expected, found=part or "nothing", id="C17")
    )
