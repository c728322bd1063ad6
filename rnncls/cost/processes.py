"""Measures each case in processes of its own, so that no peak is that of another."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Literal, NamedTuple

from rnncls.cost.cases import Case
from rnncls.cost.measure import Memory, Times
from rnncls.errors import OutOfMemory
from rnncls.system.process_memory import GIVE_BACK_AT_ONCE

# What C++ and LLVM print when they end a process for want of memory.
_WANTS_MEMORY = (b"bad_alloc", b"allocat", b"out of memory", b"MemoryError")


@dataclass(frozen=True)
class Outcome:
    """A case with what it costs, or why that is not known."""

    case: Case
    memory: Memory | None
    times: Times | None
    reason: str = ""  # why it was not measured
    exit_code: int = 0  # of that reason

    @property
    def status(self) -> str:
        """Return "measured", "out of memory" or "failed"."""
        if self.times is not None:
            return "measured"
        return "out of memory" if self.exit_code == OutOfMemory.exit_code else "failed"


class _Failure(NamedTuple):
    reason: str
    exit_code: int


def measure_apart(case: Case) -> Outcome:
    """Measure a case in two processes, which have ended when this returns or raises.

    Raises: OSError if no process can be started.
    """
    memory = _measured("memory", case)
    if isinstance(memory, _Failure):
        return Outcome(case, None, None, *memory)

    known = Memory(**memory)
    times = _measured("time", case)
    if isinstance(times, _Failure):
        return Outcome(case, known, None, *times)
    return Outcome(case, known, Times(**times))


def _measured(what: Literal["memory", "time"], case: Case) -> dict[str, Any] | _Failure:
    """Return what a process measured, or why it did not.

    It ends as well if this process is killed: its stdin ends then.
    """
    # It imports from where this one does, and not from the current folder, which may be anyone's.
    command = [sys.executable, "-P", "-m", "rnncls.cost.worker"]
    settings = {"PYTHONPATH": os.pathsep.join(sys.path)}
    if what == "memory":
        settings |= GIVE_BACK_AT_ONCE

    process = subprocess.Popen(
        command,
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **settings},
    )
    # At the end of the block its pipes are closed, and it has ended.
    with process:
        try:
            said = _ask(process, {"what": what, "case": case.to_json()})
        finally:
            # Whatever happened here, a signal for example.
            process.kill()
    return _answer(said, process.returncode)


def _ask(process: "subprocess.Popen[bytes]", question: dict[str, Any]) -> bytes:
    """Put a question to a process and return all that it said until it ended."""
    # It may have ended already.
    with suppress(BrokenPipeError):
        _pipe(process.stdin).write(json.dumps(question).encode() + b"\n")
    said = _pipe(process.stdout).read()
    process.wait()
    return said


def _pipe(stream: IO[bytes] | None) -> IO[bytes]:
    if stream is None:
        raise ValueError("Popen was not asked for a pipe")
    return stream


def _answer(said: bytes, exit_code: int) -> dict[str, Any] | _Failure:
    """Return what a process measured, or why it did not.

    `said`: all that it printed. The last line is its answer, unless it was killed before that.
    `exit_code`: negative for a signal.
    """
    last = said.strip().rpartition(b"\n")[2]
    result = None
    with suppress(ValueError):
        result = json.loads(last)
    if isinstance(result, dict):
        measured: dict[str, Any] | None = result.get("measured")
        return measured or _Failure(result["reason"], result["exit_code"])

    # Without memory, the kernel kills, and C++ and LLVM abort.
    if exit_code == -signal.SIGKILL:
        reason = "killed, as the system does where memory runs out"
        return _Failure(reason, OutOfMemory.exit_code)

    reason = f"ended with exit code {exit_code}"
    if exit_code < 0:
        reason = f"ended by {signal.Signals(-exit_code).name}"
    if last:
        reason += f": {last.decode(errors='replace')}"
    wants_memory = any(words in said for words in _WANTS_MEMORY)
    return _Failure(reason, OutOfMemory.exit_code if wants_memory else 1)
