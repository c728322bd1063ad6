"""Where everything of a graph stands: time from left to right, layers from bottom to top.

Lengths are inches, and y points up. Each direction of each layer is a band; in reverse it is
mirrored, so that recurrent edges always leave towards the step that comes next. Edges run straight
within a cell, and otherwise along the free space between cells and bands: two of them lie upon each
other only where what they carry is read together.
"""

from collections.abc import Sequence
from typing import NamedTuple

from rnncls.inspect.graph import Edge, Graph, Node, cell_name

Point = tuple[float, float]

# Places of the nodes within one step of a cell, forwards.
_PLACES: dict[str, dict[str, Point]] = {
    "rnn": {
        "W_hh": (0.0, 0.62),
        "W_ih": (0.6, 0.0),
        "sum": (0.6, 0.62),
        "f": (0.6, 1.15),
        "h": (0.6, 1.7),
    },
    "gru": {
        "W_hh": (0.2, 0.62),
        "W_ih": (2.05, 0.0),
        "sum": (0.86, 0.62),
        "r": (0.62, 1.27),
        "z": (1.22, 1.27),
        "reset": (0.2, 1.9),
        "candidate": (2.05, 1.9),
        "n": (2.05, 2.5),
        "kept": (0.62, 3.1),
        "mix": (1.17, 3.1),
        "new": (1.72, 3.1),
        "h": (1.17, 3.65),
    },
    "lstm": {
        "W_hh": (0.25, 0.62),
        "W_ih": (0.98, 0.0),
        "sum": (0.98, 0.62),
        "f": (0.0, 1.3),
        "i": (0.65, 1.3),
        "g": (1.3, 1.3),
        "o": (1.95, 1.3),
        "new": (0.98, 1.95),
        "kept": (0.0, 2.5),
        "mix": (0.98, 2.5),
        "c": (1.48, 2.5),
        "tanh": (1.48, 3.08),
        "out": (1.95, 3.08),
        "h": (1.95, 3.62),
    },
}

# Width and height of a node, by its kind.
_SIZES = {
    "token": (0.5, 0.36),
    "weights": (0.66, 0.42),
    "operation": (0.26, 0.26),
    "function": (0.48, 0.4),
    "gate": (0.44, 0.4),
    "state": (0.5, 0.36),
    "start": (0.5, 0.36),
    "logits": (0.8, 0.42),
    "gap": (0.4, 0.26),
}
_PER_DIGIT = 0.07  # of a step's number beyond two digits

_MARGIN = 0.25  # around everything
_TITLES = 0.95  # to the left of the bands, for their names
_HEADING = 0.6
_LEGEND = 0.55
_LANE = 0.13  # from a cell to what passes it
_PADDING = 0.1  # around what is in a band
_LEAST_WIDTH = 8.0  # for the heading and the legend

_LINE = 0.235  # of the text in a rolled cell
_CELL_WIDTH = 3.9
_LOOP = 0.5  # how far a loop reaches out


class Box(NamedTuple):
    """The middle of a node, and how large it is."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> float:
        """Where it begins."""
        return self.x - self.width / 2

    @property
    def right(self) -> float:
        """Where it ends."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Its lowest y."""
        return self.y - self.height / 2

    @property
    def top(self) -> float:
        """Its highest y."""
        return self.y + self.height / 2


class Band(NamedTuple):
    """What lies behind one direction of a layer, and its name, which stands to the left."""

    title: str
    direction: int
    box: Box


class Layout(NamedTuple):
    """A graph in a plane."""

    width: float
    height: float
    boxes: dict[str, Box]  # by the name of the node
    paths: list[list[Point]]  # of each edge: its ends and its corners
    bands: list[Band]


class _Column(NamedTuple):
    """Where one step stands."""

    left: float
    right: float


def layout_of(graph: Graph) -> Layout:
    """Return where everything of the graph stands."""
    return _rolled_layout(graph) if graph.is_rolled else _unrolled_layout(graph)


# --- unrolled


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
    logits_y: float

    @property
    def height(self) -> float:
        """The height of a band."""
        highest = max(y for _, y in _PLACES[self.cell].values())
        return highest + _SIZES["weights"][1] / 2 + _SIZES["state"][1] / 2 + 2 * _PADDING


def _unrolled_layout(graph: Graph) -> Layout:
    frame = _frame_of(graph)
    boxes = {node.name: _box_of(node, graph, frame) for node in graph.nodes}
    bands = _bands_of(graph, frame)

    nodes = {node.name: node for node in graph.nodes}
    paths = []
    for edge in graph.edges:
        source, target = nodes[edge.source], nodes[edge.target]
        if edge.carries:
            paths.append(_to_next_step(source, target, boxes, frame.columns))
        elif source.layer == target.layer and source.layer is not None:
            paths.append(_straight(boxes[edge.source], boxes[edge.target], source, target))
        else:
            paths.append(_to_next_layer(source, target, boxes, frame, bands))

    width = max(frame.right + _MARGIN, _LEAST_WIDTH)
    height = frame.logits_y + _SIZES["logits"][1] / 2 + _HEADING
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
        wider=_PER_DIGIT * max(0, len(str(graph.num_steps)) - 2),
        left=0,
        right=0,
        tokens_y=_MARGIN + _LEGEND + 0.45,
        logits_y=0,
    )

    # From below: the tokens, then the bands with free space between them.
    floor = frame.tokens_y + _SIZES["token"][1] / 2 + frame.corridor
    for layer in graph.layers:
        if layer is None:
            frame.floors[None, 0] = floor
            floor += _SIZES["gap"][1] + frame.corridor
            continue
        for direction in range(architecture.num_directions):
            frame.floors[layer, direction] = floor
            floor += frame.height + frame.corridor

    columns, left, right = _columns(graph, frame)
    logits_y = floor + _SIZES["logits"][1] / 2
    return frame._replace(columns=columns, left=left, right=right, logits_y=logits_y)


def _box_of(node: Node, graph: Graph, frame: _Frame) -> Box:
    width, height = _SIZES[node.kind]
    if node.kind not in ("operation", "logits", "gap"):
        width += frame.wider

    if node.role == "x":
        y = frame.tokens_y
    elif node.kind == "logits":
        y = frame.logits_y
    elif node.layer is None:
        y = frame.floors[None, 0] + height / 2
    else:
        y = frame.floors[node.layer, node.direction] + _PADDING + _SIZES["weights"][1] / 2
        y += _PLACES[frame.cell][node.role][1]
    return Box(_x_of(node, graph, frame), y, width, height)


def _bands_of(graph: Graph, frame: _Frame) -> list[Band]:
    num_directions = graph.architecture.num_directions
    left_out = graph.architecture.num_layers - sum(layer is not None for layer in graph.layers)
    width = frame.right - frame.left
    bands = []
    for (layer, direction), bottom in frame.floors.items():
        if layer is None:
            title = f"{left_out:,} more"
            height = _SIZES["gap"][1]
        else:
            title = cell_name(layer, direction, num_directions).replace(", ", "\n")
            height = frame.height
        box = Box(frame.left + width / 2, bottom + height / 2, width, height)
        bands.append(Band(title, direction, box))
    return bands


def _columns(graph: Graph, frame: _Frame) -> tuple[dict[int | None, _Column], float, float]:
    """Return where each step stands, and where the bands begin and end."""
    places = [x for x, _ in _PLACES[frame.cell].values()]
    block = max(places) - min(places) + _SIZES["weights"][0] + frame.wider
    widths = {step: _SIZES["gap"][0] if step is None else block for step in graph.steps}
    start = _SIZES["start"][0] + frame.wider + 0.15

    # In reverse, the initial state stands behind the last step.
    total = start + frame.between + sum(widths.values()) + frame.between * len(widths)
    if graph.architecture.num_directions == 2:
        total += start

    # A short one stands in the middle.
    first = _MARGIN + _TITLES
    first += max(0.0, (_LEAST_WIDTH - first - total - _MARGIN) / 2)
    columns: dict[int | None, _Column] = {}
    left = first + start + frame.between
    for step, width in widths.items():
        columns[step] = _Column(left, left + width)
        left += width + frame.between
    return columns, first, first + total


def _x_of(node: Node, graph: Graph, frame: _Frame) -> float:
    if node.kind == "logits":
        # Above the last h, or above the middle of the last step where two states lead to it.
        last = frame.columns[graph.num_steps]
        if graph.architecture.num_directions == 2:
            return (last.left + last.right) / 2
        return _x_in(frame, "h", 0, last)

    if node.kind == "start":
        beside = frame.between + (_SIZES["start"][0] + frame.wider) / 2
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
    places = _PLACES[frame.cell]
    leftmost = min(x for x, _ in places.values())
    x = places[role][0] - leftmost + (_SIZES["weights"][0] + frame.wider) / 2
    return column.left + x if direction == 0 else column.right - x


def _to_next_step(
    source: Node, target: Node, boxes: dict[str, Box], columns: dict[int | None, _Column]
) -> list[Point]:
    """Return a way out at the side, up or down in the free space before the step, and in."""
    begin, end = boxes[source.name], boxes[target.name]
    column = columns[target.step]
    if target.direction == 0:
        turn = column.left - _LANE
        first, last = begin.right, end.left
    else:
        turn = column.right + _LANE
        first, last = begin.left, end.right

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
    begin, end = boxes[source.name], boxes[target.name]
    passed = [band for band in bands if begin.top < band.box.bottom and band.box.top < end.bottom]
    if not passed and begin.x == end.x:
        return [(begin.x, begin.top), (end.x, end.bottom)]

    # All turns between two bands are at one height, so that what is read together looks joined.
    # Below a band in reverse are two ways: the one that leaves its layer turns further below.
    x = begin.x
    path = [(x, begin.top)]
    column = frame.columns[source.step]
    for band in passed:
        y = band.box.bottom - frame.corridor * (0.7 if band.direction == 1 else 0.5)
        lane = column.left - _LANE if band.direction == 1 else column.right + _LANE
        path += [(x, y), (lane, y)]
        x = lane

    is_in_band = target.kind != "logits" and target.layer is not None
    floor = end.bottom - (_PADDING if is_in_band else 0)
    y = floor - frame.corridor * (0.3 if target.direction == 1 else 0.5)
    return [*path, (x, y), (end.x, y), (end.x, end.bottom)]


_ROUND = ("token", "operation", "state", "start")


def _straight(begin: Box, end: Box, source: Node, target: Node) -> list[Point]:
    """Return a straight way from one outline to the other."""
    return [
        _outline(begin, (end.x, end.y), source.kind in _ROUND),
        _outline(end, (begin.x, begin.y), target.kind in _ROUND),
    ]


def _outline(box: Box, towards: Point, is_round: bool) -> Point:
    """Return where the way from the middle of a node towards a point leaves the node."""
    dx, dy = towards[0] - box.x, towards[1] - box.y
    across, up = abs(dx) / (box.width / 2), abs(dy) / (box.height / 2)
    part = (across**2 + up**2) ** 0.5 if is_round else max(across, up)
    return box.x + dx / part, box.y + dy / part


# --- rolled


def _rolled_layout(graph: Graph) -> Layout:
    num_directions = graph.architecture.num_directions
    sizes = {}
    for node in graph.nodes:
        if node.kind == "cell":
            lines = node.label.count("\n") + 1
            sizes[node.name] = (_CELL_WIDTH, lines * _LINE + 0.25)
        else:
            sizes[node.name] = _SIZES[node.kind]

    between = 0.6
    pitch = _CELL_WIDTH + between
    total = num_directions * pitch - between
    loops = 2 * (_LOOP + 0.75)
    width = max(total + loops + 2 * _MARGIN, _LEAST_WIDTH)
    middle = width / 2

    # One row for each layer, and one for what belongs to none.
    boxes: dict[str, Box] = {}
    y = _MARGIN + _LEGEND
    gap = 0.5
    for node in graph.nodes:
        node_width, height = sizes[node.name]
        x = middle
        if node.kind == "cell":
            x += (node.direction - (num_directions - 1) / 2) * pitch
        if node.direction == 0:
            y += height / 2
        boxes[node.name] = Box(x, y, node_width, height)
        if node.kind != "cell" or node.direction == num_directions - 1:
            y += height / 2 + gap

    paths = []
    for edge in graph.edges:
        begin, end = boxes[edge.source], boxes[edge.target]
        if edge.carries:
            is_left = num_directions == 2 and edge.source.endswith("forward")
            paths.append(_loop(edge, graph, begin, is_left))
        else:
            # Two ways into one node end beside each other.
            beside = 0.0
            if end.x != begin.x:
                beside = 0.15 if begin.x > end.x else -0.15
            paths.append([(begin.x - beside, begin.top), (end.x + beside, end.bottom)])
    return Layout(width, y - gap + _HEADING, boxes, paths, [])


def _loop(edge: Edge, graph: Graph, box: Box, is_left: bool) -> list[Point]:
    """Return a way out at one side of a cell and back in; a second loop is above the first."""
    side = box.left if is_left else box.right
    out = side - _LOOP if is_left else side + _LOOP
    y = box.y
    if graph.architecture.cell == "lstm":
        y += 0.35 if edge.carries == "c" else -0.35
    return [(side, y + 0.2), (out, y + 0.2), (out, y - 0.2), (side, y - 0.2)]
