"""A packed batch as compiled code reads it: as torch's PackedSequence, without Python objects.

The symbols of shapes:

    B  sequences of a batch             T  time steps: tokens of the longest sequence
    S  rows: tokens of all sequences together

Of arrays that are made for a capacity, a batch uses the first entries.
"""

from typing import Any, NamedTuple

import numpy as np

from rnncls.compiled.compiler import jit

Array = np.ndarray[Any, Any]


class BatchSize(NamedTuple):
    """The size of one batch, or the largest that buffers can hold."""

    sequences: int  # B
    time_steps: int  # T
    rows: int  # S


class BatchLayout(NamedTuple):
    """A packed batch: its sequences longest first, its rows time step by time step.

    Time step t has the running[t] sequences that are longer than t. The token at time t of the i-th
    sequence, longest first, is in row first_row[t] + i.
    """

    running: Array  # (T,) int64
    first_row: Array  # (T,) int64
    order: Array  # (B,) int64, the index of each sequence in StepInputs
    last_row: Array  # (B,) int64, the row of each sequence's last token
    tokens: Array  # (S,) int32
    next_rank: Array  # (T,) int64, working memory of the sort


class TimeStep(NamedTuple):
    """Where the rows of one time step are, and those from which they go on.

    Rows first to first + rows are its own. The first `known` of them go on from the states of as
    many rows from `before` on; the others begin at the initial state. `time` counts the tokens
    before it in the order of the sequences.
    """

    first: int
    rows: int
    before: int
    known: int
    time: int


@jit
def time_step(first_row, running, time_steps, number, reverse):
    """Return the TimeStep that a direction reads as its `number`-th, from 0 on.

    `first_row` and `running` are those of a BatchLayout. Forwards, all sequences begin at time 0,
    and those of a later time are the first ones of the time before. In reverse, the first
    running[t + 1] go on at time t and the others begin there.
    """
    t = time_steps - 1 - number if reverse else number
    if number == 0:
        return TimeStep(first_row[t], running[t], 0, 0, t)
    earlier = t + 1 if reverse else t - 1
    known = min(running[t], running[earlier])
    return TimeStep(first_row[t], running[t], first_row[earlier], known, t)


def make_layout(capacity: BatchSize) -> BatchLayout:
    """Return a BatchLayout with room for batches of up to `capacity`."""
    return BatchLayout(
        running=np.empty(capacity.time_steps, np.int64),
        first_row=np.empty(capacity.time_steps, np.int64),
        order=np.empty(capacity.sequences, np.int64),
        last_row=np.empty(capacity.sequences, np.int64),
        tokens=np.empty(capacity.rows, np.int32),
        next_rank=np.empty(capacity.time_steps, np.int64),
    )


@jit
def pack(step_inputs, step, share, shares, batch):
    """Lay out every `shares`-th sequence of a step, from number `share` on; return its BatchSize.

    The sequences are sorted by length, longest first, by counting. Sequences of equal length keep
    their order. All of `batch`, a BatchLayout, is overwritten.
    """
    first = step_inputs.edges[step] + share
    end = step_inputs.edges[step + 1]

    # Lengths are at least 1, so every time step up to the longest has a row.
    sequences = 0
    longest = 0
    for index in range(first, end, shares):
        sequences += 1
        longest = max(longest, step_inputs.lengths[index])

    # Count the sequences of length t + 1 first, then sum from the end: those longer than t.
    for t in range(longest):
        batch.running[t] = 0
    for index in range(first, end, shares):
        batch.running[step_inputs.lengths[index] - 1] += 1
    for t in range(longest - 2, -1, -1):
        batch.running[t] += batch.running[t + 1]

    rows = 0
    for t in range(longest):
        batch.first_row[t] = rows
        rows += batch.running[t]

    # Sequences of length t + 1 come right behind those that are longer.
    for t in range(longest):
        batch.next_rank[t] = batch.running[t + 1] if t + 1 < longest else 0

    for index in range(first, end, shares):
        length = step_inputs.lengths[index]
        rank = batch.next_rank[length - 1]
        batch.next_rank[length - 1] += 1

        # The rank is the same at all time steps, because longer sequences stand first.
        batch.order[rank] = index
        batch.last_row[rank] = batch.first_row[length - 1] + rank
        for t in range(length):
            token = step_inputs.tokens[step_inputs.starts[index] + t]
            batch.tokens[batch.first_row[t] + rank] = token
    return BatchSize(sequences, longest, rows)
