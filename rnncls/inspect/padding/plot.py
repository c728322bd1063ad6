"""The picture of padding: the rectangle, the packed columns, and what each way gets wrong."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from rnncls.data.batch_plots import Drawn, columns_shown, draw_packed, draw_rectangle
from rnncls.inspect.padding.view import PaddingView, Way
from rnncls.system.pictures import default_style, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIDE_BY_SIDE = 10  # columns up to which rectangle and packed batch stand beside each other

# Of the width of the picture, in characters of a token: what the columns share.
CHARACTERS = 150

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

    names = list(map(str, range(len(view.tokens))))
    lengths = list(map(len, view.tokens))
    drawn = Drawn(names, lengths, view.order, view.tokens, columns, most)
    _draw_both(rectangle, packed, view, drawn)
    _draw_differences(differences, view)
    _draw_accuracies(accuracies, view)
    write_png(figure, path)


def _draw_both(rectangle: "Axes", packed: "Axes", view: PaddingView, drawn: Drawn) -> None:
    """Draw the batch as a rectangle and packed, with the cells that each of them has."""
    draw_rectangle(rectangle, drawn)
    cells = view.ways[0].cells
    share = view.ways[0].share_of_padding
    rectangle.set_title(f"padded: {cells:,} cells, {share:.0%} padding (hatched)")

    draw_packed(packed, drawn)
    cells = view.ways[-1].cells
    packed.set_title(f"packed: {cells:,} cells, no padding, column by column")


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
