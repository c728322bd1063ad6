"""One run from `running` to how it ended."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from rnncls.config import Config
from rnncls.data import Task
from rnncls.errors import Interrupted, RnnclsError, as_out_of_memory
from rnncls.rundir.log import RunLog
from rnncls.rundir.status import CRASH_LOG, note_status
from rnncls.steps.engines import Engine, choose
from rnncls.steps.state import TrainState
from rnncls.system.files import write_atomically
from rnncls.system.signals import StopRequest, stop_requests
from rnncls.training.loop import _loop


@dataclass(frozen=True)
class Company:
    """What a run beside others in one process shares with them, instead of signals, lines and a bar of its own."""

    stop: StopRequest
    update: Callable[[int], object]  # is told how many steps were taken
    engine: Engine | None = None  # takes the steps of all of them at once
    compared: tuple[str, ...] = ()  # the keys they differ in


def run(state: TrainState, task: Task, run_dir: Path, company: Company | None = None) -> TrainState:
    """Train from the state's step on, in a directory this process owns; status.json says how it ended."""
    outcome, exit_code, error_id = "failed", 1, ""
    update, compared = (None, ()) if company is None else (company.update, company.compared)
    with stop_requests() if company is None else nullcontext(company.stop) as stop:
        note_status(run_dir, state, "running")
        try:
            logging = RunLog(run_dir, task, state.step, state.step - state.due, update, compared)
            with reporting_memory(task.config), logging as log:
                device = next(state.model.parameters()).device
                shared = None if company is None else company.engine
                _loop(
                    state,
                    task,
                    log,
                    stop,
                    choose(task.config, device) if shared is None else (shared, "one stack"),
                )
            outcome, exit_code = "finished", 0
        except RnnclsError as error:
            outcome, exit_code = (
                "interrupted" if isinstance(error, Interrupted) else "failed",
                error.exit_code,
            )
            error_id = error.problems[0].id
            raise
        except Exception as error:
            with suppress(OSError):
                write_atomically(run_dir / CRASH_LOG, traceback.format_exc().encode())
                error.add_note(f"the traceback is in {run_dir / CRASH_LOG}")
            raise
        finally:
            with suppress(RnnclsError):  # on a full disk the first error is the one to hear about
                note_status(run_dir, state, outcome, exit_code, error_id)
    return state


@contextmanager
def reporting_memory(config: Config) -> Iterator[None]:
    """Turns what Python and torch raise without memory into OutOfMemory, which says how much was asked for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        limit = f" of up to {config.data.max_length:,} tokens" if config.data.max_length else ""
        found = f"batches of {config.train.batch_size:,} sequences{limit}"
        if memory := as_out_of_memory(error, found):
            raise memory from error
        raise
