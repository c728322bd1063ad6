"""Compiled steps of every cell, in one direction and in two, with and without dropout.

Their gradients and losses are those of an independent reference: torch.nn's modules, one for each
layer, with dropout as NumPy draws it. What the compiled RNN has beside that is in test_steps.py.
"""

import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.config import Config
from rnncls.config.load import dump_config
from rnncls.data import Batch, load_task
from rnncls.model.classifier import RNNClassifier
from rnncls.model.rules import LATEST, StepRules
from rnncls.seeds import mix
from rnncls.steps import chunks
from rnncls.steps.compiled.description import is_by_table
from rnncls.steps.compiled.engine import CompiledRun
from rnncls.steps.engines import choose
from rnncls.steps.optim import learning_rate
from rnncls.steps.state import TrainState
from rnncls.system.signals import stop_requests
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.run import Shared
from rnncls.training.states import new_state
from tests.helpers import (
    config_of,
    config_with,
    files_config,
    losses,
    outcome,
    run_rnncls,
    write_jsonl,
)

CELLS = ("rnn", "gru", "lstm")

# The largest error of a gradient, relative to the largest number of its tensor.
CLOSE = 5e-6

MODULES: dict[str, Any] = {"rnn": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


# --- an independent reference


def finalized(z: Any) -> Any:
    """SplitMix64's finalizer, of uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mask_of(key: int, row: int, time: int, width: int, dropout: float) -> Any:
    """Which inputs (width,) of one token stay, by the rule of dropout.py."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        x = finalized(np.uint64(key) + np.uint64((row << 32) + time + 1) * golden)
        y = finalized(
            x + (np.arange(width, dtype=np.uint64) // np.uint64(2) + np.uint64(1)) * golden
        )
    is_odd = np.arange(width) % 2 == 1
    drawn = np.where(is_odd, y >> np.uint64(32), y & np.uint64(2**32 - 1))
    return drawn >= np.uint64(round(dropout * 2**32))


def masks_of(batch: Batch, key: int, width: int, dropout: float) -> Tensor:
    """Which inputs of a layer stay, (S, width), for packed rows."""
    order = batch.tokens.sorted_indices
    assert order is not None
    rows = [
        mask_of(key, int(order[rank]), time, width, dropout)
        for time, running in enumerate(batch.tokens.batch_sizes.tolist())
        for rank in range(running)
    ]
    return torch.from_numpy(np.stack(rows))


class Reference(nn.Module):
    """The classifier of a config, of torch.nn's modules, with the weights of another one."""

    def __init__(self, config: Config, model: RNNClassifier) -> None:
        super().__init__()
        self.config = config
        settings = config.model
        self.embedding = nn.Embedding(*model.embedding.weight.shape)
        self.embedding.load_state_dict(model.embedding.state_dict())
        directions = 2 if settings.bidirectional else 1
        layers = []
        weights = [weight.detach() for weight in model.rnn.parameters()]
        for layer in range(settings.num_layers):
            width = directions * settings.hidden_size if layer else settings.embedding_dim
            options: dict[str, Any] = {"bias": settings.bias, "bidirectional": directions == 2}
            if settings.cell == "rnn":
                options["nonlinearity"] = settings.nonlinearity
            layers.append(MODULES[settings.cell](width, settings.hidden_size, **options))
            for parameter in layers[-1].parameters():
                parameter.data = weights.pop(0).clone()
        assert not weights
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(model.head.in_features, model.head.out_features)
        self.head.load_state_dict(model.head.state_dict())

    def forward(self, batch: Batch, step: int) -> Tensor:
        """The loss of the step that follows `step` steps."""
        settings = self.config.model
        dropout = float(settings.dropout)
        tokens = batch.tokens
        data = self.embedding(tokens.data)
        final = data
        for layer, module in enumerate(self.layers):
            if layer > 0 and dropout > 0:
                key = mix(self.config.seed, "dropout", step, layer)
                stays = masks_of(batch, key, data.shape[1], dropout)
                data = data * stays * float(np.float32(1 / (1 - dropout)))
            packed, final = module(PackedSequence(data, tokens.batch_sizes))
            data = packed.data

        hidden = final[0] if settings.cell == "lstm" else final
        summary = hidden.transpose(0, 1).flatten(1)  # (B, D * H)
        padded, lengths = nn.utils.rnn.pad_packed_sequence(
            PackedSequence(data, tokens.batch_sizes), batch_first=True
        )
        if settings.pooling in ("mean", "last_mean_max"):
            mean = padded.sum(1) / lengths.unsqueeze(1)
        if settings.pooling in ("max", "last_mean_max"):
            behind = torch.arange(padded.shape[1]) >= lengths.unsqueeze(1)
            largest = padded.masked_fill(behind.unsqueeze(2), -torch.inf).amax(1)

        if settings.pooling == "mean":
            summary = mean
        elif settings.pooling == "max":
            summary = largest
        elif settings.pooling == "last_mean_max":
            summary = torch.cat([summary, mean, largest], 1)
        assert tokens.sorted_indices is not None
        logits = self.head(summary)
        return F.cross_entropy(logits, batch.labels[tokens.sorted_indices])


def compiled_gradients(
    config: Config, step: int
) -> tuple[float, list[Tensor], float, list[Tensor]]:
    """Loss and gradients of one step: compiled, and by the reference in float64."""
    task = load_task(config)
    state = new_state(task)
    # Other weights than the first ones, whose biases may be 0.
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))

    block = next(task.blocks(0, step + 1))
    reference = Reference(config, state.model).double()
    loss = reference(block.batch(step), step)
    loss.backward()

    state.step = step
    with ThreadPoolExecutor(1) as pool:
        run = CompiledRun(state, task, pool)
        assert run.take(block, np.full(block.num_steps, 1e-3), step, step + 1) == 1
    own_loss = state.totals.loss / state.totals.sequences
    own = [cast("Tensor", parameter.grad) for parameter in state.model.parameters()]
    expected = [cast("Tensor", parameter.grad) for parameter in reference.parameters()]
    return own_loss, own, float(loss.detach()), expected


def case_of(
    cell: str, layers: int, bidirectional: bool, bias: bool, dropout: float, **model: Any
) -> dict[str, Any]:
    return {
        "model": {
            "cell": cell,
            "num_layers": layers,
            "bidirectional": bidirectional,
            "bias": bias,
            "dropout": dropout,
            "hidden_size": 19,  # odd, so that a pair of columns is of both directions
            "nonlinearity": "tanh",
            **model,
        },
        "data": {"max_length": 9},
    }


def assert_gradients(case: dict[str, Any], **train: Any) -> None:
    """Assert that loss and gradients of a step are those of float64."""
    config = config_with("compiled", case, batch_size=12, max_grad_norm=None, **train)
    own_loss, own, loss, expected = compiled_gradients(config, step=1)
    assert own_loss == pytest.approx(loss, rel=1e-6)
    for gradient, other in zip(own, expected, strict=True):
        largest = float(other.abs().max())
        assert largest > 0
        assert float((gradient.double() - other).abs().max()) <= CLOSE * largest


# --- gradients


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_float64(cell: str) -> None:
    assert_gradients(case_of(cell, layers=3, bidirectional=True, bias=True, dropout=0.3))
    assert_gradients(case_of(cell, layers=1, bidirectional=False, bias=False, dropout=0.0))

    # All that the head can see.
    assert_gradients(case_of(cell, 1, True, True, 0.0, pooling="last_mean_max"))

    # More tokens than sequences, so that the first layer embeds tokens.
    case = case_of(cell, layers=2, bidirectional=False, bias=True, dropout=0.0)
    case["data"] = {"max_length": 9, "modulus": 40, "max_value": 50}
    assert_gradients(case)
    # But not if they are long enough.
    case["data"]["max_length"] = 80
    assert_gradients(case)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_all_kinds_are_those_of_float64(cell: str) -> None:
    poolings = ("last", "mean", "max", "last_mean_max")
    choices = product((1, 3), (False, True), (False, True), (0.0, 0.3), poolings)
    for layers, bidirectional, bias, dropout, pooling in choices:
        if layers == 1 and dropout:
            continue
        for data in ({}, {"modulus": 40, "max_value": 50}):
            case = case_of(cell, layers, bidirectional, bias, dropout, pooling=pooling)
            case["data"] |= data
            assert_gradients(case)


@pytest.mark.parametrize("dropout", [0.001, 0.5, 0.97])
def test_dropout_is_drawn_by_position(dropout: float) -> None:
    assert_gradients(case_of("gru", layers=2, bidirectional=False, bias=True, dropout=dropout))


# --- the first layer's products, once per token of the vocabulary


def is_by_table_of(
    tokens: int, batch_size: int, shortest: int, longest: int, step_rules: StepRules = LATEST
) -> bool:
    data = {"max_value": tokens - 1, "min_length": shortest, "max_length": longest}
    config = config_of(data=data, train={"batch_size": batch_size})
    return is_by_table(load_task(config), step_rules)


# Eight rows of a batch for each token are enough, or one sequence.
@pytest.mark.parametrize(
    ("shortest", "longest", "most"), [(2, 5, 64), (1, 15, 64), (9, 9, 72), (50, 300, 1400)]
)
def test_a_table_is_for_few_tokens_and_for_all_that_had_one_before(
    shortest: int, longest: int, most: int
) -> None:
    most_by_rules: dict[StepRules, int] = {1: 64, 2: 64, 3: most}
    for step_rules, limit in most_by_rules.items():
        for tokens in (limit - 20, limit):
            assert is_by_table_of(tokens, 64, shortest, longest, step_rules)
        for tokens in (limit + 1, 2 * limit):
            assert not is_by_table_of(tokens, 64, shortest, longest, step_rules)


def test_a_table_is_chosen_by_the_sequences_that_are_trained_on(tmp_path: Path) -> None:
    train = [(list(range(30)), 0), ([*range(30, 39), 0], 1)]  # 39 tokens, mean length 20
    long = write_jsonl(tmp_path / "long.jsonl", [(list(range(39)) * 50, 0)])
    path = write_jsonl(tmp_path / "train.jsonl", train * 50)

    def chosen(batch_size: int, **data: Any) -> bool:
        config = files_config(path, {"batch_size": batch_size}, **data)
        return is_by_table(load_task(config))

    none_held_out: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
    num_tokens, _ = load_task(files_config(path, **none_held_out)).sizes
    enough = -(-num_tokens * 8 // 20)
    other_splits: list[dict[str, Any]] = [{}, {"val": str(long)}, {"test": str(long)}]
    for own_files in other_splits:
        assert chosen(enough, **none_held_out, **own_files)
        assert not chosen(enough - 1, **none_held_out, **own_files)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_a_run_goes_on_by_the_table_or_without_as_it_began(cell: str, tmp_path: Path) -> None:
    case: dict[str, Any] = {
        "model": {"cell": cell, "nonlinearity": "tanh"},
        "data": {"max_length": 60, "modulus": 40, "max_value": 50},
    }
    config = config_with(
        "compiled", case, batch_size=16, max_steps=60, checkpoint_every=20, keep_checkpoints=3
    )
    rules: tuple[StepRules, ...] = (2, 3)
    with stop_requests() as stop:
        for step_rules in rules:
            run_dir = tmp_path / str(step_rules)
            shared = Shared(stop, report_steps=lambda _: None, step_rules=step_rules)
            fit(config, run_dir, shared=shared)

            copy = tmp_path / f"copy-{step_rules}"
            shutil.copytree(run_dir, copy)
            for step in (40, 60):
                (copy / "checkpoints" / f"step-{step:08}.safetensors").unlink()
            assert resume(copy).step_rules == step_rules
            assert outcome(copy) == outcome(run_dir)

    # A run that begins now has the latest rules. The two differ by rounding.
    fit(config, tmp_path / "new")
    assert outcome(tmp_path / "new") == outcome(tmp_path / "3") != outcome(tmp_path / "2")
    before, now = ([row["train/loss"] for row in outcome(tmp_path / name)[1]] for name in "23")
    assert before == pytest.approx(now, rel=1e-4)


# --- losses of many steps


def reference_losses(config: Config) -> list[float]:
    """The losses of a run by the reference, in float32."""
    task = load_task(config)
    state = new_state(task)
    reference = Reference(config, state.model)
    # Without weight decay, so that there is no second implementation of it.
    optimizer = torch.optim.AdamW(
        reference.parameters(), betas=config.optimizer.betas, eps=config.optimizer.eps
    )
    values = []
    for step, batch in enumerate(task.batches(0, task.max_steps)):
        lr = learning_rate(step, task.max_steps, config.optimizer.lr, config.schedule)
        optimizer.param_groups[0] |= {"lr": lr, "weight_decay": 0.0}
        optimizer.zero_grad()
        loss = reference(batch, step)
        loss.backward()
        assert config.train.max_grad_norm is not None
        nn.utils.clip_grad_norm_(reference.parameters(), config.train.max_grad_norm)
        optimizer.step()
        values.append(float(loss.detach()))
    return values


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("layers", "dropout"), [(1, 0.0), (3, 0.0), (3, 0.3)])
def test_losses_of_100_steps_are_those_of_the_reference(
    cell: str, bidirectional: bool, layers: int, dropout: float, tmp_path: Path
) -> None:
    # Half of the biases: the test of gradients has them all.
    bias = bidirectional == (layers == 1 or dropout > 0)
    case = case_of(cell, layers, bidirectional, bias, dropout)
    case["optimizer"] = {"name": "adamw", "weight_decay": 0.0, "lr": 1e-3}
    config = config_with("compiled", case, batch_size=16, max_steps=100)
    own = losses(config, tmp_path)
    assert len(own) == 100
    assert own == pytest.approx(reference_losses(config), rel=1e-5)


# --- cuts, threads, sweeps


HARD: dict[str, Any] = {
    "model": {"num_layers": 2, "bidirectional": True, "dropout": 0.4},
    "data": {"max_length": 9},
}


def hard(cell: str) -> dict[str, Any]:
    return {**HARD, "model": {**HARD["model"], "cell": cell}}


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_steps_do_not_depend_on_how_they_are_cut(
    cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with("compiled", hard(cell), max_steps=90, log_every=30, eval_every=40)
    fit(config, tmp_path / "whole")
    for name, seconds in (("single", 0.0), ("large", 10.0)):
        monkeypatch.setattr(chunks, "CHUNK_SECONDS", seconds)
        fit(config, tmp_path / name)
        assert outcome(tmp_path / name) == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_two_threads_drop_the_same_and_give_the_same_bits_every_time(
    cell: str, tmp_path: Path
) -> None:
    losses_by_run = []
    try:
        for name in ("one", "two", "again"):
            threads = 1 if name == "one" else 2
            config = config_with("compiled", hard(cell), num_threads=threads, max_steps=30)
            losses_by_run.append(losses(config, tmp_path / name))
    finally:
        torch.set_num_threads(1)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "again")
    # Another mask would change the first digits.
    assert losses_by_run[1] == pytest.approx(losses_by_run[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_members_of_a_sweep_have_the_bits_of_single_runs(cell: str, tmp_path: Path) -> None:
    config = config_with("compiled", hard(cell), max_steps=30, log_every=10)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    words: list[str | Path] = ["-c", tmp_path / "config.yaml", "--seeds", "1-2", "--lengths", "1-2"]
    done = run_rnncls("sweep", *words, "--samples", "20", "--sweep-dir", tmp_path / "sweep")
    assert done.returncode == 0, done.stderr
    for seed in (1, 2):
        fit(config.model_copy(update={"seed": seed}), tmp_path / str(seed))
        member = tmp_path / "sweep" / "members" / f"seed={seed}"
        assert outcome(member) == outcome(tmp_path / str(seed))


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_a_step_that_is_not_finite_is_left_to_the_eager_one(cell: str) -> None:
    config = config_with("compiled", hard(cell), max_skipped_steps=3)
    state: TrainState = new_state(load_task(config))
    state.model.embedding.weight.data[0] = float("nan")
    before = [weight.clone() for weight in state.model.parameters()]
    engine, how = choose(config, torch.device("cpu"))
    assert how == "compiled steps"
    taken = engine(state, load_task(config))
    assert [next(taken) for _ in range(3)] == [1, 1, 1]
    assert (state.skipped, state.totals.steps) == (3, 0)
    for weight, old in zip(state.model.parameters(), before, strict=True):
        torch.testing.assert_close(weight.data, old, rtol=0, atol=0, equal_nan=True)
