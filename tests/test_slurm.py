"""scripts/slurm.sh: a job that is stopped before its limit, queued again, and ends as undisturbed.

Slurm's own commands are short scripts here: srun starts the command, scontrol notes what it is
asked for. All others are the real ones.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rnncls.config import dump_config
from rnncls.rundir.status import read_status
from tests.helpers import (
    ROOT,
    SAFETY_S,
    Completed,
    config_of,
    outcome,
    run_command,
    run_process,
    started,
    wait_for,
)

SCRIPT = ROOT / "scripts" / "slurm.sh"
STEPS = 2000

COMMANDS = {
    "srun": 'echo $$ > srun.pid; exec "$@"',
    "scontrol": 'if [ "$1" = show ]; then echo localhost; else echo "$@" >> requeued; fi',
    # All processes of a step get the signal.
    "scancel": """
        echo "$@" >> cancelled
        [ ! -e deaf ] && kill -TERM "$(cat srun.pid)" $(pgrep -P "$(cat srun.pid)")
    """,
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job whose folder is `tmp_path`, with a config in it."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)

    train = {"max_steps": STEPS, "checkpoint_every": 100, "eval_every": 1000, "log_every": 100}
    (tmp_path / "small.yaml").write_text(dump_config(config_of(train=train)))

    path = [str(commands), str(Path(sys.executable).parent), os.environ["PATH"]]
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1"}
    own = {"PATH": os.pathsep.join(path), "PYTHONPATH": str(ROOT)}
    without = {name: text for name, text in os.environ.items() if "SLURM" not in name}
    return without | own | slurm


def submit(folder: Path, variables: dict[str, str]) -> Completed:
    """Run the script to its end."""
    return run_command([SCRIPT, "small.yaml", "seed=3"], cwd=folder, env=variables)


def stopped_by(number: signal.Signals, folder: Path, variables: dict[str, str]) -> int:
    """Run the script, send it a signal once the run has logged a step; returns its exit code."""
    metrics = folder / "runs" / "small" / "job-4711" / "metrics.jsonl"
    with started(
        [SCRIPT, "small.yaml", "seed=3"], cwd=folder, env=variables, stderr=subprocess.DEVNULL
    ) as script:
        wait_for(lambda: metrics.exists() and '"step": 100' in metrics.read_text())
        script.send_signal(number)
        return script.wait(SAFETY_S)


@pytest.mark.slow
@pytest.mark.parametrize("scancel_fails", [False, True])
def test_a_job_near_its_limit_is_queued_again_and_ends_as_undisturbed(
    scancel_fails: bool, job: dict[str, str], tmp_path: Path
) -> None:
    if scancel_fails:
        (tmp_path / "deaf").touch()
    run_dir = tmp_path / "runs" / "small" / "job-4711"

    assert stopped_by(signal.SIGUSR1, tmp_path, job) != 0
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 4711\n"
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"
    status = read_status(run_dir)
    assert (status["state"], status["exit_code"]) == ("interrupted", 143)
    assert 0 < status["step"] < STEPS

    again = submit(tmp_path, {**job, "SLURM_RESTART_COUNT": "1"})
    assert again.returncode == 0, again.stderr
    assert read_status(run_dir)["state"] == "finished"
    assert (tmp_path / "requeued").read_text() == "requeue 4711\n"

    words = ["train", "small.yaml", "seed=3", "--run-dir", "undisturbed"]
    whole = run_process(*words, cwd=tmp_path, env=job)
    assert whole.returncode == 0, whole.stderr
    assert outcome(run_dir) == outcome(tmp_path / "undisturbed")


@pytest.mark.slow
def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(
    job: dict[str, str], tmp_path: Path
) -> None:
    element = {"SLURM_ARRAY_JOB_ID": "4709", "SLURM_ARRAY_TASK_ID": "2"}
    assert stopped_by(signal.SIGTERM, tmp_path, job | element) != 0
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 4709_2\n"
    assert not (tmp_path / "requeued").exists()
    status = read_status(tmp_path / "runs" / "small" / "job-4711")
    assert (status["state"], status["exit_code"]) == ("interrupted", 143)


@pytest.mark.slow
def test_a_job_that_fails_is_not_queued_again(job: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("modle: {}\n")
    done = submit(tmp_path, job)
    assert done.returncode != 0
    assert "error[C5]" in done.stderr
    assert not (tmp_path / "requeued").exists()


def test_the_script_says_how_it_is_used(job: dict[str, str], tmp_path: Path) -> None:
    alone = {name: text for name, text in job.items() if name != "SLURM_JOB_ID"}
    for words, variables in (([], job), (["small.yaml"], alone)):
        done = run_command([SCRIPT, *words], cwd=tmp_path, env=variables)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: sbatch scripts/slurm.sh CONFIG")


def test_the_script_asks_slurm_for_what_it_needs() -> None:
    asked = re.findall(r"(?m)^#SBATCH (\S+)", SCRIPT.read_text())
    assert "--requeue" in asked
    assert "--signal=B:USR1@120" in asked
    # sbatch reads no more options after the first command.
    assert "#SBATCH" not in SCRIPT.read_text().partition("\nset -u\n")[2]


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="needs shellcheck")
def test_the_script_has_no_faults_that_shellcheck_knows() -> None:
    done = run_command(["shellcheck", SCRIPT])
    assert done.returncode == 0, done.stdout
