"""The app, and errors as exit codes."""

import errno
import sys
import traceback
from typing import Annotated, Any

import typer

from rnncls.cli import config, data, evaluate, predict, runs, sweep, train
from rnncls.errors import Problem, RnnclsError, as_out_of_memory, printable
from rnncls.system.signals import exit_on_signals
from rnncls.system.streams import make_streams_lenient
from rnncls.version import __version__

app = typer.Typer(
    help="Train, evaluate and watch recurrent classifiers of variable-length sequences.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(train.train)
app.command()(sweep.sweep)
app.command(name="eval")(evaluate.evaluate)
app.command()(predict.predict)
for name, what, commands in (
    ("config", "Look at a config without running it.", (config.show, config.check, config.schema)),
    ("data", "Look at data before training on it.", (data.check, data.stats, data.sample)),
    ("runs", "Look at what has been run.", (runs.ls, runs.diff)),
):
    group = typer.Typer(help=what, no_args_is_help=True, rich_markup_mode=None)
    for command in commands:
        group.command()(command)
    app.add_typer(group, name=name)

# The parent of typer's public BadParameter, wherever this version of typer keeps its copy of click.
UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Entry point of `rnncls`. Every error is one block on stderr and an exit code (see errors.py)."""
    make_streams_lenient()
    exit_on_signals()
    exit_code = run()
    try:
        sys.stdout.flush()
    except RnnclsError as error:  # the disk behind it is full
        exit_code = _fail(error.render(), error.exit_code)
    sys.exit(exit_code)


def run() -> int:
    """Run sys.argv; returns the exit code, its message printed."""
    try:
        return app(standalone_mode=False) or 0
    except RnnclsError as error:
        return _fail(error.render(), error.exit_code)
    except UsageError as error:
        error.show()
        return int(error.exit_code)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return _bug(error)
        what, remedy = f"a path that is too long: {error.filename!s:.60}...", "a shorter path"
        return _fail(
            Problem(what, expected="names of at most 255 bytes", remedy=remedy, id="R30").render(),
            5,
        )
    except Exception as error:
        if memory := as_out_of_memory(error):
            return _fail(memory.render(), memory.exit_code)
        return _bug(error)


def _bug(error: Exception) -> int:
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
    return _fail(
        printable(
            f"rnncls: internal error: {type(error).__name__}: {error}{notes}\n  try:      --debug"
        ),
        1,
    )


def _fail(message: str, exit_code: int) -> int:
    if "--debug" in sys.argv:
        traceback.print_exc()
    print(message, file=sys.stderr)
    return exit_code


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"rnncls {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass
