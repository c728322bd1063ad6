"""A new run: task, model, directory. Start reading here."""

from pathlib import Path

import torch

from rnncls.config import Config
from rnncls.data import Task, load_task
from rnncls.errors import NonFiniteError
from rnncls.model.classifier import build_model
from rnncls.rundir.checkpoint import fitting_weights, read_checkpoint, save
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.rundir.lock import created, require_unused
from rnncls.rundir.log import prepare
from rnncls.rundir.status import note_status
from rnncls.steps.engines import choose
from rnncls.steps.optim import build_optimizer
from rnncls.steps.state import TrainState
from rnncls.system.device import make_deterministic, resolve_device, set_precision
from rnncls.training.run import Company, reporting_memory, run


def fit(
    config: Config,
    run_dir: str | Path,
    init_from: str | Path | None = None,
    company: Company | None = None,
) -> TrainState:
    """Train `config`, writing everything into `run_dir`, which must be new or empty.

    `init_from`: a checkpoint or run whose weights to start from instead of fresh ones; with files, also its vocabulary
    and labels. Raises MachineError without the device, ConfigError for a used directory, DataError, CheckpointError,
    NonFiniteError, WriteError, OutOfMemory, and Interrupted after a signal.
    """
    run_dir = Path(run_dir)
    require_unused(run_dir)  # before files are read
    first = None if init_from is None else read_checkpoint(find_checkpoint(init_from))
    with reporting_memory(config):
        task = load_task(config, first.vocabulary if first else None, progress=True)
        weights = None if first is None else fitting_weights(first, config, task.sizes)
        state = new_state(task)
    if weights is not None:
        state.model.load_state_dict(weights)
    state.due = task.max_steps == 0  # then the only evaluation is that of the first weights
    with created(run_dir):
        try:
            save(state, task, run_dir)  # from here on the run can be resumed
        except NonFiniteError as error:
            note_status(run_dir, state, "failed", error.exit_code, error.problems[0].id)
            raise
        origin = f"began with the weights of {first.path}, step {first.state.step}" if first else ""
        prepare(run_dir, config, last_logged=-1, comment=origin)
        return run(state, task, run_dir, company)


def new_state(task: Task) -> TrainState:
    """A fresh model and optimizer on the config's device. Raises MachineError without it or the engine asked for."""
    config = task.config
    if config.train.num_threads is not None:
        torch.set_num_threads(config.train.num_threads)
    if config.train.deterministic:
        make_deterministic()
    set_precision(config.train.precision)
    device = resolve_device(config.device)
    choose(config, device)  # raises what it has to raise before anything is written
    model = build_model(config, task.sizes).to(device)
    return TrainState(model, build_optimizer(model.parameters(), config.optimizer))
