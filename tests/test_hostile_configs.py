"""Configs that were made to keep rnncls busy, to block it, or to be no text at all."""

import json
import os
import socket
from pathlib import Path

import pytest

from rnncls.config import load_config
from rnncls.config.load import read_yaml
from rnncls.config.strict_yaml import MAX_BYTES
from rnncls.errors import MOST_PROBLEMS_SHOWN, ConfigError
from tests.helpers import PYTHON, ROOT, run_command, run_process, run_python, run_rnncls

row = pytest.mark.row


def full(piece: str, head: str = "") -> str:
    """Return a text of `head` and as many pieces, numbered at `@`, as a config may have."""
    pieces = [head]
    room = MAX_BYTES - len(head)
    while (room := room - len(text := piece.replace("@", str(len(pieces))))) >= 0:
        pieces.append(text)
    return "".join(pieces)


# Each of them took between 10 s and minutes, or is a neighbour of one that did.
BUSY = {
    "unknown keys": full("key@: 1\n"),
    "unknown keys of a section": full("  lr@: 1\n", "optimizer:\n"),
    "unknown sections": full("optim@: {lr: 1}\n"),
    "other names of keys": full("learning_rate@: x\n"),
    "wrong items": full("1,", "data: {source: files, train: [")[:-2] + "]}",
    "duplicate keys": full("a: 1\n"),
    "a long key": f"? {'lr' * 30_000}\n: 1\n",
    "a long value": f"model: {{cell: {'rnn' * 20_000}}}",
    "deep lists": "a: [" + "[" * 30 + "x," * 30_000 + "]" * 31,
}


@pytest.mark.slow
@row("C5", "C6", "C9", "C13")
def test_no_config_keeps_rnncls_busy(tmp_path: Path) -> None:
    """All of them in one process, which the kernel ends after 60 s of work.

    The unknown keys alone took longer.
    """
    code = """
import json, resource, sys
from rnncls.config import load_config
from rnncls.errors import ConfigError

resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
cases = [(text, ()) for text in json.load(sys.stdin)]
cases.append(("seed: 1", [f"key{n}=1" for n in range(1000)]))
cases.append(("seed: 1", [f"optim{n}.lr=1" for n in range(1000)]))
for text, overrides in cases:
    with open(sys.argv[1], "w") as file:
        file.write(text)
    try:
        load_config(sys.argv[1], overrides)
    except ConfigError as error:
        print(len(error.render()))
"""
    assert all(len(text) <= MAX_BYTES for text in BUSY.values())
    texts = json.dumps([*BUSY.values()])
    done = run_command([PYTHON, "-c", code, tmp_path / "c.yaml"], input=texts)
    assert done.returncode == 0, done.stderr
    sizes = [int(line) for line in done.stdout.split()]
    assert len(sizes) == len(BUSY) + 2
    assert max(sizes) < 30_000


@row("C5")
def test_the_problems_that_a_message_does_not_show_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("".join(f"key{number}: 1\n" for number in range(500)) + "seed: x\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, ["optimizer.lrr=1"])
    assert len(caught.value.problems) == 502
    assert {problem.id for problem in caught.value.problems} == {"C5", "C9"}
    assert f"... and {502 - MOST_PROBLEMS_SHOWN} more problems" in caught.value.render()
    assert "one more problem" not in caught.value.render()


@pytest.mark.parametrize(
    ("text", "id", "part"),
    [
        (r'a: "\UFFFFFFFF"', "C3", "c.yaml:1:7"),
        ('seed: 1\n"\\UDFFF0000": 1', "C3", "c.yaml:2:4"),
        (r'a: "\U00110000"', "C3", "c.yaml:1:7"),
        (f"%YAML {'9' * 5000}.1\n---\nseed: 1", "C3", "out of range"),
        (r'device: "\ud800"', "C2", "c.yaml:1:9"),
        (r'"\udfff": 1', "C2", "c.yaml:1:1"),
        (r'model: {"\ud83d\ude00": 1}', "C2", "c.yaml:1:9"),
        (r'data: {source: files, train: "a\x00b"}', "C9", "NUL"),
        (r'data: {source: files, train: [a, "\0"]}', "C9", "NUL"),
        (r'data: {source: files, train: a, val: "\0"}', "C9", "data.val"),
    ],
)
@row("C2", "C3", "C9")
def test_escapes_that_stand_for_no_text(tmp_path: Path, text: str, id: str, part: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    done = run_rnncls("config", "check", tmp_path / "c.yaml")
    assert done.returncode == 2, done.stderr
    assert f"error[{id}]" in done.stderr
    assert part in done.stderr


@row("C2", "C17")
def test_bytes_of_the_command_line_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("seed: 1\n")
    (tmp_path / os.fsdecode(b"\xff.yaml")).write_text("seed: 1\n")
    for word, id in ((b"\xff=1", "C17"), (b"seed.\xff=1", "C17"), (b"device=\xff", "C2")):
        done = run_rnncls("config", "check", tmp_path / "c.yaml", os.fsdecode(word))
        assert done.returncode == 2, done.stderr
        assert f"error[{id}]" in done.stderr

    # The name of a file may be any bytes but NUL.
    assert run_process("config", "check", tmp_path / os.fsdecode(b"\xff.yaml")).returncode == 0

    axis = os.fsdecode(b"optimizer.lr=\xff")
    folder = tmp_path / "sweep"
    done = run_rnncls("sweep", tmp_path / "c.yaml", "--sweep-dir", folder, "--grid", axis)
    assert done.returncode == 2, done.stderr
    assert "error[C2]" in done.stderr


@row("C1", "C4")
def test_keys_and_names_from_python_that_no_file_can_hold(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a word"):
        load_config({"\ud800": 1})
    with pytest.raises(ConfigError, match="must be a word"):
        load_config({"data": {"\ud800": 1}})
    with pytest.raises(ConfigError, match="malformed override"):
        load_config({}, {"seed\ud800": 1})
    for name in ("a\0b.yaml", "\ud800.yaml"):
        with pytest.raises(ConfigError, match="cannot read the config"):
            load_config(tmp_path / name)


@row("C1", "C4")
def test_what_is_no_file_never_blocks(tmp_path: Path) -> None:
    """Give pipes without a writer, devices, a socket and a folder to all that reads YAML."""
    os.mkfifo(tmp_path / "pipe.yaml")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket.yaml"))
    (tmp_path / "link.yaml").symlink_to("/dev/zero")

    code = """
import signal, sys
from pathlib import Path
from rnncls.config import load_config, read_yaml
from rnncls.errors import ConfigError
signal.alarm(120)  # what blocks ends this process
for path in map(Path, sys.argv[1:]):
    for read in (load_config, read_yaml):
        try:
            print(read(path))
        except ConfigError as error:
            print(error.render())
"""
    names = ["pipe.yaml", "socket.yaml", "link.yaml", "."]
    done = run_python(code, *(tmp_path / name for name in names), "/dev/zero")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("error[C1]: cannot read the config") == 10
    assert done.stdout.count("nobody writes to this pipe") == 1

    done = run_process("config", "check", "--config", tmp_path / "pipe.yaml")
    assert done.returncode == 2


@row("C1", "C13")
def test_a_pipe_that_somebody_writes_to_is_read(tmp_path: Path) -> None:
    check = f"{PYTHON} -m rnncls config check --config"
    for command in (
        f"{check} <(echo 'seed: 3')",
        f"(sleep 0.5; echo 'seed: 3') | {check} /dev/stdin",
    ):
        done = run_command(["bash", "-c", command], cwd=ROOT)
        assert done.returncode == 0, done.stderr

    # It ends when it was read as far as a config may be long.
    done = run_command(["bash", "-c", f"yes | {check} /dev/stdin"], cwd=ROOT)
    assert done.returncode == 2
    assert "error[C13]: the config is too large" in done.stderr

    # One with a name, behind a link; what rnncls wrote itself is never a pipe.
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    (tmp_path / "link.yaml").symlink_to(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    pipe.write_text("seed: 3")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_yaml(pipe)
    assert load_config(tmp_path / "link.yaml").seed == 3
    os.close(reader)
