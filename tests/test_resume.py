"""A run that was stopped or killed resumes and ends as if nothing had happened."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rnncls.config import Config, dump_config
from rnncls.errors import CheckpointError, ConfigError, Interrupted, MachineError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint, find_newest, step_files
from rnncls.rundir.compare import Comparison, compare
from rnncls.rundir.lock import is_locked, locked
from rnncls.rundir.status import read_status
from rnncls.sweep.listing import find_rows
from rnncls.training import loop
from rnncls.training.fit import fit
from rnncls.training.progress import Validation, validate
from rnncls.training.resume import resume
from tests.helpers import (
    HARD,
    PYTHON,
    SAFETY_S,
    VARIANTS,
    Killed,
    change_checkpoint,
    config_of,
    endless_run,
    kill_at,
    outcome,
    run_process,
    run_python,
    run_rnncls,
    started,
    stop_at,
    variant_of,
)


def fit_in_pieces(
    monkeypatch: pytest.MonkeyPatch, config: Config, run_dir: Path, stops: list[int]
) -> None:
    for index, step in enumerate(stops):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            with pytest.raises(Interrupted) as caught:
                resume(run_dir) if index else fit(config, run_dir)
        assert caught.value.exit_code == 143
        assert read_status(run_dir)["state"] == "interrupted"
        assert read_status(run_dir)["step"] == step + 1  # the step was finished and saved
    resume(run_dir)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    fit(config_of(**HARD), run_dir)
    return run_dir


# The quick form stops right before and after something is logged, evaluated or saved. A signal in
# the last step finds the run over.
@pytest.mark.row("K18")
@pytest.mark.parametrize(
    "steps",
    [(0, 3, 6, 22), pytest.param(range(23), marks=pytest.mark.slow)],
    ids=["some", "every"],
)
def test_stopping_at_any_step_changes_nothing(
    steps: Sequence[int], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in steps:
        run_dir = tmp_path / str(step)
        fit_in_pieces(monkeypatch, config_of(**HARD), run_dir, [step])
        assert outcome(run_dir) == outcome(whole), step


@pytest.mark.row("K19")
@pytest.mark.parametrize("pairs", [2, pytest.param(12, marks=pytest.mark.slow)])
def test_stopping_twice_changes_nothing(
    pairs: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(0)
    for number in range(pairs):
        first, second = sorted(rng.sample(range(23), 2))
        run_dir = tmp_path / str(number)
        fit_in_pieces(monkeypatch, config_of(**HARD), run_dir, [first, second])
        assert outcome(run_dir) == outcome(whole), (first, second)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_optimizer_resumes(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    config = config_of(**HARD, optimizer={"name": optimizer, "momentum": momentum})
    fit(config, tmp_path / "whole")
    fit_in_pieces(monkeypatch, config, tmp_path / "pieces", [2, 13])
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


# These two have everything that the others have.
QUICK_VARIANTS = ("together", "prefix_in_pieces")


@pytest.mark.row("K18", "K19")
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(name, marks=() if name in QUICK_VARIANTS else pytest.mark.slow)
        for name in VARIANTS
    ],
)
def test_every_output_strategy_and_every_way_to_cut_gradients_resumes(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = variant_of(variant)
    fit(config, tmp_path / "whole")
    fit_in_pieces(monkeypatch, config, tmp_path / "pieces", [2, 13])
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("objective", ["sequence", "prefix"])
def test_a_run_whose_initial_state_has_had_no_gradient_resumes(
    objective: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sequence is short enough for its gradient to reach back to its beginning."""
    data = {"min_length": 4}
    train = {"truncate_after": 2, "recompute_every": None, "objective": objective}
    config = variant_of("prefix_in_pieces", data=data, train=train)
    state = fit(config, tmp_path / "whole")
    assert state.model.initial_state is not None
    assert bool(state.model.initial_state.any()) == (objective == "prefix")
    fit_in_pieces(monkeypatch, config, tmp_path / "pieces", [2, 13])
    assert outcome(tmp_path / "pieces") == outcome(tmp_path / "whole")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_on_cuda_a_deterministic_run_resumes_exactly(optimizer: str, tmp_path: Path) -> None:
    """In processes of their own: determinism is set for a process before it uses CUDA."""
    text = dump_config(config_of(**HARD, optimizer={"name": optimizer}, device="cuda"))
    (tmp_path / "c.yaml").write_text(text)
    words: list[str | Path] = [
        "train",
        "--config",
        tmp_path / "c.yaml",
        "train.deterministic=true",
        "--run-dir",
    ]
    assert run_process(*words, tmp_path / "whole").returncode == 0
    code = """
import os, signal
from rnncls.steps import eager
original = eager.train_step
def stopping(state, *arguments):
    if state.step == 13:
        os.kill(os.getpid(), signal.SIGTERM)
    original(state, *arguments)
eager.train_step = stopping
from rnncls.cli import main
main()"""
    assert run_python(code, *words, tmp_path / "run").returncode == 143
    assert run_process("train", "--resume", tmp_path / "run").returncode == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
def test_determinism_is_switched_on_for_the_process(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(dump_config(config_of(**HARD)))
    code = f"""
import os, torch
from rnncls import fit, load_config
config = load_config({str(tmp_path / "c.yaml")!r}, ["train.deterministic=true"])
assert not torch.are_deterministic_algorithms_enabled()
fit(config, {str(tmp_path / "deterministic")!r})
cudnn = torch.backends.cudnn
print(torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark)
print(os.environ["CUBLAS_WORKSPACE_CONFIG"])
"""
    done = run_python(code)
    assert done.stdout == "True True False\n:16:8\n", done.stderr
    fit(config_of(**HARD), tmp_path / "plain")
    assert outcome(tmp_path / "deterministic") == outcome(
        tmp_path / "plain"
    )  # the CPU computes so anyway


def test_tables_and_tensorboard_go_on_without_gaps_or_duplicates(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    fit_in_pieces(monkeypatch, config_of(**HARD), run_dir, [11])
    (
        run_dir / "checkpoints" / "step-00000024.safetensors"
    ).unlink()  # as if killed before the last save
    (run_dir / "checkpoints" / "best.safetensors").unlink()
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 24, "tra')  # torn by the kill
    resume(run_dir)
    assert outcome(run_dir) == outcome(whole)
    steps = [line["step"] for line in outcome(whole)[1]]
    assert [
        int(row.split(",")[0]) for row in (run_dir / "metrics.csv").read_text().splitlines()[1:]
    ] == steps
    for tag in ("train/loss", "val/accuracy"):
        series = [
            [
                (event.step, event.value)
                for event in EventAccumulator(str(folder)).Reload().Scalars(tag)
            ]
            for folder in (whole, run_dir)
        ]
        assert series[0] == series[1]


def killed_and_resumed(start: list[str], run_dir: Path, kills: int, seed: int) -> Path:
    """Start, SIGKILL at a random moment, resume, ..., and let the last one finish."""
    rng = random.Random(seed)
    command = [*start, str(run_dir)]
    for _ in range(kills):
        nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with started([PYTHON, "-m", "rnncls", *command], **nowhere):
            time.sleep(rng.uniform(1.0, 2.5))

        # Without a checkpoint, the run may be started again in the same directory.
        if step_files(run_dir / "checkpoints"):
            command = ["train", "--resume", str(run_dir)]
    done = run_process(*command)
    assert done.returncode == 0, done.stderr
    return run_dir


@pytest.mark.slow
@pytest.mark.row("R1", "R3", "R27")
def test_random_sigkills_change_nothing(tmp_path: Path) -> None:
    """Four real kills at random moments, start-up included, of two runs."""
    steps = [
        "train.max_steps=1500",
        "train.checkpoint_every=50",
        "train.eval_every=130",
        "train.plots=false",
        "device=cpu",
    ]
    start = ["train", "--config", "configs/smoke.yaml", *steps, "--run-dir"]
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(killed_and_resumed, start, tmp_path / str(seed), 2, seed) for seed in (1, 2)
        ]
        assert run_process(*start, tmp_path / "whole").returncode == 0
        for run in runs:
            assert outcome(run.result()) == outcome(tmp_path / "whole")
            assert not list(run.result().rglob(".tmp-*"))
            assert read_status(run.result())["state"] == "finished"


@pytest.mark.row("K2", "K3", "K16")
def test_damaged_checkpoints_are_set_aside_and_the_one_before_is_used(
    whole: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    fit(config_of(**HARD), run_dir)
    folder = run_dir / "checkpoints"
    content = (folder / "step-00000024.safetensors").read_bytes()
    (folder / "best.safetensors").unlink()
    (folder / "step-00000024.safetensors").write_bytes(content[:-7])
    # One bit of the weights.
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    (folder / "best.safetensors").write_bytes(flipped)
    resume(run_dir)
    assert outcome(run_dir) == outcome(whole)
    names = {path.name for path in folder.iterdir()}
    assert {
        "step-00000024.safetensors",
        "step-00000024.safetensors.bad",
        "best.safetensors",
    } <= names
    assert (folder / "step-00000024.safetensors.bad").read_bytes() == content[:-7]
    assert (
        read_checkpoint(find_checkpoint(run_dir)).state.step
        == read_checkpoint(find_checkpoint(whole)).state.step
    )


@pytest.mark.row("K2")
def test_when_no_checkpoint_is_whole_nothing_starts_afresh(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    fit(config_of(), run_dir)
    for path in (run_dir / "checkpoints").iterdir():
        path.write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(CheckpointError):
            resume(run_dir)
    assert any(path.suffix == ".bad" for path in (run_dir / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, tensors: tensors.pop("optim/exp_avg/head.bias"), "optimizer state does not fit"),
        (
            lambda _, tensors: tensors.update({"optim/exp_avg/head.bias": torch.zeros(9)}),
            "optimizer state",
        ),
        (lambda _, tensors: tensors["model/head.bias"].fill_(torch.nan), "not finite"),
        (lambda state, _: state["counters"].pop("totals_loss"), "counters do not fit"),
    ],
)
@pytest.mark.row("K9", "K13")
def test_a_checkpoint_that_does_not_fit_its_run_is_refused_and_kept(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], message: str
) -> None:
    fit(config_of(), tmp_path / "run")
    path = find_newest(tmp_path / "run")
    change_checkpoint(path, change)
    content = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        resume(tmp_path / "run", ["train.max_steps=50"])
    assert message in caught.value.render()
    assert path.read_bytes() == content


@pytest.mark.row("K17")
def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    for name, extra in {"full": {}, "early": {"stop_at_accuracy": 0.01}}.items():
        run_dir = tmp_path / name
        fit(config_of(train=extra), run_dir)
        before = {
            path: path.read_bytes()
            for path in run_dir.rglob("*")
            if path.is_file() and path.name != ".lock"
        }
        resume(run_dir)
        assert {path: path.read_bytes() for path in before} == before
        assert len([path for path in run_dir.rglob("*") if path.is_file()]) == len(before) + 1


@pytest.mark.row("K21")
def test_resuming_for_longer_says_what_changed(tmp_path: Path) -> None:
    fit(config_of(), tmp_path / "run")
    done = run_rnncls(
        "train", "--resume", tmp_path / "run", "train.max_steps=60", "train.log_every=20"
    )
    assert done.returncode == 0, done.stderr
    assert "changed on resume: train.max_steps: 40 -> 60" in done.stderr
    assert "changed on resume: train.log_every: 10 -> 20" in done.stderr
    steps = [line["step"] for line in outcome(tmp_path / "run")[1]]
    assert steps == [10, 20, 30, 40, 60]
    assert read_checkpoint(find_newest(tmp_path / "run")).config.train.max_steps == 60


@pytest.mark.parametrize(
    "override",
    [
        "model.hidden_size=17",
        "model.pooling=mean",
        "model.initial_state=learned",
        "data.modulus=4",
        "seed=1",
        "optimizer.name=sgd",
        "train.objective=prefix",
    ],
)
@pytest.mark.row("K21")
def test_what_is_trained_cannot_change_on_resume(tmp_path: Path, override: str) -> None:
    fit(config_of(), tmp_path / "run")
    with pytest.raises(CheckpointError, match="keeps its data") as caught:
        resume(tmp_path / "run", [override, "train.max_steps=50"])
    assert override.partition("=")[0] in caught.value.render()
    with pytest.raises(ConfigError, match="unknown key"):
        resume(tmp_path / "run", ["train.steps=1"])


@pytest.mark.row("K21")
def test_how_gradients_are_cut_may_change_on_resume(tmp_path: Path) -> None:
    fit(config_of(), tmp_path / "run")
    words = ["train.max_steps=60", "train.truncate_after=2", "train.recompute_every=1"]
    done = run_rnncls("train", "--resume", tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    assert "changed on resume: train.truncate_after: null -> 2" in done.stderr
    assert "changed on resume: train.recompute_every: null -> 1" in done.stderr
    train = read_checkpoint(find_newest(tmp_path / "run")).config.train
    assert (train.max_steps, train.truncate_after, train.recompute_every) == (60, 2, 1)


def test_a_new_run_can_start_from_given_weights(tmp_path: Path, fails: Callable[..., str]) -> None:
    state = fit(config_of(), tmp_path / "old")
    started = fit(config_of(seed=5, train={"max_steps": 0}), tmp_path / "new", tmp_path / "old")
    for one, other in zip(state.model.parameters(), started.model.parameters(), strict=True):
        assert torch.equal(one, other)
    arguments = ["train", "--config", "configs/smoke.yaml", "--init-from", tmp_path / "old"]
    assert "do not fit the model" in fails(4, *arguments, "--run-dir", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.row("K18", "K21")
@pytest.mark.parametrize("first", [{"max_steps": 12}, {"max_steps": 0}, {"stop_at_accuracy": 0.01}])
@pytest.mark.parametrize("how", [pytest.param(stop_at, marks=pytest.mark.slow), kill_at])
def test_a_lengthened_run_that_is_stopped_or_killed_resumes(
    first: dict[str, Any], how: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(**{**HARD, "schedule": {"name": "constant"}})
    began = config.model_copy(update={"train": config.train.model_copy(update=first)})
    overrides = [f"train.{key}={json.dumps(getattr(config.train, key))}" for key in first]
    fit(config, tmp_path / "whole")
    begun_at = fit(began, tmp_path / "begun").step
    for step in range(begun_at, 23, 5):
        run_dir = tmp_path / str(step)
        shutil.copytree(tmp_path / "begun", run_dir)
        with monkeypatch.context() as patch:
            how(patch, step)
            with pytest.raises((Interrupted, Killed)):
                resume(run_dir, overrides)
        assert resume(run_dir).step == 24
        tensors, _, counters = outcome(run_dir)
        expected, _, wanted = outcome(tmp_path / "whole")
        assert tensors == expected
        if "max_steps" in first:  # the end of the shorter run is logged as well
            assert counters.keys() == wanted.keys()


@pytest.mark.row("K17")
def test_an_early_stop_is_not_lifted_by_another_cadence(tmp_path: Path) -> None:
    assert fit(config_of(train={"stop_at_accuracy": 0.01}), tmp_path / "run").step == 20
    assert resume(tmp_path / "run", ["train.keep_checkpoints=3", "device=cpu"]).step == 20
    assert resume(tmp_path / "run", ["train.stop_at_accuracy=null"]).step == 40


def test_tensorboard_has_each_step_once_after_an_interrupted_evaluation_and_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(
        train={"log_every": 5, "eval_every": 10, "checkpoint_every": 1000, "best_metric": "loss"}
    )
    original = validate

    def interrupted(*arguments: Any) -> Validation:
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", interrupted)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "run")
    with monkeypatch.context() as patch:
        kill_at(patch, 13)
        with pytest.raises(Killed):
            resume(tmp_path / "run")
    resume(tmp_path / "run")
    accumulator = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [event.step for event in accumulator.Scalars("val/accuracy")] == [10, 20, 30, 40]
    assert [event.step for event in accumulator.Scalars("train/loss")] == list(range(5, 41, 5))


DAMAGED_LINES = {
    "deep": b"[" * 100_000,
    "separator": '{"step": 5, "x": "a\u2028b"}'.encode(),
    "surrogate": b'{"step": 5, "\xed\xa0\x80": 1}',
    "utf_16": '{"step": 5}'.encode("utf-16"),
    "half_pair": b'{"step": 5, "val/loss": "\\ud800"}',
    "keys": b"[[1, 2]]",
    "huge": b'{"step": 5, "val/loss": 1e999}',
    "digits": b'{"step": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("damage", DAMAGED_LINES)
def test_damaged_lines_and_statuses_are_passed_over(damage: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    fit(config_of(train={"max_steps": 10}), run_dir)
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(DAMAGED_LINES[damage] + b"\n")
    (run_dir / "status.json").write_bytes(DAMAGED_LINES[damage])
    assert compare(run_dir, run_dir) == Comparison({}, {}, "val/accuracy")
    assert find_rows(tmp_path) == []
    assert resume(run_dir, ["train.max_steps=20"]).step == 20
    assert [line["step"] for line in outcome(run_dir)[1]] == [10, 20]


@pytest.mark.row("K9")
@pytest.mark.parametrize(
    "change",
    [
        {"totals_loss": None},
        {"totals_correct": 10**400},
        {"stale_evaluations": None},
        {"stale_evaluations": -1},
        {"best_accuracy": None},
        {"best_accuracy": 2.0},
        {"best_step": 3.5},
        {"best_step": 41},
        {"totals_steps": 1},
        {"totals_loss": 1e308},
        {"due": 2},
        {"another": 1},
    ],
)
def test_counters_that_make_no_sense_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    fit(config_of(), tmp_path / "run")
    path = find_newest(tmp_path / "run")
    change_checkpoint(path, lambda state, _: state["counters"].update(change))
    with pytest.raises(CheckpointError, match="counters do not fit") as caught:
        resume(tmp_path / "run", ["train.max_steps=50"])
    assert "try:" in caught.value.render()


@pytest.mark.row("K9")
@pytest.mark.parametrize(
    ("name", "value"),
    [("step", -1.0), ("step", math.nan), ("exp_avg", math.inf), ("exp_avg_sq", -1.0)],
)
def test_an_optimizer_state_that_no_run_has_is_refused(
    name: str, value: float, tmp_path: Path
) -> None:
    fit(config_of(), tmp_path / "run")
    path = find_newest(tmp_path / "run")
    change_checkpoint(path, lambda _, tensors: tensors[f"optim/{name}/head.bias"].fill_(value))
    with pytest.raises(CheckpointError, match="optimizer state"):
        resume(tmp_path / "run", ["train.max_steps=50"])


@pytest.mark.row("K16")
@pytest.mark.parametrize("kind", ["link", "folder", "foreign", "pickle", "damaged with its step"])
def test_a_best_that_is_no_checkpoint_does_not_stop_a_resume(kind: str, tmp_path: Path) -> None:
    fit(config_of(train={"checkpoint_every": 10}), tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    best = folder / "best.safetensors"
    step = read_checkpoint(best).state.step
    content = bytearray(best.read_bytes())
    best.unlink()
    if kind == "link":
        best.symlink_to(folder / "step-00000040.safetensors")
    elif kind == "folder":
        best.mkdir()
    elif kind == "damaged with its step":
        content[-9] ^= 1
        (folder / f"step-{step:08d}.safetensors").write_bytes(content)
        best.write_bytes(content)
    else:
        best.write_bytes(b"PK\x03\x04" if kind == "pickle" else (2).to_bytes(8, "little") + b"{}")
    assert resume(tmp_path / "run", ["train.max_steps=50"]).step == 50
    assert read_checkpoint(best).state.step >= min(step, 40)
    assert list(folder.glob("best.safetensors.bad*"))


@pytest.mark.row("R26")
def test_a_run_directory_has_one_owner(tmp_path: Path, fails: Callable[..., str]) -> None:
    fit(config_of(), tmp_path / "run")
    with locked(tmp_path / "run"):
        stderr = fails(5, "train", "--resume", tmp_path / "run")
        assert f"pid {os.getpid()} on host" in stderr
        assert is_locked(tmp_path / "run")
    assert not is_locked(tmp_path / "run")
    with locked(tmp_path / "run"), pytest.raises(MachineError, match="in use"):
        resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (signal.SIGHUP, 129),
    ],
)
@pytest.mark.slow  # a process each; Ctrl-C of `rnncls train` has a quick test in test_cli.py
@pytest.mark.row("R4", "R5", "R6")
@pytest.mark.usefixtures("signals_not_ignored")
def test_a_signal_saves_and_ends_with_its_code(
    tmp_path: Path, number: signal.Signals, exit_code: int
) -> None:
    with endless_run(tmp_path / "run") as process:
        process.send_signal(number)
        _, rest = process.communicate(timeout=SAFETY_S)
    assert process.returncode == exit_code
    assert re.search(r"interrupted at step [\d,]+, saved; resume with: ", rest)
    assert f"rnncls train --resume {tmp_path}/run" in rest
    assert "Traceback" not in rest
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("interrupted", exit_code)
    assert read_checkpoint(find_newest(tmp_path / "run")).state.step == status["step"] >= 100


@pytest.mark.row("K1")
def test_nothing_to_resume_is_a_clear_error(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "nothing to resume" in fails(4, "train", "--resume", tmp_path / "nowhere")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    assert "no checkpoint" in fails(4, "train", "--resume", tmp_path / "run")
    assert "options of a new run" in fails(
        2, "train", "--resume", tmp_path, "--config", "configs/smoke.yaml"
    )


@pytest.mark.slow
@pytest.mark.row("R16")
def test_a_run_that_died_without_a_word_is_seen(tmp_path: Path) -> None:
    with endless_run(tmp_path / "run") as process:
        assert read_status(tmp_path / "run")["state"] == "running"
        process.kill()
    assert read_status(tmp_path / "run")["state"] == "died"
