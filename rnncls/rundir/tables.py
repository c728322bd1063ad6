"""metrics.jsonl and metrics.csv: one line per logged step."""

import csv
import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from rnncls.rundir.paths import METRICS, METRICS_TABLE
from rnncls.system.files import open_text, read_regular, write_atomically

MAX_METRICS_BYTES = 2**30


class MetricsTables:
    """Both files, open for appending. Every method raises OSError if it cannot write."""

    def __init__(self, run_dir: Path, columns: Sequence[str]) -> None:
        """Append to metrics.jsonl, and write metrics.csv anew from what metrics.jsonl has."""
        self._files: list[TextIO] = []
        rows = read_metrics(run_dir)
        try:
            # Without O_CREAT, because `keep_metrics` has made this file.
            self._lines = open_text(run_dir / METRICS, os.O_APPEND)
            self._files.append(self._lines)
            self._table_file = open_text(run_dir / METRICS_TABLE, os.O_CREAT | os.O_TRUNC)
            self._files.append(self._table_file)

            self._table = csv.DictWriter(self._table_file, columns, extrasaction="ignore")
            self._table.writeheader()
            self._table.writerows(rows)
        except OSError:
            self.close()
            raise

    def write(self, row: dict[str, float]) -> None:
        """Append a step's values to both files. JSON has no NaN: it becomes null."""
        finite = {tag: value if math.isfinite(value) else None for tag, value in row.items()}

        # Flushed at once: a killed process loses no line, and whoever follows the file sees it.
        self._lines.write(json.dumps(finite) + "\n")
        self._lines.flush()
        self._table.writerow(finite)
        self._table_file.flush()

    def close(self) -> None:
        """Close both files, also after an error."""
        # Closing writes what an error has left in the buffer, and then fails the same way again.
        for file in self._files:
            with suppress(OSError):
                file.close()


def keep_metrics(run_dir: Path, last_step: int) -> None:
    """Rewrite metrics.jsonl without the rows after `last_step` and without a torn last line.

    Raises: OSError.
    """
    rows = read_metrics(run_dir)
    kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= last_step]
    write_atomically(run_dir / METRICS, "".join(kept).encode())


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of metrics.jsonl: a step, and numbers by tag, None where not finite.

    Lines that rnncls did not write are left out. Raises: OSError if there is a file that cannot
    be read.
    """
    try:
        content = read_regular(run_dir / METRICS, MAX_METRICS_BYTES)
    except FileNotFoundError:
        return []

    rows = []
    for line in content.split(b"\n"):
        # A line that another program or a torn write left there raises or fails a test.
        try:
            row = json.loads(line.decode())
            # `type`, not isinstance: true and false are integers to isinstance.
            has_step = type(row["step"]) is int
            # Tags are shown on terminals, which a control character could steer.
            has_tags = all(tag.isprintable() for tag in row)
            numbers = [value for value in row.values() if value is not None]
            are_numbers = all(type(number) in (int, float) for number in numbers)
            if has_step and has_tags and are_numbers and all(map(math.isfinite, numbers)):
                rows.append(row)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
    return rows


def train_seconds(rows: list[dict[str, Any]], batch_size: int) -> float | None:
    """Return the seconds spent on training steps alone, from the rates that were logged."""
    seconds = 0.0
    last_step = 0
    # Each rate is the average since the row before that has one; neither evaluation nor saving is
    # part of it.
    for row in rows:
        rate = row.get("train/sequences_per_second")
        if rate:
            seconds += batch_size * (row["step"] - last_step) / rate
            last_step = row["step"]
    return seconds or None
