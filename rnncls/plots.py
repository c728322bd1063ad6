"""Pictures of a sweep: accuracy by length, and losses as training goes on. A line per member, and the median."""

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from rnncls.config import SumModConfig
from rnncls.files import writing
from rnncls.rundir import read_metrics
from rnncls.runlog import log_images
from rnncls.statistics import Outcome, outcomes
from rnncls.sweep import Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = "plots"
MOST_LINES = 200


def draw(sweep: Sweep) -> list[Path]:
    """Write plots/*.png, and the same as TensorBoard images. Nothing is drawn before a member has ended."""
    found = [outcome for outcome in outcomes(sweep) if outcome.accuracies]
    if not found:
        return []
    figures = {"accuracy_by_length": accuracy_by_length(found), "loss": losses(sweep, found)}
    folder = sweep.folder / PLOTS
    paths = [folder / f"{name}.png" for name in figures]
    with writing(folder):
        folder.mkdir(exist_ok=True)
        for path, figure in zip(paths, figures.values(), strict=True):
            figure.savefig(path, dpi=120)
        log_images(sweep.folder, {f"sweep/{name}": _pixels(figure) for name, figure in figures.items()})
    return paths


def _groups(found: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    groups: dict[str, list[Outcome]] = {}
    for outcome in found:
        name = " ".join(f"{key.rpartition('.')[2]}={text}" for key, text in outcome.member.values.items())
        groups.setdefault(name, []).append(outcome)
    return groups


def accuracy_by_length(found: Sequence[Outcome]) -> "Figure":
    """Lengths on a logarithmic axis, those of training shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    trained = [length for outcome in found for length in outcome.trained]
    if trained:
        axes.axvspan(min(trained) * 0.92, max(trained) * 1.08, color="0.92", label="trained")
    for number, (name, members) in enumerate(_groups(found).items()):
        colour = f"C{number % 10}"
        for outcome in members[:MOST_LINES]:
            axes.plot(
                list(outcome.accuracies), list(outcome.accuracies.values()), color=colour, alpha=0.25, linewidth=0.8
            )
        lengths = list(members[0].accuracies)
        middle = [median(outcome.accuracies.get(n, 0.0) for outcome in members) for n in lengths]
        axes.plot(lengths, middle, color=colour, linewidth=2, marker="o", markersize=3, label=f"{name} median".strip())
    chance = 1 / _classes(found[0])
    axes.axhline(chance, color="0.5", linestyle=":", linewidth=1, label="chance")
    axes.set(xscale="log", xlabel="length", ylabel="accuracy", ylim=(0, 1.03), title=f"{len(found)} members")
    axes.legend(loc="lower left", fontsize="small")
    return figure


def losses(sweep: Sweep, found: Sequence[Outcome]) -> "Figure":
    """Training loss by step, with ln N, what guessing costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, (name, members) in enumerate(_groups(found).items()):
        colour, curves = f"C{number % 10}", []
        for outcome in members[:MOST_LINES]:
            rows = [row for row in read_metrics(sweep.run_dir(outcome.member)) if row.get("train/loss") is not None]
            steps, values = [row["step"] for row in rows], [row["train/loss"] for row in rows]
            curves.append(dict(zip(steps, values, strict=True)))
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        common = sorted(set.intersection(*(set(curve) for curve in curves)))
        middle = [median(curve[step] for curve in curves) for step in common]
        axes.plot(common, middle, color=colour, linewidth=2, label=f"{name} median".strip())
    guessing = math.log(_classes(found[0]))
    axes.axhline(guessing, color="0.5", linestyle=":", linewidth=1, label="guessing: ln N")
    axes.set(yscale="log", xlabel="step", ylabel="training loss (nats)", title=f"{len(found)} members")
    axes.legend(fontsize="small")
    return figure


def _classes(outcome: Outcome) -> int:
    data = outcome.member.config.data
    return data.num_classes if isinstance(data, SumModConfig) else 2


def _pixels(figure: "Figure") -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """(height, width, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]
