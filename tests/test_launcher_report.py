"""What torchrun is told about a process that fails: the file that TORCHELASTIC_ERROR_FILE names."""

import json
import os
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from tests.helpers import ROOT, run_command, run_python, run_rnncls

TORCHRUN = Path(sys.executable).parent / "torchrun"
MISSING = ["train", "--config", "missing.yaml"]


@pytest.mark.parametrize(
    ("words", "exit_code", "error_id"),
    [(MISSING, 2, "C1"), (["train", "--nonsense"], 2, "C17"), (["eval", "nowhere"], 4, "K1")],
)
def test_torch_reads_what_was_wrong(
    words: list[str], exit_code: int, error_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(path))
    done = run_rnncls(*words)
    assert done.returncode == exit_code

    # By the class with which torchrun reads it.
    failure = ProcessFailure(0, 1, exit_code, str(path))
    told = json.loads(path.read_text())["message"]
    assert failure.message == told
    assert failure.timestamp > 0
    assert told["errorCode"] == exit_code
    assert told["extraInfo"]["error_id"] == error_id
    assert told["extraInfo"]["py_callstack"] == told["message"]
    assert done.stderr.endswith(told["message"] + "\n")
    assert [entry.name for entry in tmp_path.iterdir()] == ["error.json"]


def test_an_error_that_nobody_expected_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "error.json"
    code = (
        "from rnncls.cli import entry\n"
        "def broken(**options): raise ZeroDivisionError('a bug')\n"
        "entry.app = broken\n"
        "entry.main()"
    )
    done = run_python(code, env={**os.environ, "TORCHELASTIC_ERROR_FILE": str(path)})
    assert done.returncode == 1
    told = json.loads(path.read_text())["message"]
    assert told["errorCode"] == 1
    assert "internal error: ZeroDivisionError: a bug" in told["message"]


def test_a_run_that_ends_well_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    assert run_rnncls("config", "keys", "lr").returncode == 0
    assert not any(tmp_path.iterdir())


def test_places_where_no_file_can_be_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = run_rnncls(*MISSING)

    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "link").symlink_to(precious)
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())

    for name in (
        "link",
        "dangling",
        "folder",
        "pipe",
        "nowhere/error.json",
        "x" * 300,
        "precious/x",
    ):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / name))
        done = run_rnncls(*MISSING)
        assert (done.returncode, done.stderr) == (usual.returncode, usual.stderr)
    assert sorted(tmp_path.iterdir()) == before
    assert precious.read_text() == "mine"


@pytest.mark.slow
def test_the_report_of_torchrun_has_the_message_and_the_code(tmp_path: Path) -> None:
    command: list[str | Path] = [TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "rnncls"]
    done = run_command(
        [*command, *MISSING], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 1
    report = done.stderr.partition("Root Cause (first observed failure):")[2]
    assert "exitcode  : 2" in report
    assert "traceback : rnncls: error[C1]: cannot read the config missing.yaml" in report
