"""The pointwise parts of a time step of GRU and LSTM, each one loop over contiguous memory.

A gate has an array of its own, so that what a time step computes element by element is one 1-D
loop, which LLVM turns into vector instructions. No array may be both input and output where it is
not said: the loop would go element by element, ten times as slowly.

Sigmoids are computed as 0.5 + 0.5 tanh(x / 2) with the rational tanh of `kernels`, because Numba
calls libm's functions one element at a time. Their absolute error is 1.6e-7.
"""

import numpy as np

from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.kernels import tanh_of


@jit_inlined
def _sigmoid(value):
    return np.float32(0.5) + np.float32(0.5) * tanh_of(np.float32(0.5) * value)


@jit
def gru_forward(hidden, reset, update, new, recurrent, before):
    """Compute the state after one more token: h = n + z (h_before - n), with torch's r, z and n.

    `reset`, `update` and `new` hold pre-activations, `new` without its recurrent part, which is
    `recurrent` = W_hn h_before + b_hn. They become the gates: r and z the sigmoids of theirs, and
    n = tanh(new + r recurrent). All arrays have one element for each hidden unit of each row.
    """
    for index in range(len(hidden)):
        r = _sigmoid(reset[index])
        z = _sigmoid(update[index])
        n = tanh_of(new[index] + r * recurrent[index])
        reset[index] = r
        update[index] = z
        new[index] = n
        hidden[index] = n + z * (before[index] - n)


@jit
def gru_backward(d_before, reset, update, new, recurrent, before, d_hidden):
    """Turn the gates into the gradients of their pre-activations, and add that of `before`.

    `recurrent` becomes the gradient of the recurrent part of n, which is dn r. `d_before` receives
    what reaches the state before directly; what reaches it through the products is added by them.
    """
    for index in range(len(d_hidden)):
        d = d_hidden[index]
        r = reset[index]
        z = update[index]
        n = new[index]
        rest = np.float32(1) - z
        dn = d * rest * (np.float32(1) - n * n)

        d_before[index] += d * z
        update[index] = d * (before[index] - n) * z * rest
        new[index] = dn
        reset[index] = dn * recurrent[index] * r * (np.float32(1) - r)
        recurrent[index] = dn * r


@jit
def lstm_forward(hidden, cell, tanh_cell, input, forget, candidate, output, before):
    """Compute the state after one more token: c = i g + f c_before, h = o tanh(c).

    `input`, `forget`, `candidate` and `output` hold the pre-activations of torch's i, f, g and o
    and become the gates. `before` is c_before. `tanh_cell` is kept for the backward pass.
    """
    for index in range(len(hidden)):
        i = _sigmoid(input[index])
        f = _sigmoid(forget[index])
        g = tanh_of(candidate[index])
        o = _sigmoid(output[index])
        input[index] = i
        forget[index] = f
        candidate[index] = g
        output[index] = o

        c = i * g + f * before[index]
        t = tanh_of(c)
        cell[index] = c
        tanh_cell[index] = t
        hidden[index] = o * t


@jit
def lstm_backward(d_cell, input, forget, candidate, output, tanh_cell, before, d_hidden):
    """Turn the gates into the gradients of their pre-activations.

    `d_cell` holds dc as far as it comes from the token after this one, and becomes that of
    `before`.
    """
    for index in range(len(d_hidden)):
        i = input[index]
        f = forget[index]
        g = candidate[index]
        o = output[index]
        t = tanh_cell[index]
        d = d_hidden[index]
        dc = d_cell[index] + d * o * (np.float32(1) - t * t)

        output[index] = d * t * o * (np.float32(1) - o)
        input[index] = dc * g * i * (np.float32(1) - i)
        candidate[index] = dc * i * (np.float32(1) - g * g)
        forget[index] = dc * before[index] * f * (np.float32(1) - f)
        d_cell[index] = dc * f
