"""What a layer reads: embedded tokens or the outputs of the layer below, times W_ih.

A cell asks for the products of one gate and some rows: nn.RNN for all rows at once, the gated
cells for one time step at a time, while its rows are in the cache. The symbols of shapes are those
of `memory`.
"""

from rnncls.compiled.kernels import (
    add_product,
    add_row,
    add_transposed,
    clear,
    copy,
    copy_row,
    jit_inlined,
    multiply,
    multiply_rows,
    multiply_transposed,
)
from rnncls.steps.compiled.parameters import matrix


@jit_inlined
def embed(sizes, weights, work, batch, rows):
    """Compute what the first layer reads of the tokens, x = embedding[token].

    With few tokens in the vocabulary, W_ih x + b is computed once per token, work.table
    (D, G, V, H'). Otherwise the tokens are embedded, work.inputs (S, E').
    """
    if sizes.by_table:
        for direction in range(sizes.directions):
            for gate in range(sizes.gates):
                multiply(  # table = bias + embedding @ W_ih^T
                    out=work.table[direction, gate],
                    start=weights.bias[direction, gate],
                    left=weights.embedding,
                    right=weights.input_t[direction, gate],
                    rows=sizes.tokens,
                )
    else:
        for row in range(rows):
            copy_row(work.inputs[row], weights.embedding[batch.tokens[row]])


@jit_inlined
def _output_below(sizes, work, layer, part):
    """Return what a layer above the first reads of one direction of the layer below, (S, H')."""
    if sizes.dropout > 0:
        outputs = work.dropped[layer, part]
    else:
        outputs = work.hidden[(layer - 1) * sizes.directions + part]
    return outputs


@jit_inlined
def project(sizes, weights, work, batch, layer, direction, gate, out, first, rows):
    """Compute out[first:][:rows] = W_ih x + b of one gate, where out is (S, H')."""
    unit = layer * sizes.directions + direction

    if layer > 0:
        multiply_rows(  # out = bias + outputs below @ W_ih^T
            out=out,
            out_row=first,
            start=weights.bias[unit, gate],
            left=_output_below(sizes, work, layer, 0),
            left_row=first,
            right=weights.between_t[unit, 0, gate],
            rows=rows,
        )
        # The columns of W_ih for the reverse direction below.
        if sizes.directions == 2:
            add_product(
                out=out,
                out_row=first,
                left=_output_below(sizes, work, layer, 1),
                left_row=first,
                right=weights.between_t[unit, 1, gate],
                rows=rows,
            )
    elif sizes.by_table:
        for row in range(first, first + rows):
            copy_row(out[row], work.table[direction, gate, batch.tokens[row]])
    else:
        multiply_rows(  # out = bias + inputs @ W_ih^T
            out=out,
            out_row=first,
            start=weights.bias[unit, gate],
            left=work.inputs,
            left_row=first,
            right=weights.input_t[direction, gate],
            rows=rows,
        )


@jit_inlined
def begin_gradients(sizes, work, layer, direction):
    """Clear the sums of one direction's gradients, to which the parts of a pass are added."""
    clear(work.d_recurrent.reshape(-1))
    if layer > 0:
        clear(work.d_between.reshape(-1))
    elif sizes.by_table:
        # The table itself is no longer needed: its gradient takes its place.
        clear(work.table[direction].reshape(-1))
    else:
        clear(work.d_input.reshape(-1))


@jit_inlined
def project_backward(
    sizes, weights, work, batch, layer, direction, gate, d_gate, d_below, first, rows
):
    """Add what some rows of dz of one gate, `d_gate` (S, H'), give to dW_ih and to dx.

    With dz = d_gate[first:][:rows]: dW_ih += dz^T x, and dx += dz W_ih, which is d_below (D, S, H')
    or, in the first layer, work.d_embedded. The first gate of the first direction does not add to
    dx but overwrites it, so it has to come first.
    """
    unit = layer * sizes.directions + direction
    overwrites = direction == 0 and gate == 0

    if layer > 0:
        for part in range(sizes.directions):
            add_transposed(  # dW_ih += dz^T @ outputs below
                out=work.d_between[part, gate],
                left=d_gate,
                left_row=first,
                right=_output_below(sizes, work, layer, part),
                right_row=first,
                rows=rows,
            )
            _pass_down(
                out=d_below[part],
                zeros=work.zeros,
                overwrites=overwrites,
                d_gate=d_gate,
                weight=weights.between[unit, part, gate],
                first=first,
                rows=rows,
            )
    elif sizes.by_table:
        # For a token v, dtable_v is the sum of dz over the rows with token v.
        for row in range(first, first + rows):
            add_row(work.table[direction, gate, batch.tokens[row]], d_gate[row])
    else:
        add_transposed(  # dW_ih += dz^T @ inputs
            out=work.d_input[gate],
            left=d_gate,
            left_row=first,
            right=work.inputs,
            right_row=first,
            rows=rows,
        )
        _pass_down(
            out=work.d_embedded,
            zeros=work.zeros,
            overwrites=overwrites,
            d_gate=d_gate,
            weight=weights.input[direction, gate],
            first=first,
            rows=rows,
        )


@jit_inlined
def _pass_down(out, zeros, overwrites, d_gate, weight, first, rows):
    """Compute out[first:][:rows] (+)= d_gate[first:][:rows] @ weight."""
    if overwrites:
        multiply_rows(
            out=out,
            out_row=first,
            start=zeros,
            left=d_gate,
            left_row=first,
            right=weight,
            rows=rows,
        )
    else:
        add_product(
            out=out,
            out_row=first,
            left=d_gate,
            left_row=first,
            right=weight,
            rows=rows,
        )


@jit_inlined
def table_backward(sizes, weights, work, direction):
    """Compute dW_ih of the first layer and the embedding's gradient from that of the table.

    For each gate: dW_ih = sum_v dtable_v^T embedding_v, and dembedding_v += dtable_v W_ih.
    """
    for gate in range(sizes.gates):
        multiply_transposed(  # dW_ih = dtable^T @ embedding
            out=work.d_input[gate],
            zeros=work.zeros,
            left=work.table[direction, gate],
            left_row=0,
            right=weights.embedding,
            right_row=0,
            rows=sizes.tokens,
        )
        _pass_down(
            out=work.d_embedded,
            zeros=work.zeros,
            overwrites=direction == 0 and gate == 0,
            d_gate=work.table[direction, gate],
            weight=weights.input[direction, gate],
            first=0,
            rows=sizes.tokens,
        )


@jit_inlined
def embedding_gradient(sizes, work, batch, gradients, rows):
    """Compute the gradient of the embedding (V, E) from work.d_embedded (V or S, E')."""
    embedding = matrix(gradients, 0, sizes.tokens, sizes.width)
    if sizes.by_table:
        copy(embedding, work.d_embedded)
    else:
        # A token may stand in many rows, whose gradients are added, or in none.
        clear(gradients[: sizes.tokens * sizes.width])
        for row in range(rows):
            add_row(embedding[batch.tokens[row]], work.d_embedded[row])
