"""One time step of one layer and direction: the cells that nn.RNN, nn.GRU and nn.LSTM repeat.

Training never comes here: its engines run whole sequences. What looks inside a network does.
"""

from collections.abc import Sequence
from typing import Any

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

# What a network remembers between two time steps: (h_t,) or, of the LSTM, (h_t, c_t).
State = tuple[Tensor, ...]


def layer_name(layer: int, direction: int, num_directions: int) -> str:
    """Return what people call a layer, or one of its two directions."""
    return f"layer {layer}" + (f", {DIRECTIONS[direction]}" if num_directions == 2 else "")


def weights_of(rnn: nn.RNNBase, layer: int, direction: int) -> Sequence[Tensor]:
    """Return w_ih, w_hh and, unless the layer has no bias, b_ih and b_hh."""
    num_directions = 2 if rnn.bidirectional else 1
    weights: Sequence[Tensor] = rnn.all_weights[layer * num_directions + direction]
    return weights


def zero_state(rnn: nn.RNNBase, data: Tensor, *sizes: int) -> State:
    """Return h_0 = 0 and, for the LSTM, c_0 = 0: (*sizes, hidden_size) each, of the kind of `data`.

    A cell wants (B, hidden_size), and a layer (num_directions, B, hidden_size).
    """
    zeros = data.new_zeros(*sizes, rnn.hidden_size)
    return (zeros, zeros) if rnn.mode == "LSTM" else (zeros,)


def state_of_layer(rnn: nn.RNNBase, layer: int, state: State) -> State:
    """Return the part of a state (num_layers * D, B, H) that is one layer's, (D, B, H) each."""
    num_directions = 2 if rnn.bidirectional else 1
    first = layer * num_directions
    return tuple(part[first : first + num_directions] for part in state)


def step(mode: str, weights: Sequence[Tensor], inputs: Tensor, state: State) -> State:
    """Return the state after one more token, (B, hidden_size), from its input (B, input_size).

    `mode` is that of the nn.RNNBase, and `weights` those of `weights_of`.
    """
    cell = _CELLS[mode]
    if mode == "LSTM":
        return tuple(cell(inputs, state, *weights))
    (hidden,) = state
    return (cell(inputs, hidden, *weights),)
