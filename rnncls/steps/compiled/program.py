"""Training steps as one compiled function (Numba), from embedding to optimizer.

An eager step of a small model spends nine tenths of its time between operations. Here one call
takes many steps, on the model's own tensors: parameters, gradients and optimizer state lie end to
end in four arrays (`memory.FlatArrays`) of which the tensors are views, so that evaluation,
checkpoints and logs do not know the difference.

A batch is packed as in torch's PackedSequence (`batches.BatchLayout`). The symbols of shapes are
those of `memory`. The gradient with respect to x is written dx, the hidden state h_t, and its
pre-activation z_t, so that h_t = f(z_t), where f is tanh or relu.

Results equal those of the eager step up to float32 rounding. They have the same bits every time,
however the steps are divided among calls.
"""

import numpy as np

from rnncls.compiled.batches import pack
from rnncls.compiled.kernels import (
    add_product,
    add_row,
    clear,
    copy,
    copy_row,
    copy_transposed,
    exp,
    jit,
    jit_inlined,
    multiply,
    multiply_transposed,
    relu,
    relu_backward,
    sum_rows,
    tanh,
    tanh_backward,
)
from rnncls.steps.compiled.optimizer import finish

# --- parameters


@jit
def _layer_offsets(sizes):
    """Return (L + 1,) positions in the flat arrays: where each layer begins, and then the head."""
    # model.parameters() has the embedding, then W_ih, W_hh, b_ih and b_hh of each layer, and then
    # weight and bias of the head.
    offsets = np.empty(sizes.layers + 1, np.int64)
    offsets[0] = sizes.tokens * sizes.width
    biases = 2 if sizes.bias else 0

    for layer in range(sizes.layers):
        input_size = sizes.width if layer == 0 else sizes.hidden
        offsets[layer + 1] = offsets[layer] + sizes.hidden * (input_size + sizes.hidden + biases)
    return offsets


@jit
def _matrix(flat, offset, rows, columns):
    """Return the parameter that begins at this offset, a view (rows, columns)."""
    return flat[offset : offset + rows * columns].reshape((rows, columns))


@jit
def _load_weights(sizes, flat, offsets, weights):
    """Copy the parameters from `flat` (P,) to PaddedWeights."""
    # A product reads whole rows of its right operand: forward those of W^T, backward those of W.
    copy(weights.embedding, _matrix(flat, 0, sizes.tokens, sizes.width))
    for layer in range(sizes.layers):
        _load_layer(sizes, flat, offsets[layer], layer, weights)

    hidden = sizes.hidden
    offset = offsets[sizes.layers]
    head = _matrix(flat, offset, sizes.classes, hidden)
    copy(weights.head, head)
    copy_transposed(weights.head_t, head)
    copy(weights.head_bias, _matrix(flat, offset + sizes.classes * hidden, 1, sizes.classes))


@jit_inlined
def _load_layer(sizes, flat, offset, layer, weights):
    """Copy the parameters of one layer, which begin at `offset`."""
    hidden = sizes.hidden
    input_size = sizes.width if layer == 0 else hidden
    w_ih = _matrix(flat, offset, hidden, input_size)
    w_hh = _matrix(flat, offset + hidden * input_size, hidden, hidden)

    if layer == 0:
        copy(weights.input, w_ih)
        copy_transposed(weights.input_t, w_ih)
    else:
        copy(weights.between[layer], w_ih)
        copy_transposed(weights.between_t[layer], w_ih)

    copy(weights.recurrent[layer], w_hh)
    copy_transposed(weights.recurrent_t[layer], w_hh)

    # The sum is all that is ever used. Without biases it stays 0, as it was made.
    if sizes.bias:
        b_ih, b_hh = _matrix(flat, offset + hidden * (input_size + hidden), 2, hidden)
        for unit in range(hidden):
            weights.bias[layer, 0, unit] = b_ih[unit] + b_hh[unit]


# --- forward


@jit
def _forward(sizes, weights, work, batch, size):
    """Compute the hidden states of all rows and the logits of all sequences, longest first.

    Writes work.hidden (L, S, H'), work.final (B, H') and work.logits (B, C'), where
    logits = final head^T + head_bias.
    """
    for layer in range(sizes.layers):
        if layer == 0:
            _embed(sizes, weights, work, batch, size.rows)
        else:
            multiply(  # hidden = bias + hidden of the layer below @ W_ih^T
                out=work.hidden[layer],
                start=weights.bias[layer],
                left=work.hidden[layer - 1],
                right=weights.between_t[layer],
                rows=size.rows,
            )
        _recur(sizes, weights.recurrent_t[layer], work.hidden[layer], batch, size.time_steps)

    # The head sees the top layer's state at each sequence's own last token, or the mean of all.
    top = work.hidden[sizes.layers - 1]
    if sizes.mean:
        _mean(top, work.final, batch, size)
    else:
        for rank in range(size.sequences):
            copy_row(work.final[rank], top[batch.last_row[rank]])

    multiply(  # logits = head_bias + final @ head^T
        out=work.logits,
        start=weights.head_bias,
        left=work.final,
        right=weights.head_t,
        rows=size.sequences,
    )


@jit_inlined
def _embed(sizes, weights, work, batch, rows):
    """Compute W_ih x + b of the first layer into work.hidden[0] (S, H'), x = embedding[token].

    With few tokens in the vocabulary the product is computed once per token, work.table (V, H'),
    and its rows are copied. Otherwise it is computed from the embedded tokens, work.inputs (S, E').
    """
    hidden = work.hidden[0]

    if sizes.by_table:
        multiply(  # table = bias + embedding @ W_ih^T
            out=work.table,
            start=weights.bias[0],
            left=weights.embedding,
            right=weights.input_t,
            rows=sizes.tokens,
        )
        for row in range(rows):
            copy_row(hidden[row], work.table[batch.tokens[row]])
    else:
        for row in range(rows):
            copy_row(work.inputs[row], weights.embedding[batch.tokens[row]])
        multiply(  # hidden = bias + inputs @ W_ih^T
            out=hidden,
            start=weights.bias[0],
            left=work.inputs,
            right=weights.input_t,
            rows=rows,
        )


@jit_inlined
def _recur(sizes, recurrent_t, hidden, batch, time_steps):
    """Turn the inputs of a layer, W_ih x_t + b, into its hidden states, in place.

    h_t = f(W_ih x_t + b + W_hh h_(t-1)), with h_(-1) = 0. Shapes: hidden (S, H'), recurrent_t
    (H, H').
    """
    for t in range(time_steps):
        start = batch.first_row[t]
        running = batch.running[t]

        # The sequences that still run are the first ones of the step before, in the same order.
        if t > 0:
            add_product(  # hidden[start:] += hidden[previous:] @ W_hh^T
                out=hidden,
                out_row=start,
                left=hidden,
                left_row=batch.first_row[t - 1],
                right=recurrent_t,
                rows=running,
            )

        states = hidden[start : start + running].reshape(-1)
        if sizes.relu:
            relu(states)
        else:
            tanh(states)


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
def _loss(sizes, logits, order, labels, class_weights, total_weight, sequences):
    """Return the cross-entropy in nats and how many predictions are correct.

    loss = sum_i w_i (log sum_c exp(logits_ic) - logits_i,label) / total_weight, where w_i is the
    class weight (C,) of sequence i's label. On return, `logits` (B, C') has the gradient,
    w_i (softmax(logits_i) - one_hot(label)) / total_weight.
    """
    classes = sizes.classes
    loss = 0.0
    correct = 0

    # The largest logit of each row is subtracted, so that exp cannot overflow.
    for rank in range(sequences):
        label = labels[order[rank]]
        best = 0
        for number in range(1, classes):
            if logits[rank, number] > logits[rank, best]:
                best = number
        correct += best == label

        highest = logits[rank, best]
        for number in range(classes):
            logits[rank, number] -= highest
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


# --- backward


@jit
def _backward(sizes, offsets, weights, work, batch, gradients, size):
    """Compute the gradients of all parameters, (P,), from those of the logits, work.logits (B, C').

    Layer by layer from the top: d_hidden (S, H') holds dh of the layer's outputs first, and then
    dz of its pre-activations; d_below (S, H') receives dh of the layer below.
    """
    _head_backward(sizes, offsets[sizes.layers], weights, work, gradients, size.sequences)

    # Of the top layer's states only the last ones reach the head, so dh of all others begins at 0.
    # Of a mean each has its share.
    d_hidden = work.d_hidden[0]
    d_below = work.d_hidden[1]
    if sizes.mean:
        _mean_backward(work.d_final, d_hidden, batch, size)
    else:
        clear(d_hidden[: size.rows].reshape(-1))
        for rank in range(size.sequences):
            copy_row(d_hidden[batch.last_row[rank]], work.d_final[rank])

    for layer in range(sizes.layers - 1, -1, -1):
        _recur_backward(sizes, weights.recurrent[layer], work, layer, batch, d_hidden, size)

        input_size = sizes.width if layer == 0 else sizes.hidden
        offset = offsets[layer] + sizes.hidden * input_size
        _recurrent_gradients(sizes, offset, work, d_hidden, gradients, size)

        if layer > 0:
            multiply_transposed(  # dW_ih = dz^T @ hidden of the layer below
                out=work.d_square,
                zeros=work.zeros,
                left=d_hidden,
                left_row=0,
                right=work.hidden[layer - 1],
                right_row=0,
                rows=size.rows,
            )
            copy(_matrix(gradients, offsets[layer], sizes.hidden, sizes.hidden), work.d_square)

            multiply(  # dh of the layer below = dz @ W_ih
                out=d_below,
                start=work.zeros,
                left=d_hidden,
                right=weights.between[layer],
                rows=size.rows,
            )
            # What is left in the old d_hidden is overwritten by the next product.
            d_hidden, d_below = d_below, d_hidden

    _embedding_backward(
        sizes=sizes,
        offset=offsets[0],
        weights=weights,
        work=work,
        batch=batch,
        d_hidden=d_hidden,
        gradients=gradients,
        rows=size.rows,
    )


@jit_inlined
def _head_backward(sizes, offset, weights, work, gradients, sequences):
    """Compute the gradients of the head, which begins at `offset`, and work.d_final (B, H').

    With dlogits = work.logits (B, C'): dhead = dlogits^T final, dhead_bias = sum of the rows of
    dlogits, dfinal = dlogits head.
    """
    hidden = sizes.hidden
    classes = sizes.classes

    multiply_transposed(  # dhead = dlogits^T @ final
        out=work.d_head,
        zeros=work.zeros,
        left=work.logits,
        left_row=0,
        right=work.final,
        right_row=0,
        rows=sequences,
    )
    copy(_matrix(gradients, offset, classes, hidden), work.d_head)
    sum_rows(gradients[offset + classes * hidden :][:classes], work.logits, sequences)

    multiply(  # dfinal = dlogits @ head
        out=work.d_final,
        start=work.zeros,
        left=work.logits,
        right=weights.head,
        rows=sequences,
    )


@jit_inlined
def _recur_backward(sizes, recurrent, work, layer, batch, d_hidden, size):
    """Turn dh of a layer, `d_hidden` (S, H'), into dz, in place, from the last time step back.

    dz_t = f'(z_t) dh_t, and dh_(t-1) += dz_t W_hh with recurrent (H, H'). Also copies the state
    before each row to work.previous (S, H'), of which the B rows of time step 0 are not written.
    """
    states = work.hidden[layer]

    for t in range(size.time_steps - 1, -1, -1):
        start = batch.first_row[t]
        running = batch.running[t]
        # By now dh_t is complete, for step t + 1 has added its part.
        gradient = d_hidden[start : start + running].reshape(-1)
        output = states[start : start + running].reshape(-1)

        if sizes.relu:
            relu_backward(gradient, output)
        else:
            tanh_backward(gradient, output)

        if t > 0:
            previous = batch.first_row[t - 1]
            add_product(  # d_hidden[previous:] += d_hidden[start:] @ W_hh
                out=d_hidden,
                out_row=previous,
                left=d_hidden,
                left_row=start,
                right=recurrent,
                rows=running,
            )
            copy(work.previous[start : start + running], states[previous : previous + running])


@jit_inlined
def _recurrent_gradients(sizes, offset, work, d_hidden, gradients, size):
    """Compute the gradients of a layer's W_hh, which begins at `offset`, and of its biases.

    With dz = d_hidden (S, H'): dW_hh = sum_t dz_t^T h_(t-1), and db_ih = db_hh = sum of the rows
    of dz. The state before time step 0 is 0, so its rows, the first B, add nothing to dW_hh.
    """
    hidden = sizes.hidden
    first = size.sequences

    multiply_transposed(  # dW_hh = dz[B:]^T @ previous[B:]
        out=work.d_square,
        zeros=work.zeros,
        left=d_hidden,
        left_row=first,
        right=work.previous,
        right_row=first,
        rows=size.rows - first,
    )
    copy(_matrix(gradients, offset, hidden, hidden), work.d_square)

    if sizes.bias:
        # Both are added to the same sum, so they have the same gradient.
        b_ih, b_hh = _matrix(gradients, offset + hidden * hidden, 2, hidden)
        sum_rows(b_ih, d_hidden, size.rows)
        copy_row(b_hh, b_ih)


@jit
def _embedding_backward(sizes, offset, weights, work, batch, d_hidden, gradients, rows):
    """Compute the gradients of the embedding (V, E) and of the first layer's W_ih (H, E).

    `d_hidden` (S, H') is dz of the first layer, whose W_ih begins at `offset`. For a token v:
    dW_ih = sum_v dtable_v^T embedding_v and dembedding_v = dtable_v W_ih, where dtable_v, (H',), is
    the sum of dz over the rows with token v. Without the table, both are computed row by row.
    """
    embedding = _matrix(gradients, 0, sizes.tokens, sizes.width)

    if sizes.by_table:
        # The table itself is no longer needed: its gradient takes its place.
        clear(work.table.reshape(-1))
        for row in range(rows):
            add_row(work.table[batch.tokens[row]], d_hidden[row])

        multiply_transposed(  # dW_ih = dtable^T @ embedding
            out=work.d_input,
            zeros=work.zeros,
            left=work.table,
            left_row=0,
            right=weights.embedding,
            right_row=0,
            rows=sizes.tokens,
        )
        multiply(  # dembedding = dtable @ W_ih
            out=work.d_embedded,
            start=work.zeros,
            left=work.table,
            right=weights.input,
            rows=sizes.tokens,
        )
        copy(embedding, work.d_embedded)
    else:
        multiply_transposed(  # dW_ih = dz^T @ inputs
            out=work.d_input,
            zeros=work.zeros,
            left=d_hidden,
            left_row=0,
            right=work.inputs,
            right_row=0,
            rows=rows,
        )
        multiply(  # dinputs = dz @ W_ih
            out=work.d_embedded,
            start=work.zeros,
            left=d_hidden,
            right=weights.input,
            rows=rows,
        )
        # A token may stand in many rows, whose gradients are added, or in none.
        clear(gradients[: sizes.tokens * sizes.width])
        for row in range(rows):
            add_row(embedding[batch.tokens[row]], work.d_embedded[row])

    copy(_matrix(gradients, offset, sizes.hidden, sizes.width), work.d_input)


# --- steps


@jit
def _gradients(sizes, weights, out, step_inputs, step, share, shares, class_weights, buffers):
    """Compute a share of one step's loss, number of correct predictions and gradients.

    From `weights` (P,) into `out` (P,), for every `shares`-th sequence from number `share` on. The
    loss is a mean over all sequences of the step, so that the shares add up to the whole.
    """
    # The denominator of the mean is the whole step's, also for a share.
    offsets = _layer_offsets(sizes)
    total_weight = 0.0
    for index in range(step_inputs.edges[step], step_inputs.edges[step + 1]):
        total_weight += class_weights[step_inputs.labels[index]]

    _load_weights(sizes, weights, offsets, buffers.weights)
    batch = buffers.batch
    size = pack(step_inputs, step, share, shares, batch)

    # A small batch may have fewer sequences than there are threads.
    if size.sequences == 0:
        clear(out)
        return 0.0, 0

    work = buffers.work
    _forward(sizes, buffers.weights, work, batch, size)
    loss, correct = _loss(
        sizes=sizes,
        logits=work.logits,
        order=batch.order,
        labels=step_inputs.labels,
        class_weights=class_weights,
        total_weight=total_weight,
        sequences=size.sequences,
    )
    _backward(
        sizes=sizes,
        offsets=offsets,
        weights=buffers.weights,
        work=work,
        batch=batch,
        gradients=out,
        size=size,
    )
    return loss, correct


def train_steps(sizes, hyper, flat, step_inputs, class_weights, updates, sums, buffers):
    """Take the steps in order, in one thread, and return how many were taken.

    Stops before a step whose loss or gradient is not finite; the eager step deals with it. Changes
    `flat`, and adds to `sums` (NUM_SUMS,) float64. `class_weights` is (C,) float32, `updates` the
    number of optimizer steps that were taken before.
    """
    for step in range(len(step_inputs.rates)):
        # The whole step as one share: number 0 of 1.
        loss, correct = _gradients(
            sizes=sizes,
            weights=flat.weights,
            out=flat.gradients,
            step_inputs=step_inputs,
            step=step,
            share=0,
            shares=1,
            class_weights=class_weights,
            buffers=buffers,
        )

        finished = finish(
            sizes=sizes,
            hyper=hyper,
            flat=flat,
            rate=step_inputs.rates[step],
            updates=updates + step + 1,
            loss=loss,
            correct=correct,
            sequences=step_inputs.edges[step + 1] - step_inputs.edges[step],
            sums=sums,
        )
        if not finished:
            return step
    return len(step_inputs.rates)


def share_of_step(sizes, weights, out, step_inputs, step, share, shares, class_weights, buffers):
    """Compute one thread's share of a step; return its loss and number of correct predictions.

    The gradient of every `shares`-th sequence, from number `share` on, is written to `out` (P,).
    """
    return _gradients(
        sizes=sizes,
        weights=weights,
        out=out,
        step_inputs=step_inputs,
        step=step,
        share=share,
        shares=shares,
        class_weights=class_weights,
        buffers=buffers,
    )


def finish_step(sizes, hyper, flat, others, rate, updates, loss, correct, sequences, sums):
    """Add up the gradients of all threads, clip and update; return False if they are not finite.

    flat.gradients (P,) has the first thread's gradient, others (threads - 1, P) the other threads'.
    `updates` counts this update.
    """
    # In the order of the threads, so that the sum has the same bits every time.
    for share in range(len(others)):
        add_row(flat.gradients, others[share])
    return finish(
        sizes=sizes,
        hyper=hyper,
        flat=flat,
        rate=rate,
        updates=updates,
        loss=loss,
        correct=correct,
        sequences=sequences,
        sums=sums,
    )
