"""Faults that the kernel injects into a real process, by strace."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rnncls.rundir.checkpoint_files import find_newest
from scripts.chaos.file_errors import list_calls
from scripts.chaos.part import Part, Result
from scripts.file_calls import without_random_part
from scripts.fuzz.scene import GOOD_EXITS, copied
from scripts.processes import ROOT, TIMEOUT_S, end_all, run_group


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

KILL = "signal=KILL"
ERRORS = ("error=ENOSPC", "error=EIO")


def strace(folder: Path, short: bool) -> Result:
    """Check the order of a save's calls, and have strace inject faults at each call of the saves.

    The faults are SIGKILL at each call, and ENOSPC and EIO at each call of the last save, which has
    all that the others have. An unlink that fails harms nothing and is left out.
    """
    if short:
        return Result("skipped in the short form", 0, 0, skipped=True)

    part = Part(folder, "train.max_steps=2", "train.checkpoint_every=1", "train.keep_checkpoints=1")
    reason = why_no_strace()
    if reason:
        listed = list_calls(part)
        called = [Call(name, 0, path) for name, path in listed if is_target(name, path)]
        num_cases = len(cases_at(called, find_newest(part.whole).name))
        return Result(f"skipped {num_cases} cases: {reason}", 0, part.failures, skipped=True)

    calls = calls_of_saves(part)
    order = "".join(LETTERS[call.name] for call in calls)
    part.check(bool(ORDER_OF_SAVES.fullmatch(order)), f"order of the calls: {order!r}")

    targets = [call for call in calls if call.name != "unlink"]
    cases = cases_at(targets, find_newest(part.whole).name)
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


def cases_at(calls: Sequence[Call], newest: str) -> list[tuple[Call, str]]:
    """Return a kill at each call, and each error at those from the save of `newest` on."""
    first = next(index for index, call in enumerate(calls) if newest in call.path)
    errors = [(call, error) for call in calls[first:] for error in ERRORS]
    return [(call, KILL) for call in calls] + errors


# What is run on the scene of `scripts.fuzz`, and the file whose first read fails.
READS = (
    ("predict run --input data.csv --bad skip", "data.csv"),
    ("predict run 1,2", "run/checkpoints/best.safetensors"),
    ("explain run 1,2", "run/checkpoints/best.safetensors"),
    ("explain run --padding", "data.csv"),
    ("data check data.csv", "data.csv"),
    ("config show tiny.yaml", "tiny.yaml"),
    ("runs diff run other", "run/metrics.jsonl"),
    ("train --resume run train.max_steps=6", "run/metrics.jsonl"),
    ("train --resume run train.max_steps=6", "run/config.yaml"),
    ("sweep --resume half --jobs 1", "half/sweep.yaml"),
)


def failing_reads(folder: Path, short: bool) -> Result:
    """Have the first read of a file fail with EIO in a real process: no exit code but ours."""
    reason = "the short form" if short else why_no_strace()
    if reason:
        return Result(f"skipped {len(READS)} cases: {reason}", 0, 0, skipped=True)

    folder.mkdir()
    num_hits = 0
    failures = 0
    for line, name in READS:
        work = copied(folder, "run", "other", "half")
        log = folder / "strace.log"
        # With --seccomp-bpf the process stops at these calls alone, and not at each of its calls.
        command = ["strace", "-f", "--seccomp-bpf", "-o", str(log), "-P", str(work / name)]
        command += ["-e", "trace=read,pread64", "-e", "inject=read,pread64:error=EIO:when=1"]
        command += [sys.executable, "-m", "rnncls", *line.split()]
        exit_code = run_group(command, work, 10 * TIMEOUT_S)

        hit = "(INJECTED)" in log.read_text()
        num_hits += hit
        if not hit or exit_code not in GOOD_EXITS:
            what = f"exit code {exit_code}" if hit else "never hit it"
            print(f"FAILED: EIO at the first read of {name}: {line}: {what}", file=sys.stderr)
            failures += 1

    return Result(f"{num_hits} reads failed by the kernel: EIO", num_hits, failures)


def why_no_strace() -> str:
    """Return why strace cannot be used here; an empty string if it can."""
    if not shutil.which("strace"):
        return "strace is not installed"

    probe = subprocess.run(
        ["strace", "-f", "--seccomp-bpf", "-o", os.devnull, "true"],
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
