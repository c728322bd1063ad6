"""The n-gram control beside a model: what it is, when it is trained, what reports say about it."""

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import binomtest

from rnncls.config import Config, ModelConfig, flatten
from rnncls.config.load import parse_config
from rnncls.errors import Interrupted, NonFiniteError, Problem
from rnncls.evaluation.control import compare_with_control, verdict
from rnncls.evaluation.evaluate import evaluate
from rnncls.predict.predictor import load_model
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.status import read_status
from rnncls.sweep.listing import find_rows
from rnncls.sweep.plan import plan_sweep
from rnncls.training.control import OF_RECURRENCE, control_config, has_control
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import (
    PYTHON,
    SAFETY_S,
    Killed,
    Outcome,
    at_step,
    config_of,
    files_config,
    outcome,
    run_process,
    run_rnncls,
    some_rows,
    started,
    write_jsonl,
)

STEPS = 24


def small(**train: Any) -> Config:
    keys = {"max_steps": STEPS, "eval_every": 7, "checkpoint_every": 4, "log_every": 5}
    # A small table: it is in every checkpoint.
    model = {"ngram_table": 64}
    return config_of(model=model, train={**keys, "baseline": "control", **train})


def both(run_dir: Path) -> tuple[Outcome, Outcome]:
    return outcome(run_dir), outcome(run_dir / "control")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    fit(small(), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def on_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    data = write_jsonl(folder / "data.jsonl", some_rows(900, longest=4))
    config = files_config(data, {"baseline": "control", "max_steps": 150}, test_fraction=0.4)
    fit(config, folder / "run")
    return folder / "run"


# --- what it is


def test_the_control_differs_in_the_recurrence_alone() -> None:
    raw = {
        "model": {
            "cell": "gru",
            "num_layers": 2,
            "dropout": 0.1,
            "bidirectional": True,
            "pooling": "last_mean_max",
            "skip": True,
            "positions": "learned",
            "initial_state": "learned",
            "embedding_dim": 7,
            "ngrams": [3],
            "ngram_table": 99,
            "ngram_dropout": 0.3,
            "embedding_dropout": 0.2,
            "head_dropout": 0.4,
            "init_gain": 0.5,
            "embedding_gain": 0.1,
        },
        "optimizer": {"lr": 0.01},
        "train": {"baseline": "control", "recompute_every": 2, "truncate_after": 3, "patience": 2},
        "seed": 5,
    }
    config = parse_config(raw, "test")
    control = control_config(config)
    before = flatten(config)
    after = flatten(control)

    kept = ("embedding_dim", "ngrams", "ngram_table", "ngram_dropout", "embedding_dropout")
    for key in (*kept, "head_dropout", "init_gain", "embedding_gain"):
        assert after[f"model.{key}"] == before[f"model.{key}"]
    neutral = flatten(Config())
    for key in ("num_layers", "dropout", "bidirectional", "pooling", "skip", "initial_state"):
        assert after[f"model.{key}"] == neutral[f"model.{key}"]
    assert after["model.cell"] == after["model.positions"] == "none"

    changed = {key for key in after if after[key] != before[key] and not key.startswith("model.")}
    assert changed == {
        "train.baseline",
        "train.recompute_every",
        "train.truncate_after",
        "train.plots",
    }

    # Whatever key the model has is kept, or is one of the recurrence.
    others = {"cell", *OF_RECURRENCE}
    assert {
        key: after[f"model.{key}"] for key in ModelConfig.model_fields if key not in others
    } == {key: before[f"model.{key}"] for key in ModelConfig.model_fields if key not in others}

    # It is a config that somebody could have written.
    assert parse_config(control.model_dump(mode="json"), "test") == control
    assert not has_control(control)


def test_without_ngrams_it_has_those_of_two_and_three() -> None:
    assert control_config(config_of()).model.ngrams == (2, 3)


def test_its_engine_is_chosen_anew_unless_no_step_is_to_be_compiled() -> None:
    assert control_config(small(engine="eager")).train.engine == "eager"
    for engine in ("auto", "compiled", "captured"):
        assert control_config(small(engine=engine)).train.engine == "auto"


def test_a_model_without_recurrence_has_no_control(tmp_path: Path) -> None:
    config = small(max_steps=2).model_copy(update={"model": control_config(small()).model})
    assert config.train.baseline == "control"
    fit(config, tmp_path / "run")
    assert not (tmp_path / "run" / "control").exists()
    assert read_status(tmp_path / "run")["state"] == "finished"


# --- training


def test_it_is_the_run_of_its_config(whole: Path, tmp_path: Path) -> None:
    fit(control_config(small()), tmp_path / "alone")
    fit(small(baseline="none"), tmp_path / "model")
    assert outcome(whole / "control") == outcome(tmp_path / "alone")

    # And the model is the same with and without a control.
    tensors, lines, counters = outcome(tmp_path / "model")
    assert outcome(whole) == (tensors, lines, counters)
    assert not (tmp_path / "model" / "control").exists()


def test_both_have_a_status(whole: Path) -> None:
    for run_dir in (whole, whole / "control"):
        status = read_status(run_dir)
        assert (status["state"], status["step"]) == ("finished", STEPS)


@pytest.mark.parametrize("step", [0, 6, 13, STEPS - 2])
def test_it_is_stopped_and_resumed_to_the_bit(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        in_control(patch, step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted) as caught:
            fit(small(), run_dir)
    assert caught.value.exit_code == 143
    assert f"rnncls train --resume {run_dir}" in str(caught.value.problems[0].remedy)
    assert not str(caught.value.problems[0].remedy).endswith("control")

    # The run is not over before its control is.
    for folder in (run_dir, run_dir / "control"):
        assert read_status(folder)["state"] == "interrupted"
        assert read_status(folder)["exit_code"] == 143

    resume(run_dir)
    assert both(run_dir) == both(whole)
    assert read_status(run_dir)["state"] == "finished"
    # Once more there is nothing to do.
    resume(run_dir)
    assert both(run_dir) == both(whole)


@pytest.mark.parametrize("step", [0, 11, STEPS - 1])
def test_it_is_killed_and_resumed_alone(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def killed() -> None:
        raise Killed

    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        in_control(patch, step, killed)
        with pytest.raises(Killed):
            fit(small(), run_dir)
    resume(run_dir / "control")
    assert both(run_dir) == both(whole)


def in_control(patch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """Make the step with this index of the control, and not of the model, begin with an action."""

    def act(state: Any) -> None:
        if not state.model.rnn.all_weights:
            action()

    at_step(patch, step, act)


def test_a_signal_in_the_last_step_of_the_model_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, STEPS - 1, lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            fit(small(), run_dir)
    assert not (run_dir / "control").exists()
    assert read_status(run_dir)["exit_code"] == 143
    resume(run_dir)
    assert both(run_dir) == both(whole)


def test_a_finished_run_gets_a_control(whole: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    fit(small(baseline="none"), run_dir)
    resume(run_dir, ["train.baseline=control"])
    assert both(run_dir) == both(whole)
    # It stands in the config now.
    shutil.rmtree(run_dir / "control")
    resume(run_dir)
    assert both(run_dir) == both(whole)


def test_a_longer_run_has_a_longer_control(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    fit(small(max_steps=8), run_dir)
    resume(run_dir, ["train.max_steps=12"])
    assert read_status(run_dir)["step"] == read_status(run_dir / "control")["step"] == 12


def test_an_error_of_the_control_is_that_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        in_control(patch, 3, poison)
        with pytest.raises(NonFiniteError):
            fit(small(), run_dir)
    assert read_status(run_dir)["exit_code"] == read_status(run_dir / "control")["exit_code"] == 7
    # The model is whole.
    assert load_model(run_dir)


def poison() -> None:
    raise NonFiniteError(Problem("the loss is not finite", id="R12"))


@pytest.mark.slow
def test_real_processes_are_killed_in_the_control(tmp_path: Path) -> None:
    rng = random.Random(0)
    steps = 600
    config = {"train.max_steps": steps, "train.eval_every": 200, "train.checkpoint_every": 50}
    words = [f"{key}={value}" for key, value in config.items()]
    words += ["train.baseline=control", "train.plots=false", "train.engine=eager", "device=cpu"]
    words += ["model.hidden_size=4", "model.ngram_table=64", "train.stop_at_accuracy=null"]
    command = [PYTHON, "-m", "rnncls", "train", "configs/smoke.yaml", *words, "--run-dir"]

    assert run_process(*command[3:], tmp_path / "whole").returncode == 0
    expected = both(tmp_path / "whole")
    for number in range(2):
        run_dir = tmp_path / str(number)
        with started([*command, str(run_dir)]) as process:
            deadline = time.monotonic() + SAFETY_S
            while not (run_dir / "control" / "metrics.jsonl").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 2))
            process.kill()
            process.wait()
        assert read_status(run_dir)["state"] in ("died", "finished")
        assert run_process("train", "--resume", run_dir).returncode == 0
        assert both(run_dir) == expected
        assert read_status(run_dir)["state"] == "finished"


# --- reports


def correct_of(run: Path, tmp_path: Path, *words: str) -> list[bool]:
    path = tmp_path / f"{run.name}.jsonl"
    completed = run_rnncls("eval", run, "--predictions", path, *words)
    assert completed.returncode == 0, completed.stderr
    rows = map(json.loads, path.read_text().splitlines())
    return [row["true"] == row["predicted"] for row in rows]


@pytest.mark.parametrize("words", [(), ("--lengths", "2-3")], ids=["all", "lengths"])
def test_the_counts_are_those_of_the_predictions(
    on_files: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    model = correct_of(on_files, tmp_path, *words)
    control = correct_of(on_files / "control", tmp_path, *words)
    only_model = sum(a and not b for a, b in zip(model, control, strict=True))
    only_control = sum(b and not a for a, b in zip(model, control, strict=True))
    assert only_model + only_control > 5

    report = json.loads(run_rnncls("eval", on_files, "--json", *words).stdout)
    found = report["control"]
    assert (found["only_model"], found["only_control"]) == (only_model, only_control)
    assert found["accuracy"] == pytest.approx(sum(control) / len(control))
    assert report["accuracy"] == pytest.approx(sum(model) / len(model))
    p = binomtest(only_model, only_model + only_control, 0.5).pvalue
    assert found["p"] == pytest.approx(p, rel=1e-12)
    assert found["step"]
    assert found["checkpoint"].endswith("control/checkpoints/best.safetensors")

    text = run_rnncls("eval", on_files, *words).stdout
    assert found["verdict"] in text
    assert f"majority class: {report['majority']:.4f}; n-gram control: " in text


def test_the_report_on_another_file_and_on_one_checkpoint(on_files: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "new.jsonl", some_rows(60, seed=9, longest=4))
    report = json.loads(run_rnncls("eval", on_files, "--data", data, "--json").stdout)
    control = json.loads(run_rnncls("eval", on_files / "control", "--data", data, "--json").stdout)
    assert report["control"]["errors"] == control["errors"]
    assert "control" not in control

    newest = find_newest(on_files)
    assert "n-gram control: " in run_rnncls("eval", newest).stdout
    # A copy of the file is not in a run.
    shutil.copy(newest, tmp_path / "copy.safetensors")
    data_dir = on_files.parent
    alone = run_rnncls("eval", tmp_path / "copy.safetensors", "--data-dir", data_dir).stdout
    assert "accuracy: " in alone
    assert "n-gram" not in alone


def test_from_python(whole: Path) -> None:
    config = small()
    model = load_model(whole)
    control = load_model(whole / "control")
    report = evaluate(model, config, control=control)
    assert report.control is not None
    assert report.control.errors == evaluate(control, control_config(config)).errors
    assert evaluate(model, config).control is None
    assert "control" not in evaluate(model, config).to_json()


@pytest.mark.row("K25")
@pytest.mark.parametrize("kind", ["unfinished", "damaged", "other data", "no status"])
def test_a_control_that_cannot_be_compared(
    whole: Path, on_files: Path, tmp_path: Path, kind: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    if kind == "unfinished":
        status = json.loads((run / "control/status.json").read_text())
        text = json.dumps(status | {"state": "interrupted"})
        (run / "control/status.json").write_text(text)
    if kind == "no status":
        (run / "control/status.json").unlink()
    if kind == "damaged":
        best = run / "control/checkpoints/best.safetensors"
        content = bytearray(best.read_bytes())
        content[-3] ^= 1
        best.unlink()
        best.write_bytes(content)
    if kind == "other data":
        shutil.rmtree(run / "control")
        shutil.copytree(on_files / "control", run / "control")

    completed = run_rnncls("eval", run)
    assert completed.returncode == 0
    assert completed.stderr.count("\n") == 1
    assert "warning[K25]" in completed.stderr
    assert "n-gram" not in completed.stdout
    assert "accuracy: " in completed.stdout


def test_verdicts() -> None:
    assert verdict(60, 15, 2360, 3e-5) == "recurrence adds 1.9 points (p = 3e-5)"
    nothing = "recurrence adds nothing that these 2,360 sequences show (p = 0.42)"
    assert verdict(30, 25, 2360, 0.42) == nothing
    better = "the n-gram control is better by 0.8 points (p = 0.01)"
    assert verdict(5, 13, 1000, 0.01) == better
    assert verdict(1000, 0, 1000, 0.0) == "recurrence adds 100.0 points (p < 1e-300)"
    assert verdict(1, 0, 1, 1.0) == "recurrence adds nothing that this sequence shows (p = 1)"
    assert verdict(40, 0, 100_000, 1e-12) == "recurrence adds 0.04 points (p = 1e-12)"


def test_counts_of_one_sequence() -> None:
    report = compare_with_control(torch.tensor([False]), torch.tensor([True]))
    assert (report.only_model, report.only_control, report.p, report.accuracy) == (1, 0, 1.0, 0.0)


# --- lists, sweeps, the command line


def test_lists_show_it_in_the_row_of_its_run(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "runs" / "one")
    (row,) = find_rows(tmp_path / "runs")
    assert row.control == read_status(whole / "control")["best_value"]
    assert len(find_rows(tmp_path / "runs", members=True)) == 2
    assert len(find_rows(tmp_path / "runs" / "one")) == 2

    table = run_rnncls("runs", "ls", tmp_path / "runs").stdout
    assert f"{row.control:.4f}" in table
    assert "control" in table.splitlines()[0]

    # A folder that is only called so is none.
    shutil.copytree(whole / "control", tmp_path / "more" / "control")
    assert len(find_rows(tmp_path / "more")) == 1


def test_members_of_a_sweep_have_none(tmp_path: Path) -> None:
    sweep = plan_sweep(small(), "0-1", {}, None, 10, tmp_path / "sweep")
    assert {member.config.train.baseline for member in sweep.members} == {"none"}

    words = ["--seeds", "0", "train.max_steps=2", "train.eval_samples=10", "device=cpu"]
    words += ["train.baseline=control", "--sweep-dir", str(tmp_path / "run")]
    completed = run_rnncls("sweep", "configs/smoke.yaml", *words)
    assert completed.returncode == 0, completed.stderr
    assert "members of a sweep have no n-gram control" in completed.stderr
    assert not list((tmp_path / "run").rglob("control"))


def test_the_command_line(tmp_path: Path) -> None:
    words = ["train.max_steps=4", "train.eval_samples=10", "device=cpu", "train.baseline=control"]
    run_dir = tmp_path / "run"
    completed = run_rnncls("train", "configs/smoke.yaml", *words, "--run-dir", run_dir)
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr.count("training the n-gram control ...") == 1
    model, control = (line for line in completed.stdout.splitlines() if "steps: " in line)
    assert model.startswith("steps: 4; best val/accuracy: ")
    assert control.startswith("n-gram control: steps: 4; best val/accuracy: ")

    again = run_rnncls("train", "--resume", run_dir)
    assert again.returncode == 0
    assert again.stderr.count("already complete at step 4") == 2
    assert control in again.stdout


def test_files_are_read_once(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [*some_rows(60), ([1, 2], 0), ([1, 2], 1)])
    words = ["train.max_steps=3", "device=cpu", "train.baseline=control"]
    completed = run_rnncls("train", data, *words, "--run-dir", tmp_path / "run")
    assert completed.returncode == 0, completed.stderr
    assert (tmp_path / "run" / "control" / "status.json").exists()
    warnings = [line for line in completed.stderr.splitlines() if "warning[D" in line]
    assert len(warnings) == len(set(warnings)) > 0
