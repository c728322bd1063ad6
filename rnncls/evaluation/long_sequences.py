"""What a model answers on sequences that are read a few digits at a time: `--structured` and
`--until-wrong`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rnncls.config import Config
from rnncls.config.ranges import DEFAULT_READ, Long
from rnncls.evaluation.structured import StructuredReport, evaluate_structured, structured_lines
from rnncls.evaluation.until_wrong import (
    UntilWrongReport,
    evaluate_until_wrong,
    until_wrong_lines,
)
from rnncls.model.classifier import RNNClassifier


@dataclass(frozen=True)
class LongReport:
    """What was asked for; None is what was not."""

    structured: StructuredReport | None = None
    until_wrong: UntilWrongReport | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what was asked for, by name, for JSON."""
        parts = {"structured": self.structured, "until_wrong": self.until_wrong}
        return {name: part.to_json() for name, part in parts.items() if part is not None}


def evaluate_long(
    model: RNNClassifier,
    config: Config,
    long: Long,
    num_sequences: int = DEFAULT_READ,
    progress: bool = False,
    check: Callable[[], object] | None = None,
) -> LongReport:
    """Return what `long` asks for. `num_sequences`: random sequences that are read until wrong.

    `progress` and `check`: as for `evaluate_until_wrong`.

    Raises: ConfigError, as `require_stream` does.
    """
    structured = None
    if long.structured is not None:
        structured = evaluate_structured(model, config, long.structured, progress, check)
    until_wrong = None
    if long.until_wrong is not None:
        arguments = (long.until_wrong, num_sequences, progress, check)
        until_wrong = evaluate_until_wrong(model, config, *arguments)
    return LongReport(structured, until_wrong)


def long_lines(report: LongReport) -> list[str]:
    """Return the report as a person reads it, with an empty line before each part."""
    lines = []
    if report.structured is not None:
        lines += ["", *structured_lines(report.structured)]
    if report.until_wrong is not None:
        lines += ["", *until_wrong_lines(report.until_wrong)]
    return lines
