"""rnncls train"""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rnncls.cli.options import Device, OptionalConfig, Overrides, load, with_device
from rnncls.errors import ConfigError, Problem
from rnncls.system.waiting import load_torch


def train(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="New directory for the run (default runs/CONFIG/DATE_TIME)."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Suffix for the name of the default run directory.")
    ] = "",
    device: Device = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Run directory to resume, instead of --config.", readable=False),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(
            help="Checkpoint or run directory whose weights to start from.", readable=False
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Only try out: fit one batch, measure speed, write nothing."),
    ] = False,
) -> None:
    """Train a classifier and write a run directory, or resume a run."""
    if resume is not None:
        others = {
            "--config": config,
            "--run-dir": run_dir,
            "--name": name,
            "--init-from": init_from,
            "--check": check,
        }
        # What a resumed run trains is fixed; overrides are checked where its config is known.
        _require_alone([option for option, value in others.items() if value])

        load_torch()
        from rnncls.training.resume import resume as resume_run

        run_dir = resume
        state = resume_run(run_dir, with_device(overrides, device), say_directory=_say_directory)
    elif config is not None:
        # Before torch is imported, so that a wrong config is reported at once.
        resolved = load(config, overrides, device)
        _require_no_slash(name)
        load_torch()
        if check:
            _check(resolved, run_dir, init_from)
            return

        from rnncls.rundir.paths import default_run_dir
        from rnncls.training.fit import fit

        run_dir = run_dir or default_run_dir(config, name)
        state = fit(resolved, run_dir, init_from, say_directory=_say_directory)
    else:
        raise ConfigError(Problem("nothing to train: pass --config FILE or --resume RUN", id="C17"))

    # There is no best step if no validation loss was ever finite.
    best = "none"
    if state.best_value is not None:
        best = f"{state.best_value:.4f} at step {state.best_step:,}"
    print(f"steps: {state.step:,}; best val/{state.best_metric}: {best}")
    _say_directory(run_dir)


def _check(config: Any, run_dir: Path | None, init_from: Path | None) -> None:
    """Try out a config and print what was found. Raises: what training raises before it begins."""
    from rnncls.rundir.claim import require_unused
    from rnncls.training.check import check_training, describe_check, warning_of_check

    if run_dir is not None:
        require_unused(run_dir)
    checked = check_training(config, init_from)
    print(describe_check(checked))
    warning = warning_of_check(checked)
    if warning:
        print(warning, file=sys.stderr)


def _say_directory(run_dir: Path) -> None:
    # Flushed, because it is said first as soon as the directory is there, so that a run that is
    # killed can be found.
    print(f"run directory: {run_dir}", flush=True)


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
