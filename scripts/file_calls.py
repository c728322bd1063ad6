"""Intercept the calls that change a run's files, or read them: list them, kill or fail at one.

Each function returns what a fork does before its run begins (see `processes.fork`).
"""

import builtins
import io
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
READS = ("open", "read", "pread", "stat", "lstat", "scandir", "listdir", "readlink")
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


# --- reading


def failing_read(root: Path, index: int, error: int) -> Prepare:
    """Let a call with this index that reads something below `root` fail with `error`.

    Without an error (0), the file is at its end from then on, as if it were truncated meanwhile.
    """

    def fail(number: int, _call: str, _path: str) -> bool:
        if error and number == index:
            raise OSError(error, os.strerror(error), _path)
        return not error and number >= index

    return lambda: intercept_reads(root, fail)


def listing_reads(root: Path, listed: Path) -> Prepare:
    """Append every call that reads to the file `listed`, as a JSON line [call, path]."""
    descriptor = os.open(listed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def note(_number: int, call: str, path: str) -> bool:
        WRITE(descriptor, (json.dumps([call, path]) + "\n").encode())
        return False

    return lambda: intercept_reads(root, note)


# Asked before a call of this name on this path or descriptor: whether a read finds the end.
IsAtEnd = Callable[[str, Any], bool]


def intercept_reads(root: Path, act: Callable[[int, str, str], bool]) -> None:
    """Call `act` before every call that looks at or reads something below `root`.

    `act` gets the number of the call, its name and the path. It may raise an OSError, or return
    whether a read finds the end of the file.
    """
    numbers = count()
    paths: dict[int, str] = {}  # of the open file descriptors
    start = os.getcwd()  # noqa: PTH109 - a plain text, and asked once: reads are many

    def is_at_end(name: str, target: Any) -> bool:
        path = paths.get(target, "") if isinstance(target, int) else os.fsdecode(target)
        if path and not path.startswith("/"):
            path = f"{start}/{path}"
        return f"{path}/".startswith(f"{root}/") and act(next(numbers), name, path)

    for name in READS:
        setattr(os, name, intercepted_read(name, getattr(os, name), is_at_end, paths))
    io.open = builtins.open = intercepted_open(open, is_at_end)


def intercepted_read(
    name: str, original: Callable[..., Any], is_at_end: IsAtEnd, paths: dict[int, str]
) -> Callable[..., Any]:
    """Return a function of `os` that asks first; `paths` gets what is opened."""

    def call(*arguments: Any, **options: Any) -> Any:
        target = arguments[0] if arguments else "."
        is_written = name == "open" and arguments[1] & (os.O_WRONLY | os.O_RDWR)
        if not is_written and is_at_end(name, target) and name in ("read", "pread"):
            return b""
        result = original(*arguments, **options)
        if name == "open":
            paths[result] = os.fsdecode(target)
        return result

    return call


def intercepted_open(original: Callable[..., Any], is_at_end: IsAtEnd) -> Callable[..., Any]:
    """Return Python's `open`, which asks before it opens a file for reading, and at each read."""

    class File(io.FileIO):
        def readinto(self, buffer: Any) -> Any:
            return 0 if is_at_end("read", self.name) else super().readinto(buffer)

        def readall(self) -> Any:
            return b"" if is_at_end("read", self.name) else super().readall()

        def read(self, size: Any = -1) -> Any:
            return b"" if is_at_end("read", self.name) else super().read(size)

    def opened(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if set(mode) & set("wax+"):
            return original(file, mode, buffering, *rest, **named)
        if not isinstance(file, int):
            is_at_end("open", file)

        raw = File(file, "rb", closefd=named.pop("closefd", True))
        if buffering == 0:
            return raw
        buffered = io.BufferedReader(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **named)

    return opened
