"""Runs padded batches in the ways that are common, of which one reads the padding.

A batch of B sequences of unequal lengths is a rectangle of T time steps and B rows, of which the
cells behind a sequence's end are padding. Taking the state after the last column is the classic
mistake: it has read the padding. To take the state at each sequence's own end is right, and so is
to keep the old state where there is padding.

Letters: B sequences, T time steps, N classes, hidden_size H.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.data.batches import rectangle
from rnncls.data.sequences import Sequences
from rnncls.model.cells import State, step, weights_of, zero_state
from rnncls.model.classifier import RNNClassifier


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
    """Return logits (B, N) of the states after the padding: the mistake.

    The padding is a token like any other; if `padding_id` is None, vectors of zeros. In reverse the
    padding comes first.
    """
    return _logits_of_finals(network, _embedded(network, batch, padding_id))


def masked_logits(network: RNNClassifier, batch: Rectangle) -> Tensor:
    """Return logits (B, N) of states that are carried over the padding.

    h_t = m_t h_new + (1 - m_t) h_(t-1), where m_t is 1 for a token and 0 for padding; c_t as well.
    In reverse the state is still that of zeros when the first token comes.
    """
    return _logits_of_finals(network, _embedded(network, batch, 0), batch.is_token)


def gathered_logits(network: RNNClassifier, batch: Rectangle) -> Tensor:
    """Return logits (B, N) of the states at each sequence's own end.

    What the recurrence makes of the padding comes behind that end. In reverse it would come first,
    so each row is reversed within its own length, run forwards, and reversed back.
    """
    data = _embedded(network, batch, 0)
    for layer in range(network.rnn.num_layers):
        outputs = [_run(network, layer, 0, data)]
        if network.num_directions == 2:
            turned = _reversed(data, batch.lengths)
            backward = _run(network, layer, 1, turned, forwards=True)
            outputs.append(_reversed(backward, batch.lengths))
        data = torch.cat(outputs, 2)

    # One index for each sequence and unit, (1, B, H), as `gather` wants it.
    last = (batch.lengths - 1).view(1, -1, 1).expand(1, -1, network.rnn.hidden_size)
    summary = [outputs[0].gather(0, last)[0]]
    # Reversed back, the end of the backward direction is the first time step.
    summary += [backward[0] for backward in outputs[1:]]
    return _logits_of(network, summary)


def _logits_of_finals(
    network: RNNClassifier, data: Tensor, is_token: Tensor | None = None
) -> Tensor:
    """Return the logits (B, N) of the states that are computed last, from data (T, B, width).

    Where `is_token` (T, B) is False, states are carried over.
    """
    for layer in range(network.rnn.num_layers):
        outputs = [
            _run(network, layer, direction, data, is_token)
            for direction in range(network.num_directions)
        ]
        data = torch.cat(outputs, 2)

    # In reverse, the first time step comes last.
    summary = [outputs[0][-1]]
    summary += [backward[0] for backward in outputs[1:]]
    return _logits_of(network, summary)


def _embedded(network: RNNClassifier, batch: Rectangle, padding_id: int | None) -> Tensor:
    """Return the embeddings (T, B, embedding_dim), with the padding's, or zeros for None."""
    ids = batch.ids.masked_fill(~batch.is_token, padding_id or 0)
    embedded: Tensor = network.embedding(ids)
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
    state = zero_state(rnn, inputs, num_rows)
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


def _logits_of(network: RNNClassifier, summary: list[Tensor]) -> Tensor:
    """Return the logits (B, N) from the state (B, H) of each direction."""
    logits: Tensor = network.head(torch.cat(summary, 1))
    return logits
