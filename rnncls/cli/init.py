"""Defines rnncls init, and how other commands make a config from a data file in place of one."""

import os
import sys
from collections.abc import Set
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, cast

import typer

from rnncls.cli.completion import complete_word
from rnncls.cli.options import LabelField, SequenceField, Tokens
from rnncls.config import READING_KEYS
from rnncls.errors import ConfigError, DataError, Problem
from rnncls.system.streams import say

if TYPE_CHECKING:
    from rnncls.config import Config, FilesConfig
    from rnncls.data.guess import Guess

KINDS_OF_TOKENS = ("ids", "words", "characters", "subwords")

# The keys of a config that `init` takes: they are about the file, and not about the model.
_KEYS = tuple(
    f"data.{key}"
    for key in (
        *READING_KEYS,
        "bad",
        "sequence_field",
        "label_field",
        "prefix_labels_field",
        "tokens",
        "lowercase",
        "word_boundaries",
        "vocabulary_size",
        "end_token",
    )
)

# The keys that say which rows are held out.
RULE_KEYS = ("split", "rare_classes")

# The options that say how a data file is read, and the config keys that they stand for.
FILE_OPTIONS = {
    "--sequence-field": "data.sequence_field",
    "--label-field": "data.label_field",
    "--tokens": "data.tokens",
}

FileOptions = dict[str, str | tuple[str, ...] | None]

DataOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[data.KEY=VALUE]...",
        help="How the file is to be read, for example data.header=false.",
        show_default=False,
        autocompletion=complete_word,
    ),
]


def init(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="Data file: JSONL, CSV or TSV, for example, packed or not.",
            show_default=False,
            readable=False,
        ),
    ],
    overrides: DataOverrides = None,
    sequence_field: SequenceField = None,
    label_field: LabelField = None,
    tokens: Tokens = None,
) -> None:
    """Print a commented config for a data file: columns, tokens, lengths, classes, model, steps.

    What was assumed is printed on stderr, with the options that change it. Keys such as
    data.header=false say how the file is to be read.

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
    _require_keys_of_file(overrides or [])
    reading = _reading_of(file, overrides or [])
    options = file_options_of(sequence_field, label_field, tokens)
    wanted = _wanted_fields(reading, options)
    made = guess(file, wanted, reading, path_in_text)
    say_how_read(file, reading)
    print(made.text, end="")


def _require_keys_of_file(overrides: list[str]) -> None:
    """Raise ConfigError for an override that is not about how a file is read."""
    for word in overrides:
        if word.partition("=")[0] not in _KEYS:
            expected = f"KEY=VALUE, with one of {', '.join(_KEYS)}"
            raise ConfigError(
                Problem("not about how a file is read", expected=expected, found=word, id="C17")
            )


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
    wanted: "WantedFields",
    reading: "FilesConfig",
    path_in_text: str = "",
    asked: Set[str] = frozenset(),
) -> "Guess":
    """Make a config from a data file, and print what was assumed on stderr.

    `reading` says how the file is to be read. In the config's text, `path_in_text` stands for the
    path of the file, if it is given. `asked` are the keys that overrides will replace, of which
    nothing is assumed.

    Raises: ConfigError for another kind of tokens. DataError.
    """
    if wanted.tokens is not None and wanted.tokens not in KINDS_OF_TOKENS:
        raise ConfigError(
            Problem(
                "bad value for --tokens",
                expected="ids, words, characters or subwords",
                found=wanted.tokens,
                id="C17",
            )
        )
    # After the check of the options, because importing torch takes a second.
    from rnncls.data.guess import guess_config

    try:
        made = guess_config(file, *wanted, path_in_text, asked, reading)
    except DataError:
        # What is wrong with the rows may be how they are read.
        say_how_read(file, reading)
        raise
    for line in made.assumed:
        say(f"rnncls: {line}")
    return made


def say_how_read(file: Path, reading: "FilesConfig") -> None:
    """Say on stderr how a file is read, if that can be told."""
    from rnncls.data.files.dialect import described, dialect_of, is_remarkable
    from rnncls.data.files.sniffing import sniff

    try:
        dialect = sniff(file, dialect_of(reading), [])
    except DataError:
        return
    if is_remarkable(dialect):
        say(f"rnncls: {file}: read as: {described(dialect)}")


class WantedFields(NamedTuple):
    """What is known of the fields of a file before it is looked at."""

    sequence_field: str | tuple[str, ...] | None
    label_field: str | None
    tokens: str | None


def _reading_of(path: Path, changes: list[str]) -> "FilesConfig":
    """Return the keys of a config that say how a file is read and shared out, with overrides.

    Raises: ConfigError.
    """
    from rnncls.config import parse_config

    keys = [*_KEYS, *(f"data.{key}" for key in RULE_KEYS)]
    chosen = [change for change in changes if change.partition("=")[0] in keys]
    raw = {"data": {"source": "files", "train": str(path)}}
    data = parse_config(raw, f"the config made from {path}", chosen).data
    return cast("FilesConfig", data)  # no override of these keys changes the source


def _wanted_fields(reading: "FilesConfig", file_options: FileOptions) -> WantedFields:
    """Return the fields that overrides name, or else the options."""
    # An override says the same as its option, and the rest follows from it as well.
    given: dict[str, Any] = dict(zip(WantedFields._fields, file_options.values(), strict=True))
    for key in WantedFields._fields:
        if key in reading.model_fields_set:
            given[key] = getattr(reading, key)
    return WantedFields(**given)


def file_options_of(
    sequence_field: list[str] | None, label_field: str | None, tokens: str | None
) -> FileOptions:
    """Return the values of FILE_OPTIONS by option."""
    fields = None if not sequence_field else tuple(sequence_field)
    # One field is no list of fields: so a config has it, too.
    field = fields[0] if fields is not None and len(fields) == 1 else fields
    return dict(zip(FILE_OPTIONS, (field, label_field, tokens), strict=True))


def config_of_file(path: Path, file_options: FileOptions, changes: list[str]) -> "Config":
    """Return the config that is made from a data file, with overrides.

    `file_options` has the values of FILE_OPTIONS.

    Raises: ConfigError. DataError.
    """
    from rnncls.config import parse_config

    asked = {change.partition("=")[0] for change in changes}
    reading = _reading_of(path, changes)
    made = guess(path, _wanted_fields(reading, file_options), reading, asked=asked)
    # Who asks for a number of steps need not hear in which of the guessed epochs they end.
    if "train.max_steps" in asked:
        del made.raw["train"]["max_epochs"]
    _without_clashes(made.raw, changes)
    return parse_config(made.raw, f"the config made from {path}", changes)


def _without_clashes(raw: dict[str, Any], changes: list[str]) -> None:
    """Take out what was guessed and does not go with the overrides."""
    # The guessed layout is not for two directions.
    if "model.bidirectional=true" in changes:
        raw["data"].pop("layout", None)
    # Nothing becomes <unk> then.
    if "data.unknown=error" in changes:
        raw["data"].pop("token_dropout", None)
    # Positions need a largest length.
    if "data.max_length=null" in changes:
        raw["model"].pop("positions", None)
    # A prefix has neither a mean nor a largest state, and no control.
    if "train.objective=prefix" in changes:
        raw["model"].pop("pooling", None)
        raw["model"].pop("skip", None)
        raw["train"].pop("baseline", None)


def require_no_file_options(file_options: FileOptions) -> None:
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
