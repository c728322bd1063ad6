"""Training: golden losses, reproducibility, when it stops, and what it keeps."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rnncls.config import Config
from rnncls.data import batches, load_task
from rnncls.errors import ConfigError, NonFiniteError, WriteError
from rnncls.evaluation.evaluate import evaluate
from rnncls.model.build import build_model
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.steps import train_step
from rnncls.steps.optim import build_optimizer
from rnncls.steps.state import TrainState
from rnncls.training.fit import fit
from rnncls.training.progress import note_score
from tests.golden_losses import GOLDEN_CASES, STEPS, first_losses, golden_losses
from tests.helpers import config_of, data_of

# Enough to learn SMALL's 120 sequences by heart, in a second.
LEARNS: dict[str, Any] = {
    "model": {"hidden_size": 64, "init_gain": 1.0},
    "optimizer": {"lr": 5e-3, "weight_decay": 0.0},
    "train": {"max_steps": 400, "batch_size": 32},
}


def state_of(config: Config) -> TrainState:
    model = build_model(config)
    return TrainState(model, build_optimizer(model.parameters(), config.optimizer))


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_the_first_losses_are_the_golden_ones(case: str) -> None:
    golden = golden_losses(case)
    assert len(golden) == STEPS
    assert first_losses(case) == pytest.approx(golden, rel=1e-4)


def test_the_first_loss_is_that_of_a_hand_made_step() -> None:
    """The step is made without the package's own.

    It takes plain modules, padded rows, an explicit loop over time, plain autograd and SGD.
    """
    config = config_of(
        optimizer={"name": "sgd", "lr": 0.5, "weight_decay": 0.0},
        schedule={"warmup_steps": 0, "name": "constant"},
        train={"max_grad_norm": 0.1},
    )
    state = state_of(config)
    weights = {
        name: value.clone().requires_grad_() for name, value in state.model.state_dict().items()
    }
    batch = next(batches(data_of(config), config.seed, "train", 8, 0, 1))
    padded, lengths = torch.nn.utils.rnn.pad_packed_sequence(batch.tokens, batch_first=True)
    h = torch.zeros(8, 16)
    for t in range(padded.shape[1]):
        x = weights["embedding.weight"][padded[:, t]]
        z = x @ weights["rnn.weight_ih_l0"].T + h @ weights["rnn.weight_hh_l0"].T
        new = torch.relu(z + weights["rnn.bias_ih_l0"] + weights["rnn.bias_hh_l0"])
        h = torch.where((t < lengths).unsqueeze(1), new, h)
    logits = h @ weights["head.weight"].T + weights["head.bias"]
    loss = -logits.log_softmax(1)[torch.arange(8), batch.labels].mean()
    gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))

    train_step(state, batch, load_task(config))

    assert state.totals.loss / 8 == pytest.approx(loss.item(), rel=1e-5)
    assert state.totals.grad_norm == pytest.approx(norm, rel=1e-5)
    assert norm > 0.1
    for name, value in state.model.state_dict().items():
        expected = weights[name].detach() - 0.5 * gradients[name] * (0.1 / norm)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_every_parameter_moves_in_one_step(nonlinearity: str, bidirectional: bool) -> None:
    model = {
        "num_layers": 2,
        "nonlinearity": nonlinearity,
        "bidirectional": bidirectional,
        "init_gain": 1.0,
    }
    config = config_of(model=model, optimizer={"weight_decay": 0.0})
    state = state_of(config)
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    train_step(state, next(batches(data_of(config), 0, "train", 64, 0, 1)), load_task(config))
    unmoved = [
        name for name, value in state.model.state_dict().items() if torch.equal(value, before[name])
    ]
    assert unmoved == []
    assert state.step == 1


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tmp_path: Path) -> None:
    dropout = {"num_layers": 2, "dropout": 0.3, "bidirectional": True}
    runs: dict[str, tuple[list[Any], dict[str, Tensor]]] = {}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        torch.manual_seed(len(runs))  # what happened before in the process must not matter
        state = fit(config_of(model=dropout, seed=seed), tmp_path / name)
        losses = [
            (line["step"], line["train/loss"], line.get("val/loss"))
            for line in lines_of(tmp_path / name)
        ]
        runs[name] = (losses, state.model.state_dict())
    assert runs["a"][0] == runs["b"][0] != runs["c"][0]
    assert all(torch.equal(value, runs["b"][1][name]) for name, value in runs["a"][1].items())


@pytest.mark.row("K20")
def test_evaluation_and_logging_cadence_do_not_change_the_run(tmp_path: Path) -> None:
    dropout = {"num_layers": 2, "dropout": 0.3}
    finals = [
        fit(
            config_of(model=dropout, train={"eval_every": every, "log_every": every}),
            tmp_path / str(every),
        ).model
        for every in (1, 7, 40)
    ]
    for other in finals[1:]:
        for one, two in zip(finals[0].parameters(), other.parameters(), strict=True):
            assert torch.equal(one, two)


def test_it_learns(tmp_path: Path) -> None:
    config = config_of(**LEARNS)
    state = fit(config, tmp_path / "run")
    assert evaluate(state.model, config).errors == 0


@pytest.mark.row("R12")
def test_a_non_finite_loss_stops_before_the_optimizer_step() -> None:
    config = config_of()
    state = state_of(config)
    stream = batches(data_of(config), 0, "train", 8, 0, 3)
    train_step(state, next(stream), load_task(config))
    with torch.no_grad():
        state.model.head.bias[0] = torch.nan

    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    moments = {key: value["exp_avg"].clone() for key, value in state.optimizer.state.items()}
    with pytest.raises(NonFiniteError, match="step 2") as caught:
        train_step(state, next(stream), load_task(config))
    assert caught.value.exit_code == 7
    assert "loss nan" in caught.value.render()
    assert state.step == 1
    assert all(
        torch.equal(value, before[name])
        for name, value in state.model.state_dict().items()
        if name != "head.bias"
    )
    assert all(
        torch.equal(state.optimizer.state[key]["exp_avg"], value) for key, value in moments.items()
    )


def test_an_infinite_gradient_with_a_finite_loss_stops_too() -> None:
    config = config_of(model={"hidden_size": 4}, train={"max_grad_norm": None})
    state = state_of(config)
    weight: Any = state.model.head.weight
    weight.register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NonFiniteError, match="step 1"):
        train_step(state, next(batches(data_of(config), 0, "train", 8, 0, 1)), load_task(config))


@pytest.mark.parametrize(
    ("limit", "remedy"), [(None, "1"), (5.0, "1"), (1.0, "0.1"), (0.1, "0.01")]
)
def test_what_helps_against_nan_is_not_what_is_set_already(
    limit: float | None, remedy: str
) -> None:
    config = config_of(
        model={"hidden_size": 4},
        optimizer={"lr": 0.5},
        schedule={"warmup_steps": 100},
        train={"max_grad_norm": limit},
    )
    state = state_of(config)
    state.model.head.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteError) as caught:
        train_step(state, next(batches(data_of(config), 0, "train", 8, 0, 1)), load_task(config))
    (problem,) = caught.value.problems
    assert problem.remedy == (
        f"optimizer.lr=0.05, or schedule.warmup_steps=200, or train.max_grad_norm={remedy}"
    )


def test_a_run_that_diverges_keeps_its_metrics_and_its_last_checkpoint(tmp_path: Path) -> None:
    config = config_of(
        optimizer={"name": "sgd", "lr": 1e30, "weight_decay": 0.0},
        schedule={"warmup_steps": 30, "name": "constant"},
        train={"max_grad_norm": None, "checkpoint_every": 1, "log_every": 1},
    )
    with pytest.raises(NonFiniteError):
        fit(config, tmp_path / "run")
    steps = [line["step"] for line in lines_of(tmp_path / "run")]
    assert steps == list(range(1, len(steps) + 1))
    assert (tmp_path / "run" / "checkpoints" / f"step-{steps[-1]:08d}.safetensors").exists()


def test_the_best_evaluation_is_saved_at_once_whatever_the_cadence(tmp_path: Path) -> None:
    config = config_of(
        optimizer={"name": "sgd", "lr": 1e3, "weight_decay": 0.0},
        schedule={"warmup_steps": 30, "name": "constant"},
        train={"max_grad_norm": None, "checkpoint_every": 1000, "eval_every": 1},
    )
    with pytest.raises(NonFiniteError):
        fit(config, tmp_path / "run")
    accuracies = {line["step"]: line["val/accuracy"] for line in lines_of(tmp_path / "run")}
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.safetensors")
    finite = {line["step"] for line in lines_of(tmp_path / "run") if line["val/loss"] is not None}
    highest = max(accuracies[step] for step in finite)
    assert best.state.step == max(step for step in finite if accuracies[step] == highest)
    assert best.state.counters["best_accuracy"] == highest


@pytest.mark.row("C18")
def test_zero_steps_evaluate_and_save_the_initial_model(tmp_path: Path) -> None:
    state = fit(config_of(train={"max_steps": 0}), tmp_path / "run")
    (line,) = lines_of(tmp_path / "run")
    assert line["step"] == state.step == 0
    assert line["val/loss"] == pytest.approx(math.log(3), abs=0.3)
    assert "train/loss" not in line
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert files == ["best.safetensors", "step-00000000.safetensors"]


def test_it_stops_at_an_accuracy(tmp_path: Path) -> None:
    train = {
        **LEARNS["train"],
        "max_steps": 2000,
        "eval_every": 50,
        "log_every": 1000,
        "stop_at_accuracy": 1.0,
    }
    state = fit(config_of(**{**LEARNS, "train": train}), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert state.step == lines[-1]["step"] < 2000
    assert [line["val/accuracy"] == 1.0 for line in lines] == [False] * (len(lines) - 1) + [True]
    assert "train/loss" in lines[-1]
    assert (tmp_path / "run" / "checkpoints" / f"step-{state.step:08d}.safetensors").exists()


def test_it_stops_without_progress(tmp_path: Path) -> None:
    train = {"max_steps": 1000, "eval_every": 10, "patience": 3}
    state = fit(
        config_of(optimizer={"lr": 1e-12}, schedule={"min_lr": 0.0}, train=train), tmp_path / "run"
    )
    assert state.step == 40  # the first evaluation sets the mark, three more do not beat it


@pytest.mark.row("R14")
def test_the_best_is_the_latest_of_the_most_accurate_and_never_one_with_a_nan_loss() -> None:
    state = state_of(config_of())
    history = [(0.5, 1.0), (0.7, 1.0), (0.7, 2.0), (0.6, 0.1), (0.9, math.nan), (0.8, 1.0)]
    best = []
    for step, (accuracy, loss) in enumerate(history):
        state.step = step
        note_score(state, {"val/accuracy": accuracy, "val/loss": loss}, "accuracy")
        best.append((state.best_step, state.stale_evaluations))
    assert best == [(0, 0), (1, 0), (2, 1), (2, 2), (2, 3), (5, 0)]


@pytest.mark.row("C19")
def test_a_used_run_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="not empty"):
        fit(config_of(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_run_directory_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError) as caught:
        fit(config_of(), tmp_path / "file" / "run")
    assert caught.value.exit_code == 6


def test_checkpoints_kept_are_the_best_and_the_newest(tmp_path: Path) -> None:
    train = {"checkpoint_every": 10, "keep_checkpoints": 2, "max_steps": 50}
    fit(config_of(train=train), tmp_path / "run")
    files = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert files == ["best.safetensors", "step-00000040.safetensors", "step-00000050.safetensors"]
