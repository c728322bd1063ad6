"""Labelled sequences in memory, and the batches of an epoch, of many steps at once, and of an evaluation."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.data.batches import Batch, Block, pack, rectangle
from rnncls.seeds import mix

BLOCK_STEPS, BLOCK_CELLS = (
    256,
    2**22,
)  # batches that are prepared together, and their cells if padded
BUCKET_BATCHES = 50  # batches that are sorted by length together


class Sequences(NamedTuple):
    """R labelled sequences of L tokens in all."""

    tokens: Tensor  # (L,) int32
    offsets: Tensor  # (R + 1,) int64: sequence i is tokens[offsets[i]:offsets[i + 1]]
    labels: Tensor  # (R,) int64

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """(R,) int64."""
        return self.offsets.diff()

    def batch(self, rows: Tensor) -> Batch:
        """The sequences with these numbers, packed."""
        lengths = self.lengths_of(rows)
        return pack(rectangle(self.tokens, self.offsets[rows], lengths), lengths, self.labels[rows])

    def lengths_of(self, rows: Tensor) -> Tensor:
        return self.offsets[rows + 1] - self.offsets[rows]


def steps_per_epoch(sequences: Sequences, batch_size: int) -> int:
    """Every sequence is used once per epoch; the last batch may be smaller."""
    return -(-len(sequences) // batch_size)


def epoch_order(
    sequences: Sequences, seed: int, epoch: int, batch_size: int, batching: str
) -> list[Tensor]:
    """The rows of each batch of an epoch: a function of (seed, epoch).

    bucket: of the shuffled rows, those of 50 batches at a time are sorted by length and cut into batches, which are
    shuffled again.
    """
    generator = torch.Generator().manual_seed(mix(seed, "epoch", epoch))
    order = torch.randperm(len(sequences), generator=generator)
    if batching == "shuffle":
        return list(torch.split(order, batch_size))
    batches: list[Tensor] = []
    for chunk in torch.split(order, BUCKET_BATCHES * batch_size):
        batches += torch.split(chunk[sequences.lengths_of(chunk).argsort(stable=True)], batch_size)
    return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]


def batches(
    sequences: Sequences, seed: int, batch_size: int, batching: str, start: int, stop: int
) -> Iterator[Batch]:
    """The batches of the steps start, ..., stop - 1, epoch after epoch."""
    per_epoch = steps_per_epoch(sequences, batch_size)
    step = start
    while step < stop:
        epoch, first = divmod(step, per_epoch)
        for rows in epoch_order(sequences, seed, epoch, batch_size, batching)[
            first : first + stop - step
        ]:
            yield sequences.batch(rows)
            step += 1


def blocks(
    sequences: Sequences, seed: int, batch_size: int, batching: str, start: int, stop: int
) -> Iterator[Block]:
    """The same, up to BLOCK_STEPS batches at a time."""
    per_epoch = steps_per_epoch(sequences, batch_size)
    step = start
    while step < stop:
        epoch, first = divmod(step, per_epoch)
        order = epoch_order(sequences, seed, epoch, batch_size, batching)[
            first : first + stop - step
        ]
        for batches in _blocks_of(order, sequences):
            rows = torch.cat(batches)
            edges = torch.tensor([0, *map(len, batches)]).cumsum(0)
            parts = (sequences.offsets[rows], sequences.lengths_of(rows), sequences.labels[rows])
            yield Block(sequences.tokens, *parts, edges)
        step += len(order)


def _blocks_of(order: list[Tensor], sequences: Sequences) -> Iterator[list[Tensor]]:
    """Consecutive batches whose sequences, all padded to the longest of them, stay below BLOCK_CELLS; at least one."""
    block: list[Tensor] = []
    longest = rows = 0
    for batch in order:
        longest = max(longest, int(sequences.lengths_of(batch).max()))
        if block and (len(block) == BLOCK_STEPS or (rows + len(batch)) * longest > BLOCK_CELLS):
            yield block
            block, rows, longest = [], 0, int(sequences.lengths_of(batch).max())
        block.append(batch)
        rows += len(batch)
    if block:
        yield block


def evaluation_batches(
    sequences: Sequences, count: int | None, seed: int, batch_tokens: int
) -> Iterator[Batch]:
    """All sequences, or `count` of them, always the same ones; short ones first, so that there is little padding."""
    rows = torch.arange(len(sequences))
    if count is not None and count < len(sequences):
        generator = torch.Generator().manual_seed(mix(seed, "evaluation"))
        rows = torch.randperm(len(sequences), generator=generator)[:count]
    rows = rows[sequences.lengths_of(rows).argsort(stable=True)]
    lengths = sequences.lengths_of(rows).tolist()
    first = 0
    while first < len(rows):
        last = first + 1
        while (
            last < len(rows)
            and (last - first + 1) * lengths[last] <= batch_tokens
            and last - first < 8192
        ):
            last += 1
        yield sequences.batch(rows[first:last])
        first = last


def padding_waste(sequences: Sequences, orders: list[Tensor]) -> float:
    """Share of the cells of the padded rectangles of these batches that hold padding."""
    cells = sum(len(rows) * int(sequences.lengths_of(rows).max()) for rows in orders)
    return 1 - len(sequences.tokens) / cells
