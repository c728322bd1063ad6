"""What several test modules share: the command line as a subprocess, and one small real run."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnncls.config import Config, SumModConfig
from rnncls.config.load import parse_config

ROOT = Path(__file__).parent.parent
Completed = subprocess.CompletedProcess[str]

SMALL: dict[str, Any] = {
    "data": {"modulus": 3, "min_length": 1, "max_length": 4},
    "model": {"embedding_dim": 4, "hidden_size": 16},
    "schedule": {"warmup_steps": 5},
    "train": {
        "max_steps": 40,
        "batch_size": 8,
        "log_every": 10,
        "eval_every": 20,
        "eval_samples": 100,
        "engine": "eager",
    },
}


def config_of(**sections: Any) -> Config:
    """SMALL with some keys replaced: `config_of(train={"max_steps": 3}, seed=1)`."""
    raw: dict[str, Any] = {name: dict(values) for name, values in SMALL.items()}
    for name, value in sections.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(raw, "test")


def data_of(config: Config) -> SumModConfig:
    """The data section of a config with generated data."""
    assert isinstance(config.data, SumModConfig)
    return config.data


def run_rnncls(*arguments: str | Path, cwd: Path | None = None, **options: Any) -> Completed:
    """`rnncls ...` as a user runs it, in a process of its own."""
    command = [sys.executable, "-m", "rnncls", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd or ROOT,
        check=False,
        **options,
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Completed]:
    """The run directory of configs/smoke.yaml trained by the command line, and what the command printed."""
    run_dir = tmp_path_factory.mktemp("trained") / "smoke" / "run"
    done = run_rnncls(
        "train", "--config", "configs/smoke.yaml", "--run-dir", run_dir, "train.histogram_every=100"
    )
    assert done.returncode == 0, done.stderr
    return run_dir, done


@pytest.fixture
def run_dir(trained: tuple[Path, Completed]) -> Path:
    return trained[0]


@pytest.fixture
def fails() -> Callable[..., str]:
    """Run a command that must fail: asserts the exit code and one readable block; returns stderr."""

    def check(exit_code: int, *arguments: str | Path, cwd: Path | None = None) -> str:
        done = run_rnncls(*arguments, cwd=cwd)
        assert done.returncode == exit_code, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.startswith("rnncls: error"), done.stderr
        return done.stderr

    return check
