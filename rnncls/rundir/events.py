"""TensorBoard: a run's event stream, and pictures of a sweep."""

import json
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from rnncls.config import Config, dump_config, flatten
from rnncls.rundir.paths import EVENT_FILES

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
}


class EventLog:
    """One run's event stream. TensorBoard's errors are OSErrors of any method."""

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
        # A purge in a first file would hide nothing, but write an event that means a restart.
        purge_step = last_logged + 1 if is_resumed else None
        self._writer = _new_writer(run_dir, purge_step)

        # Four spaces make a code block of Markdown, which TensorBoard renders.
        indented = [f"    {line}" for line in dump_config(config).splitlines()]
        self._writer.add_text("config", "\n".join(indented), step)
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
            self._writer.add_scalar(tag, value, step)

        # Otherwise TensorBoard would show the values up to two minutes late.
        self._writer.flush()

    def write_histograms(self, step: int, model: nn.Module) -> None:
        """Write the distributions of every parameter and of its gradient at this step."""
        # Before its first step, a run has no gradients.
        for name, parameter in model.named_parameters():
            self._writer.add_histogram(f"weights/{name}", parameter, step)
            if parameter.grad is not None:
                self._writer.add_histogram(f"gradients/{name}", parameter.grad, step)

    def close(self) -> None:
        """Write what is still buffered and close the file."""
        self._writer.close()

    def _add_summary(self, summary: Any) -> None:
        event_file: Any = self._writer.file_writer
        event_file.add_summary(summary)


def _new_writer(run_dir: Path, purge_step: int | None) -> SummaryWriter:
    """Begin an event file whose name comes behind those of the files before it.

    TensorBoard reads files in the order of their names, and a purge is no use in front of what it
    purges. A name has the second, the host, the process and a number, without leading zeros: within
    one second 10 would come before 9.
    """
    before = set(run_dir.glob(EVENT_FILES))
    writer = SummaryWriter(str(run_dir), purge_step=purge_step)
    new = set(run_dir.glob(EVENT_FILES)) - before

    if before and new and max(new) < max(before):
        writer.close()
        for path in new:
            path.unlink()
        time.sleep(1)
        writer = SummaryWriter(str(run_dir), purge_step=purge_step)
    return writer


@contextmanager
def reporting_disk_errors_later() -> Iterator[None]:
    """Keep quiet about OSErrors in threads, for the duration.

    TensorBoard writes in threads of its own. Their OSErrors come again in the next call of the
    writer, where RunLog reports them.
    """
    before = threading.excepthook

    def hook(error: threading.ExceptHookArgs) -> None:
        if not isinstance(error.exc_value, OSError):
            before(error)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def log_images(folder: Path, images: dict[str, Any]) -> None:
    """Show pictures in TensorBoard in place of those before.

    `images`: (height, width, 3) uint8 arrays by tag. Raises: OSError.
    """
    # TensorBoard reads every event file of a folder, and would show the old pictures, too.
    for path in folder.glob(EVENT_FILES):
        path.unlink()

    with SummaryWriter(str(folder)) as writer:
        for tag, image in images.items():
            writer.add_image(tag, image, dataformats="HWC")
