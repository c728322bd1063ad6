"""What the compiled program works on: sizes, settings, batches, and the memory of one thread."""

from typing import Any, NamedTuple

import numpy as np

from rnncls.steps.compiled.kernels import compiled, padded

ADAM, ADAMW, SGD = range(3)
Array = np.ndarray[Any, Any]


class Sizes(NamedTuple):
    """What decides the shapes of parameters, and which functions are computed."""

    tokens: int
    width: int  # of the embedding
    hidden: int
    layers: int
    classes: int
    bias: bool
    relu: bool  # else tanh
    optimizer: int  # ADAM, ADAMW or SGD
    by_table: bool  # whether W_ih x of the first layer is computed for each token, not for each row


class Hyper(NamedTuple):
    """Numbers of clipping and optimizer, as in the config; max_norm may be inf."""

    max_norm: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    momentum: float


class Flat(NamedTuple):
    """All tensors end to end in the order of model.parameters(), float32."""

    weights: Array
    gradients: Array
    first: Array  # Adam's exp_avg, or the momentum
    second: Array  # Adam's exp_avg_sq


class Steps(NamedTuple):
    """The batches of some steps: sequence i is tokens[starts[i]:starts[i] + lengths[i]]."""

    tokens: Array  # int32
    starts: Array  # int64
    lengths: Array  # int64
    labels: Array  # int64
    edges: Array  # int64: step k has the sequences edges[k] to edges[k + 1]
    rates: Array  # float64: the learning rate of step k


class Batch(NamedTuple):
    """One packed batch; T time steps, B sequences, S tokens. Only the first so many entries count."""

    running: Array  # (T,) sequences longer than t
    begin: Array  # (T,) first row of time step t
    order: Array  # (B,) the sequences, longest first
    last: Array  # (B,) row of the last token, in this order
    tokens: Array  # (S,)


class Weights(NamedTuple):
    """Copies with padded rows. In `..._t` the matrix is transposed, for the way forward."""

    embedding: Array  # (V, E')
    input: Array  # (H, E')  W_ih of the first layer
    input_t: Array  # (E, H')
    between: Array  # (L, H, H')  W_ih of the layers above
    between_t: Array  # (L, H, H')
    recurrent: Array  # (L, H, H')  W_hh
    recurrent_t: Array  # (L, H, H')
    bias: Array  # (L, 1, H')  b_ih + b_hh
    head: Array  # (C, H')
    head_t: Array  # (H, C')
    head_bias: Array  # (1, C')


class Work(NamedTuple):
    """What a step computes: values, and gradients with respect to them. S and B are the most there can be."""

    table: Array  # (V, H')  W_ih x + b for each token, where there are fewer tokens than rows
    inputs: Array  # (S, E')  else: the embedded tokens
    hidden: Array  # (L, S, H')
    before: Array  # (S, H')  the hidden state before each row, from row B on
    d_hidden: Array  # (2, S, H')  of a layer's pre-activations, and of the layer below
    final: Array  # (B, H')
    d_final: Array  # (B, H')
    logits: Array  # (B, C')  then probabilities, then gradients
    zeros: Array  # (1, the widest)
    d_square: Array  # (H, H')
    d_input: Array  # (H, E')
    d_embedded: Array  # (V or S, E')
    d_head: Array  # (C, H')


class Buffers(NamedTuple):
    """Memory for one thread. Made by `buffers`."""

    weights: Weights
    work: Work
    batch: Batch
    places: Array  # (T,) for sorting


_padded = compiled(padded)


@compiled
def _weights(sizes):  # type: ignore[no-untyped-def]
    hidden, layers = sizes.hidden, sizes.layers
    wide, wide_in, wide_out = _padded(hidden), _padded(sizes.width), _padded(sizes.classes)
    return Weights(
        np.zeros((sizes.tokens, wide_in), np.float32),
        np.zeros((hidden, wide_in), np.float32),
        np.zeros((sizes.width, wide), np.float32),
        np.zeros((layers, hidden, wide), np.float32),
        np.zeros((layers, hidden, wide), np.float32),
        np.zeros((layers, hidden, wide), np.float32),
        np.zeros((layers, hidden, wide), np.float32),
        np.zeros((layers, 1, wide), np.float32),
        np.zeros((sizes.classes, wide), np.float32),
        np.zeros((hidden, wide_out), np.float32),
        np.zeros((1, wide_out), np.float32),
    )


@compiled
def _work(sizes, rows, sequences):  # type: ignore[no-untyped-def]
    hidden = sizes.hidden
    wide, wide_in, wide_out = _padded(hidden), _padded(sizes.width), _padded(sizes.classes)
    distinct = sizes.tokens if sizes.by_table else 0
    return Work(
        np.zeros((distinct, wide), np.float32),
        np.zeros((0 if sizes.by_table else rows, wide_in), np.float32),
        np.empty((sizes.layers, rows, wide), np.float32),
        np.empty((rows, wide), np.float32),
        np.empty((2, rows, wide), np.float32),
        np.empty((sequences, wide), np.float32),
        np.empty((sequences, wide), np.float32),
        np.zeros((sequences, wide_out), np.float32),
        np.zeros((1, max(wide, wide_in, wide_out)), np.float32),
        np.empty((hidden, wide), np.float32),
        np.empty((hidden, wide_in), np.float32),
        np.empty((distinct if sizes.by_table else rows, wide_in), np.float32),
        np.empty((sizes.classes, wide), np.float32),
    )


def buffers(sizes, rows, sequences, longest):  # type: ignore[no-untyped-def]
    """For batches of up to so many tokens and sequences, none longer than `longest`."""
    batch = Batch(
        np.empty(longest, np.int64),
        np.empty(longest, np.int64),
        np.empty(sequences, np.int64),
        np.empty(sequences, np.int64),
        np.empty(rows, np.int32),
    )
    return Buffers(
        _weights(sizes), _work(sizes, rows, sequences), batch, np.empty(longest, np.int64)
    )
