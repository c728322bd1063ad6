"""The summary and the accuracies of a sweep as text."""

import math
from collections.abc import Sequence
from statistics import median

from rnncls.errors import on_one_line
from rnncls.sweep.evaluate import Accuracies
from rnncls.sweep.outcomes import SOLVED
from rnncls.sweep.plan import format_setting
from rnncls.sweep.summary import (
    LEVELS,
    TRAINING_LENGTHS,
    Setting,
    Statistics,
    Summary,
    interquartile_mean,
)
from rnncls.system.rows import shortened
from rnncls.system.shown import aligned, on_short_line

MOST_OF_ID = 20  # characters of the id of an error
MOST_OF_NAME = 36  # of the name of a setting in the table of all


def accuracy_table(accuracies: Accuracies) -> str:
    """Return a table of accuracies: a line per member, then statistics for each setting."""
    # A reason may quote a file, a name the values of a grid.
    left_out = []
    for name, reason in accuracies.left_out.items():
        left_out.append(on_one_line(f"left out: {name}: {reason}"))

    by_member = accuracies.by_member
    if not by_member:
        return "\n".join(["no member has finished", *left_out])

    tested: set[int] = set()
    for by_length in by_member.values():
        tested.update(by_length)
    lengths = sorted(tested)

    # Names are as long as the grid makes them; the titles of the rows fit into eight columns.
    names = {name: on_one_line(name) for name in by_member}
    width = max(8, *map(len, names.values()))
    header = "".join(f"{length:>9,}" for length in lengths)
    lines = [f"{'length':<{width}} {header}"]

    for name, by_length in by_member.items():
        cells = "".join(_cell(by_length.get(length)) for length in lengths)
        note = "   not finite" if name in accuracies.diverged else ""
        lines.append(f"{names[name]:<{width}} {cells}{note}")

    for setting, members in _by_setting(accuracies).items():
        lines.append("")
        if setting:
            lines.append(on_one_line(setting))
        lines += _statistics_lines(members, lengths, width)

    return "\n".join([*lines, *_long_table(accuracies, width), *left_out])


def _long_table(accuracies: Accuracies, width: int) -> list[str]:
    """Return a line per member on the sequences that are read a few digits at a time, if any are.

    Of those with a structure, the length up to which all are right.
    """
    lines = []
    for name, report in accuracies.long.items():
        parts = []
        if report.structured is not None:
            for kind in report.structured.kinds:
                parts.append(f"{kind.kind} {kind.longest_right:,}")
        if report.until_wrong is not None:
            until_wrong = report.until_wrong
            never = f"{until_wrong.never:,} of {until_wrong.sequences:,} never wrong"
            parts.append(f"{never} up to {until_wrong.longest:,}")
        if parts:
            lines.append(f"{on_one_line(name):<{width}}  {', '.join(parts)}")
    return ["", *lines] if lines else []


def _cell(accuracy: float | None) -> str:
    return f"{'':>9}" if accuracy is None else f"{accuracy:>9.4f}"


def _by_setting(accuracies: Accuracies) -> dict[str, list[dict[int, float]]]:
    """Return the accuracies by length of the members of each setting."""
    settings: dict[str, list[dict[int, float]]] = {}
    for name, by_length in accuracies.by_member.items():
        settings.setdefault(accuracies.settings[name], []).append(by_length)
    return settings


def _statistics_lines(
    members: Sequence[dict[int, float]], lengths: Sequence[int], width: int
) -> list[str]:
    """Return lines with median, inter-quartile mean, minimum and successes at each length."""
    columns = []
    for length in lengths:
        column = [by_length[length] for by_length in members if length in by_length]
        # A grid over data files tests other lengths in each setting, so a column may be empty.
        # It then shows nan and no success.
        columns.append(column or [math.nan])

    lines = []
    for title, statistic in (("median", median), ("IQM", interquartile_mean), ("minimum", min)):
        cells = "".join(_cell(statistic(column)) for column in columns)
        lines.append(f"{title:<{width}} {cells}")

    # How many members succeed, by the lowest level.
    counts = ""
    for column in columns:
        successes = sum(accuracy >= LEVELS[0] for accuracy in column)
        counts += f"{successes:>9}"
    lines.append(f"{'>= 99 %':<{width}} {counts}")
    return lines


def summary_text(summary: Summary) -> str:
    """Return the statistics of each setting as text, and first of all settings in one table."""
    paragraphs = [_setting_text(setting) for setting in summary.settings]
    # Of one setting, the paragraph itself says as much.
    if len(summary.settings) > 1:
        paragraphs.insert(0, "\n".join(aligned(setting_rows(summary, MOST_OF_NAME), texts=1)))

    if any(setting.p_against_first is not None for setting in summary.settings):
        paragraphs.append(
            "p: Fisher's exact test against the first setting. IQM: inter-quartile mean."
        )
    return "\n\n".join(paragraphs)


def setting_rows(summary: Summary, most: int) -> list[list[str]]:
    """Return a table of the settings, header first: success, and one median.

    The median is that at the longest length tested; on data files, where few sequences may be that
    long, that of the accuracy on all. `most`: characters of a setting's name.
    """
    found = [setting.statistics for setting in summary.settings if setting.statistics is not None]
    longest = {statistics.horizon.tested for statistics in found}
    is_generated = any(statistics.measure == TRAINING_LENGTHS for statistics in found)
    title = "median"
    if is_generated:
        title = f"median at {longest.pop():,}" if len(longest) == 1 else "median at longest"

    names = short_names(summary)
    levels = [f">= {100 * level:g} %" if level < 1 else "100 %" for level in LEVELS]
    # Only where some members were asked for them.
    asks_structured = any(statistics.structured is not None for statistics in found)
    asks_until_wrong = any(statistics.until_wrong is not None for statistics in found)
    more = ["structured"] if asks_structured else []
    more += ["never wrong"] if asks_until_wrong else []
    rows = [["setting", "ended", *levels, title, *more]]
    for setting in summary.settings:
        name = on_short_line(names[setting.name], most) or "all"
        row = [name, f"{setting.ended} of {setting.members}"]

        statistics = setting.statistics
        if statistics is None:
            rows.append(row + [""] * (len(rows[0]) - len(row)))
            continue
        row += [str(statistics.success[level].count) for level in LEVELS]

        middle = statistics.accuracy.median
        if is_generated:
            middle = statistics.by_length[statistics.horizon.tested].median
        row.append(f"{middle:.4f}")
        if asks_structured:
            row.append("" if statistics.structured is None else str(statistics.structured.count))
        if asks_until_wrong:
            row.append("" if statistics.until_wrong is None else str(statistics.until_wrong.count))
        rows.append(row)
    return rows


def short_names(summary: Summary) -> dict[str, str]:
    """Return the names of the settings without the sections of their keys, by name."""
    names = {}
    for outcome in summary.outcomes:
        names[outcome.member.setting] = format_setting(outcome.member.values, short=True)
    return names


def _setting_text(setting: Setting) -> str:
    lines = []
    if setting.name:
        lines.append(on_one_line(setting.name))
    lines.append(_progress_line(setting))

    statistics = setting.statistics
    if statistics is not None:
        accuracy = statistics.accuracy
        lines.append(
            f"{statistics.measure}: mean {accuracy.mean:.4f}, median {accuracy.median:.4f}, "
            f"lowest {accuracy.min:.4f}"
        )
        lines += _success_lines(setting, statistics)
        lines += _long_lines(statistics)
        lines += _solved_lines(statistics)
        lines += _length_lines(statistics)
    return "\n".join(lines)


def _progress_line(setting: Setting) -> str:
    line = f"{setting.ended} of {setting.members} runs finished"
    if setting.statistics is not None and setting.statistics.diverged:
        line += f", {setting.statistics.diverged} of them not finite"
    if setting.broken:
        # The ids of a status that may be from anywhere.
        broken = [shortened(id, MOST_OF_ID) for id in setting.broken]
        line += f"; others failed ({', '.join(broken)}) and are left out"
    return on_one_line(line)


def _success_lines(setting: Setting, statistics: Statistics) -> list[str]:
    # The first setting is compared with nothing; without scipy every value is None.
    p_values = setting.p_against_first or {}

    lines = []
    for level, success in statistics.success.items():
        low, high = success.ci95
        line = f"  at least {level:.1%}: {success.count} of {success.of}"
        line += f"   (95 %: {low:.3f} to {high:.3f})"

        p_value = p_values.get(level)
        if p_value is not None:
            line += f"   p {p_value:.2g}"
        lines.append(line)
    return lines


def _long_lines(statistics: Statistics) -> list[str]:
    """Return how many members have no error on sequences that are read a few digits at a time."""
    lines = []
    for title, success in (
        ("all sequences with a structure right", statistics.structured),
        ("no random sequence wrong", statistics.until_wrong),
    ):
        if success is not None:
            low, high = success.ci95
            line = f"{title}, up to {success.longest:,}: {success.count} of {success.of} runs"
            lines.append(f"{line}   (95 %: {low:.3f} to {high:.3f})")
    return lines


def _solved_lines(statistics: Statistics) -> list[str]:
    # Both are None unless more than half of the members get there.
    steps = statistics.to_solved.steps
    sequences = statistics.to_solved.sequences
    if steps is None or sequences is None:
        return []
    return [
        f"half of them reach {SOLVED:.1%} within {steps:,.0f} steps, {sequences:,.0f} sequences"
    ]


def _length_lines(statistics: Statistics) -> list[str]:
    # The columns of the header and of the rows must match: 6, then 11 each, then the counts.
    lines = ["", "length     median        IQM     lowest   >= 99 %   >= 99.9 %   100 %"]
    for length, at in statistics.by_length.items():
        counts = [at.success[level].count for level in LEVELS]
        lines.append(
            f"{length:>6,}{at.median:>11.4f}{at.iqm:>11.4f}{at.min:>11.4f}"
            f"   {counts[0]:>7} {counts[1]:>11} {counts[2]:>7}"
        )
    return lines
