"""Holds labelled sequences in memory and cuts them into batches.

There are batches for the steps of an epoch, for many steps at once, and for an evaluation.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.data.batches import Batch, Block, pack, rectangle
from rnncls.seeds import mix

# The most batches that are prepared together, and the most cells that they may have if all their
# sequences are padded to the longest, which an engine may do: 32 MiB of int64. sum_mod draws the
# digits of as many steps together: changing BLOCK_STEPS changes its training data.
BLOCK_STEPS = 256
BLOCK_CELLS = 2**22

BUCKET_BATCHES = 50  # batches whose sequences are sorted by length together

# An evaluation batch of this many padded tokens stays in cache. sum_mod draws one evaluation batch
# after another: changing these numbers changes which sequences it evaluates on.
BATCH_TOKENS = 2**15
MOST_ROWS = 8192


class Sequences(NamedTuple):
    """R labelled sequences of L tokens in all."""

    tokens: Tensor  # (L,) int32
    offsets: Tensor  # (R + 1,) int64: sequence i is tokens[offsets[i]:offsets[i + 1]]
    labels: Tensor  # (R,) int64

    # The label of the prefix that ends at each token, (L,) int32; None where nobody needs them.
    prefix_labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> Tensor:
        """Lengths of all sequences, (R,) int64."""
        return self.offsets.diff()

    def batch(self, rows: Tensor) -> Batch:
        """Return the sequences with the numbers `rows` (B,), packed."""
        lengths = self.lengths_of(rows)
        starts = self.offsets[rows]
        padded = rectangle(self.tokens, starts, lengths)
        prefix_labels = None
        if self.prefix_labels is not None:
            prefix_labels = rectangle(self.prefix_labels, starts, lengths)
        return pack(padded, lengths, self.labels[rows], prefix_labels)

    def select(self, rows: Tensor) -> "Sequences":
        """Return the sequences with the numbers `rows` (B,) alone, in that order."""
        lengths = self.lengths_of(rows)
        offsets = offsets_of(lengths)

        # Token k of the selection stands so far from the beginning of its sequence.
        within = torch.arange(int(offsets[-1])) - offsets[:-1].repeat_interleave(lengths)
        places = self.offsets[rows].repeat_interleave(lengths) + within
        prefix_labels = None if self.prefix_labels is None else self.prefix_labels[places]
        return Sequences(self.tokens[places], offsets, self.labels[rows], prefix_labels)

    def without_prefix_labels(self) -> "Sequences":
        """Return the same sequences, of whose prefixes nothing is known."""
        return Sequences(self.tokens, self.offsets, self.labels)

    def class_counts(self, num_classes: int) -> Tensor:
        """Return how much each class counts in a loss over these sequences, (num_classes,).

        A sequence counts 1. With prefix labels, each of its prefixes has an equal part of that, in
        float64.
        """
        if self.prefix_labels is None:
            return torch.bincount(self.labels, minlength=num_classes)
        lengths = self.lengths
        parts = (1 / lengths.double()).repeat_interleave(lengths)
        return torch.bincount(self.prefix_labels, weights=parts, minlength=num_classes)

    def lengths_of(self, rows: Tensor) -> Tensor:
        """Return the lengths (B,) of the sequences with the numbers `rows` (B,)."""
        return self.offsets[rows + 1] - self.offsets[rows]


def offsets_of(lengths: Tensor) -> Tensor:
    """Return where sequences of these lengths (R,) begin and the last one ends, (R + 1,) int64."""
    return torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])


def from_batches(batches: Iterable[Batch]) -> Sequences:
    """Return the sequences of batches, of which there is at least one, in their order."""
    tokens = []
    lengths = []
    labels = []
    for batch in batches:
        padded, _ = pad_packed_sequence(batch.tokens, batch_first=True)  # (B, T)
        is_token = torch.arange(padded.shape[1]) < batch.lengths.unsqueeze(1)
        tokens.append(padded[is_token].int())
        lengths.append(batch.lengths)
        labels.append(batch.labels)
    return Sequences(torch.cat(tokens), offsets_of(torch.cat(lengths)), torch.cat(labels))


def steps_per_epoch(sequences: Sequences, batch_size: int) -> int:
    """Return the number of steps in which every sequence is used once.

    The last batch of an epoch may be smaller than the others.
    """
    # Rounded up.
    return -(-len(sequences) // batch_size)


def epoch_order(
    sequences: Sequences, seed: int, epoch: int, batch_size: int, batching: str
) -> list[Tensor]:
    """Return the rows of each batch of an epoch: a function of (seed, epoch).

    shuffle: all rows in random order, cut into batches. bucket: of the shuffled rows, those of 50
    batches at a time are sorted by length and cut into batches; then the batches are shuffled.
    """
    # A generator of its own for each epoch: a run can resume in any of them.
    generator = torch.Generator().manual_seed(mix(seed, "epoch", epoch))
    order = torch.randperm(len(sequences), generator=generator)
    if batching == "shuffle":
        return list(torch.split(order, batch_size))

    # Sorting within a bucket of many batches keeps the order random from epoch to epoch.
    batches: list[Tensor] = []
    for bucket in torch.split(order, BUCKET_BATCHES * batch_size):
        by_length = bucket[sequences.lengths_of(bucket).argsort(stable=True)]
        batches += torch.split(by_length, batch_size)

    # Without this, every bucket would go from short sequences to long ones.
    shuffled = torch.randperm(len(batches), generator=generator)
    return [batches[index] for index in shuffled.tolist()]


def batches(
    sequences: Sequences, seed: int, batch_size: int, batching: str, start: int, stop: int
) -> Iterator[Batch]:
    """Yield the batches of the steps start, ..., stop - 1, epoch after epoch."""
    for order in _orders(sequences, seed, batch_size, batching, start, stop):
        for rows in order:
            yield sequences.batch(rows)


def blocks(
    sequences: Sequences, seed: int, batch_size: int, batching: str, start: int, stop: int
) -> Iterator[Block]:
    """Yield the same sequences as `batches`, up to BLOCK_STEPS batches at a time."""
    for order in _orders(sequences, seed, batch_size, batching, start, stop):
        for batches in _cut_blocks(order, sequences):
            # The tokens are those of the whole split: a block only says where its sequences begin.
            rows = torch.cat(batches)
            edges = torch.tensor([0, *map(len, batches)]).cumsum(0)
            yield Block(
                sequences.tokens,
                sequences.offsets[rows],
                sequences.lengths_of(rows),
                sequences.labels[rows],
                edges,
            )


def _orders(
    sequences: Sequences, seed: int, batch_size: int, batching: str, start: int, stop: int
) -> Iterator[list[Tensor]]:
    """Yield the rows of each batch of the steps start, ..., stop - 1, in one list per epoch."""
    per_epoch = steps_per_epoch(sequences, batch_size)
    step = start
    while step < stop:
        epoch, first = divmod(step, per_epoch)
        # A whole epoch is ordered even for one step, so that the order does not depend on `start`.
        order = epoch_order(sequences, seed, epoch, batch_size, batching)
        order = order[first : first + stop - step]
        yield order
        step += len(order)


def _cut_blocks(order: list[Tensor], sequences: Sequences) -> Iterator[list[Tensor]]:
    """Yield consecutive batches as blocks.

    A block has at most BLOCK_STEPS batches and, all sequences padded to the longest of them, at
    most BLOCK_CELLS cells; but at least one batch.
    """
    block: list[Tensor] = []
    num_rows = 0
    longest = 0
    for batch in order:
        longest_of_batch = int(sequences.lengths_of(batch).max())
        longest = max(longest, longest_of_batch)

        # As if this batch were in the block: one long sequence widens every row before it.
        cells = (num_rows + len(batch)) * longest
        if block and (len(block) == BLOCK_STEPS or cells > BLOCK_CELLS):
            yield block
            block = []
            num_rows = 0
            longest = longest_of_batch

        block.append(batch)
        num_rows += len(batch)
    if block:
        yield block


def evaluation_batches(sequences: Sequences, count: int | None, seed: int) -> Iterator[Batch]:
    """Yield all sequences, or `count` of them, always the same ones, in batches for evaluation.

    Short sequences come first, so that there is little padding.
    """
    rows = evaluation_rows(sequences, count, seed)
    for part in rows_of_batches(sequences, rows):
        yield sequences.batch(part)


def evaluation_rows(sequences: Sequences, count: int | None, seed: int) -> Tensor:
    """Return the numbers of all sequences, or of `count` of them, always the same ones.

    Fewer of them are the first ones of more.
    """
    if count is None or count >= len(sequences):
        return torch.arange(len(sequences))
    generator = torch.Generator().manual_seed(mix(seed, "evaluation"))
    return torch.randperm(len(sequences), generator=generator)[:count]


def rows_of_batches(sequences: Sequences, rows: Tensor) -> Iterator[Tensor]:
    """Yield the rows of each evaluation batch, short sequences first; `rows` (R,) are all of them.

    The rows are numbers of sequences, as in `Sequences.batch`.
    """
    # Stable: equal lengths keep their order, on any machine.
    rows = rows[sequences.lengths_of(rows).argsort(stable=True)]
    for first, last in cut_for_evaluation(sequences.lengths_of(rows).tolist()):
        yield rows[first:last]


def cut_for_evaluation(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the bounds first:last of evaluation batches of sequences with these rising lengths."""
    first = 0
    for index, length in enumerate(lengths):
        # Lengths rise, so the one at `index` would be the longest of the batch.
        if index - first >= evaluation_batch_size(length):
            yield first, index
            first = index
    if first < len(lengths):
        yield first, len(lengths)


def evaluation_batch_size(longest: int, least: int = 1) -> int:
    """Return how many sequences make an evaluation batch whose longest one has this length."""
    # An empty sequence is refused where batches are packed, with an id: no division by 0 here.
    rows = BATCH_TOKENS // max(1, longest)
    return max(least, min(MOST_ROWS, rows))


def padding_waste(sequences: Sequences, order: list[Tensor]) -> float:
    """Return the share of padding in the padded batches of an epoch with this order."""
    cells = sum(len(rows) * int(sequences.lengths_of(rows).max()) for rows in order)
    return 1 - len(sequences.tokens) / cells
