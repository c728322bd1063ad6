"""What several commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_SAMPLES = 10_000  # test sequences per length

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="YAML config file.", show_default=False, readable=False),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="section.key=value", help="Replace values of the config.", show_default=False
    ),
]
Device = Annotated[
    str | None, typer.Option(help="auto, cpu, cuda or cuda:INDEX, instead of the config's.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def load(path: Path, overrides: list[str] | None, device: str | None = None) -> Any:
    """The config of a file with overrides. Raises ConfigError."""
    from rnncls.config import load_config

    return load_config(path, with_device(overrides, device))


def with_device(overrides: list[str] | None, device: str | None) -> list[str]:
    """The overrides, and the one that --device stands for."""
    return [*(overrides or []), *([f"device={device}"] if device else [])]
