"""rnncls sweep"""

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnncls.cli.options import DEFAULT_SAMPLES, Json, load
from rnncls.errors import ConfigError, Interrupted, NonFiniteError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from rnncls.sweep.plan import Sweep


def sweep(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="YAML config file.", show_default=False, readable=False
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE[,VALUE]...]...",
            help="Overrides; with several values an axis of the grid.",
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="For example 0-63 or 0,3,5; else 0-9.")] = None,
    grid: Annotated[
        list[str] | None, typer.Option(help="section.key=value,value,...; more may follow.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Test lengths beside those of training, for example 10,100,1000."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1, max=10**8, help=f"Test sequences per length, else {DEFAULT_SAMPLES:,}."
        ),
    ] = None,
    sweep_dir: Annotated[
        Path | None, typer.Option(help="Directory of the sweep; else runs/CONFIG/DATE_TIME.")
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Directory of a sweep to go on with, instead of --config.", readable=False
        ),
    ] = None,
    shard: Annotated[str, typer.Option(help="Only members i, i + n, ...: i/n.")] = "1/1",
    jobs: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Members at a time; else as many as cores.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Train many members of one config, for seeds and grids of values, and say what they have in common."""
    chosen = _shard(shard)
    own = {
        "overrides": words,
        "--seeds": seeds,
        "--grid": grid,
        "--lengths": lengths,
        "--samples": samples,
    }
    given = [name for name, value in {**own, "--sweep-dir": sweep_dir}.items() if value is not None]
    if (config is None) == (resume is None):
        raise ConfigError(
            Problem("what is to be run?", expected="--config X, or --resume SWEEP", id="C17")
        )
    if resume is not None and given:
        remedy = "--shard, --jobs and --json, or --config for another sweep"
        raise ConfigError(
            Problem(
                "a sweep goes on as it was begun", found=", ".join(given), remedy=remedy, id="C17"
            )
        )
    base = (
        None
        if config is None
        else load(config, [word for word in words or [] if not _is_axis(word)])
    )
    if any(word.partition("=")[0].strip() == "seed" for word in words or []):
        raise ConfigError(
            Problem("seeds are not a key of a sweep", "seed", remedy="--seeds", id="C17")
        )
    from rnncls.rundir.paths import default_run_dir
    from rnncls.sweep.members import run_sweep
    from rnncls.sweep.plan import load_sweep, plan
    from rnncls.sweep.text import to_text

    if base is not None and config is not None:
        axes = _axes([*(grid or []), *(word for word in words or [] if _is_axis(word))])
        folder = sweep_dir or default_run_dir(config, "sweep")
        found = plan(base, seeds or "0-9", axes, lengths, samples or DEFAULT_SAMPLES, folder)
    else:
        found = load_sweep(resume or Path())
    print(f"sweep directory: {found.folder}", file=sys.stderr, flush=True)
    try:
        failed = run_sweep(found, chosen, jobs)
    except Interrupted:
        _report(found)
        raise
    for member, error in failed:
        print(f"rnncls: member failed: {member.name}\n{error.render()}", file=sys.stderr)
    _report(found, lambda summary: json.dumps(summary) if as_json else to_text(summary))
    for _, error in failed:
        if not isinstance(error, NonFiniteError):  # that is a result
            raise error


def _report(sweep: "Sweep", shown: "Callable[[dict[str, Any]], str] | None" = None) -> None:
    """Print and write what is known, or write the numbers alone."""
    from rnncls.rundir.lock import holding
    from rnncls.sweep.plots import draw
    from rnncls.sweep.summary import summarize, write_summary

    with holding(sweep.folder):
        summary = summarize(sweep)
        if any(None in row.get("p_against_first", {}).values() for row in summary["groups"]):
            print(
                "rnncls: warning[R33]: comparing groups needs scipy: pip install 'rnncls[sweep]'",
                file=sys.stderr,
            )
        if shown is not None:
            print(shown(summary), flush=True)
        write_summary(sweep, summary)
        if shown is not None:
            draw(sweep)


def _shard(text: str) -> tuple[int, int]:
    part = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        raise ConfigError(
            Problem(
                "bad value for --shard", expected="i/n with i from 1 to n", found=text, id="C17"
            )
        )
    return int(part[1]), int(part[2])


def _is_axis(word: str) -> bool:
    """Whether an override names several values."""
    return len(_split(word.partition("=")[2])) > 1


def _axes(words: list[str]) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    for word in words:
        key, equals, values = word.partition("=")
        key, texts = key.strip(), _split(values)
        if not equals or not all(texts) or len(set(texts)) < len(texts) or key in axes:
            expected = "section.key=value,value,... with different values, each key once"
            raise ConfigError(
                Problem(
                    "malformed axis of a grid", "--grid", expected=expected, found=word, id="C17"
                )
            )
        axes[key] = texts
    return axes


def _split(text: str) -> list[str]:
    """At commas outside brackets and quotes: "[1, 2],[3, 4]" -> ["[1, 2]", "[3, 4]"]."""
    parts = re.findall(r"""(?:\[[^\]]*\]|"[^"]*"|'[^']*'|[^,])+|(?<=,)(?=,|$)|^(?=,)""", text)
    return [part.strip() for part in parts] or [""]
