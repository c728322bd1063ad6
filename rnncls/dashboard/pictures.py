"""The pictures of a run, from its metrics and from what an evaluation recorded.

All have fixed margins: matplotlib's own ways of finding them draw everything twice.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rnncls.dashboard.axis_marks import POINTS
from rnncls.dashboard.draw_curves import (
    draw_accuracy,
    draw_loss,
    draw_norm,
    draw_rate,
    draw_reliability,
)
from rnncls.dashboard.draw_grids import draw_confusion, draw_lengths, draw_shades, label_room
from rnncls.dashboard.record import Confusion, Evaluation, Levels
from rnncls.rundir.tables import Row
from rnncls.system.pictures import default_style
from rnncls.system.shown import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Inches. A card of TensorBoard shows a picture of this size at half its size.
WIDTH = 5.5
HEIGHT = 3.7

CELL = 0.21  # the least height of a cell of a confusion, in inches
SIZE = 10.0  # of texts, in points
FEW_OF_LABEL = 10  # characters of a class in `results`


@default_style()
def results(rows: Sequence[Row], evaluation: Evaluation, levels: Levels) -> "Figure":
    """Draw a run in one picture: curves of training, accuracy by length, and the confusion."""
    figure = _figure(3 * 4.3, 2 * 3.4)
    lefts = (0.072, 0.403, 0.735)
    panels = [_axes(figure, left, bottom, 0.25, 0.35) for bottom in (0.555, 0.08) for left in lefts]
    loss, accuracy, norm, rate, lengths, classes = panels

    draw_loss(loss, rows, levels, SIZE)
    draw_accuracy(accuracy, rows, levels, SIZE)
    draw_norm(norm, rows, levels, SIZE)
    draw_rate(rate, rows, SIZE)

    lengths.set_position((lefts[1], 0.08, 0.215, 0.35))
    draw_lengths(lengths, _until(rows, evaluation.step), SIZE)
    draw_shades(lengths, "accuracy (%)", SIZE)

    # Labels may need more room than the numbers of the other panels.
    left, below = label_room(evaluation.confusion, 0.3 * 12.9 * POINTS, SIZE, FEW_OF_LABEL)
    left = max(0.0, left / POINTS / 12.9 - lefts[0])
    below = max(0.0, below / POINTS / 6.8 - 0.08)
    classes.set_position((lefts[2] + left, 0.08 + below, 0.25 - left, 0.35 - below))
    draw_confusion(classes, evaluation.confusion, SIZE, FEW_OF_LABEL)

    _title(figure, f"step {evaluation.step:,}: validation accuracy {evaluation.accuracy:.2%}", 15)
    return figure


@default_style()
def confusion(evaluation: Evaluation) -> "Figure":
    """Draw how often each class is taken for each; larger than a card for many classes."""
    found = evaluation.confusion
    left, below = label_room(found, WIDTH * POINTS, SIZE)
    above = 0.42
    height = max(HEIGHT, CELL * len(found.classes) + below / POINTS + above)
    width = WIDTH * height / HEIGHT
    left, below = label_room(found, width * POINTS, SIZE)

    figure = _figure(width, height)
    bottom = below / POINTS / height
    top = 1 - above / height
    right = 1 - 0.85 / width
    left = left / POINTS / width
    axes = _axes(figure, left, bottom, right - left, top - bottom)
    draw_confusion(axes, found, SIZE)
    draw_shades(axes, "share of the row (%)", SIZE)
    _title(figure, f"step {evaluation.step:,}: accuracy {evaluation.accuracy:.2%}{_of(found)}")
    return figure


def _of(found: Confusion) -> str:
    """Return, for a title, how many of the classes are shown, unless all are."""
    shown = len(found.classes)
    if shown >= found.num_classes:
        return ""
    return f", {shown} of {counted(found.num_classes, 'class')}"


@default_style()
def accuracy_by_length(rows: Sequence[Row], evaluation: Evaluation) -> "Figure":
    """Draw the accuracy at each length and at each evaluation up to this one."""
    figure = _figure(WIDTH, HEIGHT)
    axes = _axes(figure, 0.185, 0.135, 0.665, 0.755)
    draw_lengths(axes, _until(rows, evaluation.step), SIZE)
    draw_shades(axes, "accuracy (%)", SIZE)
    _title(figure, f"step {evaluation.step:,}: accuracy {evaluation.accuracy:.2%}, by length")
    return figure


@default_style()
def calibration(evaluation: Evaluation) -> "Figure":
    """Draw accuracy against confidence, and below it how often each confidence occurs."""
    figure = _figure(WIDTH, HEIGHT)
    draw_reliability(_axes(figure, 0.145, 0.135, 0.835, 0.69), evaluation.bins, SIZE)
    error = evaluation.calibration_error
    shown = f"{error:.3f}" if math.isfinite(error) else "not finite"
    _title(figure, f"step {evaluation.step:,}: expected calibration error {shown}")
    return figure


def _until(rows: Sequence[Row], step: int) -> list[Row]:
    return [row for row in rows if row["step"] <= step]


def _figure(width: float, height: float) -> "Figure":
    # Imported here because it takes long. A Figure without pyplot needs no display.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _axes(figure: "Figure", left: float, bottom: float, width: float, height: float) -> "Axes":
    """Return new axes at a place of the figure, in shares of its width and height."""
    return figure.add_axes((left, bottom, width, height))


def _title(figure: "Figure", text: str, size: float = 11.5) -> None:
    figure.text(
        0.5, 0.985, text, ha="center", va="top", fontsize=size, weight="bold", parse_math=False
    )
