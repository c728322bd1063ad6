"""The n-gram control of a run: the same model without its recurrence, trained after it.

It is a run of its own, in the folder control/ of the run, on the same data, with the same seed and
schedule: where both are equally good, the order of the tokens beyond an n-gram adds nothing.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rnncls.config import Config, ModelConfig
from rnncls.data import Task
from rnncls.errors import Interrupted
from rnncls.model.rules import LATEST
from rnncls.rundir.checkpoint_files import step_files
from rnncls.rundir.claim import create_run, reopen_run
from rnncls.rundir.of_many import of_many
from rnncls.rundir.paths import CHECKPOINTS, CONTROL
from rnncls.rundir.run_directory import RunDirectory
from rnncls.steps.engines import choose
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World
from rnncls.system.signals import StopRequest, stop_requests
from rnncls.system.streams import say
from rnncls.training.alike import be_alike
from rnncls.training.go_on import go_on, require_same_run
from rnncls.training.run import Shared, train
from rnncls.training.states import new_state

# Of a model that has none.
NGRAMS = (2, 3)

# The keys of the model that the control does not keep. A position is in a mean what a bias is.
OF_RECURRENCE = (
    "hidden_size",
    "num_layers",
    "nonlinearity",
    "bias",
    "dropout",
    "bidirectional",
    "pooling",
    "skip",
    "initial_state",
    "recurrent_init",
    "state_noise",
    "positions",
)


def has_control(config: Config) -> bool:
    """Return whether a control is to be trained after a run of this config.

    A run that has no recurrence itself is its own control.
    """
    return config.train.baseline == "control" and config.model.cell != "none"


def control_config(config: Config) -> Config:
    """Return the config of the n-gram control of a run.

    It keeps data, seed, optimizer, schedule, what the embeddings are and how they are dropped, and
    when training ends. It has no recurrence, and nothing that is about one. Its engine is chosen
    anew, unless no step is to be compiled, and nothing is drawn of it.
    """
    # By name, so that a key that comes later is kept.
    defaults = ModelConfig()
    changed = {key: getattr(defaults, key) for key in OF_RECURRENCE}
    changed |= {"cell": "none", "ngrams": config.model.ngrams or NGRAMS}
    model = config.model.model_copy(update=changed)
    train = config.train.model_copy(
        update={
            "baseline": "none",
            "recompute_every": None,
            "truncate_after": None,
            "engine": "eager" if config.train.engine == "eager" else "auto",
            "plots": False,
            "diagnostics_every": None,
            "histogram_every": None,
            "profile": False,
        }
    )
    return config.model_copy(update={"model": model, "train": train})


def then_control(
    train_model: Callable[[StopRequest | None], TrainState],
    task: Task,
    run: RunDirectory,
    shared: Shared | None = None,
    world: World | None = None,
) -> TrainState:
    """Train a model, and then its control if the config asks for one; return the model's state.

    `train_model` gets what signals ask of both; None where no control follows, and then it catches
    signals itself. The status of the run says how both have ended. Members of a sweep, which have
    things in common (`shared`), have no control.

    Raises: what `fit` raises.
    """
    if shared is not None or not has_control(task.config):
        return train_model(None)

    with stop_requests() as asked:
        state = train_model(asked)
        with run.ending(state):
            # A signal after the last step has asked for the whole run to end.
            stop = asked
            if world is not None:
                stop = world.follow(asked)
                world.agree()
            stop.check(state.step, str(run.path))
            try:
                _train_control(task, run.path, asked, world)
            except Interrupted as error:
                raise _with_remedy(error, run.path) from None
    return state


def _train_control(task: Task, run_dir: Path, asked: StopRequest, world: World | None) -> None:
    """Train the control of a run from where it stands to its end. Raises: what `fit` raises."""
    path = run_dir / CONTROL
    config = control_config(task.config)
    # The data was read already, and what depends on it does not depend on the model.
    task = copy.copy(task)
    task.config = config

    def has_begun() -> bool:
        return bool(step_files(path / CHECKPOINTS))

    if has_begun() if world is None else world.first(has_begun):
        with of_many(reopen_run(path), world) as run:
            checkpoint = run.recover()
            require_same_run(checkpoint, config)
            say("going on with the n-gram control ...")
            go_on(checkpoint, config, task, run, world=world, asked=asked)
        return

    say("training the n-gram control ...")
    state = new_state(task, step_rules=LATEST)
    engine = choose(config, state.device, state.step_rules, world)
    if world is not None:
        be_alike(world, state, task, engine[1])
    with of_many(create_run(path), world) as run:
        run.begin(state, task, f"the n-gram control of {run_dir}")
        train(state, task, run, engine, world=world, asked=asked)


def _with_remedy(error: Interrupted, run_dir: Path) -> Interrupted:
    """Return the error of a control that was interrupted, with the command for the whole run."""
    # Only here: this module is imported at every start of a training.
    from shlex import quote

    (problem,) = error.problems
    remedy = f"rnncls train --resume {quote(str(run_dir))}"
    what = problem.what.replace("interrupted", "interrupted in the n-gram control", 1)
    return Interrupted(error.exit_code, replace(problem, what=what, remedy=remedy))
