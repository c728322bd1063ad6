"""Start processes, wait for them with a limit, and leave none behind when the script ends early."""

import ctypes
import faulthandler
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

import torch
from tqdm import tqdm

from rnncls import cli

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 60

# Stands for the exit code of a process that was killed because it did not end in time.
HUNG = 1000

PR_SET_PDEATHSIG = 1  # of prctl in Linux

# Leaders of the process groups that were started here and not yet waited for.
_running: set[int] = set()


def nothing() -> None:
    """Change nothing in a fork."""


def fork(words: list[str], log: Path, prepare: Callable[[], None] = nothing) -> int:
    """Start `rnncls words` in a fork of this process, which has imported torch already.

    The fork calls `prepare` first and writes its output to `log`. Returns its process id.
    """
    return fork_to(lambda: run_here(words, log, prepare))


def fork_to(action: Callable[[], int]) -> int:
    """Start a fork of this process in a group of its own; `action` returns its exit code.

    Returns its process id.
    """
    sys.stdout.flush()
    sys.stderr.flush()

    pid = os.fork()
    if pid:
        # Both sides set the group, because either may be the first to need it.
        with suppress(OSError):
            os.setpgid(pid, pid)
        _running.add(pid)
        return pid

    exit_code = 99
    try:
        _die_with_parent()
        os.setpgid(0, 0)
        exit_code = action()
    except SystemExit as error:
        exit_code = int(error.code or 0)
    except BaseException:
        # Nobody else would: the process ends here.
        traceback.print_exc()
    finally:
        os._exit(exit_code)


def run_here(words: list[str], log: Path, prepare: Callable[[], None] = nothing) -> int:
    """Run `rnncls words` in this process, which is a fork; return the exit code.

    Calls `prepare` first, and writes all output to `log`.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    write_output_to(log)
    # The lock of this process's bars is one for all forks: one that is killed while it holds
    # the lock would never give it back, and the next ones would wait for ever.
    tqdm.set_lock(threading.RLock())
    # After a fork PyTorch makes its autograd engine anew when it is next used, and two threads
    # that use it at the same time destroy it twice.
    torch.zeros(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
    sys.argv = ["rnncls", *words]
    prepare()
    try:
        cli.main()
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def _die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is killed; Linux alone can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def write_output_to(log: Path) -> None:
    """Let stdout and stderr of this process go to a file, and there its stacks on SIGUSR2."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    # By the line, as Python's own: what is not flushed would be lost at os._exit.
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    faulthandler.register(signal.SIGUSR2, file=sys.stderr)
    # A process that crashes says where.
    faulthandler.enable(file=sys.stderr)


def wait(pid: int) -> int:
    """Wait for a fork and return its exit code, as `wait_and_measure` does."""
    return wait_and_measure(pid)[0]


def wait_and_measure(pid: int, timeout_s: float = TIMEOUT_S) -> tuple[int, float]:
    """Wait for a fork; return its exit code, negative for a signal as in subprocess, and its peak.

    The exit code is HUNG if it had to be killed after `timeout_s`; its log then ends with its
    stacks. The peak is that of its memory in MiB, of which it shares some with this process.
    """
    give_up_at = time.monotonic() + timeout_s
    while time.monotonic() < give_up_at:
        done, status, usage = os.wait4(pid, os.WNOHANG)
        if done:
            _running.discard(pid)
            return os.waitstatus_to_exitcode(status), _peak_mib(usage)
        time.sleep(0.002)

    os.kill(pid, signal.SIGUSR2)
    time.sleep(0.5)
    os.kill(pid, signal.SIGKILL)
    _, _, usage = os.wait4(pid, 0)
    _running.discard(pid)
    return HUNG, _peak_mib(usage)


def _peak_mib(usage: resource.struct_rusage) -> float:
    # In bytes on macOS, in KiB elsewhere.
    return usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def run_group(command: Sequence[str], cwd: Path, timeout_s: float) -> int:
    """Run a command in a process group of its own and return its exit code as a shell gives it.

    Nothing of the group is left running. Returns HUNG if it had to be killed after `timeout_s`.
    """
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    _running.add(process.pid)
    try:
        exit_code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return HUNG
    finally:
        _kill_group(process.pid)
        process.wait()

    return 128 - exit_code if exit_code < 0 else exit_code


def end_all() -> None:
    """Kill everything that was started here and still runs."""
    for pid in list(_running):
        _kill_group(pid)


def _kill_group(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    _running.discard(leader)


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP raise SystemExit, so that `finally` runs as it does after Ctrl-C."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
