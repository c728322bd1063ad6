"""metrics.jsonl and metrics.csv."""

import json
import math
from pathlib import Path
from typing import Any

from rnncls.rundir.paths import METRICS
from rnncls.system.files import read_regular

MAX_METRICS_BYTES = 2**30


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl: a step and numbers, null for what was not finite. Lines that are none are left out.

    Raises OSError when there is a file that cannot be read.
    """
    try:
        content = read_regular(run_dir / METRICS, MAX_METRICS_BYTES)
    except FileNotFoundError:
        return []
    return [row for line in content.split(b"\n") if (row := _row(line)) is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line.decode())
        if type(row["step"]) is not int or not all(key.isprintable() for key in row):
            return None
        good = all(
            value is None or (type(value) in (int, float) and math.isfinite(value))
            for value in row.values()
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return row if good else None
