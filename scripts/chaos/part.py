"""A part of chaos: its folder, the undisturbed run to compare with, and what it counts."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rnncls.config import dump_config
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest, step_files
from scripts.file_calls import Prepare
from scripts.processes import HUNG, fork, nothing, wait
from tests.helpers import HARD, config_of, outcome

# What the tests resume, with a smaller model: everything random or stateful at once, odd cadences,
# skipped old checkpoints. Its steps are eager, because two parts patch `eager.train_step`.
HARD_CONFIG = config_of(
    model={**HARD["model"], "hidden_size": 8},
    train=HARD["train"],
    device="cpu",
)

# Every kind of save, once.
SHORTER = ("train.max_steps=9", "train.eval_every=4", "train.checkpoint_every=3")


@dataclass(frozen=True)
class Result:
    """The outcome of a part: a figure for people, and the numbers of faults and failures."""

    figure: str
    injected: int
    failures: int
    skipped: bool = False


class Part:
    """The folder of a part, its undisturbed run to compare with, and its counts."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self.overrides = overrides
        self.log = folder / "rnncls.log"  # of the last process that was started
        self.num_runs = 0
        self.failures = 0
        folder.mkdir()

        whole = folder / "whole"
        exit_code = self.run(whole)
        if exit_code != 0:
            raise RuntimeError(f"the undisturbed run ended with {exit_code}: {self.last_words()}")

        self.expected = outcome(whole)
        self.num_steps = saved_step(whole)

    def command(self, run_dir: Path) -> list[str]:
        """Return what a user types next: start the run, or resume it once it has a checkpoint."""
        if step_files(run_dir / "checkpoints"):
            return ["train", "--resume", str(run_dir)]

        config = self.folder / "hard.yaml"
        config.write_text(dump_config(HARD_CONFIG))
        return ["train", "--config", str(config), "--run-dir", str(run_dir), *self.overrides]

    def start(self, run_dir: Path, prepare: Prepare = nothing) -> int:
        """Start or resume the run in a fork that calls `prepare` first; return its process id."""
        return fork(self.command(run_dir), self.log, prepare)

    def run(self, run_dir: Path, prepare: Prepare = nothing) -> int:
        """Start or resume the run, wait for its end and return its exit code."""
        return wait(self.start(run_dir, prepare))

    def seconds(self) -> float:
        """Return how long an undisturbed run takes: the shorter of two, as one may be delayed."""
        times = []
        for _ in range(2):
            started_at = time.monotonic()
            self.check_exit(self.run(self.next_run_dir()), 0, "a run that is timed")
            times.append(time.monotonic() - started_at)
        return min(times)

    def next_run_dir(self) -> Path:
        """Return the path of a new run directory; the one before is deleted."""
        shutil.rmtree(self.folder / f"run-{self.num_runs}", ignore_errors=True)
        self.num_runs += 1
        return self.folder / f"run-{self.num_runs}"

    def last_words(self) -> str:
        """Return the end of what the last process wrote."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    def check(self, good: bool, what: str) -> bool:
        """Count and print a failure unless `good`."""
        if not good:
            self.failures += 1
            print(f"FAILED: {what}", file=sys.stderr)
        return good

    def check_exit(self, exit_code: int, wanted: int, what: str) -> bool:
        """Check an exit code; a failure is printed with the last lines of the process."""
        ended = "hung" if exit_code == HUNG else f"exit code {exit_code}"
        good = exit_code == wanted
        return self.check(good, f"{what}: {ended}\n{'' if good else self.last_words()}")

    def check_end(self, run_dir: Path, what: str) -> None:
        """Let the run finish; it must end as the undisturbed one did and leave nothing behind."""
        if not self.check_exit(self.run(run_dir), 0, f"{what}: the run was resumed"):
            return

        self.check(outcome(run_dir) == self.expected, f"{what}: another outcome")
        left = [
            path.name
            for path in run_dir.rglob("*")
            if ".tmp-" in path.name or path.suffix == ".bad"
        ]
        self.check(not left, f"{what}: left behind {left}")


def saved_step(run_dir: Path) -> int:
    """Return the step of the newest checkpoint, 0 if there is none."""
    if not step_files(run_dir / "checkpoints"):
        return 0
    return read_checkpoint(find_newest(run_dir)).state.step
