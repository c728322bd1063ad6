"""The content of a checkpoint: `checkpoints/step-N.safetensors` and `checkpoints/best.safetensors`.

    tensors    model/<parameter>, optim/<state>/<parameter>, and of a run that averages its weights
               average/<parameter>
    state      JSON: `SavedState`

There is no pointer to a last checkpoint that could lie: the step is in the file name and in the
state. The model part loads into a plain nn.Embedding, nn.RNN and nn.Linear. tensorfile.py writes
and verifies the files; checkpoint_files.py knows which file of a directory to read.
"""

import json
import platform
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from torch import Tensor

from rnncls.config import Config, parse_saved, sizes
from rnncls.data import Task, Vocabulary
from rnncls.data.subwords import MARK, Subwords, require_same_parts
from rnncls.data.vocabulary import UNKNOWN, UNKNOWN_ID
from rnncls.errors import CheckpointError, ConfigError, NonFiniteError, Problem
from rnncls.model.rules import StepRules
from rnncls.rundir import tensorfile
from rnncls.rundir.paths import STEP_PREFIX, step_path
from rnncls.steps.state import TrainState
from rnncls.version import __version__

Id = Annotated[int, Field(ge=0)]


class SubwordsState(BaseModel):
    """The rules that make parts of words, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # Ids of the two tokens that become one, in the order of the rules.
    merges: tuple[tuple[Id, Id], ...]

    # The version of the package that trained them, and how it takes some texts apart.
    tokenizers: str
    digest: str


class VocabularyState(BaseModel):
    """A Vocabulary as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # A model without tokens or classes cannot be built, and one name cannot mean two things.
    tokens: Annotated[tuple[str, ...], Field(min_length=1)]
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    has_unknown: bool
    subwords: SubwordsState | None = None

    @field_validator("tokens", "labels")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a name that is there twice")
        return names

    @model_validator(mode="after")
    def _unknown_first(self) -> "VocabularyState":
        if self.has_unknown and self.tokens[UNKNOWN_ID] != UNKNOWN:
            raise ValueError("another token in the place of <unk>")
        return self

    @model_validator(mode="after")
    def _parts_are_tokens(self) -> "VocabularyState":
        if self.subwords is None:
            return self
        tokens = self.tokens
        known = set(tokens)
        for first, second in self.subwords.merges:
            if max(first, second) >= len(tokens) or tokens[first] + tokens[second] not in known:
                raise ValueError("a rule about parts that are no tokens")
        if MARK not in known:
            raise ValueError("no token for the beginning of a word")
        return self


class SavedState(BaseModel):
    """Everything in a checkpoint but its tensors. The rest follows from config and step."""

    # A file with other keys is of another program or of another version.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    step: Annotated[int, Field(ge=0, le=2**40)]  # optimizer steps done; no run has more
    config: dict[str, Any]
    counters: dict[str, float | int | None]  # sums since the last log line, best value so far, ...
    versions: dict[str, str]
    device: str
    vocabulary: VocabularyState | None = None
    fingerprints: dict[str, tuple[str, ...]] = {}  # SHA-256 of each data file, by split

    # A run that began before there were others goes on by the first rules (model/rules.py).
    step_rules: StepRules = 1

    @field_validator("fingerprints", mode="before")
    @classmethod
    def _as_tuples(cls, value: Any) -> Any:
        # A run made before a split could have several files has one text for each.
        if not isinstance(value, dict):
            return value
        return {name: _as_tuple(hashes) for name, hashes in value.items()}


def _as_tuple(hashes: Any) -> Any:
    if isinstance(hashes, str):
        return (hashes,)
    return tuple(hashes) if isinstance(hashes, list) else hashes


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. `model` is a state_dict; `optim` has `<state>/<parameter>` tensors.

    `average` is the state_dict of the average of the weights; empty in a run that has none.
    """

    path: Path
    config: Config
    state: SavedState
    model: dict[str, Tensor]
    optim: dict[str, Tensor]
    average: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The meaning of tokens and labels; None where they are numbers.

        Raises: for subwords, MachineError without the package that takes words apart, and
        CheckpointError if it would do so in another way than in training.
        """
        saved = self.state.vocabulary
        if saved is None:
            return None
        subwords = _subwords_of(saved)
        if subwords is not None:
            require_same_parts(subwords, str(self.path))
        return Vocabulary(saved.tokens, saved.labels, saved.has_unknown, subwords)

    @property
    def sizes(self) -> tuple[int, int]:
        """(number of different tokens, number of classes)."""
        saved = self.state.vocabulary
        if saved is None:
            return sizes(self.config)
        return len(saved.tokens), len(saved.labels)


def write_checkpoint(folder: Path, state: TrainState, task: Task) -> Path:
    """Commit `folder/step-N.safetensors` and return its path. No file that was there changes.

    Raises: NonFiniteError if a weight is not finite, and then writes nothing. WriteError.
    """
    _require_finite(state, folder)

    tensors = {f"model/{name}": tensor for name, tensor in state.model.state_dict().items()}

    if state.average is not None:
        for name, tensor in state.average.state_dict().items():
            tensors[f"average/{name}"] = tensor

    # By the parameter's name: torch's own state_dict of an optimizer numbers them, in an order that
    # only the code knows.
    for name, parameter in state.model.named_parameters():
        for key, value in state.optimizer.state[parameter].items():
            if isinstance(value, Tensor):
                tensors[f"optim/{key}/{name}"] = value

    vocabulary = None
    if task.vocabulary is not None:
        vocabulary = state_of_vocabulary(task.vocabulary)
    # Config and versions make the file complete: it can be evaluated without its run directory.
    saved = SavedState(
        step=state.step,
        config=task.config.model_dump(mode="json"),
        counters=state.counters(),
        versions=versions(),
        device=str(state.device),
        vocabulary=vocabulary,
        fingerprints=task.fingerprints,
        step_rules=state.step_rules,
    )

    # allow_nan=False, because JSON has no NaN, and other readers would refuse the file.
    path = step_path(folder, state.step)
    tensorfile.write(path, json.dumps(saved.model_dump(), allow_nan=False), tensors)
    return path


def state_of_vocabulary(vocabulary: Vocabulary) -> VocabularyState:
    """Return a vocabulary as a checkpoint keeps it."""
    subwords = None
    rules = vocabulary.subwords
    if rules is not None:
        ids = vocabulary.index
        subwords = SubwordsState(
            merges=tuple((ids[first], ids[second]) for first, second in rules.merges),
            tokenizers=rules.version,
            digest=rules.digest,
        )
    return VocabularyState(
        tokens=vocabulary.tokens,
        labels=vocabulary.labels,
        has_unknown=vocabulary.has_unknown,
        subwords=subwords,
    )


def _subwords_of(saved: VocabularyState) -> Subwords | None:
    """Return the rules that make parts of words, None where tokens are no subwords."""
    state = saved.subwords
    if state is None:
        return None
    tokens = saved.tokens
    merges = tuple((tokens[first], tokens[second]) for first, second in state.merges)
    made = {first + second for first, second in merges}
    parts = frozenset(made.union(token for token in tokens if len(token) == 1))
    special = frozenset(tokens) - parts
    return Subwords(parts, merges, special, state.tokenizers, state.digest)


def _require_finite(state: TrainState, folder: Path) -> None:
    # A finite loss and gradient do not rule it out: the update itself may overflow.
    models = [state.model] if state.average is None else [state.model, state.average]
    parameters = chain.from_iterable(model.parameters() for model in models)
    if all(bool(parameter.isfinite().all()) for parameter in parameters):
        return
    raise NonFiniteError(
        Problem(
            "the weights are not finite",
            str(folder.parent),
            found=f"after step {state.step}, whose loss and gradient were finite",
            remedy="a smaller optimizer.lr; the checkpoints before are unharmed",
            id="R12",
        )
    )


def versions() -> dict[str, str]:
    """Return what the last bits of a result depend on beside the machine.

    These are the versions of rnncls, torch and Python, and the number of threads.
    """
    return {
        "rnncls": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": str(torch.get_num_threads()),
    }


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read and verify a checkpoint file. `find_checkpoint` says which file of a run to read.

    Raises: CheckpointError if the file is missing, damaged, foreign or of another version.
    MachineError if it cannot be read.
    """
    path = Path(path)
    text, tensors = tensorfile.read(path)
    state = _read_state(path, text)

    # The checksum says that nothing was changed, not that this is what rnncls writes.
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optim": {}, "average": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        if part not in parts:
            raise CheckpointError(
                Problem(
                    "a tensor that does not belong in a checkpoint",
                    str(path),
                    expected="names that begin with model/, optim/ or average/",
                    found=ascii(name),
                    remedy="another checkpoint",
                    id="K9",
                )
            )
        parts[part][rest] = tensor

    config = _read_config(path, state)
    return Checkpoint(path, config, state, parts["model"], parts["optim"], parts["average"])


def _read_state(path: Path, text: str) -> SavedState:
    try:
        state = SavedState.model_validate_json(text)
    except ValidationError:
        raise tensorfile.damaged(path, "a state that rnncls did not write", "K4") from None

    # A renamed file would be taken for a newer or an older one than it is. `best` has no number.
    step_in_name = path.stem.removeprefix(STEP_PREFIX)
    if step_in_name.isdecimal() and int(step_in_name) != state.step:
        found = f"the state of step {state.step}, which is not what the file name says"
        raise tensorfile.damaged(path, found, "K7")
    return state


def _read_config(path: Path, state: SavedState) -> Config:
    # The same checks as for a config by hand: a signed file may ask for anything, too.
    try:
        return parse_saved(state.config, str(path))
    except ConfigError as error:
        raise CheckpointError(*error.problems) from None
