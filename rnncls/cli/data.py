"""Defines rnncls data check, stats and sample."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.options import Json, OptionalConfig, Overrides, load
from rnncls.errors import ConfigError, Problem

if TYPE_CHECKING:
    from rnncls.data import FilesTask


def check(config: OptionalConfig = None, overrides: Overrides = None) -> None:
    """Read the files of a config and report what is wrong with them, by line.

    Examples:
        python scripts/digits.py
        rnncls data check configs/digits_from_files.yaml
    """
    # Reading is the check: bad rows are raised as one DataError, warnings go to stderr.
    task = _load_files(config, overrides)
    for name, split in task.dataset.splits.items():
        print(f"{name}: {len(split):,} sequences, {len(split.tokens):,} tokens")
    num_tokens, num_classes = task.sizes
    print(f"ok: {num_tokens:,} different tokens, {num_classes:,} classes")


def stats(
    config: OptionalConfig = None,
    overrides: Overrides = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw lengths and classes into this PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print rows, classes, lengths, vocabulary and padding of a config's files.

    Examples:
        python scripts/digits.py
        rnncls data stats configs/digits_from_files.yaml --plot lengths.png
    """
    task = _load_files(config, overrides)
    from rnncls.data import report
    from rnncls.system.files import writing

    if as_json:
        print(json.dumps(report.stats(task).to_json()))
    else:
        print(report.to_text(task))

    # Last, so that a picture that cannot be written costs no statistics.
    if plot is not None:
        with writing(plot):
            report.plot(task, plot)


def sample(config: OptionalConfig = None, overrides: Overrides = None) -> None:
    """Print the first training batch: padded, packed, lengths, labels.

    Examples:
        rnncls data sample configs/smoke.yaml train.batch_size=4
    """
    resolved = load(config, overrides)
    from rnncls.data import load_task, report

    print(report.sample(load_task(resolved, progress=True)))


def _load_files(config: Path | None, overrides: list[str] | None) -> "FilesTask":
    """Return the task of a config with files. Raises: ConfigError for generated data, DataError."""
    # The config first: a mistake in it is reported before torch is imported.
    resolved = load(config, overrides)
    from rnncls.data import FilesTask, load_task

    task = load_task(resolved, progress=True)
    if not isinstance(task, FilesTask):
        remedy = "data.source=files data.train=...; rnncls data sample shows generated batches, too"
        raise ConfigError(
            Problem("generated data has no files", "data.source", remedy=remedy, id="C15")
        )
    return task
