"""An interrupted session of tests leaves no process behind."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers import ROOT, started, wait_for

# A test that starts a shell which starts another process: only the first is a child of its own.
TEST = """
from tests.helpers import run_command

def test_long() -> None:
    run_command(["sh", "-c", "sleep 500 & echo $! > {pid}.new; mv {pid}.new {pid}; wait"])
"""


def is_running(pid: int) -> bool:
    """Return whether there is such a process."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


@pytest.mark.slow
@pytest.mark.usefixtures("signals_not_ignored")
@pytest.mark.parametrize("to_group", [False, True], ids=["to_one", "to_group"])
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_nothing_lives_on(tmp_path: Path, number: str, to_group: bool) -> None:
    noted = tmp_path / "pid"
    (tmp_path / "test_long.py").write_text(TEST.replace("{pid}", str(noted)))
    options = ["-n", "1", "-p", "tests.conftest", "-p", "no:cacheprovider", "-c", os.devnull]
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pytest",
        *options,
        "--rootdir",
        tmp_path,
        tmp_path,
    ]

    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    log = (tmp_path / "log").open("w")
    with log, started(command, stdout=log, stderr=log, env=environment) as session:
        wait_for(noted.exists)
        pid = int(noted.read_text())
        kill = os.killpg if to_group else os.kill
        try:
            kill(session.pid, signal.Signals[number])
            wait_for(lambda: not is_running(pid))
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
