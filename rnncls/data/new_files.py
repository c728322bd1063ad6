"""How a finished run reads a file that it was not trained on: for `eval --data` and `predict`.

There, no key of the config can be set: the model was trained with those that it has. But a new file
need not look as the training file did, and options say in what it differs.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

from rnncls.config import READING_KEYS, FilesConfig, parse_saved
from rnncls.errors import ConfigError, DataError, Problem, RnnclsError

# Those that have an option of their own.
_OPTIONS = {"sequence_field": "--sequence-field", "label_field": "--label-field", "bad": "--bad"}

# A key in a remedy, with its value if it has one, which may stand in quotes.
_KEY = re.compile(r"""\bdata\.(\w+)(?:=("[^"]*"|'[^']*'|[^\s,;]+))?""")

# Where a problem of an override is said to be.
_OVERRIDE = re.compile(r"override data\.(\w+)=(.*?)(?:, data\.\w+)?$", re.DOTALL)

_TABLE = re.compile(r"\.(csv|tsv|tab)(\.\w+)?$", re.IGNORECASE)

_Error = TypeVar("_Error", bound=RnnclsError)


def overrides_of(
    sequence_fields: Sequence[str] | None,
    label_field: str | None,
    read: Iterable[str] | None,
    bad: str = "error",
) -> list[str]:
    """Return the options about a new file as overrides of a config.

    `read` are those of `--read`: KEY=VALUE. `bad` is that of `--bad`: error or skip.

    Raises: ConfigError for a key that says something else than how a file is read.
    """
    overrides = []
    for word in read or []:
        key, equals, value = word.removeprefix("data.").partition("=")
        if key not in READING_KEYS or not equals:
            raise ConfigError(
                Problem(
                    "bad value for --read",
                    expected=f"KEY=VALUE with one of the keys {', '.join(READING_KEYS)}",
                    found=word,
                    remedy=_OPTIONS.get(key, ""),
                    id="C17",
                )
            )
        overrides.append(f"data.{key}={value}")

    # As JSON, which is YAML: a name may have any character.
    if sequence_fields:
        names = sequence_fields[0] if len(sequence_fields) == 1 else [*sequence_fields]
        overrides.append(f"data.sequence_field={json.dumps(names, ensure_ascii=False)}")
    if label_field:
        overrides.append(f"data.label_field={json.dumps(label_field, ensure_ascii=False)}")
    if bad == "skip":
        overrides.append("data.bad=skip")
    return overrides


def as_new_file(
    data: FilesConfig, paths: str | Path | Sequence[str], overrides: Sequence[str] = ()
) -> FilesConfig:
    """Return how a file, or several, are read by a run with the config `data`.

    Its tokens, labels and header are taken for those of training. Format and separator are looked
    for anew, and so are quotes, unless the file is of the same kind as those of training.

    Raises: ConfigError for overrides that are none.
    """
    kind = _kind(paths)
    quoting = data.quoting if kind and kind == _kind_of_training(data) else "auto"
    found = {"format": "auto", "separator": "auto", "quoting": quoting}
    wanted = data.model_copy(update=found)
    if not overrides:
        return wanted

    # Columns without a header are called 1, 2, 3: one of another name has a header above it.
    names = [word for word in overrides if word.startswith("data.sequence_field=")]
    if names and not data.header and not re.search(r'="\d+"$', names[0]):
        overrides = ["data.header=true", *overrides]

    # That the run's own files have a header says little: what looks like data is doubted.
    values = wanted.model_dump(mode="json", exclude={"header"} if data.header else set())
    sections = {"data": values}
    try:
        parsed = parse_saved(sections, "the run's config", _last_of_each(overrides)).data
    except ConfigError as error:
        raise _of_options(with_options(error, "another value")) from None
    return cast(FilesConfig, parsed)  # no override of these keys changes the source


def _of_options(error: ConfigError) -> ConfigError:
    """Return the error of an override in the words of the options, which is what was written."""
    problems = []
    for problem in error.problems:
        match = _OVERRIDE.match(problem.where)
        if match is not None:
            key, value = match.groups()
            where = f"{_OPTIONS[key]} {value}" if key in _OPTIONS else f"--read {key}={value}"
            what = problem.what.replace(f"data.{key}", key)
            problem = replace(problem, what=what, where=where)
        problems.append(problem)
    return ConfigError(*problems)


def _last_of_each(overrides: Sequence[str]) -> list[str]:
    """Return the overrides with only the last one for each key."""
    by_key = {word.partition("=")[0]: word for word in overrides}
    return list(by_key.values())


def _kind_of_training(data: FilesConfig) -> str:
    if data.format != "auto":
        return data.format
    return _kind(data.train)


def _kind(paths: str | Path | Sequence[str]) -> str:
    """Return csv or tsv, by the end of the first file's name; "" for any other name."""
    first = paths if isinstance(paths, str | Path) else paths[0]
    match = _TABLE.search(str(first))
    if match is None:
        return ""
    return "csv" if match[1].lower() == "csv" else "tsv"


def with_options(error: _Error, otherwise: str) -> _Error:
    """Return the error with options in its remedies in place of the keys of a config.

    `otherwise` is the remedy in place of one with a key that no option stands for.
    """
    # Empty sequences are bad rows there, which may be skipped.
    known = {*READING_KEYS, *_OPTIONS, "empty"}

    problems = []
    for problem in error.problems:
        keys = [match[1] for match in _KEY.finditer(problem.remedy)]
        if any(key not in known for key in keys):
            problem = replace(problem, remedy=otherwise)
        elif keys:
            remedy = _KEY.sub(lambda match: _option(match[1], match[2]), problem.remedy)
            problem = replace(problem, remedy=remedy)
        problems.append(problem)
    return type(error)(*problems)


def _option(key: str, value: str | None) -> str:
    """Return the option for a key in a remedy, with its value if it has one."""
    if key == "empty":
        return f"{_OPTIONS['bad']} skip"
    if key in _OPTIONS:
        return f"{_OPTIONS[key]} {'NAME' if value in (None, '...') else value}"
    return f"--read {key}={value or '...'}"


def without_keys(error: DataError, remedy: str) -> DataError:
    """Return the error with `remedy` in place of those that name a key of the config.

    For a file that is read as a finished run read its own: there, no key can be changed.
    """
    problems = []
    for problem in error.problems:
        if "data." in problem.remedy:
            problem = replace(problem, remedy=remedy)
        problems.append(problem)
    return DataError(*problems)
