"""Resume a run from its newest undamaged checkpoint."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rnncls.config import Config, FilesConfig, flatten, parse_config
from rnncls.data import Task, load_task
from rnncls.errors import CheckpointError, Problem
from rnncls.rundir.checkpoint import Checkpoint, versions
from rnncls.rundir.claim import reopen_run
from rnncls.rundir.moved import OF_RESUMING, with_files_of_run
from rnncls.rundir.of_many import of_many
from rnncls.rundir.status import read_status
from rnncls.steps.engines import choose
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World, world_size
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


def resume(
    run_dir: str | Path,
    overrides: Sequence[str] = (),
    shared: Shared | None = None,
    say_directory: Callable[[Path], object] | None = None,
    data_dir: Path | None = None,
    world: World | None = None,
) -> TrainState:
    """Resume a run from its newest undamaged checkpoint, as if it had never stopped.

    On the same kind of machine, with the same versions and thread count, weights, optimizer state
    and logged values are those of an uninterrupted run, to the bit. `overrides` may change how
    training continues, not what is trained. `shared`: what the members of a sweep have in common.
    `say_directory` is called with the run directory once it is known to be one. `data_dir`: where
    data files are looked for that were moved, besides the places beside the run. `world`: the
    processes that train it together, each of which calls this. There may be more or fewer of them
    than before.

    Raises: what `fit` raises, and CheckpointError if there is nothing undamaged to resume from.
    """
    with of_many(reopen_run(Path(run_dir)), world) as run:
        checkpoint = run.recover()
        if say_directory is not None:
            say_directory(run.path)
        config = resumed_config(checkpoint, overrides)
        if isinstance(config.data, FilesConfig):
            # Before the files are parsed: another content may look like a mistake in the data.
            search = shared.search if shared is not None else None
            data = with_files_of_run(checkpoint, config.data, OF_RESUMING, data_dir, search)
            config = config.model_copy(update={"data": data})
        said = None if shared is None else shared.said
        task = restored_task(checkpoint, config, said)
        state = restored_state(checkpoint, task)
        engine = choose(config, state.device, state.step_rules, world)
        if world is not None:
            be_alike(world, state, task, engine[1])

        if _is_complete(state, task, checkpoint):
            say(_completion(state, task))
            # Killed after its last checkpoint, it could not say so itself.
            if run.died:
                run.note_finished(state)
            # A moved file is where the run's config says, which `eval` reads, too.
            if _as_first(world, config.data != checkpoint.config.data):
                task.config = checkpoint.config.model_copy(update={"data": config.data})
                run.begin_again(state, task)
            if world is None or world.is_first:
                finish_board(state, task, run, shared)
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
        return train(state, task, run, engine, shared, world)


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


def resumed_config(checkpoint: Checkpoint, overrides: Sequence[str]) -> Config:
    """Return the checkpoint's config with `overrides`, and name each change on stderr.

    Raises: CheckpointError where data, model, seed, kind of optimizer, objective, the metric of the
    best checkpoint or the average of the weights would change. ConfigError.
    """
    # Parsed again, so that overrides are checked as those of a new run are.
    old = checkpoint.config
    config = parse_config(old.model_dump(mode="json"), str(checkpoint.path), overrides)
    before = flatten(old)
    after = flatten(config)
    changed = [key for key in after if after[key] != before[key]]

    forbidden = [key for key in changed if _is_fixed(key, config)]
    if forbidden:
        raise CheckpointError(
            Problem(
                "a resumed run keeps its data, model, seed, optimizer, objective, best_metric and "
                "average_weights",
                str(checkpoint.path),
                found=", ".join(_describe_change(key, before, after) for key in forbidden),
                remedy="rnncls train CONFIG --init-from, which starts a new run from these weights",
                id="K21",
            )
        )

    for key in changed:
        say(f"changed on resume: {_describe_change(key, before, after)}")
    return config


def _is_fixed(key: str, config: Config) -> bool:
    # Files may have moved; their contents are compared with the fingerprints in the checkpoint.
    if isinstance(config.data, FilesConfig) and key in ("data.train", "data.val", "data.test"):
        return False
    return key.startswith(("data.", "model.")) or key in FIXED


def _describe_change(key: str, before: dict[str, Any], after: dict[str, Any]) -> str:
    return f"{key}: {json.dumps(before[key])} -> {json.dumps(after[key])}"


def restored_task(checkpoint: Checkpoint, config: Config, said: set[str] | None = None) -> Task:
    """Return the checkpoint's task. `said` are lines that need not be said again.

    Raises: DataError.
    """
    return load_task(config, checkpoint.vocabulary, progress=True, said=said)


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
