"""What the README shows is run: commands, Python, the worked examples, the code map and the tags."""

import doctest
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from tests.helpers import ROOT

README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
QUICK = ["train.max_steps=6", "train.eval_every=3", "schedule.warmup_steps=2"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block.splitlines() if line]


SHORTER = {  # a later option wins
    "python scripts/bench_data": "--rounds 1 --count 4",
    "python scripts/bench_checkpoint": "--rounds 1 --config configs/smoke.yaml",
    "python scripts/bench_recurrence": "--rounds 1 --longest 16",
    "python scripts/bench.py": "--regimes tutorial --rounds 1 --seconds 0.01 --only 'rnncls compiled'",
    "python scripts/bench_files": "--rows 1000",
    "python scripts/source_lines": "--files 150",
    "python scripts/digits": "--rows 2000",
    "python -m scripts.bench_sweep": "--rounds 1 --steps 20",
    "python -m scripts.reproduce": "--short --only T5 --out runs/short --output short.md",
    "rnncls sweep --config": "--seeds 0-1 train.max_steps=6 schedule.warmup_steps=2",
}


def quick(command: str) -> str:
    """The same command with less work: fewer steps, seeds and samples."""
    if command.startswith("rnncls train"):
        return " ".join([command, *QUICK])
    for beginning, shorter in SHORTER.items():
        if command.startswith(beginning):
            return f"{command} {shorter}"
    return command


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like the project to the README's commands."""
    folder = tmp_path_factory.mktemp("readme")
    for name in ("configs", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("own", [True, False], ids=["of_one_run", "others"])
def test_every_command_of_the_readme_runs(home: Path, own: bool) -> None:
    """In two halves, for two processes: the blocks about the run of the first section, and those about others."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    ran = []
    for command in chain.from_iterable(
        block.splitlines() for block in blocks("sh") if ("runs/mine" in block) == own
    ):
        if not command or command.startswith(("make ", "tensorboard ", "pip ")):
            continue  # make targets: below; a TensorBoard server: test_runlog.py
        done = subprocess.run(
            shlex.split(quick(command)),
            cwd=home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout or "--output" in command, command
        ran.append(command)
    assert len(ran) >= 9


def test_make_knows_the_targets_the_readme_and_the_help_name() -> None:
    listed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    targets = ["install", "train", "test", "test-slow", "chaos"]
    for target in [*targets, "check", "format", "golden", "clean"]:
        assert f"make {target} " in listed
    for command in commands():
        if command.startswith("make "):
            done = subprocess.run(
                [*command.split(), "-n"], cwd=ROOT, capture_output=True, timeout=60, check=False
            )
            assert done.returncode == 0, command


def test_the_python_of_the_readme_runs(home: Path) -> None:
    (code,) = blocks("python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy: " in done.stdout


def test_the_worked_examples_are_true() -> None:
    results = doctest.testfile(str(ROOT / "README.md"), module_relative=False)
    assert results.failed == 0
    assert results.attempted >= 8
    for name in ("data.batches", "evaluation.metrics"):
        module = importlib.import_module(f"rnncls.{name}")
        results = doctest.testmod(module, extraglobs={"torch": importlib.import_module("torch")})
        assert results.failed == 0
        assert results.attempted > 0


def test_the_code_map_names_every_module_and_the_tag_table_every_tag() -> None:
    from rnncls.rundir.log import TAGS

    for path in (ROOT / "rnncls").rglob("*.py"):
        if not path.name.startswith("__"):
            assert path.name in README, path
    for tag in TAGS:
        assert f"`{tag}`" in README
    for path in (ROOT / "configs").glob("*.yaml"):
        assert path.stem in README or path.stem == "smoke"


def test_the_results_table_names_real_configs() -> None:
    for path in re.findall(r"configs/\S+\.yaml", README):
        assert (ROOT / path).is_file(), path
