"""Options and helpers that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="YAML config file.", show_default=False, readable=False),
]
OptionalConfig = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML config file.", show_default=False, readable=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="section.key=value", help="Replace values of the config.", show_default=False
    ),
]
Device = Annotated[
    str | None,
    typer.Option(help="Device to use instead of the config's: auto, cpu, cuda or cuda:INDEX."),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def load(path: Path, overrides: list[str] | None, device: str | None = None) -> Any:
    """Load a config file with overrides. Raises: ConfigError."""
    # --device comes last, so that it wins over an override of the same key.
    from rnncls.config import load_config

    return load_config(path, with_device(overrides, device))


def with_device(overrides: list[str] | None, device: str | None) -> list[str]:
    """Return the overrides, with the one that --device stands for."""
    words = list(overrides or [])
    if device:
        words.append(f"device={device}")
    return words
