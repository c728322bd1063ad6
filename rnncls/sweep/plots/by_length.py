"""Accuracy and error rate by length."""

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from rnncls.sweep.outcomes import Outcome, accuracies_at
from rnncls.sweep.plots.looks import (
    legend_below,
    meaning_of_lines,
    new_axes,
    parts_of,
    title_of,
)
from rnncls.sweep.results import LengthResult
from rnncls.system.pictures import default_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Where all accuracies are above this, the axis does not begin at 0.
MOSTLY_RIGHT = 0.5

# The least that an axis of accuracies shows, so that rounding does not look like a difference.
LEAST_SPAN = 0.002

# The floor of error rates, if there is no error at all.
DEFAULT_FLOOR = 1e-4


@default_style()
def accuracy_by_length(ended: Sequence[Outcome]) -> "Figure":
    """Draw accuracy by length, on a logarithmic axis, with the training lengths shaded.

    A member that diverged is drawn at 0. Where all is nearly right, the axis begins above 0.
    """
    lengths = _lengths(ended)
    figure, axes = new_axes(title_of(ended))
    _shade_trained(axes, ended)

    drawn: list[float] = []
    for part in parts_of(ended):
        for outcome in part.drawn:
            points = _accuracies(outcome, lengths)
            axes.plot(list(points), list(points.values()), **part.thin)
            drawn += points.values()

        medians = _medians(part.members, lengths)
        axes.plot(list(medians), list(medians.values()), label=part.label, **part.thick)
        drawn += medians.values()

    start = _start_of_axis(min(drawn, default=0.0))
    words = "accuracy" if start <= 0 else f"accuracy (axis begins at {start:g})"
    top = 1 + 0.03 * (1 - start)
    axes.set(xlabel="length (tokens)", ylabel=words, ylim=(start, top))

    # A line that the axis does not show would only be a riddle in the legend.
    for chance in chances(ended):
        if chance >= start:
            label = f"chance {chance:.3g}"
            axes.axhline(chance, color="0.4", linestyle=":", linewidth=1.2, label=label)

    _mark_lengths(axes, lengths)
    legend_below(figure, axes, meaning_of_lines(ended))
    return figure


@default_style()
def error_rate_by_length(ended: Sequence[Outcome]) -> "Figure":
    """Draw the error rate by length on two logarithmic axes, with the training lengths shaded.

    A logarithmic axis has no 0: members without an error are drawn on a floor, which is named.
    """
    lengths = _lengths(ended)
    figure, axes = new_axes(title_of(ended))
    _shade_trained(axes, ended)

    lines = []
    errors = []
    for part in parts_of(ended):
        for outcome in part.drawn:
            lines.append((_accuracies(outcome, lengths), part.thin))
        medians = _medians(part.members, lengths)
        lines.append((medians, {**part.thick, "label": part.label}))
    for points, _ in lines:
        errors += [1 - accuracy for accuracy in points.values()]

    floor = _floor(errors)
    for points, options in lines:
        rates = [max(floor, 1 - accuracy) for accuracy in points.values()]
        axes.plot(list(points), rates, clip_on=False, **options)

    # The margins are as wide as they look, however many powers of ten there are.
    margin = (1 / floor) ** 0.05
    axes.set(yscale="log", xlabel="length (tokens)", ylabel="error rate")
    axes.set_ylim(floor / margin, margin)
    ticks = _ticks(floor)
    names = [f"{tick:g}" for tick in ticks]
    if min(errors, default=0.0) <= 0:
        axes.axhspan(floor / margin, floor * margin, color="0.8", zorder=0)
        ticks = [floor, *(tick for tick in ticks if tick > floor * margin)]
        names = ["no error", *(f"{tick:g}" for tick in ticks[1:])]
    axes.set_yticks(ticks, names)
    axes.set_yticks([], minor=True)
    for chance in chances(ended):
        if chance < 1:
            label = f"guessing: {1 - chance:.3g}"
            axes.axhline(1 - chance, color="0.4", linestyle=":", linewidth=1.2, label=label)

    _mark_lengths(axes, lengths)
    legend_below(figure, axes, meaning_of_lines(ended))
    return figure


def chances(ended: Sequence[Outcome]) -> list[float]:
    """Return the accuracy of guessing, of which there are several if members differ in classes."""
    return sorted({outcome.evaluation.chance for outcome in ended if outcome.evaluation})


def _results(ended: Sequence[Outcome]) -> list[LengthResult]:
    results = []
    for outcome in ended:
        if outcome.evaluation is not None:
            results += outcome.evaluation.by_length
    return results


def _lengths(ended: Sequence[Outcome]) -> list[int]:
    """Return all lengths tested; members of a grid may have been tested at different ones."""
    return sorted({result.length for result in _results(ended)})


def _accuracies(outcome: Outcome, lengths: Sequence[int]) -> dict[int, float]:
    """Return a member's accuracy by length, in the order of lengths."""
    # On data files a member that diverged has no lengths of its own.
    return dict(sorted((outcome.accuracies or dict.fromkeys(lengths, 0.0)).items()))


def _medians(members: Sequence[Outcome], lengths: Sequence[int]) -> dict[int, float]:
    """Return the median accuracy of these members, by length."""
    medians = {}
    for length in lengths:
        at_length = accuracies_at(length, members)
        if at_length:
            medians[length] = median(at_length)
    return medians


def _start_of_axis(lowest: float) -> float:
    """Return where an axis of accuracies begins, so that what differs fills the picture."""
    if lowest <= MOSTLY_RIGHT:
        return -0.03
    span = max(LEAST_SPAN, 1.1 * (1 - lowest))
    # Rounded down to two digits of the span: the axis says where it begins.
    digits = 1 - math.floor(math.log10(span))
    scale = 10.0**digits
    return math.floor((1 - span) * scale) / scale


def _floor(errors: Sequence[float]) -> float:
    """Return where the axis of error rates begins, and no error is drawn: well below all others."""
    least = min((error for error in errors if error > 0), default=DEFAULT_FLOOR)
    return min(0.5, least / 2)


def _ticks(floor: float) -> list[float]:
    """Return powers of ten from 1 down to the floor; with their multiples, if there are few."""
    num_powers = math.floor(-math.log10(floor)) + 1
    step = -(-num_powers // 6)
    digits = (1.0,) if num_powers > 2 else (1.0, 2.0, 5.0)

    ticks = []
    for power in range(0, -num_powers - 1, -step):
        ticks += [digit * 10.0**power for digit in digits]
    return [tick for tick in ticks if floor <= tick <= 1]


def _shade_trained(axes: "Axes", ended: Sequence[Outcome]) -> None:
    """Shade the training lengths; the margins keep a single length visible."""
    trained = [result.length for result in _results(ended) if result.trained]
    if trained:
        axes.axvspan(
            min(trained) * 0.92,
            max(trained) * 1.08,
            color="0.92",
            zorder=-1,
            label="lengths of training",
        )


def _mark_lengths(axes: "Axes", lengths: list[int]) -> None:
    """Make the axis of lengths logarithmic, labelled at lengths that were tested."""
    axes.set_xscale("log")
    ticks = _spaced(lengths)

    # A logarithmic axis would be labelled at powers of ten, which are seldom lengths that were
    # tested, and its minor ticks would write over our labels.
    axes.set_xticks(ticks, [f"{length:,}" for length in ticks])
    axes.set_xticks([], minor=True)


def _spaced(lengths: list[int]) -> list[int]:
    """Return lengths whose labels fit below a logarithmic axis, the longest among them."""
    # About 14 labels fit side by side; on a short axis, those closer than a quarter would touch.
    least_ratio = max(1.25, (lengths[-1] / lengths[0]) ** 0.07)

    chosen = lengths[-1:]
    for length in reversed(lengths):
        if length * least_ratio <= chosen[0]:
            chosen.insert(0, length)
    return chosen
