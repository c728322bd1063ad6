"""The training loop: follow an engine's steps, and do what is due after them."""

import math
import time
from collections.abc import Generator
from contextlib import closing
from itertools import chain

from rnncls.dashboard.board import Board
from rnncls.dashboard.health import health_scalars
from rnncls.data import Task
from rnncls.rundir.log import RunLog
from rnncls.rundir.run_directory import RunDirectory
from rnncls.steps.state import Due, Totals, TrainState, due_after
from rnncls.system.distributed import World
from rnncls.system.signals import StopRequest
from rnncls.training.advice import is_early_look, warning_of_guessing
from rnncls.training.progress import (
    note_score,
    reason_to_stop,
    training_scalars,
    validate,
    way_of_validation,
)
from rnncls.training.saves import Saves


def follow(
    steps: Generator[int, None, None],
    state: TrainState,
    task: Task,
    run: RunDirectory,
    log: RunLog,
    stop: StopRequest,
    board: Board,
    world: World | None = None,
) -> None:
    """Have an engine take steps until the run is over, and do what is due after them.

    `steps`: the engine's generator, which says how many steps it took each time. `world`: the
    processes that train together, which all do the same; None for one alone.

    Raises: Interrupted after a signal.
    """
    saves = Saves(log)
    # Closed at once and not when Python collects it: an engine has threads and device memory.
    with closing(steps):
        # The 0 is for a run that was interrupted in the middle of an evaluation: it is due first.
        for taken in chain([0], steps):
            log.advance(taken)
            if state.due:
                if after_step(state, task, run, log, saves, stop, board, world):
                    return
                board.draw()

            # Between two steps the state is whole, and can be saved.
            if stop.number is not None:
                stop.check(state.step, str(run.path))


def timed(steps: Generator[int, None, None], state: TrainState) -> Generator[int, None, None]:
    """Yield what an engine yields, and add the seconds that it takes to the state's totals."""
    with closing(steps):
        started_at = time.perf_counter()
        for taken in steps:
            state.totals.seconds += time.perf_counter() - started_at
            yield taken

            # Evaluating and saving happened at the yield, and do not count as training.
            started_at = time.perf_counter()


def after_step(
    state: TrainState,
    task: Task,
    run: RunDirectory,
    log: RunLog,
    saves: Saves,
    stop: StopRequest,
    board: Board,
    world: World | None = None,
) -> bool:
    """Evaluate, log and commit, whatever is due after this step. Return whether the run is over.

    A signal interrupts the evaluation; then all of it is still due.
    """
    train = task.config.train
    step = state.step
    due = due_after(train, step)
    is_over = step >= task.max_steps
    is_best = False
    mark = ""
    notes = []
    scalars: dict[str, float] = {}

    # Since the last entry of the log. An evaluation shows them, also where no entry is due.
    averages = training_scalars(state, task)

    if is_over or due.evaluation:
        sequences = stop.checked(task.validation(), step, str(run.path))
        logits_of = way_of_validation(state, task)
        found = validate(state.evaluated, task, sequences, logits_of, board.watch, world)
        scalars = found.scalars
        if world is not None:
            # Other machines may round otherwise, and all must decide alike.
            scalars = world.first(lambda: found.scalars)
        is_best = note_score(state, scalars, train.best_metric)
        # People read "best" as better than before. Of equal evaluations the latest counts.
        if is_best:
            mark = "best" if state.stale_evaluations == 0 else "best again"
        # NaN before there is one: HParams leaves runs out that lack a metric.
        scalars["val/best_value"] = math.nan if state.best_value is None else state.best_value

        # After the last step the run is over anyway: there is nothing to explain.
        reason = "" if is_over else reason_to_stop(state, train, scalars["val/accuracy"])
        if reason:
            notes.append(f"stopped at step {step:,}: {reason}")
            is_over = True
        board.note(scalars, found.scores, found.confidences, is_over)

        # A sweep counts the members that learned nothing; their warnings would only scroll.
        if (is_over or is_early_look(task, step)) and not log.is_quiet:
            notes.append(warning_of_guessing(state, task, averages | scalars))

    # The last step logs whatever the intervals say, so that no steps stay without a log line.
    if is_over or due.log:
        scalars = averages | scalars
        state.totals = Totals()
    if scalars:
        log.log(step, scalars)
        log.show(step, averages | scalars, mark)
    for note in filter(None, notes):
        log.say(*note.splitlines())
    _log_network(state, task, log, due, is_over)

    # From here on a resumed run would not repeat the logs of this step.
    state.due = False
    if is_over or is_best or due.checkpoint or stop.save:
        state.stopped = is_over
        stop.save = False
        saves.timed(lambda: run.commit(state, task, is_best))
    return is_over


def _log_network(state: TrainState, task: Task, log: RunLog, due: Due, is_over: bool) -> None:
    """Log what the network itself looks like after this step, where that is due."""
    if log.is_silent:
        return
    if due.histograms:
        log.log_histograms(state.step, state.model)
    if due.diagnostics or (is_over and task.config.train.diagnostics_every is not None):
        log.log_more(state.step, health_scalars(state, task))
