"""Defines rnncls config show, check and schema."""

import json

from rnncls.cli.options import Json, OptionalConfig, Overrides, config_of, load


def show(config: OptionalConfig = None, overrides: Overrides = None, as_json: Json = False) -> None:
    """Print the resolved config: every key with its value.

    Examples:
        rnncls config show configs/smoke.yaml optimizer.lr=1e-3
    """
    from rnncls.config import dump_config

    # The YAML that is printed is a config itself, with which the run can be repeated.
    resolved = load(config, overrides)
    if as_json:
        print(json.dumps(resolved.model_dump(mode="json")))
    else:
        print(dump_config(resolved).rstrip())


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
    print(f"{path}: ok; {size}, {train.max_steps:,} steps of {train.batch_size:,} sequences")


def schema() -> None:
    """Print the JSON Schema of config files, for editors.

    Examples:
        rnncls config schema > rnncls.schema.json
    """
    from rnncls.config import config_schema

    print(json.dumps(config_schema(), indent=2))
