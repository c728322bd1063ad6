"""The prefixes of sequences: which of them are different, and what their tokens sum up to.

L tokens in all stand in `Sequences.tokens`, and each is the last one of a prefix.
"""

from itertools import pairwise

import torch
from torch import Tensor

from rnncls.data.sequences import Sequences, offsets_of


def beginnings(sequences: Sequences, most: int) -> Sequences:
    """Return the first `most` tokens of each sequence; the labels stay those of the whole."""
    lengths = sequences.lengths
    if int(lengths.max()) <= most:
        return sequences

    within = torch.arange(len(sequences.tokens))
    within -= sequences.offsets[:-1].repeat_interleave(lengths)
    offsets = offsets_of(lengths.clamp(max=most))
    return Sequences(sequences.tokens[within < most], offsets, sequences.labels)


def distinct_prefixes(sequences: Sequences) -> Tensor:
    """Return the places where different prefixes end, (P,), each prefix once.

    A place is that of a token in `sequences.tokens`.
    """
    # Each prefix has a number: a prefix is the one before it and one more token.
    number_of: dict[tuple[int, int], int] = {}
    places = []
    tokens = sequences.tokens.tolist()
    for first, last in pairwise(sequences.offsets.tolist()):
        prefix = 0
        for place in range(first, last):
            longer = (prefix, tokens[place])
            if longer not in number_of:
                number_of[longer] = len(number_of) + 1
                places.append(place)
            prefix = number_of[longer]
    return torch.tensor(places, dtype=torch.int64)


def running_sums(sequences: Sequences, modulus: int) -> Tensor:
    """Return the sum of each token and those before it in its sequence, modulo N, (L,)."""
    sums = sequences.tokens.long().cumsum(0)
    before = (sums - sequences.tokens)[sequences.offsets[:-1]]
    return (sums - before.repeat_interleave(sequences.lengths)) % modulus
