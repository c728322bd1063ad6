"""The forward pass of a classifier as one compiled function, for many sequences.

Time steps are outside and layers inside, a block of sequences at a time, so that what is worked on
stays in the cache and nothing is as long as a sequence. Two directions run layer by layer, and keep
the outputs of two layers.

The logits of a sequence have the same bits alone and in company: whatever is beside it, each sum
runs over the same numbers in the same order.

The symbols of shapes, beside those of `batches`:

    V  tokens of the vocabulary         L  layers
    E  size of an embedding             D  directions, 1 or 2
    H  hidden units of a layer          G  products of a cell: 1, of GRU 3, of LSTM 4
    C  classes                          R  sequences of a block
    W  what the head sees: D * H for each part of the pooling, and E with a skip

H' and C' are H and C rounded up to a multiple of `kernels.WIDTH`; the padding is 0. Arrays are
float32 where nothing else is said. Layers and directions are counted together, as torch.nn does:
layer * D + direction.
"""

from typing import NamedTuple

import numpy as np

from rnncls.compiled.batches import Array
from rnncls.compiled.compiler import jit_inlined
from rnncls.compiled.gates import gru_forward, lstm_forward
from rnncls.compiled.kernels import ZERO, add_product, copy_row, padded, relu, row_of_matrix, tanh

# Numbers instead of names, which compiled code would have to handle as strings.
TANH, RELU, GRU, LSTM = range(4)

# Sequences whose states are worked on together, so that they stay in the cache.
BLOCK = 128


class Network(NamedTuple):
    """The sizes of a network, and which functions are computed."""

    cell: int  # TANH, RELU, GRU or LSTM
    width: int  # E
    hidden: int  # H
    layers: int  # L
    directions: int  # D
    classes: int  # C
    last: bool  # which parts the head sees, in this order
    mean: bool
    largest: bool
    skip: bool  # whether the mean of what the first layer reads comes behind them
    by_table: bool  # whether the first layer's W_ih x + b is looked up; never with a skip

    @property
    def products(self) -> int:
        """How many products with H columns a cell has, G."""
        return {GRU: 3, LSTM: 4}.get(self.cell, 1)

    @property
    def summary_size(self) -> int:
        """How many numbers the head sees of a sequence, W."""
        of_states = (self.last + self.mean + self.largest) * self.directions * self.hidden
        return of_states + self.skip * self.width


class Weights(NamedTuple):
    """The parameters of a network, as the products read them."""

    embedding: Array  # (V, E), or (S, E): one for each row of a batch
    input_t: Array  # (D, G, E, H'), W_ih transposed, of the first layer
    between_t: Array  # ((L - 1) * D, G, D * H, >= H'), of the others; its rows are `row_of_matrix`
    recurrent_t: Array  # (L * D, G, H, >= H'), the same rows

    # All biases that are added to W_ih x; what GRU adds to W_hn h, which the reset gate multiplies.
    bias: Array  # (L * D, G, H')
    recurrent_bias: Array  # (L * D, H')

    start_hidden: Array  # (L * D, H')
    start_cell: Array  # (L * D, H')
    head_t: Array  # (W, C')
    head_bias: Array  # (C',)
    table: Array  # (D, G, V, H') if the network is `by_table`, else (D, G, 0, H')


class Work(NamedTuple):
    """Working memory for one block of sequences.

    What is read as one vector has the numbers of all sequences in one row. Gates and hidden states
    are there in both shapes, in the same memory: to reshape them in compiled code takes long to
    compile.
    """

    gates: Array  # (4, R, H'), the pre-activations, then the gates
    flat_gates: Array  # (4, R * H')
    hidden: Array  # (L * D, R, H')
    flat_hidden: Array  # (L * D, R * H')
    cell: Array  # (L * D, R * H')
    new: Array  # (3, R * H'), what a cell gives
    embedded: Array  # (R, E)
    total: Array  # (D, R * H') float64, the sum of the last layer's outputs
    largest: Array  # (D, R * H'), the largest of them
    total_read: Array  # (R, E) float64, the sum of what the first layer reads; no rows without skip
    summary: Array  # (R, W)


class Given(NamedTuple):
    """Sequences as `batches.pack` reads them: sequence i is tokens[starts[i]:][:lengths[i]]."""

    tokens: Array  # int32
    starts: Array  # (B,) int64
    lengths: Array  # (B,) int64, at least 1
    edges: Array  # (2,) int64: 0 and B


def make_weights(network: Network, embedding: Array) -> Weights:
    """Return weights with these embeddings, (V, E), and zeros in place of all others."""
    products = network.products
    size = padded(network.hidden)
    numbers = network.layers * network.directions
    width = network.directions * network.hidden
    between = numbers - network.directions
    rows = len(embedding) if network.by_table else 0

    row = row_of_matrix(network.hidden)
    return Weights(
        embedding=embedding,
        input_t=_zeros(network.directions, products, network.width, size),
        between_t=_zeros(between, products, width, row),
        recurrent_t=_zeros(numbers, products, network.hidden, row),
        bias=_zeros(numbers, products, size),
        recurrent_bias=_zeros(numbers, size),
        start_hidden=_zeros(numbers, size),
        start_cell=_zeros(numbers, size),
        head_t=_zeros(network.summary_size, padded(network.classes)),
        head_bias=_zeros(padded(network.classes)),
        table=_zeros(network.directions, products, rows, size),
    )


def make_work(network: Network) -> Work:
    """Return working memory for one thread."""
    size = padded(network.hidden)
    numbers = network.layers * network.directions
    gates = _zeros(4, BLOCK, size)
    hidden = _zeros(numbers, BLOCK, size)
    return Work(
        gates=gates,
        flat_gates=gates.reshape(4, -1),
        hidden=hidden,
        flat_hidden=hidden.reshape(numbers, -1),
        cell=_zeros(numbers, BLOCK * size),
        new=_zeros(3, BLOCK * size),
        embedded=_zeros(BLOCK, network.width),
        total=np.zeros((network.directions, BLOCK * size)),
        largest=_zeros(network.directions, BLOCK * size),
        total_read=np.zeros((BLOCK if network.skip else 0, network.width)),
        summary=_zeros(BLOCK, network.summary_size),
    )


def _zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


# --- the entry point


def logits(network, weights, layout, first, stride, kept, work, out):
    """Write the logits (B, C') of a packed batch, the longest sequence first.

    Of its blocks of BLOCK sequences, every `stride`-th is computed, from number `first` on. `kept`
    (2, >= S, 2 * H) has room for the outputs of two layers of two directions; one layer needs none.
    """
    sequences = layout.running[0]
    for begin in range(first * BLOCK, sequences, stride * BLOCK):
        count = min(BLOCK, sequences - begin)
        begin_block(network, weights, work)
        _read(network, weights, layout, begin, kept, work)
        _summarize(network, layout, begin, count, work)
        for row in range(count):
            copy_row(out[begin + row], weights.head_bias)
        add_product(out, begin, work.summary, ZERO, weights.head_t, count)


# --- a block of sequences
#
# These parts are copied into their callers: `logits` has one of each, `streaming.classes` another
# one of those that advance by a time step.


@jit_inlined
def begin_block(network, weights, work):
    """Put every sequence of the block before its first token."""
    size = work.hidden.shape[2]
    for number in range(len(work.hidden)):
        for row in range(BLOCK):
            copy_row(work.hidden[number, row], weights.start_hidden[number])
            cell = work.cell[number, row * size : (row + 1) * size]
            copy_row(cell, weights.start_cell[number])
    for row in range(len(work.total_read)):
        for column in range(network.width):
            work.total_read[row, column] = 0.0
    for direction in range(network.directions):
        for index in range(BLOCK * size):
            work.total[direction, index] = 0.0
            work.largest[direction, index] = -np.inf


@jit_inlined
def _read(network, weights, layout, begin, kept, work):
    """Read all tokens of the block that begins with sequence `begin`.

    In one direction, each token goes through all layers. Two directions run one after the other,
    layer by layer, for the layer above needs both.
    """
    longest = 0
    while longest < len(layout.running) and layout.running[longest] > begin:
        longest += 1

    numbers = len(work.hidden)
    together = numbers if network.directions == 1 else 1
    for lowest in range(0, numbers, together):
        direction = lowest % network.directions
        for step in range(longest):
            # In reverse, a sequence begins at its own last token: until then it is not among the
            # first rows, and its state stays the initial one.
            t = longest - 1 - step if direction == 1 else step
            rows = min(layout.running[t] - begin, BLOCK)
            place = layout.first_row[t] + begin
            for number in range(lowest, lowest + together):
                put_input(network, weights, layout, number, place, rows, kept, work)
                advance(network, weights, number, rows, work)
                if number >= numbers - network.directions:
                    _pool(network, number, direction, rows, work)
                elif network.directions == 2:
                    side = direction * network.hidden
                    outputs = kept[number // 2 % 2]
                    for row in range(rows):
                        output = outputs[place + row, side : side + network.hidden]
                        copy_row(output, work.hidden[number, row])


@jit_inlined
def put_input(network, weights, layout, number, place, rows, kept, work):
    """Put W_ih x + b into the gates; what x is of stands in the layout's rows from `place` on."""
    products = weights.bias.shape[1]
    if number < network.directions and network.by_table:
        for gate in range(products):
            for row in range(rows):
                token = layout.tokens[place + row]
                copy_row(work.gates[gate, row], weights.table[number, gate, token])
    else:
        below = work.embedded
        first_row = ZERO
        matrices = weights.input_t
        index = number
        if number < network.directions:
            # What the head sees of it counts once, also of two directions.
            _embed(network, weights, layout, place, rows, network.skip and number == 0, work)
        else:
            matrices = weights.between_t
            index = number - network.directions
            if network.directions == 1:
                below = work.hidden[number - 1]
            else:
                below = kept[(number // 2 - 1) % 2]
                first_row = place

        for gate in range(products):
            for row in range(rows):
                copy_row(work.gates[gate, row], weights.bias[number, gate])
            add_product(work.gates[gate], ZERO, below, first_row, matrices[index, gate], rows)


@jit_inlined
def _embed(network, weights, layout, place, rows, counts, work):
    """Compute work.embedded of the rows from `place` on, and add it to the sum if it counts."""
    for row in range(rows):
        copy_row(work.embedded[row], weights.embedding[layout.tokens[place + row]])
    if counts:
        for row in range(rows):
            for column in range(network.width):
                work.total_read[row, column] += work.embedded[row, column]


@jit_inlined
def advance(network, weights, number, rows, work):
    """Let one layer and direction read one more token, whose part is in the gates already."""
    gates = work.gates
    hidden = work.hidden[number]

    # The third product of GRU stands alone, for the reset gate multiplies it.
    for product in range(weights.bias.shape[1]):
        gate = product
        if network.cell == GRU and product == 2:
            gate = 3
            for row in range(rows):
                copy_row(gates[gate, row], weights.recurrent_bias[number])
        right = weights.recurrent_t[number, product]
        add_product(gates[gate], ZERO, hidden, ZERO, right, rows)

    end = rows * hidden.shape[1]
    before = work.flat_hidden[number, :end]
    after = work.new[0, :end]
    first = work.flat_gates[0, :end]
    second = work.flat_gates[1, :end]
    third = work.flat_gates[2, :end]
    fourth = work.flat_gates[3, :end]
    if network.cell == GRU:
        gru_forward(after, first, second, third, fourth, before)
        copy_row(before, after)
    elif network.cell == LSTM:
        cell = work.cell[number, :end]
        cell_after = work.new[1, :end]
        lstm_forward(after, cell_after, work.new[2, :end], first, second, third, fourth, cell)
        copy_row(cell, cell_after)
        copy_row(before, after)
    else:
        if network.cell == RELU:
            relu(first)
        else:
            tanh(first)
        copy_row(before, first)


@jit_inlined
def _pool(network, number, direction, rows, work):
    """Add an output of the last layer to the sum of outputs, and compare it with the largest."""
    end = rows * work.hidden.shape[2]
    hidden = work.flat_hidden[number, :end]
    if network.mean:
        # In float64: a float32 to which thousands of small numbers are added loses digits.
        total = work.total[direction, :end]
        for index in range(len(hidden)):
            total[index] += hidden[index]
    if network.largest:
        largest = work.largest[direction, :end]
        for index in range(len(hidden)):
            # NaN becomes the largest and stays so: it is above nothing, and nothing is above it.
            value = hidden[index]
            is_larger = value > largest[index] or value != value
            largest[index] = value if is_larger else largest[index]


@jit_inlined
def _summarize(network, layout, begin, count, work):
    """Put what the head sees side by side: last, mean and largest, each of all directions."""
    hidden = network.hidden
    length = len(layout.running)
    for row in range(count):
        # Longest first: lengths fall from row to row.
        while layout.running[length - 1] <= begin + row:
            length -= 1

        summary = work.summary[row]
        first = row * work.hidden.shape[2]
        width = network.directions * hidden
        for direction in range(network.directions):
            column = direction * hidden
            if network.last:
                number = len(work.hidden) - network.directions + direction
                copy_row(summary[column : column + hidden], work.hidden[number, row])
                column += width
            if network.mean:
                for unit in range(hidden):
                    mean = work.total[direction, first + unit] / length
                    summary[column + unit] = np.float32(mean)
                column += width
            if network.largest:
                copy_row(summary[column : column + hidden], work.largest[direction, first:])
        if network.skip:
            column = len(summary) - network.width
            for number in range(network.width):
                mean = work.total_read[row, number] / length
                summary[column + number] = np.float32(mean)
