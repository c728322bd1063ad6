"""Pooling, learned initial states and prefixes: against NumPy, and what logits do not depend on."""

from collections.abc import Callable, Sequence
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from rnncls.data import Padded, collate
from rnncls.model import pieces
from rnncls.model.classifier import RNNClassifier
from rnncls.model.pieces import Pieces
from rnncls.model.pooling import Pooled, pooled_with, summary_of_padded
from rnncls.model.prefixes import prefix_losses, prefix_weights

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = dict[str, Array]

VOCABULARY = 5
CELLS = ["tanh", "relu", "lstm", "gru"]
POOLINGS: list[Any] = ["last", "mean", "max", "last_mean_max"]
INITIAL_STATES: list[Any] = ["zeros", "learned"]
ROWS = [[1, 2, 3], [4], [0, 0, 0, 0, 2], [3, 1], [2, 4, 1]]

rows_strategy = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), min_size=1, max_size=6
)
ARCHITECTURES = list(product(CELLS, (1, 2), (False, True), POOLINGS, INITIAL_STATES))
ONE_DIRECTION = [each for each in ARCHITECTURES if not each[2]]

Architecture = tuple[str, int, bool, Any, Any]


def model_of(architecture: Architecture) -> RNNClassifier:
    """Return a small model in float64, whose initial state is not zero if it is learned."""
    cell, num_layers, bidirectional, pooling, initial_state = architecture
    torch.manual_seed(1)
    kind: dict[str, Any] = {"cell": cell}
    if cell in ("tanh", "relu"):
        kind = {"cell": "rnn", "nonlinearity": cell}
    model = RNNClassifier(
        VOCABULARY,
        3,
        embedding_dim=4,
        hidden_size=6,
        num_layers=num_layers,
        bidirectional=bidirectional,
        pooling=pooling,
        initial_state=initial_state,
        **kind,
    )
    if model.initial_state is not None:
        torch.nn.init.normal_(model.initial_state)
    return model.double().eval()


def packed(rows: Sequence[Sequence[int]]) -> PackedSequence:
    return pack_sequence([torch.tensor(row) for row in rows], enforce_sorted=False)


def logits_of(model: RNNClassifier, rows: Sequence[Sequence[int]]) -> Tensor:
    logits: Tensor = model(packed(rows))
    return logits


def require_close(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, torch.as_tensor(expected), rtol=1e-10, atol=1e-12)


# --- the reference: plain NumPy, one sequence, one step at a time


def weights_of(model: RNNClassifier) -> Weights:
    return {name: value.detach().numpy().copy() for name, value in model.named_parameters()}


def sigmoid(values: Array) -> Array:
    return 1 / (1 + np.exp(-values))


def step(cell: str, w: Weights, name: str, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """Return h_t and c_t by the formulas of PyTorch's documentation."""
    from_input = w[f"rnn.weight_ih_{name}"] @ x + w[f"rnn.bias_ih_{name}"]
    from_state = w[f"rnn.weight_hh_{name}"] @ h + w[f"rnn.bias_hh_{name}"]
    if cell == "tanh":
        return np.tanh(from_input + from_state), c
    if cell == "relu":
        return np.maximum(from_input + from_state, 0), c
    if cell == "lstm":
        i, f, g, o = np.split(from_input + from_state, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        return sigmoid(o) * np.tanh(c), c

    xr, xz, xn = np.split(from_input, 3)
    hr, hz, hn = np.split(from_state, 3)
    new = np.tanh(xn + sigmoid(xr + hr) * hn)
    update = sigmoid(xz + hz)
    return (1 - update) * new + update * h, c


def reference(architecture: Architecture, w: Weights, row: Sequence[int]) -> Array:
    """Return the logits of one sequence."""
    cell, num_layers, bidirectional, pooling, initial_state = architecture
    inputs = [w["embedding.weight"][token] for token in row]
    for layer in range(num_layers):
        columns = []
        ends = []
        for direction in range(2 if bidirectional else 1):
            number = layer * (2 if bidirectional else 1) + direction
            h = c = np.zeros(6)
            if initial_state == "learned":
                h = w["initial_state"][0, number]
                c = w["initial_state"][-1, number]
            states = []
            for x in inputs[::-1] if direction else inputs:
                name = f"l{layer}" + ("_reverse" if direction else "")
                h, c = step(cell, w, name, x, h, c)
                states.append(h)
            ends.append(h)
            columns.append(states[::-1] if direction else states)
        inputs = [np.concatenate(states) for states in zip(*columns, strict=True)]

    outputs = np.stack(inputs)
    parts = {"last": np.concatenate(ends), "mean": outputs.mean(0), "max": outputs.max(0)}
    names = ["last", "mean", "max"] if pooling == "last_mean_max" else [pooling]
    summary = np.concatenate([parts[name] for name in names])
    logits: Array = w["head.weight"] @ summary + w["head.bias"]
    return logits


def cross_entropy(logits: Array, label: int) -> float:
    largest = logits.max()
    return float(np.log(np.exp(logits - largest).sum()) + largest - logits[label])


def slope(loss: Callable[[], float], values: Array, place: tuple[int, ...]) -> float:
    """Return the derivative of a loss by one number, by central differences."""
    width = 1e-6
    before = values[place]
    values[place] = before + width
    above = loss()
    values[place] = before - width
    below = loss()
    values[place] = before
    return (above - below) / (2 * width)


def require_slopes(
    model: RNNClassifier, w: Weights, loss: Callable[[], float], tolerance: float
) -> None:
    """Compare some numbers of every parameter's gradient with differences of a loss of `w`."""
    rng = np.random.default_rng(0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        for _ in range(2):
            place = tuple(int(rng.integers(size)) for size in parameter.shape)
            found = float(parameter.grad[place])
            assert found == pytest.approx(slope(loss, w[name], place), abs=tolerance), name


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=str)
def test_logits_are_those_of_numpy(architecture: Architecture) -> None:
    model = model_of(architecture)
    w = weights_of(model)
    expected = np.stack([reference(architecture, w, row) for row in ROWS])
    require_close(logits_of(model, ROWS), expected)
    with torch.no_grad():
        require_close(logits_of(model, ROWS), expected)


# What a learned initial state has beside zeros is a parameter more, whatever is pooled.
SLOPES = [
    each
    for each in ARCHITECTURES
    if each[1] == 2 and (each[4] == "learned" or each[3] == "last_mean_max")
]


@pytest.mark.parametrize("architecture", SLOPES, ids=str)
def test_gradients_are_the_slopes_of_numpy(architecture: Architecture) -> None:
    model = model_of(architecture)
    weighting = torch.linspace(-1, 1, 3 * len(ROWS), dtype=torch.float64).view(-1, 3)
    torch.autograd.backward((logits_of(model, ROWS) * weighting).sum())

    w = weights_of(model)

    def loss() -> float:
        logits = np.stack([reference(architecture, w, row) for row in ROWS])
        return float((logits * weighting.numpy()).sum())

    require_slopes(model, w, loss, 1e-7)


# --- what logits do not depend on


@given(rows_strategy, st.sampled_from(ARCHITECTURES), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_logits_do_not_depend_on_batch_mates_their_order_and_padding(
    rows: list[list[int]], architecture: Architecture, random: Any
) -> None:
    model = model_of(architecture)
    alone = torch.cat([logits_of(model, [row]) for row in rows])
    require_close(logits_of(model, rows), alone)
    require_close(logits_of(model, [*rows, [1] * 20])[:-1], alone)

    order = list(range(len(rows)))
    random.shuffle(order)
    require_close(logits_of(model, [rows[index] for index in order]), alone[order])


@given(rows_strategy, st.sampled_from(ONE_DIRECTION), st.integers(0, 5))
@settings(max_examples=60)
def test_padded_sequences_have_the_logits_of_packed_ones(
    rows: list[list[int]], architecture: Architecture, longer: int
) -> None:
    model = model_of(architecture)
    # What stands behind a sequence has no meaning, and no influence.
    width = max(map(len, rows)) + longer
    tokens = torch.tensor([row + [3] * (width - len(row)) for row in rows])
    padded = Padded(tokens, torch.tensor([*map(len, rows)]))
    require_close(model(padded), logits_of(model, rows))


@given(rows_strategy, st.sampled_from(ARCHITECTURES), st.sampled_from([1, 4, 6]))
@settings(max_examples=60)
def test_what_is_read_piece_by_piece_has_the_logits_of_the_whole(
    rows: list[list[int]], architecture: Architecture, most: int
) -> None:
    model = model_of(architecture)
    whole = logits_of(model, rows)
    calls = 0
    run = model.run

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return run(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(model, "run", counted)
        patch.setattr(pieces, "STREAMED_ROWS", most)
        require_close(logits_of(model, rows), whole)

    # Each piece has a time step at least; two directions are not read in pieces.
    num_rows = sum(map(len, rows))
    is_cut = num_rows > most and max(map(len, rows)) > 1 and model.num_directions == 1
    assert (calls > 1) == is_cut


# --- sequences in pieces, and their prefixes

FROM_LAST = [each for each in ONE_DIRECTION if each[3] == "last"]
OTHERS = [each for each in ARCHITECTURES if each[1] == 1 and (each[2] or each[3] != "last")]


@pytest.mark.parametrize("architecture", FROM_LAST, ids=str)
def test_pieces_have_the_logits_of_the_whole(architecture: Architecture) -> None:
    rows = [row * 4 for row in ROWS]
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        model = model_of(architecture).to(dtype)
        whole = logits_of(model, rows)
        for first in (1, 2, 3):
            state = model.final_state(packed([row[:first] for row in rows]))
            assert [part.shape for part in state] == [(architecture[1], 5, 6)] * len(state)
            logits = model(packed([row[first:] for row in rows]), state)
            torch.testing.assert_close(logits, whole, rtol=0, atol=tolerance)

        # One token at a time, each from the state before.
        state = model.final_state(packed([rows[0][:1]]))
        for token in rows[0][1:-1]:
            state = model.final_state(packed([[token]]), state)
        logits = model(packed([rows[0][-1:]]), state)
        torch.testing.assert_close(logits[0], whole[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("architecture", FROM_LAST, ids=str)
def test_the_logits_of_prefixes_are_those_of_each_prefix_alone(architecture: Architecture) -> None:
    model = model_of(architecture)
    tokens = packed(ROWS)
    logits = PackedSequence(
        model.prefix_logits(tokens),
        tokens.batch_sizes,
        tokens.sorted_indices,
        tokens.unsorted_indices,
    )
    by_row = torch.nn.utils.rnn.unpack_sequence(logits)
    for row, found in zip(ROWS, by_row, strict=True):
        require_close(found, logits_of(model, [row[: end + 1] for end in range(len(row))]))

    # In pieces, the prefixes go on.
    state = model.final_state(packed([ROWS[0][:1]]))
    require_close(model.prefix_logits(packed([ROWS[0][1:]]), state), by_row[0][1:])


@pytest.mark.parametrize("architecture", OTHERS, ids=str)
def test_a_model_that_needs_the_whole_sequence_takes_and_gives_no_state(
    architecture: Architecture,
) -> None:
    model = model_of(architecture)
    tokens = packed(ROWS)
    reason = "bidirectional" if architecture[2] else f'this model has "{architecture[3]}"'
    zeros = (torch.zeros(model.num_directions, len(ROWS), 6, dtype=torch.float64),) * 2
    with pytest.raises(ValueError, match=f"a state needs .*{reason}"):
        model.final_state(tokens)
    with pytest.raises(ValueError, match=f"a state needs .*{reason}"):
        model(tokens, zeros)
    with pytest.raises(ValueError, match=f"prefixes needs .*{reason}"):
        model.prefix_logits(tokens)


@pytest.mark.parametrize("architecture", FROM_LAST, ids=str)
def test_a_state_of_other_sequences_is_refused(architecture: Architecture) -> None:
    """PyTorch takes the states of the first ones, here and there, and says nothing."""
    model = model_of(architecture)
    tokens = packed(ROWS[:1])
    padded = Padded(torch.tensor([ROWS[0]]), torch.tensor([len(ROWS[0])]))
    state = model.final_state(tokens)
    of_two = model.final_state(packed(ROWS[:2]))
    flat = tuple(part[0] for part in state)
    others: list[Any] = [of_two, (*state, state[0]), (), state[0], flat]
    for wrong in others:
        for use in (model.final_state, model.prefix_logits):
            with pytest.raises(ValueError, match="the state must be what final_state returned"):
                use(tokens, wrong)
        for inputs in (tokens, padded):
            with pytest.raises(ValueError, match="the state must be what final_state returned"):
                model(inputs, wrong)


@pytest.mark.parametrize("architecture", FROM_LAST, ids=str)
@pytest.mark.parametrize("every", [None, 2])
def test_the_loss_of_prefixes_and_its_gradient_are_those_of_numpy(
    architecture: Architecture, every: int | None
) -> None:
    model = model_of(architecture)
    batch = collate([torch.tensor(row) for row in ROWS], torch.zeros(len(ROWS)))
    ids = batch.tokens.data
    weights = prefix_weights(batch.tokens.batch_sizes)
    # Each prefix has a label of its own; here, one that its last token says.
    losses = prefix_losses(model, batch.tokens, ids % 3, weights, Pieces(recompute_every=every))
    ((loss, logits),) = losses
    torch.autograd.backward(loss)

    w = weights_of(model)

    def expected() -> float:
        total = 0.0
        for row in ROWS:
            prefixes = [row[: end + 1] for end in range(len(row))]
            answers = [reference(architecture, w, prefix) for prefix in prefixes]
            pairs = zip(answers, row, strict=True)
            total += sum(cross_entropy(answer, token % 3) for answer, token in pairs) / len(row)
        return total

    assert loss.item() == pytest.approx(expected(), abs=1e-5)
    torch.testing.assert_close(logits.double(), logits_of(model, ROWS), rtol=0, atol=1e-6)
    # The logits are compared in float32, as in training.
    require_slopes(model, w, expected, 1e-5)


# --- the pooling itself

SIZES = torch.tensor([3, 2, 1])  # three sequences, of three tokens, two and one


def pooled(outputs: Tensor, latest: bool = False) -> Pooled:
    nothing = Pooled(outputs.new_zeros(3, 2), outputs.new_full((3, 2), -torch.inf))
    return pooled_with(nothing, outputs, SIZES, latest)


@pytest.mark.parametrize("latest", [False, True])
def test_the_derivatives_of_pooling_are_its_slopes(latest: bool) -> None:
    torch.manual_seed(0)
    outputs = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    before = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)

    def function(before: Tensor, outputs: Tensor) -> Any:
        return tuple(pooled_with(Pooled(before, before), outputs, SIZES, latest))

    assert torch.autograd.gradcheck(function, (before, outputs))


@given(
    st.lists(st.sampled_from([-1.0, 0.0, 2.0]), min_size=12, max_size=12),
    st.booleans(),
    st.integers(0, 3),
)
def test_one_of_equally_large_outputs_has_the_gradient_however_they_are_cut(
    values: list[float], latest: bool, cut: int
) -> None:
    def gradient_of(edges: list[int]) -> Tensor:
        outputs = torch.tensor(values).view(6, 2).requires_grad_()
        seen = Pooled(None, torch.full((3, 2), -torch.inf))
        first = 0
        for begin, end in pairwise(edges):
            sizes = SIZES[begin:end]
            last = first + int(sizes.sum())
            part = pooled_with(seen.first(int(sizes[0])), outputs[first:last], sizes, latest)
            seen = part.followed_by(seen)
            first = last
        assert seen.largest is not None
        torch.autograd.backward(seen.largest.sum())
        assert outputs.grad is not None
        return outputs.grad

    # Rows of the three sequences, in the order of their tokens.
    rows_of = [[0, 3, 5], [1, 4], [2]]
    expected = torch.zeros(6, 2)
    for rows, unit in product(rows_of, range(2)):
        column = [values[2 * row + unit] for row in rows]
        ties = [row for row, value in zip(rows, column, strict=True) if value == max(column)]
        expected[ties[-1 if latest else 0], unit] = 1
    assert torch.equal(gradient_of([0, 3]), expected)
    assert torch.equal(gradient_of(sorted({0, cut, 3})), expected)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_what_is_not_finite_is_pooled_like_any_number(value: float) -> None:
    outputs = torch.zeros(6, 2)
    outputs[4] = value  # the second token of the second sequence
    outputs[2] = value  # the only one of the third
    outputs.requires_grad_()
    total, largest = pooled(outputs)
    assert total is not None
    assert largest is not None
    worst = torch.tensor([0, value, value])[:, None].expand(3, 2)
    torch.testing.assert_close(total, worst, equal_nan=True)
    at_most = torch.tensor([0, value if value != -torch.inf else 0, value])[:, None].expand(3, 2)
    torch.testing.assert_close(largest, at_most, equal_nan=True)

    torch.autograd.backward(largest.sum())
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())
    assert outputs.grad[0].tolist() == [1, 1]

    # The same in a rectangle: (T, B, W), of lengths 3, 2 and 1.
    rectangle = torch.zeros(3, 3, 2)
    rectangle[1, 1] = value
    rectangle[0, 2] = value
    rectangle[1:, 2] = 7  # padding
    found = summary_of_padded("max", rectangle, torch.tensor([3, 2, 1]))
    torch.testing.assert_close(found, at_most, equal_nan=True)
    found = summary_of_padded("mean", rectangle, torch.tensor([3, 2, 1]))
    torch.testing.assert_close(found, worst, equal_nan=True)


def test_a_model_of_nan_answers_nan_with_every_pooling() -> None:
    for pooling in POOLINGS:
        model = model_of(("gru", 1, True, pooling, "learned"))
        with torch.no_grad():
            model.rnn.get_parameter("bias_hh_l0")[0] = torch.nan
        logits = logits_of(model, ROWS)
        assert bool(logits.isnan().all())
        torch.autograd.backward(logits.sum())


def test_the_mean_of_many_equal_states_is_that_state() -> None:
    """Added up one by one in float32, 20,000 times 0.1 would be off in the fourth digit."""
    lengths = torch.tensor([20_000, 129, 128, 1])
    packed = pack_sequence([torch.full((length, 2), 0.1) for length in lengths.tolist()])
    nothing = Pooled(total=torch.zeros(4, 2))
    total = pooled_with(nothing, packed.data, packed.batch_sizes).total
    assert total is not None
    torch.testing.assert_close(total, 0.1 * lengths[:, None].expand(4, 2), rtol=1e-5, atol=0)
