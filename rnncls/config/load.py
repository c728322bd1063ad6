"""Reads a config: a YAML file or a dict, and overrides, validated as a `Config`.

Every problem is named at once: those of the text, of the overrides and of the values.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rnncls.config import strict_yaml
from rnncls.config.defaults import FILES_BEFORE, TRAIN_BEFORE
from rnncls.config.messages import (
    SOURCES,
    Places,
    counted,
    describe_value,
    path_of,
    problem_of,
    told_once,
)
from rnncls.config.schema import Config
from rnncls.config.strict_yaml import Document, KeyPath, is_text
from rnncls.errors import MOST_PROBLEMS_SHOWN, ConfigError, Problem

LocatedProblem = tuple[KeyPath, Problem]  # a problem and the key that has it, () for none


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Read a config and apply `overrides`, with all checks of the command line.

    `source`: the path of a YAML file, or the sections as a dict: `{"data": {"modulus": 7}}`.
    `overrides`: texts such as `"optimizer.lr=1e-3"`, or a dict: `{"optimizer.lr": 1e-3}`.

    Relative paths of data files are relative to the YAML file that they stand in; those of a dict
    and of overrides to the current folder.

    Raises: ConfigError with every problem of the config and the overrides, each with its place:
    file, line and column, `config["optimizer"]["lr"]`, or the override.
    """
    if isinstance(source, Mapping):
        return _validate(_document_of(source), overrides, Path())

    document = strict_yaml.read(Path(source))
    if _is_of_a_run(Path(source)) and isinstance(document.value, dict):
        document = replace(document, value=_as_it_was(document.value))

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
    return _validate(document, overrides, Path(source).parent)


def _is_of_a_run(path: Path) -> bool:
    """Return whether a config file is the one that a run saved in its directory."""
    return path.name == "config.yaml" and (path.parent / "checkpoints").is_dir()


def parse_config(
    raw: dict[str, Any], source: str, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Return the `Config` of plain values that rnncls itself saved, such as those of a checkpoint.

    `source` is what messages call the place of the values. Raises: ConfigError.
    """
    # Saved paths are absolute, so that the folder they would be relative to does not matter.
    return _validate(Document(_plain(raw), source), overrides, Path())


def parse_saved(
    raw: dict[str, Any], source: str, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Return the `Config` of what rnncls saved, perhaps before some of today's keys existed.

    What is not there means what it meant then. Raises: ConfigError.
    """
    return parse_config(_as_it_was(raw), source, overrides)


def _as_it_was(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the sections of a saved config, with the values that missing keys had."""
    raw = dict(raw)
    data = raw.get("data")
    if isinstance(data, dict) and data.get("source") == "files":
        raw["data"] = {**FILES_BEFORE, **data}
    train = raw.get("train")
    if isinstance(train, dict):
        raw["train"] = {**TRAIN_BEFORE, **train}
    return raw


def dump_config(config: Config) -> str:
    """Return the resolved config as YAML text that `load_config` reads back as an equal one."""
    return strict_yaml.dump(config.model_dump(mode="json"))


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file that rnncls wrote, read as strictly as a config.

    Raises: ConfigError.
    """
    document = strict_yaml.read(path, pipes=False)
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


class _Values(Document):
    """A dict of the user's own, whose places are named as Python names them."""

    def where(self, path: KeyPath) -> str:
        return self.source + "".join(f"[{json.dumps(part)}]" for part in path)


def _document_of(sections: Mapping[str, Any]) -> Document:
    """Return a dict as a document. Raises: ConfigError for a key that could not stand in YAML."""
    document = _Values(_plain(sections), "config")
    for key in document.value:
        # What an override is called, where a section is expected.
        if isinstance(key, str) and "." in key:
            section, _, name = key.partition(".")
            raise ConfigError(
                Problem(
                    f'a dotted key in a config: "{key}"',
                    document.where((key,)),
                    expected=f'{{"{section}": {{"{name}": ...}}}}',
                    found=key,
                    remedy="the second argument of load_config, for overrides with dotted keys",
                    id="C5",
                )
            )
    _require_words(document.value, (), document)
    return document


def _require_words(value: Any, path: KeyPath, document: Document) -> None:
    """Raise ConfigError for a key that is not text, at any depth."""
    if not isinstance(value, dict):
        return
    for key, inner in value.items():
        if not isinstance(key, str) or not is_text(key):
            what = f"a key must be a word: {key!r}"
            raise ConfigError(Problem(what, document.where(path), expected="a word", id="C4"))
        _require_words(inner, (*path, key), document)


def _validate(
    document: Document, overrides: Sequence[str] | Mapping[str, Any], folder: Path
) -> Config:
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
    _resolve_vectors(raw.get("model"), folder, places)

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
    for detail in told_once(error.errors(include_url=False)):
        if path_of(detail) in spoiled and detail["type"] != "extra_forbidden":
            continue
        is_shown = len(problems) < MOST_PROBLEMS_SHOWN
        problems.append(problem_of(detail, places) if is_shown else counted(detail))
    return problems


def _resolve_paths(data: dict[str, Any], folder: Path, places: Places) -> None:
    """Make the data section's paths absolute. Those of overrides are relative to the process."""
    if places.source != "files":
        return

    for key in ("train", "val", "test"):
        if key not in data:
            continue
        base = Path() if ("data", key) in places.overrides else folder
        paths = data.get(key)
        if isinstance(paths, list | tuple):
            data[key] = tuple(_absolute(base, path) for path in paths)
        else:
            data[key] = _absolute(base, paths)


def _resolve_vectors(model: Any, folder: Path, places: Places) -> None:
    """Make the path of word vectors absolute, as those of the data section."""
    if isinstance(model, dict) and "embeddings" in model:
        base = Path() if ("model", "embeddings") in places.overrides else folder
        model["embeddings"] = _absolute(base, model["embeddings"])


def _absolute(folder: Path, path: Any) -> Any:
    """Return a path in `folder` as an absolute one. What is no path stays as it is."""
    if not isinstance(path, str) or not path:
        return path
    # Not resolve(), which follows links: the config keeps the name that the user gave.
    return os.path.abspath(folder / path)  # noqa: PTH100


def _apply_overrides(
    document: Document, overrides: Sequence[str] | Mapping[str, Any], places: Places
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
    if isinstance(overrides, Mapping):
        problems += _set_values(raw, overrides, places)
        return raw, problems

    # A text is a sequence too, of letters.
    if isinstance(overrides, str):
        overrides = [overrides]
    for override in overrides:
        # At the first "=": a value may have more of them.
        key, equals, text = override.partition("=")
        path = _path_of(key)
        if not equals or not path:
            problems.append(((), _malformed(override)))
            continue

        # Separators of columns, which YAML takes for the beginning of something else.
        if text.strip() in (",", "|"):
            text = json.dumps(text.strip())

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


def _set_values(
    raw: dict[str, Any], overrides: Mapping[str, Any], places: Places
) -> list[LocatedProblem]:
    """Set the overrides of a dict, whose values are values already. Returns the problems."""
    problems: list[LocatedProblem] = []
    for key, value in overrides.items():
        path = _path_of(str(key))
        override = f"{key}={json.dumps(value, default=str)}"
        if not path:
            problems.append(((), _malformed(override)))
            continue
        places.overrides[path] = override
        _set(raw, path, _plain(value))
    return problems


def _path_of(key: str) -> KeyPath:
    """Return the parts of an override's key, one or two; () if it cannot be a key."""
    parts = tuple(key.strip().split("."))
    return parts if all(parts) and len(parts) <= 2 and is_text(key) else ()


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


def _plain(value: Any) -> Any:
    """Return the value with the tuples that the frozen models hold for lists, and text for paths.

    Integers of other libraries, such as those of numpy.arange, become Python's. What was given is
    copied and stays as it is.
    """
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item) for item in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return value
