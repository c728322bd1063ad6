"""The directories of new runs and sweeps: each gets one that no other process has."""

import os
import re
from pathlib import Path

import pytest

from rnncls.rundir.status import read_status
from rnncls.system.folders import make_numbered
from tests.helpers import ROOT, run_python, run_rnncls


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    first = tmp_path / "runs" / "x" / "now"
    names = [make_numbered(first).name for _ in range(4)]
    # An empty folder may be that of a process which has just begun.
    (first.parent / "now-5").mkdir()
    (first.parent / "now-6").write_text("a file")
    (first.parent / "now-7").symlink_to("nowhere")
    names.append(make_numbered(first).name)
    assert names == ["now", "now-2", "now-3", "now-4", "now-8"]


EIGHT_AT_ONCE = """
import os, sys
from rnncls.cli import entry
import rnncls.sweep.members, rnncls.sweep.plan, rnncls.sweep.report, rnncls.sweep.text
import torch._dynamo  # the first optimizer of each process would import it

ready, go = os.pipe()
for number in range(8):
    if os.fork() == 0:
        os.close(go)
        os.read(ready, 1)  # until the parent closes the other end
        sys.stdout = open(f"out-{number}", "w")
        sys.stderr = open(f"err-{number}", "w")
        exit_code = entry.run()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
os.close(ready)
os.close(go)
print([os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(8)])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("train", []),
        pytest.param("sweep", ["--seeds", "0", "--jobs", "1"], marks=pytest.mark.slow),
    ],
)
def test_all_that_begin_in_the_same_second_train(
    command: str, options: list[str], tmp_path: Path
) -> None:
    words: list[str | Path] = [
        command,
        ROOT / "configs" / "smoke.yaml",
        "device=cpu",
        "train.engine=eager",
    ]
    words += ["train.max_steps=2", "train.eval_samples=10", "data.max_length=3", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_python(EIGHT_AT_ONCE, *words, cwd=tmp_path, env=environment)
    said = "".join(path.read_text() for path in sorted(tmp_path.glob("err-*")))
    assert done.stdout == f"{[0] * 8}\n", said + done.stderr

    names = set()
    for number in range(8):
        stream = "out" if command == "train" else "err"
        text = (tmp_path / f"{stream}-{number}").read_text()
        names |= set(re.findall(r"^(?:run|sweep) directory: (.+)$", text, re.MULTILINE))
    assert len(names) == 8
    assert names == {str(path.relative_to(tmp_path)) for path in tmp_path.glob("runs/smoke/*")}
    runs = names if command == "train" else {f"{name}/members/seed=0" for name in names}
    states = [read_status(tmp_path / run).get("state") for run in runs]
    assert states == ["finished"] * 8


def test_an_error_before_the_training_leaves_no_directory(tmp_path: Path) -> None:
    config = ROOT / "configs" / "smoke.yaml"
    for words in (
        ["train", config, "train.max_steps=-1"],
        ["train", "missing.csv"],
        ["train", config, "--init-from", "missing"],
        ["sweep", config, "--seeds", "x"],
    ):
        assert run_rnncls(*words, cwd=tmp_path).returncode in (2, 3, 4)
    assert list(tmp_path.iterdir()) == []
