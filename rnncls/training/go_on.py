"""Take a run up again where its checkpoint is: the second half of every resuming."""

import json
from pathlib import Path
from typing import Any

from rnncls.config import Config, FilesConfig, flatten
from rnncls.data import Task
from rnncls.errors import CheckpointError, Problem
from rnncls.rundir.checkpoint import Checkpoint, versions
from rnncls.rundir.run_directory import RunDirectory
from rnncls.rundir.status import read_status
from rnncls.steps.engines import choose
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World, world_size
from rnncls.system.signals import StopRequest
from rnncls.system.streams import say
from rnncls.training.alike import be_alike
from rnncls.training.run import Shared, finish_board, train
from rnncls.training.states import restored_state

# A resumed run keeps these keys, and all of data and model: with others it is another run.
FIXED = (
    "seed",
    "optimizer.name",
    "train.average_weights",
    "train.best_metric",
    "train.objective",
)

# These keys decide when a run is over. A run that stopped early continues if one of them changes.
ENDING = ("max_steps", "max_epochs", "stop_at_accuracy", "patience")


def go_on(
    checkpoint: Checkpoint,
    config: Config,
    task: Task,
    run: RunDirectory,
    shared: Shared | None = None,
    world: World | None = None,
    asked: StopRequest | None = None,
    goes_on: bool = False,
) -> TrainState:
    """Train a run from its checkpoint to its end, or say that it is complete.

    `config`: what it is resumed with, and `task` that of this config. The others are as in `train`.
    Raises: what `resume` raises.
    """
    state = restored_state(checkpoint, task)
    engine = choose(config, state.device, state.step_rules, world)
    if world is not None:
        be_alike(world, state, task, engine[1])

    if _is_complete(state, task, checkpoint):
        say(_completion(state, task))
        # Killed after its last checkpoint, it could not say so itself.
        if run.died and not goes_on:
            run.note_finished(state)
        # A moved file is where the run's config says, which `eval` reads, too.
        if _as_first(world, config.data != checkpoint.config.data):
            task.config = checkpoint.config.model_copy(update={"data": config.data})
            run.begin_again(state, task)
        # So that a control that is added to a finished run is resumed with it.
        if task.config.train.baseline != checkpoint.config.train.baseline:
            baseline = task.config.train.baseline
            train_keys = checkpoint.config.train.model_copy(update={"baseline": baseline})
            task.config = task.config.model_copy(update={"train": train_keys})
            run.save(state, task)
            run.begin_again(state, task)
        if world is None or world.is_first:
            finish_board(state, task, run, shared, asked)
        return state

    # The bar of a sweep counts all steps of its members, not those of this call alone.
    if shared is not None:
        shared.report_steps(state.step)
    state.stopped = False
    _warn_of_other_machine(checkpoint, state, run.path)

    # Saved now, or a kill before the next checkpoint would bring back the old config.
    if _as_first(world, config != checkpoint.config):
        run.save(state, task)
    run.begin_again(state, task)
    return train(state, task, run, engine, shared, world, asked, goes_on)


def _as_first(world: World | None, answer: bool) -> bool:
    """Return the answer of the first process: the paths of data files may differ by machine."""
    return answer if world is None else world.first(lambda: answer)


def _completion(state: TrainState, task: Task) -> str:
    """Return that a run is complete, and what would have to change for it to go on."""
    text = f"already complete at step {state.step:,}"
    train = task.config.train
    if state.step < task.max_steps:
        return f"{text}: it stopped before its last step; train.patience=... lets it go on"
    if task.max_steps < train.max_steps:
        return f"{text}: train.max_epochs = {train.max_epochs:,} ends it there"
    return text


def _is_complete(state: TrainState, task: Task, checkpoint: Checkpoint) -> bool:
    """Return whether nothing is left to do, neither steps nor what is due after the last one."""
    before = checkpoint.config.train
    after = task.config.train
    may_continue = any(getattr(after, key) != getattr(before, key) for key in ENDING)

    is_over = state.step >= task.max_steps or (state.stopped and not may_continue)
    return is_over and not state.due


def require_same_run(checkpoint: Checkpoint, config: Config) -> None:
    """Raise CheckpointError if a resumed run would be another run with this config.

    That is where data, model, seed, kind of optimizer, objective or the metric of the best
    checkpoint would change.
    """
    before = flatten(checkpoint.config)
    after = flatten(config)
    changed = [key for key in after if after[key] != before.get(key)]
    forbidden = [key for key in changed if _is_fixed(key, config)]
    if forbidden:
        raise CheckpointError(
            Problem(
                "a resumed run keeps its data, model, seed, optimizer, objective, best_metric and "
                "average_weights",
                str(checkpoint.path),
                found=", ".join(describe_change(key, before, after) for key in forbidden),
                remedy="rnncls train CONFIG --init-from, which starts a new run from these weights",
                id="K21",
            )
        )


def _is_fixed(key: str, config: Config) -> bool:
    # Files may have moved; their contents are compared with the fingerprints in the checkpoint.
    if isinstance(config.data, FilesConfig) and key in ("data.train", "data.val", "data.test"):
        return False
    return key.startswith(("data.", "model.")) or key in FIXED


def describe_change(key: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    return f"{key}: {json.dumps(before[key])} -> {json.dumps(after[key])}"


def _warn_of_other_machine(checkpoint: Checkpoint, state: TrainState, run_dir: Path) -> None:
    """Warn where the last bits may differ: they are promised for the same versions and device.

    Another number of processes adds up in another order, too.
    """
    processes = str(read_status(run_dir).get("world_size", 1))
    saved = {
        **checkpoint.state.versions,
        "device": checkpoint.state.device,
        "processes": processes,
    }
    here = {**versions(), "device": str(state.device), "processes": str(world_size())}
    changes = []
    for name, value in here.items():
        if saved.get(name) != value:
            changes.append(f"{name} {saved.get(name)} -> {value}")

    if changes:
        what = f"rnncls: warning[K22]: results may differ in the last bits: {', '.join(changes)}"
        say(what)
