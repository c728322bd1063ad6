"""PackedGRU and PackedLSTM are torch's: values, gradients, parameters; and where each is used."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnncls.model.gated import PackedGRU, PackedLSTM
from rnncls.model.recurrence import PackedLayers

LENGTHS = torch.tensor([3, 7, 1, 7, 2])
CELLS: list[tuple[Any, Any]] = [(nn.GRU, PackedGRU), (nn.LSTM, PackedLSTM)]
OPTIONS: list[dict[str, Any]] = [
    dict(zip(("num_layers", "bias", "bidirectional"), values, strict=True))
    for values in itertools.product([1, 3], [True, False], [False, True])
]


def packed(rows: Tensor) -> PackedSequence:
    """Rows (5, 7, width) as sequences of LENGTHS."""
    return pack_padded_sequence(rows, LENGTHS, batch_first=True, enforce_sorted=False)


def results(
    rnn: nn.RNNBase, with_start: bool, dtype: torch.dtype, cell_counts: bool = True
) -> list[Tensor]:
    """Outputs, final states and all gradients for some random input and some random linear loss."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    rows = draw(5, 7, 3).requires_grad_()
    num_states = rnn.num_layers * (1 + rnn.bidirectional)
    count = 2 if rnn.mode == "LSTM" else 1
    start = tuple(draw(num_states, 5, 4).requires_grad_() for _ in range(count))
    hx = (start if count == 2 else start[0]) if with_start else None

    output, final = rnn(packed(rows), hx)
    finals = final if isinstance(final, tuple) else (final,)
    loss = (output.data * draw(*output.data.shape)).sum()
    for part in finals[: 2 if cell_counts else 1]:
        loss = loss + (part * draw(*part.shape)).sum()
    loss.backward()

    leaves = [rows, *(start if with_start else ()), *rnn.parameters()]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == len(leaves)
    return [part.detach() for part in (output.data, *finals, *gradients)]


@pytest.mark.parametrize("with_start", [False, True])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cells", CELLS, ids=["gru", "lstm"])
def test_values_and_gradients_are_those_of_torch(
    cells: tuple[Any, Any], options: dict[str, Any], with_start: bool
) -> None:
    torch.manual_seed(0)
    stock = cells[0](3, 4, **options)
    own = cells[1](3, 4, **options)
    own.load_state_dict(stock.state_dict())

    # In float64 they are the same formula; float32 is measured against that, as torch's own is.
    expected = results(stock.double(), with_start, torch.float64)
    actual = results(own.double(), with_start, torch.float64)
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)

    own.zero_grad()
    for one, other in zip(expected, results(own.float(), with_start, torch.float32), strict=True):
        assert float((other - one).abs().max() / one.abs().max()) < 1e-5


def test_a_final_cell_that_nobody_looks_at_has_no_part_in_the_gradient() -> None:
    torch.manual_seed(0)
    stock = nn.LSTM(3, 4, 2).double()
    own = PackedLSTM(3, 4, 2).double()
    own.load_state_dict(stock.state_dict())
    expected = results(stock, False, torch.float64, cell_counts=False)
    actual = results(own, False, torch.float64, cell_counts=False)
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cls", [PackedGRU, PackedLSTM])
def test_the_derivatives_are_those_of_finite_differences(cls: Any, reverse: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    rnn = cls(3, 2).double()
    num_gates = rnn.weight_hh_l0.shape[0]
    count = 2 if cls is PackedLSTM else 1
    shapes = [(8, 3), *[(4, 2)] * count, (num_gates, 3), (num_gates, 2), (num_gates,), (num_gates,)]
    inputs = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]

    def layer(data: Tensor, *others: Tensor) -> Tensor:
        start, weights = others[:count], others[count:]
        states = rnn.direction(data, [4, 3, 1], start, weights, reverse)
        return torch.cat(states)

    def layer_from_zero(data: Tensor, *weights: Tensor) -> Tensor:
        return torch.cat(rnn.direction(data, [4, 3, 1], None, weights, reverse))

    assert torch.autograd.gradcheck(layer, inputs)
    assert torch.autograd.gradcheck(layer_from_zero, [inputs[0], *inputs[1 + count :]])


@pytest.mark.parametrize("cells", CELLS, ids=["gru", "lstm"])
def test_without_a_gradient_or_as_before_the_bits_are_torchs(cells: tuple[Any, Any]) -> None:
    torch.manual_seed(5)
    stock = cells[0](3, 4, 2, bidirectional=True)
    torch.manual_seed(5)
    own = cells[1](3, 4, 2, bidirectional=True)
    rows = torch.randn(5, 7, 3)
    assert torch.equal(own(rows)[0], stock(rows)[0])  # padded

    with torch.no_grad():
        assert torch.equal(own(packed(rows))[0].data, stock(packed(rows))[0].data)

    own.as_before = True
    for one, other in zip(
        results(own, True, torch.float32), results(stock, True, torch.float32), strict=True
    ):
        assert torch.equal(one, other)

    # A copy of a run's model goes on as the run does.
    assert copy.deepcopy(own).as_before
    assert not cells[1](3, 4).as_before


@pytest.mark.parametrize("cls", [PackedGRU, PackedLSTM])
def test_autocast_computes_in_bfloat16(cls: Any) -> None:
    torch.manual_seed(0)
    rnn: PackedLayers = cls(3, 4, 2, bidirectional=True)
    rows = torch.randn(5, 7, 3)
    expected = rnn(packed(rows))[0].data.detach()
    with torch.autocast("cpu", torch.bfloat16):
        output = rnn(packed(rows))[0].data
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.detach().float(), expected, rtol=0.05, atol=0.05)
    output.float().sum().backward()
    for parameter in rnn.parameters():
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
