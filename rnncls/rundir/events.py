"""TensorBoard: a run's event stream, and pictures of a sweep."""

import json
import os
import re
import socket
from collections.abc import Collection
from contextlib import closing
from datetime import UTC, datetime
from itertools import accumulate, repeat
from operator import mul
from pathlib import Path
from typing import Any

import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import nn
from torch.utils.tensorboard.summary import histogram, hparams, image, scalar, text

from rnncls.config import Config, dump_config, flatten
from rnncls.rundir.paths import EVENT_FILES
from rnncls.system.files import open_regular

# Keys that change what is written or how fast, not what is learned. They would only crowd the
# HParams table.
_NOT_HPARAMS = {
    "device",
    "train.num_threads",
    "train.deterministic",
    "train.keep_checkpoints",
    "train.log_every",
    "train.eval_every",
    "train.checkpoint_every",
    "train.histogram_every",
    "train.diagnostics_every",
}

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
        compared: Collection[str] = (),
    ) -> None:
        """Start the stream, or continue after `step` with a second event file.

        What was logged after `last_logged` will come again: TensorBoard is told to forget it.
        `compared`: the keys that HParams shows; by default all that say what is learned.
        """
        is_resumed = any(run_dir.glob(EVENT_FILES))
        self._file = EventFile(run_dir)

        # In a first file this would hide nothing, but say that the run was restarted.
        if is_resumed:
            restart = SessionLog(status=SessionLog.START)
            self._file.add(Event(step=last_logged + 1, session_log=restart))

        # Four spaces make a code block of Markdown, which TensorBoard renders.
        indented = [f"    {line}" for line in dump_config(config).splitlines()]
        summary = text("config", "\n".join(indented))  # type: ignore[no-untyped-call]
        self._add_summary(summary, step)
        self._begin_session(config, compared)

    def _begin_session(self, config: Config, compared: Collection[str]) -> None:
        """Write HParams into the run's own stream.

        SummaryWriter.add_hparams would open a second run, named after the time.
        """
        values: dict[str, Any] = {}
        for key, value in flatten(config).items():
            is_shown = key in compared if compared else key not in _NOT_HPARAMS
            if is_shown:
                # torch's hparams writes booleans as 0 and 1, and knows no lists.
                values[key] = json.dumps(value) if isinstance(value, bool | list) else value

        # Names alone: TensorBoard takes the values from the scalars of the same run.
        metrics = {"val/accuracy": None, "val/loss": None}
        experiment, start, end = hparams(values, metrics)  # type: ignore[no-untyped-call]
        self._session_end = end
        self._add_summary(experiment)
        self._add_summary(start)

    def end_session(self) -> None:
        """Say in HParams that the run has finished."""
        self._add_summary(self._session_end)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Write one step's values by tag."""
        for tag, value in scalars.items():
            self._add_summary(scalar(tag, value), step)  # type: ignore[no-untyped-call]

        # Whoever looks at TensorBoard sees the values at once.
        self._file.flush()

    def write_histograms(self, step: int, model: nn.Module) -> None:
        """Write the distributions of every parameter and of its gradient at this step."""
        # Before its first step, a run has no gradients.
        for name, parameter in model.named_parameters():
            self._add_histogram(f"weights/{name}", parameter, step)
            if parameter.grad is not None:
                self._add_histogram(f"gradients/{name}", parameter.grad, step)

    def close(self) -> None:
        """Write what is still buffered and close the file."""
        self._file.close()

    def _add_histogram(self, tag: str, values: torch.Tensor, step: int) -> None:
        self._add_summary(histogram(tag, values, _LIMITS), step)  # type: ignore[no-untyped-call]

    def _add_summary(self, summary: Any, step: int = 0) -> None:
        self._file.add(Event(step=step, summary=summary))


def log_images(folder: Path, images: dict[str, Any]) -> None:
    """Show pictures in TensorBoard in place of those before.

    `images`: (height, width, 3) uint8 arrays by tag. Raises: OSError.
    """
    old = list(folder.glob(EVENT_FILES))
    file = EventFile(folder)
    with closing(file):
        # TensorBoard reads every event file of a folder, and would show the old pictures, too.
        for path in old:
            path.unlink()
        for tag, pixels in images.items():
            summary = image(tag, pixels, dataformats="HWC")  # type: ignore[no-untyped-call]
            file.add(Event(step=0, summary=summary))
