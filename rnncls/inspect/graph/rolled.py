"""Where everything of a rolled graph stands: a cell for each layer and direction, and its loops."""

from itertools import groupby

from rnncls.inspect.graph.graph import SKIP, Edge, Graph, Node
from rnncls.inspect.graph.places import (
    HEADING,
    LEGEND,
    MARGIN,
    SIZES,
    Box,
    Layout,
    Point,
    beside_logits,
    least_width,
)

# Inches.
LINE = 0.235  # of the text in a cell
CELL_WIDTH = 3.9
BESIDE = 0.6  # between the two directions of a layer
ABOVE = 0.5  # between two rows
LOOP = 0.5  # how far a loop reaches out


def rolled_layout(graph: Graph) -> Layout:
    """Return where everything of a rolled graph stands."""
    num_directions = graph.architecture.num_directions
    cells = num_directions * (CELL_WIDTH + BESIDE) - BESIDE
    loops = 2 * (LOOP + 0.75)
    width = max(cells + loops + 2 * MARGIN, least_width(graph))

    # One row for each layer, one for what is pooled, and one for each node beside these.
    boxes: dict[str, Box] = {}
    y = MARGIN + LEGEND
    for _, row in groupby(graph.nodes, lambda node: (node.kind, node.layer)):
        nodes = list(row)
        _, height = _size_of(nodes[0])
        y += height / 2
        for node in nodes:
            # Two directions lead past what is pooled, and not through its middle.
            closer = 1.0 if num_directions == 1 else 0.65
            if node.name == SKIP and num_directions == 2:
                closer = 2.0
            x = width / 2 + closer * beside_logits(node, graph.architecture)
            if node.kind == "cell":
                x += (node.direction - (num_directions - 1) / 2) * (CELL_WIDTH + BESIDE)
            boxes[node.name] = Box(x, y, *_size_of(node))
        y += height / 2 + ABOVE

    paths = []
    for edge in graph.edges:
        begin = boxes[edge.source]
        if edge.carries:
            is_left = num_directions == 2 and edge.source.endswith("forward")
            paths.append(_loop(edge, graph, begin, is_left))
        elif edge.target == SKIP:
            paths.append(_way_around(begin, boxes[SKIP], width / 2 + cells / 2 + LOOP + 0.75))
        else:
            paths.append(_way_up(begin, boxes[edge.target]))
    return Layout(width, y - ABOVE + HEADING, boxes, paths, [])


def _size_of(node: Node) -> Point:
    """Return the width and the height of a node."""
    if node.kind != "cell":
        return SIZES[node.kind]
    num_lines = node.label.count("\n") + 1
    return CELL_WIDTH, num_lines * LINE + 0.25


def _way_around(begin: Box, end: Box, x: float) -> list[Point]:
    """Return a way to the right of all cells and their loops, at this x."""
    return [(begin.right, begin.y), (x, begin.y), (x, end.y), (end.right, end.y)]


def _way_up(begin: Box, end: Box) -> list[Point]:
    """Return a straight way; two that lead into one node end beside each other."""
    beside = 0.0
    if end.x != begin.x:
        beside = 0.15 if begin.x > end.x else -0.15
    return [(begin.x - beside, begin.top), (end.x + beside, end.bottom)]


def _loop(edge: Edge, graph: Graph, box: Box, is_left: bool) -> list[Point]:
    """Return a way out at one side of a cell and back in; a second loop is above the first."""
    side = box.left if is_left else box.right
    out = side - LOOP if is_left else side + LOOP
    y = box.y
    if graph.architecture.cell == "lstm":
        y += 0.35 if edge.carries == "c" else -0.35
    return [(side, y + 0.2), (out, y + 0.2), (out, y - 0.2), (side, y - 0.2)]
