"""Runs a model on lists of ids, however many and however long they are."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from rnncls.data import Batch, pack
from rnncls.data.sequences import cut_for_evaluation
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.long_sequences import is_streamed, logits_of_long


def logits_of(network: RNNClassifier, ids: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits (B, N) of B sequences, which are run together. None of them is empty."""
    if is_streamed(network, ids):
        return logits_of_long(network, ids[0])
    logits: Tensor = network(_packed(ids).to(network.device).tokens)
    return logits


def logits_in_batches(network: RNNClassifier, ids: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits (R, N) of any number of sequences whose lengths rise."""
    # Cut as an evaluation is, which keeps a batch of long sequences small.
    batches = cut_for_evaluation(list(map(len, ids)))
    return torch.cat([logits_of(network, ids[first:last]) for first, last in batches])


def _packed(ids: Sequence[Sequence[int]]) -> Batch:
    """Return B sequences as a batch."""
    # One array of all ids, (S,), from which all rows are filled, (B, T): making a tensor of each
    # list takes longer.
    tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int64)
    lengths = torch.tensor([len(sequence) for sequence in ids])
    padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.int64)
    padded[torch.arange(padded.shape[1]) < lengths[:, None]] = torch.from_numpy(tokens)

    # Labels are required and not read.
    return pack(padded, lengths, labels=torch.zeros(len(ids)))
