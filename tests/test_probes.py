"""The gradient through time: its numbers, and its verdicts."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

from rnncls.model.classifier import RNNClassifier
from rnncls.model.gradient_flow import (
    Flow,
    Kind,
    Verdict,
    distances_from_end,
    flow_of,
    verdict_in_all,
    verdict_of,
)
from rnncls.model.probes import gradients_through_time
from tests.helpers import needs_cuda

LENGTHS = [4, 9, 1, 6, 9]

CELLS: list[dict[str, Any]] = [
    {"cell": "rnn", "nonlinearity": "tanh"},
    {"cell": "rnn", "nonlinearity": "relu"},
    {"cell": "gru"},
    {"cell": "lstm"},
]


def model_of(dtype: torch.dtype = torch.float64, **options: Any) -> RNNClassifier:
    torch.manual_seed(0)
    options = {"embedding_dim": 5, "hidden_size": 6, **options}
    model = RNNClassifier(7, 3, **options)
    if model.initial_state is not None:
        nn.init.normal_(model.initial_state)
    return model.to(dtype).eval()


def some_ids(lengths: list[int], num_tokens: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(num_tokens, (length,), generator=generator) for length in lengths]


def packed(ids: list[Tensor]) -> PackedSequence:
    return pack_sequence(ids, enforce_sorted=False)


# --- the gradient


def autograd_of(
    model: RNNClassifier, ids: Tensor, label: Tensor, from_ends: bool = False
) -> list[list[Tensor]]:
    """dL/dh_t of one sequence, (T, H) by layer and direction: torch's cells, and retain_grad.

    `from_ends`: for the head, all states but those at the ends are numbers without a gradient.
    """
    options: Any = {"bias": model.rnn.bias, "dtype": torch.float64}
    data = list(model.embedding(ids))
    kept: list[list[list[Tensor]]] = []
    for layer in range(model.rnn.num_layers):
        of_layer = []
        for direction, suffix in enumerate([f"l{layer}", f"l{layer}_reverse"]):
            if direction == model.num_directions:
                break
            sizes = (len(data[0]), model.rnn.hidden_size)
            cell: Any
            if model.rnn.mode == "LSTM":
                cell = nn.LSTMCell(*sizes, **options)
            elif model.rnn.mode == "GRU":
                cell = nn.GRUCell(*sizes, **options)
            else:
                nonlinearity = model.rnn.mode.removeprefix("RNN_").lower()
                cell = nn.RNNCell(*sizes, nonlinearity=nonlinearity, **options)
            for name, parameter in cell.named_parameters():
                parameter.data = model.rnn.get_parameter(f"{name}_{suffix}").detach()

            states: dict[int, Tensor] = {}
            state: Any = None
            if model.initial_state is not None:
                number = layer * model.num_directions + direction
                parts = tuple(part[number][None] for part in model.initial_state)
                state = parts if len(parts) == 2 else parts[0]
            order = range(len(ids))
            for t in reversed(order) if suffix.endswith("reverse") else order:
                state = cell(data[t][None], state)
                states[t] = state[0] if isinstance(state, tuple) else state
                states[t].retain_grad()
            of_layer.append([states[t] for t in order])
        kept.append(of_layer)
        data = [torch.cat(row, 1)[0] for row in zip(*of_layer, strict=True)]

    logits = model.head(summary_by_hand(model, kept[-1], from_ends))
    nn.CrossEntropyLoss()(logits, label[None]).backward()

    return [[torch.stack(list(map(grad_of, states))) for states in of_layer] for of_layer in kept]


def summary_by_hand(model: RNNClassifier, top: list[list[Tensor]], from_ends: bool) -> Tensor:
    """What the head sees, (1, summary_size), of the states (1, H) of each direction and step."""
    parts: dict[str, list[Tensor]] = {"last": [], "mean": [], "max": []}
    for states, end in zip(top, (len(top[0]) - 1, 0), strict=False):
        seen = [
            state.detach() if from_ends and t != end else state for t, state in enumerate(states)
        ]
        rows = torch.cat(seen)
        # Of equally large ones the first, as NumPy counts.
        first = torch.from_numpy(rows.detach().numpy().argmax(0))
        parts["last"].append(states[end])
        parts["mean"].append(rows.mean(0, keepdim=True))
        parts["max"].append(rows.gather(0, first[None]))
    return torch.cat([one for name in model.pooling.split("_") for one in parts[name]], 1)


def grad_of(state: Tensor) -> Tensor:
    return torch.zeros_like(state[0]) if state.grad is None else state.grad[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_autograd(
    cell: dict[str, Any], bidirectional: bool, num_layers: int, bias: bool
) -> None:
    model = model_of(**cell, bidirectional=bidirectional, num_layers=num_layers, bias=bias)
    require_gradients(model)

    # With one way of pooling, where the last states are the only ends.
    tokens = packed(some_ids(LENGTHS))
    labels = torch.tensor([0, 1, 2, 1, 0])
    whole = gradients_through_time(model, tokens, labels)
    from_ends = gradients_through_time(model, tokens, labels, from_ends=True)
    for one, other in zip(whole, from_ends, strict=True):
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("from_ends", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "max", "last_mean_max"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_pooled_states_are_those_of_autograd(
    cell: dict[str, Any], bidirectional: bool, pooling: str, from_ends: bool
) -> None:
    shape: dict[str, Any] = {"bidirectional": bidirectional, "num_layers": 2}
    model = model_of(**cell, **shape, pooling=pooling, initial_state="learned")
    require_gradients(model, from_ends)


def require_gradients(model: RNNClassifier, from_ends: bool = False) -> None:
    """Compare with autograd, on sequences of several lengths."""
    ids = some_ids(LENGTHS)
    labels = torch.tensor([0, 1, 2, 1, 0])
    tokens = packed(ids)
    found = gradients_through_time(model, tokens, labels, from_ends)
    assert len(found) == model.rnn.num_layers

    # In the order in which they were given, (B, T, H).
    padded = []
    for directions in found:
        assert len(directions) == model.num_directions
        rows = [pad_packed_sequence(tokens._replace(data=one), True)[0] for one in directions]
        padded.append(rows)

    for number, (sequence, label) in enumerate(zip(ids, labels, strict=True)):
        gradients = autograd_of(model, sequence, label, from_ends)
        for of_layer, wanted in zip(padded, gradients, strict=True):
            for one, expected in zip(of_layer, wanted, strict=True):
                # The maxima of a unit need not be at the end.
                assert expected.norm() > 0 or from_ends
                actual = one[number, : len(sequence)]
                torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-15)


def test_the_network_stays_as_it_is() -> None:
    model = model_of(torch.float32, bidirectional=True, num_layers=2, cell="gru")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        found = gradients_through_time(model, packed(some_ids([3, 2])), torch.tensor([0, 1]))
    assert found[0][0].dtype == torch.float32
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@needs_cuda
def test_gradients_on_a_gpu_are_those_on_the_cpu() -> None:
    options: dict[str, Any] = {"pooling": "last_mean_max", "initial_state": "learned"}
    model = model_of(bidirectional=True, num_layers=2, cell="lstm", **options)
    tokens = packed(some_ids(LENGTHS))
    labels = torch.tensor([0, 1, 2, 1, 0])
    expected = gradients_through_time(model, tokens, labels)
    found = gradients_through_time(model.cuda(), tokens.cuda(), labels.cuda())
    for one, other in zip(found, expected, strict=True):
        for gradient, wanted in zip(one, other, strict=True):
            torch.testing.assert_close(gradient.cpu(), wanted)
            flow = flow_of(gradient, tokens.batch_sizes, reverse=False)
            assert flow.norms.device.type == "cpu"


# --- by distance


def test_distances_of_sequences_of_several_lengths() -> None:
    sizes = packed(some_ids([2, 3, 1])).batch_sizes
    # Longest first: lengths 3, 2, 1. Rows are those of step 0, then 1, then 2.
    assert distances_from_end(sizes, reverse=False).tolist() == [2, 1, 0, 1, 0, 0]
    assert distances_from_end(sizes, reverse=True).tolist() == [0, 0, 0, 1, 1, 2]


@pytest.mark.parametrize("reverse", [False, True])
def test_a_flow_compares_the_same_sequences(reverse: bool) -> None:
    # Rows of sequences of 3, 2 and 1 tokens, whose gradients have norms of 5 times these.
    sizes = torch.tensor([3, 2, 1])
    lengths = [3, 2, 1]
    by_sequence = [[2.0, 3.0, 4.0], [0.5, 0.25], [7.0]]
    rows = [by_sequence[0][0], by_sequence[1][0], by_sequence[2][0]]
    rows += [by_sequence[0][1], by_sequence[1][1], by_sequence[0][2]]
    gradient = torch.tensor([[3.0, -4.0]]) * torch.tensor(rows)[:, None]

    flow = flow_of(gradient, sizes, reverse)
    for distance in range(3):
        norms = []
        lasts = []
        for values, length in zip(by_sequence, lengths, strict=True):
            if length > distance:
                norms.append(5 * (values[distance] if reverse else values[length - 1 - distance]))
                lasts.append(5 * (values[0] if reverse else values[-1]))
        assert flow.counts[distance] == len(norms)
        assert flow.norms[distance].item() == pytest.approx(np.mean(norms))
        assert flow.ratios[distance].item() == pytest.approx(sum(norms) / sum(lasts))
    assert flow.ratios[0] == 1


def test_norms_of_small_numbers_are_not_zero() -> None:
    # The square of 1e-30 is 0 in float32.
    flow = flow_of(torch.full((3, 4), 1e-30), torch.tensor([3]), reverse=False)
    assert flow.norms.item() == pytest.approx(2e-30, rel=1e-6, abs=0)


# --- verdicts


def flows(model: RNNClassifier, length: int = 50, count: int = 64) -> list[Flow]:
    tokens = packed(some_ids([length] * count))
    labels = torch.arange(count) % 3
    found = []
    for of_layer in gradients_through_time(model, tokens, labels):
        for reverse, gradient in enumerate(of_layer):
            found.append(flow_of(gradient, tokens.batch_sizes, reverse=bool(reverse)))
    return found


def test_a_default_tanh_network_loses_the_gradient() -> None:
    (flow,) = flows(model_of(nonlinearity="tanh", hidden_size=64))
    verdict = verdict_of(flow)
    assert verdict.kind == "vanishing"
    assert 1e-17 < flow.ratios[49] < 1e-13
    assert verdict.vanishing_from is not None
    assert flow.ratios[verdict.vanishing_from] < 1e-4 < flow.ratios[verdict.vanishing_from - 1]


def test_recurrent_weights_that_are_six_times_as_large_explode() -> None:
    model = model_of(nonlinearity="tanh", hidden_size=64)
    with torch.no_grad():
        model.rnn.get_parameter("weight_hh_l0").mul_(6)
    (flow,) = flows(model)
    verdict = verdict_of(flow)
    assert verdict.kind == "exploding"
    assert 1e6 < flow.ratios[49] < 1e10
    assert verdict.exploding_from is not None
    assert flow.ratios[verdict.exploding_from] > 1e2 > flow.ratios[verdict.exploding_from - 1]


def test_an_orthogonal_map_keeps_the_gradient() -> None:
    # No input, states that stay far below 1: tanh is linear.
    model = model_of(nonlinearity="tanh", hidden_size=64, bias=False)
    with torch.no_grad():
        model.embedding.weight.mul_(1e-5)
        nn.init.orthogonal_(model.rnn.get_parameter("weight_hh_l0"))
    (flow,) = flows(model)
    assert verdict_of(flow) == Verdict("neither", None, None)
    torch.testing.assert_close(flow.ratios, torch.ones(50).double(), rtol=1e-6, atol=0)


def test_a_permutation_of_positive_states_keeps_the_gradient() -> None:
    model = model_of(nonlinearity="relu", hidden_size=8)
    with torch.no_grad():
        for name, parameter in model.rnn.named_parameters():
            parameter.copy_(torch.eye(8).roll(1, 0) if name == "weight_hh_l0" else parameter.abs())
        model.embedding.weight.abs_()
    (flow,) = flows(model)
    assert verdict_of(flow).kind == "neither"
    torch.testing.assert_close(flow.ratios, torch.ones(50).double())


def test_a_gradient_that_outgrows_the_numbers_explodes() -> None:
    model = model_of(nonlinearity="relu", hidden_size=8)
    with torch.no_grad():
        # Tiny states, and a factor of 1e10 in each step.
        model.rnn.get_parameter("weight_hh_l0").copy_(1e10 * torch.eye(8).double())
        for name in ("bias_ih_l0", "bias_hh_l0"):
            model.rnn.get_parameter(name).fill_(1e-300)
        model.embedding.weight.zero_()
        model.head.weight.mul_(1e-10)
    (flow,) = flows(model, length=40, count=2)
    assert flow.norms[0].isfinite()
    assert not flow.norms[39].isfinite()
    assert verdict_of(flow) == Verdict("exploding", None, 1)

    norms = torch.tensor([1.0, 10.0, float("nan"), float("inf")]).double()
    beyond = Flow(torch.ones(4), norms, norms / norms[0])
    assert verdict_of(beyond) == Verdict("exploding", None, 2)


def flow_with(*ratios: float, last: float = 1.0) -> Flow:
    values = torch.tensor(ratios, dtype=torch.float64)
    return Flow(torch.ones(len(ratios)), values * last, values)


@pytest.mark.parametrize(
    ("flow", "verdict"),
    [
        (flow_with(1), Verdict("neither", None, None)),
        (flow_with(1, 1e-4, 1e2), Verdict("neither", None, None)),
        (flow_with(1, 0.9e-4, 1), Verdict("vanishing", 1, None)),
        (flow_with(1, 1, 1.1e2), Verdict("exploding", None, 2)),
        (flow_with(1, 200, 1e-5, 0), Verdict("vanishing and exploding", 2, 1)),
        (
            flow_with(float("nan"), float("nan"), last=float("nan")),
            Verdict("not finite", None, None),
        ),
        # Sequences that are so long, of which the network is sure: 0 / 0.
        (
            Flow(torch.ones(2), torch.tensor([1.0, 0.0]), torch.tensor([1.0, float("nan")])),
            Verdict("neither", None, None),
        ),
        (
            Flow(torch.ones(2), torch.tensor([0.0, 0.0]), torch.tensor([float("nan")] * 2)),
            Verdict("zero", None, None),
        ),
    ],
)
def test_verdicts(flow: Flow, verdict: Verdict) -> None:
    assert verdict_of(flow) == verdict


@pytest.mark.parametrize(
    ("kinds", "kind"),
    [
        (["neither", "neither"], "neither"),
        (["neither", "zero"], "neither"),
        (["zero", "zero"], "zero"),
        (["neither", "vanishing"], "vanishing"),
        (["exploding", "neither"], "exploding"),
        (["exploding", "vanishing"], "vanishing and exploding"),
        (["vanishing and exploding", "neither"], "vanishing and exploding"),
        (["vanishing", "not finite"], "not finite"),
    ],
)
def test_one_verdict_on_all_layers(kinds: list[Kind], kind: Kind) -> None:
    assert verdict_in_all(Verdict(one, None, None) for one in kinds) == kind


def test_a_network_that_is_sure_has_no_gradient_in_float32_but_in_float64() -> None:
    model = model_of(torch.float32)
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([150.0, 0.0, 0.0]))
    tokens = packed(some_ids([3, 2]))
    labels = torch.tensor([0, 0])

    def verdict() -> Kind:
        ((gradient,),) = gradients_through_time(model, tokens, labels)
        return verdict_of(flow_of(gradient, tokens.batch_sizes, reverse=False)).kind

    assert verdict() == "zero"
    model.double()
    assert verdict() == "neither"
