"""Measures what happens inside a network: states, saturation, and the gradient through time.

What becomes of the gradient on its way back, gradient_flow.py says.

Everything here takes a network and packed sequences, and changes neither: training can call it
beside a step. Letters as in recurrence.py: S tokens in all, of B sequences, hidden_size H, D
directions; packed rows stand time step by time step, longest sequence first.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.data.sequences import Sequences, rows_of_batches
from rnncls.model.cells import State, state_of_layer, step, weights_of, zero_state
from rnncls.model.classifier import RNNClassifier
from rnncls.model.layers import outputs_of_layer
from rnncls.model.losses import sequence_losses
from rnncls.model.pooling import (
    Pooled,
    nothing_pooled,
    pooled_with,
    side_by_side,
    summary_of_pooled,
)
from rnncls.model.recurrence import last_rows

SATURATED = 0.99  # of |tanh|

# How often a matrix is squared for its spectral radius. The largest error is that of an eigenvalue
# beside many that are as large: for H of them, log(H) / 2**SQUARINGS of it.
SQUARINGS = 11


class LayerStates(NamedTuple):
    """What one layer got and what it made of it, packed."""

    inputs: Tensor  # (S, input_size): embeddings, or the outputs of the layer below
    directions: tuple[Tensor, ...]  # h_t after every token, (S, H) for each direction


def states_of(network: RNNClassifier, tokens: PackedSequence) -> list[LayerStates]:
    """Return the inputs and the states of every layer, without dropout; the last layer is last."""
    num_directions = network.num_directions
    start = network.start_state(tokens)
    data = network.embedded(tokens)
    layers = []
    for layer in range(network.rnn.num_layers):
        before = None if start is None else state_of_layer(network.rnn, layer, start)
        outputs, _ = outputs_of_layer(network.rnn, layer, data, tokens.batch_sizes, before)
        layers.append(LayerStates(data, outputs.chunk(num_directions, dim=1)))
        data = outputs
    return layers


def inputs_and_outputs(
    network: RNNClassifier, tokens: PackedSequence
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return what the first layer reads, (S, embedding_dim), and the last layer's states.

    The states are (S, H) for each direction. Without recurrent layers, both are the same.
    """
    if not network.is_recurrent:
        data = network.embedded(tokens)
        return data, (data,)
    layers = states_of(network, tokens)
    return layers[0].inputs, layers[-1].directions


def state_before(
    network: RNNClassifier, layer: int, direction: int, num_sequences: int = 1
) -> State:
    """Return h_0 and, of the LSTM, c_0 of one layer and direction, (B, H) each."""
    if network.initial_state is None:
        return zero_state(network.rnn, network.head.weight, num_sequences)
    number = layer * network.num_directions + direction
    return tuple(part[number].expand(num_sequences, -1) for part in network.initial_state)


def summary_of(
    network: RNNClassifier, inputs: Tensor, directions: Sequence[Tensor], batch_sizes: Tensor
) -> Tensor:
    """Return what the head sees, (B, summary_size), from the last layer's states, longest first.

    `inputs`: what the first layer reads of every token, packed, (S, embedding_dim). `directions`:
    h_t after it, (S, H) each; without recurrent layers, the inputs once more.
    """
    summary = _summary_of_states(network, directions, batch_sizes)
    if not network.skip:
        return summary
    zeros = inputs.new_zeros(len(summary), inputs.shape[1])
    pooled = pooled_with(Pooled(total=zeros), inputs, batch_sizes)
    return side_by_side([summary, summary_of_pooled("mean", pooled, None, batch_sizes)])


def _summary_of_states(
    network: RNNClassifier, directions: Sequence[Tensor], batch_sizes: Tensor
) -> Tensor:
    # Forwards a sequence ends at its last token, and in reverse at its first: the first rows.
    num_sequences = int(batch_sizes[0])
    ends = [directions[0][last_rows_of(batch_sizes)]]
    ends += [backward[:num_sequences] for backward in directions[1:]]
    last = torch.cat(ends, 1)
    if network.pooling == "last":
        return last

    nothing = nothing_pooled(network.pooling, num_sequences, network.rnn, network.head.weight)
    pooled = pooled_with(nothing, torch.cat(tuple(directions), 1), batch_sizes)
    return summary_of_pooled(network.pooling, pooled, last, batch_sizes)


def gradients_through_time(
    network: RNNClassifier, tokens: PackedSequence, labels: Tensor, from_ends: bool = False
) -> list[tuple[Tensor, ...]]:
    """Return dL/dh_t after every token, (S, H) for each layer and, in a tuple, each direction.

    L is the sum of the cross-entropies of all sequences, so that each row is the gradient of its
    own sequence's loss, in nats per unit of h. It is the whole derivative: through the layers
    above, and through every later step. What an LSTM's c_t carries past h_t is not in it. `labels`
    (B,) stand in the order in which the sequences were given, on the network's device.

    Where the head sees the mean or the maximum, each step has a way to the loss that does not lead
    through time. `from_ends` leaves these ways out: of the last layer's states, only those at which
    a direction ends pass anything on. With pooling "last" there are no others.

    The network runs step by step, in its own precision and without dropout. In float32, the
    gradient of a sequence that it is very sure of is exactly 0.
    """
    sizes = tokens.batch_sizes.tolist()
    rnn = network.rnn

    # Zeros that are added to the states: the gradient of a zero is that of its state.
    taps: list[tuple[Tensor, ...]] = []
    with torch.enable_grad():
        inputs = network.embedded(tokens)
        data = inputs
        for layer in range(rnn.num_layers):
            outputs = []
            of_layer = []
            for direction in range(network.num_directions):
                tap = data.new_zeros(len(data), rnn.hidden_size).requires_grad_()
                of_layer.append(tap)
                outputs.append(_tapped(network, layer, direction, data, sizes, tap))
            taps.append(tuple(of_layer))
            data = torch.cat(outputs, 1)

        if from_ends:
            outputs = _ends_alone(outputs, tokens.batch_sizes)
        logits = network.head(summary_of(network, inputs, outputs, tokens.batch_sizes))
        if tokens.sorted_indices is not None:
            labels = labels.index_select(0, tokens.sorted_indices)
        loss = sequence_losses(logits, labels).sum()

    flat = [tap for of_layer in taps for tap in of_layer]
    gradients = iter(torch.autograd.grad(loss, flat))
    return [tuple(next(gradients) for _ in of_layer) for of_layer in taps]


def _ends_alone(directions: Sequence[Tensor], batch_sizes: Tensor) -> list[Tensor]:
    """Return the same states (S, H), of which those alone have a gradient at which one ends."""
    ends = [last_rows_of(batch_sizes), torch.arange(int(batch_sizes[0]))]
    found = []
    for states, rows in zip(directions, ends, strict=False):
        is_end = torch.zeros(len(states), 1, dtype=torch.bool)
        is_end[rows] = True
        found.append(torch.where(is_end.to(states.device), states, states.detach()))
    return found


def _tapped(
    network: RNNClassifier,
    layer: int,
    direction: int,
    inputs: Tensor,
    sizes: list[int],
    tap: Tensor,
) -> Tensor:
    """Run one direction of one layer step by step, with `tap` (S, H) added to its states (S, H)."""
    rnn = network.rnn
    weights = weights_of(rnn, layer, direction)
    inputs_of = torch.split(inputs, sizes)
    taps_of = torch.split(tap, sizes)

    # In reverse the longest sequences begin, alone; forwards all begin together.
    order = range(len(sizes))
    steps = reversed(order) if direction == 1 else order
    hidden: dict[int, Tensor] = {}
    start = state_before(network, layer, direction, sizes[0])
    state: State = tuple(part[:0] for part in start)
    for t in steps:
        before = _resized(state, start, sizes[t])
        new_hidden, *cell = step(rnn.mode, weights, inputs_of[t], before)
        hidden[t] = new_hidden + taps_of[t]
        state = (hidden[t], *cell)
    return torch.cat([hidden[t] for t in order])


def _resized(state: State, start: State, size: int) -> State:
    """Return the state of the first `size` sequences; those that begin have that of `start`."""
    pairs = zip(state, start, strict=True)
    return tuple(torch.cat([part[:size], first[len(part) : size]]) for part, first in pairs)


def last_rows_of(batch_sizes: Tensor) -> Tensor:
    """Return the row of each sequence's last token, (B,), longest sequence first."""
    return torch.tensor(last_rows(batch_sizes.tolist()))


def saturation(activations: Tensor, is_relu: bool) -> Tensor:
    """Return the share of units that pass on hardly any gradient, (S,) for activations (S, H).

    Of tanh they are those beyond +-0.99, where its derivative is below 0.02; of ReLU those that are
    0, which is its derivative there. `activations` are what the nonlinearity returned: h_t of
    nn.RNN, tanh(c_t) of the LSTM, n_t of the GRU.
    """
    passes_little = activations <= 0 if is_relu else activations.abs() > SATURATED
    return passes_little.to(activations.dtype).mean(1)


@torch.no_grad()
def activations_of(
    network: RNNClassifier, layers: Sequence[LayerStates], batch_sizes: Tensor
) -> list[tuple[Tensor, ...]]:
    """Return what the nonlinearity returned after every token, (S, H) by layer and direction.

    `layers`: those of `states_of`. For nn.RNN it is h_t, for the GRU n_t, for the LSTM tanh(c_t),
    which is h_t over its output gate: as exact as the gate is far from 0.
    """
    mode = network.rnn.mode
    if mode not in ("GRU", "LSTM"):
        return [states.directions for states in layers]

    found = []
    for layer, states in enumerate(layers):
        of_layer = []
        for direction, hidden in enumerate(states.directions):
            before = _states_before(network, layer, direction, hidden, batch_sizes)
            w_ih, w_hh, *biases = weights_of(network.rnn, layer, direction)
            b_ih, b_hh = biases or (None, None)
            from_input = F.linear(states.inputs, w_ih, b_ih).chunk(3 if mode == "GRU" else 4, 1)
            from_memory = F.linear(before, w_hh, b_hh).chunk(len(from_input), 1)
            if mode == "GRU":
                r = (from_input[0] + from_memory[0]).sigmoid()
                of_layer.append((from_input[2] + r * from_memory[2]).tanh())
            else:
                of_layer.append(hidden / (from_input[3] + from_memory[3]).sigmoid())
        found.append(tuple(of_layer))
    return found


def _states_before(
    network: RNNClassifier, layer: int, direction: int, hidden: Tensor, batch_sizes: Tensor
) -> Tensor:
    """Return h before every token, (S, H), packed, from h after every token."""
    sizes = batch_sizes.tolist()
    start, *_ = state_before(network, layer, direction, sizes[0])
    after = torch.split(hidden, sizes)
    if direction == 0:
        return torch.cat([start, *(states[: sizes[t + 1]] for t, states in enumerate(after[:-1]))])

    # In reverse, what is before comes after, and sequences begin where they end.
    following = [*after[1:], hidden[:0]]
    pairs = zip(following, sizes, strict=True)
    return torch.cat([torch.cat([states, start[len(states) : size]]) for states, size in pairs])


@torch.no_grad()
def states_after(network: RNNClassifier, sequences: Sequences, places: Tensor) -> Tensor:
    """Return the last layer's state after the prefixes that end at `places`, (P, H), on the CPU.

    A place is that of a token in `sequences.tokens`; the prefix begins where its sequence does.
    The network has one direction: a second one would not know where a prefix ends.
    """
    # The places of all tokens, cut and packed as the tokens themselves.
    every_place = torch.arange(len(sequences.tokens))
    numbered = Sequences(every_place, sequences.offsets, sequences.labels)
    row_of = torch.full_like(every_place, -1)
    row_of[places] = torch.arange(len(places))

    states = network.head.weight.new_empty(len(places), network.rnn.hidden_size, device="cpu")
    for rows in rows_of_batches(sequences, torch.arange(len(sequences))):
        wanted = row_of[numbered.batch(rows).tokens.data]
        is_wanted = wanted >= 0
        if bool(is_wanted.any()):
            tokens = sequences.batch(rows).to(network.device).tokens
            (hidden,) = states_of(network, tokens)[-1].directions
            states[wanted[is_wanted]] = hidden.cpu()[is_wanted]
    return states


@torch.no_grad()
def summaries_of(network: RNNClassifier, sequences: Sequences) -> Tensor:
    """Return what the head sees of each sequence, (R, summary_size), in order, on the CPU."""
    shape = (len(sequences), network.summary_size)
    summaries = network.head.weight.new_empty(shape, device="cpu")
    for rows in rows_of_batches(sequences, torch.arange(len(sequences))):
        tokens = sequences.batch(rows).to(network.device).tokens
        inputs, directions = inputs_and_outputs(network, tokens)
        summary = summary_of(network, inputs, directions, tokens.batch_sizes)
        summaries[rows] = summary[tokens.unsorted_indices].cpu()
    return summaries


@torch.no_grad()
def eigenvalues_of(network: RNNClassifier, layer: int, direction: int) -> Tensor:
    """Return the eigenvalues of W_hh of one layer and direction, (H,), complex, on the CPU.

    Of a gated cell it is the block that makes the candidate: g of the LSTM, n of the GRU. A weight
    that is NaN or infinite makes them all NaN.
    """
    w_hh = recurrent_block(network, layer, direction)
    if not bool(w_hh.isfinite().all()):
        return torch.full((len(w_hh),), float("nan"), dtype=torch.complex128)
    eigenvalues: Tensor = torch.linalg.eigvals(w_hh.cpu().double())
    return eigenvalues


def recurrent_block(network: RNNClassifier, layer: int, direction: int) -> Tensor:
    """Return W_hh of one layer and direction, (H, H); of a gated cell what makes the candidate."""
    _, w_hh = weights_of(network.rnn, layer, direction)[:2]
    size = network.rnn.hidden_size
    # i, f, g, o of the LSTM; r, z, n of the GRU.
    return w_hh[2 * size : 3 * size] if len(w_hh) > size else w_hh


@torch.no_grad()
def spectral_radius_of(matrix: Tensor) -> float:
    """Return the largest |eigenvalue| of a square matrix, to about a thousandth; NaN: not finite.

    It is the limit of |A^n|^(1/n) (Gelfand 1941), and of (|A^2n| / |A^n|)^(1/n), which comes near
    it sooner. Some squarings of a matrix take a fraction of the time of its eigenvalues. Of one
    that is nearly defective, it is the growth over the first few hundred steps.
    """
    norm = float(torch.linalg.matrix_norm(matrix))
    if norm == 0 or not math.isfinite(norm):
        return 0.0 if norm == 0 else math.nan

    log_norm = math.log(norm)  # of A^n
    power = matrix / norm  # A^n, scaled so that no power leaves the range of the numbers
    estimate = 0.0
    for number in range(SQUARINGS):
        power = power @ power
        norm = float(torch.linalg.matrix_norm(power))
        if norm == 0:
            return 0.0
        power = power / norm

        # What is new in log |A^2n|, beside log |A^n|, is divided by n.
        estimate = (log_norm + math.log(norm)) / 2**number
        log_norm = 2 * log_norm + math.log(norm)
    return math.exp(estimate)
