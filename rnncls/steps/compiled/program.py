"""Training steps as one compiled function (Numba), from embedding to optimizer.

An eager step of a small model spends nine tenths of its time between operations. Here one call
takes many steps, on the model's own tensors: parameters, gradients and optimizer state lie end to
end in four arrays (`memory.FlatArrays`) of which the tensors are views, so that evaluation,
checkpoints and logs do not know the difference.

There is one program for each cell, made of the functions `forward` and `backward` of its module,
which run one direction of one layer: `rnn`, `gru`, `lstm` or `none`. All else is the same for all
of them.

A batch is packed as in torch's PackedSequence (`batches.BatchLayout`). The symbols of shapes are
those of `memory`. The gradient with respect to x is written dx, the hidden state h_t, and a
pre-activation z_t.

Results equal those of the eager step up to float32 rounding. They have the same bits every time,
however the steps are divided among calls.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from rnncls.compiled.batches import pack
from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.kernels import add_row, clear
from rnncls.steps.compiled.dropout import drop, drop_outputs
from rnncls.steps.compiled.head import (
    cross_entropy,
    head_backward,
    head_forward,
    smoothed_cross_entropy,
)
from rnncls.steps.compiled.inputs import (
    begin_gradients,
    embed,
    embedding_gradients,
    table_backward,
)
from rnncls.steps.compiled.optimizer import finish
from rnncls.steps.compiled.parameters import (
    load_weights,
    ngram_embeddings,
    offset_of,
    store_gradients,
)


def layers_of(cell: ModuleType) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return the functions that run all layers of this cell, forward and backward."""
    forward_direction = cell.forward
    backward_direction = cell.backward

    @jit_inlined
    def forward(sizes, more, flat, weights, work, batch, step_inputs, step, size):
        """Compute the outputs of all layers and the logits of all sequences, longest first.

        `weights` are copies of some parameters in `flat` (P,). `more` may be None. `step_inputs`
        has the keys of the dropout and the noise of this step.
        """
        keys = step_inputs.keys[step]
        input_keys = step_inputs.input_keys[step]
        noise_keys = step_inputs.noise_keys[step]
        first = step_inputs.edges[step]
        embed(sizes, more, flat, weights, work, batch, input_keys, first, size)
        for layer in range(sizes.layers):
            if layer > 0 and sizes.dropout > 0:
                drop_outputs(sizes, work, layer, keys[layer - 1], first, batch, size)
            for direction in range(sizes.directions):
                forward_direction(
                    sizes, weights, work, batch, layer, direction, noise_keys, first, size
                )
        head_forward(sizes, more, weights, work, batch, input_keys, first, size)

    @jit_inlined
    def backward(sizes, more, weights, work, batch, keys, input_keys, first, gradients, size):
        """Compute the gradients of all parameters, (P,), from those of work.logits (B, C').

        Layer by layer from the top: d_hidden (D, S, H') has dh of the layer's outputs, and d_below
        (D, S, H') receives dh of the layer below.
        """
        head = sizes.layers * sizes.directions
        d_hidden = work.d_hidden[0]
        d_below = work.d_hidden[1]
        offset = offset_of(sizes, head)
        head_backward(
            sizes,
            more,
            offset,
            weights,
            work,
            batch,
            input_keys,
            first,
            gradients,
            d_hidden,
            size,
        )

        for layer in range(sizes.layers - 1, -1, -1):
            for direction in range(sizes.directions):
                offset = offset_of(sizes, layer * sizes.directions + direction)
                begin_gradients(sizes, work, layer, direction)
                backward_direction(
                    sizes,
                    offset,
                    weights,
                    work,
                    batch,
                    layer,
                    direction,
                    gradients,
                    d_hidden[direction],
                    d_below,
                    size,
                )
                if layer == 0 and sizes.by_table:
                    table_backward(sizes, weights, work, direction)
                store_gradients(
                    sizes,
                    offset,
                    layer,
                    work.d_input,
                    work.d_between,
                    work.d_recurrent,
                    gradients,
                )

            # The same elements are dropped as going forward.
            if layer > 0 and sizes.dropout > 0:
                drop(sizes, d_below, work.bits, keys[layer - 1], first, batch, size)
            # What is left in the old d_hidden is overwritten by the next products.
            d_hidden, d_below = d_below, d_hidden
        embedding_gradients(sizes, more, work, batch, input_keys, first, gradients, size)

    return forward, backward


def entry_points(cell: ModuleType) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Return `train_steps` and `share_of_step` of this cell, to be compiled."""
    forward, backward = layers_of(cell)

    @jit_inlined
    def gradients_of(sizes, weights, out, step_inputs, step, share, shares, class_weights, buffers):
        """Compute a share of one step's loss, number of correct predictions and gradients.

        From `weights` (P,) into `out` (P,), for every `shares`-th sequence from number `share` on.
        The loss is a mean over all sequences of the step, so that the shares add up to the whole.
        """
        # The denominator of the mean is the whole step's, also for a share.
        first = step_inputs.edges[step]
        total_weight = 0.0
        for index in range(first, step_inputs.edges[step + 1]):
            total_weight += class_weights[step_inputs.labels[index]]

        more = buffers.more
        load_weights(sizes, more, weights, buffers.weights)
        batch = buffers.batch
        size = pack(step_inputs, step, share, shares, batch)

        # A small batch may have fewer sequences than there are threads.
        if size.sequences == 0:
            clear(out)
            _forget(more)
            return 0.0, 0

        work = buffers.work
        keys = step_inputs.keys[step]
        input_keys = step_inputs.input_keys[step]
        forward(sizes, more, weights, buffers.weights, work, batch, step_inputs, step, size)
        loss, correct = _loss_of(
            sizes, work.logits, step_inputs, class_weights, total_weight, batch.order, size
        )
        backward(
            sizes,
            more,
            buffers.weights,
            work,
            batch,
            keys,
            input_keys,
            first,
            out,
            size,
        )
        return loss, correct

    def train_steps(sizes, hyper, flat, step_inputs, class_weights, updates, sums, buffers):
        """Take the steps in order, in one thread, and return how many were taken.

        Stops before a step whose loss or gradient is not finite; the eager step deals with it.
        Changes `flat`, and adds to `sums` (NUM_SUMS,) float64. `class_weights` is (C,) float32,
        `updates` the number of optimizer steps that were taken before.
        """
        for step in range(len(step_inputs.rates)):
            # The whole step as one share: number 0 of 1.
            loss, correct = gradients_of(
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
                more=buffers.more,
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

    def share_of_step(
        sizes, weights, out, step_inputs, step, share, shares, class_weights, buffers
    ):
        """Compute one thread's share of a step; return its loss and number of correct predictions.

        The gradient of every `shares`-th sequence, from number `share` on, is written to `out`
        (P,).
        """
        return gradients_of(
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

    return train_steps, share_of_step


def finish_step(
    sizes, hyper, more, flat, others, touched, rate, updates, loss, correct, sequences, sums
):
    """Add up the gradients of all threads, clip and update; return False if they are not finite.

    flat.gradients (P,) has the first thread's gradient, others (threads - 1, P) the other threads'.
    `more` is the first thread's, and may be None; `touched` (threads, M) has those of all threads.
    `updates` counts this update.
    """
    # In the order of the threads, so that the sum has the same bits every time.
    for share in range(len(others)):
        _add_gradients(sizes, more, flat.gradients, others[share], touched[share + 1])
    return finish(
        sizes=sizes,
        hyper=hyper,
        more=more,
        flat=flat,
        rate=rate,
        updates=updates,
        loss=loss,
        correct=correct,
        sequences=sequences,
        sums=sums,
    )


@jit_inlined
def _loss_of(sizes, logits, step_inputs, class_weights, total_weight, order, size):
    """Return the loss and how many predictions are correct; `logits` become their gradients."""
    labels = step_inputs.labels
    sequences = size.sequences
    if sizes.smoothing > 0:
        return smoothed_cross_entropy(
            sizes, logits, order, labels, class_weights, total_weight, sequences
        )
    return cross_entropy(sizes, logits, order, labels, class_weights, total_weight, sequences)


@jit
def _add_gradients(sizes, more, gradients, other, touched):
    """Add the gradients `other` (P,), of whose table the `touched` rows (M,) are not 0."""
    if more is None:
        add_row(gradients, other)
        return

    begin = sizes.tokens * sizes.width
    behind = begin + more.extras.table * sizes.width
    add_row(gradients[:begin], other[:begin])
    add_row(gradients[behind:], other[behind:])
    d_table = ngram_embeddings(sizes, more.extras, gradients)
    d_other = ngram_embeddings(sizes, more.extras, other)
    for row in range(len(touched)):
        if touched[row]:
            add_row(d_table[row], d_other[row])
            more.touched[row] = 1


@jit
def _forget(more):
    """Note that no row of the table has a gradient."""
    if more is not None:
        clear(more.touched)
