"""From a YAML file and `section.key=value` overrides to a `Config`, with every problem named at once."""

import difflib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rnncls.config import strict_yaml
from rnncls.config.schema import Config, FilesConfig
from rnncls.config.strict_yaml import Document, KeyPath, dotted
from rnncls.errors import ConfigError, Problem


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the YAML file at `path`, apply `overrides` such as `"optimizer.lr=1e-3"`, validate.

    Raises ConfigError with every problem that was found.
    """
    document = strict_yaml.read(Path(path))
    if not isinstance(document.value, dict):
        found = "nothing" if document.value is None else _shown(document.value)
        raise ConfigError(Problem("the config is no mapping", document.source, "sections", found, id="C4"))
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
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "rnncls config"}


def flatten(config: Config) -> dict[str, Any]:
    """`{"data.modulus": 10, ...}`: every key with its value, dotted."""
    flat: dict[str, Any] = {}
    for key, value in config.model_dump(mode="json").items():
        if isinstance(value, dict):
            flat |= {f"{key}.{name}": inner for name, inner in value.items()}
        else:
            flat[key] = value
    return flat


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


class _Places:
    """Where each key was set: in the file, or by an override, which wins."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.overrides: dict[KeyPath, str] = {}
        self.source = "sum_mod"  # which keys the data section has

    def where(self, path: KeyPath) -> str:
        for end in range(len(path), 0, -1):
            if path[:end] in self.overrides:
                return f"override {self.overrides[path[:end]]}, {dotted(path)}"
        for key, override in self.overrides.items():
            if key[: len(path)] == path and str(path[0]) not in self.document.value:
                return f"override {override}, {dotted(path)}"
        place = self.document.where(path)
        return f"{place}, {dotted(path)}" if path else place


def _apply(
    document: Document, overrides: Sequence[str], places: _Places
) -> tuple[dict[str, Any], list[tuple[KeyPath, Problem]]]:
    """The document's value with the overrides set, and all problems so far. The last override of a key wins."""
    raw = {key: dict(inner) if isinstance(inner, dict) else inner for key, inner in document.value.items()}
    problems = list(document.problems)
    for override in overrides:
        key, equals, text = override.partition("=")
        path: KeyPath = tuple(key.strip().split("."))
        if not equals or not all(path) or len(path) > 2:
            expected = "section.key=value, for example optimizer.lr=1e-3"
            problems.append(((), Problem("malformed override", expected=expected, found=override, id="C17")))
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


def _translate(detail: ErrorDetails, places: _Places) -> Problem:
    """One pydantic error in our own words."""
    path = _path_of(detail)
    kind, context = detail["type"], detail.get("ctx", {})
    if kind.startswith("union_tag"):
        path = (*path, "source")
    if kind == "clash":
        path = (*path, *context["key"].split("."))
        details = {name: context[name] for name in ("expected", "found", "remedy")}
        return Problem(context["what"], places.where(path), **details, id="C15")
    if kind == "extra_forbidden":
        return _unknown_key(path, places)
    schema = _schema_at(path, places.source)
    value = detail["input"].get("source") if kind.startswith("union_tag") else detail["input"]
    found = "nothing" if kind == "missing" else _shown(value)
    close = difflib.get_close_matches(str(value), schema.get("enum", []), n=1, cutoff=0.5)
    id = "C10" if kind.startswith(("greater", "less")) else "C11" if kind == "finite_number" else "C9"
    what = f"bad value for {dotted(path)}"
    return Problem(what, places.where(path), _described(schema), found, "".join(close), id=id)


def _unknown_key(path: KeyPath, places: _Places) -> Problem:
    section, key = path[:-1], str(path[-1])
    known = list(_schema_at(section, places.source).get("properties", {}))
    close = [dotted((*section, name)) for name in difflib.get_close_matches(key, known, n=1)]
    if not close and section == ("data",) and key in FilesConfig.model_fields:
        remedy = "data.source=files, whose key it is"
        return Problem(f'unknown key "{key}"', places.where(path), f"keys of source {places.source}", key, remedy, "C5")
    if not close:  # perhaps the right key in the wrong section
        close = [name for name in flatten(Config()) if name.rpartition(".")[2] == key]
    expected = f'a key of section "{dotted(section)}"' if section else "one of " + ", ".join(known)
    remedy = f"did you mean {close[0]}?" if close else ", ".join(known) if section else ""
    return Problem(f'unknown key "{key}"', places.where(path), expected, key, remedy, id="C5")


def _path_of(detail: ErrorDetails) -> KeyPath:
    """Where the error is, without the `source` that pydantic puts behind `data`."""
    first, *rest = detail["loc"] or ("",)
    if first == "data" and rest and rest[0] in ("sum_mod", "files"):
        rest = rest[1:]
    return (first, *rest) if detail["loc"] else ()


def _schema_at(path: KeyPath, source: str) -> dict[str, Any]:
    """The JSON Schema of the key at `path`, with data of this source; empty for one that does not exist."""
    root = Config.model_json_schema()
    schema = root
    for part in path:
        if isinstance(part, int):
            schema = (schema.get("prefixItems") or [{}])[0]
        else:
            schema = schema.get("properties", {}).get(part, {})
        if path == ("data", "source") and part == "source":
            return {"enum": list(root["properties"]["data"]["discriminator"]["mapping"])}
        reference = schema.get("$ref") or schema.get("discriminator", {"mapping": {}})["mapping"].get(source)
        if reference:
            schema = root["$defs"][reference.rpartition("/")[2]]
    return schema


_BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def _described(schema: dict[str, Any]) -> str:
    """A schema in words: `integer >= 1 and <= 1048576, or null`."""
    if "anyOf" in schema:
        return ", or ".join(_described(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(schema["enum"])
    if "prefixItems" in schema:
        return "a list: [" + ", ".join(_described(item) for item in schema["prefixItems"]) + "]"
    if "pattern" in schema:
        return f"text that matches {schema['pattern']}"
    if "properties" in schema:
        return "a section with the keys " + ", ".join(schema["properties"])
    bounds = " and ".join(f"{sign} {schema[name]:,}" for name, sign in _BOUNDS.items() if name in schema)
    kind = {"boolean": "true or false", "string": "text"}.get(schema.get("type", ""), schema.get("type", ""))
    return f"{kind} {bounds}".strip()


def _shown(value: Any) -> str:
    """A found value with its type, as the user would write it, cut to a readable length."""
    text = json.dumps(value, default=str)
    text = text if len(text) <= 60 else text[:57] + "..."
    kinds = {str: "text", dict: "a section", tuple: "a list", int: "integer", float: "number", bool: "boolean"}
    kind = kinds.get(type(value))
    return f"{text} ({kind})" if kind else text


def _tuples(value: Any) -> Any:
    """JSON's lists as the tuples that the frozen models hold."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
