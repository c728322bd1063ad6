"""Generates the synthetic task: sequences of digits, labelled with their sum modulo N.

The batch of step s is a pure function of (seed, split, s), so a run needs no data position to
resume, and evaluation cannot disturb training. Digits are drawn for a block of steps at a time,
keyed by (seed, split, block); step s is a slice of its block.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from rnncls.config import SumModConfig
from rnncls.data.batches import Batch, Block, pack
from rnncls.data.sequences import BLOCK_STEPS, Sequences, evaluation_batch_size, offsets_of
from rnncls.seeds import mix

Split = Literal["train", "val", "test"]

# The digits of up to BLOCK_STEPS steps are drawn together, but no more than this many, which take
# 8 MiB: a block of large batches has fewer steps. Changing either number changes the training data.
BLOCK_TOKENS = 2**20

# An evaluation batch has at least so many rows, however long they are: fewer leave the processor
# idle.
LEAST_ROWS = 64

# Of sequences for a look into a network, so many digits are in memory; so many sequences are drawn
# however long they may be.
MOST_DRAWN = 2**23
LEAST_DRAWN = 8

# With this probability a sequence that repeats digits does so at each of its places.
REPLACED = 0.75

ALL = slice(None)

DigitRows = tuple[Tensor, Tensor, Tensor]  # padded digits (R, T), lengths (R,), labels (R,)


def draw(
    data: SumModConfig,
    rows: int,
    generator: torch.Generator,
    wanted: slice = ALL,
    repeat_share: float = 0.0,
) -> DigitRows:
    """Draw `rows` sequences with uniform digits and lengths, and return the R ones that are wanted.

    Digits are uniform on 0..max_value, lengths on min_length..max_length. A share of the sequences
    repeats digits; see `repeated`.

    Returns: digits (R, max_length) with zeros behind each length, lengths (R,), labels (R,).
    """
    first, last, _ = wanted.indices(rows)
    lengths = torch.randint(data.min_length, data.max_length + 1, (rows,), generator=generator)
    kinds = None
    if repeat_share > 0:
        # Digits are drawn up to the last row that is wanted, so what is drawn beside them has a
        # generator of its own.
        kinds = torch.rand(rows, generator=generator)
        seed = int(torch.randint(2**62, (), generator=generator))
        again = torch.Generator().manual_seed(seed)
    # Row after row: those behind the last one that is wanted need not be drawn.
    digits = torch.randint(data.num_embeddings, (last, data.max_length), generator=generator)
    if kinds is not None:
        digits = repeated(digits, kinds[:last], repeat_share, again)
    if last - first < rows:
        lengths = lengths[first:last].clone()
        digits = digits[first:].clone()

    # Zeros behind each length, so that the sum over a whole row is that of its digits.
    digits *= torch.arange(data.max_length) < lengths.unsqueeze(1)
    return digits, lengths, digits.sum(1) % data.modulus


def repeated(digits: Tensor, kinds: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return digits (R, T) of which some sequences repeat theirs.

    Where the number in [0, 1) of a sequence, `kinds` (R,), is below `share`, each of its digits is
    replaced with probability 3/4. What by depends on the third of `share` that the number is in: by
    0, by the digit before it, or by the last digit but one, if there is one.
    """
    kind = (kinds * 3 / share).long().unsqueeze(1)  # (R, 1): 0, 1 or 2; more repeats nothing
    is_replaced = torch.rand(digits.shape, generator=generator) < REPLACED
    is_replaced[:, 0] = False
    digits = digits.masked_fill(is_replaced & (kind == 0), 0)

    places = torch.arange(digits.shape[1])
    before = _last_own(places.masked_fill(is_replaced & (kind == 1), 0), 1)
    # The second digit has none two places before it.
    is_replaced[:, 1:2] = False
    both = _last_own(before.masked_fill(is_replaced & (kind == 2), 0), 2)
    return digits.gather(1, torch.where(kind == 2, both, before))


def _last_own(places: Tensor, period: int) -> Tensor:
    """Return places (R, T) with that of the last digit of its own for those that are 0.

    It is the last one at a distance that is a multiple of `period`.
    """
    found = places.clone()
    for first in range(period):
        found[:, first::period] = places[:, first::period].cummax(1).values
    return found


def draw_sequences(data: SumModConfig, count: int, generator: torch.Generator) -> Sequences:
    """Draw `count` sequences, but fewer if they may be very long: all have room for the longest."""
    count = min(count, max(LEAST_DRAWN, MOST_DRAWN // data.max_length))
    digits, lengths, labels = draw(data, count, generator)
    is_token = torch.arange(digits.shape[1]) < lengths.unsqueeze(1)
    return Sequences(digits[is_token].int(), offsets_of(lengths), labels)


def filled(data: SumModConfig, batch_size: int) -> float:
    """Return the share of a padded batch of B = `batch_size` sequences that is digits, on average.

    The longest of B uniform lengths is at most l with probability ((l - min + 1) / n)^B for the n
    lengths from min_length on.
    """
    count = data.max_length - data.min_length + 1
    shorter = sum((number / count) ** batch_size for number in range(1, count))
    return (data.min_length + data.max_length) / 2 / (data.max_length - shorter)


def batches(
    data: SumModConfig,
    seed: int,
    split: Split,
    batch_size: int,
    start: int,
    stop: int,
    with_prefix_labels: bool = False,
) -> Iterator[Batch]:
    """Yield the batches of the steps start, ..., stop - 1 of a split."""
    for rows in _draws(data, seed, split, batch_size, start, stop):
        of_steps = (torch.split(part, batch_size) for part in rows)
        for digits, lengths, labels in zip(*of_steps, strict=True):
            # The label of a prefix is that of a sequence: the sum of its digits modulo N.
            prefix_labels = digits.cumsum(1) % data.modulus if with_prefix_labels else None
            yield pack(digits, lengths, labels, prefix_labels)


def blocks(
    data: SumModConfig, seed: int, split: Split, batch_size: int, start: int, stop: int
) -> Iterator[Block]:
    """Yield the same sequences as `batches`, many batches at a time."""
    for digits, lengths, labels in _draws(data, seed, split, batch_size, start, stop):
        starts = torch.arange(0, digits.numel(), data.max_length)
        edges = torch.arange(0, len(labels) + 1, batch_size)
        # A block travels to the engines as a whole; 32 bits per digit halve it.
        digits = digits.int()
        yield Block(digits.flatten(), starts, lengths, labels, edges)

        # Otherwise two blocks would be in memory while the next one is drawn.
        del digits, lengths, labels


def _draws(
    data: SumModConfig, seed: int, split: Split, batch_size: int, start: int, stop: int
) -> Iterator[DigitRows]:
    """Yield the rows of as many steps at a time as are drawn together."""
    # A function of the config alone: where a run resumes must not move the edges of blocks.
    block_steps = max(1, min(BLOCK_STEPS, BLOCK_TOKENS // (batch_size * data.max_length)))
    step = start
    while step < stop:
        block, first = divmod(step, block_steps)
        # All lengths of the block are drawn even if few of its steps are wanted: its digits come
        # from the generator after them.
        last = min(block_steps, first + stop - step)
        wanted = slice(first * batch_size, last * batch_size)

        # A block is the largest thing in memory: no name here may keep it while others use it.
        generator = torch.Generator().manual_seed(mix(seed, split, block))
        repeat_share = data.repeat_share if split == "train" else 0.0
        yield draw(data, block_steps * batch_size, generator, wanted, repeat_share)
        step += last - first


def samples(data: SumModConfig, seed: int, split: Split, count: int) -> Iterator[Batch]:
    """Yield `count` sequences of a split in evaluation batches. The last batch may be smaller."""
    # The lengths are part of the seed: each set of lengths has a sample of its own, whatever else
    # is evaluated.
    generator = torch.Generator().manual_seed(mix(seed, split, data.min_length, data.max_length))
    batch_size = evaluation_batch_size(data.max_length, LEAST_ROWS)
    for first in range(0, count, batch_size):
        yield pack(*draw(data, min(batch_size, count - first), generator))


def num_sequences(data: SumModConfig, length: int) -> int:
    """Return how many different sequences of a length there are."""
    return int(data.num_embeddings**length)


def all_sequences(data: SumModConfig, length: int) -> Iterator[Batch]:
    """Yield every sequence of a length once, in counting order, in evaluation batches."""
    count = num_sequences(data, length)

    # A sequence of digits is a number written in base num_embeddings: count through all of them.
    exponents = torch.arange(length - 1, -1, -1)
    place_values = data.num_embeddings**exponents  # (length,), most significant first

    batch_size = evaluation_batch_size(length, LEAST_ROWS)
    for first in range(0, count, batch_size):
        numbers = torch.arange(first, min(first + batch_size, count))
        digits = numbers.unsqueeze(1) // place_values % data.num_embeddings  # (B, length)
        yield pack(digits, torch.full_like(numbers, length), digits.sum(1) % data.modulus)
