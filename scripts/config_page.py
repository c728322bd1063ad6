"""Write docs/config.md, the page of every config key, from rnncls/config/schema.py.

    make docs        rewrites docs/config.md

A test compares the committed page with `page()`. Nothing else writes the file.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from rnncls.config.keys import SECTIONS, Key, section_keys, top_level_keys

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "config.md"

HEADINGS = {
    ("data", "sum_mod"): "data, generated",
    ("data", "files"): "data, from files",
    ("model", ""): "model",
    ("optimizer", ""): "optimizer",
    ("schedule", ""): "schedule",
    ("train", ""): "train",
}

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
rnncls config keys
rnncls config keys lr
rnncls config show configs/parity.yaml train.batch_size=64
rnncls config check configs/parity.yaml
rnncls config schema --output rnncls.schema.json
```

`keys` prints a line for every key. With a key (`optimizer.lr`), its last part (`lr`), a section
(`optimizer`) or [another name](command-line.md#other-names-for-keys) (`learning_rate`) it prints
the whole meaning of each, with `--json` one object for programs.

`show` prints every key with its resolved value. `check` only validates, and reads no data.

`schema` prints the JSON Schema of a config file, for editors. With `--output` it writes a file, and
prints the line by which many editors find it. Put that line first in a config:

```yaml
# yaml-language-server: $schema=rnncls.schema.json
```

From Python, `rnncls.load_config` takes a path or the sections as a dict, and overrides as texts or
as a dict: `load_config({"data": {"modulus": 7}}, {"optimizer.lr": 1e-3})`.

The defaults of four keys depend on the data source: `model.init_gain`, `optimizer.weight_decay`,
`schedule.warmup_steps` and `train.eval_samples`. In them, `null` stands for that default. For
files, the warm-up is a share of the run's steps, and every evaluation takes all validation
sequences. Both are counted once the files have been read, which `show` does, too. The numbers stand
in the `config.yaml` of the run, which keeps them when it is resumed.

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
    headings = [*HEADINGS.values(), "top level"]
    contents = [f"- [{heading}](#{anchor(heading)})" for heading in headings]

    parts = [INTRODUCTION, "\n".join(contents) + "\n"]
    for section, source, model in SECTIONS:
        heading = HEADINGS[section, source]
        introduction = one_line(model.model_json_schema()["description"])
        rows = table(section_keys(section, source, model))
        parts.append(f"## {heading}\n\n{introduction}\n\n{rows}")

    parts.append(f"## top level\n\n{table(top_level_keys())}")
    return "\n".join(parts)


def table(keys: Sequence[Key]) -> str:
    """Return a table with a row per key."""
    lines = ["| key | type | default | values | meaning |", "|---|---|---|---|---|"]
    for key in keys:
        values = ", ".join(f"`{choice}`" for choice in key.choices) or key.range
        cells = [f"`{key.name}`", key.type, default(key), values, one_line(key.meaning)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def default(key: Key) -> str:
    """Return the default of a key as Markdown; one for each data source where that decides."""
    if key.required:
        return "required"
    if not key.by_source:
        return f"`{json.dumps(key.default)}`"
    return "; ".join(f"{source}: {value}" for source, value in key.default.items())


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
