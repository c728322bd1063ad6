"""A map of two keys of the grid: what each pair of their values gives."""

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from rnncls.sweep.outcomes import Outcome, accuracies_at
from rnncls.sweep.plots.looks import HEIGHT, WIDTH, new_axes
from rnncls.sweep.summary import LEVELS, success
from rnncls.system.pictures import default_style, in_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_OF_VALUE = 16  # characters
MOST_OF_KEY = 40
MOST_OF_ROW = 36  # characters of all values below the axis, side by side

_CELL = 0.55  # inches, at least
_DARK = 0.55  # up to here a colour needs white numbers on it


@default_style()
def grid_map(outcomes: Sequence[Outcome]) -> "Figure | None":
    """Draw the success rate of each pair of values, or a median where all succeed alike.

    None unless exactly two keys have more than one value.
    """
    axes_of_grid = _two_axes(outcomes)
    if axes_of_grid is None:
        return None
    (key_x, values_x), (key_y, values_y) = axes_of_grid.items()

    cells: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.ended:
            place = (outcome.member.values[key_x], outcome.member.values[key_y])
            cells.setdefault(place, []).append(outcome)
    title, numbers, words = _measured(cells)

    columns = len(values_x)
    rows = len(values_y)
    figure, axes = new_axes(title, height=max(HEIGHT, 1.3 + _CELL * rows))
    figure.set_figwidth(max(WIDTH, 1.3 + _CELL * columns))

    shares = [[numbers.get((x, y), float("nan")) for x in values_x] for y in values_y]
    axes.set_facecolor("white")
    axes.imshow(shares, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    axes.vlines([column + 0.5 for column in range(columns - 1)], -0.5, rows - 0.5, "white")
    axes.hlines([row + 0.5 for row in range(rows - 1)], -0.5, columns - 0.5, "white")

    for row, y in enumerate(values_y):
        for column, x in enumerate(values_x):
            number = numbers.get((x, y))
            if number is None:
                # A pair of which no member has ended is no 0.
                _hatch(axes, column, row)
                continue
            axes.text(
                column,
                row,
                words[x, y],
                ha="center",
                va="center",
                color="white" if number <= _DARK else "black",
                fontsize="medium" if columns <= 6 else "x-small",
            )

    shown = [in_picture(value, MOST_OF_VALUE) for value in values_x]
    is_wide = sum(map(len, shown)) > MOST_OF_ROW and columns * _CELL < sum(map(len, shown)) * 0.12
    axes.set_xticks(range(columns), shown, rotation=45 if is_wide else 0, parse_math=False)
    shown = [in_picture(value, MOST_OF_VALUE) for value in values_y]
    axes.set_yticks(range(rows), shown, parse_math=False)
    axes.set_xlabel(in_picture(key_x, MOST_OF_KEY), parse_math=False)
    axes.set_ylabel(in_picture(key_y, MOST_OF_KEY), parse_math=False)
    return figure


def _hatch(axes: "Axes", column: int, row: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - 0.5, row - 0.5)
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="///", edgecolor="0.6"))


def _two_axes(outcomes: Sequence[Outcome]) -> dict[str, list[str]] | None:
    """Return the two keys that have more than one value, with their values; None if not two."""
    values: dict[str, dict[str, None]] = {}
    for outcome in outcomes:
        for key, value in outcome.member.values.items():
            values.setdefault(key, {})[value] = None
    several = {key: list(found) for key, found in values.items() if len(found) > 1}
    return several if len(several) == 2 else None


Cells = dict[tuple[str, str], list[Outcome]]


def _measured(cells: Cells) -> tuple[str, dict[tuple[str, str], float], dict[tuple[str, str], str]]:
    """Return what the map shows: its title, a share for each cell, and the text written there."""
    rates = {}
    words = {}
    for place, members in cells.items():
        rate = success([outcome.accuracy for outcome in members], LEVELS[0])
        rates[place] = rate.rate
        words[place] = f"{100 * rate.rate:.0f} %\n{rate.count} of {rate.of}"
    if len(set(rates.values())) > 1:
        return f"members that reach {100 * LEVELS[0]:g} %", rates, words

    # All succeed alike, mostly all or none: a map in one colour. A median says more.
    is_solved = set(rates.values()) == {1.0}
    is_generated = any(outcome.tested for members in cells.values() for outcome in members)
    medians = {}
    for place, members in cells.items():
        if is_solved and is_generated:
            longest = max(max(outcome.tested) for outcome in members)
            medians[place] = median(accuracies_at(longest, members))
        else:
            medians[place] = median(outcome.accuracy for outcome in members)
        words[place] = f"{medians[place]:.3f}"

    where = "the training lengths" if is_generated else "all test sequences"
    where = "the longest length" if is_solved and is_generated else where
    share = (
        "all members" if is_solved else f"{100 * max(rates.values(), default=0):.0f} % of members"
    )
    title = f"median accuracy at {where}\n({share} reach {100 * LEVELS[0]:g} %)"
    return title, medians, words
