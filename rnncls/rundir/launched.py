"""What a launcher that starts its processes again has begun before: torchrun's --max-restarts.

It starts the same command line again, which would begin another run. So each run's status says
which launch it is of. Importing this does not import torch.
"""

from pathlib import Path
from typing import NamedTuple

from rnncls.rundir.paths import CHECKPOINTS, STATUS, STEP_FILES, step_path
from rnncls.rundir.status import read_status
from rnncls.system.launch import Launch


class Begun(NamedTuple):
    """A run that an earlier start of this launch has made."""

    path: Path
    is_stopped: bool  # a signal asked for that, and a new start must not undo it


def begun_by(launch: Launch, run_dir: Path | None, folder: Path) -> Begun | None:
    """Return the run that earlier processes of this launch have made; None if there is none.

    `run_dir`: where the run is, if that is known; otherwise it is somewhere in `folder`.
    """
    # Nobody else starts a command line again, and whoever begins anew means a new run.
    if not launch.restarts or not launch.id:
        return None

    candidates: list[Path] = []
    if run_dir is not None:
        candidates = [run_dir]
    elif folder.is_dir():
        # The names of runs begin with their date.
        candidates = sorted(folder.iterdir(), reverse=True)
    for path in candidates:
        if not (path / CHECKPOINTS).is_dir():
            continue
        if path == run_dir and _has_just_begun(path):
            return Begun(path, is_stopped=False)
        status = read_status(path)
        if status.get("launch") == launch.id:
            return Begun(path, status["state"] == "interrupted")
    return None


def _has_just_begun(path: Path) -> bool:
    """Return whether a process was killed between the first checkpoint and the first status."""
    checkpoints = [*(path / CHECKPOINTS).glob(STEP_FILES)]
    return checkpoints == [step_path(path / CHECKPOINTS, 0)] and not (path / STATUS).exists()
