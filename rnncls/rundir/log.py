"""The run directory: config, metrics as lines and as a table, TensorBoard, and the progress bar.

config.yaml                  the resolved config: `rnncls train --config` on it repeats the run
metrics.jsonl, metrics.csv   one line per logged step, with the same names as the TensorBoard tags
events.out.tfevents...       TensorBoard: one event stream, HParams included
checkpoints/                 see checkpoint.py
"""

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from rnncls.config import Config, dump_config, flatten
from rnncls.data import Task
from rnncls.errors import printable
from rnncls.rundir.events import reporting_disk_errors_later
from rnncls.rundir.paths import METRICS
from rnncls.rundir.tables import read_metrics
from rnncls.system.files import open_regular, write_atomically, writing

TABLES, EVENTS = "metrics.jsonl and metrics.csv", "the TensorBoard log"
TAGS = (
    "train/loss",
    "train/accuracy",
    "train/grad_norm",
    "train/clip_fraction",
    "train/lr",
    "train/sequences_per_second",
    "val/loss",
    "val/accuracy",
    "val/macro_f1",
)
# Keys that change what is written or how fast, not what is learned: they would only crowd the HParams table.
_NOT_HPARAMS = {"device", "train.num_threads", "train.deterministic", "train.keep_checkpoints"} | {
    f"train.{name}_every" for name in ("log", "eval", "checkpoint", "histogram")
}


def prepare(run_dir: Path, config: Config, last_logged: int, comment: str = "") -> None:
    """Write config.yaml, under a comment or the one it had, and drop from metrics.jsonl what was logged after this step
    and a torn last line.

    Raises WriteError.
    """
    with writing(run_dir):
        kept = "".join(
            json.dumps(row) + "\n" for row in read_metrics(run_dir) if row["step"] <= last_logged
        )
        write_atomically(run_dir / METRICS, kept.encode())
        path = run_dir / "config.yaml"
        if not comment and path.is_file():
            first = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
            comment = first[2:] if first.startswith("# ") else ""
        text = f"# {printable(comment)}\n" if comment else ""
        write_atomically(path, (text + dump_config(config)).encode())


class RunLog:
    """Writes one run's directory. A context manager; a training loop calls `log`, `histograms` and `bar.update`.

    What cannot be written does not end the run: that log is off from then on, after one warning. A resumed run has both
    logs again, with a gap where the disk was full.
    """

    def __init__(
        self,
        run_dir: Path,
        task: Task,
        step: int = 0,
        last_logged: int = 0,
        update: Callable[[int], object] | None = None,
        compared: Collection[str] = (),
    ) -> None:
        """Go on after `step` in a directory that `prepare` made ready; what is behind `last_logged` will come again.

        `update`: is told of steps instead of a bar; then only warnings are said. `compared`: the keys that HParams
        shows, else all that say what is learned.
        """
        self.run_dir = run_dir
        self.compared = compared
        self.off: set[str] = set()  # the logs that failed
        self.files: list[TextIO] = []
        self.hook = nullcontext() if update else reporting_disk_errors_later()
        self.hook.__enter__()
        self.quiet, disable = update is not None, True if update else None
        self.bar = tqdm(
            total=task.max_steps, initial=step, unit="step", disable=disable, dynamic_ncols=True
        )
        self.advance = update or self.bar.update
        self.write(TABLES, lambda: self._open_tables(task.logged_lengths()))
        self.write(EVENTS, lambda: self._open_events(task.config, step, last_logged))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        if error is None:
            self.write(EVENTS, lambda: self.events.add_summary(self.session_end))
        self.write(EVENTS, lambda: self.writer.close())
        self.hook.__exit__(None, None, None)
        for file in self.files:
            with suppress(OSError):  # of a log that is off
                file.close()

    def write(self, log: str, action: Callable[[], object]) -> None:
        """Do `action` unless that log is off; when it fails, turn the log off and say so once."""
        if log in self.off:
            return
        try:
            action()
        except OSError as error:
            self.off.add(log)
            self.say(
                f"rnncls: warning[R10]: {log} cannot be written and stops here: {error.strerror}; training goes on"
            )

    def _open_tables(self, lengths: list[int]) -> None:
        by_length = [f"val/accuracy_by_length/{length}" for length in lengths]
        rows = read_metrics(self.run_dir)
        self.jsonl = self._opened(METRICS, os.O_APPEND)
        self.csv_file = self._opened("metrics.csv", os.O_CREAT | os.O_TRUNC)
        self.csv = csv.DictWriter(self.csv_file, ["step", *TAGS, *by_length], extrasaction="ignore")
        self.csv.writeheader()
        self.csv.writerows(rows)

    def _opened(self, name: str, flags: int) -> TextIO:
        file = os.fdopen(
            open_regular(self.run_dir / name, os.O_WRONLY | flags),
            "w",
            encoding="utf-8",
            newline="",
        )
        self.files.append(file)
        return file

    def _open_events(self, config: Config, step: int, last_logged: int) -> None:
        # A resumed run starts a second event file, which tells TensorBoard to forget what will come again.
        resumed = any(self.run_dir.glob("events.out.tfevents.*"))
        self.writer = SummaryWriter(
            str(self.run_dir), purge_step=last_logged + 1 if resumed else None
        )
        self.writer.add_text(
            "config", "\n".join(f"    {line}" for line in dump_config(config).splitlines()), step
        )
        self._begin_session(config)

    def _begin_session(self, config: Config) -> None:
        """HParams in the run's own stream; SummaryWriter.add_hparams would open a second, time-stamped run."""
        wanted = self.compared or flatten(config).keys() - _NOT_HPARAMS
        flat = {key: value for key, value in flatten(config).items() if key in wanted}
        # torch's hparams writes booleans as 0 and 1, and knows no lists.
        values = {
            key: json.dumps(value) if isinstance(value, bool | list) else value
            for key, value in flat.items()
        }
        metrics = {"val/accuracy": None, "val/loss": None}
        experiment, start, self.session_end = hparams(values, metrics)  # type: ignore[no-untyped-call]
        self.events.add_summary(experiment)
        self.events.add_summary(start)

    @property
    def events(self) -> Any:
        return self.writer.file_writer

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Write one step's values, by TensorBoard tag, everywhere. Called at most once per step."""
        self.write(TABLES, lambda: self._log_row({"step": step, **scalars}))
        self.write(EVENTS, lambda: self._log_events(step, scalars))
        shown = [tag for tag in ("train/loss", "val/loss", "val/accuracy") if tag in scalars]
        if "val/accuracy" in scalars:
            self.say(
                f"step {step:>6,}   " + "   ".join(f"{tag} {scalars[tag]:.4f}" for tag in shown)
            )

    def _log_row(self, row: dict[str, float]) -> None:
        finite = {
            tag: value if math.isfinite(value) else None for tag, value in row.items()
        }  # JSON has no NaN
        self.jsonl.write(json.dumps(finite) + "\n")
        self.jsonl.flush()
        self.csv.writerow(finite)
        self.csv_file.flush()

    def _log_events(self, step: int, scalars: dict[str, float]) -> None:
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def histograms(self, step: int, model: nn.Module) -> None:
        """Distributions of every parameter and of its gradient at this step."""
        self.write(EVENTS, lambda: self._log_histograms(step, model))

    def _log_histograms(self, step: int, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            self.writer.add_histogram(f"weights/{name}", parameter, step)
            if parameter.grad is not None:
                self.writer.add_histogram(f"gradients/{name}", parameter.grad, step)

    def say(self, line: str) -> None:
        """A line on stderr that does not tear the progress bar."""
        if not self.quiet or line.startswith("rnncls:"):
            tqdm.write(line, file=sys.stderr)
