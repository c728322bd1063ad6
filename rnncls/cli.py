"""The command line: parse, call one function, print, map errors to exit codes.

Results go to stdout, everything else to stderr. torch is imported only inside the functions a command calls, so that
every --help answers at once.
"""

import errno
import json
import math
import re
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnncls.errors import ConfigError, NonFiniteError, Problem, RnnclsError, as_out_of_memory, printable
from rnncls.signals import exit_on_signals
from rnncls.streams import make_streams_lenient
from rnncls.version import __version__

if TYPE_CHECKING:
    from rnncls.checkpoint import Checkpoint
    from rnncls.data import FilesTask
    from rnncls.data.files import Dataset
    from rnncls.predict import Predictor

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
data_app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True, rich_markup_mode=None)
runs_app = typer.Typer(help="Look at what has been run.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
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
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            return _bug(error)
        what, remedy = f"a path that is too long: {error.filename!s:.60}...", "a shorter path"
        return _fail(Problem(what, expected="names of at most 255 bytes", remedy=remedy, id="R30").render(), 5)
    except Exception as error:
        if memory := as_out_of_memory(error):
            return _fail(memory.render(), memory.exit_code)
        return _bug(error)


def _bug(error: Exception) -> int:
    notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
    return _fail(printable(f"rnncls: internal error: {type(error).__name__}: {error}{notes}\n  try:      --debug"), 1)


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

        if "/" in name:
            raise ConfigError(Problem("a name with a slash", "--name", "a part of a folder's name", name, id="C17"))
        run_dir = run_dir or default_run_dir(config, name)
        print(f"run directory: {run_dir}", flush=True)
        state = fit(resolved, run_dir, init_from)
    elif resume is not None and not (config or run_dir or name or init_from):
        from rnncls.resume import resume as resume_run

        run_dir = resume
        print(f"run directory: {run_dir}", flush=True)
        state = resume_run(resume, _with_device(overrides, device))
    else:
        expected = "--config X [--run-dir D] [--name N] [--init-from C], or --resume RUN alone"
        raise ConfigError(Problem("what is to be trained?", expected=expected, id="C17"))
    best = "none" if state.best_step is None else f"{state.best_accuracy:.4f} at step {state.best_step:,}"
    print(f"steps: {state.step:,}; best validation accuracy: {best}")
    print(f"run directory: {run_dir}")


@app.command()
def sweep(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML config file.", show_default=False, readable=False)
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE[,VALUE]...]...", help="Overrides; with several values an axis of the grid."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="For example 0-63 or 0,3,5.")] = "0-9",
    grid: Annotated[list[str] | None, typer.Option(help="section.key=value,value,...; more may follow.")] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Test lengths, for example 1-5,10,100, instead of those of training.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=10**8, help="Test sequences per length, where not all.")] = 10_000,
    sweep_dir: Annotated[Path | None, typer.Option(help="Directory of the sweep; else runs/CONFIG/DATE_TIME.")] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Directory of a sweep to go on with, instead of --config.", readable=False)
    ] = None,
    shard: Annotated[str, typer.Option(help="Only members i, i + n, ...: i/n.")] = "1/1",
    jobs: Annotated[int | None, typer.Option(min=1, max=1024, help="Members at a time; else as many as cores.")] = None,
    as_json: Json = False,
) -> None:
    """Train many members of one config, for seeds and grids of values, and say what they have in common."""
    part = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    if not part or not 1 <= int(part[1]) <= int(part[2]):
        raise ConfigError(Problem("bad value for --shard", expected="i/n with i from 1 to n", found=shard, id="C17"))
    if (config is None) == (resume is None):
        raise ConfigError(Problem("what is to be run?", expected="--config X or --resume SWEEP", id="C17"))
    base = None if config is None else _load(config, [word for word in words or [] if not _is_axis(word)])
    from rnncls.plots import draw
    from rnncls.runlog import default_run_dir
    from rnncls.statistics import to_text, write_summary
    from rnncls.sweep import load_sweep, plan, run_sweep

    if base is not None and config is not None:
        axes = [*(grid or []), *(word for word in words or [] if _is_axis(word))]
        chosen = None if lengths is None else parse_ranges(lengths)
        folder = sweep_dir or default_run_dir(config, "sweep")
        found = plan(base, parse_seeds(seeds), dict(map(_axis, axes)), chosen, samples, folder)
    else:
        found = load_sweep(resume or Path())
    print(f"sweep directory: {found.folder}", file=sys.stderr, flush=True)
    failed = run_sweep(found, (int(part[1]), int(part[2])), jobs)
    for line in failed:
        print(f"rnncls: member failed: {line}", file=sys.stderr)
    summary = write_summary(found)
    draw(found)
    print(json.dumps(summary) if as_json else to_text(summary))


def _is_axis(word: str) -> bool:
    """Whether an override names several values."""
    value = word.partition("=")[2].strip()
    return "," in value and not value.startswith("[")


def _axis(word: str) -> tuple[str, list[str]]:
    key, equals, values = word.partition("=")
    texts = [text.strip() for text in values.split(",")]
    if not equals or not all(texts) or len(set(texts)) < len(texts):
        expected = "section.key=value,value,... with different values"
        raise ConfigError(Problem("malformed axis of a grid", "--grid", expected, word, id="C17"))
    return key.strip(), texts


def parse_seeds(text: str) -> list[int]:
    """Numbers and ranges from 0 on: "0-2,7" -> [0, 1, 2, 7]. Raises ConfigError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,10})(?:-([0-9]{1,10}))?\s*", part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not low <= high < 2**32 or high - low > 100_000:
            raise ConfigError(Problem("bad list of seeds", "--seeds", "for example 0-63 or 0,3,5", part, id="C17"))
        seeds += range(low, high + 1)
    return seeds


@app.command(name="eval")
def evaluate_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint file, or run directory (its best).", readable=False)],
    lengths: Annotated[
        str | None, typer.Option(help="For example 1-5,10,100, instead of the training lengths.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, max=10**8, help="Sequences per length, where not all.")] = 10_000,
    confusion: Annotated[bool, typer.Option("--confusion", help="Also the confusion matrix.")] = False,
    data: Annotated[str | None, typer.Option(help="Another file of labelled sequences, for a run on files.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Evaluate a checkpoint: overall, by length, by class."""
    chosen = None if lengths is None else parse_ranges(lengths)
    if (checkpoint / "sweep.yaml").is_file():
        _evaluate_sweep(checkpoint, chosen, samples, as_json)
        return
    from rnncls.checkpoint import is_finite, read_checkpoint, restore_model
    from rnncls.device import resolve_device
    from rnncls.evaluation import evaluate

    loaded = read_checkpoint(checkpoint)
    model = restore_model(loaded).to(resolve_device(device or loaded.config.device))
    if not is_finite(loaded):
        print(f"rnncls: warning[K13]: weights in {loaded.path} are not finite", file=sys.stderr)
    dataset = _held_out(data, loaded)
    report = evaluate(model, loaded.config, chosen, samples, confusion, progress=True, dataset=dataset)
    if not math.isfinite(report.loss):
        remedy = "an earlier checkpoint of the run"
        raise NonFiniteError(Problem("the loss is not finite", str(loaded.path), remedy=remedy, id="K13"))
    if as_json:
        print(json.dumps({"checkpoint": str(loaded.path), "step": loaded.state.step, **report.to_json()}))
    else:
        print(f"checkpoint: {loaded.path}, step {loaded.state.step:,}")
        print(report.to_text())


def _evaluate_sweep(folder: Path, lengths: list[int] | None, samples: int, as_json: bool) -> None:
    """Every member's last checkpoint: a line each, and their median and minimum."""
    from rnncls.statistics import evaluate_all, table
    from rnncls.sweep import load_sweep

    found = evaluate_all(load_sweep(folder), lengths, samples)
    print(json.dumps(found) if as_json else table(found))


def _held_out(path: str | None, checkpoint: "Checkpoint") -> "Dataset | None":
    """What is to be evaluated: the file at `path`, else the run's own held-out data; None: generated sequences."""
    from rnncls.config import FilesConfig
    from rnncls.data.files import load_file, load_held_out, warnings

    data = checkpoint.config.data
    if checkpoint.vocabulary is None or not isinstance(data, FilesConfig):
        if path is None:
            return None
        remedy = "--lengths, or a checkpoint that was trained on files"
        raise ConfigError(Problem("this checkpoint was trained on generated data", "--data", remedy=remedy, id="C15"))
    if path is None:
        dataset = load_held_out(data, checkpoint.vocabulary, checkpoint.state.fingerprints, progress=True)
    else:
        dataset = load_file(path, data.model_copy(update={"format": "auto"}), checkpoint.vocabulary, progress=True)
    for warning in warnings(dataset):
        print(warning, file=sys.stderr)
    return dataset


@app.command(name="predict")
def predict_command(
    checkpoint: Annotated[Path, typer.Argument(help="Checkpoint file, or run directory (its best).", readable=False)],
    sequences: Annotated[
        list[str] | None,
        typer.Argument(help='Sequences, such as "3 7 1 9"; - reads lines from stdin.', show_default=False),
    ] = None,
    input: Annotated[
        Path | None, typer.Option(help="File: .jsonl, .csv, .tsv (or .gz), else one sequence per line.", readable=False)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="File: .jsonl, .csv, .tsv, else text.", readable=False)] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many labels, likeliest first.")] = 1,
    bad: Annotated[str, typer.Option(help="What to do about a bad line: stop or skip.")] = "stop",
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines on stdout.")] = False,
) -> None:
    """Predict labels: of arguments, a file, stdin, or at a prompt when there is a terminal."""
    if bad not in ("stop", "skip"):
        raise ConfigError(Problem("bad value for --bad", expected="stop or skip", found=bad, id="C17"))
    if input and sequences:
        raise ConfigError(Problem("what is to be predicted?", expected="--input or sequences, not both", id="C17"))
    from rnncls.predict import Skipping, items_of_file, items_of_texts, load_predictor, write_predictions

    predictor = load_predictor(checkpoint, device)
    format = "jsonl" if as_json else "text"
    reported = Skipping(input or ("stdin" if sequences in (None, [], ["-"]) else "argument"), stop=bad == "stop")
    if input is not None and re.search(r"\.(jsonl|json|ndjson|csv|tsv|tab)(\.gz)?$", str(input), re.IGNORECASE):
        items = items_of_file(predictor, input, reported)
    elif input is not None:
        from rnncls.data.records import opened

        with opened(input) as file:
            items = items_of_texts(predictor, file, reported)
            reported.finish(write_predictions(predictor, items, top_k, output, format))
        return
    elif sequences and sequences != ["-"]:
        items = items_of_texts(predictor, sequences, reported)
    elif not sequences and sys.stdin.isatty():
        _prompt(predictor, top_k)
        return
    else:
        items = items_of_texts(predictor, sys.stdin.buffer, reported)
    reported.finish(write_predictions(predictor, items, top_k, output, format))


def _prompt(predictor: "Predictor", top_k: int) -> None:
    """Ask for sequences until `quit` or Ctrl-D."""
    from rnncls.errors import printable as escaped
    from rnncls.predict import Item, encode_text, knows_nothing, predict, true_answer

    print('one sequence per line; "quit" or Ctrl-D to leave', file=sys.stderr)
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "quit":
            print(file=sys.stderr)
            return
        ids = encode_text(predictor, line.removesuffix("\n"))
        if isinstance(ids, Problem):
            print(ids.render(), file=sys.stderr)
            continue
        (prediction,) = predict(predictor, [Item(1, ids)], max(top_k, 3))
        shown = "   ".join(f"{escaped(name)} {probability:.4f}" for name, probability in prediction.top)
        truth = true_answer(predictor, ids)
        nothing_known = "   (no token of it was in the training data)" if knows_nothing(predictor, ids) else ""
        print(shown + (f"   (true: {truth})" if truth is not None else "") + nothing_known, flush=True)


@data_app.command(name="check")
def check_data(config: ConfigOption, overrides: Overrides = None) -> None:
    """Read the files of a config and name what is wrong with them, by line."""
    task = _load_files(config, overrides)
    for name, split in task.dataset.splits.items():
        print(f"{name}: {len(split):,} sequences, {len(split.tokens):,} tokens")
    tokens, classes = task.sizes
    print(f"ok: {tokens:,} different tokens, {classes:,} classes")


@data_app.command(name="stats")
def data_stats(
    config: ConfigOption,
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw lengths and classes into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Rows, classes, lengths, vocabulary and padding of a config's files."""
    task = _load_files(config, overrides)
    from rnncls.data import report
    from rnncls.files import writing

    print(json.dumps(report.stats(task)) if as_json else report.to_text(task))
    if plot is not None:
        with writing(plot):
            report.plot(task, plot)


@data_app.command(name="sample")
def data_sample(config: ConfigOption, overrides: Overrides = None) -> None:
    """Show the first training batch: padded, packed, lengths, labels."""
    resolved = _load(config, overrides)
    from rnncls.data import load_task, report

    print(report.sample(load_task(resolved, progress=True)))


def _load_files(config: Path, overrides: list[str] | None) -> "FilesTask":
    resolved = _load(config, overrides)
    from rnncls.data import FilesTask, load_task

    task = load_task(resolved, progress=True)
    if not isinstance(task, FilesTask):
        remedy = "data.source=files data.train=...; rnncls data sample shows generated batches, too"
        raise ConfigError(Problem("generated data has no files", "data.source", remedy=remedy, id="C15"))
    return task


@config_app.command()
def show(config: ConfigOption, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print the resolved config: every key with its value."""
    from rnncls.config import dump_config

    resolved = _load(config, overrides)
    print(json.dumps(resolved.model_dump(mode="json")) if as_json else dump_config(resolved).rstrip())


@config_app.command()
def check(config: ConfigOption, overrides: Overrides = None) -> None:
    """Report every problem of a config, without running it."""
    from rnncls.config import num_parameters, sizes

    resolved = _load(config, overrides)
    train = resolved.train
    size = (
        f"{num_parameters(resolved, *sizes(resolved)):,} parameters" if resolved.data.source == "sum_mod" else "files"
    )
    print(f"{config}: ok; {size}, {train.max_steps:,} steps of {train.batch_size:,} sequences")


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
            print(f"  {printable(key):<{width}}  {_shown(first):>12}  {_shown(second):>12}")


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
