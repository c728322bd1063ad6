"""rnncls runs ls and diff"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnncls.cli.options import Json
from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.system.rows import json_text, shortened
from rnncls.system.streams import say

if TYPE_CHECKING:
    from rnncls.rundir.compare import Comparison
    from rnncls.rundir.listing import RunRow

MOST_SHOWN = 20

# In a cell, of texts that may be of any length. The paths of two runs must not look the same.
MOST_OF_NAME = 60
MOST_OF_VALUE = 300

# Of a value with four decimals. Beyond, only its first digits mean anything.
LARGE = 1e6

Table = dict[str, list[str]]  # the cells of each column, by its heading

# Columns whose cells begin at the left.
_TEXTS = ("state", "metric", "config", "cell", "sweep", "run", "key", "better")


def ls(
    folder: Annotated[
        Path, typer.Argument(help="Folder to search for runs, or a sweep.", readable=False)
    ] = Path("runs"),
    most: Annotated[
        int | None,
        typer.Option(
            "-n", min=1, max=2**20, help=f"Rows to show (default {MOST_SHOWN}; with --json all)."
        ),
    ] = None,
    everything: Annotated[
        bool,
        typer.Option(
            "--all", help="Show every row (or -n), and members of sweeps and controls, too."
        ),
    ] = False,
    sort: Annotated[
        str,
        typer.Option(
            help="age (newest first), best (best first, by metric), step (furthest first) or run."
        ),
    ] = "age",
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="KEY=VALUE",
            help="Show what matches: state, metric, config, cell or a key of the config, such as "
            "model.hidden_size=64. May be repeated; then all must match.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """List runs and sweeps: state, step, best value on validation, config, seed, cell, age.

    Examples:
        rnncls runs ls
        rnncls runs ls -n 10 --sort best --filter cell=gru
    """
    from rnncls.sweep.filters import filter_rows, parse_filters
    from rnncls.sweep.listing import SORTS, find_rows, sort_rows

    if sort not in SORTS:
        expected = ", ".join(SORTS)
        raise ConfigError(Problem("bad value for --sort", expected=expected, found=sort, id="C17"))
    wanted = parse_filters(filters or [])
    # Not an empty list: whoever mistypes the folder would believe that there are no runs.
    if not folder.is_dir():
        what = "there is no such folder: no runs were found"
        remedy = "rnncls train, which makes runs/...; or the folder that the runs are in"
        raise ConfigError(Problem(what, str(folder), remedy=remedy, id="C17"))

    found = find_rows(folder, members=everything)
    rows = sort_rows(filter_rows(found, wanted), sort)

    # Whoever reads JSON counts for himself.
    limit = most
    if most is None and not as_json and not everything:
        limit = MOST_SHOWN
    shown = rows[:limit]

    if as_json:
        print(json_text([row.to_json() for row in shown]))
    elif shown:
        _print_table(_table_of(shown))

    if not found:
        say(f"no runs below {folder}; rnncls train makes one")
    elif not rows:
        say(f"none of {len(found):,} rows matches {' '.join(filters or [])}")
    elif len(shown) < len(rows):
        hidden = len(rows) - len(shown)
        more = f"-n {len(rows)}" if everything else f"-n {len(rows)}, or --all"
        say(f"... and {hidden:,} more: {more}")


def _table_of(rows: "Sequence[RunRow]") -> Table:
    # One metric stands in the heading of its values; of several, each row says its own.
    metrics = {row.best_metric for row in rows if row.best_value is not None}
    heading = f"val/{min(metrics)}" if len(metrics) == 1 else "value"
    names = [f"val/{row.best_metric}" if len(metrics) > 1 else "" for row in rows]

    # The name comes last, because it may be of any length.
    return {
        "state": [row.state for row in rows],
        "step": [f"{row.step:,}" for row in rows],
        "metric": names,
        heading: ["" if row.best_value is None else _value(row.best_value) for row in rows],
        "control": ["" if row.control is None else _value(row.control) for row in rows],
        "config": [shortened(row.config, MOST_OF_NAME) for row in rows],
        "seed": [row.seed for row in rows],
        "cell": [row.cell for row in rows],
        "age": [_age(row.age_s) for row in rows],
        "sweep": [_members_of(row) for row in rows],
        "run": [row.run for row in rows],
    }


def _members_of(row: "RunRow") -> str:
    """Return what a row says about the members of a sweep; "" for a run."""
    from rnncls.sweep.listing import SweepRow

    if not isinstance(row, SweepRow):
        return ""
    parts = [f"{row.runs:,} runs"]
    if row.solved is not None:
        parts.append(f"{row.solved:,} of {row.ended:,} solved")
    else:
        parts.append(f"{row.ended:,} ended")
    if row.median is not None:
        parts.append(f"median {_value(row.median)}")
    return ", ".join(parts)


def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="Run directory.", readable=False)],
    other: Annotated[Path, typer.Argument(metavar="B", help="Run directory.", readable=False)],
    as_json: Json = False,
) -> None:
    """Show how two runs differ, by how much, and which is better: configs, states, last metrics.

    Examples:
        rnncls runs diff runs/first runs/second
    """
    from rnncls.rundir.compare import compare

    comparison = compare(one, other)
    if as_json:
        print(json_text({"a": str(one), "b": str(other), **comparison.to_json()}))
        return

    print(f"a: {on_one_line(one)}\nb: {on_one_line(other)}")
    results = dict(comparison.result)
    # The best value says it, by the metric that chose it.
    results.pop("best_accuracy", None)

    for part, pairs in (("config", comparison.config), ("result", results)):
        # Each part has a heading, so that "no difference" is said and not merely left out.
        heading = part
        if pairs and part == "result" and comparison.metric is not None:
            heading += f" (the best step is chosen by {comparison.metric})"
        print(f"\n{heading}" if pairs else f"\n{heading}: no difference")
        if pairs:
            _print_table(_table_of_pairs(pairs, comparison), indent="  ")


def _table_of_pairs(pairs: dict[str, tuple[Any, Any]], comparison: "Comparison") -> Table:
    changes = comparison.changes()
    table: Table = {"key": [], "a": [], "b": [], "b - a": [], "%": [], "better": []}
    for key, (first, second) in pairs.items():
        is_best = key == "best_value" and comparison.metric is not None
        table["key"].append(
            f"best {comparison.metric}" if is_best else shortened(key, MOST_OF_NAME)
        )
        table["a"].append(_shown(first))
        table["b"].append(_shown(second))

        change = changes.get(key)
        relative = change.relative if change else None
        table["b - a"].append(f"{change.difference:+.4g}" if change else "")
        table["%"].append("" if relative is None else f"{relative:+.1%}")
        table["better"].append(change.better or "" if change else "")
    return table


def _print_table(table: Table, indent: str = "") -> None:
    """Print the columns side by side, without those that are empty; the last is never padded."""
    columns = []
    for heading, texts in table.items():
        if any(texts):
            cells = [heading, *map(on_one_line, texts)]
            width = max(map(len, cells))
            is_text = heading in _TEXTS
            columns.append([cell.ljust(width) if is_text else cell.rjust(width) for cell in cells])

    for line in zip(*columns, strict=True):
        print(indent + "  ".join(line).rstrip())


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    # Enough digits to tell two losses apart.
    if isinstance(value, float):
        return f"{value:.6g}"
    return shortened(str(value), MOST_OF_VALUE)


def _value(value: float) -> str:
    return f"{value:.4f}" if abs(value) < LARGE else f"{value:.4g}"


def _age(seconds: float | None) -> str:
    """Return a duration in its largest unit, such as `3h`; "" if it is not known."""
    if seconds is None:
        return ""
    # In seconds, the largest unit first.
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"
