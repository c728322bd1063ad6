"""Options and helpers that several commands share."""

import os
from pathlib import Path
from typing import Annotated

import typer

from rnncls.cli.completion import complete_word
from rnncls.config.ranges import DEFAULT_STRUCTURED, MAX_READ
from rnncls.errors import ConfigError, Problem
from rnncls.system.rows import TABLES, format_of_name

OptionalConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="The config, if it is not the first word.",
        show_default=False,
        readable=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG] [SECTION.KEY=VALUE]...",
        help="YAML config file, and values that replace some of its own.",
        show_default=False,
        autocompletion=complete_word,
    ),
]
WordsOrData = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[CONFIG|DATA] [SECTION.KEY=VALUE]...",
        help="YAML config file, or a data file (JSONL, CSV or TSV) that a config is made from; "
        "then values that replace some of the config's own.",
        show_default=False,
        autocompletion=complete_word,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Device to use instead of the config's: auto, cpu, cuda or cuda:INDEX."),
]
DEFAULT_TIMEOUT = 60.0
DistTimeout = Annotated[
    float,
    typer.Option(
        "--dist-timeout",
        metavar="SECONDS",
        min=5,
        help="With torchrun: a process that does not answer for so long counts as gone.",
    ),
]
SequenceField = Annotated[
    list[str] | None,
    typer.Option(
        "--sequence-field",
        "--text-column",
        metavar="NAME",
        help="Field or column of a data file with the sequences; may be repeated.",
        show_default=False,
    ),
]
LabelField = Annotated[
    str | None,
    typer.Option(
        "--label-field",
        "--label-column",
        help="Field or column of a data file with the labels.",
        show_default=False,
    ),
]
SequenceFields = Annotated[
    list[str] | None,
    typer.Option(
        "--sequence-field",
        "--text-column",
        metavar="NAME",
        help="Field or column of the file with the sequences, if it is not that of training; may "
        "be repeated.",
        show_default=False,
    ),
]
NewLabelField = Annotated[
    str | None,
    typer.Option(
        "--label-field",
        "--label-column",
        metavar="NAME",
        help="Field or column of the file with the labels, if it is not that of training.",
        show_default=False,
    ),
]
Structured = Annotated[
    bool,
    typer.Option(
        "--structured",
        help="Also read zeros, a digit and then zeros, a digit repeated and two digits in turns.",
    ),
]
StructuredLength = Annotated[
    int | None,
    typer.Option(
        "--structured-length",
        metavar="LENGTH",
        min=1,
        max=MAX_READ,
        help=f"Up to which length --structured reads (default {DEFAULT_STRUCTURED:,}).",
        show_default=False,
    ),
]
UntilWrong = Annotated[
    int | None,
    typer.Option(
        "--until-wrong",
        metavar="LENGTH",
        min=1,
        max=MAX_READ,
        help="Also read random sequences, each until it is wrong or has this length.",
        show_default=False,
    ),
]
Read = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="How the file is read, where that cannot be told: format, separator, quoting, header, "
        "encoding, max_record_bytes or max_columns, as in a config; may be repeated.",
        show_default=False,
    ),
]
Bad = Annotated[str, typer.Option(help="What to do with a bad line: error or skip.")]
Tokens = Annotated[
    str | None,
    typer.Option(
        help="Unit of the sequences of a data file: ids, words, characters or subwords.",
        show_default=False,
    ),
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Where data files are now that were moved: they are known by their SHA-256.",
        show_default=False,
        readable=False,
    ),
]
CsvSafe = Annotated[
    bool,
    typer.Option(
        "--csv-safe",
        help="In a .csv or .tsv file, write ' before each text that a spreadsheet would take for a "
        "formula.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def require_table(csv_safe: bool, option: str, path: Path | None) -> None:
    """Raise ConfigError for --csv-safe unless a table is written; `option` names its file."""
    if csv_safe and (path is None or format_of_name(path) not in TABLES):
        what = "--csv-safe is about a table"
        raise ConfigError(Problem(what, remedy=f"{option} FILE.csv, or FILE.tsv", id="C17"))


def require_resuming(data_dir: Path | None) -> None:
    """Raise ConfigError for --data-dir where something new begins, whose config names its files."""
    if data_dir is not None:
        what = "--data-dir is for --resume: where the files are now that it began with"
        remedy = "data.train=PATH, which may be a folder"
        raise ConfigError(Problem(what, found=f"--data-dir {data_dir}", remedy=remedy, id="C17"))


def refuse_to_replace(option: str, written: Path, *read: Path | str | None) -> None:
    """Raise ConfigError if a file to be written is one of those that are read.

    `option` is the one that names the file to be written.
    """
    for path in read:
        # Unlike Path.resolve(), this takes any name, also one of links that go in a circle.
        if path is not None and os.path.realpath(written) == os.path.realpath(path):
            what = "would replace what is read"
            raise ConfigError(Problem(what, f"{option} {written}", remedy="another name", id="C17"))


def require_bad(bad: str) -> None:
    """Raise ConfigError if this is no value of --bad."""
    # stop is what error was called before.
    if bad not in ("error", "skip", "stop"):
        raise ConfigError(
            Problem("bad value for --bad", expected="error or skip", found=bad, id="C17")
        )


def length_of_structured(wanted: bool, length: int | None) -> int | None:
    """Return up to which length sequences with a structure are read; None: they are not read.

    Raises: ConfigError for a length without --structured.
    """
    if wanted:
        return length or DEFAULT_STRUCTURED
    if length is not None:
        what = "--structured-length says how far --structured reads"
        raise ConfigError(Problem(what, remedy="--structured beside it", id="C17"))
    return None
