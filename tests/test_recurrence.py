"""PackedRNN is torch's nn.RNN: values, gradients, parameters."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnncls.model.recurrence import PackedRNN, last_rows, run_layer

LENGTHS = torch.tensor([3, 7, 1, 7, 2])
OPTIONS: list[dict[str, Any]] = [
    dict(zip(("num_layers", "nonlinearity", "bias", "bidirectional"), values, strict=True))
    for values in itertools.product([1, 3], ["tanh", "relu"], [True, False], [False, True])
]


def results(rnn: nn.RNN, with_start: bool, dtype: torch.dtype) -> list[Tensor]:
    """Outputs, final states and all gradients for some random input and some random linear loss."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rows, start = (
        draw(5, 7, 3).requires_grad_(),
        draw(rnn.num_layers * (1 + rnn.bidirectional), 5, 4).requires_grad_(),
    )
    packed = pack_padded_sequence(rows, LENGTHS, batch_first=True, enforce_sorted=False)
    output, final = rnn(packed, start if with_start else None)
    ((output.data * draw(*output.data.shape)).sum() + (final * draw(*final.shape)).sum()).backward()
    gradients = [
        rows.grad,
        *([start.grad] if with_start else []),
        *(weight.grad for weight in rnn.parameters()),
    ]
    return [output.data, final, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_values_and_gradients_are_those_of_nn_rnn(
    options: dict[str, Any], with_start: bool
) -> None:
    torch.manual_seed(0)
    stock, own = nn.RNN(3, 4, **options), PackedRNN(3, 4, **options)
    assert {name: weight.shape for name, weight in own.state_dict().items()} == {
        name: weight.shape for name, weight in stock.state_dict().items()
    }
    own.load_state_dict(stock.state_dict())
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.float64, 1e-12)):
        expected, actual = (results(rnn.to(dtype), with_start, dtype) for rnn in (stock, own))
        assert len(expected) == len(actual) >= 5
        for one, other in zip(expected, actual, strict=True):
            torch.testing.assert_close(other, one, rtol=tolerance, atol=tolerance)
        for rnn in (stock, own):
            rnn.zero_grad()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_the_derivatives_are_those_of_finite_differences(nonlinearity: str, reverse: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    shapes = [(8, 3), (4, 2), (2, 3), (2, 2), (2,), (2,)]  # data, start, w_ih, w_hh, b_ih, b_hh
    inputs = [
        torch.randn(*s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes
    ]

    def layer(data: Tensor, start: Tensor, *weights: Tensor) -> Tensor:
        return run_layer(data, [4, 3, 1], start, weights, nonlinearity, reverse)

    def layer_from_zero(data: Tensor, *weights: Tensor) -> Tensor:
        return run_layer(data, [4, 3, 1], None, weights, nonlinearity, reverse)

    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradcheck(layer_from_zero, [inputs[0], *inputs[2:]])


def test_initial_weights_and_what_is_not_packed_are_torchs_own() -> None:
    torch.manual_seed(5)
    stock = nn.RNN(3, 4, 2)
    torch.manual_seed(5)
    own = PackedRNN(3, 4, 2)
    rows = torch.randn(6, 2, 3)
    assert torch.equal(own(rows)[0], stock(rows)[0])


def test_dropout_acts_between_layers_in_training_only() -> None:
    torch.manual_seed(0)
    rnn = PackedRNN(3, 4, 3, dropout=0.5)
    packed = pack_padded_sequence(
        torch.randn(5, 7, 3), LENGTHS, batch_first=True, enforce_sorted=False
    )
    assert not torch.equal(rnn(packed)[1], rnn(packed)[1])
    assert torch.equal(
        rnn(packed)[1][0], rnn(packed)[1][0]
    )  # the first layer has nothing dropped before it
    rnn.eval()
    assert torch.equal(rnn(packed)[1], rnn(packed)[1])
    torch.testing.assert_close(rnn(packed)[1], nn.RNN.forward(rnn, packed)[1])


def test_last_rows() -> None:
    packed = pack_padded_sequence(
        torch.arange(35).view(5, 7), LENGTHS, batch_first=True, enforce_sorted=False
    )
    assert isinstance(packed, PackedSequence)
    assert packed.sorted_indices is not None
    ends = packed.data[last_rows(packed.batch_sizes.tolist())]
    assert ends.tolist() == [
        7 * row + int(LENGTHS[row]) - 1 for row in packed.sorted_indices.tolist()
    ]
    assert last_rows([3]) == [0, 1, 2]
