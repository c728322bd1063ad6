"""The graph of what a network computes: unrolled over the time steps, or rolled into its loops.

Plain data that graph_layout.py places, graph_plot.py draws and graph_text.py writes down.

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
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from rnncls.model.classifier import RNNClassifier

# Of more, the first and the last half are drawn.
MOST_STEPS = 12
MOST_LAYERS = 6

DIRECTIONS = ("forward", "reverse")

Kind = Literal[
    "token", "weights", "operation", "function", "gate", "state", "start", "cell", "logits", "gap"
]


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


class _Part(NamedTuple):
    """A node of one step of a cell. In its label {t} is the step, and {p} the one before."""

    role: str
    kind: Kind
    label: str


class _Cell(NamedTuple):
    """One step of a cell. An edge ("h-1", ...) comes from the state of the step before."""

    parts: tuple[_Part, ...]
    edges: tuple[tuple[str, ...], ...]  # source, target and, for some, a label
    states: tuple[Literal["h", "c"], ...]
    num_blocks: int  # W_ih has num_blocks * hidden_size rows
    equations: tuple[str, ...]


_WEIGHTS = (
    _Part("W_ih", "weights", "W_ih {x}_{t}{b_ih}"),
    _Part("W_hh", "weights", "W_hh h_{p}{b_hh}"),
    _Part("sum", "operation", "+"),
)

_SUM = (("h-1", "W_hh"), ("W_ih", "sum"), ("W_hh", "sum"))

_CELLS = {
    "rnn": _Cell(
        parts=(*_WEIGHTS, _Part("f", "function", "{f}"), _Part("h", "state", "h_{t}")),
        edges=(*_SUM, ("sum", "f"), ("f", "h")),
        states=("h",),
        num_blocks=1,
        equations=("h_t = {f}(W_ih {x}_t + W_hh h_({p}){b})",),
    ),
    # W_hh h has three parts. Those of r and z are added to W_ih x; that of n is first multiplied
    # with r.
    "gru": _Cell(
        parts=(
            *_WEIGHTS,
            _Part("r", "gate", "{sigma}\nr_{t}"),
            _Part("z", "gate", "{sigma}\nz_{t}"),
            _Part("reset", "operation", "⊙"),
            _Part("candidate", "operation", "+"),
            _Part("n", "function", "tanh\nn_{t}"),
            _Part("new", "operation", "⊙"),
            _Part("kept", "operation", "⊙"),
            _Part("mix", "operation", "+"),
            _Part("h", "state", "h_{t}"),
        ),
        edges=(
            *_SUM,
            ("sum", "r"),
            ("sum", "z"),
            ("r", "reset"),
            ("W_hh", "reset"),
            ("W_ih", "candidate"),
            ("reset", "candidate"),
            ("candidate", "n"),
            ("n", "new"),
            ("z", "new", "1 - z"),
            ("z", "kept", "z"),
            ("h-1", "kept"),
            ("new", "mix"),
            ("kept", "mix"),
            ("mix", "h"),
        ),
        states=("h",),
        num_blocks=3,
        equations=(
            "r, z = {sigma}(W_ih {x}_t + W_hh h_({p}){b})",
            "n = tanh(W_ih {x}_t{b_ih} + r ⊙ (W_hh h_({p}){b_hh}))",
            "h_t = (1 - z) ⊙ n + z ⊙ h_({p})",
        ),
    ),
    "lstm": _Cell(
        parts=(
            *_WEIGHTS,
            _Part("f", "gate", "{sigma}\nf_{t}"),
            _Part("i", "gate", "{sigma}\ni_{t}"),
            _Part("g", "function", "tanh\ng_{t}"),
            _Part("o", "gate", "{sigma}\no_{t}"),
            _Part("kept", "operation", "⊙"),
            _Part("new", "operation", "⊙"),
            _Part("mix", "operation", "+"),
            _Part("c", "state", "c_{t}"),
            _Part("tanh", "function", "tanh"),
            _Part("out", "operation", "⊙"),
            _Part("h", "state", "h_{t}"),
        ),
        edges=(
            *_SUM,
            ("sum", "f"),
            ("sum", "i"),
            ("sum", "g"),
            ("sum", "o"),
            ("f", "kept"),
            ("c-1", "kept"),
            ("i", "new"),
            ("g", "new"),
            ("kept", "mix"),
            ("new", "mix"),
            ("mix", "c"),
            ("c", "tanh"),
            ("tanh", "out"),
            ("o", "out"),
            ("out", "h"),
        ),
        states=("h", "c"),
        num_blocks=4,
        equations=(
            "i, f, o = {sigma}(W_ih {x}_t + W_hh h_({p}){b})",
            "g = tanh(W_ih {x}_t + W_hh h_({p}){b})",
            "c_t = f ⊙ c_({p}) + i ⊙ g",
            "h_t = o ⊙ tanh(c_t)",
        ),
    ),
}


def architecture_of(network: "RNNClassifier") -> Architecture:
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
    )


def unrolled_counts(architecture: Architecture, num_steps: int) -> Counts:
    """Return the size of the unrolled graph, by the formula above."""
    cell = _CELLS[architecture.cell]
    num_layers = architecture.num_layers
    num_directions = architecture.num_directions
    num_cells = num_steps * num_layers * num_directions

    starts = len(cell.states) * num_layers * num_directions
    nodes = num_steps + len(cell.parts) * num_cells + starts + 1

    first_layer = num_steps * num_directions * (1 + len(cell.edges))
    per_layer = num_steps * num_directions * (num_directions + len(cell.edges))
    edges = first_layer + (num_layers - 1) * per_layer + num_directions

    recurrent = sum(edge[0].endswith("-1") for edge in cell.edges)
    return Counts(nodes, edges, recurrent * num_cells)


def rolled_counts(architecture: Architecture) -> Counts:
    """Return the size of the rolled graph, by the formula above."""
    num_layers = architecture.num_layers
    num_directions = architecture.num_directions
    loops = len(_CELLS[architecture.cell].states) * num_layers * num_directions

    between_layers = (num_layers - 1) * num_directions**2
    edges = num_directions + between_layers + num_directions + loops
    return Counts(2 + num_layers * num_directions, edges, loops)


def unrolled(
    architecture: Architecture,
    tokens: Sequence[str],
    most_steps: int = MOST_STEPS,
    most_layers: int = MOST_LAYERS,
) -> Graph:
    """Return the graph of a sequence of T >= 1 tokens, with at most so many (>= 2) of each."""
    num_steps = len(tokens)
    steps = [None if step is None else step + 1 for step in _ends(num_steps, most_steps)]
    layers = _ends(architecture.num_layers, most_layers)

    nodes = list(_token_nodes(tokens, steps))
    edges: list[Edge] = []

    # Where each layer finds its inputs: the nodes that it reads at each step.
    below = {step: [_name("x", step=step)] for step in steps}
    for layer in layers:
        if layer is None:
            below = _skip_layers(steps, below, nodes, edges)
            continue

        outputs: dict[int | None, list[str]] = {step: [] for step in steps}
        for direction in range(architecture.num_directions):
            _add_chain(architecture, layer, direction, steps, below, nodes, edges)
            for step in steps:
                outputs[step].append(_name("h", layer, direction, step))
        below = outputs

    nodes.append(_logits_node(architecture))
    # Forwards the last step comes last, and in reverse the first.
    ends = [below[num_steps][0], *below[1][1:]]
    edges += [Edge(end, "logits") for end in ends]

    whole = unrolled_counts(architecture, num_steps)
    return Graph(architecture, nodes, edges, num_steps, steps, layers, whole)


def rolled(architecture: Architecture, most_layers: int = MOST_LAYERS) -> Graph:
    """Return the graph of any sequence: a cell for each layer and direction, with its loops."""
    layers = _ends(architecture.num_layers, most_layers)
    nodes = [Node("x", "token", "x_t", "x")]
    edges: list[Edge] = []

    below = ["x"]
    for layer in layers:
        if layer is None:
            left_out = architecture.num_layers - (len(layers) - 1)
            nodes.append(Node("gap", "gap", f"...\n{left_out:,} more", "layers"))
            edges += [Edge(name, "gap") for name in below]
            below = ["gap"]
            continue

        outputs = []
        for direction in range(architecture.num_directions):
            node = _cell_node(architecture, layer, direction)
            nodes.append(node)
            edges += [Edge(name, node.name) for name in below]
            before = "t - 1" if direction == 0 else "t + 1"
            for state in _CELLS[architecture.cell].states:
                edges.append(Edge(node.name, node.name, state, f"{state} of {before}"))
            outputs.append(node.name)
        below = outputs

    nodes.append(_logits_node(architecture))
    labels = ("t = T", "t = 1")
    edges += [Edge(name, "logits", "", label) for name, label in zip(below, labels, strict=False)]
    return Graph(architecture, nodes, edges, 0, [], layers, rolled_counts(architecture))


def counted(graph: Graph) -> Counts:
    """Count what is drawn, without the gaps and what leads to them."""
    names = {node.name for node in graph.nodes if node.kind != "gap"}
    edges = [edge for edge in graph.edges if edge.source in names and edge.target in names]
    return Counts(len(names), len(edges), sum(edge.carries != "" for edge in edges))


def title_of(graph: Graph) -> str:
    """Return what the graph is of: cell, layers, directions, steps."""
    architecture = graph.architecture
    parts = [
        architecture.cell,
        f"{architecture.num_layers:,} layer{'s' if architecture.num_layers > 1 else ''}",
        "forward and reverse" if architecture.num_directions == 2 else "forward",
    ]
    if graph.is_rolled:
        parts.append("rolled")
    else:
        parts.append(f"{graph.num_steps:,} step{'s' if graph.num_steps > 1 else ''}")
    return ", ".join(parts)


def cell_name(layer: int, direction: int, num_directions: int) -> str:
    """Return how people call one direction of a layer."""
    return f"layer {layer}" + (f", {DIRECTIONS[direction]}" if num_directions == 2 else "")


def _ends(count: int, most: int) -> list[int | None]:
    """Return 0 .. count - 1; of more than `most` the ends, with None between them."""
    if count <= most:
        return list(range(count))
    first = (most + 1) // 2
    last = most - first
    return [*range(first), None, *range(count - last, count)]


def _name(
    role: str, layer: int | None = None, direction: int = 0, step: int | str | None = None
) -> str:
    """Return the name of a node; that of a gap where layer or step is None."""
    place = "gap" if step is None else str(step)
    if role == "x":
        return f"x_{place}"
    return f"{role}_{'gap' if layer is None else layer}_{DIRECTIONS[direction]}_{place}"


def _token_nodes(tokens: Sequence[str], steps: list[int | None]) -> Iterator[Node]:
    left_out = len(tokens) - sum(step is not None for step in steps)
    for step in steps:
        name = _name("x", step=step)
        if step is None:
            yield Node(name, "gap", f"...\n{left_out:,} more", "x")
        else:
            yield Node(name, "token", f"x_{step}", "x", step=step, token=tokens[step - 1])


def _logits_node(architecture: Architecture) -> Node:
    return Node("logits", "logits", f"logits\n{architecture.num_classes:,} classes", "logits")


def _skip_layers(
    steps: list[int | None],
    below: dict[int | None, list[str]],
    nodes: list[Node],
    edges: list[Edge],
) -> dict[int | None, list[str]]:
    """Add a gap at each step in place of layers; return what the next layer reads."""
    for step in steps:
        if step is not None:
            name = _name("layers", step=step)
            nodes.append(Node(name, "gap", "...", "layers", step=step))
            edges += [Edge(source, name) for source in below[step]]
    return {step: [_name("layers", step=step)] for step in steps}


def _add_chain(
    architecture: Architecture,
    layer: int,
    direction: int,
    steps: list[int | None],
    below: dict[int | None, list[str]],
    nodes: list[Node],
    edges: list[Edge],
) -> None:
    """Add one direction of one layer: its initial states, then its cell at every step."""
    cell = _CELLS[architecture.cell]
    for state in cell.states:
        name = _name(state, layer, direction, "start")
        nodes.append(Node(name, "start", f"{state}_0", state, layer, direction))

    # In reverse the last token comes first.
    before: int | str | None = "start"
    for step in steps if direction == 0 else reversed(steps):
        if step is None:
            for state in cell.states:
                name = _name(state, layer, direction, None)
                nodes.append(Node(name, "gap", "...", state, layer, direction))
                edges.append(Edge(_name(state, layer, direction, before), name, state))
        else:
            nodes += _step_nodes(architecture, layer, direction, step, before == "start")
            edges += [Edge(source, _name("W_ih", layer, direction, step)) for source in below[step]]
            edges += _step_edges(cell, layer, direction, step, before)
        before = step


def _step_nodes(
    architecture: Architecture, layer: int, direction: int, step: int, is_first: bool
) -> Iterator[Node]:
    previous = step - 1 if direction == 0 else step + 1
    words = _words(architecture, layer, t=str(step), p="0" if is_first else str(previous))
    for part in _CELLS[architecture.cell].parts:
        name = _name(part.role, layer, direction, step)
        # A bias has a line of its own.
        label = part.label.format_map(words).replace(" + b", "\n+ b")
        yield Node(name, part.kind, label, part.role, layer, direction, step)


def _words(architecture: Architecture, layer: int, t: str, p: str) -> dict[str, str]:
    """Return what stands for the names in braces in labels and equations."""
    bias = architecture.bias
    return {
        "t": t,
        "p": p,
        # A layer above the first reads the states of the one below.
        "x": "x" if layer == 0 else "h",
        "f": architecture.nonlinearity,
        "sigma": "\N{GREEK SMALL LETTER SIGMA}",
        "b": " + b_ih + b_hh" if bias else "",
        "b_ih": " + b_ih" if bias else "",
        "b_hh": " + b_hh" if bias else "",
    }


def _step_edges(
    cell: _Cell, layer: int, direction: int, step: int, before: int | str | None
) -> Iterator[Edge]:
    """Yield the edges of a step but those of its inputs, which are other nodes in each layer."""
    for source, target, *label in cell.edges:
        role, is_recurrent, _ = source.partition("-1")
        start = _name(role, layer, direction, before if is_recurrent else step)
        end = _name(target, layer, direction, step)
        carries = next((state for state in cell.states if is_recurrent and state == role), None)
        yield Edge(start, end, carries or "", "".join(label))


def _cell_node(architecture: Architecture, layer: int, direction: int) -> Node:
    """Return a cell as one node: its equations, and the shapes of the weights of all steps."""
    cell = _CELLS[architecture.cell]
    words = _words(architecture, layer=0, t="t", p="t-1" if direction == 0 else "t+1")
    lines = [cell_name(layer, direction, architecture.num_directions)]
    lines += [equation.format_map(words) for equation in cell.equations]

    hidden_size = architecture.hidden_size
    rows = cell.num_blocks * hidden_size
    inputs = architecture.embedding_dim
    if layer > 0:
        inputs = architecture.num_directions * hidden_size
        both = ", both directions" if architecture.num_directions == 2 else ""
        lines.append(f"x_t: h_t of layer {layer - 1}{both}")
    lines.append(f"W_ih: {rows:,} x {inputs:,}")
    lines.append(f"W_hh: {rows:,} x {hidden_size:,}")
    if architecture.bias:
        lines.append(f"b_ih, b_hh: {rows:,}")

    name = f"cell_{layer}_{DIRECTIONS[direction]}"
    return Node(name, "cell", "\n".join(lines), "cell", layer, direction)
