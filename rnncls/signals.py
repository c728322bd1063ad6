"""SIGINT, SIGTERM and SIGHUP ask a run to stop after its step; a second SIGINT ends it at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rnncls.errors import Interrupted, Problem

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequest:
    """Set by a signal handler, polled by the loop. A handler does nothing else: no I/O, no exception."""

    def __init__(self) -> None:
        self.number: int | None = None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            os._exit(130)
        self.number = self.number or number

    def __bool__(self) -> bool:
        return self.number is not None

    def error(self, step: int, run_dir: str) -> Interrupted:
        """The exception that ends the run; its exit code is 128 + the signal's number."""
        assert self.number is not None
        name = signal.Signals(self.number).name
        what = f"stopped by {name} after step {step:,}, which is saved"
        return Interrupted(
            128 + self.number, Problem(what, run_dir, remedy=f"rnncls train --resume {run_dir}", id="R4")
        )


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch the stopping signals for the duration; in a thread other than the main one, catch none."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request.handle) for number in STOPPING}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
