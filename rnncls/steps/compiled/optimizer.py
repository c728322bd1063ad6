"""The end of a compiled step: clipping, SGD, Adam and AdamW, on the flat arrays of a run.

The symbols of shapes are those of `memory`.
"""

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
def _norm(flat):
    """Return the 2-norm of `flat` (P,), sqrt(sum_i flat_i**2), summed in float64."""
    total = 0.0
    for index in range(len(flat)):
        total += np.float64(flat[index]) * np.float64(flat[index])
    return np.sqrt(total)


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


@jit_inlined
def _adam(sizes, hyper, flat, scale, rate, updates):
    """Update as torch.optim.Adam or AdamW does, the `updates`-th time.

    With g = scale gradient, m = flat.first and v = flat.second (Kingma and Ba 2015, algorithm 1):

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g**2
        w -= rate / (1 - beta1**updates) m / (sqrt(v / (1 - beta2**updates)) + eps)

    Weight decay adds weight_decay w to g (Adam), or multiplies w by 1 - rate weight_decay before
    (AdamW, Loshchilov and Hutter 2019). The gradients are scaled in place.
    """
    weights = flat.weights
    gradients = flat.gradients
    first = flat.first
    second = flat.second

    # The factors are computed in float64 and rounded once; the loop below is all float32.
    corrected_rate = np.float32(rate / (1 - hyper.beta1**updates))
    corrected_root = np.float32(1 / np.sqrt(1 - hyper.beta2**updates))
    keep = np.float32(1 - rate * hyper.weight_decay if sizes.optimizer == ADAMW else 1)
    decay = np.float32(hyper.weight_decay if sizes.optimizer == ADAM else 0)
    new_first = np.float32(1 - hyper.beta1)
    new_second = np.float32(1 - hyper.beta2)
    old_second = np.float32(hyper.beta2)
    eps = np.float32(hyper.eps)

    for index in range(len(weights)):
        gradients[index] *= scale
        gradient = gradients[index] + decay * weights[index]

        # The same as beta1 m + (1 - beta1) g.
        first[index] += new_first * (gradient - first[index])
        second[index] = old_second * second[index] + new_second * gradient * gradient

        denominator = np.sqrt(second[index]) * corrected_root + eps
        weights[index] = keep * weights[index] - corrected_rate * first[index] / denominator


@jit
def _update(sizes, hyper, flat, scale, rate, updates):
    """Scale the gradients (P,) and take one step of the optimizer, its `updates`-th."""
    scale = np.float32(scale)

    if sizes.optimizer == SGD:
        # torch's first update sets the buffer to the gradient, whatever was in it.
        momentum = np.float32(hyper.momentum if updates > 1 else 0)
        decay = np.float32(hyper.weight_decay)
        _sgd(flat, scale, np.float32(rate), momentum, decay, hyper.momentum > 0)
    else:
        _adam(sizes, hyper, flat, scale, rate, updates)


@jit
def finish(sizes, hyper, flat, rate, updates, loss, correct, sequences, sums):
    """Clip the gradients, update the weights and add the step to `sums` (NUM_SUMS,).

    The gradients are scaled by min(1, max_norm / (norm + clip_epsilon)). Returns False, and changes
    nothing, if the loss or the gradients, flat.gradients (P,), are not finite.
    """
    # A NaN is not smaller than anything, so one comparison finds it as well as an infinity.
    norm = _norm(flat.gradients)
    if not (np.isfinite(loss) and norm < LARGEST_NORM):
        return False

    # Without clipping max_norm is infinite, and so is the quotient: the scale is 1.
    scale = min(1.0, hyper.max_norm / (norm + hyper.clip_epsilon))
    _update(sizes, hyper, flat, scale, rate, updates)

    sums[SUM_LOSS] += loss * sequences
    sums[SUM_CORRECT] += correct
    sums[SUM_SEQUENCES] += sequences
    sums[SUM_GRAD_NORM] += norm
    sums[SUM_CLIPPED] += norm > hyper.max_norm
    return True
