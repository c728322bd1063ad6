"""Whether several processes pay, and whether a launcher leaves a run the time to save."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest

from rnncls.config import dump_config
from rnncls.data import load_task
from rnncls.steps.state import TrainState
from rnncls.training import pays, saves
from rnncls.training.states import new_state
from tests.helpers import PYTHON, Completed, config_of, outcome, run_command

TORCHRUN = [PYTHON, "-m", "torch.distributed.run", "--standalone"]


def launched(processes: int, *words: str | Path, **options: Any) -> Completed:
    """Run `rnncls words` in so many processes of torchrun."""
    command = [*TORCHRUN, "--nproc-per-node", str(processes), "-m", "rnncls", *words]
    return run_command(command, **options)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_measuring_changes_nothing_of_a_run(engine: str) -> None:
    config = config_of(
        train={"engine": engine, "max_steps": 1000}, model={"dropout": 0.3, "num_layers": 2}
    )
    task = load_task(config)
    state = new_state(task)
    before = _bits(state)
    assert 0 < pays._seconds_of_step(state, task, engine, pays._Alone(), 5) < math.inf
    assert _bits(state) == before


def _bits(state: TrainState) -> list[object]:
    tensors = [tensor.numpy().tobytes() for tensor in state.model.state_dict().values()]
    return [tensors, state.optimizer.state_dict()["state"], state.counters()]


def test_long_steps_are_not_tried() -> None:
    short = load_task(config_of())
    assert pays._may_be_short(new_state(short), short, 1000)
    long = load_task(config_of(data={"max_length": 1000}, model={"hidden_size": 512}))
    long.config = config_of(train={"batch_size": 10_000}, model={"hidden_size": 512})
    assert not pays._may_be_short(new_state(long), long, 1000)
    assert not pays._may_be_short(new_state(short), short, 10**9)


def test_a_run_that_is_over_is_not_measured() -> None:
    task = load_task(config_of())
    state = new_state(task)
    state.step = task.max_steps
    assert not pays._may_be_short(state, task, 1000)


@pytest.mark.parametrize(
    ("variables", "words", "seconds"),
    [
        ({}, [], 30),
        ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}, ["torchrun", "--standalone"], 5),
        ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}, ["torchrun", "--shutdown-timeout", "7"], 7),
        ({"PET_SHUTDOWN_TIMEOUT": "6", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"}, [], 6),
        ({}, ["torchrun", "--shutdown_timeout=8", "-m", "rnncls"], 8),
        ({}, ["torchrun", "--shutdown-timeout"], 30),
        ({"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "-1"}, [], 30),
    ],
)
def test_time_that_torchrun_gives(
    variables: dict[str, str], words: list[str], seconds: float
) -> None:
    assert saves.shutdown_timeout(variables, words) == seconds


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the command line of torchrun")
def test_torchrun_is_asked_for_more_time_where_a_save_takes_it_all(tmp_path: Path) -> None:
    config = tmp_path / "small.yaml"
    config.write_text(dump_config(config_of(train={"checkpoint_every": 10})))
    said = {}
    for seconds in ("0", "1000"):
        words = [*TORCHRUN, "--shutdown-timeout", seconds, "--nproc-per-node", "1"]
        words += ["-m", "rnncls", "train", str(config), "--run-dir", str(tmp_path / seconds)]
        done = run_command(words)
        assert done.returncode == 0, done.stderr
        said[seconds] = [line for line in done.stderr.splitlines() if "a save takes" in line]

    (warning,) = said["0"]
    assert "torchrun --shutdown-timeout 1 " in warning
    assert not said["1000"]


def test_a_warning_has_the_figures_and_comes_only_where_one_process_is_faster() -> None:
    warning = pays._warning_of_seconds(0.001, 0.0017, 2)
    assert "its step takes 1 ms at most, one of 2 processes 1.7 ms" in warning
    assert warning.startswith("rnncls: warning: one process would be faster")
    assert not pays._warning_of_seconds(0.004, 0.0037, 2)


@pytest.mark.slow
def test_processes_say_it_once_at_most_and_keep_their_bits(tmp_path: Path) -> None:
    config = config_of(train={"max_steps": 20})
    path = tmp_path / "small.yaml"
    path.write_text(dump_config(config))
    runs = []
    for name in ("one", "other"):
        run_dir = tmp_path / name
        done = launched(2, "train", path, "--run-dir", run_dir)
        assert done.returncode == 0, done.stderr
        # Whether it is said depends on the machine.
        lines = [line for line in done.stderr.splitlines() if "one process would be" in line]
        assert len(lines) <= 1
        runs.append(outcome(run_dir))
    assert runs[0] == runs[1]
