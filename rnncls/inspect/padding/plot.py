"""The picture of padding: the rectangle, the packed columns, and what each way gets wrong."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rnncls.errors import on_one_line
from rnncls.inspect.padding.view import PaddingView, Way
from rnncls.system.pictures import default_style, write_png
from rnncls.system.shown import ends_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COLUMNS = 24  # time steps that are drawn; the middle of longer sequences is an ellipsis
SIDE_BY_SIDE = 10  # columns up to which rectangle and packed batch stand beside each other

# Of the width of the picture, in characters of a token: what the columns share.
CHARACTERS = 150

# One light colour for each sequence, so that it is found again among the packed rows.
COLOURS = (
    "#aec7e8",
    "#ffbb78",
    "#98df8a",
    "#ff9896",
    "#c5b0d5",
    "#e7cb94",
    "#f7b6d2",
    "#9edae5",
)
WRONG = "#d62728"
RIGHT = "#2ca02c"

# The bars of the ways that are right end where rounding does, or at this least difference.
LEAST_DIFFERENCE = 1e-8


@default_style()
def draw_padding(view: PaddingView, path: Path) -> None:
    """Draw one batch as a rectangle and packed, and the errors of each way, into a PNG.

    Raises: WriteError.
    """
    # Imported here because it takes long. A Figure without pyplot needs no display.
    from matplotlib.figure import Figure

    columns = columns_shown(len(view.batch_sizes))
    if len(columns) <= SIDE_BY_SIDE:
        figure = Figure(figsize=(12, 7.5), layout="constrained")
        (rectangle, packed), (differences, accuracies) = figure.subplots(
            2, 2, height_ratios=[1.3, 1]
        )
        most = CHARACTERS // (2 * len(columns))
    else:
        figure = Figure(figsize=(14, 10.5), layout="constrained")
        places = figure.add_gridspec(3, 2, height_ratios=[1, 1.1, 0.8])
        rectangle = figure.add_subplot(places[0, :])
        packed = figure.add_subplot(places[1, :])
        differences = figure.add_subplot(places[2, 0])
        accuracies = figure.add_subplot(places[2, 1])
        most = CHARACTERS // len(columns)

    _draw_rectangle(rectangle, view, columns, most)
    _draw_packed(packed, view, columns, most)
    _draw_differences(differences, view)
    _draw_accuracies(accuracies, view)
    write_png(figure, path)


def columns_shown(num_steps: int) -> list[int | None]:
    """Return the time steps that are drawn, with None for those that an ellipsis stands for.

    >>> columns_shown(3)
    [0, 1, 2]
    """
    if num_steps <= MOST_COLUMNS:
        return list(range(num_steps))
    # The ellipsis is a column as well.
    first = MOST_COLUMNS // 2
    return ends_of(num_steps, first, MOST_COLUMNS - first - 1)


def _draw_rectangle(axes: "Axes", view: PaddingView, columns: list[int | None], most: int) -> None:
    """Draw a row for each sequence, as they were given, with its padding hatched."""
    for row, tokens in enumerate(view.tokens):
        for place, t in enumerate(columns):
            if t is None:
                continue
            if t < len(tokens):
                _draw_cell(axes, place, row, COLOURS[row], _cut(tokens[t], most))
            else:
                _draw_padding(axes, place, row)

    _set_up(axes, view, columns)
    numbers = range(len(view.tokens))
    axes.set_yticks(numbers, list(map(str, numbers)))
    cells = view.ways[0].cells
    share = view.ways[0].share_of_padding
    axes.set(
        ylabel="sequence, as given",
        title=f"padded: {cells:,} cells, {share:.0%} padding (hatched)",
    )


def _draw_packed(axes: "Axes", view: PaddingView, columns: list[int | None], most: int) -> None:
    """Draw the columns that are computed one after another, longest sequence first."""
    for place, t in enumerate(columns):
        if t is None:
            continue
        size = view.batch_sizes[t]
        for row, number in enumerate(view.order[:size]):
            _draw_cell(axes, place, row, COLOURS[number], _cut(view.tokens[number][t], most))
        axes.text(place, -0.75, str(size), ha="center", va="center", weight="bold", fontsize=9)

    _set_up(axes, view, columns)
    axes.set_ylim(len(view.order) - 0.4, -1.2)
    axes.text(-0.65, -0.75, "batch_sizes", ha="right", va="center", weight="bold", fontsize=9)
    axes.set_yticks(range(len(view.order)), list(map(str, view.order)))
    axes.set(
        ylabel="sequence, longest first",
        title=f"packed: {view.ways[-1].cells:,} cells, no padding, column by column",
    )


def _set_up(axes: "Axes", view: PaddingView, columns: list[int | None]) -> None:
    """Set the axes of cells: time steps to the right, sequences downwards."""
    middle = (len(view.tokens) - 1) / 2
    for place, t in enumerate(columns):
        if t is None:
            axes.text(place, middle, "...", ha="center", va="center", fontsize=14)

    # Steps are counted from 1, as t is in the formulas.
    names = ["..." if t is None else str(t + 1) for t in columns]
    axes.set_xticks(range(len(columns)), names)
    axes.set_xlim(-0.6, len(columns) - 0.4)
    axes.set_ylim(len(view.tokens) - 0.4, -0.6)
    axes.set_xlabel("time step t (tokens)")
    axes.yaxis.labelpad = 8
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_cell(axes: "Axes", column: int, row: int, colour: str, text: str) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - 0.47, row - 0.43)
    axes.add_patch(Rectangle(corner, 0.94, 0.86, facecolor=colour, edgecolor="none"))
    axes.text(column, row, text, ha="center", va="center", fontsize=8, parse_math=False)


def _draw_padding(axes: "Axes", column: int, row: int) -> None:
    from matplotlib.patches import Rectangle

    corner = (column - 0.47, row - 0.43)
    patch = Rectangle(corner, 0.94, 0.86, facecolor="white", edgecolor="#999999", hatch="////")
    patch.set_linewidth(0.5)
    axes.add_patch(patch)


def _cut(token: str, most: int) -> str:
    """Return a token that fits into a cell, on one line."""
    text = on_one_line(token)
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"


def _draw_differences(axes: "Axes", view: PaddingView) -> None:
    """Draw the largest difference of each way, on a scale of powers of ten."""
    values = [way.largest_difference for way in view.ways]
    texts = [f"{value:.2g}" for value in values]
    # Nothing is drawn for 0, nor for what is not a number.
    drawn = [value if value > LEAST_DIFFERENCE else LEAST_DIFFERENCE for value in values]
    drawn = [value if math.isfinite(value) else LEAST_DIFFERENCE for value in drawn]

    axes.set_xscale("log")
    # Room for the number at the end of the longest bar.
    axes.set_xlim(LEAST_DIFFERENCE, 100 * max(1.0, *drawn))
    _draw_bars(axes, view.ways, drawn, texts)
    axes.set(
        xlabel="largest difference to the sequence alone (logits)",
        title="how far logits are off (red: reads the padding)",
    )


def _draw_accuracies(axes: "Axes", view: PaddingView) -> None:
    values = [way.accuracy for way in view.ways]
    texts = [f"{value:.3f}" for value in values]
    drawn = [value if math.isfinite(value) else 0.0 for value in values]

    axes.set_xlim(0, 1.15)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    _draw_bars(axes, view.ways, drawn, texts)
    axes.set(
        xlabel=f"accuracy (share of {view.num_scored:,} sequences)",
        title="and how often the label is right",
    )


def _draw_bars(axes: "Axes", ways: list[Way], lengths: list[float], texts: list[str]) -> None:
    """Draw a bar for each way, from the top down, with a number at its end."""
    places = range(len(ways))
    colours = [RIGHT if way.is_right else WRONG for way in ways]
    axes.barh(places, lengths, color=colours, height=0.7)
    for place, length, text in zip(places, lengths, texts, strict=True):
        axes.annotate(text, (length, place), xytext=(4, 0), textcoords="offset points", va="center")

    names = [way.name if way.is_right else f"naive, {way.name}" for way in ways]
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.set_ylabel("way")
