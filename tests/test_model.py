"""The classifier against the explicit recurrence, and what its logits must not depend on."""

from itertools import product
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rnncls.config import num_parameters, sizes
from rnncls.data import collate
from rnncls.model.build import build_model
from rnncls.model.classifier import RNNClassifier
from rnncls.model.describe import describe_model
from rnncls.model.pooling import Pooling
from tests.helpers import config_of

VOCABULARY = 5
rows_strategy = st.lists(
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), min_size=1, max_size=6
)
NO_SHAPE = {"recurrent_init", "init_gain", "embedding_gain", "state_noise"}
ARCHITECTURES = list(product((1, 2, 3), (False, True), (False, True), ("tanh", "relu")))


def model_of(num_layers: int, bidirectional: bool, bias: bool, nonlinearity: str) -> RNNClassifier:
    torch.manual_seed(num_layers)
    options: list[Any] = [num_layers, nonlinearity, bias, 0.0, bidirectional]
    model = RNNClassifier(VOCABULARY, 3, 4, 6, *options)
    return model.double().eval()


def logits_of(model: RNNClassifier, rows: list[list[int]]) -> Tensor:
    logits: Tensor = model(
        collate([torch.tensor(row) for row in rows], torch.zeros(len(rows))).tokens
    )
    return logits


def recurrence(model: RNNClassifier, row: list[int]) -> Tensor:
    """h_t = f(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), one sequence, one step at a time."""
    weights = dict(model.rnn.named_parameters())
    activation = torch.tanh if model.rnn.nonlinearity == "tanh" else torch.relu
    inputs = [model.embedding.weight[token] for token in row]
    suffixes = ("", "_reverse") if model.rnn.bidirectional else ("",)
    for layer in range(model.rnn.num_layers):
        outputs = []
        last = []

        for suffix in suffixes:
            name = f"l{layer}{suffix}"
            h = torch.zeros(model.rnn.hidden_size, dtype=torch.float64)
            states = []
            for x in reversed(inputs) if suffix else inputs:
                z = weights[f"weight_ih_{name}"] @ x + weights[f"weight_hh_{name}"] @ h
                if model.rnn.bias:
                    z = z + weights[f"bias_ih_{name}"] + weights[f"bias_hh_{name}"]
                h = activation(z)
                states.append(h)

            last.append(h)
            outputs.append(states[::-1] if suffix else states)

        inputs = [torch.cat(states) for states in zip(*outputs, strict=True)]
    return model.head.weight @ torch.cat(last) + model.head.bias


@pytest.mark.parametrize(("num_layers", "bidirectional", "bias", "nonlinearity"), ARCHITECTURES)
def test_logits_are_those_of_the_explicit_recurrence(
    num_layers: int, bidirectional: bool, bias: bool, nonlinearity: str
) -> None:
    model = model_of(num_layers, bidirectional, bias, nonlinearity)
    rows = [[1, 2, 3], [4], [0, 0, 0, 0, 2], [3, 1]]
    expected = torch.stack([recurrence(model, row) for row in rows])
    torch.testing.assert_close(logits_of(model, rows), expected, rtol=1e-10, atol=1e-12)


@given(rows_strategy, st.sampled_from(ARCHITECTURES), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_sequences_logits_do_not_depend_on_its_batch_mates_or_their_order(
    rows: list[list[int]], architecture: tuple[int, bool, bool, str], random: object
) -> None:
    model = model_of(*architecture)
    alone = torch.cat([logits_of(model, [row]) for row in rows])
    torch.testing.assert_close(logits_of(model, rows), alone, rtol=1e-10, atol=1e-12)
    order = list(range(len(rows)))
    random.shuffle(order)  # type: ignore[attr-defined]
    torch.testing.assert_close(
        logits_of(model, [rows[i] for i in order]), alone[order], rtol=1e-10, atol=1e-12
    )


@given(rows_strategy, st.sampled_from(ARCHITECTURES), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_a_sequences_logits_do_not_depend_on_how_much_the_batch_is_padded(
    rows: list[list[int]], architecture: tuple[int, bool, bool, str], longest: int
) -> None:
    model = model_of(*architecture)
    padded_further = logits_of(model, [*rows, [1] * (8 + longest)])[:-1]
    torch.testing.assert_close(padded_further, logits_of(model, rows), rtol=1e-10, atol=1e-12)


def test_the_last_digit_and_the_first_both_matter() -> None:
    """The summary is the state at a sequence's own end.

    A model that read the state elsewhere would miss one of the two.
    """
    model = model_of(1, False, True, "tanh")
    base, other_end, other_start = logits_of(model, [[1, 2, 3], [1, 2, 4], [0, 2, 3]])
    assert not torch.allclose(base, other_end)
    assert not torch.allclose(base, other_start)


def test_the_weights_are_a_function_of_the_config_and_leave_the_global_rng_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build_model(config_of(seed=4)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (
        build_model(config_of(seed=4)).state_dict(),
        build_model(config_of(seed=5)).state_dict(),
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(
        torch.equal(first[name], other[name])
        for name in first
        if not name.startswith("rnn.bias_hh")
    )


@pytest.mark.parametrize("bidirectional", [False, True])
def test_initialisations(bidirectional: bool) -> None:
    shape = {"num_layers": 2, "bidirectional": bidirectional, "hidden_size": 12, "embedding_dim": 7}
    plain = build_model(
        config_of(model={**shape, "recurrent_init": "default", "init_gain": 1.0})
    ).state_dict()
    for init in ("default", "orthogonal", "identity"):
        scaled = build_model(
            config_of(model={**shape, "recurrent_init": init, "init_gain": 0.5})
        ).state_dict()
        for name, value in scaled.items():
            if "weight_hh" in name and init != "default":
                product_ = value @ value.T if init == "orthogonal" else value * 0.5
                torch.testing.assert_close(product_, 0.25 * torch.eye(12), rtol=0, atol=1e-6)
            elif "bias_hh" in name and init != "default":
                assert not value.any()
            elif name == "embedding.weight" or ".weight_" in name:
                torch.testing.assert_close(value, 0.5 * plain[name])
            else:
                assert torch.equal(value, plain[name]), name


def test_dropout_acts_in_training_only() -> None:
    model = build_model(config_of(model={"num_layers": 2, "dropout": 0.5}))
    rows = [[1, 2, 0], [2]]
    assert not torch.equal(logits_of(model, rows), logits_of(model, rows))
    model.eval()
    assert torch.equal(logits_of(model, rows), logits_of(model, rows))


def test_parameters_are_counted_for_every_kind_of_model() -> None:
    kinds = product(
        ["rnn", "lstm", "gru", "none"],
        [1, 2],
        [False, True],
        get_args(Pooling),
        ["zeros", "learned"],
        [{}, {"ngrams": [2, 3], "ngram_table": 7, "positions": "learned", "skip": True}],
    )
    for cell, num_layers, bidirectional, pooling, initial_state, inputs in kinds:
        shape = {"cell": cell, "num_layers": num_layers, "bidirectional": bidirectional, **inputs}
        config = config_of(model={**shape, "pooling": pooling, "initial_state": initial_state})
        modules = build_model(config)
        count = sum(parameter.numel() for parameter in modules.parameters())
        assert num_parameters(config, *sizes(config)) == count
        assert describe_model(config, sizes(config)).parameters == count


CELLS = [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)]


def gates_by_hand(cell: str, model: RNNClassifier, row: list[int]) -> Tensor:
    """Compute the logits of one sequence by the equations in PyTorch's documentation.

    The model has one layer and one direction.
    """
    weights = {name.removesuffix("_l0"): value for name, value in model.rnn.named_parameters()}
    hidden = memory = torch.zeros(model.rnn.hidden_size, dtype=torch.float64)
    for token in row:
        x = weights["weight_ih"] @ model.embedding.weight[token] + weights["bias_ih"]
        h = weights["weight_hh"] @ hidden + weights["bias_hh"]
        if cell == "lstm":
            i, f, g, o = (x + h).chunk(4)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * memory.tanh()
        else:
            (xr, xz, xn), (hr, hz, hn) = x.chunk(3), h.chunk(3)
            new, update = (xn + (xr + hr).sigmoid() * hn).tanh(), (xz + hz).sigmoid()
            hidden = (1 - update) * new + update * hidden
    return model.head.weight @ hidden + model.head.bias


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gated_cells_are_the_documented_equations(cell: str) -> None:
    model = build_model(config_of(model={"cell": cell})).double()
    rows = [[1, 2, 0, 1], [2], [0, 1]]
    expected = torch.stack([gates_by_hand(cell, model, row) for row in rows])
    torch.testing.assert_close(logits_of(model, rows), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("cell", "module"), CELLS)
def test_every_cell_has_its_gates_initialised_and_its_parameters_counted(
    cell: str, module: type[nn.RNNBase]
) -> None:
    shape = {"cell": cell, "num_layers": 2, "bidirectional": True, "hidden_size": 6}
    config = config_of(model={**shape, "recurrent_init": "orthogonal", "init_gain": 1.0})
    model = build_model(config)
    assert isinstance(model.rnn, module)
    assert num_parameters(config, *sizes(config)) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    for name, parameter in model.rnn.named_parameters():
        for gate in torch.split(parameter.detach(), 6) if name.startswith("weight_hh") else ():
            torch.testing.assert_close(gate @ gate.T, torch.eye(6), rtol=0, atol=1e-5)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize(
    ("num_layers", "bidirectional", "bias", "nonlinearity"),
    [(2, False, True, "relu"), (3, True, False, "tanh")],
)
def test_dropout_between_layers_is_that_of_torch_nn(
    cell: str, num_layers: int, bidirectional: bool, bias: bool, nonlinearity: str
) -> None:
    """On the CPU, the masks are those that torch.nn's module draws.

    So logits and gradients are the same to the bit.
    """
    shape = {
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "bias": bias,
        "nonlinearity": nonlinearity,
    }
    model = build_model(config_of(model={**shape, "cell": cell, "dropout": 0.4}))
    batch = collate([torch.tensor(row) for row in ([1, 2, 0], [2], [0, 1, 1, 2])], torch.zeros(3))
    results = []
    for reference in (False, True):
        torch.manual_seed(5)
        if reference:
            model.rnn.dropout, model.dropout = 0.4, 0.0  # torch.nn's own
        model.zero_grad()
        logits = model(batch.tokens)
        logits.square().sum().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_state_dict_is_that_of_plain_modules() -> None:
    config = config_of(model={"num_layers": 2, "bidirectional": True})
    state = build_model(config).state_dict()
    for prefix, module in {
        "embedding.": nn.Embedding(3, 4),
        "rnn.": nn.RNN(4, 16, 2, nonlinearity="relu", bidirectional=True),
        "head.": nn.Linear(32, 3),
    }.items():
        part = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix)
        }
        module.load_state_dict(part, strict=True)
