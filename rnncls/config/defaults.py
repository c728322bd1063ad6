"""The defaults that depend on where the data comes from, and the only home of them.

In these keys null stands for the default of the config's own data source. What suits generated
digits does not suit a user's files: a warm-up of 500 steps, say, is longer than many a run on them.
"""

from typing import TypeVar

WARMUP_PERCENT = 3  # of the steps of a run on files

# A text is counted once the files have been read; until then the config holds null.
BY_SOURCE: dict[str, dict[str, float | str]] = {
    "sum_mod": {
        "model.init_gain": 0.3,
        "optimizer.weight_decay": 0.3,
        "schedule.warmup_steps": 500,
        "train.eval_samples": 2000,
    },
    "files": {
        "model.init_gain": 1.0,
        "optimizer.weight_decay": 0.3,
        "schedule.warmup_steps": f"{WARMUP_PERCENT} %",
        "train.eval_samples": "all",
    },
}

# What the keys of files meant before they existed, where that is not their default: for saved
# configs without them.
FILES_BEFORE = {"split": "hash", "quoting": "standard"}

# The same of keys that both sources have.
TRAIN_BEFORE = {"plots": False}

# The keys that stay null until the files have been read.
COUNTED = tuple(key for key, value in BY_SOURCE["files"].items() if isinstance(value, str))

_Number = TypeVar("_Number", int, float)


def known_numbers(source: str) -> dict[str, float]:
    """Return the defaults of a data source, by key, that need no data."""
    defaults = BY_SOURCE[source].items()
    return {key: value for key, value in defaults if not isinstance(value, str)}


def default_warmup(max_steps: int) -> int:
    """Return the warm-up of a run of `max_steps` steps on files, in steps: the nearest integer."""
    return (WARMUP_PERCENT * max_steps + 50) // 100


def number(value: _Number | None) -> _Number:
    """Return the value of one of these keys, which is a number from the task's beginning on.

    Raises: ValueError for null, which only a section outside a config, or a config whose files have
    not been read, can still have.
    """
    if value is None:
        raise ValueError("a default of the data source that nothing has filled in yet")
    return value
