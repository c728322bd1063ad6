"""The app with its commands, and the exit codes of errors."""

import errno
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer

from rnncls.cli import config, data, evaluate, predict, runs, sweep, train
from rnncls.errors import MachineError, Problem, RnnclsError, as_out_of_memory, printable
from rnncls.system.signals import exit_on_signals
from rnncls.system.streams import make_streams_lenient
from rnncls.version import __version__

app = typer.Typer(
    help="Train, evaluate and monitor recurrent classifiers of variable-length sequences.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _add_group(name: str, help: str, *commands: Callable[..., None]) -> None:
    group = typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None)
    for command in commands:
        group.command()(command)
    app.add_typer(group, name=name)


app.command("train")(train.train)
app.command("sweep")(sweep.sweep)
app.command("eval")(evaluate.evaluate)
app.command("predict")(predict.predict)
_add_group(
    "config", "Inspect a config without running it.", config.show, config.check, config.schema
)
_add_group("data", "Inspect data before training on it.", data.check, data.stats, data.sample)
_add_group("runs", "Inspect and compare runs.", runs.ls, runs.diff)

# The parent of typer's public BadParameter, wherever this version of typer keeps its copy of click.
UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line; every error is one block on stderr and an exit code (see errors.py)."""
    # First, because whatever follows may print and may be interrupted.
    make_streams_lenient()
    exit_on_signals()

    exit_code = run()
    try:
        sys.stdout.flush()
    except RnnclsError as error:  # the disk behind it is full
        exit_code = _fail(error)
    sys.exit(exit_code)


def run() -> int:
    """Run the command in sys.argv, print its error if there is one, and return the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except RnnclsError as error:
        return _fail(error)
    except UsageError as error:
        error.show()
        return int(error.exit_code)
    # Any path of any command can be too long. Another OSError should have been caught before.
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _fail(_path_too_long(error))
        return _bug(error)
    except Exception as error:
        out_of_memory = as_out_of_memory(error)
        return _fail(out_of_memory) if out_of_memory else _bug(error)


def _path_too_long(error: OSError) -> MachineError:
    return MachineError(
        Problem(
            f"a path that is too long: {error.filename!s:.60}...",
            expected="names of at most 255 bytes",
            remedy="a shorter path",
            id="R30",
        )
    )


def _fail(error: RnnclsError) -> int:
    _print_error(error.render())
    return error.exit_code


def _bug(error: Exception) -> int:
    lines = [f"rnncls: internal error: {type(error).__name__}: {error}"]
    lines += [f"  {note}" for note in getattr(error, "__notes__", [])]
    lines.append("  try:      --debug")
    _print_error(printable("\n".join(lines)))
    return 1


def _print_error(message: str) -> None:
    if "--debug" in sys.argv:
        traceback.print_exc()
    print(message, file=sys.stderr)


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
    """Declare the options of `rnncls` itself; `--debug` is read from sys.argv."""
