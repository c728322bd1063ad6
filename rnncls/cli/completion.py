"""What the Tab key may make of a word of the command line. Nothing here imports torch.

Commands and options come from typer itself, other files from the shell.
"""

import json
import os
from pathlib import Path

from rnncls.config.messages import SOURCES, schema_at
from rnncls.config.names import known_keys
from rnncls.config.schema import Config, flatten


def complete_word(incomplete: str) -> list[str]:
    """Return the overrides, configs and folders that a word may become."""
    return complete_override(incomplete) + _configs(incomplete)


def complete_override(incomplete: str) -> list[str]:
    """Return the overrides that a word may become: `optimizer.` -> `optimizer.lr=`, ..."""
    key, equals, _ = incomplete.partition("=")
    if equals:
        return [f"{key}={value}" for value in _values_of(key)]

    # Bash makes three words of an override, and asks for the last one alone.
    key = _key_before()
    if key:
        return _values_of(key)

    matching = [key for key in known_keys() if key.startswith(incomplete)]
    sections = dict.fromkeys(key.partition(".")[0] for key in matching)
    # Fewer words to read: first the section, then its keys.
    if len(sections) > 1:
        return [f"{name}=" if name in matching else f"{name}." for name in sections]

    # A single candidate would be completed with a space behind it, where the value belongs. The
    # default, as a second one, prevents that and shows what a value looks like.
    if len(matching) == 1:
        default = json.dumps(flatten(Config()).get(matching[0])).strip('"')
        return [f"{matching[0]}=", f"{matching[0]}={default}"]
    return [f"{key}=" for key in matching]


def _values_of(key: str) -> list[str]:
    """Return the values of a key that has few; [] for any other."""
    if key == "device":
        return ["auto", "cpu", "cuda"]

    for source in SOURCES:
        schema = schema_at(tuple(key.split(".")), source)
        if schema.get("type") == "boolean":
            return ["true", "false"]
        if "enum" in schema:
            # Bash inserts a value as it is: data.separator=| would begin a pipe.
            return [value for value in schema["enum"] if value[0].isalnum()]
    # A key of data.source itself.
    return list(SOURCES) if key == "data.source" else []


def _key_before() -> str:
    """Return the key whose value is being typed, where the shell splits words at "="."""
    words = os.environ.get("COMP_WORDS", "").split()
    position = os.environ.get("COMP_CWORD", "")
    if not position.isdecimal():
        return ""

    before = words[max(0, int(position) - 2) : int(position)]
    return before[0] if len(before) == 2 and before[1] == "=" else ""


def _configs(incomplete: str) -> list[str]:
    """Return the configs and folders whose names begin so; [] without a config among them.

    Where there are none, the shell completes the names of files itself, and better.
    """
    folder = Path(incomplete) if incomplete.endswith("/") else Path(incomplete).parent
    configs = []
    folders = []
    try:
        for path in sorted(folder.iterdir()):
            # A line break would make two words of it, and the shell shows what it inserts.
            if not str(path).isprintable():
                continue
            if path.is_dir() and not path.name.startswith("."):
                folders.append(f"{path}/")
            elif path.suffix.lower() in (".yaml", ".yml"):
                configs.append(str(path))
    # A folder that does not exist, or that may not be read.
    except OSError:
        return []
    configs = [name for name in configs if name.startswith(incomplete)]
    folders = [name for name in folders if name.startswith(incomplete)]
    return configs + folders if configs else []
