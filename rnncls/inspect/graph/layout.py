"""Where everything of a graph stands: time from left to right, layers from bottom to top.

Lengths are inches, and y points up. Each direction of each layer is a band; in reverse it is
mirrored, so that recurrent edges always leave towards the step that comes next. Edges run straight
within a cell, and otherwise along the free space between cells and bands: two of them lie upon each
other only where what they carry is read together.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rnncls.inspect.graph.graph import ROUND, Graph, Node
from rnncls.inspect.graph.places import (
    HEADING,
    LEGEND,
    MARGIN,
    PLACES,
    SIZES,
    Band,
    Box,
    Layout,
    Point,
    beside_logits,
    least_width,
)
from rnncls.inspect.graph.rolled import rolled_layout
from rnncls.model.cells import layer_name

PER_DIGIT = 0.07  # of a step's number beyond two digits
TITLES = 0.95  # to the left of the bands, for their names
LANE = 0.13  # from a cell to what passes it
PADDING = 0.1  # around what is in a band


class _Column(NamedTuple):
    """Where one step stands."""

    left: float
    right: float


def layout_of(graph: Graph) -> Layout:
    """Return where everything of the graph stands."""
    return rolled_layout(graph) if graph.is_rolled else _unrolled_layout(graph)


class _Frame(NamedTuple):
    """Where the steps and the layers of an unrolled graph stand."""

    cell: str
    columns: dict[int | None, _Column]  # by step; None for the gap
    floors: dict[tuple[int | None, int], float]  # of the bands, by layer and direction
    corridor: float  # the height of the free space below each band
    between: float  # the width of the free space between two steps
    wider: float  # how much more space the numbers of the steps need
    left: float  # of all bands
    right: float
    tokens_y: float
    pools_y: float  # of what is pooled for the logits
    logits_y: float

    @property
    def height(self) -> float:
        """The height of a band."""
        highest = max(y for _, y in PLACES[self.cell].values())
        return highest + SIZES["weights"][1] / 2 + SIZES["state"][1] / 2 + 2 * PADDING


def _unrolled_layout(graph: Graph) -> Layout:
    frame = _frame_of(graph)
    boxes = {node.name: _box_of(node, graph, frame) for node in graph.nodes}
    bands = _bands_of(graph, frame)

    nodes = {node.name: node for node in graph.nodes}
    paths = []
    for edge in graph.edges:
        source = nodes[edge.source]
        target = nodes[edge.target]
        if edge.carries:
            paths.append(_to_next_step(source, target, boxes, frame.columns))
        elif source.layer == target.layer and source.layer is not None:
            paths.append(_straight(boxes[edge.source], boxes[edge.target], source, target))
        else:
            paths.append(_to_next_layer(source, target, boxes, frame, bands))

    width = max(frame.right, *(box.right for box in boxes.values())) + MARGIN
    width = max(width, least_width(graph))
    height = frame.logits_y + SIZES["logits"][1] / 2 + HEADING
    return Layout(width, height, boxes, paths, bands)


def _frame_of(graph: Graph) -> _Frame:
    architecture = graph.architecture
    is_two_way = architecture.num_directions == 2
    frame = _Frame(
        cell=architecture.cell,
        columns={},
        floors={},
        corridor=0.5 if is_two_way else 0.36,
        # Room for one way up in each direction.
        between=0.5 if is_two_way else 0.32,
        wider=PER_DIGIT * max(0, len(str(graph.num_steps)) - 2),
        left=0,
        right=0,
        tokens_y=MARGIN + LEGEND + 0.45,
        pools_y=0,
        logits_y=0,
    )

    # From below: the tokens, then the bands with free space between them.
    floor = frame.tokens_y + SIZES["token"][1] / 2 + frame.corridor
    for layer in graph.layers:
        if layer is None:
            frame.floors[None, 0] = floor
            floor += SIZES["gap"][1] + frame.corridor
            continue
        for direction in range(architecture.num_directions):
            frame.floors[layer, direction] = floor
            floor += frame.height + frame.corridor

    pools_y = floor + SIZES["pooling"][1] / 2
    if architecture.pools or architecture.skip:
        floor += SIZES["pooling"][1] + frame.corridor

    columns, left, right = _columns(graph, frame)
    logits_y = floor + SIZES["logits"][1] / 2
    return frame._replace(
        columns=columns, left=left, right=right, pools_y=pools_y, logits_y=logits_y
    )


def _box_of(node: Node, graph: Graph, frame: _Frame) -> Box:
    width, height = SIZES[node.kind]
    if node.kind not in ("operation", "logits", "gap"):
        width += frame.wider

    if node.role == "x":
        y = frame.tokens_y
    elif node.kind == "logits":
        y = frame.logits_y
    elif node.kind == "pooling":
        y = frame.pools_y
    elif node.layer is None:
        y = frame.floors[None, 0] + height / 2
    else:
        y = frame.floors[node.layer, node.direction] + PADDING + SIZES["weights"][1] / 2
        y += PLACES[frame.cell][node.role][1]
    return Box(_x_of(node, graph, frame), y, width, height)


def _bands_of(graph: Graph, frame: _Frame) -> list[Band]:
    num_directions = graph.architecture.num_directions
    left_out = graph.architecture.num_layers - sum(layer is not None for layer in graph.layers)
    width = frame.right - frame.left
    bands = []
    for (layer, direction), bottom in frame.floors.items():
        if layer is None:
            title = f"{left_out:,} more"
            height = SIZES["gap"][1]
        else:
            title = layer_name(layer, direction, num_directions).replace(", ", "\n")
            height = frame.height
        box = Box(frame.left + width / 2, bottom + height / 2, width, height)
        bands.append(Band(title, direction, box))
    return bands


def _columns(graph: Graph, frame: _Frame) -> tuple[dict[int | None, _Column], float, float]:
    """Return where each step stands, and where the bands begin and end."""
    places = [x for x, _ in PLACES[frame.cell].values()]
    block = max(places) - min(places) + SIZES["weights"][0] + frame.wider
    widths = {step: SIZES["gap"][0] if step is None else block for step in graph.steps}
    start = SIZES["start"][0] + frame.wider + 0.15

    # In reverse, the initial state stands behind the last step.
    total = start + frame.between + sum(widths.values()) + frame.between * len(widths)
    if graph.architecture.num_directions == 2:
        total += start

    # A short one stands in the middle.
    first = MARGIN + TITLES
    first += max(0.0, (least_width(graph) - first - total - MARGIN) / 2)
    columns: dict[int | None, _Column] = {}
    left = first + start + frame.between
    for step, width in widths.items():
        columns[step] = _Column(left, left + width)
        left += width + frame.between
    return columns, first, first + total


def _x_of(node: Node, graph: Graph, frame: _Frame) -> float:
    if node.kind in ("logits", "pooling"):
        # Above the last h, or above the middle of the last step where two states lead to it.
        last = frame.columns[graph.num_steps]
        x = _x_in(frame, "h", 0, last)
        if graph.architecture.num_directions == 2:
            x = (last.left + last.right) / 2
        return x + beside_logits(node, graph.architecture)

    if node.kind in ("start", "trained"):
        beside = frame.between + (SIZES["start"][0] + frame.wider) / 2
        if node.direction == 0:
            return frame.columns[1].left - beside
        return frame.columns[graph.num_steps].right + beside

    column = frame.columns[node.step]
    if node.step is None:
        return (column.left + column.right) / 2
    role = node.role if node.layer is not None else "W_ih"
    return _x_in(frame, role, node.direction, column)


def _x_in(frame: _Frame, role: str, direction: int, column: _Column) -> float:
    """Return the x of a node in its column, mirrored in reverse."""
    places = PLACES[frame.cell]
    leftmost = min(x for x, _ in places.values())
    x = places[role][0] - leftmost + (SIZES["weights"][0] + frame.wider) / 2
    return column.left + x if direction == 0 else column.right - x


def _to_next_step(
    source: Node, target: Node, boxes: dict[str, Box], columns: dict[int | None, _Column]
) -> list[Point]:
    """Return a way out at the side, up or down in the free space before the step, and in."""
    begin = boxes[source.name]
    end = boxes[target.name]
    column = columns[target.step]
    if target.direction == 0:
        turn = column.left - LANE
        first = begin.right
        last = end.left
    else:
        turn = column.right + LANE
        first = begin.left
        last = end.right

    if begin.y == end.y:
        return [(first, begin.y), (last, end.y)]
    return [(first, begin.y), (turn, begin.y), (turn, end.y), (last, end.y)]


def _to_next_layer(
    source: Node,
    target: Node,
    boxes: dict[str, Box],
    frame: _Frame,
    bands: Sequence[Band],
) -> list[Point]:
    """Return a way up, which passes by the bands that lie between, at the side of the cells."""
    begin = boxes[source.name]
    end = boxes[target.name]
    passed = [band for band in bands if begin.top < band.box.bottom and band.box.top < end.bottom]
    if not passed and begin.x == end.x:
        return [(begin.x, begin.top), (end.x, end.bottom)]

    # All turns between two bands are at one height, so that what is read together looks joined.
    # Below a band in reverse are two ways: the one that leaves its layer turns further below.
    x = begin.x
    path = [(x, begin.top)]
    for band in passed:
        column = frame.columns[source.step]
        y = band.box.bottom - frame.corridor * (0.7 if band.direction == 1 else 0.5)
        lane = column.left - LANE if band.direction == 1 else column.right + LANE
        path += [(x, y), (lane, y)]
        x = lane

    is_in_band = target.kind != "logits" and target.layer is not None
    floor = end.bottom - (PADDING if is_in_band else 0)
    y = floor - frame.corridor * (0.3 if target.direction == 1 else 0.5)
    if target.kind == "logits" and source.layer is not None and frame.pools_y < frame.logits_y:
        # Below what is pooled, and above what leads there.
        y = frame.pools_y - SIZES["pooling"][1] / 2 - frame.corridor * 0.25
    return [*path, (x, y), (end.x, y), (end.x, end.bottom)]


def _straight(begin: Box, end: Box, source: Node, target: Node) -> list[Point]:
    """Return a straight way from one outline to the other."""
    return [
        _outline(begin, (end.x, end.y), source.kind in ROUND),
        _outline(end, (begin.x, begin.y), target.kind in ROUND),
    ]


def _outline(box: Box, towards: Point, is_round: bool) -> Point:
    """Return where the way from the middle of a node towards a point leaves the node."""
    dx = towards[0] - box.x
    dy = towards[1] - box.y
    across = abs(dx) / (box.width / 2)
    up = abs(dy) / (box.height / 2)
    part = (across**2 + up**2) ** 0.5 if is_round else max(across, up)
    return box.x + dx / part, box.y + dy / part
