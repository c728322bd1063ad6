"""Training loss by step."""

import math
from collections.abc import Sequence
from contextlib import suppress
from statistics import median
from typing import TYPE_CHECKING

from rnncls.rundir.tables import read_metrics
from rnncls.sweep.outcomes import Outcome
from rnncls.sweep.plan import Sweep
from rnncls.sweep.plots.by_length import chances
from rnncls.sweep.plots.looks import (
    legend_below,
    meaning_of_lines,
    new_axes,
    parts_of,
    title_of,
)
from rnncls.system.pictures import default_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a loss in single precision can be. The ends of the axis would overflow with other numbers.
LEAST_LOSS = 1e-45
MOST_LOSS = 3.5e38

MARKERS_OF_LINE = 6

# An axis whose ends are no further apart is labelled with plain numbers.
NARROW = 4.0


@default_style()
def losses(sweep: Sweep, ended: Sequence[Outcome]) -> "Figure":
    """Draw training loss by step, on a logarithmic axis, and the loss of guessing: ln N.

    The median is that of the members still in training, while they are at least half of them.
    """
    figure, axes = new_axes(title_of(ended))
    for part in parts_of(ended):
        curves = [_loss_curve(sweep, outcome) for outcome in part.members]
        for curve in curves[: len(part.drawn)]:
            axes.plot(list(curve), list(curve.values()), **part.thin)

        medians = _medians(curves)
        if medians:
            # Few markers, and those of each setting at other places.
            every = max(1, len(medians) // MARKERS_OF_LINE)
            markevery = (part.setting % every, every)
            options = {**part.thick, "markevery": markevery, "label": part.label}
            axes.plot(list(medians), list(medians.values()), **options)

    if not axes.get_legend_handles_labels()[1]:
        axes.set_xticks([])
        axes.text(0.5, 0.6, "no finite loss was logged", ha="center", transform=axes.transAxes)

    # Guessing gives each of N classes the probability 1/N: a cross-entropy of ln N.
    for chance in chances(ended):
        # Of one class there is nothing to guess: a loss of 0, which a logarithmic axis has not.
        if chance < 1:
            label = f"guessing: ln {1 / chance:.0f}"
            axes.axhline(-math.log(chance), color="0.4", linestyle=":", linewidth=1.2, label=label)

    # The loss of smoothed labels is larger, and has a least one above 0.
    smoothings = {outcome.member.config.train.label_smoothing for outcome in ended}
    name = "training loss (nats)"
    if smoothings != {0}:
        name = "training loss (nats), of smoothed labels"
    if len(smoothings) > 1:
        name = "training loss (nats), not of the same labels"
    axes.set(yscale="log", xlabel="training step", ylabel=name)
    low, high = axes.get_ylim()
    if high < NARROW * low:
        # Within a power of ten, its multiples would be long labels: 1.04 x 10^0.
        axes.yaxis.set_major_formatter("{x:.3g}")
        axes.yaxis.set_minor_formatter("{x:.3g}")
    legend_below(figure, axes, meaning_of_lines(ended))
    return figure


def _medians(curves: Sequence[dict[int, float]]) -> dict[int, float]:
    """Return the median loss by step, where at least half of the members have one."""
    at_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, loss in curve.items():
            at_step.setdefault(step, []).append(loss)

    # Runs stop at different steps. Where most have stopped, the median would be that of the few
    # that find the task hard, and would seem to rise again.
    medians = {}
    for step, at_this_step in sorted(at_step.items()):
        if 2 * len(at_this_step) >= len(curves):
            medians[step] = median(at_this_step)
    return medians


def _loss_curve(sweep: Sweep, outcome: Outcome) -> dict[int, float]:
    """Return the training loss by step, where it was logged and finite."""
    curve = {}
    # Of a member whose metrics cannot be read, the summary names the damage.
    with suppress(OSError):
        for row in read_metrics(sweep.run_dir(outcome.member)):
            loss = row.get("train/loss")
            if loss is not None and (loss == 0 or LEAST_LOSS <= loss <= MOST_LOSS):
                curve[row["step"]] = loss
    return curve
