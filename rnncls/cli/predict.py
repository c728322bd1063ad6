"""rnncls predict"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.options import Device
from rnncls.errors import ConfigError, Problem, printable

if TYPE_CHECKING:
    from rnncls.predict import Predictor


def predict(
    checkpoint: Annotated[
        Path, typer.Argument(help="Checkpoint file, or run directory (its best).", readable=False)
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
            help="File: .jsonl, .csv, .tsv (or .gz), else one sequence per line.", readable=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File: .jsonl, .csv, .tsv, else text.", readable=False)
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels, likeliest first.")] = 1,
    bad: Annotated[str, typer.Option(help="What to do about a bad line: stop or skip.")] = "stop",
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines on stdout.")] = False,
) -> None:
    """Predict labels: of arguments, a file, stdin, or at a prompt when there is a terminal."""
    if bad not in ("stop", "skip"):
        raise ConfigError(
            Problem("bad value for --bad", expected="stop or skip", found=bad, id="C17")
        )
    if input and sequences:
        raise ConfigError(
            Problem("what is to be predicted?", expected="--input or sequences, not both", id="C17")
        )
    from rnncls.predict import (
        Skipping,
        items_of_file,
        items_of_texts,
        load_predictor,
        write_predictions,
    )

    predictor = load_predictor(checkpoint, device)
    format = "jsonl" if as_json else "text"
    reported = Skipping(
        input or ("stdin" if sequences in (None, [], ["-"]) else "argument"), stop=bad == "stop"
    )
    if input is not None and re.search(
        r"\.(jsonl|json|ndjson|csv|tsv|tab)(\.gz)?$", str(input), re.IGNORECASE
    ):
        items = items_of_file(predictor, input, reported)
    elif input is not None:
        from rnncls.data.records import opened

        with opened(input) as file:
            items = items_of_texts(predictor, file, reported)
            reported.finish(write_predictions(predictor, items, top_k, output, format))
        return
    elif sequences and sequences != ["-"]:
        items = items_of_texts(predictor, sequences, reported)
    elif not sequences and sys.stdin.isatty():
        _prompt(predictor, top_k)
        return
    else:
        items = items_of_texts(predictor, sys.stdin.buffer, reported)
    reported.finish(write_predictions(predictor, items, top_k, output, format))


def _prompt(predictor: "Predictor", top_k: int) -> None:
    """Ask for sequences until `quit` or Ctrl-D."""
    from rnncls import predict as predictions
    from rnncls.predict import Item, encode_text, knows_nothing, true_answer

    print('one sequence per line; "quit" or Ctrl-D to leave', file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "quit":
            print(file=sys.stderr)
            return
        ids = encode_text(predictor, line.removesuffix("\n"))
        if isinstance(ids, Problem):
            print(ids.render(), file=sys.stderr)
            continue
        (prediction,) = predictions.predict(predictor, [Item(1, ids)], max(top_k, 3))
        shown = "   ".join(
            f"{printable(name)} {probability:.4f}" for name, probability in prediction.top
        )
        truth = true_answer(predictor, ids)
        nothing_known = (
            "   (no token of it was in the training data)" if knows_nothing(predictor, ids) else ""
        )
        print(
            shown + (f"   (true: {truth})" if truth is not None else "") + nothing_known, flush=True
        )
