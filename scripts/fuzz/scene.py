"""Real runs and sweeps to be broken, and commands that are run on them in forks.

The scene is made once. A case copies what it needs of it, breaks it, and attempts a command.
"""

import atexit
import importlib
import os
import pkgutil
import shutil
import stat
import sys
import tempfile
import unittest.mock
from collections.abc import Callable, Iterable
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import rnncls
from rnncls.cli import entry as cli
from scripts.processes import HUNG, TIMEOUT_S, fork, nothing, wait_and_measure

# Of what a command writes, what is looked at.
MOST_OUTPUT = 2**16

# 1 is a fault that nobody expected; 7 and 8 mean that a small input was believed or read whole.
GOOD_EXITS = (0, 2, 3, 4, 5, 6)

CONFIG = """
data: {source: files, train: data.csv, sequence_field: text}
model: {hidden_size: 4, embedding_dim: 2, initial_state: learned}
train: {max_steps: 4, batch_size: 8, eval_every: 2, checkpoint_every: 2, log_every: 1,
        engine: eager, num_threads: 1, recompute_every: 1, truncate_after: 2}
device: cpu
"""


class Failed(Exception):
    """What must not happen did: a word or two that are counted, and what it was."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


class Command(NamedTuple):
    """A command line, and the names in its folder that it may change."""

    words: list[str]
    writes: tuple[str, ...]


def command(line: str, *writes: str) -> Command:
    """Return the command of a line without quotes."""
    return Command(line.split(), writes)


# Of run, a finished run that goes on if it may take more steps. "other" is a run like it.
RUN_COMMANDS = [
    command("train --resume run train.max_steps=6", "run"),
    command("train --resume run train.max_steps=6 train.profile=true", "run"),
    command("train --resume run train.max_steps=6 train.plots=true", "run"),
    command("train --resume run train.max_steps=5 train.histogram_every=1", "run"),
    command("train --resume run", "run"),
    command("train --config tiny.yaml --init-from run --run-dir new", "new"),
    command("train --config run/config.yaml --run-dir new data.train=data.csv", "new"),
    command("eval run"),
    command("eval run --data data.csv --json --predictions out.csv", "out.csv"),
    command("eval run/checkpoints/best.safetensors --errors 3 --confusion"),
    command("predict run 1,2 --json"),
    command("predict run --input data.csv --output out.csv --bad skip", "out.csv"),
    command("explain run 1,2"),
    command("explain run 1,2 --json --label L1"),
    command("explain run 1,2 --html out.html", "out.html"),
    command("explain run 1,2 --graph out.svg", "out.svg"),
    command("explain run 1,2 --graph out.dot", "out.dot"),
    command("explain run --padding --output out.png", "out.png"),
    command("explain run --gradients --json"),
    command("explain run/checkpoints/best.safetensors --states out.png", "out.png"),
    command("model show run"),
    command("config show run/config.yaml"),
    command("runs ls ."),
    command("runs ls run --json"),
    command("runs diff run other"),
    command("runs diff other run --json"),
]

# Of sweep, which is finished, and half, of which one member has to be trained and one evaluated.
SWEEP_COMMANDS = [
    command("sweep --resume sweep --jobs 1", "sweep"),
    command("sweep --resume sweep --jobs 2 --json", "sweep"),
    command("eval sweep", "sweep"),
    command("eval sweep/members/seed=0 --json"),
    command("train --resume sweep/members/seed=1 train.max_steps=6", "sweep"),
    command("runs ls sweep"),
    command("runs ls . --json"),
    command("runs diff sweep/members/seed=0 sweep/members/seed=1"),
    command("predict sweep/members/seed=0 3,1"),
    command("explain sweep 3,1"),
    command("explain sweep/members/seed=0 --padding"),
]
HALF_COMMANDS = [
    command("sweep --resume half --jobs 1", "half"),
    command("sweep --resume half --jobs 2", "half"),
    command("sweep --resume half --jobs 1 --shard 1/2", "half"),
    command("train --resume half/members/seed=1", "half"),
    command("eval half", "half"),
    command("runs ls half"),
]


# --- the scene


@cache
def scene() -> Path:
    """Return a folder with data.csv, tiny.yaml, run, other, sweep and half; makes it once.

    It is made in this process, so that all that is imported late is there before the first fork.
    """
    # An import in a fork would be repeated by every fork.
    for module in pkgutil.walk_packages(rnncls.__path__, "rnncls."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

    parent = Path(tempfile.mkdtemp())
    atexit.register(remove_scene, parent, os.getpid())
    made = parent / "made"
    made.mkdir()
    (made / "tiny.yaml").write_text(CONFIG)
    rows = [f"{a} {b} {a},L{(a + b) % 3}" for a in range(9) for b in range(9)]
    (made / "data.csv").write_text("\n".join(["text,label", *rows, ""]))

    for line in (
        "train --config tiny.yaml --run-dir run train.histogram_every=2",
        "train --config tiny.yaml --run-dir other optimizer.lr=0.01 model.pooling=max "
        "train.profile=true",
        "sweep --config tiny.yaml --seeds 0-1 --sweep-dir sweep --jobs 1",
        "eval other --errors 2",
        "runs ls .",
        "runs diff run other",
        "predict run 1,2",
        "explain run 1,2 --graph out.svg",
        "explain run --states out.png",
    ):
        run_here(made, line.split())

    shutil.copytree(made / "sweep", made / "half")
    shutil.rmtree(made / "half/members/seed=1/checkpoints")
    (made / "half/members/seed=0/evaluation.json").unlink()
    for name in ("summary.json", "summary.csv"):
        (made / "half" / name).unlink()

    # Nothing is found any more by the absolute paths that runs have in their configs.
    return made.rename(parent / "scene")


def remove_scene(parent: Path, owner: int) -> None:
    """Remove the scene at the end of the process that made it, not of its forks."""
    if os.getpid() == owner:
        shutil.rmtree(parent, ignore_errors=True)


def run_here(folder: Path, words: list[str]) -> None:
    """Run a command in this process."""
    errors = StringIO()
    argv = unittest.mock.patch.object(sys, "argv", ["rnncls", *words])
    with chdir(folder), redirect_stdout(StringIO()), redirect_stderr(errors), argv:
        exit_code = cli.run()
    if exit_code != 0:
        raise RuntimeError(f"{words}: exit {exit_code}: {errors.getvalue()}")


def copied(folder: Path, *names: str) -> Path:
    """Return a new folder inside `folder` with these things of the scene, and data and config."""
    work = folder / "work"
    remove_all(folder)
    work.mkdir()
    for name in ("data.csv", "tiny.yaml", *names):
        path = scene() / name
        if path.is_dir():
            shutil.copytree(path, work / name)
        else:
            shutil.copy(path, work / name)
    return work


def remove_all(folder: Path) -> None:
    """Empty a folder, whatever a case made of it."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            for inner, _, _ in os.walk(path):
                Path(inner).chmod(0o700)
            shutil.rmtree(path)
        else:
            path.unlink()


# --- attempts


class Ended(NamedTuple):
    """How a command ended, what it wrote on its streams, and its peak of memory in MiB."""

    exit_code: int
    output: str
    peak: float


def attempt(
    words: list[str],
    folder: Path,
    prepare: Callable[[], None] = nothing,
    input: Path = Path(os.devnull),
    timeout_s: float = TIMEOUT_S,
) -> Ended:
    """Run a command in a fork that changes to `folder` and calls `prepare`, and look at its end."""
    log = folder.parent / "log"

    def start() -> None:
        os.chdir(folder)
        os.dup2(os.open(input, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, closefd=False)
        prepare()

    exit_code, peak = wait_and_measure(fork(words, log, start), timeout_s)
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - MOST_OUTPUT))
        output = file.read().decode(errors="surrogateescape")
    return Ended(exit_code, output, peak)


def outcome_of(words: Iterable[str], ended: Ended, good: tuple[int, ...] = GOOD_EXITS) -> str:
    """Return how a command ended, in a word that is counted. Raises: Failed."""
    line = " ".join(words)
    last_words = ended.output[-1500:]
    if ended.exit_code == HUNG:
        raise Failed("hung", f"{line}: {last_words}")
    if ended.exit_code not in good:
        raise Failed(f"exit {ended.exit_code}", f"{line}: {last_words}")
    if "Traceback (most recent call last)" in ended.output:
        raise Failed("traceback", f"{line}: {last_words}")
    return "accepted" if ended.exit_code == 0 else f"exit {ended.exit_code}"


# --- what is there


def content_of(folder: Path, leave_out: Iterable[Path] = ()) -> dict[str, tuple[object, ...]]:
    """Return name, kind, time and content of all that is in a folder; links are not followed."""
    found: dict[str, tuple[object, ...]] = {}
    left_out = {str(path) for path in leave_out}
    for name, folders, files in os.walk(folder):
        folders[:] = [each for each in folders if f"{name}/{each}" not in left_out]
        for each in [*folders, *files]:
            path = Path(name, each)
            if str(path) in left_out:
                continue
            status = path.lstat()
            content = ""
            if path.is_symlink():
                content = str(path.readlink())
            elif path.is_file():
                content = sha256(path.read_bytes()).hexdigest() if status.st_size < 2**24 else ""
            # The time of a folder changes with the names in it, which are looked at anyway.
            is_folder = stat.S_ISDIR(status.st_mode)
            written = (status.st_size, status.st_mtime_ns) if not is_folder else ()
            found[str(path)] = (status.st_mode, *written, content)
    return found


def changes(before: dict[str, tuple[object, ...]], after: dict[str, tuple[object, ...]]) -> str:
    """Return the first names that differ; an empty string if none does."""
    names = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return ", ".join(names[:4])
