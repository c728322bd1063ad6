"""Steps as CUDA graphs: a whole step, from looking up its batch to the optimizer and the sums, is one replay.

A small step in eager PyTorch is hundreds of launches that the GPU waits for. A graph has static shapes, so there is one
for each width that batches are padded to; blocks of batches are copied to the device at once, and a counter there says
which one is next. Nothing is read back but once per chunk. Learning rates lie on the device, too.

A step is that of M members at once, each with batches, counters and sums of its own; a run alone is one member.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnncls.data import Block
from rnncls.steps.chunks import Rates
from rnncls.steps.state import Totals


class Inputs(NamedTuple):
    """The batches of one step of M members."""

    tokens: Tensor  # (M, B, T) int64
    lengths: Tensor  # (M, B) int64
    labels: Tensor  # (M, B) int64
    lr: Tensor  # (M,)
    stop: Tensor  # (M,): not 0 for those that may not be updated; an update sets it where something is not finite


class Measured(NamedTuple):
    """What an update says about each member's batch, (M,) each."""

    loss: Tensor
    correct: Tensor
    norm: Tensor  # of the gradient, before clipping


Update = Callable[[Inputs], Measured]


class Staged(NamedTuple):
    """The K batches of a block as they are copied to the device."""

    longest: Tensor  # (K,) of each batch; not copied
    tokens: Tensor  # (K, B, T) int32
    lengths: Tensor  # (K, B)
    labels: Tensor  # (K, B)
    rates: Tensor  # (K,)


class Turn(NamedTuple):
    """Steps that a member takes in one chunk, from the step `first` of its block on."""

    staged: Staged
    first: int
    totals: Totals


def stage(block: Block, rates: Rates, batch_size: int, device: torch.device) -> Staged:
    """Make rectangles of a block, in memory that is copied to the device without waiting."""
    rows = torch.arange(batch_size)
    index = (block.edges[:-1, None] + rows).clamp(
        max=len(block.labels) - 1
    )  # odd batches are never looked at
    positions = block.starts[index].unsqueeze(2) + torch.arange(int(block.lengths.max()))
    tokens, lengths = (
        block.tokens[positions.clamp_(max=len(block.tokens) - 1)],
        block.lengths[index],
    )
    parts = (lengths.amax(1), tokens, lengths, block.labels[index], torch.from_numpy(rates).float())
    return Staged(*(part.pin_memory() if device.type == "cuda" else part for part in parts))


class Graphs:
    """The steps of an update on static memory, by width.

    On the CPU the same steps are run as they are: that is what tests compare with eager ones where there is no GPU.
    `limits`: (M,) the norms at which gradients are clipped.
    """

    def __init__(self, batch_size: int, limits: Tensor, update: Update) -> None:
        self.batch_size, self.limits, self.update = batch_size, limits, update
        self.device, self.count = limits.device, len(limits)
        self.members = torch.arange(self.count, device=self.device)
        self.stop = torch.zeros(self.count, device=self.device)
        self.position = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        self.taken = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        self.sums = torch.zeros(self.count, 5, dtype=torch.float64, device=self.device)
        self.zero = torch.zeros(
            (), device=self.device
        )  # a number of Python's would be copied there, which waits
        on_cuda = self.device.type == "cuda"
        self.stream = torch.cuda.Stream(self.device) if on_cuda else None  # type: ignore[no-untyped-call]
        self.staged: list[Staged | None] = [None] * self.count  # what lies on the device
        self.static: dict[str, Tensor] = {}
        self.steps: dict[int, Callable[[], object]] = {}
        self.pool: Any = None  # of the graphs there are; with the last of them it goes

    def run(self, turns: Sequence[Turn | None], count: int) -> list[int]:
        """Take `count` steps with each member that has a turn; returns how many each of them took.

        A member stops before a step that is not finite; the others go on.
        """
        with torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext():
            for member, turn in enumerate(turns):
                if turn and turn.staged is not self.staged[member]:
                    self._upload(member, turn.staged)
            begun = [(0.0,) * 5 if turn is None else _sums(turn.totals) for turn in turns]
            self.sums.copy_(torch.tensor(begun, dtype=torch.float64))
            self.position.copy_(torch.tensor([turn.first if turn else 0 for turn in turns]))
            self.stop.copy_(torch.tensor([float(turn is None) for turn in turns]))
            self.taken.zero_()
            widths = self._widths(turns, count)
            steps = {
                width: self._step_of(width) for width in sorted(set(widths))
            }  # what fails has changed nothing
            for width in widths:
                steps[width]()
            taken: list[int] = self.taken.tolist()  # the one time to wait
            sums = self.sums.tolist()
        for turn, done, values in zip(turns, taken, sums, strict=True):
            if turn:
                totals = turn.totals
                totals.loss, correct, sequences, totals.grad_norm, clipped = values
                totals.correct, totals.sequences, totals.clipped = (
                    int(correct),
                    int(sequences),
                    int(clipped),
                )
                totals.steps += done
        return taken

    def forget(self) -> None:
        """Capture anew: the memory that the update works on is another."""
        self.steps.clear()

    def _upload(self, member: int, staged: Staged) -> None:
        """Copy a block to the device; larger memory than before makes the graphs void."""
        parts = staged._asdict()
        del parts["longest"]
        self._make_room(parts)
        for name, part in parts.items():
            place = self.static[name][member, : len(part)]
            (place[:, :, : part.shape[2]] if name == "tokens" else place).copy_(
                part, non_blocking=True
            )
        self.staged[member] = staged

    def _make_room(self, parts: dict[str, Tensor]) -> None:
        steps, _, widest = parts["tokens"].shape
        before = self.static
        if before:
            _, most, _, width = before["tokens"].shape
            if most >= steps and width >= widest:
                return
            steps, widest = max(steps, most), max(widest, width)
        steps = 1 << (steps - 1).bit_length()  # the first block may be a short one
        shapes = {"tokens": (steps, self.batch_size, widest), "rates": (steps,)}
        self.static = {
            name: torch.zeros(
                self.count,
                *shapes.get(name, (steps, self.batch_size)),
                dtype=part.dtype,
                device=self.device,
            )
            for name, part in parts.items()
        }
        for name, part in before.items():
            self.static[name][tuple(slice(0, size) for size in part.shape)] = part
        self.steps.clear()

    def _widths(self, turns: Sequence[Turn | None], count: int) -> list[int]:
        """What the batches of each step are padded to: a power of two, or all there is room for."""
        longest = torch.stack(
            [turn.staged.longest[turn.first : turn.first + count] for turn in turns if turn]
        )
        widest = self.static["tokens"].shape[3]
        return [min(widest, 1 << (width - 1).bit_length()) for width in longest.amax(0).tolist()]

    def _step_of(self, width: int) -> Callable[[], object]:
        if width not in self.steps:
            if self.device.type == "cuda" and not self.steps:
                self.pool = torch.cuda.graph_pool_handle()
            self._warm_up(width)
            self.steps[width] = (
                self._capture(width) if self.device.type == "cuda" else lambda: self._step(width)
            )
        return self.steps[width]

    def _warm_up(self, width: int) -> None:
        """Run the step that is next with updates off, without leaving a trace in counters and sums."""
        kept = [(part, part.clone()) for part in (self.position, self.stop, self.taken, self.sums)]
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(3):
                self.stop.fill_(1)
                self._step(width)
                for part, value in kept:
                    part.copy_(value)
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)

    def _capture(self, width: int) -> Callable[[], object]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.stream(
                torch.cuda.current_stream()
            ),  # comes back to it when the capture fails, too
            # other runs may be evaluating meanwhile
            torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ),
        ):
            self._step(width)  # nothing is computed now
        return graph.replay

    def _step(self, width: int) -> None:
        own = {name: part[self.members, self.position] for name, part in self.static.items()}
        tokens = own["tokens"][:, :, :width].long()
        lengths = own["lengths"].clamp(1, width)  # of a member without a turn: whatever lies there
        loss, correct, norm = self.update(
            Inputs(tokens, lengths, own["labels"], own["rates"], self.stop)
        )
        done = self.stop == 0
        size = torch.full_like(correct, self.batch_size)
        values = torch.stack([loss * self.batch_size, correct, size, norm, norm > self.limits], 1)
        self.sums += torch.where(done[:, None], values.double(), self.zero)
        self.taken += done
        self.position += 1


def whole_batches(block: Block, batch_size: int, first: int, last: int) -> int:
    """The first of these steps whose batch is of another size; `last` if there is none."""
    odd = (block.edges[first : last + 1].diff() != batch_size).nonzero()
    return first + int(odd[0]) if len(odd) else last


def _sums(totals: Totals) -> tuple[float, ...]:
    return totals.loss, totals.correct, totals.sequences, totals.grad_norm, totals.clipped
