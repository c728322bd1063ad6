"""One time step of one layer and direction: the cells that nn.RNN, nn.GRU and nn.LSTM repeat.

Training never comes here: its engines run whole sequences. What looks inside a network does.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# PyTorch's own cells, by the name in the `mode` of an nn.RNNBase.
_CELLS: dict[str, Any] = {
    "RNN_TANH": torch.rnn_tanh_cell,
    "RNN_RELU": torch.rnn_relu_cell,
    "GRU": torch.gru_cell,
    "LSTM": torch.lstm_cell,
}


# What the directions of a layer are called, in their order. Layers have numbers from 0 on, as in
# the names of PyTorch's weights: weight_ih_l0, weight_ih_l0_reverse.
DIRECTIONS = ("forward", "reverse")


class State(NamedTuple):
    """What a cell remembers of B sequences: h_t and, for the LSTM, c_t. (B, hidden_size) each."""

    hidden: Tensor
    cell: Tensor | None = None


def weights_of(rnn: nn.RNNBase, layer: int, direction: int) -> Sequence[Tensor]:
    """Return w_ih, w_hh and, unless the layer has no bias, b_ih and b_hh."""
    num_directions = 2 if rnn.bidirectional else 1
    weights: Sequence[Tensor] = rnn.all_weights[layer * num_directions + direction]
    return weights


def zero_state(rnn: nn.RNNBase, num_sequences: int) -> State:
    """Return h_0 = 0 and, for the LSTM, c_0 = 0."""
    zeros = rnn.get_parameter("weight_hh_l0").new_zeros(num_sequences, rnn.hidden_size)
    return State(zeros, zeros if rnn.mode == "LSTM" else None)


def step(mode: str, weights: Sequence[Tensor], inputs: Tensor, state: State) -> State:
    """Return the state after one more token, from its input (B, input_size).

    `mode` is that of the nn.RNNBase, and `weights` those of `weights_of`.
    """
    cell = _CELLS[mode]
    if mode == "LSTM":
        return State(*cell(inputs, [state.hidden, state.cell], *weights))
    return State(cell(inputs, state.hidden, *weights))
