"""Variable-length sequences -> `Batch`: the only place that pads and packs."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_sequence

from rnncls.errors import DataError, Problem


class Batch(NamedTuple):
    """B labelled sequences. `lengths` stays on the CPU, where packing and reporting need it."""

    tokens: PackedSequence  # of int64 ids; its data is (sum of lengths,)
    labels: Tensor  # (B,) int64
    lengths: Tensor  # (B,) int64, on the CPU

    def to(self, device: torch.device) -> "Batch":
        tokens = self.tokens.to(device)  # type: ignore[arg-type]  # torch's annotation forgets devices
        return Batch(tokens, self.labels.to(device), self.lengths)


class Padded(NamedTuple):
    """B sequences as a rectangle of T columns, longer than all of them; what stands behind a length has no meaning."""

    tokens: Tensor  # (B, T) int64
    lengths: Tensor  # (B,) int64, on the same device

    def to(self, device: torch.device) -> "Padded":
        return Padded(self.tokens.to(device), self.lengths.to(device))


class PaddedBatch(NamedTuple):
    """The same, padded."""

    tokens: Padded
    labels: Tensor  # (B,) int64

    def to(self, device: torch.device) -> "PaddedBatch":
        return PaddedBatch(self.tokens.to(device), self.labels.to(device))


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
        """The batch of one of the steps, packed."""
        return pack(*self._rectangle(step))

    def padded(self, step: int) -> PaddedBatch:
        """The batch of one of the steps, padded to its longest sequence."""
        padded, lengths, labels = self._rectangle(step)
        return PaddedBatch(Padded(padded, lengths), labels)

    def _rectangle(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        first, last = self.edges[step : step + 2].tolist()
        lengths = self.lengths[first:last]
        return (
            rectangle(self.tokens, self.starts[first:last], lengths),
            lengths,
            self.labels[first:last],
        )


def rectangle(tokens: Tensor, starts: Tensor, lengths: Tensor) -> Tensor:
    """Sequences that lie somewhere in one tensor, as rows of (B, T) int64; what is behind a length has no meaning."""
    positions = starts.unsqueeze(1) + torch.arange(int(lengths.max()))
    return tokens[positions.clamp_(max=len(tokens) - 1)].long()


def collate(sequences: Sequence[Tensor], labels: Tensor) -> Batch:
    """Pad and pack B sequences, each (length,) int64, with their labels (B,). The order is kept.

    >>> batch = collate([torch.tensor([3, 1]), torch.tensor([4, 1, 5])], torch.tensor([4, 0]))
    >>> batch.tokens.data.tolist(), batch.tokens.batch_sizes.tolist()  # time step by time step, longest first
    ([4, 3, 1, 1, 5], [2, 2, 1])

    Raises DataError when a sequence is empty or there is none.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    if not len(sequences):
        raise DataError(
            Problem("a batch without sequences", expected="at least one sequence", id="D2")
        )
    return pack(pad_sequence(list(sequences), batch_first=True), lengths, labels)


def pack(padded: Tensor, lengths: Tensor, labels: Tensor) -> Batch:
    """Pack rows that are padded already: (B, T) ids of which the first `lengths` of each row count.

    What stands behind a row's length is never read. Raises DataError when a length is 0 or above T.
    """
    shortest, longest = torch.aminmax(lengths)
    if shortest < 1:
        row = int(lengths.argmin())
        expected = (
            "at least one token: the state before the first token says nothing about the sequence"
        )
        raise DataError(
            Problem(f"sequence {row} of the batch is empty", expected=expected, id="D9")
        )
    if longest > padded.shape[1]:
        what = f"sequence {int(lengths.argmax())} of the batch has length {int(longest)}"
        raise DataError(
            Problem(what, expected=f"at most {padded.shape[1]}, the padded width", id="D10")
        )
    packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
    return Batch(packed, labels, lengths)
