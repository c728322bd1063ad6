"""Curves of a run's pictures: values by step, and how far confidence can be trusted."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncls.dashboard.axis_marks import (
    LEAST,
    MOST,
    mark_x,
    mark_y,
    round_ticks,
    set_log_range,
    set_share_range,
    set_steps,
)
from rnncls.dashboard.record import Bin, Levels
from rnncls.rundir.tables import Row
from rnncls.system.pictures import add_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What is drawn in which way, so that it needs no colour: training, validation, and levels.
TRAIN: dict[str, Any] = {"color": "#1f77b4", "linestyle": "-", "linewidth": 1.6}
VAL: dict[str, Any] = {
    "color": "#ff7f0e",
    "linestyle": "--",
    "linewidth": 1.6,
    "marker": "o",
    "ms": 4,
}
LEVEL: dict[str, Any] = {"color": "0.3", "linestyle": ":", "linewidth": 1.6}
LEAST_LEVEL: dict[str, Any] = {"color": "#1f77b4", "linestyle": (0, (1, 3)), "linewidth": 1.6}

MOST_MARKERS = 15  # on a curve
MOST_IN_LEGEND = 4

CONFIDENCES = 20  # bars of the histogram of confidence

# Where that histogram is, below the accuracies from 0 to 1.
HISTOGRAM_FROM = -0.5
HISTOGRAM_HEIGHT = 0.36


def series(rows: Sequence[Row], tag: str) -> tuple[list[int], list[float]]:
    """Return the steps of the rows that have a tag, and its values; NaN where not finite.

    What no number in single precision can be counts as not finite, too.
    """
    steps = []
    values = []
    for row in rows:
        if tag in row:
            value = row[tag]
            steps.append(row["step"])
            values.append(math.nan if value is None or abs(value) > MOST else float(value))
    return steps, values


def draw_loss(axes: "Axes", rows: Sequence[Row], levels: Levels, size: float) -> None:
    """Draw the losses of training and validation on a logarithmic axis, beside that of guessing.

    Where the labels of training are smoothed, the two are not of the same kind: the legend says so,
    and a line shows what that of training cannot be below.
    """
    of_training = "train, smoothed" if levels.is_smoothed else "train"
    shown = _draw_both(axes, rows, "loss", of_training)
    guess = levels.guessing_loss
    if guess is not None and LEAST <= guess <= MOST:
        is_even = math.isclose(guess, math.log(levels.num_classes), rel_tol=1e-9)
        name = f"guessing: ln {levels.num_classes:,}" if is_even else "guessing"
        axes.axhline(guess, label=name, **LEVEL)
        shown.append(guess)
    least = levels.least_loss
    if least is not None and LEAST <= least <= MOST:
        axes.axhline(least, label=f"least: {least:.3g}", **LEAST_LEVEL)
        shown.append(least)

    _mark_not_finite(axes, rows, ("train/loss", "val/loss"))
    set_log_range(axes, shown, "loss (nats)", size)
    _finish(axes, rows, size, legend_rows=2 if levels.is_smoothed else 1)


def draw_accuracy(axes: "Axes", rows: Sequence[Row], levels: Levels, size: float) -> None:
    """Draw the accuracies of training and validation, beside that of the most frequent class."""
    _draw_both(axes, rows, "accuracy")
    # With classes of equal size, both names are right.
    is_chance = math.isclose(levels.majority, 1 / levels.num_classes)
    name = "chance" if is_chance else "majority class"
    axes.axhline(levels.majority, label=f"{name} {levels.majority:.3g}", **LEVEL)
    set_share_range(axes, "accuracy (0 to 1)", size)
    _finish(axes, rows, size)


def draw_norm(axes: "Axes", rows: Sequence[Row], levels: Levels, size: float) -> None:
    """Draw the norm of the gradient on a logarithmic axis, beside what it is clipped to."""
    steps, values = series(rows, "train/grad_norm")
    _draw(axes, steps, values, "train", TRAIN)
    shown = list(values)
    limit = levels.max_grad_norm
    if limit is not None and LEAST <= limit <= MOST:
        axes.axhline(limit, label=f"clipped to {limit:g}", **LEVEL)
        shown.append(limit)

    _mark_not_finite(axes, rows, ("train/grad_norm",))
    set_log_range(axes, shown, "gradient norm", size)
    _finish(axes, rows, size)


def draw_rate(axes: "Axes", rows: Sequence[Row], size: float) -> None:
    """Draw the learning rate."""
    steps, values = series(rows, "train/lr")
    _draw(axes, steps, values, "train", TRAIN)
    highest = max((value for value in values if value > 0), default=1.0)
    axes.set_ylim(-0.03 * highest, 1.06 * highest)
    ticks = round_ticks(0, highest)
    mark_y(axes, ticks, [f"{tick:.4g}" for tick in ticks], "learning rate", size)
    set_steps(axes, _last_step(rows), size)


def _draw_both(
    axes: "Axes", rows: Sequence[Row], name: str, of_training: str = "train"
) -> list[float]:
    """Draw a value of training and of validation, and return all that is drawn.

    `of_training`: what the legend calls the former.
    """
    shown = []
    for part, label, look in (("train", of_training, TRAIN), ("val", "val", VAL)):
        steps, values = series(rows, f"{part}/{name}")
        _draw(axes, steps, values, label, look)
        shown += values
    return shown


def _draw(
    axes: "Axes", steps: list[int], values: list[float], label: str, look: dict[str, Any]
) -> None:
    """Draw a curve, with a marker also where it would be a single point, which has no line."""
    every = max(1, math.ceil(len(steps) / MOST_MARKERS))
    marker = {} if len(steps) > 1 else {"marker": "s"}
    axes.plot(steps, values, label=label, markevery=every, **look | marker)


def _mark_not_finite(axes: "Axes", rows: Sequence[Row], tags: Sequence[str]) -> None:
    """Mark, at the upper end of the axes, the steps at which a value is not finite."""
    bad = []
    for tag in tags:
        steps, values = series(rows, tag)
        bad += [step for step, value in zip(steps, values, strict=True) if math.isnan(value)]
    if bad:
        # As the fifth in two rows it stands in the lower one: beside the upper one is the title.
        if len(axes.get_legend_handles_labels()[1]) == MOST_IN_LEGEND:
            axes.plot([], [], alpha=0, label=" ")
        places = sorted(set(bad))
        # The height is a share of the axes, whatever the values are.
        axes.plot(
            places,
            [0.95] * len(places),
            "kx",
            transform=axes.get_xaxis_transform(),
            label="not finite",
        )


def _finish(axes: "Axes", rows: Sequence[Row], size: float, legend_rows: int = 1) -> None:
    """Add steps, and the legend above the axes, where it covers nothing.

    In a single row it names at most MOST_IN_LEGEND lines; in two there is room for two more.
    """
    set_steps(axes, _last_step(rows), size)
    most = MOST_IN_LEGEND if legend_rows == 1 else MOST_IN_LEGEND + 2
    num_labels = min(most, len(axes.get_legend_handles_labels()[1]))
    add_legend(
        axes,
        most,
        loc="lower left",
        bbox_to_anchor=(-0.02, 0.98),
        ncols=most if legend_rows == 1 else -(-num_labels // legend_rows),
        labelspacing=0.15,
        fontsize=size,
        frameon=False,
        handlelength=1.8,
        handletextpad=0.4,
        columnspacing=0.9,
        borderpad=0.2,
    )


def _last_step(rows: Sequence[Row]) -> int:
    return max((row["step"] for row in rows), default=1)


def draw_reliability(axes: "Axes", bins: Sequence[Bin], size: float) -> None:
    """Draw accuracy against confidence, bin by bin, with the gap to what is calibrated.

    Below it is the histogram of confidence, its highest bar as high as its part of the axes.
    """
    shown = [part for part in bins if math.isfinite(part.confidence)]
    confidences = [part.confidence for part in shown]
    accuracies = [part.accuracy for part in shown]
    axes.plot([0, 1], [0, 1], label="perfect", **LEVEL)
    axes.vlines(confidences, confidences, accuracies, colors=VAL["color"], lw=3, label="gap")
    axes.plot(confidences, accuracies, "o-", color=TRAIN["color"], lw=1, ms=5, label="predictions")

    shares = confidence_histogram(bins)
    highest = float(shares.max())
    axes.axhline(-0.06, color="black", linewidth=0.8)
    axes.stairs(
        HISTOGRAM_FROM + HISTOGRAM_HEIGHT * shares / max(highest, LEAST),
        np.linspace(0, 1, CONFIDENCES + 1),
        baseline=HISTOGRAM_FROM,
        fill=True,
        facecolor="0.75",
        edgecolor="0.3",
        linewidth=0.8,
    )

    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(HISTOGRAM_FROM, 1.05)
    mark_y(axes, [0, 0.5, 1], ["0", "0.5", "1"], "accuracy", size, name_at=0.66)
    heights = [HISTOGRAM_FROM + 0.02, HISTOGRAM_FROM + HISTOGRAM_HEIGHT]
    mark_y(axes, heights, ["0%", f"{highest:.0%}"], "share", size, name_at=0.14)
    ticks = ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    name = "confidence: probability of the predicted class"
    mark_x(axes, [float(tick) for tick in ticks], ticks, name, size)
    add_legend(
        axes,
        MOST_IN_LEGEND,
        loc="lower right",
        bbox_to_anchor=(1.02, 0.98),
        ncols=3,
        fontsize=size,
        frameon=False,
        borderpad=0.2,
    )


def confidence_histogram(bins: Sequence[Bin]) -> "np.ndarray":
    """Return the share of the predictions in each of CONFIDENCES equal parts of 0 to 1.

    A bin counts as a whole where its mean confidence is.
    """
    sums: np.ndarray = np.zeros(CONFIDENCES)
    for part in bins:
        if math.isfinite(part.confidence):
            sums[min(CONFIDENCES - 1, int(part.confidence * CONFIDENCES))] += part.count
    sums /= max(1.0, float(sums.sum()))
    return sums
