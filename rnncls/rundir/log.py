"""The reports of a run that trains: metrics, TensorBoard, lines and a progress bar on stderr."""

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import nn
from tqdm import tqdm

from rnncls.config import Config, dump_config
from rnncls.data import Task
from rnncls.errors import on_one_line
from rnncls.rundir.events import EventLog
from rnncls.rundir.hparams import InSweep
from rnncls.rundir.paths import CONFIG, METRICS, METRICS_TABLE
from rnncls.rundir.tables import MetricsTables, keep_metrics
from rnncls.system.files import commented, open_regular, write_atomically
from rnncls.system.refusals import writing

TABLES = f"{METRICS} and {METRICS_TABLE}"
EVENTS = "the TensorBoard log"
MAX_COMMENT_BYTES = 64 * 1024  # the comment of a config has a path, with escapes
TAGS = (
    "train/loss",
    "train/accuracy",
    "train/grad_norm",
    "train/clip_fraction",
    "train/lr",
    "train/sequences_per_second",
    "train/sequences_seen",
    "val/loss",
    "val/accuracy",
    "val/macro_f1",
    "val/calibration_error",
    "val/best_value",
)
BY_LENGTH = "val/accuracy_by_length/"  # a length or a range of lengths follows


def prepare_logs(run_dir: Path, config: Config, last_logged: int, comment: str = "") -> None:
    """Cut metrics.jsonl after the step `last_logged`, and write config.yaml.

    `comment`: the first line of config.yaml, which otherwise keeps the one that it had.

    Raises: WriteError.
    """
    path = run_dir / CONFIG
    with writing(run_dir / METRICS):
        keep_metrics(run_dir, last_logged)

    with writing(run_dir):
        # The comment says where a run began, which a resumed one cannot know otherwise.
        comment = comment or _comment_of(path)
        write_atomically(path, commented(comment, dump_config(config)).encode())


def _comment_of(path: Path) -> str:
    """Return the comment in the first line of a config; "" without one.

    The file may be anybody's: a link, a pipe and a line without end are none.
    """
    try:
        with open(open_regular(path), "rb") as file:
            line = file.readline(MAX_COMMENT_BYTES)
    except OSError:
        return ""
    if not line.startswith(b"# ") or not line.endswith(b"\n"):
        return ""
    return line.removeprefix(b"# ").removesuffix(b"\n").decode(errors="replace")


class RunLog:
    """The logs of one run, as a context manager.

    A log that cannot be written does not end the run: it is off from then on, after one warning.
    A resumed run has both logs again, with a gap where the disk was full.
    """

    def __init__(
        self,
        run_dir: Path,
        task: Task,
        step: int = 0,
        last_logged: int = 0,
        report_steps: Callable[[int], object] | None = None,
        in_sweep: InSweep | None = None,
        is_silent: bool = False,
    ) -> None:
        """Open the logs of a run that has taken `step` steps.

        What was logged after step `last_logged` will come again. `report_steps` is told how many
        steps were taken, instead of a progress bar; then only warnings are said. `in_sweep`: what
        HParams is told of a member of a sweep. `is_silent`: another process keeps the logs of the
        run; this one writes and says nothing.
        """
        self.run_dir = run_dir
        self.last_logged = last_logged
        self._off: set[str] = set()  # the logs that failed
        self._tables: MetricsTables | None = None
        self._events: EventLog | None = None

        # The members of a sweep share one bar and one voice.
        self.is_quiet = report_steps is not None or is_silent
        self.is_silent = is_silent
        self._bar = tqdm(
            total=task.max_steps,
            initial=step,
            disable=True if self.is_quiet else None,  # None: only where there is a terminal
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}%|{bar}| {n:,}/{total:,}, {remaining} left{postfix}",
        )
        self._task = task
        self._metric = f"val/{task.config.train.best_metric}"
        self._latest: dict[str, float] = {}  # the last value of each tag, for the bar
        self.advance = report_steps or self._bar.update

        # Opened through `write`, so that a full disk costs a run its logs and no more.
        def open_tables() -> None:
            by_length = [f"{BY_LENGTH}{lengths}" for lengths in task.logged_lengths]
            self._tables = MetricsTables(run_dir, ["step", *TAGS, *by_length])

        def open_events() -> None:
            self._events = EventLog(run_dir, task.config, step, last_logged, in_sweep)

        if not is_silent:
            self.write(TABLES, open_tables)
            self.write(EVENTS, open_events)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._events is not None:
            # Without an end, HParams does not call the run a success.
            if error is None:
                self.write(EVENTS, self._events.end_session)
            self.write(EVENTS, self._events.close)
            # Also where that log is off; what is still buffered then fails the same way again.
            with suppress(OSError):
                self._events.close()
        if self._tables is not None:
            self._tables.close()

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Write one step's values, by TensorBoard tag, everywhere. Called at most once per step."""
        tables = self._tables
        if tables is not None:
            self.write(TABLES, lambda: tables.write({"step": step, **scalars}))

        events = self._events
        if events is not None:
            self.write(EVENTS, lambda: events.write(step, scalars))

    def add(self, step: int, summaries: Sequence[Summary]) -> bool:
        """Write what TensorBoard alone shows of a step: pictures, texts, curves.

        Returns whether that log is still written.
        """
        events = self._events
        return events is not None and self.write(EVENTS, lambda: events.add(step, summaries))

    def add_graph(self, graph: GraphDef) -> bool:
        """Write the graph of the model to TensorBoard, as `add` does."""
        events = self._events
        return events is not None and self.write(EVENTS, lambda: events.add_graph(graph))

    def show(self, step: int, scalars: dict[str, float], mark: str) -> None:
        """Show people the values of a step: in the bar, and at an evaluation in a line of its own.

        `scalars`, by TensorBoard tag, may have averages that are not logged at this step. `mark`:
        what ends the line, such as "best".
        """
        self._latest |= scalars
        self._bar.set_postfix_str(self._postfix(step), refresh=False)

        # Lines between evaluations would only scroll.
        if "val/accuracy" not in scalars:
            return
        line = f"step {step:>6,}"
        # The metric that decides comes last, unless it is one of the three anyway.
        for tag in dict.fromkeys(("train/loss", "val/loss", "val/accuracy", self._metric)):
            if tag in scalars:
                line += f"   {tag} {scalars[tag]:.4f}"

        used, available = self._task.validation_sizes
        if available is not None and used < available:
            line += f"   (of {used:,} sequences)"
        if mark:
            line += f"   {mark}"
        self.say(line)

    def _postfix(self, step: int) -> str:
        """Return what the bar says behind the steps: epoch, loss, last evaluation, rate."""
        parts = []
        per_epoch = self._task.steps_per_epoch
        if per_epoch is not None:
            # Rounded up: the epoch that the last step is of.
            parts.append(
                f"epoch {-(-step // per_epoch):,}/{-(-self._task.max_steps // per_epoch):,}"
            )

        for tag, name in (("train/loss", "loss"), (self._metric, self._metric)):
            if tag in self._latest:
                parts.append(f"{name} {self._latest[tag]:.4f}")
        if "train/lr" in self._latest:
            parts.append(f"lr {self._latest['train/lr']:.2g}")
        return ", ".join(parts)

    def log_histograms(self, step: int, model: nn.Module) -> None:
        """Write the distributions of every parameter and of its gradient at this step."""
        events = self._events
        if events is not None:
            self.write(EVENTS, lambda: events.write_histograms(step, model))

    def log_more(self, step: int, scalars: dict[str, float]) -> None:
        """Write more values of a step, by tag, to TensorBoard alone: tables have fixed columns."""
        events = self._events
        if events is not None:
            self.write(EVENTS, lambda: events.write(step, scalars))

    def write(self, log: str, action: Callable[[], object]) -> bool:
        """Do `action` unless that log is off. If it fails, turn the log off and say so once.

        Returns whether it was done.
        """
        if log in self._off:
            return False
        # Other errors are bugs, and end the run.
        try:
            action()
        except OSError as error:
            self._off.add(log)
            what = f"cannot write {log} any more: {error.strerror}"
            self.say(f"rnncls: warning[R10]: {what}; training continues")
            return False
        return True

    def say(self, first: str, *more: str) -> None:
        """Print lines on stderr that do not tear the progress bar. Each of them stays one line."""
        # Warnings are said by members of a sweep, too.
        is_warning = first.startswith("rnncls:")
        if not self.is_quiet or (is_warning and not self.is_silent):
            for line in (first, *more):
                tqdm.write(on_one_line(line), file=sys.stderr)
