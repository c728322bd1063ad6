"""What has been run: a list of runs, and how two of them differ."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rnncls.config import flatten, load_config
from rnncls.errors import CheckpointError, Problem
from rnncls.rundir import CHECKPOINTS, STATUS, read_status

Difference = dict[str, tuple[Any, Any]]


def find_runs(folder: Path) -> list[dict[str, Any]]:
    """Every run below `folder`, newest first: run, state, step, best_accuracy, and age_s since it was last heard of."""
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
    except (KeyError, ValueError, TypeError):
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
        raise CheckpointError(Problem("no run directory", str(run_dir), expected, id="K1"))
    status = read_status(run_dir)
    result = {key: status.get(key) for key in ("state", "step", "best_accuracy")}
    return {"config": flatten(load_config(run_dir / "config.yaml")), "result": result | _last_metrics(run_dir)}


def _last_metrics(run_dir: Path) -> dict[str, Any]:
    """The last value of each tag in metrics.jsonl; lines that are none do not count."""
    last: dict[str, Any] = {}
    try:
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return last
    for line in lines:
        try:
            last |= json.loads(line)
        except (ValueError, TypeError):
            continue
    return {tag: value for tag, value in last.items() if tag != "step"}
