"""Where the parameters are in the flat arrays, and the copies of them that products read.

model.parameters() has the embeddings of tokens, n-grams and positions, then W_ih, W_hh, b_ih and
b_hh of each layer and direction, and then weight and bias of the head. Embeddings are read where
they are: a step needs few of their rows. The weights of a gated cell are G blocks of H rows, one
below the other, in torch's order. The symbols of shapes are those of `memory`.
"""

from rnncls.compiled.compiler import jit, jit_inlined, jit_view
from rnncls.compiled.kernels import copy, copy_row, copy_transposed, sum_rows


@jit
def offset_of(sizes, unit):
    """Return where a direction of a layer begins, or the head, whose `unit` is L * D."""
    of_first_layer = min(unit, sizes.directions)
    first = of_first_layer * _num_parameters(sizes, 0)
    others = (unit - of_first_layer) * _num_parameters(sizes, 1)
    return sizes.embeddings * sizes.width + first + others


@jit
def _num_parameters(sizes, layer):
    """Return how many numbers the parameters of one direction of a layer are."""
    biases = 2 if sizes.bias else 0
    return sizes.gates * sizes.hidden * (_input_size(sizes, layer) + sizes.hidden + biases)


@jit
def _input_size(sizes, layer):
    return sizes.width if layer == 0 else sizes.directions * sizes.hidden


@jit_view
def matrix(flat, offset, rows, columns):
    """Return the parameter that begins at this offset, a view (rows, columns)."""
    return flat[offset : offset + rows * columns].reshape((rows, columns))


@jit_view
def token_embeddings(sizes, flat):
    """Return the embeddings of tokens (V, E), or their gradients."""
    return matrix(flat, 0, sizes.tokens, sizes.width)


@jit_view
def ngram_embeddings(sizes, extras, flat):
    """Return the embeddings of n-grams (M, E), or their gradients."""
    return matrix(flat, sizes.tokens * sizes.width, extras.table, sizes.width)


@jit_view
def position_embeddings(sizes, extras, flat):
    """Return the embeddings of positions, (., E), or their gradients."""
    offset = (sizes.tokens + extras.table) * sizes.width
    return matrix(flat, offset, extras.positions, sizes.width)


@jit_view
def head_matrix(sizes, flat, offset):
    """Return the weights of the head, (C, W * H + E), which begins at `offset`."""
    return matrix(flat, offset, sizes.classes, sizes.parts * sizes.hidden + sizes.skip)


@jit_view
def head_bias(sizes, flat, offset):
    """Return the biases of the head, (C,), which begins at `offset`."""
    begin = offset + sizes.classes * (sizes.parts * sizes.hidden + sizes.skip)
    return flat[begin : begin + sizes.classes]


@jit
def load_weights(sizes, more, flat, weights):
    """Copy the parameters from `flat` (P,) to PaddedWeights and More, which may be None."""
    # A product reads whole rows of its right operand: forward those of W^T, backward those of W.
    if sizes.by_table:
        copy(weights.embedding, token_embeddings(sizes, flat))
    for layer in range(sizes.layers):
        for direction in range(sizes.directions):
            _load_unit(sizes, flat, layer, direction, weights)

    hidden = sizes.hidden
    offset = offset_of(sizes, sizes.layers * sizes.directions)
    head = head_matrix(sizes, flat, offset)
    for part in range(sizes.parts):
        columns = head[:, part * hidden : (part + 1) * hidden]
        copy(weights.head[part], columns)
        copy_transposed(weights.head_t[part], columns)
    if more is not None:
        columns = head[:, sizes.parts * hidden :]
        copy(more.head_skip, columns)
        copy_transposed(more.head_skip_t, columns)
    copy_row(weights.head_bias[0, : sizes.classes], head_bias(sizes, flat, offset))


@jit_inlined
def _load_unit(sizes, flat, layer, direction, weights):
    """Copy the parameters of one direction of a layer."""
    hidden = sizes.hidden
    gates = sizes.gates
    unit = layer * sizes.directions + direction
    input_size = _input_size(sizes, layer)
    offset = offset_of(sizes, unit)
    recurrent_offset = offset + gates * hidden * input_size
    bias_offset = recurrent_offset + gates * hidden * hidden

    for gate in range(gates):
        w_ih = matrix(flat, offset + gate * hidden * input_size, hidden, input_size)
        if layer == 0:
            copy(weights.input[direction, gate], w_ih)
            copy_transposed(weights.input_t[direction, gate], w_ih)
        else:
            for part in range(sizes.directions):
                columns = w_ih[:, part * hidden : (part + 1) * hidden]
                copy(weights.between[unit, part, gate], columns)
                copy_transposed(weights.between_t[unit, part, gate], columns)

        w_hh = matrix(flat, recurrent_offset + gate * hidden * hidden, hidden, hidden)
        copy(weights.recurrent[unit, gate], w_hh)
        copy_transposed(weights.recurrent_t[unit, gate], w_hh)

        # Without biases they stay 0, as they were made.
        if sizes.bias:
            b_ih = flat[bias_offset + gate * hidden :][:hidden]
            b_hh = flat[bias_offset + (gates + gate) * hidden :][:hidden]
            _load_bias(sizes, weights.bias[unit], gate, b_ih, b_hh)


@jit_inlined
def _load_bias(sizes, bias, gate, b_ih, b_hh):
    """Copy the biases of one gate to `bias` (G + 1, 1, H')."""
    # The sum is all that is ever used, but where the cell keeps them apart.
    if sizes.bias_apart and gate == sizes.gates - 1:
        for number in range(sizes.hidden):
            bias[gate, 0, number] = b_ih[number]
            bias[gate + 1, 0, number] = b_hh[number]
    else:
        for number in range(sizes.hidden):
            bias[gate, 0, number] = b_ih[number] + b_hh[number]


@jit
def store_gradients(sizes, offset, layer, d_input, d_between, d_recurrent, gradients):
    """Copy the gradients of one direction's W_ih and W_hh, which begin at `offset`.

    They come from the arrays of these names in Workspace.
    """
    hidden = sizes.hidden
    gates = sizes.gates
    input_size = _input_size(sizes, layer)
    recurrent_offset = offset + gates * hidden * input_size

    for gate in range(gates):
        d_w_ih = matrix(gradients, offset + gate * hidden * input_size, hidden, input_size)
        if layer == 0:
            copy(d_w_ih, d_input[gate])
        else:
            for part in range(sizes.directions):
                columns = d_w_ih[:, part * hidden : (part + 1) * hidden]
                copy(columns, d_between[part, gate])

        d_w_hh = matrix(gradients, recurrent_offset + gate * hidden * hidden, hidden, hidden)
        copy(d_w_hh, d_recurrent[gate])


@jit_inlined
def bias_gradients(sizes, offset, layer, gate, gradients, d_gate, rows):
    """Compute db_ih and db_hh of one gate, the sum of the rows of `d_gate` (S, H').

    `offset` is where the parameters of the layer's direction begin.
    """
    if sizes.bias:
        # Both are added to the same sum, so they have the same gradient.
        d_b_ih = _bias(sizes, offset, layer, gate, gradients)
        sum_rows(d_b_ih, d_gate, rows)
        copy_row(_bias(sizes, offset, layer, sizes.gates + gate, gradients), d_b_ih)


@jit_inlined
def apart_bias_gradient(sizes, offset, layer, gradients, d_recurrent, rows):
    """Compute db_hh of the last gate where it is kept apart, the sum of rows of `d_recurrent`."""
    if sizes.bias:
        sum_rows(_bias(sizes, offset, layer, 2 * sizes.gates - 1, gradients), d_recurrent, rows)


@jit_view
def _bias(sizes, offset, layer, number, flat):
    """Return a bias (H,) of a direction: number 0 to G - 1 of b_ih, and then those of b_hh."""
    hidden = sizes.hidden
    begin = offset + sizes.gates * hidden * (_input_size(sizes, layer) + hidden) + number * hidden
    return flat[begin : begin + hidden]
