"""One direction of one layer of nn.GRU.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)      n = tanh(W_in x + b_in + r (W_hn h + b_hn))
    z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)      h' = n + z (h - n)

Each time step computes all its products while its rows are in the cache. Its four arrays are r, z,
n and the recurrent part of n, W_hn h + b_hn; going back, they become the gradients of their
pre-activations. The symbols of shapes are those of `memory`.
"""

from rnncls.compiled.batches import time_step
from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.gates import gru_backward, gru_forward
from rnncls.compiled.kernels import ZERO, add_product, add_transposed, clear, copy_row, multiply
from rnncls.steps.compiled.inputs import (
    input_gradients_of,
    inputs_of,
    project,
    project_backward,
)
from rnncls.steps.compiled.noise import add_noise
from rnncls.steps.compiled.parameters import apart_bias_gradient, bias_gradients

GATES = 3
KEPT = 4
BIAS_APART = True

# The places of r, z, n and the recurrent part of n. The first three are those of the weights, too.
_RESET, _UPDATE, _NEW, _RECURRENT = range(4)


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
    recurrent_bias = weights.bias[unit, _RECURRENT]

    for number in range(size.time_steps):
        step = time_step(batch.first_row, batch.running, size.time_steps, number, direction == 1)
        if sizes.noise > 0:
            add_noise(sizes, work, batch, unit, noise_keys[unit], first, step)
        source_row = step.first if sizes.noise > 0 else step.before
        for gate in range(GATES):
            project(inputs, gate, kept[gate], step.first, step.rows)
        for gate in range(_NEW):
            add_product(  # r and z += h before @ W_hh^T
                out=kept[gate],
                out_row=step.first,
                left=source,
                left_row=source_row,
                right=recurrent_t[gate],
                rows=step.known,
            )

        # What begins here has h = 0, so that the bias is all of it.
        multiply(
            out=kept[_RECURRENT],
            out_row=step.first,
            start=recurrent_bias,
            left=source,
            left_row=source_row,
            right=recurrent_t[_NEW],
            rows=step.known,
        )
        for row in range(step.first + step.known, step.first + step.rows):
            copy_row(kept[_RECURRENT, row], recurrent_bias[0])

        begin = step.first + step.known
        _states(hidden, kept, step.first, step.known, hidden, step.before)
        _states(hidden, kept, begin, step.rows - step.known, work.no_rows, ZERO)


@jit
def _states(hidden, kept, first, rows, before, first_before):
    """Compute the states of some rows, which go on from those of `before` from another row on."""
    if rows > 0:
        last = first + rows
        gru_forward(
            hidden[first:last].reshape(-1),
            kept[_RESET, first:last].reshape(-1),
            kept[_UPDATE, first:last].reshape(-1),
            kept[_NEW, first:last].reshape(-1),
            kept[_RECURRENT, first:last].reshape(-1),
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
    clear(work.d_carried[: size.sequences].reshape(-1))

    for number in range(size.time_steps - 1, -1, -1):
        step = time_step(batch.first_row, batch.running, size.time_steps, number, direction == 1)
        source_row = step.first if sizes.noise > 0 else step.before
        begin = step.first + step.known
        _d_gates(d_hidden, kept, step.first, step.known, hidden, d_hidden, step.before)
        # Nobody asks for the gradient of the state 0 in which a sequence begins.
        _d_gates(d_hidden, kept, begin, step.rows - step.known, work.no_rows, work.d_carried, ZERO)

        for gate in range(GATES):
            # W_hn gets the gradient of the recurrent part of n, and W_in that of n.
            d_recurrent = kept[_RECURRENT if gate == _NEW else gate]
            add_product(  # dh before += dz @ W_hh
                out=d_hidden,
                out_row=step.before,
                left=d_recurrent,
                left_row=step.first,
                right=recurrent[gate],
                rows=step.known,
            )
            add_transposed(  # dW_hh += dz^T @ what it multiplied
                out=d_weight[gate],
                left=d_recurrent,
                left_row=step.first,
                right=source,
                right_row=source_row,
                rows=step.known,
            )

        for gate in range(GATES):
            project_backward(inputs, d_inputs, gate, kept[gate], step.first, step.rows)

    for gate in range(GATES):
        bias_gradients(sizes, offset, layer, gate, gradients, kept[gate], size.rows)
    apart_bias_gradient(sizes, offset, layer, gradients, kept[_RECURRENT], size.rows)


@jit
def _d_gates(d_hidden, kept, first, rows, before, d_before, first_before):
    """Turn the gates of some rows into gradients, and add to that of the states before."""
    if rows > 0:
        last = first + rows
        last_before = first_before + rows
        gru_backward(
            d_before[first_before:last_before].reshape(-1),
            kept[_RESET, first:last].reshape(-1),
            kept[_UPDATE, first:last].reshape(-1),
            kept[_NEW, first:last].reshape(-1),
            kept[_RECURRENT, first:last].reshape(-1),
            before[first_before:last_before].reshape(-1),
            d_hidden[first:last].reshape(-1),
        )
