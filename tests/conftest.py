"""Fixtures that several test modules share, and what holds for a whole test session."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import typer

from rnncls.cli import entry
from rnncls.cli.app import app
from tests.helpers import Completed, ignoring_no_signals, run_rnncls


def pytest_configure() -> None:
    """Give each test process one thread, and let SIGTERM and SIGHUP end a session as Ctrl-C does.

    `make test` runs as many processes as there are cores, so more threads would only wait for each
    other. The processes that tests start take the setting over.

    They would end this process at once and leave behind what a test has started. nohup wants a
    session to live on after SIGHUP.

    typer builds the command line anew for each call, which takes longer than most commands do.

    Hypothesis limits the time of an example unless told otherwise; no test measures time.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    vars(entry)["app"] = typer.main.get_command(app)
    hypothesis.settings.register_profile(
        "unhurried", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    hypothesis.settings.load_profile("unhurried")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Completed]:
    """A finished run of configs/smoke.yaml, not to be changed, and what the command printed."""
    run_dir = tmp_path_factory.mktemp("trained") / "smoke" / "run"
    words = ["train", "--config", "configs/smoke.yaml", "train.engine=eager"]
    done = run_rnncls(*words, "--run-dir", run_dir, "train.histogram_every=100")
    assert done.returncode == 0, done.stderr
    return run_dir, done


@pytest.fixture
def run_dir(trained: tuple[Path, Completed]) -> Path:
    """The run directory of `trained`, not to be changed."""
    return trained[0]


@pytest.fixture
def signals_not_ignored() -> Iterator[None]:
    """Let SIGINT and SIGHUP reach the processes that a test starts."""
    with ignoring_no_signals():
        yield


@pytest.fixture
def fails() -> Callable[..., str]:
    """Run a command that must fail with one readable block; returns its stderr."""

    def check(exit_code: int, *arguments: str | Path, cwd: Path | None = None) -> str:
        done = run_rnncls(*arguments, cwd=cwd)
        assert done.returncode == exit_code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("rnncls: error"), done.stderr
        return done.stderr

    return check
