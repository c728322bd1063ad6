"""Defines rnncls init, and how other commands make a config from a data file in place of one."""

import os
import sys
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.options import LabelField, SequenceField, Tokens
from rnncls.errors import ConfigError, Problem

if TYPE_CHECKING:
    from rnncls.config import Config
    from rnncls.data.guess import Guess

KINDS_OF_TOKENS = ("ids", "words", "characters")

# The options that say how a data file is read, and the config keys that they stand for.
FILE_OPTIONS = {
    "--sequence-field": "data.sequence_field",
    "--label-field": "data.label_field",
    "--tokens": "data.tokens",
}


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
    path_in_text = _path_from(_folder_of_stdout(), file)
    print(guess(file, sequence_field, label_field, tokens, path_in_text).text, end="")


def _folder_of_stdout() -> Path | None:
    """Return the folder of the file that stdout was redirected to; None if it is no file.

    Only Linux tells. Elsewhere the config is taken to be written into the current folder.
    """
    try:
        target = Path(f"/proc/self/fd/{sys.stdout.fileno()}").readlink()
    # No /proc, or a stdout that is none of the system's. ValueError: it is closed.
    except (OSError, ValueError):
        return None
    return target.parent if target.is_file() else None


def _path_from(folder: Path | None, file: Path) -> str:
    """Return a data file's path as a config in `folder` must have it; as it is, if that is right.

    Paths in a config are relative to it.
    """
    if folder is None or file.is_absolute() or folder == Path.cwd():
        return str(file)
    # The folder first has its links resolved: `..` behind a link leads elsewhere.
    return os.path.relpath(file.parent.resolve() / file.name, folder)


def guess(
    file: Path,
    sequence_field: str | None,
    label_field: str | None,
    tokens: str | None,
    path_in_text: str = "",
    asked: Set[str] = frozenset(),
) -> "Guess":
    """Make a config from a data file, and print what was assumed on stderr.

    In the config's text, `path_in_text` stands for the path of the file, if it is given. `asked`
    are the keys that overrides will replace, of which nothing is assumed.

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

    made = guess_config(file, sequence_field, label_field, tokens, path_in_text, asked)
    for line in made.assumed:
        print(f"rnncls: {line}", file=sys.stderr)
    return made


def file_options_of(
    sequence_field: str | None, label_field: str | None, tokens: str | None
) -> dict[str, str | None]:
    """Return the values of FILE_OPTIONS by option."""
    return dict(zip(FILE_OPTIONS, (sequence_field, label_field, tokens), strict=True))


def config_of_file(path: Path, file_options: dict[str, str | None], changes: list[str]) -> "Config":
    """Return the config that is made from a data file, with overrides.

    `file_options` has the values of FILE_OPTIONS.

    Raises: ConfigError. DataError.
    """
    from rnncls.config import parse_config

    # An override says the same as its option, and the rest follows from it as well.
    wanted = []
    for option, key in FILE_OPTIONS.items():
        texts = [change.partition("=")[2] for change in changes if change.startswith(f"{key}=")]
        wanted.append(texts[-1] if texts else file_options[option])

    sequence_field, label_field, tokens = wanted
    asked = {change.partition("=")[0] for change in changes}
    made = guess(path, sequence_field, label_field, tokens, asked=asked)
    # Who asks for a number of steps need not hear in which of the guessed epochs they end.
    if "train.max_steps" in asked:
        del made.raw["train"]["max_epochs"]
    # The guessed layout is not for two directions.
    if "model.bidirectional" in asked:
        made.raw["data"].pop("layout", None)
    return parse_config(made.raw, f"the config made from {path}", changes)


def require_no_file_options(file_options: dict[str, str | None]) -> None:
    """Raise ConfigError if there is an option of a data file: a config says how it is read."""
    given = [option for option, value in file_options.items() if value is not None]
    if given:
        raise ConfigError(
            Problem(
                f"{given[0]} is only for a data file",
                expected=f"{FILE_OPTIONS[given[0]]} in a config, or {FILE_OPTIONS[given[0]]}=...",
                found=", ".join(given),
                id="C17",
            )
        )
