"""The picture of the states: planes through them, and the eigenvalues of the recurrent matrices."""

import colorsys
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rnncls.inspect.states.halves import Array
from rnncls.inspect.states.planes import Plane
from rnncls.inspect.states.view import Memory, States
from rnncls.system.pictures import default_style, in_picture, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_COLOURED = 20  # classes without an order; the others are grey
MOST_NAMED = 20  # classes in the legend
MOST_MARKED = 50  # class means with a number
MOST_POINTS = 3000  # in one panel
MOST_LAYERS = 4  # panels of eigenvalues
MOST_OF_LABEL = 24  # characters

UNIT = "SDs within a class"  # of whitened states
SIDE = 3.3  # inches of a small panel
GREY = (0.75, 0.75, 0.75)

Colour = tuple[float, float, float]


@default_style()
def draw_states(states: States, path: Path) -> None:
    """Draw the planes and the eigenvalues into a PNG. Raises: WriteError."""
    # Imported here because it takes long. A Figure without pyplot needs no display.
    from matplotlib.figure import Figure

    # The best plane is large, two rows high; all else stands beside it in two rows.
    layers = _by_layer(states.memories)[:MOST_LAYERS]
    num_columns = math.ceil((len(states.planes) - 1 + len(layers)) / 2)
    figure = Figure(figsize=(2.2 * SIDE + num_columns * SIDE, 2.45 * SIDE), layout="constrained")
    grid = figure.add_gridspec(2, 2 + num_columns)

    colours = _colours(states)
    _draw_plane(figure.add_subplot(grid[:, :2]), states, states.best, colours, is_large=True)
    places = [grid[row, column] for row in range(2) for column in range(2, 2 + num_columns)]
    for plane in states.planes[1:]:
        axes = figure.add_subplot(places.pop(0))
        _draw_plane(axes, states, plane, colours, is_large=False)
    for memories in layers:
        _draw_eigenvalues(figure.add_subplot(places.pop(0)), memories, states.matrix)

    _add_legend(figure, states, colours)
    title = f"{states.what}, coloured by its {states.encoded}"
    figure.suptitle(f"{title}: states held out, and the class means of the others")
    write_png(figure, path)


def _by_layer(memories: Sequence[Memory]) -> list[list[Memory]]:
    """Return the directions of each layer together."""
    layers: dict[int, list[Memory]] = {}
    for memory in memories:
        layers.setdefault(memory.layer, []).append(memory)
    return list(layers.values())


def _colours(states: States) -> list[Colour]:
    """Return the colour of each class: around a circle for sums, else of a list, then grey."""
    from matplotlib import colormaps

    if states.modulus is not None:
        hues = states.halves.numbers / states.modulus
        return [colorsys.hsv_to_rgb(hue, 0.8, 0.85) for hue in hues]

    num_classes = states.halves.num_classes
    listed = colormaps["tab10" if num_classes <= 10 else "tab20"]
    colours: list[Colour] = []
    for number in range(num_classes):
        colours.append(listed(number)[:3] if number < MOST_COLOURED else GREY)
    return colours


def _draw_plane(
    axes: "Axes", states: States, plane: Plane, colours: Sequence[Colour], is_large: bool
) -> None:
    """Draw the states held out, and the class means of the others with their numbers."""
    from matplotlib.ticker import MaxNLocator

    points = plane.of(states.halves.held_out)[:MOST_POINTS]
    classes = states.halves.held_out_classes[:MOST_POINTS]
    means = plane.means

    is_line = points.shape[1] == 1
    if is_line:
        # The other axis is free: one row for each class.
        spread = np.random.default_rng(0).uniform(-0.3, 0.3, len(points))
        points = np.column_stack([points[:, 0], states.halves.numbers[classes] + spread])
        means = np.column_stack([means[:, 0], states.halves.numbers])

    # In the order of chance, so that no class lies over all others.
    order = np.random.default_rng(0).permutation(len(points))
    of_points = np.asarray(colours)[classes]
    size = 14 if is_large else 5
    across, up = points[order].T
    axes.scatter(across, up, s=size, c=of_points[order], alpha=0.55, linewidths=0)

    if plane.kind == "frequency" and plane.is_cyclic and not is_line:
        _join(axes, plane, states)
    _mark_means(axes, states, means, colours, is_large)

    share = f"{100 * plane.share:.1f} % of the {states.share_of(plane)}"
    title = f"{states.name_of(plane)}\n{share}\naccuracy {plane.accuracy:.3f}"
    axes.set_title(title, fontsize="large" if is_large else "small")
    first, second = _axis_names(plane, states)
    size_of_text = "medium" if is_large else "small"
    axes.set_xlabel(first, fontsize=size_of_text)
    axes.set_ylabel(second, fontsize=size_of_text)
    axes.tick_params(labelsize=size_of_text)
    if is_line:
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    else:
        # Both axes have one unit, and a ring is round only if it is one.
        axes.set_aspect("equal", adjustable="datalim")


def _join(axes: "Axes", plane: Plane, states: States) -> None:
    """Join the class means in the order in which they lie around the ring."""
    place_of = {int(number): place for place, number in enumerate(states.halves.numbers)}
    around = plane.means[[place_of[number] for number in plane.order]]
    axes.plot(*np.concatenate([around, around[:1]]).T, color="0.4", linewidth=0.8, zorder=2)


def _mark_means(
    axes: "Axes",
    states: States,
    means: Array,
    colours: Sequence[Colour],
    is_large: bool,
) -> None:
    """Mark class means with their numbers; of many classes every second one, or fewer."""
    every = math.ceil(len(means) / MOST_MARKED)
    for place in range(0, len(means), every):
        across, up = means[place].tolist()
        axes.text(
            across,
            up,
            str(states.halves.numbers[place]),
            ha="center",
            va="center",
            fontsize=11 if is_large else 6,
            weight="bold",
            zorder=3,
            bbox={
                "boxstyle": "circle,pad=0.25",
                "facecolor": "white",
                "edgecolor": colours[place],
                "linewidth": 2 if is_large else 1,
            },
        )


def _axis_names(plane: Plane, states: States) -> tuple[str, str]:
    """Return the names of the two axes, with their unit."""
    if plane.kind == "principal":
        return "first principal component (units of h)", "second principal component (units of h)"
    if plane.kind == "frequency":
        second = "cosine part" if plane.means.shape[1] == 2 else ""
        first = "sine part" if second else "cosine part"
        return f"{first} ({UNIT})", f"{second} ({UNIT})" if second else states.encoded
    if states.halves.num_classes == 2:
        return f"discriminant ({UNIT})", f"largest direction left ({UNIT})"
    return f"first discriminant ({UNIT})", f"second discriminant ({UNIT})"


def _draw_eigenvalues(axes: "Axes", memories: Sequence[Memory], matrix: str) -> None:
    """Draw the eigenvalues of the directions of one layer, with the unit circle."""
    from matplotlib.patches import Circle

    axes.add_patch(Circle((0, 0), 1, fill=False, color="0.5", linewidth=1, linestyle="--"))
    radii = []
    for memory, marker in zip(memories, "ox", strict=False):
        values = np.asarray(memory.eigenvalues)
        axes.scatter(
            values.real, values.imag, s=10, marker=marker, linewidths=0.8, label=memory.direction
        )
        radii.append(f"{memory.radius:.3f}")

    layer = memories[0].layer
    radius = f"spectral radius {' and '.join(radii)}"
    title = f"eigenvalues of {matrix}, layer {layer}\nwith the unit circle\n{radius}"
    axes.set_title(title, fontsize="small")
    axes.set_xlabel("real part", fontsize="small")
    axes.set_ylabel("imaginary part", fontsize="small")
    axes.tick_params(labelsize="small")

    # Two directions have a legend, with room above the circle.
    reach = 1.15 * max(1, *(memory.radius for memory in memories))
    has_legend = len(memories) > 1
    axes.set(xlim=(-reach, reach), ylim=(-reach, 1.4 * reach if has_legend else reach))
    axes.set_aspect("equal")
    if has_legend:
        axes.legend(fontsize="x-small", loc="upper center", ncols=2)


def _add_legend(figure: "Figure", states: States, colours: Sequence[Colour]) -> None:
    """Add the classes below all panels, the first ones by name."""
    from matplotlib.lines import Line2D

    handles = []
    for number, label, colour in zip(states.halves.numbers, states.labels, colours, strict=True):
        name = in_picture(str(label), MOST_OF_LABEL)
        name = name if states.modulus is not None else f"{number}  {name}"
        handles.append(Line2D([], [], marker="o", linestyle="", color=colour, label=name))
    left_out = len(handles) - MOST_NAMED
    if left_out > 0:
        more = f"... and {left_out:,} more"
        handles = [*handles[:MOST_NAMED], Line2D([], [], alpha=0, label=more)]

    # As many columns as names of this length fit.
    longest = max(len(str(handle.get_label())) for handle in handles)
    of_figure = int(figure.get_figwidth() * 10 / (longest + 6))
    num_columns = max(1, min(len(handles), of_figure))
    legend = figure.legend(
        handles=handles,
        title=states.encoded,
        loc="outside lower center",
        ncols=num_columns,
        fontsize="small",
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
