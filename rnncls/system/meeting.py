"""How the processes of a launch meet before they train or evaluate together, and how they part.

A store of torch.distributed is where they find each other: torchrun's own, or that of the first
process where somebody has set the variables by hand.
"""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from rnncls.errors import (
    Elsewhere,
    Interrupted,
    MachineError,
    NonFiniteError,
    PeerError,
    Problem,
    on_one_line,
)
from rnncls.system.distributed import World
from rnncls.system.launch import Launch, meeting_place
from rnncls.system.missing import GRACE_SECONDS, POLL_SECONDS, within
from rnncls.system.streams import fall_silent

LEAST_TIMEOUT = 5.0

# What answers at the address of the first process must say within so many seconds that it is ours.
HANDSHAKE_SECONDS = 5.0

_LONGEST_FOUND = 300  # letters of torch's own words

# What gloo says of a process that is gone while all of them connect.
_NO_MESH = "connectFullMesh"


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
            found=on_one_line(found)[:_LONGEST_FOUND],
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
    return within(HANDSHAKE_SECONDS, connect) or False


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
            found=first_line[:_LONGEST_FOUND],
            remedy=remedy,
            id="R25",
        )
    )
