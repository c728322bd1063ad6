"""What many seeds say together: success rates with intervals, inter-quartile means, horizons, comparisons."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from rnncls.errors import CheckpointError, ConfigError, RnnclsError
from rnncls.evaluation.metrics import wilson_interval
from rnncls.sweep.outcomes import SOLVED, Outcome, accuracies_at, outcomes
from rnncls.sweep.plan import Member, Sweep
from rnncls.sweep.results import evaluate_member
from rnncls.system.files import write_atomically, writing

LEVELS = (0.99, 0.999, 1.0)  # accuracies a success is counted at


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of what is left when a quarter, rounded down, is cut off on either side.

    >>> interquartile_mean([0.0, 1.0, 1.0, 4.0])
    1.0
    """
    cut = len(values) // 4
    return mean(sorted(values)[cut : len(values) - cut])


def mean(values: Sequence[float]) -> float:
    """Of ones exactly 1, of any equal numbers exactly that: success is counted by comparing with a level."""
    return values[0] if min(values) == max(values) else math.fsum(values) / len(values)


def success(values: Sequence[float], level: float) -> dict[str, Any]:
    """How many of these accuracies reach the level, and the rate with its 95 % Wilson interval."""
    count = sum(value >= level for value in values)
    return {
        "count": count,
        "of": len(values),
        "rate": count / len(values),
        "ci95": wilson_interval(count, len(values)),
    }


def horizon(accuracies: dict[int, float]) -> int:
    """The largest length up to which every evaluated one is at least SOLVED; 0 where the first is not."""
    reached = 0
    for length, accuracy in sorted(accuracies.items()):
        if accuracy < SOLVED:
            break
        reached = length
    return reached


def group_statistics(members: list[Outcome]) -> dict[str, Any]:
    """Of members that differ in their seed alone. One that diverged has accuracy 0; those not done are left out."""
    ended = [outcome for outcome in members if outcome.ended]
    waiting = [
        outcome for outcome in members if not outcome.ended and outcome.state != "interrupted"
    ]
    broken = sorted({outcome.error_id for outcome in waiting if outcome.error_id})
    counts = {"members": len(members), "ended": len(ended), "broken": broken}
    if not ended:
        return counts
    accuracies = [outcome.accuracy for outcome in ended]
    lengths = sorted({length for outcome in ended for length in outcome.accuracies})
    by_length = {n: accuracies_at(n, ended) for n in lengths}
    steps = sorted(outcome.steps_to_solved or np.inf for outcome in ended)
    middle, batch_size = median(steps), ended[0].member.config.train.batch_size
    horizons = [horizon(outcome.accuracies) for outcome in ended]
    return {
        **counts,
        "measure": "training lengths" if ended[0].tested else "test sequences",
        "diverged": sum(outcome.diverged for outcome in ended),
        "accuracy": {
            "mean": mean(accuracies),
            "median": median(accuracies),
            "min": min(accuracies),
        },
        "success": {str(level): success(accuracies, level) for level in LEVELS},
        "by_length": {
            n: {
                "median": median(values),
                "iqm": interquartile_mean(values),
                "min": min(values),
                "success": {str(level): success(values, level) for level in LEVELS},
            }
            for n, values in by_length.items()
        },
        "horizon": {
            "median": median(horizons),
            "min": min(horizons),
            "tested": max(lengths, default=0),
        },
        "to_solved": {  # medians with those that never got there as infinitely late
            "reached": sum(step < np.inf for step in steps),
            "steps": None if middle == np.inf else middle,
            "sequences": None if middle == np.inf else middle * batch_size,
        },
    }


def fisher(first: dict[str, Any], other: dict[str, Any]) -> float | None:
    """The p value of Fisher's exact test, two-sided, of two success rates. None without scipy."""
    try:
        from scipy.stats import fisher_exact
    except ImportError:
        return None
    table = [[found["count"], found["of"] - found["count"]] for found in (first, other)]
    return float(fisher_exact(table).pvalue)


def summarize(sweep: Sweep) -> dict[str, Any]:
    """Groups of members that differ in their seed alone, each against the first, and members. Raises ConfigError."""
    found = outcomes(sweep)
    groups: dict[str, list[Outcome]] = {}
    for outcome in found:
        groups.setdefault(_group_of(outcome.member), []).append(outcome)
    rows = [{"group": name, **group_statistics(members)} for name, members in groups.items()]
    first = rows[0]
    for row in rows[1:]:
        if row["ended"] and first["ended"]:
            row["p_against_first"] = {
                str(level): fisher(first["success"][str(level)], row["success"][str(level)])
                for level in LEVELS
            }
    return {"groups": rows, "members": [_listed(outcome) for outcome in found]}


def _group_of(member: Member) -> str:
    return " ".join(f"{key}={text}" for key, text in member.values.items())


def _listed(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.member.name,
        "seed": outcome.member.config.seed,
        **outcome.member.values,
        "state": outcome.state,
        "error": outcome.error_id or None,
        "step": outcome.step,
        "accuracy": outcome.accuracy if outcome.ended else None,
        "horizon": horizon(outcome.accuracies) if outcome.ended else None,
        "steps_to_solved": outcome.steps_to_solved,
        "train_s": outcome.train_s,
        **{f"accuracy_at_{length}": accuracy for length, accuracy in outcome.accuracies.items()},
    }


def evaluate_all(sweep: Sweep, lengths: list[int] | None, samples: int | None) -> dict[str, Any]:
    """Accuracy by length of every member that has finished, by name; 0 for one that diverged. Others are named.

    `lengths` and `samples`: None for those of the sweep.
    """
    sweep = sweep if samples is None else replace(sweep, samples=samples)
    rows: dict[str, dict[int, float]] = {}
    diverged: list[str] = []
    left_out: dict[str, str] = {}
    first_error: RnnclsError | None = None
    for outcome in tqdm(outcomes(sweep), unit="member", disable=None):
        name = outcome.member.name
        if outcome.diverged:
            diverged.append(name)
        elif outcome.state != "finished":
            left_out[name] = " ".join(part for part in (outcome.state, outcome.error_id) if part)
        else:
            try:
                report = evaluate_member(
                    outcome.member, sweep.run_dir(outcome.member), lengths, sweep
                )
                rows[name] = {row["length"]: row["accuracy"] for row in report["by_length"]}
            except (CheckpointError, ConfigError) as error:
                first_error, left_out[name] = first_error or error, f"{error}"
    if first_error and not rows:
        raise first_error
    tested = sorted({length for row in rows.values() for length in row})
    rows |= {name: dict.fromkeys(tested, 0.0) for name in diverged}
    groups = {member.name: _group_of(member) for member in sweep.members}
    return {"accuracy": rows, "groups": groups, "diverged": diverged, "left_out": left_out}


def write_summary(sweep: Sweep, summary: dict[str, Any]) -> None:
    """summary.json and summary.csv. For a process that holds the folder. Raises WriteError."""
    columns = dict.fromkeys(key for row in summary["members"] for key in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(summary["members"])
    with writing(sweep.folder):
        write_atomically(
            sweep.folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False).encode()
        )
        write_atomically(sweep.folder / "summary.csv", text.getvalue().encode())
