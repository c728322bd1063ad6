"""Grids of a run's pictures: which classes are taken for which, and accuracy by length and step."""

import itertools
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rnncls.dashboard.axis_marks import (
    mark_x,
    mark_y,
    number_text,
    size_in_points,
    spaced,
    spaced_inside,
)
from rnncls.dashboard.record import Confusion
from rnncls.rundir.tables import Row
from rnncls.system.outlines import outline, width_of, write_numbers, write_outlines
from rnncls.system.pictures import in_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_OF_LABEL = 16  # characters of a class at an axis
SHADES = "Blues"  # from light to dark, so that it needs no colour
NUM_SHADES = 32  # beside a grid, to read them off
LIGHT_ON = 0.55  # numbers are white on shades from here on

# Font sizes of the numbers in cells, in points. Smaller ones could not be read.
LARGEST = 9.0
SMALLEST = 4.5

# The tag of the accuracy at one length, "5", or at those of a bucket, "3-4".
_BY_LENGTH = re.compile(r"val/accuracy_by_length/((\d+)(?:-\d+)?)")


def lengths_and_steps(rows: Sequence[Row]) -> tuple[list[str], list[int], "np.ndarray"]:
    """Return lengths, steps, and the accuracies (lengths, steps); NaN where there is none.

    The lengths are in the order of their numbers.
    """
    names: dict[str, int] = {}
    cells: list[dict[str, float]] = []
    steps: list[int] = []
    for row in rows:
        found = {}
        for tag, value in row.items():
            match = _BY_LENGTH.fullmatch(tag)
            if match is not None:
                names[match[1]] = int(match[2])
                # Another program may have written something else than a share.
                is_share = value is not None and 0 <= value <= 1
                found[match[1]] = value if is_share else math.nan
        if found:
            steps.append(row["step"])
            cells.append(found)

    lengths = sorted(names, key=lambda name: (names[name], name))
    accuracies = np.full((len(lengths), len(steps)), np.nan)
    for column, found in enumerate(cells):
        for number, length in enumerate(lengths):
            accuracies[number, column] = found.get(length, math.nan)
    return lengths, steps, accuracies


def draw_lengths(axes: "Axes", rows: Sequence[Row], size: float) -> None:
    """Draw the accuracy at each length (upwards) and step (to the right): shades and numbers.

    Hatched: no value. `size`: of the texts, in points.
    """
    lengths, steps, accuracies = lengths_and_steps(rows)
    if not steps:
        say_nothing_there(axes, "no accuracy by length yet", size)
        return

    _draw_shares(axes, accuracies, upwards=True)
    if np.isnan(accuracies).any():
        # Cells without a value are transparent.
        axes.patch.set(hatch="////", edgecolor="0.6", linewidth=0)

    width, height = size_in_points(axes)
    texts = [number_text(step) for step in steps]
    columns = spaced(len(steps), width / len(steps), (2 + max(map(width_of, texts))) * size)
    mark_x(axes, columns, [texts[column] for column in columns], "step", size)
    heights = spaced(len(lengths), height / len(lengths), 1.2 * size)
    names = [in_picture(lengths[row], 12) for row in heights]
    mark_y(axes, heights, names, "length (tokens)", size)

    # Where not every cell has room for its number, every second or third ... column has them.
    per_row = height / len(lengths)
    number_size = min(LARGEST, 0.8 * per_row)
    if number_size < SMALLEST:
        return
    shown = spaced_inside(len(steps), width / len(steps), 2.4 * number_size)
    places = [
        (column, row)
        for row in range(len(lengths))
        for column in shown
        if math.isfinite(accuracies[row, column])
    ]
    _write(axes, places, [percent(accuracies[row, column]) for column, row in places], number_size)


def draw_confusion(
    axes: "Axes", confusion: Confusion, size: float, most: int = MOST_OF_LABEL
) -> None:
    """Draw how often each class is taken for each: shares of a row as shades, and the counts.

    `size`: of the texts, in points. `most`: characters of a label. Counts that would be too small
    to read are left out.
    """
    number = len(confusion.classes)
    if not number:
        say_nothing_there(axes, "no classes yet", size)
        return

    counts = np.array(confusion.counts, dtype=np.int64)
    _draw_shares(axes, counts / counts.sum(1, keepdims=True).clip(min=1), upwards=False)

    width, height = size_in_points(axes)
    names = [in_picture(label, most) for label in confusion.classes]
    rows = spaced(number, height / number, 1.15 * size)
    mark_y(axes, rows, [names[row] for row in rows], "true class", size)
    is_upright = not _fit_side_by_side(names, width, size)
    columns = spaced(number, width / number, (1.15 if is_upright else 0) * size)
    below = [names[column] for column in columns]
    mark_x(axes, columns, below, "predicted class", size, is_upright)

    texts = {(column, row): count_text(int(n)) for (row, column), n in np.ndenumerate(counts) if n}
    if texts:
        widest = max(map(width_of, texts.values()))
        number_size = min(LARGEST, 0.7 * height / number, width / number / (widest + 0.4))
        if number_size >= SMALLEST:
            _write(axes, list(texts), list(texts.values()), number_size)


def _fit_side_by_side(names: Sequence[str], width: float, size: float) -> bool:
    """Return whether the names of columns fit below `width` points without being turned."""
    return (max(map(width_of, names)) + 0.6) * size <= width / len(names)


def label_room(
    confusion: Confusion, width: float, size: float, most: int = MOST_OF_LABEL
) -> tuple[float, float]:
    """Return the room, in points, for the labels at the left of a confusion and below it.

    `width`: of the whole picture.
    """
    names = [in_picture(label, most) for label in confusion.classes]
    longest = max(map(width_of, names), default=1) * size
    # The axis has its own name, and ticks with a gap.
    left = longest + 2.2 * size + 8
    is_upright = bool(names) and not _fit_side_by_side(names, width - left - 6 * size, size)
    return left, (longest if is_upright else 1.2 * size) + 1.8 * size + 8


def draw_shades(axes: "Axes", label: str, size: float) -> None:
    """Draw, at the right of a grid, which shade is which share."""
    from matplotlib.collections import PolyCollection

    # In points from the lower right corner of the grid, and in shares of its size.
    width, _ = size_in_points(axes)
    left = 1 + 7 / width
    right = 1 + 15 / width
    edges = np.linspace(0, 1, NUM_SHADES + 1)
    corners = [
        [(left, low), (right, low), (right, high), (left, high)]
        for low, high in itertools.pairwise(edges)
    ]
    shades = PolyCollection(
        corners,
        array=np.linspace(0, 1, NUM_SHADES),
        cmap=SHADES,
        edgecolors="face",
        linewidths=0.3,
        transform=axes.transAxes,
        clip_on=False,
    )
    axes.add_collection(shades, autolim=False)

    outlines = [outline(text, 0.0, x=0.3) for text in ("0", "50", "100")]
    at = [(right, height) for height in (0.02, 0.5, 0.98)]
    write_outlines(axes, outlines, at, axes.transAxes, size)
    axes.text(
        right + 2.4 * size / width,
        0.5,
        label,
        ha="left",
        va="center",
        rotation=90,
        fontsize=size,
        transform=axes.transAxes,
    )


def say_nothing_there(axes: "Axes", text: str, size: float) -> None:
    """Say in empty axes why they are empty."""
    axes.xaxis.set_visible(False)
    axes.yaxis.set_visible(False)
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=size, transform=axes.transAxes)


def percent(share: float) -> str:
    """Return a share in whole per cent, rounded down: only what is perfect is 100."""
    return f"{math.floor(round(100 * share, 6))}"


def count_text(count: int) -> str:
    """Return a count in at most four characters: 9999, 12k, 1.2M, 120M."""
    if count < 10_000:
        return f"{count}"
    if count < 999_500:
        return f"{count / 1000:.0f}k"
    millions = count / 1e6
    return f"{millions:.1f}M" if millions < 9.95 else f"{millions:.0f}M"


def _draw_shares(axes: "Axes", shares: "np.ndarray", upwards: bool) -> None:
    """Draw shares from 0 to 1 as shades, the first row at the bottom or at the top."""
    axes.imshow(
        shares,
        cmap=SHADES,
        vmin=0,
        vmax=1,
        aspect="auto",
        origin="lower" if upwards else "upper",
        interpolation="nearest",
    )


def _write(
    axes: "Axes", places: Sequence[tuple[int, int]], texts: Sequence[str], size: float
) -> None:
    """Write the numbers of cells (column, row) so that they stand out from their shades."""
    shares = np.asarray(axes.images[0].get_array())
    colours = ["white" if shares[row, column] > LIGHT_ON else "black" for column, row in places]
    write_numbers(axes, places, texts, colours, size)
