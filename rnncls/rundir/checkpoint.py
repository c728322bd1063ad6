"""Checkpoints of a run: `checkpoints/step-N.safetensors` and `checkpoints/best.safetensors`.

    tensors    model/<parameter>, optim/<state>/<parameter>
    state      JSON: `State`

There is no pointer to a last checkpoint that could lie: the step is in the file name and in the state. The model part
loads into a plain nn.Embedding, nn.RNN and nn.Linear. tensorfile.py writes and verifies the files.
"""

import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor, nn

from rnncls.config import Config, flatten, parse_config, sizes
from rnncls.data import Task, Vocabulary
from rnncls.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteError,
    Problem,
)
from rnncls.model.classifier import RNNClassifier, build_model, tensor_shapes
from rnncls.rundir import tensorfile
from rnncls.rundir.paths import CHECKPOINTS, step_path
from rnncls.steps.state import TrainState
from rnncls.version import __version__


class VocabularyState(BaseModel):
    """A Vocabulary as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tokens: tuple[str, ...]
    labels: tuple[str, ...]
    has_unknown: bool


class State(BaseModel):
    """What a checkpoint knows beside its tensors. Everything else follows from config and step."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    step: int  # optimizer steps done
    config: dict[str, Any]
    counters: dict[str, float | int | None]  # sums since the last log line, best value so far, ...
    versions: dict[str, str]
    device: str
    vocabulary: VocabularyState | None = None
    fingerprints: dict[str, str] = {}  # SHA-256 of the data files


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `model` is a state_dict; `optim` maps `<state>/<parameter>` to tensors."""

    path: Path
    config: Config
    state: State
    model: dict[str, Tensor]
    optim: dict[str, Tensor]

    @property
    def vocabulary(self) -> Vocabulary | None:
        """What tokens and labels mean; None where they are numbers."""
        kept = self.state.vocabulary
        return None if kept is None else Vocabulary(kept.tokens, kept.labels, kept.has_unknown)

    @property
    def sizes(self) -> tuple[int, int]:
        """(number of different tokens, number of classes)."""
        kept = self.state.vocabulary
        return sizes(self.config) if kept is None else (len(kept.tokens), len(kept.labels))


def write_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    task: Task,
    step: int,
    counters: dict[str, float | int | None],
) -> Path:
    """Commit `folder/step-N.safetensors`. Raises WriteError; files that were there stay as they are."""
    tensors = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"optim/{key}/{name}"] = value
    words, kept = task.vocabulary, None
    if words is not None:
        kept = VocabularyState(
            tokens=words.tokens, labels=words.labels, has_unknown=words.has_unknown
        )
    state = State(
        step=step,
        config=task.config.model_dump(mode="json"),
        counters=counters,
        versions=versions(),
        device=str(next(model.parameters()).device),
        vocabulary=kept,
        fingerprints=task.fingerprints,
    )
    path = step_path(folder, step)
    tensorfile.write(path, json.dumps(state.model_dump(), allow_nan=False), tensors)
    return path


def versions() -> dict[str, str]:
    """Of rnncls, torch and Python, and the number of threads: what bits depend on beside the machine."""
    python, threads = platform.python_version(), str(torch.get_num_threads())
    return {
        "rnncls": __version__,
        "torch": str(torch.__version__),
        "python": python,
        "threads": threads,
    }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint file; `find_checkpoint` says which file of a run directory to read.

    Raises CheckpointError when the file is missing, damaged, foreign or of another version, and MachineError when it
    cannot be read.
    """
    path = Path(path)
    text, tensors = tensorfile.read(path)
    state = _read_state(path, text)
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optim": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part not in parts:
            expected, remedy = "names that begin with model/ or optim/", "another checkpoint"
            raise CheckpointError(
                Problem(
                    "a tensor that is no part of it",
                    str(path),
                    expected=expected,
                    found=ascii(name),
                    remedy=remedy,
                    id="K9",
                )
            )
        parts[part][rest] = tensor
    return Checkpoint(path, _read_config(path, state), state, **parts)


def restore_optimizer(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state_names: set[str],
) -> None:
    """Put the optimizer's state back, the tensors `state_names` for each parameter.

    Raises CheckpointError unless the checkpoint has exactly these, each of its parameter's shape (or 0-d).
    """
    parameters = dict(model.named_parameters())
    untouched = checkpoint.state.step <= (
        checkpoint.state.counters.get("skipped") or 0
    )  # no update so far
    expected = (
        set() if untouched else {f"{key}/{name}" for key in state_names for name in parameters}
    )
    misfits = expected ^ checkpoint.optim.keys()
    for name in expected & checkpoint.optim.keys():
        key, _, parameter_name = name.partition("/")
        parameter, tensor = parameters[parameter_name], checkpoint.optim[name]
        if (
            tensor.shape == (() if key == "step" else parameter.shape)
            and tensor.dtype == torch.float32
        ):
            optimizer.state[parameter][key] = tensor.to(parameter.device)
        else:
            misfits.add(name)
    for name in expected - misfits:
        tensor, kind = checkpoint.optim[name], name.partition("/")[0]
        lowest = {"step": 1.0, "exp_avg_sq": 0.0}.get(kind, -math.inf)
        if not bool(tensor.isfinite().all()) or bool((tensor < lowest).any()):
            misfits.add(name)
    if misfits:
        what, found = "the optimizer state does not fit", ", ".join(sorted(misfits)[:5])
        remedy = "--init-from, which takes the weights alone"
        raise CheckpointError(
            Problem(what, str(checkpoint.path), found=found, remedy=remedy, id="K9")
        )


def restore_model(checkpoint: Checkpoint) -> RNNClassifier:
    """The checkpoint's own model with its weights, in evaluation mode. Raises CheckpointError unless they fit."""
    # first, because the file may lie about the size of the model that would be built
    weights = fitting_weights(checkpoint, checkpoint.config, checkpoint.sizes)
    model = build_model(checkpoint.config, checkpoint.sizes)
    model.load_state_dict(weights)
    return model.eval()


def fitting_weights(
    checkpoint: Checkpoint, config: Config, sizes: tuple[int, int]
) -> dict[str, Tensor]:
    """The checkpoint's weights. Raises CheckpointError unless all names, shapes and dtypes are those of the config."""
    expected = {
        name: (shape, torch.float32) for name, shape in tensor_shapes(config, sizes).items()
    }
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in checkpoint.model.items()}
    if expected != found:
        names = sorted(
            name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)
        )
        lines = [f"{name}: {found.get(name, 'missing')}" for name in names[:5]]
        what = f"{len(names)} tensors do not fit the model"
        wanted = f"{names[0]}: {expected.get(names[0], 'no such tensor')}"
        remedy = _model_differences(checkpoint.config, config) or "another checkpoint"
        raise CheckpointError(
            Problem(
                what,
                str(checkpoint.path),
                expected=wanted,
                found="; ".join(lines),
                remedy=remedy,
                id="K9",
            )
        )
    return checkpoint.model


def _model_differences(own: Config, wanted: Config) -> str:
    """The overrides that would make `wanted` fit a checkpoint of `own`."""
    before, after = flatten(own), flatten(wanted)
    keys = [key for key in before if key.startswith("model.") and before[key] != after[key]]
    own_data, wanted_data = ((config.data.source, *sizes(config)) for config in (own, wanted))
    other = ["a checkpoint of the same data"] if own_data != wanted_data else []
    return ", ".join(
        [" ".join(f"{key}={json.dumps(before[key])}" for key in keys)] * bool(keys) + other
    )


def is_finite(checkpoint: Checkpoint) -> bool:
    """Whether no weight is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in checkpoint.model.values())


def _read_state(path: Path, text: str) -> State:
    try:
        state = State.model_validate_json(text)
    except ValidationError:
        raise tensorfile.damaged(path, "a state that rnncls did not write", "K4") from None
    named = path.stem.removeprefix("step-")
    if named.isdecimal() and int(named) != state.step:
        raise tensorfile.damaged(
            path, f"the state of step {state.step}, which is not what the file name says", "K7"
        )
    return state


def _read_config(path: Path, state: State) -> Config:
    try:
        return parse_config(state.config, str(path))
    except ConfigError as error:
        raise CheckpointError(*error.problems) from None


def save(state: TrainState, task: Task, run_dir: Path) -> Path:
    """Commit a checkpoint of this step. Raises WriteError, and NonFiniteError instead of committing such weights."""
    if not all(bool(parameter.isfinite().all()) for parameter in state.model.parameters()):
        found = f"after step {state.step}, whose loss and gradient were finite"
        remedy = "a smaller optimizer.lr; the checkpoints before are unharmed"
        raise NonFiniteError(
            Problem(
                "the weights are not finite", str(run_dir), found=found, remedy=remedy, id="R12"
            )
        )
    folder = run_dir / CHECKPOINTS
    return write_checkpoint(
        folder, state.model, state.optimizer, task, state.step, state.counters()
    )
