"""Which way of taking steps, and why."""

from collections.abc import Callable, Generator
from importlib.util import find_spec

import torch

from rnncls.config import Config
from rnncls.data import Task
from rnncls.errors import MachineError, Problem
from rnncls.steps.eager import one_by_one
from rnncls.steps.state import TrainState

Engine = Callable[[TrainState, Task], Generator[int, None, None]]

MOST_COMPILED = (
    512  # hidden_size: beyond, torch's own products are as fast and have several threads
)


def choose(config: Config, device: torch.device) -> tuple[Engine, str]:
    """The way of `train.engine`, and its name with the reason, for people.

    An engine is a generator: it trains from the state's step to the task's last, and yields how many steps it took,
    never beyond a step after which something is due. Raises MachineError where the engine that was asked for cannot be.
    """
    wanted = config.train.engine
    if wanted == "eager":
        return one_by_one, "eager steps"
    fast = "captured" if device.type == "cuda" else "compiled"
    reason = why_not(fast if wanted == "auto" else wanted, config, device)
    if reason and wanted == "auto":
        return one_by_one, f"eager steps ({reason})"
    if reason:
        remedy = "train.engine=auto, which takes what there is"
        raise MachineError(
            Problem(f"no {wanted} steps: {reason}", "train.engine", remedy=remedy, id="R32")
        )
    if (wanted if wanted != "auto" else fast) == "captured":
        from rnncls.steps.captured.engine import captured

        return captured, "captured steps"
    try:
        from rnncls.steps.compiled.engine import compiled_steps, load_program

        load_program()  # now, not in the first step
    except (
        Exception
    ) as error:  # a numba or an LLVM that does not fit the machine or the other packages
        if wanted == "auto":
            return one_by_one, f"eager steps (numba fails: {error!s:.200})"
        remedy = "train.engine=auto, or another version of numba"
        raise MachineError(
            Problem(f"no compiled steps: {error!s:.200}", "train.engine", remedy=remedy, id="R32")
        ) from None
    return compiled_steps, "compiled steps"


def why_not(engine: str, config: Config, device: torch.device) -> str:
    """What keeps this run from captured or compiled steps; empty if nothing does."""
    model = config.model
    needed = "cuda" if engine == "captured" else "cpu"
    reasons = {
        f"the device is {device.type}": device.type != needed,
        f"model.cell is {model.cell}": model.cell != "rnn" and engine == "compiled",
        "model.bidirectional is true": model.bidirectional,
        "model.dropout is not 0": model.dropout > 0,
        f"train.precision is {config.train.precision}": config.train.precision == "bfloat16"
        and engine == "compiled",
        "data.layout is packed": config.data.layout == "packed" and engine == "captured",
        "train.deterministic is true": config.train.deterministic and engine == "captured",
        f"model.hidden_size is above {MOST_COMPILED}": engine == "compiled"
        and config.train.engine == "auto"
        and model.hidden_size > MOST_COMPILED,
        "numba is not installed: pip install 'rnncls[fast]'": engine == "compiled"
        and find_spec("numba") is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
