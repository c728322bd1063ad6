"""What many seeds say together: success rates with intervals, inter-quartile means, horizons, comparisons."""

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from tqdm import tqdm

from rnncls.errors import CheckpointError, ConfigError, NonFiniteError, RnnclsError, printable
from rnncls.files import replace as replace_file
from rnncls.files import writing
from rnncls.metrics import wilson_interval
from rnncls.plan import Member, Sweep
from rnncls.rundir import read_metrics, read_status
from rnncls.sweep import Evaluation, evaluate_member, read_evaluation, tested_lengths, trained_accuracy

LEVELS = (0.99, 0.999, 1.0)  # accuracies a success is counted at
SOLVED = 0.999  # validation accuracy whose first step is reported, and that of a horizon


@dataclass(frozen=True)
class Outcome:
    """One member, as far as it is known."""

    member: Member
    state: str  # of its status.json, or "not begun"
    exit_code: int | None  # None while it is running
    error_id: str  # of what it failed with
    step: int
    evaluation: Evaluation | None
    tested: tuple[int, ...]  # the lengths of an evaluation; of files none
    steps_to_solved: int | None  # None: not reached
    train_s: float | None

    @property
    def diverged(self) -> bool:
        """Numbers that were not finite: a result, and a failure. Other errors say nothing about the config."""
        return self.exit_code == NonFiniteError.exit_code

    @property
    def ended(self) -> bool:
        return self.diverged or self.evaluation is not None

    @property
    def accuracies(self) -> dict[int, float]:
        """By length; empty while it is not evaluated, and 0 of one that diverged."""
        if self.diverged:
            return dict.fromkeys(self.tested, 0.0)
        return {row.length: row.accuracy for row in self.evaluation.by_length} if self.evaluation else {}

    @property
    def accuracy(self) -> float:
        """Over the training lengths; of one that diverged 0."""
        evaluation = None if self.diverged else self.evaluation
        return trained_accuracy(evaluation, self.member.config) if evaluation else 0.0


def outcomes(sweep: Sweep) -> list[Outcome]:
    """Of all members, in their order."""
    return [_outcome(sweep, member) for member in sweep.members]


def _outcome(sweep: Sweep, member: Member) -> Outcome:
    run_dir, damaged = sweep.run_dir(member), ""
    try:
        found, metrics = read_evaluation(run_dir), read_metrics(run_dir)
    except (ConfigError, OSError) as error:  # that is one member's trouble
        found, metrics, damaged = None, [], error.problems[0].id if isinstance(error, ConfigError) else "R9"
    status = read_status(run_dir)
    step = status.get("step")
    step = step if isinstance(step, int) else 0
    reached = (row["step"] for row in metrics if (row.get("val/accuracy") or 0) >= SOLVED)
    return Outcome(
        member,
        str(status.get("state", "not begun")),
        status.get("exit_code"),
        damaged or str(status.get("error_id") or ""),
        step,
        found if found and found.step == step else None,  # else it was trained further
        tuple(tested_lengths(sweep, member.config)),
        next(reached, None),
        _train_seconds(metrics, member.config.train.batch_size),
    )


def _train_seconds(metrics: list[dict[str, Any]], batch_size: int) -> float | None:
    """Time spent on steps alone, from the rates that were logged."""
    spent, before = 0.0, 0
    for row in metrics:
        if rate := row.get("train/sequences_per_second"):
            spent, before = spent + batch_size * (row["step"] - before) / rate, row["step"]
    return spent or None


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
    """Of members that differ in their seed alone. One that diverged has accuracy 0; those not done are left out."""
    ended = [outcome for outcome in members if outcome.ended]
    waiting = [outcome for outcome in members if not outcome.ended and outcome.state != "interrupted"]
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
        "accuracy": {"mean": mean(accuracies), "median": median(accuracies), "min": min(accuracies)},
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
        "horizon": {"median": median(horizons), "min": min(horizons), "tested": max(lengths, default=0)},
        "to_solved": {  # medians with those that never got there as infinitely late
            "reached": sum(step < np.inf for step in steps),
            "steps": None if middle == np.inf else middle,
            "sequences": None if middle == np.inf else middle * batch_size,
        },
    }


def accuracies_at(length: int, ended: Sequence[Outcome]) -> list[float]:
    """Of those that were tested at this length, and 0 of those that diverged."""
    found = [(outcome.diverged, outcome.accuracies.get(length)) for outcome in ended]
    return [accuracy or 0.0 for diverged, accuracy in found if diverged or accuracy is not None]


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
                str(level): fisher(first["success"][str(level)], row["success"][str(level)]) for level in LEVELS
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
                report = evaluate_member(outcome.member, sweep.run_dir(outcome.member), lengths, sweep)
                rows[name] = {row["length"]: row["accuracy"] for row in report["by_length"]}
            except (CheckpointError, ConfigError) as error:
                first_error, left_out[name] = first_error or error, f"{error}"
    if first_error and not rows:
        raise first_error
    tested = sorted({length for row in rows.values() for length in row})
    rows |= {name: dict.fromkeys(tested, 0.0) for name in diverged}
    groups = {member.name: _group_of(member) for member in sweep.members}
    return {"accuracy": rows, "groups": groups, "diverged": diverged, "left_out": left_out}


def table(found: dict[str, Any]) -> str:
    """The same as text, with median, inter-quartile mean and minimum."""
    rows: dict[str, dict[int, float]] = found["accuracy"]
    left_out = [f"left out: {name}: {printable(reason)}" for name, reason in found["left_out"].items()]
    if not rows:
        return "\n".join(["no member has finished", *left_out])
    lengths = sorted({length for row in rows.values() for length in row})
    width = max(8, *map(len, rows))
    lines = [f"{'length':<{width}} " + "".join(f"{length:>9,}" for length in lengths)]
    for name, row in rows.items():
        cells = "".join(f"{row[n]:>9.4f}" if n in row else " " * 9 for n in lengths)
        lines.append(f"{name:<{width}} {cells}" + ("   not finite" if name in found["diverged"] else ""))
    for group in dict.fromkeys(found["groups"][name] for name in rows):
        own = [row for name, row in rows.items() if found["groups"][name] == group]
        columns = [[row[n] for row in own if n in row] or [math.nan] for n in lengths]
        lines += [""] + ([group] if group else [])
        for title, function in (("median", median), ("IQM", interquartile_mean), ("minimum", min)):
            lines.append(f"{title:<{width}} " + "".join(f"{function(values):>9.4f}" for values in columns))
        counts = (sum(value >= LEVELS[0] for value in values) for values in columns)
        lines.append(f"{'>= 99 %':<{width}} " + "".join(f"{count:>9}" for count in counts))
    return "\n".join(lines + left_out)


def write_summary(sweep: Sweep, summary: dict[str, Any]) -> None:
    """summary.json and summary.csv. For a process that holds the folder. Raises WriteError."""
    columns = dict.fromkeys(key for row in summary["members"] for key in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(columns))
    writer.writeheader()
    writer.writerows(summary["members"])
    with writing(sweep.folder):
        replace_file(sweep.folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False).encode())
        replace_file(sweep.folder / "summary.csv", text.getvalue().encode())


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
        lines.append(f"{row['measure']}: mean {mean:.4f}, median {middle:.4f}, lowest {lowest:.4f}")
        for level, found in row["success"].items():
            low, high = found["ci95"]
            p_value = row.get("p_against_first", {}).get(level)
            p = "" if p_value is None else f"   p {p_value:.2g}"
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
    if any("p_against_first" in row for row in summary["groups"]):
        lines += ["", "p: Fisher's exact test against the first group. IQM: inter-quartile mean."]
    return "\n".join(lines)


def _failures(row: dict[str, Any]) -> str:
    diverged = f", {row['diverged']} of them not finite" if row.get("diverged") else ""
    return diverged + (f"; others failed ({', '.join(row['broken'])}) and are left out" if row["broken"] else "")
