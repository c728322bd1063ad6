"""Pictures of a sweep: accuracy by length, and losses as training goes on. A line per member, and the median."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncls.rundir.events import log_images
from rnncls.rundir.tables import read_metrics
from rnncls.sweep.outcomes import Outcome, accuracies_at, outcomes
from rnncls.sweep.plan import Sweep
from rnncls.system.files import write_atomically, writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTS = "plots"
MOST_LINES = 200
STYLES = ("-", "--", ":", "-.")  # after ten groups the colours come again


def draw(sweep: Sweep) -> list[Path]:
    """Write plots/*.png, and the same as TensorBoard images. Nothing is drawn before a member has been evaluated.

    For a process that holds the folder. Raises WriteError.
    """
    found = [outcome for outcome in outcomes(sweep) if outcome.ended]
    if not any(outcome.evaluation for outcome in found):
        return []
    figures = {"accuracy_by_length": accuracy_by_length(found), "loss": losses(sweep, found)}
    folder = sweep.folder / PLOTS
    paths = [folder / f"{name}.png" for name in figures]
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for path, figure in zip(paths, figures.values(), strict=True):
            content = io.BytesIO()
            figure.savefig(content, dpi=120)
            write_atomically(path, content.getvalue())
        log_images(
            sweep.folder, {f"sweep/{name}": _pixels(figure) for name, figure in figures.items()}
        )
    return paths


def _groups(found: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in found:
        name = " ".join(
            f"{key.rpartition('.')[2]}={text}" for key, text in outcome.member.values.items()
        )
        groups.setdefault(name, []).append(outcome)
    return groups


def accuracy_by_length(found: Sequence[Outcome]) -> "Figure":
    """Lengths on a logarithmic axis, those of training shaded. One that diverged is at 0."""
    figure, axes = _axes(found)
    rows = [row for outcome in found if outcome.evaluation for row in outcome.evaluation.by_length]
    if trained := [row.length for row in rows if row.trained]:
        axes.axvspan(min(trained) * 0.92, max(trained) * 1.08, color="0.92", label="trained")
    lengths = sorted({row.length for row in rows})
    for number, (name, members) in enumerate(_groups(found).items()):
        colour = f"C{number % 10}"
        for outcome in members[:MOST_LINES]:
            points = outcome.accuracies or dict.fromkeys(
                lengths, 0.0
            )  # the latter on files, where it diverged
            axes.plot(
                *zip(*sorted(points.items()), strict=True),
                color=colour,
                alpha=0.3,
                linewidth=0.8,
                marker=".",
                ms=3,
            )
        middle = {n: median(values) for n in lengths if (values := accuracies_at(n, members))}
        label = f"{name} median".strip()
        style = STYLES[number // 10 % len(STYLES)]
        axes.plot(
            list(middle),
            list(middle.values()),
            style,
            color=colour,
            linewidth=2,
            marker="o",
            ms=3,
            label=label,
        )
    for chance in _chances(found):
        axes.axhline(chance, color="0.5", linestyle=":", linewidth=1, label=f"chance {chance:.3g}")
    axes.set(xscale="log", xlabel="length", ylabel="accuracy", ylim=(-0.02, 1.03))
    shown = _apart(lengths)
    axes.set_xticks(shown, [f"{length:,}" for length in shown])
    axes.set_xticks([], minor=True)
    _legend(axes, len(_groups(found)))
    return figure


def losses(sweep: Sweep, found: Sequence[Outcome]) -> "Figure":
    """Training loss by step, with ln N, what guessing costs. The median is of those still trained, at least half."""
    figure, axes = _axes(found)
    for number, (name, members) in enumerate(_groups(found).items()):
        colour = f"C{number % 10}"
        at_step: dict[int, list[float]] = {}
        for place, outcome in enumerate(members):
            rows = [
                row
                for row in read_metrics(sweep.run_dir(outcome.member))
                if row.get("train/loss") is not None
            ]
            steps, values = [row["step"] for row in rows], [row["train/loss"] for row in rows]
            for step, value in zip(steps, values, strict=True):
                at_step.setdefault(step, []).append(value)
            if place < MOST_LINES:
                axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
        middle = {
            step: median(found)
            for step, found in sorted(at_step.items())
            if 2 * len(found) >= len(members)
        }
        if middle:
            style, label = STYLES[number // 10 % len(STYLES)], f"{name} median".strip()
            axes.plot(
                list(middle), list(middle.values()), style, color=colour, linewidth=2, label=label
            )
    for chance in _chances(found):
        label = f"guessing: ln {1 / chance:.0f}"
        axes.axhline(-math.log(chance), color="0.5", linestyle=":", linewidth=1, label=label)
    axes.set(yscale="log", xlabel="step", ylabel="training loss (nats)")
    _legend(axes, len(_groups(found)))
    return figure


def _legend(axes: "Axes", groups: int) -> None:
    """Beside the picture where it would hide the curves."""
    if groups > 3:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="x-small")
    else:
        axes.legend(loc="lower left", fontsize="small")


def _apart(lengths: list[int]) -> list[int]:
    """Those that can be written below a logarithmic axis: the longest, and what is not too near."""
    shown = lengths[-1:]
    for length in reversed(lengths):
        if length * max(1.25, (lengths[-1] / lengths[0]) ** 0.04) <= shown[0]:
            shown.insert(0, length)
    return shown


def _axes(found: Sequence[Outcome]) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    diverged = sum(outcome.diverged for outcome in found)
    axes.set_title(f"{len(found)} members" + (f", {diverged} not finite" if diverged else ""))
    return figure, axes


def _chances(found: Sequence[Outcome]) -> list[float]:
    return sorted({outcome.evaluation.chance for outcome in found if outcome.evaluation})


def _pixels(figure: "Figure") -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """(height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]
