"""rnncls model show"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rnncls.cli.completion import complete_word
from rnncls.cli.options import Json
from rnncls.cli.words import load
from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.system.rows import json_text, shortened
from rnncls.system.shown import aligned
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.model.describe import ModelDescription
    from rnncls.rundir.checkpoint import Checkpoint

# More names of classes than this are counted and not listed.
MOST_CLASSES_SHOWN = 20
MOST_OF_NAME = 60  # characters of each


def show(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|CHECKPOINT|CONFIG",
            help="Run directory (its best checkpoint), checkpoint file, or a config (.yaml).",
            readable=False,
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION.KEY=VALUE]...",
            help="Values that replace some of a config.",
            show_default=False,
            autocompletion=complete_word,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the layers of a model, their shapes and parameters. Nothing is trained or written.

    Examples:
        rnncls model show configs/smoke.yaml model.cell=gru
    """
    if model.suffix in (".yaml", ".yml"):
        about, description = _of_config(model, overrides)
    elif overrides:
        what = "a checkpoint has the model that it has"
        expected = "overrides for a config (.yaml) only"
        found = " ".join(overrides)
        raise ConfigError(Problem(what, str(model), expected=expected, found=found, id="C17"))
    else:
        about, description = _of_checkpoint(model)

    if as_json:
        print(json_text({**about, **description.to_json()}))
        return
    for key, value in about.items():
        if value is not None:
            print(on_one_line(f"{key + ':':<12} {_shown(value)}"))
    _print_layers(description)
    _print_tensors(description)


def _of_config(
    path: Path, overrides: list[str] | None
) -> "tuple[dict[str, Any], ModelDescription]":
    """Describe the model that a config would train. Raises: ConfigError. DataError."""
    # Before torch is imported, so that a wrong config is reported at once.
    config = load(path, overrides)

    load_torch()
    from rnncls.data import load_task
    from rnncls.model.describe import describe_model

    # Files are read for their numbers of tokens and classes.
    task = load_task(config, progress=True)
    labels = None if task.vocabulary is None else list(task.vocabulary.labels)
    num_tokens, num_classes = task.sizes
    about = {
        "config": str(path),
        "step": None,
        "cell": config.model.cell,
        "tokens": num_tokens,
        "classes": num_classes,
        "labels": labels,
    }
    return about, describe_model(config, task.sizes)


def _of_checkpoint(path: Path) -> "tuple[dict[str, Any], ModelDescription]":
    """Describe the model of a checkpoint. Raises: CheckpointError. MachineError."""
    load_torch()
    from rnncls.model.describe import describe_model
    from rnncls.rundir.checkpoint import read_checkpoint
    from rnncls.rundir.checkpoint_files import find_checkpoint
    from rnncls.rundir.restore import fitting_weights

    checkpoint = read_checkpoint(find_checkpoint(path))
    # What is described is the model of the config: the weights must be its weights.
    fitting_weights(checkpoint, checkpoint.config, checkpoint.sizes)
    description = describe_model(checkpoint.config, checkpoint.sizes)
    return _about_checkpoint(checkpoint), description


def _about_checkpoint(checkpoint: "Checkpoint") -> dict[str, Any]:
    num_tokens, num_classes = checkpoint.sizes
    # As it is saved: what it takes to read sequences is not needed here.
    vocabulary = checkpoint.state.vocabulary
    return {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.state.step,
        "cell": checkpoint.config.model.cell,
        "tokens": num_tokens,
        "classes": num_classes,
        "labels": None if vocabulary is None else list(vocabulary.labels),
    }


def _shown(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        shown = [shortened(name, MOST_OF_NAME) for name in value[:MOST_CLASSES_SHOWN]]
        names = ", ".join(shown)
        left_out = len(value) - MOST_CLASSES_SHOWN
        return f"{names}, ... and {left_out:,} more" if left_out > 0 else names
    return str(value)


def _print_layers(description: "ModelDescription") -> None:
    print("\nlayers, for B sequences of T tokens (packed or padded)")
    rows = [("layer", "kind", "input", "output")]
    for layer in description.layers:
        rows.append((layer.name, layer.kind, layer.input, layer.output))
    for line in aligned(rows, texts=4):
        print(f"  {line}")


def _print_tensors(description: "ModelDescription") -> None:
    print("\nparameters")
    width = max(len(tensor.name) for tensor in description.tensors)
    shapes = [str(tensor.shape) for tensor in description.tensors]
    shape_width = max(map(len, shapes))
    for tensor, shape in zip(description.tensors, shapes, strict=True):
        name = f"{tensor.name:<{width}}  {shape:<{shape_width}}"
        print(f"  {name}  {tensor.parameters:>13,}  {tensor.share:>6.1%}")

    total = "total".ljust(width + 2 + shape_width)
    print(f"  {total}  {description.parameters:>13,}  {1:>6.1%}  {description.bytes:,} bytes")
