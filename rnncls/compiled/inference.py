"""The forward pass of a classifier as one compiled function, for many sequences.

Time steps are outside and layers inside, a block of sequences at a time, so that what is worked on
stays in the cache and nothing is as long as a sequence. Two directions run layer by layer, and keep
the outputs of two layers.

The logits of a sequence have the same bits alone and in company: whatever is beside it, each sum
runs over the same numbers in the same order. What W_ih x + b is of a token, too, is the same
whether it comes from a table of all tokens or is computed where the token stands.

The symbols of shapes, beside those of `batches`:

    V  tokens of the vocabulary         L  layers
    E  size of an embedding             D  directions, 1 or 2
    H  hidden units of a layer          G  products of a cell: 1, of GRU 3, of LSTM 4
    C  classes                          R  sequences of a block
    W  what the head sees: D * H for each part of the pooling

H' and C' are H and C rounded up to a multiple of `kernels.WIDTH`; the padding is 0. Arrays are
float32 where nothing else is said. Layers and directions are counted together, as torch.nn does:
layer * D + direction.
"""

from typing import NamedTuple

import numpy as np

from rnncls.compiled.batches import Array, make_layout, pack
from rnncls.compiled.gates import gru_forward, lstm_forward
from rnncls.compiled.kernels import add_product, copy_row, jit, multiply, padded, relu, tanh

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
    by_table: bool  # whether the first layer's W_ih x + b is looked up

    @property
    def products(self) -> int:
        """How many products with H columns a cell has, G."""
        return {GRU: 3, LSTM: 4}.get(self.cell, 1)

    @property
    def summary_size(self) -> int:
        """How many numbers the head sees of a sequence, W."""
        return (self.last + self.mean + self.largest) * self.directions * self.hidden


class Weights(NamedTuple):
    """The parameters of a network, as the products read them."""

    embedding: Array  # (V, E)
    input_t: Array  # (D, G, E, H'), W_ih transposed, of the first layer
    between_t: Array  # ((L - 1) * D, G, D * H, H'), of the others
    recurrent_t: Array  # (L * D, G, H, H')

    # All biases that are added to W_ih x; what GRU adds to W_hn h, which the reset gate multiplies.
    bias: Array  # (L * D, G, 1, H')
    recurrent_bias: Array  # (L * D, 1, H')

    start_hidden: Array  # (L * D, H')
    start_cell: Array  # (L * D, H')
    head_t: Array  # (W, C')
    head_bias: Array  # (1, C')
    table: Array  # (D, G, V, H') if the network is `by_table`, else (D, G, 0, H')


class Work(NamedTuple):
    """Working memory for one block of sequences."""

    gates: Array  # (4, R, H'), what is in a gate's products, then the gate
    hidden: Array  # (L * D, R, H')
    cell: Array  # (L * D, R, H')
    new: Array  # (3, R, H'), what a cell gives
    embedded: Array  # (R, E)
    total: Array  # (D, R, H') float64, the sum of the last layer's outputs
    largest: Array  # (D, R, H'), the largest of them
    summary: Array  # (R, W)


class Given(NamedTuple):
    """Sequences as `batches.pack` reads them: sequence i is tokens[starts[i]:][:lengths[i]]."""

    tokens: Array  # int32
    starts: Array  # (B,) int64
    lengths: Array  # (B,) int64, at least 1
    edges: Array  # (2,) int64: 0 and B


def make_weights(network: Network, num_tokens: int) -> Weights:
    """Return weights of zeros for a vocabulary of so many tokens."""
    products = network.products
    size = padded(network.hidden)
    numbers = network.layers * network.directions
    width = network.directions * network.hidden
    between = numbers - network.directions
    rows = num_tokens if network.by_table else 0
    return Weights(
        embedding=_zeros(num_tokens, network.width),
        input_t=_zeros(network.directions, products, network.width, size),
        between_t=_zeros(between, products, width, size),
        recurrent_t=_zeros(numbers, products, network.hidden, size),
        bias=_zeros(numbers, products, 1, size),
        recurrent_bias=_zeros(numbers, 1, size),
        start_hidden=_zeros(numbers, size),
        start_cell=_zeros(numbers, size),
        head_t=_zeros(network.summary_size, padded(network.classes)),
        head_bias=_zeros(1, padded(network.classes)),
        table=_zeros(network.directions, products, rows, size),
    )


def make_work(network: Network) -> Work:
    """Return working memory for one thread."""
    size = padded(network.hidden)
    numbers = network.layers * network.directions
    return Work(
        gates=_zeros(4, BLOCK, size),
        hidden=_zeros(numbers, BLOCK, size),
        cell=_zeros(numbers, BLOCK, size),
        new=_zeros(3, BLOCK, size),
        embedded=_zeros(BLOCK, network.width),
        total=np.zeros((network.directions, BLOCK, size)),
        largest=_zeros(network.directions, BLOCK, size),
        summary=_zeros(BLOCK, network.summary_size),
    )


def _zeros(*shape: int) -> Array:
    return np.zeros(shape, np.float32)


# --- the entry points


def lay_out(given, capacity):
    """Return the sequences as a BatchLayout. `capacity`: their BatchSize."""
    layout = make_layout(capacity)
    pack(given, 0, 0, 1, layout)
    return layout


def fill_table(network, weights):
    """Compute what the first layer makes of each token of the vocabulary."""
    for direction in range(network.directions):
        for gate in range(weights.input_t.shape[1]):
            multiply(
                out=weights.table[direction, gate],
                start=weights.bias[direction, gate],
                left=weights.embedding,
                right=weights.input_t[direction, gate],
                rows=len(weights.embedding),
            )


def logits(network, weights, layout, first, stride, kept, work, out):
    """Write the logits (B, C') of a packed batch, the longest sequence first.

    Of its blocks of BLOCK sequences, every `stride`-th is computed, from number `first` on. `kept`
    (2, S, 2 * H) has room for the outputs of two layers of two directions.
    """
    sequences = layout.running[0]
    for begin in range(first * BLOCK, sequences, stride * BLOCK):
        count = min(BLOCK, sequences - begin)
        _begin(network, weights, work)
        if network.directions == 1:
            _run_forwards(network, weights, layout, begin, work)
        else:
            _run_both(network, weights, layout, begin, kept, work)
        _summarize(network, layout, begin, count, work)
        multiply(
            out=out[begin : begin + count],
            start=weights.head_bias,
            left=work.summary,
            right=weights.head_t,
            rows=count,
        )


# --- a block of sequences


@jit
def _begin(network, weights, work):
    """Put every sequence of the block before its first token."""
    for number in range(len(work.hidden)):
        for row in range(BLOCK):
            copy_row(work.hidden[number, row], weights.start_hidden[number])
            copy_row(work.cell[number, row], weights.start_cell[number])
    if network.mean:
        work.total[:] = 0.0
    if network.largest:
        work.largest[:] = -np.inf


@jit
def _run_forwards(network, weights, layout, begin, work):
    """Read all tokens of a block, in one direction."""
    for t in range(len(layout.running)):
        rows = min(layout.running[t] - begin, BLOCK)
        if rows <= 0:
            break
        for layer in range(network.layers):
            if layer == 0:
                _read_tokens(network, weights, layout, layout.first_row[t] + begin, 0, rows, work)
            else:
                for gate in range(weights.between_t.shape[1]):
                    multiply(
                        out=work.gates[gate],
                        start=weights.bias[layer, gate],
                        left=work.hidden[layer - 1],
                        right=weights.between_t[layer - 1, gate],
                        rows=rows,
                    )
            _advance(network, weights, layer, rows, work)
        _pool(network, network.layers - 1, 0, rows, work)


@jit
def _run_both(network, weights, layout, begin, kept, work):
    """Read all tokens of a block in two directions, layer by layer."""
    longest = 0
    while longest < len(layout.running) and layout.running[longest] > begin:
        longest += 1

    for number in range(2 * network.layers):
        layer = number // 2
        direction = number % 2
        for step in range(longest):
            # In reverse, a sequence begins at its own last token: until then it is not among the
            # first rows, and its state stays the initial one.
            t = longest - 1 - step if direction else step
            rows = min(layout.running[t] - begin, BLOCK)
            place = layout.first_row[t] + begin
            if layer == 0:
                _read_tokens(network, weights, layout, place, direction, rows, work)
            else:
                below = kept[(layer - 1) % 2]
                for gate in range(weights.between_t.shape[1]):
                    multiply(
                        out=work.gates[gate],
                        start=weights.bias[number, gate],
                        left=below[place : place + rows],
                        right=weights.between_t[number - 2, gate],
                        rows=rows,
                    )
            _advance(network, weights, number, rows, work)

            if layer < network.layers - 1:
                side = direction * network.hidden
                for row in range(rows):
                    output = kept[layer % 2, place + row, side : side + network.hidden]
                    copy_row(output, work.hidden[number, row])
            else:
                _pool(network, number, direction, rows, work)


@jit
def _read_tokens(network, weights, layout, place, direction, rows, work):
    """Put W_ih x + b of the first layer into the gates; the tokens are in the rows from `place`."""
    tokens = layout.tokens[place : place + rows]
    if network.by_table:
        for gate in range(weights.input_t.shape[1]):
            for row in range(rows):
                copy_row(work.gates[gate, row], weights.table[direction, gate, tokens[row]])
        return

    for row in range(rows):
        copy_row(work.embedded[row], weights.embedding[tokens[row]])
    for gate in range(weights.input_t.shape[1]):
        multiply(
            out=work.gates[gate],
            start=weights.bias[direction, gate],
            left=work.embedded,
            right=weights.input_t[direction, gate],
            rows=rows,
        )


@jit
def _advance(network, weights, number, rows, work):
    """Let one layer and direction read one more token, whose part is in the gates already."""
    hidden = work.hidden[number]
    before = hidden[:rows].reshape(-1)
    after = work.new[0, :rows].reshape(-1)
    gates = work.gates

    # The third product of GRU stands alone: the reset gate multiplies it.
    summed = 2 if network.cell == GRU else weights.recurrent_t.shape[1]
    for gate in range(summed):
        add_product(
            out=gates[gate],
            out_row=0,
            left=hidden,
            left_row=0,
            right=weights.recurrent_t[number, gate],
            rows=rows,
        )

    first = gates[0, :rows].reshape(-1)
    second = gates[1, :rows].reshape(-1)
    third = gates[2, :rows].reshape(-1)
    fourth = gates[3, :rows].reshape(-1)
    if network.cell == GRU:
        multiply(
            out=gates[3],
            start=weights.recurrent_bias[number],
            left=hidden,
            right=weights.recurrent_t[number, 2],
            rows=rows,
        )
        gru_forward(after, first, second, third, fourth, before)
        copy_row(before, after)
    elif network.cell == LSTM:
        cell = work.cell[number, :rows].reshape(-1)
        cell_after = work.new[1, :rows].reshape(-1)
        tanh_cell = work.new[2, :rows].reshape(-1)
        lstm_forward(after, cell_after, tanh_cell, first, second, third, fourth, cell)
        copy_row(cell, cell_after)
        copy_row(before, after)
    else:
        if network.cell == RELU:
            relu(first)
        else:
            tanh(first)
        copy_row(before, first)


@jit
def _pool(network, number, direction, rows, work):
    """Add an output of the last layer to the sum of outputs, and compare it with the largest."""
    hidden = work.hidden[number, :rows].reshape(-1)
    if network.mean:
        # In float64: a float32 to which thousands of small numbers are added loses digits.
        total = work.total[direction, :rows].reshape(-1)
        for index in range(len(hidden)):
            total[index] += hidden[index]
    if network.largest:
        largest = work.largest[direction, :rows].reshape(-1)
        for index in range(len(hidden)):
            # NaN becomes the largest and stays so: it is above nothing, and nothing is above it.
            value = hidden[index]
            is_larger = value > largest[index] or value != value
            largest[index] = value if is_larger else largest[index]


@jit
def _summarize(network, layout, begin, count, work):
    """Put what the head sees side by side: last, mean and largest, each of all directions."""
    hidden = network.hidden
    directions = network.directions
    length = len(layout.running)
    for row in range(count):
        # Longest first: lengths fall from row to row.
        while layout.running[length - 1] <= begin + row:
            length -= 1

        column = 0
        if network.last:
            for direction in range(directions):
                number = (network.layers - 1) * directions + direction
                copy_row(work.summary[row, column : column + hidden], work.hidden[number, row])
                column += hidden
        if network.mean:
            for direction in range(directions):
                for unit in range(hidden):
                    mean = work.total[direction, row, unit] / length
                    work.summary[row, column + unit] = np.float32(mean)
                column += hidden
        if network.largest:
            for direction in range(directions):
                copy_row(work.summary[row, column : column + hidden], work.largest[direction, row])
                column += hidden
