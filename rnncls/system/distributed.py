"""The processes that train or evaluate together, and what they tell each other.

A launcher such as torchrun starts them (`launch`). Each runs the same program on its share of every
batch; torch.distributed carries the sums, by gloo between CPUs and by NCCL between GPUs. One
process alone has no `World`, and whoever takes one takes None for that.

All processes do the same in the same order, so that each knows what the others are waiting for.
What only one of them can know, such as a signal or a full disk, is told to all before anybody acts.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rnncls.errors import (
    Elsewhere,
    Problem,
    RnnclsError,
)
from rnncls.system.launch import Launch
from rnncls.system.missing import Roll, exit_code_of
from rnncls.system.signals import STOPPING, StopRequest

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
        self._roll = Roll(launch.rank, launch.size, store)
        self._roll.places = self.gather((socket.gethostname(), os.getpid()))

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
                outcome = [(exit_code_of(error), None)]

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

    def leave(self, error: BaseException) -> None:
        """Tell the others why this process ends, as far as it is its own reason."""
        self._roll.leave(error)

    @contextmanager
    def _peers(self) -> Iterator[None]:
        """Turn what torch.distributed raises into PeerError."""
        try:
            yield
        # All of its errors are RuntimeErrors: a closed connection, a timeout, a store that is gone.
        except RuntimeError as error:
            raise self._roll.lost(error) from None


def world_size() -> int:
    """Return how many processes train together, this one included."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
