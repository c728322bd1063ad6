"""Lists of runs, how two runs differ, and what a model consists of."""

import itertools
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rnncls.config import dump_config, load_config
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.rundir.listing import flat, saved_values
from rnncls.sweep.plan import plan_sweep
from rnncls.training.fit import fit
from tests.helpers import (
    ROOT,
    config_of,
    endless_run,
    files_config,
    run_command,
    run_python,
    run_rnncls,
    some_rows,
    write_jsonl,
)

SWEEP = ROOT / "tests" / "before" / "sweep"  # four members: lr of 1e-3 and 1e-2, seeds 0 and 1


def make_run(
    run_dir: Path, status: dict[str, Any] | None = None, hours: int = 0, **config: Any
) -> Path:
    """Write what a finished run has of what a list reads, with `status` in its status.json."""
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "config.yaml").write_text(dump_config(config_of(**config)))
    written = {
        "state": "finished",
        "exit_code": 0,
        "error_id": "",
        "step": 40,
        "best_accuracy": 0.5,
        "pid": 1,
        "updated_at": (datetime.now(UTC) - timedelta(hours=hours)).isoformat(timespec="seconds"),
        **(status or {}),
    }
    (run_dir / "status.json").write_text(json.dumps(written))
    return run_dir


def listed(folder: Path, *words: str) -> list[dict[str, Any]]:
    """Return the rows of `rnncls runs ls --json`, with the names relative to the folder."""
    done = run_rnncls("runs", "ls", folder, "--json", *words)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    for row in rows:
        row["run"] = str(Path(row["run"]).relative_to(folder))
    return rows


def names(folder: Path, *words: str) -> list[str]:
    return [row["run"] for row in listed(folder, *words)]


def test_runs_are_listed_newest_first(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fit(config_of(), tmp_path / "runs" / "x" / name)
    old = json.loads((tmp_path / "runs" / "x" / "a" / "status.json").read_text())
    old |= {"updated_at": "2020-01-01T00:00:00+00:00", "state": "running"}
    (tmp_path / "runs" / "x" / "a" / "status.json").write_text(json.dumps(old))
    stamp = '"updated_at": "2026-01-01T00:00:00+00:00"'
    broken = [
        "[",
        "[]",
        '{"state": "running"}',
        '{"state": 1, "step": "x", "best_accuracy": [], "exit_code": 0, ' + stamp + "}",
    ]
    for number, text in enumerate(broken):
        (tmp_path / "runs" / "x" / f"broken{number}").mkdir()
        (tmp_path / "runs" / "x" / f"broken{number}" / "status.json").write_text(text)
    rows = json.loads(run_rnncls("runs", "ls", "--json", cwd=tmp_path).stdout)
    assert [(run["run"], run["state"], run["step"]) for run in rows] == [
        ("runs/x/b", "finished", 40),
        ("runs/x/a", "died", 40),
    ]

    lines = run_rnncls("runs", "ls", tmp_path / "runs").stdout.splitlines()
    assert lines[0].split() == ["state", "step", "val/accuracy", "seed", "cell", "age", "run"]
    assert lines[1].split()[:2] == ["finished", "40"]
    assert lines[1].endswith("/runs/x/b")


# What no run can have: only a file that rnncls did not write says it.
ODD: dict[str, dict[str, Any]] = {
    "tomorrow": {"updated_at": "9999-12-31T23:59:59+00:00"},
    "no clock": {"updated_at": "1970-01-01T00:00:09+00:00"},
    "long ago": {"updated_at": "0001-01-01T00:00:00+00:00"},
    "ahead": {"updated_at": (datetime.now(UTC) + timedelta(hours=2)).isoformat()},
    "large": {"best_metric": "loss", "best_value": 1e308},
    "a text": {"best_metric": "loss", "best_value": "1e999"},
    "a digit": {"step": 10**300},
    "float": {"step": 1e308},
    "another": {"best_step": -(10**300)},
    "code": {"exit_code": 1e300},
    "nothing": {"step": None},
}
LEFT_OUT = ["a digit", "code", "float", "nothing"]


def test_numbers_that_no_run_has_do_not_break_a_list(tmp_path: Path) -> None:
    for name, status in ODD.items():
        make_run(tmp_path / name, status)
    # As Python writes it, which no other reader takes for JSON.
    make_run(tmp_path / "nan", {"best_value": float("nan"), "best_metric": "loss"})

    rows = {row["run"]: row for row in listed(tmp_path)}
    assert sorted(rows) == sorted({*ODD, "nan"} - {*LEFT_OUT})
    for name in ("tomorrow", "no clock", "long ago"):
        assert rows[name]["age_s"] is None
    assert rows["ahead"]["age_s"] == 0
    assert rows["large"]["best_value"] == 1e308
    assert rows["nan"]["best_value"] is rows["a text"]["best_value"] is None
    assert rows["another"]["best_step"] is None

    # Those of no known age come last.
    assert {*names(tmp_path)[-3:]} == {"tomorrow", "no clock", "long ago"}
    shown = run_rnncls("runs", "ls", tmp_path).stdout
    assert max(map(len, shown.splitlines())) < 100 + len(str(tmp_path))
    assert "1e+308" in shown


def test_whatever_a_list_has_is_json(tmp_path: Path) -> None:
    sweep = shutil.copytree(SWEEP, tmp_path / "sweep")
    for path in sweep.glob("members/*/status.json"):
        status = {**json.loads(path.read_text()), "best_metric": "loss", "best_value": 1.7e308}
        path.write_text(json.dumps({**status, "updated_at": "9999-12-31T00:00:00+00:00"}))
    # Before 1970, and so far ahead that no date has a number for it.
    for time in (-(10**9), 10**12):
        with suppress(OSError):
            os.utime(sweep / "sweep.yaml", (time, time))
        text = run_rnncls("runs", "ls", tmp_path, "--json").stdout
        (row,) = json.loads(text, parse_constant=pytest.fail)
        assert (row["age_s"], row["median"], row["best_value"]) == (None, None, 1.7e308)
        assert run_rnncls("runs", "ls", tmp_path).returncode == 0

    # What a comparison says comes from the same files, and from those of metrics.
    one = make_run(tmp_path / "one")
    other = make_run(tmp_path / "other", {"best_value": float("nan"), "best_metric": "loss"})
    (other / "metrics.jsonl").write_text('{"step": 1, "train/loss": NaN, "val/loss": Infinity}\n')
    done = run_rnncls("runs", "diff", one, other, "--json")
    assert json.loads(done.stdout, parse_constant=pytest.fail)["result"]


def test_a_huge_text_does_not_make_a_wide_list(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path / "run")
    make_run(tmp_path / "other", hours=1)
    config = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(f"# from {'x' * 50_000}.yaml\n{config}")
    shown = run_rnncls("runs", "ls", tmp_path).stdout
    assert " ... " in shown
    assert max(map(len, shown.splitlines())) < 150 + len(str(run_dir))


@pytest.mark.slow
def test_a_tree_of_any_depth_is_searched(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for _ in range(1200):
            Path("d").mkdir()
            os.chdir("d")
        make_run(Path("run"))
    try:
        assert len(listed(tmp_path)) == 1
    finally:
        # Python's own way to remove it, which pytest goes, exceeds the limit of recursion.
        run_command(["rm", "-r", tmp_path / "d"])


@pytest.mark.slow
def test_a_running_run_is_running(tmp_path: Path) -> None:
    with endless_run(tmp_path / "run"):
        assert [row["state"] for row in listed(tmp_path)] == ["running"]


def test_the_metric_that_chose_is_named_and_decides_the_order(tmp_path: Path) -> None:
    # As in a status of an older version, which has neither metric nor value.
    make_run(tmp_path / "old", {"best_accuracy": 0.7})
    make_run(tmp_path / "new", {"best_metric": "accuracy", "best_value": 0.8, "best_step": 20})
    make_run(tmp_path / "none", {"best_accuracy": None})
    assert names(tmp_path, "--sort", "best") == ["new", "old", "none"]
    lines = run_rnncls("runs", "ls", tmp_path, "--sort", "best").stdout.splitlines()
    assert [line.split()[2] for line in lines[:3]] == ["val/accuracy", "0.8000", "0.7000"]

    # Of losses the smallest is the best, and no loss is compared with an accuracy.
    for name, loss in (("loss1", 1.5), ("loss0", 0.25)):
        make_run(tmp_path / name, {"best_metric": "loss", "best_value": loss})
    make_run(tmp_path / "f1", {"best_metric": "macro_f1", "best_value": 0.3})
    expected = ["new", "old", "none", "f1", "loss0", "loss1"]
    assert names(tmp_path, "--sort", "best") == expected
    lines = run_rnncls("runs", "ls", tmp_path, "--sort", "best").stdout.splitlines()
    assert lines[0].split()[2:4] == ["metric", "value"]
    assert lines[4].split()[2:4] == ["val/macro_f1", "0.3000"]
    assert lines[5].split()[2:4] == ["val/loss", "0.2500"]
    assert names(tmp_path, "--filter", "metric=loss", "--sort", "run") == ["loss0", "loss1"]


def test_rows_are_sorted_cut_and_counted(tmp_path: Path) -> None:
    for number in range(25):
        make_run(tmp_path / f"r{number:02}", {"step": 100 - number}, hours=number)
    done = run_rnncls("runs", "ls", tmp_path)
    assert [line.split()[-1][-3:] for line in done.stdout.splitlines()[1:]] == [
        f"r{number:02}" for number in range(20)
    ]
    assert done.stderr == "... and 5 more: -n 25, or --all\n"
    done = run_rnncls("runs", "ls", tmp_path, "-n", "2", "--sort", "step")
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == "... and 23 more: -n 25, or --all\n"
    assert len(run_rnncls("runs", "ls", tmp_path, "--all").stdout.splitlines()) == 26
    assert len(listed(tmp_path)) == 25
    assert names(tmp_path, "-n", "2", "--sort", "step") == ["r00", "r01"]
    assert names(tmp_path, "-n", "1", "--sort", "run") == ["r00"]
    assert names(tmp_path, "--all", "-n", "1", "--sort", "run") == ["r00"]
    done = run_rnncls("runs", "ls", tmp_path, "--all", "-n", "3")
    assert len(done.stdout.splitlines()) == 4
    assert done.stderr == "... and 22 more: -n 25\n"


def test_rows_are_filtered_by_columns_and_keys_of_the_config(tmp_path: Path) -> None:
    make_run(tmp_path / "a", model={"cell": "gru"}, optimizer={"lr": 0.001})
    make_run(tmp_path / "b", {"state": "interrupted"}, model={"cell": "gru"}, seed=3)
    make_run(tmp_path / "c", model={"cell": "rnn"}, optimizer={"lr": 0.001})
    make_run(tmp_path / "my_config" / "2026-01-02_03-04-05-name")
    by_name = ("--sort", "run")
    assert names(tmp_path, *by_name, "--filter", "cell=gru") == ["a", "b"]
    assert names(tmp_path, *by_name, "--filter", "state=interrupted") == ["b"]
    assert names(tmp_path, *by_name, "--filter", "optimizer.lr=1e-3") == ["a", "c"]
    both = ("--filter", "optimizer.lr=1e-3", "--filter", "model.cell=gru")
    assert names(tmp_path, *both) == ["a"]
    assert names(tmp_path, "--filter", "seed=3") == ["b"]
    assert names(tmp_path, "--filter", "config=my_config") == ["my_config/2026-01-02_03-04-05-name"]
    assert len(names(tmp_path, "--filter", "train.patience=null")) == 4
    # 1 is not true.
    assert names(tmp_path, "--filter", "model.bias=1") == []

    done = run_rnncls("runs", "ls", tmp_path, "--filter", "seed=77")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "none of 4 rows matches seed=77\n"


def test_a_run_in_a_folder_of_its_own_has_the_name_of_its_config(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(config_of(train={"max_steps": 3})))
    done = run_rnncls("train", path, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr

    # Resuming keeps the line that says so, and a run that begins with others' weights has both.
    done = run_rnncls("train", "--resume", tmp_path / "run", "train.max_steps=4")
    assert done.returncode == 0, done.stderr
    fit(
        config_of(train={"max_steps": 0}), tmp_path / "next", tmp_path / "run", "made from a.csv.gz"
    )
    fit(config_of(train={"max_steps": 0}), tmp_path / "python")
    rows = {row["run"]: row["config"] for row in listed(tmp_path)}
    assert rows == {"run": "tiny", "next": "a", "python": ""}
    assert names(tmp_path, "--filter", "config=tiny") == ["run"]


def test_a_sweep_in_a_folder_of_its_own_has_the_name_of_its_config(tmp_path: Path) -> None:
    plan_sweep(config_of(), "0-1", {}, None, 20, tmp_path / "sweep", origin="from c/tiny.yaml")
    assert [row["config"] for row in listed(tmp_path)] == ["tiny"]
    # Another name of the same config is the same sweep.
    plan_sweep(config_of(), "0-1", {}, None, 20, tmp_path / "sweep", origin="from other.yaml")


def test_a_line_break_in_the_name_of_a_config_adds_nothing_to_it(tmp_path: Path) -> None:
    fit(config_of(train={"max_steps": 0}), tmp_path / "run", origin="from a\nseed: 5\n.yaml")
    assert load_config(tmp_path / "run" / "config.yaml").seed == 0


@pytest.mark.row("C17")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--filter", "hidden_size=64"], "did you mean model.hidden_size=64?"),
        (["--filter", "optimiser.lr=1"], "did you mean optimizer.lr=1?"),
        (["--filter", "max_length=3"], "did you mean data.max_length=3?"),
        (["--filter", "finished"], "KEY=VALUE, with state, metric, config, cell or a key of"),
        (["--filter", "state=done"], "running, finished, interrupted, failed, died, not begun"),
        (["--filter", "metric=f1"], "accuracy, macro_f1, loss"),
        (["--sort", "newest"], "age, best, step, run"),
    ],
)
def test_a_filter_or_order_that_is_none_is_refused_with_what_is_possible(
    tmp_path: Path, fails: Callable[..., str], words: list[str], expected: str
) -> None:
    message = fails(2, "runs", "ls", tmp_path, *words)
    assert "error[C17]" in message
    assert expected in message


def test_a_folder_without_runs_says_so(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for words in (["runs", "ls"], ["runs", "ls", "."], ["runs", "ls", tmp_path]):
        done = run_rnncls(*words, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (0, "")
        assert done.stderr.startswith("no runs below ")
        assert done.stderr.endswith("; rnncls train makes one\n")
    assert run_rnncls("runs", "ls", "--json", cwd=tmp_path).stdout == "[]\n"


@pytest.mark.row("C17")
def test_a_folder_that_is_not_there_is_no_list_of_no_runs(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("")
    for words in ([], ["--json"], ["gone"], ["gone", "--json"], ["file"]):
        message = fails(2, "runs", "ls", *words, cwd=tmp_path)
        assert message.startswith("rnncls: error[C17]: there is no such folder: no runs were found")
        assert "try:      rnncls train, which makes runs/" in message


def test_a_sweep_is_one_row(tmp_path: Path) -> None:
    shutil.copytree(SWEEP, tmp_path / "sweep")
    make_run(tmp_path / "run", hours=-1)
    rows = listed(tmp_path)
    assert [row["run"] for row in rows] == ["run", "sweep"]
    sweep = rows[1]
    summary = json.loads((SWEEP / "summary.json").read_text())
    counts = [group["success"]["1.0"] for group in summary["groups"]]
    assert sweep["solved"] == sum(count["count"] for count in counts)
    assert sweep["ended"] == sweep["runs"] == sum(count["of"] for count in counts) == 4
    statuses = [
        json.loads(path.read_text()) for path in sorted(SWEEP.glob("members/*/status.json"))
    ]
    values = sorted(status["best_accuracy"] for status in statuses)
    assert sweep["best_value"] == values[-1]
    assert sweep["median"] == pytest.approx((values[1] + values[2]) / 2)
    assert (sweep["state"], sweep["seed"]) == ("finished", "0,1")
    assert "4 runs, 0 of 4 solved" in run_rnncls("runs", "ls", tmp_path).stdout

    # A sweep has every value that one of its members has.
    assert names(tmp_path, "--filter", "optimizer.lr=0.01") == ["sweep"]
    assert names(tmp_path, "--filter", "optimizer.lr=0.02") == []
    assert names(tmp_path, "--filter", "seed=1") == ["sweep"]

    members = [path.name for path in sorted((SWEEP / "members").iterdir())]
    everything = names(tmp_path, "--all", "--sort", "run")
    assert everything == ["run", "sweep", *(f"sweep/members/{name}" for name in members)]
    inside = names(tmp_path / "sweep", "--sort", "run")
    assert inside == [f"members/{name}" for name in members]


def test_solved_is_counted_as_the_summary_does(tmp_path: Path) -> None:
    sweep = shutil.copytree(SWEEP, tmp_path / "sweep")
    solved, untrained, stale, _ = sorted(path for path in (sweep / "members").iterdir())
    for member in (solved, untrained, stale):
        path = member / "evaluation.json"
        report = json.loads(path.read_text())
        for one in report["by_length"]:
            one["accuracy"] = 1.0
        if member == untrained:
            # Lengths that were not trained do not count.
            report["by_length"].append({"length": 99, "accuracy": 0.5, "trained": False})
        if member == stale:
            report["step"] -= 1
        path.write_text(json.dumps(report))
    (row,) = listed(tmp_path)
    assert (row["runs"], row["ended"], row["solved"]) == (4, 3, 2)
    assert "4 runs, 2 of 3 solved" in run_rnncls("runs", "ls", tmp_path).stdout


@pytest.mark.parametrize(
    ("changes", "state", "ended"),
    [
        ({"state": "interrupted", "exit_code": 143}, "interrupted", 4),
        ({"state": "running", "exit_code": None}, "died", 4),
        ({"state": "failed", "exit_code": 6}, "failed", 4),
        # A member that diverged has a result.
        ({"state": "failed", "exit_code": 7}, "finished", 4),
        (None, "interrupted", 3),
    ],
)
def test_the_state_of_a_sweep_is_that_of_its_members(
    tmp_path: Path, changes: dict[str, Any] | None, state: str, ended: int
) -> None:
    sweep = shutil.copytree(SWEEP, tmp_path / "sweep")
    member = sweep / "members" / "lr=1e-2_seed=1"
    if changes is None:
        shutil.rmtree(member)
    else:
        path = member / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        if changes["exit_code"] == 7:
            (member / "evaluation.json").unlink()
    (row,) = listed(tmp_path)
    assert (row["state"], row["ended"], row["runs"]) == (state, ended, 4)


@pytest.mark.parametrize(
    "text",
    ["", "[", "config: 1", "seeds: 0-1", "config: {}\nseeds: 0-\ngrid: {}\n", "\0", "x" * 70_000],
)
def test_a_broken_sweep_has_its_members_in_the_list(tmp_path: Path, text: str) -> None:
    sweep = shutil.copytree(SWEEP, tmp_path / "sweep")
    (sweep / "sweep.yaml").write_text(text)
    assert len(listed(tmp_path)) == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"[", b"model", b"model: 3\nseed: [1]", b"\xff\xfe", b"model: {cell: [1]}", b"a" * 2**17],
)
def test_a_broken_config_leaves_its_columns_empty(tmp_path: Path, content: bytes) -> None:
    run_dir = make_run(tmp_path / "run")
    (run_dir / "config.yaml").write_bytes(content)
    (row,) = listed(tmp_path)
    assert (row["seed"], row["step"]) == ("" if b"seed" in content else row["seed"], 40)
    assert run_rnncls("runs", "ls", tmp_path, "--filter", "model.cell=gru").returncode == 0


def test_a_config_is_read_key_by_key_as_it_is_read_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    config = files_config(tmp_path / ("a long name " * 20 + "- x: y # 'z'"), sequence_field="1e-3")
    path.write_text("# a comment\n" + dump_config(config))
    expected = flat(config.model_dump())
    read = saved_values(path.read_text())
    assert {key: read[key] for key in expected} == expected
    assert len(expected) > 40

    # An older version knew fewer keys; indented otherwise it is the same.
    path.write_text("seed: 4\nmodel:\n    hidden_size: 3\noptimizer: {lr: 0.5}\n")
    read = saved_values(path.read_text())
    assert (read["seed"], read["model.hidden_size"], read["optimizer.lr"]) == (4, 3, 0.5)
    assert read["model.cell"] == "rnn"


def test_a_list_does_without_torch(tmp_path: Path) -> None:
    shutil.copytree(SWEEP, tmp_path / "sweep")
    code = "import sys; from rnncls.cli import entry; entry.run(); print('torch' in sys.modules)"
    done = run_python(
        f"import sys; sys.argv = ['rnncls', 'runs', 'ls', sys.argv[1]]; {code}", tmp_path
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "4 runs" in done.stdout


def test_two_runs_differ_in_config_and_result(tmp_path: Path) -> None:
    fit(config_of(), tmp_path / "a")
    fit(config_of(seed=1, train={"max_steps": 20, "patience": 7}), tmp_path / "b")
    done = run_rnncls("runs", "diff", tmp_path / "a", tmp_path / "b", "--json")
    differences = json.loads(done.stdout)
    assert differences["config"] == {
        "seed": [0, 1],
        "train.max_steps": [40, 20],
        "train.patience": [None, 7],
    }

    last = [
        json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
        for name in "ab"
    ]
    assert differences["result"]["step"] == [40, 20]

    losses = [line["val/loss"] for line in last]
    assert differences["result"]["val/loss"] == losses

    change = differences["changes"]["val/loss"]
    assert change["difference"] == losses[1] - losses[0]
    assert change["relative"] == (losses[1] - losses[0]) / losses[0]
    assert change["better"] == ("b" if losses[1] < losses[0] else "a")
    assert differences["changes"]["train.max_steps"] == {
        "difference": -20,
        "relative": -0.5,
        "better": None,
    }
    assert "seed" not in differences["changes"]
    assert differences["best_metric"] == "val/accuracy"
    assert "state" not in differences["result"]  # both finished

    lines = [
        line.split()
        for line in run_rnncls("runs", "diff", tmp_path / "a", tmp_path / "b").stdout.splitlines()
    ]
    assert ["a:", str(tmp_path / "a")] in lines
    assert ["train.max_steps", "40", "20", "-20", "-50.0%"] in lines
    assert ["train.patience", "-", "7"] in lines
    assert ["key", "a", "b", "b", "-", "a", "%", "better"] in lines

    (shown,) = [line for line in lines if line and line[0] == "val/loss"]
    assert shown[1:3] == [f"{line['val/loss']:.6g}" for line in last]
    assert shown[-1] == ("b" if losses[1] < losses[0] else "a")


def test_a_run_does_not_differ_from_itself(tmp_path: Path, fails: Callable[..., str]) -> None:
    fit(config_of(train={"max_steps": 0}), tmp_path / "a")
    with (tmp_path / "a" / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"step": 1, "tra')  # lines that are none
    done = run_rnncls("runs", "diff", tmp_path / "a", tmp_path / "a")
    assert "config: no difference" in done.stdout
    assert "result: no difference" in done.stdout
    assert "not a run directory" in fails(4, "runs", "diff", tmp_path / "a", tmp_path)
    (tmp_path / "a" / "config.yaml").write_text("sed: 1")
    assert "did you mean seed?" in fails(2, "runs", "diff", tmp_path / "a", tmp_path / "a")


@pytest.mark.parametrize(
    ("metric", "values", "better"),
    [("loss", [0.5, 0.25], "b"), ("macro_f1", [0.5, 0.25], "a"), ("accuracy", [0.25, 0.5], "b")],
)
def test_the_better_run_is_named_by_the_metric_that_chose(
    tmp_path: Path, metric: str, values: list[float], better: str
) -> None:
    for name, value in zip("ab", values, strict=True):
        make_run(tmp_path / name, {"best_metric": metric, "best_value": value, "best_step": 20})
    done = run_rnncls("runs", "diff", tmp_path / "a", tmp_path / "b")
    assert f"chosen by val/{metric}" in done.stdout
    (line,) = [line.split() for line in done.stdout.splitlines() if f"best val/{metric}" in line]
    assert line[-1] == better
    words = ("runs", "diff", tmp_path / "a", tmp_path / "b", "--json")
    differences = json.loads(run_rnncls(*words).stdout)
    assert differences["result"] == {"best_value": values}
    assert differences["changes"]["best_value"]["better"] == better


def test_a_loss_and_an_accuracy_have_no_difference(tmp_path: Path) -> None:
    make_run(tmp_path / "a", {"best_metric": "loss", "best_value": 0.2})
    make_run(tmp_path / "b", {"best_metric": "accuracy", "best_value": 0.9})
    words = ("runs", "diff", tmp_path / "a", tmp_path / "b", "--json")
    differences = json.loads(run_rnncls(*words).stdout)
    assert differences["result"]["best_metric"] == ["val/loss", "val/accuracy"]
    assert differences["best_metric"] is None
    assert "best_value" not in differences["changes"]


# --- model show


@pytest.mark.parametrize(
    ("model", "state"),
    [
        ({"cell": "rnn"}, 16),
        ({"cell": "gru", "num_layers": 2, "bidirectional": True}, 32),
        ({"cell": "lstm", "bias": False}, 16),
    ],
)
def test_the_description_of_a_model_is_that_of_its_weights(
    tmp_path: Path, model: dict[str, Any], state: int
) -> None:
    run_dir = tmp_path / "run"
    fit(config_of(model=model, train={"max_steps": 0}), run_dir)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    shown = json.loads(run_rnncls("model", "show", run_dir, "--json").stdout)
    assert {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")} == before

    checkpoint = read_checkpoint(find_checkpoint(run_dir))
    shapes = {name: list(tensor.shape) for name, tensor in checkpoint.model.items()}
    assert {tensor["name"]: tensor["shape"] for tensor in shown["tensors"]} == shapes
    sizes = {name: tensor.numel() for name, tensor in checkpoint.model.items()}
    assert {tensor["name"]: tensor["parameters"] for tensor in shown["tensors"]} == sizes
    total = sum(sizes.values())
    assert (shown["parameters"], shown["bytes"]) == (total, 4 * total)
    assert sum(tensor["share"] for tensor in shown["tensors"]) == pytest.approx(1)

    # Each layer takes what the one before it gives.
    layers = shown["layers"]
    assert (layers[0]["input"], layers[-1]["output"]) == ("(B, T)", "(B, 3)")
    for layer, following in itertools.pairwise(layers):
        assert layer["output"] == following["input"]
    assert layers[-1]["input"] == f"(B, {state})"
    assert (shown["step"], shown["tokens"], shown["classes"]) == (0, 3, 3)
    assert shown["checkpoint"] == str(find_checkpoint(run_dir))


def test_a_model_of_files_is_shown_with_its_labels(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", some_rows(60))
    config = files_config(path, {"max_steps": 0}, val_fraction=0.2, test_fraction=0.1)
    fit(config, tmp_path / "run")
    text = run_rnncls("model", "show", tmp_path / "run").stdout
    assert "labels:      0, 1, 2\n" in text

    # The same model from the config alone: the file says how many tokens and classes there are.
    (tmp_path / "files.yaml").write_text(dump_config(config))
    same = run_rnncls("model", "show", tmp_path / "files.yaml")
    assert same.returncode == 0, same.stderr
    assert same.stdout.partition("tokens:")[2] == text.partition("tokens:")[2]


def test_a_config_is_shown_without_a_run(tmp_path: Path, fails: Callable[..., str]) -> None:
    words = ("model", "show", ROOT / "configs" / "sum_mod_10_plain.yaml")
    done = run_rnncls(*words, "model.hidden_size=7", "--json", cwd=tmp_path)
    shown = json.loads(done.stdout)
    assert shown["layers"][-1]["input"] == "(B, 7)"
    assert list(tmp_path.iterdir()) == []
    assert "hidden_size" in fails(2, *words, "model.hidden_size=0")
    assert "error[K1]" in fails(4, "model", "show", tmp_path)
    run_dir = SWEEP / "members" / "lr=1e-3_seed=0"
    assert "error[C17]" in fails(2, "model", "show", run_dir, "model.hidden_size=7")
