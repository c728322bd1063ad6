"""Going on with a run from its newest whole checkpoint."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rnncls.config import Config, FilesConfig, flatten, parse_config
from rnncls.data import Task, load_task
from rnncls.data.dataset import require_unchanged_data
from rnncls.errors import CheckpointError, Problem, printable
from rnncls.rundir.checkpoint import (
    Checkpoint,
    fitting_weights,
    is_finite,
    restore_optimizer,
    save,
    versions,
)
from rnncls.rundir.checkpoint_files import recover
from rnncls.rundir.lock import locked
from rnncls.rundir.log import prepare
from rnncls.rundir.paths import CHECKPOINTS
from rnncls.rundir.status import note_status, read_status
from rnncls.steps.optim import state_names
from rnncls.steps.state import TrainState
from rnncls.training.fit import new_state
from rnncls.training.run import Company, run

FIXED = ("seed", "optimizer.name", "train.best_metric")  # as are all of data and model
ENDING = (
    "max_steps",
    "max_epochs",
    "stop_at_accuracy",
    "patience",
)  # keys that say when a run is over


def resume(
    run_dir: str | Path, overrides: Sequence[str] = (), company: Company | None = None
) -> TrainState:
    """Go on with a run from its newest whole checkpoint, as if it had never stopped.

    On the same kind of machine, with the same versions and thread count, weights, optimizer state and logged values are
    those of an uninterrupted run, to the bit. `overrides` may change how training goes on, not what is trained.
    Raises what `fit` raises, and CheckpointError when there is nothing whole to go on from.
    """
    run_dir = Path(run_dir)
    folder = run_dir / CHECKPOINTS
    if folder.is_symlink():
        remedy = "the run directory that it belongs to"
        raise CheckpointError(
            Problem("a symbolic link in place of a folder", str(folder), remedy=remedy, id="K7")
        )
    if not folder.is_dir():
        expected = "a run directory, with checkpoints in checkpoints/"
        found = ", ".join(sorted(path.name for path in run_dir.glob("*"))[:5]) or "nothing"
        raise CheckpointError(
            Problem("nothing to resume", str(run_dir), expected=expected, found=found, id="K1")
        )
    died = read_status(run_dir).get("state") == "died"
    with locked(run_dir):
        if died:
            print("the run died without a word (killed?)", file=sys.stderr)
        checkpoint = recover(run_dir)
        config = resumed_config(checkpoint, overrides)
        task = restored_task(checkpoint, config)
        state = restored_state(checkpoint, task)
        lifted = any(
            getattr(config.train, key) != getattr(checkpoint.config.train, key) for key in ENDING
        )
        over = state.step >= task.max_steps or (state.stopped and not lifted)
        if over and not state.due:
            print(f"already complete at step {state.step:,}", file=sys.stderr)
            if died:  # after its last checkpoint
                note_status(run_dir, state, "finished", 0)
            return state
        if company is not None:
            company.update(state.step)
        state.stopped = False
        _warn_of_other_machine(checkpoint, state)
        if config != checkpoint.config:
            save(state, task, run_dir)  # or a kill would bring back the config from before
        prepare(run_dir, config, last_logged=state.step - state.due)
        return run(state, task, run_dir, company)


def restored_task(checkpoint: Checkpoint, config: Config) -> Task:
    """The checkpoint's task. Raises CheckpointError when a file is no longer what it was, and DataError."""
    if isinstance(config.data, FilesConfig):
        remedy = "the old file, or train --config ... --init-from for a new run on the new one"
        require_unchanged_data(config.data, checkpoint.state.fingerprints, remedy)
    return load_task(config, checkpoint.vocabulary, progress=True)


def restored_state(checkpoint: Checkpoint, task: Task) -> TrainState:
    """Model, optimizer and counters of the checkpoint, for training on `task`. Raises CheckpointError."""
    config = task.config
    weights = fitting_weights(checkpoint, config, task.sizes)
    if not is_finite(checkpoint):
        remedy = "train --config ... --init-from with an earlier checkpoint file"
        raise CheckpointError(
            Problem("the weights are not finite", str(checkpoint.path), remedy=remedy, id="K13")
        )
    state = new_state(task)
    state.model.load_state_dict(weights)
    restore_optimizer(checkpoint, state.model, state.optimizer, state_names(config.optimizer))
    state.step = checkpoint.state.step
    try:
        state.restore_counters(checkpoint.state.counters)
    except ValueError as error:
        remedy = "--init-from, which takes the weights alone"
        what, where = "the counters do not fit", str(checkpoint.path)
        raise CheckpointError(
            Problem(what, where, found=f"{error}", remedy=remedy, id="K9")
        ) from None
    return state


def _warn_of_other_machine(checkpoint: Checkpoint, state: TrainState) -> None:
    """Bits are promised for the same versions and kind of device only."""
    saved = {**checkpoint.state.versions, "device": checkpoint.state.device}
    here = {**versions(), "device": str(next(state.model.parameters()).device)}
    changes = [
        f"{name} {saved.get(name)} -> {here[name]}"
        for name in here
        if saved.get(name) != here[name]
    ]
    if changes:
        what = f"rnncls: warning[K22]: results may differ in the last bits: {', '.join(changes)}"
        print(printable(what), file=sys.stderr)


def resumed_config(checkpoint: Checkpoint, overrides: Sequence[str]) -> Config:
    """The checkpoint's config with `overrides`, each change named on stderr.

    Raises CheckpointError where data, model, seed, kind of optimizer or what the best is would change: that is another
    run.
    """
    old = checkpoint.config
    config = parse_config(old.model_dump(mode="json"), str(checkpoint.path), overrides)
    before, after = flatten(old), flatten(config)
    changed = [key for key in after if after[key] != before[key]]
    moved = (
        ("data.train", "data.val", "data.test") if isinstance(config.data, FilesConfig) else ()
    )  # the same files?
    fixed = [key for key in changed if key.startswith(("data.", "model.")) or key in FIXED]
    fixed = [key for key in fixed if key not in moved]
    if fixed:
        found = ", ".join(
            f"{key}: {json.dumps(before[key])} -> {json.dumps(after[key])}" for key in fixed
        )
        remedy = "train --config ... --init-from, which starts a new run from these weights"
        what = "a resumed run keeps its data, model, seed, optimizer and best_metric"
        raise CheckpointError(
            Problem(what, str(checkpoint.path), found=found, remedy=remedy, id="K21")
        )
    for key in changed:
        print(
            f"changed on resume: {key}: {json.dumps(before[key])} -> {json.dumps(after[key])}",
            file=sys.stderr,
        )
    return config
