"""Runs a model on lists of ids, however many and however long they are."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.data import pack
from rnncls.data.sequences import cut_for_evaluation
from rnncls.model.classifier import RNNClassifier

# A model may have a million classes: so many logits are in memory together, 64 MiB. What has less
# than 32 MiB, glibc may keep within its heap, where each piece leaves a hole that is too small for
# the next one: a trace of 60,000 tokens and 9,000 classes took 2.7 GB in pieces of 16 MiB, and
# 0.4 GB in these.
MOST_LOGITS = 2**24


def rows_together(network: RNNClassifier, most_logits: int = MOST_LOGITS) -> int:
    """Return of how many sequences at a time the logits may be in memory; of one at least."""
    return max(1, most_logits // network.head.out_features)


def logits_of(network: RNNClassifier, ids: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits (B, N) of B sequences, which are run together. None of them is empty."""
    tokens = packed(ids).to(network.device)  # type: ignore[arg-type]  # torch's stub omits devices
    logits: Tensor = network(tokens)
    return logits


def logits_in_batches(network: RNNClassifier, ids: Sequence[Sequence[int]]) -> Tensor:
    """Return the logits (R, N) of any number of sequences whose lengths rise."""
    # Cut as an evaluation is, which keeps a batch of long sequences small.
    batches = cut_for_evaluation(list(map(len, ids)))
    return torch.cat([logits_of(network, ids[first:last]) for first, last in batches])


def likeliest(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Return the `top_k` likeliest classes of logits (R, N) and their probabilities, (R, top_k).

    The best comes first. Of classes that are equally likely the first does, as in an evaluation.
    """
    # Not topk(), which promises no such order, and not by probabilities, which are rounded: there,
    # classes are equal that an evaluation tells apart.
    if top_k == 1:
        classes = logits.argmax(1, keepdim=True)
    else:
        classes = logits.sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    return classes, logits.softmax(1).gather(1, classes)


def packed(ids: Sequence[Sequence[int]]) -> PackedSequence:
    """Return B sequences as a batch on the CPU. None of them is empty."""
    # One alone is packed as it is: it may have millions of tokens.
    if len(ids) == 1:
        return packed_alone(torch.from_numpy(np.asarray(ids[0], dtype=np.int64)))

    # One array of all ids, (S,), from which all rows are filled, (B, T): making a tensor of each
    # list takes longer.
    tokens = np.fromiter(chain.from_iterable(ids), dtype=np.int64)
    lengths = torch.tensor([len(sequence) for sequence in ids])
    padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.int64)
    padded[torch.arange(padded.shape[1]) < lengths[:, None]] = torch.from_numpy(tokens)

    # Labels are required and not read.
    return pack(padded, lengths, labels=torch.zeros(len(ids))).tokens


def packed_alone(tokens: Tensor) -> PackedSequence:
    """Return one sequence of ids (T,) as a batch, on their device."""
    return PackedSequence(tokens, torch.ones(len(tokens), dtype=torch.int64))
