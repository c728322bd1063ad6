"""From a verified checkpoint to a model, an optimizer, and the data it is evaluated on."""

import json
import math
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from rnncls.config import Config, FilesConfig, flatten, sizes
from rnncls.data.dataset import Dataset
from rnncls.data.files.search import Search
from rnncls.data.loading import load_held_out, load_labelled_files
from rnncls.data.new_files import as_new_file
from rnncls.data.splits import SPLITS
from rnncls.errors import CheckpointError, ConfigError, Problem
from rnncls.model.build import build_model, tensor_shapes
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.moved import OF_EVALUATION, with_files_of_run

# The smallest value that each kind of optimizer state can have after a step.
_LEAST = {"step": 1.0, "exp_avg_sq": 0.0}


def restore_model(checkpoint: Checkpoint) -> RNNClassifier:
    """Return the checkpoint's own model with its weights, or their average, in evaluation mode.

    Raises: CheckpointError unless the weights fit the checkpoint's config.
    """
    # The weights are looked at before the model is built: a file may lie about the model's size.
    weights = fitting_weights(checkpoint, checkpoint.config, checkpoint.sizes)
    model = build_model(checkpoint.config, checkpoint.sizes)
    model.load_state_dict(weights)
    return model.eval()


def fitting_weights(
    checkpoint: Checkpoint, config: Config, sizes: tuple[int, int]
) -> dict[str, Tensor]:
    """Return the checkpoint's weights for a model of `config`: their average if it has one.

    Raises: CheckpointError unless all names, shapes and dtypes are those of the model.
    """
    shapes = tensor_shapes(config, sizes)
    _require_ngrams(checkpoint, config)
    _require_fit(checkpoint, config, shapes, checkpoint.model)
    if checkpoint.config.train.average_weights is None:
        # Nobody knows what it would be an average of.
        _require_fit(checkpoint, config, {}, checkpoint.average, "average/")
        return checkpoint.model
    _require_fit(checkpoint, config, shapes, checkpoint.average, "average/")
    return checkpoint.average


def _require_ngrams(checkpoint: Checkpoint, config: Config) -> None:
    """Raise CheckpointError where the rows of the table are those of other n-grams."""
    saved = checkpoint.config.model.ngrams
    wanted = config.model.ngrams
    # A table on one side alone is a tensor that does not fit.
    if saved and wanted and saved != wanted:
        raise CheckpointError(
            Problem(
                "the n-grams do not fit the model",
                str(checkpoint.path),
                expected=f"model.ngrams: {list(wanted)}",
                found=f"{list(saved)}",
                remedy=f"model.ngrams={json.dumps(saved)}".replace(" ", ""),
                id="K9",
            )
        )


def _require_fit(
    checkpoint: Checkpoint,
    config: Config,
    shapes: dict[str, tuple[int, ...]],
    tensors: dict[str, Tensor],
    prefix: str = "",
) -> None:
    """Raise CheckpointError unless tensors of a checkpoint have these names and shapes.

    `prefix`: what stands before their names in a message.
    """
    expected = {f"{prefix}{name}": (shape, torch.float32) for name, shape in shapes.items()}
    saved = {
        f"{prefix}{name}": (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()
    }
    if saved == expected:
        return

    names = sorted(expected.keys() | saved.keys())
    misfits = [name for name in names if expected.get(name) != saved.get(name)]
    shown = [f"{name}: {saved.get(name, 'missing')}" for name in misfits[:5]]
    raise CheckpointError(
        Problem(
            f"{len(misfits)} tensors do not fit the model",
            str(checkpoint.path),
            expected=f"{misfits[0]}: {expected.get(misfits[0], 'no such tensor')}",
            found="; ".join(shown),
            remedy=_remedy_for_misfit(checkpoint.config, config) or "another checkpoint",
            id="K9",
        )
    )


def _remedy_for_misfit(own: Config, wanted: Config) -> str:
    """Return the overrides that would make `wanted` fit a checkpoint of `own`."""
    saved_values = flatten(own)
    wanted_values = flatten(wanted)
    overrides = []
    for key, value in saved_values.items():
        if key.startswith("model.") and value != wanted_values[key]:
            overrides.append(f"{key}={json.dumps(value)}")

    remedies = []
    if overrides:
        remedies.append(" ".join(overrides))
    if (own.data.source, sizes(own)) != (wanted.data.source, sizes(wanted)):
        remedies.append("a checkpoint of the same data")
    return ", ".join(remedies)


def is_finite(checkpoint: Checkpoint) -> bool:
    """Return whether no weight, and no average of weights, is NaN or infinite."""
    tensors = chain(checkpoint.model.values(), checkpoint.average.values())
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def restore_optimizer(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state_names: set[str],
) -> None:
    """Put the optimizer's state back: the tensors `state_names` for each parameter.

    Raises: CheckpointError unless the checkpoint has exactly these, each of its parameter's shape
    (or 0-d), with values that an optimizer can reach.
    """
    # Frozen ones are none of the optimizer's.
    named = model.named_parameters()
    parameters = {name: parameter for name, parameter in named if parameter.requires_grad}

    # An optimizer has no state before its first update, and a skipped step makes none.
    expected: set[str] = set()
    skipped = checkpoint.state.counters.get("skipped") or 0
    has_updated = checkpoint.state.step > skipped
    if has_updated:
        expected = {f"{key}/{name}" for key in state_names for name in parameters}

    # Those that are missing, and those that do not belong there.
    misfits = expected ^ checkpoint.optim.keys()
    for name in expected & checkpoint.optim.keys():
        key, _, parameter_name = name.partition("/")
        parameter = parameters[parameter_name]
        tensor = checkpoint.optim[name]
        if _can_be_state(key, tensor, parameter):
            optimizer.state[parameter][key] = tensor.to(parameter.device)
        else:
            misfits.add(name)

    if misfits:
        raise CheckpointError(
            Problem(
                "the optimizer state does not fit",
                str(checkpoint.path),
                found=", ".join(sorted(misfits)[:5]),
                remedy="--init-from, which takes the weights alone",
                id="K9",
            )
        )


def _can_be_state(key: str, tensor: Tensor, parameter: nn.Parameter) -> bool:
    """Return whether a tensor can be the state `key` of a parameter."""
    # Adam counts its steps in a 0-d tensor for each parameter.
    shape = () if key == "step" else parameter.shape
    if tensor.shape != shape or tensor.dtype != torch.float32:
        return False
    if not bool(tensor.isfinite().all()):
        return False

    # Adam takes the root of the second moment, and divides by a power of the steps.
    return not bool((tensor < _LEAST.get(key, -math.inf)).any())


def held_out_data(
    checkpoint: Checkpoint,
    paths: str | Sequence[str] | None = None,
    progress: bool = False,
    overrides: Sequence[str] = (),
    data_dir: Path | None = None,
    search: Search | None = None,
) -> Dataset | None:
    """Return what a checkpoint is evaluated on; None for generated sequences.

    `paths`: files of labelled sequences, instead of the run's own held-out data; `overrides` say in
    what they differ from those of training. The run's own are looked for beside the run and in
    `data_dir` if they were moved, or where `search` says.

    Raises: ConfigError for files where data is generated. DataError if a file is bad or missing.
    CheckpointError if the run's data has changed.
    """
    data = checkpoint.config.data
    if checkpoint.vocabulary is None or not isinstance(data, FilesConfig):
        if not paths:
            return None
        what = "this checkpoint was trained on generated data"
        remedy = "--lengths, or a checkpoint that was trained on files"
        raise ConfigError(Problem(what, "--data", remedy=remedy, id="C15"))

    # The run's own data, if it is still what it was when the run began.
    if not paths:
        # Without test files, the held-out rows may be part of the training files.
        splits = SPLITS if data.test is None else ("test",)
        data = with_files_of_run(checkpoint, data, OF_EVALUATION, data_dir, search, splits)
        return load_held_out(data, checkpoint.vocabulary, progress)

    data = as_new_file(data, paths, overrides)
    return load_labelled_files(paths, data, checkpoint.vocabulary, progress)
