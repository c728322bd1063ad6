"""Dropout as a function of positions: of tokens, of what layers read and of what the head sees.

Whether an element is kept depends on the run's seed, the step, the layer or what else is dropped,
the place of its sequence in the batch as it was drawn, its place in the sequence and its column,
and on nothing else: neither on the order of rows, nor on threads, nor on how steps are cut.
rnncls/model/dropout.py has the same rule for PyTorch's tensors. In all functions here `first` is
the first sequence of the step, and `bits` is working memory.

The random numbers are those of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable
pseudorandom number generators"): one generator for each row, whose outputs are split into two
numbers of 32 bits, of columns 2 i and 2 i + 1.
"""

import numpy as np

from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.kernels import copy
from rnncls.data.vocabulary import UNKNOWN_ID

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


# The columns of StepInputs.input_keys.
TOKENS, NGRAMS, EMBEDDING, HEAD = range(4)


@jit_inlined
def finalize(z):
    """Return the output of SplitMix64 in state z, an uint64."""
    z = (z ^ (z >> np.uint64(30))) * _FIRST
    z = (z ^ (z >> np.uint64(27))) * _SECOND
    return z ^ (z >> np.uint64(31))


@jit
def draw(bits, key, row, time):
    """Fill `bits` (uint64) with the random numbers of one token."""
    place = np.uint64((row << 32) + time + 1)
    state = finalize(key + place * GOLDEN)
    for index in range(len(bits)):
        bits[index] = finalize(state + np.uint64(index + 1) * GOLDEN)


@jit
def _apply(values, bits, threshold, scale):
    """Multiply each value by `scale` or, where its number in `bits` (uint32) is low, by 0."""
    for index in range(len(values)):
        values[index] *= scale if np.int64(bits[index]) >= threshold else np.float32(0)


@jit_inlined
def threshold_of(dropout):
    """Return the least of the numbers of 32 bits whose elements are kept."""
    return np.int64(np.round(dropout * 2.0**32))


@jit_inlined
def scale_of(dropout):
    """Return by how much an element that is kept is enlarged."""
    return np.float32(1.0 / (1.0 - dropout))


@jit
def drop(sizes, values, bits, key, first, batch, size):
    """Apply dropout to the outputs of all directions of a layer, (D, S, H'), or their gradients.

    `key` is that of the layer above at this step.
    """
    hidden = sizes.hidden
    threshold = threshold_of(sizes.dropout)
    scale = scale_of(sizes.dropout)

    # The low half of a number is that of the even column: machines are little-endian.
    halves = bits.view(np.uint32)
    for t in range(size.time_steps):
        for rank in range(batch.running[t]):
            draw(bits, key, batch.order[rank] - first, t)
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


@jit
def drop_tokens(extras, bits, key, first, batch, size):
    """Put the unknown token in the place of some of batch.tokens."""
    threshold = threshold_of(extras.token_dropout)
    bits = bits[:1]
    halves = bits.view(np.uint32)
    for t in range(size.time_steps):
        for rank in range(batch.running[t]):
            draw(bits, key, batch.order[rank] - first, t)
            if np.int64(halves[0]) < threshold:
                batch.tokens[batch.first_row[t] + rank] = UNKNOWN_ID


@jit
def drop_inputs(sizes, extras, values, bits, key, first, batch, size):
    """Apply dropout to what the first layer reads, (S, E'), or to its gradient."""
    threshold = threshold_of(extras.embedding_dropout)
    scale = scale_of(extras.embedding_dropout)
    bits = bits[: (sizes.width + 1) // 2]
    halves = bits.view(np.uint32)
    for t in range(size.time_steps):
        for rank in range(batch.running[t]):
            draw(bits, key, batch.order[rank] - first, t)
            row = values[batch.first_row[t] + rank]
            _apply(row[: sizes.width], halves, threshold, scale)


@jit
def drop_summary(sizes, extras, final, skip, bits, key, first, batch, sequences):
    """Apply dropout to what the head sees, `final` (W, B, H') and `skip` (B, E'), or its gradient.

    What there is once for each sequence stands at time 0.
    """
    hidden = sizes.hidden
    threshold = threshold_of(extras.head_dropout)
    scale = scale_of(extras.head_dropout)
    bits = bits[: (sizes.parts * hidden + sizes.skip + 1) // 2]
    halves = bits.view(np.uint32)
    for rank in range(sequences):
        draw(bits, key, batch.order[rank] - first, 0)
        for part in range(sizes.parts):
            of_part = halves[part * hidden : (part + 1) * hidden]
            _apply(final[part, rank, :hidden], of_part, threshold, scale)
        if sizes.skip > 0:
            of_skip = halves[sizes.parts * hidden :]
            _apply(skip[rank, : sizes.skip], of_skip, threshold, scale)
