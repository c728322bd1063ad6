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


def collate(sequences: Sequence[Tensor], labels: Tensor) -> Batch:
    """Pad and pack B sequences, each (length,) int64, with their labels (B,). The order is kept.

    >>> batch = collate([torch.tensor([3, 1]), torch.tensor([4, 1, 5])], torch.tensor([4, 0]))
    >>> batch.tokens.data.tolist(), batch.tokens.batch_sizes.tolist()  # time step by time step, longest first
    ([4, 3, 1, 1, 5], [2, 2, 1])

    Raises DataError when a sequence is empty or there is none.
    """
    lengths = torch.tensor([len(sequence) for sequence in sequences], dtype=torch.int64)
    if not len(sequences):
        raise DataError(Problem("a batch without sequences", expected="at least one sequence", id="D2"))
    return pack(pad_sequence(list(sequences), batch_first=True), lengths, labels)


def pack(padded: Tensor, lengths: Tensor, labels: Tensor) -> Batch:
    """Pack rows that are padded already: (B, T) ids of which the first `lengths` of each row count.

    What stands behind a row's length is never read. Raises DataError when a length is 0 or above T.
    """
    shortest, longest = torch.aminmax(lengths)
    if shortest < 1:
        row = int(lengths.argmin())
        expected = "at least one token: the state before the first token says nothing about the sequence"
        raise DataError(Problem(f"sequence {row} of the batch is empty", expected=expected, id="D9"))
    if longest > padded.shape[1]:
        what = f"sequence {int(lengths.argmax())} of the batch has length {int(longest)}"
        raise DataError(Problem(what, expected=f"at most {padded.shape[1]}, the padded width", id="D10"))
    packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)
    return Batch(packed, labels, lengths)
