"""Sweeps: members are ordinary runs, whatever happens to the sweep or to other members."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scipy.stats import trim_mean
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from rnncls.config import dump_config
from rnncls.config.ranges import parse_seeds
from rnncls.errors import ConfigError
from rnncls.evaluation.metrics import wilson_interval
from rnncls.rundir.events import image_of, log_images
from rnncls.sweep.plan import load_sweep, plan_sweep
from rnncls.sweep.summary import SuccessRate, fisher, horizon, interquartile_mean, success
from tests.helpers import (
    PYTHON,
    SAFETY_S,
    config_of,
    outcome,
    run_rnncls,
    started,
)

row = pytest.mark.row

CONFIG = {"train": {"max_steps": 60, "log_every": 20, "engine": "auto"}}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(config_of(**CONFIG)))
    return path


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A sweep over three seeds and two learning rates, and what it printed."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.yaml").write_text(dump_config(config_of(**CONFIG)))
    words: list[str | Path] = [
        "sweep",
        "-c",
        folder / "tiny.yaml",
        "--seeds",
        "0-2",
        "--grid",
        "optimizer.lr=1e-3,2e-2",
        "--lengths",
    ]
    done = run_rnncls(*words, "1-4,9", "--samples", "50", "--sweep-dir", folder / "sweep")
    assert done.returncode == 0, done.stderr
    return folder / "sweep", done.stdout


def test_a_member_is_what_train_makes_of_its_config(
    swept: tuple[Path, str], tmp_path: Path
) -> None:
    folder, _ = swept
    member = folder / "members" / "lr=2e-2_seed=1"
    words: list[str | Path] = [
        "-c",
        folder.parent / "tiny.yaml",
        "optimizer.lr=2e-2",
        "seed=1",
        "--run-dir",
        tmp_path / "run",
    ]
    assert run_rnncls("train", *words).returncode == 0
    assert outcome(member) == outcome(tmp_path / "run")
    # sweep.yaml says once for all members which file the config comes from.
    origin, _, config = (tmp_path / "run" / "config.yaml").read_text().partition("\n")
    assert origin == f"# from {folder.parent / 'tiny.yaml'}"
    assert (member / "config.yaml").read_text() == config
    assert run_rnncls("predict", member, "1 2").returncode == 0
    shutil.copytree(member, tmp_path / "copy")
    assert run_rnncls("train", "--resume", tmp_path / "copy", "train.max_steps=70").returncode == 0


def test_the_summary_says_what_the_members_say(swept: tuple[Path, str]) -> None:
    folder, printed = swept
    summary = json.loads((folder / "summary.json").read_text())
    assert [group["group"] for group in summary["groups"]] == [
        "optimizer.lr=1e-3",
        "optimizer.lr=2e-2",
    ]
    with (folder / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [entry["name"] for entry in rows] == sorted(entry["name"] for entry in rows)
    assert len(rows) == 6
    for entry in rows:
        evaluation = json.loads(
            (folder / "members" / entry["name"] / "evaluation.json").read_text()
        )
        of_length = {at["length"]: at["accuracy"] for at in evaluation["by_length"]}
        assert float(entry["accuracy_at_9"]) == of_length[9]
        assert float(entry["accuracy"]) == pytest.approx(sum(of_length[n] for n in range(1, 5)) / 4)
        assert entry["state"] == "finished"
    first, second = summary["groups"]
    values = [float(entry["accuracy_at_9"]) for entry in rows[:3]]
    assert first["by_length"]["9"]["median"] == sorted(values)[1]
    assert first["by_length"]["9"]["min"] == min(values)
    assert first["success"]["0.99"]["of"] == 3
    assert set(second["p_against_first"]) == {"0.99", "0.999", "1.0"}
    assert "optimizer.lr=2e-2\n3 of 3 runs finished" in printed


def test_pictures_are_drawn_and_shown_in_tensorboard(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    names = [
        "accuracy_by_length",
        "error_rate_by_length",
        "loss",
        "steps_to_solved",
        "success_rate",
    ]
    for name in names:
        content = (folder / "plots" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    events = EventAccumulator(str(folder / "summary"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == [f"whole_sweep/{name}" for name in names]
    assert {events.Images(tag)[0].step for tag in events.Tags()["images"]} == {6}

    (tables,) = events.Tensors("whole_sweep/tables/text_summary")
    assert tables.step == 6
    assert "| lr=2e-2 | 3 of 3 |" in tables.tensor_proto.string_val[0].decode()
    assert not list(folder.glob("events.out.tfevents.*"))
    assert len({path.parent for path in folder.glob("members/*/events.out.tfevents.*")}) == 6
    for member in folder.glob("members/*"):
        events = EventAccumulator(str(member))
        events.Reload()
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
        # Members that differ in their seed alone are one row.
        assert start.group_name == f"{member.name.rpartition('_')[0]} of {folder.resolve()}"


def test_pictures_of_earlier_versions_go_and_nothing_else(
    swept: tuple[Path, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(swept[0], tmp_path / "sweep")
    png = b"\x89PNG"
    tags = ("sweep/accuracy_by_length", "sweep/loss")
    log_images(folder, [image_of(tag, png, 1, 1) for tag in tags])
    foreign = folder / "events.out.tfevents.1.mine.1.0"
    foreign.write_bytes(b"mine")
    before = [path.name for path in (folder / "summary").iterdir()]
    assert run_rnncls("sweep", "--resume", folder).returncode == 0
    assert list(folder.glob("events.out.tfevents.*")) == [foreign]

    # Those of today are replaced, and not added to.
    (after,) = [path.name for path in (folder / "summary").iterdir()]
    assert [after] != before


def test_settings_stand_in_one_table_before_all_else(swept: tuple[Path, str]) -> None:
    folder, printed = swept
    table = printed.split("\n\n")[0].splitlines()
    assert " ".join(table[0].split()) == "setting ended >= 99 % >= 99.9 % 100 % median at 9"
    groups = json.loads((folder / "summary.json").read_text())["groups"]
    for line, name, group in zip(table[1:], ["lr=1e-3", "lr=2e-2"], groups, strict=True):
        counts = [str(success["count"]) for success in group["success"].values()]
        middle = f"{group['by_length']['9']['median']:.4f}"
        assert line.split() == [name, "3", "of", "3", *counts, middle]


def test_every_member_is_evaluated_in_one_table(swept: tuple[Path, str]) -> None:
    folder, _ = swept
    done = run_rnncls("eval", folder, "--lengths", "1-2,6", "--samples", "30")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["length", "1", "2", "6"]
    assert len(lines) == 1 + 6 + 2 * (2 + 4)
    evaluation = json.loads(
        run_rnncls("eval", folder, "--lengths", "1-2,6", "--samples", "30", "--json").stdout
    )
    assert f"{evaluation['accuracy']['lr=1e-3_seed=0']['6']:.4f}" == lines[1].split()[3]


@pytest.mark.slow  # three real kills, at moments that depend on the machine
def test_a_killed_sweep_resumes_and_ends_the_same(config: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "sweep",
        "-c",
        config,
        "train.max_steps=2000",
        "train.checkpoint_every=100",
    ]
    words += ["--seeds", "0-3", "--lengths", "1-4", "--sweep-dir"]
    whole = run_rnncls(*words, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr

    for number, kind in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
        resuming: list[str | Path] = ["sweep", "--resume"]
        command = [PYTHON, "-m", "rnncls", *(resuming if number else words), tmp_path / "killed"]
        with started(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
            seen = len(list((tmp_path / "killed").rglob("step-*")))
            until = time.monotonic() + SAFETY_S
            while process.poll() is None and time.monotonic() < until:
                if len(list((tmp_path / "killed").rglob("step-*"))) > seen + 2:
                    break
                time.sleep(0.02)
            process.send_signal(kind)
            process.communicate(timeout=SAFETY_S)
        if kind == signal.SIGTERM:
            assert process.returncode in (143, 0)
    last = run_rnncls("sweep", "--resume", tmp_path / "killed")
    assert last.returncode == 0, last.stderr
    assert last.stdout == whole.stdout
    for seed in range(4):
        one, other = (tmp_path / name / "members" / f"seed={seed}" for name in ("killed", "whole"))
        assert outcome(one) == outcome(other)
    again = run_rnncls("sweep", "--resume", tmp_path / "killed")
    assert again.stdout == whole.stdout


def test_shards_share_a_directory_and_make_one_sweep(
    config: Path, swept: tuple[Path, str], tmp_path: Path
) -> None:
    words: list[str | Path] = [
        "sweep",
        "-c",
        config,
        "--seeds",
        "0-2",
        "--grid",
        "optimizer.lr=1e-3,2e-2",
        "--lengths",
        "1-4,9",
    ]
    words += ["--samples", "50", "--sweep-dir", tmp_path / "sharded"]
    first = run_rnncls(*words, "--shard", "1/2")
    assert first.returncode == 0, first.stderr
    assert len(list((tmp_path / "sharded" / "members").iterdir())) == 3
    assert "of 3 runs finished" in first.stdout
    second = run_rnncls(*words, "--shard", "2/2")
    assert second.returncode == 0, second.stderr
    assert second.stdout == swept[1]

    # Before some of today's keys existed, the plan did not have them; the command is the same.
    plan = tmp_path / "sharded" / "sweep.yaml"
    before = plan.read_text()
    plan.write_text(re.sub(r"(?m)^ +(pooling|objective): .*\n", "", before))
    assert plan.read_text().count("\n") == before.count("\n") - 2
    again = run_rnncls(*words)
    assert (again.returncode, again.stdout) == (0, swept[1]), again.stderr

    other = run_rnncls(*words[:-1], tmp_path / "sharded", "train.batch_size=9")
    assert other.returncode == 2
    assert "another sweep is in this folder" in other.stderr


@row("R12")
def test_a_member_that_diverges_is_counted_and_harms_nobody(config: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "sweep",
        "-c",
        config,
        "--seeds",
        "0-1",
        "--grid",
        "optimizer.lr=1e-3,1e30",
        "train.max_grad_norm=null",
    ]
    done = run_rnncls(
        *words, "schedule.warmup_steps=0", "--lengths", "1-4", "--sweep-dir", tmp_path / "sweep"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("member failed: lr=1e30") == 2
    good, wild = json.loads((tmp_path / "sweep" / "summary.json").read_text())["groups"]
    assert (good["diverged"], good["ended"], wild["diverged"], wild["ended"]) == (0, 2, 2, 2)
    assert wild["success"]["0.99"]["count"] == 0
    assert wild["accuracy"]["mean"] == 0
    again = run_rnncls("sweep", "--resume", tmp_path / "sweep")
    assert again.stdout == done.stdout


@row("C17", "C19")
def test_bad_sweeps_are_refused_before_anything_is_made(
    config: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    base = ["sweep", "-c", config, "--sweep-dir", tmp_path / "sweep"]
    for words, part in (
        (["--seeds", "x"], "bad list of seeds"),
        (["--shard", "3/2"], "bad value for --shard"),
        (["--grid", "optimizer.lr"], "malformed axis"),
        (["optimizer.lr=1,1"], "different values"),
        (["optimizer.lr=1,x"], "bad value for optimizer.lr"),
        (["optimzer.lr=1,2"], "unknown key"),
        (["--resume", str(tmp_path)], "a resumed sweep keeps its original settings"),
    ):
        assert part in fails(2, *base, *words)
        assert not (tmp_path / "sweep").exists()
    assert "not a sweep" in fails(2, "sweep", "--resume", tmp_path / "nothing")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.txt").write_text("precious")
    assert "not empty" in fails(2, *base)


@pytest.mark.slow
def test_a_sweep_over_pooling_and_initial_state_makes_ordinary_runs(
    config: Path, tmp_path: Path
) -> None:
    base: list[str | Path] = ["sweep", "-c", config, "--seeds", "0", "--lengths", "1-2"]
    base += ["train.max_steps=6", "model.initial_state=zeros,learned"]
    for number, (axis, members) in enumerate(
        [("model.pooling=last,mean,max,last_mean_max", 8), ("train.objective=sequence,prefix", 4)]
    ):
        folder = tmp_path / str(number)
        done = run_rnncls(*base, axis, "--sweep-dir", folder)
        assert done.returncode == 0, done.stderr
        summary = json.loads((folder / "summary.json").read_text())
        assert (len(summary["groups"]), len(summary["members"])) == (members, members)
        for run_dir in (folder / "members").iterdir():
            assert run_rnncls("predict", run_dir, "1 2").returncode == 0
        assert run_rnncls("eval", folder, "--lengths", "1-3").returncode == 0


@row("C15")
def test_settings_that_contradict_each_other_are_refused_before_anything_trains(
    config: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    words: list[str | Path] = ["sweep", "-c", config, "--sweep-dir", tmp_path / "sweep"]
    words += ["train.objective=sequence,prefix"]
    for axis, found in (
        ("model.pooling=last,mean", "found:    prefix, model.pooling: mean"),
        ("model.bidirectional=false,true", "found:    prefix, model.bidirectional: true"),
    ):
        message = fails(2, *words, axis)
        assert "error[C15]" in message
        assert "train.objective" in message
        assert found in message
        assert not (tmp_path / "sweep").exists()


def test_eager_members_run_one_by_one(config: Path, tmp_path: Path) -> None:
    words: list[str | Path] = [
        "sweep",
        "-c",
        config,
        "--seeds",
        "0-1",
        "model.initial_state=learned",
        "train.max_steps=5",
        "--lengths",
        "1-2",
    ]
    done = run_rnncls(*words, "--sweep-dir", tmp_path / "sweep")
    assert done.returncode == 0, done.stderr
    assert "2 of 2 runs finished" in done.stdout


def test_a_plan_is_read_back(tmp_path: Path) -> None:
    grid = {"model.hidden_size": ["8", "16"], "optimizer.lr": ["1e-3"]}
    made = plan_sweep(config_of(), "3,5", grid, None, 10, tmp_path / "s")
    assert load_sweep(tmp_path / "s") == made
    assert [member.name for member in made.members] == [
        f"hidden_size={size}_lr=1e-3_seed={seed}" for size in (8, 16) for seed in (3, 5)
    ]
    assert made.members[2].config.model.hidden_size == 16
    (tmp_path / "s" / "sweep.yaml").write_text("a: 1\n")
    with pytest.raises(ConfigError, match="not a sweep"):
        load_sweep(tmp_path / "s")


@row("R33", by="unit")
def test_without_scipy_groups_are_shown_but_not_compared(
    swept: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    done = run_rnncls("sweep", "--resume", swept[0])
    assert done.returncode == 0
    assert "comparing settings needs scipy" in done.stderr
    assert "   p " in swept[1]
    assert done.stdout == re.sub("   p .*", "", swept[1])


def test_statistics() -> None:
    drawn = [((7 * number) % 23) / 23 for number in range(21)]
    for count in range(1, 21):
        assert interquartile_mean(drawn[:count]) == pytest.approx(trim_mean(drawn[:count], 0.25))
    expected = SuccessRate(count=2, of=3, rate=2 / 3, ci95=wilson_interval(2, 3))
    assert success([1.0, 0.99, 0.5], 0.99) == expected
    assert horizon({1: 1.0, 5: 0.9995, 10: 0.99, 100: 1.0}) == 5
    assert horizon({1: 0.5}) == 0
    tasting_tea = [success([1.0] * right + [0.0] * (4 - right), 1.0) for right in (3, 1)]
    assert fisher(*tasting_tea) == pytest.approx(0.4857, abs=1e-4)  # Fisher 1935, chapter 2
    assert parse_seeds("0-2,7, 9-9") == [0, 1, 2, 7, 9]
