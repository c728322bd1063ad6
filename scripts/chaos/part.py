"""A part of chaos: its folder, the undisturbed runs to compare with, and what it counts."""

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rnncls.config import dump_config
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest, step_files
from scripts.file_calls import Prepare
from scripts.processes import HUNG, fork, nothing, wait
from tests.helpers import HARD, Outcome, config_of, outcome

# What the tests resume, with a smaller model: everything random or stateful at once, odd cadences,
# skipped old checkpoints. Its steps are eager, because two parts patch `eager.train_step`.
HARD_CONFIG = config_of(
    model={**HARD["model"], "hidden_size": 8},
    train=HARD["train"],
    device="cpu",
)

# HARD_CONFIG with every key that says what the head sees, what a sequence begins with and how far a
# gradient reaches; and with a loss of prefixes, which wants one direction and the last state.
TOGETHER = (
    "model.pooling=last_mean_max",
    "model.initial_state=learned",
    "train.recompute_every=2",
    "train.truncate_after=3",
)
PREFIX = (
    "model.bidirectional=false",
    "model.initial_state=learned",
    "train.objective=prefix",
    "train.recompute_every=2",
    "train.truncate_after=3",
)
IN_TURNS = ((), TOGETHER, PREFIX)

# HARD_CONFIG with compiled steps: a GRU of two layers in both directions, with dropout.
COMPILED_GRU = ("model.cell=gru", "train.engine=compiled")

# Every kind of save, once.
SHORTER = ("train.max_steps=9", "train.eval_every=4", "train.checkpoint_every=3")


@dataclass(frozen=True)
class Result:
    """The outcome of a part: a figure for people, and the numbers of faults and failures."""

    figure: str
    injected: int
    failures: int
    skipped: bool = False


class Whole(NamedTuple):
    """An undisturbed run: the overrides that it has besides those of its part, and what it left."""

    overrides: tuple[str, ...]
    run_dir: Path
    expected: Outcome


class Part:
    """The folder of a part, its undisturbed runs to compare with, and its counts.

    `turns` are further overrides: the runs that `next_run_dir` begins have them in turns, and each
    is compared with the undisturbed run that has the same.
    """

    def __init__(
        self, folder: Path, *overrides: str, turns: Sequence[tuple[str, ...]] = ((),)
    ) -> None:
        self.folder = folder
        self.overrides = overrides
        self.log = folder / "rnncls.log"  # of the last process that was started
        self.num_runs = 0
        self.failures = 0
        folder.mkdir()

        self.wholes: list[Whole] = []
        for number, turn in enumerate(turns):
            self.overrides = (*overrides, *turn)
            run_dir = folder / f"whole-{number}"
            exit_code = self.run(run_dir)
            if exit_code != 0:
                words = self.last_words()
                raise RuntimeError(f"the undisturbed run ended with {exit_code}: {words}")
            self.wholes.append(Whole(self.overrides, run_dir, outcome(run_dir)))

        self.take_turn(0)
        self.num_steps = saved_step(self.whole)

    def take_turn(self, number: int) -> None:
        """Let the runs that begin from now on be compared with this undisturbed run."""
        self.overrides, self.whole, self.expected = self.wholes[number % len(self.wholes)]

    def command(self, run_dir: Path) -> list[str]:
        """Return what a user types next: start the run, or resume it once it has a checkpoint."""
        if step_files(run_dir / "checkpoints"):
            return ["train", "--resume", str(run_dir)]

        # Written once: a run that was started before may be about to read it.
        config = self.folder / "hard.yaml"
        if not config.exists():
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
        self.take_turn(self.num_runs)
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
