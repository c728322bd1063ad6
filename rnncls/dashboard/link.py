"""The address of a view of TensorBoard: pinned cards, no smoothing, one colour for each group.

Importing this does not import torch.
"""

import json
import re
import shlex
import socket
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from rnncls.system.files import read_regular

# The four that say whether a run learns, pinned above all other cards.
PINNED = ("val/accuracy", "val/loss", "train/loss", "train/grad_norm")
PINNED_OF_SWEEP = "whole_sweep/success_rate"

# All members of a setting have one colour, by what stands before the seed in their names. Every
# other run has a colour of its own.
BY_SETTING = r"regex:(.*?)(?:_?seed=\d+)?$"

DEFAULT_PORT = 6006
MAX_INFO_BYTES = 64 * 1024  # of a file that says where a TensorBoard is
ANSWER_SECONDS = 1.0
_PREFIX = re.compile(r"[\w./-]*", re.ASCII)
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
    """Return a TensorBoard that runs and shows this folder, or one above it.

    A TensorBoard says where it is in a file below the folder for temporary files, which anybody may
    write to: what is not as expected there is passed over.
    """
    # Also where there is no folder for temporary files, or no right to look into it.
    with suppress(OSError):
        wanted = folder.resolve()
        infos = Path(tempfile.gettempdir(), ".tensorboard-info")
        for path in sorted(infos.glob("pid-*.info")):
            running = _running_of(path)
            if running is not None and wanted.is_relative_to(running.folder):
                return running
    return None


def _running_of(path: Path) -> Running | None:
    """Return the TensorBoard that a file tells of, if it still answers."""
    try:
        info = json.loads(read_regular(path, MAX_INFO_BYTES))
        pid = info["pid"]
        port = info["port"]
        logdir = info["logdir"]
        prefix = info["path_prefix"]
        is_ours = type(pid) is int and type(port) is int and isinstance(logdir, str)
        if not is_ours or not logdir or not _PREFIX.fullmatch(prefix):
            return None

        # Relative to where it began, which only Linux tells.
        shown = Path(f"/proc/{pid}/cwd", logdir).resolve(strict=True)
        # As bytes: a text is encoded by a module that Python loads for it alone, which a process
        # may be unable to.
        address: Any = (b"localhost", port)
        with socket.create_connection(address, timeout=ANSWER_SECONDS):
            pass
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return None
    path_of = prefix.strip("/")
    return Running(f"http://localhost:{port}/{path_of}{'/' if path_of else ''}", shown)


def how_to_look(folder: Path, sweep: bool = False) -> list[str]:
    """Return the lines that end a run: the link, and the command for it where it does not work yet.

    `folder`: the run directory, or that of a sweep. `sweep`: pin the success rates of a sweep.
    """
    running = find_running(folder)
    if running is None:
        command = f"rnncls board {shlex.quote(str(folder))}"
        address = link(f"http://localhost:{DEFAULT_PORT}/", ["."] if sweep else [])
        return [f"dashboard: {address}", f"           after: {command}"]
    name = folder.resolve().relative_to(running.folder).as_posix()
    return [f"dashboard: {link(running.url, [name] if sweep else [])}"]
