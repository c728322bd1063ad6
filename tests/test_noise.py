"""Noise on states and smoothed labels: what they are, and that every way of training has them.

The reference takes one sequence at a time and one token after the other, in float64.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls.data import Batch, Padded, collate, load_task
from rnncls.errors import ConfigError, Interrupted, MachineError
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import Keys, dropout_keys
from rnncls.model.noise import noise_keys, noised, normals
from rnncls.model.pieces import WHOLE, Pieces
from rnncls.model.prefixes import prefix_losses, prefix_weights
from rnncls.steps.eager import draw_keys, layout_of
from rnncls.steps.engines import choose, why_not
from rnncls.steps.objective import gradients_of_batch, weight_of
from rnncls.sweep import groups as sweep_groups
from rnncls.sweep.groups import plan_groups
from rnncls.sweep.plan import plan_sweep
from rnncls.training.control import control_config
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.states import new_state
from tests.helpers import (
    config_of,
    config_with,
    files_config,
    losses,
    outcome,
    some_rows,
    stop_at,
    variant_of,
    write_jsonl,
)
from tests.test_dropout import GOLDEN, finalize
from tests.test_pieces import CELLS, LENGTHS, assert_close, batch_of, model_of
from tests.test_stacked import changed, fitting, logged, together

SIGMA = 0.4
WEIGHTS = torch.tensor([0.5, 1.0, 3.0])


def keys_of(model: RNNClassifier, **more: Any) -> Keys:
    """Return keys of the noise on the states of a model."""
    return Keys(of_states=noise_keys(3, 7, model.rnn.num_layers * model.num_directions), **more)


def place_of(row: int, time: int) -> Tensor:
    """Return the place of a state as a signed number."""
    place = ((row << 32) + time + 1) * GOLDEN % 2**64
    return torch.tensor([place - 2**64 if place >= 2**63 else place])


# --- the rule


def normal(key: int, row: int, time: int, column: int, width: int) -> float:
    half = (width + 1) // 2
    x = finalize((key + ((row << 32) + time + 1) * GOLDEN) % 2**64)
    y = finalize((x + (column % half + 1) * GOLDEN) % 2**64)
    u = ((y >> 8 & 0xFFFFFF) + 1) / 2**24
    v = (y >> 40) / 2**24
    angle = 2 * math.pi * (v - 0.5)
    return math.sqrt(-2 * math.log(u)) * (math.cos if column < half else math.sin)(angle)


@pytest.mark.parametrize("width", [1, 2, 7])
@pytest.mark.parametrize("key", [0, 0x0123456789ABCDEF, 2**63 - 1])
def test_numbers_are_those_of_the_rule(key: int, width: int) -> None:
    for row, time in ((0, 0), (3, 5), (2**20, 7), (3, 2**30)):
        found = normals(key, place_of(row, time), width)
        expected = [[normal(key, row, time, column, width) for column in range(width)]]
        torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)


def test_numbers_are_standard_normal_and_unrelated() -> None:
    places = torch.cat([place_of(row, time) for row in range(20) for time in range(20)])
    numbers = torch.stack([normals(key, places, 50) for key in noise_keys(0, 0, 3)]).double()
    count = numbers.numel()
    assert abs(float(numbers.mean())) < 4 / math.sqrt(count)
    assert abs(float(numbers.var()) - 1) < 4 * math.sqrt(2 / count)
    assert abs(float((numbers**4).mean()) - 3) < 4 * math.sqrt(96 / count)
    assert abs(float((numbers.abs() > 1.96).double().mean()) - 0.05) < 0.005

    flat = numbers.flatten(0, 1)
    related = [(flat[1:] * flat[:-1]), flat[:, 1:] * flat[:, :-1], flat[:, 25:] * flat[:, :25]]
    related.append(numbers[1] * numbers[0])
    for products in related:
        assert abs(float(products.mean())) < 4 / math.sqrt(products.numel())


def test_each_layer_and_direction_of_each_step_has_a_key_of_its_own() -> None:
    keys = [noise_keys(seed, step, 4) for seed in (0, 1) for step in (0, 1, 2)]
    assert len({key for each in keys for key in each}) == 24
    config = config_of(model={"state_noise": SIGMA, "num_layers": 2, "bidirectional": True})
    state = new_state(load_task(config))
    assert draw_keys(state, config).of_states == noise_keys(config.seed, 0, 4)
    without = config_of(model={"num_layers": 2})
    assert draw_keys(new_state(load_task(without)), without).of_states == ()


# --- against a reference, one token after the other

Terms = dict[tuple[int, int, int], Tensor]


def next_state(
    mode: str, weights: Sequence[Tensor], x: Tensor, read: Tensor, h: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Return h and c after a token; `read` is what W_hh multiplies."""
    w_ih, w_hh, b_ih, b_hh = weights
    of_x, of_h = w_ih @ x + b_ih, w_hh @ read + b_hh
    if mode == "GRU":
        (xr, xz, xn), (hr, hz, hn) = of_x.chunk(3), of_h.chunk(3)
        z = torch.sigmoid(xz + hz)
        return (1 - z) * torch.tanh(xn + torch.sigmoid(xr + hr) * hn) + z * h, c
    if mode == "LSTM":
        i, f, g, o = (of_x + of_h).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    total = of_x + of_h
    return (torch.tanh(total) if mode == "RNN_TANH" else torch.relu(total)), c


def reference(model: RNNClassifier, rows: list[Tensor], keys: Keys, terms: Terms) -> Tensor:
    """Return the logits of rows of ids. What is added to states is kept in `terms`, or taken."""
    size = model.rnn.hidden_size
    logits = []
    for row, ids in enumerate(rows):
        data = list(model.embedding(ids))
        last: list[Tensor] = []

        for layer in range(model.rnn.num_layers):
            of_directions = []
            last = []
            for direction in range(model.num_directions):
                unit = layer * model.num_directions + direction
                parts = model.initial_state
                h = torch.zeros(size, dtype=torch.float64) if parts is None else parts[0, unit]
                c = torch.zeros_like(h) if parts is None or len(parts) == 1 else parts[1, unit]

                states = {}
                times = list(range(len(ids)))
                for number, time in enumerate(reversed(times) if direction else times):
                    # There is none on an initial state.
                    read = h
                    if number > 0:
                        name = (row, unit, time)
                        if name not in terms:
                            rms = h.detach().square().mean().sqrt()
                            numbers = normals(keys.of_states[unit], place_of(row, time), size)
                            terms[name] = SIGMA * rms * numbers[0].double()
                        read = h + terms[name]
                    weights = model.rnn.all_weights[unit]
                    h, c = next_state(model.rnn.mode, weights, data[time], read, h, c)
                    states[time] = h
                last.append(h)
                of_directions.append([states[time] for time in times])
            data = [torch.cat(parts) for parts in zip(*of_directions, strict=True)]
        logits.append(model.head(torch.cat(last)))
    return torch.stack(logits)


def rows_of(batch: Batch) -> list[Tensor]:
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(batch.tokens, batch_first=True)
    return [row[:length] for row, length in zip(padded, lengths.tolist(), strict=True)]


def gradients(
    model: RNNClassifier, batch: Batch, keys: Keys, pieces: Pieces = WHOLE, prefix: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Return the logits, and the gradients of all parameters."""
    model.zero_grad()
    logits = torch.zeros(0)
    if prefix:
        assert batch.prefix_labels is not None
        weights = prefix_weights(batch.tokens.batch_sizes).double()
        parts = prefix_losses(model, batch.tokens, batch.prefix_labels, weights, pieces, keys)
        for loss, logits in parts:  # noqa: B007
            loss.backward()  # type: ignore[no-untyped-call]
    else:
        logits = model(batch.tokens, pieces=pieces, keys=keys)
        F.cross_entropy(logits, batch.labels).backward()  # type: ignore[no-untyped-call]
    return logits.detach(), [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for parameter in model.parameters()
    ]


@pytest.mark.parametrize("start", ["zeros", "learned"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_logits_and_gradients_are_those_of_a_reference_and_of_finite_differences(
    cell: str, bidirectional: bool, start: str
) -> None:
    model = model_of(cell, bidirectional=bidirectional, initial_state=start, state_noise=SIGMA)
    batch = batch_of((4, 1, 6, 2, 4))
    rows = rows_of(batch)
    keys = keys_of(model)
    logits, found = gradients(model, batch, keys)

    terms: Terms = {}
    expected = reference(model, rows, keys, terms)
    assert len(terms) == (3 + 5 + 1 + 3) * 2 * model.num_directions
    torch.testing.assert_close(logits, expected.detach(), rtol=1e-9, atol=1e-10)
    loss = F.cross_entropy(expected, batch.labels)
    wanted = torch.autograd.grad(loss, list(model.parameters()))
    assert_close(found, list(wanted), cell)

    # What is added stays as it is while a parameter moves in some direction.
    generator = torch.Generator().manual_seed(2)
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        way = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        both = []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(way, alpha=sign * 1e-6)
                both.append(F.cross_entropy(reference(model, rows, keys, terms), batch.labels))
                parameter.sub_(way, alpha=sign * 1e-6)
        slope = float(both[0] - both[1]) / 2e-6
        assert slope == pytest.approx(float((gradient * way).sum()), rel=1e-5, abs=1e-8)


def test_noise_is_as_large_as_the_state_and_passes_gradients_through() -> None:
    states = torch.randn(300, 40, dtype=torch.float64) * torch.logspace(-3, 3, 300)[:, None]
    states.requires_grad_()
    places = torch.cat([place_of(row, 3) for row in range(300)])
    result = noised(5, places, states, SIGMA)
    added = (result - states).detach()
    rms = states.detach().square().mean(1).sqrt()
    numbers = added / (SIGMA * rms[:, None])
    torch.testing.assert_close(numbers, normals(5, places, 40).double(), rtol=1e-9, atol=1e-9)
    (gradient,) = torch.autograd.grad(result.sum(), states)
    assert torch.equal(gradient, torch.ones_like(states))


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_the_noise_of_a_sequence_depends_on_its_row_alone(cell: str, bidirectional: bool) -> None:
    model = model_of(cell, bidirectional=bidirectional, state_noise=SIGMA, dropout=0.3)
    keys = keys_of(model, of_layers=dropout_keys(3, 7, 2))
    rows = rows_of(batch_of(LENGTHS))
    labels = torch.zeros(len(rows), dtype=torch.int64)
    logits = model(collate(rows, labels).tokens, keys=keys)
    others = rows_of(batch_of((9, 3, 4, 5, 2, 6, 1), seed=1))

    for number, row in enumerate(rows):
        mine = keys._replace(first_row=number, row_step=len(rows))
        alone = model(collate([row], labels[:1]).tokens, keys=mine)
        torch.testing.assert_close(alone[0], logits[number])
        beside = [row if place == number else other for place, other in enumerate(others)]
        torch.testing.assert_close(
            model(collate(beside, labels).tokens, keys=keys)[number], alone[0]
        )

    # As processes share a batch.
    for rank in range(3):
        mine = keys._replace(first_row=rank, row_step=3)
        share = model(collate(rows[rank::3], labels[rank::3]).tokens, keys=mine)
        torch.testing.assert_close(share, logits[rank::3])

    # Another row has another noise, and so has another step.
    moved = model(collate(rows[1:], labels[1:]).tokens, keys=keys)
    is_long = torch.tensor([len(row) > 1 for row in rows[1:]])
    assert ((moved - logits[1:]).abs().amax(1) > 1e-6)[is_long].all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_pieces_have_the_noise_of_the_whole(cell: str, bidirectional: bool) -> None:
    batch = batch_of(LENGTHS)
    for pooling, dropout in (("last", 0.0), ("last_mean_max", 0.3)):
        model = model_of(
            cell,
            bidirectional=bidirectional,
            pooling=pooling,
            initial_state="learned",
            dropout=dropout,
            state_noise=SIGMA,
        )
        keys = keys_of(model, of_layers=dropout_keys(3, 7, 2) if dropout else ())
        logits, expected = gradients(model, batch, keys)
        for every in (1, 4):
            again, found = gradients(model, batch, keys, Pieces(recompute_every=every))
            torch.testing.assert_close(again, logits)
            assert_close(found, expected, (pooling, every))

        for after in (1, 4):
            again, truncated = gradients(model, batch, keys, Pieces(truncate_after=after))
            torch.testing.assert_close(again, logits)
        _, found = gradients(model, batch, keys, Pieces(3, 4))
        assert_close(found, truncated, pooling)


@pytest.mark.parametrize("cell", CELLS)
def test_prefixes_have_the_noise_of_whole_sequences(cell: str) -> None:
    model = model_of(cell, initial_state="learned", state_noise=SIGMA)
    keys = keys_of(model)
    batch = batch_of(LENGTHS)
    expected = model(batch.tokens, keys=keys).detach()
    logits, whole = gradients(model, batch, keys, prefix=True)
    # The loss of prefixes is computed in float32.
    torch.testing.assert_close(logits, expected.float())
    _, found = gradients(model, batch, keys, Pieces(recompute_every=3), prefix=True)
    assert_close(found, whole, cell, most=5e-6)
    logits, truncated = gradients(model, batch, keys, Pieces(truncate_after=4), prefix=True)
    is_longest = torch.tensor([length == max(LENGTHS) for length in LENGTHS])
    torch.testing.assert_close(logits[is_longest], expected.float()[is_longest])
    _, found = gradients(model, batch, keys, Pieces(2, 4), prefix=True)
    assert_close(found, truncated, cell, most=5e-6)


@pytest.mark.parametrize("cell", [*CELLS, "none"])
def test_there_is_noise_in_training_alone(cell: str) -> None:
    model = model_of(cell, 2, state_noise=SIGMA)
    plain = model_of(cell, 2)
    keys = keys_of(model)
    batch = batch_of(LENGTHS)
    expected = plain(batch.tokens)
    assert torch.equal(model(batch.tokens, keys=keys), expected) == (cell == "none")
    assert torch.equal(model(batch.tokens), expected)
    model.eval()
    assert torch.equal(model(batch.tokens, keys=keys), expected)
    model.train()
    padded = Padded(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([3, 2]))
    if cell == "none":
        model(padded, keys=keys)
    else:
        with pytest.raises(ValueError, match="packed"):
            model(padded, keys=keys)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("objective", ["sequence", "prefix"])
def test_steps_in_bfloat16_are_close_to_those_in_float32(
    tmp_path: Path, cell: str, objective: str
) -> None:
    model = {"cell": cell, "state_noise": 0.1, "num_layers": 2}
    found = []
    for precision in ("float32", "bfloat16"):
        train: dict[str, Any] = {
            "precision": precision,
            "objective": objective,
            "max_steps": 6,
            "log_every": 1,
        }
        train |= {"label_smoothing": 0.1}
        found.append(losses(config_of(model=model, train=train), tmp_path / precision))
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], abs=0.05)


# --- ways of training


@pytest.mark.parametrize(
    "name",
    [
        "prefix_in_pieces",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean", "learned", "together")),
    ],
)
def test_a_run_that_was_interrupted_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = variant_of(
        name,
        model={"state_noise": SIGMA},
        train={"label_smoothing": 0.2},
        data={"repeat_share": 0.5},
    )
    fit(config, tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "run")
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    fit(variant_of(name), tmp_path / "without")
    assert outcome(tmp_path / "run") != outcome(tmp_path / "without")


@pytest.mark.parametrize(
    ("noise", "smoothing"),
    [
        pytest.param(SIGMA, 0.0, marks=pytest.mark.slow),
        pytest.param(0.0, 0.3, marks=pytest.mark.slow),
        (SIGMA, 0.3),
    ],
)
def test_members_of_a_stack_have_the_losses_of_eager_runs(
    tmp_path: Path, noise: float, smoothing: float
) -> None:
    base = config_with(
        "eager",
        {"model": {"num_layers": 2, "state_noise": noise}, "data": {"max_length": 9}},
        max_steps=30,
        label_smoothing=smoothing,
    )
    configs = [base, changed(base, seed=7), changed(base, seed=8, optimizer={"lr": 1e-3})]
    ways = [fitting(config, tmp_path / f"{number}") for number, config in enumerate(configs)]
    assert together(ways) == [None] * 3
    for number, config in enumerate(configs):
        expected = losses(config, tmp_path / f"eager-{number}")
        assert logged(tmp_path / f"{number}") == pytest.approx(expected, rel=1e-4)


def test_noise_needs_packed_batches_and_no_captured_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda")
    noisy = config_of(model={"state_noise": SIGMA}, train={"engine": "auto"})
    assert layout_of(load_task(noisy), cuda) == "packed"
    assert layout_of(load_task(config_of()), cuda) == "padded"
    none = config_of(model={"state_noise": SIGMA, "cell": "none"}, data={"layout": "padded"})
    assert layout_of(load_task(none), cuda) == "padded"
    with pytest.raises(ConfigError, match="packed batches"):
        config_of(model={"state_noise": SIGMA}, data={"layout": "padded"})

    assert why_not("captured", noisy, cuda) == f"model.state_noise is {SIGMA}"
    assert why_not("stacked", noisy, cuda) == ""
    by_name = config_of(model={"state_noise": SIGMA}, train={"engine": "captured"})
    with pytest.raises(MachineError, match=r"train\.engine=auto, which takes eager steps here"):
        choose(by_name, cuda)
    members = plan_sweep(noisy, "0-2", {}, None, 10, tmp_path / "sweep").members
    monkeypatch.setattr(sweep_groups, "resolve_device", lambda _: cuda)
    (group,) = plan_groups(members, None)
    assert group.stacked


def test_a_control_has_the_smoothing_of_its_run_and_no_noise() -> None:
    config = config_of(
        model={"state_noise": SIGMA}, train={"label_smoothing": 0.2, "baseline": "control"}
    )
    control = control_config(config)
    assert control.train.label_smoothing == 0.2
    assert control.model.state_noise == 0


# --- smoothed labels


def smoothed(
    logits: Tensor, labels: Tensor, smoothing: float, class_weights: Tensor | None
) -> list[float]:
    """Return the loss of each row by the formula, one class after the other."""
    found = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        weights = [1.0] * len(row) if class_weights is None else class_weights.tolist()
        total = math.log(math.fsum(math.exp(number) for number in row))
        loss = 0.0
        for number, (weight, logit) in enumerate(zip(weights, row, strict=True)):
            target = smoothing / len(row) + (1 - smoothing) * (number == label)
            loss += target * weight * (total - logit)
        found.append(loss)
    return found


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.3, 0.9])
def test_a_smoothed_loss_is_that_of_the_formula(
    class_weights: Tensor | None, smoothing: float
) -> None:
    config = config_of(data={"max_length": 7}, train={"label_smoothing": smoothing})
    model = new_state(load_task(config)).model
    task: Any = SimpleNamespace(config=config, class_weights=class_weights)
    (batch,) = load_task(config).batches(0, 1)
    loss, logits = gradients_of_batch(model, batch, task)
    each = smoothed(logits, batch.labels, smoothing, class_weights)
    weights = torch.ones(3) if class_weights is None else class_weights
    total = float(weights[batch.labels].sum())
    assert float(loss) == pytest.approx(sum(each) / total, rel=1e-5)

    # Shares of a batch, as processes have them, add up to the whole.
    of_shares = []
    for rank in range(2):
        share = batch.share(rank, 2)
        assert share is not None
        part, _ = gradients_of_batch(model, share, task, total=weight_of(batch, task))
        of_shares.append(float(part))
    assert sum(of_shares) == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_a_smoothed_loss_of_prefixes_is_that_of_the_formula(class_weights: Tensor | None) -> None:
    train = {"label_smoothing": 0.3, "objective": "prefix"}
    config = config_of(data={"max_length": 7}, train=train)
    model = new_state(load_task(config)).model
    (batch,) = load_task(config).batches(0, 1)
    assert batch.prefix_labels is not None
    logits = model.prefix_logits(batch.tokens)
    each = torch.tensor(smoothed(logits, batch.prefix_labels, 0.3, class_weights))
    weights = prefix_weights(batch.tokens.batch_sizes)
    of_classes = torch.ones(3) if class_weights is None else class_weights
    total = (weights * of_classes[batch.prefix_labels]).sum()
    expected = float((weights * each).sum() / total)
    for pieces in ({}, {"recompute_every": 2}, {"truncate_after": 3}):
        cut = config.model_copy(update={"train": config.train.model_copy(update=pieces)})
        task: Any = SimpleNamespace(config=cut, class_weights=class_weights)
        loss, _ = gradients_of_batch(model, batch, task)
        assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_an_evaluation_is_not_smoothed(tmp_path: Path) -> None:
    """Without a learning rate to speak of, both runs have the same weights."""
    rows = write_jsonl(tmp_path / "rows.jsonl", some_rows(200))
    found = []
    for smoothing in (0.0, 0.5):
        train = {"label_smoothing": smoothing, "max_steps": 3, "log_every": 1, "eval_every": 3}
        config = files_config(rows, train={**train, "class_weights": "balanced"})
        optimizer = config.optimizer.model_copy(update={"lr": 1e-12})
        schedule = config.schedule.model_copy(update={"name": "constant"})
        config = config.model_copy(update={"optimizer": optimizer, "schedule": schedule})
        fit(config, tmp_path / f"{smoothing}")
        found.append(outcome(tmp_path / f"{smoothing}")[1])
    train_loss, val_loss = (
        [[line[tag] for line in lines if tag in line] for lines in found]
        for tag in ("train/loss", "val/loss")
    )
    assert val_loss[0] == pytest.approx(val_loss[1], rel=1e-6)
    assert train_loss[0] != pytest.approx(train_loss[1], rel=1e-3)
