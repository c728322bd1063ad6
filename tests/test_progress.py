"""What a run says while it trains and at its end: lines, bars, warnings, and `train --check`."""

import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from rnncls.config import Config, dump_config, load_config
from rnncls.data import Task, load_task
from rnncls.errors import Interrupted
from rnncls.rundir.status import read_status
from rnncls.steps.state import TrainState
from rnncls.system.waiting import load_torch
from rnncls.training import advice, check
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import (
    PYTHON,
    ROOT,
    Completed,
    config_of,
    files_config,
    run_command,
    run_rnncls,
    some_rows,
    stop_at,
    write_jsonl,
)

# Steps so small that nothing is learned.
AT_CHANCE = {
    "optimizer": {"lr": 1e-9, "weight_decay": 0.0},
    "schedule": {"warmup_steps": 0, "min_lr": 0.0},
}


def saved(config: Config, path: Path) -> Path:
    path.write_text(dump_config(config))
    return path


def step_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("step ")]


def fit_until(step: int, config: Config, run_dir: Path) -> None:
    """Begin a run and stop it with a real signal in the step with this index."""
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Interrupted):
            fit(config, run_dir)


# --- the metric that decides


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1", "loss"])
def test_the_metric_that_chose_is_named_with_its_value(metric: str, tmp_path: Path) -> None:
    config = saved(config_of(train={"best_metric": metric}), tmp_path / "c.yaml")
    done = run_rnncls("train", "-c", config, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr

    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    values = {row["step"]: row[f"val/{metric}"] for row in rows if f"val/{metric}" in row}
    best = min(values.values()) if metric == "loss" else max(values.values())
    step = max(step for step, value in values.items() if value == best)

    last = done.stdout.splitlines()[-2]
    assert last == f"steps: 40; best val/{metric}: {best:.4f} at step {step}"
    status = read_status(tmp_path / "run")
    assert (status["best_metric"], status["best_value"]) == (metric, best)
    assert status["best_step"] == step

    # The lines say which step is the best so far; one that is as good takes the place of another.
    sign = -1 if metric == "loss" else 1
    before = -math.inf
    for line in step_lines(done.stderr):
        value = values[int(line.split()[1])]
        assert f"val/{metric} {value:.4f}" in line
        marks = re.findall(r"   (best(?: again)?)$", line)
        if sign * value > before:
            assert marks == ["best"]
        else:
            assert marks == (["best again"] if sign * value == before else [])
        before = max(before, sign * value)


def test_before_the_first_evaluation_there_is_no_best_value(tmp_path: Path) -> None:
    fit_until(3, config_of(train={"best_metric": "loss"}), tmp_path / "run")
    status = read_status(tmp_path / "run")
    assert (status["best_metric"], status["best_value"], status["best_step"]) == (
        "loss",
        None,
        None,
    )


def test_every_line_has_a_training_loss_and_resuming_changes_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Evaluations at steps 7, 14 and 21 are between the logs at 5, 10, 15 and 20."""
    config = config_of(train={"max_steps": 24, "log_every": 5, "eval_every": 7})
    fit(config, tmp_path / "whole")
    whole = step_lines(capfd.readouterr().err)
    assert [int(line.split()[1]) for line in whole] == [7, 14, 21, 24]
    assert all("train/loss" in line for line in whole)

    # The metrics are logged as ever: training losses every five steps, and over all of them.
    rows = [
        json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows if "train/loss" in row] == [5, 10, 15, 20, 24]
    every_step = config_of(train={"max_steps": 24, "log_every": 1, "eval_every": 7})
    fit(every_step, tmp_path / "single")
    single = {
        row["step"]: row["train/loss"]
        for row in map(json.loads, (tmp_path / "single/metrics.jsonl").read_text().splitlines())
    }
    assert rows[0]["train/loss"] == pytest.approx(sum(single[step] for step in range(1, 6)) / 5)
    expected = (single[6] + single[7]) / 2
    assert f"train/loss {expected:.4f}" in whole[0]

    # Stopped between the log of step 10 and the evaluation of step 14.
    capfd.readouterr()
    fit_until(12, config, tmp_path / "run")
    resume(tmp_path / "run")
    assert step_lines(capfd.readouterr().err) == whole


def test_a_sample_of_the_validation_file_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_rows(300))
    config = files_config(path, train={"eval_samples": 9})
    fit(config, tmp_path / "sample")
    said = capfd.readouterr().err
    size = re.search(r"validating on 9 of (\d+) sequences \(train.eval_samples\)", said)
    assert size
    assert all("(of 9 sequences)" in line for line in step_lines(said))

    fit(files_config(path, train={"eval_samples": int(size[1])}), tmp_path / "all")
    said = capfd.readouterr().err
    assert "validating on" not in said
    assert "sequences)" not in said


def test_training_on_files_says_how_they_are_split(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_rows(300))
    config = files_config(path)
    fit(config, tmp_path / "shared")
    said = capfd.readouterr().err
    split = r"^(\d+) sequences for training, (\d+) for validation, (\d+) for the test$"
    (sizes,) = re.findall(split, said, re.MULTILINE)
    assert sum(map(int, sizes)) == 300
    assert said.index("for training") < said.index("step ")

    # A split that has a file of its own has all of it.
    own = write_jsonl(tmp_path / "own.jsonl", some_rows(300)[:50])
    task = load_task(files_config(path, val=str(own), test_fraction=0.0))
    assert task.described_split == (
        f"300 sequences for training, 50 of {own} for validation, 0 for the test"
    )


# --- a run that does not learn


@pytest.mark.row("T1")
def test_a_run_at_chance_warns_once_on_the_way_and_at_its_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The evaluation of step 105 is the first one after this; a quarter of the run is earlier.
    monkeypatch.setattr(advice, "EARLY_STEPS", 100)
    config = config_of(**AT_CHANCE, train={"max_steps": 130, "log_every": 15, "eval_every": 15})
    fit_until(110, config, tmp_path / "run")
    said = capfd.readouterr().err
    assert re.findall(r"warning\[T1\]: .*? \((.*)\) at step (\d+)", said) == [
        ("1.0986 = ln 3", "105")
    ]
    assert "try:      optimizer.lr=1e-3" in said
    resume(tmp_path / "run")
    assert re.findall(r"at step (\d+)$", warned(capfd.readouterr().err)) == ["130"]


@pytest.mark.parametrize(
    ("max_steps", "warmup", "step"),
    [(2000, 0, 1050), (8000, 0, 2100), (2000, 900, 1800), (2000, 2000, 1050)],
)
def test_a_run_is_looked_at_after_a_quarter_1000_steps_and_twice_the_warm_up(
    max_steps: int, warmup: int, step: int
) -> None:
    train = {"max_steps": max_steps, "eval_every": 150}
    task = load_task(config_of(train=train, schedule={"warmup_steps": warmup}))
    assert [one for one in range(max_steps) if advice.is_early_look(task, one)] == [step]


def warned(text: str) -> str:
    return "\n".join(line for line in text.splitlines() if "warning[T1]" in line)


def test_a_run_that_learns_and_a_trial_of_few_steps_do_not_warn(
    trained: tuple[Path, Completed], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "T1" not in trained[1].stderr
    fit(config_of(**AT_CHANCE, train={"max_steps": 49}), tmp_path / "trial")
    assert "T1" not in capfd.readouterr().err


def test_a_warm_up_longer_than_the_run_is_named_as_the_cause(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fit(
        config_of(schedule={"warmup_steps": 10**6}, train={"max_steps": 100}),
        tmp_path / "run",
    )
    said = capfd.readouterr().err
    assert "likely:   the warm-up of 1,000,000 steps is not over" in said
    assert "try:      schedule.warmup_steps=3" in said


def test_accuracy_above_that_of_guessing_does_not_hide_a_loss_that_is_no_better() -> None:
    """As after 2,000 steps of configs/sum_mod_10_plain.yaml with a warm-up of a million steps."""
    task = load_task(load_config(ROOT / "configs/sum_mod_10_plain.yaml"))
    scalars = {"train/loss": 2.3007, "val/loss": 2.3001, "val/accuracy": 0.144}
    assert advice.is_guessing(task, scalars)
    assert not advice.is_guessing(task, scalars | {"val/loss": 2.25})
    assert not advice.is_guessing(task, scalars | {"train/loss": 2.25})


def test_guessing_on_files_is_the_entropy_of_their_classes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nine of ten rows have one label. With balanced weights, guessing costs ln 2 in training."""
    rows = [(sequence, int(index % 10 == 0)) for index, (sequence, _) in enumerate(some_rows(600))]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    for weights in ("none", "balanced"):
        train = {"max_steps": 100, "log_every": 100, "class_weights": weights}
        config = files_config(path, train=train)
        slow = config_of(**AT_CHANCE)
        config = config.model_copy(update={"optimizer": slow.optimizer, "schedule": slow.schedule})
        fit(config, tmp_path / weights)
        (loss,) = re.findall(r"T1.*\((.*) = the entropy", capfd.readouterr().err)
        assert float(loss) == pytest.approx(0.325, abs=0.03)  # -0.9 ln 0.9 - 0.1 ln 0.1


def test_one_class_has_a_warning_of_its_own_and_no_other(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [(sequence, 0) for sequence, _ in some_rows(100)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    fit(files_config(path, train={"max_steps": 60}), tmp_path / "run")
    said = capfd.readouterr().err
    assert "D4" in said
    assert "T1" not in said


@pytest.mark.slow
def test_what_the_warning_says_about_missing_short_sequences_helps(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def train(name: str, *overrides: str, init_from: Path | None = None) -> str:
        words = [*overrides, "train.max_steps=2000", "train.plots=false", "device=cpu"]
        config = load_config(ROOT / "configs/sum_mod_10_plain.yaml", words)
        state = fit(config, tmp_path / name, init_from)
        return f"{state.best_accuracy:.2f} {warned(capfd.readouterr().err)}"

    long = ("data.min_length=3", "data.max_length=12")
    said = train("long", *long)
    assert said.startswith("0.1")
    assert "at step 1,000" in said
    assert "at step 2,000" in said

    assert train("mixed", "data.min_length=1", "data.max_length=12") == "1.00 "
    assert train("short", "data.min_length=1", "data.max_length=5") == "1.00 "
    assert train("continued", *long, init_from=tmp_path / "short") == "1.00 "


# --- train --check


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
    }


def test_check_fits_one_batch_and_writes_nothing(tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "rows.jsonl", some_rows(200))
    configs = [
        saved(config_of(optimizer={"lr": 1e-2}), tmp_path / "sum.yaml"),
        saved(files_config(rows), tmp_path / "files.yaml"),
    ]
    before = tree(tmp_path)
    for config in configs:
        words = ["--device", "cpu", "optimizer.lr=2e-2", "model.hidden_size=32"]
        done = run_rnncls("train", "-c", config, "--check", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "T2" not in done.stderr
        # Generated data is not split.
        assert ("sequences for training" in done.stderr) == (config == configs[1])
        losses = re.search(r"50 steps on it: loss ([\d.]+) -> ([\d.]+)", done.stdout)
        assert losses
        assert float(losses[2]) < 0.95 * float(losses[1])
        assert "engine: eager steps on cpu, 1 thread" in done.stdout
        assert re.search(r"time: about \d+ (s|min) for (40|24) steps", done.stdout)
    assert tree(tmp_path) == before


def test_the_speed_of_an_engine_that_takes_all_steps_at_once_is_measured() -> None:
    def at_once(_state: TrainState, _task: Task) -> Generator[int, None, None]:
        yield 40

    assert check.steps_per_second(at_once, load_task(config_of()), None) > 4000


@pytest.mark.row("T2")
def test_check_warns_if_the_loss_of_one_batch_does_not_fall(tmp_path: Path) -> None:
    config = saved(config_of(**AT_CHANCE), tmp_path / "c.yaml")
    done = run_rnncls("train", "-c", config, "--check", cwd=tmp_path)
    assert done.returncode == 0
    assert "warning[T2]" in done.stderr
    assert "optimizer.lr=1e-08" in done.stderr


def test_check_has_the_errors_of_training(fails: Callable[..., str], tmp_path: Path) -> None:
    config = saved(config_of(), tmp_path / "c.yaml")
    missing = saved(files_config(tmp_path / "no.jsonl"), tmp_path / "f.yaml")
    before = tree(tmp_path)
    assert "--check" in fails(2, "train", "--resume", tmp_path / "run", "--check", cwd=tmp_path)
    fails(3, "train", "-c", missing, "--check", cwd=tmp_path)
    fails(2, "train", "-c", config, "--check", "--run-dir", tmp_path, cwd=tmp_path)
    assert tree(tmp_path) == before


# --- the run directory, signals and terminals


def test_a_failure_before_there_is_a_run_directory_names_none(tmp_path: Path) -> None:
    config = saved(config_of(), tmp_path / "c.yaml")
    missing = saved(files_config(tmp_path / "no.jsonl"), tmp_path / "f.yaml")
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    commands: list[list[str | Path]] = [
        ["-c", missing],
        ["-c", config, "--device", "cuda:999"],
        ["-c", config, "--run-dir", used],
        ["--resume", tmp_path / "nowhere"],
    ]
    for words in commands:
        done = run_rnncls("train", *words, cwd=tmp_path)
        assert done.returncode in (2, 3, 4, 5)
        assert done.stdout == ""


def test_a_resumed_run_names_its_directory_at_once(tmp_path: Path) -> None:
    fit(config_of(), tmp_path / "run")
    done = run_rnncls("train", "--resume", tmp_path / "run", "train.max_steps=50")
    assert done.stdout.splitlines()[0] == f"run directory: {tmp_path / 'run'}"


@pytest.mark.usefixtures("signals_not_ignored")
def test_an_interrupted_run_says_how_to_resume_and_not_error(tmp_path: Path) -> None:
    config = saved(config_of(), tmp_path / "c.yaml")
    run_dir = tmp_path / "a run"
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7, signal.SIGINT)
        done = run_rnncls("train", "-c", config, "--run-dir", run_dir)
    assert done.returncode == 130
    command = f"rnncls train --resume '{run_dir}'"
    assert done.stderr.endswith(f"\ninterrupted at step 8, saved; resume with: {command}\n")
    assert "error" not in done.stderr
    assert read_status(run_dir)["error_id"] == "R4"


def on_terminal(columns: int, *words: str | Path) -> list[str]:
    """Run `rnncls words` on a terminal so wide; returns all that stood on one of its rows."""
    command = " ".join([PYTHON, "-m", "rnncls", *map(str, words)])
    done = run_command(
        ["script", "-qec", f"stty rows 40 cols {columns}; {command}", "/dev/null"],
        env={**os.environ, "TERM": "xterm"},
    )
    assert done.returncode == 0, done.stdout
    return re.split(r"[\r\n]+", done.stdout)


@pytest.mark.slow
def test_the_bar_of_a_run_has_epoch_loss_metric_and_rate(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", some_rows(2000))
    train = {"max_steps": 1200, "max_epochs": 9, "log_every": 50, "eval_every": 200}
    config = saved(files_config(path, train={**train, "best_metric": "macro_f1"}), tmp_path / "c")
    config = config.rename(tmp_path / "c.yaml")
    rows = on_terminal(120, "train", "-c", config, "--run-dir", tmp_path / "run")
    assert rows[0] == "loading torch ..."
    bars = [row for row in rows if "/1,200" in row]
    assert re.search(
        r"1,200/1,200, 00:00 left, epoch 6/6, loss \d\.\d{4}, val/macro_f1 \d\.\d{4}, lr 0\.0001",
        bars[-1],
    )
    assert any(re.search(r"epoch [2-5]/6", bar) for bar in bars)


@pytest.mark.slow
def test_the_bar_of_a_sweep_moves_and_counts_members_at_70_columns(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    config = ROOT / "configs/smoke.yaml"
    words = ["--seeds", "0-3", "--jobs", "2", "train.max_steps=1000", "device=cpu"]
    rows = on_terminal(70, "sweep", "-c", config, *words, "--sweep-dir", tmp_path / "sweep")
    bars = [row for row in rows if " of 4 members" in row]
    assert all(len(bar) <= 70 for bar in bars)
    assert bars[0].startswith("0 of 4 members, 0 solved |")
    assert re.fullmatch(r"4 of 4 members, 4 solved \|.*\| 4,000/4,000 steps, 00:00 left", bars[-1])

    # It moves while members train, not only when they end.
    counts = {re.search(r"([\d,]+)/4,000", bar)[1] for bar in bars}  # type: ignore[index]
    assert len(counts) > 4


def test_in_a_pipe_nothing_is_said_about_loading(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    load_torch()
    assert capfd.readouterr().err == ""
