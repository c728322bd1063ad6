"""Runs padded batches in the ways that are common, of which one reads the padding.

A batch of B sequences of unequal lengths is a rectangle of T time steps and B rows, of which the
cells behind a sequence's end are padding. Taking the state after the last column is the classic
mistake: it has read the padding. To take the state at each sequence's own end is right, and so is
to keep the old state where there is padding. Where the head sees the mean or the maximum, it is the
mistake to take that of all columns, and right to take that of each sequence's own.

Letters: B sequences, T time steps, N classes, hidden_size H, D directions, W = D * H.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.data.batches import rectangle
from rnncls.data.sequences import Sequences
from rnncls.model.cells import State, step, weights_of
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import NO_KEYS
from rnncls.model.pooling import parts_of, summary_of_padded
from rnncls.model.probes import state_before


class Rectangle(NamedTuple):
    """B sequences, padded to T time steps."""

    ids: Tensor  # (T, B) int64; what stands behind a sequence's end has no meaning
    is_token: Tensor  # (T, B) bool, False for padding
    lengths: Tensor  # (B,) int64, on the same device


def padded_of(sequences: Sequences, rows: Tensor, device: torch.device) -> Rectangle:
    """Return the sequences with the numbers `rows` (B,), padded to their longest."""
    lengths = sequences.lengths_of(rows)
    ids = rectangle(sequences.tokens, sequences.offsets[rows], lengths).t()
    is_token = torch.arange(len(ids)).unsqueeze(1) < lengths
    return Rectangle(ids.to(device), is_token.to(device), lengths.to(device))


def naive_logits(network: RNNClassifier, batch: Rectangle, padding_id: int | None) -> Tensor:
    """Return logits (B, N) of the states after, and of, the padding: the mistake.

    The padding is a token like any other; if `padding_id` is None, vectors of zeros. In reverse the
    padding comes first.
    """
    of_rectangle = torch.full_like(batch.lengths, len(batch.ids))
    data = _embedded(network, batch, padding_id)
    return _logits_of_finals(network, data, of_rectangle)


def masked_logits(network: RNNClassifier, batch: Rectangle) -> Tensor:
    """Return logits (B, N) of states that are carried over the padding.

    h_t = m_t h_new + (1 - m_t) h_(t-1), where m_t is 1 for a token and 0 for padding; c_t as well.
    In reverse the state is still the initial one when the first token comes. What is carried over
    is no other step for a mean or a maximum.
    """
    data = _embedded(network, batch, 0)
    return _logits_of_finals(network, data, batch.lengths, batch.is_token)


def gathered_logits(network: RNNClassifier, batch: Rectangle) -> Tensor:
    """Return logits (B, N) of the states at each sequence's own end.

    What the recurrence makes of the padding comes behind that end. In reverse it would come first,
    so each row is reversed within its own length, run forwards, and reversed back.
    """
    data = _embedded(network, batch, 0)
    inputs = data
    for layer in range(network.rnn.num_layers):
        outputs = [_run(network, layer, 0, data)]
        if network.num_directions == 2:
            turned = _reversed(data, batch.lengths)
            backward = _run(network, layer, 1, turned, forwards=True)
            outputs.append(_reversed(backward, batch.lengths))
        data = torch.cat(outputs, 2)

    # Reversed back, the end of the backward direction is the first time step.
    ends = [summary_of_padded("last", outputs[0], batch.lengths)]
    ends += [backward[0] for backward in outputs[1:]]
    return _logits_of(network, inputs, torch.cat(ends, 1), data, batch.lengths)


def _logits_of_finals(
    network: RNNClassifier, data: Tensor, lengths: Tensor, is_token: Tensor | None = None
) -> Tensor:
    """Return the logits (B, N) of the states that are computed last, from data (T, B, width).

    Where `is_token` (T, B) is False, states are carried over. `lengths` (B,) are as in _logits_of.
    """
    inputs = data
    for layer in range(network.rnn.num_layers):
        outputs = [
            _run(network, layer, direction, data, is_token)
            for direction in range(network.num_directions)
        ]
        data = torch.cat(outputs, 2)

    # In reverse, the first time step comes last.
    ends = [outputs[0][-1], *(backward[0] for backward in outputs[1:])]
    return _logits_of(network, inputs, torch.cat(ends, 1), data, lengths)


def _embedded(network: RNNClassifier, batch: Rectangle, padding_id: int | None) -> Tensor:
    """Return what is read, (T, B, embedding_dim), also of the padding; of it zeros for None.

    N-grams and positions go on in the padding. Those of tokens never have padding in them, which
    comes behind.
    """
    ids = batch.ids.masked_fill(~batch.is_token, padding_id or 0)
    embedded = network.embed_padded(ids.t(), NO_KEYS)
    if padding_id is None:
        embedded = embedded.masked_fill(~batch.is_token.unsqueeze(2), 0.0)
    return embedded


def _run(
    network: RNNClassifier,
    layer: int,
    direction: int,
    inputs: Tensor,
    is_token: Tensor | None = None,
    forwards: bool = False,
) -> Tensor:
    """Return the states (T, B, H) of one direction of one layer, from its inputs (T, B, width).

    Where `is_token` (T, B) is False, the state is the one before. The second direction begins at
    the last time step, unless it is to run `forwards`.
    """
    rnn = network.rnn
    weights = weights_of(rnn, layer, direction)
    num_steps, num_rows, _ = inputs.shape

    order: Iterable[int] = range(num_steps)
    if direction == 1 and not forwards:
        order = reversed(range(num_steps))

    states = inputs.new_empty(num_steps, num_rows, rnn.hidden_size)
    state = state_before(network, layer, direction, num_rows)
    for t in order:
        new = step(rnn.mode, weights, inputs[t], state)
        state = new if is_token is None else _carried(is_token[t], new, state)
        states[t] = state[0]
    return states


def _carried(is_token: Tensor, new: State, old: State) -> State:
    """Return the new state of the rows (B,) that read a token, and the old one of the others."""
    mask = is_token.unsqueeze(1)
    return tuple(torch.where(mask, *parts) for parts in zip(new, old, strict=True))


def _reversed(data: Tensor, lengths: Tensor) -> Tensor:
    """Return rows (T, B, width) with their first `lengths` (B,) time steps in reverse order."""
    steps = torch.arange(len(data), device=data.device).unsqueeze(1)
    mirrored = lengths - 1 - steps
    source = torch.where(steps < lengths, mirrored, steps)
    return data.gather(0, source.unsqueeze(2).expand_as(data))


def _logits_of(
    network: RNNClassifier, inputs: Tensor, last: Tensor, outputs: Tensor, lengths: Tensor
) -> Tensor:
    """Return the logits (B, N) by the states `last` (B, W) and the outputs (T, B, W).

    `inputs`: what the first layer reads, (T, B, embedding_dim), whose mean a skip takes to the
    head.
    Mean and maximum are those of the first `lengths` (B,) time steps, in both directions: tokens
    stand in the order of time.
    """
    summary = []
    for part in parts_of(network.pooling):
        summary.append(last if part == "last" else summary_of_padded(part, outputs, lengths))
    if network.skip:
        summary.append(summary_of_padded("mean", inputs, lengths))
    logits: Tensor = network.head(torch.cat(summary, 1))
    return logits
