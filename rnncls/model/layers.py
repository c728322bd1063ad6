"""One layer of nn.RNN, nn.LSTM or nn.GRU by itself, or one direction of it, without dropout."""

import warnings
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from rnncls.model.cells import State, weights_of, zero_state

# The functions that nn.RNN, nn.LSTM and nn.GRU call, by the name in their `mode`.
_RNN_FUNCTIONS: dict[str, Any] = {
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
    "LSTM": torch.lstm,
    "GRU": torch.gru,
}


def outputs_of_layer(
    rnn: nn.RNNBase,
    layer: int,
    data: Tensor,
    batch_sizes: Tensor | None,
    start: State | None = None,
) -> tuple[Tensor, State]:
    """Run all directions of one layer.

    `data` is packed, (S, width), with its batch sizes, or padded, (T, B, width), with None. `start`
    is the state before the first step, (num_directions, B, hidden_size) each; None for zeros.

    Returns the outputs, (S, D * H) or (T, B, D * H) for D directions, and the final states in the
    form of `start`. Sequences stand longest first.
    """
    num_directions = 2 if rnn.bidirectional else 1
    if start is None:
        num_sequences = data.shape[1] if batch_sizes is None else int(batch_sizes[0])
        start = zero_state(rnn, data, num_directions, num_sequences)

    # torch.nn keeps one list of weights for each layer and direction, in this order.
    first = layer * num_directions
    weights = list(chain.from_iterable(rnn.all_weights[first : first + num_directions]))

    # weights, has_biases, num_layers, dropout, train, bidirectional
    options = (weights, rnn.bias, 1, 0.0, True, rnn.bidirectional)
    run = _RNN_FUNCTIONS[rnn.mode]
    state = start if rnn.mode == "LSTM" else start[0]
    if batch_sizes is None:
        batch_first = False
        outputs, *finals = run(data, state, *options, batch_first)
    else:
        outputs, *finals = run(data, batch_sizes, state, *options)
    return outputs, tuple(finals)


def outputs_of_direction(
    rnn: nn.RNNBase, layer: int, direction: int, data: Tensor, start: State
) -> tuple[Tensor, State]:
    """Run one direction of one layer over one sequence.

    `data` (T, width) stands in the order in which the direction reads it: in reverse, the last
    token first. `start` is the state before the first step, (1, 1, H) each.

    Returns the outputs (T, H) in that order, and the final state in the form of `start`. Unlike
    that of packed rows, its derivative takes time linear in T for every cell.
    """
    weights = weights_of(rnn, layer, direction)
    state = start if rnn.mode == "LSTM" else start[0]

    # weights, has_biases, num_layers, dropout, train, bidirectional, batch_first
    options = (weights, rnn.bias, 1, 0.0, True, False, False)
    outputs, *finals = _RNN_FUNCTIONS[rnn.mode](data.unsqueeze(1), state, *options)
    return outputs.squeeze(1), tuple(finals)


def ignore_compaction() -> None:
    """Ignore PyTorch's warning that weights are copied together for each call of cuDNN.

    cuDNN wants the weights of a call in one chunk of memory, which those of a single layer are not.
    """
    warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
