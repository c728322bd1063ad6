"""TensorBoard: a run's event stream, and pictures of a sweep."""

import os
import re
import socket
from collections.abc import Collection, Iterable
from contextlib import closing
from datetime import UTC, datetime
from itertools import accumulate, repeat
from operator import mul
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from torch.utils.tensorboard.summary import histogram, scalar, text

from rnncls.config import Config, dump_config
from rnncls.rundir.hparams import InSweep, end_of_session, start_of_session
from rnncls.rundir.paths import EVENT_FILES
from rnncls.system.files import open_regular

# The name of an event file: its number is the second in which it was begun. TensorBoard's own
# writer gives the same names.
_NUMBERED = re.compile(r"events\.out\.tfevents\.(\d{10})\..*", re.DOTALL)
_LARGEST_NUMBER = 10**10 - 1

# The limits of a histogram's buckets: 1e-12, then 10 % more each, to both sides of 0. Multiplied
# one after another, they are SummaryWriter's to the last bit: those of a resumed run do not change.
_POSITIVE_LIMITS = list(accumulate(repeat(1.1, 773), mul, initial=1e-12))
_LIMITS = [*(-limit for limit in reversed(_POSITIVE_LIMITS)), 0.0, *_POSITIVE_LIMITS]


class EventFile:
    """A new event file, which TensorBoard reads behind those that its folder has already.

    torch's SummaryWriter names a file after the clock. Where that went back, TensorBoard would read
    what comes last first. Every method raises OSError if it cannot write.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / _next_name([path.name for path in folder.glob(EVENT_FILES)])
        # O_EXCL: nothing is ever written into a file or behind a link of somebody else.
        self._file = os.fdopen(open_regular(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")
        self._records = RecordWriter(self._file)
        self.add(Event(file_version="brain.Event:2"))

    def add(self, event: Any) -> None:
        """Append an event, which has the time of now."""
        event.wall_time = datetime.now(UTC).timestamp()
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Write what is buffered, for whoever follows the file."""
        self._file.flush()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._file.close()


def _next_name(names: Collection[str]) -> str:
    """Return a name behind all these, with the second of now unless one of them has a later one.

    TensorBoard reads files in the order of their names, and follows the last one.
    """
    now = int(datetime.now(UTC).timestamp())
    last = max(names, default="")
    numbered = _NUMBERED.fullmatch(last)
    number = max(now, int(numbered[1]) + 1) if numbered else now

    name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}.0"
    # Names by somebody else may have any text: the longer of two that begin alike comes second.
    return name if name > last and number <= _LARGEST_NUMBER else f"{last}.0"


class EventLog:
    """One run's event stream. Every method raises OSError if it cannot write."""

    def __init__(
        self,
        run_dir: Path,
        config: Config,
        step: int,
        last_logged: int,
        in_sweep: InSweep | None = None,
    ) -> None:
        """Start the stream, or continue after `step` with a second event file.

        What was logged after `last_logged` will come again: TensorBoard is told to forget it.
        `in_sweep`: what HParams is told of a member of a sweep.
        """
        is_resumed = any(run_dir.glob(EVENT_FILES))
        self._file = EventFile(run_dir)

        # In a first file this would hide nothing, but say that the run was restarted.
        if is_resumed:
            restart = SessionLog(status=SessionLog.START)
            self._file.add(Event(step=last_logged + 1, session_log=restart))

        # Four spaces make a code block of Markdown, which TensorBoard renders.
        indented = [f"    {line}" for line in dump_config(config).splitlines()]
        self.add(step, [text("config", "\n".join(indented))])  # type: ignore[no-untyped-call]

        # Into the run's own stream: SummaryWriter.add_hparams would open a second run, named after
        # the time.
        self.add(0, start_of_session(config, in_sweep))

    def end_session(self) -> None:
        """Say in HParams that the run has finished."""
        self.add(0, [end_of_session()])

    def add(self, step: int, summaries: Iterable[Summary]) -> None:
        """Write what TensorBoard shows beside the scalars: pictures, texts, curves."""
        for summary in summaries:
            self._file.add(Event(step=step, summary=summary))
        self._file.flush()

    def add_graph(self, graph: GraphDef) -> None:
        """Write the graph of the model, once for a run."""
        self._file.add(Event(graph_def=graph.SerializeToString()))

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write one step's values by tag."""
        # Flushed: whoever looks at TensorBoard sees the values at once.
        self.add(step, [_scalar(tag, value) for tag, value in scalars.items()])

    def write_histograms(self, step: int, model: nn.Module) -> None:
        """Write the distributions of every parameter and of its gradient at this step."""
        # Before its first step, a run has no gradients.
        for name, parameter in model.named_parameters():
            self._add_histogram(f"weights/{name}", parameter, step)
            if parameter.grad is not None:
                self._add_histogram(f"weights/{name}.grad", parameter.grad, step)

    def close(self) -> None:
        """Write what is still buffered and close the file."""
        self._file.close()

    def _add_histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        summary = histogram(tag, values, _LIMITS)  # type: ignore[no-untyped-call]
        self._file.add(Event(step=step, summary=summary))


def _scalar(tag: str, value: float) -> Summary:
    return scalar(tag, value)  # type: ignore[no-untyped-call]


def image_of(tag: str, png: bytes, height: int, width: int) -> Summary:
    """Return a picture as TensorBoard shows it: a PNG with its size in pixels."""
    image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
    return Summary(value=[Summary.Value(tag=tag, image=image)])


def log_images(
    folder: Path, images: Iterable[Summary], texts: dict[str, str] | None = None, step: int = 0
) -> None:
    """Show pictures and texts of this step in TensorBoard, in place of those before.

    `images`: of `image_of`. `texts`: Markdown by tag. Raises: OSError.
    """
    old = list(folder.glob(EVENT_FILES))
    file = EventFile(folder)
    with closing(file):
        # TensorBoard reads every event file of a folder, and would show the old pictures, too.
        for path in old:
            path.unlink()
        for image in images:
            file.add(Event(step=step, summary=image))
        for tag, markdown in (texts or {}).items():
            summary = text(tag, markdown)  # type: ignore[no-untyped-call]
            file.add(Event(step=step, summary=summary))
