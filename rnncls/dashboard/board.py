"""What a run shows beside its logs: texts at its beginning, pictures at evaluations and its end.

None of it is in the way of training. What pictures need is recorded at some evaluations. They are
drawn beside training only while all drawing takes less than 1 % of the time, and the rest of them
after the last checkpoint. If that fails, one warning says so, and the run is what it would have
been without pictures.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor

from rnncls.dashboard.curves import pr_curves
from rnncls.dashboard.graph import graph_of
from rnncls.dashboard.layout import custom_scalars
from rnncls.dashboard.names import class_names
from rnncls.dashboard.projector import write_projector
from rnncls.dashboard.record import Evaluation, Levels
from rnncls.dashboard.recording import Records, evaluation_of, is_recorded
from rnncls.dashboard.texts import config_changes, final_report, run_summary, worst_errors
from rnncls.dashboard.watching import Watcher
from rnncls.data import Task
from rnncls.evaluation.metrics import entropy
from rnncls.evaluation.scores import Scored, Scores
from rnncls.rundir.events import image_of
from rnncls.rundir.log import RunLog
from rnncls.rundir.paths import PLOTS
from rnncls.rundir.tables import read_metrics
from rnncls.steps.state import TrainState
from rnncls.system.files import write_atomically
from rnncls.system.pictures import default_style, rendered
from rnncls.system.signals import StopRequest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# The share of a run's time that drawing beside training may take, and about how many seconds the
# first pictures take, matplotlib's import included: before that nobody knows.
SHARE = 0.01
FIRST_SECONDS = 1.5


class LogIsOff(Exception):
    """TensorBoard's log cannot be written any more, and a warning has said so."""


class Board:
    """The dashboard of one run."""

    def __init__(self, state: TrainState, task: Task, log: RunLog, draws: bool) -> None:
        """`draws`: whether the run has pictures."""
        self._state = state
        self._task = task
        self._log = log
        self._draws = draws  # until something fails
        self._names = class_names(task)
        self._records = Records(log.run_dir, log.last_logged if draws else -1)
        self._watcher = Watcher(task)
        self._last: tuple[Scores, Tensor] | None = None  # what the last evaluation found

        # The first batch and the graph never change: only the first process of a run shows them.
        self._is_first = not (log.run_dir / PLOTS / "first_batch.png").exists()

        self._started_at = time.perf_counter()
        self._seconds = 0.0  # spent on drawing
        self._next_seconds = FIRST_SECONDS  # that the next pictures are likely to take

    def begin(self, engine: str) -> None:
        """Write the texts that say what the run is, and the layout of the custom scalars."""
        summaries = [
            run_summary(self._state, self._task, engine),
            config_changes(self._task),
            custom_scalars(),
        ]
        self._log.add(self._state.step, summaries)

    def watch(self, parts: Iterable[Scored]) -> Iterator[Scored]:
        """Yield what an evaluation says about each batch, and keep what pictures need of it."""
        if not self._draws:
            return iter(parts)
        self._watcher = Watcher(self._task)
        return self._watcher.watch(parts)

    def note(
        self, scalars: dict[str, float], scores: Scores, confidences: Tensor, is_over: bool
    ) -> None:
        """Record the evaluation of this step, which was watched, if it is to be drawn.

        `scalars`: its values by tag. `confidences` (R,): the probabilities of the predicted
        classes. `is_over`: whether it is the last one.
        """
        self._last = (scores, confidences)
        step = self._state.step
        if is_recorded(step, self._task.config.train.eval_every, is_over):
            self._safely(self._record, step, scalars, scores, confidences)

    def draw(self) -> None:
        """Draw what is recorded, while drawing takes less than its share of the time."""
        for evaluation in self._waiting():
            elapsed = time.perf_counter() - self._started_at
            if self._seconds + self._next_seconds > SHARE * elapsed:
                return
            self._draw(evaluation)
            self._safely(self._records.note_drawn, evaluation.step)

    def finish(self, stop: StopRequest) -> None:
        """Draw the rest, once the last checkpoint is committed. A signal ends it early."""
        last = self._state.step
        for evaluation in self._waiting():
            if stop.number is None:
                self._draw(evaluation)
                if evaluation.step < last:
                    self._safely(self._records.note_drawn, evaluation.step)

        # The last evaluation counts as drawn when all is: until then, a resumed run finishes it.
        for part in (
            self._show_results,
            self._show_data,
            self._show_model,
            self._records.note_drawn,
        ):
            if stop.number is None:
                self._safely(part, last)
        if self._draws and stop.number is not None:
            self._log.say("rnncls: not all pictures are drawn; train --resume RUN draws the rest")

    def _waiting(self) -> list[Evaluation]:
        return self._records.waiting() if self._draws else []

    def _record(
        self, step: int, scalars: dict[str, float], scores: Scores, confidences: Tensor
    ) -> None:
        errors = self._watcher.errors()
        evaluation = evaluation_of(step, scalars, scores, confidences, self._names, errors)
        self._records.add(evaluation)

    def _draw(self, evaluation: Evaluation) -> None:
        """Draw the pictures of one evaluation, and take the time."""
        started_at = time.perf_counter()
        self._safely(self._draw_pictures, evaluation)
        self._next_seconds = time.perf_counter() - started_at
        self._seconds += self._next_seconds

    def _draw_pictures(self, evaluation: Evaluation) -> None:
        # Imported here, because matplotlib takes long.
        from rnncls.dashboard import pictures

        step = evaluation.step
        rows = list(read_metrics(self._log.run_dir))
        # Around all of them, because to enter it takes as long as to draw a curve.
        with default_style():
            self._show("val/confusion", pictures.confusion(evaluation), step)
            by_length = pictures.accuracy_by_length(rows, evaluation)
            self._show("val/accuracy_by_length_over_time", by_length, step)
            self._show("val/calibration", pictures.calibration(evaluation), step)
        self._add(step, worst_errors(evaluation))

    def _show_results(self, step: int) -> None:
        """Show the whole run in one picture, and the report on the last evaluation."""
        from rnncls.dashboard import pictures

        last = self._records.last()
        if last is None or self._last is None:
            return
        rows = list(read_metrics(self._log.run_dir))
        figure = pictures.results(rows, last, levels_of(self._task))
        self._show("val/results", figure, step)
        self._add(step, final_report(self._state, self._task, *self._last, self._names))

    def _show_data(self, step: int) -> None:
        """Show the first batch, and precision and recall of each class."""
        curves = self._watcher.curves()
        if curves is not None:
            self._add(step, *pr_curves(*curves, self._names))
        if not self._is_first:
            return

        from rnncls.data.plots import first_batch

        batch = next(self._task.batches(0, 1))
        self._show("train/first_batch", first_batch(batch, self._task.vocabulary), step=1)

    def _show_model(self, _: int) -> None:
        """Show the graph of the model, and its embeddings and states in the projector."""
        if self._is_first and not self._log.add_graph(graph_of(self._state.model, self._task)):
            raise LogIsOff
        write_projector(self._log.run_dir, self._state, self._task)

    def _show(self, tag: str, figure: "Figure", step: int) -> None:
        """Write a picture into plots/ and TensorBoard. Raises: OSError."""
        png, height, width = rendered(figure)
        folder = self._log.run_dir / PLOTS
        folder.mkdir(exist_ok=True)
        write_atomically(folder / f"{tag.rpartition('/')[2]}.png", png, durable=False)
        self._add(step, image_of(tag, png, height, width))

    def _add(self, step: int, *summaries: Summary) -> None:
        """Write to TensorBoard. Raises: LogIsOff."""
        if not self._log.add(step, summaries):
            raise LogIsOff

    def _safely(self, action: Callable[..., object], *arguments: object) -> None:
        """Do what must not end a run. After a failure there are no more pictures."""
        if not self._draws:
            return
        try:
            action(*arguments)
        except LogIsOff:
            self._draws = False
        # Whatever it is, from a full disk to a bug in matplotlib: the run is worth more.
        except Exception as error:
            self._draws = False
            reason = str(error) or type(error).__name__
            if isinstance(error, OSError) and error.strerror:
                reason = f"{error.strerror} ({error.filename})"
            what = f"no more pictures, tables and projector of this run: {reason}"
            self._log.say(f"rnncls: warning[R36]: {what}; training is not affected")


def levels_of(task: Task) -> Levels:
    """Return the lines that a run is held against.

    Smoothed labels have an entropy, which is the least that their loss can be. With class weights
    the least depends on the batch, and there is no line.
    """
    shares = task.class_shares
    smoothing = task.config.train.label_smoothing
    label = torch.full((len(shares),), smoothing / len(shares), dtype=torch.float64)
    label[0] += 1 - smoothing
    has_least = smoothing > 0 and task.class_weights is None
    return Levels(
        guessing_loss=entropy(shares),
        num_classes=len(shares),
        majority=float(shares.max()),
        max_grad_norm=task.config.train.max_grad_norm,
        is_smoothed=smoothing > 0,
        least_loss=entropy(label) if has_least else None,
    )
