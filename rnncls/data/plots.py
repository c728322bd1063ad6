"""Draws what data looks like: lengths, classes and tokens of the splits, and one batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rnncls.data.batch_plots import MOST_COLUMNS, Drawn, columns_shown, draw_packed, draw_rectangle
from rnncls.data.batches import Batch
from rnncls.data.report import MOST_SHOWN, class_names, splits_of, token_names
from rnncls.data.sequences import Sequences
from rnncls.data.task import Task
from rnncls.data.vocabulary import Vocabulary
from rnncls.system.outlines import width_of
from rnncls.system.pictures import default_style, in_picture, write_png
from rnncls.system.shown import counted, visible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_BINS = 30  # of the lengths
WIDTH_OF_BATCH = 6.6  # inches
LETTERS_OF_LABEL = 24  # below a bar

# How the outlines of the splits are told apart: most of them lie on top of each other, so that what
# is drawn first is broad and what comes last has gaps.
SPLIT_STYLES: tuple[dict[str, Any], ...] = (
    {"color": "#9ecae1", "linewidth": 5, "linestyle": "solid"},
    {"color": "#d95f02", "linewidth": 2, "linestyle": "dashed"},
    {"color": "black", "linewidth": 1.5, "linestyle": "dotted"},
)

ROWS_OF_BATCH = 8  # sequences that are drawn
CHARACTERS = 72  # of the width of a picture of a batch
MOST_OF_TOKEN = 10  # characters
MOST_OF_NAME = 10  # characters of a label beside a row


@default_style()
def draw(task: Task, path: Path) -> None:
    """Draw lengths, classes and tokens of every split into a PNG. Raises: WriteError.

    Of generated data, it is those of some sequences.
    """
    # Matplotlib takes long to import. A Figure without pyplot needs no display.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(15, 4.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    splits = {name: split for name, split in splits_of(task).items() if len(split)}
    _plot_lengths(left, splits)
    # There are no lengths between whole numbers.
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plot_classes(middle, splits, class_names(task))
    _plot_tokens(right, splits["train"], token_names(task))
    write_png(figure, path)


def _plot_lengths(axes: "Axes", splits: dict[str, Sequences]) -> None:
    """Draw the share of each length, in at most 30 bins of whole tokens."""
    # All splits have the same bins, so that their outlines can lie upon each other.
    longest = max(int(split.lengths.max()) for split in splits.values())
    width = -(-longest // MOST_BINS)
    num_bins = -(-longest // width)
    # Bin i holds the lengths i * width + 1 to (i + 1) * width.
    edges = [index * width + 0.5 for index in range(num_bins + 1)]
    for (name, split), style in zip(splits.items(), SPLIT_STYLES, strict=False):
        counts = torch.bincount((split.lengths - 1) // width, minlength=num_bins)
        label = f"{name} ({counted(len(split), 'sequence')})"
        axes.stairs((counts / len(split)).tolist(), edges, label=label, **style)
    axes.set(xlabel="length in tokens", ylabel="share of the sequences", title="lengths")
    axes.set_ylim(bottom=0)

    # Outside, so that it covers nothing.
    axes.figure.legend(loc="outside lower center", ncols=len(splits))


def _plot_classes(axes: "Axes", splits: dict[str, Sequences], labels: Sequence[str]) -> None:
    """Draw the share of each of the first 20 classes."""
    shown = labels[:MOST_SHOWN]
    edges = [index - 0.5 for index in range(len(shown) + 1)]
    for split, style in zip(splits.values(), SPLIT_STYLES, strict=False):
        counts = torch.bincount(split.labels, minlength=len(labels))[:MOST_SHOWN]
        axes.stairs((counts / len(split)).tolist(), edges, **style)

    names = [in_picture(label, LETTERS_OF_LABEL) for label in shown]
    turned = sum(map(len, names)) > 40
    axes.set_xticks(range(len(shown)), names, parse_math=False)
    if turned:
        axes.tick_params("x", rotation=90 if len(names) > 10 else 30)
    title = "classes"
    if len(labels) > len(shown):
        title = f"the first {len(shown)} of {len(labels):,} classes"
    axes.set(xlabel="class", ylabel="share of the sequences", title=title)
    axes.set_ylim(bottom=0)


def _plot_tokens(axes: "Axes", train: Sequences, tokens: Sequence[str]) -> None:
    """Draw the share of each of the 20 most frequent tokens of training."""
    counts = torch.bincount(train.tokens, minlength=len(tokens))
    # Stable: of equally frequent tokens, those with the smaller ids.
    frequent = counts.argsort(descending=True, stable=True)[:MOST_SHOWN]
    names = [in_picture(visible(tokens[id]), LETTERS_OF_LABEL) for id in frequent.tolist()]
    places = range(len(names))
    shares = counts[frequent] / len(train.tokens)
    axes.barh(places, shares.tolist(), color="#9ecae1", edgecolor="black", linewidth=0.5)
    axes.set_yticks(places, names, parse_math=False)
    axes.invert_yaxis()
    title = "tokens of train"
    if len(tokens) > len(names):
        title = f"the {len(names)} most frequent of {len(tokens):,} tokens of train"
    axes.set(xlabel="share of the tokens", title=title)


@default_style()
def first_batch(batch: Batch, vocabulary: Vocabulary | None) -> "Figure":
    """Return a picture of a batch: its first 8 sequences as a rectangle, and packed.

    Padding is hatched, and each sequence's last token has a frame and an arrow. Without a
    vocabulary, tokens and labels are the numbers themselves.
    """
    from matplotlib.figure import Figure

    drawn = _beginning_of(batch, vocabulary)
    # Margins by hand: to have them found would draw every text twice.
    points = max(9 * 1.1 * width_of("batch_sizes"), *(10 * width_of(name) for name in drawn.names))
    left = points / 72 / WIDTH_OF_BATCH
    if _is_narrow(drawn.columns, max(len(text) for texts in drawn.tokens for text in texts)):
        figure = Figure(figsize=(WIDTH_OF_BATCH, 4.4))
        rectangle, packed = figure.subplots(1, 2)
        figure.subplots_adjust(left + 0.06, 0.13, 0.99, 0.8, wspace=0.25 + 2.2 * left)
    else:
        figure = Figure(figsize=(WIDTH_OF_BATCH, 5.4))
        rectangle, packed = figure.subplots(2, 1)
        figure.subplots_adjust(left + 0.06, 0.1, 0.99, 0.83, hspace=0.45)

    draw_rectangle(rectangle, drawn)
    num_tokens = sum(drawn.lengths)
    cells = len(drawn.lengths) * max(drawn.lengths)
    share = 1 - num_tokens / cells
    rectangle.set_title(f"padded: {cells:,} cells, {share:.0%} padding", fontsize=10)
    rectangle.set_ylabel("row: label")

    draw_packed(packed, drawn)
    packed.set_title(f"packed: {num_tokens:,} cells", fontsize=10)
    packed.set_ylabel("longest first")

    lengths = batch.lengths
    of_all = 1 - float(lengths.double().mean()) / int(lengths.max())
    what = f"{counted(len(lengths), 'sequence')} of {int(lengths.min()):,} to"
    size = f"{what} {int(lengths.max()):,} tokens, {of_all:.0%} padding"
    shown = f"the first {len(drawn.lengths)}" if len(lengths) > len(drawn.lengths) else "all"
    figure.suptitle(f"{size}\n{shown} of them; framed: last token, hatched: padding", fontsize=11)
    return figure


def _beginning_of(batch: Batch, vocabulary: Vocabulary | None) -> Drawn:
    """Return the first sequences of a batch, as they are drawn."""
    lengths = batch.lengths[:ROWS_OF_BATCH].tolist()
    order = list(range(len(batch.lengths)))
    if batch.tokens.sorted_indices is not None:
        order = batch.tokens.sorted_indices.tolist()

    # Time step t begins at row starts[t] of the packed data, with the longest sequence.
    starts = batch.tokens.batch_sizes.cumsum(0) - batch.tokens.batch_sizes
    tokens = []
    for row, length in enumerate(lengths):
        ids = batch.tokens.data[starts[:length] + order.index(row)].tolist()
        names = {id: _token(id, vocabulary) for id in set(ids)}
        tokens.append([names[id] for id in ids])

    # As many columns as leave room for the tokens in them.
    widest = max(len(token) for texts in tokens for token in texts)
    fitting = CHARACTERS // (1 + min(widest, MOST_OF_TOKEN))
    columns = columns_shown(max(lengths), min(fitting, MOST_COLUMNS))
    is_narrow = _is_narrow(columns, widest)
    panels = 2 if is_narrow else 1
    return Drawn(
        names=[_row_name(batch, row, vocabulary) for row in range(len(lengths))],
        lengths=lengths,
        order=[row for row in order if row < len(lengths)],
        tokens=tokens,
        columns=columns,
        most=max(1, CHARACTERS // (panels * len(columns)) - 1),
        marks_last=True,
        font_size=12 if is_narrow and widest <= 2 else 8,
    )


def _is_narrow(columns: Sequence[int | None], widest: int) -> bool:
    """Return whether rectangle and packed batch have room beside each other."""
    return len(columns) <= 8 and 2 * len(columns) * (1 + widest) <= CHARACTERS


def _token(id: int, vocabulary: Vocabulary | None) -> str:
    if vocabulary is None:
        return str(id)
    return in_picture(visible(vocabulary.tokens[id]), MOST_OF_TOKEN)


def _row_name(batch: Batch, row: int, vocabulary: Vocabulary | None) -> str:
    """Return the number of a sequence and its label."""
    label = int(batch.labels[row])
    name = str(label) if vocabulary is None else vocabulary.labels[label]
    return f"{row}: {in_picture(name, MOST_OF_NAME)}"
