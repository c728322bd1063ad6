"""Runs a sweep, or resumes it, and notes how long that took on which machine."""

import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import BaseModel

from rnncls.system.files import write_atomically
from rnncls.system.machine import usable_cores

TIMING = "timing.json"

# Behind the name of a machine whose times are those of one that had other work as well.
BUSY = ", with other work beside it"


class Timing(BaseModel):
    """What timing.json in a sweep's folder says."""

    seconds: float  # of all calls until the sweep was finished
    machine: str
    finished: bool = True


def run(command: list[str], folder: Path, shards: int = 1, is_busy: bool = False) -> int:
    """Run or resume a sweep, note how long that took, and return its exit code.

    With several `shards`, as many processes train a part of the members each, one at a time.
    `is_busy`: note that other work runs on the machine, too.
    """
    commands = [[sys.executable, "-m", *command]]
    if shards > 1:
        parts = [["--jobs", "1", "--shard", f"{part}/{shards}"] for part in range(1, shards + 1)]
        commands = [[*commands[0], *part] for part in parts]

    started_at = time.perf_counter()
    exit_code = 1
    try:
        exit_code = run_all(commands)
    finally:
        if folder.is_dir():
            seconds = time.perf_counter() - started_at
            note_time(folder, seconds, finished=exit_code == 0, is_busy=is_busy)
    return exit_code


def run_all(commands: Sequence[Sequence[str]]) -> int:
    """Run commands beside each other to their ends; return the first exit code that is not 0."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        exit_codes = [process.wait() for process in processes]
    # Also after Ctrl-C: what was started must not go on alone.
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return next((code for code in exit_codes if code), 0)


def note_time(folder: Path, seconds: float, finished: bool, is_busy: bool = False) -> None:
    """Add the seconds of a call to those of the calls before it.

    Nothing is added to the time of a finished sweep: later calls train nothing.
    """
    timing = Timing(seconds=0.0, machine=machine(), finished=False)
    if (folder / TIMING).exists():
        timing = read_timing(folder)

    if not timing.finished:
        timing.seconds += seconds
        if is_busy and not timing.machine.endswith(BUSY):
            timing.machine += BUSY
        timing.finished = finished
        write_atomically(folder / TIMING, timing.model_dump_json().encode())


def read_timing(folder: Path) -> Timing:
    """Return how long a sweep took. Raises: OSError, ValueError."""
    return Timing.model_validate_json((folder / TIMING).read_bytes())


def machine() -> str:
    """Return processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    processor = min(names, default=platform.machine())

    cores = usable_cores()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{cores} cores of {processor}, {versions}"
