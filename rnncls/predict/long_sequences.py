"""Predicts sequences of millions of tokens in little more memory than their text takes.

A token that is a Python object of its own takes ten times as much as its characters, and the
states of all its time steps a hundred times: here, both are made piece by piece.
"""

import re
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.config import FilesConfig
from rnncls.data import Vocabulary
from rnncls.data.cells import SEPARATOR, tokens_of
from rnncls.data.sequences import BATCH_TOKENS
from rnncls.data.vocabulary import UNKNOWN_ID, truncate
from rnncls.errors import Problem
from rnncls.model.classifier import RNNClassifier

PIECE = 2**18  # characters of a text, or items of a list
PIECE_STEPS = 2**13  # as many as nn.RNN runs at a time by itself

# What the states of a sequence may take that are in memory together.
MOST_STATE_BYTES = 3 * 2**27

NO_ID = -1  # of a token that the model does not know and has no <unk> for

_SPACE = re.compile(r"\s")

# Commas and brackets mean something in a list of ids, which depends on all of it.
_IDS_ALONE = re.compile(r"[0-9\s]*", re.ASCII)


def is_long(value: Any) -> bool:
    """Return whether a text, a list, or one of several of them is too long to be split at once."""
    if isinstance(value, tuple):
        return any(map(is_long, value))
    return isinstance(value, str | list) and len(value) > PIECE


class UnknownToken(Exception):
    """A token that a model without <unk> does not know, and its position, from 0."""

    def __init__(self, token: str, position: int) -> None:
        super().__init__(token)
        self.token = token
        self.position = position


def ids_of_long(
    value: Any, data: FilesConfig, vocabulary: Vocabulary
) -> "array[int] | Problem | None":
    """Return the ids of a long sequence, truncated as in training, or the problem.

    None if it can only be read as a whole; then it may be bad. Raises: UnknownToken.
    """
    if data.tokens == "ids" and isinstance(value, str) and not _IDS_ALONE.fullmatch(value):
        return None

    missing = UNKNOWN_ID if vocabulary.has_unknown else NO_ID
    ids = array("i")
    num_separators = len(value) - 1 if isinstance(value, tuple) else 0
    for tokens in _pieces_of(value, data.tokens):
        if isinstance(tokens, Problem):
            return None
        ids.extend(map(vocabulary.index.get, tokens, repeat(missing)))
    if len(ids) <= num_separators:
        return None

    kept = truncate(ids, data)
    if not isinstance(kept, Problem) and NO_ID in kept:
        # Of the last tokens, with `truncate: tail`.
        before = len(ids) - len(kept) if data.truncate == "tail" else 0
        position = before + kept.index(NO_ID)
        pieces = (part for part in _pieces_of(value, data.tokens) if not isinstance(part, Problem))
        token = next(islice(chain.from_iterable(pieces), position, None))
        raise UnknownToken(token, position)
    return kept


def _pieces_of(value: Any, kind: str) -> Iterator[list[str] | Problem]:
    """Yield the tokens of a text, a list or several of them piece by piece, or a problem."""
    if isinstance(value, tuple):
        for position, part in enumerate(value):
            if position:
                yield [SEPARATOR]
            if part is not None:
                yield from _pieces_of(part, kind)
    # What a list may hold depends on all of it.
    elif isinstance(value, str) or (isinstance(value, list) and len(set(map(type, value))) == 1):
        start = 0
        while start < len(value):
            end = start + PIECE
            # A word is not cut in two.
            if isinstance(value, str) and kind != "characters":
                space = _SPACE.search(value, end)
                end = space.start() if space else len(value)
            yield tokens_of(value[start:end], kind)
            start = end
    else:
        yield tokens_of(value, kind)


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
    """Return the logits (1, N) of one sequence (T,), with the states of a few steps in memory."""
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    state: Any = None
    for start in range(0, len(tokens), PIECE_STEPS):
        # Packed: then nn.RNN runs as it does for any other sequence. One sequence in each step.
        part = tokens[start : start + PIECE_STEPS]
        embedded = network.embedding(part.to(network.device))
        steps = PackedSequence(embedded, torch.ones(len(part), dtype=torch.int64))
        _, state = network.rnn(steps, state)

    # (num_layers, 1, H); the LSTM has its cell state as well.
    hidden = state[0] if isinstance(state, tuple) else state
    logits: Tensor = network.head(hidden[-1])
    return logits
