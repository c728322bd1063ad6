"""Faults of runs of several processes, each made to happen to real processes.

docs/faults.md is the table: rows R21 to R25.
"""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from rnncls.config import load_config
from rnncls.errors import MachineError
from rnncls.rundir.checkpoint_files import step_files
from rnncls.rundir.lock import locked
from rnncls.rundir.status import read_status
from rnncls.system import device
from rnncls.system.launch import launch_of, meeting_place
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import (
    LEAN,
    PYTHON,
    ROOT,
    SAFETY_S,
    mounting,
    outcome,
    run_command,
    started,
    wait_for,
)
from tests.launches import ENDLESS, SMOKE, by_hand, free_port, nursery, wait_for_step

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
    words = [*ENDLESS, "train.log_every=10", "--run-dir", tmp_path / "run"]
    ranks = by_hand(forks, tmp_path, words, words)
    wait_for_step(tmp_path / "run", 20, ranks)
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
@pytest.mark.parametrize("victim", [0, 2])
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
def test_a_disk_that_is_full_ends_all_and_the_run_goes_on_where_there_is_room(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    """A file system with room for a few of the checkpoints, that of 2 processes of one run."""
    small = tmp_path / "small"
    small.mkdir()
    unshare, mount = mounting(small, "300k")

    run_dir = small / "run"
    run = ["model.hidden_size=8", "train.max_steps=100", "train.checkpoint_every=2"]
    run += ["train.keep_checkpoints=100", "train.eval_samples=100"]
    train = f"{PYTHON} -m rnncls {' '.join([*SMOKE, *run])} --run-dir {run_dir}"
    hand = f"WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={free_port()}"
    script = f"""{mount}
{hand} RANK=1 {train} >{tmp_path}/other 2>&1 & other=$!
{hand} RANK=0 {train}; echo first $?
wait $other; echo other $?
cp -r {run_dir} {tmp_path}/copy"""
    done = run_command([*unshare, script])
    assert done.stdout.splitlines()[-2:] == ["first 6", "other 6"], done.stderr
    assert done.stderr.count("rnncls: error[R9]") == 1
    assert (tmp_path / "other").read_text() == ""
    assert not list((tmp_path / "copy").rglob(".tmp-*"))

    words = ["train", "--resume", tmp_path / "copy", "--dist-timeout=5"]
    ranks = by_hand(forks, tmp_path, words, words)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].stderr
    words = [*SMOKE, *run, "--run-dir", tmp_path / "plain"]
    ranks = by_hand(forks, tmp_path, words, words)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].stderr
    assert outcome(tmp_path / "copy") == outcome(tmp_path / "plain")


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
        pytest.param(0, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_signal_to_one_process_saves_and_stops_all(
    rank: int, number: signal.Signals, tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    words = [*ENDLESS, "train.log_every=10", "--run-dir", tmp_path / "run"]
    ranks = by_hand(forks, tmp_path, words, words)
    wait_for_step(tmp_path / "run", 20, ranks)
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


NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
# What a variable of the system may hold: also bytes that are no text, which Python shows so.
ANYTHING = st.text(st.characters(), max_size=12) | st.just("\udcff") | st.just("none")
NUMBERS = st.integers(-1, 4).map(str) | st.just(str(2**20)) | ANYTHING


@row("R25")
@given(
    st.dictionaries(st.sampled_from(NAMES), NUMBERS),
    st.dictionaries(st.just("TORCHELASTIC_RUN_ID"), ANYTHING),
)
@example({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}, {})
@example({"RANK": "0", "WORLD_SIZE": "2"}, {"TORCHELASTIC_RUN_ID": "\udcff"})
def test_any_variables_are_a_place_among_processes_or_one_of_them_is_named(
    numbers: dict[str, str], run_id: dict[str, str]
) -> None:
    try:
        launch = launch_of({**numbers, **run_id})
    except MachineError as error:
        (problem,) = error.problems
        assert problem.id == "R25"
        assert problem.where in NAMES
        assert problem.where in problem.what
        return

    assert 0 <= launch.rank < launch.size
    assert 0 <= launch.local_rank < launch.local_size <= launch.size
    assert launch.restarts >= 0
    assert re.fullmatch("[0-9a-f]{16}|", launch.id)
    alone = "RANK" not in numbers
    assert alone == ("WORLD_SIZE" not in numbers)
    if not alone:
        assert (launch.rank, launch.size) == (int(numbers["RANK"]), int(numbers["WORLD_SIZE"]))
        assert bool(launch.id) == bool(run_id)


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
        options = [
            *LEAN,
            "train.plots=false",
            "train.engine=eager",
            "device=cpu",
            "--dist-timeout=5",
        ]
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


ALONE = ("--standalone", "--nproc-per-node=2")


# Its processes have groups of their own: setpriv has them end with it, whatever a test does.
def torchrun(*options: str) -> list[str]:
    command = [PYTHON, "-m", "torch.distributed.run"]
    if not any(option.startswith("--nnodes") for option in options):
        command += ALONE
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
    words += ["--run-dir", str(tmp_path / "run"), "train.max_steps=1200"]
    with started(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for_step(tmp_path / "run", 100)
        os.kill(read_status(tmp_path / "run")["pid"], signal.SIGKILL)
        assert process.wait(timeout=SAFETY_S) == 0
    status = read_status(tmp_path / "run")
    assert (status["state"], status["step"]) == ("finished", 1200)


@row("R25")
@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_under_torchrun_a_gpu_that_is_not_there_is_said_by_each(tmp_path: Path) -> None:
    words = [*torchrun(), *SMOKE, "device=cuda", "--run-dir", str(tmp_path / "run")]
    done = run_command([word for word in words if word != "device=cpu"])
    assert done.returncode == 1
    assert "error[R17]" in done.stderr
    assert not (tmp_path / "run").exists()


def state_of(pid: int) -> str:
    """Return the letter of the state of a process: T if it is stopped, Z if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def children(pid: int) -> list[int]:
    """Return the process ids of what a process has started, and not of what those have."""
    return [*map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]


@contextmanager
def ended(pids: list[int]) -> Iterator[None]:
    """Kill processes at the end of the block, whatever has become of who started them."""
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@row("R23")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.usefixtures("signals_not_ignored")
def test_a_signal_to_torchrun_saves_and_stops_the_run(
    number: signal.Signals, tmp_path: Path
) -> None:
    words = [*torchrun("--max-restarts=3"), *ENDLESS, "--run-dir", str(tmp_path / "run")]
    with started(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for_step(tmp_path / "run", 100, [process])
        workers = children(process.pid)
        process.send_signal(number)
        process.wait(timeout=SAFETY_S)
        assert [state_of(pid) for pid in workers] == ["Z", "Z"]
    stopped_and_saved(tmp_path / "run", number)


def stopped_and_saved(run_dir: Path, number: signal.Signals) -> None:
    """Assert that the status says so, and that there is a checkpoint of the very step."""
    status = read_status(run_dir)
    assert (status["state"], status["exit_code"]) == ("interrupted", 128 + number)
    newest = step_files(run_dir / "checkpoints")[0]
    assert int(newest.stem.split("-")[1]) == status["step"]


@row("R23")
@pytest.mark.slow
def test_when_torchrun_is_killed_its_processes_save_and_end(tmp_path: Path) -> None:
    command = [PYTHON, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = [*command, "-m", "rnncls", *ENDLESS, "--run-dir", str(tmp_path / "run")]
    with started(words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        wait_for_step(tmp_path / "run", 100, [process])
        # No group of theirs ends with the block: here nobody but the system tells them.
        workers = children(process.pid)
        with ended(workers):
            assert len(workers) == 2
            process.kill()
            wait_for(lambda: [state_of(pid) for pid in workers] == ["Z", "Z"])
    stopped_and_saved(tmp_path / "run", signal.SIGTERM)


# `rnncls`, whose first process stops itself as SIGSTOP does while it writes the second checkpoint.
SLOW_SAVE = """
import os, signal
from rnncls.rundir import run_directory
original = run_directory.write_checkpoint
saves = 0
def write(*arguments):
    global saves
    saves += 1
    if saves == 2 and os.environ["RANK"] == "0":
        os.kill(os.getpid(), signal.SIGSTOP)
    return original(*arguments)
run_directory.write_checkpoint = write
from rnncls.cli import main
main()
"""


@row("R23")
@pytest.mark.slow
def test_a_save_that_takes_longer_than_torchrun_waits_is_not_cut_short(tmp_path: Path) -> None:
    """Torchrun gives the others so long when one has ended: nobody may, before the save has."""
    (tmp_path / "slow.py").write_text(SLOW_SAVE)
    words = [*torchrun("--max-restarts=3", "--shutdown-timeout=1")[:-2], str(tmp_path / "slow.py")]
    never = ["train.max_steps=1000000", "train.checkpoint_every=1000000"]
    never += ["train.eval_every=1000000", "--dist-timeout=30"]
    smoke = [word for word in SMOKE if not word.startswith("--dist-timeout")]
    words += [*smoke, *never, "--run-dir", str(tmp_path / "run")]
    variables = os.environ | {"PYTHONPATH": str(ROOT)}
    streams = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "env": variables}
    with started(words, **streams) as process:
        wait_for_step(tmp_path / "run", 50, [process])
        first = read_status(tmp_path / "run")["pid"]
        (other,) = (pid for pid in children(process.pid) if pid != first)
        os.kill(other, signal.SIGTERM)
        wait_for(lambda: state_of(first) == "T")
        time.sleep(3)
        os.kill(first, signal.SIGCONT)
        assert process.wait(timeout=SAFETY_S) == 0
    stopped_and_saved(tmp_path / "run", signal.SIGTERM)


@row("R21")
@pytest.mark.slow
def test_on_two_nodes_a_killed_process_is_started_again(
    tmp_path: Path, forks: subprocess.Popen[str]
) -> None:
    """Two torchruns on this machine, the process of each of which is killed: one writes the run."""
    run_dir = tmp_path / "run"
    nodes = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=two"]
    nodes += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--max-restarts=3"]
    run = [*SMOKE, "train.checkpoint_every=50", "train.max_steps=1000", "train.eval_samples=100"]
    words = [*torchrun(*nodes), *run, "--run-dir", str(run_dir)]
    streams = {"stderr": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}

    def pids() -> tuple[int, int]:
        """Return the process of the node that writes the run, and that of the other."""
        both = [child for node in (one, two) for child in children(node.pid)]
        first = read_status(run_dir).get("pid", 0)
        others = [pid for pid in both if pid != first]
        return (first, others[0]) if len(others) == 1 and len(both) == 2 else (0, 0)

    def is_running(but: tuple[int, ...]) -> Callable[[], bool]:
        return lambda: pids()[0] != 0 and not set(but) & set(pids())

    with started(words, **streams) as one, started(words, **streams) as two:
        wait_for_step(run_dir, 100, [one, two])
        before = pids()
        os.kill(before[1], signal.SIGKILL)
        wait_for(is_running(before))
        again = pids()
        wait_for_step(run_dir, 500, [one, two])
        os.kill(again[0], signal.SIGKILL)
        assert [one.wait(timeout=SAFETY_S), two.wait(timeout=SAFETY_S)] == [0, 0]
    status = read_status(run_dir)
    assert (status["state"], status["step"], status["world_size"]) == ("finished", 1000, 2)

    words = [*run, "--run-dir", str(tmp_path / "plain")]
    ranks = by_hand(forks, tmp_path, words, words)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].stderr
    assert outcome(run_dir) == outcome(tmp_path / "plain")
