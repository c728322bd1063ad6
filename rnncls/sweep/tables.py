"""The summary of a sweep as Markdown tables, for TensorBoard."""

from collections.abc import Sequence

from rnncls.dashboard.markdown import in_markdown
from rnncls.errors import on_one_line
from rnncls.sweep.outcomes import SOLVED
from rnncls.sweep.summary import LEVELS, Setting, Statistics, Summary
from rnncls.sweep.text import MOST_OF_ID, setting_rows, short_names
from rnncls.system.rows import shortened

# TensorBoard shows no more of a text than some hundred thousand characters, and nobody reads more.
MOST_SETTINGS = 200
MOST_LENGTHS = 12
MOST_OF_NAME = 80

Found = Sequence[tuple[str, Setting, Statistics]]


def summary_markdown(summary: Summary) -> str:
    """Return the tables: settings, success with intervals, training, and medians by length."""
    shown = Summary(summary.settings[:MOST_SETTINGS], summary.outcomes)
    found = _found(shown)
    parts = [
        "**Members that succeed, of each setting**",
        _table(_escaped(setting_rows(shown, MOST_OF_NAME))),
        "**Success rates with 95 % Wilson intervals**",
        _table(_success_rows(found)),
        *(["p: Fisher's exact test against the first setting."] if _is_compared(found) else []),
        "**Accuracy and training**",
        _table(_training_rows(found)),
        *_length_parts(found),
    ]
    left_out = len(summary.settings) - len(shown.settings)
    if left_out:
        parts.append(f"{left_out:,} more settings are in summary.csv.")
    return "\n\n".join(parts)


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows, of which the first is the header, as a table with numbers to the right."""
    header, *rest = rows
    rule = [":---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *rest])


def _escaped(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    return [[in_markdown(cell, MOST_OF_NAME) for cell in row] for row in rows]


def _found(summary: Summary) -> Found:
    """Return the settings that have results, with their names."""
    names = short_names(summary)
    found = []
    for setting in summary.settings:
        if setting.statistics is not None:
            name = in_markdown(names[setting.name] or "all", MOST_OF_NAME)
            found.append((name, setting, setting.statistics))
    return found


def _is_compared(found: Found) -> bool:
    return any(setting.p_against_first for _, setting, _ in found)


def _success_rows(found: Found) -> list[list[str]]:
    is_compared = _is_compared(found)
    header = ["setting"]
    for level in LEVELS:
        header.append(f"{100 * level:g} %" if level == 1 else f"at least {100 * level:g} %")
        if is_compared:
            header.append("p")

    rows = [header]
    for name, setting, statistics in found:
        row = [name]
        for level in LEVELS:
            success = statistics.success[level]
            low, high = success.ci95
            row.append(f"{success.count} of {success.of} ({low:.2f} to {high:.2f})")
            if is_compared:
                p_value = (setting.p_against_first or {}).get(level)
                row.append("" if p_value is None else f"{p_value:.2g}")
        rows.append(row)
    return rows


def _training_rows(found: Found) -> list[list[str]]:
    steps = f"steps until half reach {100 * SOLVED:g} %"
    rows = [["setting", "mean", "median", "lowest", steps, "not finite", "failed"]]
    for name, setting, statistics in found:
        accuracy = statistics.accuracy
        half = statistics.to_solved.steps
        # The ids of a status that may be from anywhere.
        broken = ", ".join(shortened(on_one_line(id), MOST_OF_ID) for id in setting.broken)
        rows.append(
            [
                name,
                f"{accuracy.mean:.4f}",
                f"{accuracy.median:.4f}",
                f"{accuracy.min:.4f}",
                "never" if half is None else f"{half:,.0f}",
                str(statistics.diverged),
                in_markdown(broken, MOST_OF_NAME),
            ]
        )
    return rows


def _length_parts(found: Found) -> list[str]:
    """Return a table of the median accuracy by length, with its title."""
    tested: set[int] = set()
    for _, _, statistics in found:
        tested.update(statistics.by_length)
    if not tested:
        return []

    # Evenly chosen, the longest among them.
    lengths = sorted(tested)
    step = -(-len(lengths) // MOST_LENGTHS)
    shown = lengths[::-1][::step][::-1]

    rows = [["setting", *(f"{length:,}" for length in shown)]]
    for name, _, statistics in found:
        row = [name]
        for length in shown:
            at = statistics.by_length.get(length)
            row.append("" if at is None else f"{at.median:.4f}")
        rows.append(row)
    return ["**Median accuracy by length**", _table(rows)]
