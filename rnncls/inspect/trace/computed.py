"""What a network computes at each time step of one sequence, taken apart.

The states are the network's own, those that its whole-sequence functions return. All else follows
from them: with h_(t-1) known for all t, the contributions of many steps are two matrix products.
That the parts give h_t again is checked at every step.

Letters: T tokens, of which P are looked at together; hidden_size H; G blocks of H rows in W_ih and
W_hh, one for each gate (1, of the GRU 3, of the LSTM 4).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rnncls.errors import Problem, RnnclsError
from rnncls.model.cells import State, weights_of
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import NO_KEYS
from rnncls.model.layers import ignore_compaction, outputs_of_layer
from rnncls.model.probes import state_before, states_of
from rnncls.predict.logits import packed_alone

PIECE_STEPS = 1024  # time steps whose numbers are in memory together

# How far two ways to compute the same may be apart, relative to the largest number in them. cuDNN
# rounds the factors of products to the 10 bits of TF32, unless it is told not to.
TOLERANCE = 1e-4
TOLERANCE_OF_TF32 = 1e-2


class Computed(NamedTuple):
    """What one direction of one layer computes at P time steps."""

    input: Tensor  # W_ih x_t + b_ih, (P, G * H), blocks in PyTorch's order
    memory: Tensor  # W_hh h_(t-1) + b_hh, (P, G * H); in reverse, of h_(t+1)
    pre_activation: Tensor  # what the nonlinearities get, (P, G * H)
    gates: dict[str, Tensor]  # (P, H) each: i, f, g, o of the LSTM, r, z, n of the GRU
    cell: Tensor | None  # c_t of the LSTM, (P, H)
    activation: Tensor  # (P, H): h_t of nn.RNN, tanh(c_t) of the LSTM, n_t of the GRU
    state: Tensor  # h_t, (P, H)

    def reversed(self) -> "Computed":
        """Return the same with the last step first."""
        return self._with(lambda numbers: numbers.flip(0))

    def part(self, first: int, last: int) -> "Computed":
        """Return the same of the steps from `first` to before `last`."""
        return self._with(lambda numbers: numbers[first:last])

    def _with(self, change: Callable[[Tensor], Tensor]) -> "Computed":
        gates = {name: change(gate) for name, gate in self.gates.items()}
        cell = None if self.cell is None else change(self.cell)
        return Computed(
            change(self.input),
            change(self.memory),
            change(self.pre_activation),
            gates,
            cell,
            change(self.activation),
            change(self.state),
        )


class Piece(NamedTuple):
    """P time steps of the whole network."""

    first: int  # the index of the first one
    inputs: Tensor  # what the first layer reads, (P, embedding_dim)
    layers: list[list[Computed]]  # for each layer and, in it, each direction; in time order

    def parts(self, most: int) -> "Iterator[Piece]":
        """Yield the same in pieces of at most `most` steps."""
        for first in range(0, len(self.inputs), most):
            last = first + most
            layers = [[one.part(first, last) for one in layer] for layer in self.layers]
            yield Piece(self.first + first, self.inputs[first:last], layers)

    @property
    def top(self) -> list[Tensor]:
        """What the head sees the pooling of: states (P, H) of each direction, or the inputs."""
        return [computed.state for computed in self.layers[-1]] if self.layers else [self.inputs]


def compute(
    mode: str, weights: Sequence[Tensor], inputs: Tensor, before: Tensor, cell: Tensor | None
) -> Computed:
    """Return what a cell computes from its inputs (P, input_size) and states before (P, H).

    `mode` is that of the nn.RNNBase, `weights` those of `weights_of`, and `cell` is c, (H,), before
    the first step, for the LSTM. The formulas are those of torch.nn.RNN, LSTM and GRU.
    """
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (None, None)
    from_input = F.linear(inputs, w_ih, b_ih)
    from_memory = F.linear(before, w_hh, b_hh)

    if mode == "LSTM":
        if cell is None:
            raise ValueError("an LSTM without its cell state")
        return _lstm(from_input, from_memory, cell)
    if mode == "GRU":
        return _gru(from_input, from_memory, before)

    pre_activation = from_input + from_memory
    state = pre_activation.relu() if mode == "RNN_RELU" else pre_activation.tanh()
    return Computed(from_input, from_memory, pre_activation, {}, None, state, state)


def _lstm(from_input: Tensor, from_memory: Tensor, start: Tensor) -> Computed:
    """c_t = f c_(t-1) + i g, h_t = o tanh(c_t)."""
    pre_activation = from_input + from_memory
    blocks = pre_activation.chunk(4, dim=1)
    i, f, o = (blocks[number].sigmoid() for number in (0, 1, 3))
    g = blocks[2].tanh()

    cell = _scan(f, i * g, start)
    activation = cell.tanh()
    gates = {"i": i, "f": f, "g": g, "o": o}
    return Computed(
        from_input, from_memory, pre_activation, gates, cell, activation, o * activation
    )


def _gru(from_input: Tensor, from_memory: Tensor, before: Tensor) -> Computed:
    """n = tanh(W_in x + b_in + r (W_hn h + b_hn)), h_t = (1 - z) n + z h_(t-1)."""
    of_input = from_input.chunk(3, dim=1)
    of_memory = from_memory.chunk(3, dim=1)
    before_r = of_input[0] + of_memory[0]
    before_z = of_input[1] + of_memory[1]
    r = before_r.sigmoid()
    z = before_z.sigmoid()

    before_n = of_input[2] + r * of_memory[2]
    n = before_n.tanh()
    pre_activation = torch.cat([before_r, before_z, before_n], 1)
    state = (1 - z) * n + z * before
    gates = {"r": r, "z": z, "n": n}
    return Computed(from_input, from_memory, pre_activation, gates, None, n, state)


def _scan(factors: Tensor, summands: Tensor, start: Tensor) -> Tensor:
    """Return c_t = factors_t * c_(t-1) + summands_t for all t, (P, H), with c before t = 0 (H,).

    Two steps in a row are one step of the same form, so that each round doubles how many a row
    stands for: 10 rounds for 1,024 steps. Gates are at most 1, and their products do not overflow.
    """
    total = summands.clone()
    total[0] += factors[0] * start

    reach = 1
    while reach < len(total):
        earlier = factors[reach:] * total[:-reach]
        total = torch.cat([total[:reach], total[reach:] + earlier])
        factors = torch.cat([factors[:reach], factors[reach:] * factors[:-reach]])
        reach *= 2
    return total


@torch.no_grad()
def pieces_of(network: RNNClassifier, ids: Tensor) -> Iterator[Piece]:
    """Yield what a network in evaluation mode computes for one sequence (T,), some steps at a time.

    Of one direction a piece is all that is in memory. The other direction begins at the end, so
    that a network of two has the states of all its layers in memory, T * 2 H numbers for each.

    Raises: RnnclsError if the parts do not give the network's own states, which is a bug.
    """
    ignore_compaction()
    if network.num_directions == 1:
        yield from _streamed(network, ids)
    else:
        yield from _both_directions(network, ids)


def _streamed(network: RNNClassifier, ids: Tensor) -> Iterator[Piece]:
    rnn = network.rnn
    # The state with which each layer goes on, (1, 1, H) each.
    starts: list[State] = []
    for layer in range(rnn.num_layers):
        starts.append(tuple(part.unsqueeze(0) for part in state_before(network, layer, 0)))

    # N-grams and positions are those of the whole sequence: of a piece, their rows are read.
    first = 0
    rows = network.token_rows(packed_alone(ids), NO_KEYS)
    for parts in zip(*(torch.split(row, PIECE_STEPS) for row in rows), strict=True):
        inputs = network.embed(parts, NO_KEYS)
        data = inputs
        layers = []
        for layer in range(rnn.num_layers):
            start = starts[layer]
            outputs, starts[layer] = outputs_of_layer(rnn, layer, data, _one_each(data), start)
            before = torch.cat([start[0][0], outputs[:-1]])
            cell = start[1][0, 0] if rnn.mode == "LSTM" else None
            computed = compute(rnn.mode, weights_of(rnn, layer, 0), data, before, cell)
            layers.append([_checked(computed, outputs, layer, first)])
            data = outputs
        yield Piece(first, inputs, layers)
        first += len(inputs)


def _one_each(data: Tensor) -> Tensor:
    """Return the batch sizes of one sequence, (P,)."""
    return torch.ones(len(data), dtype=torch.int64)


def _both_directions(network: RNNClassifier, ids: Tensor) -> Iterator[Piece]:
    rnn = network.rnn
    whole = states_of(network, packed_alone(ids))
    runs = [
        [
            _Run(
                rnn,
                layer,
                direction,
                states.inputs,
                states.directions[direction],
                state_before(network, layer, direction),
            )
            for direction in range(2)
        ]
        for layer, states in enumerate(whole)
    ]

    cells = [[_cells_before_pieces(run) for run in directions] for directions in runs]
    for number, first in enumerate(range(0, len(ids), PIECE_STEPS)):
        layers = []
        for directions, of_layer in zip(runs, cells, strict=True):
            found = []
            for run, of_direction in zip(directions, of_layer, strict=True):
                computed, states = _computed_in(run, first, of_direction[number])
                found.append(_checked(computed, states, run.layer, first))
            layers.append(found)
        yield Piece(first, whole[0].inputs[first : first + PIECE_STEPS], layers)


class _Run(NamedTuple):
    """One direction of one layer, over a whole sequence."""

    rnn: nn.RNNBase
    layer: int
    direction: int
    inputs: Tensor  # (T, input_size)
    states: Tensor  # (T, H)
    start: State  # before the first step, (1, H) each


def _computed_in(run: _Run, first: int, cell: Tensor | None) -> tuple[Computed, Tensor]:
    """Return what is computed in the piece from `first` on, and its states, in time order.

    `cell` is c before the step of the piece that is run first.
    """
    inputs = run.inputs[first : first + PIECE_STEPS]
    states = run.states[first : first + PIECE_STEPS]
    weights = weights_of(run.rnn, run.layer, run.direction)
    if run.direction == 0:
        start = run.states[first - 1 : first] if first > 0 else run.start[0]
        before = torch.cat([start, states[:-1]])
        return compute(run.rnn.mode, weights, inputs, before, cell), states

    # What is before, in reverse, comes after.
    end = first + len(states)
    start = run.states[end : end + 1] if end < len(run.states) else run.start[0]
    before = torch.cat([start, states[1:].flip(0)])
    computed = compute(run.rnn.mode, weights, inputs.flip(0), before, cell)
    return computed.reversed(), states


def _cells_before_pieces(run: _Run) -> list[Tensor | None]:
    """Return c of the LSTM, (H,), before the step of each piece that is run first; else None.

    torch returns no c but the last one.
    """
    firsts = list(range(0, len(run.states), PIECE_STEPS))
    if run.rnn.mode != "LSTM":
        return [None] * len(firsts)

    cell = run.start[1][0]
    cells: dict[int, Tensor | None] = {}
    for first in reversed(firsts) if run.direction == 1 else firsts:
        cells[first] = cell
        computed, _ = _computed_in(run, first, cell)
        if computed.cell is None:
            raise ValueError("an LSTM without its cell state")
        cell = computed.cell[0 if run.direction == 1 else -1]
    return [cells[first] for first in firsts]


def _checked(computed: Computed, states: Tensor, layer: int, first: int) -> Computed:
    """Return what was computed, with the network's own states (P, H) in it.

    Raises: RnnclsError if they differ by more than rounding.
    """
    # A sum is as exact as the largest number in it, even where it cancels.
    numbers = (states, computed.input, computed.memory)
    largest = max(float(part.abs().max()) for part in numbers)
    apart = difference(computed.state, states)
    if apart > tolerance_of(states.device) * largest:
        last = first + len(states)
        where = f"layer {layer}, steps {first + 1:,} to {last:,}"
        raise disagreement(f"states apart by {apart:.2g}, the largest is {largest:.2g}", where)
    return computed._replace(state=states)


def tolerance_of(device: torch.device) -> float:
    """Return how far apart rounding may bring two numbers, relative to the largest beside them."""
    rounds_more = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return TOLERANCE_OF_TF32 if rounds_more else TOLERANCE


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference; 0 if what is expected is not finite: there is no telling."""
    if not bool(expected.isfinite().all()):
        return 0.0
    apart = (found - expected).abs().max()
    return float(apart.nan_to_num(nan=float("inf")))


def disagreement(found: str, where: str) -> RnnclsError:
    """Return what to raise if the trace is not what the model computes."""
    return RnnclsError(
        Problem(
            "a bug in rnncls: the trace is not what the model computes",
            where,
            expected="the model's own numbers, within rounding",
            found=found,
            remedy="report it, with `rnncls --version` and this command",
            id="R35",
        )
    )
