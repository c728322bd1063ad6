"""What a layer reads: embedded tokens or the outputs of the layer below, times W_ih.

A cell asks for the products of one gate and some rows: nn.RNN for all rows at once, the gated
cells for one time step at a time, while its rows are in the cache. The symbols of shapes are those
of `memory`.
"""

from typing import NamedTuple

import numpy as np

from rnncls.compiled.batches import Array
from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.kernels import (
    ZERO,
    add_product,
    add_row,
    add_transposed,
    clear,
    copy,
    copy_row,
    multiply,
)
from rnncls.steps.compiled.dropout import EMBEDDING, NGRAMS, TOKENS, drop_inputs, drop_tokens
from rnncls.steps.compiled.head import skip_backward
from rnncls.steps.compiled.ngrams import add_ngrams, find_ngrams, ngram_gradient
from rnncls.steps.compiled.parameters import (
    ngram_embeddings,
    position_embeddings,
    token_embeddings,
)


@jit_inlined
def embed(sizes, more, flat, weights, work, batch, keys, first, size):
    """Compute what the first layer reads of the tokens, x = embedding[token], work.inputs (S, E').

    The embeddings of n-grams and of the position, from `flat` (P,), are added. `more` may be None.
    `keys` are those of dropout outside the recurrence, `first` is the first sequence of the step.

    With few tokens in the vocabulary and nothing beside their embeddings, W_ih x + b is computed
    once per token instead, work.table (D, G, V, H').
    """
    if more is not None:
        _drop_tokens(more, keys, first, batch, size)
    if sizes.by_table:
        _fill_table(sizes, weights, work)
        return

    width = sizes.width
    embedding = token_embeddings(sizes, flat)
    for row in range(size.rows):
        copy_row(work.inputs[row, :width], embedding[batch.tokens[row]])

    if more is not None:
        _read_more(sizes, more, flat, work.inputs, batch, keys, first, size)


@jit_inlined
def _drop_tokens(more, keys, first, batch, size):
    """Put the unknown token in the place of those that dropout leaves out."""
    if more.extras.token_dropout > 0:
        drop_tokens(more.extras, more.bits, keys[TOKENS], first, batch, size)


@jit_inlined
def _read_more(sizes, more, flat, inputs, batch, keys, first, size):
    """Add what is read beside embeddings of tokens to `inputs` (S, E'), and apply dropout to it."""
    extras = more.extras
    bits = more.bits
    if extras.num_ngrams > 0:
        key = keys[NGRAMS] if extras.ngram_dropout > 0 else np.uint64(0)
        find_ngrams(extras, more.found, bits, key, first, batch, size)
        table = ngram_embeddings(sizes, extras, flat)
        add_ngrams(extras, table, more.found, inputs, size.rows)
    if extras.positions > 0:
        _add_positions(inputs, position_embeddings(sizes, extras, flat), batch, size)
    if extras.embedding_dropout > 0:
        drop_inputs(sizes, extras, inputs, bits, keys[EMBEDDING], first, batch, size)


@jit_inlined
def _fill_table(sizes, weights, work):
    """Compute W_ih x + b of all tokens, work.table."""
    for direction in range(sizes.directions):
        for gate in range(sizes.gates):
            multiply(  # table = bias + embedding @ W_ih^T
                out=work.table[direction, gate],
                out_row=ZERO,
                start=weights.bias[direction, gate],
                left=weights.embedding,
                left_row=ZERO,
                right=weights.input_t[direction, gate],
                rows=sizes.tokens,
            )


@jit
def _add_positions(inputs, positions, batch, size):
    """Add to each row of `inputs` (S, E') that of its time step, `positions` (., E)."""
    width = positions.shape[1]
    for t in range(size.time_steps):
        for row in range(batch.first_row[t], batch.first_row[t] + batch.running[t]):
            add_row(inputs[row, :width], positions[t])


@jit
def _position_gradient(d_positions, d_inputs, batch, size):
    """Compute the gradient of positions (., E) from that of what is read (S, E')."""
    clear(d_positions.reshape(-1))
    for t in range(size.time_steps):
        for row in range(batch.first_row[t], batch.first_row[t] + batch.running[t]):
            add_row(d_positions[t], d_inputs[row])


class Inputs(NamedTuple):
    """What one direction of a layer reads, and the weights of all gates for it.

    Layers above the first read the outputs of one or both directions below, x and x_other; the
    columns of W_ih for them are separate weights. Of one direction, x_other is x and not used.
    """

    by_table: bool
    table: Array  # (G, V, H')
    tokens: Array  # (S,) int32
    bias: Array  # (G + 1, 1, H')
    x: Array  # (S, E' or H')
    weight_t: Array  # (G, E or H, H')
    has_other: bool
    x_other: Array  # (S, H')
    weight_other_t: Array  # (G, H, H')


class InputGradients(NamedTuple):
    """Where the gradients of Inputs are added up, and the weights that they need."""

    overwrites: bool  # whether the first gate overwrites d_x and d_x_other, instead of adding
    d_weight: Array  # (G, H, E' or H')
    d_x: Array  # (S, E' or H')
    weight: Array  # (G, H, E' or H')
    d_weight_other: Array  # (G, H, H')
    d_x_other: Array  # (S, H')
    weight_other: Array  # (G, H, H')


@jit_inlined
def inputs_of(sizes, weights, work, batch, layer, direction):
    """Return the Inputs of one direction of a layer."""
    unit = layer * sizes.directions + direction
    other = sizes.directions - 1
    if layer == 0:
        x = work.inputs
        weight_t = weights.input_t[direction]
        x_other = x
    elif sizes.dropout > 0:
        x = work.dropped[layer, 0]
        weight_t = weights.between_t[unit, 0]
        x_other = work.dropped[layer, other]
    else:
        below = (layer - 1) * sizes.directions
        x = work.hidden[below]
        weight_t = weights.between_t[unit, 0]
        x_other = work.hidden[below + other]

    return Inputs(
        by_table=layer == 0 and sizes.by_table,
        table=work.table[direction],
        tokens=batch.tokens,
        bias=weights.bias[unit],
        x=x,
        weight_t=weight_t,
        has_other=layer > 0 and other > 0,
        x_other=x_other,
        weight_other_t=weights.between_t[unit, other],
    )


@jit_inlined
def input_gradients_of(sizes, weights, work, layer, direction, d_below):
    """Return the InputGradients of one direction; `d_below` (D, S, H') is for the layer below."""
    unit = layer * sizes.directions + direction
    other = sizes.directions - 1
    if layer == 0:
        d_weight = work.d_input
        d_x = work.d_embedded
        weight = weights.input[direction]
    else:
        d_weight = work.d_between[0]
        d_x = d_below[0]
        weight = weights.between[unit, 0]

    return InputGradients(
        overwrites=direction == 0,
        d_weight=d_weight,
        d_x=d_x,
        weight=weight,
        d_weight_other=work.d_between[other],
        d_x_other=d_below[other],
        weight_other=weights.between[unit, other],
    )


@jit
def project(inputs, gate, out, first, rows):
    """Compute out[first:][:rows] = W_ih x + b of one gate, where out is (S, H')."""
    if inputs.by_table:
        table = inputs.table[gate]
        for row in range(first, first + rows):
            copy_row(out[row], table[inputs.tokens[row]])
        return

    multiply(  # out = bias + x @ W_ih^T
        out=out,
        out_row=first,
        start=inputs.bias[gate],
        left=inputs.x,
        left_row=first,
        right=inputs.weight_t[gate],
        rows=rows,
    )
    if inputs.has_other:
        add_product(
            out=out,
            out_row=first,
            left=inputs.x_other,
            left_row=first,
            right=inputs.weight_other_t[gate],
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


@jit
def project_backward(inputs, gradients, gate, d_gate, first, rows):
    """Add what some rows of dz of one gate, `d_gate` (S, H'), give to dW_ih and to dx.

    With dz = d_gate[first:][:rows]: dW_ih += dz^T x, and dx += dz W_ih. The first gate of the first
    direction overwrites dx instead, so it has to come first.
    """
    if inputs.by_table:
        # For a token v, dtable_v is the sum of dz over the rows with token v.
        table = inputs.table[gate]
        for row in range(first, first + rows):
            add_row(table[inputs.tokens[row]], d_gate[row])
        return

    overwrites = gradients.overwrites and gate == 0
    add_transposed(  # dW_ih += dz^T @ x
        out=gradients.d_weight[gate],
        left=d_gate,
        left_row=first,
        right=inputs.x,
        right_row=first,
        rows=rows,
    )
    _pass_down(gradients.d_x, overwrites, d_gate, gradients.weight[gate], first, rows)

    if inputs.has_other:
        add_transposed(
            out=gradients.d_weight_other[gate],
            left=d_gate,
            left_row=first,
            right=inputs.x_other,
            right_row=first,
            rows=rows,
        )
        _pass_down(
            gradients.d_x_other, overwrites, d_gate, gradients.weight_other[gate], first, rows
        )


@jit_inlined
def _pass_down(out, overwrites, d_gate, weight, first, rows):
    """Compute out[first:][:rows] = d_gate[first:][:rows] @ weight, or add it."""
    if overwrites:
        clear(out[first : first + rows].reshape(-1))
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
    clear(work.d_input.reshape(-1))
    for gate in range(sizes.gates):
        add_transposed(  # dW_ih = dtable^T @ embedding
            out=work.d_input[gate],
            left=work.table[direction, gate],
            left_row=ZERO,
            right=weights.embedding,
            right_row=ZERO,
            rows=sizes.tokens,
        )
        _pass_down(
            out=work.d_embedded,
            overwrites=direction == 0 and gate == 0,
            d_gate=work.table[direction, gate],
            weight=weights.input[direction, gate],
            first=ZERO,
            rows=sizes.tokens,
        )


@jit_inlined
def embedding_gradients(sizes, more, work, batch, keys, first, gradients, size):
    """Compute the gradients of all embeddings from work.d_embedded (V or S, E').

    `more` may be None. `keys` and `first` are those of `embed`.
    """
    embedding = token_embeddings(sizes, gradients)
    if sizes.by_table:
        copy(embedding, work.d_embedded)
        return

    if more is not None:
        _read_more_backward(sizes, more, work, batch, keys, first, gradients, size)
    # A token may stand in many rows, whose gradients are added, or in none.
    clear(gradients[: sizes.tokens * sizes.width])
    for row in range(size.rows):
        add_row(embedding[batch.tokens[row]], work.d_embedded[row])


@jit_inlined
def _read_more_backward(sizes, more, work, batch, keys, first, gradients, size):
    """Compute the gradients of n-grams and positions, and complete work.d_embedded for tokens."""
    extras = more.extras
    d_inputs = work.d_embedded
    if sizes.skip > 0:
        skip_backward(sizes, more.d_skip, d_inputs, batch, size)
    if extras.embedding_dropout > 0:
        drop_inputs(sizes, extras, d_inputs, more.bits, keys[EMBEDDING], first, batch, size)

    if extras.num_ngrams > 0:
        d_table = ngram_embeddings(sizes, extras, gradients)
        ngram_gradient(extras, d_table, more.touched, more.found, d_inputs, size.rows)
    if extras.positions > 0:
        d_positions = position_embeddings(sizes, extras, gradients)
        _position_gradient(d_positions, d_inputs, batch, size)
