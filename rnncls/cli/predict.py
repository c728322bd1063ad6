"""Defines rnncls predict."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.options import Device
from rnncls.errors import ConfigError, Problem
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.predict import Item, Predictor, Skipping

# Any other file is read as text, one sequence per line.
_RECORDS = re.compile(r"\.(jsonl|json|ndjson|csv|tsv|tab)(\.gz)?$", re.IGNORECASE)


def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint file, or run directory (its best checkpoint).", readable=False
        ),
    ],
    sequences: Annotated[
        list[str] | None,
        typer.Argument(
            help='Sequences, such as "3 7 1 9"; - reads lines from stdin.', show_default=False
        ),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(
            help="File to predict: .jsonl, .csv or .tsv, also with .gz; any other file has one "
            "sequence per line.",
            readable=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .jsonl, .csv or .tsv; any other name is written as text.",
            readable=False,
        ),
    ] = None,
    top_k: Annotated[
        int, typer.Option(min=1, help="How many labels to show, the likeliest first.")
    ] = 1,
    bad: Annotated[str, typer.Option(help="What to do with a bad line: stop or skip.")] = "stop",
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines on stdout.")] = False,
) -> None:
    """Predict the labels of sequences: arguments, a file, stdin, or typed at a prompt."""
    if bad not in ("stop", "skip"):
        raise ConfigError(
            Problem("bad value for --bad", expected="stop or skip", found=bad, id="C17")
        )
    if input and sequences:
        raise ConfigError(
            Problem("both a file and sequences: pass --input FILE or sequences", id="C17")
        )
    # After the checks of the options, because importing torch takes a second.
    load_torch()
    from rnncls.predict import Skipping, load_predictor, write_predictions

    predictor = load_predictor(checkpoint, device)

    # Nothing given and nothing piped in: a person sits there.
    if input is None and not sequences and sys.stdin.isatty():
        _prompt(predictor, top_k)
        return

    # Bad lines are named after where they come from.
    from_stdin = not sequences or sequences == ["-"]
    skipped = Skipping(input or ("stdin" if from_stdin else "argument"), stop=bad == "stop")
    texts = None if from_stdin else sequences
    format = "jsonl" if as_json else "text"
    with _items(predictor, input, texts, skipped) as items:
        num_predicted = write_predictions(predictor, items, top_k, output, format)
        skipped.finish(num_predicted)


@contextmanager
def _items(
    predictor: "Predictor", path: Path | None, texts: list[str] | None, skipped: "Skipping"
) -> "Iterator[Iterator[Item]]":
    """Give the good sequences of a file, or those of `texts`, or else those of stdin."""
    from rnncls.data.records import opened
    from rnncls.predict import items_of_file, items_of_texts

    if path is not None and _RECORDS.search(str(path)):
        yield items_of_file(predictor, path, skipped)
    elif path is not None:
        # Opened before the output is begun: a missing file is reported even if the output could not
        # be written either.
        with opened(path) as file:
            yield items_of_texts(predictor, file, skipped)
    elif texts is not None:
        yield items_of_texts(predictor, texts, skipped)
    else:
        # Bytes, so that a line that is not UTF-8 is one bad line and not the end.
        yield items_of_texts(predictor, sys.stdin.buffer, skipped)


def _prompt(predictor: "Predictor", top_k: int) -> None:
    """Ask for sequences until `quit` or Ctrl-D."""
    from rnncls.predict import encode_text

    print('one sequence per line; "quit" or Ctrl-D to leave', file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        # Ctrl-D ends stdin: readline() returns no line, not even an empty one.
        line = sys.stdin.readline()
        if not line or line.strip() == "quit":
            print(file=sys.stderr)
            return

        ids = encode_text(predictor, line.removesuffix("\n"))
        if isinstance(ids, Problem):
            print(ids.render(), file=sys.stderr)
        else:
            # A person wants to see how close the second and third label come.
            print(_answer(predictor, ids, max(top_k, 3)), flush=True)


def _answer(predictor: "Predictor", ids: list[int], top_k: int) -> str:
    """Return the likeliest labels of one sequence and what else is known about it."""
    from rnncls.predict import Item, knows_nothing, predict, to_text, true_answer

    (prediction,) = predict(predictor, [Item(1, ids)], top_k)
    parts = [to_text(prediction)]

    truth = true_answer(predictor, ids)
    if truth is not None:
        parts.append(f"(true: {truth})")
    if knows_nothing(predictor, ids):
        parts.append("(none of its tokens is in the training data)")

    return "   ".join(parts)
