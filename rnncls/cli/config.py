"""Defines rnncls config show, check, keys and schema."""

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rnncls.cli.options import Json, OptionalConfig, Overrides
from rnncls.cli.words import config_of, load
from rnncls.errors import DataError, on_one_line
from rnncls.system.rows import json_text
from rnncls.system.streams import say

if TYPE_CHECKING:
    from rnncls.config import Config


def show(config: OptionalConfig = None, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print the resolved config: every key with its value.

    Examples:
        rnncls config show configs/smoke.yaml optimizer.lr=1e-3
    """
    from rnncls.config import dump_config

    # The YAML that is printed is a config itself, with which the run can be repeated.
    resolved = _with_numbers(load(config, overrides))
    if as_json:
        print(json_text(resolved.model_dump(mode="json")))
    else:
        print(dump_config(resolved).rstrip())


def _with_numbers(config: "Config") -> "Config":
    """Return the config as a run of it would begin; its files are read if a default needs them."""
    from rnncls.config import counted_later, with_numbers

    if not counted_later(config):
        return config

    # Imports torch, which a config without such a default need not wait for.
    from rnncls.data import load_task

    try:
        return load_task(config, progress=True).config
    except DataError as error:
        known = with_numbers(config)
        unknown = ", ".join(counted_later(known))
        problem = error.problems[0]
        where = f" ({problem.where})" if problem.where else ""
        what = f"{unknown} shown as null, to be counted in the files: {problem.what}{where}"
        say(f"rnncls: warning[{problem.id}]: {what}")
        return known


def check(config: OptionalConfig = None, overrides: Overrides = None) -> None:
    """Report every problem of a config, without running it.

    Examples:
        rnncls config check configs/smoke.yaml
    """
    from rnncls.config import num_parameters, sizes

    resolved = load(config, overrides)

    # Of files, the vocabulary decides the number of parameters, and nothing is read here.
    size = "files"
    if resolved.data.source == "sum_mod":
        size = f"{num_parameters(resolved, *sizes(resolved)):,} parameters"

    train = resolved.train
    path, _ = config_of(config, overrides)
    size += f", {train.max_steps:,} steps of {train.batch_size:,} sequences"
    print(f"{on_one_line(path)}: ok; {on_one_line(size)}")


def keys(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY",
            help="Only these, in full: a key (optimizer.lr), its last part (lr), a section "
            "(optimizer), another name (learning_rate), or a word of the meanings (gradients).",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print every key that a config can have, with range, default and meaning.

    Examples:
        rnncls config keys
        rnncls config keys lr
    """
    from rnncls.config.keys import all_keys, find_keys, keys_as_table, keys_in_full

    found = all_keys() if key is None else find_keys(key)
    if as_json:
        print(json_text({"keys": [each.to_json() for each in found]}))
    elif key is None:
        # A line that a terminal breaks is no longer a line; a pipe takes any.
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(keys_as_table(found, width))
        if width is not None:
            say("whole meanings: rnncls config keys KEY")
    else:
        print(keys_in_full(found))


def schema(
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write; prints the line that tells an editor of it.", show_default=False
        ),
    ] = None,
) -> None:
    """Print the JSON Schema of config files, for editors.

    Examples:
        rnncls config schema --output rnncls.schema.json
    """
    from rnncls.config import config_schema

    text = json.dumps(config_schema(), indent=2)
    if output is None:
        print(text)
        return

    from rnncls.system.files import new_file
    from rnncls.system.refusals import writing

    with writing(output), new_file(output) as file:
        file.write(f"{text}\n")
    say("written; the first line of a config, for editors:")
    print(f"# yaml-language-server: $schema={on_one_line(output)}")
