"""Draws the lengths and the classes of files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from rnncls.data.report import MOST_SHOWN
from rnncls.data.sequences import Sequences
from rnncls.data.task import FilesTask
from rnncls.system.pictures import default_style, in_picture, png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BINS = 30  # of the lengths
LETTERS_OF_LABEL = 24  # below a bar

# The bars of the splits stand side by side: as shares of the distance of two bins.
BAR_WIDTH = 0.25
BAR_STEP = 0.27


@default_style()
def draw(task: FilesTask, path: Path) -> None:
    """Draw lengths and classes of every split into a PNG. Raises: OSError."""
    # Matplotlib takes long to import. A Figure without pyplot needs no display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    splits = {name: split for name, split in task.dataset.splits.items() if len(split)}
    _plot_lengths(left, splits)
    _plot_classes(right, splits, task.dataset.vocabulary.labels)
    path.write_bytes(png_of(figure))


def _plot_lengths(axes: "Axes", splits: dict[str, Sequences]) -> None:
    """Draw the share of each length, in at most 30 bins of whole tokens."""
    # All splits have the same bins, so that their bars can stand side by side.
    longest = max(int(split.lengths.max()) for split in splits.values())
    width = -(-longest // MOST_BINS)
    centre = (len(splits) - 1) / 2  # of the bars of one bin
    for position, (name, split) in enumerate(splits.items()):
        shares = torch.bincount((split.lengths - 1) // width) / len(split)
        # Bin i holds the lengths i * width + 1 to (i + 1) * width; its middle is half a token on.
        middles = width * (torch.arange(len(shares)) + 0.5) + 0.5
        places = middles + BAR_STEP * width * (position - centre)
        axes.bar(places.tolist(), shares.tolist(), width=BAR_WIDTH * width, label=name)
    axes.set(xlabel="length in tokens", ylabel="share of the sequences", title="lengths")
    axes.legend()


def _plot_classes(axes: "Axes", splits: dict[str, Sequences], labels: Sequence[str]) -> None:
    """Draw the share of each of the first 20 classes."""
    shown = labels[:MOST_SHOWN]
    for position, split in enumerate(splits.values()):
        counts = torch.bincount(split.labels, minlength=len(labels))[:MOST_SHOWN]
        places = [index + BAR_STEP * position for index in range(len(shown))]
        axes.bar(places, (counts / len(split)).tolist(), width=BAR_WIDTH)

    # Below the second of the three bars of a class.
    names = [in_picture(label, LETTERS_OF_LABEL) for label in shown]
    middles = [index + BAR_STEP for index in range(len(shown))]
    axes.set_xticks(middles, names, rotation=30 if len(shown) > 6 else 0, parse_math=False)
    axes.set(ylabel="share of the sequences", title="classes")
