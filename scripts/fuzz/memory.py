"""Large files and streams in the place of everything that is read, under a limit of memory.

A command's peak of memory may be 512 MiB above that of one which reads nothing. So that a case
which takes all there is harms nobody, there is a limit of addresses, too. The command must end with
an error of its own or with a result, and not because the memory ran out.
"""

import contextlib
import ctypes
import gzip
import json
import lzma
import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

from rnncls.rundir import tensorfile
from scripts.fuzz.scene import (
    RUN_COMMANDS,
    SWEEP_COMMANDS,
    Command,
    Failed,
    attempt,
    command,
    copied,
    outcome_of,
    scene,
)

MOST_MIB = 512

# A large input is read to its end, or refused, within so much time of a processor. The wall clock
# is no measure: the machine may be busy.
READING_S = 60
TIMEOUT_S = 600.0

# How a case ends on a system that has neither /proc nor a limit of addresses.
SKIPPED = "skipped"

# What training keeps of the rows of `kept_rows`: 8 bytes a token, 64 bytes a row.
ROWS = 20_000
TOKENS_PER_ROW = 500
KEPT_MIB = ROWS * (8 * TOKENS_PER_ROW + 64) / 2**20

# A run reserves 1024 MiB of addresses for its threads, without using them.
ADDRESSES_MIB = MOST_MIB + int(KEPT_MIB) + 1024

# Of a model whose checkpoint has a few megabytes.
MANY_CLASSES = 2**18

# What a large file has at most on the disk; most of them are sparse.
LARGE = 200 * 2**20

M_ARENA_MAX = -8  # of mallopt in glibc


def limited() -> None:
    """Let this process have so many more addresses than it has now."""
    # Each thread would reserve 64 MiB of addresses for its own small pieces of memory.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESSES_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CPU, (READING_S, READING_S))
    # The results of many rows are looked at by nobody, and would fill the disk.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def one_memory(rng: random.Random, folder: Path) -> str:
    """Make something large, read it, and look at the memory that it took."""
    if not sys.platform.startswith("linux"):
        return SKIPPED
    make = rng.choice(MAKERS)
    work = copied(folder, "run", "other", "sweep")
    chosen = make(work, rng)
    # A pipe of a FIFO's size costs nothing; a shell's redirection is what a user has.
    input = work / "stdin" if (work / "stdin").exists() else Path(os.devnull)
    ended = attempt(chosen.words, work, limited, input, TIMEOUT_S)

    what = f"{make.__name__}: {' '.join(chosen.words)}"
    if ended.exit_code == 8:
        raise Failed("out of memory", f"{what}: {ended.output[-300:]}")
    growth = ended.peak - resting_peak(folder)
    if growth > MOST_MIB + (KEPT_MIB if make is kept_rows else 0):
        raise Failed("memory", f"{what}: {growth:,.0f} MiB")
    if ended.exit_code == -signal.SIGXCPU:
        raise Failed("still reading", f"{what}: after {READING_S} s of computing")
    return outcome_of([what], ended)


@cache
def resting_peak(folder: Path) -> float:
    """Return the peak of a fork that reads nothing."""
    return attempt(["--version"], folder / "work").peak


def write(path: Path, pieces: Any) -> None:
    """Write a file piece by piece."""
    opening: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opening(path, "wb") as file:
        for piece in pieces:
            file.write(piece)


def write_sparse(path: Path, start: bytes, size: int) -> None:
    """Write a file of zeros that takes no room, with something at its start."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.write(start)
        file.truncate(size)


# --- files of runs and sweeps


def run_file(work: Path, rng: random.Random) -> Command:
    """Make a file of a run large: one line, or many."""
    name = rng.choice(
        ["config.yaml", "status.json", "metrics.jsonl", "metrics.csv", ".lock", "evaluation.json",
         "crash.log", "checkpoints/best.safetensors", "checkpoints/step-00000004.safetensors",
         "events.out.tfevents.9.host.1.0"]
    )  # fmt: skip
    make_large(work / "run" / name, rng)
    return rng.choice(RUN_COMMANDS)


def make_large(path: Path, rng: random.Random) -> None:
    """Make a file large, with what it has at its start."""
    start = path.read_bytes() if path.exists() else b'{"state": "'
    path.unlink(missing_ok=True)
    kind = rng.randrange(4)
    if kind == 0:
        write_sparse(path, b"", rng.choice((LARGE, 2**31, 2**40)))
    elif kind == 1:
        write_sparse(path, start, 2**31)
    elif kind == 2:
        lines = start or b"a: 1\n"
        write(path, repeat(lines, LARGE // 2 // len(lines)))
    else:
        write(path, [start, *repeat(b"x" * 2**20, LARGE // 2**20)])


def sweep_file(work: Path, rng: random.Random) -> Command:
    """Make a file of a sweep large."""
    names = ["sweep.yaml", "summary.json", "summary.csv", ".lock"]
    inner = ["status.json", "evaluation.json", "metrics.jsonl", "config.yaml"]
    name = rng.choice([*names, *(f"members/seed=0/{each}" for each in inner)])
    make_large(work / "sweep" / name, rng)
    return rng.choice(SWEEP_COMMANDS)


def metrics(work: Path, rng: random.Random) -> Command:
    """Write a log of many steps, of few steps with many tags, or of long numbers."""
    first = json.loads((work / "run/metrics.jsonl").read_text().splitlines()[0])
    path = work / "run/metrics.jsonl"
    kind = rng.randrange(3)
    if kind == 0:
        lines = (json.dumps({**first, "step": step}).encode() + b"\n" for step in range(400_000))
    elif kind == 1:
        tags = {f"val/{number}": 0.5 for number in range(100_000)}
        lines = (json.dumps({"step": step, **tags}).encode() + b"\n" for step in range(60))
    else:
        lines = (b'{"step": %d, "train/loss": %s}\n' % (n, b"1" * 2**17) for n in range(1000))
    write(path, lines)
    return rng.choice(
        [command("runs diff run other"), command("runs diff run other --json"),
         command("runs ls ."), command("train --resume run train.max_steps=6", "run")]
    )  # fmt: skip


def config_file(work: Path, rng: random.Random) -> Command:
    """Make a config large."""
    make_large(work / "tiny.yaml", rng)
    return rng.choice(
        [command("train tiny.yaml --run-dir new"), command("config check tiny.yaml"),
         command("sweep tiny.yaml"),
         command("model show tiny.yaml"), command("data stats tiny.yaml")]
    )  # fmt: skip


def checkpoint(work: Path, rng: random.Random) -> Command:
    """Write checkpoints whose header says much, or that are signed and have much."""
    path = work / "run/checkpoints/best.safetensors"
    text, tensors = tensorfile.read(path)
    state = json.loads(text)

    kind = rng.randrange(4)
    if kind == 0:
        write_sparse(path, (2**24).to_bytes(8, "little") + b"{", 2**31)
    elif kind == 1:
        write_sparse(path, (2**24 - 8).to_bytes(8, "little") + b'{"a":' * (2**22 // 5), 2**31)
    elif kind == 2:
        state["config"]["model"]["hidden_size"] = 2**15
        tensorfile.write(path, json.dumps(state), tensors)
    else:
        state["versions"] = {f"k{number}": "x" * 20 for number in range(200_000)}
        with contextlib.suppress(Exception):
            tensorfile.write(path, json.dumps(state), tensors)

    return rng.choice(
        [command("eval run"), command("predict run 1,2"), command("model show run"),
         command("explain run 1,2"), command("explain run --gradients"),
         command("train --config tiny.yaml --init-from run --run-dir new", "new")]
    )  # fmt: skip


def run_of_many_classes(work: Path) -> Path:
    """Return a run whose file is small, and whose answers are numbers of very many classes."""
    path = scene() / f"many-{os.getpid()}"  # another process makes its own
    if path.exists():
        return path
    words = ["train", "tiny.yaml", "--run-dir", str(path), "data={}"]
    words += [f"data.modulus={MANY_CLASSES}", "data.max_value=5", "data.max_length=9"]
    words += ["model.hidden_size=1", "model.embedding_dim=1"]
    words += ["train.max_steps=0", "train.eval_samples=1"]

    # In a fork, as its memory would be counted for all that follow.
    ended = attempt(words, work)
    if ended.exit_code != 0:
        raise RuntimeError(f"{words}: {ended.output}")
    return path


def many_classes(work: Path, rng: random.Random) -> Command:
    """Look into a model of very many classes."""
    shutil.copytree(run_of_many_classes(work), work / "many")
    sequence = ",".join("120" * 300)
    return rng.choice(
        [command(f"explain many {sequence}"), command("explain many 1,2,0,1,2 --json"),
         command("explain many --padding"), command("explain many --padding --json"),
         command("explain many --gradients"), command("explain many --states out.png"),
         command("predict many 1,2")]
    )  # fmt: skip


# --- data


def text_data(work: Path, rng: random.Random) -> Command:
    """Write a text file with a row, a line or a header that never ends."""
    header = b"text,label\n"
    million = b"x" * 2**20
    name, pieces = rng.choice(
        [
            ("line.csv", [header, *repeat(million, 200)]),
            ("line.txt", [*repeat(million, 200)]),
            ("words.txt", [*repeat(b"1 2 " * 2**18, 200)]),
            ("quote.csv", [header, b'"a,x\n', *repeat(b"b c d,y\n" * 2**10, 2**13)]),
            ("quotes.csv", [header, *repeat(b'"1\n2\n",L0\n"' * 2**10, 2**12)]),
            ("columns.csv", [*repeat(b"c," * 2**19, 2**7), b"\na,b\n"]),
            ("header.csv", [*repeat(b"text," * 2**17, 2**7), b"label\n1,a\n"]),
            ("blank.csv.gz", [header, *repeat(b"\n" * 2**20, 2**6)]),
            ("bomb.csv.gz", [header, *repeat(b"1" * 2**18 + b",x\n", 2**11)]),
            ("bomb.jsonl.xz", [b'{"text": "', *repeat(bytes(2**20), 2**11)]),
            ("line.jsonl", [b'{"text": "', *repeat(million, 200)]),
            ("deep.jsonl", [*repeat(b"[" * 2**20, 15), b"\n"] * 5),
            ("array.json", [b"[", *repeat(b'{"text": "1 2", "label": "L0"},\n' * 2**12, 2**10)]),
            ("object.json", [b'[{"text": "', *repeat(million, 200)]),
            ("numbers.json", [b'[{"text": [', *repeat(b"1, " * 2**18, 200)]),
            ("rows.csv", [header, *repeat(b"1 2 3,L0\n" * 2**14, 2**6)]),
            ("labels.csv", [header, *(b"1 2,M%d\n" % number for number in range(10**6))]),
            ("tokens.csv", [header, *(b"t%d,L0\n" % number for number in range(10**6))]),
            ("utf16.csv", [b"\xff\xfe", *repeat(b"x\0" * 2**19, 200)]),
        ]
    )
    write(work / name, pieces)
    return data_command(name, rng)


def data_command(name: str, rng: random.Random) -> Command:
    """Return a command that reads a data file and keeps none of its rows."""
    columns = ["--text-column", "text", "--label-column", "label"]
    return rng.choice(
        [
            Command(["data", "check", name, *columns], ()),
            Command(["predict", "run", "--input", name, "--bad", "skip", "--output", "o.csv"], ()),
            Command(["predict", "run", "--input", name], ()),
            Command(["predict", "run", "--input", name, "--json", "--bad", "skip"], ()),
            Command(["init", name, *columns], ()),
        ]
    )


def kept_rows(work: Path, rng: random.Random) -> Command:
    """Write rows that training keeps."""
    row = b"1 2 " * (TOKENS_PER_ROW // 2)
    write(work / "rows.csv", [b"text,label\n", *repeat(row + b",L0\n" + row + b",L1\n", ROWS // 2)])
    columns = ["--text-column", "text", "--label-column", "label"]
    small = ["model.hidden_size=2", "model.embedding_dim=2", "train.batch_size=4"]
    options = [*small, "train.max_steps=1", "train.engine=eager", "--run-dir", "new"]
    return rng.choice(
        [
            Command(["train", "rows.csv", *columns, *options], ("new",)),
            Command(["data", "stats", "rows.csv", *columns], ()),
            Command(["eval", "run", "--data", "rows.csv", *columns], ()),
        ]
    )


def columnar_data(work: Path, rng: random.Random) -> Command:
    """Write a small Parquet or Arrow file that has much in it."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return text_data(work, rng)

    kind = rng.randrange(3)
    if kind == 0:
        texts = pyarrow.array(["1 2 " * 2**18] * 256)
    elif kind == 1:
        dictionary = pyarrow.array(["1 2 " * 2**20])
        indices = pyarrow.array([0] * 2000, pyarrow.int32())
        texts = pyarrow.DictionaryArray.from_arrays(indices, dictionary)
    else:
        texts = pyarrow.array(["1 2"] * 3_000_000)

    labels = pyarrow.array(["L0"] * len(texts))
    table = pyarrow.table({"text": texts, "label": labels})

    name = rng.choice(["data.parquet", "data.arrow"])
    if name == "data.parquet":
        parquet.write_table(table, work / name, compression="zstd")
    else:
        options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
        with pyarrow.ipc.new_file(str(work / name), table.schema, options=options) as file:
            file.write_table(table)

    return data_command(name, rng)


def predict_stdin(work: Path, rng: random.Random) -> Command:
    """Give `predict` an input that has one endless line, or many lines."""
    path = work / "stdin"
    kind = rng.randrange(4)
    if kind == 0:
        write(path, repeat(b"1 2 " * 2**18, 200))
    elif kind == 1:
        write_sparse(path, b"1 2\n", 2**31)
    elif kind == 2:
        write(path, repeat(b"1 2\n" * 2**10, 2**7))
    else:
        # Each of them is a row, and gets an answer.
        write(path, [b"\n" * 2**20])
    return rng.choice(
        [command("predict run -"), command("predict run - --json --bad skip"),
         command("predict run - --bad skip"), command("predict run - --output out.jsonl")]
    )  # fmt: skip


MAKERS: list[Callable[[Path, random.Random], Command]] = [
    run_file, run_file, sweep_file, metrics, config_file, checkpoint, text_data, text_data,
    columnar_data, kept_rows, predict_stdin, many_classes,
]  # fmt: skip
