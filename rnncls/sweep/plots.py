"""Pictures of a sweep: accuracy by length, and training loss by step.

Each member is a thin line in the colour of its setting, and each setting has its median.
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rnncls.rundir.events import log_images
from rnncls.rundir.tables import read_metrics
from rnncls.sweep.outcomes import Outcome, accuracies_at, by_setting, outcomes
from rnncls.sweep.paths import PLOTS
from rnncls.sweep.plan import Sweep, format_setting
from rnncls.sweep.results import LengthResult
from rnncls.system.files import write_atomically
from rnncls.system.pictures import add_legend, default_style, in_picture, pixels_of, png_of
from rnncls.system.refusals import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Members drawn per setting. More thin lines only blacken the picture; the median is of all members.
MOST_LINES = 200

# Matplotlib's cycle has ten colours; after these the next line style is used.
NUM_COLOURS = 10
LINE_STYLES = ("-", "--", ":", "-.")

# Up to so many settings, the legend leaves room for the curves.
MOST_INSIDE = 3

# So many lines of the legend fit beside the picture, and so many characters into one of them.
MOST_NAMED = 20
MOST_OF_NAME = 48

# What a loss in single precision can be. The ends of the axis would overflow with other numbers.
LEAST_LOSS = 1e-45
MOST_LOSS = 3.5e38


@default_style()
def draw(sweep: Sweep) -> list[Path]:
    """Write plots/*.png and log them as TensorBoard images, for a process that holds the folder.

    Nothing is drawn until a member has been evaluated. Raises: WriteError.
    """
    ended = [outcome for outcome in outcomes(sweep) if outcome.ended]
    if not any(outcome.evaluation for outcome in ended):
        return []

    figures = {"accuracy_by_length": accuracy_by_length(ended), "loss": losses(sweep, ended)}
    folder = sweep.folder / PLOTS
    paths = []
    images = {}
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            write_atomically(path, png_of(figure))
            paths.append(path)
            images[f"sweep/{name}"] = pixels_of(figure)

        log_images(sweep.folder, images)
    return paths


def accuracy_by_length(ended: Sequence[Outcome]) -> "Figure":
    """Draw accuracy by length, on a logarithmic axis, with the training lengths shaded.

    A member that diverged is drawn at 0.
    """
    # Members of a grid may have been tested at different lengths; the axis shows them all.
    results = []
    for outcome in ended:
        if outcome.evaluation is not None:
            results += outcome.evaluation.by_length
    lengths = sorted({result.length for result in results})

    figure, axes = _axes(ended)
    _shade_trained(axes, results)

    # A setting keeps its number, and so its colour, in both pictures.
    settings = by_setting(ended)
    for number, members in enumerate(settings.values()):
        for outcome in members[:MOST_LINES]:
            # On data files a member that diverged has no lengths of its own.
            accuracies = outcome.accuracies or dict.fromkeys(lengths, 0.0)
            points = dict(sorted(accuracies.items()))
            _draw_member(axes, number, points, marker=".", ms=3)

        medians = {}
        for length in lengths:
            at_length = accuracies_at(length, members)
            if at_length:
                medians[length] = median(at_length)
        _draw_median(axes, number, members, medians, marker="o", ms=3)

    for chance in _chances(ended):
        axes.axhline(chance, color="0.5", linestyle=":", linewidth=1, label=f"chance {chance:.3g}")

    axes.set(xscale="log", xlabel="length", ylabel="accuracy", ylim=(-0.02, 1.03))
    ticks = _spaced(lengths)

    # A logarithmic axis would be labelled at powers of ten, which are seldom lengths that were
    # tested, and its minor ticks would write over our labels.
    axes.set_xticks(ticks, [f"{length:,}" for length in ticks])
    axes.set_xticks([], minor=True)
    _legend(axes, len(settings))
    return figure


def _shade_trained(axes: "Axes", results: Sequence[LengthResult]) -> None:
    """Shade the training lengths; the margins keep a single length visible."""
    trained = [result.length for result in results if result.trained]
    if trained:
        axes.axvspan(
            min(trained) * 0.92, max(trained) * 1.08, color="0.92", label="seen in training"
        )


def losses(sweep: Sweep, ended: Sequence[Outcome]) -> "Figure":
    """Draw training loss by step, on a logarithmic axis, and the loss of guessing: ln N.

    The median is that of the members still in training, while they are at least half of them.
    """
    figure, axes = _axes(ended)
    settings = by_setting(ended)
    for number, members in enumerate(settings.values()):
        at_step: dict[int, list[float]] = {}
        for place, outcome in enumerate(members):
            curve = _loss_curve(sweep, outcome)
            for step, loss in curve.items():
                at_step.setdefault(step, []).append(loss)

            # The median needs the losses of all members, drawn or not.
            if place < MOST_LINES:
                _draw_member(axes, number, curve)

        # Runs stop at different steps. Where most have stopped, the median would be that of the few
        # that find the task hard, and would seem to rise again.
        medians = {}
        for step, at_this_step in sorted(at_step.items()):
            if 2 * len(at_this_step) >= len(members):
                medians[step] = median(at_this_step)
        if medians:
            _draw_median(axes, number, members, medians)

    # Guessing gives each of N classes the probability 1/N: a cross-entropy of ln N.
    for chance in _chances(ended):
        label = f"guessing: ln {1 / chance:.0f}"
        axes.axhline(-math.log(chance), color="0.5", linestyle=":", linewidth=1, label=label)

    axes.set(yscale="log", xlabel="step", ylabel="training loss (nats)")
    _legend(axes, len(settings))
    return figure


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


def _draw_member(axes: "Axes", number: int, points: dict[int, float], **marker: Any) -> None:
    """Draw a member's points in the colour of its setting, the `number`th."""
    colour = f"C{number % NUM_COLOURS}"
    x = list(points)
    y = list(points.values())
    axes.plot(x, y, color=colour, alpha=0.3, linewidth=0.8, **marker)


def _draw_median(
    axes: "Axes", number: int, members: Sequence[Outcome], points: dict[int, float], **marker: Any
) -> None:
    """Draw the median of the members of the `number`th setting."""
    name = format_setting(members[0].member.values, short=True)
    label = f"{in_picture(name, MOST_OF_NAME)} median".strip()
    colour = f"C{number % NUM_COLOURS}"
    style = LINE_STYLES[number // NUM_COLOURS % len(LINE_STYLES)]
    x = list(points)
    y = list(points.values())
    axes.plot(x, y, style, color=colour, linewidth=2, label=label, **marker)


def _legend(axes: "Axes", num_settings: int) -> None:
    """Add the legend, beside the picture where it would hide the curves."""
    if num_settings > MOST_INSIDE:
        place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1)}
        add_legend(axes, MOST_NAMED, fontsize="x-small", **place)
    else:
        add_legend(axes, MOST_NAMED, fontsize="small", loc="lower left")


def _spaced(lengths: list[int]) -> list[int]:
    """Return lengths whose labels fit below a logarithmic axis, the longest among them."""
    # About 25 labels fit side by side; on a short axis, those closer than a quarter would touch.
    least_ratio = max(1.25, (lengths[-1] / lengths[0]) ** 0.04)

    chosen = lengths[-1:]
    for length in reversed(lengths):
        if length * least_ratio <= chosen[0]:
            chosen.insert(0, length)
    return chosen


def _axes(ended: Sequence[Outcome]) -> "tuple[Figure, Axes]":
    """Return a new figure and its axes, titled with the number of members."""
    # Without pyplot, which would look for a display and keep every figure. Imported here because it
    # takes long.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()

    title = f"{len(ended)} members"
    num_diverged = sum(outcome.diverged for outcome in ended)
    if num_diverged:
        title += f", {num_diverged} not finite"
    axes.set_title(title)
    return figure, axes


def _chances(ended: Sequence[Outcome]) -> list[float]:
    """Return the accuracy of guessing, of which there are several if members differ in classes."""
    return sorted({outcome.evaluation.chance for outcome in ended if outcome.evaluation})
