"""Every key of a config in words: its type, range, default and meaning, from the schema.

`rnncls config keys` prints them, and docs/config.md is written from them.
"""

import difflib
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rnncls.config.defaults import BY_SOURCE
from rnncls.config.schema import (
    Config,
    FilesConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    Section,
    SumModConfig,
    TrainConfig,
)
from rnncls.errors import ConfigError, Problem

# Each with the data source that it is for; "" for both.
SECTIONS: list[tuple[str, str, type[Section]]] = [
    ("data", "sum_mod", SumModConfig),
    ("data", "files", FilesConfig),
    ("model", "", ModelConfig),
    ("optimizer", "", OptimizerConfig),
    ("schedule", "", ScheduleConfig),
    ("train", "", TrainConfig),
]

WIDTH = 120  # of a line of `rnncls config keys`

# An upper bound from here on only keeps typos from filling the memory: a list leaves it out.
GUARD = 2**20

# The types of JSON Schema that a user would not recognise; the others keep their names.
_TYPES = {"boolean": "true or false", "string": "text", "array": "list"}


@dataclass(frozen=True)
class Key:
    """One key of a config, in words."""

    name: str  # "optimizer.lr"
    source: str  # the data source whose section has the key; "" for both
    type: str  # "number or null"
    choices: tuple[str, ...]  # the only values, if they are few words
    range: str  # "at least 1"; empty if choices or the type say all
    short: str  # type and range in a few words: "integer, at least 1, or null"
    default: Any  # {"sum_mod": ..., "files": ...} where the data source decides; None if required
    required: bool
    meaning: str

    @property
    def values(self) -> str:
        """Type and whole range, or the choices."""
        if self.choices:
            return ", ".join(self.choices)
        return f"{self.type}, {self.range}" if self.range else self.type

    @property
    def by_source(self) -> bool:
        """Whether the default depends on the data source."""
        return isinstance(self.default, dict)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the key in what `rnncls config keys --json` prints."""
        entry = asdict(self)
        del entry["short"]
        return entry


def all_keys() -> list[Key]:
    """Return every key, in the order of the schema; those of `data` for both sources."""
    keys = []
    for section, source, model in SECTIONS:
        keys += section_keys(section, source, model)
    return keys + top_level_keys()


def section_keys(section: str, source: str, model: type[Section]) -> list[Key]:
    """Return the keys of one section. `source`: the only data source that has it, or ""."""
    schema = model.model_json_schema()
    required = schema.get("required", [])
    fields = schema["properties"].items()
    return [_key(f"{section}.{name}", source, field, name in required) for name, field in fields]


def top_level_keys() -> list[Key]:
    """Return the keys that stand in no section: seed and device."""
    sections = {section for section, _, _ in SECTIONS}
    fields = Config.model_json_schema()["properties"].items()
    return [_key(name, "", field, False) for name, field in fields if name not in sections]


def find_keys(word: str) -> list[Key]:
    """Return the keys that a word means: a whole key, a section, or the last part of keys.

    Raises: ConfigError if there is none, with what is similar.
    """
    keys = all_keys()
    found = [key for key in keys if word in (key.name, *key.name.split("."))]
    if found:
        return found

    names = {part for key in keys for part in (key.name, *key.name.split("."))}
    close = difflib.get_close_matches(word, sorted(names), n=3)
    raise ConfigError(
        Problem(
            f'unknown key "{word}"',
            expected="a key such as optimizer.lr, its last part, or a section",
            found=word,
            remedy=f"did you mean {' or '.join(close)}?" if close else "rnncls config keys",
            id="C5",
        )
    )


def keys_as_table(keys: Sequence[Key]) -> str:
    """Return one line for each key: name, type and range, default, what it is for."""
    rows = [("key", "values", "default", "meaning")]
    for key in keys:
        # The source is part of the name, so that a line says everything on its own.
        name = f"{key.name} ({key.source})" if key.source else key.name
        rows.append((name, key.short, default_in_words(key), _first_sentence(key.meaning)))

    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = []
    for row in rows:
        start = "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=False))
        rest = textwrap.shorten(row[3], WIDTH - len(start) - 2, placeholder=" ...")
        lines.append(f"{start}  {rest}")
    return "\n".join(lines)


def keys_in_full(keys: Sequence[Key]) -> str:
    """Return a block for each key, with its whole meaning."""
    blocks = []
    for key in keys:
        head = key.name
        if key.source:
            head += f"   with data.source: {key.source}"
        default = default_in_words(key)
        if key.by_source:
            default = "; ".join(f"{value} for {source}" for source, value in key.default.items())
        details = {"values": key.values, "default": default, "meaning": key.meaning}

        lines = [head]
        for name, text in details.items():
            start = f"  {name + ':':<9}"
            lines.append(textwrap.fill(f"{start} {text}", 100, subsequent_indent=" " * 12))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def default_in_words(key: Key) -> str:
    """Return the default of a key: "128", "required", or "500, files: 3 %"."""
    if key.required:
        return "required"
    if not key.by_source:
        return _default_text(key.default)
    return f"{key.default['sum_mod']}, files: {key.default['files']}"


def _default_text(default: Any) -> str:
    return default if isinstance(default, str) else json.dumps(default)


def _key(name: str, source: str, field: dict[str, Any], required: bool) -> Key:
    default = field.get("default")
    if name in BY_SOURCE["sum_mod"]:
        default = {each: defaults[name] for each, defaults in BY_SOURCE.items()}

    return Key(
        name=name,
        source=source,
        type=_type_of(field),
        choices=_choices_of(field),
        range=_range_of(field),
        short=_in_short(field),
        default=default,
        required=required,
        meaning=" ".join(field["description"].split()),
    )


def _type_of(field: dict[str, Any]) -> str:
    """Return the type of a field in words, such as "integer or null"."""
    names = [alternative.get("type", "string") for alternative in field.get("anyOf", [field])]
    return " or ".join(_TYPES.get(name, name) for name in names)


def _choices_of(field: dict[str, Any]) -> tuple[str, ...]:
    if "const" in field:
        return (str(field["const"]),)
    return tuple(field.get("enum", ()))


def _in_short(field: dict[str, Any]) -> str:
    """Return type and range in one column of a list: "integer, at least 1, or null"."""
    if choices := _choices_of(field):
        return ", ".join(choices)

    text = _range_of(field, GUARD)
    if "prefixItems" not in field:
        kind = _type_of(field).removesuffix(" or null")
        text = f"{kind}, {text}" if text else kind
    return f"{text}, or null" if _is_nullable(field) else text


def _is_nullable(field: dict[str, Any]) -> bool:
    return any(alternative.get("type") == "null" for alternative in field.get("anyOf", []))


def _range_of(field: dict[str, Any], guard: float = math.inf) -> str:
    """Return the range of a field in words; "" if its type or its choices say all.

    Upper bounds from `guard` on are left out.
    """
    if "anyOf" in field:
        ranges = [_range_of(alternative, guard) for alternative in field["anyOf"]]
        return ", ".join(text for text in ranges if text)
    if "prefixItems" in field:
        items = [_range_of(item, guard) for item in field["prefixItems"]]
        return f"{len(items)} numbers, each {items[0]}"
    # No pattern is for people; its examples are.
    if "pattern" in field:
        return "such as " + ", ".join(field["examples"])
    return _bounds_of(field, guard)


def _bounds_of(field: dict[str, Any], guard: float) -> str:
    """Return the bounds of a number or of the length of a text, in words."""
    least = field.get("minimum")
    most = field.get("maximum", math.inf)
    if least is not None and most < guard:
        return f"{least:,} to {most:,}"

    bounds = []
    if "exclusiveMinimum" in field:
        bounds.append(f"above {field['exclusiveMinimum']:,}")
    if least is not None:
        bounds.append(f"at least {least:,}")
    if field.get("exclusiveMaximum", math.inf) < guard:
        bounds.append(f"below {field['exclusiveMaximum']:,}")
    if most < guard:
        bounds.append(f"at most {most:,}")
    if guard == math.inf and "maxLength" in field:
        bounds.append(f"at most {field['maxLength']:,} characters")
    return ", ".join(bounds)


def _first_sentence(text: str) -> str:
    first, dot, _ = text.partition(". ")
    return first + dot.strip()
