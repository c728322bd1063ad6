"""Lists of runs, and how two of them differ."""

import json
from collections.abc import Callable
from pathlib import Path

from rnncls.training.fit import fit
from tests.helpers import config_of, run_rnncls


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
    listed = json.loads(run_rnncls("runs", "ls", "--json", cwd=tmp_path).stdout)
    assert [(run["run"], run["state"], run["step"]) for run in listed] == [
        ("runs/x/b", "finished", 40),
        ("runs/x/a", "died", 40),
    ]
    lines = run_rnncls("runs", "ls", tmp_path / "runs").stdout.splitlines()
    assert lines[0].split() == ["state", "step", "best", "age", "run"]
    assert lines[1].split()[:2] == ["finished", "40"]
    assert lines[1].endswith("/runs/x/b")


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
    assert differences["result"]["val/loss"] == [line["val/loss"] for line in last]
    assert "state" not in differences["result"]  # both finished
    lines = [
        line.split()
        for line in run_rnncls("runs", "diff", tmp_path / "a", tmp_path / "b").stdout.splitlines()
    ]
    assert ["a:", str(tmp_path / "a")] in lines
    assert ["train.max_steps", "40", "20"] in lines
    assert ["train.patience", "-", "7"] in lines
    assert [f"{line['val/loss']:.6g}" for line in last] in [line[1:] for line in lines]


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
