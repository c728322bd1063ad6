"""Defines rnncls init, and how a config is made from a data file, as rnncls train does too."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.options import LabelField, SequenceField, Tokens
from rnncls.errors import ConfigError, Problem

if TYPE_CHECKING:
    from rnncls.data.guess import Guess

KINDS_OF_TOKENS = ("ids", "words", "characters")


def init(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Data file: JSONL, CSV or TSV, plain or gzipped.",
            show_default=False,
            readable=False,
        ),
    ],
    sequence_field: SequenceField = None,
    label_field: LabelField = None,
    tokens: Tokens = None,
) -> None:
    """Print a commented config for a data file: columns, tokens, lengths, classes, model, steps.

    What was assumed is printed on stderr, with the options that change it.

    Examples:
        rnncls init clicks.csv > clicks.yaml
    """
    if file.suffix.lower() in (".yaml", ".yml"):
        raise ConfigError(
            Problem(
                "init makes a config from data, and this is a config",
                str(file),
                expected="a JSONL, CSV or TSV file",
                remedy=f"rnncls config show {file}",
                id="C17",
            )
        )
    print(guess(file, sequence_field, label_field, tokens).text, end="")


def guess(
    file: Path, sequence_field: str | None, label_field: str | None, tokens: str | None
) -> "Guess":
    """Make a config from a data file, and print what was assumed on stderr.

    Raises: ConfigError for another kind of tokens. DataError.
    """
    if tokens is not None and tokens not in KINDS_OF_TOKENS:
        raise ConfigError(
            Problem(
                "bad value for --tokens",
                expected="ids, words or characters",
                found=tokens,
                id="C17",
            )
        )
    # After the check of the options, because importing torch takes a second.
    from rnncls.data.guess import guess_config

    made = guess_config(file, sequence_field, label_field, tokens)
    for line in made.assumed:
        print(f"rnncls: {line}", file=sys.stderr)
    return made
