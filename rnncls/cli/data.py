"""Defines rnncls data check, stats and sample."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.init import (
    FileOptions,
    config_of_file,
    file_options_of,
    require_no_file_options,
    say_how_read,
)
from rnncls.cli.options import Json, LabelField, OptionalConfig, SequenceField, Tokens, WordsOrData
from rnncls.cli.words import load, sort_words
from rnncls.errors import ConfigError, DataError, Problem
from rnncls.system.rows import json_text

if TYPE_CHECKING:
    from rnncls.config import Config, FilesConfig
    from rnncls.data import FilesTask, Task


def check(
    config: OptionalConfig = None,
    overrides: WordsOrData = None,
    sequence_field: SequenceField = None,
    label_field: LabelField = None,
    tokens: Tokens = None,
) -> None:
    """Read a data file, or the files of a config, and report what is wrong with them, by line.

    Examples:
        rnncls data check clicks.csv
        rnncls data check configs/digits_from_files.yaml
    """
    file_options = file_options_of(sequence_field, label_field, tokens)
    # Reading is the check: bad rows are raised as one DataError, warnings go to stderr.
    task = _load_files(config, overrides, file_options)
    for name in task.dataset.splits:
        print(task.described_size(name))
    num_tokens, num_classes = task.sizes
    classes = "1 class" if num_classes == 1 else f"{num_classes:,} classes"
    print(f"ok: {num_tokens:,} different tokens, {classes}")


def stats(
    config: OptionalConfig = None,
    overrides: WordsOrData = None,
    sequence_field: SequenceField = None,
    label_field: LabelField = None,
    tokens: Tokens = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw lengths, classes and tokens into this PNG.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print rows, classes, lengths, vocabulary and padding of a data file or a config's data.

    Examples:
        rnncls data stats clicks.csv
        rnncls data stats configs/digits_from_files.yaml --plot lengths.png
    """
    file_options = file_options_of(sequence_field, label_field, tokens)
    task = _load_task(config, overrides, file_options)
    from rnncls.data import report

    if as_json:
        print(json_text(report.stats(task).to_json()))
    else:
        print(report.to_text(task))

    # Last, so that a picture that cannot be written costs no statistics.
    if plot is not None:
        from rnncls.data.plots import draw

        draw(task, plot)


def sample(
    config: OptionalConfig = None,
    overrides: WordsOrData = None,
    sequence_field: SequenceField = None,
    label_field: LabelField = None,
    tokens: Tokens = None,
    plot: Annotated[
        Path | None, typer.Option(help="Also draw the first 8 sequences of it into this PNG.")
    ] = None,
) -> None:
    """Print the first training batch: padded, packed, lengths, labels.

    Examples:
        rnncls data sample clicks.csv
        rnncls data sample configs/smoke.yaml train.batch_size=4 --plot batch.png
    """
    file_options = file_options_of(sequence_field, label_field, tokens)
    resolved = _load(config, overrides, file_options)
    from rnncls.data import load_task
    from rnncls.data.sample import sample_text

    task = load_task(resolved, progress=True)
    print(sample_text(task))
    if plot is not None:
        from rnncls.data.plots import first_batch
        from rnncls.system.pictures import write_png

        write_png(first_batch(next(task.batches(0, 1)), task.vocabulary), plot)


def _load(config: Path | None, words: list[str] | None, file_options: FileOptions) -> "Config":
    """Return the config that is named, or made from the data file that is.

    Raises: ConfigError. DataError for a data file.
    """
    given = sort_words(config, words)
    if given.file is not None:
        return config_of_file(given.file, file_options, given.overrides)
    require_no_file_options(file_options)
    return load(config, words)  # type: ignore[no-any-return]


def _load_files(
    config: Path | None, words: list[str] | None, file_options: FileOptions
) -> "FilesTask":
    """Return the task of a config with files, or of a data file.

    Raises: ConfigError for generated data, DataError.
    """
    task = _load_task(config, words, file_options)
    from rnncls.data import FilesTask

    if not isinstance(task, FilesTask):
        remedy = (
            "data.source=files data.train=...; "
            "rnncls data stats and data sample show generated data, too"
        )
        raise ConfigError(
            Problem("generated data has no files", "data.source", remedy=remedy, id="C15")
        )
    return task


def _load_task(config: Path | None, words: list[str] | None, file_options: FileOptions) -> "Task":
    """Return the task of a config, or of a data file. Raises: ConfigError, DataError."""
    # The config first: a mistake in it is reported before torch is imported.
    resolved = _load(config, words, file_options)
    from rnncls.config import FilesConfig
    from rnncls.data import load_task

    try:
        return load_task(resolved, progress=True)
    except DataError as error:
        # What is wrong with the rows may be how they are read.
        if isinstance(resolved.data, FilesConfig):
            _say_how_bad_files_are_read(error, resolved.data)
        raise


def _say_how_bad_files_are_read(error: DataError, data: "FilesConfig") -> None:
    """Say on stderr how each file with a bad row is read."""
    places = [problem.where.rpartition(":") for problem in error.problems]
    for file in dict.fromkeys(file for file, _, line in places if line.isdecimal()):
        say_how_read(Path(file), data)
