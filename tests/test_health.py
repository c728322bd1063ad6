"""Diagnostics: numbers against references written out, and a run that does not notice them."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn

from rnncls.config import Config
from rnncls.dashboard import health as health_module
from rnncls.dashboard.health import health_scalars
from rnncls.data import Task, load_task
from rnncls.model.classifier import RNNClassifier
from rnncls.model.probes import (
    activations_of,
    gradients_through_time,
    spectral_radius_of,
    states_of,
)
from rnncls.steps.beside import copy_of, same_random_state
from rnncls.steps.eager import draw_keys, train_step
from rnncls.steps.engines import choose
from rnncls.steps.state import TrainState, due_after, next_due
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.states import new_state
from tests.helpers import (
    HARD,
    VARIANTS,
    Killed,
    config_of,
    files_config,
    kill_at,
    outcome,
    sequences_of,
    some_rows,
    variant_of,
    write_jsonl,
)

CELLS: dict[str, dict[str, Any]] = {
    "tanh": {"cell": "rnn", "nonlinearity": "tanh"},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm"},
}


def begun(config: Config, steps: int = 3) -> tuple[TrainState, Task]:
    """Return a run that has taken some eager steps."""
    task = load_task(config)
    state = new_state(task)
    for batch in task.batches(0, steps):
        train_step(state, batch, task)
    return state, task


# --- within the network


def unrolled(
    model: RNNClassifier, tokens: Tensor
) -> tuple[Tensor, list[list[list[Tensor]]], list[list[list[Tensor]]]]:
    """Run one sequence by the formulas of torch's documentation; returns what the head sees.

    Also the states and the activations, by layer, direction and time step, of which the states
    have kept their gradients.
    """
    rnn = model.rnn
    size = rnn.hidden_size
    data = list(model.embedding(tokens))
    states: list[list[list[Tensor]]] = []
    activations: list[list[list[Tensor]]] = []
    for layer in range(rnn.num_layers):
        of_layer = []
        acts_of_layer = []
        for direction in range(model.num_directions):
            suffix = f"l{layer}" + ("_reverse" if direction else "")
            w_ih, w_hh, b_ih, b_hh = (
                rnn.get_parameter(f"{name}_{suffix}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            number = layer * model.num_directions + direction
            start = model.initial_state
            h = data[0].new_zeros(size) if start is None else start[0][number].reshape(size)
            c = data[0].new_zeros(size)
            if start is not None and rnn.mode == "LSTM":
                c = start[1][number].reshape(size)
            found: dict[int, Tensor] = {}
            acts: dict[int, Tensor] = {}
            order = range(len(data))
            for t in reversed(order) if direction else order:
                x = w_ih @ data[t] + b_ih
                m = w_hh @ h + b_hh
                if rnn.mode == "LSTM":
                    i, f, g, o = (x + m).chunk(4)
                    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                    acts[t] = c.tanh()
                    h = o.sigmoid() * acts[t]
                elif rnn.mode == "GRU":
                    r = (x[:size] + m[:size]).sigmoid()
                    z = (x[size : 2 * size] + m[size : 2 * size]).sigmoid()
                    acts[t] = (x[2 * size :] + r * m[2 * size :]).tanh()
                    h = (1 - z) * acts[t] + z * h
                else:
                    h = (x + m).relu() if rnn.mode == "RNN_RELU" else (x + m).tanh()
                    acts[t] = h
                h.retain_grad()
                found[t] = h
            of_layer.append([found[t] for t in order])
            acts_of_layer.append([acts[t] for t in order])
        states.append(of_layer)
        activations.append(acts_of_layer)
        data = [torch.cat([direction[t] for direction in of_layer]) for t in range(len(data))]
    ends = [direction[-1 if number == 0 else 0] for number, direction in enumerate(states[-1])]
    return torch.cat(ends), states, activations


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_what_is_within_is_what_the_formulas_give(cell: str, bidirectional: bool) -> None:
    model_config = {"num_layers": 2, "bidirectional": bidirectional, **CELLS[cell]}
    state, task = begun(config_of(model=model_config, data={"max_length": 7}))
    scalars = health_scalars(state, task)
    network = copy.deepcopy(state.model).double()

    sequences = task.validation_sequences(health_module.NUM_SEQUENCES)
    assert int(sequences.lengths.min()) < int(sequences.lengths.max())
    num_directions = 2 if bidirectional else 1
    first = np.zeros((2, num_directions))
    last = np.zeros((2, num_directions))
    passing = []
    off = []
    for number in range(len(sequences)):
        start, end = sequences.offsets[number : number + 2].tolist()
        summary, states, activations = unrolled(network, sequences.tokens[start:end].long())
        logits = network.head(summary)
        loss = nn.functional.cross_entropy(logits[None], sequences.labels[number : number + 1])
        loss.backward()  # type: ignore[no-untyped-call]
        off.append(torch.stack([torch.stack(d) == 0 for a in activations for d in a]).all(1))
        passing += [a for of_layer in activations for d in of_layer for a in d]
        if end - start == 1:
            continue
        for layer, of_layer in enumerate(states):
            for direction, hidden in enumerate(of_layer):
                norms = [float(torch.linalg.vector_norm(h.grad)) for h in hidden]
                first[layer, direction] += norms[-1 if direction else 0]
                last[layer, direction] += norms[0 if direction else -1]

    expected = float(np.exp(np.log(first / last).mean()))
    assert scalars["within/grad_ratio"] == pytest.approx(expected, rel=1e-9)
    values = torch.stack(passing).detach().numpy()
    limits = values == 0 if cell == "relu" else np.abs(values) > 0.99
    assert scalars["within/saturated"] == pytest.approx(float(limits.mean()), rel=1e-6)
    if cell == "relu":
        assert scalars["within/saturated"] > 0
        assert scalars["within/off"] == float(torch.stack(off).all(0).double().mean())
    else:
        assert "within/off" not in scalars

    suffixes = ["", "_reverse"] if bidirectional else [""]
    for layer in range(2):
        for suffix in suffixes:
            w_hh = state.model.rnn.get_parameter(f"weight_hh_l{layer}{suffix}")
            rows = slice(2 * 16, 3 * 16) if len(w_hh) > 16 else slice(None)
            radius = np.abs(np.linalg.eigvals(w_hh.detach().numpy()[rows])).max()
            tag = f"within/spectral_radius_l{layer}{suffix}"
            assert scalars[tag] == pytest.approx(float(radius), rel=5e-3)
    tags = {tag for tag in scalars if "spectral" in tag}
    assert len(tags) == 2 * num_directions


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bias", [False, True])
def test_activations_are_those_of_the_formulas(cell: str, bias: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"bidirectional": True, "bias": bias, "num_layers": 2, **CELLS[cell]}
    model = RNNClassifier(5, 3, 4, 6, initial_state="learned", **options).double().eval()
    nn.init.normal_(model.get_parameter("initial_state"))
    ids = [[1, 2, 3, 4], [2], [4, 4, 1], [3, 1, 2, 1]]
    batch = sequences_of(ids).batch(torch.arange(4))
    found = activations_of(model, states_of(model, batch.tokens), batch.tokens.batch_sizes)

    # Without biases, torch's formulas are those with biases of 0.
    with_biases = model
    if not bias:
        with_biases = RNNClassifier(
            5, 3, 4, 6, initial_state="learned", **{**options, "bias": True}
        ).double()
        for name, parameter in with_biases.named_parameters():
            nn.init.zeros_(parameter)
            if "bias_" not in name:
                parameter.data.copy_(model.get_parameter(name))

    # Packed rows stand step by step, longest sequence first; equal ones in their order.
    order = [0, 3, 2, 1]
    wanted = [unrolled(with_biases, torch.tensor(ids[number]))[2] for number in order]
    for layer in range(2):
        for direction in range(2):
            rows = [
                of_sequence[layer][direction][t]
                for t in range(4)
                for number, of_sequence in zip(order, wanted, strict=True)
                if t < len(ids[number])
            ]
            torch.testing.assert_close(found[layer][direction], torch.stack(rows).detach())


def test_a_spectral_radius_is_the_largest_eigenvalue() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 7, 40, 100):
        for _ in range(10):
            matrix = torch.randn(size, size, generator=generator) / math.sqrt(size)
            expected = float(np.abs(np.linalg.eigvals(matrix.double().numpy())).max())
            assert spectral_radius_of(matrix) == pytest.approx(expected, rel=5e-3)
            # Neither large nor small numbers leave the range.
            assert spectral_radius_of(1e15 * matrix) == pytest.approx(1e15 * expected, rel=5e-3)
            assert spectral_radius_of(matrix / 1e15) == pytest.approx(expected / 1e15, rel=5e-3)

    orthogonal, _ = torch.linalg.qr(torch.randn(50, 50, generator=generator))
    assert spectral_radius_of(0.3 * orthogonal) == pytest.approx(0.3, rel=1e-5)
    assert spectral_radius_of(torch.zeros(3, 3)) == 0
    assert spectral_radius_of(torch.tensor([[0.0, 1.0], [0.0, 0.0]])) == 0
    # Two eigenvalues of the same size and opposite sign.
    assert spectral_radius_of(torch.tensor([[0.0, 4.0], [1.0, 0.0]])) == pytest.approx(2, rel=5e-3)
    assert math.isnan(spectral_radius_of(torch.tensor([[math.nan]])))
    assert math.isnan(spectral_radius_of(torch.tensor([[math.inf]])))


def test_sequences_of_one_token_have_no_gradient_through_time() -> None:
    state, task = begun(config_of(data={"min_length": 1, "max_length": 1}))
    scalars = health_scalars(state, task)
    assert "within/grad_ratio" not in scalars
    assert "within/saturated" in scalars


def test_units_that_are_off_are_counted() -> None:
    state, task = begun(config_of(model={"nonlinearity": "relu"}))
    with torch.no_grad():
        bias = state.model.rnn.get_parameter("bias_ih_l0")
        bias[:4] = -1e6
        bias[4:] = 1e6
    scalars = health_scalars(state, task)
    assert scalars["within/off"] == 4 / 16
    assert scalars["within/saturated"] == pytest.approx(4 / 16)


def test_long_sequences_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    state, task = begun(config_of(data={"min_length": 5, "max_length": 60}))
    monkeypatch.setattr(health_module, "MOST_STEPS", 4)
    lengths = []
    original = gradients_through_time

    def noting(network: RNNClassifier, tokens: Any, *arguments: Any, **options: Any) -> Any:
        lengths.append(len(tokens.batch_sizes))
        return original(network, tokens, *arguments, **options)

    monkeypatch.setattr(health_module, "gradients_through_time", noting)
    assert math.isfinite(health_scalars(state, task)["within/grad_ratio"])
    assert lengths == [4]


# --- weights


def gradients_written_out(state: TrainState, task: Task) -> list[Tensor]:
    """Return the gradient of the next step, before clipping, by torch's own modules."""
    model = copy.deepcopy(state.model)
    batch = next(task.batches(state.step, state.step + 1))
    keys = draw_keys(state, task.config)
    loss = nn.functional.cross_entropy(model(batch.tokens, keys=keys), batch.labels)
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("max_norm", [None, 1e-3])
def test_gradient_and_update_are_those_of_the_next_step(cell: str, max_norm: float | None) -> None:
    model = {"num_layers": 2, "dropout": 0.3, "bidirectional": True, **CELLS[cell]}
    state, task = begun(config_of(model=model, train={"max_grad_norm": max_norm}))
    scalars = health_scalars(state, task)
    before = {name: weight.detach().clone() for name, weight in state.model.named_parameters()}
    gradients = gradients_written_out(state, task)
    for (name, weight), gradient in zip(before.items(), gradients, strict=True):
        norm = float(np.linalg.norm(weight.double().numpy()))
        assert scalars[f"weights/norm/{name}"] == pytest.approx(norm, rel=1e-5)
        norm = float(np.linalg.norm(gradient.double().numpy()))
        assert scalars[f"weights/grad_norm/{name}"] == pytest.approx(norm, rel=1e-4)

    # Only now does the run take that step.
    train_step(state, next(task.batches(state.step, state.step + 1)), task)
    for name, weight in state.model.named_parameters():
        change = np.linalg.norm((weight.detach() - before[name]).double().numpy())
        expected = math.log10(change / np.linalg.norm(before[name].double().numpy()))
        assert scalars[f"weights/update_ratio/{name}"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_every_optimizer_is_copied_with_its_state(name: str) -> None:
    momentum = {"momentum": 0.9} if name == "sgd" else {}
    optimizer = {"name": name, "weight_decay": 0.1, **momentum}
    state, task = begun(config_of(optimizer=optimizer))
    copied = copy_of(state, task.config)
    for one in (state, copied):
        for batch in task.batches(3, 6):
            train_step(one, batch, task)
    pairs = zip(state.model.parameters(), copied.model.parameters(), strict=True)
    for original, other in pairs:
        assert torch.equal(original, other)
        for key, value in state.optimizer.state[original].items():
            assert torch.equal(value, copied.optimizer.state[other][key])
    assert copied.totals.steps == 3
    assert state.totals.steps == 6


def test_after_the_last_step_the_last_batch_counts_again() -> None:
    state, task = begun(config_of(train={"max_steps": 3}))
    scalars = health_scalars(state, task)
    state.step -= 1
    name, _ = next(state.model.named_parameters())
    gradient, *_ = gradients_written_out(state, task)
    assert scalars[f"weights/grad_norm/{name}"] == pytest.approx(float(gradient.norm()), rel=1e-4)


def test_a_run_of_no_steps_has_no_gradient() -> None:
    task = load_task(config_of(train={"max_steps": 0}))
    scalars = health_scalars(new_state(task), task)
    assert not any("grad_norm" in tag or "update" in tag for tag in scalars)
    assert all(math.isfinite(value) for value in scalars.values())


@pytest.mark.parametrize("skipped", [0, 5])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_do_not_end_a_run(skipped: int, value: float) -> None:
    state, task = begun(config_of(train={"max_skipped_steps": skipped}))
    with torch.no_grad():
        state.model.head.weight[0, 0] = value
    scalars = health_scalars(state, task)
    for tag, found in scalars.items():
        if tag.startswith("weights/grad_norm") or tag.startswith("weights/update_ratio"):
            assert math.isnan(found), tag
        assert not math.isinf(found), tag
    assert math.isnan(scalars["weights/norm/head.weight"])
    assert math.isfinite(scalars["weights/norm/rnn.weight_hh_l0"])
    assert state.skipped == 0
    assert state.step == 3


# --- the run does not notice


def everything(state: TrainState) -> dict[str, Any]:
    """Return all that a probe could change, as bytes and numbers."""
    found: dict[str, Any] = {"random": bytes(torch.get_rng_state().numpy())}
    for name, parameter in state.model.named_parameters():
        found[name] = parameter.detach().numpy().tobytes()
        found[f"{name}.grad"] = None if parameter.grad is None else parameter.grad.numpy().tobytes()
        found[f"{name}.address"] = parameter.data_ptr()
        found[f"{name}.optimizer"] = {
            key: value.numpy().tobytes()
            for key, value in state.optimizer.state.get(parameter, {}).items()
        }
    found["groups"] = [
        {key: value for key, value in group.items() if key != "params"}
        for group in state.optimizer.param_groups
    ]
    found["entries"] = len(state.optimizer.state)
    found["training"] = [module.training for module in state.model.modules()]
    found["counters"] = state.counters()
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rules", [1, 2])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_probe_changes_nothing(training: bool, rules: Any, steps: int) -> None:
    task = load_task(config_of(**HARD))
    state = new_state(task, step_rules=rules)
    for batch in task.batches(0, steps):
        train_step(state, batch, task)
    state.model.train(training)
    before = everything(state)
    scalars = health_scalars(state, task)
    assert everything(state) == before
    assert torch.is_grad_enabled()
    assert health_scalars(state, task) == scalars


def test_the_random_state_is_given_back() -> None:
    state = new_state(load_task(config_of()), step_rules=1)
    before = torch.get_rng_state()
    with same_random_state(state):
        torch.manual_seed(99)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), before)


def with_diagnostics(config: Config, every: int = 3) -> Config:
    train = config.train.model_copy(update={"diagnostics_every": every})
    return config.model_copy(update={"train": train})


RUNS = {
    "hard": config_of(**HARD),
    **{name: variant_of(name) for name in VARIANTS},
    "compiled": config_of(train={"engine": "compiled"}),
    "compiled hard": config_of(**{**HARD, "train": {**HARD["train"], "engine": "compiled"}}),
    "compiled pooled": variant_of("last_mean_max", train={"engine": "compiled"}),
    "compiled lstm": variant_of("mean", model={"cell": "lstm"}, train={"engine": "compiled"}),
}
SLOW = {name for name in RUNS if name not in ("hard", "prefix", "compiled", "mean")}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in RUNS],
)
def test_a_run_ends_with_the_same_bits_with_and_without(name: str, tmp_path: Path) -> None:
    config = RUNS[name]
    fit(config, tmp_path / "without")
    fit(with_diagnostics(config), tmp_path / "with")
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")
    tags = logged(tmp_path / "with")
    steps = {*range(3, config.train.max_steps + 1, 3), config.train.max_steps}
    assert [step for step, _ in tags["within/saturated"]] == sorted(steps)
    assert not any(tag.startswith(("within/", "weights/")) for tag in logged(tmp_path / "without"))


def logged(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard has of each scalar."""
    accumulator = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)]
        for tag in accumulator.Tags()["scalars"]
    }


def test_a_killed_run_resumes_to_the_same_bits_and_diagnostics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_diagnostics(RUNS["hard"])
    fit(RUNS["hard"], tmp_path / "without")
    fit(config, tmp_path / "with")
    with monkeypatch.context() as patch:
        kill_at(patch, 10)
        with pytest.raises(Killed):
            fit(config, tmp_path / "killed")
    resume(tmp_path / "killed")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "with")
    assert outcome(tmp_path / "killed") == outcome(tmp_path / "without")

    whole = logged(tmp_path / "with")
    for tag, values in logged(tmp_path / "killed").items():
        if tag.startswith(("within/", "weights/")):
            assert values == whole[tag]


def test_the_tables_have_no_diagnostics(tmp_path: Path) -> None:
    fit(with_diagnostics(config_of()), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert not any(key.startswith(("within/", "weights/")) for row in rows for key in row)


def test_files_have_diagnostics_of_some_of_their_validation_sequences(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_rows(200))
    state, task = begun(files_config(path))
    scalars = health_scalars(state, task)
    assert all(math.isfinite(value) for value in scalars.values())

    # Some of the validation split, each of them once, and the same ones again.
    some = task.validation_sequences(5)
    whole = task.validation_sequences(10**6)
    assert len(some) == 5
    assert len(whole) == len(task.validated)  # type: ignore[attr-defined]
    assert torch.equal(some.tokens, task.validation_sequences(5).tokens)
    assert sorted(whole.lengths.tolist()) == sorted(task.validated.lengths.tolist())  # type: ignore[attr-defined]


# --- when


def test_diagnostics_are_due_at_their_interval_alone() -> None:
    train = config_of(train={"diagnostics_every": 7}).train
    assert [step for step in range(1, 30) if due_after(train, step).diagnostics] == [7, 14, 21, 28]
    assert next_due(train, 4) == 7
    assert next_due(config_of().train, 4) == 10
    assert not any(due_after(config_of().train, step).diagnostics for step in range(30))


def test_compiled_steps_are_the_same_weights_as_the_probe_of_eager_ones() -> None:
    # A copy of a state whose tensors are views of one flat tensor shares nothing with it.
    config = config_of(train={"engine": "compiled", "log_every": 1})
    task = load_task(config)
    state = new_state(task)
    engine, name = choose(config, state.device)
    assert name == "compiled steps"
    steps = engine(state, task)
    while state.step < 5:
        next(steps)
    before = everything(state)
    scalars = health_scalars(state, task)
    assert everything(state) == before
    weights = [weight.detach().clone() for weight in state.model.parameters()]
    next(steps)
    names = [name for name, _ in state.model.named_parameters()]
    for name, old, new in zip(names, weights, state.model.parameters(), strict=True):
        expected = math.log10(float((new.detach() - old).norm() / old.norm()))
        assert scalars[f"weights/update_ratio/{name}"] == pytest.approx(expected, abs=1e-3)
    steps.close()
