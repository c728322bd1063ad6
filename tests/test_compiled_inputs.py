"""Compiled steps of what models read and see beside embeddings and states, and of no recurrence.

N-grams, positions, the skip and dropout outside the recurrence: gradients are those of the model
itself in float64, which test_model.py and its neighbours compare with references of their own.
Another mask of dropout, or another row of the table, would change their first digits.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls.config import Config
from rnncls.config.load import parse_config
from rnncls.data import load_task
from rnncls.errors import Interrupted
from rnncls.steps import chunks
from rnncls.steps.compiled.engine import CompiledRun
from rnncls.steps.compiled.memory import StepInputs
from rnncls.steps.eager import draw_keys, train_step
from rnncls.steps.engines import choose, why_not
from rnncls.steps.optim import learning_rate
from rnncls.steps.state import TrainState
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.states import new_state
from tests.helpers import files_config, losses, outcome, some_rows, write_jsonl
from tests.test_steps import stop_after

CELLS = ("rnn", "gru", "lstm", "none")
REST = ("gru", "none")
slow = pytest.mark.slow
CPU = torch.device("cpu")

# The largest error of a gradient, relative to the largest number of its tensor.
CLOSE = 5e-6

# Everything at once. The table is small, so that n-grams share rows, and sizes are multiples of
# nothing.
ALL: dict[str, Any] = {
    "ngrams": [2, 3, 5],
    "ngram_table": 40,
    "positions": "learned",
    "skip": True,
    "embedding_dropout": 0.2,
    "ngram_dropout": 0.3,
    "head_dropout": 0.4,
    "pooling": "last_mean_max",
}

ONE_BY_ONE: list[dict[str, Any]] = [
    {"ngrams": [2], "ngram_table": 40},
    {"ngrams": [2, 4], "ngram_table": 7, "ngram_dropout": 0.5},
    {"positions": "learned"},
    {"skip": True},
    {"skip": True, "head_dropout": 0.5},
    {"embedding_dropout": 0.3},
    {"head_dropout": 0.3},
]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = some_rows(200, longest=12)
    return write_jsonl(tmp_path_factory.mktemp("data") / "rows.jsonl", rows)


def config_for(
    path: Path,
    model: dict[str, Any],
    engine: str = "compiled",
    train: dict[str, Any] | None = None,
    optimizer: dict[str, Any] | None = None,
    **data: Any,
) -> Config:
    """A config of 12 steps of 16 sequences; `data` are keys of its section."""
    steps = {"max_steps": 12, "batch_size": 16, "log_every": 1, "eval_every": 100}
    config = files_config(
        path,
        {**steps, "checkpoint_every": 100, **(train or {}), "engine": engine},
        **{"max_length": 12, "min_count": 2, "batching": "bucket", **data},
    )
    settings = config.model_dump(mode="json")
    settings["model"] |= {"embedding_dim": 7, "hidden_size": 9, **model}
    settings["optimizer"] |= optimizer or {}
    return parse_config(settings, "test")


def state_of(config: Config) -> TrainState:
    """The first state of a run, with weights of which none is 0."""
    state = new_state(load_task(config))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return state


def expected_gradients(state: TrainState, config: Config, step: int) -> tuple[float, list[Tensor]]:
    """Loss and gradients, in float64, of the step that follows `step` steps."""
    state.step = step
    block = next(load_task(config).blocks(0, step + 1))
    batch = block.batch(step)
    model = copy.deepcopy(state.model).double().train()
    loss = F.cross_entropy(model(batch.tokens, keys=draw_keys(state, config)), batch.labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return float(loss.detach()), [cast("Tensor", weight.grad) for weight in model.parameters()]


def assert_close(gradients: list[Tensor], expected: list[Tensor]) -> None:
    for gradient, other in zip(gradients, expected, strict=True):
        largest = float(other.abs().max())
        assert largest > 0
        assert float((gradient.double() - other).abs().max()) <= CLOSE * largest


def assert_gradients(config: Config) -> None:
    """Assert that loss and gradients of the third step are those of float64.

    Before it the program takes two steps at rate 0, whose gradients are to be gone.
    """
    task = load_task(config)
    state = state_of(config)
    loss, expected = expected_gradients(state, config, step=2)

    block = next(task.blocks(0, 3))
    state.step = 0
    with ThreadPoolExecutor(1) as pool:
        run = CompiledRun(state, task, pool)
        rates = np.zeros(block.num_steps)
        assert run.take(block, rates, 0, 2) == 2
        state.step = 2
        before = state.totals.loss, state.totals.sequences
        assert run.take(block, rates, 2, 3) == 1
    own = (state.totals.loss - before[0]) / (state.totals.sequences - before[1])
    assert own == pytest.approx(loss, rel=1e-6)
    assert_close([cast("Tensor", weight.grad) for weight in state.model.parameters()], expected)


def unclipped(path: Path, model: dict[str, Any], **data: Any) -> Config:
    return config_for(path, model, train={"max_grad_norm": None}, **data)


# --- gradients


# To compile a program takes as long as all these tests together: two of them stand for all.
@pytest.mark.parametrize("cell", [*(pytest.param(c, marks=slow) for c in ("rnn", "lstm")), *REST])
def test_gradients_are_those_of_the_model(path: Path, cell: str) -> None:
    assert_gradients(unclipped(path, {**ALL, "cell": cell}, token_dropout=0.2))
    for model in ONE_BY_ONE:
        assert_gradients(unclipped(path, {**model, "cell": cell}))

    # Tokens alone, of which some are dropped: by the table of the first layer's products.
    assert_gradients(unclipped(path, {"cell": cell}, token_dropout=0.3))


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_all_kinds_are_those_of_the_model(path: Path, cell: str) -> None:
    poolings = ("last", "mean", "max", "last_mean_max")
    choices = product((1, 3), (False, True), (0.0, 0.3), poolings, [*ONE_BY_ONE, ALL])
    for number, (layers, bidirectional, dropout, pooling, model) in enumerate(choices):
        if layers == 1 and dropout:
            continue
        # In turns, beside each model and each pooling.
        token_dropout = (0.0, 0.2)[(number + number // 8) % 2]
        options = {
            **model,
            "cell": cell,
            "num_layers": layers,
            "bidirectional": bidirectional,
            "dropout": dropout,
            "pooling": pooling,
        }
        assert_gradients(unclipped(path, options, token_dropout=token_dropout))


def test_n_grams_with_a_known_first_token(path: Path) -> None:
    """Where unknown tokens are an error, the token of their number is one like any other."""
    assert_gradients(unclipped(path, ONE_BY_ONE[0], unknown="error", min_count=1))


# --- updates


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "adamw", "weight_decay": 0.1},
        {"name": "adam", "weight_decay": 0.1},
        {"name": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    ],
    ids=lambda optimizer: optimizer["name"],
)
def test_the_table_is_updated_as_a_whole(path: Path, optimizer: dict[str, Any]) -> None:
    """Also its rows without a gradient, which have moments and decay."""
    weights = []
    for engine in ("eager", "compiled"):
        # A large table, of which a step touches little.
        model = {**ALL, "ngram_table": 3000}
        config = config_for(path, model, engine, {"max_grad_norm": 0.1}, optimizer)
        state = state_of(config)
        for _ in choose(config, CPU)[0](state, load_task(config)):
            pass
        weights.append(list(state.model.parameters()))
    for own, other in zip(weights[1], weights[0], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=2e-6)


def test_eager_steps_between_compiled_ones(path: Path) -> None:
    """They have gradients of their own, and the program goes on as if they were its own."""
    weights = []
    for engines in ("eee", "cec"):
        # An update of SGD is as exact as its gradient.
        optimizer = {"name": "sgd", "momentum": 0.9, "lr": 0.1}
        config = config_for(path, ALL, optimizer=optimizer)
        task = load_task(config)
        state = state_of(config)
        block = next(task.blocks(0, 3))
        with ThreadPoolExecutor(1) as pool:
            run = CompiledRun(state, task, pool)
            for step, engine in enumerate(engines):
                if engine == "e":
                    train_step(state, block.batch(step), task)
                else:
                    rates = np.array([learning_rate(n, 12, 0.1, config.schedule) for n in range(3)])
                    assert run.take(block, rates, step, step + 1) == 1
                    state.step += 1
        weights.append([weight.detach().clone() for weight in state.model.parameters()])
    for own, other in zip(weights[1], weights[0], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-6)


# --- cuts, threads, processes


def compiled_shares(run: CompiledRun, inputs: StepInputs, step: int, of: int) -> list[Tensor]:
    """The sum of the gradients of all shares of a step."""
    total = np.zeros_like(run.arrays.gradients)
    for share in range(of):
        run.functions.share_of_step(
            sizes=run.sizes,
            weights=run.arrays.weights,
            out=run.arrays.gradients,
            step_inputs=inputs,
            step=step,
            share=share,
            shares=of,
            class_weights=run.class_weights,
            buffers=run.buffers[0],
        )
        total += run.arrays.gradients
    sizes = [parameter.numel() for parameter in run.state.model.parameters()]
    return list(torch.split(torch.from_numpy(total), sizes))


@pytest.mark.slow  # the program in two halves is another one
@pytest.mark.parametrize("cell", ["gru", "none"])
def test_the_shares_of_a_step_add_up_to_it(path: Path, cell: str) -> None:
    config = unclipped(path, {**ALL, "cell": cell}, token_dropout=0.2)
    task = load_task(config)
    state = state_of(config)
    _, expected = expected_gradients(state, config, step=1)
    block = next(task.blocks(0, 2))
    state.step = 0
    with ThreadPoolExecutor(1) as pool:
        run = CompiledRun(state, task, pool)
        run._open(block, np.zeros(block.num_steps))
        inputs = run.inputs._replace(
            keys=run._dropout_keys(block.num_steps), input_keys=run._input_keys(block.num_steps)
        )
        # More than there are sequences, so that some have none.
        for of in (1, 3, 20):
            shares = compiled_shares(run, inputs, 1, of)
            assert_close([s.view_as(e) for s, e in zip(shares, expected, strict=True)], expected)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["gru", "none"])
def test_two_threads_drop_the_same_and_give_the_same_bits_every_time(
    path: Path, cell: str, tmp_path: Path
) -> None:
    losses_by_run = []
    try:
        for name in ("one", "two", "again"):
            train = {"num_threads": 1 if name == "one" else 2, "max_steps": 30}
            config = config_for(path, {**ALL, "cell": cell}, train=train, token_dropout=0.2)
            losses_by_run.append(losses(config, tmp_path / name))
    finally:
        torch.set_num_threads(1)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "again")
    assert losses_by_run[1] == pytest.approx(losses_by_run[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_steps_do_not_depend_on_how_they_are_cut(
    path: Path, cell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"max_steps": 90, "log_every": 30, "eval_every": 40, "checkpoint_every": 30}
    config = config_for(path, {**ALL, "cell": cell}, train=train, token_dropout=0.2)
    fit(config, tmp_path / "whole")
    for name, seconds in (("single", 0.0), ("large", 10.0)):
        monkeypatch.setattr(chunks, "CHUNK_SECONDS", seconds)
        fit(config, tmp_path / name)
        assert outcome(tmp_path / name) == outcome(tmp_path / "whole")

    with monkeypatch.context() as patch:
        stop_after(patch, 47)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "stopped")
    resume(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")


# --- who takes them


def test_compiled_steps_are_chosen_for_all_of_it(path: Path) -> None:
    for cell in CELLS:
        config = config_for(path, {**ALL, "cell": cell}, token_dropout=0.2)
        assert why_not("compiled", config, CPU) == ""
        assert why_not("captured", config, torch.device("cuda")) != ""

    # Without recurrence there are no states, however wide.
    wide = config_for(path, {"cell": "none", "hidden_size": 2000}, engine="auto")
    assert why_not("compiled", wide, CPU) == ""
