"""Helpers that several test modules share: configs, runs, the command line, and processes.

`run_rnncls` runs the command line inside the test's own process, which saves importing torch again.
`run_process` starts a process of its own; it is for tests of signals, streams, limits and kills.
"""

import atexit
import gc
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rnncls.cli import entry
from rnncls.config import Config, SumModConfig
from rnncls.config.load import parse_config
from rnncls.data.sequences import Sequences, offsets_of
from rnncls.rundir import tensorfile
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint, find_newest
from rnncls.steps import eager
from rnncls.steps.state import TrainState
from rnncls.system.pictures import any_script
from rnncls.training.fit import fit

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable

# A process that has not ended by then never will. No test measures time.
SAFETY_S = 600

# Overrides of a config that is made from a file, where a test is about something else: no control
# is trained after the model, and no large table is written with every checkpoint.
LEAN = ("train.baseline=none", "model.ngram_table=64")

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

Completed = subprocess.CompletedProcess[str]
Rows = list[tuple[Any, Any]]
Outcome = tuple[dict[str, bytes], list[dict[str, Any]], dict[str, Any]]


# --- configs

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
        "plots": False,
    },
}

# Everything random or stateful at once: dropout, two layers and directions, momenta, odd cadences.
HARD: dict[str, Any] = {
    "model": {"num_layers": 2, "dropout": 0.4, "bidirectional": True},
    "train": {
        "max_steps": 24,
        "log_every": 5,
        "eval_every": 7,
        "checkpoint_every": 4,
        "eval_samples": 40,
        "engine": "eager",
    },
}

# HARD with each key that says what the head sees, what a sequence begins with, what the loss asks
# for, and how far a gradient reaches. Each cell is there; sequences have at most 4 tokens.
VARIANTS: dict[str, dict[str, Any]] = {
    "mean": {"model": {"pooling": "mean", "cell": "gru"}},
    "max": {"model": {"pooling": "max", "nonlinearity": "tanh"}},
    "last_mean_max": {"model": {"pooling": "last_mean_max"}},
    "learned": {"model": {"initial_state": "learned", "cell": "lstm"}},
    "recomputed": {"train": {"recompute_every": 2}},
    "truncated": {"train": {"truncate_after": 2}, "model": {"initial_state": "learned"}},
    "together": {
        "model": {"pooling": "last_mean_max", "initial_state": "learned", "cell": "gru"},
        "train": {"recompute_every": 2, "truncate_after": 3},
    },
    "prefix": {
        "model": {"bidirectional": False, "initial_state": "learned", "nonlinearity": "tanh"},
        "train": {"objective": "prefix"},
    },
    "prefix_in_pieces": {
        "model": {"bidirectional": False, "initial_state": "learned", "cell": "lstm"},
        "train": {"objective": "prefix", "recompute_every": 1, "truncate_after": 3},
    },
}

# What the compiled and the captured steps can do, each at least once.
CASES: dict[str, dict[str, Any]] = {
    "tutorial": {"model": {"nonlinearity": "tanh", "init_gain": 1.0, "recurrent_init": "default"}},
    "three_layers": {
        "model": {"num_layers": 3},
        "train": {"batch_size": 31, "max_grad_norm": 0.01},
    },
    "adam": {"optimizer": {"name": "adam", "weight_decay": 0.01}, "data": {"max_length": 17}},
    "sgd": {
        "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 0.01},
        "schedule": {"min_lr": 0.0},
    },
    "plain_sgd": {"optimizer": {"name": "sgd", "lr": 0.05}, "train": {"max_grad_norm": None}},
    "small_batches": {"train": {"batch_size": 2}, "data": {"max_length": 30}},
    "no_bias": {"model": {"bias": False, "hidden_size": 7, "num_layers": 2}},
    "more_tokens_than_sequences": {
        "data": {"modulus": 40, "max_value": 50},
        "model": {"hidden_size": 33},
    },
}


def config_of(**sections: Any) -> Config:
    """Return SMALL with some keys replaced: `config_of(train={"max_steps": 3}, seed=1)`.

    The device is the CPU, so that a machine with a GPU tests the same.
    """
    raw: dict[str, Any] = {name: dict(values) for name, values in SMALL.items()}
    raw["device"] = "cpu"
    for name, value in sections.items():
        raw[name] = {**raw.get(name, {}), **value} if isinstance(value, dict) else value
    return parse_config(raw, "test")


def variant_of(name: str, **sections: Any) -> Config:
    """Return the config of one of VARIANTS, with some keys replaced."""
    merged: dict[str, Any] = {}
    for changes in (HARD, VARIANTS[name], sections):
        for section, values in changes.items():
            old = merged.get(section, {})
            merged[section] = {**old, **values} if isinstance(values, dict) else values
    return config_of(**merged)


def config_with(engine: str, case: dict[str, Any], **train: Any) -> Config:
    """Return the config of one of CASES: 200 steps with this engine, every one of them logged."""
    sections = {name: dict(values) for name, values in case.items()}
    sections["train"] = {
        "max_steps": 200,
        "log_every": 1,
        **sections.get("train", {}),
        "engine": engine,
        **train,
    }
    return config_of(**sections)


def files_config(path: Path, train: dict[str, Any] | None = None, **keys: Any) -> Config:
    """Return a config that trains on a file of integer tokens; `keys` go into its data section.

    The device is the CPU.
    """
    raw = {
        "data": {"source": "files", "train": str(path), "tokens": "ids", **keys},
        "model": {"embedding_dim": 4, "hidden_size": 8},
        "schedule": {"warmup_steps": 5},
        "train": {
            "max_steps": 24,
            "batch_size": 8,
            "log_every": 5,
            "eval_every": 7,
            "checkpoint_every": 4,
            "engine": "eager",
            "plots": False,
            **(train or {}),
        },
        "device": "cpu",
    }
    return parse_config(raw, "test")


def data_of(config: Config) -> SumModConfig:
    """Return the data section of a config with generated data."""
    assert isinstance(config.data, SumModConfig)
    return config.data


# --- data files


def some_rows(count: int, seed: int = 0, longest: int = 6) -> Rows:
    """Draw sequences of the tokens 0-4, each labelled with its sum modulo 3."""
    rng = random.Random(seed)
    sequences = [[rng.randrange(5) for _ in range(rng.randint(1, longest))] for _ in range(count)]
    return [(sequence, sum(sequence) % 3) for sequence in sequences]


def sequences_of(rows: Sequence[Sequence[int]], labels: Sequence[int] | None = None) -> Sequences:
    """Return rows of ids as sequences, labelled with their numbers unless labels are given."""
    tokens = torch.tensor(list(chain.from_iterable(rows)), dtype=torch.int32)
    offsets = offsets_of(torch.tensor(list(map(len, rows))))
    return Sequences(tokens, offsets, torch.tensor(labels or range(len(rows))))


def write_jsonl(path: Path, rows: Rows) -> Path:
    """Write one JSON object per row; returns the path."""
    lines = [json.dumps({"sequence": sequence, "label": label}) for sequence, label in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


# --- runs


def outcome(run_dir: Path) -> Outcome:
    """Return final tensors as bytes, logged lines and counters: all but what the clock decides."""
    checkpoint = read_checkpoint(find_newest(run_dir))
    tensors = {**checkpoint.model, **checkpoint.optim}
    tensors |= {f"average/{name}": tensor for name, tensor in checkpoint.average.items()}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {key: value for key, value in line.items() if "per_second" not in key} for line in lines
    ]
    counters = {
        key: value for key, value in checkpoint.state.counters.items() if key != "totals_seconds"
    }
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}, timeless, counters


def losses(config: Config, run_dir: Path) -> list[float]:
    """Train a run; returns the training losses that it logged."""
    fit(config, run_dir)
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows]


def change_checkpoint(
    path: Path, edit: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]
) -> None:
    """Change state or tensors of a checkpoint and sign it again."""
    text, tensors = tensorfile.read(path)
    state = json.loads(text)
    edit(state, tensors)
    tensorfile.write(path, json.dumps(state), tensors)


def copy_of_run(
    run_dir: Path, copy: Path, edit: Callable[[dict[str, torch.Tensor]], object]
) -> Path:
    """Copy a run, and change the tensors of its best checkpoint; returns the copy."""
    shutil.copytree(run_dir, copy)
    change_checkpoint(find_checkpoint(copy), lambda _, tensors: edit(tensors))
    return copy


class Killed(BaseException):
    """Ends a run as a kill does: nothing is saved on the way out."""


def at_step(patch: pytest.MonkeyPatch, step: int, action: Callable[[TrainState], object]) -> None:
    """Make the eager training step with this index begin with an action."""
    original = eager.train_step

    def stepping(state: TrainState, *arguments: Any) -> None:
        if state.step == step:
            action(state)
        original(state, *arguments)

    patch.setattr(eager, "train_step", stepping)


def stop_at(patch: pytest.MonkeyPatch, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Send this process a real signal in the middle of the training step with this index."""
    at_step(patch, step, lambda _: os.kill(os.getpid(), number))


def kill_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Let the training step with this index end the run as a kill would."""

    def killed(_: TrainState) -> None:
        raise Killed

    at_step(patch, step, killed)


# --- the command line in this process


def run_rnncls(*words: str | Path, cwd: Path | None = None, input: str = "") -> Completed:
    """Run `rnncls words` inside this process, with streams and a working directory of its own."""
    stdin = io.TextIOWrapper(io.BytesIO(input.encode()), encoding="utf-8")
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stderr = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["rnncls", *map(str, words)])
        patch.setattr(sys, "stdin", stdin)
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys, "stderr", stderr)
        patch.chdir(cwd or ROOT)
        exit_code = entry.run()

    # A command keeps the collector of cycles away from what lasts as long as its own process.
    gc.unfreeze()
    return Completed(["rnncls", *words], exit_code, _written(stdout), _written(stderr))


def _written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    content = stream.buffer
    assert isinstance(content, io.BytesIO)
    return content.getvalue().decode()


# --- processes

# What a watcher does: it knows the process groups that still run, and kills them when its stdin
# ends, because the process at the other end has ended, however it did.
WATCHER = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    number = int(line)
    groups.add(number) if number > 0 else groups.discard(-number)
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass
"""


@cache
def watcher() -> IO[str]:
    """Start the watcher of this process and return its stdin."""
    # In a session of its own, so that what ends a test session does not end it first.
    process = subprocess.Popen(
        [PYTHON, "-S", "-E", "-c", WATCHER],
        stdin=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdin is not None
    atexit.register(process.communicate)
    return process.stdin


@contextmanager
def watched(group: int) -> Iterator[None]:
    """Have a process group killed if this process ends inside the block."""
    print(group, file=watcher(), flush=True)
    try:
        yield
    finally:
        print(-group, file=watcher(), flush=True)


@contextmanager
def ignoring_no_signals() -> Iterator[None]:
    """Let SIGINT and SIGHUP reach the processes that are started in the block.

    A process ignores what its parent ignores. A shell starts background jobs with SIGINT ignored,
    and nohup its command with SIGHUP ignored; pytest may be either.
    """
    before = {}
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            before[number] = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a process in a group of its own, and kill the whole group at the end of the block.

    The group is killed whatever happens: when the process has ended already, when an assertion
    fails, when the test is interrupted. When this process is killed, the watcher kills the group,
    and the kernel a process that the watcher does not know of yet.
    """
    watcher()
    words = [*map(str, command)]
    if shutil.which("setpriv"):
        words = ["setpriv", "--pdeathsig", "KILL", *words]

    settings = {"cwd": ROOT, "text": True, "start_new_session": True, **options}
    with subprocess.Popen(words, **settings) as process, watched(process.pid):
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def run_command(
    command: Sequence[str | Path], input: str | None = None, **options: Any
) -> Completed:
    """Run a command to its end and capture what it prints."""
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    streams["stdin"] = subprocess.DEVNULL if input is None else subprocess.PIPE

    with started(command, **{**streams, **options}) as process:
        stdout, stderr = process.communicate(input, timeout=SAFETY_S)
    return Completed(process.args, process.returncode, stdout, stderr)


def run_process(*words: str | Path, **options: Any) -> Completed:
    """Run `rnncls words` in a process of its own, as a user does."""
    return run_command([PYTHON, "-m", "rnncls", *words], **options)


def run_python(code: str, *words: str | Path, **options: Any) -> Completed:
    """Run Python code in a process of its own; `words` are its sys.argv[1:]."""
    return run_command([PYTHON, "-c", code, *words], **options)


@contextmanager
def endless_run(run_dir: Path, *overrides: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process that trains for minutes; when the block begins, it has logged step 100."""
    words = ["train", "--config", "configs/smoke.yaml", "device=cpu", "train.engine=eager"]
    words.append("train.plots=false")
    words += ["train.max_steps=1000000", *overrides, "--run-dir", str(run_dir)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}

    with started([PYTHON, "-m", "rnncls", *words], **streams) as process:
        wait_for_line(process, "step    100")
        yield process


def wait_for_line(process: subprocess.Popen[str], beginning: str) -> None:
    """Read the process's stderr up to a line that begins so."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(beginning):
            return
    pytest.fail(f"no line {beginning!r} in\n{''.join(said)}")


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    give_up_at = time.monotonic() + SAFETY_S
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


# --- pictures


def pixels_of(figure: Any) -> Any:
    """Return a picture as an array, (height, width, 3) uint8."""
    canvas: Any = FigureCanvasAgg(figure)
    with any_script():
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:, :, :3]


def mounting(folder: Path, size: str) -> tuple[list[str], str]:
    """Return what runs a script of a shell apart, and its line that mounts a small disk.

    The disk is a file system in memory, such as of "250k", that only the script sees. The test is
    skipped where that is not allowed.
    """
    apart = ["unshare", "-rm", "sh", "-c"]
    mount = f"mount -t tmpfs -o size={size} none {folder}"
    if not shutil.which("unshare") or run_command([*apart, mount]).returncode:
        pytest.skip("no right to mount a small file system")
    return apart, mount
