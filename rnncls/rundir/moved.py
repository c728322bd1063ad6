"""Where the data files of a run are now, if they or the run were moved."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rnncls.config import FilesConfig, read_yaml
from rnncls.data.files.search import Search
from rnncls.data.moved import Remedies, with_files_now
from rnncls.data.splits import SPLITS
from rnncls.errors import ConfigError
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.paths import CHECKPOINTS, CONFIG, run_of_control

OF_EVALUATION = Remedies(
    missing="--data-dir FOLDER with it, or --data PATH behind eval RUN for another file",
    changed="the old file, --data-dir FOLDER with it, or --data FILE for another one",
)
OF_RESUMING = Remedies(
    missing="--data-dir FOLDER with it, or data.{name}=PATH behind train --resume RUN",
    changed="the old file, --data-dir FOLDER with it, or rnncls train CONFIG --init-from for a new "
    "run on the new one",
)


def with_files_of_run(
    checkpoint: Checkpoint,
    data: FilesConfig,
    remedies: Remedies,
    data_dir: Path | None = None,
    search: Search | None = None,
    splits: Sequence[str] = SPLITS,
) -> FilesConfig:
    """Return `data` with the paths where the data files of a checkpoint's run are now.

    `data` is the checkpoint's own, perhaps with overrides; where these name files, the run's must
    be among them. The others are looked for where they were, beside the run and in `data_dir`, or
    where `search` says. Only the files of `splits` are looked at.

    Raises: CheckpointError if a file has changed. DataError if there is no such file any more.
    """
    run = _run_of(checkpoint)
    search = search or Search(run, data_dir)
    search = replace(search, also=_paths_in_config(run / CONFIG))

    before = checkpoint.config.data
    overridden = [name for name in splits if getattr(data, name) != getattr(before, name, None)]
    known = checkpoint.state.fingerprints
    return with_files_now(data, known, search, remedies, splits, overridden)


def _run_of(checkpoint: Checkpoint) -> Path:
    """Return the run of a checkpoint; of one that was copied elsewhere, the file itself.

    That of an n-gram control is the run that it belongs to.
    """
    folder = checkpoint.path.parent
    if folder.name != CHECKPOINTS:
        return checkpoint.path
    return run_of_control(folder.parent) or folder.parent


def _paths_in_config(path: Path) -> tuple[str, ...]:
    """Return the data files that a run's config.yaml has, () if it cannot be read.

    A run that was resumed knows there where its files are; its best checkpoint is older.
    """
    try:
        config = read_yaml(path)
    except ConfigError:
        return ()

    data = config.get("data") if isinstance(config, dict) else None
    values = [data.get(name) for name in SPLITS] if isinstance(data, dict) else []
    paths: list[str] = []
    for value in values:
        several = value if isinstance(value, list | tuple) else [value]
        paths += [path for path in several if isinstance(path, str)]
    return tuple(paths)
