"""Writes a graph to a file, and says how large it is."""

import textwrap
from pathlib import Path
from typing import Any, NamedTuple

from rnncls.errors import on_one_line
from rnncls.inspect.graph.graph import Graph, title_of
from rnncls.inspect.graph.plot import svg_of
from rnncls.inspect.graph.text import dot_of, mermaid_of
from rnncls.system.refusals import write_whole
from rnncls.system.shown import WIDTH, aligned


class WrittenGraph(NamedTuple):
    """What was drawn, and where it is."""

    graph: Graph
    path: Path

    def to_text(self) -> str:
        """Return the size of the whole graph, and how much of it is drawn."""
        graph = self.graph
        rows = [
            ["nodes", f"{graph.whole.nodes:,}"],
            ["edges", f"{graph.whole.edges:,}"],
            ["recurrent edges", f"{graph.whole.recurrent_edges:,}"],
        ]
        if not graph.is_rolled:
            rows.append(["drawn steps", f"{_drawn(graph.steps):,} of {graph.num_steps:,}"])
        num_layers = graph.architecture.num_layers
        if _drawn(graph.layers) < num_layers:
            rows.append(["drawn layers", f"{_drawn(graph.layers):,} of {num_layers:,}"])
        rows.append(["file", on_one_line(self.path)])

        lines = [f"  {line}" for line in aligned(rows, texts=2)]
        return "\n".join([*textwrap.wrap(title_of(graph), WIDTH), *lines])

    def to_json(self) -> dict[str, Any]:
        """Return the same as an object."""
        graph = self.graph
        architecture = graph.architecture
        return {
            "graph": "rolled" if graph.is_rolled else "unrolled",
            "cell": architecture.cell,
            "num_layers": architecture.num_layers,
            "num_directions": architecture.num_directions,
            "num_steps": None if graph.is_rolled else graph.num_steps,
            "nodes": graph.whole.nodes,
            "edges": graph.whole.edges,
            "recurrent_edges": graph.whole.recurrent_edges,
            "drawn_steps": None if graph.is_rolled else _drawn(graph.steps),
            "drawn_layers": _drawn(graph.layers),
            "file": str(self.path),
        }


def write_graph(graph: Graph, path: Path) -> WrittenGraph:
    """Write the graph as .svg, .dot or .mmd, by the name of the file; whole or not at all.

    Raises: WriteError.
    """
    kind = path.suffix.lower()
    if kind == ".svg":
        content = svg_of(graph)
    elif kind == ".dot":
        content = dot_of(graph).encode()
    else:
        content = mermaid_of(graph).encode()

    write_whole(path, content)
    return WrittenGraph(graph, path)


def _drawn(places: list[int | None]) -> int:
    return sum(place is not None for place in places)
