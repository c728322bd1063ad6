"""rnncls explain"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from rnncls.cli.options import DataDir, Device, refuse_to_replace
from rnncls.errors import CheckpointError, ConfigError, Problem
from rnncls.sweep.paths import MEMBERS, is_sweep
from rnncls.system.rows import json_text
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.inspect.subject import Subject

_GRAPHS = (".svg", ".dot", ".mmd")


def explain(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="RUN|CHECKPOINT",
            help="Run directory (its best checkpoint), or checkpoint file.",
            readable=False,
            show_default=False,
        ),
    ] = None,
    sequence: Annotated[
        str | None,
        typer.Argument(
            help='A sequence, such as "3 7 1 9", to follow step by step.', show_default=False
        ),
    ] = None,
    graph: Annotated[
        Path | None,
        typer.Option(
            help="Draw what is computed for the sequence: .svg, .dot (Graphviz) or .mmd (Mermaid).",
            readable=False,
        ),
    ] = None,
    rolled: Annotated[
        bool,
        typer.Option("--rolled", help="Draw the graph once for all time steps, with its loops."),
    ] = False,
    padding: Annotated[
        bool, typer.Option("--padding", help="Run one batch with padding in it, in four ways.")
    ] = False,
    gradients: Annotated[
        bool,
        typer.Option(
            "--gradients", help="Show how much of the gradient reaches each earlier time step."
        ),
    ] = False,
    states: Annotated[
        Path | None,
        typer.Option(help="Draw what the hidden states encode into this PNG.", readable=False),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            help="Colour the tokens of the sequence by how much they matter, in this .html file.",
            readable=False,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(help="The true label of the sequence (default: the one that is predicted)."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Draw --padding or --gradients into this PNG.", readable=False),
    ] = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Show the smallest network, with every number, without a run."),
    ] = False,
    data_dir: DataDir = None,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every number as JSON.")] = False,
) -> None:
    """Show what happens inside a trained network: step by step, as a graph, in its states.

    Examples:
        rnncls explain runs/first "1 2 0 1"
        rnncls explain runs/first "1 2 0 1" --graph graph.svg
        rnncls explain runs/first --states states.png
        rnncls explain --demo
    """
    view = _view_of(
        {
            "--demo": demo,
            "--padding": padding,
            "--gradients": gradients,
            "--states": states is not None,
        },
        has_graph=graph is not None,
        has_sequence=sequence is not None,
    )
    _require_options(view, graph, rolled, html, label, output)
    if demo:
        _show_demo(checkpoint, as_json)
        return

    if checkpoint is None:
        raise _misfit("no run to look into", "rnncls explain RUN, or --demo")
    written = {"--graph": graph, "--states": states, "--html": html, "--output": output}
    for option, path in written.items():
        if path is not None:
            refuse_to_replace(option, path, checkpoint)
    _refuse_sweep(checkpoint)

    load_torch()
    from rnncls.inspect.subject import load_subject

    subject = load_subject(checkpoint, device)
    if view == "--padding":
        _show_padding(subject, output, data_dir, as_json)
    elif view == "--gradients":
        _show_gradients(subject, output, data_dir, as_json)
    elif states is not None:
        _show_states(subject, states, data_dir, as_json)
    elif graph is not None:
        _write_graph(subject, sequence, graph, rolled, as_json)
    else:
        _show_trace(subject, sequence or "", label, html, as_json)


def _view_of(flags: dict[str, bool], has_graph: bool, has_sequence: bool) -> str:
    """Return the option that says what to show; "" for the sequence itself, or its graph.

    Raises: ConfigError unless exactly one thing is to be shown.
    """
    chosen = [option for option, is_on in flags.items() if is_on]
    if len(chosen) > 1 or (chosen and has_graph):
        raise _misfit(
            f"{' and '.join([*chosen, *(['--graph'] if has_graph else [])])}", "one at a time"
        )
    if chosen and has_sequence:
        raise _misfit(f"{chosen[0]} takes no sequence", f"rnncls explain RUN {chosen[0]}")
    if not (chosen or has_graph or has_sequence):
        raise _misfit(
            "nothing to show", 'a sequence, such as "3 7 1 9", --padding, --gradients or --states'
        )
    return chosen[0] if chosen else ""


def _require_options(
    view: str,
    graph: Path | None,
    rolled: bool,
    html: Path | None,
    label: str | None,
    output: Path | None,
) -> None:
    """Raise ConfigError for an option that says something about another view."""
    if rolled and graph is None:
        raise _misfit("--rolled is about --graph", "--graph FILE.svg --rolled")
    if graph is not None and graph.suffix.lower() not in _GRAPHS:
        raise _misfit(f"--graph {graph}: a name of an unknown kind", ".svg, .dot or .mmd")
    if output is not None and view not in ("--padding", "--gradients"):
        raise _misfit("--output is about --padding and --gradients", "one of them")
    if (html is not None or label is not None) and (view or graph is not None):
        raise _misfit("--html and --label are about a sequence alone", "a sequence")


def _misfit(what: str, remedy: str) -> ConfigError:
    return ConfigError(Problem(what, remedy=remedy, id="C17"))


def _refuse_sweep(path: Path) -> None:
    """Raise CheckpointError for a sweep, of which one member can be looked into."""
    if not is_sweep(path):
        return
    members = sorted((path / MEMBERS).glob("*"))
    remedy = f"a member of it, such as {members[0]}" if members else "a run"
    raise CheckpointError(
        Problem("a sweep, not a run", str(path), expected="one run", remedy=remedy, id="K1")
    )


def _show_demo(checkpoint: Path | None, as_json: bool) -> None:
    """Print the smallest network. Raises: ConfigError if there is another one."""
    if checkpoint is not None:
        raise _misfit("--demo has a network of its own", "rnncls explain --demo")
    load_torch()
    from rnncls.inspect.demo import demo

    _print(demo(), as_json)


class _Shown(Protocol):
    """What was found out, for people and for programs."""

    def to_text(self) -> str: ...
    def to_json(self) -> dict[str, Any]: ...


def _print(result: _Shown, as_json: bool) -> None:
    print(json_text(result.to_json()) if as_json else result.to_text())


def _show_padding(
    subject: "Subject", output: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    raise NotImplementedError


def _show_gradients(
    subject: "Subject", output: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    raise NotImplementedError


def _show_states(subject: "Subject", picture: Path, data_dir: Path | None, as_json: bool) -> None:
    raise NotImplementedError


def _write_graph(
    subject: "Subject", sequence: str | None, path: Path, rolled: bool, as_json: bool
) -> None:
    """Draw the graph, and print how large it is.

    Raises: ConfigError if a sequence is missing. DataError if it is bad. WriteError.
    """
    from rnncls.inspect import graph
    from rnncls.inspect.graph_file import write_graph
    from rnncls.inspect.subject import tokens_of_text

    architecture = graph.architecture_of(subject.network)
    if rolled:
        # A sequence changes nothing here, and what is wrong with it is said all the same.
        if sequence is not None:
            tokens_of_text(subject.predictor, sequence)
        found = graph.rolled(architecture)
    elif sequence is None:
        raise _misfit(
            "--graph draws the steps of a sequence", 'a sequence, such as "3 7 1 9", or --rolled'
        )
    else:
        read = tokens_of_text(subject.predictor, sequence)
        found = graph.unrolled(architecture, read.names)
    _print(write_graph(found, path), as_json)


def _show_trace(
    subject: "Subject", sequence: str, label: str | None, html: Path | None, as_json: bool
) -> None:
    raise NotImplementedError
