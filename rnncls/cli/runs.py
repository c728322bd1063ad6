"""rnncls runs ls and diff"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rnncls.cli.options import Json
from rnncls.errors import printable


def ls(
    folder: Annotated[
        Path, typer.Argument(help="Folder to search for runs.", readable=False)
    ] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs, newest first: state, step, best validation accuracy, age.

    Examples:
        rnncls runs ls
    """
    from rnncls.rundir.listing import find_runs

    runs = find_runs(folder)
    if as_json:
        print(json.dumps([run.to_json() for run in runs]))
        return

    # The name comes last, because it may be of any length.
    print(f"{'state':<12} {'step':>9} {'best':>7} {'age':>6}  run")
    for run in runs:
        accuracy = run.best_accuracy
        best = "" if accuracy is None else f"{accuracy:.4f}"
        age = _age(run.age_s)
        name = printable(run.run)
        print(f"{run.state:<12} {run.step:>9,} {best:>7} {age:>6}  {name}")


def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="Run directory.", readable=False)],
    other: Annotated[Path, typer.Argument(metavar="B", help="Run directory.", readable=False)],
    as_json: Json = False,
) -> None:
    """Show how two runs differ: in their configs, their states and their last metrics.

    Examples:
        rnncls runs diff runs/first runs/second
    """
    from rnncls.rundir.listing import compare

    differences = compare(one, other)
    if as_json:
        print(json.dumps({"a": str(one), "b": str(other), **differences}))
        return

    print(f"a: {one}\nb: {other}")
    for part, pairs in differences.items():
        # Each part has a heading, so that "no difference" is said and not merely left out.
        print(f"\n{part}" if pairs else f"\n{part}: no difference")

        width = max(map(len, pairs), default=0)
        for key, (first, second) in pairs.items():
            print(f"  {printable(key):<{width}}  {_shown(first):>12}  {_shown(second):>12}")


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    # Enough digits to tell two losses apart.
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(str(value))


def _age(seconds: float) -> str:
    """Return a duration in its largest unit, such as `3h`."""
    # In seconds, the largest unit first.
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
