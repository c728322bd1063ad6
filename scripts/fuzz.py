"""Make thousands of broken inputs of every kind, and look at what comes of them.

    python -m scripts.fuzz                       20,000 cases (a part of make chaos)
    python -m scripts.fuzz --short               what the tests run
    python -m scripts.fuzz --only link --first 4711 --cases 1

    config, checkpoint, dataset, command line    mutated; read in this process
    link         links, pipes and odd things in a run or a sweep: nothing outside is changed
    terminal     foreign text in what is shown: no control character reaches the terminal
    read         a call that looks at, opens or reads a file fails
    memory       large files and streams, under a limit of memory

Each must be accepted, or refused with an error of ours. A case is made from its kind and number,
and what fails is printed with the command that runs it again. The exit code is 1 then. A damaged
checkpoint that is accepted counts as a failure too, and so does a kind of input of which all cases
are accepted, or all refused: then nothing was tested. A case that takes longer than SLOW_S is
printed and counted, and is no failure: the machine may have been busy.
"""

import gzip
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
import unittest.mock
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import safetensors.torch
import torch
import typer

import rnncls
from rnncls.cli import entry as cli
from rnncls.config import Config, FilesConfig, dump_config, flatten
from rnncls.data.loading import load_dataset
from rnncls.errors import RnnclsError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.restore import restore_model
from rnncls.rundir.tensorfile import FORMAT, _digest
from rnncls.training.resume import restored_task
from rnncls.training.states import restored_state
from scripts.fuzz_links import one_link
from scripts.fuzz_memory import one_memory
from scripts.fuzz_reads import one_read
from scripts.fuzz_scene import GOOD_EXITS, Failed, remove_all, scene
from scripts.fuzz_terminal import one_terminal
from scripts.processes import end_all, exit_on_signals

# Cases that take longer are printed.
SLOW_S = 10.0
SLOW = "slow"

# Of a failure. What a user's files bring may be long.
MOST_SHOWN = 1000

# What is put into texts, at the place of a YAML value or anywhere.
# fmt: off
WORDS = [
    "no", "010", "1e999", ".nan", "-1", "0", "null", "[]", "{}", "'", '"', "&a", "*a",
    "!!python/name:os.system", ":", "-", "99999999999999999999", "1e-3", "true", "[[[[", "|", ">",
    "%", "@", "...", "---", "#", "\t", "\n", "\x00", "\ufeff", "\u2028", "? ", "<<: *a",
    "\ud7ff", "x" * 5000, "model: 3", "seed: 1", "  ",
]

# What replaces a value of a checkpoint's JSON.
VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**63, 2**70, 0.5, -0.0, 1e308, "", "x", "\ud7ff", [], {}, [1, 2],
    {"a": 1},
]

OVERRIDES = [
    "", "=", "a=b", "train.max_steps", "train.max_steps=", "..=1", "model={}", "model.bias=[",
    "seed=1=2",
]

# What is put into command lines.
STRAY = [
    *OVERRIDES, "--", "-", "--json", "--debug", "--help", "--lengths", "0", "5-1", "run", "runs",
    ".", "/", "é", "\udc80", "--device", "cuda:7", "--config", "/dev/zero", "/dev/null", "seed=1",
    "seed=x", "train.max_steps=1", "-x", "x" * 300,
]
# fmt: on

TINY = """
model: {hidden_size: 2}
train: {max_steps: 2, eval_samples: 2, batch_size: 2, engine: eager}
"""

# Whole command lines, which are then mutated. "run" is a run of tiny.yaml.
COMMAND_LINES = [
    "train --config tiny.yaml --name x train.max_steps=1",
    "train --config tiny.yaml --init-from run optimizer.lr=1e-3",
    "train --resume run train.max_steps=3",
    "eval run --lengths 1-2 --samples 3 --json",
    "eval run/checkpoints/best.safetensors --confusion --device cpu",
    "config show --config tiny.yaml seed=1",
    "config check -c tiny.yaml",
    "runs ls . --json",
    "runs ls . -n 3 --sort best --filter optimizer.lr=1e-3",
    "model show run --json",
    "model show tiny.yaml model.hidden_size=3",
    "runs diff run run",
    "predict run 3,1 --top-k 2 --json",
    "predict run --input tiny.yaml --bad skip --output out.csv",
    "data sample --config tiny.yaml",
]

JSONL = """{"sequence": [1, 2, 3], "label": 0}
{"sequence": "4 5", "label": "x"}
{"sequence": [6], "label": 0}
"""
CSV = 'sequence,label,n\n1 2 3,0,"a"\n"4 5",x,"b, c"\n6,0,\n'
TEXTS = {"jsonl": JSONL, "csv": CSV, "tsv": CSV.replace(",", "\t")}

# A case makes a broken input in a folder and reads it. It returns "accepted", or how it was
# refused; an RnnclsError means refused, and every other exception is a failure.
Case = Callable[[random.Random, Path], str]


# --- texts


def broken_text(text: str, rng: random.Random) -> str:
    """Return `text` after one to four edits of characters, words or lines."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        text = edited_text(text, rng)
    return text


def edited_text(text: str, rng: random.Random) -> str:
    """Return `text` with something removed, inserted, cut off, doubled or replaced."""
    at = rng.randrange(len(text) + 1)
    kind = rng.randrange(6)
    if kind == 0:
        return text[:at] + text[at + rng.randint(1, 5) :]
    if kind == 1:
        return text[:at] + rng.choice(WORDS) + text[at:]
    if kind == 2:
        return text[:at]
    if kind == 3:
        return text[:at] + chr(rng.randrange(1, 0xD000)) + text[at:]

    lines = text.split("\n")
    if kind == 4:
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    else:
        line = rng.randrange(len(lines))
        lines[line] = lines[line].partition(":")[0] + ": " + rng.choice(WORDS)
    return "\n".join(lines)


# --- configs


def one_config(rng: random.Random, folder: Path) -> str:
    """Load a config file whose text was edited, sometimes with odd overrides."""
    path = folder / "config.yaml"
    config = rng.choice((Config(), Config(data=FilesConfig(source="files", train="x.jsonl"))))
    path.write_bytes(broken_text(dump_config(config), rng).encode("utf-8", "surrogatepass"))

    overrides = []
    if rng.random() < 0.3:
        key = rng.choice(list(flatten(config)))
        overrides.append(f"{key}={rng.choice(WORDS)}")
    if rng.random() < 0.1:
        overrides.append(rng.choice(OVERRIDES))

    rnncls.load_config(path, overrides)
    return "accepted"


# --- checkpoints


@cache
def whole_checkpoint() -> bytes:
    """Return the content of a small real checkpoint; makes it once."""
    train = {"max_steps": 2, "eval_samples": 5, "engine": "eager"}
    config = Config.model_validate({"model": {"hidden_size": 4}, "train": train})
    with tempfile.TemporaryDirectory() as folder:
        rnncls.fit(config, folder)
        return find_newest(folder).read_bytes()


def one_checkpoint(rng: random.Random, folder: Path) -> str:
    """Break a checkpoint, then read it as `rnncls eval` and `rnncls train --resume` do.

    Its bytes are changed, or its header, or its state, which is then signed again.
    """
    whole = whole_checkpoint()
    kind = rng.randrange(3)
    if kind == 0:
        broken = broken_bytes(whole, rng)
        must_be_refused = broken != whole
    elif kind == 1:
        header, tensors = split_checkpoint(whole)
        changed = replaced(header, rng)
        broken = join_checkpoint(changed, tensors)
        must_be_refused = changed != header
    else:
        broken = with_other_state(whole, rng)
        must_be_refused = False  # a signed state may be another one that is good

    path = folder / "checkpoint.safetensors"
    path.write_bytes(broken)
    checkpoint = read_checkpoint(path)
    restore_model(checkpoint)
    restored_state(checkpoint, restored_task(checkpoint, checkpoint.config))

    if must_be_refused:
        raise Failed("damaged", "a damaged checkpoint was accepted")
    return "accepted"


def broken_bytes(whole: bytes, rng: random.Random) -> bytes:
    """Return `whole` with one to three bits flipped, in one of three cases cut off too."""
    content = bytearray(whole)
    for _ in range(rng.randint(1, 3)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)

    length = rng.choice([len(content), len(content), rng.randrange(len(content))])
    return bytes(content[:length])


def with_other_state(whole: bytes, rng: random.Random) -> bytes:
    """Return a checkpoint with something in its state replaced, and a digest that fits."""
    header, content = split_checkpoint(whole)
    state = json.dumps(replaced(json.loads(header["__metadata__"]["state"]), rng))

    digest = _digest(state, safetensors.torch.load(whole))
    header["__metadata__"] = {"format": FORMAT, "state": state, "sha256": digest}
    return join_checkpoint(header, content)


def split_checkpoint(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header and the bytes of the tensors: the length of the header comes first."""
    start = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:start]), content[start:]


def join_checkpoint(header: Any, tensors: bytes) -> bytes:
    """Return the content of a checkpoint with this header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + tensors


def replaced(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one thing somewhere in it replaced, removed or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        rest = {name: inner for name, inner in value.items() if name != key}
        kind = rng.randrange(8)
        if kind == 0:
            return rest
        if kind == 1:
            name = rng.choice(["../../x", "", "model/x", "é", key + "x"])
            return {**rest, name: value[key]}
        return {**value, key: replaced(value[key], rng)}

    if isinstance(value, list) and value and rng.random() < 0.6:
        index = rng.randrange(len(value))
        return [*value[:index], replaced(value[index], rng), *value[index + 1 :]]

    return rng.choice(VALUES)


# --- data files


def one_dataset(rng: random.Random, folder: Path) -> str:
    """Load a data file whose text or bytes were changed, gzipped or not."""
    suffix = rng.choice(list(TEXTS))
    content = broken_text(TEXTS[suffix], rng).encode("utf-8", "surrogatepass")

    is_zipped = rng.random() < 0.3
    if is_zipped:
        content = gzip.compress(content)
    if content and rng.random() < 0.3:
        content = overwritten(content, rng)

    path = folder / f"data.{suffix}{'.gz' if is_zipped else ''}"
    path.write_bytes(content)
    config = FilesConfig.model_validate(
        {
            "source": "files",
            "train": str(path),
            "tokens": rng.choice(("ids", "words", "characters")),
            "val_fraction": rng.choice((0.0, 0.4)),
            "test_fraction": rng.choice((0.0, 0.4)),
        }
    )
    load_dataset(config)
    return "accepted"


def overwritten(content: bytes, rng: random.Random) -> bytes:
    """Return `content` with up to four random bytes inserted, or in the place of its end."""
    at = rng.randrange(len(content))
    noise = rng.randbytes(rng.randint(0, 4))
    rest = content[at:] if rng.random() < 0.5 else b""
    return content[:at] + noise + rest


# --- command lines


def one_command_line(rng: random.Random, folder: Path) -> str:
    """Run a mutated command line as `rnncls` would, in this process."""
    words = mutated_words(rng.choice(COMMAND_LINES).split(), rng)
    (folder / "tiny.yaml").write_text(TINY)

    errors = StringIO()
    with chdir(folder), redirect_stdout(StringIO()), redirect_stderr(errors):
        if not Path("run").exists():
            rnncls.fit(rnncls.load_config("tiny.yaml"), "run")
        with unittest.mock.patch.object(sys, "argv", ["rnncls", *words]):
            exit_code = cli.run()

    if exit_code not in GOOD_EXITS:
        raise Failed(f"exit {exit_code}", f"{words}: {errors.getvalue()}")
    if "Traceback" in errors.getvalue() and "--debug" not in words:
        raise Failed("traceback", f"{words}: {errors.getvalue()}")
    return "accepted" if exit_code == 0 else f"exit {exit_code}"


def mutated_words(words: list[str], rng: random.Random) -> list[str]:
    """Return the words with up to three of them lost, replaced or edited, or others inserted."""
    words = list(words)
    # One line in ten stays as it is: few others are accepted, and these must be.
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 2, 3, 3))):
        kind = rng.randrange(4)
        at = rng.randrange(len(words) + 1)
        if kind == 1 or at == len(words):
            words.insert(at, rng.choice(STRAY))
        elif kind == 0:
            words.pop(at)
        elif kind == 2:
            words[at] = rng.choice(STRAY)
        else:
            words[at] = broken_text(words[at], rng).replace("\0", "")
    return words


# --- running


class Kind(NamedTuple):
    """A kind of input, and how many cases of it there are, in full and in short."""

    case: Case
    cases: int
    short: int


KINDS = {
    "config": Kind(one_config, 5000, 200),
    "checkpoint": Kind(one_checkpoint, 5000, 200),
    "dataset": Kind(one_dataset, 5000, 200),
    "command line": Kind(one_command_line, 1000, 40),
    "link": Kind(one_link, 1500, 20),
    "terminal": Kind(one_terminal, 1500, 20),
    "read": Kind(one_read, 960, 20),
    "memory": Kind(one_memory, 40, 6),
}

# What one process does before it reports: of the kinds that fork, a case takes 0.2 s and more.
SHARE = 100


class Share(NamedTuple):
    """Some cases of a kind."""

    kind: str
    first: int
    cases: int


def run_all(counts: dict[str, int], first: int = 0) -> int:
    """Run the cases of each kind and return the number of failures."""
    # Here, so that the processes that follow have it, and all that was imported late.
    whole_checkpoint()
    scene()

    shares = []
    for kind, count in counts.items():
        # One that needs memory begins first, because it takes longest.
        size = SHARE if kind != "memory" else 10
        last = first + count
        shares += [Share(kind, at, min(size, last - at)) for at in range(first, last, size)]

    outcomes: dict[str, Counter[str]] = {kind: Counter() for kind in counts}
    workers = min(os.cpu_count() or 1, len(shares))
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork")) as pool:
        for share, ended in zip(shares, pool.map(run_share, shares), strict=True):
            outcomes[share.kind] += ended
    failures = sum(report(kind, outcomes[kind]) for kind in counts)
    summarise(sum(outcomes.values(), Counter()))
    return failures


def run_share(share: Share) -> Counter[str]:
    """Run some cases in this process; print what fails, and return how they ended."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(share.first, share.first + share.cases):
            started_at = time.perf_counter()
            outcomes[run_one(share.kind, number, Path(folder).resolve())] += 1
            seconds = time.perf_counter() - started_at
            if seconds > SLOW_S and share.kind != "memory":
                outcomes[SLOW] += 1
                print(f"{share.kind} {number}: slow, {seconds:.1f} s", flush=True)
        remove_all(Path(folder))
    return outcomes


def run_one(kind: str, number: int, folder: Path) -> str:
    """Run one case and return how it ended."""
    try:
        return KINDS[kind].case(random.Random(f"{kind}-{number}"), folder)
    except RnnclsError as error:
        if error.exit_code in (2, 3, 4) and error.render():
            return "refused"
        failed = Failed(f"exit {error.exit_code}", error.render())
    except Failed as error:
        failed = error
    except Exception as error:
        failed = Failed(type(error).__name__, str(error))

    print(
        f"FAILED: python -m scripts.fuzz --only {kind!r} --first {number} --cases 1: "
        f"{str(failed)[:MOST_SHOWN]}",
        flush=True,
    )
    return f"FAILED ({failed.kind})"


def report(kind: str, outcomes: Counter[str]) -> int:
    """Print the line of a kind and return its number of failures."""
    num_slow = outcomes.pop(SLOW, 0)
    listed = ", ".join(f"{key} {value}" for key, value in sorted(outcomes.items()))
    slow = f"; {num_slow} slow" if num_slow else ""
    print(f"{kind}: {outcomes.total()} cases; {listed}{slow}")

    failures = sum(value for key, value in outcomes.items() if key.startswith("FAILED"))
    # One case, which is run again, is accepted or refused.
    if outcomes.total() > 1 and not 0 < outcomes["accepted"] < outcomes.total() - failures:
        print(f"{kind}: FAILED: all were accepted, or all refused")
        failures += 1
    return failures


def summarise(total: Counter[str]) -> None:
    """Print what came of all cases together."""
    kinds = ("exit 1", "traceback", "wrote outside")
    found = ", ".join(f"{total[f'FAILED ({kind})']} {kind}" for kind in kinds)
    print(f"{total.total():,} generated cases: {found}")


def main(
    only: Annotated[str | None, typer.Option(help=", ".join(KINDS))] = None,
    first: Annotated[int, typer.Option(help="Number of the first case of each kind.")] = 0,
    cases: Annotated[int | None, typer.Option(help="Cases of each kind.")] = None,
    short: Annotated[bool, typer.Option("--short", help="A few cases of each kind.")] = False,
) -> None:
    """Run cases of each kind; exit code 1 if any of them failed."""
    if only is not None and only not in KINDS:
        raise typer.BadParameter(f"no kind {only}; there are {', '.join(KINDS)}")
    torch.set_num_threads(1)
    exit_on_signals()
    counts = counts_of(short)
    if cases is not None:
        counts = dict.fromkeys(counts, cases)
    if only is not None:
        counts = {only: counts[only]}
    try:
        failures = run_all(counts, first)
    finally:
        end_all()
    raise typer.Exit(1 if failures else 0)


def counts_of(short: bool) -> dict[str, int]:
    """Return how many cases there are of each kind, the slowest first."""
    return {name: kind.short if short else kind.cases for name, kind in reversed(KINDS.items())}


if __name__ == "__main__":
    typer.run(main)
