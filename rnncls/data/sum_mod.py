"""The synthetic task: digits, labelled with their sum mod N.

The batch of step s is a pure function of (seed, split, s), so a run needs no data position to resume and
evaluation cannot disturb training. Drawing is done for a block of steps at a time, keyed by (seed, split,
block); step s is a slice of its block.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from rnncls.config import SumModConfig
from rnncls.data.batches import Batch, Block, pack
from rnncls.seeds import mix

Split = Literal["train", "val", "test"]

BLOCK_STEPS = 256
BLOCK_TOKENS = 2**20  # 8 MiB; a block of large batches has fewer steps
LEAST_ROWS = 64  # of an evaluation batch, however long they are: fewer leave the processor idle
BATCH_TOKENS = (
    2**15
)  # an evaluation batch that stays in cache. Changing it changes which samples are drawn

Rows = tuple[Tensor, Tensor, Tensor]  # padded (R, T), lengths (R,), labels (R,)


def draw(data: SumModConfig, rows: int, generator: torch.Generator) -> Rows:
    """`rows` random sequences: digits uniform on 0..max_value, lengths uniform on min_length..max_length.

    Returns padded digits (rows, max_length) with zeros behind each length, lengths (rows,), labels (rows,).
    """
    lengths = torch.randint(data.min_length, data.max_length + 1, (rows,), generator=generator)
    digits = torch.randint(data.num_embeddings, (rows, data.max_length), generator=generator)
    digits *= torch.arange(data.max_length) < lengths.unsqueeze(1)
    return digits, lengths, digits.sum(1) % data.modulus


def batches(
    data: SumModConfig, seed: int, split: Split, batch_size: int, start: int, stop: int
) -> Iterator[Batch]:
    """The batches of the steps start, start + 1, ..., stop - 1 of a split, `batch_size` sequences each."""
    for rows in _draws(data, seed, split, batch_size, start, stop):
        for digits, lengths, labels in zip(
            *(torch.split(part, batch_size) for part in rows), strict=True
        ):
            yield pack(digits, lengths, labels)


def blocks(
    data: SumModConfig, seed: int, split: Split, batch_size: int, start: int, stop: int
) -> Iterator[Block]:
    """The same, many batches at a time."""
    for digits, lengths, labels in _draws(data, seed, split, batch_size, start, stop):
        starts, edges = (
            torch.arange(0, digits.numel(), data.max_length),
            torch.arange(0, len(labels) + 1, batch_size),
        )
        digits = digits.int()
        yield Block(digits.flatten(), starts, lengths, labels, edges)
        del digits, lengths, labels


def _draws(
    data: SumModConfig, seed: int, split: Split, batch_size: int, start: int, stop: int
) -> Iterator[Rows]:
    """The rows of as many steps at a time as are drawn together."""
    block_steps = max(1, min(BLOCK_STEPS, BLOCK_TOKENS // (batch_size * data.max_length)))
    step = start
    while step < stop:
        block, first = divmod(step, block_steps)
        generator = torch.Generator().manual_seed(mix(seed, split, block))
        last = min(block_steps, first + stop - step)
        wanted = slice(first * batch_size, last * batch_size)
        # nothing is kept here while others work on it: a block is the largest thing in memory
        yield tuple(part[wanted] for part in draw(data, block_steps * batch_size, generator))  # type: ignore[misc]
        step += last - first


def samples(data: SumModConfig, seed: int, split: Split, count: int) -> Iterator[Batch]:
    """`count` sequences of a split, in batches that suit evaluation. The last batch may be smaller."""
    generator = torch.Generator().manual_seed(mix(seed, split, data.min_length, data.max_length))
    batch_size = _evaluation_batch_size(data.max_length)
    for first in range(0, count, batch_size):
        yield pack(*draw(data, min(batch_size, count - first), generator))


def num_sequences(data: SumModConfig, length: int) -> int:
    """How many different sequences of a length there are."""
    return int(data.num_embeddings**length)


def all_sequences(data: SumModConfig, length: int) -> Iterator[Batch]:
    """Every sequence of a length once, in counting order."""
    count = num_sequences(data, length)
    places = data.num_embeddings ** torch.arange(
        length - 1, -1, -1
    )  # (length,), most significant first
    batch_size = _evaluation_batch_size(length)
    for first in range(0, count, batch_size):
        numbers = torch.arange(first, min(first + batch_size, count))
        digits = numbers.unsqueeze(1) // places % data.num_embeddings  # (B, length)
        yield pack(digits, torch.full_like(numbers, length), digits.sum(1) % data.modulus)


def _evaluation_batch_size(length: int) -> int:
    return max(LEAST_ROWS, min(8192, BATCH_TOKENS // length))
