"""Intercept the calls of `os` that change a run's files: list them, or kill or fail at one of them.

Each function returns what a fork does before its run begins (see `processes.fork`).
"""

import json
import os
import re
import signal
from collections.abc import Callable
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

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

# Called with the call's number, its name, the path it changes and its arguments.
Act = Callable[[int, str, str, tuple[Any, ...]], None]
Prepare = Callable[[], None]


def intercept(run_dir: Path, act: Act) -> None:
    """Call `act` before every call of `os` that changes a file of the run."""
    numbers = count()
    paths: dict[int, str] = {}  # of the open file descriptors

    def intercepted(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            target = arguments[0]
            path = paths.get(target, "") if isinstance(target, int) else str(target)
            is_read = name == "open" and not arguments[1] & (os.O_WRONLY | os.O_RDWR)
            if f"{path}/".startswith(f"{run_dir}/") and not is_read:
                act(next(numbers), name, path, arguments)

            result = original(*arguments, **options)
            if name == "open":
                paths[result] = path
            return result

        return call

    for name in CALLS:
        setattr(os, name, intercepted(name, getattr(os, name)))


def listing(run_dir: Path, listed: Path) -> Prepare:
    """Append every call to the file `listed`, as a JSON line [call, path in the run directory]."""

    def note(_number: int, call: str, path: str, _arguments: tuple[Any, ...]) -> None:
        inside = path.removeprefix(str(run_dir)).removeprefix("/")
        with listed.open("a") as file:
            file.write(json.dumps([call, without_random_part(inside)]) + "\n")

    return lambda: intercept(run_dir, note)


def killing(run_dir: Path, index: int, torn: bool) -> Prepare:
    """Kill the process before the call with this index, or with `torn` in the middle of a write."""

    def kill(number: int, _call: str, _path: str, arguments: tuple[Any, ...]) -> None:
        if number != index:
            return
        if torn:
            descriptor, content = arguments
            WRITE(descriptor, content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    return lambda: intercept(run_dir, kill)


def failing(run_dir: Path, index: int, error: int, hashes: Path) -> Prepare:
    """Let the call with this index fail with `error`; `hashes` gets what is committed by then."""

    def fail(number: int, _call: str, _path: str, _arguments: tuple[Any, ...]) -> None:
        if number == index:
            hashes.write_text(json.dumps(committed(run_dir)))
            raise OSError(error, os.strerror(error))

    return lambda: intercept(run_dir, fail)


def committed(run_dir: Path) -> dict[str, str]:
    """Return the SHA-256 of every committed checkpoint file by its name."""
    paths = (run_dir / "checkpoints").glob("[bs]*.safetensors")  # best and step, nothing temporary
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in paths}


def without_random_part(text: str) -> str:
    """Remove process ids and random parts from the names of temporary files (see system.files)."""
    return re.sub(r"\.tmp-\d+-[0-9a-f]+-", ".tmp-", text)
