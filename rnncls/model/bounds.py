"""How many tokens a probe may look at: the states of all their steps are in memory together."""

from itertools import pairwise

import torch
from torch import Tensor

from rnncls.data.sequences import Sequences, offsets_of
from rnncls.model.classifier import RNNClassifier


def bounded(sequences: Sequences, most_steps: int, most_tokens: int) -> Sequences:
    """Return the last tokens of the first sequences, within both bounds; of one at least.

    `most_steps` is for each sequence, `most_tokens` for all of them together.
    """
    kept: list[Tensor] = []
    num_tokens = 0
    for start, end in pairwise(sequences.offsets.tolist()):
        tokens = sequences.tokens[max(start, end - most_steps) : end]
        num_tokens += len(tokens)
        if kept and num_tokens > most_tokens:
            break
        kept.append(tokens)

    offsets = offsets_of(torch.tensor(list(map(len, kept))))
    return Sequences(torch.cat(kept), offsets, sequences.labels[: len(kept)])


def bytes_per_token(network: RNNClassifier) -> int:
    """Return about how much is kept of each token until its gradient is known."""
    rnn = network.rnn
    of_input = network.embedding.embedding_dim
    if not network.is_recurrent:
        return 8 * of_input
    # Of each direction of a layer: its gates; h, c, their sums and gradients. In float64.
    gates = rnn.get_parameter("weight_hh_l0").shape[0]
    of_direction = 2 * gates + 8 * rnn.hidden_size
    return 8 * (of_input + rnn.num_layers * network.num_directions * of_direction)
