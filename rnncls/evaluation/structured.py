"""Sequences with a structure, which random ones never have: how long a model answers them rightly.

Zeros; one digit, then zeros; one digit repeated; two digits in turns.
"""

import random
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rnncls.config import Config
from rnncls.config.ranges import DEFAULT_STRUCTURED
from rnncls.evaluation.streaming import (
    BLOCK_STEPS,
    TOGETHER,
    first_errors,
    reading,
    require_stream,
)
from rnncls.model.classifier import RNNClassifier
from rnncls.seeds import mix
from rnncls.system.shown import aligned

# Where a kind has more sequences, so many are chosen: the same for every run.
MOST_OF_KIND = 1000

ZEROS = "zeros"
THEN_ZEROS = "then_zeros"
REPEATED = "repeated"
ALTERNATING = "alternating"

# The kinds, and what people are told that they are.
KINDS = {
    ZEROS: "zeros",
    THEN_ZEROS: "one digit, then zeros",
    REPEATED: "one digit repeated",
    ALTERNATING: "two digits in turns",
}


@dataclass(frozen=True)
class KindReport:
    """How a model answers the sequences of one kind."""

    kind: str  # of KINDS
    sequences: int  # that were evaluated
    of: int  # how many there are
    right: int  # sequences that are right at every length
    longest_right: int  # the length up to which all of them are right at every length


@dataclass(frozen=True)
class StructuredReport:
    """How a model answers sequences with a structure."""

    longest: int  # the length up to which they were read
    kinds: list[KindReport]  # those that have sequences

    @property
    def all_right(self) -> bool:
        """Whether every sequence of every kind is right at every length."""
        return all(kind.right == kind.sequences for kind in self.kinds)

    def to_json(self) -> dict[str, Any]:
        """Return what `rnncls eval --json` has as "structured"."""
        return {**asdict(self), "all_right": self.all_right}


def structured_lines(report: StructuredReport) -> list[str]:
    """Return the report as a person reads it."""
    rows = [["structured", "sequences", "right", "all right up to"]]
    for kind in report.kinds:
        of = "" if kind.sequences == kind.of else f" of {kind.of:,}"
        right = f"{kind.right:,}"
        rows.append([KINDS[kind.kind], f"{kind.sequences:,}{of}", right, f"{kind.longest_right:,}"])
    lines = aligned(rows, texts=1)
    lines.append(f"right: after each digit, up to length {report.longest:,}")
    if any(kind.sequences < kind.of for kind in report.kinds):
        lines.append(f"of a kind with more than {MOST_OF_KIND:,} sequences, a fixed choice is read")
    return lines


def evaluate_structured(
    model: RNNClassifier,
    config: Config,
    longest: int = DEFAULT_STRUCTURED,
    progress: bool = False,
    check: Callable[[], object] | None = None,
) -> StructuredReport:
    """Read the sequences of each kind up to length `longest`, as long as they are right.

    Every length from the shortest training length on is looked at. `progress` shows a bar on stderr
    if that is a terminal. `check` is called after each block of digits.

    Raises: ConfigError, as `require_stream` does.
    """
    data = require_stream(config, "--structured", longest)
    kinds = {
        kind: ends_of_kind(kind, data.num_embeddings) for kind in kinds_of(data.num_embeddings)
    }
    total = longest * sum(len(pairs) for pairs in kinds.values())

    reports = []
    with reading(model, total, progress, check) as (stream, told):
        for kind, pairs in kinds.items():
            firsts: list[int | None] = []
            for part in torch.split(pairs, TOGETHER):
                digits_of = digits_of_kind(kind, part)
                firsts += first_errors(stream, data, digits_of, len(part), longest, told)

            wrong = [first for first in firsts if first is not None]
            reports.append(
                KindReport(
                    kind=kind,
                    sequences=len(firsts),
                    of=size_of_kind(kind, data.num_embeddings),
                    right=len(firsts) - len(wrong),
                    longest_right=min(wrong, default=longest + 1) - 1,
                )
            )
    return StructuredReport(longest, reports)


def kinds_of(num_digits: int) -> list[str]:
    """Return the kinds that have sequences: where 0 is the only digit, these are zeros alone."""
    return [kind for kind in KINDS if size_of_kind(kind, num_digits)]


def size_of_kind(kind: str, num_digits: int) -> int:
    """Return how many sequences of a kind there are."""
    if kind == ZEROS:
        return 1
    if kind == ALTERNATING:
        return num_digits * (num_digits - 1)
    return num_digits - 1


def ends_of_kind(kind: str, num_digits: int) -> Tensor:
    """Return the two digits that each sequence of a kind is made of, (R, 2).

    Where there are more than MOST_OF_KIND, a pseudo-random choice of them, which is the same for
    every run.
    """
    size = size_of_kind(kind, num_digits)
    numbers: list[int] = list(range(min(size, MOST_OF_KIND)))
    if size > MOST_OF_KIND:
        chooser = random.Random(mix("structured", kind, size))
        numbers = sorted(chooser.sample(range(size), MOST_OF_KIND))

    chosen = torch.tensor(numbers, dtype=torch.int64)
    if kind == ZEROS:
        return torch.zeros(1, 2, dtype=torch.int64)
    if kind == ALTERNATING:
        first = chosen // (num_digits - 1)
        second = chosen % (num_digits - 1)
        # The second digit is any but the first.
        return torch.stack([first, second + (second >= first)], 1)
    digit = chosen + 1
    return torch.stack([digit, torch.zeros_like(digit) if kind == THEN_ZEROS else digit], 1)


def digits_of_kind(kind: str, pairs: Tensor) -> Callable[[int], Tensor]:
    """Return a function from the number of a block to its digits, (BLOCK_STEPS, R)."""

    def digits(block: int) -> Tensor:
        places = block * BLOCK_STEPS + torch.arange(BLOCK_STEPS)
        # Which of its two digits a sequence has at each place.
        which = places % 2 if kind == ALTERNATING else (places > 0).long()
        return pairs.T[which]

    return digits
