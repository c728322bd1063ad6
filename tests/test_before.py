"""Files of earlier versions are read, resumed and summarised as those versions did it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.config import FilesConfig, load_config
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.sweep.plan import load_sweep
from rnncls.sweep.summary import summarize
from rnncls.training.resume import resume
from tests.helpers import ROOT, change_checkpoint, run_rnncls

BEFORE = ROOT / "tests" / "before"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy of what earlier versions wrote."""
    return shutil.copytree(BEFORE, tmp_path / "before")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The logged values, without those that say how long something took."""
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        row.pop("train/sequences_per_second", None)
        rows.append(row)
    return rows


def test_a_run_from_before_is_resumed_as_it_was_then(before: Path) -> None:
    state = resume(before / "run", ["train.max_steps=12"])
    assert state.step == 12

    step_12 = read_checkpoint(before / "run" / "checkpoints" / "step-00000012.safetensors")
    expected = read_checkpoint(before / "resumed" / "step-00000012.safetensors")
    assert step_12.config == expected.config
    assert step_12.state.counters.keys() == expected.state.counters.keys()
    for name, tensor in expected.model.items():
        torch.testing.assert_close(step_12.model[name], tensor, rtol=1e-5, atol=1e-6)
    for name, tensor in expected.optim.items():
        torch.testing.assert_close(step_12.optim[name], tensor, rtol=1e-4, atol=1e-6)

    rows = rows_of(before / "run" / "metrics.jsonl")
    expected_rows = rows_of(before / "resumed" / "metrics.jsonl")
    assert [list(row) for row in rows] == [list(row) for row in expected_rows]
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4, nan_ok=True)


def test_a_checkpoint_from_before_is_evaluated_as_it_was_then(before: Path) -> None:
    done = run_rnncls("eval", before / "run", "--json")
    report = json.loads(done.stdout)
    expected = json.loads((before / "run" / "eval.json").read_text())

    assert list(report) == list(expected)  # the order of the keys, too
    assert report.pop("checkpoint").endswith(expected.pop("checkpoint"))
    assert math.isclose(report.pop("loss"), expected.pop("loss"), rel_tol=1e-5)
    assert report == expected


def test_a_sweep_from_before_has_the_summary_that_it_had(before: Path) -> None:
    summary = summarize(load_sweep(before / "sweep")).to_json()
    expected = json.loads((before / "sweep" / "summary.json").read_text())
    assert json.loads(json.dumps(summary)) == expected
    assert json.dumps(summary) == json.dumps(expected)  # the order of the keys, too


def test_a_sweep_from_before_has_nothing_left_to_do(before: Path) -> None:
    done = run_rnncls("sweep", "--resume", before / "sweep", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    expected = json.loads((before / "sweep" / "summary.json").read_text())
    assert summary == expected


# --- a run and a sweep on files, from before files had defaults of their own


@pytest.fixture
def files(before: Path) -> Path:
    """What was trained on /before/words.jsonl, with the file where it is now."""
    here = before / "files"

    def move(state: dict[str, Any], _: object) -> None:
        state["config"]["data"]["train"] = str(here / "words.jsonl")

    for path in here.rglob("*.safetensors"):
        change_checkpoint(path, move)
    for path in here.rglob("*.yaml"):
        path.write_text(path.read_text().replace("/before/words.jsonl", f"{here}/words.jsonl"))
    return here


def test_a_run_on_files_from_before_is_resumed_as_it_was_then(files: Path) -> None:
    state = resume(files / "run", ["train.max_steps=80"])
    assert state.step == 80

    step_80 = read_checkpoint(files / "run" / "checkpoints" / "step-00000080.safetensors")
    expected = read_checkpoint(files / "resumed" / "step-00000080.safetensors")
    assert step_80.config == expected.config
    assert step_80.config.schedule.warmup_steps == 500
    assert step_80.config.train.eval_samples == 2000
    for name, tensor in expected.model.items():
        torch.testing.assert_close(step_80.model[name], tensor, rtol=1e-4, atol=1e-5)

    rows = rows_of(files / "run" / "metrics.jsonl")
    expected_rows = rows_of(files / "resumed" / "metrics.jsonl")
    for row, expected_row in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4, nan_ok=True)


def test_a_checkpoint_on_files_from_before_is_evaluated_and_predicts_as_it_did_then(
    files: Path,
) -> None:
    report = json.loads(run_rnncls("eval", files / "run", "--json").stdout)
    expected = json.loads((files / "run" / "eval.json").read_text())
    expected.pop("checkpoint")
    assert math.isclose(report.pop("loss"), expected.pop("loss"), rel_tol=1e-5)
    assert {key: report[key] for key in expected} == expected

    done = run_rnncls("predict", files / "run", "--input", files / "words.txt", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    kept = (files / "run" / "predictions.jsonl").read_text()
    wanted = [json.loads(line) for line in kept.splitlines()]
    assert [line["label"] for line in lines] == [line["label"] for line in wanted]
    probabilities = [line["probability"] for line in wanted]
    assert [line["probability"] for line in lines] == pytest.approx(probabilities, rel=1e-5)


def test_runs_on_files_from_before_are_listed_as_they_were_then(files: Path) -> None:
    (run,) = json.loads(run_rnncls("runs", "ls", files / "run", "--json").stdout)
    expected = {entry["run"]: entry for entry in json.loads((files / "runs.json").read_text())}[
        "run"
    ]
    for key in ("state", "step", "best_accuracy", "exit_code"):
        assert run[key] == expected[key]


def test_a_sweep_on_files_from_before_means_what_it_meant(files: Path) -> None:
    sweep = load_sweep(files / "sweep")
    expected = json.loads((files / "sweep" / "summary.json").read_text())
    assert json.loads(json.dumps(summarize(sweep).to_json())) == expected

    # A member that is missing is trained again, with the numbers of then.
    member = files / "sweep" / "members" / "max_epochs=4_seed=3"
    kept = member.rename(files / "kept")
    done = run_rnncls("sweep", "--resume", files / "sweep", "--json")
    assert done.returncode == 0, done.stderr
    trained = load_config(member / "config.yaml")
    assert trained == load_config(kept / "config.yaml")
    # Keys that did not exist then mean what they meant without being there.
    assert isinstance(trained.data, FilesConfig)
    assert trained.data.separator == "auto"

    evaluation = json.loads((member / "evaluation.json").read_text())
    expected = json.loads((kept / "evaluation.json").read_text())
    assert math.isclose(evaluation["loss"], expected["loss"], rel_tol=1e-4)
    assert evaluation["accuracy"] == expected["accuracy"]
