"""`rnncls runs ls`: runs and sweeps as rows of one list, found, filtered and sorted.

A sweep is one row, which its members' files are read for. This is the package that may see both;
it reads sweep.yaml by itself, because `plan.py` imports torch, which takes seconds.
"""

import json
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from rnncls.config.ranges import parse_seeds
from rnncls.config.strict_yaml import parse
from rnncls.errors import CheckpointError, ConfigError, NonFiniteError, Problem
from rnncls.rundir.listing import (
    METRICS,
    RunRow,
    age_of,
    config_name,
    config_text,
    describe_run,
    flat,
    with_defaults,
)
from rnncls.rundir.paths import CHECKPOINTS, CONTROL, STATUS
from rnncls.sweep.paths import EVALUATION, MEMBERS, SWEEP_FILE
from rnncls.system.files import read_regular
from rnncls.system.folders import walk
from rnncls.system.streams import say

# A report on generated data has some kB. Counting members must not read gigabytes.
MAX_REPORT_BYTES = 2**20

SORTS = ("age", "best", "step", "run")


@dataclass(frozen=True)
class SweepRow(RunRow):
    """One sweep of a list. Step and value are those of the member that is best or furthest."""

    runs: int = 0  # members that the sweep has by its plan
    ended: int = 0  # that have a result: evaluated, or diverged
    solved: int | None = None  # that are right on every test sequence; None for data files
    median: float | None = None  # of the members' best values


@dataclass(frozen=True)
class Plan:
    """What sweep.yaml says."""

    runs: int
    seeds: str
    values: dict[str, tuple[Any, ...]]  # of each key of the config, in any member


def find_rows(folder: Path, members: bool = False) -> list[RunRow]:
    """Return every run and every sweep below `folder`, in no order.

    `members`: also the members of sweeps and the n-gram controls of runs as rows of their own.
    Those of `folder` itself always are.

    Raises: CheckpointError if there is no such folder. OSError if it cannot be looked into.
    """
    # No default folder means no runs yet, which is not an error.
    if not folder.is_dir() and folder != Path("runs"):
        raise CheckpointError(
            Problem("no such folder", str(folder), remedy="the folder that has the runs", id="K1")
        )

    rows: list[RunRow | None] = []
    closed: list[OSError] = []
    for path, folders, files in walk(folder, closed):
        if STATUS in files:
            rows.append(describe_run(path))

        # A run has no runs among its checkpoints, but many files. Its n-gram control is a column of
        # its row.
        left_out = {CHECKPOINTS}
        if STATUS in files and path != folder and not members:
            left_out.add(CONTROL)
        # Whoever asks for a sweep wants to see what is in it.
        if SWEEP_FILE in files and path != folder:
            sweep = describe_sweep(path)
            rows.append(sweep)
            if sweep is not None and not members:
                left_out.add(MEMBERS)
        folders[:] = [name for name in folders if name not in left_out]

    # They may be anybody's, and do not end a listing.
    if closed:
        first = f"{closed[0].filename!s:.300}: {closed[0].strerror}"
        what = f"folders that cannot be looked into: {len(closed):,}; the first is {first}"
        say(f"rnncls: warning[R30]: {what}")
    return [row for row in rows if row is not None]


def sort_rows(rows: Sequence[RunRow], order: str) -> list[RunRow]:
    """Return the rows in one of the orders of SORTS.

    age: newest first. best: best first, metric by metric, those without a value last. step:
    furthest first. run: by name.
    """
    by_name = sorted(rows, key=lambda row: row.run)
    if order == "age":
        # Those of no known age are last.
        return sorted(by_name, key=lambda row: math.inf if row.age_s is None else row.age_s)
    if order == "step":
        return sorted(by_name, key=lambda row: row.step, reverse=True)
    if order == "best":
        return sorted(by_name, key=_rank)
    return by_name


def describe_sweep(folder: Path) -> SweepRow | None:
    """Return the row of the sweep in a folder; None if its sweep.yaml is not one of rnncls."""
    text = config_text(folder / SWEEP_FILE)
    plan = _parse_plan(text)
    if plan is None:
        return None

    try:
        paths = sorted(path for path in (folder / MEMBERS).iterdir() if path.is_dir())
    except OSError:
        paths = []

    # Their configs are those of the plan.
    members = [describe_run(path, with_config=False) for path in paths]
    rows = [row for row in members if row is not None]
    solved = [_is_solved(Path(row.run), row.step) for row in rows]
    diverged = [row for row in rows if row.exit_code == NonFiniteError.exit_code]
    is_generated = plan.values.get("data.source") == ("sum_mod",)

    # Members may choose by different metrics, if the grid has them: then there is no best of all.
    metrics = {row.best_metric for row in rows}
    values = [row.best_value for row in rows if row.best_value is not None]
    best = min(rows, key=_rank, default=None)
    if len(metrics) > 1:
        values = []
        best = None

    accuracies = [row.best_accuracy for row in rows if row.best_accuracy is not None]
    ages = [row.age_s for row in rows if row.age_s is not None]
    return SweepRow(
        run=str(folder),
        state=_state(rows, plan.runs),
        step=max((row.step for row in rows), default=0),
        best_accuracy=max(accuracies, default=None),
        exit_code=None,
        age_s=min(ages) if ages else _age(folder / SWEEP_FILE),
        best_metric=best.best_metric if best else METRICS[0],
        best_value=best.best_value if best else None,
        best_step=best.best_step if best else None,
        config=config_name(folder, text),
        seed=plan.seeds,
        cell=",".join(map(str, plan.values.get("model.cell", ())))[:20],
        values=plan.values,
        runs=plan.runs,
        ended=len([one for one in solved if one is not None]) + len(diverged),
        solved=solved.count(True) if is_generated else None,
        median=_median(values),
    )


def _median(values: Sequence[float]) -> float | None:
    """Return the median; None of no value, and where it is too large for a number."""
    middle = median(values) if values else math.inf
    return middle if math.isfinite(middle) else None


def _rank(row: RunRow) -> tuple[int, bool, float]:
    """Return what is smaller for a better row; rows of one metric stay together."""
    value = row.best_value
    smaller_is_better = 0.0
    if value is not None:
        smaller_is_better = value if row.best_metric == "loss" else -value
    return METRICS.index(row.best_metric), value is None, smaller_is_better


def _state(rows: Sequence[RunRow], planned: int) -> str:
    """Return the state of a sweep with these members, of as many as are planned."""
    if not rows:
        return "not begun"

    # A member that diverged has ended: that is a result.
    diverged = NonFiniteError.exit_code
    states = {row.state for row in rows if row.exit_code != diverged}
    for state in ("running", "died", "interrupted", "failed"):
        if state in states:
            return state
    return "finished" if len(rows) >= planned else "interrupted"


def _is_solved(run_dir: Path, step: int) -> bool | None:
    """Return whether a member's evaluation has no error; None without one of its last step.

    Of generated data the training lengths count, each of which then has accuracy 1.
    """
    try:
        report = json.loads(read_regular(run_dir / EVALUATION, MAX_REPORT_BYTES))
        if report["step"] != step:
            return None
        lengths = report["by_length"]
        trained = [one["accuracy"] for one in lengths if one["trained"]]
        return all(accuracy == 1 for accuracy in trained or [report["accuracy"]])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _parse_plan(text: str) -> Plan | None:
    """Return the plan that a sweep.yaml has as its text; None if it is not one."""
    try:
        raw = parse(text, SWEEP_FILE).value
        seeds = parse_seeds(raw["seeds"])
        config = with_defaults(flat(raw["config"]))
        values: dict[str, tuple[Any, ...]] = {key: (value,) for key, value in config.items()}
        values["seed"] = tuple(seeds)

        runs = len(seeds)
        for key, texts in raw["grid"].items():
            values[key] = tuple(parse(text, key).value for text in texts)
            runs *= len(texts)
        return Plan(runs, raw["seeds"][:20], values)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError):
        return None


def _age(path: Path) -> float | None:
    """Return the seconds since a file was written; None if that cannot be told."""
    # A file may have any number as its time, also one that no year has.
    with suppress(OSError, ValueError, OverflowError):
        return age_of(datetime.fromtimestamp(path.stat().st_mtime, UTC))
    return None
