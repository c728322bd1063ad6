"""status.json: how a run stands."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnncls.rundir.lock import is_locked
from rnncls.rundir.paths import STATUS
from rnncls.system.files import read_regular, write_atomically, writing

if TYPE_CHECKING:
    from rnncls.steps.state import TrainState

STATES = ("running", "finished", "interrupted", "failed")
MAX_STATUS_BYTES = 64 * 1024


def write_status(run_dir: Path, **values: Any) -> None:
    """Replace status.json: state (running, finished, interrupted, failed), exit_code, error_id, step, best_accuracy.

    Raises WriteError.
    """
    stamp = {"pid": os.getpid(), "updated_at": datetime.now(UTC).isoformat(timespec="seconds")}
    with writing(run_dir / STATUS):
        write_atomically(
            run_dir / STATUS, (json.dumps({**values, **stamp}) + "\n").encode(), durable=False
        )


def read_status(run_dir: Path) -> dict[str, Any]:
    """The status, empty when there is none that can be read. A run that died without a word has state `died`."""
    try:
        status = json.loads(read_regular(run_dir / STATUS, MAX_STATUS_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(status, dict) or status.get("state") not in STATES:
        return {}
    died = status.get("state") == "running" and not is_locked(run_dir)
    return status | {"state": "died"} if died else status


CRASH_LOG = "crash.log"


def note_status(
    run_dir: Path,
    state: "TrainState",
    outcome: str,
    exit_code: int | None = None,
    error_id: str = "",
) -> None:
    """Write status.json. Raises WriteError."""
    best = state.counters()["best_accuracy"]
    write_status(
        run_dir,
        state=outcome,
        exit_code=exit_code,
        error_id=error_id,
        step=state.step,
        best_accuracy=best,
    )
