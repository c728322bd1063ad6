"""Runs a batch of packed sequences piece by piece, so that few states are in memory at a time.

A piece is some consecutive time steps of a batch. What one piece ends with the next one begins
with: the state of each sequence, and what pooling has seen of it. There are three uses. Without
gradients, the states of a piece are not needed after it. With `recompute_every`, only what pieces
begin with is kept, and each is run again in the backward pass, for the same gradient. With
`truncate_after`, all but the last K tokens of each sequence run without gradient, for another one.

Letters: B sequences of S tokens in all, of at most T time steps; packed rows stand time step by
time step, longest sequence first. The rank of a sequence is its place in that order.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rnncls.data.batches import ranks_of
from rnncls.model.cells import State
from rnncls.model.pooling import Pooled, lengths_of, pooled_with

# Rows whose states are in memory at a time when no gradient is wanted. A GPU gains from many.
STREAMED_ROWS = 8192
STREAMED_ROWS_CUDA = 2**18

Rows = tuple[Tensor, ...]  # one or more tensors of S rows each

# Runs packed rows with their batch sizes from a state, (N, B, H) each or None for zeros, and draws
# nothing at random. Returns the outputs (S, W) and the state after each sequence's last row.
Run = Callable[[Rows, Tensor, State | None], tuple[Tensor, State]]

# Outputs (S', W), and which of the S packed rows they belong to.
Collected = tuple[slice | Tensor, Tensor]


class Pieces(NamedTuple):
    """How a batch is run where gradients are wanted: as a whole without either number."""

    recompute_every: int | None = None  # time steps
    truncate_after: int | None = None  # tokens

    def cut(self, longest: int) -> bool:
        """Return whether a batch whose longest sequence has this length is run in pieces."""
        return any(number is not None and number < longest for number in self)


WHOLE = Pieces()


class Reached(NamedTuple):
    """What is known of B sequences after some of their tokens."""

    state: State  # (N, B, H) each; () before the first token, for zeros
    pooled: Pooled = Pooled()

    def first(self, count: int) -> "Reached":
        """Return what is known of the first `count` sequences."""
        state = self.state
        if state and state[0].shape[1] > count:
            # cuDNN wants its states in one piece of memory.
            state = tuple(part[:, :count].contiguous() for part in state)
        return Reached(state, self.pooled.first(count))

    def followed_by(self, others: "Reached") -> "Reached":
        """Return these sequences, and behind them those of `others` from their number on."""
        state = self.state
        if others.state:
            count = state[0].shape[1]
            if count < others.state[0].shape[1]:
                pairs = zip(state, others.state, strict=True)
                state = tuple(torch.cat([part, other[:, count:]], 1) for part, other in pairs)
        return Reached(state, self.pooled.followed_by(others.pooled))

    def detach(self) -> "Reached":
        """Return the same, through which no gradient flows."""
        return Reached(tuple(part.detach() for part in self.state), self.pooled.detach())


class Part(NamedTuple):
    """The tokens that are read of the first sequences of a batch: from some token of each on."""

    sizes: Tensor  # (T',): how many sequences have a token in each time step of the part
    first_rows: Tensor  # (T,): where each time step of the batch begins among its packed rows
    begins: Tensor | None  # (B,): each sequence's first token that is read; None: all of the batch

    def rows(self, first: int, last: int) -> slice | Tensor:
        """Return which packed rows are read in the time steps first, ..., last - 1 of the part."""
        sizes = self.sizes[first:last]
        if self.begins is None:
            start = int(self.first_rows[first])
            return slice(start, start + int(sizes.sum()))

        ranks = ranks_of(sizes)
        steps = torch.arange(first, last).repeat_interleave(sizes)
        return self.first_rows[self.begins[ranks] + steps] + ranks


def read(
    run: Run,
    rows: Rows,
    batch_sizes: Tensor,
    start: Reached,
    pieces: Pieces = WHOLE,
    collected: list[Collected] | None = None,
    reverse: bool = False,
) -> Reached:
    """Read all rows of a batch and return what is known after each sequence's last one.

    `start`: what is known before; its state may be () if `pieces` does not truncate. Outputs are
    added to `collected`. `reverse`: the rows are those of sequences read backwards.
    """
    longest = len(batch_sizes)
    most = _most_streamed(rows)
    wants_gradient = torch.is_grad_enabled()
    is_cut = pieces.cut(longest) if wants_gradient else is_streamed(rows)
    if not is_cut and collected is None:
        outputs, state = run(rows, batch_sizes, start.state or None)
        return Reached(state, pooled_with(start.pooled, outputs, batch_sizes, latest=reverse))

    reading = _Reading(run, rows, collected, reverse)
    if not wants_gradient:
        edges = edges_by_rows(batch_sizes, most)
        return reading.read(_whole(batch_sizes), start, edges)

    whole = _whole(batch_sizes)
    after = pieces.truncate_after
    every = pieces.recompute_every
    if after is None or after >= longest:
        return reading.read(whole, start, _edges(longest, every), every is not None)

    # First all but the last tokens of each sequence. Of a shorter one nothing is read there, and
    # the gradient reaches what it started with.
    lengths = lengths_of(batch_sizes)
    head = whole._replace(sizes=batch_sizes[after:], begins=torch.zeros_like(lengths))
    tail = whole._replace(sizes=batch_sizes[:after], begins=(lengths - after).clamp(min=0))
    with torch.no_grad():
        before = reading.read(head, start, edges_by_rows(head.sizes, most))
    reached = before.detach().followed_by(start)
    return reading.read(tail, reached, _edges(after, every), every is not None)


def is_streamed(rows: Rows) -> bool:
    """Return whether rows are read in pieces because there are many, and no gradient is wanted."""
    return not torch.is_grad_enabled() and len(rows[0]) > _most_streamed(rows)


def _most_streamed(rows: Rows) -> int:
    return STREAMED_ROWS_CUDA if rows[0].is_cuda else STREAMED_ROWS


class _Reading(NamedTuple):
    """How the rows of a batch are read, whatever part of them."""

    run: Run
    rows: Rows
    collected: list[Collected] | None
    reverse: bool

    def read(
        self, part: Part, start: Reached, edges: list[int], recompute: bool = False
    ) -> Reached:
        """Read a part piece by piece; `edges` are the time steps at which they begin and end."""
        reached = start.first(int(part.sizes[0]))
        for first, last in pairwise(edges):
            sizes = part.sizes[first:last]
            where = part.rows(first, last)
            if isinstance(where, Tensor):
                where = where.to(self.rows[0].device)
            rows = tuple(each[where] for each in self.rows)
            before = reached.first(int(sizes[0]))

            if recompute and len(edges) > 2:
                # Nothing is drawn at random, so there is no generator to be kept and set back.
                after, outputs = checkpoint(
                    self._piece, rows, sizes, before, use_reentrant=False, preserve_rng_state=False
                )
            else:
                after, outputs = self._piece(rows, sizes, before)

            reached = after.followed_by(reached)
            if self.collected is not None:
                self.collected.append((where, outputs))
        return reached

    def _piece(self, rows: Rows, sizes: Tensor, before: Reached) -> tuple[Reached, Tensor | None]:
        outputs, state = self.run(rows, sizes, before.state or None)
        pooled = pooled_with(before.pooled, outputs, sizes, latest=self.reverse)
        # What nobody collects is not to be kept.
        return Reached(state, pooled), None if self.collected is None else outputs


def _whole(batch_sizes: Tensor) -> Part:
    """Return all tokens of a batch."""
    # In place: a sequence of millions of tokens has as many time steps.
    return Part(batch_sizes, batch_sizes.cumsum(0).sub_(batch_sizes), None)


def in_order(collected: list[Collected]) -> Tensor:
    """Return collected outputs (S, W) in the order of the packed rows."""
    outputs = torch.cat([outputs for _, outputs in collected])
    places = [where for where, _ in collected if isinstance(where, Tensor)]
    # Slices stand one behind the other.
    return outputs.index_select(0, torch.cat(places).argsort()) if places else outputs


def _edges(longest: int, every: int | None) -> list[int]:
    """Return where pieces of `every` time steps begin, and the end of the last one."""
    return [*range(0, longest, every or longest), longest]


def edges_by_rows(sizes: Tensor, most: int) -> list[int]:
    """Return where pieces of at most `most` rows begin, but of at least one time step each.

    The end of the last one is behind them. `sizes` (T,) as those of a PackedSequence.

    >>> edges_by_rows(torch.tensor([6, 3, 2, 2, 1]), 5)
    [0, 1, 3, 5]
    """
    # How many rows there are up to the end of each step: of millions, no list is made.
    ends = sizes.cumsum(0)
    edges = [0]
    num_rows = 0
    while edges[-1] < len(sizes):
        step = int(torch.searchsorted(ends, num_rows + most, right=True))
        edges.append(max(step, edges[-1] + 1))
        num_rows = int(ends[edges[-1] - 1])
    return edges


def reversed_rows(batch_sizes: Tensor) -> Tensor:
    """Return the packed rows in the order in which sequences are read backwards, (S,).

    Token t of a sequence of length n changes places with token n - 1 - t, which also leads back.

    >>> reversed_rows(torch.tensor([2, 2, 1])).tolist()
    [4, 3, 2, 1, 0]
    """
    ranks = ranks_of(batch_sizes)
    first_rows = batch_sizes.cumsum(0) - batch_sizes
    steps = torch.arange(len(batch_sizes)).repeat_interleave(batch_sizes)
    return first_rows[lengths_of(batch_sizes)[ranks] - 1 - steps] + ranks
