"""What has been run: a list of runs, and how two of them differ."""

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rnncls.config import flatten, load_config
from rnncls.errors import CheckpointError, ConfigError, Problem
from rnncls.rundir.paths import CHECKPOINTS, STATUS
from rnncls.rundir.status import read_status
from rnncls.rundir.tables import read_metrics
from rnncls.system.files import read_regular

Difference = dict[str, tuple[Any, Any]]


def find_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run below `folder`, newest first: run, state, step, best_accuracy, and age_s since it was last heard of."""
    if not folder.is_dir() and folder != Path("runs"):
        raise CheckpointError(
            Problem("no such folder", str(folder), remedy="the folder that has the runs", id="K1")
        )
    listed = [_listed(path.parent) for path in folder.glob(f"**/{STATUS}")]
    runs = [run for run in listed if run is not None]
    return sorted(runs, key=lambda run: (run["age_s"], run["run"]))


def _listed(run_dir: Path) -> dict[str, Any] | None:
    """None where the status is none that rnncls wrote."""
    status = read_status(run_dir)
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(status["updated_at"])
        best, exit_code = status["best_accuracy"], status["exit_code"]
        return {
            "run": str(run_dir),
            "state": str(status["state"]),
            "step": int(status["step"]),
            "best_accuracy": None if best is None else float(best),
            "exit_code": None if exit_code is None else int(exit_code),
            "age_s": age.total_seconds(),
        }
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def compare(one: Path, other: Path) -> dict[str, Difference]:
    """`{"config": {key: (value of one, value of other)}, "result": ...}`, only what differs; None where it is missing.

    Results are the status and the last logged value of each metric. Raises CheckpointError for a folder that is no run
    directory, ConfigError for a config that cannot be read.
    """
    first, second = _described(one), _described(other)
    return {part: _differences(first[part], second[part]) for part in first}


def _differences(first: dict[str, Any], second: dict[str, Any]) -> Difference:
    pairs = {key: (first.get(key), second.get(key)) for key in first | second}
    return {key: (one, other) for key, (one, other) in pairs.items() if one != other}


def _described(run_dir: Path) -> dict[str, dict[str, Any]]:
    if not (run_dir / CHECKPOINTS).is_dir():
        expected = "a folder with config.yaml and checkpoints/"
        raise CheckpointError(Problem("no run directory", str(run_dir), expected=expected, id="K1"))
    try:
        read_regular(run_dir / "config.yaml", 2**20)  # a pipe would block
    except OSError as error:
        what, remedy = f"cannot read the config: {error.strerror}", "a run directory"
        raise ConfigError(
            Problem(what, str(run_dir / "config.yaml"), remedy=remedy, id="C1")
        ) from None
    status = read_status(run_dir)
    result = {key: status.get(key) for key in ("state", "step", "best_accuracy")}
    return {
        "config": flatten(load_config(run_dir / "config.yaml")),
        "result": result | _last_metrics(run_dir),
    }


def _last_metrics(run_dir: Path) -> dict[str, Any]:
    """The last value of each tag."""
    last: dict[str, Any] = {}
    with suppress(OSError):
        for row in read_metrics(run_dir):
            last |= row
    return {tag: value for tag, value in last.items() if tag != "step"}
