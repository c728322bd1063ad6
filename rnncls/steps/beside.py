"""Steps beside a run: of a copy of its state, so that the run itself is as if they were not."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from rnncls.config import Config
from rnncls.steps.optim import build_optimizer
from rnncls.steps.state import TrainState


def copy_of(state: TrainState, config: Config) -> TrainState:
    """Return a state with the same weights, optimizer state and step, and no totals.

    `eager.train_step` takes it further, inside `same_random_state`. Nothing is shared, whatever
    tensors an engine keeps those of the run in.
    """
    model = copy.deepcopy(state.model)
    optimizer = build_optimizer(model.parameters(), config.optimizer)
    for original, copied in zip(state.model.parameters(), model.parameters(), strict=True):
        # Before its first update, an optimizer has no state, and asking it would make an empty one.
        for name, value in state.optimizer.state.get(original, {}).items():
            optimizer.state[copied][name] = value.clone() if isinstance(value, Tensor) else value
    return TrainState(
        model, optimizer, step=state.step, skipped=state.skipped, step_rules=state.step_rules
    )


@contextmanager
def same_random_state(state: TrainState) -> Iterator[None]:
    """Give torch's generator back as it was. Only the oldest runs draw their dropout from it."""
    if state.step_rules != 1:
        yield
        return

    devices = [state.device] if state.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield
