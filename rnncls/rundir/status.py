"""status.json: how a run stands, for `rnncls runs ls`, sweeps and other programs."""

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnncls.rundir.lock import is_locked
from rnncls.rundir.paths import STATUS
from rnncls.system.files import read_regular, write_atomically
from rnncls.system.refusals import writing

if TYPE_CHECKING:  # `rnncls runs ls` does without torch
    from rnncls.steps.state import TrainState

# The types of each field.
_NUMBER = (int, float, type(None))
_FIELDS = {
    "state": (str,),
    "exit_code": (int, type(None)),
    "error_id": (str,),
    "step": (int,),
    "best_accuracy": _NUMBER,
    "best_metric": (str,),
    "best_value": _NUMBER,
    "best_step": (int, type(None)),
    "pid": (int,),
    "updated_at": (str,),
}
STATES = ("running", "finished", "interrupted", "failed")
MAX_STATUS_BYTES = 64 * 1024


def write_status(
    run_dir: Path,
    outcome: str,
    state: "TrainState",
    exit_code: int | None = None,
    error_id: str = "",
) -> None:
    """Replace status.json: the outcome, one of `STATES`, and how far the run has come.

    It need not survive a power cut: the checkpoints are what a run is resumed from.

    Raises: WriteError.
    """
    # `pid` is for people: the number may be another process's by now, so readers ask the lock.
    status = {
        "state": outcome,
        "exit_code": exit_code,
        "error_id": error_id,
        "step": state.step,
        "best_accuracy": None if state.best_step is None else state.best_accuracy,
        "best_metric": state.best_metric,
        "best_value": state.best_value,
        "best_step": state.best_step,
        "pid": os.getpid(),
        "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with writing(run_dir / STATUS):
        write_atomically(run_dir / STATUS, (json.dumps(status) + "\n").encode(), durable=False)


def read_status(run_dir: Path) -> dict[str, Any]:
    """Return the status, which is empty if there is none that rnncls wrote.

    A field of another type than rnncls writes is left out; a number that is not finite is None.

    A run whose process ended without a final status, because it was killed for example, has the
    state `died`.
    """
    # The file may come from anywhere: `runs ls` looks into every folder that it finds.
    try:
        status = json.loads(read_regular(run_dir / STATUS, MAX_STATUS_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(status, dict) or status.get("state") not in STATES:
        return {}

    # `type`, not isinstance: true and false are integers to isinstance.
    status = {key: value for key, value in status.items() if type(value) in _FIELDS.get(key, ())}
    for key, value in status.items():
        if isinstance(value, float) and not math.isfinite(value):
            status[key] = None

    # A running process holds the lock; the kernel has released that of a killed one.
    if status["state"] == "running" and not is_locked(run_dir):
        return status | {"state": "died"}
    return status
