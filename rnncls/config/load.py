"""Reads a config: a YAML file and `section.key=value` overrides, validated as a `Config`.

Every problem is named at once: those of the text, of the overrides and of the values.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rnncls.config import strict_yaml
from rnncls.config.messages import SOURCES, Places, describe_value, path_of, problem_of
from rnncls.config.schema import Config
from rnncls.config.strict_yaml import Document, KeyPath
from rnncls.errors import ConfigError, Problem

LocatedProblem = tuple[KeyPath, Problem]  # a problem and the key that has it, () for none


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file at `path`, apply `overrides` such as `"optimizer.lr=1e-3"`, and validate.

    Raises: ConfigError with every problem of the file and the overrides.
    """
    document = strict_yaml.read(Path(path))

    # An empty file is more likely the wrong file than a wish for all defaults.
    if not isinstance(document.value, dict):
        found = "nothing" if document.value is None else describe_value(document.value)
        raise ConfigError(
            Problem(
                "the config must be a mapping",
                document.source,
                expected="sections",
                found=found,
                id="C4",
            )
        )
    return _validate(document, overrides, Path(path).parent)


def parse_config(raw: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """Return the `Config` of plain values that rnncls itself saved, such as those of a checkpoint.

    `source` is what messages call the place of the values. Raises: ConfigError.
    """
    # Saved paths are absolute, so that the folder they would be relative to does not matter.
    return _validate(Document(_tuples(raw), source), overrides, Path())


def dump_config(config: Config) -> str:
    """Return the resolved config as YAML text that `load_config` reads back as an equal one."""
    return strict_yaml.dump(config.model_dump(mode="json"))


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file that rnncls wrote, read as strictly as a config.

    Raises: ConfigError.
    """
    document = strict_yaml.read(path)
    if document.problems:
        raise ConfigError(*(problem for _, problem in document.problems))
    return document.value


def write_yaml(value: dict[str, Any]) -> str:
    """Return YAML text that `read_yaml` reads back as `value`."""
    return strict_yaml.dump(value)


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema of config files, for editors."""
    schema = Config.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "rnncls config",
    }


def _validate(document: Document, overrides: Sequence[str], folder: Path) -> Config:
    """Return the config of a document. Paths in the document are relative to `folder`."""
    places = Places(document)
    raw, located = _apply_overrides(document, overrides, places)

    # The source is filled in before validation: it decides which keys the section has.
    data = raw.setdefault("data", {})
    if isinstance(data, dict):
        source = data.setdefault("source", places.source)
        if source in SOURCES:
            places.source = source
        _resolve_paths(data, folder, places)

    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(*_all_problems(error, located, places)) from None

    if located:
        raise ConfigError(*(problem for _, problem in located))
    return config


def _all_problems(
    error: ValidationError, located: list[LocatedProblem], places: Places
) -> list[Problem]:
    """Return the problems found before validation, then those that validation has found."""
    # A key with a problem holds a value that the user did not write: pydantic's verdict on that
    # value would only confuse. That the key does not exist is still worth saying.
    spoiled = {path for path, _ in located}
    problems = [problem for _, problem in located]
    for detail in error.errors(include_url=False):
        if path_of(detail) in spoiled and detail["type"] != "extra_forbidden":
            continue
        problems.append(problem_of(detail, places))
    return problems


def _resolve_paths(data: dict[str, Any], folder: Path, places: Places) -> None:
    """Make the data section's paths absolute. Those of overrides are relative to the process."""
    if places.source != "files":
        return

    for key in ("train", "val", "test"):
        path = data.get(key)
        if isinstance(path, str) and path:
            base = Path() if ("data", key) in places.overrides else folder

            # Not resolve(), which follows links: the config keeps the name that the user gave.
            data[key] = os.path.abspath(base / path)  # noqa: PTH100


def _apply_overrides(
    document: Document, overrides: Sequence[str], places: Places
) -> tuple[dict[str, Any], list[LocatedProblem]]:
    """Return the document's value with the overrides set, and all problems so far.

    The last override of a key wins. Notes in `places` which keys were overridden.
    """
    # Two levels of copies, because overrides go no deeper: the document stays as it was read, and
    # tells later which sections the file has.
    raw = dict(document.value)
    for name, section in raw.items():
        if isinstance(section, dict):
            raw[name] = dict(section)

    problems = list(document.problems)
    for override in overrides:
        # At the first "=": a value may have more of them.
        key, equals, text = override.partition("=")
        path: KeyPath = tuple(key.strip().split("."))
        if not equals or not all(path) or len(path) > 2:
            problems.append(((), _malformed(override)))
            continue

        # Noted before the value is parsed, so that a problem with it names the override.
        places.overrides[path] = override
        try:
            # The value is YAML, read as strictly as in the file.
            parsed = strict_yaml.parse(text, override)
        except ConfigError as error:
            problems += _located(error.problems, path, places)
            continue

        problems += _located((problem for _, problem in parsed.problems), path, places)
        _set(raw, path, parsed.value)
    return raw, problems


def _malformed(override: str) -> Problem:
    expected = "section.key=value, for example optimizer.lr=1e-3"
    return Problem("malformed override", expected=expected, found=override, id="C17")


def _located(problems: Iterable[Problem], path: KeyPath, places: Places) -> list[LocatedProblem]:
    """Return the problems of an override's value as problems of the key at `path`."""
    where = places.where(path)
    return [(path, replace(problem, where=where)) for problem in problems]


def _set(raw: dict[str, Any], path: KeyPath, value: Any) -> None:
    """Set the key at `path`, of one or two parts; its section is created if it is missing."""
    section: Any = raw
    if len(path) == 2:
        name = str(path[0])
        # Also where the file has the section's name and nothing behind it.
        if raw.get(name) is None:
            raw[name] = {}
        section = raw[name]

    # A section that is not a mapping is left as it is, for validation to report.
    if isinstance(section, dict):
        section[str(path[-1])] = value


def _tuples(value: Any) -> Any:
    """Return the value with JSON's lists as the tuples that the frozen models hold."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    return value
