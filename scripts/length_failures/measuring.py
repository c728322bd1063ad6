"""Margins, drift and Lyapunov exponents of one recurrent layer that adds up digits.

Letters: H units, V digits, C classes, T time steps, K sequences. A network is

    h_t = f(W_hh h_(t-1) + a[x_t]),    logits_t = U h_t + c,

with h_0 = 0, f = tanh or relu, and a[x] = W_ih e_x + b_ih + b_hh for the embedding e_x of digit x.
The label after t digits is their sum modulo C.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Numbers = NDArray[np.int64]

# Two states are the same if they differ by less than this, in distances between class means. Single
# precision leaves differences of about a millionth.
SAME = 1e-4
# A state of this many times the size of a class mean has grown.
GROWN = 10.0
# The longest period that is looked for.
MOST_PERIOD = 64


class Network(NamedTuple):
    """The weights of a network, in the precision in which it runs."""

    recurrent: Array  # W_hh, (H, H)
    inputs: Array  # a, (V, H)
    head: Array  # U, (C, H)
    offsets: Array  # c, (C,)
    nonlinearity: str


class Drift(NamedTuple):
    """How far K sequences are from the means of their classes; all are (K, T) but for `ends`."""

    seen: Array
    rest: Array
    margins: Array
    ends: list[str]


def activated(network: Network, before: Array) -> Array:
    """Return f of what stands before it."""
    return np.maximum(before, 0) if network.nonlinearity == "relu" else np.tanh(before)


def slopes(network: Network, before: Array) -> Array:
    """Return f' of what stands before f, in float64."""
    if network.nonlinearity == "relu":
        return (before > 0).astype(np.float64)
    found: Array = 1 - np.tanh(before) ** 2
    return found


def next_states(network: Network, states: Array, digits: Numbers) -> Array:
    """Return the states (K, H) after one more digit each."""
    return activated(network, states @ network.recurrent.T + network.inputs[digits])


def zero_states(network: Network, count: int) -> Array:
    """Return h_0 of so many sequences, (K, H)."""
    return np.zeros((count, len(network.recurrent)), network.recurrent.dtype)


def sums(network: Network, digits: Numbers) -> Numbers:
    """Return the label after each digit, (K, T), for digits (K, T)."""
    return digits.cumsum(1) % len(network.head)


def margins_of(network: Network, states: Array, labels: Numbers) -> Array:
    """Return the margin of each state (K, H), (K,).

    The margin is the logit of the right class minus the largest one of another class. It is
    positive where the answer is right, and says how far it is from being wrong.
    """
    logits = states @ network.head.T + network.offsets
    rows = np.arange(len(labels))
    right = logits[rows, labels]
    logits[rows, labels] = -np.inf
    found: Array = right - logits.max(1)
    return found


def margins(network: Network, digits: Numbers) -> Array:
    """Return the margin after each of the digits (K, T), (K, T)."""
    labels = sums(network, digits)
    states = zero_states(network, len(digits))
    found = np.empty(digits.shape, states.dtype)
    for time in range(digits.shape[1]):
        states = next_states(network, states, digits[:, time])
        found[:, time] = margins_of(network, states, labels[:, time])
    return found


def class_means(network: Network, digits: Numbers) -> Array:
    """Return the mean state of each class, (C, H), over every prefix of the digits (K, T)."""
    labels = sums(network, digits)
    states = zero_states(network, len(digits))
    totals = np.zeros(network.head.shape)
    for time in range(digits.shape[1]):
        states = next_states(network, states, digits[:, time])
        np.add.at(totals, labels[:, time], states)
    counts = np.bincount(labels.ravel(), minlength=len(totals))
    return totals / counts[:, None]


def neighbour_distance(means: Array) -> float:
    """Return the distance of a class mean (C, H) from the nearest other one, averaged over C."""
    distances = np.linalg.norm(means[:, None] - means, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return float(distances.min(1).mean())


def seen_directions(head: Array) -> Array:
    """Return an orthonormal basis, (H, R), of what the head's decision depends on.

    Which class wins depends on differences between logits alone, so on the state's component in the
    span of the rows of U minus their mean. The rest of the state changes no answer at once.
    """
    centred = head.astype(np.float64) - head.astype(np.float64).mean(0)
    _, values, rows = np.linalg.svd(centred, full_matrices=False)
    basis: Array = rows[values > values.max() * 1e-6].T
    return basis


def drift(network: Network, digits: Numbers, means: Array) -> Drift:
    """Return how far each state is from the mean of its class, for digits (K, T).

    With m the means (C, H), y_t the label after t digits, D = `neighbour_distance(m)` and B the
    basis `seen_directions(U)`:

        delta_t = h_t - m[y_t]
        seen_t = |B^T delta_t| / D,    rest_t = |delta_t - B B^T delta_t| / D

    The first column is the state after one digit. At seen = 1/2, a state is about halfway to the
    next class. `ends` says for each sequence what becomes of the state at last, in units of D: see
    `ending`.
    """
    basis = seen_directions(network.head)
    unit = neighbour_distance(means)
    labels = sums(network, digits)
    states = zero_states(network, len(digits))
    shape = digits.shape
    found = Drift(np.empty(shape), np.empty(shape), np.empty(shape), [])

    last: list[Array] = []
    for time in range(shape[1]):
        states = next_states(network, states, digits[:, time])
        delta = states - means[labels[:, time]]
        part = delta @ basis
        found.seen[:, time] = np.linalg.norm(part, axis=1) / unit
        found.rest[:, time] = np.linalg.norm(delta - part @ basis.T, axis=1) / unit
        found.margins[:, time] = margins_of(network, states, labels[:, time])
        last = [*last[-MOST_PERIOD:], states]

    size = float(np.linalg.norm(means, axis=1).mean())
    path = np.stack(last, axis=1)
    found.ends.extend(ending(each, unit, size) for each in path)
    return found


def ending(path: Array, unit: float, size: float) -> str:
    """Return what becomes of the last states of a sequence, (P + 1, H).

    - "grows": the last one is more than 10 times as large as `size`;
    - "stops": it differs from the one before by less than 1e-4 of `unit`;
    - "cycles": it does so from an earlier one, at most 64 time steps before;
    - "moves": none of these.
    """
    if not np.linalg.norm(path[-1]) <= GROWN * size:
        return "grows"
    distances = np.linalg.norm(path[:-1] - path[-1], axis=1)[::-1] / unit
    is_same = distances < SAME
    if is_same[0]:
        return "stops"
    return "cycles" if is_same.any() else "moves"


def lyapunov_exponents(network: Network, digits: Numbers, count: int, skip: int = 0) -> Array:
    """Return the leading exponents along one sequence of digits (T,), (count,), falling.

    With J_t = D_t W_hh the Jacobian of h_t by h_(t-1), where D_t is the diagonal matrix of f'(z_t),
    and Q_0 with `count` orthonormal columns:

        Q_t R_t = J_t Q_(t-1),    lambda_i = mean over t of log |(R_t)_ii|

    (Benettin, Galgani, Giorgilli and Strelcyn 1980, "Lyapunov characteristic exponents for smooth
    dynamical systems", Meccanica 15). The mean leaves out the first `skip` time steps, in which Q_t
    finds its directions. A small error in the state grows by exp(lambda_1) per digit: it dies out
    if lambda_1 is below 0, stays at 0 and grows above 0.

    All is in float64. Where an error dies out at once, as it does where no unit of a relu network
    that it reaches is active, the logarithm is that of the smallest positive number, -708.
    """
    recurrent = network.recurrent.astype(np.float64)
    inputs = network.inputs.astype(np.float64)
    state: Array = np.zeros(len(recurrent))
    start = np.random.default_rng(0).standard_normal((len(recurrent), count))
    columns = np.linalg.qr(start)[0]
    total = np.zeros(count)

    for time, digit in enumerate(digits):
        before = recurrent @ state + inputs[digit]
        state = activated(network, before)
        columns, factors = np.linalg.qr(slopes(network, before)[:, None] * (recurrent @ columns))
        if time >= skip:
            sizes = np.abs(np.diag(factors))
            total += np.log(np.maximum(sizes, np.finfo(np.float64).tiny))
    return np.sort(total / (len(digits) - skip))[::-1]


def greatest_growth(network: Network, digits: Numbers) -> float:
    """Return by how much an error in the state after the first digit can grow until the last one.

    With s the largest singular value of J_T ... J_3 J_2 and J_t as above, it is log(s) / (T - 1)
    per digit: the leading exponent of a finite time.
    """
    recurrent = network.recurrent.astype(np.float64)
    inputs = network.inputs.astype(np.float64)
    state = activated(network, inputs[digits[0]])
    product = np.eye(len(recurrent))
    for digit in digits[1:]:
        before = recurrent @ state + inputs[digit]
        state = activated(network, before)
        product = slopes(network, before)[:, None] * (recurrent @ product)
    size = max(float(np.linalg.norm(product, 2)), float(np.finfo(np.float64).tiny))
    return float(np.log(size)) / (len(digits) - 1)
