"""How two runs differ: `rnncls runs diff`."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rnncls.config import Config, flatten, load_config
from rnncls.errors import CheckpointError, ConfigError, Problem, require_more_files
from rnncls.rundir.listing import best_of
from rnncls.rundir.paths import CHECKPOINTS, CONFIG
from rnncls.rundir.status import read_status
from rnncls.rundir.tables import Row, TrainingTime, read_metrics
from rnncls.system.files import read_regular

MAX_CONFIG_BYTES = 2**20
MAX_TAGS = 1000  # of a run; rnncls logs about 30

Pair = tuple[Any, Any]  # the value in the first run and in the second, None where there is none

# Tags begin with these; of others, such as the learning rate, neither direction is better.
_HIGHER_IS_BETTER = (
    "best_accuracy",
    "train/accuracy",
    "val/accuracy",
    "val/macro_f1",
    "train/sequences_per_second",
)
_LOWER_IS_BETTER = ("train/loss", "val/loss", "train_seconds")


@dataclass(frozen=True)
class Change:
    """The difference between two numbers."""

    difference: float  # b - a
    relative: float | None  # (b - a) / |a|; None where a is 0
    better: str | None  # "a" or "b"; None where neither direction is better


@dataclass(frozen=True)
class Comparison:
    """What two runs do not have in common, by key."""

    config: dict[str, Pair]
    result: dict[str, Pair]
    metric: str | None  # the metric that chose the best step of both; None if they differ

    def changes(self) -> dict[str, Change]:
        """Return the difference of every pair of numbers, by key."""
        changes = {}
        for key, pair in {**self.config, **self.result}.items():
            change = self._change(key, *pair)
            if change is not None:
                changes[key] = change
        return changes

    def to_json(self) -> dict[str, Any]:
        """Return what `rnncls runs diff --json` prints, but for the names of the runs."""
        changes = {key: asdict(change) for key, change in self.changes().items()}
        return {
            "config": self.config,
            "result": self.result,
            "best_metric": self.metric,
            "changes": changes,
        }

    def _change(self, key: str, first: Any, second: Any) -> Change | None:
        # Seeds are numbers that mean nothing.
        if key == "seed":
            return None
        # `type`, not isinstance: true and false are integers to isinstance.
        if type(first) not in (int, float) or type(second) not in (int, float):
            return None

        tag = key
        if key == "best_value":
            # A loss and an accuracy have no difference.
            if self.metric is None:
                return None
            tag = self.metric

        # Numbers from anywhere may be too large for this.
        try:
            difference = float(second) - float(first)
            relative = difference / abs(first) if first else None
        except OverflowError:
            return None
        if not math.isfinite(difference) or not math.isfinite(relative or 0):
            return None

        higher = None if key in self.config else higher_is_better(tag)
        better = None
        if higher is not None:
            better = "b" if (difference > 0) == higher else "a"
        return Change(difference, relative, better)


def higher_is_better(tag: str) -> bool | None:
    """Return whether a higher value of this tag is better; None if that cannot be said."""
    if tag.startswith(_HIGHER_IS_BETTER):
        return True
    if tag.startswith(_LOWER_IS_BETTER):
        return False
    return None


def compare(one: Path, other: Path) -> Comparison:
    """Return how two runs differ in their configs and results.

    Only what differs is there, with None where a value is missing. Results are the status, the
    seconds of training steps, and the last logged value of each metric.

    Raises: CheckpointError for a folder that is not a run directory. ConfigError for a config that
    cannot be read.
    """
    first_config = _config_of(one)
    second_config = _config_of(other)
    first = _results_of(one, first_config)
    second = _results_of(other, second_config)

    same_metric = first["best_metric"] == second["best_metric"]
    return Comparison(
        config=_differences(flatten(first_config), flatten(second_config)),
        result=_differences(first, second),
        metric=first["best_metric"] if same_metric else None,
    )


def _differences(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Pair]:
    differences = {}
    for key in first | second:
        pair = (first.get(key), second.get(key))
        if pair[0] != pair[1]:
            differences[key] = pair
    return differences


def _config_of(run_dir: Path) -> Config:
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
        require_more_files(error, what, str(config_path))
        raise ConfigError(
            Problem(what, str(config_path), remedy="a run directory", id="C1")
        ) from None
    return load_config(config_path)


def _results_of(run_dir: Path, config: Config) -> dict[str, Any]:
    """Return the status of a run, its seconds of training, and the last value of each tag."""
    status = read_status(run_dir)
    metric, value = best_of(status)
    result = {
        "state": status.get("state"),
        "step": status.get("step"),
        "best_accuracy": status.get("best_accuracy"),
        "best_metric": f"val/{metric}",
        "best_value": value,
        "best_step": status.get("best_step"),
    }

    try:
        last, seconds = _last_metrics(run_dir, config.train.batch_size)
    except OSError:
        last = {}
        seconds = None

    result["train_seconds"] = seconds
    # A file of somebody else's may have a tag of any name; it does not replace what is above.
    return result | last | result


def _last_metrics(run_dir: Path, batch_size: int) -> tuple[Row, float | None]:
    """Return the last value of each tag, and the seconds of training. Raises: OSError."""
    training_time = TrainingTime(batch_size)
    last: Row = {}
    # Tag by tag, because training and validation are not logged at the same steps.
    for row in read_metrics(run_dir):
        training_time.add(row)
        for tag, value in row.items():
            if tag in last or len(last) < MAX_TAGS:
                last[tag] = value

    # The status says the step.
    last.pop("step", None)
    return last, training_time.seconds
