"""From a YAML file and `section.key=value` overrides to a `Config`, with every problem named at once."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from rnncls.config import strict_yaml
from rnncls.config.messages import _path_of, _Places, _shown, _translate
from rnncls.config.schema import Config
from rnncls.config.strict_yaml import Document, KeyPath
from rnncls.errors import ConfigError, Problem


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file at `path`, apply `overrides` such as `"optimizer.lr=1e-3"`, validate.

    Raises ConfigError with every problem that was found.
    """
    document = strict_yaml.read(Path(path))
    if not isinstance(document.value, dict):
        found = "nothing" if document.value is None else _shown(document.value)
        raise ConfigError(
            Problem(
                "the config is no mapping",
                document.source,
                expected="sections",
                found=found,
                id="C4",
            )
        )
    return _validate(document, overrides, Path(path).parent)


def parse_config(raw: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Config:
    """A `Config` from plain values that rnncls itself saved, e.g. in a checkpoint. Raises ConfigError."""
    return _validate(Document(_tuples(raw), source), overrides, Path())


def dump_config(config: Config) -> str:
    """The resolved config as YAML text that `load_config` reads back to an equal `Config`."""
    return strict_yaml.dump(config.model_dump(mode="json"))


def read_yaml(path: Path) -> Any:
    """What a YAML file of ours holds, as strictly as configs. Raises ConfigError."""
    document = strict_yaml.read(path)
    if document.problems:
        raise ConfigError(*(problem for _, problem in document.problems))
    return document.value


def write_yaml(value: dict[str, Any]) -> str:
    """Text that `read_yaml` reads back."""
    return strict_yaml.dump(value)


def config_schema() -> dict[str, Any]:
    """The JSON Schema of a config file, for editors."""
    schema = Config.model_json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "rnncls config",
    }


def _validate(document: Document, overrides: Sequence[str], folder: Path) -> Config:
    """`folder`: what paths in the document are relative to."""
    places = _Places(document)
    raw, noted = _apply(document, overrides, places)
    if isinstance(data := raw.setdefault("data", {}), dict):
        source = data.setdefault("source", places.source)
        places.source = source if source in ("sum_mod", "files") else places.source
        _resolve_paths(data, folder, places)
    problems = [problem for _, problem in noted]
    spoiled = {path for path, _ in noted}  # their values are no longer what the user wrote
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        problems += [
            _translate(detail, places)
            for detail in error.errors(include_url=False)
            if detail["type"] == "extra_forbidden" or _path_of(detail) not in spoiled
        ]
    if problems:
        raise ConfigError(*problems)
    return config


def _resolve_paths(data: dict[str, Any], folder: Path, places: "_Places") -> None:
    for key in ("train", "val", "test"):
        if isinstance(data.get(key), str) and data[key] and places.source == "files":
            base = Path() if ("data", key) in places.overrides else folder
            data[key] = os.path.abspath(base / data[key])  # noqa: PTH100  # resolve() would follow links


def _apply(
    document: Document, overrides: Sequence[str], places: _Places
) -> tuple[dict[str, Any], list[tuple[KeyPath, Problem]]]:
    """The document's value with the overrides set, and all problems so far. The last override of a key wins."""
    raw = {
        key: dict(inner) if isinstance(inner, dict) else inner
        for key, inner in document.value.items()
    }
    problems = list(document.problems)
    for override in overrides:
        key, equals, text = override.partition("=")
        path: KeyPath = tuple(key.strip().split("."))
        if not equals or not all(path) or len(path) > 2:
            expected = "section.key=value, for example optimizer.lr=1e-3"
            problems.append(
                ((), Problem("malformed override", expected=expected, found=override, id="C17"))
            )
            continue
        places.overrides[path] = override
        try:
            parsed = strict_yaml.parse(text, override)
            found = [problem for _, problem in parsed.problems]
        except ConfigError as error:
            parsed, found = None, list(error.problems)
        problems += [(path, replace(problem, where=places.where(path))) for problem in found]
        if parsed is None:
            continue
        section = raw
        if len(path) == 2:
            if raw.get(str(path[0])) is None:
                raw[str(path[0])] = {}
            section = raw[str(path[0])]
        if isinstance(section, dict):  # if not, validation will say so
            section[str(path[-1])] = parsed.value
    return raw, problems


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that the frozen models hold."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
