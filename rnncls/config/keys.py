"""Every key of a config in words: its type, range, default and meaning, from the schema.

`rnncls config keys` prints them, and docs/config.md is written from them.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rnncls.config.defaults import BY_SOURCE
from rnncls.config.names import is_other_name, meant_keys, normal, nothing_for
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
from rnncls.config.words import GUARD, choices_of, in_words, range_of, type_of
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


# In columns; less says nothing about a key.
LEAST_ROOM = 20


@dataclass(frozen=True)
class Key:
    """One key of a config, in words."""

    name: str  # "optimizer.lr"
    source: str  # the data source whose section has the key; "" for both
    type: str  # "number or null"
    choices: tuple[str, ...]  # the only values, if they are few words
    range: str  # "at least 1"; empty if choices or the type say all
    values: str  # choices, or type and range: "integer, 1 to 1,048,576, or null"
    short: str  # the same in few words: "integer, at least 1, or null"
    default: Any  # {"sum_mod": ..., "files": ...} where the data source decides; None if required
    required: bool
    meaning: str

    @property
    def by_source(self) -> bool:
        """Whether the default depends on the data source."""
        return isinstance(self.default, dict)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the key in what `rnncls config keys --json` prints."""
        entry = asdict(self)
        # For people; a program has type, choices and range.
        del entry["values"], entry["short"]
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
    """Return the keys that a word means: a whole key, a section, the last part, or another name.

    Of any other word, those whose meaning has it.

    Raises: ConfigError if there is none, with what is similar.
    """
    keys = all_keys()
    name = normal(word)
    found = [key for key in keys if name in (key.name, *key.name.split("."))]
    if found:
        return found

    # `learning_rate`, `train.lr`: what the message about such an override would advise.
    meant = meant_keys(name) if name else []
    if is_other_name(name):
        return [key for key in keys if key.name in meant]

    about = [key for key in keys if word and word.lower() in key.meaning.lower()]
    if about:
        return about

    remedy = f"did you mean {', or '.join(meant)}?" if meant else nothing_for(name)
    raise ConfigError(
        Problem(
            f'unknown key "{word}"',
            expected="a key such as optimizer.lr, its last part, or a section",
            found=word or "nothing",
            remedy=remedy or "rnncls config keys",
            id="C5",
        )
    )


def keys_as_table(keys: Sequence[Key], width: int | None = None) -> str:
    """Return one line for each key: name, type and range, default, what it is for.

    `width`: of the terminal. Meanings are cut to fit it, or left out where it has no room for them.
    None: no line is cut.
    """
    rows = [("key", "values", "default", "meaning")]
    for key in keys:
        # The source is part of the name, so that a line says everything on its own.
        name = f"{key.name} ({key.source})" if key.source else key.name
        rows.append((name, key.short, default_in_words(key), _first_sentence(key.meaning)))

    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    room = None if width is None else width - sum(widths) - len("  " * 3)
    if room is not None and room < -len("  "):
        # The longest values are too long even without the meanings.
        widths[1] = max(LEAST_ROOM, widths[1] + room + len("  "))
    lines = []
    for *columns, meaning in rows:
        columns[1] = _cut(columns[1], widths[1])
        start = "  ".join(text.ljust(size) for text, size in zip(columns, widths, strict=True))
        lines.append(f"{start}  {_cut(meaning, room)}".rstrip())
    return "\n".join(lines)


def _cut(text: str, room: int | None) -> str:
    """Return a text that fits, cut between words; "" if hardly one of them would."""
    if room is None:
        return text
    if room < LEAST_ROOM:
        return ""
    return textwrap.shorten(text, room, placeholder=" ...", break_on_hyphens=False)


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
        type=type_of(field),
        choices=choices_of(field),
        range=range_of(field),
        values=in_words(field),
        short=in_words(field, GUARD),
        default=default,
        required=required,
        meaning=" ".join(field["description"].split()),
    )


def _first_sentence(text: str) -> str:
    first, dot, _ = text.partition(". ")
    return first + dot.strip()
