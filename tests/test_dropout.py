"""Dropout between layers as a function of positions, and runs that began before it was one."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from rnncls.config import Config
from rnncls.data import Padded
from rnncls.errors import Interrupted
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import (
    Keys,
    by_position,
    dropout_keys,
    kept,
    places_of_packed,
    places_of_padded,
)
from rnncls.model.pieces import WHOLE, Pieces
from rnncls.model.rules import LATEST
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.steps.eager import eager_steps
from rnncls.steps.engines import choose, why_not
from rnncls.sweep.groups import plan_groups
from rnncls.sweep.plan import load_sweep, plan_sweep
from rnncls.system.signals import stop_requests
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.run import Shared
from tests.helpers import HARD, change_checkpoint, config_of, needs_cuda, outcome, stop_at
from tests.test_pieces import STEPS, assert_close, batch_of, gradients, model_of

GOLDEN = 0x9E3779B97F4A7C15
KEY = 0x0123456789ABCDEF
LENGTHS = (2, 11, 4, 7, 1, 11, 3)


# --- the rule, in Python's integers


def finalize(z: int) -> int:
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def stays(key: int, row: int, time: int, column: int, dropout: float) -> bool:
    x = finalize((key + ((row << 32) + time + 1) * GOLDEN) % 2**64)
    y = finalize((x + (column // 2 + 1) * GOLDEN) % 2**64)
    u = y >> 32 if column % 2 else y & (2**32 - 1)
    return u >= round(dropout * 2**32)


def packed_of(lengths: Sequence[int]) -> PackedSequence:
    return pack_sequence([torch.zeros(n, dtype=torch.int64) for n in lengths], enforce_sorted=False)


@pytest.mark.parametrize("dropout", [1e-10, 0.1, 0.5, 0.75, 1 - 2**-20, 1 - 1e-12])
@pytest.mark.parametrize("key", [0, KEY, 2**63 - 1])
def test_masks_are_those_of_the_rule_packed_and_padded(key: int, dropout: float) -> None:
    for width in (1, 2, 7):
        padded = kept(key, places_of_padded(torch.zeros(len(LENGTHS), 11)), width, dropout)
        assert padded.shape == (11, len(LENGTHS), width)
        tokens = packed_of(LENGTHS)
        rows = torch.nn.utils.rnn.pad_packed_sequence(
            tokens._replace(data=kept(key, places_of_packed(tokens), width, dropout))
        )[0]

        for row, length in enumerate(LENGTHS):
            for time in range(length):
                expected = [stays(key, row, time, column, dropout) for column in range(width)]
                assert padded[time, row].tolist() == expected
                assert rows[time, row].tolist() == expected

    # Sequences that are given longest first have no order of their own.
    ordered = pack_sequence([torch.zeros(3), torch.zeros(2)])
    assert ordered.sorted_indices is None
    found = kept(key, places_of_packed(ordered), 3, dropout).tolist()
    by_hand = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]
    assert found == [
        [stays(key, *place, column, dropout) for column in range(3)] for place in by_hand
    ]


def test_large_masks_are_made_of_the_same_numbers_as_small_ones() -> None:
    """They are drawn part by part; rows and times of long and large batches differ in all bits."""
    places = torch.tensor([(row << 32) + time + 1 for row, time in ((2**20, 7), (3, 2**30))])
    places = torch.cat([places * (GOLDEN - 2**64), torch.arange(5000)])
    large = kept(KEY, places, 200, 0.4)
    parts = [kept(KEY, part, 200, 0.4) for part in torch.split(places, 7)]
    assert torch.equal(large, torch.cat(parts))
    for number, (row, time) in enumerate(((2**20, 7), (3, 2**30))):
        expected = [stays(KEY, row, time, column, 0.4) for column in range(200)]
        assert large[number].tolist() == expected


def test_what_stays_is_enlarged_and_all_else_is_zero_in_the_precision_of_the_input() -> None:
    places = places_of_packed(packed_of(LENGTHS))
    mask = kept(KEY, places, 6, 0.3)
    drop = by_position(Keys((1, KEY)), places, 0.3)
    scale = float(np.float32(1 / (1 - 0.3)))
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        data = torch.randn(len(places), 6, generator=torch.Generator().manual_seed(0))
        data = data.to(dtype).requires_grad_()
        dropped = drop(2, data)
        assert dropped.dtype == dtype
        expected = torch.where(mask, data.double() * scale, 0).to(dtype)
        torch.testing.assert_close(dropped, expected)
        assert torch.equal(dropped != 0, mask)

        (gradient,) = torch.autograd.grad(dropped.sum(), data)
        torch.testing.assert_close(gradient, (mask.double() * scale).to(dtype))


def test_each_layer_of_each_step_has_a_key_of_its_own() -> None:
    keys = [dropout_keys(seed, step, 3) for seed in (0, 1) for step in (0, 1, 2)]
    assert [len(each) for each in keys] == [2] * 6
    assert len({key for each in keys for key in each}) == 12
    assert dropout_keys(0, 5, 1) == ()
    # Written down once: other engines draw the same.
    assert dropout_keys(3, 7, 3) == (1444946896533712210, 4781688209232688954)


# --- statistics

Shaped = Callable[[Sequence[int], int, float], Tensor]


def masks_by_rule(keys: Sequence[int], width: int, dropout: float) -> Tensor:
    """Return masks of 40 rows and 30 time steps, (keys, T, B, width)."""
    places = places_of_padded(torch.zeros(40, 30))
    return torch.stack([kept(key, places, width, dropout) for key in keys])


def assert_independent(draw: Shaped, dropout: float) -> None:
    """The share of what stays is right, and no two neighbours in any direction are related."""
    keys = [key for step in range(8) for key in dropout_keys(0, step, 3)]
    masks = draw(tuple(keys), 32, dropout).double()  # (16, 30, 40, 32)
    deviation = (dropout * (1 - dropout)) ** 0.5
    numbers = (masks - (1 - dropout)) / deviation
    assert abs(numbers.mean()) < 5 / numbers.numel() ** 0.5

    # Of keys, time steps, rows and columns: the next, and the next but one.
    for dimension in range(4):
        for distance in (1, 2):
            size = numbers.shape[dimension] - distance
            one = numbers.narrow(dimension, 0, size)
            other = numbers.narrow(dimension, distance, size)
            assert abs((one * other).mean()) < 5 / one.numel() ** 0.5, (dimension, distance)

    # A place is not always in or out: the shares vary as they do by chance, in each direction.
    for dimension in range(4):
        others = [each for each in range(4) if each != dimension]
        sums = numbers.mean(others) * (numbers.numel() / numbers.shape[dimension]) ** 0.5
        assert float(sums.abs().max()) < 5


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.8])
def test_masks_are_independent_of_their_neighbours(dropout: float) -> None:
    assert_independent(masks_by_rule, dropout)


@pytest.mark.parametrize("dimension", range(4))
def test_masks_that_repeat_in_any_direction_are_found_out(dimension: int) -> None:
    def repeated(keys: Sequence[int], width: int, dropout: float) -> Tensor:
        masks = masks_by_rule(keys, width, dropout).clone()
        # Every second one is that before it.
        masks.transpose(0, dimension)[1::2] = masks.transpose(0, dimension)[::2].clone()
        return masks

    with pytest.raises(AssertionError):
        assert_independent(repeated, 0.5)


# --- models


def logits_by_hand(model: RNNClassifier, cell: str, rows: Sequence[Tensor], keys: Keys) -> Tensor:
    """Return the logits (B, C) of one sequence after the other, one token after the other."""
    scale = float(np.float32(1 / (1 - model.dropout)))
    results = []
    for row, ids in enumerate(rows):
        inputs = list(model.embedding(ids).split(1))
        lasts: list[Tensor] = []
        for layer in range(model.rnn.num_layers):
            if layer:
                for time, x in enumerate(inputs):
                    key = keys.of_layers[layer - 1]
                    mask = [stays(key, row, time, n, model.dropout) for n in range(x.shape[1])]
                    inputs[time] = x * torch.tensor(mask) * scale

            outputs = []
            lasts = []
            for direction in range(model.num_directions):
                weights = model.rnn.all_weights[layer * model.num_directions + direction]
                zero = torch.zeros(1, model.rnn.hidden_size, dtype=torch.float64)
                state: Sequence[Tensor] = [zero] * (1 + (cell == "lstm"))
                of_direction = []
                for x in inputs[::-1] if direction else inputs:
                    state = STEPS[cell](x, state, weights)
                    of_direction.append(state[0])
                lasts.append(of_direction[-1])
                outputs.append(of_direction[::-1] if direction else of_direction)
            inputs = [torch.cat(of_token, 1) for of_token in zip(*outputs, strict=True)]
        results.append(model.head(torch.cat(lasts, 1)))
    return torch.cat(results)


def rows_of(lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, (length,), generator=generator) for length in lengths]


def padded_of(rows: Sequence[Tensor]) -> Padded:
    lengths = torch.tensor([len(row) for row in rows])
    return Padded(torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True), lengths)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", STEPS)
def test_a_model_drops_what_the_rule_says_however_its_batch_is_run(
    cell: str, bidirectional: bool
) -> None:
    model = model_of(cell, 3, bidirectional=bidirectional, dropout=0.4)
    rows = rows_of(LENGTHS)
    tokens = pack_sequence(rows, enforce_sorted=False)
    keys = Keys(dropout_keys(1, 2, 3))
    expected = logits_by_hand(model, cell, rows, keys)

    for pieces in (WHOLE, Pieces(3), Pieces(None, 4), Pieces(2, 4)):
        torch.testing.assert_close(model(tokens, pieces=pieces, keys=keys), expected)
    if not bidirectional:
        torch.testing.assert_close(model(padded_of(rows), keys=keys), expected)
        wider = padded_of([*rows, torch.zeros(40, dtype=torch.int64)])
        torch.testing.assert_close(model(wider, keys=keys)[:-1], expected)

    # In other company the same sequences have the same masks, wherever sorting puts them.
    company = pack_sequence([*rows, *rows_of([12, 1, 5, 30])], enforce_sorted=False)
    torch.testing.assert_close(model(company, keys=keys)[: len(rows)], expected)

    # In another row, or another step, they have others; and without training none.
    turned = pack_sequence(rows[::-1], enforce_sorted=False)
    assert not torch.allclose(model(turned, keys=keys).flip(0), expected, atol=1e-3)
    other = model(tokens, keys=Keys(dropout_keys(1, 3, 3)))
    assert not torch.allclose(other, expected, atol=1e-3)
    model.eval()
    torch.testing.assert_close(model(tokens, keys=keys), model(tokens))


def with_keys(keys: Keys) -> Any:
    """Return a loss as `gradients` wants one: the mean over sequences, by these keys."""

    def loss(model: RNNClassifier, batch: Any, pieces: Pieces) -> Tensor:
        logits: Tensor = model(batch.tokens, pieces=pieces, keys=keys)
        torch.nn.functional.cross_entropy(logits, batch.labels).backward()  # type: ignore[no-untyped-call]
        return logits.detach()

    return loss


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", STEPS)
def test_pieces_have_the_gradient_of_the_whole(cell: str, bidirectional: bool) -> None:
    model = model_of(cell, 3, bidirectional=bidirectional, dropout=0.4, pooling="last_mean_max")
    batch = batch_of(LENGTHS)
    loss = with_keys(Keys(dropout_keys(1, 2, 3)))
    _, expected = gradients(model, batch, WHOLE, loss)
    assert_close(gradients(model, batch, Pieces(3), loss)[1], expected, "recomputed")
    _, truncated = gradients(model, batch, Pieces(None, 4), loss)
    assert_close(gradients(model, batch, Pieces(3, 4), loss)[1], truncated, "truncated")


def test_torchs_generator_is_left_alone_and_not_asked() -> None:
    model = model_of("gru", 2, torch.float32, dropout=0.4)
    tokens = pack_sequence(rows_of(LENGTHS), enforce_sorted=False)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    logits = model(tokens, keys=Keys((KEY,)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(model(tokens, keys=Keys((KEY,))), logits)


@torch.no_grad()
@pytest.mark.parametrize("cell", STEPS)
def test_dropout_under_autocast_has_the_same_mask(cell: str) -> None:
    """What 8 bits change is little beside what another mask changes."""
    model = model_of(cell, 2, torch.float32, dropout=0.4)
    rows = rows_of(LENGTHS)
    expected = model(padded_of(rows), keys=Keys((KEY,)))
    with torch.autocast("cpu", torch.bfloat16):
        found = model(pack_sequence(rows, enforce_sorted=False), keys=Keys((KEY,)))
    other = model(padded_of(rows), keys=Keys((KEY + 1,)))
    assert float((found - expected).abs().max()) < float((other - expected).abs().max()) / 3


@needs_cuda
def test_masks_on_cuda_are_those_of_the_cpu() -> None:
    for width in (1, 7, 128):
        for places in (
            places_of_padded(torch.zeros(9, 50)),
            places_of_packed(packed_of((*LENGTHS, 300))),
        ):
            for dropout in (1e-10, 0.3, 0.75, 1 - 1e-12):
                on_cuda = kept(KEY, places.cuda(), width, dropout)
                assert torch.equal(on_cuda.cpu(), kept(KEY, places, width, dropout))
    tokens = packed_of(LENGTHS)
    assert torch.equal(places_of_packed(tokens.cuda()).cpu(), places_of_packed(tokens))
    padded = torch.zeros(9, 50)
    assert torch.equal(places_of_padded(padded.cuda()).cpu(), places_of_padded(padded))


@needs_cuda
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", STEPS)
def test_a_model_on_cuda_drops_what_it_drops_on_the_cpu(cell: str, bidirectional: bool) -> None:
    model = model_of(cell, 3, torch.float32, bidirectional=bidirectional, dropout=0.4)
    rows = rows_of(LENGTHS)
    tokens = pack_sequence(rows, enforce_sorted=False)
    keys = Keys(dropout_keys(1, 2, 3))
    expected = model(tokens, keys=keys)
    model.cuda()
    for pieces in (WHOLE, Pieces(3), Pieces(2, 4)):
        found = model(tokens.cuda(), pieces=pieces, keys=keys)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    if not bidirectional:
        found = model(padded_of(rows).to(torch.device("cuda")), keys=keys)
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)


# --- runs


def begun_before(config: Config, run_dir: Path) -> None:
    """Train a run by the rule of before, as a member of a sweep of then does."""
    with stop_requests() as stop:
        shared = Shared(stop, report_steps=lambda _: None, step_rules=1)
        fit(config, run_dir, shared=shared)


def rule_of(run_dir: Path) -> int:
    return read_checkpoint(find_newest(run_dir)).state.step_rules


def test_a_run_keeps_the_rule_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(**HARD)
    fit(config, tmp_path / "new")
    begun_before(config, tmp_path / "old")
    assert (rule_of(tmp_path / "new"), rule_of(tmp_path / "old")) == (LATEST, 1)
    assert outcome(tmp_path / "old") != outcome(tmp_path / "new")

    for name, begin in (("new", fit), ("old", begun_before)):
        with monkeypatch.context() as patch:
            stop_at(patch, 9)
            with pytest.raises(Interrupted):
                begin(config, tmp_path / "stopped" / name)
        # A copy of what there is of it goes on as the run itself.
        copy = tmp_path / "copy" / name
        shutil.copytree(tmp_path / "stopped" / name, copy)
        assert resume(copy).step_rules == rule_of(copy) == rule_of(tmp_path / name)
        assert outcome(copy) == outcome(tmp_path / name)

    # A new run with the weights of an old one is a new run.
    config = config_of(model=HARD["model"], train={"max_steps": 1})
    fit(config, tmp_path / "fork", init_from=tmp_path / "old")
    assert rule_of(tmp_path / "fork") == LATEST


def test_a_checkpoint_without_a_rule_is_of_before(tmp_path: Path) -> None:
    config = config_of(**HARD)
    begun_before(config, tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "nameless")
    for path in (tmp_path / "nameless" / "checkpoints").glob("step-*"):
        change_checkpoint(path, lambda state, _: state.pop("step_rules"))
    more = ["train.max_steps=30"]
    resume(tmp_path / "old", more)
    resume(tmp_path / "nameless", more)
    assert rule_of(tmp_path / "nameless") == 1
    assert outcome(tmp_path / "nameless") == outcome(tmp_path / "old")


def test_dropout_does_not_depend_on_the_layout(tmp_path: Path) -> None:
    """By torch's generator, it did."""
    layouts = ("packed", "padded")
    model = {"num_layers": 2, "dropout": 0.4, "cell": "gru"}
    lines = {}
    for begin in (fit, begun_before):
        for layout in layouts:
            run_dir = tmp_path / begin.__name__ / layout
            data = {"layout": layout}
            begin(config_of(model=model, data=data, train={"max_steps": 20}), run_dir)
            lines[begin, layout] = [row["train/loss"] for row in outcome(run_dir)[1]]
    for begin, is_same in ((fit, True), (begun_before, False)):
        packed, padded = (lines[begin, layout] for layout in layouts)
        assert (packed == pytest.approx(padded, rel=1e-4)) == is_same


def test_a_run_begun_before_goes_on_with_eager_steps() -> None:
    cpu = torch.device("cpu")
    layers = {"num_layers": 2, "dropout": 0.4}
    config = config_of(model=layers, train={"engine": "auto"})
    engine, how = choose(config, cpu, 1)
    assert engine is eager_steps
    assert how == "eager steps (the run began before such steps were compiled)"

    # The head saw the last state or the mean in compiled steps, and nothing else.
    for pooling in ("last", "mean", "max", "last_mean_max"):
        config = config_of(model={"pooling": pooling}, train={"engine": "auto"})
        assert (why_not("compiled", config, cpu, 1) == "") == (pooling in ("last", "mean"))
        assert why_not("compiled", config, cpu) == ""


def test_a_sweep_keeps_the_rule_that_it_began_with(tmp_path: Path) -> None:
    base = config_of(model={"num_layers": 2}, train={"engine": "auto"})
    grid = {"model.dropout": ["0", "0.4"]}
    plan = (base, "0-1", grid, None, 10, tmp_path / "sweep")
    assert plan_sweep(*plan).step_rules == load_sweep(tmp_path / "sweep").step_rules
    assert load_sweep(tmp_path / "sweep").step_rules == LATEST

    # The same command goes on with a sweep of before.
    path = tmp_path / "sweep" / "sweep.yaml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("step_rules")))
    assert plan_sweep(*plan).step_rules == load_sweep(tmp_path / "sweep").step_rules
    assert load_sweep(tmp_path / "sweep").step_rules == 1

    members = load_sweep(tmp_path / "sweep").members
    compiled, eager = plan_groups(members, 2, 1)
    assert {member.values["model.dropout"] for member in compiled.members} == {"0"}
    assert {member.values["model.dropout"] for member in eager.members} == {"0.4"}
