"""The graph of what a network computes: unrolled over the time steps, or rolled into its loops.

Plain data that build.py makes, layout.py places, plot.py draws and text.py writes down.

In an unrolled graph each operation of each step is a node of its own. For T steps, L layers and D
directions of a cell that has p nodes, e edges beside that of its input, r recurrent edges among
them, and s states:

    nodes           = T + p T L D + s L D + 1
    edges           = T D (1 + e) + T D (L - 1) (D + e) + D
    recurrent edges = r T L D

           p    e   r   s
    rnn    5    5   1   1    h_t = f(W_ih x_t + W_hh h_(t-1))
    gru   12   17   2   1    r, z = sigma(W_ih x_t + W_hh h_(t-1)), each by its own rows of W
                             n = tanh(W_ih x_t + r ⊙ (W_hh h_(t-1)))
                             h_t = (1 - z) ⊙ n + z ⊙ h_(t-1)
    lstm  14   18   2   2    i, f, o = sigma(W_ih x_t + W_hh h_(t-1)), g = tanh(the same)
                             c_t = f ⊙ c_(t-1) + i ⊙ g,  h_t = o ⊙ tanh(c_t)

The T are the tokens, and the 1 is the node of the logits. A layer above the first takes h_t of all
D directions of the layer below: D edges in place of the one from the token. The last D edges lead
to the logits, from the last h of the forward direction and from the first token's h in reverse.
What takes the initial state counts as recurrent. Equations: torch.nn.RNN, GRU and LSTM.

In a rolled graph each layer and direction is one node, with s loops:

    nodes           = 2 + L D
    edges           = D + (L - 1) D D + D + s L D
    recurrent edges = s L D

Where the head sees the mean or the maximum of the last layer's states, each of the two is one more
node, with T D edges from the states (D in a rolled graph) and one to the logits. Unless it sees the
last states as well, the last D edges are not there. A skip is a node more, the mean of all x_t,
with T edges from the tokens (1 in a rolled graph) and one to the logits. The n-grams that end at a
token are part of its x_t.
"""

from typing import Literal, NamedTuple

from rnncls.inspect.graph.cells import CELLS, Kind
from rnncls.model.classifier import RNNClassifier
from rnncls.model.pooling import Pooling, parts_of
from rnncls.system.shown import counted

# What is drawn with a round outline.
ROUND = ("token", "operation", "state", "start", "trained")

SKIP = "skip"  # the name of the node with the mean of all x_t


class Architecture(NamedTuple):
    """What of a network its graph depends on."""

    cell: str  # rnn, gru or lstm
    nonlinearity: str = "tanh"  # of cell rnn
    num_layers: int = 1
    num_directions: int = 1
    bias: bool = True
    embedding_dim: int = 10
    hidden_size: int = 128
    num_classes: int = 10
    pooling: Pooling = "last"
    has_trained_start: bool = False  # whether h_0 and c_0 are parameters
    skip: bool = False  # whether the head sees the mean of all x_t, too
    has_ngrams: bool = False  # whether x_t depends on the tokens before
    has_positions: bool = False

    @property
    def pools(self) -> list[Pooling]:
        """What the head sees beside last states: mean, max, both or neither."""
        return [part for part in parts_of(self.pooling) if part != "last"]

    @property
    def sees_last(self) -> bool:
        """Whether the head sees the last states."""
        return "last" in parts_of(self.pooling)


class Node(NamedTuple):
    """One value, or the operation that makes it."""

    name: str  # letters, digits and "_"; no other node has it
    kind: Kind
    label: str  # "\n" between its lines
    role: str  # what it is within its cell: "x", "W_ih", "h", ...
    layer: int | None = None  # None for what belongs to no layer, and for a gap between layers
    direction: int = 0
    step: int | None = None  # from 1, as in the label; None for no step or a gap between steps
    token: str = ""  # as it was given: foreign text


class Edge(NamedTuple):
    """What is computed from what."""

    source: str  # names of nodes
    target: str
    carries: Literal["", "h", "c"] = ""  # the state that a recurrent edge takes to the next step
    label: str = ""


class Counts(NamedTuple):
    """How large a graph is."""

    nodes: int
    edges: int
    recurrent_edges: int


class Graph(NamedTuple):
    """What is drawn: a whole graph, or one with gaps among its steps and layers."""

    architecture: Architecture
    nodes: list[Node]
    edges: list[Edge]
    num_steps: int  # of the whole graph; 0 for a rolled one
    steps: list[int | None]  # that are drawn, in the order of time; None for a gap
    layers: list[int | None]  # that are drawn, from below; None for a gap
    whole: Counts  # of the graph without gaps

    @property
    def is_rolled(self) -> bool:
        """Whether one step stands for all."""
        return self.num_steps == 0


def architecture_of(network: RNNClassifier) -> Architecture:
    """Return what of a network its graph depends on."""
    rnn = network.rnn
    cell, _, nonlinearity = rnn.mode.lower().partition("_")
    return Architecture(
        cell,
        nonlinearity,
        rnn.num_layers,
        network.num_directions,
        rnn.bias,
        rnn.input_size,
        rnn.hidden_size,
        network.head.out_features,
        network.pooling,
        network.initial_state is not None,
        network.skip,
        bool(network.ngrams),
        network.num_positions is not None,
    )


def unrolled_counts(architecture: Architecture, num_steps: int) -> Counts:
    """Return the size of the unrolled graph, by the formula above."""
    cell = CELLS[architecture.cell]
    num_layers = architecture.num_layers
    num_directions = architecture.num_directions
    num_cells = num_steps * num_layers * num_directions

    starts = len(cell.states) * num_layers * num_directions
    nodes = num_steps + len(cell.parts) * num_cells + starts + 1 + len(architecture.pools)
    nodes += architecture.skip

    first_layer = num_steps * num_directions * (1 + len(cell.edges))
    per_layer = num_steps * num_directions * (num_directions + len(cell.edges))
    edges = first_layer + (num_layers - 1) * per_layer
    edges += _edges_above(architecture, num_steps * num_directions)
    edges += architecture.skip * (num_steps + 1)

    recurrent = sum(edge[0].endswith("-1") for edge in cell.edges)
    return Counts(nodes, edges, recurrent * num_cells)


def rolled_counts(architecture: Architecture) -> Counts:
    """Return the size of the rolled graph, by the formula above."""
    num_layers = architecture.num_layers
    num_directions = architecture.num_directions
    loops = len(CELLS[architecture.cell].states) * num_layers * num_directions

    between_layers = (num_layers - 1) * num_directions**2
    edges = num_directions + between_layers + loops
    edges += _edges_above(architecture, num_directions) + 2 * architecture.skip
    nodes = 2 + num_layers * num_directions + len(architecture.pools) + architecture.skip
    return Counts(nodes, edges, loops)


def _edges_above(architecture: Architecture, num_pooled: int) -> int:
    """Return how many edges there are above the last layer; `num_pooled` nodes have its states."""
    ends = architecture.num_directions if architecture.sees_last else 0
    return ends + len(architecture.pools) * (num_pooled + 1)


def heading_of(graph: Graph) -> str:
    """Return what the graph is of, and how large it is."""
    whole = graph.whole
    counts = f"{whole.nodes:,} nodes, {whole.edges:,} edges, {whole.recurrent_edges:,} recurrent"
    return f"{title_of(graph)}: {counts}"


def title_of(graph: Graph) -> str:
    """Return what the graph is of: cell, layers, directions, pooling, steps."""
    architecture = graph.architecture
    parts = [
        architecture.cell,
        counted(architecture.num_layers, "layer"),
        "forward and reverse" if architecture.num_directions == 2 else "forward",
    ]
    if architecture.pooling != "last":
        parts.append(architecture.pooling)
    if architecture.skip:
        parts.append("skip")
    if architecture.has_ngrams:
        parts.append("n-grams in x_t")
    if architecture.has_positions:
        parts.append("position in x_t")
    if graph.is_rolled:
        parts.append("rolled")
    else:
        parts.append(counted(graph.num_steps, "step"))
    return ", ".join(parts)
