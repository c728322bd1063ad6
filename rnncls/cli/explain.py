"""rnncls explain"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from rnncls.cli.options import DataDir, Device, refuse_to_replace
from rnncls.cli.views import Wanted, misfit, require_options, view_of
from rnncls.errors import CheckpointError, Problem
from rnncls.sweep.paths import MEMBERS, is_sweep
from rnncls.system.rows import json_text
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.inspect.subject import Subject

# Of a sequence on stdin: names and answers of two million characters take 300 MB.
MOST_BYTES = 2**21


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
            help='A sequence, such as "3 7 1 9", to follow step by step; '
            "- reads the first line of stdin, which may be longer than an argument.",
            show_default=False,
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
        bool,
        typer.Option(
            "--padding",
            help="Run one batch in ways that read its padding, and in ways that do not.",
        ),
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
    wanted = Wanted(
        checkpoint, sequence, graph, rolled, padding, gradients, states, html, label, output, demo
    )
    view = view_of(wanted)
    require_options(view, wanted)
    if checkpoint is None:
        _show_demo(as_json)
        return

    for option, path in wanted.written().items():
        refuse_to_replace(option, path, checkpoint)
    _refuse_sweep(checkpoint)
    if sequence == "-" and sys.stdin is None:
        raise misfit("no sequence: stdin is closed", 'a sequence, such as "3 7 1 9"')

    load_torch()
    from rnncls.inspect.subject import load_subject

    subject = load_subject(checkpoint, device)
    if sequence == "-":
        sequence = _line_of_stdin()
    if view == "--padding":
        _show_padding(subject, output, data_dir, as_json)
    elif view == "--gradients":
        _show_gradients(subject, output, data_dir, as_json)
    elif states is not None:
        _show_states(subject, states, data_dir, as_json)
    elif graph is not None:
        _write_graph(subject, sequence, graph, rolled, as_json)
    elif sequence is not None:
        _show_trace(subject, sequence, label, html, as_json)


def _refuse_sweep(path: Path) -> None:
    """Raise CheckpointError for a sweep, of which one member can be looked into."""
    if not is_sweep(path):
        return
    members = sorted((path / MEMBERS).glob("*"))
    remedy = f"a member of it, such as {members[0]}" if members else "a run"
    raise CheckpointError(
        Problem("a sweep, not a run", str(path), expected="one run", remedy=remedy, id="K1")
    )


def _line_of_stdin() -> str:
    """Return the first line of stdin. Raises: DataError if it is no text, or too long."""
    from rnncls.predict.reading import first_line

    return first_line(sys.stdin.buffer, "stdin", MOST_BYTES)


def _show_demo(as_json: bool) -> None:
    """Print the smallest network."""
    load_torch()
    from rnncls.inspect.demo import demo

    shown = demo()
    print(json_text(shown.to_json()) if as_json else shown.to_text())


class _Shown(Protocol):
    """What was found out, for people and for programs."""

    def to_text(self) -> str: ...
    def to_json(self) -> dict[str, Any]: ...


def _print(subject: "Subject", result: _Shown, as_json: bool) -> None:
    """Print what was found out, after what it is about."""
    from rnncls.inspect.heading import about, heading_of

    if as_json:
        print(json_text(about(subject) | result.to_json()))
    else:
        print(f"{heading_of(subject)}\n\n{result.to_text()}")


def _show_padding(
    subject: "Subject", output: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Print what padding does to one batch. Raises: DataError, CheckpointError, WriteError."""
    from rnncls.inspect.padding.compare import compare_padding

    shown = compare_padding(subject, progress=True, data_dir=data_dir)
    _print(subject, shown, as_json)

    # Last, so that a picture that cannot be written costs no numbers.
    if output is not None:
        from rnncls.inspect.padding.plot import draw_padding

        draw_padding(shown, output)


def _show_gradients(
    subject: "Subject", output: Path | None, data_dir: Path | None, as_json: bool
) -> None:
    """Print, and draw, how much of the gradient reaches each step.

    Raises: DataError, CheckpointError, as `own_sequences`. WriteError for the picture.
    """
    from rnncls.inspect.gradients.measure import gradients_of
    from rnncls.inspect.gradients.plot import draw_gradients

    gradients = gradients_of(subject, data_dir)
    _print(subject, gradients, as_json)

    # Last, so that a picture that cannot be written costs no numbers.
    if output is not None:
        draw_gradients(gradients, output)


def _show_states(subject: "Subject", picture: Path, data_dir: Path | None, as_json: bool) -> None:
    """Print what the states encode, and draw it."""
    from rnncls.inspect.states.measure import states_shown
    from rnncls.inspect.states.plot import draw_states

    states = states_shown(subject, progress=True, data_dir=data_dir)
    _print(subject, states, as_json)

    # Last, so that a picture that cannot be written costs no numbers.
    draw_states(states, picture)


def _write_graph(
    subject: "Subject", sequence: str | None, path: Path, rolled: bool, as_json: bool
) -> None:
    """Draw the graph, and print how large it is.

    Raises: ConfigError if a sequence is missing, or recurrent layers. DataError if the sequence is
    bad. WriteError.
    """
    from rnncls.inspect.graph.build import rolled_graph, unrolled_graph
    from rnncls.inspect.graph.file import write_graph
    from rnncls.inspect.graph.graph import architecture_of
    from rnncls.inspect.subject import require_recurrence, tokens_of_text

    require_recurrence(subject, "--graph")
    architecture = architecture_of(subject.network)
    if rolled:
        # A sequence changes nothing here, and what is wrong with it is said all the same.
        if sequence is not None:
            tokens_of_text(subject.predictor, sequence)
        graph = rolled_graph(architecture)
    elif sequence is None:
        raise misfit(
            "--graph draws the steps of a sequence", 'a sequence, such as "3 7 1 9", or --rolled'
        )
    else:
        read = tokens_of_text(subject.predictor, sequence)
        graph = unrolled_graph(architecture, read.names)
    _print(subject, write_graph(graph, path), as_json)


def _show_trace(
    subject: "Subject", sequence: str, label: str | None, html: Path | None, as_json: bool
) -> None:
    from rnncls.inspect.html import MOST_LABELS_SHOWN, require_files, write_html
    from rnncls.inspect.trace.json_lines import write_json
    from rnncls.inspect.trace.question import ask
    from rnncls.inspect.trace.text import text_of
    from rnncls.inspect.trace.trace import trace
    from rnncls.predict.predictor import predict_ids

    if html is not None:
        require_files(subject)
    question = ask(subject, sequence, label)
    if as_json:
        write_json(question, sys.stdout)
    else:
        print(text_of(trace(question)))

    # Last, so that a page that cannot be written costs no number.
    if html is not None and question.importance is not None:
        (prediction,) = predict_ids(subject.predictor, [question.tokens.ids], MOST_LABELS_SHOWN)
        write_html(html, subject.predictor, question.tokens, question.importance, prediction)
