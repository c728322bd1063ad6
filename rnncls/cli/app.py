"""The app and its commands."""

from collections.abc import Callable
from typing import Annotated

import typer

from rnncls.cli import (
    board,
    config,
    cost,
    data,
    evaluate,
    explain,
    init,
    model,
    predict,
    runs,
    sweep,
    train,
)
from rnncls.cli.command import App
from rnncls.version import __version__

app = App(help="Train, evaluate and monitor recurrent classifiers of variable-length sequences.")


def _add_group(name: str, help: str, *commands: Callable[..., None]) -> None:
    group = App(help=help)
    for command in commands:
        group.command()(command)
    app.add_typer(group, name=name)


# In the order of `rnncls --help`.
app.command("init")(init.init)
app.command("train")(train.train)
app.command("sweep")(sweep.sweep)
app.command("eval")(evaluate.evaluate)
app.command("board")(board.board)
app.command("predict")(predict.predict)
app.command("explain")(explain.explain)
app.command("cost")(cost.cost)
_add_group(
    "config",
    "Inspect a config without running it.",
    config.show,
    config.check,
    config.keys,
    config.schema,
)
_add_group("data", "Inspect data before training on it.", data.check, data.stats, data.sample)
_add_group("model", "Inspect a model.", model.show)
_add_group("runs", "Inspect and compare runs.", runs.ls, runs.diff)


def _print_version(wanted: bool) -> None:
    # Called for every command line, with or without the option.
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
