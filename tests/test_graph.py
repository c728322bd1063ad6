"""The graph of a network: what it computes, how large it is, and that others can read it."""

import html
import json
import re
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree import ElementTree

import numpy as np
import pyparsing as pp
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from rnncls.inspect.graph.build import rolled_graph, unrolled_graph
from rnncls.inspect.graph.graph import (
    Architecture,
    Counts,
    Graph,
    Node,
    architecture_of,
)
from rnncls.inspect.graph.layout import layout_of
from rnncls.inspect.graph.plot import svg_of
from rnncls.inspect.graph.text import MOST_OF_TOKEN, dot_of, mermaid_of
from rnncls.model.classifier import RNNClassifier
from rnncls.model.pooling import Pooling
from rnncls.system.pictures import in_picture
from tests.helpers import run_rnncls

row = pytest.mark.row
slow = pytest.mark.slow

Points = np.ndarray[Any, np.dtype[np.float64]]
Cell = Literal["rnn", "gru", "lstm"]

CELLS: tuple[Cell, ...] = ("rnn", "gru", "lstm")
ALL = 10**9  # steps or layers

HOSTILE = [
    'a"b\\N',
    "<script>",
    "`#`;end",
    "$x^2$",
    "1. ab",
    "**b** _i_",
    "语言",
    "&lt;&amp;",
    "%%{init}%%",
    "مرحبا",
    "-->|x|",
    "a\nb\x1b[31m",
    "\\n\\l\\",
]


def digits(num_steps: int) -> list[str]:
    return [str(step % 10) for step in range(num_steps)]


# --- counts


def drawn_counts(graph: Graph) -> Counts:
    """Count what is drawn, without the gaps and what leads to them."""
    names = {node.name for node in graph.nodes if node.kind != "gap"}
    edges = [edge for edge in graph.edges if edge.source in names and edge.target in names]
    return Counts(len(names), len(edges), sum(edge.carries != "" for edge in edges))


@pytest.mark.parametrize(
    ("num_steps", "num_layers", "num_directions"),
    [
        (1, 1, 1),
        (2, 3, 2),
        (12, 1, 2),
        pytest.param(100, 1, 1, marks=slow),
        *(pytest.param(*sizes, marks=slow) for sizes in product((1, 2, 12), (1, 3, 8), (1, 2))),
    ],
)
def test_the_counts_of_a_plain_rnn_are_those_of_the_formula(
    num_steps: int, num_layers: int, num_directions: int
) -> None:
    T = num_steps
    L = num_layers
    D = num_directions
    architecture = Architecture("rnn", num_layers=L, num_directions=D)

    nodes = T + 5 * T * L * D + L * D + 1
    edges = T * D * (1 + 5) + T * D * (L - 1) * (D + 5) + D
    expected = Counts(nodes, edges, T * L * D)

    # What is drawn has gaps, and the counts have none.
    assert unrolled_graph(architecture, digits(T)).whole == expected
    complete = unrolled_graph(architecture, digits(T), ALL, ALL)
    assert drawn_counts(complete) == expected
    assert counts_in_dot(dot_of(complete)) == expected
    assert counts_in_mermaid(mermaid_of(complete)) == expected


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize(("num_layers", "num_directions"), [(1, 1), (1, 2), (3, 2)])
def test_the_counts_are_those_of_the_nodes_and_edges(
    cell: str, num_steps: int, num_layers: int, num_directions: int
) -> None:
    architecture = Architecture(cell, num_layers=num_layers, num_directions=num_directions)
    require_counts(architecture, num_steps)


@pytest.mark.parametrize("pooling", get_args(Pooling))
@pytest.mark.parametrize("num_directions", [1, 2])
def test_the_counts_have_what_is_pooled(num_directions: int, pooling: Pooling) -> None:
    T = 3
    D = num_directions
    architecture = Architecture("rnn", num_layers=2, num_directions=D, pooling=pooling)
    require_counts(architecture, T)
    trained = architecture._replace(has_trained_start=True)
    require_counts(trained, T)
    tokens = digits(T)
    found = unrolled_graph(architecture, tokens).whole
    assert unrolled_graph(trained, tokens).whole == found

    # By the formula: m nodes of mean and maximum, with an edge from every state and one onwards.
    m = {"last": 0, "mean": 1, "max": 1, "last_mean_max": 2}[pooling]
    ends = D if "last" in pooling else 0
    plain = unrolled_graph(architecture._replace(pooling="last"), tokens).whole
    assert found.nodes == plain.nodes + m
    assert found.edges == plain.edges - D + ends + m * (T * D + 1)
    assert found.recurrent_edges == plain.recurrent_edges


def require_counts(architecture: Architecture, num_steps: int) -> None:
    complete = unrolled_graph(architecture, digits(num_steps), ALL, ALL)
    assert drawn_counts(complete) == complete.whole
    assert counts_in_dot(dot_of(complete)) == complete.whole
    assert counts_in_mermaid(mermaid_of(complete)) == complete.whole

    names = [node.name for node in complete.nodes]
    assert len(set(names)) == len(names)
    assert {name for edge in complete.edges for name in edge[:2]} == set(names)

    in_loops = rolled_graph(architecture, ALL)
    assert drawn_counts(in_loops) == in_loops.whole == rolled_graph(architecture, 2).whole
    assert counts_in_dot(dot_of(in_loops)) == in_loops.whole


def test_the_states_of_gated_cells_have_recurrent_edges_of_their_own() -> None:
    tokens = digits(5)
    lstm = unrolled_graph(Architecture("lstm"), tokens)
    assert [edge.carries for edge in lstm.edges].count("c") == 5
    assert [edge.carries for edge in lstm.edges].count("h") == 5
    assert sorted(node.label for node in lstm.nodes if node.kind == "start") == ["c_0", "h_0"]

    # To W_hh, and directly to z ⊙ h_(t-1).
    gru = unrolled_graph(Architecture("gru"), tokens)
    assert [edge.carries for edge in gru.edges].count("h") == 10


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("num_layers", "num_directions"), list(product((1, 3), (1, 2))))
@pytest.mark.parametrize(
    ("bias", "pooling", "initial_state"),
    [
        (True, "last", "zeros"),
        (False, "last", "learned"),
        (True, "mean", "learned"),
        (True, "max", "zeros"),
        (True, "last_mean_max", "learned"),
    ],
)
@torch.no_grad()
def test_what_the_graph_says_is_what_the_network_computes(
    cell: Cell,
    num_layers: int,
    num_directions: int,
    bias: bool,
    pooling: Pooling,
    initial_state: Literal["zeros", "learned"],
) -> None:
    torch.manual_seed(0)
    network = RNNClassifier(
        num_embeddings=7,
        num_classes=4,
        embedding_dim=3,
        hidden_size=5,
        num_layers=num_layers,
        nonlinearity="tanh",
        bias=bias,
        bidirectional=num_directions == 2,
        cell=cell,
        pooling=pooling,
        initial_state=initial_state,
    ).double()
    if network.initial_state is not None:
        torch.nn.init.normal_(network.initial_state)

    ids = [3, 0, 6, 2]
    graph = unrolled_graph(architecture_of(network), [str(id) for id in ids])
    logits = network(pack_sequence([torch.tensor(ids)]))[0]
    torch.testing.assert_close(evaluated(graph, network), logits, rtol=1e-9, atol=1e-9)


def evaluated(graph: Graph, network: RNNClassifier) -> Tensor:
    """Return the logits by following the edges. Each node stands after all that it reads."""
    values: dict[str, Tensor] = {}
    for node in graph.nodes:
        inputs = []
        for edge in graph.edges:
            if edge.target == node.name:
                value = values[edge.source]
                inputs.append(1 - value if edge.label == "1 - z" else value)
        values[node.name] = value_of(node, inputs, network)
    return values["logits"]


def value_of(node: Node, inputs: list[Tensor], network: RNNClassifier) -> Tensor:
    match node.kind:
        case "token":
            return network.embedding.weight[int(node.token)]
        case "start":
            return network.embedding.weight.new_zeros(network.rnn.hidden_size)
        case "trained":
            return trained_state(node, network)
        case "pooling":
            # In the order of time, first all states of one direction.
            states = torch.stack(inputs).view(network.num_directions, -1, network.rnn.hidden_size)
            pooled = states.mean(1) if node.name == "mean" else states.amax(1)
            return pooled.flatten()
        case "weights":
            return linear(node, torch.cat(inputs), network)
        case "operation":
            # Of what W_ih and W_hh give, n has its own part.
            if node.role in ("candidate", "reset"):
                inputs = [part_of(value, "n", network) for value in inputs]
            stacked = torch.stack(inputs)
            return stacked.sum(0) if node.label == "+" else stacked.prod(0)
        case "logits":
            return network.head(torch.cat(inputs))  # type: ignore[no-any-return]

    (value,) = inputs
    if node.kind == "gate":
        return part_of(value, node.role, network).sigmoid()
    return value if node.kind == "state" else part_of(value, node.role, network).tanh()


def trained_state(node: Node, network: RNNClassifier) -> Tensor:
    """Return h_0 or c_0 of a layer and direction."""
    assert network.initial_state is not None
    assert node.layer is not None
    part = ["h", "c"].index(node.role)
    return network.initial_state[part, node.layer * network.num_directions + node.direction]


def linear(node: Node, inputs: Tensor, network: RNNClassifier) -> Tensor:
    """Return W_ih x + b_ih or W_hh h + b_hh, with the weights that torch.nn has."""
    assert node.layer is not None
    suffix = f"{node.role[-2:]}_l{node.layer}{'_reverse' if node.direction else ''}"
    total = network.rnn.get_parameter(f"weight_{suffix}") @ inputs
    assert (f"+ b_{node.role[-2:]}" in node.label) == network.rnn.bias
    return total + network.rnn.get_parameter(f"bias_{suffix}") if network.rnn.bias else total


def part_of(value: Tensor, role: str, network: RNNClassifier) -> Tensor:
    """Return the rows of one gate, of what has those of all gates in the order of torch.nn."""
    gates = {"LSTM": "ifgo", "GRU": "rzn"}.get(network.rnn.mode, "f")
    if len(value) == network.rnn.hidden_size:
        return value
    return value.view(len(gates), -1)[gates.index(role)]


# --- what is drawn


def test_of_a_long_sequence_and_of_many_layers_the_ends_are_drawn() -> None:
    architecture = Architecture("gru", num_layers=1024, num_directions=2)
    graph = unrolled_graph(architecture, digits(100_000))
    assert graph.steps == [1, 2, 3, 4, 5, 6, None, *range(99_995, 100_001)]
    assert graph.layers == [0, 1, 2, None, 1021, 1022, 1023]
    assert graph.whole.recurrent_edges == 2 * 100_000 * 1024 * 2

    # Nothing hangs in the air at a gap.
    sources = {edge.source for edge in graph.edges}
    gaps = [node.name for node in graph.nodes if node.kind == "gap" and node.role != "x"]
    assert gaps
    assert set(gaps) <= sources
    labels = {node.name: node.label for node in graph.nodes}
    assert labels["W_hh_0_forward_99995"].startswith("W_hh h_99994")
    assert labels["W_hh_0_reverse_6"].startswith("W_hh h_7")


def test_in_reverse_the_last_token_comes_first() -> None:
    graph = unrolled_graph(Architecture("rnn", num_directions=2), digits(3))
    recurrent = [edge[:2] for edge in graph.edges if edge.carries and "reverse" in edge.source]
    assert recurrent == [
        ("h_0_reverse_start", "W_hh_0_reverse_3"),
        ("h_0_reverse_3", "W_hh_0_reverse_2"),
        ("h_0_reverse_2", "W_hh_0_reverse_1"),
    ]
    ends = [edge.source for edge in graph.edges if edge.target == "logits"]
    assert ends == ["h_0_forward_3", "h_0_reverse_1"]


def test_what_is_pooled_and_a_trained_state_are_named() -> None:
    architecture = Architecture(
        "lstm", num_directions=2, pooling="last_mean_max", has_trained_start=True, hidden_size=5
    )
    graph = unrolled_graph(architecture, digits(30))
    starts = [node for node in graph.nodes if node.label in ("h_0", "c_0")]
    assert [node.kind for node in starts] == ["trained"] * 4
    pools = [node.name for node in graph.nodes if node.kind == "pooling"]
    assert pools == ["mean", "max"]

    # Of the states that are drawn, and of the ellipsis for the others.
    for pool in pools:
        sources = [edge.source for edge in graph.edges if edge.target == pool]
        assert len(sources) == 2 * 13
        assert "h_0_forward_gap" in sources
    to_logits = [edge.source for edge in graph.edges if edge.target == "logits"]
    assert to_logits == ["h_0_forward_30", "h_0_reverse_1", "mean", "max"]

    smallest = Architecture("rnn", pooling="mean", has_trained_start=True)
    texts = texts_in(svg_of(unrolled_graph(smallest, digits(1))))
    assert "initial: trained" in texts
    assert "initial state: 0" not in texts

    cells = [node.label for node in rolled_graph(architecture).nodes if node.kind == "cell"]
    assert all("h_0, c_0: 5, trained" in label for label in cells)


def test_a_rolled_cell_names_its_shared_weights_and_the_step_of_its_loops() -> None:
    graph = rolled_graph(
        Architecture("lstm", num_layers=2, num_directions=2, embedding_dim=3, hidden_size=5)
    )
    shown = {node.name: node.label.split("\n") for node in graph.nodes if node.kind == "cell"}
    assert shown["cell_0_forward"][-3:] == ["W_ih: 20 x 3", "W_hh: 20 x 5", "b_ih, b_hh: 20"]
    assert shown["cell_1_reverse"][-3:] == ["W_ih: 20 x 10", "W_hh: 20 x 5", "b_ih, b_hh: 20"]

    loops = [(edge.source, edge.label) for edge in graph.edges if edge.source == edge.target]
    assert loops[:4] == [
        ("cell_0_forward", "h of t - 1"),
        ("cell_0_forward", "c of t - 1"),
        ("cell_0_reverse", "h of t + 1"),
        ("cell_0_reverse", "c of t + 1"),
    ]


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("num_layers", "num_directions"),
    [(2, 1), (2, 2), pytest.param(9, 1, marks=slow), pytest.param(9, 2, marks=slow)],
)
@pytest.mark.parametrize("num_steps", [0, 1, 4, 1234])
def test_nodes_do_not_overlap_and_edges_pass_by_all_others(
    cell: str, num_layers: int, num_directions: int, num_steps: int
) -> None:
    architecture = Architecture(cell, num_layers=num_layers, num_directions=num_directions)
    require_apart(architecture, num_steps)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("num_directions", [1, 2])
@pytest.mark.parametrize("num_steps", [0, 1, 4, 1234])
@pytest.mark.parametrize("pooling", ["mean", "last_mean_max"])
def test_what_is_pooled_stands_between_states_and_logits(
    cell: str, num_directions: int, num_steps: int, pooling: Pooling
) -> None:
    architecture = Architecture(cell, num_directions=num_directions, pooling=pooling)
    require_apart(architecture, num_steps)


def require_apart(architecture: Architecture, num_steps: int) -> None:
    graph = (
        unrolled_graph(architecture, digits(num_steps)) if num_steps else rolled_graph(architecture)
    )
    layout = layout_of(graph)

    # (number of boxes, 2): x and y
    boxes = list(layout.boxes.values())
    lowest = np.array([(box.left, box.bottom) for box in boxes])
    highest = np.array([(box.right, box.top) for box in boxes])
    assert (lowest > 0).all()
    assert (highest < (layout.width, layout.height)).all()

    apart = ((lowest[:, None] >= highest) | (highest[:, None] <= lowest)).any(2)
    assert (apart | np.eye(len(boxes), dtype=bool)).all()

    numbers = {name: number for number, name in enumerate(layout.boxes)}
    for edge, path in zip(graph.edges, layout.paths, strict=True):
        met = set()
        for begin, end in pairwise(path):
            met |= set(np.flatnonzero(passes(np.array(begin), np.array(end), lowest, highest)))
        # Its two ends are on the outlines.
        assert met <= {numbers[edge.source], numbers[edge.target]}, edge


def passes(begin: Points, end: Points, lowest: Points, highest: Points) -> Any:
    """Return which boxes a line passes through: those in whose x and y it is at one time."""
    moves = np.where(end == begin, 1e-12, end - begin)
    ways = np.stack([(lowest - begin) / moves, (highest - begin) / moves])
    enters = np.maximum(ways.min(0).max(1), 0)
    leaves = np.minimum(ways.max(0).min(1), 1)
    return leaves - enters > 1e-9


def test_time_goes_to_the_right_and_layers_upwards() -> None:
    for cell, directions in product(CELLS, (1, 2)):
        architecture = Architecture(cell, num_layers=3, num_directions=directions)
        graph = unrolled_graph(architecture, digits(30))
        boxes = layout_of(graph).boxes
        nodes = {node.name: node for node in graph.nodes}
        tokens = [boxes[node.name].x for node in graph.nodes if node.role == "x"]
        assert tokens == sorted(tokens)
        for edge in graph.edges:
            source = nodes[edge.source]
            target = nodes[edge.target]
            step_right = boxes[edge.target].x - boxes[edge.source].x
            if edge.carries:
                assert (step_right > 0) == (target.direction == 0)
            elif source.layer != target.layer:
                assert boxes[edge.target].y > boxes[edge.source].y


# --- what others read


@cache
def dot_grammar() -> pp.ParserElement:
    """Return a part of the DOT language, stricter than Graphviz: names without quotes, ";"."""
    name = pp.Regex(r"[A-Za-z_][A-Za-z0-9_]*")
    number = pp.Regex(r"-?(\.[0-9]+|[0-9]+(\.[0-9]*)?)")
    text = pp.Regex(r'"(?:[^"\\]|\\.)*"')
    attribute = pp.Group(name + pp.Suppress("=") + (text | number | name))
    more = pp.ZeroOrMore(pp.Suppress(",") + attribute)
    some = pp.Suppress("[") + attribute + more + pp.Suppress("]")
    edge = pp.Group(name + pp.Suppress("->") + name + pp.Opt(some))("edges*")
    node = pp.Group(name + some)("nodes*")
    statement = (edge | attribute | node) + pp.Suppress(";")
    head = pp.Suppress(pp.Keyword("digraph") + name + "{")
    return head + pp.ZeroOrMore(statement) + pp.Suppress("}")


def parsed_dot(text: str) -> tuple[dict[str, dict[str, str]], list[Any]]:
    """Return the attributes of each node, and the edges. Raises: ParseException."""
    found = dot_grammar().parse_string(text, parse_all=True)
    nodes = {node[0]: dict(map(tuple, node[1:])) for node in found["nodes"]}
    del nodes["node"], nodes["edge"]
    return nodes, list(found["edges"])


def counts_in_dot(text: str) -> Counts:
    nodes, edges = parsed_dot(text)
    recurrent = [edge for edge in edges if ["style", "dashed"] in [list(one) for one in edge[2:]]]
    assert {name for edge in edges for name in edge[:2]} <= nodes.keys()
    return Counts(len(nodes), len(edges), len(recurrent))


_MERMAID_NODE = re.compile(r'    (\w+)(?:\[|\(\[)"([\w <>/#;]+)"(?:\]|\]\)):::\w+')
_MERMAID_EDGE = re.compile(r'  (\w+) (-->|-\.->)(?:\|"[\w #;]+"\|)? (\w+)')
_MERMAID_OTHER = re.compile(
    r'  subgraph \w+\["[\w #;]+"\]|  end|  linkStyle [\d,]+ \S+|  classDef \w+ \S+'
)


def parsed_mermaid(text: str) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """Return the label of each node, and the edges, of which a label has no sign of its own."""
    _, head, body = text.split("---\n")
    assert head.startswith("title: ")
    first, *lines = body.splitlines()
    assert first in ("flowchart LR", "flowchart BT")
    nodes = {}
    edges = []
    for line in lines:
        if found := _MERMAID_NODE.fullmatch(line):
            nodes[found[1]] = html.unescape(re.sub(r"#(\d+);", r"&#\1;", found[2]))
        elif found := _MERMAID_EDGE.fullmatch(line):
            edges.append(found.groups())
        else:
            assert _MERMAID_OTHER.fullmatch(line), line
    return nodes, edges


def counts_in_mermaid(text: str) -> Counts:
    nodes, edges = parsed_mermaid(text)
    return Counts(len(nodes), len(edges), sum(edge[1] == "-.->" for edge in edges))


@pytest.mark.parametrize(("num_layers", "splines"), [(1, "true"), (2, "line")])
def test_graphviz_leads_edges_around_nodes_only_where_that_is_quick(
    num_layers: int, splines: str
) -> None:
    text = dot_of(unrolled_graph(Architecture("rnn", num_layers=num_layers), digits(12)))
    assert f" splines={splines};" in text


def test_tokens_of_any_script_and_markup_come_out_as_they_are() -> None:
    # All of them are drawn.
    graph = unrolled_graph(Architecture("rnn"), HOSTILE, ALL)
    tokens = [in_picture(token, MOST_OF_TOKEN) for token in HOSTILE]
    names = [f"x_{step}" for step in range(1, len(tokens) + 1)]

    nodes, _ = parsed_dot(dot_of(graph))
    in_dot = [nodes[name]["label"][1:-1].partition("\\n")[2] for name in names]
    assert [html.unescape(re.sub(r"\\(.)", r"\1", token)) for token in in_dot] == tokens

    labels, _ = parsed_mermaid(mermaid_of(graph))
    in_mermaid = [labels[name].partition("<br/>")[2] for name in names]
    assert [token.replace("\u200b", "") for token in in_mermaid] == tokens
    # Mermaid would make a line break of it.
    assert not any("\\n" in token for token in in_mermaid)

    texts = texts_in(svg_of(graph))
    assert [text for text in texts if text in tokens] == tokens


def texts_in(svg: bytes) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(text.itertext()) for text in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize(
    "cell", ["rnn", pytest.param("gru", marks=slow), pytest.param("lstm", marks=slow)]
)
def test_a_picture_is_well_formed_and_always_the_same(cell: str) -> None:
    architecture = Architecture(cell, num_directions=2)
    for graph in (unrolled_graph(architecture, digits(1)), rolled_graph(architecture)):
        picture = svg_of(graph)
        assert picture == svg_of(graph)
        assert b"<dc:date>" not in picture
        (title,) = [text for text in texts_in(picture) if text.startswith(f"{cell}, 1 layer")]
        counts = [int(number) for number in re.findall(r"(\d+) (?:nodes|edges|recurrent)", title)]
        assert counts == list(graph.whole)


def test_recurrent_edges_have_a_colour_of_their_own() -> None:
    graph = unrolled_graph(Architecture("lstm"), digits(3))
    picture = svg_of(graph).decode()
    _, edges = parsed_dot(dot_of(graph))
    colours = {"h": "#d1495b", "c": "#2e5aac"}
    for state, colour in colours.items():
        assert picture.count(f"stroke: {colour}") >= 3
        coloured = [edge for edge in edges if ["color", f'"{colour}"'] in map(list, edge[2:])]
        assert [edge[0][0] for edge in coloured] == [state] * 3


# --- the command


@pytest.mark.parametrize("kind", ["svg", "dot", "mmd"])
def test_the_command_draws_a_sequence_and_prints_the_counts(
    kind: str, run_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"graph.{kind}"
    done = run_rnncls("explain", run_dir, "1 2 0 1", "--graph", path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[3:8] == [
        "rnn, 1 layer, forward, 4 steps",
        "  nodes            26",
        "  edges            25",
        "  recurrent edges  4",
        "  drawn steps      4 of 4",
    ]
    assert path.stat().st_size > 1000
    assert [one.name for one in tmp_path.iterdir()] == [path.name]

    long = " ".join("1" for _ in range(100))
    done = run_rnncls("explain", run_dir, long, "--graph", path, "--json")
    found = json.loads(done.stdout)
    assert (found["nodes"], found["edges"], found["recurrent_edges"]) == (602, 601, 100)
    assert (found["num_steps"], found["drawn_steps"]) == (100, 12)
    assert found["file"] == str(path)


def test_a_rolled_graph_needs_no_sequence(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "graph.dot"
    done = run_rnncls("explain", run_dir, "--graph", path, "--rolled", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert counts_in_dot(path.read_text()) == Counts(3, 3, 1)
    assert (found["nodes"], found["edges"], found["recurrent_edges"]) == (3, 3, 1)
    assert found["num_steps"] is None


@row("C17")
def test_an_unrolled_graph_needs_a_sequence(
    run_dir: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    message = fails(2, "explain", run_dir, "--graph", tmp_path / "graph.svg")
    assert "error[C17]" in message
    assert '"3 7 1 9", or --rolled' in message
    assert not list(tmp_path.iterdir())


@row("R9")
def test_a_graph_that_cannot_be_written_leaves_nothing(
    run_dir: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    message = fails(6, "explain", run_dir, "1 2", "--graph", tmp_path / "none" / "graph.svg")
    assert "error[R9]" in message
    assert not list(tmp_path.iterdir())

    if Path("/dev/full").exists():
        path = tmp_path / "graph.svg"
        path.symlink_to("/dev/full")
        assert "error[R9]" in fails(6, "explain", run_dir, "1 2", "--graph", path)
