"""The tables people read."""

import math
from statistics import median
from typing import Any

from rnncls.errors import printable
from rnncls.sweep.outcomes import SOLVED
from rnncls.sweep.summary import LEVELS, interquartile_mean


def table(found: dict[str, Any]) -> str:
    """The same as text, with median, inter-quartile mean and minimum."""
    rows: dict[str, dict[int, float]] = found["accuracy"]
    left_out = [
        f"left out: {name}: {printable(reason)}" for name, reason in found["left_out"].items()
    ]
    if not rows:
        return "\n".join(["no member has finished", *left_out])
    lengths = sorted({length for row in rows.values() for length in row})
    width = max(8, *map(len, rows))
    lines = [f"{'length':<{width}} " + "".join(f"{length:>9,}" for length in lengths)]
    for name, row in rows.items():
        cells = "".join(f"{row[n]:>9.4f}" if n in row else " " * 9 for n in lengths)
        lines.append(
            f"{name:<{width}} {cells}" + ("   not finite" if name in found["diverged"] else "")
        )
    for group in dict.fromkeys(found["groups"][name] for name in rows):
        own = [row for name, row in rows.items() if found["groups"][name] == group]
        columns = [[row[n] for row in own if n in row] or [math.nan] for n in lengths]
        lines += [""] + ([group] if group else [])
        for title, function in (("median", median), ("IQM", interquartile_mean), ("minimum", min)):
            lines.append(
                f"{title:<{width}} " + "".join(f"{function(values):>9.4f}" for values in columns)
            )
        counts = (sum(value >= LEVELS[0] for value in values) for values in columns)
        lines.append(f"{'>= 99 %':<{width}} " + "".join(f"{count:>9}" for count in counts))
    return "\n".join(lines + left_out)


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
            lines.append(
                f"half of them at {SOLVED:.1%} after {steps:,.0f} steps, {sequences:,.0f} sequences"
            )
        lines += ["", "length     median        IQM     lowest   >= 99 %   >= 99.9 %   100 %"]
        for length, at in row["by_length"].items():
            values = "".join(f"{at[name]:>11.4f}" for name in ("median", "iqm", "min"))
            counts = [at["success"][str(level)]["count"] for level in LEVELS]
            lines.append(
                f"{int(length):>6,}{values}   {counts[0]:>7} {counts[1]:>11} {counts[2]:>7}"
            )
    if any("p_against_first" in row for row in summary["groups"]):
        lines += ["", "p: Fisher's exact test against the first group. IQM: inter-quartile mean."]
    return "\n".join(lines)


def _failures(row: dict[str, Any]) -> str:
    diverged = f", {row['diverged']} of them not finite" if row.get("diverged") else ""
    return diverged + (
        f"; others failed ({', '.join(row['broken'])}) and are left out" if row["broken"] else ""
    )
