"""The arrays and settings that the compiled programs work on.

All are named tuples, which Numba passes without Python objects. The symbols of shapes, here and in
the modules that compute:

    V  tokens of the vocabulary         B  sequences of a batch
    E  size of an embedding             T  time steps: tokens of the longest sequence
    H  hidden units of a layer          S  rows: tokens of all sequences together
    L  layers                           K  steps whose batches are given at once
    D  directions                       P  parameters, all tensors end to end
    G  blocks of H rows in a weight: 1 of nn.RNN, 3 of nn.GRU, 4 of nn.LSTM
    N  arrays (S, H') that a cell keeps for its backward pass, beside its outputs
    W  parts of H columns of what the head sees
    C  classes
    M  rows of the table of n-gram embeddings
    Q  lengths of n-grams

What belongs to one direction of a layer has the number layer * D + direction.

H', E' and C' are H, E and C rounded up to a multiple of `kernels.WIDTH`: the rows of arrays that
are read as vectors. The padding is 0. Of the buffers, B, T and S are the capacity; a batch uses the
first entries. Arrays are float32 where nothing else is said.
"""

import math
from typing import NamedTuple

import numpy as np

from rnncls.compiled.batches import Array, BatchLayout, BatchSize, make_layout
from rnncls.compiled.kernels import WIDTH, padded, row_of_matrix

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
    directions: int  # D
    classes: int  # C

    # What the cell says of itself: G, N, and whether b_hh of the last block is kept apart from
    # b_ih, as in the GRU, which multiplies it by the reset gate.
    gates: int
    kept: int
    bias_apart: bool

    bias: bool
    relu: bool  # else tanh, of nn.RNN
    dropout: float  # of the inputs of every layer but the first
    noise: float  # on the states that W_hh multiplies, relative to their root mean square
    smoothing: float  # the share of a label that is spread over all classes
    optimizer: int  # ADAM, ADAMW or SGD

    # What the head sees of each direction of the last layer: its last state, the mean of its
    # states, the largest of each unit, or all of them, in this order; and W.
    last: bool
    mean: bool
    largest: bool
    parts: int

    # Whether W_ih x of the first layer is computed once per token of the vocabulary, instead of
    # once per row of a batch.
    by_table: bool

    embeddings: int  # V, and the rows of the tables of n-grams and positions

    # How many numbers of the mean of x the head sees behind its W parts: E, or 0.
    skip: int


class Extras(NamedTuple):
    """What a model may have beside embeddings of tokens and recurrence.

    A program for a model that has nothing of it gets None in place of these, and has no code for
    it: Numba compiles for types.
    """

    # The tables of embeddings that are added to those of tokens: of n-grams, of positions; 0 rows
    # without. Bit n of `ngrams` says that there are n-grams of n tokens.
    table: int  # M
    ngrams: int
    num_ngrams: int  # Q
    longest_ngram: int
    has_unknown: bool  # whether no n-gram has the unknown token
    positions: int

    # Dropout outside the recurrence.
    token_dropout: float
    ngram_dropout: float
    embedding_dropout: float
    head_dropout: float


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
    keys: Array  # (K, L - 1) uint64: of the dropout of each layer but the first; else (K, 0)
    input_keys: Array  # (K, 4) uint64: of `model.dropout.InputKeys`, in this order; else (K, 0)
    noise_keys: Array  # (K, L * D) uint64: of the noise on states; else (K, 0)


class PaddedWeights(NamedTuple):
    """Copies of the weights with padded rows. Those named `..._t` are transposed for forward.

    R is the length of a row of H' numbers that products read on the right (`row_of_matrix`).
    """

    embedding: Array  # (V, E'); no rows unless sizes.by_table
    input: Array  # (D, G, H, E')  W_ih of the first layer
    input_t: Array  # (D, G, E, H')

    # W_ih of the layers above, by the direction below whose outputs it multiplies, and its
    # transpose. In both the entries of the first layer are not used.
    between: Array  # (L * D, D, G, H, R)
    between_t: Array  # (L * D, D, G, H, R)

    recurrent: Array  # (L * D, G, H, R)  W_hh
    recurrent_t: Array  # (L * D, G, H, R)
    bias: Array  # (L * D, G + 1, 1, H')  b_ih + b_hh; the last is b_hh alone if sizes.bias_apart
    head: Array  # (W, C, H')
    head_t: Array  # (W, H, C')
    head_bias: Array  # (1, C')


class Workspace(NamedTuple):
    """The values that a step computes, and the gradients with respect to them (`d_...`)."""

    table: Array  # (D, G, V, H')  W_ih x + b of each token; no rows unless sizes.by_table
    inputs: Array  # (S, E')  what the first layer reads; no rows if sizes.by_table
    hidden: Array  # (L * D, S, H')
    kept: Array  # (L * D, N, S, H')
    dropped: Array  # (L, D, S, H')  hidden of the layer below with dropout; no rows without
    beside: Array  # (S, H')  of nn.RNN: for each row, that of the time step before; or no rows

    # For each row the state before with noise, which W_hh multiplies; no rows without noise.
    noised: Array  # (L * D, S, H')
    d_hidden: Array  # (2, D, S, H')  of a layer and of the layer below
    no_rows: Array  # (B, H')  zeros
    d_carried: Array  # (B, H')  dc of the LSTM; of the GRU, what reaches the initial state
    final: Array  # (W, B, H')  what the head sees of each sequence
    d_final: Array  # (W, B, H')
    winners: Array  # (D, B, H') int32  the row of each largest state; no rows without
    logits: Array  # (B, C')  first logits, then probabilities, then gradients of the logits
    bits: Array  # (D * H / 2,) uint64  the random numbers of a row's dropout
    pairs: Array  # (2, H / 2) int32  the random numbers of a row's noise
    normals: Array  # (H,), or one more if H is odd: a row's noise

    # Gradients with padded rows. What belongs to a parameter is copied to the flat array.
    d_recurrent: Array  # (G, H, H')  of W_hh
    d_between: Array  # (D, G, H, H')  of W_ih of a layer above the first
    d_input: Array  # (G, H, E')
    d_embedded: Array  # (V or S, E')
    d_head: Array  # (C, H')


class More(NamedTuple):
    """What Extras need: weights as in PaddedWeights, values as in Workspace.

    What belongs to the skip has no rows without one.
    """

    extras: Extras
    bits: Array  # (.,) uint64  the random numbers of a row's dropout, two in each
    found: Array  # (S, Q) int32  the row of the table of each n-gram, or -1
    touched: Array  # (M,) uint8  1 for each row of the table that has a gradient; all others are 0
    skip: Array  # (B, E')  the mean of x
    d_skip: Array  # (B, E')
    head_skip: Array  # (C, E')
    head_skip_t: Array  # (E, C')
    d_head_skip: Array  # (C, E')


class Buffers(NamedTuple):
    """The memory of one thread. `make_buffers` makes it."""

    weights: PaddedWeights
    work: Workspace
    batch: BatchLayout
    more: More | None


def _zeros(*shape: int) -> Array:
    """Return float32 zeros that begin at a cache line, so that no vector lies across two."""
    size = math.prod(shape)
    room = np.zeros(size + WIDTH, np.float32)
    begin = -(room.ctypes.data // room.itemsize) % WIDTH
    return room[begin : begin + size].reshape(shape)


def _make_weights(sizes: Sizes) -> PaddedWeights:
    """Return PaddedWeights of zeros."""
    # Each step copies the weights anew, but never into the padding, which stays 0.
    hidden = sizes.hidden
    gates = sizes.gates
    directions = sizes.directions
    units = sizes.layers * directions
    padded_hidden = padded(hidden)
    padded_width = padded(sizes.width)
    padded_classes = padded(sizes.classes)
    parts = sizes.parts
    row = row_of_matrix(hidden)

    return PaddedWeights(
        embedding=_zeros(sizes.tokens if sizes.by_table else 0, padded_width),
        input=_zeros(directions, gates, hidden, padded_width),
        input_t=_zeros(directions, gates, sizes.width, padded_hidden),
        between=_zeros(units, directions, gates, hidden, row),
        between_t=_zeros(units, directions, gates, hidden, row),
        recurrent=_zeros(units, gates, hidden, row),
        recurrent_t=_zeros(units, gates, hidden, row),
        bias=_zeros(units, gates + 1, 1, padded_hidden),
        head=_zeros(parts, sizes.classes, padded_hidden),
        head_t=_zeros(parts, hidden, padded_classes),
        head_bias=_zeros(1, padded_classes),
    )


def _make_workspace(sizes: Sizes, capacity: BatchSize) -> Workspace:
    """Return a Workspace for batches of up to `capacity`."""
    hidden = sizes.hidden
    gates = sizes.gates
    directions = sizes.directions
    units = sizes.layers * directions
    rows = capacity.rows
    sequences = capacity.sequences
    padded_hidden = padded(hidden)
    padded_width = padded(sizes.width)
    padded_classes = padded(sizes.classes)
    parts = sizes.parts

    # W_ih x of the first layer is computed for the rows of one of two arrays; the other is empty.
    table_rows = sizes.tokens if sizes.by_table else 0
    input_rows = 0 if sizes.by_table else rows

    # Not every cell and every run needs these.
    dropped_rows = rows if sizes.dropout > 0 else 0
    winner_rows = sequences if sizes.largest else 0
    noised_rows = rows if sizes.noise > 0 else 0
    beside_rows = rows - noised_rows if sizes.gates == 1 else 0
    pairs = (hidden + 1) // 2

    return Workspace(
        table=_zeros(directions, gates, table_rows, padded_hidden),
        inputs=_zeros(input_rows, padded_width),
        hidden=_zeros(units, rows, padded_hidden),
        kept=_zeros(units, sizes.kept, rows, padded_hidden),
        dropped=_zeros(sizes.layers, directions, dropped_rows, padded_hidden),
        beside=_zeros(beside_rows, padded_hidden),
        noised=_zeros(units, noised_rows, padded_hidden),
        d_hidden=_zeros(2, directions, rows, padded_hidden),
        no_rows=_zeros(sequences, padded_hidden),
        d_carried=_zeros(sequences, padded_hidden),
        final=_zeros(parts, sequences, padded_hidden),
        d_final=_zeros(parts, sequences, padded_hidden),
        winners=np.zeros((directions, winner_rows, padded_hidden), np.int32),
        logits=_zeros(sequences, padded_classes),
        bits=np.empty((directions * hidden + 1) // 2, np.uint64),
        pairs=np.empty((2, pairs), np.int32),
        normals=_zeros(2 * pairs),
        d_recurrent=_zeros(gates, hidden, padded_hidden),
        d_between=_zeros(directions, gates, hidden, padded_hidden),
        d_input=_zeros(gates, hidden, padded_width),
        d_embedded=_zeros(table_rows + input_rows, padded_width),
        d_head=_zeros(sizes.classes, padded_hidden),
    )


def _make_more(sizes: Sizes, extras: Extras, capacity: BatchSize, touched: Array) -> More:
    """Return More for batches of up to `capacity`."""
    padded_width = padded(sizes.width)
    skip_rows = capacity.sequences if sizes.skip else 0
    skip_classes = sizes.classes if sizes.skip else 0

    # What a row of dropout has at most: all that the head sees, a token's embedding, its n-grams.
    summary = sizes.parts * sizes.hidden + sizes.skip
    columns = max(summary, sizes.width, extras.num_ngrams)

    return More(
        extras=extras,
        bits=np.empty((columns + 1) // 2, np.uint64),
        found=np.empty((capacity.rows, extras.num_ngrams), np.int32),
        touched=touched,
        skip=_zeros(skip_rows, padded_width),
        d_skip=_zeros(skip_rows, padded_width),
        head_skip=_zeros(skip_classes, padded_width),
        head_skip_t=_zeros(sizes.skip, padded(sizes.classes)),
        d_head_skip=_zeros(skip_classes, padded_width),
    )


def make_buffers(
    sizes: Sizes, extras: Extras | None, capacity: BatchSize, touched: Array
) -> Buffers:
    """Return Buffers of one thread for batches of up to `capacity`.

    `touched` (M,) outlives them: it says which of the gradients that the thread wrote are not 0.
    """
    return Buffers(
        _make_weights(sizes),
        _make_workspace(sizes, capacity),
        make_layout(capacity),
        None if extras is None else _make_more(sizes, extras, capacity, touched),
    )
