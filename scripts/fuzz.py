"""Thousands of broken configs, checkpoints, data files and command lines: each is read or refused in our own words.

    python scripts/fuzz.py --configs 5000 --checkpoints 5000 --datasets 5000 --commands 1000

Mutations come from fixed seeds. Whatever else is raised, or takes longer than ten seconds, is printed with its case
number, and the exit code is 1. A damaged checkpoint that is taken for whole counts as a failure too.
"""

import gzip
import json
import random
import sys
import tempfile
import time
import unittest.mock
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import typer

import rnncls
from rnncls.cli import app as cli
from rnncls.config import Config, FilesConfig, dump_config, flatten
from rnncls.data.dataset import load_dataset
from rnncls.errors import RnnclsError
from rnncls.rundir.checkpoint import read_checkpoint, restore_model
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.tensorfile import FORMAT, _digest
from rnncls.training.resume import restored_state, restored_task

SLOW_S = 10.0
WORDS = [
    "no",
    "010",
    "1e999",
    ".nan",
    "-1",
    "0",
    "null",
    "[]",
    "{}",
    "'",
    '"',
    "&a",
    "*a",
    "!!python/name:os.system",
]
WORDS += [
    ":",
    "-",
    "99999999999999999999",
    "1e-3",
    "true",
    "[[[[",
    "|",
    ">",
    "%",
    "@",
    "...",
    "---",
    "#",
]
WORDS += [
    "\t",
    "\n",
    "\x00",
    "\ufeff",
    "\u2028",
    "? ",
    "<<: *a",
    "\ud7ff",
    "x" * 5000,
    "model: 3",
    "seed: 1",
    "  ",
]
VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    1,
    2**63,
    2**70,
    0.5,
    -0.0,
    1e308,
    "",
    "x",
    "\ud7ff",
    [],
    {},
    [1, 2],
    {"a": 1},
]
OVERRIDES = [
    "",
    "=",
    "a=b",
    "train.max_steps",
    "train.max_steps=",
    "..=1",
    "model={}",
    "model.bias=[",
    "seed=1=2",
]
TINY = "{model: {hidden_size: 2}, train: {max_steps: 2, eval_samples: 2, batch_size: 2}}"
COMMAND_LINES = [
    "train --config tiny.yaml --name x train.max_steps=1",
    "train --config tiny.yaml --init-from run optimizer.lr=1e-3",
    "train --resume run train.max_steps=3",
    "eval run --lengths 1-2 --samples 3 --json",
    "eval run/checkpoints/best.safetensors --confusion --device cpu",
    "config show --config tiny.yaml seed=1",
    "config check -c tiny.yaml",
    "runs ls . --json",
    "runs diff run run",
    "predict run 3,1 --top-k 2 --json",
    "predict run --input tiny.yaml --bad skip --output out.csv",
    "data sample --config tiny.yaml",
]
STRAY = [
    *OVERRIDES,
    "--",
    "-",
    "--json",
    "--debug",
    "--help",
    "--lengths",
    "0",
    "5-1",
    "run",
    "runs",
    ".",
    "/",
    "é",
    "\udc80",
]
STRAY += [
    "--device",
    "cuda:7",
    "--config",
    "/dev/zero",
    "/dev/null",
    "seed=1",
    "seed=x",
    "train.max_steps=1",
    "-x",
    "x" * 300,
]


def broken_text(text: str, rng: random.Random) -> str:
    """`text` after one to four edits: characters, words and lines lost, doubled, moved or replaced."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at, kind = rng.randrange(len(text) + 1), rng.randrange(6)
        lines = text.split("\n")
        if kind == 0:
            text = text[:at] + text[at + rng.randint(1, 5) :]
        elif kind == 1:
            text = text[:at] + rng.choice(WORDS) + text[at:]
        elif kind == 2:
            text = text[:at]
        elif kind == 3:
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            text = "\n".join(lines)
        elif kind == 4:
            line = rng.randrange(len(lines))
            lines[line] = lines[line].partition(":")[0] + ": " + rng.choice(WORDS)
            text = "\n".join(lines)
        else:
            text = text[:at] + chr(rng.randrange(1, 0xD000)) + text[at:]
    return text


def one_config(rng: random.Random, folder: Path, _whole: bytes) -> str:
    path = folder / "config.yaml"
    config = rng.choice((Config(), Config(data=FilesConfig(source="files", train="x.jsonl"))))
    path.write_bytes(broken_text(dump_config(config), rng).encode("utf-8", "surrogatepass"))
    overrides = (
        [f"{rng.choice(list(flatten(config)))}={rng.choice(WORDS)}"] if rng.random() < 0.3 else []
    )
    overrides += [rng.choice(OVERRIDES)] if rng.random() < 0.1 else []
    rnncls.load_config(path, overrides)
    return "accepted"


def replaced(value: Any, rng: random.Random) -> Any:
    """A JSON value with one thing somewhere in it replaced, removed or renamed."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.randrange(8)
        rest = {name: inner for name, inner in value.items() if name != key}
        if kind == 0:
            return rest
        if kind == 1:
            return {**rest, rng.choice(["../../x", "", "model/x", "é", key + "x"]): value[key]}
        return {**value, key: replaced(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        index = rng.randrange(len(value))
        return [*value[:index], replaced(value[index], rng), *value[index + 1 :]]
    return rng.choice(VALUES)


def one_checkpoint(rng: random.Random, folder: Path, whole: bytes) -> str:
    """Bytes or header changed, or the state and signed again; read as `rnncls eval` and `train --resume` do."""
    path, kind = folder / "checkpoint.safetensors", rng.randrange(3)
    start = 8 + int.from_bytes(whole[:8], "little")
    if kind == 0:
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(
            content[: rng.choice([len(content), len(content), rng.randrange(len(content))])]
        )
        changed = path.read_bytes() != whole
    else:
        header = json.loads(whole[8:start])
        if kind == 1:
            header = replaced(header, rng)
        else:
            state = json.dumps(replaced(json.loads(header["__metadata__"]["state"]), rng))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            fields = (
                (name, entry["dtype"], entry["shape"], whole[start:][slice(*entry["data_offsets"])])
                for name, entry in sorted(tensors.items())
            )
            header["__metadata__"] = {
                "format": FORMAT,
                "state": state,
                "sha256": _digest(state, fields),
            }
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + whole[start:])
        changed = kind == 1 and header != json.loads(whole[8:start])
    checkpoint = read_checkpoint(path)
    restore_model(checkpoint)
    restored_state(checkpoint, restored_task(checkpoint, checkpoint.config))
    if changed:
        raise AssertionError("a changed checkpoint was taken for whole")
    return "accepted"


JSONL = """{"sequence": [1, 2, 3], "label": 0}
{"sequence": "4 5", "label": "x"}
{"sequence": [6], "label": 0}
"""
TABLE = 'sequence,label,n\n1 2 3,0,"a"\n"4 5",x,"b, c"\n6,0,\n'


def one_dataset(rng: random.Random, folder: Path, _whole: bytes) -> str:
    """A file whose text or bytes were changed, gzipped or not; read as `rnncls data check` does."""
    kind = rng.choice(("jsonl", "csv", "tsv"))
    text = JSONL if kind == "jsonl" else TABLE if kind == "csv" else TABLE.replace(",", "\t")
    broken = broken_text(text, rng).encode("utf-8", "surrogatepass")
    zipped = rng.random() < 0.3
    content = bytearray(gzip.compress(broken) if zipped else broken)
    if rng.random() < 0.3:
        content[rng.randrange(len(content) or 1) : rng.choice((None, len(content)))] = (
            rng.randbytes(rng.randint(0, 4))
        )
    path = folder / f"data.{kind}{'.gz' if zipped else ''}"
    path.write_bytes(content)
    tokens = rng.choice(("ids", "words", "characters"))
    fractions = {"val_fraction": rng.choice((0.0, 0.4)), "test_fraction": rng.choice((0.0, 0.4))}
    load_dataset(
        FilesConfig.model_validate(
            {"source": "files", "train": str(path), "tokens": tokens, **fractions}
        )
    )
    return "accepted"


def one_command_line(rng: random.Random, folder: Path, _whole: bytes) -> str:
    """Words of a good command line lost, doubled, moved or replaced; run as `rnncls` would, in this process."""
    words = rng.choice(COMMAND_LINES).split()
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(words) + 1)
        kind = rng.randrange(4)
        if kind == 0 and words:
            words.pop(at % len(words))
        elif kind == 1:
            words.insert(at, rng.choice(STRAY))
        elif kind == 2 and words:
            words[at % len(words)] = rng.choice(STRAY)
        elif words:
            words[at % len(words)] = broken_text(words[at % len(words)], rng).replace("\0", "")
    (folder / "tiny.yaml").write_text(TINY)
    with chdir(folder), redirect_stdout(StringIO()), redirect_stderr(StringIO()) as stderr:
        if not Path("run").exists():
            rnncls.fit(rnncls.load_config("tiny.yaml"), "run")
        with unittest.mock.patch.object(sys, "argv", ["rnncls", *words]):
            exit_code = cli.run()
    if exit_code not in (0, 2, 3, 4, 5, 6) or (
        "Traceback" in stderr.getvalue() and "--debug" not in words
    ):
        raise AssertionError(f"{words}: exit {exit_code}: {stderr.getvalue()}")
    return f"exit {exit_code}"


def run(
    name: str, case: Callable[[random.Random, Path, bytes], str], count: int, whole: bytes
) -> int:
    """Run `count` cases; print and return the number of failures."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            started_at = time.perf_counter()
            try:
                outcomes[case(random.Random(f"{name}-{number}"), Path(folder), whole)] += 1
            except RnnclsError as error:
                outcomes[
                    "refused"
                    if error.exit_code in (2, 3, 4) and error.render()
                    else "wrong exit code"
                ] += 1
            except Exception as error:
                outcomes["FAILED"] += 1
                print(f"{name} {number}: {type(error).__name__}: {str(error)[:200]}")
            outcomes["SLOW"] += time.perf_counter() - started_at > SLOW_S
    print(
        f"{name}: {count} cases; "
        + ", ".join(f"{key} {value}" for key, value in sorted(outcomes.items()))
    )
    return outcomes["FAILED"] + outcomes["SLOW"] + outcomes["wrong exit code"]


def whole_checkpoint() -> bytes:
    """A small real checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config.model_validate(
            {"model": {"hidden_size": 4}, "train": {"max_steps": 2, "eval_samples": 5}}
        )
        rnncls.fit(config, folder)
        return find_newest(folder).read_bytes()


def main(
    configs: Annotated[int, typer.Option()] = 5000,
    checkpoints: Annotated[int, typer.Option()] = 5000,
    datasets: Annotated[int, typer.Option()] = 5000,
    commands: Annotated[int, typer.Option()] = 1000,
) -> None:
    failures = run("config", one_config, configs, b"")
    failures += run("checkpoint", one_checkpoint, checkpoints, whole_checkpoint())
    failures += run("dataset", one_dataset, datasets, b"")
    failures += run("command line", one_command_line, commands, b"")
    raise typer.Exit(1 if failures else 0)


if __name__ == "__main__":
    typer.run(main)
