"""The graph as text that other programs draw: DOT for Graphviz, and Mermaid for Markdown pages.

Both have the colours of the picture, which are here because a picture is not always drawn.
"""

import re
from collections.abc import Iterator, Sequence

from rnncls.inspect.graph.cells import Kind
from rnncls.inspect.graph.graph import ROUND, Edge, Graph, Node, title_of
from rnncls.inspect.graph.layout import layout_of
from rnncls.inspect.graph.places import Box
from rnncls.model.cells import layer_name
from rnncls.system.pictures import in_picture

MOST_OF_TOKEN = 12  # characters of a token under its node

# Nodes around which Graphviz leads the edges in about a second. Of twice as many it takes ten times
# as long, and of three layers of both directions minutes: there, edges are straight lines.
MOST_ROUTED = 80

# Fill colours. Black on each of them is readable.
FILLS: dict[Kind, str] = {
    "token": "#cfe2f3",
    "weights": "#e7e6e6",
    "operation": "#ffffff",
    "function": "#fff2cc",
    "gate": "#fce0b8",
    "state": "#d5e8d4",
    "start": "#ffffff",
    "trained": "#e7e6e6",
    "pooling": "#d9ead3",
    "cell": "#f3f3f3",
    "logits": "#e1d5e7",
    "gap": "#ffffff",
}
BORDER = "#444444"
LINE = "#777777"

# Recurrent edges, by the state that they carry. The two differ in lightness, too.
RECURRENT = {"h": "#d1495b", "c": "#2e5aac"}

_FONT = "Helvetica,Arial,sans-serif"


def dot_of(graph: Graph) -> str:
    """Return the graph in the DOT language (https://graphviz.org/doc/info/lang.html).

    Each node has the place that it has in the picture. Graphviz' own layouts do not know that time
    goes from left to right, and what they make of more than a few steps cannot be read.
    """
    boxes = layout_of(graph).boxes
    splines = "true" if len(graph.nodes) <= MOST_ROUTED else "line"
    lines = [
        "digraph network {",
        f"  layout=neato; splines={splines}; labelloc=t; fontsize=16;",
        f'  fontname="{_FONT}"; label={_dot_text(title_of(graph))};',
        f'  node [fontname="{_FONT}", fontsize=8, style=filled, color="{BORDER}", margin=0];',
        f'  edge [fontname="{_FONT}", fontsize=8, color="{LINE}", arrowsize=0.6];',
    ]
    lines += [
        f"  {node.name} [{_dot_node(graph, node, boxes[node.name])}];" for node in graph.nodes
    ]
    for edge in graph.edges:
        attributes = []
        if edge.label:
            # Of two loops of a node, one around the other, the labels would be at one height.
            label = edge.label
            if edge.carries:
                label = f"{label}\n\n\n" if edge.carries == "h" else f"\n\n\n{label}"
            attributes.append(f"label={_dot_text(label)}")
        if edge.carries:
            attributes.append(f'color="{RECURRENT[edge.carries]}", penwidth=2, style=dashed')
        shown = f" [{', '.join(attributes)}]" if attributes else ""
        lines.append(f"  {edge.source} -> {edge.target}{shown};")
    return "\n".join([*lines, "}", ""])


def _dot_node(graph: Graph, node: Node, box: Box) -> str:
    shape = "ellipse" if node.kind in ROUND else "box"
    if node.kind == "gap":
        shape = "plaintext"
    attributes = [
        f"label={_dot_text(_label(node))}",
        f"shape={shape}",
        f'fillcolor="{FILLS[node.kind]}"',
        # In inches. Only a place with "!" stays where it is.
        f'pos="{box.x:.2f},{box.y:.2f}!"',
        f"width={box.width:.2f}",
        f"height={box.height:.2f}",
    ]
    # A token may need more space, and what was left out as well.
    if not node.token and node.kind != "gap":
        attributes.append("fixedsize=true")
    if node.kind == "cell":
        attributes.append("fontsize=10")
    if node.kind in ("start", "trained") and node.role == "h" and node.layer is not None:
        name = layer_name(node.layer, node.direction, graph.architecture.num_directions)
        attributes.append(f"xlabel={_dot_text(name)}")
    return ", ".join(attributes)


def _dot_text(text: str) -> str:
    """Return a text as a quoted string, in which DOT itself knows only the quote's escape.

    Graphviz reads "\\N" and others in a label as names of nodes, and "&lt;" as in HTML.
    """
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;")
    return '"' + text.replace("\n", "\\n") + '"'


def mermaid_of(graph: Graph) -> str:
    """Return the graph as a Mermaid flowchart (https://mermaid.js.org/syntax/flowchart.html).

    Mermaid places the nodes itself. It knows one loop of a node only: the two of a rolled LSTM are
    one line here.
    """
    lines = [
        "---",
        f"title: {title_of(graph)}",
        "config:",
        "  flowchart:",
        "    wrappingWidth: 600",
        f"    rankSpacing: {120 if graph.is_rolled else 50}",
        "---",
        "flowchart BT" if graph.is_rolled else "flowchart LR",
    ]
    for number, (title, nodes) in enumerate(_groups(graph)):
        if title:
            lines.append(f'  subgraph part_{number}["{_mermaid_text(title)}"]')
        lines += [f"    {_mermaid_node(node)}" for node in nodes]
        if title:
            lines.append("  end")

    recurrent: dict[str, list[str]] = {"h": [], "c": []}
    for number, edge in enumerate(_without_second_loops(graph.edges)):
        arrow = "-.->" if edge.carries else "-->"
        if edge.label:
            arrow += f'|"{_mermaid_text(edge.label)}"|'
        lines.append(f"  {edge.source} {arrow} {edge.target}")
        if edge.carries:
            recurrent[edge.carries].append(str(number))

    for state, numbers in recurrent.items():
        if numbers:
            style = f"stroke:{RECURRENT[state]},stroke-width:2.5px"
            lines.append(f"  linkStyle {','.join(numbers)} {style}")
    for kind in sorted({node.kind for node in graph.nodes}):
        lines.append(f"  classDef {kind} fill:{FILLS[kind]},stroke:{BORDER},color:#000000")
    return "\n".join([*lines, ""])


def _without_second_loops(edges: Sequence[Edge]) -> Iterator[Edge]:
    """Yield the edges with the loop of h standing for that of c as well."""
    both = {edge.source for edge in edges if edge.source == edge.target and edge.carries == "c"}
    for edge in edges:
        is_loop = edge.source == edge.target
        if is_loop and edge.carries == "c":
            continue
        if is_loop and edge.source in both:
            edge = edge._replace(label=edge.label.replace("h", "h and c", 1))
        yield edge


def _mermaid_node(node: Node) -> str:
    text = _mermaid_text(_label(node))
    shape = f'(["{text}"])' if node.kind in (*ROUND, "gap") else f'["{text}"]'
    return f"{node.name}{shape}:::{node.kind}"


def _mermaid_text(text: str) -> str:
    """Return a text for a quoted label: what is neither letter nor digit as its number.

    Mermaid reads Markdown, HTML and its own syntax in labels. "\\n" is a line break to it, even in
    numbers, unless a space of no width stands between the two.
    """
    lines = []
    for line in text.split("\n"):
        lines.append(re.sub(r"[^\w ]|_", _as_number, line.replace("\\n", "\\\u200bn")))
    return "<br/>".join(lines)


def _as_number(found: re.Match[str]) -> str:
    return f"#{ord(found[0])};"


def _label(node: Node) -> str:
    if node.kind != "token" or node.step is None:
        return node.label
    return f"{node.label}\n{in_picture(node.token, MOST_OF_TOKEN)}"


def _groups(graph: Graph) -> Iterator[tuple[str, list[Node]]]:
    """Yield titles with the nodes that stand together under them; "" for those in no group."""
    groups: dict[str, list[Node]] = {}
    for node in graph.nodes:
        title = ""
        if node.layer is not None and not graph.is_rolled:
            title = layer_name(node.layer, node.direction, graph.architecture.num_directions)
        groups.setdefault(title, []).append(node)
    yield from groups.items()
