"""Runs a model on one sequence of up to millions of tokens, with the states of a few in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.data.sequences import BATCH_TOKENS
from rnncls.errors import Problem
from rnncls.model.classifier import RNNClassifier

PIECE_STEPS = 2**13  # time steps at a time

# What the states of a sequence may take that are in memory together.
MOST_STATE_BYTES = 3 * 2**27


def is_streamed(network: RNNClassifier, ids: Sequence[Sequence[int]]) -> bool:
    """Return whether a batch is one sequence whose states are not to be in memory together.

    Two directions need the states of a whole layer.
    """
    is_one = len(ids) == 1 and len(ids[0]) > BATCH_TOKENS
    return is_one and network.num_directions == 1


def too_long_for(network: RNNClassifier, length: int) -> Problem | None:
    """Return the problem of a sequence whose states do not fit in memory, None if they do.

    Two directions need the states of a whole layer.
    """
    if network.num_directions == 1:
        return None
    rnn = network.rnn
    # Of each step: its embedding; its gates, the states of both directions, and those below.
    of_step = network.embedding.embedding_dim
    of_step += rnn.get_parameter("weight_hh_l0").shape[0] + 6 * rnn.hidden_size
    most = MOST_STATE_BYTES // (4 * of_step)
    if length <= most:
        return None
    return Problem(
        "a sequence too long for a model of two directions",
        expected=f"at most {most:,} tokens: shorter lines, or a run with data.max_length",
        found=f"{length:,} tokens",
        id="D13",
    )


def logits_of_long(network: RNNClassifier, ids: Sequence[int]) -> Tensor:
    """Return the logits (1, N) of one sequence (T,), up to rounding those of `network` itself."""
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    state: Any = None
    for part in torch.split(tokens, PIECE_STEPS):
        # Packed: then the module runs as it does for any other sequence. One sequence in each step.
        embedded = network.embedding(part.to(network.device))
        steps = PackedSequence(embedded, torch.ones(len(part), dtype=torch.int64))
        _, state = network.rnn(steps, state)

    # (num_layers, 1, H); the LSTM has its cell state as well.
    hidden = state[0] if isinstance(state, tuple) else state
    logits: Tensor = network.head(hidden[-1])
    return logits
