"""Lists of runs, and how two runs differ."""

from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rnncls.config import flatten, load_config
from rnncls.errors import CheckpointError, ConfigError, Problem
from rnncls.rundir.paths import CHECKPOINTS, CONFIG, STATUS
from rnncls.rundir.status import read_status
from rnncls.rundir.tables import read_metrics
from rnncls.system.files import read_regular

MAX_CONFIG_BYTES = 2**20

Difference = dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class RunSummary:
    """One run of a list, as its status tells."""

    run: str  # the run directory
    state: str
    step: int
    best_accuracy: float | None  # None before the first evaluation
    exit_code: int | None  # None while the run goes on
    age_s: float  # seconds since the status was written

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the run in what `rnncls runs ls --json` prints."""
        return asdict(self)


def find_runs(folder: Path) -> list[RunSummary]:
    """Return every run below `folder`, newest first.

    Raises: CheckpointError if there is no such folder.
    """
    # No default folder means no runs yet, which is not an error.
    if not folder.is_dir() and folder != Path("runs"):
        raise CheckpointError(
            Problem("no such folder", str(folder), remedy="the folder that has the runs", id="K1")
        )

    runs = []
    # Members of a sweep are runs, too, at any depth.
    for path in folder.glob(f"**/{STATUS}"):
        run = _describe_status(path.parent)
        if run is not None:
            runs.append(run)
    return sorted(runs, key=lambda run: (run.age_s, run.run))


def _describe_status(run_dir: Path) -> RunSummary | None:
    """Return the run's line of the list; None if its status is not one that rnncls wrote."""
    status = read_status(run_dir)

    # Converted, so that whoever prints the line gets these types whatever the file holds.
    try:
        age = datetime.now(UTC) - datetime.fromisoformat(status["updated_at"])
        best = status["best_accuracy"]
        exit_code = status["exit_code"]
        return RunSummary(
            run=str(run_dir),
            state=str(status["state"]),
            step=int(status["step"]),
            best_accuracy=None if best is None else float(best),
            exit_code=None if exit_code is None else int(exit_code),
            age_s=age.total_seconds(),
        )
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def compare(one: Path, other: Path) -> dict[str, Difference]:
    """Return how two runs differ: `{"config": {key: (one's value, other's value)}, "result": ...}`.

    Only what differs is there, with None where a value is missing. Results are the status and the
    last logged value of each metric.

    Raises: CheckpointError for a folder that is not a run directory. ConfigError for a config that
    cannot be read.
    """
    first = _describe_run(one)
    second = _describe_run(other)
    return {part: _differences(first[part], second[part]) for part in first}


def _differences(first: dict[str, Any], second: dict[str, Any]) -> Difference:
    differences = {}
    for key in first | second:
        pair = (first.get(key), second.get(key))
        if pair[0] != pair[1]:
            differences[key] = pair
    return differences


def _describe_run(run_dir: Path) -> dict[str, dict[str, Any]]:
    if not (run_dir / CHECKPOINTS).is_dir():
        raise CheckpointError(
            Problem(
                "not a run directory",
                str(run_dir),
                expected="a folder with config.yaml and checkpoints/",
                id="K1",
            )
        )

    config_path = run_dir / CONFIG
    try:
        # load_config would wait for ever if this were a pipe.
        read_regular(config_path, MAX_CONFIG_BYTES)
    except OSError as error:
        what = f"cannot read the config: {error.strerror}"
        raise ConfigError(
            Problem(what, str(config_path), remedy="a run directory", id="C1")
        ) from None

    status = read_status(run_dir)
    result = {key: status.get(key) for key in ("state", "step", "best_accuracy")}
    result |= _last_metrics(run_dir)
    return {"config": flatten(load_config(config_path)), "result": result}


def _last_metrics(run_dir: Path) -> dict[str, Any]:
    """Return the last logged value of each tag."""
    # Tag by tag, because training and validation are not logged at the same steps.
    last: dict[str, Any] = {}
    with suppress(OSError):
        for row in read_metrics(run_dir):
            last |= row

    # The status says the step.
    last.pop("step", None)
    return last
