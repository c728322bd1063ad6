"""One direction of one layer of nn.RNN: h_t = f(W_ih x_t + b + W_hh h_(t-1)), f = tanh or relu.

The pre-activation z_t stands in the place of h_t, and dz_t in that of dh_t. Products that do not
depend on the time step before are computed for all rows at once. The symbols of shapes are those
of `memory`.
"""

from rnncls.compiled.batches import time_step
from rnncls.compiled.compiler import jit_inlined
from rnncls.compiled.kernels import (
    ZERO,
    add_product,
    add_transposed,
    copy,
    relu,
    relu_backward,
    tanh,
    tanh_backward,
)
from rnncls.steps.compiled.inputs import (
    input_gradients_of,
    inputs_of,
    project,
    project_backward,
)
from rnncls.steps.compiled.noise import add_noise
from rnncls.steps.compiled.parameters import bias_gradients

GATES = 1
KEPT = 0
BIAS_APART = False


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
    recurrent_t = weights.recurrent_t[unit, 0]
    project(inputs, 0, hidden, ZERO, size.rows)

    for number in range(size.time_steps):
        step = time_step(batch.first_row, batch.running, size.time_steps, number, direction == 1)
        if sizes.noise > 0:
            add_noise(sizes, work, batch, unit, noise_keys[unit], first, step)
        source_row = step.first if sizes.noise > 0 else step.before
        if step.known > 0:
            add_product(  # z += h before @ W_hh^T
                out=hidden,
                out_row=step.first,
                left=source,
                left_row=source_row,
                right=recurrent_t,
                rows=step.known,
            )
        states = hidden[step.first : step.first + step.rows].reshape(-1)
        if sizes.relu:
            relu(states)
        else:
            tanh(states)


@jit_inlined
def backward(
    sizes, offset, weights, work, batch, layer, direction, gradients, d_hidden, d_below, size
):
    """Turn dh of a direction's outputs, `d_hidden` (S, H'), into all other gradients.

    Those of the biases are stored, the others added to those in `work` and to d_below (D, S, H').
    `offset` is where the parameters of the direction begin.

    dz_t = f'(z_t) dh_t, and dh_(t-1) += dz_t W_hh.
    """
    unit = layer * sizes.directions + direction
    hidden = work.hidden[unit]
    inputs = inputs_of(sizes, weights, work, batch, layer, direction)
    d_inputs = input_gradients_of(sizes, weights, work, layer, direction, d_below)
    recurrent = weights.recurrent[unit, 0]
    reverse = direction == 1

    for number in range(size.time_steps - 1, -1, -1):
        step = time_step(batch.first_row, batch.running, size.time_steps, number, reverse)
        # By now dh_t is complete, for the step that was read after it has added its part.
        gradient = d_hidden[step.first : step.first + step.rows].reshape(-1)
        output = hidden[step.first : step.first + step.rows].reshape(-1)
        if sizes.relu:
            relu_backward(gradient, output)
        else:
            tanh_backward(gradient, output)

        if step.known > 0:
            add_product(  # dh before += dz @ W_hh
                out=d_hidden,
                out_row=step.before,
                left=d_hidden,
                left_row=step.first,
                right=recurrent,
                rows=step.known,
            )
            if sizes.noise == 0:
                _lay_beside(work.beside, hidden, d_hidden, step, reverse)

    # dW_hh = sum_t dz_t^T h_(t-1), with the noise that there was.
    left = work.beside if reverse and sizes.noise == 0 else d_hidden
    right = hidden if reverse else work.beside
    if sizes.noise > 0:
        right = work.noised[unit]
    # The first B rows have nothing beside them. With noise, those where sequences begin have zeros,
    # which in reverse may be any.
    skipped = ZERO if reverse and sizes.noise > 0 else size.sequences
    add_transposed(
        out=work.d_recurrent[0],
        left=left,
        left_row=skipped,
        right=right,
        right_row=skipped,
        rows=size.rows - skipped,
    )
    bias_gradients(sizes, offset, layer, 0, gradients, d_hidden, size.rows)
    project_backward(inputs, d_inputs, 0, d_hidden, ZERO, size.rows)


@jit_inlined
def _lay_beside(beside, hidden, d_hidden, step, reverse):
    """Copy rows so that each dz_t and the h_(t-1) from which it went on have the same number.

    Forwards, every row behind the first B has a state before it, which is copied to its place. In
    reverse, every row behind the first B is a state before, and dz is copied to its place.
    """
    first = step.first
    before = step.before
    known = step.known
    if reverse:
        copy(beside[before : before + known], d_hidden[first : first + known])
    else:
        copy(beside[first : first + known], hidden[before : before + known])
