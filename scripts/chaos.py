"""Kill it, starve it, stop it, damage it; then go on and compare with a run that nobody disturbed.

    python -m scripts.chaos                     everything (make chaos)
    python -m scripts.chaos --short             what make test runs
    python -m scripts.chaos kills signals       some parts

Prints one figure per part on stdout; exit code 1 if anything went wrong. Every attempt is `rnncls` in a process of its
own, forked from this one so that torch is imported once. The part `strace` starts real processes and has the kernel
inject the faults.
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
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from rnncls import cli
from rnncls.errors import CheckpointError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest, step_files
from rnncls.steps import eager
from rnncls.steps.state import TrainState
from scripts import fuzz

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 60

# Everything random or stateful at once: dropout, layers, directions, momenta, skipped old checkpoints, odd cadences.
HARD = """
data: {modulus: 3, max_length: 4}
model: {embedding_dim: 4, hidden_size: 8, num_layers: 2, dropout: 0.4, bidirectional: true}
schedule: {warmup_steps: 5}
train: {max_steps: 24, batch_size: 8, log_every: 5, eval_every: 7, checkpoint_every: 4, eval_samples: 40}
device: cpu
"""
SHORTER = (
    "train.max_steps=9",
    "train.eval_every=4",
    "train.checkpoint_every=3",
)  # every kind of save, once

Outcome = tuple[dict[str, bytes], list[dict[str, Any]], dict[str, Any]]


def outcome(run_dir: Path) -> Outcome:
    """Final tensors as bytes, logged lines and counters of the trajectory, without what depends on the clock."""
    checkpoint = read_checkpoint(find_newest(run_dir))
    tensors = {**checkpoint.model, **checkpoint.optim}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {key: value for key, value in line.items() if "per_second" not in key} for line in lines
    ]
    counters = {
        key: value for key, value in checkpoint.state.counters.items() if key != "totals_seconds"
    }
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, timeless, counters


def fork(words: list[str], prepare: Callable[[], None] = lambda: None) -> int:
    """Start `rnncls words` in a fork, `prepare` called first; returns its pid. Its streams go to files of that name."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    exit_code = 99
    try:
        log = os.open(
            words[-1] + ".log" if "--resume" in words else os.devnull,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
        )
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        sys.argv = ["rnncls", *words]
        prepare()
        cli.main()
    except SystemExit as error:
        exit_code = int(error.code or 0)
    finally:
        os._exit(exit_code)


def wait(pid: int) -> int:
    """The exit code, as Python's subprocess gives it; -SIGKILL after TIMEOUT_S, which counts as a hang."""
    give_up_at = time.monotonic() + TIMEOUT_S
    while time.monotonic() < give_up_at:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"process {pid} hangs")


class Part:
    """One part's folder, undisturbed run and count of failures."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self.overrides = folder, overrides
        self.tried, self.failures = 0, 0
        folder.mkdir()
        started_at = time.monotonic()
        assert wait(fork(self.command(folder / "whole"))) == 0
        self.seconds = time.monotonic() - started_at  # that an undisturbed run takes
        self.expected = outcome(folder / "whole")
        self.steps = read_checkpoint(find_newest(folder / "whole")).state.step

    def command(self, run_dir: Path) -> list[str]:
        """What a user types next: start the run, or go on with it once it has a checkpoint."""
        if step_files(run_dir / "checkpoints"):
            return ["train", "--resume", str(run_dir)]
        config = self.folder / "hard.yaml"
        config.write_text(HARD)
        return ["train", "--config", str(config), "--run-dir", str(run_dir), *self.overrides]

    def run_dir(self) -> Path:
        """A new one; the one before is thrown away."""
        shutil.rmtree(self.folder / f"run-{self.tried}", ignore_errors=True)
        self.tried += 1
        return self.folder / f"run-{self.tried}"

    def check(self, good: bool, what: str) -> bool:
        """Count a failure unless `good`."""
        if not good:
            self.failures += 1
            print(f"FAILED: {what}", file=sys.stderr)
        return good

    def check_end(self, run_dir: Path, what: str) -> None:
        """Let the run finish; it must end as the undisturbed one did and leave nothing behind."""
        exit_code = wait(fork(self.command(run_dir)))
        if not self.check(exit_code == 0, f"{what}: going on ended with {exit_code}"):
            return
        self.check(outcome(run_dir) == self.expected, f"{what}: another outcome")
        left = [
            path.name
            for path in run_dir.rglob("*")
            if ".tmp-" in path.name or path.suffix == ".bad"
        ]
        self.check(not left, f"{what}: left behind {left}")


# --- fail points: the n-th call that changes a file

CALLS = (
    "mkdir",
    "open",
    "write",
    "fsync",
    "rename",
    "replace",
    "link",
    "unlink",
    "ftruncate",
    "pwrite",
)
WRITE = os.write

Act = Callable[[int, str, str, tuple[Any, ...]], None]


def intercept(act: Act) -> None:
    """Call `act(number, call, path, arguments)` before every call of os that changes a file of the run."""
    numbers = iter(range(10**9))
    paths: dict[int, str] = {}

    def intercepted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            path = (
                paths.get(arguments[0], "") if isinstance(arguments[0], int) else str(arguments[0])
            )
            reading = name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR)
            if "/run-" in path and not reading:
                act(next(numbers), name, path, arguments)
            result = original(*arguments, **options)
            if name == "open":
                paths[result] = path
            return result

        return call

    for name in CALLS:
        setattr(os, name, intercepted(name, getattr(os, name)))


def noting(listed: Path, run_dir: Path) -> Callable[[], None]:
    """Append every call to a file."""

    def note(_number: int, call: str, path: str, _arguments: tuple[Any, ...]) -> None:
        with listed.open("a") as file:
            file.write(
                json.dumps([call, without_pid(path.partition(f"{run_dir.name}/")[2])]) + "\n"
            )

    return lambda: intercept(note)


def killing(index: int, torn: bool) -> Callable[[], None]:
    """SIGKILL before the call with this index; `torn`: after half of what it writes."""

    def kill(number: int, _call: str, _path: str, arguments: tuple[Any, ...]) -> None:
        if number == index:
            if torn:
                WRITE(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

    return lambda: intercept(kill)


def failing(index: int, error: int, run_dir: Path, hashes: Path) -> Callable[[], None]:
    """Let the call with this index fail, after noting what is committed."""

    def fail(number: int, _call: str, _path: str, _arguments: tuple[Any, ...]) -> None:
        if number == index:
            hashes.write_text(json.dumps(committed(run_dir)))
            raise OSError(error, os.strerror(error))

    return lambda: intercept(fail)


def trace(part: Part) -> list[tuple[str, str]]:
    """The calls of an undisturbed run: (call, path)."""
    run_dir, listed = part.run_dir(), part.folder / "calls.jsonl"
    assert wait(fork(part.command(run_dir), noting(listed, run_dir))) == 0
    return [(call, path) for call, path in map(json.loads, listed.read_text().splitlines())]


def failpoints(folder: Path, short: bool) -> tuple[str, int]:
    """SIGKILL before every call of a whole run that changes a file, and in the middle of every write."""
    part = Part(folder, *(SHORTER if short else ()))
    calls = trace(part)
    points = [
        (index, torn)
        for index, (name, _) in enumerate(calls)
        for torn in ({False, name == "write"})
    ]
    for index, torn in points:
        run_dir, what = part.run_dir(), f"kill at call {index}, {calls[index]}"
        exit_code = wait(fork(part.command(run_dir), killing(index, torn)))
        part.check(exit_code == -signal.SIGKILL, f"{what}: exit {exit_code}")
        part.check_end(run_dir, what)
    figure = f"{len(points)} kills: one at each of {len(calls)} calls that change a file, and half-way through each write"
    return figure, part.failures


def disk_errors(folder: Path, short: bool) -> tuple[str, int]:
    """ENOSPC and EIO at every call of every save: exit 6, what was committed stays byte-equal, the run can go on."""
    part, hashes = Part(folder, *(SHORTER if short else ())), folder / "hashes.json"
    calls = trace(part)
    points = [
        index
        for index, (name, path) in enumerate(calls)
        if path.startswith("checkpoints") and name != "mkdir"
    ]
    for index in points:
        for error in (errno.ENOSPC, errno.EIO):
            run_dir, what = part.run_dir(), f"{os.strerror(error)} at call {index}, {calls[index]}"
            exit_code = wait(fork(part.command(run_dir), failing(index, error, run_dir, hashes)))
            part.check(exit_code == 6, f"{what}: exit {exit_code}")
            before, after = json.loads(hashes.read_text()), committed(run_dir)
            part.check(
                before == {name: after.get(name) for name in before},
                f"{what}: a checkpoint changed",
            )
            part.check(not list(run_dir.rglob(".tmp-*")), f"{what}: left a temporary file")
            part.check_end(run_dir, what)
    return (
        f"ENOSPC and EIO at each of {len(points)} calls of a run's saves: exit 6, nothing committed changed",
        part.failures,
    )


def committed(run_dir: Path) -> dict[str, str]:
    """Hash of every checkpoint file by name."""
    paths = (run_dir / "checkpoints").glob("[bs]*.safetensors")  # best and step, nothing temporary
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


# --- kills and signals at random moments


def kills(folder: Path, short: bool) -> tuple[str, int]:
    """SIGKILL at random moments, up to five in one run, some while it is going on after the one before."""
    part, rng, wanted, hits = Part(folder), random.Random(0), 10 if short else 200, 0
    while hits < wanted:
        run_dir = part.run_dir()
        for _ in range(rng.randint(1, 5)):
            pid = fork(part.command(run_dir))
            time.sleep(rng.uniform(0, part.seconds))
            os.kill(pid, signal.SIGKILL)
            hits += wait(pid) == -signal.SIGKILL  # some come after the end
        part.check_end(run_dir, f"kill {hits}")
    return f"{hits} SIGKILLs at random moments of {part.tried} runs", part.failures


def counting(steps: mmap.mmap) -> Callable[[], None]:
    """Put the number of steps done where the parent process sees it."""
    original = eager.train_step

    def counted(state: TrainState, *arguments: Any) -> None:
        original(state, *arguments)
        steps[:8] = state.step.to_bytes(8, "little")

    return lambda: setattr(eager, "train_step", counted)


def signals(folder: Path, short: bool) -> tuple[str, int]:
    """SIGTERM at random moments: exit 143, and the newest checkpoint is of the last step that was done."""
    part, rng, wanted, hits, late = Part(folder), random.Random(1), 5 if short else 50, 0, 0
    while hits < wanted:
        run_dir, steps = part.run_dir(), mmap.mmap(-1, 8)
        pid = fork(part.command(run_dir), counting(steps))
        time.sleep(rng.uniform(0.01, part.seconds))
        os.kill(pid, signal.SIGTERM)
        exit_code, done = wait(pid), int.from_bytes(steps[:8], "little")
        was_late = (exit_code, done) == (0, part.steps)
        hits, late = hits + (not was_late), late + was_late
        part.check(exit_code == 143 or was_late, f"SIGTERM: exit {exit_code} at step {done}")
        saved = (
            read_checkpoint(find_newest(run_dir)).state.step
            if step_files(run_dir / "checkpoints")
            else 0
        )
        part.check(saved == done, f"SIGTERM: {done} steps done, {saved} saved")
        part.check_end(run_dir, f"SIGTERM at step {done}")
    return (
        f"{hits} SIGTERMs at random moments ({late} more came after the last step): exit 143, no lost step",
        part.failures,
    )


def stopping(at: int) -> Callable[[], None]:
    """A real SIGTERM in the middle of the step with this index."""
    original = eager.train_step

    def step(state: TrainState, *arguments: Any) -> None:
        if state.step == at:
            os.kill(os.getpid(), signal.SIGTERM)
        original(state, *arguments)

    return lambda: setattr(eager, "train_step", step)


def stops(folder: Path, short: bool) -> tuple[str, int]:
    """SIGTERM in the middle of chosen steps: each single step, and random pairs."""
    part, rng = Part(folder), random.Random(2)
    last = part.steps - 1  # a signal in the last step finds the run over
    singles = [[step] for step in range(0, last, 8 if short else 1)]
    pairs = [sorted(rng.sample(range(last), 2)) for _ in range(5 if short else 100)]
    for chosen in singles + pairs:
        run_dir = part.run_dir()
        for at in chosen:
            exit_code = wait(fork(part.command(run_dir), stopping(at)))
            part.check(exit_code == 143, f"stop at {chosen}: exit {exit_code}")
            saved = read_checkpoint(find_newest(run_dir)).state.step
            part.check(saved == at + 1, f"stop at {at}: step {saved} saved")
        part.check_end(run_dir, f"stops at {chosen}")
    return (
        f"stopped in {len(singles)} single steps and {len(pairs)} random pairs of steps: one outcome",
        part.failures,
    )


# --- damage


def damage(folder: Path, short: bool) -> tuple[str, int]:
    """Bit flips and truncations of a checkpoint: each must be detected before anything in it is used."""
    part, rng = (
        Part(folder, "model.hidden_size=2", "model.embedding_dim=1", "train.max_steps=4"),
        random.Random(3),
    )
    path = find_newest(folder / "whole")
    content, changed = path.read_bytes(), folder / path.name
    flips = [rng.randrange(8 * len(content)) for _ in range(500 if short else 10_000)]
    lengths = range(0, len(content), 97 if short else 1)
    for position in flips:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        part.check(is_refused(changed, bytes(flipped)), f"bit {position} flipped, not detected")
    for length in lengths:
        part.check(
            is_refused(changed, content[:length]), f"truncated to {length} bytes, not detected"
        )
    return (
        f"{len(flips):,} bit flips and {len(lengths):,} truncations of {len(content):,} bytes detected",
        part.failures,
    )


def is_refused(path: Path, content: bytes) -> bool:
    """Whether reading a checkpoint with this content raises CheckpointError."""
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except CheckpointError:
        return True
    return False


def mutations(_folder: Path, short: bool) -> tuple[str, int]:
    """Mutated configs, checkpoints, data files and command lines."""
    configs, checkpoints, datasets, lines = (
        (200, 200, 200, 40) if short else (5000, 5000, 5000, 1000)
    )
    failures = fuzz.run("config", fuzz.one_config, configs, b"")
    failures += fuzz.run("checkpoint", fuzz.one_checkpoint, checkpoints, fuzz.whole_checkpoint())
    failures += fuzz.run("dataset", fuzz.one_dataset, datasets, b"")
    failures += fuzz.run("command line", fuzz.one_command_line, lines, b"")
    counts = f"{configs:,} configs, {checkpoints:,} checkpoints, {datasets:,} data files, {lines:,} command lines"
    return f"{counts}, mutated", failures


# --- faults from the kernel


def strace(folder: Path, short: bool) -> tuple[str, int]:
    """Order of a save's calls, then SIGKILL, ENOSPC and EIO injected by strace at each call of the saves of a run."""
    if short or not shutil.which("strace"):
        return "left out" + ("" if short else ": there is no strace"), 0
    part, log = (
        Part(folder, "train.max_steps=2", "train.checkpoint_every=1", "train.keep_checkpoints=1"),
        folder / "log",
    )
    straced(part, log, "write,fsync,rename,link,unlink", part.run_dir())
    found = calls_of_saves(log.read_text())
    order = "".join(
        {"write": "w", "fsync": "f", "rename": "r", "link": "l", "unlink": "u"}[name]
        for name, _, _ in found
    )
    part.check(bool(re.fullmatch(r"(w+frf|lrf|lruf|u)+", order)), f"order of the calls: {order}")
    cases = [
        (call, fault)
        for call in found
        if call[0] != "unlink"
        for fault in ("signal=KILL", "error=ENOSPC", "error=EIO")
    ]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda case: one_injection(part, *case), cases))
    for (call, fault), (run_dir, exit_code, injected) in zip(cases, results, strict=True):
        what = f"{fault} at {call}"
        part.tried += 1
        part.check(injected, f"{what}: never hit it")
        part.check(exit_code == (137 if "KILL" in fault else 6), f"{what}: exit {exit_code}")
        part.check_end(run_dir, what)
    return (
        f"{len(cases)} faults injected by the kernel at {len(cases) // 3} calls; order of the calls: {order}",
        part.failures,
    )


def straced(part: Part, log: Path, calls: str, run_dir: Path, *options: str) -> int:
    """Exit code of the run, as a shell gives it. Only its main thread is traced: TensorBoard's thread saves nothing."""
    words = ["strace", "-y", "-o", str(log), "-e", f"trace={calls}", *options]
    words += [sys.executable, "-m", "rnncls", *part.command(run_dir)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, timeout=10 * TIMEOUT_S, check=False)
    return 128 - done.returncode if done.returncode < 0 else done.returncode


def calls_of_saves(log: str) -> list[tuple[str, int, str]]:
    """(call, its number among the calls of that name from 1 on, path) of all calls in checkpoints/."""
    numbers: Counter[str] = Counter()
    found = []
    for name, rest in re.findall(r"^(\w+)\((.*)", log, re.MULTILINE):
        numbers[name] += 1
        if place := re.search(r"/checkpoints[^\">]*", rest):
            found.append((name, numbers[name], place[0]))
    return found


def one_injection(part: Part, call: tuple[str, int, str], fault: str) -> tuple[Path, int, bool]:
    """Run with the fault at this call: the run directory, the exit code, and whether strace hit the call."""
    name, number, path = call
    case = part.folder / f"{name}-{number}-{fault.rpartition('=')[2]}"
    case.mkdir()
    run_dir, log = case / "run", case / "strace.log"
    exit_code = straced(part, log, name, run_dir, "-e", f"inject={name}:{fault}:when={number}")
    calls = [line for line in log.read_text().splitlines() if line.startswith(f"{name}(")]
    return (
        run_dir,
        exit_code,
        len(calls) >= number and without_pid(path) in without_pid(calls[number - 1]),
    )


def without_pid(text: str) -> str:
    return re.sub(r"\.tmp-\d+", ".tmp", text)


PARTS: dict[str, Callable[[Path, bool], tuple[str, int]]] = {
    part.__name__: part
    for part in (failpoints, disk_errors, kills, signals, stops, damage, mutations, strace)
}


def main(
    parts: Annotated[list[str] | None, typer.Argument(help=", ".join(PARTS))] = None,
    short: Annotated[bool, typer.Option("--short")] = False,
) -> None:
    """Run the parts and print their figures."""
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        fuzz.whole_checkpoint()  # a run in this process: all that is imported late is there before the first fork
        for name in parts or PARTS:
            started_at = time.monotonic()
            figure, failures = PARTS[name](Path(folder) / name, short)
            print(
                f"{name}: {figure}; {failures} failures, {time.monotonic() - started_at:.0f} s",
                flush=True,
            )
            failed += failures
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
