"""The checkpoint files of a run: which one to read, and what becomes of old and damaged ones."""

import sys
from itertools import count
from pathlib import Path

from rnncls.errors import CheckpointError, Damaged, Problem, on_one_line
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir import tensorfile
from rnncls.rundir.checkpoint import Checkpoint, read_checkpoint
from rnncls.rundir.paths import (
    BEST,
    CHECKPOINTS,
    STEP_FILES,
    STEP_PREFIX,
    run_of_control,
    step_path,
)
from rnncls.rundir.restore import restore_model
from rnncls.system.device import resolve_device
from rnncls.system.files import link
from rnncls.system.refusals import writing

MOST_LISTED = 5  # files or runs, in a message


def find_checkpoint(path: str | Path) -> Path:
    """Return the file to read for a checkpoint file or a run directory.

    In a run directory it is the best checkpoint, or the newest if there is no best one.

    Raises: CheckpointError for a directory without checkpoints. MachineError if the path cannot
    be looked at.
    """
    path = Path(path)
    best = path / CHECKPOINTS / BEST
    try:
        return best if best.exists() else find_newest(path)
    except OSError as error:  # a name that is too long, no permission
        raise tensorfile.cannot_read(path, error) from None


def find_newest(path: str | Path) -> Path:
    """Return the newest step checkpoint of a run directory; any other path is returned as it is.

    Raises: CheckpointError for a directory without checkpoints, or if there is nothing of that
    name. It says what is there instead.
    """
    path = Path(path)
    if not path.is_dir():
        if not path.exists() and not path.is_symlink():
            raise _no_such_checkpoint(path)
        return path
    files = step_files(path / CHECKPOINTS)
    if files:
        return files[0]

    names = sorted(child.name for child in path.iterdir())
    raise CheckpointError(
        Problem(
            "no checkpoint in this folder",
            str(path),
            expected="a run directory, with checkpoints in checkpoints/, or a checkpoint file",
            found=", ".join(names[:MOST_LISTED]) or "nothing",
            remedy=_checkpoints_in(path) or _runs_below(path, depth=3),
            id="K1",
        )
    )


def _no_such_checkpoint(path: Path) -> CheckpointError:
    """Return the error of a path that is not there, with what is beside it."""
    # Not deeper: the folder of a mistyped path may be anybody's home.
    beside = _checkpoints_in(path.parent) or _runs_below(path.parent, depth=1)
    remedy = beside or "a checkpoint file or a run directory"
    return CheckpointError(Problem("no such checkpoint", str(path), remedy=remedy, id="K1"))


def _checkpoints_in(folder: Path) -> str:
    """Return the checkpoints in the folder of a run's checkpoints, the newest first, or ""."""
    best = folder / BEST
    files = [*step_files(folder), *([best] if best.exists() else [])]
    return f"one of its checkpoints: {_listed(files)}" if files else ""


def _runs_below(folder: Path, depth: int) -> str:
    """Return the runs at most `depth` folders below, the newest first, or ""."""
    # Often a folder above was meant, such as runs/ or runs/<config>/, or that of a sweep.
    runs = []
    for level in range(depth):
        for path in folder.glob(f"{'*/' * level}*/{CHECKPOINTS}"):
            # The n-gram control of a run is not meant where the run is not.
            if step_files(path) and run_of_control(path.parent) is None:
                runs.append(path.parent)
    runs.sort(key=lambda run: ((run / CHECKPOINTS).stat().st_mtime, run), reverse=True)
    return f"one of the runs below: {_listed(runs)}" if runs else ""


def _listed(paths: list[Path]) -> str:
    """Return the first few paths, and how many there are if that is more."""
    shown = ", ".join(map(str, paths[:MOST_LISTED]))
    return shown if len(paths) <= MOST_LISTED else f"{shown} and {len(paths) - MOST_LISTED:,} more"


def load_checkpoint(
    path: str | Path, device: str | None = None
) -> tuple[Checkpoint, RNNClassifier]:
    """Read a checkpoint, and put its model on a device, in evaluation mode.

    `path`: a checkpoint file, or a run directory, which stands for its best checkpoint. `device`:
    a name as in the config, whose device is the default.

    Raises: CheckpointError if it is missing, damaged or does not fit its own config. MachineError
    if it cannot be read, or without the device.
    """
    checkpoint = read_checkpoint(find_checkpoint(path))
    return checkpoint, model_on_device(checkpoint, device)


def model_on_device(checkpoint: Checkpoint, device: str | None = None) -> RNNClassifier:
    """Return the checkpoint's model in evaluation mode, on the config's device or on another.

    Raises: CheckpointError if its weights do not fit its own config. MachineError without the
    device.
    """
    model = restore_model(checkpoint)
    return model.to(resolve_device(device or checkpoint.config.device))


def step_files(folder: Path) -> list[Path]:
    """Return the step checkpoints in a folder, newest first, by number and not by time."""
    # A copy may change the times of files, but not their names.
    steps = {}
    for path in folder.glob(STEP_FILES):
        number = path.stem.removeprefix(STEP_PREFIX)
        if number.isdecimal():
            steps[path] = int(number)
    return sorted(steps, key=lambda path: steps[path], reverse=True)


def mark_best(path: Path) -> None:
    """Make `best.safetensors` another name of this checkpoint, or a copy where links are refused.

    Raises: WriteError.
    """
    best = path.parent / BEST
    with writing(best, "cannot write the checkpoint"):
        link(path, best)


def tidy(path: Path, is_best: bool, keep: int) -> None:
    """Mark the checkpoint that was just committed if it is the best, and delete old ones.

    The `keep` newest step files stay, and `best.safetensors`. Raises: WriteError.
    """
    # Marked first: a file that cannot be deleted ends the run, and then the mark is there.
    if is_best:
        mark_best(path)

    with writing(path.parent, "cannot delete an old checkpoint"):
        for old_path in step_files(path.parent)[keep:]:
            old_path.unlink(missing_ok=True)


def recover(run_dir: Path) -> Checkpoint:
    """Return the newest checkpoint of a run that verifies, and put best.safetensors right.

    A file that does not verify gets `.bad` behind its name and is never deleted. Only the owner of
    the run may call this.

    Raises: CheckpointError if there is no checkpoint, or no undamaged one: there is never a silent
    fresh start.
    """
    folder = run_dir / CHECKPOINTS
    files = step_files(folder)
    # Raises, and says what is there.
    if not files:
        find_newest(run_dir)

    # Only damage leads on to an older file. A foreign or unreadable one is the user's to decide:
    # the run would repeat steps that may be whole.
    for path in files:
        try:
            checkpoint = read_checkpoint(path)
        except Damaged as error:
            _report_and_set_aside(path, error)
        else:
            _repair_best(folder, checkpoint)
            return checkpoint

    what = f"all {len(files)} checkpoints are damaged"
    if len(files) == 1:
        what = "the only checkpoint is damaged"
    raise CheckpointError(
        Problem(
            what,
            str(folder),
            remedy="a new run; the damaged files are kept",
            id="K2",
        )
    )


def set_aside(path: Path) -> Path:
    """Rename a file to `<name>.bad`, numbered if that is taken, and return the new path."""
    # Numbered, because the same step may be damaged twice, and no evidence is to be overwritten.
    for number in count():
        target = path.with_name(f"{path.name}.bad{number or ''}")
        if not target.exists():
            return path.rename(target)
    raise AssertionError("unreachable: count() never ends")


def _report_and_set_aside(path: Path, error: CheckpointError) -> None:
    name = on_one_line(set_aside(path).name)
    print(f"{error.render()}\n  set aside: {name}", file=sys.stderr)


def _repair_best(folder: Path, checkpoint: Checkpoint) -> None:
    """Make best.safetensors the best checkpoint again, after damage or a kill before its link."""
    best_step = checkpoint.state.counters.get("best_step")
    if not isinstance(best_step, int) or best_step < 0:
        return

    # A later step than the recovered checkpoint knows of is fine: the run will come there again.
    best = folder / BEST
    try:
        # A link that leads nowhere is there, too, and is set aside.
        is_there = best.exists() or best.is_symlink()
        if is_there and read_checkpoint(best).state.step >= best_step:
            return
    except CheckpointError as error:
        _report_and_set_aside(best, error)

    # The best step's own file may be pruned by now; then there is no best until the next one.
    path = step_path(folder, best_step)
    try:
        if path.exists() and read_checkpoint(path).state.step == best_step:
            mark_best(path)
    except Damaged as error:
        _report_and_set_aside(path, error)
