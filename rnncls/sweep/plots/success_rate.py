"""How many members of each setting succeed, with intervals."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rnncls.sweep.outcomes import Outcome, by_setting
from rnncls.sweep.plan import format_setting
from rnncls.sweep.plots.looks import legend_below, name_of, new_axes
from rnncls.sweep.summary import LEVELS, success
from rnncls.system.pictures import default_style, in_picture
from rnncls.system.shown import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Beyond these, rows could not be told apart; the tables have them all.
MOST_SETTINGS = 40
MOST_OF_NAME = 28

# Of more settings the rows are lower, so that the picture is no tower.
MOST_IN_HIGH_ROWS = 8
HIGH_ROW = 0.42  # inches
LOW_ROW = 0.23

# How each level looks, and how far from the middle of its row, as a share of the row.
_MARKERS = ("o", "s", "D")
_PLACES = (-0.26, 0.0, 0.26)


@default_style()
def success_rates(ended: Sequence[Outcome]) -> "Figure":
    """Draw the share of members that reach each level, with its 95 % Wilson interval.

    A row for each setting, with the counts beside it.
    """
    settings = list(by_setting(ended).values())
    shown = settings[:MOST_SETTINGS]
    where = "training lengths" if any(outcome.tested for outcome in ended) else "test sequences"
    is_low = len(shown) > MOST_IN_HIGH_ROWS
    height = 1.3 + max((LOW_ROW if is_low else HIGH_ROW) * len(shown), 0.9)
    figure, axes = new_axes(f"success of {counted(len(ended), 'member')} ({where})", height)
    size = "x-small" if is_low else "small"

    names = []
    for row, members in enumerate(shown):
        names.append(_name_of_row(members[0], is_low))
        accuracies = [outcome.accuracy for outcome in members]
        for number, level in enumerate(LEVELS):
            rate = success(accuracies, level)
            low, high = rate.ci95
            y = row + _PLACES[number]
            axes.plot(
                [100 * low, 100 * high], [y, y], color=f"C{number}", linewidth=1 if is_low else 1.5
            )
            axes.plot(
                100 * rate.rate,
                y,
                color=f"C{number}",
                linestyle="",
                marker=_MARKERS[number],
                markersize=3.5 if is_low else 5,
                clip_on=False,
                zorder=3,
                label="" if row else f"at least {100 * level:g} %" if level < 1 else "100 %",
            )

        counts = [success(accuracies, level).count for level in LEVELS]
        text = " / ".join(map(str, counts)) + f" of {len(members)}"
        axes.annotate(
            text,
            (1, row),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            fontsize=size,
        )

        if row:
            axes.axhline(row - 0.5, color="0.85", linewidth=0.8)

    axes.set(xlim=(0, 100), ylim=(len(shown) - 0.5, -0.5))
    axes.set_xlabel("members that reach it (%), 95 % Wilson intervals")
    axes.set_yticks(range(len(shown)), names, fontsize=size, parse_math=False)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)

    left_out = len(settings) - len(shown)
    note = f"{left_out:,} more settings are in the tables" if left_out else ""
    legend_below(figure, axes, note)
    return figure


def _name_of_row(outcome: Outcome, is_low: bool) -> str:
    """Return the name of a member's setting: in a high row, two keys stand on two lines."""
    if is_low or len(outcome.member.values) != 2:
        return name_of(outcome, MOST_OF_NAME) or "all members"
    lines = []
    for key, value in outcome.member.values.items():
        lines.append(in_picture(format_setting({key: value}, short=True), MOST_OF_NAME))
    return "\n".join(lines)
