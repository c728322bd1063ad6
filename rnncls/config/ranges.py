"""Parses lists of numbers and ranges as people write them: 1-5,10,100."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from rnncls.config.schema import Config, SumModConfig
from rnncls.errors import ConfigError, Problem

# The bounds of data.max_length, model.hidden_size and seed.
MAX_LENGTH = 2**20
MAX_SIZE = 2**20
MAX_SEED = 2**32 - 1

# Sequences drawn for each length that is tested.
DEFAULT_SAMPLES = 10_000
MAX_SAMPLES = 10**8

# Random sequences that are read until they are wrong.
DEFAULT_READ = 1000

# The length up to which sequences with a structure are read, and the greatest of all that are read
# a few digits at a time.
DEFAULT_STRUCTURED = 1000
MAX_READ = 10**9

# Of one list, which is held in memory.
MOST_NUMBERS = 2**20

# At most ten digits, which int() reads at once; Python refuses thousands of them with ValueError.
_NUMBER_OR_RANGE = re.compile(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*")


class Long(NamedTuple):
    """Up to which length sequences are read a few digits at a time; None: they are not read."""

    structured: int | None = None  # zeros, digits repeated and the like
    until_wrong: int | None = None  # random sequences, each until it is wrong

    @property
    def any(self) -> bool:
        """Whether some are read."""
        return bool(self.options)

    @property
    def options(self) -> dict[str, int]:
        """The options that ask for them, and the greatest length of each."""
        options = {"--structured": self.structured, "--until-wrong": self.until_wrong}
        return {option: longest for option, longest in options.items() if longest is not None}


NOTHING_LONG = Long()


def parse_lengths(text: str, source: str = "--lengths") -> list[int]:
    """Return positive numbers and ranges in order, each once: "1-3,10" -> [1, 2, 3, 10].

    `source` is what the message calls the place of the text. Raises: ConfigError.
    """
    expected = f"positive numbers and ranges up to {MAX_LENGTH:,}, for example 1-5,10,100"
    bad = Problem("bad list of lengths", source, expected=expected, id="C17")
    return sorted(set(_parse(text, 1, MAX_LENGTH, bad)))


def parse_sizes(text: str, source: str) -> list[int]:
    """Return hidden sizes in order, each once: "256,64" -> [64, 256].

    `source` is what the message calls the place of the text. Raises: ConfigError.
    """
    expected = f"positive numbers and ranges up to {MAX_SIZE:,}, for example 64,128,256"
    bad = Problem("bad list of sizes", source, expected=expected, id="C17")
    return sorted(set(_parse(text, 1, MAX_SIZE, bad)))


def parse_seeds(text: str, source: str = "--seeds") -> list[int]:
    """Return numbers and ranges from 0 up, as they are written: "7,0-2" -> [7, 0, 1, 2].

    `source` is what the message calls the place of the text. Raises: ConfigError.
    """
    expected = "for example 0-63 or 0,3,5"
    bad = Problem("bad list of seeds", source, expected=expected, id="C17")
    return _parse(text, 0, MAX_SEED, bad)


def format_ranges(numbers: Sequence[int], most: int = 8) -> str:
    """Return rising numbers as ranges, at most `most` of them: [1, 2, 3, 10] -> "1-3,10"."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])

    shown = [f"{low}-{high}" if low < high else f"{low}" for low, high in ranges[:most]]
    if len(ranges) > most:
        shown.append("...")
    return ",".join(shown)


def require_generated_data(config: Config, option: str = "--lengths") -> None:
    """Raise ConfigError unless the config generates its data. `option`: what needs that."""
    if isinstance(config.data, SumModConfig):
        return
    remedy = "leave it out: a file is evaluated as a whole, and the report goes by length"
    raise ConfigError(
        Problem("lengths are drawn for generated data only", option, remedy=remedy, id="C17")
    )


def _parse(text: str, least: int, most: int, bad: Problem) -> list[int]:
    """Return the numbers of a list, all within least..most. Raises: ConfigError with `bad`."""
    numbers: list[int] = []
    for part in text.split(","):
        match = _NUMBER_OR_RANGE.fullmatch(part)
        if match is None:
            raise _bad_part(bad, part)

        # A number is a range of one.
        low = int(match[1])
        high = int(match[2] or match[1])
        # Counted before the range is expanded: 1-9999999999 must not fill the memory.
        too_many = len(numbers) + high - low >= MOST_NUMBERS
        if not least <= low <= high <= most or too_many:
            raise _bad_part(bad, part)
        numbers += range(low, high + 1)
    return numbers


def _bad_part(bad: Problem, part: str) -> ConfigError:
    """Return the error of a list with the part that is wrong."""
    # Two commas in a row, or an empty list, leave nothing to show.
    return ConfigError(replace(bad, found=part or "nothing"))
