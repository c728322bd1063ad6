"""Draws sequences as a rectangle with padding, and the same ones packed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rnncls.errors import on_one_line
from rnncls.system.outlines import write_numbers
from rnncls.system.shown import ends_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_COLUMNS = 24  # time steps that are drawn; the middle of longer sequences is an ellipsis

# One light colour for each sequence, so that it is found again among the packed rows.
COLOURS = (
    "#aec7e8",
    "#ffbb78",
    "#98df8a",
    "#ff9896",
    "#c5b0d5",
    "#e7cb94",
    "#f7b6d2",
    "#9edae5",
)


class Drawn(NamedTuple):
    """At most 8 sequences, and which of their time steps are drawn."""

    names: Sequence[str]  # (B,)
    lengths: Sequence[int]  # (B,)
    order: Sequence[int]  # the numbers of the sequences, longest first
    tokens: Sequence[Sequence[str]]  # of each sequence, at least those in `columns`
    columns: Sequence[int | None]  # time steps, with None for those that an ellipsis stands for
    most: int  # characters of a token
    marks_last: bool = False  # whether the last token of each sequence has a frame and an arrow
    font_size: int = 8  # of the tokens, in points

    def batch_size(self, t: int) -> int:
        """Return how many of the sequences have a token at time step t."""
        return sum(length > t for length in self.lengths)


def columns_shown(num_steps: int, most: int = MOST_COLUMNS) -> list[int | None]:
    """Return the time steps that are drawn, with None for those that an ellipsis stands for.

    >>> columns_shown(3), columns_shown(9, most=4)
    ([0, 1, 2], [0, 1, None, 8])
    """
    if num_steps <= most:
        return list(range(num_steps))
    # The ellipsis is a column as well.
    first = most // 2
    return ends_of(num_steps, first, most - first - 1)


def draw_rectangle(axes: "Axes", drawn: Drawn) -> None:
    """Draw a row for each sequence, as they were given, with its padding hatched."""
    tokens = []
    padding = []
    for row, length in enumerate(drawn.lengths):
        for place, t in enumerate(drawn.columns):
            if t is not None and t < length:
                tokens.append(_Cell(place, row, row, t))
            elif t is not None:
                padding.append(_corner_of(place, row))
    _draw_cells(axes, padding, facecolor="white", edgecolor="#999999", hatch="////", linewidth=0.5)
    _draw_tokens(axes, drawn, tokens)

    _set_up(axes, drawn)
    axes.set_yticks(range(len(drawn.names)), drawn.names, parse_math=False)
    axes.set_ylabel("sequence, as given")


def draw_packed(axes: "Axes", drawn: Drawn) -> None:
    """Draw the columns that are computed one after another, longest sequence first."""
    tokens = []
    for place, t in enumerate(drawn.columns):
        if t is None:
            continue
        size = drawn.batch_size(t)
        for row, number in enumerate(drawn.order[:size]):
            tokens.append(_Cell(place, row, number, t))
        axes.text(place, -0.75, str(size), ha="center", va="center", weight="bold", fontsize=9)
    _draw_tokens(axes, drawn, tokens)

    _set_up(axes, drawn)
    axes.set_ylim(len(drawn.order) - 0.4, -1.2)
    axes.text(-0.65, -0.75, "batch_sizes", ha="right", va="center", weight="bold", fontsize=9)
    names = [drawn.names[number] for number in drawn.order]
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_ylabel("sequence, longest first")


def _set_up(axes: "Axes", drawn: Drawn) -> None:
    """Set the axes of cells: time steps to the right, sequences downwards."""
    middle = (len(drawn.lengths) - 1) / 2
    for place, t in enumerate(drawn.columns):
        if t is None:
            axes.text(place, middle, "...", ha="center", va="center", fontsize=14)

    # Steps are counted from 1, as t is in the formulas.
    names = ["..." if t is None else str(t + 1) for t in drawn.columns]
    axes.set_xticks(range(len(drawn.columns)), names)
    axes.set_xlim(-0.6, len(drawn.columns) - 0.4)
    axes.set_ylim(len(drawn.lengths) - 0.4, -0.6)
    axes.set_xlabel("time step t (tokens)")
    axes.yaxis.labelpad = 8
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


class _Cell(NamedTuple):
    """A token that is drawn at a column and a row: that of sequence `number` at time step t."""

    column: int
    row: int
    number: int
    t: int


def _draw_tokens(axes: "Axes", drawn: Drawn, cells: Sequence[_Cell]) -> None:
    """Draw tokens in the colours of their sequences, with a mark at the last ones."""
    corners = [_corner_of(cell.column, cell.row) for cell in cells]
    colours = [COLOURS[cell.number] for cell in cells]
    _draw_cells(axes, corners, facecolor=colours, edgecolor="none")

    places = [(cell.column, cell.row) for cell in cells]
    texts = [_cut(drawn.tokens[cell.number][cell.t], drawn.most) for cell in cells]
    write_numbers(axes, places, texts, ["black"], drawn.font_size)

    last = [cell for cell in cells if cell.t == drawn.lengths[cell.number] - 1]
    if drawn.marks_last and last:
        frames = [_corner_of(cell.column, cell.row) for cell in last]
        _draw_cells(axes, frames, facecolor="none", edgecolor="black", linewidth=1.5)
        x = [cell.column + 0.62 for cell in last]
        y = [cell.row for cell in last]
        axes.plot(x, y, "<", color="black", markersize=5, clip_on=False, zorder=3)


def _corner_of(column: int, row: int) -> tuple[float, float]:
    return column - 0.47, row - 0.43


def _draw_cells(axes: "Axes", corners: Sequence[tuple[float, float]], **looks: Any) -> None:
    """Draw cells as one thing: one by one, they take longer than all the rest."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    cells = [Rectangle(corner, 0.94, 0.86) for corner in corners]
    axes.add_collection(PatchCollection(cells, **looks))


def _cut(token: str, most: int) -> str:
    """Return a token that fits into a cell, on one line."""
    text = on_one_line(token)
    return text if len(text) <= most else text[: max(1, most - 1)] + "…"
