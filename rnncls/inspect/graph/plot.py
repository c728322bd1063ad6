"""The picture of a graph, as SVG."""

import io
import re
from typing import TYPE_CHECKING, Any

from rnncls.inspect.graph.cells import Kind
from rnncls.inspect.graph.graph import ROUND, Graph, Node, heading_of
from rnncls.inspect.graph.layout import layout_of
from rnncls.inspect.graph.places import Box, Layout, Point
from rnncls.inspect.graph.text import BORDER, FILLS, LINE, MOST_OF_TOKEN, RECURRENT
from rnncls.system.pictures import any_script, default_style, in_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

# Inches.
_CORNER = 0.08  # radius of the corners of edges
_BELOW = 0.35  # from the middle of a token's node to the token

# "W_ih" or "h_(t-1)": a letter with an index.
_INDEXED = re.compile(r"([A-Za-z]+)_(\([^)]*\)|\w+)")

_KINDS: dict[Kind, str] = {
    "token": "token",
    "weights": "weights",
    "function": "function",
    "gate": "gate",
    "state": "state",
    "start": "initial state: 0",
    "trained": "initial: trained",
    "cell": "cell: at every step the same weights",
}


@default_style()
def svg_of(graph: Graph) -> bytes:
    """Return the picture of the graph as SVG: the same bytes for the same graph.

    Texts are texts, which can be searched, and which a browser shows in any script.
    """
    # Imported here because it takes long.
    import matplotlib

    content = io.BytesIO()
    fixed: Any = {"svg.fonttype": "none", "svg.hashsalt": "rnncls"}
    with matplotlib.rc_context(fixed), any_script():
        draw(graph).savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def draw(graph: Graph) -> "Figure":
    """Draw the graph."""
    from matplotlib.figure import Figure

    layout = layout_of(graph)
    figure = Figure(figsize=(layout.width, layout.height))

    # One unit is one inch.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, layout.width), ylim=(0, layout.height))
    axes.set_axis_off()

    _draw_bands(axes, layout)
    for edge, path in zip(graph.edges, layout.paths, strict=True):
        _draw_edge(axes, path, edge.carries, edge.label, is_loop=edge.source == edge.target)
    for node in graph.nodes:
        _draw_node(axes, node, layout.boxes[node.name])

    axes.text(
        layout.width / 2,
        layout.height - 0.3,
        heading_of(graph),
        ha="center",
        va="center",
        fontsize=13,
    )
    _add_legend(axes, graph)
    return figure


def _draw_bands(axes: "Axes", layout: Layout) -> None:
    for title, _, box in layout.bands:
        look = {"facecolor": "#f7f7f7", "edgecolor": "#dddddd", "zorder": 0}
        axes.add_patch(_rounded_box(box, 0.12, look))
        axes.text(box.left - 0.12, box.y, title, ha="right", va="center", fontsize=10)


def _draw_edge(axes: "Axes", path: list[Point], carries: str, label: str, is_loop: bool) -> None:
    from matplotlib.patches import FancyArrowPatch

    arrow = FancyArrowPatch(
        path=_rounded(path),
        arrowstyle="-|>,head_length=4,head_width=2",
        color=RECURRENT[carries] if carries else LINE,
        linewidth=2.0 if carries else 0.9,
        joinstyle="round",
        zorder=2 if carries else 1,
    )
    axes.add_patch(arrow)
    if not label:
        return

    # Beside a loop, and upon any other edge.
    if is_loop:
        x = path[1][0]
        y = (path[1][1] + path[2][1]) / 2
        is_left = x < path[0][0]
        x += -0.08 if is_left else 0.08
        align = "right" if is_left else "left"
    else:
        x = (path[0][0] + path[-1][0]) / 2
        y = (path[0][1] + path[-1][1]) / 2
        align = "center"
    box = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.9}
    axes.text(x, y, label, ha=align, va="center", fontsize=8, bbox=box, zorder=4)


def _rounded(points: list[Point]) -> Any:
    """Return a path through the points, with its corners rounded."""
    from matplotlib.path import Path as Outline

    vertices = [points[0]]
    codes = [Outline.MOVETO]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        vertices += [_near(corner, before), corner, _near(corner, after)]
        codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
    return Outline([*vertices, points[-1]], [*codes, Outline.LINETO])


def _near(corner: Point, other: Point) -> Point:
    """Return the point at the radius of corners from a corner, and at most half way to `other`."""
    dx = other[0] - corner[0]
    dy = other[1] - corner[1]
    length = max(1e-9, (dx**2 + dy**2) ** 0.5)
    part = min(_CORNER / length, 0.5)
    return corner[0] + part * dx, corner[1] + part * dy


def _draw_node(axes: "Axes", node: Node, box: Box) -> None:
    from matplotlib.patches import Ellipse

    if node.kind == "gap":
        _draw_gap(axes, node, box)
        return

    look: dict[str, Any] = {"facecolor": FILLS[node.kind], "edgecolor": BORDER}
    look |= {"linewidth": 0.9, "zorder": 3}
    if node.kind in ("start", "trained"):
        look["linestyle"] = "dashed"
    if node.kind in ROUND:
        axes.add_patch(Ellipse((box.x, box.y), box.width, box.height, **look))
    else:
        axes.add_patch(_rounded_box(box, 0.06, look))

    if node.kind == "cell":
        _write_lines(axes, node.label.split("\n"), box)
        return
    label = _formula(node.label)
    size = 8 if "\n" in label else 9
    axes.text(box.x, box.y, label, ha="center", va="center", fontsize=size, zorder=4)
    if node.token:
        axes.text(
            box.x,
            box.y - _BELOW,
            in_picture(node.token, MOST_OF_TOKEN),
            ha="center",
            va="center",
            fontsize=11,
            weight="bold",
            parse_math=False,
        )


def _draw_gap(axes: "Axes", node: Node, box: Box) -> None:
    """Draw dots, and say how much is left out."""
    axes.text(box.x, box.y, "···", ha="center", va="center", fontsize=14, zorder=4)
    _, _, more = node.label.partition("\n")

    # Below the gap among the tokens, and beside that between rolled layers, where edges are.
    if node.role == "x":
        axes.text(box.x, box.y - _BELOW, more, ha="center", va="center", fontsize=9)
    else:
        axes.text(box.right, box.y, more, ha="left", va="center", fontsize=9)


def _rounded_box(box: Box, radius: float, look: dict[str, Any]) -> "FancyBboxPatch":
    """Return a rectangle whose corners have a radius in inches."""
    from matplotlib.patches import FancyBboxPatch

    style = f"round,pad=0,rounding_size={radius}"
    return FancyBboxPatch((box.left, box.bottom), box.width, box.height, boxstyle=style, **look)


def _write_lines(axes: "Axes", lines: list[str], box: Box) -> None:
    """Write the lines of a rolled cell, the first as its heading."""
    height = box.height / (len(lines) + 0.6)
    for number, line in enumerate(lines):
        y = box.top - (number + 0.8) * height
        weight = "bold" if number == 0 else "normal"
        text = line if number == 0 else _formula(line)
        axes.text(box.x, y, text, ha="center", va="center", fontsize=10, weight=weight, zorder=4)


def _formula(text: str) -> str:
    """Return a text of ours with its indices lowered."""

    def lowered(found: re.Match[str]) -> str:
        index = found[2].strip("()").replace("-", "{-}").replace("+", "{+}")
        return f"${found[1]}_{{{index}}}$"

    return _INDEXED.sub(lowered, text)


def _add_legend(axes: "Axes", graph: Graph) -> None:
    """Say below the graph what the colours mean."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    kinds = {node.kind for node in graph.nodes}
    handles: list[Any] = []
    for kind, name in _KINDS.items():
        if kind in kinds:
            style: Any = "dashed" if kind in ("start", "trained") else "solid"
            fill = FILLS[kind]
            handles.append(Patch(facecolor=fill, edgecolor=BORDER, linestyle=style, label=name))

    handles.append(Line2D([], [], color=LINE, label="in a step"))
    carried = {edge.carries for edge in graph.edges}
    for state in ("h", "c"):
        if state not in carried:
            continue
        name = f"recurrent: {state}"
        handles.append(Line2D([], [], color=RECURRENT[state], linewidth=2, label=name))

    axes.legend(
        handles=handles,
        loc="lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handlelength=1.3,
        columnspacing=1.0,
        handletextpad=0.5,
    )
