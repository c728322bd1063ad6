"""Make the state of a run: a fresh one, or the one that a checkpoint holds."""

import torch

from rnncls.data import Task
from rnncls.errors import CheckpointError, Problem
from rnncls.model.classifier import build_model
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.restore import fitting_weights, is_finite, restore_optimizer
from rnncls.steps.optim import build_optimizer, state_names
from rnncls.steps.state import TrainState
from rnncls.system.device import make_deterministic, resolve_device, set_precision


def new_state(task: Task, source: Checkpoint | None = None) -> TrainState:
    """Return a fresh model and optimizer on the config's device.

    `source`: a checkpoint to take the weights from, instead of initial ones.

    Raises: MachineError without the device. CheckpointError if the weights of `source` do not fit.
    """
    config = task.config
    weights = None if source is None else fitting_weights(source, config, task.sizes)

    # Before CUDA is first used: it reads some of these settings only then.
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    if config.train.deterministic:
        make_deterministic()
    set_precision(config.train.precision)

    device = resolve_device(config.device)
    # Built on the CPU, so that a seed gives the same initial weights on every device.
    model = build_model(config, task.sizes).to(device)
    optimizer = build_optimizer(model.parameters(), config.optimizer)
    if weights is not None:
        model.load_state_dict(weights)

    # A run of no steps evaluates its first weights and is over.
    return TrainState(
        model, optimizer, due=task.max_steps == 0, best_metric=config.train.best_metric
    )


def restored_state(checkpoint: Checkpoint, task: Task) -> TrainState:
    """Return the checkpoint's model, optimizer and counters, for training on `task`.

    Raises: CheckpointError if anything in it does not fit the task. MachineError.
    """
    state = new_state(task, checkpoint)
    if not is_finite(checkpoint):
        raise CheckpointError(
            Problem(
                "the weights are not finite",
                str(checkpoint.path),
                remedy="rnncls train CONFIG --init-from with an earlier checkpoint file",
                id="K13",
            )
        )

    optimizer_state = state_names(task.config.optimizer)
    restore_optimizer(checkpoint, state.model, state.optimizer, optimizer_state)

    # The step first: the counters are checked against it.
    state.step = checkpoint.state.step
    try:
        state.restore_counters(checkpoint.state.counters)
    except ValueError as error:
        raise CheckpointError(
            Problem(
                "the counters do not fit",
                str(checkpoint.path),
                found=str(error),
                remedy="--init-from, which takes the weights alone",
                id="K9",
            )
        ) from None
    return state
