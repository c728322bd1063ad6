"""What stands at the axes of a run's pictures: few ticks, chosen by hand, which are quick to draw.

Most of the time of a small picture would go into matplotlib's own, at two milliseconds each.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rnncls.system.outlines import outline, width_of, write_outlines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

POINTS = 72  # of an inch

# What a number in single precision can be. The ends of an axis would overflow with others.
LEAST = 1e-45
MOST = 3.5e38

MOST_TICKS = 5  # on an axis of numbers


def mark_x(
    axes: "Axes",
    places: Sequence[float],
    texts: Sequence[str],
    name: str,
    size: float,
    is_turned: bool = False,
) -> None:
    """Mark the x axis, whose limits are set, at these places, and write its name below.

    `is_turned`: the texts are read upwards. `size`: of all texts, in points.
    """
    # Ticks of matplotlib take longer than all else in a small picture.
    axes.xaxis.set_visible(False)
    marks = axes.get_xaxis_transform()
    across = 1.0 if is_turned else 0.5
    below = -0.5 if is_turned else -1.0
    outlines = [outline(text, across, y=below, is_turned=is_turned) for text in texts]
    at = [(place, 0.0) for place in places]
    _draw_marks(axes, at, "|", marks)
    write_outlines(axes, outlines, at, marks, size)

    _, height = size_in_points(axes)
    room = max(map(width_of, texts), default=0) + 0.7 if is_turned else 1.75
    axes.text(
        0.5,
        -room * size / height,
        name,
        ha="center",
        va="top",
        fontsize=size,
        transform=axes.transAxes,
        parse_math=False,
    )


def mark_y(
    axes: "Axes",
    places: Sequence[float],
    texts: Sequence[str],
    name: str,
    size: float,
    name_at: float = 0.5,
) -> None:
    """Mark the y axis, whose limits are set, at these places, and write its name beside it.

    `name_at`: at which share of the height. `size`: of all texts, in points.
    """
    axes.yaxis.set_visible(False)
    marks = axes.get_yaxis_transform()
    outlines = [outline(text, 1.0, x=-0.5) for text in texts]
    at = [(0.0, place) for place in places]
    _draw_marks(axes, at, "_", marks)
    write_outlines(axes, outlines, at, marks, size)

    width, _ = size_in_points(axes)
    room = max(map(width_of, texts), default=0) + 0.8
    axes.text(
        -room * size / width,
        name_at,
        name,
        ha="right",
        va="center",
        rotation=90,
        fontsize=size,
        transform=axes.transAxes,
        parse_math=False,
    )


def _draw_marks(
    axes: "Axes", places: Sequence[tuple[float, float]], marker: str, transform: "Transform"
) -> None:
    """Draw the short lines of an axis, half of which stand outside. Cells of grids need none."""
    if not axes.images:
        xs = [x for x, _ in places]
        ys = [y for _, y in places]
        axes.plot(xs, ys, "k", ls="", marker=marker, ms=6, transform=transform, clip_on=False)


def size_in_points(axes: "Axes") -> tuple[float, float]:
    """Return the width and the height of axes that have a fixed place in their figure."""
    figure: Any = axes.get_figure()
    width, height = figure.get_size_inches()
    place = axes.get_position()
    return place.width * width * POINTS, place.height * height * POINTS


def spaced(count: int, room: float, need: float) -> list[int]:
    """Return the indices of those of `count` things that fit: all, or every second ..., or one.

    `room` is what each has, `need` what it takes. The last one is always among them.
    """
    every = max(1, math.ceil(need / room))
    return list(range(count - 1, -1, -every))[::-1]


def spaced_inside(count: int, room: float, need: float) -> list[int]:
    """Return such indices, but of things that must not reach beyond the first and the last."""
    every = max(1, math.ceil(need / room))
    # The middle of the first cell is half a cell inside.
    first = max(0, math.ceil(need / room / 2 - 0.5))
    return list(range(first, count - first, every))


def round_ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten from `low` to `high`, at most `most`."""
    if not low < high:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    for factor in (1, 2, 5, 10, 20):
        step = factor * power
        first = math.ceil(low / step - 1e-9)
        last = math.floor(high / step + 1e-9)
        if last - first < most:
            break
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return ticks of a logarithmic axis: powers of ten, and between them where it is short."""
    first = math.ceil(math.log10(low) - 1e-9)
    last = math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        every = math.ceil((last - first + 1) / MOST_TICKS)
        return [10.0**power for power in range(first, last + 1, every)]

    ticks = []
    for power in range(first - 1, last + 1):
        ticks += [factor * 10.0**power for factor in (1, 2, 5)]
    inside = [tick for tick in ticks if low <= tick <= high]
    return inside if len(inside) >= 2 else round_ticks(low, high)


def set_log_range(axes: "Axes", values: Sequence[float], name: str, size: float) -> None:
    """Give axes a logarithmic y axis that shows all values above 0.

    Where there are none, it stays linear, from 0 to 1.
    """
    shown = [value for value in values if LEAST <= value <= MOST]
    if not shown:
        set_share_range(axes, name, size)
        return

    # A margin of a twentieth on both sides, and some room around a single value.
    low = math.log10(min(shown))
    high = math.log10(max(shown))
    margin = max(0.01, (high - low) / 20)
    low = max(1e-300, 10 ** (low - margin))
    high = 10 ** (high + margin)
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(low, high)
    ticks = log_ticks(low, high)
    mark_y(axes, ticks, [f"{tick:.4g}" for tick in ticks], name, size)


def set_share_range(axes: "Axes", name: str, size: float) -> None:
    """Give axes a y axis for shares, from 0 to 1, on whose ends lines are whole."""
    axes.set_ylim(-0.03, 1.03)
    mark_y(axes, [0, 0.5, 1], ["0", "0.5", "1"], name, size)


def set_steps(axes: "Axes", last: int, size: float) -> None:
    """Give axes an x axis for steps from 0 to the last one."""
    last = max(1, last)
    axes.set_xlim(-last / 40, last * 41 / 40)
    ticks = round_ticks(0, last)
    mark_x(axes, ticks, [number_text(tick) for tick in ticks], "step", size)


def number_text(value: float) -> str:
    """Return a step as it stands at an axis: 500, 20,000, 1.5M."""
    if value >= 1e12:
        return f"{value:.3g}"
    if value >= 1e6:
        return f"{value / 1e6:,.6g}M"
    return f"{value:,.6g}"
