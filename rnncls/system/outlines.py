"""Many short texts of a picture as one thing to draw: numbers in cells, and those at axes.

A text of matplotlib takes about a millisecond, and a tick two, so that the hundred numbers of one
confusion would take longer than all the rest. As outlines, a hundred of them take two.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncls.system.pictures import any_script

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.path import Path

UNIT = 100.0  # the font size of the outlines, in points; they are scaled to the size that is drawn
MIDDLE = 0.365  # of a digit, above the line it stands on, in multiples of the font size


def write_numbers(
    axes: "Axes",
    places: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colours: Sequence[str],
    size: float,
) -> None:
    """Write short texts, such as numbers, centred at places (x, y); `size` in points."""
    write_outlines(axes, [outline(text) for text in texts], places, axes.transData, size, colours)


def write_outlines(
    axes: "Axes",
    outlines: "Sequence[Path]",
    places: Sequence[tuple[float, float]],
    transform: Any,
    size: float,
    colours: Sequence[str] = ("black",),
) -> None:
    """Draw outlines at places (x, y) of a coordinate system, in a font size in points.

    They may stand beside the axes. Where there are fewer colours than outlines, they come again.
    """
    from matplotlib.collections import PathCollection
    from matplotlib.transforms import Affine2D

    if not outlines:
        return
    figure: Any = axes.get_figure()
    shapes = PathCollection(
        outlines,
        offsets=places,
        offset_transform=transform,
        facecolors=colours,
        edgecolors="none",
        clip_on=False,
    )

    # A figure that is rendered with another resolution changes this scale with its own.
    shapes.set_transform(Affine2D().scale(size / UNIT / 72) + figure.dpi_scale_trans)
    axes.add_collection(shapes, autolim=False)


def outline(
    text: str, across: float = 0.5, x: float = 0, y: float = 0, is_turned: bool = False
) -> "Path":
    """Return a text as its outline, for a font size of UNIT, with the middle of its height at 0.

    `across`: which part of its width is at 0: 0 its beginning, 1 its end. `x`, `y`: then moved by
    so many font sizes. `is_turned`: read upwards.
    """
    from matplotlib.path import Path

    # Without any outline there is nothing to put together.
    if not text.strip():
        return Path(np.zeros((1, 2)))

    glyphs = []
    begin = 0.0
    for character in text:
        glyph, width = _glyph(character)
        glyphs.append(Path(glyph.vertices + np.array([begin, 0]), glyph.codes))
        begin += width

    whole = Path.make_compound_path(*glyphs)
    vertices = np.asarray(whole.vertices) - np.array([across * begin, MIDDLE * UNIT])
    if is_turned:
        vertices = vertices[:, ::-1] * np.array([-1, 1])
    return Path(vertices + np.array([x * UNIT, y * UNIT]), whole.codes)


def width_of(text: str) -> float:
    """Return how wide the outline of a text is, in multiples of its font size."""
    return sum(_glyph(character)[1] for character in text) / UNIT


@lru_cache(maxsize=1000)
def _glyph(character: str) -> "tuple[Any, float]":
    """Return the outline of a character and how far behind it the next one begins."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.path import Path
    from matplotlib.textpath import TextPath, text_to_path

    # The font that comes with matplotlib, whatever the user's settings say. A character that
    # it lacks is a box; a dollar sign alone begins no formula.
    font = FontProperties(family="DejaVu Sans", size=UNIT)
    with any_script():
        width, _, _ = text_to_path.get_text_width_height_descent(character, font, False)
        # matplotlib cannot make a path of nothing.
        if character.isspace():
            return Path(np.zeros((0, 2))), float(width)
        return TextPath((0, 0), character, prop=font), float(width)
