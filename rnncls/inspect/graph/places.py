"""The layout of a graph as numbers: boxes, paths and bands, and how large everything is.

Lengths are inches, and y points up.
"""

from typing import NamedTuple

from rnncls.inspect.graph.cells import Kind
from rnncls.inspect.graph.graph import SKIP, Architecture, Graph, Node, heading_of

Point = tuple[float, float]

# Places of the nodes within one step of a cell, forwards.
PLACES: dict[str, dict[str, Point]] = {
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
SIZES: dict[Kind, Point] = {
    "token": (0.5, 0.36),
    "weights": (0.66, 0.42),
    "operation": (0.26, 0.26),
    "function": (0.48, 0.4),
    "gate": (0.44, 0.4),
    "state": (0.5, 0.36),
    "start": (0.5, 0.36),
    "trained": (0.5, 0.36),
    "pooling": (0.66, 0.42),
    "logits": (0.8, 0.42),
    "gap": (0.4, 0.26),
}

# From the middle of the logits to that of the mean, and of the maximum, below them, where the last
# states lead between the two.
BESIDE_LAST = 0.62

MARGIN = 0.25  # around everything
HEADING = 0.6
LEGEND = 0.55
LEAST_WIDTH = 8.0  # for the legend
LEAST_WIDTH_LSTM = 9.2  # which has gates and two states
PER_LETTER = 0.1  # of the heading


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


def least_width(graph: Graph) -> float:
    """Return the width that heading and legend need."""
    is_lstm = graph.architecture.cell == "lstm"
    of_legend = LEAST_WIDTH_LSTM if is_lstm else LEAST_WIDTH
    return max(of_legend, PER_LETTER * len(heading_of(graph)))


def beside_logits(node: Node, architecture: Architecture) -> float:
    """Return how far to the right of the logits a node stands that belongs to the head.

    Mean and maximum leave the middle to what leads there from the last states. To the right of all
    stands what a skip takes there.
    """
    if node.name == SKIP:
        return 2.5 * BESIDE_LAST
    if node.kind != "pooling" or not architecture.sees_last:
        return 0.0
    return -BESIDE_LAST if node.name == architecture.pools[0] else BESIDE_LAST


class Layout(NamedTuple):
    """A graph in a plane."""

    width: float
    height: float
    boxes: dict[str, Box]  # by the name of the node
    paths: list[list[Point]]  # of each edge: its ends and its corners
    bands: list[Band]
