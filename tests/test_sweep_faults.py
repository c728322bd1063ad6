"""Sweeps whose members, folders, files or neighbours are not as they should be."""

import json
import math
import shutil
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnncls.config import dump_config
from rnncls.errors import CheckpointError, ConfigError, NonFiniteError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.sweep.evaluate import evaluate_all
from rnncls.sweep.members import run_sweep
from rnncls.sweep.outcomes import Outcome, outcomes
from rnncls.sweep.plan import Sweep, load_sweep, plan_sweep
from rnncls.sweep.plots.by_length import accuracy_by_length
from rnncls.sweep.plots.draw import draw
from rnncls.sweep.results import Evaluation, read_evaluation
from rnncls.sweep.summary import mean, summarize, summarize_setting
from rnncls.sweep.text import accuracy_table
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import (
    PYTHON,
    SAFETY_S,
    config_of,
    files_config,
    run_command,
    run_rnncls,
    some_rows,
    started,
    wait_for,
    write_jsonl,
)

row = pytest.mark.row

TINY: dict[str, Any] = {"train": {"max_steps": 6, "log_every": 2, "eval_samples": 20}}


def tiny(
    folder: Path, seeds: str = "0-1", grid: dict[str, list[str]] | None = None, **sections: Any
) -> Sweep:
    config = config_of(**{**TINY, **sections})
    return plan_sweep(config, seeds, grid or {}, None, 20, folder / "sweep")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(config_of(**TINY)))
    return path


# --- the plan


@pytest.mark.slow
def test_large_sweeps_can_be_read_back_or_are_refused(tmp_path: Path) -> None:
    made = plan_sweep(config_of(), "0-1999", {}, "1-12000", 10, tmp_path / "s")
    assert load_sweep(tmp_path / "s") == made
    many = [f"{number / 1e9:.9f}" for number in range(1, 6000)]
    with pytest.raises(ConfigError, match="very large grid"):
        plan_sweep(
            config_of(schedule={"min_lr": 0.0}),
            "0",
            {"optimizer.lr": many},
            None,
            10,
            tmp_path / "t",
        )
    axes = {
        f"optimizer.{name}": [str(number) for number in range(60)]
        for name in ("lr", "eps", "momentum")
    }
    with pytest.raises(ConfigError, match="very large sweep"):
        plan_sweep(
            config_of(),
            "0-9",
            axes | {"train.batch_size": list(map(str, range(60)))},
            None,
            10,
            tmp_path / "t",
        )
    assert not (tmp_path / "t").exists()


def test_shards_that_begin_together_make_one_plan(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = tmp_path / str(attempt)
        if attempt % 2:
            folder.mkdir()
            (folder / ".tmp-1-sweep.yaml").write_text("of one that was killed")
        with ThreadPoolExecutor(4) as pool:
            made = [
                pool.submit(plan_sweep, config_of(), "0-2", {}, None, 10, folder) for _ in range(4)
            ]
        assert all(future.result() == load_sweep(folder) for future in made)
        assert {path.name for path in folder.iterdir()} == {"sweep.yaml", ".lock"}


@row("C17")
@pytest.mark.parametrize(
    "words",
    [
        ["--grid", "optimizer.lr=1e-2,2e-2", "--grid", "optimizer.lr=3e-2,4e-2"],
        ["--grid", "seed=5,6"],
        ["seed=7"],
        ["--grid", "optimizer.lr=1e-2,0.01"],
        ["--grid", "optimizer.betas=[0.9,0.9],[0.9,0.90]"],
        ["--grid", "optimizer.lr=1e-2,,"],
        ["--seeds", "1,1"],
        ["--lengths", "0"],
    ],
)
def test_two_members_that_would_be_the_same_are_refused(
    words: list[str], config: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    assert "C17" in fails(2, "sweep", "-c", config, "--sweep-dir", tmp_path / "s", *words)
    assert not (tmp_path / "s").exists()


def test_lists_and_paths_can_be_swept(tmp_path: Path) -> None:
    files = [str(write_jsonl(tmp_path / f"{name}.jsonl", some_rows(30))) for name in "ab"]
    base = files_config(Path(files[0]), dict(TINY["train"]))
    made = plan_sweep(
        base,
        "0",
        {"data.train": files, "optimizer.betas": ["[0.9, 0.9]", "[0.8, 0.9]"]},
        None,
        9,
        tmp_path / "s",
    )
    assert [member.config.optimizer.betas[0] for member in made.members] == [0.9, 0.8, 0.9, 0.8]
    assert set(made.fingerprints) == set(files)
    assert all("/" not in member.name for member in made.members)


@row("C4")
@pytest.mark.parametrize(
    "change",
    [
        {"seeds": 5},
        {"grid": []},
        {"grid": {"optimizer.lr": 5}},
        {"grid": {"optimizer.lr": "12"}},
        {"lengths": 5},
        {"lengths": "x"},
        {"config": None},
        {"samples": 0},
        {"samples": "x"},
        {"fingerprints": {"a": 1}},
        {"more": 1},
    ],
)
def test_a_plan_that_was_changed_by_hand_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    tiny(tmp_path)
    path = tmp_path / "sweep" / "sweep.yaml"
    kept = "".join(
        line for line in path.read_text().splitlines(True) if not line.startswith(tuple(change))
    )
    if "config" in change:
        kept = "".join(line for line in kept.splitlines(True) if not line.startswith(" "))
    path.write_text(kept + json.dumps(change)[1:-1].replace('": ', '": ', 1) + "\n")
    with pytest.raises(ConfigError):
        load_sweep(tmp_path / "sweep")


@row("C17", "R26")
def test_options_that_would_be_ignored_are_refused(
    config: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    sweep = tiny(tmp_path).folder
    assert "C17" in fails(2, "sweep", "--resume", sweep, "--seeds", "0-9")
    assert "C17" in fails(2, "sweep", "--resume", sweep, "optimizer.lr=1")
    for words in (["--confusion"], ["--data", "x"], ["--device", "cpu"]):
        assert "not available for sweeps" in fails(2, "eval", sweep, *words)
    data = files_config(write_jsonl(tmp_path / "d.jsonl", some_rows(40)), dict(TINY["train"]))
    (tmp_path / "files.yaml").write_text(dump_config(data))
    words = [f"{tmp_path / 'files.yaml'}", "--sweep-dir", f"{tmp_path / 'f'}", "--lengths", "3"]
    assert "generated data only" in fails(2, "sweep", "-c", *words)
    plan_sweep(data, "0", {}, None, 10, tmp_path / "f")
    assert "generated data only" in fails(2, "eval", tmp_path / "f", "--lengths", "3")
    (tmp_path / "file").write_text("")
    assert "R9" in fails(6, "sweep", "-c", config, "--sweep-dir", tmp_path / "file")


# --- members


def test_a_member_that_cannot_run_harms_no_other(config: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "sweep",
        "-c",
        config,
        "--seeds",
        "0-3",
        "--jobs",
        "1",
        "--sweep-dir",
        tmp_path / "t",
    ]
    tiny_sweep = plan_sweep(config_of(**TINY), "0-3", {}, None, 10_000, tmp_path / "t")
    member = tiny_sweep.run_dir(tiny_sweep.members[0])
    member.mkdir(parents=True)
    (member / "mine.txt").write_text("precious")
    for _ in range(2):
        done = run_rnncls(*words)
        assert done.returncode == 2
        assert "member failed: seed=0" in done.stderr
        assert "3 of 4 runs finished" in done.stdout
        assert [path.name for path in member.iterdir()] == ["mine.txt"]


def test_weights_that_are_not_finite_from_the_start_are_a_failure_that_counts(
    tmp_path: Path,
) -> None:
    sweep = tiny(tmp_path, grid={"model.init_gain": ["1.0", "1e39"]})
    failed = run_sweep(sweep)
    assert [type(error) for _, error in failed] == [NonFiniteError] * 2
    good, wild = summarize(sweep).settings
    assert good.statistics
    assert wild.statistics
    assert (good.ended, good.statistics.diverged) == (2, 0)
    assert (wild.ended, wild.statistics.diverged) == (2, 2)
    success = wild.statistics.success[0.99]
    assert (success.count, success.of, success.rate) == (0, 2, 0.0)
    assert [type(error) for _, error in run_sweep(sweep)] == [NonFiniteError] * 2


def write_status(run_dir: Path, **values: object) -> None:
    """As a process of rnncls would, with the values that the test is about."""
    (run_dir / "status.json").write_text(json.dumps(values))


def test_a_failure_of_the_machine_is_no_result(tmp_path: Path) -> None:
    sweep = tiny(tmp_path)
    assert run_sweep(sweep) == []
    member = sweep.run_dir(sweep.members[0])
    (member / "evaluation.json").unlink()
    write_status(member, state="failed", exit_code=6, error_id="R9", step=4, best_accuracy=None)
    (setting,) = summarize(sweep).settings
    assert setting.statistics
    assert (setting.members, setting.ended, setting.broken) == (2, 1, ["R9"])
    assert setting.statistics.diverged == 0
    evaluation = evaluate_all(sweep.folder, None, None)
    assert list(evaluation.by_member) == ["seed=1"]
    assert evaluation.left_out == {"seed=0": "failed R9"}
    assert "left out: seed=0: failed R9" in accuracy_table(evaluation)


def test_members_that_diverged_are_zero_everywhere(tmp_path: Path) -> None:
    train = {**TINY["train"], "max_grad_norm": None}
    sweep = tiny(
        tmp_path, grid={"optimizer.lr": ["1e-3", "1e30"]}, train=train, schedule={"warmup_steps": 0}
    )
    assert len(run_sweep(sweep)) == 2
    evaluation = evaluate_all(sweep.folder, [1, 2], None)
    assert evaluation.diverged == ["lr=1e30_seed=0", "lr=1e30_seed=1"]
    assert evaluation.by_member["lr=1e30_seed=0"] == {1: 0.0, 2: 0.0}
    axes = accuracy_by_length(outcomes(sweep)).axes[0]
    assert axes.get_title() == "4 members, 0 solved, 2 not finite"
    medians = {line.get_label(): list(np.asarray(line.get_ydata())) for line in axes.lines}
    assert set(medians["lr=1e30: not solved, 2 of 2"]) == {0.0}
    assert min(medians["lr=1e-3: not solved, 2 of 2"]) > 0


def test_numbers_that_overflow_in_a_long_test_are_errors(tmp_path: Path) -> None:
    config = config_of(**TINY, model={"init_gain": 30.0, "nonlinearity": "relu"})
    sweep = plan_sweep(config, "0", {}, "200", 20, tmp_path / "s")
    assert run_sweep(sweep) == []
    raw = json.loads((sweep.run_dir(sweep.members[0]) / "evaluation.json").read_text())
    assert raw["loss"] is None
    assert {at["length"]: at["accuracy"] for at in raw["by_length"]}[200] == 0


def test_training_lengths_are_always_tested_and_success_is_theirs(tmp_path: Path) -> None:
    config = config_of(**TINY, data={"max_length": 60})
    sweep = plan_sweep(config, "0-1", {}, "70", 20, tmp_path / "s")
    assert run_sweep(sweep) == []
    (setting,) = summarize(sweep).settings
    assert setting.statistics
    lengths = list(setting.statistics.by_length)
    assert (lengths[0], lengths[-2:], len(lengths)) == (1, [60, 70], 21)
    for outcome in outcomes(sweep):
        assert outcome.evaluation
        trained = [at.accuracy for at in outcome.evaluation.by_length if at.length <= 60]
        assert outcome.accuracy == pytest.approx(sum(trained) / 20)
        assert all(at.length <= 60 or not at.trained for at in outcome.evaluation.by_length)


def test_a_member_that_was_trained_further_is_not_counted_and_not_mixed_in(tmp_path: Path) -> None:
    sweep = tiny(tmp_path)
    assert run_sweep(sweep) == []
    resume(sweep.run_dir(sweep.members[0]), ["train.max_steps=9"])
    assert summarize(sweep).settings[0].ended == 1
    ((member, error),) = run_sweep(sweep)
    assert member.name == "seed=0"
    assert "train.max_steps: 6 -> 9" in error.render()


@row("K2")
def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path) -> None:
    train = {**TINY["train"], "checkpoint_every": 2, "keep_checkpoints": 3}
    sweep = tiny(tmp_path, train=train)
    assert run_sweep(sweep) == []
    kept = {
        n: (sweep.run_dir(m) / "metrics.jsonl").read_bytes() for n, m in enumerate(sweep.members)
    }
    member = sweep.run_dir(sweep.members[0])
    newest = find_newest(member)
    newest.write_bytes(newest.read_bytes()[:-7])
    (member / "evaluation.json").unlink()
    evaluation = evaluate_all(sweep.folder, None, None)
    assert list(evaluation.left_out) == ["seed=0"]
    write_status(
        member, state="interrupted", exit_code=143, error_id="R4", step=6, best_accuracy=None
    )
    assert run_sweep(sweep) == []
    rows = [json.loads(line) for line in (member / "metrics.jsonl").read_text().splitlines()]
    assert [at["step"] for at in rows] == [
        json.loads(line)["step"] for line in kept[0].splitlines()
    ]


@row("R26")
def test_a_member_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    sweep = tiny(tmp_path)
    fit(sweep.members[0].config, sweep.run_dir(sweep.members[0]))
    member = sweep.run_dir(sweep.members[0])
    code = "import pathlib, sys; from rnncls.rundir.lock import locked\n"
    code += "with locked(pathlib.Path(sys.argv[1])):\n print(1, flush=True); input()"
    write_status(member, state="interrupted", exit_code=143, error_id="R4", step=6)
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with started([PYTHON, "-c", code, member], **streams) as other:
        assert other.stdout
        other.stdout.readline()
        assert run_sweep(sweep) == []
        assert summarize(sweep).settings[0].ended == 1
        other.communicate("\n")
    assert run_sweep(sweep) == []
    assert summarize(sweep).settings[0].ended == 2


@row("D18")
def test_files_that_changed_are_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(60))
    sweep = plan_sweep(files_config(path, dict(TINY["train"])), "0-1", {}, None, 10, tmp_path / "s")
    assert run_sweep(sweep) == []
    write_jsonl(path, some_rows(50))
    with pytest.raises(CheckpointError, match="changed since the sweep began"):
        run_sweep(sweep)
    with pytest.raises(CheckpointError, match="has changed"):
        evaluate_all(sweep.folder, None, None)


def test_success_on_files_is_by_sequences(tmp_path: Path) -> None:
    rows = some_rows(80, longest=3) + some_rows(20, longest=30)
    sweep = plan_sweep(
        files_config(write_jsonl(tmp_path / "d.jsonl", rows), dict(TINY["train"])),
        "0",
        {},
        None,
        10,
        tmp_path / "s",
    )
    assert run_sweep(sweep) == []
    raw = json.loads((sweep.run_dir(sweep.members[0]) / "evaluation.json").read_text())
    (outcome,) = outcomes(sweep)
    assert outcome.accuracy == raw["accuracy"] == 1 - raw["errors"] / raw["examples"]
    chance = accuracy_by_length([outcome]).axes[0].lines[-1]
    assert np.asarray(chance.get_ydata()).tolist() == [raw["chance"]] * 2


@row("C4")
@pytest.mark.parametrize(
    "content",
    [
        "5",
        "null",
        '{"accuracy": 1, "by_length": 5}',
        "{",
        '{"by_length": [{}]}',
        '{"step": 1, "accuracy": 1, "chance": 0.5, "by_length": []}',
        # No axis can show a length of 10^300.
        '{"step": 1, "accuracy": 1, "chance": 0.5, "by_length": '
        f'[{{"length": 1{"0" * 300}, "accuracy": 1, "trained": true}}]}}',
    ],
)
def test_a_damaged_evaluation_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ConfigError, match="not an evaluation"):
        read_evaluation(tmp_path)


def test_evaluating_beside_others_does_not_change_how_later_members_train(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        sweep = tiny(tmp_path, "0-2", train={**TINY["train"], "num_threads": None})
        assert run_sweep(sweep, jobs=1) == []
        threads = [
            read_checkpoint(find_newest(sweep.run_dir(m))).state.versions["threads"]
            for m in sweep.members
        ]
        assert len(set(threads)) == 1
    finally:
        torch.set_num_threads(before)


def test_trouble_with_one_member_does_not_hide_the_others(tmp_path: Path) -> None:
    sweep = tiny(tmp_path, "0-3")
    assert run_sweep(sweep) == []
    (sweep.run_dir(sweep.members[0]) / "evaluation.json").write_text("{")
    shutil.rmtree(sweep.run_dir(sweep.members[1]))
    sweep.run_dir(sweep.members[1]).write_text("a file")
    failed = run_sweep(sweep)
    assert [member.name for member, _ in failed] == ["seed=0", "seed=1"]
    (setting,) = summarize(sweep).settings
    assert (setting.members, setting.ended, setting.broken) == (4, 2, ["C4", "R9"])
    done = run_rnncls("eval", sweep.folder)
    assert done.returncode == 0
    assert "left out: seed=1: not begun" in done.stdout


def test_a_group_that_diverged_as_a_whole_has_a_table_of_zeros(tmp_path: Path) -> None:
    config = config_of(**TINY, schedule={"warmup_steps": 0}, optimizer={"lr": 1e30})
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"max_grad_norm": None})}
    )
    sweep = plan_sweep(config, "0-1", {}, "9", 20, tmp_path / "s")
    assert len(run_sweep(sweep)) == 2
    summary = summarize(sweep)
    (setting,) = summary.settings
    assert setting.statistics
    by_length = setting.statistics.by_length
    assert {n: at.median for n, at in by_length.items()} == {1: 0, 2: 0, 3: 0, 4: 0, 9: 0}
    assert summary.to_json()["members"][0]["accuracy_at_9"] == 0
    assert draw(sweep, summary) == []


def test_the_groups_of_a_grid_are_told_apart_in_an_evaluation(tmp_path: Path) -> None:
    sweep = tiny(tmp_path, grid={"optimizer.lr": ["1e-3", "2e-2"]})
    assert run_sweep(sweep) == []
    evaluation = evaluate_all(sweep.folder, [4], None)
    lines = accuracy_table(evaluation).splitlines()
    for group, first in (("optimizer.lr=1e-3", 0), ("optimizer.lr=2e-2", 2)):
        values = [
            evaluation.by_member[member.name][4] for member in sweep.members[first : first + 2]
        ]
        assert lines[lines.index(group) + 1].split() == ["median", f"{sum(values) / 2:.4f}"]


@pytest.mark.slow
def test_progress_is_shown_on_a_terminal(config: Path, tmp_path: Path) -> None:
    words = f"sweep -c {config} --seeds 0-1 --sweep-dir {tmp_path / 's'}"
    command = f"stty rows 40 cols 120; {PYTHON} -m rnncls {words}"
    done = run_command(["script", "-qec", command, "/dev/null"])
    assert done.returncode == 0, done.stdout
    assert "12/12" in done.stdout
    assert "2 of 2 members" in done.stdout


# --- signals and time


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        signal.SIGUSR1,  # and SIGTERM after it
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
    ],
)
def test_every_running_member_hears_a_signal(
    kind: signal.Signals, config: Path, tmp_path: Path
) -> None:
    words: list[str | Path] = ["sweep", "-c", config, "train.max_steps=200000"]
    words += ["train.checkpoint_every=200000"]
    words += ["train.engine=auto", "--seeds", "0-3", "--jobs", "2", "--sweep-dir", tmp_path / "s"]
    with started([PYTHON, "-m", "rnncls", *words], stderr=subprocess.PIPE) as process:
        members = [tmp_path / "s" / "members" / f"seed={seed}" for seed in (0, 1)]
        wait_for(
            lambda: all(
                (path / "metrics.jsonl").exists() and (path / "metrics.jsonl").stat().st_size
                for path in members
            )
        )
        process.send_signal(kind)
        wait_for(lambda: all(len(list(path.glob("checkpoints/step-*"))) > 1 for path in members))
        if kind == signal.SIGUSR1:
            process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=SAFETY_S)
    assert process.returncode == 143
    assert "every member has saved" in said
    (group,) = json.loads((tmp_path / "s" / "summary.json").read_text())["groups"]
    assert group == {"group": "", "members": 4, "ended": 0, "broken": []}


def test_training_time_does_not_depend_on_how_often_is_logged(tmp_path: Path) -> None:
    sweep = tiny(tmp_path, "0")
    run_dir = sweep.run_dir(sweep.members[0])
    for every in (1, 3, 10):
        run_dir.mkdir(parents=True, exist_ok=True)
        steps = [*range(every, 10, every), 10]
        lines = [
            json.dumps({"step": step, "train/sequences_per_second": 16.0}) + "\n" for step in steps
        ]
        (run_dir / "metrics.jsonl").write_text("".join(lines))
        (outcome,) = outcomes(sweep)
        batch_size = sweep.members[0].config.train.batch_size
        assert outcome.train_s == pytest.approx(10 * batch_size / 16)


def test_a_mean_of_equal_accuracies_is_exactly_theirs() -> None:
    for value in (0.99, 0.999, 1.0):
        for count in range(1, 50):
            assert mean([value] * count) == value
    drawn = [math.sin(number) ** 2 for number in range(99)]
    assert mean(drawn) == pytest.approx(np.mean(drawn))


def test_lengths_are_counted_where_they_were_tested(tmp_path: Path) -> None:
    sweep = tiny(tmp_path, "0-2")
    ended = []
    for number, member in enumerate(sweep.members):
        rows = [{"length": n, "accuracy": 0.5, "trained": True} for n in (1, 2 + number)]
        raw = {"step": 6, "accuracy": 0.5, "chance": 0.1, "by_length": rows}
        ended.append(
            Outcome(member, "finished", 0, "", 6, Evaluation.model_validate(raw), (), None, None)
        )
    statistics = summarize_setting("", ended).statistics
    assert statistics
    by_length = statistics.by_length
    assert {n: at.min for n, at in by_length.items()} == {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.5}
    assert {n: at.success[0.99].of for n, at in by_length.items()} == {1: 3, 2: 1, 3: 1, 4: 1}
