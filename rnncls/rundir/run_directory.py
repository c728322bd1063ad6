"""The front door of a run directory: begin a run, commit what it has reached, record how it ends.

Training reads and writes the directory through `RunDirectory` alone:

    with create_run(path) as run:                     # or reopen_run(path): this process owns it
        run.begin(state, task)                        # from here on the run can be resumed
        with run.recording(state, task) as log:       # status.json: running, then how it ended
            ...                                       # take steps
            run.commit(state, task, is_best=True)     # checkpoint, best, old files, status

A run directory comes into being with its first checkpoint, that of step 0. A process that was
killed before leaves a lock file and an empty folder, which a new run may use again.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rnncls.data import Task
from rnncls.errors import Interrupted, NonFiniteError, RnnclsError
from rnncls.rundir.checkpoint import Checkpoint, write_checkpoint
from rnncls.rundir.checkpoint_files import recover, tidy
from rnncls.rundir.hparams import InSweep
from rnncls.rundir.log import RunLog, prepare_logs
from rnncls.rundir.paths import CHECKPOINTS, CRASH_LOG
from rnncls.rundir.status import write_status
from rnncls.steps.state import TrainState
from rnncls.system.files import write_atomically
from rnncls.system.memory import reporting_memory
from rnncls.system.refusals import error_of_machine, free_bytes


class RunDirectory:
    """A run directory that this process owns. Every method raises WriteError if it cannot write."""

    def __init__(self, path: Path, died: bool = False) -> None:
        self.path = path
        self.died = died  # whether the last process ended without a final status

    def begin(self, state: TrainState, task: Task, origin: str = "") -> None:
        """Commit the first checkpoint, and write the config under a comment that says the origin.

        Raises: NonFiniteError if the first weights are not finite; the status says so.
        """
        try:
            self.save(state, task)
        except NonFiniteError as error:
            problem_id = error.problems[0].id
            write_status(self.path, "failed", state, error.exit_code, problem_id)
            raise

        # -1, because not even step 0 is logged yet: it is where a run of 0 steps is evaluated.
        prepare_logs(self.path, task.config, last_logged=-1, comment=origin)

    def begin_again(self, state: TrainState, task: Task) -> None:
        """Make metrics and config those of a run that has just taken the state's step."""
        prepare_logs(self.path, task.config, _last_logged(state))

    def recover(self) -> Checkpoint:
        """Return the newest undamaged checkpoint. Raises: CheckpointError if there is none."""
        return recover(self.path)

    def save(self, state: TrainState, task: Task) -> Path:
        """Commit a checkpoint of the state's step and return its path.

        Raises: NonFiniteError instead of committing weights that are not finite.
        """
        return write_checkpoint(self.path / CHECKPOINTS, state, task)

    def commit(self, state: TrainState, task: Task, is_best: bool) -> None:
        """Save a checkpoint, mark it if it is the best, delete old ones, update the status.

        Raises: NonFiniteError instead of committing weights that are not finite.
        """
        # In this order, a kill between any two lines leaves a run that can be resumed.
        path = self.save(state, task)
        tidy(path, is_best, task.config.train.keep_checkpoints)
        write_status(self.path, "running", state)

    def note_finished(self, state: TrainState) -> None:
        """Say in the status that the run is finished, before its process has ended as well."""
        write_status(self.path, "finished", state, 0)

    @contextmanager
    def recording(
        self,
        state: TrainState,
        task: Task,
        report_steps: Callable[[int], object] | None = None,
        in_sweep: InSweep | None = None,
        goes_on: bool = False,
    ) -> Iterator[RunLog]:
        """Keep logs for the duration, and have status.json say how it ends, whatever happens.

        See RunLog about `report_steps` and `in_sweep`, and `ending` about `goes_on`.
        """
        with self.ending(state, goes_on):
            last_logged = _last_logged(state)
            log = RunLog(self.path, task, state.step, last_logged, report_steps, in_sweep)
            # Inside, so that the status has the exit code of OutOfMemory.
            with reporting_memory(task.config), log:
                _warn_of_little_space(self.path, state, log)
                try:
                    yield log
                except Interrupted:
                    self.save(state, task)  # as the message of the error says
                    raise

    @contextmanager
    def ending(self, state: TrainState, goes_on: bool = False) -> Iterator[None]:
        """Have status.json say running, and then how it ends, whatever happens.

        `goes_on`: after a good end the run is still running.
        """
        # What the status will say of anything that is not caught below, KeyboardInterrupt included.
        outcome = "failed"
        exit_code: int | None = 1
        error_id = ""

        write_status(self.path, "running", state)
        try:
            yield
            # After the logs are closed: what fails in there is a failure of the run, too.
            outcome = "running" if goes_on else "finished"
            exit_code = None if goes_on else 0
        except RnnclsError as error:
            if isinstance(error, Interrupted):
                outcome = "interrupted"
            exit_code = error.exit_code
            error_id = error.problems[0].id
            raise
        except Exception as error:
            of_machine = error_of_machine(error)
            if of_machine is not None:
                # What the command line will end with.
                exit_code = of_machine.exit_code
                error_id = of_machine.problems[0].id
                raise

            # Most likely a bug. The command line shows one line of it, and where to find the rest.
            crash_log = self.path / CRASH_LOG
            with suppress(OSError):
                write_atomically(crash_log, traceback.format_exc().encode())
                error.add_note(f"the traceback is in {crash_log}")
            raise
        finally:
            # On a full disk the first error is the one to hear about.
            with suppress(RnnclsError):
                write_status(self.path, outcome, state, exit_code, error_id)


def _warn_of_little_space(path: Path, state: TrainState, log: RunLog) -> None:
    num_parameters = sum(parameter.numel() for parameter in state.model.parameters())
    copies = 3 if state.average is None else 4  # weights, perhaps their average, and two moments
    checkpoint_bytes = copies * 4 * num_parameters  # float32
    free = free_bytes(path)

    # A checkpoint and the one it replaces exist side by side for a moment; best is a third.
    if free < 3 * checkpoint_bytes:
        log.say(
            f"rnncls: warning[R9]: {free:,} bytes free; "
            f"checkpoints of this run take about {checkpoint_bytes:,} bytes each"
        )


def _last_logged(state: TrainState) -> int:
    """Return the last step whose logs are complete: the state's, unless its own are still due."""
    return state.step - 1 if state.due else state.step
