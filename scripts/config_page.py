"""Write docs/config.md, the page of every config key, from rnncls/config/schema.py.

    make docs        rewrites docs/config.md

A test compares the committed page with `page()`. Nothing else writes the file.
"""

import json
from pathlib import Path
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
from rnncls.config.schema import Section

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "config.md"

SECTIONS: list[tuple[str, str, type[Section]]] = [
    ("data, generated", "data", SumModConfig),
    ("data, from files", "data", FilesConfig),
    ("model", "model", ModelConfig),
    ("optimizer", "optimizer", OptimizerConfig),
    ("schedule", "schedule", ScheduleConfig),
    ("train", "train", TrainConfig),
]

INTRODUCTION = """\
<!-- Written by `make docs` from rnncls/config/schema.py. Do not edit this page by hand. -->

# Config

A config is one YAML file with five sections, a seed and a device. A config names only what differs
from the defaults. With `data.source: files`, `data.train` is required.

```yaml
data:
  modulus: 10
model:
  hidden_size: 64
train:
  max_steps: 2000
seed: 3
```

On the command line, `section.key=value` replaces a value of the file. The last one wins.

```sh
rnncls config show --config configs/parity.yaml train.batch_size=64
rnncls config check --config configs/parity.yaml
rnncls config schema
```

`show` prints every key with its resolved value, `check` only validates, and `schema` prints the
JSON Schema of a config file, for editors.

YAML is read strictly:

- `1e-3` is a number.
- What YAML 1.1 would convert silently (`no`, `010`, `12:30:45`) must be quoted.
- An unknown key, a duplicate key, a tag or an alias is an error.

Rules between keys are checked as well: `data.min_length` must not be above `data.max_length`, for
example.

All problems of a config are reported at once, with line and column. [faults.md](faults.md#config)
lists them.

In the tables below, `null` stands for no value. The last column says what happens then.
"""


def page() -> str:
    """Return the whole page as Markdown."""
    headings = [heading for heading, _, _ in SECTIONS]
    contents = [f"- [{heading}](#{anchor(heading)})" for heading in [*headings, "top level"]]

    parts = [INTRODUCTION, "\n".join(contents) + "\n"]
    for heading, section, model in SECTIONS:
        parts.append(section_text(heading, section, model))

    # The sections are keys of `Config` too. They have tables of their own and are left out here.
    sections = {section for _, section, _ in SECTIONS}
    fields = Config.model_json_schema()["properties"]
    others = {key: field for key, field in fields.items() if key not in sections}
    parts.append(f"## top level\n\n{table('', others, set())}")
    return "\n".join(parts)


def section_text(heading: str, section: str, model: type[Section]) -> str:
    """Return heading, introduction and table of one section."""
    schema = model.model_json_schema()
    introduction = one_line(schema.get("description", ""))
    rows = table(f"{section}.", schema["properties"], set(schema.get("required", [])))

    parts = [f"## {heading}", introduction, rows]
    return "\n\n".join(part for part in parts if part)


def table(prefix: str, fields: dict[str, Any], required: set[str]) -> str:
    """Return a table with a row per field. `fields` are the properties of a JSON Schema."""
    lines = ["| key | type | default | values | meaning |", "|---|---|---|---|---|"]
    for key, field in fields.items():
        default = "required" if key in required else f"`{json.dumps(field['default'])}`"
        cells = [
            f"`{prefix}{key}`",
            type_of(field),
            default,
            values_of(field),
            one_line(field["description"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def type_of(field: dict[str, Any]) -> str:
    """Return the type of a field in words, such as "integer or null"."""
    alternatives = field.get("anyOf", [field])
    names = [alternative.get("type", "string") for alternative in alternatives]
    return " or ".join("list" if name == "array" else name for name in names)


def values_of(field: dict[str, Any]) -> str:
    """Return the choices or the range of a field. Empty if its type says all."""
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if "anyOf" in field:
        ranges = [values_of(alternative) for alternative in field["anyOf"]]
        return ", ".join(text for text in ranges if text)
    if "prefixItems" in field:
        items = [values_of(item) for item in field["prefixItems"]]
        return f"{len(items)} numbers, each {items[0]}"
    return range_of(field)


def range_of(field: dict[str, Any]) -> str:
    """Return the bounds of a number or of the length of a string, in words."""
    if "minimum" in field and "maximum" in field:
        return f"{field['minimum']:,} to {field['maximum']:,}"

    bounds = []
    if "exclusiveMinimum" in field:
        bounds.append(f"above {field['exclusiveMinimum']:,}")
    if "minimum" in field:
        bounds.append(f"at least {field['minimum']:,}")
    if "exclusiveMaximum" in field:
        bounds.append(f"below {field['exclusiveMaximum']:,}")
    if "maximum" in field:
        bounds.append(f"at most {field['maximum']:,}")
    if "maxLength" in field:
        bounds.append(f"at most {field['maxLength']:,} characters")
    return ", ".join(bounds)


def one_line(text: str) -> str:
    """Return the text in one line, safe in the cell of a Markdown table."""
    escaped = text.replace("|", "\\|").replace("<", "&lt;")
    return " ".join(escaped.split())


def anchor(heading: str) -> str:
    """Return the anchor that GitHub gives a heading of words and commas."""
    return heading.replace(",", "").replace(" ", "-")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written: {PAGE.relative_to(ROOT)}")
