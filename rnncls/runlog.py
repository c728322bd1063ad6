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
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from tqdm import tqdm

from rnncls.config import Config, dump_config, flatten
from rnncls.errors import ConfigError, Problem, WriteError

MOST_LENGTHS_LOGGED = 20  # more curves than this in one chart tell nobody anything
TAGS = (
    "train/loss",
    "train/accuracy",
    "train/grad_norm",
    "train/clip_fraction",
    "train/lr",
    "train/sequences_per_second",
    "val/loss",
    "val/accuracy",
)
# Keys that change what is written or how fast, not what is learned: they would only crowd the HParams table.
_NOT_HPARAMS = {"device", "train.num_threads", "train.keep_checkpoints"} | {
    f"train.{name}_every" for name in ("log", "eval", "checkpoint", "histogram")
}


def default_run_dir(config_path: Path, name: str = "") -> Path:
    """`runs/<config name>/<date_time>[-name]`, numbered if taken. A run's own config.yaml goes by that run's name."""
    is_run = config_path.name == "config.yaml" and (config_path.parent / "checkpoints").is_dir()
    stem = config_path.resolve().parent.parent.name if is_run else config_path.stem
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    wanted = Path("runs") / stem / (f"{time}-{name}" if name else time)
    others = (wanted.with_name(f"{wanted.name}-{number}") for number in count(2))
    return next(path for path in chain([wanted], others) if not path.exists())


def logged_lengths(config: Config) -> list[int]:
    """The training lengths whose validation accuracy is logged: all, or evenly spread ones when they are many."""
    first, last = config.data.min_length, config.data.max_length
    number = min(MOST_LENGTHS_LOGGED, last - first + 1)
    return sorted({first + round(index * (last - first) / max(1, number - 1)) for index in range(number)})


def create(run_dir: Path, config: Config) -> None:
    """Make a new run directory. Raises ConfigError when it exists and is not empty, WriteError when it cannot."""
    with writing(run_dir):
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            remedy = "another --run-dir, --resume to go on with a run, or neither for a fresh directory"
            raise ConfigError(Problem("the run directory is not empty", str(run_dir), remedy=remedy, id="C19"))
        (run_dir / "checkpoints").mkdir(parents=True)
        (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        (run_dir / "metrics.jsonl").touch(exist_ok=False)


def rewind(run_dir: Path, config: Config, step: int) -> None:
    """Drop what was logged after `step`, a torn last line included, and save the config the run goes on with."""
    with writing(run_dir):
        path = run_dir / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        kept = b"".join(line + b"\n" for line in lines if (at := _step_of(line)) is not None and at <= step)
        for name, content in (("metrics.jsonl", kept), ("config.yaml", dump_config(config).encode())):
            temporary = run_dir / f".tmp-{os.getpid()}-{name}"
            temporary.write_bytes(content)
            temporary.replace(run_dir / name)


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl; None for a torn or empty one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row["step"] if isinstance(row, dict) and isinstance(row.get("step"), int) else None


class RunLog:
    """Writes one run's directory. A context manager; a training loop calls `log`, `histograms` and `bar.update`."""

    def __init__(self, run_dir: Path, config: Config, step: int = 0) -> None:
        """Go on after `step` in a directory that `create` or `rewind` prepared. Raises WriteError."""
        self.run_dir = run_dir
        self.checkpoints = run_dir / "checkpoints"
        lengths = [f"val/accuracy_by_length/{length}" for length in logged_lengths(config)]
        with writing(run_dir):
            rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
            self.jsonl = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
            self.csv_file = (run_dir / "metrics.csv").open("w", encoding="utf-8", newline="")
            self.csv = csv.DictWriter(self.csv_file, ["step", *TAGS, *lengths])
            self.csv.writeheader()
            self.csv.writerows(rows)
            # A resumed run starts a second event file, which tells TensorBoard to forget what came after `step`.
            self.writer = SummaryWriter(str(run_dir), purge_step=step + 1 if rows or step else None)
        self.writer.add_text("config", "\n".join(f"    {line}" for line in dump_config(config).splitlines()), step)
        self._begin_session(config)
        self.bar = tqdm(total=config.train.max_steps, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if error is None:
            self.events.add_summary(self.session_end)
        self.writer.close()
        self.jsonl.close()
        self.csv_file.close()

    def _begin_session(self, config: Config) -> None:
        """HParams in the run's own stream; SummaryWriter.add_hparams would open a second, time-stamped run."""
        flat = {key: value for key, value in flatten(config).items() if key not in _NOT_HPARAMS}
        # torch's hparams writes booleans as 0 and 1, and knows no lists.
        values = {key: json.dumps(value) if isinstance(value, bool | list) else value for key, value in flat.items()}
        metrics = {"val/accuracy": None, "val/loss": None}
        experiment, start, self.session_end = hparams(values, metrics)  # type: ignore[no-untyped-call]
        self.events.add_summary(experiment)
        self.events.add_summary(start)

    @property
    def events(self) -> Any:
        return self.writer.file_writer

    def log(self, step: int, scalars: dict[str, float]) -> None:
        """Write one step's values, by TensorBoard tag, everywhere. Called at most once per step."""
        row = {"step": step, **scalars}
        with writing(self.run_dir):
            finite = {tag: value if math.isfinite(value) else None for tag, value in row.items()}  # JSON has no NaN
            self.jsonl.write(json.dumps(finite) + "\n")
            self.jsonl.flush()
            self.csv.writerow(finite)
            self.csv_file.flush()
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, step)
            self.writer.flush()
        shown = [tag for tag in ("train/loss", "val/loss", "val/accuracy") if tag in scalars]
        if "val/accuracy" in scalars:
            self.say(f"step {step:>6,}   " + "   ".join(f"{tag} {scalars[tag]:.4f}" for tag in shown))

    def histograms(self, step: int, model: nn.Module) -> None:
        """Distributions of every parameter and of its gradient at this step."""
        for name, parameter in model.named_parameters():
            self.writer.add_histogram(f"weights/{name}", parameter, step)
            if parameter.grad is not None:
                self.writer.add_histogram(f"gradients/{name}", parameter.grad, step)

    def say(self, line: str) -> None:
        """A line on stderr that does not tear the progress bar."""
        tqdm.write(line, file=sys.stderr)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the body into a WriteError that names `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(Problem(f"cannot write: {error.strerror}", str(path), remedy="another --run-dir")) from None
