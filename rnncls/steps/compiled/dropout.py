"""Dropout of the inputs of every layer but the first, as a function of positions.

Whether an element is kept depends on the run's seed, the step, the layer, the place of its sequence
in the batch as it was drawn, its place in the sequence and its column, and on nothing else: neither
on the order of rows, nor on threads, nor on how steps are cut. rnncls/model/dropout.py has the same
rule for PyTorch's tensors.

The random numbers are those of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators"): one generator for each row, whose outputs are split into two
numbers of 32 bits, of columns 2 i and 2 i + 1.
"""

import numpy as np

from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.kernels import copy

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


@jit_inlined
def _finalize(z):
    """Return the output of SplitMix64 in state z, an uint64."""
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@jit
def _draw(bits, key, row, time):
    """Fill `bits` (uint64) with the random numbers of one token."""
    place = np.uint64((row << 32) + time + 1)
    state = _finalize(key + place * _GOLDEN)
    for index in range(len(bits)):
        bits[index] = _finalize(state + np.uint64(index + 1) * _GOLDEN)


@jit
def _apply(values, bits, threshold, scale):
    """Multiply each value by `scale` or, where its number in `bits` (uint32) is low, by 0."""
    for index in range(len(values)):
        values[index] *= scale if np.int64(bits[index]) >= threshold else np.float32(0)


@jit
def drop(sizes, values, bits, key, first, batch, size):
    """Apply dropout to the outputs of all directions of a layer, (D, S, H'), or their gradients.

    `key` is that of the layer above at this step, and `first` the first sequence of the step.
    `bits` (D * H / 2,) is working memory.
    """
    hidden = sizes.hidden
    threshold = np.int64(np.round(sizes.dropout * 2.0**32))
    scale = np.float32(1.0 / (1.0 - sizes.dropout))

    # The low half of a number is that of the even column: machines are little-endian.
    halves = bits.view(np.uint32)
    for t in range(size.time_steps):
        for rank in range(batch.running[t]):
            _draw(bits, key, batch.order[rank] - first, t)
            for direction in range(sizes.directions):
                row = values[direction, batch.first_row[t] + rank]
                of_direction = halves[direction * hidden : (direction + 1) * hidden]
                _apply(row[:hidden], of_direction, threshold, scale)


@jit_inlined
def drop_outputs(sizes, work, layer, key, first, batch, size):
    """Compute work.dropped of a layer, what it reads of the outputs of the layer below."""
    for direction in range(sizes.directions):
        below = work.hidden[(layer - 1) * sizes.directions + direction]
        copy(work.dropped[layer, direction], below[: size.rows])
    drop(sizes, work.dropped[layer], work.bits, key, first, batch, size)
