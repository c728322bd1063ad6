"""The address of a view of TensorBoard: pinned cards, no smoothing, one colour for each group.

Importing this does not import torch.
"""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlencode

if TYPE_CHECKING:
    from tensorboard.manager import TensorBoardInfo

# The four that say whether a run learns, pinned above all other cards.
PINNED = ("val/accuracy", "val/loss", "train/loss", "train/grad_norm")
PINNED_OF_SWEEP = "whole_sweep/success_rate"

# All members of a setting have one colour, by what stands before the seed in their names. Every
# other run has a colour of its own.
BY_SETTING = r"regex:(.*?)(?:_?seed=\d+)?$"

DEFAULT_PORT = 6006
_EXPERIMENT = "defaultExperimentId"  # TensorBoard's own name for all that is below its folder


class Running(NamedTuple):
    """A TensorBoard that runs on this machine."""

    url: str  # "http://localhost:6006/"
    folder: Path  # that it shows


def link(url: str, sweeps: Sequence[str] = ()) -> str:
    """Return the address of the view. `url`: that of TensorBoard, which ends in a slash.

    `sweeps`: the names of sweeps, relative to the folder that TensorBoard shows. The success rates
    of the first one are pinned, too.
    """
    cards: list[dict[str, object]] = []
    for name in sweeps[:1]:
        run = f"{_EXPERIMENT}/{name}/summary" if name != "." else f"{_EXPERIMENT}/summary"
        cards.append({"plugin": "images", "tag": PINNED_OF_SWEEP, "runId": run, "sample": 0})
    cards += [{"plugin": "scalars", "tag": tag} for tag in PINNED]

    pinned = json.dumps(cards, separators=(",", ":"))
    query = urlencode({"pinnedCards": pinned, "smoothing": 0, "runColorGroup": BY_SETTING})
    return f"{url}?{query}#timeseries"


def find_running(folder: Path) -> Running | None:
    """Return a TensorBoard that runs and shows this folder, or one above it."""
    from tensorboard import manager

    wanted = folder.resolve()
    for info in manager.get_all():
        shown = _folder_of(info)
        if shown is not None and wanted.is_relative_to(shown) and _is_alive(info.pid):
            prefix = info.path_prefix.strip("/")
            path = f"{prefix}/" if prefix else ""
            return Running(f"http://localhost:{info.port}/{path}", shown)
    return None


def _folder_of(info: "TensorBoardInfo") -> Path | None:
    """Return the folder that a TensorBoard shows, which may be relative to where it began."""
    if not info.logdir:
        return None
    folder = Path(info.logdir).expanduser()
    if not folder.is_absolute():
        # Only Linux says where another process is.
        folder = Path(f"/proc/{info.pid}/cwd") / folder
    try:
        return folder.resolve(strict=True)
    except OSError:
        return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def how_to_look(folder: Path, sweep: bool = False) -> list[str]:
    """Return the lines that end a run: the link, and the command for it where it does not work yet.

    `folder`: the run directory, or that of a sweep.
    """
    running = find_running(folder)
    if running is None:
        command = f"rnncls board {shlex.quote(str(folder))}"
        address = link(f"http://localhost:{DEFAULT_PORT}/", ["."] if sweep else [])
        return [f"dashboard: {address}", f"           after: {command}"]
    name = folder.resolve().relative_to(running.folder).as_posix()
    return [f"dashboard: {link(running.url, [name] if sweep else [])}"]
