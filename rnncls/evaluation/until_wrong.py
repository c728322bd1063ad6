"""At which length a model first goes wrong, of random sequences that are read until then."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rnncls.config import Config, SumModConfig
from rnncls.config.ranges import DEFAULT_READ
from rnncls.evaluation.metrics import wilson_interval
from rnncls.evaluation.streaming import (
    BLOCK_STEPS,
    TOGETHER,
    first_errors,
    reading,
    require_stream,
)
from rnncls.model.classifier import RNNClassifier
from rnncls.seeds import mix
from rnncls.system.shown import counted


@dataclass(frozen=True)
class UntilWrongReport:
    """The length at which each of some random sequences is first wrong.

    A sequence that is never wrong counts as later than all others: where the median is one of them,
    it is None. Quartiles and median are each the length of one sequence, that of the rank rounded
    up.
    """

    longest: int  # the length up to which they were read
    sequences: int
    never: int  # sequences that are right at every length
    ci95: tuple[float, float]  # the Wilson interval of their share
    lowest: int | None
    lower_quartile: int | None
    median: int | None
    upper_quartile: int | None
    first_errors: list[int | None]

    def to_json(self) -> dict[str, Any]:
        """Return what `rnncls eval --json` has as "until_wrong"."""
        return asdict(self)


def until_wrong_lines(report: UntilWrongReport) -> list[str]:
    """Return the report as a person reads it."""
    low, high = report.ci95
    lines = [
        f"{counted(report.sequences, 'random sequence')} up to length {report.longest:,}: "
        f"{report.never:,} never wrong",
        f"  share {report.never / report.sequences:.4f}, 95 % interval {low:.4f} to {high:.4f}",
    ]
    if report.lowest is not None:
        parts = [
            f"lowest {_length(report.lowest)}",
            f"lower quartile {_length(report.lower_quartile)}",
            f"median {_length(report.median)}",
            f"upper {_length(report.upper_quartile)}",
        ]
        lines.append(f"  first wrong at length: {', '.join(parts)}")
    return lines


def _length(length: int | None) -> str:
    return "never" if length is None else f"{length:,}"


def evaluate_until_wrong(
    model: RNNClassifier,
    config: Config,
    longest: int,
    num_sequences: int = DEFAULT_READ,
    progress: bool = False,
    check: Callable[[], object] | None = None,
) -> UntilWrongReport:
    """Read random sequences, each until it is wrong or has `longest` digits.

    Every length from the shortest training length on is looked at. The digits are a function of the
    run's seed, of the sequence's number and of the place: neither more sequences nor a greater
    length change them. `progress` shows a bar on stderr if that is a terminal. `check` is called
    after each block of digits.

    Raises: ConfigError, as `require_stream` does.
    """
    data = require_stream(config, "--until-wrong", longest)

    firsts: list[int | None] = []
    with reading(model, longest * num_sequences, progress, check) as (stream, told):
        for begin in range(0, num_sequences, TOGETHER):
            count = min(TOGETHER, num_sequences - begin)
            digits_of = random_digits(data, config.seed, begin // TOGETHER)
            firsts += first_errors(stream, data, digits_of, count, longest, told)
    return report_of(firsts, longest)


def random_digits(data: SumModConfig, seed: int, group: int) -> Callable[[int], Tensor]:
    """Return a function from the number of a block to its uniform digits, (BLOCK_STEPS, TOGETHER).

    `group`: which TOGETHER sequences they are of.
    """

    def digits(block: int) -> Tensor:
        generator = torch.Generator().manual_seed(mix(seed, "until-wrong", group, block))
        shape = (BLOCK_STEPS, TOGETHER)
        return torch.randint(data.num_embeddings, shape, generator=generator)

    return digits


def report_of(firsts: Sequence[int | None], longest: int) -> UntilWrongReport:
    """Return the report on the lengths at which sequences are first wrong, None: never."""
    ordered = sorted(firsts, key=lambda first: math.inf if first is None else first)
    count = len(ordered)
    never = firsts.count(None)
    quartiles = [ordered[-(-count * part // 4) - 1] for part in (1, 2, 3)]
    return UntilWrongReport(
        longest=longest,
        sequences=count,
        never=never,
        ci95=wilson_interval(never, count),
        lowest=ordered[0],
        lower_quartile=quartiles[0],
        median=quartiles[1],
        upper_quartile=quartiles[2],
        first_errors=[*firsts],
    )
