"""Runs training steps as CUDA graphs: a whole step, from batch to optimizer, is one replay.

A small step in eager PyTorch is hundreds of kernel launches that the GPU waits for. A graph has
static shapes, so there is one graph for each width to which batches are padded. Blocks of batches
are copied to the device at once, and a counter there says which batch is next. Learning rates are
on the device, too. Results are read back once per chunk of steps.

One step is a step of M members at once, each with its own batches, counters and sums. A run that
trains alone is one member.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnncls.data import Block
from rnncls.steps.chunks import Rates
from rnncls.steps.state import Sums, Totals

# Before a capture; the number is that of PyTorch's documentation of CUDA graphs.
WARM_UP_STEPS = 3


class Inputs(NamedTuple):
    """The batches of one step of M members."""

    tokens: Tensor  # (M, B, T) int64
    lengths: Tensor  # (M, B) int64
    labels: Tensor  # (M, B) int64
    lr: Tensor  # (M,)
    keys: Tensor  # (M, num_layers) int64 of the noise on states; (M, 0) without noise

    # (M,): if it is not 0, the member is left as it is. An update sets it where loss or gradient is
    # not finite.
    stop: Tensor


class Measured(NamedTuple):
    """The results of one step for each member's batch, (M,) each."""

    loss: Tensor
    correct: Tensor
    norm: Tensor  # of the gradient, before clipping


Update = Callable[[Inputs], Measured]


class PaddedBlock(NamedTuple):
    """The K batches of a block, padded to the block's longest sequence, in the host's memory."""

    # (K,): the longest sequence of each batch. The only part that is not copied to the device,
    # because the host chooses the width of a step by it.
    longest: Tensor

    tokens: Tensor  # (K, B, T) int32
    lengths: Tensor  # (K, B)
    labels: Tensor  # (K, B)
    rates: Tensor  # (K,)
    keys: Tensor  # (K, num_layers) int64 of the noise on states; (K, 0) without noise


class StepRequest(NamedTuple):
    """The steps that one member wants to take next: those from number `first` of its block on."""

    block: PaddedBlock
    first: int
    totals: Totals  # to which the steps are added


def pad_block(
    block: Block,
    rates: Rates,
    batch_size: int,
    device: torch.device,
    keys: Tensor | None = None,
) -> PaddedBlock:
    """Pad the batches of a block. For CUDA they are in pinned memory, to be copied without waiting.

    `keys`: (K, num_layers) int64, those of the noise on states; None without noise.

    A batch of another size than `batch_size` becomes meaningless rows. See `whole_batches`, which
    makes sure that it is never used.
    """
    # Behind a sequence's end stand the tokens of the sequences that follow. They serve as padding,
    # because no state after the last token is ever looked at.
    rows = torch.arange(batch_size)
    index = (block.edges[:-1, None] + rows).clamp(max=len(block.labels) - 1)  # (K, B)
    positions = block.starts[index].unsqueeze(2) + torch.arange(int(block.lengths.max()))
    tokens = block.tokens[positions.clamp_(max=len(block.tokens) - 1)]  # (K, B, T)
    lengths = block.lengths[index]

    padded = PaddedBlock(
        longest=lengths.amax(1),
        tokens=tokens,
        lengths=lengths,
        labels=block.labels[index],
        rates=torch.from_numpy(rates).float(),
        keys=torch.zeros(len(rates), 0, dtype=torch.int64) if keys is None else keys,
    )
    if device.type == "cuda":
        return PaddedBlock(*(part.pin_memory() for part in padded))
    return padded


def whole_batches(block: Block, batch_size: int, first: int, last: int) -> int:
    """Return the first of the steps `first` to `last` whose batch has another size, else `last`."""
    odd = (block.edges[first : last + 1].diff() != batch_size).nonzero()
    return first + int(odd[0]) if len(odd) else last


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Let Python collect no garbage meanwhile.

    Among the garbage may be graphs of an earlier run. CUDA refuses to destroy a graph on a thread
    that captures one, and the capture fails.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Graphs:
    """Repeats `update` on static memory, as one graph for each width of batches.

    `limits`: (M,) the norms at which the members' gradients are clipped.

    On the CPU the same steps run without graphs. Thus tests compare them with eager steps on
    machines without a GPU.
    """

    def __init__(self, batch_size: int, limits: Tensor, update: Update) -> None:
        self.batch_size = batch_size
        self.limits = limits
        self.update = update
        self.device = limits.device
        self.count = len(limits)  # M
        self.on_cuda = self.device.type == "cuda"

        self.members = torch.arange(self.count, device=self.device)

        # The state of a chunk of steps, by member: where it is, and what it has done. The steps
        # change these tensors on the device, so that the host need not know before the chunk ends.
        self.stop = torch.zeros(self.count, device=self.device)
        self.position = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        self.taken = torch.zeros(self.count, dtype=torch.int64, device=self.device)
        shape = (self.count, len(Sums._fields))
        self.sums = torch.zeros(shape, dtype=torch.float64, device=self.device)

        # A Python number would be copied to the device in every step, which waits.
        self.zero = torch.zeros((), device=self.device)

        self.stream = None
        if self.on_cuda:
            self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        self.uploaded: list[PaddedBlock | None] = [None] * self.count

        # The uploaded blocks, (M, K, ...) by name of the part.
        self.static: dict[str, Tensor] = {}

        # The steps by width. On CUDA they are graphs, which can share one pool of memory because no
        # two of them run at the same time. It is freed with the last of them.
        self.steps: dict[int, Callable[[], object]] = {}
        self.pool: Any = None

    def run(self, requests: Sequence[StepRequest | None], count: int) -> list[int]:
        """Take `count` steps with each member that has a request; return how many each has taken.

        A member stops before a step that is not finite, while the others continue.
        """
        device: AbstractContextManager[object] = nullcontext()
        if self.on_cuda:
            device = torch.cuda.device(self.device)

        with device:
            self._load(requests)

            # All graphs are made before the first step, so a capture that fails changes nothing.
            widths = self._widths(requests, count)
            steps = {width: self._step_of(width) for width in sorted(set(widths))}
            for width in widths:
                steps[width]()

            # The one place that waits for the device.
            taken: list[int] = self.taken.tolist()
            all_sums = self.sums.tolist()

        for request, steps_taken, sums in zip(requests, taken, all_sums, strict=True):
            if request:
                request.totals.replace_sums(Sums(*sums), steps_taken)
        return taken

    def forget(self) -> None:
        """Drop all graphs: they are not needed any more, or their memory has been replaced."""
        self.steps.clear()

    def _load(self, requests: Sequence[StepRequest | None]) -> None:
        """Copy blocks and counters to the device. Members without a request are stopped."""
        for member, request in enumerate(requests):
            if request and request.block is not self.uploaded[member]:
                self._upload(member, request.block)

        sums: list[Sums[float]] = []
        positions = []
        stops = []
        for request in requests:
            sums.append(request.totals.sums() if request else Sums(0.0, 0.0, 0.0, 0.0, 0.0))
            positions.append(request.first if request else 0)
            stops.append(0.0 if request else 1.0)

        self.sums.copy_(torch.tensor(sums, dtype=torch.float64))
        self.position.copy_(torch.tensor(positions))
        self.stop.copy_(torch.tensor(stops))
        self.taken.zero_()

    def _upload(self, member: int, block: PaddedBlock) -> None:
        """Copy a member's block to the device, into the part of the static memory that it needs."""
        parts = block._asdict()
        del parts["longest"]
        self._make_room(parts)

        for name, part in parts.items():
            place = self.static[name][member, : len(part)]
            if name == "tokens":
                place = place[:, :, : part.shape[2]]
            place.copy_(part, non_blocking=True)
        self.uploaded[member] = block

    def _make_room(self, parts: dict[str, Tensor]) -> None:
        """Enlarge the static memory if a block does not fit. That makes all graphs void."""
        steps, _, width = parts["tokens"].shape
        before = self.static
        if before:
            _, most_steps, _, widest = before["tokens"].shape
            if most_steps >= steps and widest >= width:
                return
            steps = max(steps, most_steps)
            width = max(width, widest)

        # The first block may be shorter than those to come, so there is room for some more steps:
        # up to the next power of two.
        steps = 1 << (steps - 1).bit_length()
        shapes: dict[str, tuple[int, ...]] = {
            "tokens": (steps, self.batch_size, width),
            "lengths": (steps, self.batch_size),
            "labels": (steps, self.batch_size),
            "rates": (steps,),
            "keys": (steps, parts["keys"].shape[1]),
        }
        enlarged = {}
        for name, part in parts.items():
            shape = (self.count, *shapes[name])
            enlarged[name] = torch.zeros(shape, dtype=part.dtype, device=self.device)
        self.static = enlarged

        # The other members' blocks are still in use.
        for name, part in before.items():
            corner = tuple(slice(0, size) for size in part.shape)
            self.static[name][corner] = part

        # The graphs would read from the old memory.
        self.steps.clear()

    def _widths(self, requests: Sequence[StepRequest | None], count: int) -> list[int]:
        """Return the width to which the batches of each step are padded.

        It is a power of two, so that few graphs do, or all the width that there is room for.
        """
        present = [request for request in requests if request]
        longest = torch.stack(
            [request.block.longest[request.first : request.first + count] for request in present]
        )
        by_step: list[int] = longest.amax(0).tolist()

        widest = self.static["tokens"].shape[3]
        return [min(widest, 1 << (length - 1).bit_length()) for length in by_step]

    def _step_of(self, width: int) -> Callable[[], object]:
        """Return the step on batches of this width, captured if it was not before."""
        if width in self.steps:
            return self.steps[width]

        if self.on_cuda and not self.steps:
            self.pool = torch.cuda.graph_pool_handle()
        self._warm_up(width)
        if self.on_cuda:
            self.steps[width] = self._capture(width)
        else:
            self.steps[width] = lambda: self._step(width)
        return self.steps[width]

    def _warm_up(self, width: int) -> None:
        """Run the next step with updates switched off, and leave counters and sums as they were.

        Libraries set themselves up when they are first called, which cannot be captured.
        """
        counters = (self.position, self.stop, self.taken, self.sums)
        kept = [(counter, counter.clone()) for counter in counters]

        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            for _ in range(WARM_UP_STEPS):
                self.stop.fill_(1)
                self._step(width)
                for counter, value in kept:
                    counter.copy_(value)
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)

    def _capture(self, width: int) -> Callable[[], object]:
        """Record the step on batches of this width as a graph, and return its replay."""
        graph = torch.cuda.CUDAGraph()
        with (
            no_garbage_collection(),
            # The current stream is current again afterwards, even if the capture fails.
            torch.cuda.stream(torch.cuda.current_stream()),
            # "thread_local", because other threads may be evaluating their runs meanwhile.
            torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ),
        ):
            # This is recorded; nothing is computed yet.
            self._step(width)
        return graph.replay

    def _step(self, width: int) -> None:
        """Take one step with the batches at `position`. Everything stays on the device."""
        batch = {name: part[self.members, self.position] for name, part in self.static.items()}
        tokens = batch["tokens"][:, :, :width].long()  # (M, B, T)
        # The batch of a member without a request may be any memory; its lengths must be possible.
        lengths = batch["lengths"].clamp(1, width)
        loss, correct, norm = self.update(
            Inputs(tokens, lengths, batch["labels"], batch["rates"], batch["keys"], self.stop)
        )

        # By now the update has stopped the members whose step is not finite: it does not count.
        done = self.stop == 0  # (M,)
        size = torch.full_like(correct, self.batch_size)
        added = Sums(
            loss=loss * self.batch_size,
            correct=correct,
            sequences=size,
            grad_norm=norm,
            clipped=norm > self.limits,
        )
        values = torch.stack(list(added), 1)  # (M, 5)
        self.sums += torch.where(done[:, None], values.double(), self.zero)
        self.taken += done
        self.position += 1
