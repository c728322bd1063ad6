"""pydantic's errors in our words."""

import difflib
import json
from typing import Any

from pydantic_core import ErrorDetails

from rnncls.config.schema import Config, FilesConfig, flatten
from rnncls.config.strict_yaml import Document, KeyPath, dotted
from rnncls.errors import Problem


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
    id = (
        "C10"
        if kind.startswith(("greater", "less"))
        else "C11"
        if kind == "finite_number"
        else "C9"
    )
    what = f"bad value for {dotted(path)}"
    return Problem(
        what,
        places.where(path),
        expected=_described(schema),
        found=found,
        remedy="".join(close),
        id=id,
    )


def _unknown_key(path: KeyPath, places: _Places) -> Problem:
    section, key = path[:-1], str(path[-1])
    known = list(_schema_at(section, places.source).get("properties", {}))
    close = [dotted((*section, name)) for name in difflib.get_close_matches(key, known, n=1)]
    if not close and section == ("data",) and key in FilesConfig.model_fields:
        remedy = "data.source=files, whose key it is"
        return Problem(
            f'unknown key "{key}"',
            places.where(path),
            expected=f"keys of source {places.source}",
            found=key,
            remedy=remedy,
            id="C5",
        )
    if not close:  # perhaps the right key in the wrong section
        close = [name for name in flatten(Config()) if name.rpartition(".")[2] == key]
    expected = f'a key of section "{dotted(section)}"' if section else "one of " + ", ".join(known)
    remedy = f"did you mean {close[0]}?" if close else ", ".join(known) if section else ""
    return Problem(
        f'unknown key "{key}"',
        places.where(path),
        expected=expected,
        found=key,
        remedy=remedy,
        id="C5",
    )


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
        reference = schema.get("$ref") or schema.get("discriminator", {"mapping": {}})[
            "mapping"
        ].get(source)
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
    bounds = " and ".join(
        f"{sign} {schema[name]:,}" for name, sign in _BOUNDS.items() if name in schema
    )
    kind = {"boolean": "true or false", "string": "text"}.get(
        schema.get("type", ""), schema.get("type", "")
    )
    return f"{kind} {bounds}".strip()


def _shown(value: Any) -> str:
    """A found value with its type, as the user would write it, cut to a readable length."""
    text = json.dumps(value, default=str)
    text = text if len(text) <= 60 else text[:57] + "..."
    kinds = {
        str: "text",
        dict: "a section",
        tuple: "a list",
        int: "integer",
        float: "number",
        bool: "boolean",
    }
    kind = kinds.get(type(value))
    return f"{text} ({kind})" if kind else text
