"""What stands in the place of a cell in a model without recurrent layers: the n-gram control.

There is no layer for which the program would call these functions.
"""

from rnncls.compiled.compiler import jit_inlined

GATES = 0
KEPT = 0
BIAS_APART = False


@jit_inlined
def forward(sizes, weights, work, batch, layer, direction, noise_keys, first, size):
    """Compute nothing."""


@jit_inlined
def backward(
    sizes, offset, weights, work, batch, layer, direction, gradients, d_hidden, d_below, size
):
    """Compute nothing."""
