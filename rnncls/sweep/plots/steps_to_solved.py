"""How many members have solved the task by each step of training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rnncls.sweep.outcomes import SOLVED, Outcome, by_setting
from rnncls.sweep.plots.looks import colour_of, legend_below, marker_of, name_of, new_axes
from rnncls.system.pictures import default_style
from rnncls.system.shown import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLES = ("-", "--", "-.", ":")


@default_style()
def steps_to_solved(ended: Sequence[Outcome]) -> "Figure":
    """Draw the share of members whose validation accuracy has reached SOLVED, by step.

    Members that never reach it count, too: a line need not end at 100 %. It ends where the longest
    run of its setting does.
    """
    solved = sum(outcome.steps_to_solved is not None for outcome in ended)
    title = f"{solved:,} of {counted(len(ended), 'member')} reach {100 * SOLVED:g} % in validation"
    figure, axes = new_axes(title)

    for number, members in enumerate(by_setting(ended).values()):
        steps = [outcome.steps_to_solved for outcome in members]
        reached = sorted(step for step in steps if step is not None)
        last = max([outcome.step for outcome in members] + reached)

        # The line rises at each of these; it has a marker there, and none where it begins and ends.
        x = [0, *reached, last]
        shares = [100 * count / len(members) for count in range(len(reached) + 1)]
        y = [*shares, shares[-1]]

        name = name_of(members[0])
        count = f"{len(reached):,} of {len(members):,}"
        axes.plot(
            x,
            y,
            drawstyle="steps-post",
            color=colour_of(number),
            linestyle=_STYLES[number % len(_STYLES)],
            linewidth=1.8,
            marker=marker_of(number),
            markersize=5,
            markevery=range(1, len(x) - 1) if reached else [len(x) - 1],
            clip_on=False,
            label=f"{name}: {count}" if name else count,
        )

    axes.set(xlabel="training step", ylabel="members solved (%)", ylim=(0, 102))
    axes.set_xlim(left=0)
    axes.grid(color="0.9")
    legend_below(figure, axes)
    return figure
