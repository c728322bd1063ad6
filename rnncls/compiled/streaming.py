"""What a classifier says after each token of sequences that are read a few time steps at a time.

The states of a block of sequences stay in the working memory from one call to the next, so nothing
is as long as a sequence. One direction with pooling last, whose head sees the last layer's state.

The symbols of shapes are those of `inference`. T is the number of time steps of a call.
"""

import numpy as np

from rnncls.compiled.inference import advance, begin_block, put_input
from rnncls.compiled.kernels import ZERO, add_product, copy_row

# In place of a class, where logits are not finite.
NO_CLASS = -1


def begin(network, weights, work):
    """Put a block of sequences before their first token."""
    begin_block(network, weights, work)


def classes(network, weights, layout, kept, work, logits, out):
    """Let R sequences read T more tokens; write the class after each, or NO_CLASS, to out (T, R).

    The tokens of a time step are those of `layout`, one row after the other. `kept` is what
    `inference.logits` wants of it for one direction. `logits` (R, C') is working memory.
    """
    time_steps, rows = out.shape
    top = len(work.hidden) - 1
    for t in range(time_steps):
        for number in range(len(work.hidden)):
            put_input(network, weights, layout, number, t * rows, rows, kept, work)
            advance(network, weights, number, rows, work)

        for row in range(rows):
            copy_row(logits[row], weights.head_bias)
        add_product(logits, ZERO, work.hidden[top], ZERO, weights.head_t, rows)
        for row in range(rows):
            best = 0
            for index in range(1, network.classes):
                # NaN is above nothing, and nothing is above it; it stays the largest.
                value = logits[row, index]
                if value > logits[row, best] or value != value:
                    best = index
                if value != value:
                    break
            largest = logits[row, best]
            out[t, row] = best if abs(largest) < np.inf else NO_CLASS
