"""Start a new run, and train it: start reading here.

`fit` makes a state and a run directory, `train` has an engine take steps. A resumed run
(resume.py) restores its state and ends in the same `train`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from rnncls.config import Config
from rnncls.data import Task, load_task
from rnncls.rundir.checkpoint_files import read_best
from rnncls.rundir.run_directory import RunDirectory, create_run, require_unused
from rnncls.steps.engines import Engine, choose
from rnncls.steps.state import TrainState
from rnncls.system.device import describe, describe_precision
from rnncls.system.memory import reporting_memory
from rnncls.system.signals import StopRequest, stop_requests
from rnncls.training.loop import follow
from rnncls.training.profiling import traced
from rnncls.training.states import new_state


@dataclass(frozen=True)
class Shared:
    """What the members of a sweep, which train in one process, have in common."""

    stop: StopRequest  # instead of signal handlers of the run's own
    report_steps: Callable[[int], object]  # instead of a bar; is told how many steps were taken
    engine: Engine | None = None  # takes the steps of all members at once
    compared: tuple[str, ...] = ()  # the config keys in which the members differ


def fit(
    config: Config,
    run_dir: str | Path,
    init_from: str | Path | None = None,
    shared: Shared | None = None,
) -> TrainState:
    """Train `config`, writing everything into `run_dir`, which must be new or empty.

    `init_from`: a checkpoint or run to take the first weights from; with files, its vocabulary and
    labels too. `shared`: what the members of a sweep have in common.

    Raises: ConfigError for a used directory. MachineError without the device. DataError.
    CheckpointError if `init_from` does not fit. NonFiniteError. WriteError. OutOfMemory.
    Interrupted after a signal, once the step is saved.
    """
    run_dir = Path(run_dir)
    require_unused(run_dir)  # before files are read, which may take long

    source = None
    vocabulary = None
    origin = ""
    if init_from is not None:
        source = read_best(init_from)
        vocabulary = source.vocabulary
        origin = f"began with the weights of {source.path}, step {source.state.step}"

    with reporting_memory(config):
        task = load_task(config, vocabulary, progress=True)
        state = new_state(task, source)
    engine = choose(config, state.device)

    with create_run(run_dir) as run:
        run.begin(state, task, origin)
        return train(state, task, run, engine, shared)


def train(
    state: TrainState,
    task: Task,
    run: RunDirectory,
    engine: tuple[Engine, str],
    shared: Shared | None = None,
) -> TrainState:
    """Train from the state's step to the task's last, and return the state.

    `engine`: as `choose` returns it. `run` records how training ends. Raises what `fit` raises.
    """
    take_steps, engine_name = engine
    if shared is not None and shared.engine is not None:
        take_steps = shared.engine
        engine_name = "one stack"

    device = state.device
    precision = describe_precision(task.config.train.precision, device)
    start = f"training on {describe(device)}, {precision}, {engine_name}"
    if state.step:
        start += f", from step {state.step:,}"

    report_steps = None if shared is None else shared.report_steps
    compared = () if shared is None else shared.compared
    signals = stop_requests() if shared is None else nullcontext(shared.stop)

    with signals as stop, run.recording(state, task, report_steps, compared) as log:
        log.say(start)
        steps = take_steps(state, task)
        if task.config.train.profile:
            steps = traced(steps, task.max_steps - state.step, log)
        follow(steps, state, task, run, log, stop)
    return state
