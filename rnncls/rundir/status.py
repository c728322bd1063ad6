"""status.json: how a run stands, for `rnncls runs ls`, sweeps and other programs."""

import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnncls.rundir.lock import is_locked
from rnncls.rundir.paths import STATUS
from rnncls.rundir.tables import MAX_STEP
from rnncls.system.files import read_regular, write_atomically
from rnncls.system.launch import launch_of
from rnncls.system.refusals import writing

if TYPE_CHECKING:  # `rnncls runs ls` does without torch
    from rnncls.steps.state import TrainState

# The fields, by what they hold.
_COUNTS = ("exit_code", "step", "best_step", "pid", "world_size")
_NUMBERS = ("best_accuracy", "best_value")
_WORDS = ("state", "error_id", "best_metric", "launch", "updated_at")
_LONGEST_WORD = 64

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
    # Only here: readers do without torch.
    from rnncls.system.distributed import world_size

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
        "world_size": world_size(),
        "launch": launch_of().id,
        "updated_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with writing(run_dir / STATUS):
        write_atomically(run_dir / STATUS, (json.dumps(status) + "\n").encode(), durable=False)


def read_status(run_dir: Path) -> dict[str, Any]:
    """Return the status, which is empty if there is none that rnncls wrote.

    A field that does not hold what rnncls writes there is left out: so a step can be reached by a
    run, a number is finite, and a text is a word that may be shown.

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

    status = {key: value for key, value in status.items() if _is_ours(key, value)}

    # A running process holds the lock; the kernel has released that of a killed one.
    if status["state"] == "running" and not is_locked(run_dir):
        return status | {"state": "died"}
    return status


def _is_ours(field: str, value: Any) -> bool:
    """Return whether rnncls may have written this value."""
    if field in _WORDS:
        is_text = isinstance(value, str) and value.isascii() and value.isprintable()
        return is_text and len(value) <= _LONGEST_WORD

    # There is no best step before the first evaluation, and no exit code before the end.
    if value is None:
        return field in (*_COUNTS, *_NUMBERS) and field != "step"

    # `type`, not isinstance: true and false are integers to isinstance.
    is_count = type(value) is int and 0 <= value <= MAX_STEP
    is_number = type(value) is float and math.isfinite(value)
    return (field in _COUNTS and is_count) or (field in _NUMBERS and (is_count or is_number))
