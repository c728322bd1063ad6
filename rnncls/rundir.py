"""Who owns a run directory and how its run stands: a lock that dies with its process, and status.json."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rnncls.errors import MachineError, Problem

LOCK = ".lock"
STATUS = "status.json"


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the directory for this process. The kernel lets go when the process ends, however it ends.

    Raises MachineError, naming the owner, while another process holds it.
    """
    descriptor = os.open(run_dir / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            remedy = "wait for it, stop it, or choose another --run-dir"
            raise MachineError(
                Problem("the run directory is in use", str(run_dir), found=owner, remedy=remedy, id="R26")
            ) from None
        os.ftruncate(descriptor, 0)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        os.pwrite(descriptor, f"pid {os.getpid()} on host {socket.gethostname()} since {now}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def is_locked(run_dir: Path) -> bool:
    """Whether a living process holds the directory. Changes nothing."""
    try:
        descriptor = os.open(run_dir / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def write_status(run_dir: Path, **values: Any) -> None:
    """Replace status.json: state (running, finished, interrupted, failed), exit_code, step, best_accuracy."""
    temporary = run_dir / f".tmp-{os.getpid()}-status"
    stamp = {"pid": os.getpid(), "updated_at": datetime.now(UTC).isoformat(timespec="seconds")}
    temporary.write_text(json.dumps({**values, **stamp}) + "\n", encoding="utf-8")
    temporary.replace(run_dir / STATUS)


def read_status(run_dir: Path) -> dict[str, Any]:
    """The status, empty when there is none that can be read. A run that died without a word has state `died`."""
    try:
        status = json.loads((run_dir / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(status, dict):
        return {}
    died = status.get("state") == "running" and not is_locked(run_dir)
    return status | {"state": "died"} if died else status


def remove_leftovers(run_dir: Path) -> None:
    """Delete what a killed process was writing. Only the owner of the lock may."""
    for folder in (run_dir, run_dir / "checkpoints"):
        for path in folder.glob(".tmp-*"):
            path.unlink(missing_ok=True)


def find_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run below `folder`, newest first: run, state, step, best_accuracy, and age_s since it was last heard of."""
    runs = []
    for path in folder.glob(f"**/{STATUS}"):
        status = read_status(path.parent)
        try:
            heard_at = datetime.fromisoformat(status["updated_at"])
            known = {key: status[key] for key in ("state", "step", "best_accuracy", "exit_code")}
        except (KeyError, ValueError, TypeError):
            continue  # no status that rnncls wrote
        age = (datetime.now(UTC) - heard_at).total_seconds()
        runs.append({"run": str(path.parent), **known, "age_s": age})
    return sorted(runs, key=lambda run: (run["age_s"], run["run"]))
