"""Configs, checkpoints, data files and command lines, mutated and read in this process.

Bad ones must be refused with an error of ours. A damaged checkpoint that is accepted is a failure.
"""

import gzip
import json
import random
import sys
import tempfile
import unittest.mock
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import safetensors.torch

import rnncls
from rnncls.cli import entry as cli
from rnncls.config import Config, FilesConfig, dump_config, flatten
from rnncls.data.loading import load_dataset
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.restore import restore_model
from rnncls.rundir.tensorfile import FORMAT, _digest
from rnncls.training.resume import restored_task
from rnncls.training.states import restored_state
from scripts.fuzz.scene import GOOD_EXITS, Failed

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

# Keys of a model and of its training that are not their defaults.
POOLED = {"pooling": "last_mean_max", "initial_state": "learned"}
IN_PIECES = {"recompute_every": 2, "truncate_after": 3}

GOOD_CONFIGS = [
    Config(),
    Config(data=FilesConfig(source="files", train="x.jsonl")),
    Config.model_validate({"model": POOLED, "train": IN_PIECES}),
    Config.model_validate(
        {
            "data": {"source": "files", "train": "x.jsonl", "prefix_labels_field": "labels"},
            "train": {"objective": "prefix", **IN_PIECES},
        }
    ),
]

TINY = """
model: {hidden_size: 2}
train: {max_steps: 2, eval_samples: 2, batch_size: 2, engine: eager}
"""

# Whole command lines, which are then mutated. "run" is a run of tiny.yaml.
COMMAND_LINES = [
    "train --config tiny.yaml --name x train.max_steps=1",
    "train --config tiny.yaml --init-from run optimizer.lr=1e-3",
    "train --config tiny.yaml --name y model.pooling=mean train.recompute_every=2",
    "train --config tiny.yaml --name z train.objective=prefix train.truncate_after=3",
    "train --config tiny.yaml --init-from run model.initial_state=learned",
    "train --resume run train.max_steps=3",
    "train --resume run train.max_steps=3 train.truncate_after=1",
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
    "explain run 1,2 --json",
    "explain run 1,2 --graph out.svg --rolled",
    "explain run --padding --output out.png",
    "explain run --gradients --output out.png --json",
    "explain run --states out.png --device cpu",
    "data sample --config tiny.yaml",
]

JSONL = """{"sequence": [1, 2, 3], "label": 0}
{"sequence": "4 5", "label": "x"}
{"sequence": [6], "label": 0}
"""
CSV = 'sequence,label,n\n1 2 3,0,"a"\n"4 5",x,"b, c"\n6,0,\n'
TEXTS = {"jsonl": JSONL, "csv": CSV, "tsv": CSV.replace(",", "\t")}


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
    config = rng.choice(GOOD_CONFIGS)
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
    train = {"max_steps": 2, "eval_samples": 5, "engine": "eager", **IN_PIECES}
    config = Config.model_validate({"model": {"hidden_size": 4, **POOLED}, "train": train})
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
