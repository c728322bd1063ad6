"""Batches that are run piece by piece: the same gradient with less memory, or a truncated one.

The reference of truncated gradients takes one sequence at a time and one token after the other.
"""

import os
import sys
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from rnncls.data import Batch, collate
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import draw_masks
from rnncls.model.pieces import WHOLE, Pieces
from rnncls.model.prefixes import prefix_losses, prefix_weights
from rnncls.system.process_memory import GIVE_BACK_AT_ONCE
from scripts.bench_pieces import Memory
from tests.helpers import needs_cuda, run_python

VOCABULARY = 5
CLASSES = 3
CELLS = ("tanh", "relu", "lstm", "gru")
POOLINGS = ("last", "mean", "max", "last_mean_max")
LENGTHS = (1, 2, 4, 7, 11, 11, 3)

# Of the difference between two gradients, relative to the largest number of each tensor.
CLOSE = {torch.float64: 1e-10, torch.float32: 5e-6}


def model_of(
    cell: str, num_layers: int = 2, dtype: torch.dtype = torch.float64, **options: Any
) -> RNNClassifier:
    """Return a small model whose initial state, if it is learned, is not zero."""
    torch.manual_seed(1)
    options["cell"] = cell
    if cell in ("tanh", "relu"):
        options |= {"cell": "rnn", "nonlinearity": cell}
    model = RNNClassifier(VOCABULARY, CLASSES, 4, 6, num_layers, **options)
    if model.initial_state is not None:
        torch.nn.init.normal_(model.initial_state)
    return model.to(dtype)


def trained_start(cell: str, bidirectional: bool, pooling: str, **options: Any) -> RNNClassifier:
    """Return a small model of two layers with this pooling, which begins at a learned state."""
    return model_of(
        cell, bidirectional=bidirectional, pooling=pooling, initial_state="learned", **options
    )


def batch_of(lengths: Sequence[int], seed: int = 0) -> Batch:
    """Return random sequences of these lengths, with random labels for all of their prefixes."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(VOCABULARY, (length,), generator=generator) for length in lengths]
    labels = torch.randint(CLASSES, (len(rows),), generator=generator)
    batch = collate(rows, labels)
    prefix_labels = torch.randint(CLASSES, (sum(lengths),), generator=generator)
    return batch._replace(prefix_labels=prefix_labels)


def sequence_loss(model: RNNClassifier, batch: Batch, pieces: Pieces) -> Tensor:
    """Add the gradients of the mean loss over sequences; returns the logits."""
    logits: Tensor = model(batch.tokens, pieces=pieces)
    F.cross_entropy(
        logits.float() if logits.dtype == torch.bfloat16 else logits, batch.labels
    ).backward()  # type: ignore[no-untyped-call]
    return logits.detach()


def prefix_loss(model: RNNClassifier, batch: Batch, pieces: Pieces) -> Tensor:
    """Add the gradients of the mean loss over prefixes; returns the logits after the last token."""
    assert batch.prefix_labels is not None
    weights = prefix_weights(batch.tokens.batch_sizes) / len(batch.labels)
    weights = weights.to(model.device)
    logits = torch.empty(0)
    parts = prefix_losses(model, batch.tokens, batch.prefix_labels, weights, pieces)
    for loss, of_part in parts:
        loss.backward()  # type: ignore[no-untyped-call]
        logits = of_part
    return logits


def gradients(
    model: RNNClassifier, batch: Batch, pieces: Pieces, of: Any = sequence_loss
) -> tuple[Tensor, list[Tensor]]:
    """Return logits, and the gradients of all parameters; dropout draws the same each time."""
    model.zero_grad()
    torch.manual_seed(5)
    logits = of(model, batch, pieces)
    found = []
    for parameter in model.parameters():
        found.append(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
    return logits, found


def assert_close(
    found: list[Tensor], expected: list[Tensor], what: object, most: float | None = None
) -> None:
    """No number differs by more than a part of its tensor's largest."""
    for one, other in zip(found, expected, strict=True):
        most_here = most or CLOSE[one.dtype]
        difference = float((one - other).abs().max())
        assert difference <= most_here * float(other.abs().max()), what


# --- recomputed


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "dtype", [torch.float64, pytest.param(torch.float32, marks=pytest.mark.slow)]
)
def test_what_is_computed_again_gives_the_gradient_of_the_whole(
    cell: str, bidirectional: bool, dtype: torch.dtype
) -> None:
    batch = batch_of(LENGTHS)
    for pooling in POOLINGS:
        model = trained_start(cell, bidirectional, pooling, dtype=dtype, dropout=0.3)
        logits, expected = gradients(model, batch, WHOLE)
        # Pooled in all ways, the gradient has a part of each.
        for every in (1, 4) if pooling == "last_mean_max" else (4,):
            again, found = gradients(model, batch, Pieces(recompute_every=every))
            torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-6)
            assert_close(found, expected, (pooling, every))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_of_equally_large_states_the_same_one_has_the_gradient(bidirectional: bool) -> None:
    """All states are equal: which one is the largest decides which token has the gradient."""
    model = model_of("tanh", 1, pooling="max", bidirectional=bidirectional)
    with torch.no_grad():
        for weights in model.rnn.all_weights:
            weights[0].zero_()
            weights[1].zero_()

    batch = batch_of(LENGTHS)
    _, expected = gradients(model, batch, WHOLE)
    for pieces in (Pieces(1), Pieces(4), Pieces(None, 11)):
        assert_close(gradients(model, batch, pieces)[1], expected, pieces)


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_all_that_may_be_computed_again(cell: str, bidirectional: bool) -> None:
    """Every pair of what a model has; the pieces, the precision and the initial state in turns."""
    batch = batch_of(LENGTHS)
    layers = ((1, True, 0.0), (2, False, 0.0), (2, True, 0.4), (3, True, 0.0))
    combinations = product(layers, POOLINGS)
    for number, ((num_layers, bias, dropout), pooling) in enumerate(combinations):
        initial = ("zeros", "learned")[(number + number // 4) % 2]
        dtype = torch.float32 if number % 5 == 0 else torch.float64
        every = (1, 3, 10)[number % 3]
        options: dict[str, Any] = {"bidirectional": bidirectional, "bias": bias, "dropout": dropout}
        options |= {"pooling": pooling, "initial_state": initial}
        model = model_of(cell, num_layers, dtype, **options)
        _, expected = gradients(model, batch, WHOLE)
        _, found = gradients(model, batch, Pieces(recompute_every=every))
        assert_close(found, expected, (num_layers, options, dtype, every))

        # Dropout or not, truncated gradients are the same whether states are kept or not.
        _, expected = gradients(model, batch, Pieces(truncate_after=4))
        _, found = gradients(model, batch, Pieces(3, 4))
        assert_close(found, expected, (num_layers, options, dtype, "truncated"))


@pytest.mark.parametrize("cell", CELLS)
def test_prefix_losses_computed_again_have_the_gradient_of_the_whole(cell: str) -> None:
    batch = batch_of(LENGTHS)
    for dtype in CLOSE:
        model = model_of(cell, dtype=dtype, dropout=0.3, initial_state="learned")
        logits, expected = gradients(model, batch, WHOLE, prefix_loss)
        torch.testing.assert_close(logits, gradients(model, batch, WHOLE)[0].float())
        for every in (1, 4, 11):
            again, found = gradients(model, batch, Pieces(recompute_every=every), prefix_loss)
            torch.testing.assert_close(again, logits, rtol=1e-5, atol=1e-6)
            # The losses themselves are float32.
            assert_close(found, expected, (dtype, every), CLOSE[torch.float32])


@pytest.mark.parametrize("of", [sequence_loss, prefix_loss])
@pytest.mark.parametrize("cell", CELLS)
def test_pieces_under_autocast_have_the_gradient_of_the_whole(cell: str, of: Any) -> None:
    """The states are rounded to bfloat16, with 8 bits, in pieces as in the whole."""
    batch = batch_of(LENGTHS)
    model = model_of(cell, dtype=torch.float32, initial_state="learned")
    with torch.autocast("cpu", torch.bfloat16):
        _, expected = gradients(model, batch, WHOLE, of)
        for pieces in (Pieces(recompute_every=3), Pieces(3, 11)):
            _, found = gradients(model, batch, pieces, of)
            assert_close(found, expected, pieces, 0.05)
            assert all(gradient.dtype == torch.float32 for gradient in found)


@needs_cuda
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_pieces_on_cuda(cell: str, bidirectional: bool) -> None:
    """What cuDNN computes again is what it computed, and it truncates as the CPU does."""
    batch = batch_of(LENGTHS)
    for pooling in POOLINGS:
        model = trained_start(cell, bidirectional, pooling)
        references = {
            pieces: gradients(model, batch, pieces)[1]
            for pieces in (WHOLE, Pieces(3), Pieces(None, 4), Pieces(2, 4))
        }
        model.cuda()
        for pieces, expected in references.items():
            _, found = gradients(model, batch.to(torch.device("cuda")), pieces)
            assert_close([each.cpu() for each in found], expected, (pooling, pieces))


class Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the bytes of the largest tensor that an operation returns."""

    nbytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        result: object = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.nbytes = max(self.nbytes, result.nbytes)
        return result


def test_masks_of_dropout_are_drawn_a_byte_for_each_number() -> None:
    """They are as long as the batch: in float32, they would be all of the memory of a step."""
    weight = torch.zeros(1)
    torch.manual_seed(5)
    with Largest() as largest:  # type: ignore[no-untyped-call]
        masks = draw_masks(weight, (500, 6), 0.3, 2)
    assert largest.nbytes == 500 * 6

    torch.manual_seed(5)
    expected = [F.dropout(torch.ones(500, 6), 0.3) != 0 for _ in range(2)]
    assert all(torch.equal(*pair) for pair in zip(masks, expected, strict=True))


# --- truncated

STEPS: dict[str, Any] = {
    "tanh": lambda x, state, weights: (torch.rnn_tanh_cell(x, *state, *weights),),
    "relu": lambda x, state, weights: (torch.rnn_relu_cell(x, *state, *weights),),
    "gru": lambda x, state, weights: (torch.gru_cell(x, *state, *weights),),
    "lstm": lambda x, state, weights: torch.lstm_cell(x, state, *weights),
}


def truncated_logits(model: RNNClassifier, cell: str, row: Tensor, after: int) -> Tensor:
    """Return the logits (1, C) of one sequence, with gradients as truncation defines them.

    Each direction of each layer reads all but its last `after` tokens without a gradient. The state
    that it has reached is a constant then, and so are its outputs until then.
    """
    inputs = list(model.embedding(row).split(1))
    lasts = []
    outputs = []
    for layer in range(model.rnn.num_layers):
        of_directions = []
        for direction in range(model.num_directions):
            of_directions.append(read_direction(model, cell, layer, direction, inputs, after))
        if layer == model.rnn.num_layers - 1:
            lasts = [reading[-1] for reading in of_directions]
        outputs = [
            reading if number == 0 else reading[::-1]
            for number, reading in enumerate(of_directions)
        ]
        inputs = [torch.cat(of_token, 1) for of_token in zip(*outputs, strict=True)]

    states = torch.stack(inputs)  # (T, 1, W)
    parts = {"last": torch.cat(lasts, 1), "mean": states.mean(0), "max": states.amax(0)}
    names = list(parts) if model.pooling == "last_mean_max" else [model.pooling]
    logits: Tensor = model.head(torch.cat([parts[name] for name in names], 1))
    return logits


def read_direction(
    model: RNNClassifier, cell: str, layer: int, direction: int, inputs: list[Tensor], after: int
) -> list[Tensor]:
    """Return the outputs (1, H) of one direction of a layer in the order in which it reads."""
    number = layer * model.num_directions + direction
    weights = model.rnn.all_weights[number]
    state = [torch.zeros(1, model.rnn.hidden_size, dtype=torch.float64)] * (1 + (cell == "lstm"))
    if model.initial_state is not None:
        state = [part[number].unsqueeze(0) for part in model.initial_state]

    outputs = []
    for token, x in enumerate(inputs[::-1] if direction else inputs):
        has_gradient = token >= len(inputs) - after
        with torch.set_grad_enabled(has_gradient):
            state = STEPS[cell](x, state, weights)
        outputs.append(state[0])
    return outputs


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_truncated_gradients_are_those_of_each_sequences_last_tokens(
    cell: str, bidirectional: bool
) -> None:
    batch = batch_of(LENGTHS)
    rows = rows_of(batch)
    for pooling, initial in [("last", "zeros"), *product(POOLINGS, ["learned"])]:
        options: dict[str, Any] = {
            "bidirectional": bidirectional,
            "pooling": pooling,
            "initial_state": initial,
        }
        model = model_of(cell, **options)
        whole, _ = gradients(model, batch, WHOLE)
        # Pooled in all ways, the gradient has a part of each.
        for after in (1, 3, 10) if pooling == "last_mean_max" else (3,):
            model.zero_grad()
            logits = torch.cat([truncated_logits(model, cell, row, after) for row in rows])
            F.cross_entropy(logits, batch.labels).backward()  # type: ignore[no-untyped-call]
            expected = gradients_now(model)

            for every in (None, 1):
                found_logits, found = gradients(model, batch, Pieces(every, after))
                torch.testing.assert_close(found_logits, whole, rtol=1e-10, atol=1e-12)
                assert_close(found, expected, (pooling, initial, after, every), 1e-10)


def rows_of(batch: Batch) -> list[Tensor]:
    """Return the sequences of a batch, in the order in which they were given."""
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(batch.tokens, batch_first=True)
    return [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]


def gradients_now(model: RNNClassifier) -> list[Tensor]:
    return [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for parameter in model.parameters()
    ]


def test_only_sequences_that_are_read_from_their_beginning_train_an_initial_state() -> None:
    for cell, bidirectional in product(CELLS, (False, True)):
        model = model_of(cell, initial_state="learned", bidirectional=bidirectional)
        assert model.initial_state is not None
        for lengths, reaches in (((4, 5, 9), False), ((4, 3, 9), True)):
            gradients(model, batch_of(lengths), Pieces(truncate_after=3))
            gradient = model.initial_state.grad
            assert (gradient is not None and bool(gradient.any())) == reaches, cell


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.sampled_from(list(product(CELLS, (False, True), POOLINGS))),
    st.integers(1, 9),
    st.none() | st.integers(1, 9),
    st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_truncated_gradients_are_a_function_of_each_sequence_alone(
    lengths: list[int], case: tuple[str, bool, str], after: int, every: int | None, seed: int
) -> None:
    cell, bidirectional, pooling = case
    model = trained_start(cell, bidirectional, pooling)
    batch = batch_of(lengths, seed)
    pieces = Pieces(every, after)

    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for row, label in zip(rows_of(batch), batch.labels, strict=True):
        _, alone = gradients(model, collate([row], label.unsqueeze(0)), pieces)
        sums = [total + own / len(lengths) for total, own in zip(sums, alone, strict=True)]
    _, found = gradients(model, batch, pieces)
    for one, other in zip(found, sums, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_nothing_is_truncated_of_sequences_that_are_no_longer(
    cell: str, bidirectional: bool
) -> None:
    batch = batch_of(LENGTHS)
    for pooling in POOLINGS:
        model = trained_start(cell, bidirectional, pooling, dtype=torch.float32, dropout=0.3)
        logits, expected = gradients(model, batch, WHOLE)
        for after in (max(LENGTHS), 100):
            found_logits, found = gradients(model, batch, Pieces(truncate_after=after))
            assert torch.equal(found_logits, logits)
            assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


# --- the loss of prefixes, truncated


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_no_gradient_of_prefixes_crosses_the_beginning_of_a_piece(cell: str) -> None:
    """Pieces of so many tokens are counted from the beginning of each sequence."""
    batch = batch_of(LENGTHS)
    assert batch.prefix_labels is not None
    packed_labels = batch.tokens._replace(data=batch.prefix_labels)
    rows = list(zip(rows_of(batch), rows_of(batch._replace(tokens=packed_labels)), strict=True))
    for after, num_layers in ((1, 2), (3, 1), (4, 2), (11, 2), (20, 1)):
        model = model_of(cell, num_layers, initial_state="learned")
        model.zero_grad()
        total = 0.0
        for row, labels in rows:
            loss = piecewise_loss(model, cell, row, labels, after) / len(rows)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        expected = gradients_now(model)

        for every in (None, 1, 2):
            if every is not None and every > after:
                continue
            _, found = gradients(model, batch, Pieces(every, after), prefix_loss)
            assert_close(found, expected, (after, num_layers, every), 5e-6)
            weights = prefix_weights(batch.tokens.batch_sizes) / len(rows)
            parts = prefix_losses(
                model, batch.tokens, batch.prefix_labels, weights, Pieces(every, after)
            )
            assert float(sum(part.detach() for part, _ in parts)) == pytest.approx(total, rel=1e-5)


def piecewise_loss(
    model: RNNClassifier, cell: str, row: Tensor, labels: Tensor, after: int
) -> Tensor:
    """Return the mean loss over the prefixes of one sequence, one direction, token by token."""
    assert model.initial_state is not None
    num_layers = model.rnn.num_layers
    states = [
        [part[layer].unsqueeze(0) for part in model.initial_state] for layer in range(num_layers)
    ]
    losses = []
    for token, (id_, label) in enumerate(zip(row, labels, strict=True)):
        if token and token % after == 0:
            states = [[part.detach() for part in state] for state in states]
        x = model.embedding(id_.unsqueeze(0))
        for layer in range(num_layers):
            states[layer] = STEPS[cell](x, states[layer], model.rnn.all_weights[layer])
            x = states[layer][0]
        losses.append(F.cross_entropy(model.head(x), label.unsqueeze(0)))
    return torch.stack(losses).mean()


# --- memory

MEMORY = """
import sys
from scripts.bench_pieces import Case, memory_of
print(*memory_of(Case(**eval(sys.argv[1]))))
"""
reads_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def memory_of(needed: bool = False, **case: Any) -> Memory:
    """Take one step of scripts/bench_pieces.py in a new process; returns its memory in MiB.

    `needed`: without what the C library keeps of freed memory, more or less of it by chance.
    """
    env = {**os.environ, **(GIVE_BACK_AT_ONCE if needed else {})}
    done = run_python(MEMORY, repr(case), env=env)
    assert done.returncode == 0, done.stderr
    return Memory(*map(float, done.stdout.split()))


@pytest.mark.slow
@reads_proc
@pytest.mark.parametrize(
    ("shape", "most"),
    # All states would take 650 MiB, in two directions 1,300. Without either, see below.
    [({"objective": "prefix"}, 250), ({"bidirectional": True}, 400)],
)
def test_a_long_batch_computed_again_takes_little_memory(shape: dict[str, Any], most: int) -> None:
    assert memory_of(cell="rnn", length=10_000, recompute_every=100, **shape).beyond < most


@pytest.mark.slow
@reads_proc
def test_a_very_long_batch_computed_again_fits_in_a_small_process() -> None:
    assert memory_of(cell="rnn", length=30_000, recompute_every=100).process < 1024


@pytest.mark.slow
@reads_proc
def test_what_a_truncated_step_needs_does_not_depend_on_the_length() -> None:
    short, long = (
        memory_of(True, cell="rnn", length=length, truncate_after=200) for length in (1000, 30_000)
    )
    assert long.beyond == pytest.approx(short.beyond, rel=0.1)
