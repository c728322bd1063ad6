"""The processes that train or evaluate together, and what they tell each other.

A launcher such as torchrun starts them (`launch`). Each runs the same program on its share of every
batch; torch.distributed carries the sums, by gloo between CPUs and by NCCL between GPUs. One
process alone has no `World`, and whoever takes one takes None for that.

All processes do the same in the same order, so that each knows what the others are waiting for.
What only one of them can know, such as a signal or a full disk, is told to all before anybody acts.
"""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rnncls.errors import (
    Elsewhere,
    Interrupted,
    MachineError,
    NonFiniteError,
    PeerError,
    Problem,
    RnnclsError,
    on_one_line,
)
from rnncls.system.launch import Launch, meeting_place
from rnncls.system.refusals import error_of_machine
from rnncls.system.signals import STOPPING, StopRequest
from rnncls.system.streams import fall_silent

# Of --dist-timeout, the seconds that are left for finding out which process is missing.
GRACE_SECONDS = 2.0
LEAST_TIMEOUT = 5.0

# What answers at the address of the first process must say within so many seconds that it is ours.
HANDSHAKE_SECONDS = 5.0

POLL_SECONDS = 0.02

_LONGEST_CAUSE = 300  # letters

# What gloo says of a process that is gone while all of them connect.
_NO_MESH = "connectFullMesh"

T = TypeVar("T")


class World:
    """The processes of one run, seen by one of them."""

    def __init__(self, launch: Launch, store: Any) -> None:
        """`store`, a torch.distributed.Store: what all of them can write to and read."""
        self.launch = launch
        self.rank = launch.rank
        self.size = launch.size
        self.stop = StopRequest()  # what all have agreed on
        self._asked = StopRequest()  # what a signal has asked of this process alone
        self._store = store
        self._places: list[tuple[str, int]] = []  # host and process id of each
        self._places = self.gather((socket.gethostname(), os.getpid()))

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes the run, and whose words people read."""
        return self.rank == 0

    # --- signals

    def follow(self, asked: StopRequest) -> StopRequest:
        """Let `asked`, which signals set, ask all processes; return what all have agreed on."""
        self._asked = asked
        return self.stop

    def release(self) -> None:
        """Let signals count at once: from here on this process waits for no other."""
        self.stop.number = self.stop.number or self._asked.number
        self._asked.members.append(self.stop)

    def agree(self) -> None:
        """Tell all what signals have asked of any of them. Raises: PeerError."""
        flags = torch.tensor(self._flags())
        with self._peers():
            dist.all_reduce(flags)
        self._note(flags.tolist())

    def _flags(self) -> list[float]:
        """Return what signals have asked: one number for each that stops, and one for saving."""
        asked = self._asked
        flags = [float(asked.number == number) for number in STOPPING]
        flags.append(float(asked.save))
        # Told once, it is the others' as well.
        asked.save = False
        return flags

    def _note(self, flags: list[float]) -> None:
        """Take over the sums of all flags."""
        for number, count in zip(STOPPING, flags, strict=False):
            if count and self.stop.number is None:
                self.stop.number = number
        if flags[-1]:
            self.stop.save = True

    # --- sums

    def reduce(
        self, gradients: Sequence[Tensor], loss: Tensor, correct: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Add up the gradients of all processes, in place, and return the sums of loss and correct.

        All of it is one exchange, which tells the flags of signals, too: every process has the same
        bits afterwards, and decides alike. Raises: PeerError.
        """
        device = gradients[0].device
        sums = torch.stack((loss.float(), correct.float()))
        flags = torch.tensor(self._flags(), device=device)
        flat = torch.cat([*(gradient.reshape(-1) for gradient in gradients), sums, flags])
        with self._peers():
            dist.all_reduce(flat)
            # Read here, where a GPU says what has become of the sum.
            sums_and_flags = flat[-len(sums) - len(flags) :].tolist()

        sizes = [gradient.numel() for gradient in gradients]
        parts = torch.split(flat, [*sizes, len(sums), len(flags)])
        for gradient, part in zip(gradients, parts, strict=False):
            gradient.copy_(part.view_as(gradient))
        self._note(sums_and_flags[len(sums) :])
        return parts[-2][0], parts[-2][1]

    def share_weights(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the values of the first one, in place. Raises: PeerError."""
        with self._peers():
            for tensor in tensors:
                dist.broadcast(tensor.detach(), 0)

    def gather_rows(
        self, mine: Tensor | None, width: int, device: torch.device, counts: Sequence[int]
    ) -> list[Tensor]:
        """Return rows (counts[i], width) of each process i that has some, in all processes.

        `mine`: those of this process, float32 as all of them. Raises: PeerError.
        """
        sent = torch.zeros(max(counts), width, device=device)
        if mine is not None:
            sent[: len(mine)] = mine
        received = [torch.empty_like(sent) for _ in range(self.size)]
        with self._peers():
            dist.all_gather(received, sent)
        return [rows[:count] for rows, count in zip(received, counts, strict=False)]

    # --- anything else

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes, by rank, in each of them. Raises: PeerError."""
        values: list[Any] = [None] * self.size
        with self._peers():
            dist.all_gather_object(values, value)
        return values

    def first(self, action: Callable[[], T]) -> T:
        """Have the first process do something, and return its result in all of them.

        If it fails, all fail: the first process with the error, and the others with Elsewhere, so
        that all end with the same exit code. Raises: PeerError.
        """
        outcome: list[Any] = [None]
        failure: Exception | None = None
        if self.is_first:
            try:
                outcome = [(0, action())]
            except Exception as error:
                failure = error
                outcome = [(_exit_code(error), None)]

        with self._peers():
            dist.broadcast_object_list(outcome, 0)
        if failure is not None:
            raise failure
        exit_code, result = outcome[0]
        if exit_code:
            raise Elsewhere(exit_code)
        # Rank 0 keeps its own object.
        return result  # type: ignore[no-any-return]

    def require_same(
        self, what: str, values: Mapping[str, object], kind: type[RnnclsError]
    ) -> None:
        """Raise unless all processes have the same values, which must be JSON.

        The first process raises `kind` with the rank and the first name that differs; the
        others raise Elsewhere.
        """
        texts = {name: json.dumps(value) for name, value in values.items()}
        everybody = self.gather(texts)
        for rank, theirs in enumerate(everybody):
            for name in sorted(everybody[0].keys() | theirs.keys()):
                text = everybody[0].get(name, "nothing")
                if theirs.get(name) == text:
                    continue
                error = kind(
                    Problem(
                        f"{what} of rank {rank} differs from that of rank 0",
                        name,
                        expected=text,
                        found=theirs.get(name, "nothing"),
                        remedy="the same command, files and versions for every process",
                        id="R25",
                    )
                )
                raise error if self.is_first else Elsewhere(error.exit_code)

    # --- processes that are gone

    @contextmanager
    def _peers(self) -> Iterator[None]:
        """Turn what torch.distributed raises into PeerError."""
        try:
            yield
        # All of its errors are RuntimeErrors: a closed connection, a timeout, a store that is gone.
        except RuntimeError as error:
            raise self._lost(error) from None

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
        if self.is_first and isinstance(error, Exception):
            exit_code = _exit_code(error)
        failure = json.dumps([cause[:_LONGEST_CAUSE], 0 if exit_code == 1 else exit_code])

        def tell() -> None:
            number = self._store.add("failed", 1)
            self._store.set(f"failed/{number}", failure)

        _within(GRACE_SECONDS, tell)

    def _lost(self, error: RuntimeError) -> PeerError | Elsewhere:
        """Return the error of a process whose peers do not answer, with the first cause."""
        first = _within(GRACE_SECONDS, self._first_cause)
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
        if not self._places:
            return f"rank {rank}"
        host, pid = self._places[rank]
        return f"rank {rank} (process {pid} on {host})"

    def _whether_gone(self, rank: int) -> str:
        """Return whether a process is there, in words; "" if it is on another machine."""
        if not self._places or self._places[rank][0] != socket.gethostname():
            return ""
        try:
            with open(f"/proc/{self._places[rank][1]}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except OSError:
            return " is gone"
        # Z: it has ended, and its parent has not asked yet how.
        return " is gone" if state in "ZX" else " does not answer"


def _exit_code(error: Exception) -> int:
    if isinstance(error, RnnclsError):
        return error.exit_code
    of_machine = error_of_machine(error)
    return 1 if of_machine is None else of_machine.exit_code


def world_size() -> int:
    """Return how many processes train together, this one included."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def joined(launch: Launch, timeout: float) -> Iterator[World | None]:
    """Meet the other processes of a launch for the duration; None for one that is alone.

    `timeout`: seconds after which a process that does not answer counts as gone.

    Raises: MachineError if they cannot meet. PeerError if one of them does not come.
    """
    if launch.id:
        _end_with_launcher()
    if launch.size == 1:
        yield None
        return

    if launch.rank > 0:
        fall_silent()
    try:
        with _ended_by_sigterm():
            world = _join(launch, max(timeout, LEAST_TIMEOUT) - GRACE_SECONDS)
        try:
            yield world
        except BaseException as error:
            world.leave(error)
            # What all have decided alike, the first one says.
            if isinstance(error, Interrupted | NonFiniteError) and not world.is_first:
                raise Elsewhere(error.exit_code) from None
            raise
    finally:
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _end_with_launcher() -> None:
    """Ask the system for a SIGTERM when the launcher is killed: nobody else would end the run."""
    # PyTorch's own, for Linux.
    ask = getattr(torch.multiprocessing, "_prctl_pr_set_pdeathsig", None)
    if ask is not None:
        with suppress(RuntimeError, OSError):
            ask(signal.SIGTERM)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process at once, also while it waits where Python does not run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _join(launch: Launch, seconds: float) -> World:
    """Meet the others within so many seconds. Raises: MachineError. PeerError."""
    address, port = meeting_place()
    # torchrun itself holds the port then, and knows that it is its own.
    by_hand = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if by_hand and launch.rank > 0:
        _require_ours(address, port, seconds)

    timeout = timedelta(seconds=seconds)
    backend = "gloo"
    if torch.cuda.is_available() and dist.is_nccl_available():
        backend = "cpu:gloo,cuda:nccl"
        # Otherwise a watchdog ends the process where a sum fails, without a word and a status.
        os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")

    # Only here: a torch without torch.distributed lacks them.
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        is_owner = by_hand and launch.rank == 0
        kept = TCPStore(address, port, None, is_owner, timeout, wait_for_workers=False)
        store = _fresh(kept, launch, seconds)
        dist.init_process_group(
            backend, timeout=timeout, world_size=launch.size, rank=launch.rank, store=store
        )
        return World(launch, store)
    except (RuntimeError, ValueError) as error:
        # The store answers, so the place is right, and others do not come or have gone again.
        if isinstance(error, dist.DistStoreError) or _NO_MESH in str(error):
            raise _does_not_come(launch, str(error)) from None
        raise _cannot_meet(address, port, str(error)) from None


def _fresh(kept: Any, launch: Launch, seconds: float) -> Any:
    """Return a store that only the processes of this start write to.

    torchrun's own outlives them: those that it starts again would find the addresses of those
    before. So each writes a word of its own into `kept`, rank 0 says which words it has found, and
    who finds his own among them answers under rank 0's.

    Raises: PeerError if not all come within so many seconds.
    """
    from torch.distributed import PrefixStore  # type: ignore[attr-defined]

    word = uuid.uuid4().hex
    kept.set(f"rnncls/here/{launch.rank}", word)
    until = time.perf_counter() + seconds
    found: dict[str, str] = {}
    start = word
    missing = [*range(launch.size)]
    while missing and launch.rank == 0:
        here = {}
        for rank in range(launch.size):
            if kept.check([f"rnncls/here/{rank}"]):
                here[str(rank)] = kept.get(f"rnncls/here/{rank}").decode()
        if here != found:
            found = here
            kept.set("rnncls/start", json.dumps([word, found]))
            kept.set(f"rnncls/{word}/0", "")
        missing = [rank for rank in missing if not kept.check([f"rnncls/{word}/{rank}"])]
        _wait(until, launch, missing)

    while launch.rank > 0 and found.get(str(launch.rank)) != word:
        _wait(until, launch, [0])
        if kept.check(["rnncls/start"]):
            start, found = json.loads(kept.get("rnncls/start"))
    kept.set(f"rnncls/{start}/{launch.rank}", "")
    return PrefixStore(f"rnncls/{start}", kept)


def _wait(until: float, launch: Launch, missing: Sequence[int]) -> None:
    """Wait for an instant. Raises: PeerError, which names those missing, if time is over."""
    if missing and time.perf_counter() > until:
        ranks = ", ".join(map(str, missing))
        raise _does_not_come(launch, f"{launch.size - len(missing)} have come, not rank {ranks}")
    time.sleep(POLL_SECONDS)


def _does_not_come(launch: Launch, found: str) -> PeerError:
    return PeerError(
        Problem(
            "another process of the run has not come, or is gone already",
            f"rank {launch.rank} of {launch.size}",
            found=on_one_line(found)[:_LONGEST_CAUSE],
            remedy="as many processes as WORLD_SIZE says; --dist-timeout if one is only slow",
            id="R21",
        )
    )


def _require_ours(address: str, port: int, seconds: float) -> None:
    """Wait for the first process, and raise MachineError if something else answers at its port."""
    until = time.perf_counter() + seconds
    while True:
        try:
            with socket.create_connection((address, port), HANDSHAKE_SECONDS):
                break
        except ConnectionRefusedError:
            if time.perf_counter() > until:
                raise _nobody_listens(address, port) from None
            time.sleep(0.1)
        except OSError as error:
            if time.perf_counter() > until:
                raise _cannot_meet(address, port, str(error)) from None
            time.sleep(0.1)

    if not _is_store(address, port):
        found = "something else answers there, or nothing"
        raise _cannot_meet(address, port, found)


def _is_store(address: str, port: int) -> bool:
    """Return whether a store of torch.distributed answers there."""
    timeout = timedelta(seconds=HANDSHAKE_SECONDS)

    def connect() -> bool:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        TCPStore(address, port, None, False, timeout, wait_for_workers=False)
        return True

    # torch waits without end for one that listens and is silent.
    return _within(HANDSHAKE_SECONDS, connect) or False


def _within(seconds: float, action: Callable[[], T]) -> T | None:
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


def _nobody_listens(address: str, port: int) -> MachineError:
    remedy = (
        "start rank 0, too, with the same MASTER_ADDR and MASTER_PORT, or let torchrun start all "
        "of them; --dist-timeout if it is only slow"
    )
    return _cannot_meet(address, port, "nobody listens there, and rank 0 should", remedy)


def _cannot_meet(
    address: str,
    port: int,
    found: str,
    remedy: str = "another MASTER_PORT, or torchrun --standalone, which finds a free one",
) -> MachineError:
    first_line = found.splitlines()[0] if found else ""
    return MachineError(
        Problem(
            "the processes cannot meet",
            f"MASTER_ADDR={address} MASTER_PORT={port}",
            found=first_line[:_LONGEST_CAUSE],
            remedy=remedy,
            id="R25",
        )
    )
