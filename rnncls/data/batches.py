"""Defines the batches of sequences that models train on: packed, padded, or a block of many steps.

`pack` makes the packed batches and `rectangle` the padded ones. Two engines lay out the sequences
of a `Block` themselves: the captured graphs pad them on the GPU, the compiled program packs them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_sequence

from rnncls.errors import DataError, Problem


class Batch(NamedTuple):
    """B labelled sequences, packed."""

    tokens: PackedSequence  # of int64 ids; its data is (sum of lengths,)
    labels: Tensor  # (B,) int64
    lengths: Tensor  # (B,) int64, always on the CPU, where packing and reporting need it

    # The label of the prefix that ends at each token, (sum of lengths,) int64, in the order of the
    # tokens' data. Only the training batches of `train.objective: prefix` have them.
    prefix_labels: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device, except for the lengths, which stay on the CPU."""
        tokens = self.tokens.to(device)  # type: ignore[arg-type]  # torch's stub omits devices
        prefix_labels = self.prefix_labels
        if prefix_labels is not None:
            prefix_labels = prefix_labels.to(device)
        return Batch(tokens, self.labels.to(device), self.lengths, prefix_labels)

    def share(self, number: int, of: int) -> "Batch | None":
        """Return every `of`-th sequence from this number on, in their order; None if there is none.

        The batch must be on the CPU.
        """
        lengths = self.lengths[number::of]
        if not len(lengths):
            return None

        # By rank, the place in the order of packing: which sequence it is, and whether it is kept.
        sizes = self.tokens.batch_sizes
        rows = self.tokens.sorted_indices
        if rows is None:
            rows = torch.arange(len(self.lengths))
        is_kept = rows % of == number  # (B,)
        order = torch.div(rows[is_kept], of, rounding_mode="floor")

        # By packed row. Longer sequences stand first at each time step, also among those kept.
        kept = is_kept[ranks_of(sizes)]
        counts = torch.cat([torch.zeros(1, dtype=torch.int64), is_kept.cumsum(0)])[sizes]
        tokens = PackedSequence(
            self.tokens.data[kept], counts[: int(lengths.max())], order, order.argsort()
        )
        prefix_labels = self.prefix_labels
        if prefix_labels is not None:
            prefix_labels = prefix_labels[kept]
        return Batch(tokens, self.labels[number::of], lengths, prefix_labels)


def ranks_of(batch_sizes: Tensor) -> Tensor:
    """Return whose each packed row is, (S,): the first batch_sizes[t] sequences at time step t.

    >>> ranks_of(torch.tensor([3, 2])).tolist()
    [0, 1, 2, 0, 1]
    """
    first_rows = batch_sizes.cumsum(0) - batch_sizes
    return torch.arange(int(batch_sizes.sum())) - first_rows.repeat_interleave(batch_sizes)


class Padded(NamedTuple):
    """B sequences as the rows of a rectangle; what stands behind a row's length has no meaning."""

    tokens: Tensor  # (B, T) int64, T at least the largest length
    lengths: Tensor  # (B,) int64, on the same device

    def to(self, device: torch.device) -> "Padded":
        return Padded(self.tokens.to(device), self.lengths.to(device))


class PaddedBatch(NamedTuple):
    """B labelled sequences, padded."""

    tokens: Padded
    labels: Tensor  # (B,) int64

    def to(self, device: torch.device) -> "PaddedBatch":
        return PaddedBatch(self.tokens.to(device), self.labels.to(device))

    def share(self, number: int, of: int) -> "PaddedBatch | None":
        """Return every `of`-th sequence from this number on; None if there is none."""
        lengths = self.tokens.lengths[number::of]
        if not len(lengths):
            return None
        # No wider than its own longest sequence.
        tokens = self.tokens.tokens[number::of, : int(lengths.max())]
        return PaddedBatch(Padded(tokens, lengths), self.labels[number::of])


class Block(NamedTuple):
    """The R sequences of K steps, neither padded nor packed. All on the CPU."""

    tokens: Tensor  # (L,) int32; sequence i is tokens[starts[i]:starts[i] + lengths[i]]
    starts: Tensor  # (R,) int64
    lengths: Tensor  # (R,) int64
    labels: Tensor  # (R,) int64
    edges: Tensor  # (K + 1,) int64; step k has the sequences edges[k] to edges[k + 1]

    @property
    def num_steps(self) -> int:
        return len(self.edges) - 1

    def batch(self, step: int) -> Batch:
        """Return the batch of one of the steps, packed."""
        return pack(*self._padded_rows(step))

    def padded(self, step: int) -> PaddedBatch:
        """Return the batch of one of the steps, padded to its longest sequence."""
        padded, lengths, labels = self._padded_rows(step)
        return PaddedBatch(Padded(padded, lengths), labels)

    def _padded_rows(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens (B, T), lengths (B,) and labels (B,) of a step."""
        # Each step is padded to its own longest sequence, not to that of the block.
        first, last = self.edges[step : step + 2].tolist()
        lengths = self.lengths[first:last]
        padded = rectangle(self.tokens, self.starts[first:last], lengths)
        return padded, lengths, self.labels[first:last]


def rectangle(tokens: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Return sequences that lie anywhere in `tokens` (L,) as the rows of a tensor (B, T) of int64.

    Row i is tokens[starts[i]:starts[i] + lengths[i]]; what stands behind its length has no meaning.
    """
    # (B, T): one gather instead of a copy for each sequence.
    positions = starts.unsqueeze(1) + torch.arange(int(lengths.max()))

    # A short sequence at the end of `tokens` would be read beyond it; its last token is as good.
    positions.clamp_(max=len(tokens) - 1)
    return tokens[positions].long()


def collate(sequences: Sequence[Tensor], labels: Tensor) -> Batch:
    """Pad and pack B sequences, each (length,) int64, with their labels (B,). The order is kept.

    The packed data goes time step by time step, longest sequence first:

    >>> batch = collate([torch.tensor([3, 1]), torch.tensor([4, 1, 5])], torch.tensor([4, 0]))
    >>> batch.tokens.data.tolist(), batch.tokens.batch_sizes.tolist()
    ([4, 3, 1, 1, 5], [2, 2, 1])

    Raises: DataError if a sequence is empty or there is none.
    """
    # A mistake in the data, not in the program: no RuntimeError of pad_sequence.
    if not len(sequences):
        raise DataError(
            Problem("a batch without sequences", expected="at least one sequence", id="D2")
        )
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    return pack(pad_sequence(list(sequences), batch_first=True), lengths, labels)


def pack(
    padded: Tensor, lengths: Tensor, labels: Tensor, prefix_labels: Tensor | None = None
) -> Batch:
    """Pack rows (B, T) of ids, of which the first `lengths` (B,) count, with their labels (B,).

    `prefix_labels` (B, T) has the label of the prefix that ends at each token, if they are wanted.
    What stands behind a row's length is never read.

    Raises: DataError if a length is 0 or above T.
    """
    # Checked here, because PyTorch's messages about lengths do not say which sequence is meant.
    shortest, longest = torch.aminmax(lengths)
    if shortest < 1:
        raise _empty_sequence(int(lengths.argmin()))
    if longest > padded.shape[1]:
        what = f"sequence {int(lengths.argmax())} of the batch has length {int(longest)}"
        expected = f"at most {padded.shape[1]}, the padded width"
        raise DataError(Problem(what, expected=expected, id="D10"))

    # Packing sorts by length, longest first, and remembers the order: results come back in it.
    packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
    if prefix_labels is None:
        return Batch(packed, labels, lengths)

    # Sorted in the same way, since the lengths are the same.
    of_prefixes = pack_padded_sequence(
        prefix_labels, lengths, batch_first=True, enforce_sorted=False
    )
    return Batch(packed, labels, lengths, of_prefixes.data)


def _empty_sequence(row: int) -> DataError:
    expected = "at least one token: the initial state says nothing about the sequence"
    return DataError(Problem(f"sequence {row} of the batch is empty", expected=expected, id="D9"))
