"""Compiled steps with noise on states and with smoothed labels.

Their gradients and losses are those of an independent reference in float64: a loop over the time
steps of each sequence, with the noise as NumPy draws it by the rule of rnncls/model/noise.py.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.compiled.compiler import entry_point
from rnncls.config import Config
from rnncls.data import Task, load_task
from rnncls.errors import Interrupted
from rnncls.model import noise as rule
from rnncls.model.splitmix import GOLDEN, signed
from rnncls.seeds import mix
from rnncls.steps import chunks
from rnncls.steps.compiled import noise
from rnncls.steps.compiled.engine import CompiledRun
from rnncls.steps.engines import choose
from rnncls.steps.state import TrainState
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.states import new_state
from tests.helpers import config_with, files_config, losses, outcome, write_jsonl
from tests.test_compiled_cells import finalized, mask_of
from tests.test_steps import stop_after

CELLS = ("rnn", "gru", "lstm")
GATES = {"rnn": 1, "gru": 3, "lstm": 4}

# The largest error of a gradient, relative to the largest number of its tensor.
CLOSE = 1e-5

# The largest error of a normal number, relative to its radius: 16 roundings of float32.
ROUNDINGS = 16 * 2.0**-24

ALL = {"model": {"state_noise": 0.3}, "train": {"label_smoothing": 0.2}}


# --- an independent reference


def draws_of(key: int, row: int, time: int, width: int) -> Any:
    """The two draws of 24 bits of each pair of columns of one state, (2, ceil(width / 2))."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        x = finalized(np.uint64(key) + np.uint64((row << 32) + time + 1) * golden)
        y = finalized(x + np.arange(1, (width + 1) // 2 + 1, dtype=np.uint64) * golden)
    last = np.uint64(2**24 - 1)
    return np.stack([y >> np.uint64(8) & last, y >> np.uint64(40)])


def normals_of(draws: Any) -> Any:
    """The normal numbers of such draws, in float64: cosines, then sines."""
    u = (draws[0].astype(np.float64) + 1) / 2**24
    angle = 2 * np.pi * (draws[1] / 2**24 - 0.5)
    radius = np.sqrt(-2 * np.log(u))
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])


def next_state(cell: str, relu: bool, state: Tensor, read: Tensor, x: Tensor, w: Any) -> Tensor:
    """The state (2, H), with the c of an LSTM, after one more token; W_hh multiplies `read`."""
    of_input = w["weight_ih"] @ x + w.get("bias_ih", 0)
    of_state = w["weight_hh"] @ read + w.get("bias_hh", 0)
    h, c = state
    if cell == "rnn":
        z = of_input + of_state
        return torch.stack([z.relu() if relu else z.tanh(), c])
    inputs = of_input.chunk(GATES[cell])
    states = of_state.chunk(GATES[cell])
    if cell == "gru":
        r = torch.sigmoid(inputs[0] + states[0])
        z = torch.sigmoid(inputs[1] + states[1])
        n = torch.tanh(inputs[2] + r * states[2])
        return torch.stack([(1 - z) * n + z * h, c])
    i, f, g, o = (a + b for a, b in zip(inputs, states, strict=True))
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return torch.stack([o.sigmoid() * c.tanh(), c])


def read_by_layer(
    config: Config, weights: dict[str, Tensor], layer: int, xs: Tensor, row: int, step: int
) -> tuple[Tensor, list[Tensor]]:
    """The outputs of a layer for a sequence's inputs (T, .), and the last states."""
    model = config.model
    directions = 2 if model.bidirectional else 1
    outputs = []
    finals = []

    for direction in range(directions):
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        own = {n: weights[f"rnn.{n}{suffix}"] for n in names if f"rnn.{n}{suffix}" in weights}
        key = mix(config.seed, "state_noise", step, layer * directions + direction)

        state = torch.zeros(2, model.hidden_size, dtype=torch.float64)
        states = {}
        times = range(len(xs))
        for time in reversed(times) if direction else times:
            drawn = normals_of(draws_of(key, row, time, model.hidden_size))[: model.hidden_size]
            size = state[0].detach().square().mean().sqrt()
            read = state[0] + model.state_noise * size * torch.from_numpy(drawn)
            state = next_state(model.cell, model.nonlinearity == "relu", state, read, xs[time], own)
            states[time] = state[0]

        outputs.append(torch.stack([states[time] for time in times]))
        finals.append(state[0])
    return torch.cat(outputs, 1), finals


def expected_gradients(state: TrainState, task: Task, step: int) -> tuple[float, list[Tensor]]:
    """Loss and gradients of the step that follows `step` steps, in float64."""
    config = task.config
    model = config.model
    dropout = float(model.dropout)
    weights = {n: p.detach().double() for n, p in state.model.named_parameters()}
    for weight in weights.values():
        weight.requires_grad_()
    batch = next(task.blocks(step, step + 1)).batch(0)
    padded, lengths = pad_packed_sequence(batch.tokens, batch_first=True)
    logits = []
    for row, length in enumerate(lengths.tolist()):
        xs = weights["embedding.weight"][padded[row, :length]]
        finals: list[Tensor] = []
        for layer in range(model.num_layers):
            if layer and dropout:
                key = mix(config.seed, "dropout", step, layer)
                places = range(length)
                masks = [mask_of(key, row, time, xs.shape[1], dropout) for time in places]
                xs = xs * torch.from_numpy(np.stack(masks)) / (1 - dropout)
            xs, finals = read_by_layer(config, weights, layer, xs, row, step)
        logits.append(weights["head.weight"] @ torch.cat(finals) + weights["head.bias"])

    class_weights = None if task.class_weights is None else task.class_weights.double()
    smoothing = config.train.label_smoothing
    loss = F.cross_entropy(
        torch.stack(logits), batch.labels, class_weights, label_smoothing=smoothing
    )
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), [cast("Tensor", weight.grad) for weight in weights.values()]


def state_of(task: Task) -> TrainState:
    """A state with other weights than the first ones, whose biases may be 0."""
    state = new_state(task)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return state


def assert_close(gradients: list[Tensor], expected: list[Tensor]) -> None:
    for gradient, other in zip(gradients, expected, strict=True):
        largest = float(other.abs().max())
        assert largest > 0
        assert float((gradient.double() - other).abs().max()) <= CLOSE * largest


def assert_gradients(config: Config) -> None:
    """Assert that loss and gradients of a step are those of the reference."""
    task = load_task(config)
    state = state_of(task)
    step = 1
    loss, expected = expected_gradients(state, task, step)
    block = next(task.blocks(0, step + 1))
    state.step = step
    with ThreadPoolExecutor(1) as pool:
        run = CompiledRun(state, task, pool)
        assert run.take(block, np.full(block.num_steps, 1e-3), step, step + 1) == 1
    assert state.totals.loss / state.totals.sequences == pytest.approx(loss, rel=2e-6)
    assert_close([cast("Tensor", p.grad) for p in state.model.parameters()], expected)


def config_for(cell: str, train: dict[str, Any] | None = None, **model: Any) -> Config:
    case = {
        "model": {
            "cell": cell,
            "hidden_size": 19,  # odd, so that the last pair of columns is half of one
            "nonlinearity": "tanh",
            **ALL["model"],
            **model,
        },
        "data": {"max_length": 9},
    }
    options = {"batch_size": 12, "max_grad_norm": None, **ALL["train"], **(train or {})}
    return config_with("compiled", case, **options)


# --- the normal numbers


@cache
def compiled(name: str) -> Any:
    """A part of the program, for calls from here. To compile it takes a second."""
    return entry_point(getattr(noise, name))


def compiled_normals(draws: Any) -> Any:
    count = draws.shape[1]
    cosines = np.empty(count, np.float32)
    sines = np.empty(count, np.float32)
    u, v = draws.astype(np.int32)
    compiled("_box_muller")(cosines, sines, u, v)
    return np.concatenate([cosines, sines])


def test_normal_numbers_are_those_of_float64() -> None:
    drawn = np.random.default_rng(0)
    ends = np.concatenate([np.arange(3000), np.arange(2**24 - 3000, 2**24)])
    some = drawn.integers(0, 2**24, 200_000)
    # Where the logarithm is cut into two pieces.
    root = round(2**23.5)
    u = np.concatenate([ends, some, np.arange(root - 3000, root + 3000)])
    for v in (drawn.integers(0, 2**24, len(u)), np.resize(ends, len(u))):
        draws = np.stack([u, v])
        expected = normals_of(draws)
        radius = np.sqrt(-2 * np.log((u + 1) / 2**24))
        error = np.abs(compiled_normals(draws) - expected)
        assert (error <= ROUNDINGS * np.tile(radius, 2)).all()
    # u = 1 has no noise, and the smallest u the most.
    largest = math.sqrt(48 * math.log(2))
    edge = compiled_normals(np.array([[2**24 - 1, 0], [5, 2**23]]))
    assert edge.tolist() == [0, pytest.approx(largest), 0, pytest.approx(0, abs=1e-6)]


@pytest.mark.parametrize("width", [1, 8, 19, 128])
def test_draws_are_those_of_the_rule(width: int) -> None:
    draw = compiled("_draw")
    half = (width + 1) // 2
    keys = [mix(seed, "state_noise", 3, 1) for seed in range(20)]
    for key, (row, time) in product(keys, [(0, 0), (0, 1), (1, 0), (2**31 - 1, 2**32 - 2)]):
        expected = draws_of(key, row, time, width)
        own = np.zeros((2, half), np.int32)
        draw(own[0], own[1], np.uint64(key), row, time)
        np.testing.assert_array_equal(own, expected)

        place = torch.tensor([signed(((row << 32) + time + 1) * GOLDEN % 2**64)])
        of_torch = rule.normals(key, place, width)[0].numpy()
        of_compiled = compiled_normals(own)[:width]
        np.testing.assert_allclose(of_torch, of_compiled, rtol=0, atol=6e-6)


# --- gradients


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_float64(cell: str) -> None:
    assert_gradients(config_for(cell, num_layers=2, bidirectional=True, dropout=0.3))
    assert_gradients(config_for(cell, nonlinearity="relu", bias=False))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_all_kinds_are_those_of_float64(cell: str) -> None:
    choices = product((1, 3), (False, True), (False, True), (0.0, 0.3), (0.0, 0.2))
    for layers, bidirectional, bias, dropout, smoothing in choices:
        if layers == 1 and dropout:
            continue
        model = {"num_layers": layers, "bidirectional": bidirectional, "bias": bias}
        train = {"label_smoothing": smoothing}
        assert_gradients(config_for(cell, train, dropout=dropout, **model))


def test_labels_are_smoothed_with_class_weights(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    labels = drawn.choice(4, 60, p=[0.6, 0.2, 0.1, 0.1]).tolist()
    rows = [(drawn.integers(0, 9, 1 + i % 7).tolist(), label) for i, label in enumerate(labels)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    train = {"engine": "compiled", "batch_size": 12, "max_grad_norm": None, "label_smoothing": 0.2}
    config = files_config(path, {**train, "class_weights": "balanced"})
    assert load_task(config).class_weights is not None
    assert_gradients(config)


# --- batches in shares, steps in chunks


@pytest.mark.slow  # the program in two halves is another one
@pytest.mark.parametrize("cell", CELLS)
def test_the_shares_of_a_step_add_up_to_it(cell: str) -> None:
    task = load_task(config_for(cell, num_layers=2, bidirectional=True))
    state = state_of(task)
    _, expected = expected_gradients(state, task, 1)
    block = next(task.blocks(0, 2))
    with ThreadPoolExecutor(1) as pool:
        run = CompiledRun(state, task, pool)
        run._open(block, np.zeros(block.num_steps))
        inputs = run.inputs._replace(
            keys=run._dropout_keys(2), input_keys=run._input_keys(2), noise_keys=run._noise_keys(2)
        )
        # More than there are sequences, so that some have none.
        for of in (1, 3, 20):
            total = np.zeros_like(run.arrays.gradients)
            for share in range(of):
                run.functions.share_of_step(
                    sizes=run.sizes,
                    weights=run.arrays.weights,
                    out=run.arrays.gradients,
                    step_inputs=inputs,
                    step=1,
                    share=share,
                    shares=of,
                    class_weights=run.class_weights,
                    buffers=run.buffers[0],
                )
                total += run.arrays.gradients
            sizes = [parameter.numel() for parameter in state.model.parameters()]
            shares = torch.split(torch.from_numpy(total), sizes)
            assert_close([s.view_as(e) for s, e in zip(shares, expected, strict=True)], expected)


@pytest.mark.slow
def test_two_threads_give_the_same_within_rounding(tmp_path: Path) -> None:
    of_runs = []
    try:
        for threads in (1, 2):
            train = {"num_threads": threads, "max_steps": 30, "max_grad_norm": 1.0}
            of_runs.append(losses(config_for("gru", train), tmp_path / str(threads)))
    finally:
        torch.set_num_threads(1)
    assert of_runs[1] == pytest.approx(of_runs[0], rel=1e-4)


def test_steps_do_not_depend_on_how_they_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"max_steps": 60, "log_every": 20, "checkpoint_every": 25}
    config = config_for("rnn", train, bidirectional=True)
    fit(config, tmp_path / "whole")
    for name, seconds in (("single", 0.0), ("large", 10.0)):
        monkeypatch.setattr(chunks, "CHUNK_SECONDS", seconds)
        fit(config, tmp_path / name)
        assert outcome(tmp_path / name) == outcome(tmp_path / "whole")

    # Stopped twice, and gone on.
    for number, stop in enumerate((17, 43)):
        with monkeypatch.context() as patch:
            stop_after(patch, stop)
            with pytest.raises(Interrupted):
                resume(tmp_path / "cut") if number else fit(config, tmp_path / "cut")
    resume(tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_noise_and_smoothing_change_what_a_run_learns(tmp_path: Path) -> None:
    found = set()
    for noise_size, smoothing in ((0.0, 0.0), (0.3, 0.0), (0.0, 0.2), (0.3, 0.2)):
        train = {"max_steps": 5, "label_smoothing": smoothing}
        config = config_for("rnn", train, state_noise=noise_size)
        found.add(tuple(losses(config, tmp_path / f"{noise_size}-{smoothing}")))
    assert len(found) == 4


@pytest.mark.parametrize("cell", CELLS)
def test_auto_chooses_compiled_steps(cell: str) -> None:
    config = config_for(cell)
    train = config.train.model_copy(update={"engine": "auto"})
    config = config.model_copy(update={"train": train})
    assert choose(config, torch.device("cpu"))[1] == "compiled steps"
