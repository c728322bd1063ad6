"""Kills and signals at random moments, and in the middle of chosen steps."""

import mmap
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from rnncls.steps import eager
from rnncls.steps.state import TrainState
from scripts.chaos.part import COMPILED_GRU, IN_TURNS, Part, Result, saved_step
from scripts.file_calls import Prepare
from scripts.processes import wait
from tests.helpers import stop_at

# Signals at random moments may come too late. A part that misses more often than this gives up.
TRIES_PER_HIT = 8


def kills(folder: Path, short: bool) -> Result:
    """SIGKILL at random moments, up to five in one run: while it starts, trains, or resumes."""
    from rnncls.steps.compiled.code import load_program

    # Once: forks have what this process has loaded.
    load_program("gru")
    part = Part(folder, turns=(*IN_TURNS, COMPILED_GRU))
    rng = random.Random(0)
    run_s = part.seconds()
    wanted = 3 if short else 40
    tries = 0
    hits = 0

    while hits < wanted and tries < TRIES_PER_HIT * wanted:
        run_dir = part.next_run_dir()
        for _ in range(rng.randint(1, 5)):
            pid = part.start(run_dir)
            time.sleep(rng.uniform(0, run_s))
            os.kill(pid, signal.SIGKILL)
            exit_code = wait(pid)
            tries += 1
            if exit_code == -signal.SIGKILL:
                hits += 1
            else:  # it came after the end
                part.check_exit(exit_code, 0, f"kill {hits}")
        part.check_end(run_dir, f"kill {hits}")

    part.check(hits >= wanted, f"only {hits} of {tries} SIGKILLs came before the end of a run")
    figure = f"{hits} SIGKILLs at random moments of {part.num_runs} runs"
    return Result(figure, hits, part.failures)


def counting(steps: mmap.mmap) -> Prepare:
    """Show this process how many steps its fork has done."""
    original = eager.train_step

    def counted(state: TrainState, *arguments: Any) -> None:
        original(state, *arguments)
        steps[:8] = state.step.to_bytes(8, "little")

    return lambda: setattr(eager, "train_step", counted)


def signals(folder: Path, short: bool) -> Result:
    """SIGTERM at random moments: exit 143, and the newest checkpoint is of the last step done."""
    part = Part(folder, turns=IN_TURNS)
    rng = random.Random(1)
    run_s = part.seconds()
    wanted = 2 if short else 15
    hits = 0
    early = 0
    late = 0

    while hits < wanted and hits + early + late < TRIES_PER_HIT * wanted:
        run_dir = part.next_run_dir()
        steps = mmap.mmap(-1, 8)
        pid = part.start(run_dir, counting(steps))
        time.sleep(rng.uniform(0.01, run_s))
        os.kill(pid, signal.SIGTERM)
        exit_code = wait(pid)
        done = int.from_bytes(steps[:8], "little")

        if (exit_code, done) == (0, part.num_steps):
            late += 1
        elif (exit_code, done) == (-signal.SIGTERM, 0):  # before rnncls could handle it
            early += 1
        else:
            hits += 1
            part.check_exit(exit_code, 143, f"SIGTERM at step {done}")

        saved = saved_step(run_dir)
        part.check(saved == done, f"SIGTERM: {done} steps done, {saved} saved")
        part.check_end(run_dir, f"SIGTERM at step {done}")

    part.check(hits >= wanted, f"only {hits} SIGTERMs came in time: {early} early, {late} late")
    figure = (
        f"{hits} SIGTERMs at random moments ({late} more came after the last step): "
        "exit 143, no lost step"
    )
    return Result(figure, hits, part.failures)


def stopping(at: int) -> Prepare:
    """Send this process a real SIGTERM in the middle of the step with this index."""
    return lambda: stop_at(pytest.MonkeyPatch(), at)


def stops(folder: Path, short: bool) -> Result:
    """SIGTERM in the middle of chosen steps: of each single step, and of random pairs of steps."""
    part = Part(folder, turns=IN_TURNS)
    rng = random.Random(2)
    last = part.num_steps - 1  # a signal in the last step finds the run over
    singles = [[step] for step in range(0, last, 12 if short else 1)]
    pairs = [sorted(rng.sample(range(last), 2)) for _ in range(2 if short else 10)]

    stops_hit = 0
    for chosen in singles + pairs:
        run_dir = part.next_run_dir()
        for at in chosen:
            exit_code = part.run(run_dir, stopping(at))
            stops_hit += part.check_exit(exit_code, 143, f"stop at {at} of {chosen}")
            saved = saved_step(run_dir)
            part.check(saved == at + 1, f"stop at {at} of {chosen}: step {saved} saved")
        part.check_end(run_dir, f"stops at {chosen}")

    figure = (
        f"stopped in {len(singles)} single steps and {len(pairs)} random pairs of steps: "
        "one outcome"
    )
    return Result(figure, stops_hit, part.failures)
