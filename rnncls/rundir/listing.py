"""One run as a row of a list: what its status and its config tell about it.

The folders that are listed may be anybody's. A file that rnncls did not write is left out, or
leaves the columns empty that it would have filled; it never ends a listing.
"""

import re
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from rnncls.config import Config
from rnncls.config.strict_yaml import MAX_BYTES, parse
from rnncls.errors import ConfigError
from rnncls.rundir.paths import CONFIG, CONTROL
from rnncls.rundir.status import read_status
from rnncls.system.file_kinds import without_packing
from rnncls.system.files import read_regular

# The metrics that can choose the best step, in the order in which a sorted list has them.
METRICS = ("accuracy", "macro_f1", "loss")

# No run is older, and none is newer than the clock of another machine, of whatever time zone, says.
_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
_MOST_AHEAD_S = 86_400

# How the default run directory is called; its parent then has the name of the config.
_DEFAULT_NAME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-.*)?")

# The first line of a run's config.yaml, which says the file that the run began with.
_ORIGIN = re.compile(r"# (?:made )?from (?P<path>.+?)(?:; began with the weights of .*)?")


@dataclass(frozen=True)
class RunRow:
    """One run of a list."""

    run: str  # the run directory
    state: str
    step: int
    best_accuracy: float | None  # None before the first evaluation
    exit_code: int | None  # None while the run goes on
    age_s: float | None  # seconds since the status was written; None if its time cannot be true
    best_metric: str  # the one that chooses the best step, one of METRICS
    best_value: float | None  # of that metric; a loss is positive
    best_step: int | None
    config: str = ""  # the name of the config or data file that the run began with
    seed: str = ""
    cell: str = ""
    control: float | None = None  # the best value of its n-gram control, once that is finished

    # All values that each key of the config has: one for a run, more for a sweep.
    values: dict[str, tuple[Any, ...]] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the run in what `rnncls runs ls --json` prints."""
        names = [one.name for one in fields(self) if one.name != "values"]
        return {name: getattr(self, name) for name in names}


def describe_run(run_dir: Path, with_config: bool = True) -> RunRow | None:
    """Return the run's row; None if its status is not one that rnncls wrote.

    `with_config`: whether to read the config, too, for the columns and values that come from it.
    """
    status = read_status(run_dir)
    text = config_text(run_dir / CONFIG) if with_config else ""
    values = saved_values(text)

    metric, value = best_of(status)
    try:
        return RunRow(
            run=str(run_dir),
            state=status["state"],
            step=status["step"],
            best_accuracy=status.get("best_accuracy"),
            exit_code=status["exit_code"],
            age_s=age_of(datetime.fromisoformat(status["updated_at"])),
            best_metric=metric,
            best_value=value,
            best_step=status.get("best_step"),
            config=config_name(run_dir, text),
            seed=_text(values.get("seed")),
            cell=_text(values.get("model.cell")),
            control=_value_of_control(run_dir),
            values={key: (one,) for key, one in values.items()},
        )
    except (KeyError, ValueError, TypeError, OverflowError):
        return None


def _value_of_control(run_dir: Path) -> float | None:
    """Return the best value of the n-gram control of a run; None without a finished one."""
    status = read_status(run_dir / CONTROL)
    return best_of(status)[1] if status.get("state") == "finished" else None


def age_of(time: datetime) -> float | None:
    """Return the seconds since then, at least 0; None for a time that cannot be true.

    Clocks differ a little, and one without a battery begins at 1970. Raises: TypeError for a time
    without a time zone.
    """
    seconds = (datetime.now(UTC) - time).total_seconds()
    if time < _EARLIEST or seconds < -_MOST_AHEAD_S:
        return None
    return max(0.0, seconds)


def best_of(status: dict[str, Any]) -> tuple[str, float | None]:
    """Return which metric chose the best step of a status, and its value there.

    Older versions of rnncls wrote neither, but the accuracy of that step.
    """
    metric = status.get("best_metric")
    if metric not in METRICS:
        return "accuracy", status.get("best_accuracy")
    return metric, status.get("best_value")


def config_text(path: Path) -> str:
    """Return the text of a run's config.yaml or of a sweep.yaml; "" if there is none."""
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except (OSError, ValueError):
        return ""


def config_name(run_dir: Path, text: str = "") -> str:
    """Return the name of the config or data file that a run or sweep began with, if it is known.

    A path such as runs/CONFIG/DATE_TIME has it, and otherwise the first line of `text`, that of
    the run's config.yaml or of sweep.yaml; older versions did not write it there.
    """
    run_dir = run_dir.absolute()
    if _DEFAULT_NAME.fullmatch(run_dir.name):
        return run_dir.parent.name

    origin = _ORIGIN.fullmatch(text.partition("\n")[0])
    if origin is None:
        return ""
    return Path(without_packing(Path(origin["path"]).name)).stem


def saved_values(text: str) -> dict[str, Any]:
    """Return every dotted key of a run's config with its value, as its text has it.

    Empty if the text is not a config. Keys that an older version did not know have their defaults,
    except in the section `data`, whose keys depend on the source.
    """
    try:
        return with_defaults(flat(_parse_sections(text)))
    except (ValueError, ConfigError, RecursionError):
        return {}


def with_defaults(values: dict[str, Any]) -> dict[str, Any]:
    """Return the values of a config, with the defaults of the keys that it lacks."""
    return {**_defaults(), **values} if values else {}


def flat(raw: Any) -> dict[str, Any]:
    """Return {"a": {"b": 1}} as {"a.b": 1}; what is not a mapping has no values."""
    if not isinstance(raw, dict):
        return {}

    values: dict[str, Any] = {}
    for name, section in raw.items():
        if isinstance(section, dict):
            values |= {f"{name}.{key}": value for key, value in section.items()}
        else:
            values[str(name)] = section
    return values


@cache
def _defaults() -> dict[str, Any]:
    defaults = flat(Config().model_dump())
    return {key: value for key, value in defaults.items() if not key.startswith("data.")}


def _parse_sections(text: str) -> dict[str, Any]:
    """Return the sections of a config. Raises: ConfigError if the text is not YAML."""
    # To parse a config takes milliseconds, but runs that are listed together have most of their
    # values in common: each key is parsed by itself, and the same text once.
    sections: dict[str, Any] = {}
    for section in re.split(r"^(?=[^\s#])", text, flags=re.MULTILINE):
        heading, _, body = section.partition("\n")
        first, *keys = re.split(r"^(?=  [^\s#-])", body, flags=re.MULTILINE)

        # Also what is indented otherwise than rnncls does it, and a key without a section.
        if first.strip() or not keys:
            sections |= _parse_mapping(section)
            continue

        values: dict[str, Any] = {}
        for key in keys:
            values |= _parse_mapping(key)
        sections |= dict.fromkeys(_parse_mapping(heading), values)
    return sections


@lru_cache(maxsize=4096)
def _parse_mapping(text: str) -> dict[str, Any]:
    value = parse(text, CONFIG).value
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    """Return a value of a config for a column: short, whatever the file holds."""
    return str(value)[:20] if isinstance(value, str | int) else ""
