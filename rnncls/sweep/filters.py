"""`rnncls runs ls --filter KEY=VALUE`: which rows of a list to show."""

import difflib
from collections.abc import Sequence
from typing import Any

from rnncls.config import (
    Config,
    FilesConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    SumModConfig,
    TrainConfig,
)
from rnncls.config.strict_yaml import parse
from rnncls.errors import ConfigError, Problem
from rnncls.rundir.listing import METRICS, RunRow
from rnncls.rundir.status import STATES

# Names of columns, beside the keys of the config.
COLUMNS = ("state", "metric", "config", "cell")
ROW_STATES = (*STATES, "died", "not begun")

_SECTIONS = {
    "data": (SumModConfig, FilesConfig),
    "model": (ModelConfig,),
    "optimizer": (OptimizerConfig,),
    "schedule": (ScheduleConfig,),
    "train": (TrainConfig,),
}

Filter = tuple[str, str]  # a key of COLUMNS or of the config, and the value as it was written


def parse_filters(words: Sequence[str]) -> list[Filter]:
    """Return the filters of the words KEY=VALUE.

    Raises: ConfigError for a word of another form, or a key that no row has, with what is possible.
    """
    filters = []
    for word in words:
        key, equals, text = word.partition("=")
        key = key.strip()
        text = text.strip()
        if not equals or key not in (*COLUMNS, *_config_keys()):
            raise _no_such_key(word, key, text)
        if key == "state":
            _require(word, text, ROW_STATES)
        if key == "metric":
            _require(word, text, METRICS)
        filters.append((key, text))
    return filters


def filter_rows(rows: Sequence[RunRow], filters: Sequence[Filter]) -> list[RunRow]:
    """Return the rows that every filter matches.

    A sweep matches the value of a key if one of its members has it.
    """
    return [row for row in rows if all(_matches(row, *one) for one in filters)]


def _matches(row: RunRow, key: str, text: str) -> bool:
    columns = {"state": row.state, "metric": row.best_metric, "config": row.config}
    if key in columns:
        return columns[key] == text

    values = row.values.get("model.cell" if key == "cell" else key, ())
    try:
        wanted = parse(text, key).value
    except ConfigError:
        wanted = text
    return any(_equal(value, wanted, text) for value in values)


def _equal(value: Any, wanted: Any, text: str) -> bool:
    # true is not 1, although Python says so, and 1e-3 is 0.001. A text may look like a number.
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    return bool(value == wanted) or value == text


def _config_keys() -> list[str]:
    """Return every key that the config of a run can have."""
    keys = [name for name in Config.model_fields if name not in _SECTIONS]
    for section, models in _SECTIONS.items():
        for model in models:
            keys += [f"{section}.{name}" for name in model.model_fields]
    return list(dict.fromkeys(keys))


def _no_such_key(word: str, key: str, text: str) -> ConfigError:
    known = [*COLUMNS, *_config_keys()]

    # Either the section is missing, or there is a typo.
    remedies = [name for name in known if name.rpartition(".")[2] == key]
    remedies = remedies or difflib.get_close_matches(key, known, n=1)

    remedy = "rnncls runs ls --filter state=finished"
    if remedies and text:
        remedy = "did you mean " + " or ".join(f"{name}={text}" for name in remedies) + "?"
    return ConfigError(
        Problem(
            "bad filter",
            "--filter",
            expected=f"KEY=VALUE, with {', '.join(COLUMNS)} or a key of the config",
            found=word,
            remedy=remedy,
            id="C17",
        )
    )


def _require(word: str, text: str, possible: Sequence[str]) -> None:
    """Raise ConfigError unless the text is one of the possible values."""
    if text not in possible:
        expected = ", ".join(possible)
        raise ConfigError(
            Problem("bad filter", "--filter", expected=expected, found=word, id="C17")
        )
