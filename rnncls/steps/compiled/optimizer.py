"""The end of a compiled step: clipping, SGD, Adam and AdamW, on the flat arrays of a run.

The symbols of shapes are those of `memory`.
"""

from typing import NamedTuple

import numpy as np

from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.steps.compiled.memory import (
    ADAM,
    ADAMW,
    SGD,
    SUM_CLIPPED,
    SUM_CORRECT,
    SUM_GRAD_NORM,
    SUM_LOSS,
    SUM_SEQUENCES,
)

# Gradients with a larger norm are left to the eager step: it computes the norm in float32, and the
# square of a larger number overflows there: sqrt(3.4e38) is 1.84e19.
LARGEST_NORM = 1.8e19


@jit
def _sum_of_squares(flat):
    """Return sum_i flat_i**2, summed in float64."""
    total = 0.0
    for index in range(len(flat)):
        total += np.float64(flat[index]) * np.float64(flat[index])
    return total


@jit
def _norm(sizes, more, gradients):
    """Return the 2-norm of `gradients` (P,); of a table the touched rows count."""
    if more is None:
        return np.sqrt(_sum_of_squares(gradients))

    begin, behind = _table_of(sizes, more)
    total = _sum_of_squares(gradients[:begin]) + _sum_of_squares(gradients[behind:])
    for row in range(len(more.touched)):
        if more.touched[row]:
            total += _sum_of_squares(gradients[begin + row * sizes.width :][: sizes.width])
    return np.sqrt(total)


@jit_inlined
def _table_of(sizes, more):
    """Return where the table of n-grams begins, and where it ends."""
    begin = sizes.tokens * sizes.width
    return begin, begin + more.extras.table * sizes.width


@jit_inlined
def _sgd(flat, scale, rate, momentum, decay, has_momentum):
    """Update as torch.optim.SGD does, where g = scale gradient + decay w, and flat.first is m.

    With momentum m = momentum m + g and w -= rate m, without w -= rate g. The gradients are scaled
    in place. All factors are float32.
    """
    weights = flat.weights
    gradients = flat.gradients
    first = flat.first

    # Clipping comes before weight decay, which is the optimizer's own and is not clipped.
    for index in range(len(weights)):
        gradients[index] *= scale
        gradient = gradients[index] + decay * weights[index]
        if has_momentum:
            gradient += momentum * first[index]
            first[index] = gradient
        weights[index] -= rate * gradient


class _AdamFactors(NamedTuple):
    """The numbers of an update: computed in float64 and rounded once."""

    scale: np.float32  # of the gradients
    corrected_rate: np.float32
    corrected_root: np.float32
    keep: np.float32
    decay: np.float32
    new_first: np.float32
    new_second: np.float32
    old_second: np.float32
    eps: np.float32


@jit
def _adam(sizes, hyper, more, flat, scale, rate, updates):
    """Update as torch.optim.Adam or AdamW does, the `updates`-th time.

    With g = scale gradient, m = flat.first and v = flat.second (Kingma and Ba 2015, algorithm 1):

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g**2
        w -= rate / (1 - beta1**updates) m / (sqrt(v / (1 - beta2**updates)) + eps)

    Weight decay adds weight_decay w to g (Adam), or multiplies w by 1 - rate weight_decay before
    (AdamW, Loshchilov and Hutter 2019). The gradients are scaled in place.
    """
    factors = _AdamFactors(
        scale=scale,
        corrected_rate=np.float32(rate / (1 - hyper.beta1**updates)),
        corrected_root=np.float32(1 / np.sqrt(1 - hyper.beta2**updates)),
        keep=np.float32(1 - rate * hyper.weight_decay if sizes.optimizer == ADAMW else 1),
        decay=np.float32(hyper.weight_decay if sizes.optimizer == ADAM else 0),
        new_first=np.float32(1 - hyper.beta1),
        new_second=np.float32(1 - hyper.beta2),
        old_second=np.float32(hyper.beta2),
        eps=np.float32(hyper.eps),
    )

    if more is None:
        _adam_between(factors, flat, 0, len(flat.weights))
    else:
        begin, behind = _table_of(sizes, more)
        _adam_between(factors, flat, 0, begin)
        _adam_of_table(factors, flat, more.touched, begin, sizes.width)
        _adam_between(factors, flat, behind, len(flat.weights))


@jit
def _adam_of_table(factors, flat, touched, begin, width):
    """Update the table that begins at `begin`, its rows without a gradient many at a time."""
    row = 0
    while row < len(touched):
        first_row = row
        has_gradient = touched[row]
        while row < len(touched) and touched[row] == has_gradient:
            row += 1
        if has_gradient:
            _adam_between(factors, flat, begin + first_row * width, begin + row * width)
        else:
            _adam_at_rest(factors, flat, begin + first_row * width, begin + row * width)


@jit
def _adam_between(factors, flat, begin, end):
    """Update the parameters from `begin` to `end`."""
    weights = flat.weights[begin:end]
    gradients = flat.gradients[begin:end]
    first = flat.first[begin:end]
    second = flat.second[begin:end]
    for index in range(len(weights)):
        gradients[index] *= factors.scale
        gradient = gradients[index] + factors.decay * weights[index]

        # The same as beta1 m + (1 - beta1) g.
        first[index] += factors.new_first * (gradient - first[index])
        second[index] = (
            factors.old_second * second[index] + factors.new_second * gradient * gradient
        )

        denominator = np.sqrt(second[index]) * factors.corrected_root + factors.eps
        step = factors.corrected_rate * first[index] / denominator
        weights[index] = factors.keep * weights[index] - step


@jit
def _adam_at_rest(factors, flat, begin, end):
    """Do what `_adam_between` does where all gradients are 0: to the bit, without reading them."""
    weights = flat.weights[begin:end]
    first = flat.first[begin:end]
    second = flat.second[begin:end]
    for index in range(len(weights)):
        gradient = factors.decay * weights[index]
        first[index] += factors.new_first * (gradient - first[index])
        second[index] = (
            factors.old_second * second[index] + factors.new_second * gradient * gradient
        )

        denominator = np.sqrt(second[index]) * factors.corrected_root + factors.eps
        step = factors.corrected_rate * first[index] / denominator
        weights[index] = factors.keep * weights[index] - step


@jit
def _update(sizes, hyper, more, flat, scale, rate, updates):
    """Scale the gradients (P,) and take one step of the optimizer, its `updates`-th."""
    scale = np.float32(scale)

    if sizes.optimizer == SGD:
        # torch's first update sets the buffer to the gradient, whatever was in it.
        momentum = np.float32(hyper.momentum if updates > 1 else 0)
        decay = np.float32(hyper.weight_decay)
        _sgd(flat, scale, np.float32(rate), momentum, decay, hyper.momentum > 0)
    else:
        _adam(sizes, hyper, more, flat, scale, rate, updates)


@jit
def finish(sizes, hyper, more, flat, rate, updates, loss, correct, sequences, sums):
    """Clip the gradients, update the weights and add the step to `sums` (NUM_SUMS,).

    `more` may be None; more.touched says which rows of the table of n-grams have a gradient.

    The gradients are scaled by min(1, max_norm / (norm + clip_epsilon)). Returns False, and changes
    nothing, if the loss or the gradients, flat.gradients (P,), are not finite.
    """
    # A NaN is not smaller than anything, so one comparison finds it as well as an infinity.
    norm = _norm(sizes, more, flat.gradients)
    if not (np.isfinite(loss) and norm < LARGEST_NORM):
        return False

    # Without clipping max_norm is infinite, and so is the quotient: the scale is 1.
    scale = min(1.0, hyper.max_norm / (norm + hyper.clip_epsilon))
    _update(sizes, hyper, more, flat, scale, rate, updates)

    sums[SUM_LOSS] += loss * sequences
    sums[SUM_CORRECT] += correct
    sums[SUM_SEQUENCES] += sequences
    sums[SUM_GRAD_NORM] += norm
    sums[SUM_CLIPPED] += norm > hyper.max_norm
    return True
