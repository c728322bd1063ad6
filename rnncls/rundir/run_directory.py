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

import sys
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rnncls.config import Config, dump_config
from rnncls.data import Task
from rnncls.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    MachineError,
    NonFiniteError,
    Problem,
    RnnclsError,
    printable,
)
from rnncls.rundir.checkpoint import Checkpoint, write_checkpoint
from rnncls.rundir.checkpoint_files import recover, tidy
from rnncls.rundir.lock import locked
from rnncls.rundir.log import RunLog
from rnncls.rundir.paths import CHECKPOINTS, CONFIG, CRASH_LOG, LOCK
from rnncls.rundir.status import read_status, write_status
from rnncls.rundir.tables import keep_metrics
from rnncls.steps.state import TrainState
from rnncls.system.files import free_bytes, write_atomically, writing
from rnncls.system.memory import reporting_memory


@contextmanager
def create_run(path: Path) -> Iterator["RunDirectory"]:
    """Make a new run directory and hold it for the duration.

    Raises: ConfigError if the directory is used already, and then touches nothing. WriteError if
    it cannot be made. MachineError while another process holds it.
    """
    require_unused(path)
    with locked(path, make=True):
        require_unused(path)  # another process may have come first
        yield RunDirectory(path)


@contextmanager
def reopen_run(path: Path) -> Iterator["RunDirectory"]:
    """Hold the directory of a run that is to be resumed, for the duration.

    Raises: CheckpointError if there is no run in it. MachineError while another process holds it.
    WriteError.
    """
    folder = path / CHECKPOINTS
    if folder.is_symlink():
        raise CheckpointError(
            Problem(
                "a symbolic link in place of a folder",
                str(folder),
                remedy="the run directory that it belongs to",
                id="K7",
            )
        )
    if not folder.is_dir():
        names = sorted(child.name for child in path.glob("*"))
        raise CheckpointError(
            Problem(
                "nothing to resume",
                str(path),
                expected="a run directory, with checkpoints in checkpoints/",
                found=", ".join(names[:5]) or "nothing",
                id="K1",
            )
        )

    died = read_status(path).get("state") == "died"
    with locked(path):
        if died:
            print("the process ended without a final status (killed?)", file=sys.stderr)
        yield RunDirectory(path, died=died)


def require_unused(path: Path) -> None:
    """Raise unless a new run may use this directory.

    Raises: ConfigError if something is in it. MachineError if its name cannot be printed.
    WriteError if it cannot be looked at.
    """
    # Python shows bytes that are not text in this locale as halves of surrogate pairs.
    if any("\ud800" <= letter <= "\udfff" for letter in str(path)):
        raise MachineError(
            Problem(
                "the name of the run directory is not text in this locale",
                ascii(str(path)),
                expected="UTF-8",
                remedy="another --run-dir, or a UTF-8 locale such as LANG=C.UTF-8",
                id="R30",
            )
        )

    with writing(path):
        names: set[str] = set()
        if path.is_dir():
            names = {child.name for child in path.iterdir()}
        elif path.exists():
            names = {"a file"}

        # A killed process may leave its lock, an empty folder, and a file that it was writing.
        if names <= {LOCK, CHECKPOINTS}:
            files = (path / CHECKPOINTS).glob("*")
            names = {file.name for file in files if not file.name.startswith(".tmp-")}
    if names:
        raise ConfigError(
            Problem(
                "the run directory is not empty",
                str(path),
                remedy="another --run-dir, --resume to resume a run, or neither for a fresh directory",
                id="C19",
            )
        )


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
        self._prepare(state, task.config, last_logged=-1, comment=origin)

    def begin_again(self, state: TrainState, task: Task) -> None:
        """Make metrics and config those of a run that has just taken the state's step."""
        self._prepare(state, task.config, _last_logged(state))

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
        path = self.save(state, task)
        tidy(path, is_best, task.config.train.keep_checkpoints)
        write_status(self.path, "running", state)

    def note_finished(self, state: TrainState) -> None:
        """Correct the status of a process that was killed after its last checkpoint."""
        write_status(self.path, "finished", state, 0)

    @contextmanager
    def recording(
        self,
        state: TrainState,
        task: Task,
        report_steps: Callable[[int], object] | None = None,
        compared: Collection[str] = (),
    ) -> Iterator[RunLog]:
        """Keep logs for the duration, and have status.json say how it ends, whatever happens.

        See RunLog about `report_steps` and `compared`.
        """
        outcome = "failed"
        exit_code = 1
        error_id = ""

        write_status(self.path, "running", state)
        try:
            last_logged = _last_logged(state)
            log = RunLog(self.path, task, state.step, last_logged, report_steps, compared)
            with log, reporting_memory(task.config):
                try:
                    yield log
                except Interrupted:
                    self.save(state, task)  # as the message of the error says
                    raise
            outcome = "finished"
            exit_code = 0
        except RnnclsError as error:
            if isinstance(error, Interrupted):
                outcome = "interrupted"
            exit_code = error.exit_code
            error_id = error.problems[0].id
            raise
        except Exception as error:
            crash_log = self.path / CRASH_LOG
            with suppress(OSError):
                write_atomically(crash_log, traceback.format_exc().encode())
                error.add_note(f"the traceback is in {crash_log}")
            raise
        finally:
            # On a full disk the first error is the one to hear about.
            with suppress(RnnclsError):
                write_status(self.path, outcome, state, exit_code, error_id)

    def _prepare(
        self, state: TrainState, config: Config, last_logged: int, comment: str = ""
    ) -> None:
        """Cut metrics.jsonl after a step, write config.yaml, and look at the space on the disk.

        `comment`: the first line of config.yaml, which otherwise keeps the one that it had.
        """
        path = self.path / CONFIG
        with writing(self.path):
            keep_metrics(self.path, last_logged)

            if not comment and path.is_file():
                first_line, _, _ = path.read_text("utf-8", errors="replace").partition("\n")
                if first_line.startswith("# "):
                    comment = first_line.removeprefix("# ")
            text = dump_config(config)
            if comment:
                text = f"# {printable(comment)}\n{text}"
            write_atomically(path, text.encode())

        # A checkpoint and the one it replaces exist side by side for a moment; best is a third.
        num_parameters = sum(parameter.numel() for parameter in state.model.parameters())
        checkpoint_bytes = 3 * 4 * num_parameters  # weights and two moments, float32
        free = free_bytes(self.path)
        if free < 3 * checkpoint_bytes:
            print(
                f"rnncls: warning[R9]: {free:,} bytes free; "
                f"checkpoints of this run take about {checkpoint_bytes:,} bytes each",
                file=sys.stderr,
            )


def _last_logged(state: TrainState) -> int:
    """Return the last step whose logs are complete: the state's, unless its own are still due."""
    return state.step - 1 if state.due else state.step
