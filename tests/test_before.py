"""Files of earlier versions are read, resumed and summarised as those versions did it."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.sweep.plan import load_sweep
from rnncls.sweep.summary import summarize
from rnncls.training.resume import resume
from tests.helpers import ROOT, run_rnncls

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
