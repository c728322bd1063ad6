"""What the head sees of a sequence, its logits and their loss, forward and backward.

The head sees W parts of H numbers: those of the last states, of the means and of the largest
states, and of each those of all directions. With a skip, it also sees the mean of what the first
layer reads; without recurrent layers, that is all. The symbols of shapes are those of `memory`.
"""

import numpy as np

from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.kernels import (
    ZERO,
    add_product,
    add_row,
    add_transposed,
    clear,
    copy,
    copy_row,
    exp,
    sum_rows,
)
from rnncls.steps.compiled.dropout import HEAD, drop_summary
from rnncls.steps.compiled.parameters import head_bias, head_matrix


@jit_inlined
def head_forward(sizes, more, weights, work, batch, keys, first, size):
    """Compute work.final (W, B, H') and work.logits (B, C'), longest sequence first.

    logits = final head^T + head_bias. `more` may be None. `keys` are those of dropout outside the
    recurrence, `first` is the first sequence of the step.
    """
    _summarize(sizes, work, batch, size)
    if more is not None:
        if sizes.skip > 0:
            _mean(work.inputs, more.skip, batch, size)
        _drop_summary(sizes, more, work.final, more.skip, keys, first, batch, size)

    for rank in range(size.sequences):
        copy_row(work.logits[rank], weights.head_bias[0])
    for part in range(sizes.parts):
        add_product(  # logits += final @ head^T
            out=work.logits,
            out_row=ZERO,
            left=work.final[part],
            left_row=ZERO,
            right=weights.head_t[part],
            rows=size.sequences,
        )
    if more is not None:
        add_product(
            out=work.logits,
            out_row=ZERO,
            left=more.skip,
            left_row=ZERO,
            right=more.head_skip_t,
            rows=size.sequences if sizes.skip > 0 else 0,
        )


@jit_inlined
def _drop_summary(sizes, more, final, skip, keys, first, batch, size):
    """Apply dropout to what the head sees, if it acts there, or to the gradient of that."""
    extras = more.extras
    if extras.head_dropout > 0:
        key = keys[HEAD]
        drop_summary(sizes, extras, final, skip, more.bits, key, first, batch, size.sequences)


@jit_inlined
def _summarize(sizes, work, batch, size):
    """Compute work.final from the outputs of the last layer."""
    # The parts stand in the order of `sizes`, and of each those of all directions.
    top = (sizes.layers - 1) * sizes.directions
    part = 0

    if sizes.last:
        for direction in range(sizes.directions):
            states = work.hidden[top + direction]
            _last(states, work.final[part], batch.last_row, direction, size.sequences)
            part += 1
    if sizes.mean:
        for direction in range(sizes.directions):
            _mean(work.hidden[top + direction], work.final[part], batch, size)
            part += 1
    if sizes.largest:
        for direction in range(sizes.directions):
            _largest(
                work.hidden[top + direction],
                work.final[part],
                work.winners[direction],
                batch.first_row,
                batch.running,
                size.time_steps,
            )
            part += 1


@jit
def _last(states, out, last_row, direction, sequences):
    """Copy the rows of `states` (S, H') at which a direction ends with each sequence to `out`."""
    # In reverse that is its first token, and the first tokens are the first rows.
    for rank in range(sequences):
        row = rank if direction == 1 else last_row[rank]
        copy_row(out[rank], states[row])


@jit
def _last_backward(d_last, d_states, last_row, direction, sequences):
    """Add the rows of `d_last` (B, H') to those of `d_states` (S, H') from which they came."""
    for rank in range(sequences):
        row = rank if direction == 1 else last_row[rank]
        add_row(d_states[row], d_last[rank])


@jit_inlined
def _mean(states, out, batch, size):
    """Compute the mean of each sequence's rows of `states` (S, H') into `out` (B, H')."""
    clear(out[: size.sequences].reshape(-1))
    for t in range(size.time_steps):
        start = batch.first_row[t]
        running = batch.running[t]
        add_row(out[:running].reshape(-1), states[start : start + running].reshape(-1))
    _divide_by_lengths(out, batch, size)


@jit_inlined
def skip_backward(sizes, d_skip, d_inputs, batch, size):
    """Add its share of `d_skip` (B, E') to the gradient of each row that the first layer reads.

    That is `d_inputs` (S, E'), which nobody has written yet without recurrent layers.
    """
    if sizes.layers == 0:
        clear(d_inputs[: size.rows].reshape(-1))
    _divide_by_lengths(d_skip, batch, size)
    for t in range(size.time_steps):
        start = batch.first_row[t]
        running = batch.running[t]
        d_rows = d_inputs[start : start + running]
        add_row(d_rows.reshape(-1), d_skip[:running].reshape(-1))


@jit_inlined
def _mean_backward(d_mean, d_states, batch, size):
    """Give each row of `d_states` (S, H') its share of `d_mean` (B, H'), which is overwritten."""
    _divide_by_lengths(d_mean, batch, size)
    for t in range(size.time_steps):
        start = batch.first_row[t]
        running = batch.running[t]
        copy(d_states[start : start + running], d_mean[:running])


@jit_inlined
def _divide_by_lengths(rows, batch, size):
    """Divide each of the first B rows by the length of its sequence."""
    # Longest first: the length of a rank is the number of time steps with more sequences.
    length = size.time_steps
    for rank in range(size.sequences):
        while batch.running[length - 1] <= rank:
            length -= 1
        for column in range(rows.shape[1]):
            rows[rank, column] /= np.float32(length)


@jit
def _largest(states, out, winners, first_row, running, time_steps):
    """Find the largest state of each sequence and unit (B, H'), and in which row it is.

    Of equal ones the first wins, as in rnncls/model/pooling.py. A NaN is larger than any number.
    """
    for t in range(time_steps):
        for rank in range(running[t]):
            row = first_row[t] + rank
            state = states[row]
            best = out[rank]
            winner = winners[rank]
            for unit in range(len(best)):
                value = state[unit]
                wins = t == 0 or value > best[unit] or np.isnan(value)
                best[unit] = value if wins else best[unit]
                winner[unit] = np.int32(row) if wins else winner[unit]


@jit
def _largest_backward(d_largest, d_states, winners, sequences):
    """Add `d_largest` (B, H') to the states that were the largest."""
    for rank in range(sequences):
        for unit in range(d_largest.shape[1]):
            d_states[winners[rank, unit], unit] += d_largest[rank, unit]


@jit
def cross_entropy(sizes, logits, order, labels, class_weights, total_weight, sequences):
    """Return the cross-entropy in nats and how many predictions are correct.

    loss = sum_i w_i (log sum_c exp(logits_ic) - logits_i,label) / total_weight, where w_i is the
    class weight (C,) of sequence i's label. On return, `logits` (B, C') has the gradient,
    w_i (softmax(logits_i) - one_hot(label)) / total_weight.
    """
    classes = sizes.classes
    loss = 0.0
    correct = 0

    for rank in range(sequences):
        label = labels[order[rank]]
        correct += _subtract_highest(logits[rank, :classes]) == label
        loss -= class_weights[label] * logits[rank, label]

    # All rows in one loop, with their padding, so that it consists of whole vectors.
    exp(logits[:sequences].reshape(-1))

    for rank in range(sequences):
        label = labels[order[rank]]
        # In float64, as the loss is.
        total = 0.0
        for number in range(classes):
            total += logits[rank, number]
        loss += class_weights[label] * np.log(total)

        scale = np.float32(class_weights[label] / total_weight)
        for number in range(classes):
            logits[rank, number] *= scale / np.float32(total)

        # exp has turned the padding into 1.
        for number in range(classes, logits.shape[1]):
            logits[rank, number] = 0
        logits[rank, label] -= scale
    return loss / total_weight, correct


@jit
def smoothed_cross_entropy(sizes, logits, order, labels, class_weights, total_weight, sequences):
    """Do what `cross_entropy` does, where e = sizes.smoothing of a label goes to all classes alike.

    As in torch.nn.functional.cross_entropy, with n_ic = log sum_k exp(logits_ik) - logits_ic:

        loss = sum_i ((1 - e) w_i n_i,label + e / C sum_c w_c n_ic) / total_weight

    The gradient of logits_ic is (W_i softmax(logits_i)_c - W_ic) / total_weight, where W_ic is the
    weight of n_ic in this sum, and W_i the sum of them over c.
    """
    classes = sizes.classes
    kept = 1.0 - sizes.smoothing
    spread = sizes.smoothing / classes
    weight_of_spread = 0.0
    for number in range(classes):
        weight_of_spread += spread * class_weights[number]

    loss = 0.0
    correct = 0
    for rank in range(sequences):
        label = labels[order[rank]]
        correct += _subtract_highest(logits[rank, :classes]) == label
        loss -= kept * class_weights[label] * logits[rank, label]
        for number in range(classes):
            loss -= spread * class_weights[number] * logits[rank, number]

    exp(logits[:sequences].reshape(-1))

    for rank in range(sequences):
        label = labels[order[rank]]
        total = 0.0
        for number in range(classes):
            total += logits[rank, number]
        of_label = kept * class_weights[label]
        loss += (of_label + weight_of_spread) * np.log(total)

        scale = np.float32((of_label + weight_of_spread) / total_weight / total)
        part = np.float32(spread / total_weight)
        for number in range(classes):
            probability = logits[rank, number] * scale
            logits[rank, number] = probability - part * class_weights[number]
        clear(logits[rank, classes:])
        logits[rank, label] -= np.float32(of_label / total_weight)
    return loss / total_weight, correct


@jit_inlined
def _subtract_highest(logits):
    """Subtract the highest of a sequence's logits (C,) from all, so that exp cannot overflow.

    Returns the number of the first that was the highest.
    """
    best = 0
    for number in range(1, len(logits)):
        if logits[number] > logits[best]:
            best = number

    highest = logits[best]
    for number in range(len(logits)):
        logits[number] -= highest
    return best


@jit_inlined
def head_backward(
    sizes, more, offset, weights, work, batch, keys, first, gradients, d_hidden, size
):
    """Compute the gradients of the head, which begins at `offset`, and d_hidden (D, S, H').

    With dlogits = work.logits (B, C'): dhead = dlogits^T final, dhead_bias = sum of the rows of
    dlogits, dfinal = dlogits head. d_hidden is what the outputs of the last layer get of dfinal.
    What is read gets more.d_skip.
    """
    hidden = sizes.hidden
    d_head = head_matrix(sizes, gradients, offset)

    for part in range(sizes.parts):
        clear(work.d_head.reshape(-1))
        add_transposed(  # dhead = dlogits^T @ final
            out=work.d_head,
            left=work.logits,
            left_row=ZERO,
            right=work.final[part],
            right_row=ZERO,
            rows=size.sequences,
        )
        copy(d_head[:, part * hidden : (part + 1) * hidden], work.d_head)

        clear(work.d_final[part, : size.sequences].reshape(-1))
        add_product(  # dfinal = dlogits @ head
            out=work.d_final[part],
            out_row=ZERO,
            left=work.logits,
            left_row=ZERO,
            right=weights.head[part],
            rows=size.sequences,
        )
    sum_rows(head_bias(sizes, gradients, offset), work.logits, size.sequences)

    if more is not None:
        if sizes.skip > 0:
            _skip_of_head_backward(sizes, more, work.logits, d_head, size)
        _drop_summary(sizes, more, work.d_final, more.d_skip, keys, first, batch, size)
    if sizes.layers > 0:
        for direction in range(sizes.directions):
            _states_backward(sizes, work, batch, direction, d_hidden[direction], size)


@jit_inlined
def _skip_of_head_backward(sizes, more, d_logits, d_head, size):
    """Compute the gradients of the head's weights for the mean of x, and of that mean."""
    clear(more.d_head_skip.reshape(-1))
    add_transposed(  # dhead = dlogits^T @ mean
        out=more.d_head_skip,
        left=d_logits,
        left_row=ZERO,
        right=more.skip,
        right_row=ZERO,
        rows=size.sequences,
    )
    copy(d_head[:, sizes.parts * sizes.hidden :], more.d_head_skip)

    clear(more.d_skip[: size.sequences].reshape(-1))
    add_product(  # dmean = dlogits @ head
        out=more.d_skip,
        out_row=ZERO,
        left=d_logits,
        left_row=ZERO,
        right=more.head_skip,
        rows=size.sequences,
    )


@jit_inlined
def _states_backward(sizes, work, batch, direction, d_states, size):
    """Compute what the outputs of a direction, `d_states` (S, H'), get of work.d_final."""
    # Of a mean each row has its share. Otherwise only the last rows reach the head.
    if sizes.mean:
        part = sizes.directions * int(sizes.last) + direction
        _mean_backward(work.d_final[part], d_states, batch, size)
    else:
        clear(d_states[: size.rows].reshape(-1))

    if sizes.last:
        d_final = work.d_final[direction]
        _last_backward(d_final, d_states, batch.last_row, direction, size.sequences)

    if sizes.largest:
        part = sizes.parts - sizes.directions + direction
        winners = work.winners[direction]
        _largest_backward(work.d_final[part], d_states, winners, size.sequences)
