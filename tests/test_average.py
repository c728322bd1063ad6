"""The average of the weights: what it is, and that it is what a run evaluates and predicts with."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rnncls
from rnncls.config import Config
from rnncls.config.load import parse_config
from rnncls.data import load_task
from rnncls.errors import CheckpointError, ConfigError, Interrupted, MachineError, NonFiniteError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint, find_newest, load_checkpoint, step_files
from rnncls.rundir.restore import fitting_weights, is_finite
from rnncls.steps import eager
from rnncls.steps.average import kept_share
from rnncls.steps.engines import choose
from rnncls.steps.state import TrainState
from rnncls.system.device import resolve_device
from rnncls.training.fit import fit
from rnncls.training.progress import validate, way_of_validation
from rnncls.training.resume import resume
from rnncls.training.states import new_state, restored_state
from tests.helpers import (
    PYTHON,
    change_checkpoint,
    config_of,
    copy_of_run,
    files_config,
    outcome,
    run_command,
    run_rnncls,
    some_rows,
    stop_at,
    variant_of,
    write_jsonl,
)

row = pytest.mark.row

Weights = dict[str, np.ndarray[Any, Any]]


def averaging(decay: float = 0.9, **sections: Any) -> Config:
    """Return a small config that averages its weights."""
    train = {"average_weights": decay, "log_every": 1, **sections.pop("train", {})}
    return config_of(train=train, **sections)


def weights_of(model: torch.nn.Module) -> Weights:
    return {name: value.numpy().copy() for name, value in model.state_dict().items()}


def recording(patch: pytest.MonkeyPatch, spoiled: tuple[int, ...] = ()) -> list[Weights]:
    """Have the weights after each update recorded, behind those before the first step.

    In the steps `spoiled` a weight is NaN, so that they are skipped.
    """
    recorded: list[Weights] = []
    original = eager.train_step

    def stepping(state: TrainState, *arguments: Any) -> None:
        if not recorded:
            recorded.append(weights_of(state.model))
        bias = state.model.head.bias
        kept = bias.detach().clone()
        is_spoiled = state.step in spoiled
        if is_spoiled:
            bias.data[0] = float("nan")
        original(state, *arguments)
        if is_spoiled:
            bias.data.copy_(kept)
        else:
            recorded.append(weights_of(state.model))

    patch.setattr(eager, "train_step", stepping)
    return recorded


def reference(recorded: list[Weights], decay: float) -> Weights:
    """Return the average of recorded weights in float64: TensorFlow's rule with num_updates."""
    average = {name: value.astype(np.float64) for name, value in recorded[0].items()}
    for updates, weights in enumerate(recorded[1:], start=1):
        share = min(decay, (1 + updates) / (10 + updates))
        for name, value in weights.items():
            average[name] = share * average[name] + (1 - share) * value
    return average


# --- what it is


@pytest.mark.parametrize("decay", [0.05, 0.9, 0.9999])
@pytest.mark.parametrize("optimizer", [{}, {"name": "sgd", "lr": 0.1}])
def test_the_average_is_that_of_an_independent_recurrence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decay: float, optimizer: dict[str, Any]
) -> None:
    recorded = recording(monkeypatch)
    state = fit(averaging(decay, optimizer=optimizer), tmp_path / "run")
    assert len(recorded) == 41
    assert state.average is not None
    for name, expected in reference(recorded, decay).items():
        found = state.average.state_dict()[name].numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6, err_msg=name)
        assert not np.array_equal(found, recorded[-1][name])
    # What is trained is the weights themselves.
    for name, weight in weights_of(state.model).items():
        assert np.array_equal(weight, recorded[-1][name])


def test_skipped_steps_do_not_move_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = recording(monkeypatch, spoiled=(0, 7, 8))
    state = fit(averaging(train={"max_skipped_steps": 2, "max_steps": 20}), tmp_path / "run")
    assert state.averaged == 17
    assert len(recorded) == 18
    assert state.average is not None
    for name, expected in reference(recorded, 0.9).items():
        found = state.average.state_dict()[name].numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-6, err_msg=name)


def test_the_first_weights_are_soon_forgotten() -> None:
    shares = [kept_share(0.999, updates) for updates in range(1, 20_000)]
    assert shares[0] == 2 / 11
    assert shares == sorted(shares)
    assert shares[-1] == 0.999
    assert kept_share(0.1, 1) == 0.1


# An average does not see how gradients come about: one run for each shape of what it has a copy of.
@pytest.mark.parametrize("name", ["learned", "prefix"])
def test_training_itself_is_as_without(tmp_path: Path, name: str) -> None:
    without = fit(variant_of(name), tmp_path / "without")
    average = {"average_weights": 0.5, "diagnostics_every": 6, "histogram_every": 6}
    state = fit(variant_of(name, train=average), tmp_path / "with")
    for key, value in without.model.state_dict().items():
        assert torch.equal(state.model.state_dict()[key], value), key
    assert outcome(tmp_path / "with")[0].keys() > outcome(tmp_path / "without")[0].keys()
    for key, tensor in outcome(tmp_path / "without")[0].items():
        assert outcome(tmp_path / "with")[0][key] == tensor, key
    assert "averaged" not in read_checkpoint(find_newest(tmp_path / "without")).state.counters


@pytest.mark.parametrize("decay", [0, 1, -0.5, 1.5])
def test_a_share_that_is_none_is_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match="average_weights"):
        averaging(decay)


# --- it is what is evaluated and predicted with


@pytest.fixture
def of_files(tmp_path: Path) -> Config:
    """A config whose validation file is its test file, too."""
    rows = some_rows(150)
    held_out = write_jsonl(tmp_path / "held_out.jsonl", some_rows(60, seed=1))
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    train = {"average_weights": 0.9, "log_every": 7}
    return files_config(path, train=train, val=str(held_out), test=str(held_out))


def logged(run_dir: Path) -> dict[int, dict[str, float]]:
    """Return what a run has logged of each evaluation, by step."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row for row in rows if row.get("val/loss") is not None}


def test_eval_says_what_the_run_has_logged(tmp_path: Path, of_files: Config) -> None:
    fit(of_files, tmp_path / "run")
    of_run = logged(tmp_path / "run")
    assert len(of_run) == 4
    for path in step_files(tmp_path / "run" / "checkpoints"):
        checkpoint, model = load_checkpoint(path)
        if checkpoint.state.step not in of_run:
            continue
        state = restored_state(checkpoint, load_task(of_files))
        way = way_of_validation(state, load_task(of_files))
        found = validate(model, load_task(of_files), load_task(of_files).validation(), way)
        assert found.scalars["val/loss"] == of_run[checkpoint.state.step]["val/loss"]

        # The weights themselves give something else.
        without = validate(state.model, load_task(of_files), load_task(of_files).validation())
        assert without.scalars["val/loss"] != found.scalars["val/loss"]

    done = run_rnncls("eval", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    best = of_run[read_checkpoint(find_checkpoint(tmp_path / "run")).state.step]
    assert report["accuracy"] == pytest.approx(best["val/accuracy"], abs=1e-12)
    assert report["loss"] == pytest.approx(best["val/loss"], rel=1e-6)


def test_all_that_loads_a_model_gets_the_average(tmp_path: Path, of_files: Config) -> None:
    state = fit(of_files, tmp_path / "run")
    newest = find_newest(tmp_path / "run")
    average = read_checkpoint(newest).average
    assert state.average is not None
    assert state.evaluated is state.average
    for name, weight in rnncls.load(newest).network.state_dict().items():
        assert torch.equal(weight, average[name])
        assert torch.equal(weight, state.average.state_dict()[name])
    commands: list[list[str | Path]] = [["predict", newest], ["explain", newest, "1 2 3"]]
    commands.append(["model", "show", newest])
    for words in commands:
        done = run_rnncls(*words, input="1 2 3\n")
        assert done.returncode == 0, done.stderr


def test_a_new_run_begins_with_the_average_of_another(tmp_path: Path, of_files: Config) -> None:
    fit(of_files, tmp_path / "run")
    source = read_checkpoint(find_checkpoint(tmp_path / "run"))
    for decay in (None, 0.5):
        train = of_files.train.model_copy(update={"average_weights": decay, "max_steps": 0})
        config = of_files.model_copy(update={"train": train})
        state = fit(config, tmp_path / f"next {decay}", init_from=tmp_path / "run")
        for name, weight in state.evaluated.state_dict().items():
            assert torch.equal(weight, source.average[name])
            assert torch.equal(weight, state.model.state_dict()[name])


def test_members_of_a_sweep_are_evaluated_with_their_average(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(averaging().model_dump(mode="json")))
    done = run_rnncls("sweep", "--config", path, "--seeds", "0-1", "--sweep-dir", tmp_path / "s")
    assert done.returncode == 0, done.stderr
    for run_dir in (tmp_path / "s" / "members").iterdir():
        member = json.loads((run_dir / "evaluation.json").read_text())
        # A member is evaluated at its last step, with what is in the checkpoint of that.
        checkpoint, model = load_checkpoint(find_newest(run_dir))
        assert torch.equal(model.head.bias, checkpoint.average["head.bias"])
        report = rnncls.evaluate(model, checkpoint.config)
        assert member["loss"] == pytest.approx(report.loss, rel=1e-9)
        model.load_state_dict(checkpoint.model)
        assert rnncls.evaluate(model, checkpoint.config).loss != report.loss


def test_pictures_and_the_projector_show_what_is_evaluated(tmp_path: Path) -> None:
    config = averaging(train={"plots": True, "max_steps": 60})
    state = fit(config, tmp_path / "run")
    assert state.average is not None
    shown = np.loadtxt(tmp_path / "run" / "projector" / "tokens.tsv", dtype=np.float32)
    np.testing.assert_allclose(shown, state.average.embedding.weight.numpy(), rtol=1e-4)
    trained = weights_of(state.model)["embedding.weight"]
    assert not np.allclose(shown, trained, rtol=1e-4, atol=0)


# --- checkpoints


@pytest.mark.parametrize("kind", ["generated", "variant", "files"])
def test_a_run_that_was_interrupted_has_the_same_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_files: Config, kind: str
) -> None:
    configs = {
        "generated": averaging(optimizer={"name": "sgd", "lr": 0.05}),
        "variant": variant_of("together", train={"average_weights": 0.99}),
        "files": of_files,
    }
    fit(configs[kind], tmp_path / "undisturbed")
    with monkeypatch.context() as patch:
        stop_at(patch, 13)
        with pytest.raises(Interrupted):
            fit(configs[kind], tmp_path / "run")
    state = resume(tmp_path / "run")
    assert state.averaged == state.step
    assert outcome(tmp_path / "run") == outcome(tmp_path / "undisturbed")
    best = [read_checkpoint(find_checkpoint(tmp_path / name)) for name in ("run", "undisturbed")]
    assert best[0].state.step == best[1].state.step
    for name, weight in best[0].average.items():
        assert torch.equal(weight, best[1].average[name])


def test_a_resumed_run_keeps_how_it_averages(tmp_path: Path) -> None:
    fit(averaging(), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"train\.average_weights: 0\.9 -> null"):
        resume(tmp_path / "run", ["train.average_weights=null", "train.max_steps=50"])


Edit = Callable[[dict[str, torch.Tensor]], object]


@row("K9")
@pytest.mark.parametrize(
    "edit",
    [
        lambda tensors: tensors.pop("average/head.bias"),
        lambda tensors: [tensors.pop(name) for name in [*tensors] if name[:7] == "average"],
        lambda tensors: tensors.update({"average/head.bias": torch.zeros(7)}),
        lambda tensors: tensors.update({"average/head.bias": torch.zeros(3).double()}),
        lambda tensors: tensors.update({"average/more": torch.zeros(7)}),
    ],
)
def test_an_average_that_does_not_fit_is_refused(tmp_path: Path, edit: Edit) -> None:
    config = averaging(train={"max_steps": 4})
    fit(config, tmp_path / "run")
    copy = copy_of_run(tmp_path / "run", tmp_path / "copy", edit)
    done = run_rnncls("eval", copy)
    assert done.returncode == 4, done.stderr
    assert "error[K9]" in done.stderr
    assert "average/" in done.stderr
    checkpoint = read_checkpoint(find_checkpoint(copy))
    with pytest.raises(CheckpointError):
        restored_state(checkpoint, load_task(config))


@row("K9")
def test_an_average_of_a_run_that_has_none_is_refused(tmp_path: Path) -> None:
    config = config_of(train={"max_steps": 4})
    fit(config, tmp_path / "run")

    def add(tensors: dict[str, torch.Tensor]) -> None:
        for name in [*tensors]:
            if name.startswith("model/"):
                tensors[name.replace("model/", "average/")] = tensors[name]

    copy = copy_of_run(tmp_path / "run", tmp_path / "copy", add)
    assert "error[K9]" in run_rnncls("eval", copy).stderr


@row("K9")
def test_more_updates_than_steps_are_refused(tmp_path: Path) -> None:
    config = averaging(train={"max_steps": 4})
    fit(config, tmp_path / "run")
    path = find_newest(tmp_path / "run")
    change_checkpoint(path, lambda state, _: state["counters"].update(averaged=5))
    with pytest.raises(CheckpointError, match="averaged"):
        restored_state(read_checkpoint(path), load_task(config))


def test_an_average_that_is_not_finite_is_neither_saved_nor_resumed(tmp_path: Path) -> None:
    from rnncls.rundir.checkpoint import write_checkpoint

    task = load_task(averaging())
    state = new_state(task)
    path = write_checkpoint(tmp_path, state, task)
    assert is_finite(read_checkpoint(path))
    assert state.average is not None
    state.average.head.bias[0] = float("inf")
    with pytest.raises(NonFiniteError):
        write_checkpoint(tmp_path, state, task)

    def spoil(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors["average/head.bias"][0] = float("nan")

    change_checkpoint(path, spoil)
    checkpoint = read_checkpoint(path)
    assert not is_finite(checkpoint)
    fitting_weights(checkpoint, checkpoint.config, checkpoint.sizes)
    with pytest.raises(CheckpointError, match="not finite"):
        restored_state(checkpoint, task)


# --- engines and processes


def test_other_engines_say_why_they_cannot() -> None:
    device = resolve_device("cpu")
    config = averaging(train={"engine": "auto"})
    assert choose(config, device)[1] == "eager steps (train.average_weights is 0.9)"
    with pytest.raises(MachineError, match=r"train\.average_weights is 0\.9"):
        choose(averaging(train={"engine": "compiled"}), device)


@pytest.mark.slow
def test_processes_that_train_together_have_the_same_average(tmp_path: Path) -> None:
    config = averaging().model_dump(mode="json")
    cases = [{"name": "averaged", "size": size, "config": config} for size in (1, 2)]
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    done = run_command([PYTHON, "-m", "tests.together", str(tmp_path)])
    assert done.returncode == 0, done.stderr
    ended = [json.loads((tmp_path / "2" / f"averaged.{rank}.json").read_text()) for rank in (0, 1)]
    assert ended[0]["bits"] == ended[1]["bits"]
    one, two = (read_checkpoint(find_newest(tmp_path / size / "averaged")) for size in ("1", "2"))
    for name, weight in one.average.items():
        torch.testing.assert_close(weight, two.average[name], rtol=1e-3, atol=1e-5)


def test_a_saved_config_of_before_has_no_average() -> None:
    raw = config_of().model_dump(mode="json")
    del raw["train"]["average_weights"]
    assert parse_config(raw, "test").train.average_weights is None


def test_the_share_that_is_kept_grows_to_that_of_the_config() -> None:
    """The values of TensorFlow's min(decay, (1 + num_updates) / (10 + num_updates))."""
    shares = [kept_share(0.999, updates) for updates in (1, 2, 90, 8_980, 8_990, 10**6)]
    assert shares == [2 / 11, 3 / 12, 91 / 100, 8_981 / 8_990, 0.999, 0.999]
