"""The command line: parse, call one function, print, map errors to exit codes.

Results go to stdout, everything else to stderr. torch is imported only inside the functions a command calls, so that
every --help answers at once.
"""

import json
import math
import re
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from rnncls.errors import ConfigError, NonFiniteError, Problem, RnnclsError, as_out_of_memory, printable
from rnncls.signals import exit_on_signals
from rnncls.streams import make_streams_lenient
from rnncls.version import __version__

MAX_LENGTH = 2**20  # as in the config

# The parent of typer's public BadParameter, wherever this version of typer keeps its copy of click.
UsageError: Any = typer.BadParameter.__bases__[0]

app = typer.Typer(
    help="Train, evaluate and watch recurrent classifiers of variable-length sequences.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_app = typer.Typer(help="Look at a config without running it.", no_args_is_help=True, rich_markup_mode=None)
runs_app = typer.Typer(help="Look at what has been run.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(runs_app, name="runs")

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML config file.", show_default=False, readable=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="section.key=value", help="Replace values of the config.", show_default=False),
]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:INDEX, instead of the config's.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


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
    except Exception as error:
        if memory := as_out_of_memory(error):
            return _fail(memory.render(), memory.exit_code)
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        return _fail(f"rnncls: internal error: {type(error).__name__}: {error}{notes}\n  try:      --debug", 1)


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
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML config file.", show_default=False, readable=False)
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="New directory to write into; else runs/CONFIG/DATE_TIME.")
    ] = None,
    name: Annotated[str, typer.Option(help="Added to the default run directory's name.")] = "",
    device: Device = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run directory to go on with, instead of --config.", readable=False)
    ] = None,
    init_from: Annotated[
        Path | None, typer.Option(help="Checkpoint or run whose weights to start from.", readable=False)
    ] = None,
) -> None:
    """Train a classifier and write a run directory, or go on with one."""
    if config is not None and resume is None:
        resolved = _load(config, overrides, device)  # before torch is imported: a wrong config is reported at once
        from rnncls.runlog import default_run_dir
        from rnncls.train import fit

        run_dir = run_dir or default_run_dir(config, name)
        print(f"run directory: {run_dir}", flush=True)
        state = fit(resolved, run_dir, init_from)
    elif resume is not None and not (config or run_dir or name or init_from):
        from rnncls.resume import resume as resume_run

        run_dir = resume
        print(f"run directory: {run_dir}", flush=True)
        state = resume_run(resume, _with_device(overrides, device))
    else:
        expected = "--config X [--run-dir D] [--name N] [--init-from C], or --resume RUN"
        raise ConfigError(Problem("what is to be trained?", expected=expected, id="C17"))
    best = "none" if state.best_step is None else f"{state.best_accuracy:.4f} at step {state.best_step:,}"
    print(f"steps: {state.step:,}; best validation accuracy: {best}")
    print(f"run directory: {run_dir}")


@app.command(name="eval")
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint file, or run directory (its best).", readable=False)],
    lengths: Annotated[
        str | None, typer.Option(help="For example 1-5,10,100, instead of the training lengths.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=10**8, help="Sequences per length, where not all.")] = 10_000,
    confusion: Annotated[bool, typer.Option("--confusion", help="Also the confusion matrix.")] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint: overall, by length, by class."""
    chosen = None if lengths is None else parse_ranges(lengths)
    from rnncls.checkpoint import is_finite, read_checkpoint, restore_model
    from rnncls.device import resolve_device
    from rnncls.evaluation import evaluate

    loaded = read_checkpoint(checkpoint)
    model = restore_model(loaded).to(resolve_device(device or loaded.config.device))
    if not is_finite(loaded):
        print(f"rnncls: warning[K13]: weights in {loaded.path} are not finite", file=sys.stderr)
    report = evaluate(model, loaded.config, chosen, samples, confusion, progress=True)
    if not math.isfinite(report.loss):
        remedy = "an earlier checkpoint of the run"
        raise NonFiniteError(Problem("the loss is not finite", str(loaded.path), remedy=remedy, id="K13"))
    if as_json:
        print(json.dumps({"checkpoint": str(loaded.path), "step": loaded.state.step, **report.to_json()}))
    else:
        print(f"checkpoint: {loaded.path}, step {loaded.state.step:,}")
        print(report.to_text())


@config_app.command()
def show(config: ConfigOption, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print the resolved config: every key with its value."""
    from rnncls.config import dump_config

    resolved = _load(config, overrides)
    print(json.dumps(resolved.model_dump(mode="json")) if as_json else dump_config(resolved).rstrip())


@config_app.command()
def check(config: ConfigOption, overrides: Overrides = None) -> None:
    """Report every problem of a config, without running it."""
    from rnncls.config import num_parameters

    resolved = _load(config, overrides)
    size, train = num_parameters(resolved), resolved.train
    print(f"{config}: ok; {size:,} parameters, {train.max_steps:,} steps of {train.batch_size:,} sequences")


@config_app.command()
def schema() -> None:
    """Print the JSON Schema of config files, for editors."""
    from rnncls.config import config_schema

    print(json.dumps(config_schema(), indent=2))


@runs_app.command()
def ls(
    folder: Annotated[Path, typer.Argument(help="Where the runs are.", readable=False)] = Path("runs"),
    as_json: Json = False,
) -> None:
    """List runs, newest first: state, step, best validation accuracy, age."""
    from rnncls.runs import find_runs

    runs = find_runs(folder)
    if as_json:
        print(json.dumps(runs))
        return
    print(f"{'state':<12} {'step':>9} {'best':>7} {'age':>6}  run")
    for run in runs:
        best = "" if run["best_accuracy"] is None else f"{run['best_accuracy']:.4f}"
        print(f"{run['state']:<12} {run['step']:>9,} {best:>7} {_age(run['age_s']):>6}  {printable(run['run'])}")


@runs_app.command()
def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="Run directory.", readable=False)],
    other: Annotated[Path, typer.Argument(metavar="B", help="Run directory.", readable=False)],
    as_json: Json = False,
) -> None:
    """Show how two runs differ: config, and state and last metrics."""
    from rnncls.runs import compare

    differences = compare(one, other)
    if as_json:
        print(json.dumps({"a": str(one), "b": str(other), **differences}))
        return
    print(f"a: {one}\nb: {other}")
    for part, pairs in differences.items():
        print(f"\n{part}" if pairs else f"\n{part}: no difference")
        width = max(map(len, pairs), default=0)
        for key, (first, second) in pairs.items():
            print(f"  {key:<{width}}  {_shown(first):>12}  {_shown(second):>12}")


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "-" if value is None else printable(str(value))


def _age(seconds: float) -> str:
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:.0f}s"


def parse_ranges(text: str) -> list[int]:
    """Positive numbers and ranges: "1-3,10" -> [1, 2, 3, 10]. Raises ConfigError for anything else."""
    numbers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,7})(?:-([0-9]{1,7}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= low <= high <= MAX_LENGTH:
            expected = f"positive numbers and ranges up to {MAX_LENGTH:,}, for example 1-5,10,100"
            raise ConfigError(Problem("bad list of lengths", "--lengths", expected, part or "nothing", id="C17"))
        numbers += range(low, high + 1)
    return numbers


def _load(path: Path, overrides: list[str] | None, device: str | None = None) -> Any:
    from rnncls.config import load_config

    return load_config(path, _with_device(overrides, device))


def _with_device(overrides: list[str] | None, device: str | None) -> list[str]:
    return [*(overrides or []), *([f"device={device}"] if device else [])]
