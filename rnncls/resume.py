"""Going on with a run from its newest whole checkpoint."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from rnncls.checkpoint import Checkpoint, fitting_weights, recover, restore_optimizer
from rnncls.config import Config, flatten, parse_config
from rnncls.errors import CheckpointError, Problem
from rnncls.optim import state_names
from rnncls.rundir import locked, remove_leftovers
from rnncls.runlog import rewind
from rnncls.train import TrainState, new_state, run


def resume(run_dir: str | Path, overrides: Sequence[str] = ()) -> TrainState:
    """Go on with a run from its newest whole checkpoint, as if it had never stopped.

    On the same kind of machine, with the same versions and thread count, weights, optimizer state and logged values are
    those of an uninterrupted run, to the bit. `overrides` may change how training goes on, not what is trained.
    Raises what `fit` raises, and CheckpointError when there is nothing whole to go on from.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "checkpoints").is_dir():
        expected = "a run directory, with checkpoints in checkpoints/"
        raise CheckpointError(Problem("nothing to resume", str(run_dir), expected, id="K1"))
    with locked(run_dir):
        remove_leftovers(run_dir)
        checkpoint = recover(run_dir)
        config = resumed_config(checkpoint, overrides)
        state = restored_state(checkpoint, config)
        if state.step >= config.train.max_steps or (state.stopped and config == checkpoint.config):
            print(f"already complete at step {state.step:,}", file=sys.stderr)
            return state
        rewind(run_dir, config, state.step)
        return run(state, config, run_dir)


def restored_state(checkpoint: Checkpoint, config: Config) -> TrainState:
    """Model, optimizer and counters of the checkpoint, for training with `config`. Raises CheckpointError."""
    state = new_state(config)
    state.model.load_state_dict(fitting_weights(checkpoint, state.model))
    restore_optimizer(checkpoint, state.model, state.optimizer, state_names(config.optimizer))
    if not all(bool(torch.isfinite(tensor).all()) for tensor in checkpoint.model.values()):
        remedy = "an earlier checkpoint of the run"
        raise CheckpointError(Problem("the weights are not finite", str(checkpoint.path), remedy=remedy, id="K13"))
    state.step = checkpoint.state.step
    try:
        state.restore_counters(checkpoint.state.counters)
    except (KeyError, TypeError):
        found = ", ".join(checkpoint.state.counters)
        raise CheckpointError(Problem("the counters do not fit", str(checkpoint.path), found=found, id="K9")) from None
    return state


def resumed_config(checkpoint: Checkpoint, overrides: Sequence[str]) -> Config:
    """The checkpoint's config with `overrides`, each change named on stderr.

    Raises CheckpointError where data, model, seed or kind of optimizer would change: that is another run.
    """
    old = checkpoint.config
    config = parse_config(old.model_dump(mode="json"), str(checkpoint.path), overrides)
    before, after = flatten(old), flatten(config)
    changed = [key for key in after if after[key] != before[key]]
    fixed = [key for key in changed if key.startswith(("data.", "model.")) or key in ("seed", "optimizer.name")]
    if fixed:
        found = ", ".join(f"{key}: {json.dumps(before[key])} -> {json.dumps(after[key])}" for key in fixed)
        remedy = "train --config ... --init-from, which starts a new run from these weights"
        what = "a resumed run keeps its data, model, seed and optimizer"
        raise CheckpointError(Problem(what, str(checkpoint.path), found=found, remedy=remedy, id="K21"))
    for key in changed:
        print(f"changed on resume: {key}: {json.dumps(before[key])} -> {json.dumps(after[key])}", file=sys.stderr)
    return config
