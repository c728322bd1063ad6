"""Training steps as one compiled function (Numba): embedding, recurrence, loss, backward, clipping and optimizer.

An eager step of a small model spends nine tenths of its time between operations. Here many steps are one call, on
the model's own tensors: parameters, gradients and optimizer state lie end to end in four arrays of which the tensors
are views, so that evaluation, checkpoints and logs do not know the difference. A batch is packed as in torch's
PackedSequence: time step t has the running[t] sequences that are longer than t, longest first, and row begin[t] + i
belongs to the i-th of them.

Equal to the eager step up to float32 rounding, and to itself to the bit, however the steps are cut into calls.
"""

import numpy as np

from rnncls.steps.compiled.kernels import (
    add_row,
    clear,
    compiled,
    copy,
    copy_row,
    copy_transposed,
    exp,
    multiply,
    multiply_transposed,
    relu,
    relu_backward,
    tanh,
    tanh_backward,
)
from rnncls.steps.compiled.memory import ADAM, ADAMW, SGD


@compiled
def _offsets(sizes):  # type: ignore[no-untyped-def]
    """Where each layer's W_ih begins in the flat arrays, and then the head."""
    at = np.empty(sizes.layers + 1, np.int64)
    at[0] = sizes.tokens * sizes.width
    for layer in range(sizes.layers):
        width = sizes.width if layer == 0 else sizes.hidden
        at[layer + 1] = at[layer] + sizes.hidden * (width + sizes.hidden + (2 if sizes.bias else 0))
    return at


@compiled
def _matrix(flat, at, rows, columns):  # type: ignore[no-untyped-def]
    """The parameter that begins there, as a view."""
    return flat[at : at + rows * columns].reshape((rows, columns))


@compiled
def _load(sizes, flat, at, weights):  # type: ignore[no-untyped-def]
    """Copy the parameters to where vectors can read them."""
    hidden, classes = sizes.hidden, sizes.classes
    copy(weights.embedding, _matrix(flat, 0, sizes.tokens, sizes.width))
    for layer in range(sizes.layers):
        width, place = sizes.width if layer == 0 else hidden, at[layer]
        w_ih, w_hh = (
            _matrix(flat, place, hidden, width),
            _matrix(flat, place + hidden * width, hidden, hidden),
        )
        if layer == 0:
            copy(weights.input, w_ih)
            copy_transposed(weights.input_t, w_ih)
        else:
            copy(weights.between[layer], w_ih)
            copy_transposed(weights.between_t[layer], w_ih)
        copy(weights.recurrent[layer], w_hh)
        copy_transposed(weights.recurrent_t[layer], w_hh)
        if sizes.bias:
            b_ih, b_hh = _matrix(flat, place + hidden * (width + hidden), 2, hidden)
            for unit in range(hidden):
                weights.bias[layer, 0, unit] = b_ih[unit] + b_hh[unit]
    head = _matrix(flat, at[sizes.layers], classes, hidden)
    copy(weights.head, head)
    copy_transposed(weights.head_t, head)
    copy(weights.head_bias, _matrix(flat, at[sizes.layers] + classes * hidden, 1, classes))


@compiled
def _pack(steps, step, share, shares, batch, places):  # type: ignore[no-untyped-def]
    """Sort this share of the step's sequences by length, longest first, equal ones in their order; (B, T, S)."""
    first, last = steps.edges[step] + share, steps.edges[step + 1]
    count, longest = 0, 0
    for index in range(first, last, shares):
        count += 1
        longest = max(longest, steps.lengths[index])
    for t in range(longest):
        batch.running[t] = 0
    for index in range(first, last, shares):
        batch.running[steps.lengths[index] - 1] += 1
    for t in range(longest - 2, -1, -1):
        batch.running[t] += batch.running[t + 1]
    rows = 0
    for t in range(longest):
        batch.begin[t] = rows
        rows += batch.running[t]
    for t in range(longest):  # where the next sequence of length t + 1 goes
        places[t] = batch.running[t + 1] if t + 1 < longest else 0
    for index in range(first, last, shares):
        length = steps.lengths[index]
        rank = places[length - 1]
        places[length - 1] += 1
        batch.order[rank] = index
        batch.last[rank] = batch.begin[length - 1] + rank
        for t in range(length):
            batch.tokens[batch.begin[t] + rank] = steps.tokens[steps.starts[index] + t]
    return count, longest, rows


@compiled
def _forward(sizes, weights, work, batch, count, longest, rows):  # type: ignore[no-untyped-def]
    """Hidden states of all rows, logits of all sequences, longest first."""
    for layer in range(sizes.layers):
        hidden = work.hidden[layer]
        if layer > 0:
            multiply(
                hidden,
                0,
                weights.bias[layer],
                0,
                0,
                work.hidden[layer - 1],
                0,
                weights.between_t[layer],
                rows,
            )
        elif sizes.by_table:
            multiply(
                work.table,
                0,
                weights.bias[0],
                0,
                0,
                weights.embedding,
                0,
                weights.input_t,
                sizes.tokens,
            )
            for row in range(rows):
                copy_row(hidden[row], work.table[batch.tokens[row]])
        else:
            for row in range(rows):
                copy_row(work.inputs[row], weights.embedding[batch.tokens[row]])
            multiply(hidden, 0, weights.bias[0], 0, 0, work.inputs, 0, weights.input_t, rows)
        for t in range(longest):
            here, running = batch.begin[t], batch.running[t]
            if t > 0:
                multiply(
                    hidden,
                    here,
                    hidden,
                    here,
                    1,
                    hidden,
                    batch.begin[t - 1],
                    weights.recurrent_t[layer],
                    running,
                )
            if sizes.relu:
                relu(hidden[here : here + running].reshape(-1))
            else:
                tanh(hidden[here : here + running].reshape(-1))
    for rank in range(count):
        copy_row(work.final[rank], work.hidden[sizes.layers - 1, batch.last[rank]])
    multiply(work.logits, 0, weights.head_bias, 0, 0, work.final, 0, weights.head_t, count)


@compiled
def _loss(sizes, work, batch, labels, class_weights, total_weight, count):  # type: ignore[no-untyped-def]
    """The cross-entropy in nats, a mean with this total weight, and how many are right. Logits become its gradient."""
    logits, classes = work.logits, sizes.classes
    loss, correct = 0.0, 0
    for rank in range(count):
        label, best = labels[batch.order[rank]], 0
        for number in range(1, classes):
            if logits[rank, number] > logits[rank, best]:
                best = number
        correct += best == label
        highest = logits[rank, best]
        for number in range(classes):
            logits[rank, number] -= highest
        loss -= class_weights[label] * logits[rank, label]
    exp(logits[:count].reshape(-1))
    for rank in range(count):
        label, total = labels[batch.order[rank]], 0.0
        for number in range(classes):
            total += logits[rank, number]
        loss += class_weights[label] * np.log(total)
        scale = np.float32(class_weights[label] / total_weight)
        for number in range(classes):
            logits[rank, number] *= scale / np.float32(total)
        for number in range(classes, logits.shape[1]):
            logits[rank, number] = 0
        logits[rank, label] -= scale
    return loss / total_weight, correct


@compiled
def _sum_rows(matrix, rows, out):  # type: ignore[no-untyped-def]
    """Sum of the first rows."""
    clear(out)
    for row in range(rows):
        add_row(out, matrix[row])


@compiled
def _backward(sizes, at, weights, work, batch, gradients, count, longest, rows):  # type: ignore[no-untyped-def]
    hidden, classes, top, place = sizes.hidden, sizes.classes, sizes.layers - 1, at[sizes.layers]
    multiply_transposed(work.d_head, work.zeros, work.logits, 0, work.final, 0, count)
    copy(_matrix(gradients, place, classes, hidden), work.d_head)
    _sum_rows(work.logits, count, gradients[place + classes * hidden :][:classes])
    multiply(work.d_final, 0, work.zeros, 0, 0, work.logits, 0, weights.head, count)
    gradient, below = work.d_hidden[0], work.d_hidden[1]
    clear(gradient[:rows].reshape(-1))
    for rank in range(count):
        copy_row(gradient[batch.last[rank]], work.d_final[rank])
    for layer in range(top, -1, -1):
        states = work.hidden[layer]
        for t in range(longest - 1, -1, -1):
            here, running = batch.begin[t], batch.running[t]
            own, value = (
                gradient[here : here + running].reshape(-1),
                states[here : here + running].reshape(-1),
            )
            if sizes.relu:
                relu_backward(own, value)
            else:
                tanh_backward(own, value)
            if t > 0:
                before = batch.begin[t - 1]
                multiply(
                    gradient,
                    before,
                    gradient,
                    before,
                    1,
                    gradient,
                    here,
                    weights.recurrent[layer],
                    running,
                )
                copy(work.before[here : here + running], states[before : before + running])
        place = at[layer] + hidden * (sizes.width if layer == 0 else hidden)
        multiply_transposed(
            work.d_square, work.zeros, gradient, count, work.before, count, rows - count
        )
        copy(_matrix(gradients, place, hidden, hidden), work.d_square)
        if sizes.bias:
            b_ih, b_hh = _matrix(gradients, place + hidden * hidden, 2, hidden)
            _sum_rows(gradient, rows, b_ih)
            copy_row(b_hh, b_ih)
        if layer > 0:
            multiply_transposed(
                work.d_square, work.zeros, gradient, 0, work.hidden[layer - 1], 0, rows
            )
            copy(_matrix(gradients, at[layer], hidden, hidden), work.d_square)
            multiply(below, 0, work.zeros, 0, 0, gradient, 0, weights.between[layer], rows)
            gradient, below = below, gradient
    _embedding_backward(sizes, at, weights, work, batch, gradients, gradient, rows)


@compiled
def _embedding_backward(sizes, at, weights, work, batch, gradients, gradient, rows):  # type: ignore[no-untyped-def]
    hidden, width = sizes.hidden, sizes.width
    if sizes.by_table:
        clear(work.table.reshape(-1))
        for row in range(rows):
            add_row(work.table[batch.tokens[row]], gradient[row])
        multiply_transposed(
            work.d_input, work.zeros, work.table, 0, weights.embedding, 0, sizes.tokens
        )
        multiply(work.d_embedded, 0, work.zeros, 0, 0, work.table, 0, weights.input, sizes.tokens)
        copy(_matrix(gradients, 0, sizes.tokens, width), work.d_embedded)
    else:
        multiply_transposed(work.d_input, work.zeros, gradient, 0, work.inputs, 0, rows)
        multiply(work.d_embedded, 0, work.zeros, 0, 0, gradient, 0, weights.input, rows)
        embedding = _matrix(gradients, 0, sizes.tokens, width)
        clear(gradients[: sizes.tokens * width])
        for row in range(rows):
            add_row(embedding[batch.tokens[row]], work.d_embedded[row])
    copy(_matrix(gradients, at[0], hidden, width), work.d_input)


@compiled
def _norm(flat):  # type: ignore[no-untyped-def]
    total = 0.0
    for index in range(len(flat)):
        total += np.float64(flat[index]) * np.float64(flat[index])
    return np.sqrt(total)


@compiled
def _update(sizes, hyper, flat, scale, lr, updates):  # type: ignore[no-untyped-def]
    """One step of torch's Adam, AdamW or SGD; `updates` counts this one. The gradients are scaled first."""
    scale, decay = np.float32(scale), np.float32(hyper.weight_decay)
    weights, gradients, first, second = flat.weights, flat.gradients, flat.first, flat.second
    if sizes.optimizer == SGD:
        rate, momentum = np.float32(lr), np.float32(hyper.momentum if updates > 1 else 0)
        for index in range(len(weights)):
            gradients[index] *= scale
            gradient = gradients[index] + decay * weights[index]
            if hyper.momentum > 0:
                gradient += momentum * first[index]
                first[index] = gradient
            weights[index] -= rate * gradient
        return
    rate = np.float32(lr / (1 - hyper.beta1**updates))
    root = np.float32(1 / np.sqrt(1 - hyper.beta2**updates))
    keep = np.float32(1 - lr * hyper.weight_decay if sizes.optimizer == ADAMW else 1)
    decay = decay if sizes.optimizer == ADAM else np.float32(0)
    new1, new2, old2 = (
        np.float32(1 - hyper.beta1),
        np.float32(1 - hyper.beta2),
        np.float32(hyper.beta2),
    )
    eps = np.float32(hyper.eps)
    for index in range(len(weights)):
        gradients[index] *= scale
        gradient = gradients[index] + decay * weights[index]
        first[index] += new1 * (gradient - first[index])
        second[index] = old2 * second[index] + new2 * gradient * gradient
        weights[index] = keep * weights[index] - rate * first[index] / (
            np.sqrt(second[index]) * root + eps
        )


@compiled
def _gradients(sizes, weights, out, steps, step, share, shares, class_weights, memory):  # type: ignore[no-untyped-def]
    at, total = _offsets(sizes), 0.0
    for index in range(steps.edges[step], steps.edges[step + 1]):
        total += class_weights[steps.labels[index]]
    _load(sizes, weights, at, memory.weights)
    count, longest, rows = _pack(steps, step, share, shares, memory.batch, memory.places)
    if count == 0:
        clear(out)
        return 0.0, 0
    _forward(sizes, memory.weights, memory.work, memory.batch, count, longest, rows)
    loss, correct = _loss(
        sizes, memory.work, memory.batch, steps.labels, class_weights, total, count
    )
    _backward(sizes, at, memory.weights, memory.work, memory.batch, out, count, longest, rows)
    return loss, correct


@compiled
def _finish(sizes, hyper, flat, rate, updates, loss, correct, count, totals):  # type: ignore[no-untyped-def]
    norm = _norm(flat.gradients)
    if not (
        np.isfinite(loss) and norm < 1.8e19
    ):  # whose square an eager step, in float32, could not hold
        return False
    _update(sizes, hyper, flat, min(1.0, hyper.max_norm / (norm + 1e-6)), rate, updates)
    totals[0] += loss * count
    totals[1] += correct
    totals[2] += count
    totals[3] += norm
    totals[4] += norm > hyper.max_norm
    return True


def train_steps(sizes, hyper, flat, steps, class_weights, updates, totals, memory):  # type: ignore[no-untyped-def]
    """Take the steps, in order; returns how many.

    Stops before a step whose loss or gradient is not finite, which is left to the eager step. `updates`: optimizer
    steps done before. `totals`: (loss over sequences, correct, sequences, gradient norm, clipped), summed in place.
    """
    for step in range(len(steps.rates)):
        count = steps.edges[step + 1] - steps.edges[step]
        loss, correct = _gradients(
            sizes, flat.weights, flat.gradients, steps, step, 0, 1, class_weights, memory
        )
        if not _finish(
            sizes, hyper, flat, steps.rates[step], updates + step + 1, loss, correct, count, totals
        ):
            return step
    return len(steps.rates)


def share_of_step(sizes, weights, out, steps, step, share, shares, class_weights, memory):  # type: ignore[no-untyped-def]
    """One thread's share of a step: the gradient of every `shares`-th sequence into `out`; loss, and how many right."""
    return _gradients(sizes, weights, out, steps, step, share, shares, class_weights, memory)


def finish_step(sizes, hyper, flat, others, rate, updates, loss, correct, count, totals):  # type: ignore[no-untyped-def]
    """Add the other shares' gradients (one per row) to the first's, clip and update; False where not finite."""
    for share in range(len(others)):
        add_row(flat.gradients, others[share])
    return _finish(sizes, hyper, flat, rate, updates, loss, correct, count, totals)
