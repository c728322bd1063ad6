"""The arrays and settings that the compiled program works on.

All are named tuples, which Numba passes without Python objects. The symbols of shapes, here and in
`program`:

    V  tokens of the vocabulary         B  sequences of a batch
    E  size of an embedding             T  time steps: tokens of the longest sequence
    H  hidden units of a layer          S  rows: tokens of all sequences together
    L  layers                           K  steps whose batches are given at once
    C  classes                          P  parameters, all tensors end to end

H', E' and C' are H, E and C rounded up to a multiple of `kernels.WIDTH`: the rows of arrays that
are read as vectors. The padding is 0. Of the buffers, B, T and S are the capacity; a batch uses the
first entries. Arrays are float32 where nothing else is said.
"""

from typing import NamedTuple

import numpy as np

from rnncls.compiled.batches import Array, BatchLayout, make_layout
from rnncls.compiled.kernels import jit, padded

# Numbers instead of names, which compiled code would have to handle as strings.
ADAM, ADAMW, SGD = range(3)

# Positions in the sums over steps that the program adds to. They are those of the fields of
# `state.Sums`: `CompiledRun.take` makes the array from one, and makes one from the array.
SUM_LOSS, SUM_CORRECT, SUM_SEQUENCES, SUM_GRAD_NORM, SUM_CLIPPED = range(5)
NUM_SUMS = 5


class Sizes(NamedTuple):
    """The sizes of the model, and which functions are computed."""

    tokens: int  # V
    width: int  # E
    hidden: int  # H
    layers: int  # L
    classes: int  # C
    bias: bool
    relu: bool  # else tanh
    mean: bool  # whether the head sees the mean of a sequence's states, else the last one
    optimizer: int  # ADAM, ADAMW or SGD

    # Whether W_ih x of the first layer is computed once per token of the vocabulary, instead of
    # once per row of a batch.
    by_table: bool


class Hyperparameters(NamedTuple):
    """The numbers of clipping and of the optimizer."""

    max_norm: float  # infinite if the gradient is not clipped
    clip_epsilon: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    momentum: float


class FlatArrays(NamedTuple):
    """All parameters end to end, in the order of model.parameters(), and what belongs to them."""

    weights: Array  # (P,)
    gradients: Array  # (P,)
    first: Array  # (P,) Adam's exp_avg, or the momentum buffer
    second: Array  # (P,) Adam's exp_avg_sq


class StepInputs(NamedTuple):
    """The batches of K steps: sequence i is tokens[starts[i]:starts[i] + lengths[i]]."""

    tokens: Array  # int32
    starts: Array  # int64
    lengths: Array  # int64
    labels: Array  # int64
    edges: Array  # (K + 1,) int64: step k has the sequences edges[k] to edges[k + 1]
    rates: Array  # (K,) float64: the learning rate of each step


class PaddedWeights(NamedTuple):
    """Copies of the weights with padded rows. Those named `..._t` are transposed for forward."""

    embedding: Array  # (V, E')
    input: Array  # (H, E')  W_ih of the first layer
    input_t: Array  # (E, H')

    # W_ih of the layers above, and its transpose. In both the entry of the first layer is not used.
    between: Array  # (L, H, H')
    between_t: Array  # (L, H, H')

    recurrent: Array  # (L, H, H')  W_hh
    recurrent_t: Array  # (L, H, H')
    bias: Array  # (L, 1, H')  b_ih + b_hh
    head: Array  # (C, H')
    head_t: Array  # (H, C')
    head_bias: Array  # (1, C')


class Workspace(NamedTuple):
    """The values that a step computes, and the gradients with respect to them (`d_...`)."""

    table: Array  # (V, H')  W_ih x + b of each token; no rows unless sizes.by_table
    inputs: Array  # (S, E')  the embedded tokens; no rows if sizes.by_table
    hidden: Array  # (L, S, H')
    previous: Array  # (S, H')  the hidden state before each row, from time step 1 on
    d_hidden: Array  # (2, S, H')  of a layer and of the layer below
    final: Array  # (B, H')  the last hidden state of each sequence
    d_final: Array  # (B, H')
    logits: Array  # (B, C')  first logits, then probabilities, then gradients of the logits
    zeros: Array  # (1, largest of H', E' and C')

    # Gradients with padded rows. What belongs to a parameter is copied to the flat array.
    d_square: Array  # (H, H')  of W_hh, or of W_ih of a layer above the first
    d_input: Array  # (H, E')
    d_embedded: Array  # (V or S, E')
    d_head: Array  # (C, H')


class Buffers(NamedTuple):
    """The memory of one thread. `make_buffers` makes it."""

    weights: PaddedWeights
    work: Workspace
    batch: BatchLayout


# `padded` as compiled code can call it.
_padded = jit(padded)


@jit
def _make_weights(sizes):
    """Return PaddedWeights of zeros."""
    # Each step copies the weights anew, but never into the padding, which stays 0.
    hidden = sizes.hidden
    layers = sizes.layers
    padded_hidden = _padded(hidden)
    padded_width = _padded(sizes.width)
    padded_classes = _padded(sizes.classes)

    return PaddedWeights(
        embedding=np.zeros((sizes.tokens, padded_width), np.float32),
        input=np.zeros((hidden, padded_width), np.float32),
        input_t=np.zeros((sizes.width, padded_hidden), np.float32),
        between=np.zeros((layers, hidden, padded_hidden), np.float32),
        between_t=np.zeros((layers, hidden, padded_hidden), np.float32),
        recurrent=np.zeros((layers, hidden, padded_hidden), np.float32),
        recurrent_t=np.zeros((layers, hidden, padded_hidden), np.float32),
        bias=np.zeros((layers, 1, padded_hidden), np.float32),
        head=np.zeros((sizes.classes, padded_hidden), np.float32),
        head_t=np.zeros((hidden, padded_classes), np.float32),
        head_bias=np.zeros((1, padded_classes), np.float32),
    )


@jit
def _make_workspace(sizes, capacity):
    """Return a Workspace for batches of up to `capacity`, a BatchSize.

    The arrays of which a step writes whole rows, padding included, are not filled with zeros.
    """
    hidden = sizes.hidden
    rows = capacity.rows
    sequences = capacity.sequences
    padded_hidden = _padded(hidden)
    padded_width = _padded(sizes.width)
    padded_classes = _padded(sizes.classes)
    widest = max(padded_hidden, padded_width, padded_classes)

    # W_ih x of the first layer is computed for the rows of one of two arrays; the other is empty.
    table_rows = sizes.tokens if sizes.by_table else 0
    input_rows = 0 if sizes.by_table else rows

    return Workspace(
        table=np.zeros((table_rows, padded_hidden), np.float32),
        inputs=np.zeros((input_rows, padded_width), np.float32),
        hidden=np.empty((sizes.layers, rows, padded_hidden), np.float32),
        previous=np.empty((rows, padded_hidden), np.float32),
        d_hidden=np.empty((2, rows, padded_hidden), np.float32),
        final=np.empty((sequences, padded_hidden), np.float32),
        d_final=np.empty((sequences, padded_hidden), np.float32),
        logits=np.zeros((sequences, padded_classes), np.float32),
        zeros=np.zeros((1, widest), np.float32),
        d_square=np.empty((hidden, padded_hidden), np.float32),
        d_input=np.empty((hidden, padded_width), np.float32),
        d_embedded=np.empty((table_rows + input_rows, padded_width), np.float32),
        d_head=np.empty((sizes.classes, padded_hidden), np.float32),
    )


def make_buffers(sizes, capacity):
    """Return Buffers of one thread for batches of up to `capacity`, a BatchSize."""
    return Buffers(_make_weights(sizes), _make_workspace(sizes, capacity), make_layout(capacity))
