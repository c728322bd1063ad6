"""Layers of nn.RNN, nn.LSTM or nn.GRU one at a time, or one direction of a layer."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from rnncls.model.cells import State, state_of_layer, weights_of, zero_state
from rnncls.model.dropout import Drop
from rnncls.model.noise import Noise, NoiseOf
from rnncls.model.recurrence import PackedLayers

# The functions that nn.RNN, nn.LSTM and nn.GRU call, by the name in their `mode`.
_RNN_FUNCTIONS: dict[str, Any] = {
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
    "LSTM": torch.lstm,
    "GRU": torch.gru,
}


def outputs_of_layers(
    rnn: nn.RNNBase,
    data: Tensor,
    batch_sizes: Tensor | None,
    start: State | None,
    drop: Drop | None,
    noise: NoiseOf | None = None,
) -> tuple[Tensor, State]:
    """Run all layers, with dropout between them if any, and return the last one's outputs.

    `data` is packed, (S, width), with its batch sizes, or padded, (T, B, width), with None. `start`
    and the final states are (num_layers * D, B, H) each, for D directions. Sequences stand longest
    first. Dropout is not left to torch.nn's modules: cuDNN keeps the random state of its own where
    neither a checkpoint nor a seed reaches it.
    """
    finals = []
    for layer in range(rnn.num_layers):
        if layer > 0 and drop is not None:
            data = drop(layer, data)

        before = None if start is None else state_of_layer(rnn, layer, start)
        data, final = outputs_of_layer(rnn, layer, data, batch_sizes, before, noise)
        finals.append(final)

    return data, tuple(torch.cat(parts) for parts in zip(*finals, strict=True))


def outputs_of_layer(
    rnn: nn.RNNBase,
    layer: int,
    data: Tensor,
    batch_sizes: Tensor | None,
    start: State | None = None,
    noise: NoiseOf | None = None,
) -> tuple[Tensor, State]:
    """Run all directions of one layer, without dropout.

    `data` is packed, (S, width), with its batch sizes, or padded, (T, B, width), with None. `start`
    is the state before the first step, (num_directions, B, hidden_size) each; None for zeros.
    `noise`: that on what W_hh multiplies, of packed rows alone.

    Returns the outputs, (S, D * H) or (T, B, D * H) for D directions, and the final states in the
    form of `start`. Sequences stand longest first.
    """
    num_directions = 2 if rnn.bidirectional else 1
    if (
        batch_sizes is not None
        and isinstance(rnn, PackedLayers)
        and (noise is not None or rnn.is_ours(data))
    ):
        return rnn.outputs_of_layer(layer, data, batch_sizes, start, noise)

    # torch.nn keeps one list of weights for each layer and direction, in this order.
    first = layer * num_directions
    weights: list[Tensor] = []
    for of_direction in rnn.all_weights[first : first + num_directions]:
        weights += of_direction
    return _run(rnn, weights, data, batch_sizes, start, rnn.bidirectional)


def outputs_forward(
    rnn: nn.RNNBase,
    layer: int,
    direction: int,
    data: Tensor,
    batch_sizes: Tensor,
    start: State | None,
    noise: Noise | None = None,
) -> tuple[Tensor, State]:
    """Run one direction of one layer over packed rows (S, width) in the order in which it reads.

    In reverse, each sequence's last token is its first row. `start` and the final state are
    (1, B, H) each. Returns the outputs (S, H), and the final state. Longest sequence first.
    """
    weights = weights_of(rnn, layer, direction)
    if isinstance(rnn, PackedLayers) and (noise is not None or rnn.is_ours(data)):
        return rnn.outputs_of_direction(data, batch_sizes, start, weights, noise=noise)
    return _run(rnn, list(weights), data, batch_sizes, start, bidirectional=False)


def _run(
    rnn: nn.RNNBase,
    weights: list[Tensor],
    data: Tensor,
    batch_sizes: Tensor | None,
    start: State | None,
    bidirectional: bool,
) -> tuple[Tensor, State]:
    """Call the function behind torch.nn's module with these weights."""
    if start is None:
        num_sequences = data.shape[1] if batch_sizes is None else int(batch_sizes[0])
        start = zero_state(rnn, data, 2 if bidirectional else 1, num_sequences)

    # weights, has_biases, num_layers, dropout, train, bidirectional
    options = (weights, rnn.bias, 1, 0.0, True, bidirectional)
    run = _RNN_FUNCTIONS[rnn.mode]
    state: Any = start if rnn.mode == "LSTM" else start[0]
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
