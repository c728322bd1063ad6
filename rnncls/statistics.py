"""What many seeds say together: success rates with intervals, inter-quartile means, horizons, comparisons."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from rnncls.checkpoint import step_files
from rnncls.errors import MachineError, Problem
from rnncls.files import replace, writing
from rnncls.metrics import wilson_interval
from rnncls.rundir import CHECKPOINTS, read_metrics, read_status
from rnncls.sweep import Member, Sweep, evaluate_member, read_evaluation

LEVELS = (0.99, 0.999, 1.0)  # accuracies a success is counted at
SOLVED = 0.999  # validation accuracy whose first step is reported, and that of a horizon


@dataclass(frozen=True)
class Outcome:
    """One member, as far as it is known."""

    member: Member
    state: str  # of its status.json, or "not begun"
    step: int
    accuracies: dict[int, float]  # by length; empty while it is not evaluated
    trained: tuple[int, ...]  # the lengths of training among these
    steps_to_solved: int | None  # None: not reached
    train_s: float | None

    @property
    def failed(self) -> bool:
        return self.state == "failed"

    @property
    def accuracy(self) -> float:
        """Mean over the training lengths; of a failed member 0."""
        return float(np.mean([self.accuracies[n] for n in self.trained])) if self.trained else 0.0


def outcomes(sweep: Sweep) -> list[Outcome]:
    """Of all members, in their order."""
    return [_outcome(sweep.run_dir(member), member) for member in sweep.members]


def _outcome(run_dir: Path, member: Member) -> Outcome:
    status, found, metrics = read_status(run_dir), read_evaluation(run_dir), read_metrics(run_dir)
    rows = found.get("by_length", [])
    reached = (row["step"] for row in metrics if (row.get("val/accuracy") or 0) >= SOLVED)
    per_second = [row["train/sequences_per_second"] for row in metrics if row.get("train/sequences_per_second")]
    spent = member.config.train.batch_size * member.config.train.log_every * sum(1 / rate for rate in per_second)
    return Outcome(
        member,
        str(status.get("state", "not begun")),
        int(status.get("step") or 0),
        {row["length"]: row["accuracy"] for row in rows},
        tuple(row["length"] for row in rows if row["trained"]),
        next(reached, None),
        spent or None,
    )


def interquartile_mean(values: Sequence[float]) -> float:
    """The mean of what is left when a quarter, rounded down, is cut off on either side.

    >>> interquartile_mean([0.0, 1.0, 1.0, 4.0])
    1.0
    """
    cut = len(values) // 4
    return float(np.mean(sorted(values)[cut : len(values) - cut]))


def success(values: Sequence[float], level: float) -> dict[str, Any]:
    """How many of these accuracies reach the level, and the rate with its 95 % Wilson interval."""
    count = sum(value >= level for value in values)
    return {"count": count, "of": len(values), "rate": count / len(values), "ci95": wilson_interval(count, len(values))}


def horizon(accuracies: dict[int, float]) -> int:
    """The largest length up to which every evaluated one is at least SOLVED; 0 where the first is not."""
    reached = 0
    for length, accuracy in sorted(accuracies.items()):
        if accuracy < SOLVED:
            break
        reached = length
    return reached


def group_statistics(members: list[Outcome]) -> dict[str, Any]:
    """Of members that differ in their seed alone. Failed ones count as accuracy 0; those not done are left out."""
    ended = [outcome for outcome in members if outcome.failed or outcome.accuracies]
    if not ended:
        return {"members": len(members), "ended": 0}
    accuracies = [outcome.accuracy for outcome in ended]
    lengths = sorted({length for outcome in ended for length in outcome.accuracies})
    by_length = {n: [outcome.accuracies.get(n, 0.0) for outcome in ended] for n in lengths}
    steps = sorted(outcome.steps_to_solved or np.inf for outcome in ended)
    middle, batch_size = median(steps), ended[0].member.config.train.batch_size
    return {
        "members": len(members),
        "ended": len(ended),
        "failed": sum(outcome.failed for outcome in ended),
        "accuracy": {"mean": float(np.mean(accuracies)), "median": median(accuracies), "min": min(accuracies)},
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
        "horizon": {"median": median(map(horizon, _curves(ended))), "min": min(map(horizon, _curves(ended)))},
        "to_solved": {  # medians with those that never got there as infinitely late
            "reached": sum(step < np.inf for step in steps),
            "steps": None if middle == np.inf else middle,
            "sequences": None if middle == np.inf else middle * batch_size,
        },
    }


def _curves(ended: list[Outcome]) -> list[dict[int, float]]:
    return [outcome.accuracies for outcome in ended]


def fisher(first: dict[str, Any], other: dict[str, Any]) -> float:
    """The p value of Fisher's exact test, two-sided, of two success rates. Raises MachineError without scipy."""
    try:
        from scipy.stats import fisher_exact
    except ImportError:
        remedy = "pip install 'rnncls[sweep]'"
        raise MachineError(Problem("comparing groups needs scipy", remedy=remedy, id="R33")) from None
    table = [[found["count"], found["of"] - found["count"]] for found in (first, other)]
    return float(fisher_exact(table).pvalue)


def summarize(sweep: Sweep) -> dict[str, Any]:
    """Groups of members that differ in their seed alone, each against the first, and every member."""
    found = outcomes(sweep)
    groups: dict[str, list[Outcome]] = {}
    for outcome in found:
        groups.setdefault(" ".join(f"{key}={text}" for key, text in outcome.member.values.items()), []).append(outcome)
    rows = [{"group": name, **group_statistics(members)} for name, members in groups.items()]
    first = rows[0]
    for row in rows[1:]:
        if row["ended"] and first["ended"]:
            row["p_against_first"] = {
                str(level): fisher(first["success"][str(level)], row["success"][str(level)]) for level in LEVELS
            }
    return {"groups": rows, "members": [_listed(outcome) for outcome in found]}


def _listed(outcome: Outcome) -> dict[str, Any]:
    return {
        "name": outcome.member.name,
        "seed": outcome.member.config.seed,
        **outcome.member.values,
        "state": outcome.state,
        "step": outcome.step,
        "accuracy": outcome.accuracy if outcome.accuracies or outcome.failed else None,
        "horizon": horizon(outcome.accuracies),
        "steps_to_solved": outcome.steps_to_solved,
        "train_s": outcome.train_s,
        **{f"accuracy_at_{length}": accuracy for length, accuracy in outcome.accuracies.items()},
    }


def evaluate_all(sweep: Sweep, lengths: list[int] | None, samples: int) -> dict[str, Any]:
    """Accuracy by length of every member that has a checkpoint, by name; the others are listed as missing."""
    rows: dict[str, dict[int, float]] = {}
    missing = []
    for member in tqdm(sweep.members, unit="member", disable=None):
        if step_files(sweep.run_dir(member) / CHECKPOINTS):
            report = evaluate_member(sweep.run_dir(member), lengths, samples)
            rows[member.name] = {row.length: row.accuracy for row in report.by_length}
        else:
            missing.append(member.name)
    return {"accuracy": rows, "missing": missing}


def table(found: dict[str, Any]) -> str:
    """The same as text, with median, inter-quartile mean and minimum."""
    rows: dict[str, dict[int, float]] = found["accuracy"]
    if not rows:
        return "no member has a checkpoint"
    lengths = sorted({length for row in rows.values() for length in row})
    width = max(8, *map(len, rows))
    lines = [f"{'length':<{width}} " + "".join(f"{length:>9,}" for length in lengths)]
    lines += [f"{name:<{width}} " + "".join(f"{row.get(n, 0.0):>9.4f}" for n in lengths) for name, row in rows.items()]
    for name, function in (("median", median), ("IQM", interquartile_mean), ("minimum", min)):
        values = (function([row.get(n, 0.0) for row in rows.values()]) for n in lengths)
        lines.append(f"{name:<{width}} " + "".join(f"{value:>9.4f}" for value in values))
    lines.append(
        f"{'>= 99 %':<{width}} " + "".join(f"{sum(row.get(n, 0) >= 0.99 for row in rows.values()):>9}" for n in lengths)
    )
    return "\n".join([*lines, *(f"{name}: no checkpoint" for name in found["missing"])])


def write_summary(sweep: Sweep) -> dict[str, Any]:
    """summary.json and summary.csv, from what the members' directories say. Raises WriteError."""
    summary = summarize(sweep)
    columns = dict.fromkeys(key for row in summary["members"] for key in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(summary["members"])
    with writing(sweep.folder):
        replace(sweep.folder / "summary.json", json.dumps(summary, indent=1).encode())
        replace(sweep.folder / "summary.csv", text.getvalue().encode())
    return summary


def to_text(summary: dict[str, Any]) -> str:
    """The groups as a person reads them."""
    lines: list[str] = []
    for row in summary["groups"]:
        if lines:
            lines.append("")
        if row["group"]:
            lines.append(row["group"])
        lines.append(f"{row['ended']} of {row['members']} members have ended" + _failures(row))
        if not row["ended"]:
            continue
        accuracy = row["accuracy"]
        mean, middle, lowest = (accuracy[name] for name in ("mean", "median", "min"))
        lines.append(f"training lengths: mean {mean:.4f}, median {middle:.4f}, lowest {lowest:.4f}")
        for level, found in row["success"].items():
            low, high = found["ci95"]
            p = f"   p {row['p_against_first'][level]:.2g}" if "p_against_first" in row else ""
            lines.append(
                f"  at least {float(level):.1%}: {found['count']} of {found['of']}   (95 %: {low:.3f} to {high:.3f}){p}"
            )
        to_solved = row["to_solved"]
        if to_solved["steps"] is not None:
            steps, sequences = to_solved["steps"], to_solved["sequences"]
            lines.append(f"half of them at {SOLVED:.1%} after {steps:,.0f} steps, {sequences:,.0f} sequences")
        lines += ["", "length     median        IQM     lowest   >= 99 %   >= 99.9 %   100 %"]
        for length, at in row["by_length"].items():
            values = "".join(f"{at[name]:>11.4f}" for name in ("median", "iqm", "min"))
            counts = [at["success"][str(level)]["count"] for level in LEVELS]
            lines.append(f"{int(length):>6,}{values}   {counts[0]:>7} {counts[1]:>11} {counts[2]:>7}")
    return "\n".join(lines)


def _failures(row: dict[str, Any]) -> str:
    return f", {row['failed']} of them not finite" if row.get("failed") else ""
