"""One direction of one layer of nn.LSTM.

    i, f, o = sigmoid(W x + b + W_hh h)     g = tanh(W_ig x + b + W_hg h)
    c' = f c + i g                          h' = o tanh(c')

Each time step computes all its products while its rows are in the cache. Its six arrays are i, f,
g, o, c and tanh(c); going back, the gates become the gradients of their pre-activations. The
symbols of shapes are those of `memory`.
"""

from rnncls.compiled.batches import time_step
from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.gates import lstm_backward, lstm_forward
from rnncls.compiled.kernels import ZERO, add_product, add_transposed, clear
from rnncls.steps.compiled.inputs import (
    input_gradients_of,
    inputs_of,
    project,
    project_backward,
)
from rnncls.steps.compiled.noise import add_noise
from rnncls.steps.compiled.parameters import bias_gradients

GATES = 4
KEPT = 6
BIAS_APART = False

# The places of the arrays. The first four are those of the weights, too.
_INPUT, _FORGET, _CANDIDATE, _OUTPUT, _CELL, _TANH_CELL = range(6)


@jit_inlined
def forward(sizes, weights, work, batch, layer, direction, noise_keys, first, size):
    """Compute the outputs of one direction of a layer, work.hidden[unit] (S, H').

    `noise_keys` (L * D,) are those of the noise of this step, whose first sequence is `first`.
    """
    unit = layer * sizes.directions + direction
    hidden = work.hidden[unit]
    # What W_hh multiplies: the states before, where they are or with noise.
    source = work.noised[unit] if sizes.noise > 0 else hidden
    inputs = inputs_of(sizes, weights, work, batch, layer, direction)
    recurrent_t = weights.recurrent_t[unit]
    kept = work.kept[unit]
    cells = kept[_CELL]

    for number in range(size.time_steps):
        step = time_step(batch.first_row, batch.running, size.time_steps, number, direction == 1)
        if sizes.noise > 0:
            add_noise(sizes, work, batch, unit, noise_keys[unit], first, step)
        source_row = step.first if sizes.noise > 0 else step.before
        for gate in range(GATES):
            project(inputs, gate, kept[gate], step.first, step.rows)
            add_product(  # += h before @ W_hh^T
                out=kept[gate],
                out_row=step.first,
                left=source,
                left_row=source_row,
                right=recurrent_t[gate],
                rows=step.known,
            )

        begin = step.first + step.known
        _states(hidden, kept, step.first, step.known, cells, step.before)
        _states(hidden, kept, begin, step.rows - step.known, work.no_rows, ZERO)


@jit
def _states(hidden, kept, first, rows, before, first_before):
    """Compute the states of some rows, which go on from the c of `before` from another row on."""
    if rows > 0:
        last = first + rows
        lstm_forward(
            hidden[first:last].reshape(-1),
            kept[_CELL, first:last].reshape(-1),
            kept[_TANH_CELL, first:last].reshape(-1),
            kept[_INPUT, first:last].reshape(-1),
            kept[_FORGET, first:last].reshape(-1),
            kept[_CANDIDATE, first:last].reshape(-1),
            kept[_OUTPUT, first:last].reshape(-1),
            before[first_before : first_before + rows].reshape(-1),
        )


@jit_inlined
def backward(
    sizes, offset, weights, work, batch, layer, direction, gradients, d_hidden, d_below, size
):
    """Turn dh of a direction's outputs, `d_hidden` (S, H'), into all other gradients.

    Those of the biases are stored, the others added to those in `work` and to d_below (D, S, H').
    `offset` is where the parameters of the direction begin.
    """
    unit = layer * sizes.directions + direction
    hidden = work.hidden[unit]
    source = work.noised[unit] if sizes.noise > 0 else hidden
    inputs = inputs_of(sizes, weights, work, batch, layer, direction)
    d_inputs = input_gradients_of(sizes, weights, work, layer, direction, d_below)
    recurrent = weights.recurrent[unit]
    d_weight = work.d_recurrent
    kept = work.kept[unit]
    cells = kept[_CELL]
    # By rank. A sequence that has not been reached from its end has dc = 0.
    d_cell = work.d_carried
    clear(d_cell[: size.sequences].reshape(-1))

    for number in range(size.time_steps - 1, -1, -1):
        step = time_step(batch.first_row, batch.running, size.time_steps, number, direction == 1)
        source_row = step.first if sizes.noise > 0 else step.before
        begin = step.first + step.known
        _d_gates(d_hidden, kept, step.first, step.known, cells, step.before, d_cell, ZERO)
        _d_gates(
            d_hidden, kept, begin, step.rows - step.known, work.no_rows, ZERO, d_cell, step.known
        )

        for gate in range(GATES):
            add_product(  # dh before += dz @ W_hh
                out=d_hidden,
                out_row=step.before,
                left=kept[gate],
                left_row=step.first,
                right=recurrent[gate],
                rows=step.known,
            )
            add_transposed(  # dW_hh += dz^T @ what it multiplied
                out=d_weight[gate],
                left=kept[gate],
                left_row=step.first,
                right=source,
                right_row=source_row,
                rows=step.known,
            )
            project_backward(inputs, d_inputs, gate, kept[gate], step.first, step.rows)

    for gate in range(GATES):
        bias_gradients(sizes, offset, layer, gate, gradients, kept[gate], size.rows)


@jit
def _d_gates(d_hidden, kept, first, rows, before, first_before, d_cell, first_rank):
    """Turn the gates of some rows into gradients, and d_cell into that of the c before."""
    if rows > 0:
        last = first + rows
        lstm_backward(
            d_cell[first_rank : first_rank + rows].reshape(-1),
            kept[_INPUT, first:last].reshape(-1),
            kept[_FORGET, first:last].reshape(-1),
            kept[_CANDIDATE, first:last].reshape(-1),
            kept[_OUTPUT, first:last].reshape(-1),
            kept[_TANH_CELL, first:last].reshape(-1),
            before[first_before : first_before + rows].reshape(-1),
            d_hidden[first:last].reshape(-1),
        )
