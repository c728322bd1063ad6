"""Newest, best, damaged: which file to read."""

import sys
from itertools import count
from pathlib import Path

from rnncls.errors import CheckpointError, Damaged, Problem
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir import tensorfile
from rnncls.rundir.checkpoint import Checkpoint, read_checkpoint, restore_model
from rnncls.rundir.paths import BEST, step_path
from rnncls.system.files import link, writing


def mark_best(path: Path) -> None:
    """Make `best.safetensors` another name of this checkpoint (or a copy, where links are refused)."""
    with writing(path.parent / BEST, "cannot write the checkpoint"):
        link(path, path.parent / BEST)


def prune(folder: Path, keep: int) -> None:
    """Delete all but the `keep` newest step files. `best.safetensors` stays."""
    with writing(folder, "cannot delete an old checkpoint"):
        for path in step_files(folder)[keep:]:
            path.unlink(missing_ok=True)


def step_files(folder: Path) -> list[Path]:
    """The step checkpoints in a folder, newest first, by number and not by time."""
    files = [path for path in folder.glob("step-*.safetensors") if path.stem[5:].isdecimal()]
    return sorted(files, key=lambda path: int(path.stem[5:]), reverse=True)


def find_checkpoint(path: str | Path) -> Path:
    """The file to read for a checkpoint file, or for a run directory: its best, else its newest checkpoint."""
    best = Path(path) / "checkpoints" / BEST
    try:
        return best if best.exists() else find_newest(path)
    except OSError as error:  # a name that is too long, no permission
        raise tensorfile.cannot_read(Path(path), error) from None


def find_newest(path: str | Path) -> Path:
    """The newest step checkpoint of a run directory; a path that is no directory is taken as the file itself.

    Raises CheckpointError for a directory without checkpoints, naming what is there.
    """
    path = Path(path)
    if not path.is_dir():
        return path
    if files := step_files(path / "checkpoints"):
        return files[0]
    runs = sorted(folder.parent for folder in path.glob("*/checkpoints"))
    found = ", ".join(sorted(child.name for child in path.iterdir())[:5]) or "nothing"
    remedy = f"a run in it, for example {runs[-1]}" if runs else ""
    expected = "a run directory, with checkpoints in checkpoints/, or a checkpoint file"
    raise CheckpointError(
        Problem(
            "no checkpoint in this folder",
            str(path),
            expected=expected,
            found=found,
            remedy=remedy,
            id="K1",
        )
    )


def load_model(path: str | Path) -> RNNClassifier:
    """The classifier of a checkpoint file, or of a run directory's best, on the CPU in evaluation mode."""
    return restore_model(read_checkpoint(find_checkpoint(path)))


def recover(run_dir: Path) -> Checkpoint:
    """The newest checkpoint of a run that verifies; best.safetensors is put right beside it.

    A file that does not verify gets `.bad` behind its name and is never deleted. Only the owner of the run may call
    this. Raises CheckpointError when there is no checkpoint, or none that is whole: never a silent fresh start.
    """
    folder = run_dir / "checkpoints"
    files = step_files(folder)
    if not files:
        find_newest(run_dir)  # raises, and says what is there
    for path in files:
        try:
            checkpoint = read_checkpoint(path)
        except Damaged as error:
            print(f"{error.render()}\n  set aside: {set_aside(path).name}", file=sys.stderr)
        else:
            _repair_best(folder, checkpoint)
            return checkpoint
    what = f"none of the {len(files)} checkpoints is whole"
    raise CheckpointError(
        Problem(what, str(folder), remedy="a new run; the damaged files are kept", id="K2")
    )


def set_aside(path: Path) -> Path:
    """Rename to `<name>.bad`, numbered if taken; returns the new path."""
    names = (path.with_name(f"{path.name}.bad{number or ''}") for number in count())
    target = next(name for name in names if not name.exists())
    return path.rename(target)


def _repair_best(folder: Path, checkpoint: Checkpoint) -> None:
    """After a kill between a commit and its link, or damage: link the best step's file again if that is whole."""
    best, step = folder / BEST, checkpoint.state.counters.get("best_step")
    if not isinstance(step, int) or step < 0:
        return
    try:
        if (best.exists() or best.is_symlink()) and read_checkpoint(best).state.step >= step:
            return
    except CheckpointError as error:
        print(f"{error.render()}\n  set aside: {set_aside(best).name}", file=sys.stderr)
    path = step_path(folder, step)
    try:
        if path.exists() and read_checkpoint(path).state.step == step:
            mark_best(path)
    except Damaged as error:
        print(f"{error.render()}\n  set aside: {set_aside(path).name}", file=sys.stderr)
