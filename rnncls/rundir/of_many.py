"""A run directory that several processes train into: the first of them owns it.

What the first one does with it all learn the outcome of, before any goes on: after a full disk,
for example, all end at the same step and with the same exit code.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path

from rnncls.data import Task
from rnncls.errors import Interrupted, PeerError
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.hparams import InSweep
from rnncls.rundir.log import RunLog
from rnncls.rundir.run_directory import RunDirectory
from rnncls.steps.state import TrainState
from rnncls.system.distributed import World
from rnncls.system.memory import reporting_memory


@contextmanager
def of_many(
    opened: AbstractContextManager[RunDirectory], world: World | None
) -> Iterator[RunDirectory]:
    """Open a run directory in the first of all processes, for all of them.

    `opened`: what `create_run` or `reopen_run` returns, which only the first process enters.
    Without other processes, that is all there is to it.
    """
    if world is None:
        with opened as run:
            yield run
        return

    with ExitStack() as stack:
        owned: list[RunDirectory] = []

        def open_it() -> tuple[Path, bool]:
            owned.append(stack.enter_context(opened))
            return owned[0].path, owned[0].died

        path, died = world.first(open_it)
        yield RunOfMany(path, died, world)


class RunOfMany(RunDirectory):
    """A run directory, as `RunDirectory`, that every one of several processes has.

    In all but the first one, its methods raise Elsewhere where those of the first one fail.
    """

    def __init__(self, path: Path, died: bool, world: World) -> None:
        super().__init__(path, died)
        self._world = world
        self._own = RunDirectory(path, died)  # used by the first process alone

    def begin(self, state: TrainState, task: Task, origin: str = "") -> None:
        self._world.first(lambda: self._own.begin(state, task, origin))

    def begin_again(self, state: TrainState, task: Task) -> None:
        self._world.first(lambda: self._own.begin_again(state, task))

    def recover(self) -> Checkpoint:
        return self._world.first(self._own.recover)

    def save(self, state: TrainState, task: Task) -> Path:
        return self._world.first(lambda: self._own.save(state, task))

    def commit(self, state: TrainState, task: Task, is_best: bool) -> None:
        self._world.first(lambda: self._own.commit(state, task, is_best))

    def note_finished(self, state: TrainState) -> None:
        self._world.first(lambda: self._own.note_finished(state))

    @contextmanager
    def recording(
        self,
        state: TrainState,
        task: Task,
        report_steps: Callable[[int], object] | None = None,
        in_sweep: InSweep | None = None,
        goes_on: bool = False,
    ) -> Iterator[RunLog]:
        """Keep logs in the first process, and say nothing in the others."""
        try:
            with self._recording(state, task, report_steps, in_sweep, goes_on) as log:
                yield log
        except Interrupted:
            # The first process has saved now. Where others end before it has, torchrun gives it a
            # limited time to end as well.
            with suppress(PeerError):
                self._world.gather(None)
            raise

    @contextmanager
    def ending(self, state: TrainState, goes_on: bool = False) -> Iterator[None]:
        """Keep the status in the first process."""
        with ExitStack() as stack:
            own = self._own.ending(state, goes_on)
            self._world.first(lambda: stack.enter_context(own))
            yield

    @contextmanager
    def _recording(
        self,
        state: TrainState,
        task: Task,
        report_steps: Callable[[int], object] | None,
        in_sweep: InSweep | None,
        goes_on: bool,
    ) -> Iterator[RunLog]:
        with ExitStack() as stack:
            logs: list[RunLog] = []

            def begin() -> None:
                recording = self._own.recording(state, task, report_steps, in_sweep, goes_on)
                logs.append(stack.enter_context(recording))

            self._world.first(begin)
            if not self._world.is_first:
                stack.enter_context(reporting_memory(task.config))
                silent = RunLog(self.path, task, state.step, is_silent=True)
                logs.append(stack.enter_context(silent))
            yield logs[0]
