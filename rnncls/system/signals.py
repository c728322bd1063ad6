"""SIGINT, SIGTERM and SIGHUP stop a run after its current step; SIGUSR1 saves a checkpoint.

Before a run has begun, and in commands that change nothing, the first three end the process at
once.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

from rnncls.errors import Interrupted, Problem

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

T = TypeVar("T")


class StopRequest:
    """A request to stop or to save, set by a signal handler and polled by the loops.

    The handler does nothing else: no I/O and no exception can come between two lines of a loop.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal that asked to stop
        self.save = False  # SIGUSR1 asked for a checkpoint; the run then continues
        self.members: list[StopRequest] = []

    def member(self) -> "StopRequest":
        """Return a request for one of several runs, which also gets every later signal."""
        # What came before the member was there stops it, too.
        request = StopRequest()
        request.number = self.number
        self.members.append(request)
        return request

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Note a signal. A second SIGINT ends the process at once."""
        if number == signal.SIGUSR1:
            self.save = True
        # Whoever presses Ctrl-C twice does not want to wait for the checkpoint.
        elif self.number is not None and number == signal.SIGINT:
            os._exit(128 + signal.SIGINT)
        else:
            self.number = self.number or number

        # Members poll their own requests, in threads that get no signals.
        for member in self.members:
            member.handle(number, None)

    def check(self, step: int, run_dir: str) -> None:
        """Raise Interrupted if a signal asked to stop; its exit code is 128 + the signal's number.

        The message says that the step is saved, so whoever catches the error must save it.
        """
        if self.number is None:
            return

        # Only here: this module is imported at every start of the program.
        from shlex import quote

        problem = Problem(
            f"interrupted at step {step:,}, saved",
            run_dir,
            remedy=f"rnncls train --resume {quote(run_dir)}",
            id="R4",
        )
        raise Interrupted(128 + self.number, problem)

    def checked(self, items: Iterable[T], step: int, run_dir: str) -> Iterator[T]:
        """Yield the items, with a `check` before each."""
        for item in items:
            self.check(step, run_dir)
            yield item


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the signals during the body; in a thread other than the main one, catch none."""
    request = StopRequest()
    handlers_before = _handle((*STOPPING, signal.SIGUSR1), request.handle)
    try:
        yield request
    finally:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)


def exit_on_signals() -> None:
    """Make the stopping signals end the process at once, with 128 + their number as exit code."""

    def leave(number: int, _frame: FrameType | None) -> None:
        # os.write and os._exit: neither waits for a lock that the interrupted code may hold.
        message = f"\nrnncls: stopped by {signal.Signals(number).name}\n"
        try:
            os.write(2, message.encode())
        finally:
            os._exit(128 + number)

    _handle(STOPPING, leave)
    # Before and after a run there is nothing to save, and by default SIGUSR1 would kill.
    _handle((signal.SIGUSR1,), lambda *_: None)


def _handle(
    numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> dict[signal.Signals, Any]:
    """Install a handler and return those before, by signal.

    Signals that the parent process ignores (nohup) stay ignored. Only the main thread may install
    handlers; in any other, nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}

    handlers_before = {}
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            handlers_before[number] = signal.signal(number, handler)
    return handlers_before
