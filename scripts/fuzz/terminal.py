"""Foreign text in every field that is shown, on a pseudo-terminal.

Names of files, folders, columns and keys, labels, tokens and values are filled with what steers a
terminal or begins a line. What comes out may have no control character but those of ours: line
breaks, tabs, carriage returns, two colours, and how tqdm moves the cursor. And no line may begin
with the text that stands behind a foreign line break.
"""

import csv
import json
import os
import random
import re
import select
import shutil
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from rnncls.rundir import tensorfile
from scripts.fuzz.scene import (
    HALF_COMMANDS,
    RUN_COMMANDS,
    SWEEP_COMMANDS,
    Command,
    Ended,
    Failed,
    command,
    copied,
    outcome_of,
)
from scripts.processes import TIMEOUT_S, fork, wait_and_measure

# Stands behind every foreign line break.
MARK = "FORGED"

# fmt: off
CONTROLS = [
    "\n", "\r", "\r\n", "\x1b[31m", "\x1b]0;x\x07", "\x1b[2K\r", "\x07", "\x08" * 9, "\x7f", "\x0b",
    "\x0c", "\x85", "\x9b31m", "\x9d0;x\x9c", "\u2028", "\u2029", "\u202e", "\u2066", "\u200b",
    "\u200f", "\ufeff", "\x00", "\x1c", "\x1d", "\x1e", "\U000e0041", "\ud800", "\udcff", "\t\n",
    "\x1b[1A\x1b[2K", "\x1b",
]
# fmt: on

# What is ours: the colours of system/streams.py, and tqdm's way to the bar above or below.
OURS = re.compile(r"\x1b\[(?:1;31m|33m|0m|A)")


def foreign_text(rng: random.Random) -> str:
    """Return a text that is not to be shown as it is."""
    text = rng.choice(["a", "", "L0", "run", "x" * 40]) + rng.choice(CONTROLS) + MARK
    if rng.random() < 0.3:
        text += rng.choice(
            [" 0.9999", "\x1b[0m", rng.choice(CONTROLS) + MARK, ": 1", "=1", "{x}%s$"]
        )
    return text


def one_terminal(rng: random.Random, folder: Path) -> str:
    """Put a foreign text into a field and run a command that may show it."""
    text = foreign_text(rng)
    place = rng.choice(PLACES)
    chosen = place(text, folder, rng)
    ended = attempt_on_terminal(chosen.words, folder / "work")

    words = f"{place.__name__}, {text!a}: {chosen.words!a}"
    fault = what_is_wrong(ended.output)
    if fault:
        kind, shown = fault
        raise Failed(kind, f"{words}: {shown}")
    return outcome_of([words], ended)


def what_is_wrong(output: str) -> tuple[str, str] | None:
    """Return what was shown that may not be, as a kind and an excerpt."""
    text = OURS.sub("", output)
    for match in re.finditer(rf"^{MARK}|[\r\n]{MARK}", text, re.MULTILINE):
        return "forged line", excerpt(text, match.start())
    for index, character in enumerate(text):
        if not character.isprintable() and character not in "\n\r\t":
            return "raw control character", excerpt(text, index)
    return None


def excerpt(text: str, index: int) -> str:
    """Return what stands around a place of a text, in letters of ASCII."""
    return ascii(text[max(0, index - 80) : index + 40])


# --- on a terminal


def attempt_on_terminal(words: list[str], folder: Path) -> Ended:
    """Run a command in a fork whose three streams are a pseudo-terminal."""
    leader, terminal = os.openpty()
    settings = termios.tcgetattr(terminal)
    settings[1] &= ~termios.OPOST  # line breaks come as they were written
    settings[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, settings)

    def start() -> None:
        os.close(leader)
        os.chdir(folder)
        os.environ.update(TERM="xterm", COLUMNS="200", LANG="C.UTF-8")
        os.environ.pop("NO_COLOR", None)
        for descriptor in range(3):
            os.dup2(terminal, descriptor)
        os.close(terminal)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", 1, encoding="utf-8", closefd=False)

    # Typed ahead: two lines for a prompt, and the end of what is typed.
    os.write(leader, b"1 2 0\n3 4\n\x04\x04")
    pid = fork(words, folder.parent / "log", start)
    os.close(terminal)
    output = read_to_end(leader)
    exit_code, _ = wait_and_measure(pid)
    os.close(leader)
    return Ended(exit_code, output.decode("utf-8", "surrogateescape"), 0.0)


def read_to_end(leader: int) -> bytes:
    """Read what is written to a terminal until nobody has it open, or nothing comes any more."""
    pieces = []
    while select.select([leader], [], [], TIMEOUT_S)[0]:
        try:
            piece = os.read(leader, 2**16)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces)


# --- where the text is put: each function makes work/ and returns a command


def json_file(text: str, folder: Path, rng: random.Random) -> Command:
    """Replace something in a file of a run or a sweep."""
    target, commands = rng.choice(
        [("run", RUN_COMMANDS), ("sweep", SWEEP_COMMANDS), ("half", HALF_COMMANDS)]
    )
    work = copied(folder, target, "other")
    kinds = ("*.json", "*.jsonl", "*.yaml")
    files = sorted(path for kind in kinds for path in (work / target).rglob(kind))
    path = rng.choice([file for file in files if file.parent.name != "profile"])

    if path.suffix == ".yaml":
        value = put_into(yaml.safe_load(path.read_text()), text, rng)
        path.write_text(yaml.safe_dump(value, allow_unicode=rng.random() < 0.5), errors="replace")
        return rng.choice(commands)

    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(put_into(json.loads(lines[at]), text, rng))
    path.write_text("\n".join([*lines, ""]))
    return rng.choice(commands)


def put_into(value: Any, text: str, rng: random.Random) -> Any:
    """Return a JSON value with the text in the place of a value or a key somewhere in it."""
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            rest = {name: inner for name, inner in value.items() if name != key}
            return {**rest, text: value[key]}
        return {**value, key: put_into(value[key], text, rng)}
    if isinstance(value, list) and value:
        index = rng.randrange(len(value))
        return [*value[:index], put_into(value[index], text, rng), *value[index + 1 :]]
    return text


def status_field(text: str, folder: Path, rng: random.Random) -> Command:
    """Replace a field of a status.json."""
    target = rng.choice(["run", "sweep", "half"])
    work = copied(folder, target, "other")
    path = rng.choice(sorted((work / target).rglob("status.json")))
    status = json.loads(path.read_text())
    status["state"] = rng.choice(["finished", "failed", "interrupted", "running"])
    status[rng.choice(["error_id", "best_metric", "updated_at", *status])] = text
    path.write_text(json.dumps(status))
    return rng.choice({"run": RUN_COMMANDS, "sweep": SWEEP_COMMANDS, "half": HALF_COMMANDS}[target])


def checkpoint_state(text: str, folder: Path, rng: random.Random) -> Command:
    """Replace something in the state of a checkpoint, mostly a label or a token; sign it again."""
    work = copied(folder, "run", "other")
    for path in sorted((work / "run/checkpoints").glob("*.safetensors")):
        state_text, tensors = tensorfile.read(path)
        state = json.loads(state_text)
        vocabulary = state.get("vocabulary")
        if rng.random() < 0.7 and isinstance(vocabulary, dict):
            state["vocabulary"] = put_into(vocabulary, text, rng)
        else:
            state = put_into(state, text, rng)
        path.unlink()  # two names may be one file
        tensorfile.write(path, json.dumps(state), tensors)
    more = [command("predict run"), command("predict run 1,2 --top-k 9")]
    more.append(Command(["explain", "run", f"1 {text}".replace("\0", "")], ()))
    return rng.choice([*RUN_COMMANDS, *more])


def data_cell(text: str, folder: Path, rng: random.Random) -> Command:
    """Put the text into the tokens, the labels or the names of a data file."""
    work = copied(folder, "run")
    clean = text.encode("utf-8", "replace").decode()
    with (work / "data.csv").open(newline="") as file:
        rows = list(csv.reader(file))

    column = rng.randrange(2)
    if rng.random() < 0.3:
        rows[0][column] = clean
    else:
        for index in range(1, len(rows)):
            if index % 4 == 1:
                rows[index][column] = clean

    name = rng.choice(["data.csv", "data.jsonl"])
    if name == "data.csv":
        with (work / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    else:
        lines = [json.dumps(dict(zip(rows[0], row, strict=True))) for row in rows[1:]]
        (work / name).write_text("\n".join([*lines, ""]))

    columns = ["--text-column", rows[0][0], "--label-column", rows[0][1]]
    return rng.choice(data_commands(name, columns))


def data_commands(name: str, columns: list[str]) -> list[Command]:
    """Return the commands that read a data file."""
    small = ["train.max_steps=2", "train.batch_size=4", "train.engine=eager", "--run-dir", "new"]
    new = ("new",)
    return [
        Command(["train", name, *columns, *small], new),
        Command(["train", name, *small], new),
        Command(["init", name, *columns], ()),
        Command(["init", name], ()),
        Command(["data", "check", name], ()),
        Command(["data", "stats", name], ()),
        Command(["data", "check", name, *columns], ()),
        Command(["data", "stats", name, *columns], ()),
        Command(["eval", "run", "--data", name, *columns, "--errors", "3", "--confusion"], ()),
        Command(["predict", "run", "--input", name, "--bad", "skip"], ()),
        Command(["predict", "run", "--input", name, *columns, "--top-k", "3"], ()),
        Command(["predict", "run", "--input", name, *columns, "--output", "out.csv"], ()),
    ]


def file_name(text: str, folder: Path, rng: random.Random) -> Command:
    """Rename a data file."""
    work = copied(folder, "run")
    name = as_name(text) + rng.choice([".csv", ".txt", "", ".jsonl"])
    (work / "data.csv").rename(work / name)
    columns = ["--text-column", "text", "--label-column", "label"]
    return rng.choice(data_commands(name, columns))


def folder_name(text: str, folder: Path, rng: random.Random) -> Command:
    """Rename a run, a sweep or a member, or a folder above it."""
    name = as_name(text)
    target = rng.choice(["run", "sweep", "half"])
    work = copied(folder, target, "other")
    commands = {"run": RUN_COMMANDS, "sweep": SWEEP_COMMANDS, "half": HALF_COMMANDS}[target]
    if target != "run" and rng.random() < 0.4:
        members = work / target / "members"
        (members / "seed=0").rename(members / name)
        return rng.choice(commands)

    place = Path(name)
    if rng.random() < 0.3:
        (work / name).mkdir()
        place = place / "inner"
    (work / target).rename(work / place)
    chosen = rng.choice([*commands, command("runs ls .")])
    return Command([renamed(word, target, str(place)) for word in chosen.words], ())


def renamed(word: str, old: str, new: str) -> str:
    """Return a word of a command line in which a folder has another name."""
    return new + word[len(old) :] if word == old or word.startswith(f"{old}/") else word


def as_name(text: str) -> str:
    """Return the text as a file may be called."""
    name = text.replace("\0", "\x01").replace("/", "")
    return name.encode("utf-8", "replace").decode() if "\ud800" in name else name


def config_text(text: str, folder: Path, rng: random.Random) -> Command:
    """Put the text into a config file: as a key, a value or a comment, quoted or as it is."""
    work = copied(folder, "run")
    key = rng.choice(["data.train", "device", "model.cell", "seed", "optimizer.lr", "data.layout"])
    quoted = rng.choice([json.dumps(text), text, f"# {text}"])
    section, _, name = key.rpartition(".")

    if rng.random() < 0.5:
        name = name if rng.random() < 0.5 else quoted
        line = f"{section}: {{{name}: {quoted}}}" if section else f"{name}: {quoted}"
    else:
        line = f"{quoted}: 1"

    with (work / "tiny.yaml").open("a", errors="replace", newline="") as file:
        file.write(f"{line}\n")

    return rng.choice(
        [
            command("config show tiny.yaml"),
            command("config check tiny.yaml"),
            command("train tiny.yaml --run-dir new"),
            command("data sample --config tiny.yaml"),
            command("data check tiny.yaml"),
            command("model show tiny.yaml"),
            command("sweep tiny.yaml --seeds 0-1 --sweep-dir new"),
        ]
    )


def words(text: str, folder: Path, rng: random.Random) -> Command:
    """Put the text into a command line."""
    copied(folder, "run", "sweep", "other")
    config = ["--config", "tiny.yaml"]
    key = rng.choice(["data.train", "device", "seed", "data.sequence_field", "optimizer.lr"])
    text = text.replace("\0", "")

    grid = ["sweep", *config, f"data.sequence_field=text,{text}"]
    lines = [
        ["config", "show", *config, f"{key}={text}"],
        ["config", "check", *config, text],
        ["config", "show", text],
        ["config", "keys", text],
        ["train", *config, "--run-dir", text, "train.max_steps=1"],
        ["train", *config, "--name", text, "train.max_steps=1"],
        ["train", *config, "--device", text],
        ["train", *config, f"{text}=1"],
        ["train", text],
        ["train", "--resume", text],
        ["sweep", *config, "--grid", f"data.train={text},b", "--sweep-dir", "new"],
        ["sweep", *config, "--seeds", text],
        ["sweep", "--resume", text],
        [*grid, "--seeds", "0", "--sweep-dir", "new"],
        ["eval", text],
        ["eval", "run", "--lengths", text],
        ["eval", "run", "--data", "data.csv", "--predictions", f"out{text}.csv"],
        ["eval", "run", "--data", "data.csv", "--read", f"separator={text}"],
        ["predict", "run", text, "--top-k", "2"],
        ["predict", "run", text, "--json"],
        ["predict", "run", "1 2", "--output", f"out{text}.jsonl"],
        ["predict", "run", "--input", text],
        ["explain", "run", f"1 2 {text}"],
        ["explain", "run", text, "--json"],
        ["explain", "run", f"1 {text}", "--html", f"out{text}.html"],
        ["explain", "run", f"1 {text}", "--graph", f"out{text}.svg"],
        ["explain", "run", f"1 {text}", "--graph", f"out{text}.mmd"],
        ["explain", "run", "1 2", "--label", text],
        ["explain", "run", "--states", f"out{text}.png"],
        ["explain", text, "--padding"],
        ["runs", "ls", text],
        ["runs", "ls", ".", "--filter", f"{key}={text}"],
        ["runs", "ls", ".", "--sort", text],
        ["runs", "diff", "run", text],
        ["init", "data.csv", "--text-column", text],
        ["data", "check", "data.csv", f"data.separator={text}"],
        ["model", "show", text],
        [text],
        ["runs", text],
        ["eval", f"--{text}"],
    ]

    return Command(rng.choice(lines), ())


def prediction_rows(text: str, folder: Path, rng: random.Random) -> Command:
    """Predict lines that have the text, from a file of lines or with a label column."""
    work = copied(folder, "run")
    lines = [f"1 2 {text}", "1 2", text]
    (work / "lines.txt").write_text("\n".join(lines) + "\n", errors="replace")
    shutil.copy(work / "lines.txt", work / "lines.csv")
    return rng.choice(
        [
            command("predict run --input lines.txt"),
            command("predict run --input lines.txt --json"),
            command("predict run --input lines.txt --bad skip"),
            command("predict run --input lines.csv --bad skip"),
        ]
    )


PLACES: list[Callable[[str, Path, random.Random], Command]] = [
    json_file, json_file, status_field, checkpoint_state, data_cell, file_name, folder_name,
    config_text, words, words, prediction_rows,
]  # fmt: skip
