"""rnncls train"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rnncls.cli.init import FileOptions, config_of_file, file_options_of, require_no_file_options
from rnncls.cli.options import (
    DEFAULT_TIMEOUT,
    DataDir,
    Device,
    DistTimeout,
    LabelField,
    OptionalConfig,
    SequenceField,
    Tokens,
    WordsOrData,
    require_resuming,
)
from rnncls.cli.words import Words, load, sort_words, with_device
from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.system.collector import lasting
from rnncls.system.file_kinds import without_packing
from rnncls.system.launch import Launch, launch_of
from rnncls.system.streams import fall_silent, say
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.config import Config
    from rnncls.rundir.launched import Begun
    from rnncls.system.distributed import World


class _NewRun(NamedTuple):
    """What a new run trains."""

    config: "Config"
    named_after: Path  # the default run directory has the name of this file
    origin: str  # where the config comes from


def train(
    config: OptionalConfig = None,
    overrides: WordsOrData = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            help="New directory for the run (default runs/NAME/DATE_TIME).", readable=False
        ),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Suffix for the name of the default run directory.")
    ] = "",
    device: Device = None,
    sequence_field: SequenceField = None,
    label_field: LabelField = None,
    tokens: Tokens = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN", help="Run directory to resume, without a config.", readable=False
        ),
    ] = None,
    data_dir: DataDir = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Checkpoint or run directory whose weights to start from.",
            readable=False,
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only try out: fit one batch, measure speed, write nothing."),
    ] = False,
    dist_timeout: DistTimeout = DEFAULT_TIMEOUT,
) -> None:
    """Train a classifier and write a run directory, or resume a run.

    Examples:
        rnncls train clicks.csv
        rnncls train configs/smoke.yaml --run-dir runs/first
        rnncls train configs/smoke.yaml optimizer.lr=1e-3 --run-dir runs/second
        rnncls train configs/smoke.yaml --check
        torchrun --standalone --nproc-per-node 2 -m rnncls train configs/smoke.yaml
    """
    taken: list[Path] = []  # the run directory, once there is one

    def say_directory(path: Path) -> None:
        taken.append(path)
        _say_directory(path)

    # First of all: what a launcher says may be wrong.
    launch = launch_of()
    # What is said of a file before the processes meet, the first one says.
    if launch.rank > 0:
        fall_silent()
    words = sort_words(config, overrides)
    changes = with_device(words.overrides, device)
    file_options = file_options_of(sequence_field, label_field, tokens)
    if resume is not None:
        others = {
            "--config": words.config,
            "a data file": words.file,
            "--run-dir": run_dir,
            "--name": name,
            "--init-from": init_from,
            **file_options,
            "--check": check,
        }
        # What a resumed run trains is fixed; overrides are checked where its config is known.
        _require_alone([option for option, value in others.items() if value])

        with lasting():
            load_torch()
            from rnncls.system.meeting import joined
            from rnncls.training.resume import resume as resume_run

        with joined(launch, dist_timeout) as world:
            begun = _begun(launch, resume, resume.parent, world)
            if begun is not None and begun.is_stopped:
                return
            state = resume_run(
                resume, changes, say_directory=say_directory, data_dir=data_dir, world=world
            )
    else:
        require_resuming(data_dir)
        # Before torch is imported, so that a wrong config is reported at once.
        new = _new_run(words, file_options, changes)
        _require_no_slash(name)
        with lasting():
            load_torch()
            from rnncls.rundir.paths import default_run_dir
            from rnncls.system.meeting import joined
            from rnncls.training.fit import fit
            from rnncls.training.resume import resume as resume_run

        if check:
            _require_one_process(launch)
            _check(new.config, run_dir, init_from)
            return

        place = run_dir or default_run_dir(new.named_after, name)
        with joined(launch, dist_timeout) as world:
            begun = _begun(launch, run_dir, place.parent, world)
            if begun is not None and begun.is_stopped:
                return
            if begun is not None:
                state = resume_run(begun.path, say_directory=say_directory, world=world)
            else:
                state = fit(
                    new.config,
                    place,
                    init_from,
                    new.origin,
                    say_directory=say_directory,
                    numbered=run_dir is None,
                    world=world,
                )

    print(_result(state.step, state.best_metric, state.best_value, state.best_step))
    _print_control(taken[0])
    _say_directory(taken[0])

    from rnncls.dashboard.link import how_to_look

    for line in how_to_look(taken[0]):
        say(line)


def _result(step: int, metric: str, value: float | None, best_step: int | None) -> str:
    """Return how far a run has come, and its best value."""
    # There is no best step if no validation loss was ever finite.
    best = "none"
    if value is not None and best_step is not None:
        best = f"{value:.4f} at step {best_step:,}"
    return f"steps: {step:,}; best val/{metric}: {best}"


def _print_control(run_dir: Path) -> None:
    """Print what has become of the n-gram control of a run, if it has one."""
    from rnncls.rundir.listing import best_of
    from rnncls.rundir.paths import CONTROL
    from rnncls.rundir.status import read_status

    status = read_status(run_dir / CONTROL)
    if status.get("state") == "finished":
        metric, value = best_of(status)
        result = _result(status.get("step", 0), metric, value, status.get("best_step"))
        print(f"n-gram control: {result}")


def _begun(
    launch: Launch, run_dir: Path | None, folder: Path, world: "World | None"
) -> "Begun | None":
    """Return the run that this launch has begun before it was started again, if there is one."""
    from rnncls.rundir.launched import begun_by

    if world is None:
        begun = begun_by(launch, run_dir, folder)
    else:
        # Of several machines, torchrun counts the restarts of each on its own.
        restarts = max(world.gather(launch.restarts))
        of_all = launch._replace(restarts=restarts)
        begun = world.first(lambda: begun_by(of_all, run_dir, folder))
    if begun is not None and begun.is_stopped:
        say(f"{begun.path} was stopped by a signal: not started again")
    return begun


def _require_one_process(launch: Launch) -> None:
    """Raise ConfigError if several processes are to try out a config."""
    if launch.size > 1:
        what = "--check tries out one process"
        remedy = "rnncls train CONFIG --check, without torchrun"
        raise ConfigError(Problem(what, "WORLD_SIZE", remedy=remedy, id="C17"))


def _check(config: "Config", run_dir: Path | None, init_from: Path | None) -> None:
    """Try out a config and print what was found. Raises: what training raises before it begins."""
    from rnncls.training.check import check_training, describe_check, warning_of_check

    if run_dir is not None:
        # Only here: it imports TensorBoard.
        from rnncls.rundir.claim import require_unused

        require_unused(run_dir)
    checked = check_training(config, init_from)
    if checked.task.described_split:
        say(checked.task.described_split)
    print(describe_check(checked))
    warning = warning_of_check(checked)
    if warning:
        print(warning, file=sys.stderr)


def _say_directory(run_dir: Path) -> None:
    # Flushed, because it is said first as soon as the directory is there, so that a run that is
    # killed can be found.
    print(f"run directory: {on_one_line(run_dir)}", flush=True)


def _new_run(words: Words, file_options: FileOptions, changes: list[str]) -> _NewRun:
    """Return what a new run trains. Raises: ConfigError. DataError for a data file."""
    if words.file is not None:
        config = config_of_file(words.file, file_options, changes)
        # The directory of a run with packed data is named as with data that is not.
        named_after = Path(without_packing(words.file.name))
        return _NewRun(config, named_after, origin=f"made from {words.file}")
    if words.config is not None:
        require_no_file_options(file_options)
        return _NewRun(load(words.config, changes), words.config, origin=f"from {words.config}")

    remedy = "rnncls train CONFIG.yaml, rnncls train DATA.csv, or rnncls train --resume RUN"
    raise ConfigError(Problem("nothing to train", remedy=remedy, id="C17"))


def _require_alone(others: list[str]) -> None:
    """Raise ConfigError if other options were given beside --resume: a run keeps its settings."""
    if others:
        raise ConfigError(
            Problem(
                "--resume was given with options of a new run",
                expected="--resume RUN, with overrides or --device",
                found=", ".join(others),
                id="C17",
            )
        )


def _require_no_slash(name: str) -> None:
    """Raise ConfigError if the name could not be a part of a folder's name."""
    if "/" in name:
        raise ConfigError(
            Problem(
                "a slash in the name of a run",
                "--name",
                expected="part of a folder's name",
                found=name,
                id="C17",
            )
        )
