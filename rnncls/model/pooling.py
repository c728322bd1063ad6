"""What the head sees of a sequence: the last, the mean or the largest of the last layer's outputs.

Outputs are packed: rows (S, W) time step by time step, longest sequence first. The rank of a
sequence is its place in that order, and `ranks` (S,) says whose each row is. Everything takes time
linear in S, and no padding is ever seen.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rnncls.data.batches import ranks_of

BLOCK_STEPS = 128  # time steps whose outputs are added up before they join the others

Pooling = Literal["last", "mean", "max", "last_mean_max"]


# What may stand side by side in what the head sees, in this order.
Part = Literal["last", "mean", "max"]


def parts_of(pooling: Pooling) -> tuple[Part, ...]:
    """Return what stands side by side in what the head sees.

    >>> parts_of("last_mean_max"), parts_of("mean")
    (('last', 'mean', 'max'), ('mean',))
    """
    return ("last", "mean", "max") if pooling == "last_mean_max" else (pooling,)


class Pooled(NamedTuple):
    """What was seen of B sequences so far, (B, W) each; None for what the pooling does not need."""

    total: Tensor | None = None  # the sum of the outputs
    largest: Tensor | None = None

    def first(self, count: int) -> "Pooled":
        """Return what was seen of the first `count` sequences."""
        return Pooled(*(None if part is None else part[:count] for part in self))

    def followed_by(self, others: "Pooled") -> "Pooled":
        """Return these sequences, and behind them those of `others` from their number on."""
        parts = []
        for part, other in zip(self, others, strict=True):
            if part is None or other is None or len(part) == len(other):
                parts.append(part)
            else:
                parts.append(torch.cat([part, other[len(part) :]]))
        return Pooled(*parts)

    def detach(self) -> "Pooled":
        """Return the same, through which no gradient flows."""
        return Pooled(*(None if part is None else part.detach() for part in self))


def nothing_pooled(pooling: Pooling, num_sequences: int, rnn: nn.RNNBase, weight: Tensor) -> Pooled:
    """Return what was seen of B sequences before their first tokens, on the device of `weight`.

    In the precision of the weights: a sum of many bfloat16 numbers would not grow any more.
    """
    width = rnn.hidden_size * (2 if rnn.bidirectional else 1)
    total = None
    largest = None
    if "mean" in parts_of(pooling):
        total = weight.new_zeros(num_sequences, width)
    if "max" in parts_of(pooling):
        largest = weight.new_full((num_sequences, width), -torch.inf)
    return Pooled(total, largest)


def pooled_with(
    pooled: Pooled, outputs: Tensor, batch_sizes: Tensor, latest: bool = False
) -> Pooled:
    """Return what was seen once the packed rows `outputs` (S, W) have been seen, too.

    `latest`: of equally large outputs the latest counts, not the first, and gets the gradient.
    """
    total, largest = pooled
    if total is None and largest is None:
        return pooled

    ranks = ranks_of(batch_sizes).to(outputs.device)
    if total is not None:
        total = _added(total, outputs.to(total.dtype), batch_sizes, ranks)
    if largest is not None:
        outputs = outputs.to(largest.dtype)
        largest = _Largest.apply(largest, outputs, ranks, latest)  # type: ignore[no-untyped-call]
    return Pooled(total, largest)


def _added(total: Tensor, outputs: Tensor, batch_sizes: Tensor, ranks: Tensor) -> Tensor:
    """Return the total (B, W) with the packed outputs (S, W) added.

    Those of BLOCK_STEPS time steps are first added to each other: a float32 to which many thousand
    small numbers are added one by one is off in its fourth digit.
    """
    if len(batch_sizes) <= BLOCK_STEPS:
        return total.index_add(0, ranks, outputs)

    # The sums of the blocks stand as packed rows do, those of all sequences for each block.
    of_blocks = batch_sizes[::BLOCK_STEPS]
    first_rows = of_blocks.cumsum(0) - of_blocks
    blocks = torch.arange(len(batch_sizes)) // BLOCK_STEPS
    rows = first_rows[blocks].repeat_interleave(batch_sizes).to(ranks.device) + ranks
    sums = outputs.new_zeros(int(of_blocks.sum()), outputs.shape[1]).index_add(0, rows, outputs)
    return total.index_add(0, ranks_of(of_blocks).to(ranks.device), sums)


def lengths_of(batch_sizes: Tensor) -> Tensor:
    """Return the length of each sequence, (B,), longest first.

    >>> lengths_of(torch.tensor([3, 2, 2])).tolist()
    [3, 3, 1]
    """
    # That of rank r is the number of time steps with more than r sequences. Sizes never rise.
    ranks = torch.arange(int(batch_sizes[0]))
    return torch.searchsorted(-batch_sizes, -ranks)


def summary_of_pooled(
    pooling: Pooling, pooled: Pooled, last: Tensor | None, batch_sizes: Tensor
) -> Tensor:
    """Return what the head sees, (B, W) or, of last_mean_max, (B, 3 * W), longest sequence first.

    `last` (B, W): the state at which each direction ends, if there is one.
    """
    parts = []
    for part in parts_of(pooling):
        if part == "last" and last is not None:
            parts.append(last)
        elif part == "mean" and pooled.total is not None:
            lengths = lengths_of(batch_sizes).to(pooled.total.device)
            parts.append(pooled.total / lengths.unsqueeze(1))
        elif pooled.largest is not None:
            parts.append(pooled.largest)
    return side_by_side(parts)


def summary_of_padded(pooling: Pooling, outputs: Tensor, lengths: Tensor) -> Tensor:
    """Return what the head sees of outputs (T, B, W) in a rectangle, (B, W) or (B, 3 * W).

    Of each sequence its own first `lengths` (B,) rows count, on the device of the outputs.
    """
    parts = []
    for part in parts_of(pooling):
        if part == "last":
            # One index for each sequence and unit, (1, B, W), as `gather` wants it.
            last_step = (lengths - 1).view(1, -1, 1).expand(1, -1, outputs.shape[2])
            parts.append(outputs.gather(0, last_step)[0])
        elif part == "mean":
            total = _filled(outputs, lengths, 0).sum(0)
            parts.append(total / lengths.unsqueeze(1))
        else:
            largest, _ = _filled(outputs, lengths, -torch.inf).max(0)
            parts.append(largest)
    return side_by_side(parts)


def _filled(outputs: Tensor, lengths: Tensor, value: float) -> Tensor:
    """Return outputs (T, B, W) with a value behind the length of each sequence."""
    steps = torch.arange(len(outputs), device=outputs.device)
    is_padding = (steps.unsqueeze(1) >= lengths).unsqueeze(2)  # (T, B, 1)
    return outputs.masked_fill(is_padding, value)


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Return the columns of all parts, (B, W) each; in the precision of the first."""
    first = parts[0]
    return first if len(parts) == 1 else torch.cat([part.to(first.dtype) for part in parts], 1)


class _Largest(torch.autograd.Function):
    """The largest output of each sequence and unit; the gradient goes to one row of it.

    PyTorch's own reduction shares the gradient among equal rows, so that a sequence in pieces would
    have another gradient than the whole.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx: Any, before: Tensor, outputs: Tensor, ranks: Tensor, latest: bool
    ):
        index = ranks.unsqueeze(1).expand_as(outputs)
        largest = before.scatter_reduce(0, index, outputs, "amax")
        if not any(ctx.needs_input_grad[:2]):
            return largest

        # The row of the first or latest one among those that are as large, (B, W). -1 stands for
        # `before`, and is what is left where nothing is equal: NaN. 32 bits, as there are S * W.
        is_largest = outputs == largest.gather(0, index)
        rows = torch.arange(len(outputs), dtype=torch.int32, device=outputs.device)
        rows = rows.unsqueeze(1).expand_as(outputs)
        winners = torch.full_like(before, -1, dtype=torch.int32)
        if latest:
            winners = winners.scatter_reduce(0, index, torch.where(is_largest, rows, -1), "amax")
        else:
            # Counted from the end, the first row is the largest number.
            from_end = torch.where(is_largest, len(outputs) - rows, -1)
            winners = winners.scatter_reduce(0, index, from_end, "amax")
            winners = torch.where((winners < 0) | (before == largest), -1, len(outputs) - winners)

        ctx.save_for_backward(winners)
        ctx.num_rows = len(outputs)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_largest: Tensor):  # type: ignore[no-untyped-def]
        (winners,) = ctx.saved_tensors
        is_before = winners < 0
        d_before = torch.where(is_before, d_largest, 0)

        # Row and unit together name one winner only, so nothing is added up.
        d_outputs = d_largest.new_zeros(ctx.num_rows, d_largest.shape[1])
        of_rows = torch.where(is_before, 0, d_largest)
        d_outputs.scatter_add_(0, winners.clamp(min=0).long(), of_rows)
        return d_before, d_outputs, None, None
