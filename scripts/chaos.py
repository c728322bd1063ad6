"""Kill, starve, stop and damage runs; then resume them and compare with an undisturbed run.

    python -m scripts.chaos                     everything (make chaos)
    python -m scripts.chaos --short             what the tests run
    python -m scripts.chaos kills signals       some parts

Prints one line per part on stdout, and at last the number of failures and what was skipped. The
exit code is 1 if anything went wrong. A part that injected no fault has shown nothing and counts
as a failure too.

Every attempt is `rnncls` in a process of its own, forked from this one so that torch is imported
once. The part `strace` starts real processes and has the kernel inject the faults; where strace is
not installed, or may not trace, it is skipped and the last line says how many cases that were.
"""

import errno
import json
import mmap
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pytest
import torch
import typer

from rnncls.config import dump_config
from rnncls.errors import CheckpointError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest, step_files
from rnncls.steps import eager
from rnncls.steps.state import TrainState
from scripts import fuzz
from scripts.file_calls import Prepare, committed, failing, killing, listing, without_random_part
from scripts.processes import (
    HUNG,
    TIMEOUT_S,
    end_all,
    exit_on_signals,
    fork,
    nothing,
    run_group,
    wait,
)
from tests.helpers import HARD, config_of, outcome, stop_at

ROOT = Path(__file__).parent.parent

# What the tests resume, with a smaller model: everything random or stateful at once, odd cadences,
# skipped old checkpoints. Its steps are eager, because two parts patch `eager.train_step`.
HARD_CONFIG = config_of(
    model={**HARD["model"], "hidden_size": 8},
    train=HARD["train"],
    device="cpu",
)

# Every kind of save, once.
SHORTER = ("train.max_steps=9", "train.eval_every=4", "train.checkpoint_every=3")

# Signals at random moments may come too late. A part that misses more often than this gives up.
TRIES_PER_HIT = 8


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


# --- fail points: the n-th call that changes a file


def list_calls(part: Part) -> list[tuple[str, str]]:
    """Return the calls of an undisturbed run that change a file: (call, path in the run)."""
    run_dir = part.next_run_dir()
    listed = part.folder / "calls.jsonl"
    part.check_exit(
        part.run(run_dir, listing(run_dir, listed)), 0, "the run whose calls are listed"
    )

    lines = listed.read_text().splitlines() if listed.exists() else []
    return [(call, path) for call, path in map(json.loads, lines)]


def failpoints(folder: Path, short: bool) -> Result:
    """SIGKILL before every call of a run that changes a file, and in the middle of every write."""
    part = Part(folder, *(SHORTER if short else ()))
    calls = list_calls(part)

    points = []
    for index, (name, _) in enumerate(calls):
        points.append((index, False))
        if name == "write":
            points.append((index, True))

    for index, torn in points:
        run_dir = part.next_run_dir()
        what = f"kill {'half-way through' if torn else 'before'} call {index}, {calls[index]}"
        exit_code = part.run(run_dir, killing(run_dir, index, torn))
        part.check_exit(exit_code, -signal.SIGKILL, what)
        part.check_end(run_dir, what)

    figure = (
        f"{len(points)} kills: one at each of {len(calls)} calls that change a file, "
        "and half-way through each write"
    )
    return Result(figure, len(points), part.failures)


def disk_errors(folder: Path, short: bool) -> Result:
    """ENOSPC and EIO at every call of every save.

    The exit code must be 6, what was committed must stay byte-equal, and the run must be resumable.
    """
    part = Part(folder, *(SHORTER if short else ()))
    calls = list_calls(part)
    points = [
        index
        for index, (name, path) in enumerate(calls)
        if path.startswith("checkpoints") and name != "mkdir"
    ]

    for index in points:
        for error in (errno.ENOSPC, errno.EIO):
            what = f"{os.strerror(error)} at call {index}, {calls[index]}"
            fail_once(part, index, error, what)

    figure = (
        f"ENOSPC and EIO at each of {len(points)} calls of a run's saves: "
        "exit 6, nothing committed changed"
    )
    return Result(figure, 2 * len(points), part.failures)


def fail_once(part: Part, index: int, error: int, what: str) -> None:
    """Let one call of a run fail, look at what is left, and resume the run."""
    run_dir = part.next_run_dir()
    hashes = part.folder / "hashes.json"
    hashes.unlink(missing_ok=True)

    part.check_exit(part.run(run_dir, failing(run_dir, index, error, hashes)), 6, what)
    if not part.check(hashes.exists(), f"{what}: never hit it"):
        return

    before = json.loads(hashes.read_text())
    after = committed(run_dir)
    unchanged = before == {name: after.get(name) for name in before}
    part.check(unchanged, f"{what}: a checkpoint changed")
    part.check(not list(run_dir.rglob(".tmp-*")), f"{what}: left a temporary file")
    part.check_end(run_dir, what)


# --- kills and signals at random moments


def kills(folder: Path, short: bool) -> Result:
    """SIGKILL at random moments, up to five in one run: while it starts, trains, or resumes."""
    part = Part(folder)
    rng = random.Random(0)
    run_s = part.seconds()
    wanted = 10 if short else 200
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
    part = Part(folder)
    rng = random.Random(1)
    run_s = part.seconds()
    wanted = 5 if short else 50
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
    part = Part(folder)
    rng = random.Random(2)
    last = part.num_steps - 1  # a signal in the last step finds the run over
    singles = [[step] for step in range(0, last, 8 if short else 1)]
    pairs = [sorted(rng.sample(range(last), 2)) for _ in range(5 if short else 100)]

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


# --- damage


def damage(folder: Path, short: bool) -> Result:
    """Flip bits of a checkpoint, and truncate it: each must be detected before anything is used."""
    part = Part(folder, "model.hidden_size=2", "model.embedding_dim=1", "train.max_steps=4")
    rng = random.Random(3)
    path = find_newest(folder / "whole")
    content = path.read_bytes()
    changed = folder / path.name
    flips = [rng.randrange(8 * len(content)) for _ in range(500 if short else 10_000)]
    lengths = range(0, len(content), 97 if short else 1)

    part.check(not is_refused(changed, content), "the undamaged checkpoint is refused")
    for position in flips:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        part.check(is_refused(changed, bytes(flipped)), f"bit {position} flipped, not detected")
    for length in lengths:
        cut = content[:length]
        part.check(is_refused(changed, cut), f"truncated to {length} bytes, not detected")

    figure = (
        f"{len(flips):,} bit flips and {len(lengths):,} truncations of {len(content):,} bytes "
        "detected"
    )
    return Result(figure, len(flips) + len(lengths), part.failures)


def is_refused(path: Path, content: bytes) -> bool:
    """Return whether reading a checkpoint with this content raises CheckpointError."""
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except CheckpointError:
        return True
    return False


def mutations(_folder: Path, short: bool) -> Result:
    """Generated inputs of every kind (see fuzz.py)."""
    counts = fuzz.counts_of(short)
    failures = fuzz.run_all(counts)
    listed = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    figure = f"{sum(counts.values()):,} generated cases: {listed}"
    return Result(figure, sum(counts.values()), failures)


# --- faults from the kernel


class Call(NamedTuple):
    """A system call of a save."""

    name: str
    number: int  # among the calls of that name, from 1 on
    path: str


# One letter for each system call of a save.
LETTERS = {"write": "w", "fsync": "f", "rename": "r", "link": "l", "unlink": "u"}

# A checkpoint is written, synced, renamed, and its folder synced (wfrf). The best one is linked,
# renamed onto best.safetensors, and the link removed where both were one file already (lrf, lruf).
# An old checkpoint is removed (u).
ORDER_OF_SAVES = re.compile(r"(w+frf|lrf|lruf|u)+")

FAULTS = ("signal=KILL", "error=ENOSPC", "error=EIO")


def strace(folder: Path, short: bool) -> Result:
    """Check the order of a save's calls, and have strace inject faults at each call of the saves.

    The faults are SIGKILL, ENOSPC and EIO; an unlink that fails harms nothing and is left out.
    """
    if short:
        return Result("skipped in the short form", 0, 0, skipped=True)

    part = Part(folder, "train.max_steps=2", "train.checkpoint_every=1", "train.keep_checkpoints=1")
    reason = why_no_strace()
    if reason:
        num_cases = len(FAULTS) * sum(is_target(name, path) for name, path in list_calls(part))
        return Result(f"skipped {num_cases} cases: {reason}", 0, part.failures, skipped=True)

    calls = calls_of_saves(part)
    order = "".join(LETTERS[call.name] for call in calls)
    part.check(bool(ORDER_OF_SAVES.fullmatch(order)), f"order of the calls: {order!r}")

    targets = [call for call in calls if call.name != "unlink"]
    cases = [(call, fault) for call in targets for fault in FAULTS]
    with ThreadPoolExecutor(2) as pool:
        try:
            injections = list(pool.map(lambda case: inject(part, *case), cases))
        except BaseException:
            end_all()  # or the pool would wait for what is running
            raise

    for (call, fault), injection in zip(cases, injections, strict=True):
        what = f"{fault} at {call.name} {call.number} of {call.path}"
        wanted = 137 if "KILL" in fault else 6
        part.check(injection.hit, f"{what}: never hit it")
        part.check(injection.exit_code == wanted, f"{what}: exit code {injection.exit_code}")
        part.check_end(injection.run_dir, what)

    num_hits = sum(injection.hit for injection in injections)
    figure = (
        f"{num_hits} faults injected by the kernel at {len(targets)} calls; "
        f"order of the calls: {order}"
    )
    return Result(figure, num_hits, part.failures)


def why_no_strace() -> str:
    """Return why strace cannot be used here; an empty string if it can."""
    if not shutil.which("strace"):
        return "strace is not installed"

    probe = subprocess.run(
        ["strace", "-o", os.devnull, "true"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if probe.returncode:
        return f"strace cannot trace here: {probe.stderr.strip()}"
    return ""


def is_target(name: str, path: str) -> bool:
    """Return whether this call of `os` is one that strace would inject faults at."""
    return name in ("write", "fsync", "replace", "link") and path.startswith("checkpoints")


def run_straced(part: Part, log: Path, calls: str, run_dir: Path, *options: str) -> int:
    """Run `rnncls` under strace and return its exit code as a shell gives it.

    Only the main thread is traced: TensorBoard's thread saves nothing.
    """
    command = ["strace", "-y", "-o", str(log), "-e", f"trace={calls}", *options]
    command += [sys.executable, "-m", "rnncls", *part.command(run_dir)]
    return run_group(command, ROOT, 10 * TIMEOUT_S)


def calls_of_saves(part: Part) -> list[Call]:
    """Trace an undisturbed run and return its system calls in checkpoints/."""
    log = part.folder / "strace.log"
    exit_code = run_straced(part, log, ",".join(LETTERS), part.next_run_dir())
    part.check(exit_code == 0, f"the traced run: exit code {exit_code}")

    numbers: Counter[str] = Counter()
    calls = []
    for name, arguments in re.findall(r"^(\w+)\((.*)", log.read_text(), re.MULTILINE):
        numbers[name] += 1
        path = re.search(r"/checkpoints[^\">]*", arguments)
        if path:
            calls.append(Call(name, numbers[name], path[0]))
    return calls


class Injection(NamedTuple):
    """A run with an injected fault."""

    run_dir: Path
    exit_code: int
    hit: bool  # whether the fault came at the call that was meant


def inject(part: Part, call: Call, fault: str) -> Injection:
    """Run with a fault at this call."""
    case = part.folder / f"{call.name}-{call.number}-{fault.rpartition('=')[2]}"
    case.mkdir()
    run_dir = case / "run"
    log = case / "strace.log"
    injection = f"inject={call.name}:{fault}:when={call.number}"
    exit_code = run_straced(part, log, call.name, run_dir, "-e", injection)

    # Two runs make the same calls in the same order, so the n-th must be on the same path again.
    lines = [line for line in log.read_text().splitlines() if line.startswith(f"{call.name}(")]
    hit = False
    if len(lines) >= call.number:
        line = without_random_part(lines[call.number - 1])
        hit = without_random_part(call.path) in line
    return Injection(run_dir, exit_code, hit)


# --- all parts

PARTS: dict[str, Callable[[Path, bool], Result]] = {
    "failpoints": failpoints,
    "disk_errors": disk_errors,
    "kills": kills,
    "signals": signals,
    "stops": stops,
    "damage": damage,
    "mutations": mutations,
    "strace": strace,
}


def run_part(name: str, folder: Path, short: bool) -> Result:
    """Run a part and print its line. A part that breaks off, or injects nothing, has failed."""
    started_at = time.monotonic()
    try:
        result = PARTS[name](folder, short)
    except Exception:
        traceback.print_exc()
        result = Result("broke off", 0, 1)

    failures = result.failures
    if not result.injected and not result.skipped:
        print(f"FAILED: {name}: no fault was injected", file=sys.stderr)
        failures += 1

    seconds = time.monotonic() - started_at
    print(f"{name}: {result.figure}; {failures} failures, {seconds:.0f} s", flush=True)
    return Result(result.figure, result.injected, failures, result.skipped)


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=", ".join(PARTS))] = None,
    short: Annotated[bool, typer.Option("--short", help="Fewer cases of each part.")] = False,
) -> None:
    """Run the parts and print their figures."""
    chosen = parts or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        raise typer.BadParameter(f"no part {', '.join(unknown)}; there are {', '.join(PARTS)}")

    torch.set_num_threads(1)
    exit_on_signals()
    try:
        with tempfile.TemporaryDirectory() as folder:
            # A run in this process: all that is imported late is there before the first fork.
            fuzz.whole_checkpoint()
            results = {name: run_part(name, Path(folder) / name, short) for name in chosen}
    finally:
        end_all()

    failures = sum(result.failures for result in results.values())
    skipped = [f"{name} ({result.figure})" for name, result in results.items() if result.skipped]
    left_out = f"; not run: {', '.join(skipped)}" if skipped else ""
    print(f"{failures} failures in all{left_out}")
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
