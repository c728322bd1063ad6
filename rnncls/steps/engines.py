"""Chooses how training steps are taken, and says what an engine is.

To add an engine, write a generator function as `Engine` describes it, in a module or package here.
`in_chunks` does most of it for an engine that takes many steps per call. Then give the engine:

- a name, in `train.engine` of the config's schema;
- the runs that it cannot train, in `why_not`;
- its import, in `_load`, and, if it is the fastest on some device, that device in `choose`;
- tests: its losses must be those of `train_step` within rounding, and must not depend on how the
  steps are cut into chunks.
"""

from collections.abc import Generator
from functools import partial
from importlib.util import find_spec
from typing import Protocol

import torch

from rnncls.config import Config, ModelConfig
from rnncls.data import Task
from rnncls.errors import MachineError, Problem
from rnncls.model.build import input_dropout_of
from rnncls.model.rules import LATEST, StepRules
from rnncls.steps.eager import eager_steps
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World

# A hidden_size. From 1,024 on torch's own products are faster; between the two it depends on cell
# and batch.
WIDEST_STEP = 512


class Engine(Protocol):
    """A way of taking training steps: a generator function of a run's state and task.

    It trains from `state.step` to `task.max_steps`, and yields after one or more steps how many it
    took since it last yielded. At each of these moments `state` is whole: weights, gradients,
    optimizer, step and totals are those of an eager run, since the caller evaluates and saves it.

    - It yields after every step that has something due (see `state.next_due`), so no chunk of steps
      goes beyond one. It also yields within a fraction of a second, or a signal would have to wait.
    - What it cannot compute it leaves to `eager.train_step`. That includes every step whose loss or
      gradient is not finite: `train_step` skips such a step or raises NonFiniteError.
    - The caller may close the generator early, after an interrupt for example.
    """

    def __call__(self, state: TrainState, task: Task, /) -> Generator[int, None, None]:
        """Take the steps of a run."""


class SharedEngine(Protocol):
    """An engine that may also take its steps together with other processes, those of `world`."""

    def __call__(
        self, state: TrainState, task: Task, /, world: World | None = None
    ) -> Generator[int, None, None]:
        """Take the steps of a run."""


def choose(
    config: Config,
    device: torch.device,
    step_rules: StepRules = LATEST,
    world: World | None = None,
) -> tuple[Engine, str]:
    """Return the engine that `train.engine` asks for, and its name for people.

    With train.engine=auto that is the fastest engine which can train this run on this device; if
    it has to be the eager one, the name includes the reason. `step_rules`: those of the run.
    `world`: the processes that take the steps together; None for one alone.

    Raises: MachineError if the engine that was asked for cannot train this run here.
    """
    wanted = config.train.engine
    eager = _together(eager_steps, world)
    if world is not None and step_rules == 1 and config.model.dropout > 0:
        what = "the dropout of a run that began so long ago needs one process"
        raise MachineError(Problem(what, "WORLD_SIZE", remedy="no torchrun", id="R25"))
    if wanted == "eager":
        return eager, "eager steps"

    # With "auto" the device decides: each has one engine that is the fastest where it works.
    name: str = wanted
    if wanted == "auto":
        name = "captured" if device.type == "cuda" else "compiled"

    engine: Engine | None = None
    reason = why_not(name, config, device, step_rules)
    if not reason and name == "captured" and world is not None:
        reason = "several processes train together"
    remedy = "train.engine=auto, which takes the fastest engine that works here"
    if name == "captured" and config.model.state_noise > 0:
        remedy = "train.engine=auto, which takes eager steps here, and stacks in a sweep"
    if not reason:
        engine, reason = _load(name, config, world)
        remedy = "train.engine=auto, or another version of numba"

    if engine is not None:
        return engine, f"{name} steps"

    # Eager steps can train every run, so "auto" never fails. A choice by name is not replaced.
    if wanted == "auto":
        return eager, f"eager steps ({reason})"
    what = f"{name} steps are not available: {reason}"
    raise MachineError(Problem(what, "train.engine", remedy=remedy, id="R32"))


def _together(engine: SharedEngine, world: World | None) -> Engine:
    """Return the engine for the steps of several processes; itself without `world`."""
    return engine if world is None else partial(engine, world=world)


def _load(name: str, config: Config, world: World | None) -> tuple[Engine | None, str]:
    """Return the engine of this name for a run, or None and why it does not work here."""
    # Engines are imported only where they are chosen: Numba is optional, and slow to import.
    if name == "captured":
        from rnncls.steps.captured.engine import captured_steps

        return captured_steps, ""

    try:
        from rnncls.steps.compiled.code import load_program
        from rnncls.steps.compiled.description import extras_of
        from rnncls.steps.compiled.engine import compiled_steps

        # Now, so that a failure is found before the first step.
        has_extras = extras_of(config) is not None
        load_program(config.model.cell, in_shares=world is not None, has_extras=has_extras)
    # Numba or LLVM may not fit the machine or the other packages, and then raises anything.
    except Exception as error:
        return None, f"numba fails: {error!s:.200}"
    return _together(compiled_steps, world), ""


def why_not(
    engine: str, config: Config, device: torch.device, step_rules: StepRules = LATEST
) -> str:
    """Return the reason why "captured" or "compiled" steps cannot train this run; "" if they can.

    "stacked" ones are captured steps of several runs in one. `step_rules`: those of the run.
    Whether Numba works is only found out when the compiled steps are loaded.
    """
    required = "cpu" if engine == "compiled" else "cuda"
    if device.type != required:
        return f"the device is {device.type}"

    # Both are written for a recurrence that began at zero and is kept as a whole.
    if config.model.initial_state != "zeros":
        return f"model.initial_state is {config.model.initial_state}"
    # They store the weights, gradients and moments of all parameters end to end.
    if config.model.freeze_embeddings:
        return "model.freeze_embeddings is true"
    # They do not move an average.
    if config.train.average_weights is not None:
        return f"train.average_weights is {config.train.average_weights}"
    if config.train.objective != "sequence":
        return f"train.objective is {config.train.objective}"
    if config.train.recompute_every is not None:
        return f"train.recompute_every is {config.train.recompute_every:,}"
    if config.train.truncate_after is not None:
        return f"train.truncate_after is {config.train.truncate_after:,}"

    if engine == "compiled":
        return _why_not_compiled(config, step_rules)
    # Of padded states cuDNN lets nobody see; a stack has steps of its own.
    if engine == "captured" and config.model.state_noise > 0:
        return f"model.state_noise is {config.model.state_noise}"
    return _why_not_captured(config)


def _why_not_inputs(config: Config) -> str:
    # A graph embeds tokens and nothing else, and has a recurrence.
    model = config.model
    if model.cell == "none":
        return "model.cell is none"
    if model.ngrams:
        return "model.ngrams has some"
    if model.positions != "none":
        return f"model.positions is {model.positions}"
    if model.skip:
        return "model.skip is true"
    if max(input_dropout_of(config)) > 0:
        return "there is dropout outside the recurrence"
    return ""


def _why_not_captured(config: Config) -> str:
    reason = _why_not_inputs(config)
    if reason:
        return reason

    # A graph runs forwards only, and draws no dropout masks.
    if config.model.bidirectional:
        return "model.bidirectional is true"
    if config.model.dropout > 0:
        return "model.dropout is not 0"
    if config.model.pooling != "last":
        return f"model.pooling is {config.model.pooling}"
    # A graph has static shapes, but packed batches differ in their numbers of rows.
    if config.data.layout == "packed":
        return "data.layout is packed"
    if config.train.deterministic:
        return "train.deterministic is true"
    return ""


def _why_not_compiled(config: Config, step_rules: StepRules) -> str:
    # Such a run goes on as it began.
    model = config.model
    if step_rules == 1 and not _was_compiled(model):
        return "the run began before such steps were compiled"
    if config.train.precision == "bfloat16":
        return f"train.precision is {config.train.precision}"

    # Large models can be compiled, but most gain nothing: only an explicit choice compiles them.
    is_wide = model.cell != "none" and model.hidden_size > WIDEST_STEP
    if config.train.engine == "auto" and is_wide:
        return f"model.hidden_size is above {WIDEST_STEP}"

    # Looked for, not imported: that takes long, and may not be needed.
    if find_spec("numba") is None:
        return "numba is not installed: pip install 'rnncls[fast]'"
    return ""


def _was_compiled(model: ModelConfig) -> bool:
    """Return whether a run that follows the first step rules has compiled steps."""
    is_plain = model.cell == "rnn" and not model.bidirectional and model.dropout == 0
    return is_plain and model.pooling in ("last", "mean")
