"""Faults of runs of several processes, each made to happen to real processes.

docs/faults.md is the table: rows R21 to R25.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rnncls.config import load_config
from rnncls.errors import MachineError
from rnncls.rundir.checkpoint_files import step_files
from rnncls.rundir.lock import locked
from rnncls.rundir.status import read_status
from rnncls.system import device
from rnncls.system.launch import launch_of, meeting_place
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import PYTHON, SAFETY_S, run_command, started, wait_for
from tests.launches import ENDLESS, SMOKE, by_hand, nursery, wait_for_step

row = pytest.mark.row
RIGHT = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}


@pytest.fixture(scope="module")
def forks() -> Iterator[subprocess.Popen[str]]:
    with nursery() as process:
        yield process


# --- R21: a process is gone


@row("R21")
@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_ends_and_names_it(
    victim: int, tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    words = [*ENDLESS, "--run-dir", tmp_path / "run"]
    ranks = by_hand(forks, tmp_path, words, words)
    wait_for_step(tmp_path / "run", 100, ranks)
    ranks[victim].send(signal.SIGKILL)
    other = ranks[1 - victim]
    assert [ranks[victim].wait(), other.wait()] == [-signal.SIGKILL, 9]
    assert other.stderr.count("rnncls: error[R21]") == 1
    assert f"rank {victim} (process {ranks[victim].pid} on {socket.gethostname()})" in other.stderr
    assert "is gone" in other.stderr

    status = read_status(tmp_path / "run")
    if victim == 1:
        assert (status["state"], status["exit_code"], status["error_id"]) == ("failed", 9, "R21")
    step = max(
        int(path.stem.split("-")[1]) for path in step_files(tmp_path / "run" / "checkpoints")
    )
    state = resume(tmp_path / "run", [f"train.max_steps={step + 1}"])
    assert state.step == step + 1


@row("R21")
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_when_a_process_hangs_the_others_end_within_the_timeout(
    victim: int, tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    words = [*ENDLESS, "--run-dir", tmp_path / "run"]
    ranks = by_hand(forks, tmp_path, *[words] * 3)
    wait_for_step(tmp_path / "run", 100, ranks)
    ranks[victim].send(signal.SIGSTOP)
    others = [rank for rank in ranks if rank.rank != victim]
    assert [rank.wait() for rank in others] == [9, 9]
    for rank in others:
        assert f"rank {victim} (process {ranks[victim].pid} " in rank.stderr
        assert "does not answer" in rank.stderr
    # When it goes on, it finds that it is alone.
    ranks[victim].send(signal.SIGCONT)
    assert ranks[victim].wait() == 9


@row("R21")
def test_what_a_failing_process_says_is_the_cause_that_the_others_name(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    bug = """
from rnncls.steps import eager
original = eager.train_step
def patched(state, *arguments):
    if state.step == 30:
        raise KeyError("a bug")
    return original(state, *arguments)
eager.train_step = patched"""
    words = [*ENDLESS, "--run-dir", tmp_path / "run"]
    ranks = by_hand(forks, tmp_path, words, words, before=["", bug])
    assert [rank.wait() for rank in ranks] == [9, 1]
    assert "rank 1: KeyError" in ranks[0].stderr
    assert "internal error: KeyError" in ranks[1].stderr
    assert read_status(tmp_path / "run")["exit_code"] == 9


@row("R21")
@pytest.mark.slow
def test_a_process_that_never_comes_is_not_waited_for(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    words = [*SMOKE, "--run-dir", tmp_path / "run"]
    (first,) = by_hand(forks, tmp_path, words, size=2)
    (second,) = by_hand(forks, tmp_path, words, size=2, first=1)
    assert (first.wait(), second.wait()) == (9, 5)
    assert "1 have come, not rank 1" in first.stderr
    assert "MASTER_PORT=" in second.stderr
    assert "nobody listens there" in second.stderr
    assert "start rank 0" in second.stderr
    assert not (tmp_path / "run").exists()


# --- R22: an error of the first process alone


@row("R22")
def test_an_error_of_the_first_process_ends_all_with_its_code(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    run_dir = tmp_path / "run"
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))"
    words = [*SMOKE, "--run-dir", run_dir]
    ranks = by_hand(forks, tmp_path, words, words, before=[limit, ""])
    assert [rank.wait() for rank in ranks] == [6, 6]
    assert ranks[0].stderr.count("rnncls: error[R9]") == 1
    assert ranks[1].stdout + ranks[1].stderr == ""

    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("")
    words = [*SMOKE, "--run-dir", tmp_path / "used"]
    ranks = by_hand(forks, tmp_path, words, words)
    assert [rank.wait() for rank in ranks] == [2, 2]
    assert ranks[0].stderr.count("rnncls: error[C19]") == 1
    assert ranks[1].stderr == ""


@row("R22")
@pytest.mark.slow
def test_a_run_that_is_held_or_damaged_is_refused_by_all(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    config = load_config("configs/smoke.yaml", ["train.max_steps=4", "train.plots=false"])
    fit(config, tmp_path / "run")
    words = ["train", "--resume", tmp_path / "run", "--dist-timeout=5"]
    with locked(tmp_path / "run"):
        ranks = by_hand(forks, tmp_path, words, words)
        assert [rank.wait() for rank in ranks] == [5, 5]
    assert "error[R26]" in ranks[0].stderr
    for path in step_files(tmp_path / "run" / "checkpoints"):
        path.write_bytes(path.read_bytes()[:-9])
    ranks = by_hand(forks, tmp_path, words, words)
    assert [rank.wait() for rank in ranks] == [4, 4]
    assert ranks[1].stderr == ""


# --- R23: a signal to one process


@row("R23")
@pytest.mark.parametrize(
    ("rank", "number"),
    [
        (1, signal.SIGTERM),
        pytest.param(0, signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("signals_not_ignored")
def test_a_signal_to_one_process_saves_and_stops_all(
    rank: int, number: signal.Signals, tmp_path: Path
) -> None:
    words = [*ENDLESS, "--run-dir", tmp_path / "run"]
    with nursery() as forks:
        ranks = by_hand(forks, tmp_path, words, words)
        wait_for_step(tmp_path / "run", 100, ranks)
        ranks[rank].send(number)
        assert [each.wait() for each in ranks] == [128 + number] * 2
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("interrupted", 128 + number)
    assert ranks[0].stderr.count("interrupted at step") == 1
    assert ranks[1].stdout + ranks[1].stderr == ""


@row("R23")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_in_an_evaluation_a_signal_is_heard_and_usr1_saves(
    rank: int, tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    words = [*SMOKE, "train.max_steps=1000000", "train.checkpoint_every=1000000"]
    words += ["train.eval_every=1000000", "--run-dir", str(tmp_path / "run")]
    ranks = by_hand(forks, tmp_path, words, words)
    wait_for_step(tmp_path / "run", 50, ranks)
    before = [*step_files(tmp_path / "run" / "checkpoints")]
    ranks[rank].send(signal.SIGUSR1)
    wait_for(lambda: [*step_files(tmp_path / "run" / "checkpoints")] != before)
    assert [each.poll() for each in ranks] == [None, None]
    ranks[rank].send(signal.SIGTERM)
    assert [each.wait() for each in ranks] == [143, 143]

    # The next evaluation is long; the signal comes while it is under way.
    words = ["train", "--resume", str(tmp_path / "run"), "--dist-timeout=5"]
    words += ["train.eval_every=1", "train.eval_samples=1000000"]
    ranks = by_hand(forks, tmp_path, words, words)
    wait_for(lambda: "training on" in ranks[0].stderr)
    time.sleep(1)
    ranks[rank].send(signal.SIGTERM)
    assert [each.wait() for each in ranks] == [143, 143]


# --- R24: another number of processes


@row("R24")
def test_a_run_of_one_process_goes_on_with_two_and_each_line_is_said_once(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    config = load_config("configs/smoke.yaml", ["train.max_steps=4", "train.plots=false"])
    fit(config, tmp_path / "run")
    words = ["train", "--resume", tmp_path / "run", "train.max_steps=9", "--dist-timeout=5"]
    ranks = by_hand(forks, tmp_path, words, words)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].stderr
    assert "2 processes, from step 4" in ranks[0].stderr
    lines = (ranks[0].stdout + ranks[0].stderr).splitlines()
    said = [line for line in lines if not line.startswith("run directory:")]
    assert len(said) == len(set(said))
    assert ranks[1].stdout + ranks[1].stderr == ""
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"], status["world_size"]) == ("finished", 9, 2)


# --- R25: processes that do not fit together


@row("R25")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RANK", None),
        ("WORLD_SIZE", None),
        ("MASTER_ADDR", None),
        ("MASTER_PORT", None),
        ("RANK", "2"),
        ("RANK", "-1"),
        ("RANK", "one"),
        ("RANK", ""),
        ("WORLD_SIZE", "0"),
        ("WORLD_SIZE", "9" * 5000),
        ("MASTER_PORT", "65536"),
        ("MASTER_PORT", "0"),
        ("LOCAL_RANK", "2"),
        ("LOCAL_WORLD_SIZE", "3"),
        ("TORCHELASTIC_RESTART_COUNT", "²"),
    ],
)
def test_a_variable_that_is_wrong_or_missing_is_named(name: str, value: str | None) -> None:
    variables = {**RIGHT, name: value}
    launch_of(RIGHT)
    meeting_place(RIGHT)
    wrong = {name: value for name, value in variables.items() if value is not None}
    read = meeting_place if name.startswith("MASTER") else launch_of
    with pytest.raises(MachineError, match=name) as caught:
        read(wrong)
    assert caught.value.problems[0].id == "R25"


@row("R25")
def test_a_port_of_something_else_is_named_by_all(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    words = [*SMOKE, "--run-dir", tmp_path / "run"]
    # It takes connections and never says a word.
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        ranks = by_hand(forks, tmp_path, words, words, port=port)
        assert [rank.wait() for rank in ranks] == [5, 5]
    for rank in ranks:
        assert rank.stderr.count("rnncls: error[R25]") == 1
        assert f"MASTER_PORT={port}" in rank.stderr
    assert not (tmp_path / "run").exists()


@row("R25")
def test_other_configs_and_other_data_are_refused_and_the_rank_is_named(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    words = [*SMOKE, "--run-dir", tmp_path / "run"]
    ranks = by_hand(forks, tmp_path, words, [*words, "optimizer.lr=1e-4"])
    assert [rank.wait() for rank in ranks] == [5, 5]
    assert "of rank 1 differs" in ranks[0].stderr
    assert "optimizer.lr" in ranks[0].stderr

    commands = []
    for rank in range(2):
        path = tmp_path / f"{rank}.csv"
        rows = "".join(f"a b {'c ' * (i % 5)},{i % 2}\n" for i in range(50 + rank))
        path.write_text(f"text,label\n{rows}")
        options = ["train.plots=false", "device=cpu", "--dist-timeout=5"]
        commands.append(["train", path, *options, "--run-dir", tmp_path / "run"])
    ranks = by_hand(forks, tmp_path, *commands)
    assert [rank.wait() for rank in ranks] == [3, 3], ranks[0].stderr
    assert "the data of rank 1 differs" in ranks[0].stderr
    assert ranks[1].stdout + ranks[1].stderr == ""
    assert not (tmp_path / "run").exists()


@row("R25", by="unit")
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in {**RIGHT, "WORLD_SIZE": "3", "RANK": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MachineError, match="more processes than GPUs"):
        device.resolve_device("cuda")


# --- under torchrun


# Its processes have groups of their own: setpriv has them end with it, whatever a test does.
def torchrun(*options: str) -> list[str]:
    command = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [
        *command,
        *options,
        "--no-python",
        "setpriv",
        "--pdeathsig=KILL",
        PYTHON,
        "-m",
        "rnncls",
    ]


@row("R23")
@pytest.mark.slow
@pytest.mark.usefixtures("signals_not_ignored")
def test_under_torchrun_a_stop_is_not_undone(tmp_path: Path) -> None:
    words = [*torchrun("--max-restarts=3"), *ENDLESS, "--run-dir", str(tmp_path / "run")]
    with started(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        wait_for_step(tmp_path / "run", 100)
        os.kill(read_status(tmp_path / "run")["pid"], signal.SIGTERM)
        _, said = process.communicate(timeout=SAFETY_S)
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("interrupted", 143)
    assert process.returncode == 0
    assert said.count("not started again") == 1


@row("R21")
@pytest.mark.slow
def test_under_torchrun_a_killed_process_is_started_again(tmp_path: Path) -> None:
    words = [*torchrun("--max-restarts=3"), *SMOKE, "train.checkpoint_every=20"]
    words += ["--run-dir", str(tmp_path / "run"), "train.max_steps=3000"]
    with started(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for_step(tmp_path / "run", 100)
        os.kill(read_status(tmp_path / "run")["pid"], signal.SIGKILL)
        assert process.wait(timeout=SAFETY_S) == 0
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("finished", 3000)


@row("R25")
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_under_torchrun_a_gpu_that_is_not_there_is_said_by_each(tmp_path: Path) -> None:
    words = [*torchrun(), *SMOKE, "device=cuda", "--run-dir", str(tmp_path / "run")]
    done = run_command([word for word in words if word != "device=cpu"])
    assert done.returncode == 1
    assert "error[R17]" in done.stderr
    assert not (tmp_path / "run").exists()
