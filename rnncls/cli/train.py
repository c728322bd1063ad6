"""rnncls train"""

from pathlib import Path
from typing import Annotated

import typer

from rnncls.cli.options import Device, Overrides, load, with_device
from rnncls.errors import ConfigError, Problem


def train(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", "-c", help="YAML config file.", show_default=False, readable=False
        ),
    ] = None,
    overrides: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="New directory to write into; else runs/CONFIG/DATE_TIME.")
    ] = None,
    name: Annotated[str, typer.Option(help="Added to the default run directory's name.")] = "",
    device: Device = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Run directory to go on with, instead of --config.", readable=False),
    ] = None,
    init_from: Annotated[
        Path | None,
        typer.Option(help="Checkpoint or run whose weights to start from.", readable=False),
    ] = None,
) -> None:
    """Train a classifier and write a run directory, or go on with one."""
    if config is not None and resume is None:
        resolved = load(
            config, overrides, device
        )  # before torch is imported: a wrong config is reported at once
        from rnncls.rundir.paths import default_run_dir
        from rnncls.training.fit import fit

        if "/" in name:
            raise ConfigError(
                Problem(
                    "a name with a slash",
                    "--name",
                    expected="a part of a folder's name",
                    found=name,
                    id="C17",
                )
            )
        run_dir = run_dir or default_run_dir(config, name)
        print(f"run directory: {run_dir}", flush=True)
        state = fit(resolved, run_dir, init_from)
    elif resume is not None and not (config or run_dir or name or init_from):
        from rnncls.training.resume import resume as resume_run

        run_dir = resume
        print(f"run directory: {run_dir}", flush=True)
        state = resume_run(resume, with_device(overrides, device))
    else:
        expected = "--config X [--run-dir D] [--name N] [--init-from C], or --resume RUN alone"
        raise ConfigError(Problem("what is to be trained?", expected=expected, id="C17"))
    best = (
        "none"
        if state.best_step is None
        else f"{state.best_accuracy:.4f} at step {state.best_step:,}"
    )
    print(f"steps: {state.step:,}; best validation accuracy: {best}")
    print(f"run directory: {run_dir}")
