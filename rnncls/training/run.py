"""The life of a run that has a state and a directory. New and resumed runs both live here."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

from rnncls.dashboard.board import Board
from rnncls.dashboard.recording import Records
from rnncls.data import Task
from rnncls.data.files.search import Search
from rnncls.errors import RnnclsError
from rnncls.model.rules import LATEST, StepRules
from rnncls.rundir.hparams import InSweep
from rnncls.rundir.log import RunLog
from rnncls.rundir.run_directory import RunDirectory
from rnncls.steps.engines import Engine
from rnncls.steps.state import TrainState
from rnncls.system.device import describe, describe_precision
from rnncls.system.distributed import World
from rnncls.system.signals import StopRequest, stop_requests
from rnncls.training.advice import LEAST_STEPS
from rnncls.training.loop import follow, timed
from rnncls.training.pays import warn_of_processes
from rnncls.training.profiling import write_profile
from rnncls.training.progress import validate, way_of_validation


@dataclass(frozen=True)
class Shared:
    """The things that members of a sweep, which train in one process, have in common."""

    stop: StopRequest  # instead of signal handlers of the run's own
    report_steps: Callable[[int], object]  # instead of a bar; is told how many steps were taken
    engine: Engine | None = None  # takes the steps of all members at once
    in_sweep: InSweep | None = None  # the place of one member
    search: Search | None = None  # where data files are looked for that were moved
    said: set[str] | None = None  # what was said of the data, which need not be said again
    step_rules: StepRules = LATEST  # of members that begin


def train(
    state: TrainState,
    task: Task,
    run: RunDirectory,
    engine: tuple[Engine, str],
    shared: Shared | None = None,
    world: World | None = None,
    asked: StopRequest | None = None,
    goes_on: bool = False,
) -> TrainState:
    """Train from the state's step to the task's last, and return the state.

    `engine`: as `choose` returns it. `run` records how training ends. `world`: the processes that
    train together; None for one alone. `asked`: what signals ask, if somebody else catches them.
    `goes_on`: the run is not finished then, because its control follows. Raises what `fit` raises.
    """
    take_steps, engine_name = engine
    # The stack stands in for the engine of each of its members.
    if shared is not None and shared.engine is not None:
        take_steps = shared.engine
        engine_name = "one stack"

    device = state.device
    precision = describe_precision(task.config.train.precision, device)
    start = f"training on {describe(device)}, {precision}, {engine_name}"
    if world is not None:
        start += f", {world.size} processes"
    if state.step:
        start += f", from step {state.step:,}"

    report_steps = None if shared is None else shared.report_steps
    in_sweep = None if shared is None else shared.in_sweep

    # The signals outside: until the last status is written, none may end the process halfway.
    with (
        _signals(shared, asked) as signals,
        run.recording(state, task, report_steps, in_sweep, goes_on) as log,
    ):
        stop = signals if world is None else world.follow(signals)
        log.say(start)
        for line in _described(task):
            log.say(line)
        if world is not None:
            warn_of_processes(state, task, engine_name, world, log)
        board = Board(state, task, log, _draws(task, shared) and not log.is_silent)
        board.begin(engine_name)

        if task.config.train.profile and state.step < task.max_steps:
            if world is None:
                write_profile(state, task, log, stop, engine_name)
            else:
                log.say("rnncls: warning: no profile: train.profile measures one process")
        steps = timed(take_steps(state, task), state)
        follow(steps, state, task, run, log, stop, board, world)

        # Pictures may fill the disk, or somebody end the process: the run is finished already.
        if not goes_on:
            with suppress(RnnclsError):
                run.note_finished(state)
            if world is not None:
                world.release()
        board.finish(stop)
    return state


def _described(task: Task) -> Iterator[str]:
    """Yield lines on which sequences are for what; none where all is as one expects."""
    if task.described_split:
        yield task.described_split
    used, available = task.validation_sizes
    if available is not None and used < available:
        yield f"validating on {used:,} of {available:,} sequences (train.eval_samples)"


def _signals(
    shared: Shared | None, asked: StopRequest | None
) -> AbstractContextManager[StopRequest]:
    """Return what signals ask of a run: caught here, unless somebody else does."""
    if shared is not None:
        return nullcontext(shared.stop)
    return stop_requests() if asked is None else nullcontext(asked)


def finish_board(
    state: TrainState,
    task: Task,
    run: RunDirectory,
    shared: Shared | None,
    asked: StopRequest | None = None,
) -> None:
    """Draw what the process of a complete run has left to be drawn, because it was killed.

    `asked`: as in `train`. Raises: Interrupted after a signal, while the model is evaluated.
    """
    if not _draws(task, shared) or not Records(run.path, state.step).waiting():
        return
    in_sweep = None if shared is None else shared.in_sweep
    with (
        _signals(shared, asked) as stop,
        # `int` in the place of a bar: there are no steps to report.
        RunLog(run.path, task, state.step, state.step, int, in_sweep) as log,
    ):
        board = Board(state, task, log, draws=True)
        sequences = stop.checked(task.validation(), state.step, str(run.path))
        logits_of = way_of_validation(state, task)
        found = validate(state.evaluated, task, sequences, logits_of, board.watch)
        board.note(found.scalars, found.scores, found.confidences, is_over=True)
        board.finish(stop)


def _draws(task: Task, shared: Shared | None) -> bool:
    """Return whether a run has pictures."""
    # The members of a sweep have those of the sweep, and a trial shows nothing yet.
    draws = task.config.train.plots
    return shared is None and task.max_steps >= LEAST_STEPS if draws is None else draws
