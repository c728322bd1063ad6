"""Makes the graph of a network: each step of a sequence, or one cell with its loops for all."""

from collections.abc import Iterator, Sequence

from rnncls.inspect.graph.cells import CELLS, CellGraph, Kind
from rnncls.inspect.graph.graph import (
    SKIP,
    Architecture,
    Edge,
    Graph,
    Node,
    rolled_counts,
    unrolled_counts,
)
from rnncls.model.cells import DIRECTIONS, layer_name
from rnncls.system.shown import ends_of

# Of more, the first and the last half are drawn.
MOST_STEPS = 12
MOST_LAYERS = 6


def unrolled_graph(
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

    # Forwards the last step comes last, and in reverse the first.
    ends = [Edge(end, "logits") for end in (below[num_steps][0], *below[1][1:])]
    every = [
        Edge(name, "") for direction in zip(*below.values(), strict=True) for name in direction
    ]
    tokens_read = [_name("x", step=step) for step in steps]
    _add_head(architecture, ends, every, tokens_read, nodes, edges)

    whole = unrolled_counts(architecture, num_steps)
    return Graph(architecture, nodes, edges, num_steps, steps, layers, whole)


def rolled_graph(architecture: Architecture, most_layers: int = MOST_LAYERS) -> Graph:
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
            for state in CELLS[architecture.cell].states:
                edges.append(Edge(node.name, node.name, state, f"{state} of {before}"))
            outputs.append(node.name)
        below = outputs

    labels = ("t = T", "t = 1")
    ends = [Edge(name, "logits", "", label) for name, label in zip(below, labels, strict=False)]
    every = [Edge(name, "") for name in below]
    _add_head(architecture, ends, every, ["x"], nodes, edges)
    return Graph(architecture, nodes, edges, 0, [], layers, rolled_counts(architecture))


def _ends(count: int, most: int) -> list[int | None]:
    """Return 0 .. count - 1; of more than `most` the ends, with None between them."""
    return ends_of(count, first=(most + 1) // 2, last=most // 2)


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


def _add_head(
    architecture: Architecture,
    ends: list[Edge],
    every: list[Edge],
    tokens: list[str],
    nodes: list[Node],
    edges: list[Edge],
) -> None:
    """Add the logits, and what is pooled for them.

    `ends` lead from the last states to the logits, and `every` from each state to what pools.
    `tokens`: the names of the nodes whose mean a skip takes to the head.
    """
    for pool in architecture.pools:
        nodes.append(Node(pool, "pooling", f"{pool} of\nall h_t", "pooling"))
        edges += [edge._replace(target=pool) for edge in every]
    if architecture.skip:
        nodes.append(Node(SKIP, "pooling", "mean of\nall x_t", "pooling"))
        edges += [Edge(token, SKIP) for token in tokens]

    nodes.append(
        Node("logits", "logits", f"logits\n{architecture.num_classes:,} classes", "logits")
    )
    if architecture.sees_last:
        edges += ends
    edges += [Edge(pool, "logits") for pool in architecture.pools]
    if architecture.skip:
        edges.append(Edge(SKIP, "logits"))


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
    cell = CELLS[architecture.cell]
    for state in cell.states:
        name = _name(state, layer, direction, "start")
        kind: Kind = "trained" if architecture.has_trained_start else "start"
        nodes.append(Node(name, kind, f"{state}_0", state, layer, direction))

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
    for part in CELLS[architecture.cell].parts:
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
    cell: CellGraph, layer: int, direction: int, step: int, before: int | str | None
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
    cell = CELLS[architecture.cell]
    words = _words(architecture, layer=0, t="t", p="t-1" if direction == 0 else "t+1")
    lines = [layer_name(layer, direction, architecture.num_directions)]
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
    if architecture.has_trained_start:
        starts = ", ".join(f"{state}_0" for state in cell.states)
        lines.append(f"{starts}: {hidden_size:,}, trained")

    name = f"cell_{layer}_{DIRECTIONS[direction]}"
    return Node(name, "cell", "\n".join(lines), "cell", layer, direction)
