"""rnncls eval"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnncls.cli.options import (
    DEFAULT_TIMEOUT,
    Bad,
    CsvSafe,
    DataDir,
    Device,
    DistTimeout,
    Json,
    NewLabelField,
    Read,
    SequenceFields,
    Structured,
    StructuredLength,
    UntilWrong,
    length_of_structured,
    refuse_to_replace,
    require_bad,
    require_table,
)
from rnncls.config.ranges import (
    DEFAULT_READ,
    DEFAULT_SAMPLES,
    MAX_SAMPLES,
    Long,
    parse_lengths,
)
from rnncls.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    NonFiniteError,
    Problem,
    on_one_line,
)
from rnncls.sweep.paths import is_sweep
from rnncls.system.collector import lasting
from rnncls.system.launch import launch_of
from rnncls.system.rows import json_text
from rnncls.system.streams import fall_silent, say
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.data.dataset import Dataset
    from rnncls.evaluation.mistakes import Confused
    from rnncls.model.classifier import RNNClassifier
    from rnncls.rundir.checkpoint import Checkpoint
    from rnncls.system.distributed import World

MOST_ERRORS = 10_000  # that are printed


def evaluate(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint file, run directory (its best checkpoint) or sweep directory.",
            readable=False,
        ),
    ],
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Lengths to evaluate, for example 1-5,10,100, instead of the training lengths or "
            "of all that are in a file."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_SAMPLES,
            help=f"Sequences generated per length (default {DEFAULT_SAMPLES:,}), and those of "
            f"--until-wrong (default {DEFAULT_READ:,}; in a sweep at most that many).",
        ),
    ] = None,
    structured: Structured = False,
    structured_length: StructuredLength = None,
    until_wrong: UntilWrong = None,
    confusion: Annotated[
        bool, typer.Option("--confusion", help="Also print the confusion matrix.")
    ] = False,
    errors: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MOST_ERRORS,
            help="Also print so many of the sequences it gets wrong, most confident first, and the "
            "classes most often confused.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the classes most often confused into this PNG.", readable=False),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            help="Write every sequence with its true and its predicted label and the probabilities "
            "into this .jsonl, .csv or .tsv file.",
            readable=False,
        ),
    ] = None,
    csv_safe: CsvSafe = False,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="File of labelled sequences to evaluate instead of the run's held-out data; a "
            "folder, a pattern or several times --data for several files."
        ),
    ] = None,
    sequence_field: SequenceFields = None,
    label_field: NewLabelField = None,
    read: Read = None,
    bad: Bad = "error",
    data_dir: DataDir = None,
    device: Device = None,
    as_json: Json = False,
    dist_timeout: DistTimeout = DEFAULT_TIMEOUT,
) -> None:
    """Evaluate a checkpoint: overall, by length, by class. Or evaluate every member of a sweep.

    Chance is the accuracy of guessing each class alike, the majority-class baseline that of always
    predicting the most frequent class of the evaluated sequences. A run with an n-gram control
    (train.baseline=control) is compared with it, on the same sequences.

    Examples:
        rnncls eval runs/first
        rnncls eval runs/first --lengths 1-5,10,100 --confusion
        rnncls eval runs/first --structured --until-wrong 1000 --samples 100
    """
    launch = launch_of()
    # What is said of a file before the processes meet, the first one says.
    if launch.rank > 0:
        fall_silent()
    # Before torch is imported, so that a wrong list is reported at once.
    chosen = None if lengths is None else parse_lengths(lengths)
    long = Long(length_of_structured(structured, structured_length), until_wrong)
    require_bad(bad)
    require_table(csv_safe, "--predictions", predictions)
    if not data and (sequence_field or label_field or read or bad == "skip"):
        what = "--sequence-field, --label-field, --read and --bad are about a file"
        raise ConfigError(Problem(what, remedy="--data FILE", id="C17"))
    with lasting():
        load_torch()
        from rnncls.data.new_files import overrides_of

    if is_sweep(checkpoint):
        if launch.size > 1:
            what = "a sweep is evaluated by one process"
            remedy = "rnncls eval SWEEP, without torchrun"
            raise ConfigError(Problem(what, "WORLD_SIZE", remedy=remedy, id="C17"))
        # Members are evaluated on their own data, on the device of their config.
        if confusion or errors or plot or predictions or data or device:
            raise ConfigError(
                Problem(
                    "option not available for sweeps",
                    str(checkpoint),
                    expected="--lengths, --samples, --structured, --until-wrong, --data-dir "
                    "and --json",
                    remedy="a run of the sweep, which has a folder of its own in it",
                    id="C17",
                )
            )
        _evaluate_sweep(checkpoint, chosen, samples, long, data_dir, as_json)
        return

    if data and data_dir:
        what = "--data-dir was given with --data, which names other files"
        raise ConfigError(
            Problem(what, found=f"--data-dir {data_dir}", remedy="one of them", id="C17")
        )
    if long.any and launch.size > 1:
        what = "--structured and --until-wrong are for one process"
        remedy = "rnncls eval RUN, without torchrun"
        raise ConfigError(Problem(what, "WORLD_SIZE", remedy=remedy, id="C17"))
    if predictions is not None:
        _require_writable(predictions, checkpoint, *(data or []))
    overrides = overrides_of(sequence_field, label_field, read, bad)
    wanted = _Wanted(
        chosen, samples, confusion, errors, plot, predictions, csv_safe, overrides, long
    )
    from rnncls.system.meeting import joined

    with joined(launch, dist_timeout) as world:
        _evaluate_checkpoint(checkpoint, wanted, data, data_dir, device, as_json, world)


@dataclass(frozen=True)
class _Wanted:
    """What the options ask of an evaluation."""

    lengths: list[int] | None
    samples: int | None
    confusion: bool
    errors: int | None
    plot: Path | None
    predictions: Path | None
    csv_safe: bool
    overrides: list[str]  # in what a file of --data differs from those of training
    long: Long  # sequences that are read a few digits at a time


def _require_writable(predictions: Path, *read: Path | str | None) -> None:
    """Raise ConfigError if the predictions are of no known format, or would replace what is read.

    Asked before files are read, which may take long.
    """
    from rnncls.evaluation.predictions import format_of_predictions

    format_of_predictions(predictions)
    refuse_to_replace("--predictions", predictions, *read)


def _evaluate_checkpoint(
    checkpoint: Path,
    wanted: _Wanted,
    data: list[str] | None,
    data_dir: Path | None,
    device: str | None,
    as_json: bool,
    world: "World | None",
) -> None:
    """Print the report of one checkpoint. Raises: NonFiniteError if its loss is not finite."""
    with lasting():
        from rnncls.config import flatten
        from rnncls.evaluation.evaluate import evaluate
        from rnncls.evaluation.long_sequences import evaluate_long, long_lines
        from rnncls.evaluation.streaming import require_stream
        from rnncls.rundir.checkpoint_files import load_checkpoint
        from rnncls.rundir.restore import held_out_data, is_finite
        from rnncls.system.device import set_precision

        loaded, model = load_checkpoint(checkpoint, device)
    set_precision(loaded.config.train.precision)
    # Before anything is run, which may take long.
    for option, longest in wanted.long.options.items():
        require_stream(loaded.config, option, longest)

    # Only a warning: if these weights matter, the loss is not finite either, an error below.
    if not is_finite(loaded):
        say(f"rnncls: warning[K13]: weights in {loaded.path} are not finite")

    paths = data[0] if data and len(data) == 1 else data
    dataset = held_out_data(
        loaded, paths, progress=True, overrides=wanted.overrides, data_dir=data_dir
    )

    if world is not None:
        content = {} if dataset is None else dict(dataset.fingerprints)
        saved = {"step": loaded.state.step, **flatten(loaded.config)}
        world.require_same("the checkpoint", saved, CheckpointError)
        world.require_same("the data", content, DataError)
        world.share_weights([*model.parameters()])

    if dataset is not None:
        _prepare(dataset, wanted, is_new=bool(data))

    control = _control(loaded, device, world)

    # A picture alone needs the classes, and no single error.
    errors = wanted.errors
    if errors is None and wanted.plot is not None:
        errors = 0

    report = evaluate(
        model,
        loaded.config,
        wanted.lengths,
        wanted.samples or DEFAULT_SAMPLES,
        wanted.confusion,
        progress=True,
        dataset=dataset,
        errors=errors,
        predictions=wanted.predictions,
        csv_safe=wanted.csv_safe,
        world=world,
        control=None if control is None else control[1],
    )
    if control is not None and report.control is not None:
        path = str(control[0].path)
        of_run = replace(report.control, checkpoint=path, step=control[0].state.step)
        report = replace(report, control=of_run)

    # Logits that are NaN stand for no class, so the rest of the report would not be meaningful.
    if not math.isfinite(report.loss):
        remedy = "an earlier checkpoint of the run"
        raise NonFiniteError(
            Problem("the loss is not finite", str(loaded.path), remedy=remedy, id="K13")
        )

    sequences = wanted.samples or DEFAULT_READ
    on_long = evaluate_long(model, loaded.config, wanted.long, sequences, progress=True)

    # Which file a run directory stood for is part of the result.
    step = loaded.state.step
    if as_json:
        said: dict[str, Any] = {"step": step, **report.to_json(), **on_long.to_json()}
        print(json_text({"checkpoint": str(loaded.path), **said}))
    else:
        print(f"checkpoint: {on_one_line(loaded.path)}, step {step:,}")
        print("\n".join([report.to_text(), *long_lines(on_long)]))

    # Last, so that a picture that cannot be written costs no report.
    is_first = world is None or world.is_first
    if wanted.plot is not None and report.confused is not None and is_first:
        _draw(report.confused, wanted.plot)


def _control(
    loaded: "Checkpoint", device: str | None, world: "World | None"
) -> "tuple[Checkpoint, RNNClassifier] | None":
    """Return the n-gram control of a checkpoint's run; None if there is none to compare with."""
    from rnncls.rundir.control import control_of

    control = control_of(loaded, device)
    if world is None:
        return control
    # Where one process cannot read it, none evaluates it.
    if not all(world.gather(control is not None)) or control is None:
        return None
    world.share_weights([*control[1].parameters()])
    return control


def _prepare(dataset: "Dataset", wanted: _Wanted, is_new: bool) -> None:
    """Say what is to be known of the files before an evaluation, which may take minutes.

    `is_new`: they are those of --data.

    Raises: ConfigError if the predictions would replace one of the files.
    """
    from rnncls.data.warnings import dataset_warnings, how_read

    # How its own files are read, a run has said before it trained.
    if is_new:
        for line in how_read(dataset):
            say(line)
    for warning in dataset_warnings(dataset):
        say(warning)
    if wanted.samples is not None:
        what = "--samples is for generated data; all sequences of a file are evaluated"
        say(f"rnncls: warning[C17]: {what}")
    if wanted.predictions is not None:
        read = [file for files in dataset.files.values() for file in files]
        _require_writable(wanted.predictions, *read)


def _draw(confused: "Confused", path: Path) -> None:
    """Draw the classes that are confused, if there are any. Raises: WriteError."""
    from rnncls.evaluation.plots import draw_confused

    if confused.pairs:
        draw_confused(confused, path)
    else:
        say(f"rnncls: no errors, so {path} was not drawn")


def _evaluate_sweep(
    folder: Path,
    lengths: list[int] | None,
    samples: int | None,
    long: Long,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Print the accuracy of every member's last checkpoint, and statistics for each setting."""
    from rnncls.sweep.evaluate import evaluate_all
    from rnncls.sweep.text import accuracy_table

    accuracies = evaluate_all(folder, lengths, samples, data_dir, long)
    if as_json:
        print(json_text(accuracies.to_json()))
    else:
        print(accuracy_table(accuracies))
