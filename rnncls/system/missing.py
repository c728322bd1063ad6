"""Finds out which process of a run is gone or hangs, and what it said.

Who ends for a reason of its own writes it into a store that all can read, and who has lost another
writes that it is still there. Who has written nothing is missing.
"""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from rnncls.errors import Elsewhere, PeerError, Problem, RnnclsError, on_one_line
from rnncls.system.refusals import error_of_machine

# Of --dist-timeout, the seconds that are left for finding out which process is missing.
GRACE_SECONDS = 2.0

POLL_SECONDS = 0.02

_LONGEST_CAUSE = 300  # letters

T = TypeVar("T")


class Roll:
    """The processes of a run, seen by one of them, for the case that another one is lost."""

    def __init__(self, rank: int, size: int, store: Any) -> None:
        """`store`, a torch.distributed.Store: what all of them can write to and read."""
        self.rank = rank
        self.size = size
        self.places: list[tuple[str, int]] = []  # host and process id of each, once they are known
        self._store = store

    def leave(self, error: BaseException) -> None:
        """Tell the others why this process ends, as far as it is its own reason."""
        if isinstance(error, PeerError | Elsewhere):
            return
        words = next(iter(str(error).splitlines()), "")
        cause = f"rank {self.rank}: {type(error).__name__}: {words}"
        if isinstance(error, RnnclsError) and error.problems:
            cause = f"rank {self.rank}: {error.problems[0].what}"

        # What rank 0 alone can meet, such as a full disk, is how the run ends for all.
        exit_code = 0
        if self.rank == 0 and isinstance(error, Exception):
            exit_code = exit_code_of(error)
        failure = json.dumps([cause[:_LONGEST_CAUSE], 0 if exit_code == 1 else exit_code])

        def tell() -> None:
            number = self._store.add("failed", 1)
            self._store.set(f"failed/{number}", failure)

        within(GRACE_SECONDS, tell)

    def lost(self, error: RuntimeError) -> PeerError | Elsewhere:
        """Return the error of a process whose peers do not answer, with the first cause."""
        first = within(GRACE_SECONDS, self._first_cause)
        if first is None:
            # By hand, the store is in the first process.
            fate = self._whether_gone(0) or " is gone"
            first = (f"{self._place(0)}, which the others meet at,{fate}", 0)
        found, exit_code = first
        if exit_code:
            return Elsewhere(exit_code)
        return PeerError(
            Problem(
                "another process of the run is gone or does not answer",
                f"rank {self.rank} of {self.size}",
                found=found or on_one_line(str(error))[:_LONGEST_CAUSE],
                remedy="rnncls train --resume RUN, or torchrun --max-restarts, which does it by "
                "itself; --dist-timeout if a process is only slow",
                id="R21",
            )
        )

    def _first_cause(self) -> tuple[str, int]:
        """Return which process was the first to be missing, and what it said; "" if unknown.

        Beside it, the exit code that this ends all processes with; 0 if there is none.
        """
        self._store.set(f"lost/{self.rank}", "")
        until = time.perf_counter() + GRACE_SECONDS / 2
        missing = [*range(self.size)]
        while missing and time.perf_counter() < until:
            if self._store.check(["failed/1"]):
                cause, exit_code = json.loads(self._store.get("failed/1"))
                return str(cause), int(exit_code)
            missing = [rank for rank in missing if not self._store.check([f"lost/{rank}"])]
            time.sleep(POLL_SECONDS)
        places = [self._place(rank) + self._whether_gone(rank) for rank in missing]
        return ", ".join(places), 0

    def _place(self, rank: int) -> str:
        if not self.places:
            return f"rank {rank}"
        host, pid = self.places[rank]
        return f"rank {rank} (process {pid} on {host})"

    def _whether_gone(self, rank: int) -> str:
        """Return whether a process is there, in words; "" if it is on another machine."""
        if not self.places or self.places[rank][0] != socket.gethostname():
            return ""
        try:
            with open(f"/proc/{self.places[rank][1]}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            return " is gone"
        # Z: it has ended, and its parent has not asked yet how.
        return " is gone" if state in "ZX" else " does not answer"


def exit_code_of(error: Exception) -> int:
    """Return what a process ends with because of this error."""
    if isinstance(error, RnnclsError):
        return error.exit_code
    of_machine = error_of_machine(error)
    return 1 if of_machine is None else of_machine.exit_code


def within(seconds: float, action: Callable[[], T]) -> T | None:
    """Return what an action on a store returns; None if it fails, or has not ended in time.

    A store has no time limit for a process that is stopped: it keeps its connections, and never
    answers. So the action has a thread, which may stay behind.
    """
    results: list[T] = []

    def act() -> None:
        with suppress(RuntimeError):
            results.append(action())

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
