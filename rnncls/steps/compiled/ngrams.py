"""The n-grams of a batch: their rows of the table, their embeddings and the gradient of these.

A step needs a few thousand rows of a table that may have millions of numbers. They are read where
they are, and of the gradients only those rows are written, cleared and added up that a step
touches: all others are 0. rnncls/model/inputs.py has the same hash for PyTorch's tensors. The
symbols of shapes are those of `memory`.
"""

import numpy as np

from rnncls.compiled.compiler import jit
from rnncls.compiled.kernels import clear
from rnncls.data.vocabulary import UNKNOWN_ID
from rnncls.steps.compiled.dropout import draw, finalize, scale_of, threshold_of

# Knuth's multiplier for numbers modulo 2**64, of MMIX.
_FACTOR = np.uint64(6364136223846793005)

_NO_NGRAM = -1  # in the place of a row of the table


@jit
def find_ngrams(extras, ngrams, bits, key, first, batch, size):
    """Find the row of the table of each n-gram by the token at which it ends, `ngrams` (S, Q).

    Those that a sequence is too short for, that have the unknown token or that dropout leaves out
    have none. `key` is that of their dropout, `first` the first sequence of the step.
    """
    threshold = threshold_of(extras.ngram_dropout)
    bits = bits[: (extras.num_ngrams + 1) // 2]
    halves = bits.view(np.uint32)
    for t in range(size.time_steps):
        for rank in range(batch.running[t]):
            found = ngrams[batch.first_row[t] + rank]
            _find(extras, found, batch, t, rank)
            if extras.ngram_dropout > 0:
                draw(bits, key, batch.order[rank] - first, t)
                for number in range(extras.num_ngrams):
                    if np.int64(halves[number]) < threshold:
                        found[number] = _NO_NGRAM


@jit
def _find(extras, found, batch, t, rank):
    """Find the rows of the n-grams that end at token t of a sequence, `found` (Q,)."""
    number = 0
    hashes = np.uint64(0)
    is_ngram = True
    # From the last token of the n-gram backwards, to the mark before the first one.
    for length in range(1, extras.longest_ngram + 1):
        if length == t + 2:
            hashes *= _FACTOR  # the mark's id is -1, to which 1 is added
        elif length > t + 2:
            is_ngram = False
        elif is_ngram:
            token = batch.tokens[batch.first_row[t + 1 - length] + rank]
            is_ngram = not (extras.has_unknown and token == UNKNOWN_ID)
            hashes = (hashes + np.uint64(token) + np.uint64(1)) * _FACTOR
        if (extras.ngrams >> length) & 1:
            row = (finalize(hashes) >> np.uint64(1)) % np.uint64(extras.table)
            found[number] = np.int32(row) if is_ngram else _NO_NGRAM
            number += 1


@jit
def _add_scaled(out, row, scale):
    """Compute out += scale row, for as many numbers as `row` has."""
    for column in range(len(row)):
        out[column] += scale * row[column]


@jit
def add_ngrams(extras, table, ngrams, inputs, rows):
    """Add the embeddings of n-grams, rows of `table` (M, E), to what is read, `inputs` (S, E')."""
    scale = scale_of(extras.ngram_dropout)
    for row in range(rows):
        for number in range(extras.num_ngrams):
            if ngrams[row, number] >= 0:
                _add_scaled(inputs[row], table[ngrams[row, number]], scale)


@jit
def ngram_gradient(extras, d_table, touched, ngrams, d_inputs, rows):
    """Compute the gradient of the table, `d_table` (M, E), from that of what is read (S, E').

    Before, `touched` (M,) says which rows of it are not 0, and afterwards again.
    """
    for row in range(extras.table):
        if touched[row]:
            clear(d_table[row])
            touched[row] = 0

    width = d_table.shape[1]
    scale = scale_of(extras.ngram_dropout)
    for row in range(rows):
        for number in range(extras.num_ngrams):
            ngram = ngrams[row, number]
            if ngram >= 0:
                _add_scaled(d_table[ngram], d_inputs[row, :width], scale)
                touched[ngram] = 1
