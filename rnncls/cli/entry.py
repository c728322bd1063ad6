"""The entry point of `rnncls`: runs the app, and turns errors into messages and exit codes."""

import os
import sys
import traceback
from typing import Any

import typer

from rnncls.cli.app import app
from rnncls.cli.launcher_report import tell_launcher
from rnncls.cli.usage import describe
from rnncls.errors import RnnclsError, on_one_line
from rnncls.system.refusals import error_of_machine
from rnncls.system.signals import exit_on_signals
from rnncls.system.streams import make_streams_lenient, say_nevertheless

# The parent of typer's public BadParameter, wherever this version of typer keeps its copy of click.
UsageError: Any = typer.BadParameter.__bases__[0]


def main() -> None:
    """Run the command line; every error is one block on stderr and an exit code (see errors.py)."""
    # First, because whatever follows may print and may be interrupted.
    make_streams_lenient()
    exit_on_signals()

    # No window is opened. matplotlib refuses to be imported with the name of one that it lacks.
    os.environ["MPLBACKEND"] = "agg"

    # torch's profiler would print lines on stderr that only its developers understand.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    # Nor does a trace of C++ say more than our own message of a process that is gone.
    if "RANK" in os.environ:
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

    exit_code = run()
    try:
        sys.stdout.flush()
    # The disk behind a redirected stdout may turn out full only now.
    except RnnclsError as error:
        exit_code = _fail(error)
    sys.exit(exit_code)


def run() -> int:
    """Run the command in sys.argv, print its error if there is one, and return the exit code."""
    try:
        # Not standalone: typer would print errors itself, with exit codes of its own.
        return app(prog_name="rnncls", standalone_mode=False) or 0
    except RnnclsError as error:
        return _fail(error)
    except UsageError as error:
        return _report(describe(error, sys.argv[1:]), int(error.exit_code), "C17")
    except Exception as error:
        # Any path of any command can be too long, or closed to this user, and memory can also run
        # out outside training, for example while a checkpoint is read.
        of_machine = error_of_machine(error)
        return _fail(of_machine) if of_machine else _bug(error)


def _fail(error: RnnclsError) -> int:
    # Without a problem, another process of the run has said what it is.
    if not error.problems:
        return error.exit_code
    return _report(error.render(), error.exit_code, error.problems[0].id)


def _bug(error: Exception) -> int:
    lines = [f"rnncls: internal error: {type(error).__name__}: {error}"]
    # A note says, for example, where the traceback was written.
    lines += [f"  {note}" for note in getattr(error, "__notes__", [])]
    lines.append("  try:      --debug")
    return _report("\n".join(map(on_one_line, lines)), 1)


def _report(message: str, exit_code: int, error_id: str = "") -> int:
    """Print an error, and tell the launcher of this process; returns the exit code."""
    # Not from the parsed options: the error may be one of parsing them.
    if "--debug" in sys.argv:
        traceback.print_exc()
    say_nevertheless(message)
    tell_launcher(message, exit_code, error_id)
    return exit_code
