"""`rnncls sweep --shard auto`: each member is in exactly one part, whoever starts the processes."""

import itertools
import json
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from rnncls.config import dump_config
from rnncls.errors import ConfigError, MachineError
from rnncls.sweep.shards import shard_of
from tests.helpers import (
    PYTHON,
    ROOT,
    SAFETY_S,
    config_of,
    outcome,
    run_command,
    run_rnncls,
    started,
)

row = pytest.mark.row
TORCHRUN = Path(sys.executable).parent / "torchrun"

ELEMENT = {
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "7",
    "SLURM_ARRAY_TASK_STEP": "2",
    "SLURM_ARRAY_TASK_COUNT": "4",
}
TASK = {"SLURM_JOB_ID": "9", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "3"}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(dump_config(config_of()))
    return path


def auto(variables: dict[str, str]) -> tuple[int, int]:
    return shard_of("auto", True, variables)


# --- which part


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"RANK": "2", "WORLD_SIZE": "3"}, (3, 3)),
        (ELEMENT, (3, 4)),
        (TASK, (2, 3)),
        # The tasks of a step count, not those that its job may have.
        (TASK | {"SLURM_STEP_NUM_TASKS": "2"}, (2, 2)),
        # A task that Slurm has started may start torchrun, whose ranks span all tasks.
        (TASK | ELEMENT | {"RANK": "0", "WORLD_SIZE": "2"}, (1, 2)),
    ],
)
def test_a_process_takes_the_part_of_its_place(
    variables: dict[str, str], part: tuple[int, int]
) -> None:
    assert auto(variables) == part


@pytest.mark.parametrize(("first", "step", "elements", "tasks"), [(0, 1, 8, 1), (3, 4, 5, 3)])
def test_each_task_of_each_element_has_a_part_of_its_own(
    first: int, step: int, elements: int, tasks: int
) -> None:
    parts = []
    for element, task in itertools.product(range(elements), range(tasks)):
        variables = {
            "SLURM_ARRAY_TASK_ID": str(first + step * element),
            "SLURM_ARRAY_TASK_MIN": str(first),
            "SLURM_ARRAY_TASK_MAX": str(first + step * (elements - 1)),
            "SLURM_ARRAY_TASK_STEP": str(step),
            "SLURM_ARRAY_TASK_COUNT": str(elements),
            "SLURM_PROCID": str(task),
            "SLURM_NTASKS": str(tasks),
        }
        parts.append(auto(variables))
    count = elements * tasks
    assert sorted(parts) == [(number, count) for number in range(1, count + 1)]


def test_alone_it_is_the_whole_sweep_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    # The script of a job is no task of it, though Slurm numbers it like the first one.
    script = {"SLURM_JOB_ID": "9", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    for variables in ({}, script):
        assert auto(variables) == (1, 1)
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.startswith("rnncls: --shard auto is 1/1")
        assert said.err.count("\n") == 1


def test_processes_of_torchrun_that_all_train_everything_are_told_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    both = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}
    assert shard_of("1/1", True, {"RANK": "0", **both}) == (1, 1)
    warning = capsys.readouterr().err
    assert "each of 2 processes goes through all members" in warning
    assert warning.count("\n") == 1

    for text, variables in (
        ("1/1", {"RANK": "1", **both}),
        ("1/2", {"RANK": "0", **both}),
        ("1/1", {"RANK": "0", **both, "WORLD_SIZE": "1"}),
        ("1/1", {"RANK": "0", "WORLD_SIZE": "2"}),
        ("1/1", TASK),
        ("1/1", {}),
    ):
        shard_of(text, True, variables)
        assert capsys.readouterr().err == ""


@row("R25")
@pytest.mark.parametrize(
    ("variables", "name"),
    [
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK"),
        ({"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN"),
        (ELEMENT | {"SLURM_ARRAY_TASK_ID": "4"}, "SLURM_ARRAY_TASK_ID"),
        (ELEMENT | {"SLURM_ARRAY_TASK_ID": "9"}, "SLURM_ARRAY_TASK_ID"),
        (ELEMENT | {"SLURM_ARRAY_TASK_STEP": "0"}, "SLURM_ARRAY_TASK_STEP"),
        (ELEMENT | {"SLURM_ARRAY_TASK_COUNT": "-4"}, "SLURM_ARRAY_TASK_COUNT"),
        # A list such as 1,3,8,9: no element would take the other parts.
        (ELEMENT | {"SLURM_ARRAY_TASK_MAX": "9"}, "SLURM_ARRAY_TASK_MAX"),
        (TASK | {"SLURM_PROCID": "3"}, "SLURM_PROCID"),
        (TASK | {"SLURM_PROCID": "٣"}, "SLURM_PROCID"),
        (TASK | {"SLURM_NTASKS": ""}, "SLURM_NTASKS"),
    ],
)
def test_variables_that_make_no_sense_are_named(variables: dict[str, str], name: str) -> None:
    with pytest.raises(MachineError) as caught:
        auto(variables)
    (problem,) = caught.value.problems
    assert (problem.id, problem.where) == ("R25", name)


@row("C17")
@pytest.mark.parametrize("text", ["Auto", "0/2", "3/2", "1", "", "1/2/3"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="bad value for --shard"):
        shard_of(text, True, {})


@row("C17", "R25")
def test_the_command_refuses_before_anything_is_made(
    config: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = fails(2, "sweep", config, "--shard", "auto", cwd=tmp_path)
    assert "C17" in said
    assert "--sweep-dir" in said
    assert "--resume" in said

    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    said = fails(5, "sweep", config, "--shard", "auto", "--sweep-dir", tmp_path / "sweep")
    assert "R25" in said
    assert "WORLD_SIZE" in said
    assert {path.name for path in tmp_path.iterdir()} == {"small.yaml"}


# --- processes


def words_of(config: Path, folder: Path) -> list[str | Path]:
    words: list[str | Path] = ["rnncls", "sweep", config, "--seeds", "0-4", "--jobs", "1"]
    return [*words, "--shard", "auto", "--sweep-dir", folder]


def assert_whole(config: Path, folder: Path, tmp_path: Path) -> None:
    """Assert that a sweep equals that of one process."""
    alone = run_rnncls("sweep", config, "--seeds", "0-4", "--sweep-dir", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    names = [f"seed={seed}" for seed in range(5)]
    assert sorted(path.name for path in (folder / "members").iterdir()) == names

    one, other = (
        json.loads((path / "summary.json").read_text()) for path in (folder, tmp_path / "alone")
    )
    assert one["groups"] == other["groups"]
    for name in names:
        assert outcome(folder / "members" / name) == outcome(tmp_path / "alone" / "members" / name)
    assert one["groups"][0]["ended"] == 5


@pytest.mark.slow
def test_processes_that_begin_at_once_make_one_sweep(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    command = [PYTHON, "-m", *words_of(config, folder)]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                started(command, env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "3"})
            )
            for rank in range(3)
        ]
        assert [process.wait(SAFETY_S) for process in processes] == [0, 0, 0]
    assert_whole(config, folder, tmp_path)


@pytest.mark.slow
def test_torchrun_starts_the_parts_of_a_sweep(config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    launcher: list[str | Path] = [TORCHRUN, "--standalone", "--nproc-per-node", "3", "-m"]
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_command([*launcher, *words_of(config, folder)], env=own)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("sweep directory:") == 3
    assert_whole(config, folder, tmp_path)
