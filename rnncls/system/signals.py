"""SIGINT, SIGTERM and SIGHUP ask a run to stop after its step, SIGUSR1 to save and go on.

Before a run has begun, and in commands that change nothing, the first three end the process at once.
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
    """Set by a signal handler, polled by the loops. A handler does nothing else: no I/O, no exception."""

    def __init__(self) -> None:
        self.number: int | None = None
        self.save = False  # SIGUSR1 came: a checkpoint is wanted, and then to go on
        self.members: list[StopRequest] = []

    def member(self) -> "StopRequest":
        """A request of its own for one of several runs; what comes from now on comes to it, too."""
        request = StopRequest()
        request.number = self.number
        self.members.append(request)
        return request

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save = True
        elif self.number is not None and number == signal.SIGINT:  # the second one
            os._exit(128 + signal.SIGINT)
        else:
            self.number = self.number or number
        for member in self.members:
            member.handle(number, None)

    def check(self, step: int, run_dir: str) -> None:
        """Raises Interrupted once a signal to stop came; its exit code is 128 + the signal's number.

        The message says that the step is saved, so whoever catches it must see to that.
        """
        if self.number is not None:
            what = (
                f"stopped by {signal.Signals(self.number).name} after step {step:,}, which is saved"
            )
            remedy = f"rnncls train --resume {run_dir}"
            raise Interrupted(128 + self.number, Problem(what, run_dir, remedy=remedy, id="R4"))

    def checked(self, items: Iterable[T], step: int, run_dir: str) -> Iterator[T]:
        """The items, with a check before each."""
        for item in items:
            self.check(step, run_dir)
            yield item


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the signals for the duration; in a thread other than the main one, catch none."""
    request = StopRequest()
    before = _handle((*STOPPING, signal.SIGUSR1), request.handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_on_signals() -> None:
    """From now on the stopping signals end the process at once, with 128 + their number."""

    def leave(number: int, _frame: FrameType | None) -> None:
        message = f"\nrnncls: stopped by {signal.Signals(number).name}\n"
        try:
            os.write(2, message.encode())
        finally:
            os._exit(128 + number)

    _handle(STOPPING, leave)
    _handle((signal.SIGUSR1,), lambda *_: None)  # before and after a run there is nothing to save


def _handle(
    numbers: Iterable[signal.Signals], handler: Callable[[int, FrameType | None], None]
) -> dict[signal.Signals, Any]:
    """Install a handler; returns the ones before. What the parent process ignores (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}
