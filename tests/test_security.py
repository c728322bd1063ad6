"""No config and no checkpoint runs code, writes outside the run directory or swells in memory.

SECURITY.md states the boundary. The corpus below is written to disk and handed to `rnncls` in one
process, where an audit hook watches for what must never happen.
"""

import ast
import io
import json
import os
import pickle
import random
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.rundir import tensorfile
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.training.fit import fit
from tests.helpers import ROOT, config_of, run_python, run_rnncls

CANARY = "canary"


class Touch:
    """Unpickled, it makes a folder: code has run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def hostile_configs() -> dict[str, str]:
    bombs = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    tags = [
        "apply:os.mkdir [canary]",
        "new:os.mkdir [canary]",
        "name:os.mkdir",
        "module:os",
        "object:os.mkdir {}",
    ]
    return {
        "alias_bomb": bombs,
        "merge_bomb": "a: &a {seed: 1}\nb: &b {<<: *a}\nc: {<<: [*a, *b]}\n",
        "recursive_alias": "a: &a [*a]\n",
        **{f"tag_{tag.partition(':')[0]}": f"seed: !!python/object/{tag}\n" for tag in tags},
        "tag_plain": "seed: !!python/name:os.system\n",
        "tag_local": "seed: !include /etc/passwd\n",
        "tag_uri": "seed: !<tag:yaml.org,2002:python/object/apply:os.mkdir> [canary]\n",
        "tag_directive": "%TAG ! tag:yaml.org,2002:python/\n---\nseed: !name:os.mkdir\n",
        "tag_binary": "seed: !!binary aGVsbG8=\n",
        "tag_set": "data: !!set {modulus}\n",
        "deep_lists": "[" * 60_000,
        "deep_maps": "{a: " * 15_000,
        "deep_block": "".join(" " * n + "a:\n" for n in range(300)),
        "wide": "\n".join(f"k{n}: 1" for n in range(8_000)),
        "huge": "seed: 1\n" * 200_000,
        "huge_integer": f"seed: {'9' * 60_000}\n",
        "huge_exponent": "optimizer: {lr: 1e999999999}\n",
        "huge_model": "model: {hidden_size: 1048576, num_layers: 1024, bidirectional: true}\n",
        "huge_batch": "train: {batch_size: 1048576}\ndata: {max_length: 1048576}\n",
        "huge_vocabulary": "data: {max_value: 1048576}\nmodel: {embedding_dim: 1048576}\n",
        "dunder": "__class__: {__init__: {__globals__: 1}}\nmodel: {__dict__: {}}\n",
        "device_path": "device: ../../../dev/sda\n",
        "null_bytes": "seed: 1\x00\n",
        "escape_codes": "\x1b]0;owned\x07: 1\n",
    }


def signed(text: str, tensors: dict[str, torch.Tensor], path: Path) -> bytes:
    tensorfile.write(path, text, tensors)
    return path.read_bytes()


def header(entries: dict[str, Any] | str, content: bytes = b"") -> bytes:
    text = (entries if isinstance(entries, str) else json.dumps(entries)).encode()
    return len(text).to_bytes(8, "little") + text + content


def hostile_checkpoints(whole: Path, scratch: Path) -> dict[str, bytes]:
    text, tensors = tensorfile.read(whole)
    good, state = whole.read_bytes(), json.loads(text)
    span = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

    def restated(edit: Callable[[dict[str, Any]], object]) -> bytes:
        changed = json.loads(text)
        edit(changed)
        return signed(json.dumps(changed), tensors, scratch)

    def zipped(**members: bytes) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(f"archive/{name}", content)
        return stream.getvalue()

    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        entry = tarfile.TarInfo("../../canary")
        archive.addfile(entry, io.BytesIO(b""))
    pickles = {f"pickle_{n}": pickle.dumps(Touch(), n) for n in range(6)}
    return {
        **pickles,
        "torch_zip": zipped(data=pickle.dumps(Touch()), version=b"3"),
        "zip_bomb": zipped(data=bytes(50_000_000)),
        "tar": tar.getvalue(),
        "pickle_behind_good_file": good + pickle.dumps(Touch()),
        "pickle_in_front": pickle.dumps(Touch(), 0) + good,
        "pickle_in_state": signed(pickle.dumps(Touch(), 0).decode(), tensors, scratch),
        "header_2_63": (2**63).to_bytes(8, "little") + b"{}",
        "header_2_64": b"\xff" * 8 + b"{}",
        "header_16_MiB": (2**24).to_bytes(8, "little") + b"{" * 2**24,
        "header_longer_than_file": (5000).to_bytes(8, "little") + b"{}",
        "header_deep": header("[" * 100_000),
        "header_deep_maps": header('{"a":' * 100_000),
        "header_100000_entries": header(
            {f"t{n}": {**span, "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}
        ),
        "header_duplicate_names": header('{"a":%s,"a":%s}' % ((json.dumps(span),) * 2), bytes(8)),
        "header_duplicate_metadata": header('{"__metadata__":{"format":"a","format":"b"}}'),
        "header_huge_number": header(
            '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[0,8]}}' % ("9" * 5000), bytes(8)
        ),
        "header_not_a_number": header(
            '{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)
        ),
        "overlap": header({"a": span, "b": {**span, "data_offsets": [4, 12]}}, bytes(12)),
        "hole": header({"a": span, "b": {**span, "data_offsets": [12, 20]}}, bytes(20)),
        "beyond_the_end": header(
            {"a": {**span, "shape": [2**40], "data_offsets": [0, 2**42]}}, bytes(8)
        ),
        "shape_overflow": header({"a": {**span, "shape": [2**32, 2**32, 2**32, 2**32]}}, bytes(8)),
        "negative_shape": header({"a": {**span, "shape": [-2, -1]}}, bytes(8)),
        "negative_offsets": header({"a": {**span, "data_offsets": [-8, 0]}}, bytes(8)),
        "unknown_dtype": header({"a": {**span, "dtype": "PICKLE"}}, bytes(8)),
        "many_dimensions": header({"a": {**span, "shape": [1] * 10_000 + [2]}}, bytes(8)),
        "digits": header(
            '{"a":{"dtype":"F32","shape":['
            + ",".join(["9" * 4200] * 300)
            + '],"data_offsets":[0,8]}}',
            bytes(8),
        ),
        "zero_times_huge": header({"a": {**span, "shape": [0, 10**30], "data_offsets": [0, 0]}}),
        "zero_times_large": header({"a": {**span, "shape": [0, 2**63], "data_offsets": [0, 0]}}),
        "header_utf_16": header(json.dumps({"a": span}), bytes(8)).replace(
            b"{", "{".encode("utf-16")
        ),
        "header_byte_order_mark": header("\ufeff" + json.dumps({"a": span}), bytes(8)),
        "name_up": signed(text, {**tensors, "model/../../../canary": torch.zeros(1)}, scratch),
        "name_absolute": signed(text, {**tensors, "/tmp/canary": torch.zeros(1)}, scratch),
        "name_attribute": signed(
            text, {**tensors, "model/__class__.__init__": torch.zeros(1)}, scratch
        ),
        "state_of_another_step": restated(lambda state: state.update(step=-1)),
        "state_huge_step": restated(lambda state: state.update(step=2**63)),
        "state_deep": signed('{"step":' * 5000, tensors, scratch),
        "state_extra_code": restated(lambda state: state.update({"__reduce__": "os.system"})),
        "config_path": restated(lambda state: state["config"].update(device="/etc/passwd")),
        "config_import": restated(
            lambda state: state["config"]["optimizer"].update(name="os.system")
        ),
        "config_huge_model": restated(
            lambda state: state["config"]["model"].update(hidden_size=30_000)
        ),
        "config_many_layers": restated(
            lambda state: state["config"]["model"].update(num_layers=1024)
        ),
        "config_huge_vocabulary": restated(
            lambda state: state["config"]["data"].update(max_value=2**20)
        ),
        "config_not_a_map": restated(lambda state: state.update(config=[])),
        "random_bytes": random.Random(0).randbytes(100_000),
        "counters_huge": restated(
            lambda state: state["counters"].update({f"k{n}": 1 for n in range(1000)})
        ),
        "versions_escape_codes": restated(
            lambda state: state.update(versions={"torch": "\x1b]0;owned\x07"})
        ),
        "config_escape_codes": restated(
            lambda state: state["config"].update({"\x1b]0;owned\x07": 1})
        ),
        "step_zero_state": signed(json.dumps({**state, "step": 0}), {}, scratch),
    }


WATCHED = r"""
import io, json, os, sys
import rnncls.evaluation.evaluate, rnncls.training.resume, rnncls.training.fit, tensorboard
from rnncls.cli import entry as cli
from rnncls.system.process_memory import peak_bytes

for words in ("train --config warm.yaml --run-dir warm train.max_steps=1",
              "train --resume warm train.max_steps=2",
              "eval warm", "eval warm.yaml",
              "config check --config warm.yaml sed=1 model.hidden_size=x"):
    sys.argv = ["rnncls", *words.split()]
    cli.run()  # whatever is imported late is imported now
seen, watching, allowed = [], False, os.getcwd() + "/work"
bad = ("pickle.find_class", "os.system", "os.exec", "os.posix_spawn", "os.fork",
       "subprocess.Popen", "socket.", "ctypes.", "shutil.", "os.mkdir", "os.rename", "os.remove",
       "os.link", "os.symlink", "os.chmod", "exec", "import")

def hook(event, arguments):
    if not watching:
        return
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
        return
    if event == "open" or event.startswith(bad):
        target = arguments[0] if arguments else ""
        inside = isinstance(target, int) or str(target).startswith((allowed, os.devnull))
        if not inside and event != "socket.gethostname":
            seen.append([event, str(arguments)[:200]])

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
sys.addaudithook(hook)
results = []
for words in json.load(open("commands.json")):
    sys.argv = ["rnncls", *words]
    seen[:] = []
    before = peak_bytes()
    sys.stderr, keep = io.StringIO(), sys.stderr
    watching = True
    exit_code = cli.run()
    watching = False
    sys.stderr, printed = keep, sys.stderr.getvalue()
    seen += ["escape code"] * ("\x1b" in printed) + ["traceback"] * ("Traceback" in printed)
    grown = peak_bytes() - before
    results.append([words, exit_code, grown, list(seen)])
json.dump(results, open("results.json", "w"))
"""


@pytest.mark.slow
def test_a_hostile_corpus_is_refused_without_running_writing_or_swelling(tmp_path: Path) -> None:
    (tmp_path / "warm.yaml").write_text("model: {hidden_size: 2}")
    (tmp_path / "work").mkdir()
    fit(config_of(train={"max_steps": 2}), tmp_path / "run")
    commands = []
    for name, text in hostile_configs().items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        commands.append(
            ["train", "--config", str(path), "--run-dir", str(tmp_path / "work" / name)]
        )
    for name, content in hostile_checkpoints(
        find_newest(tmp_path / "run"), tmp_path / "scratch"
    ).items():
        folder = tmp_path / "work" / name / "checkpoints"
        folder.mkdir(parents=True)
        path = folder / "step-00000002.safetensors"
        path.write_bytes(content)
        commands += [["eval", str(path)], ["train", "--resume", str(folder.parent)]]
    files = {command[2] for command in commands if command[0] == "train"}
    assert len(files) >= 50
    (tmp_path / "commands.json").write_text(json.dumps(commands))
    # Where no TensorBoard is known: a run that ends well asks those of this machine for an answer.
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    before = set(tmp_path.iterdir())
    done = run_python(WATCHED, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    harmless = {
        "counters_huge/checkpoints",
        "versions_escape_codes",
    }  # well signed, and nothing in them is used as more than text
    for words, exit_code, grown, seen in json.loads((tmp_path / "results.json").read_text()):
        if not any(name in " ".join(words) for name in harmless):
            assert exit_code in (2, 4), words
        assert seen == [], words
        assert grown < 200e6, words
    assert set(tmp_path.iterdir()) - before == {tmp_path / "results.json", tmp_path / "warm"}
    assert not list(tmp_path.rglob(CANARY))


def test_a_hostile_run_directory_changes_nothing_outside_and_blocks_nothing(tmp_path: Path) -> None:
    """Put links and pipes in place of every file of a run.

    Nothing behind a link changes, and nothing waits for a pipe.
    """
    fit(config_of(train={"max_steps": 4}), tmp_path / "run")
    fit(config_of(train={"max_steps": 4}), tmp_path / "other")
    victim = tmp_path / "victim"
    victim.write_text("mine")
    names = [
        ".lock",
        "status.json",
        "metrics.jsonl",
        "metrics.csv",
        "config.yaml",
        "crash.log",
        "checkpoints",
    ]
    for name in names:
        for kind in ("link", "pipe"):
            run_dir = tmp_path / f"{kind} {name}"
            shutil.copytree(tmp_path / "run", run_dir)
            path = run_dir / name
            if name == "checkpoints":
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if kind == "link":
                path.symlink_to(
                    tmp_path / "other" / "checkpoints" if name == "checkpoints" else victim
                )
            else:
                os.mkfifo(path)
    others = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
    commands = [["runs", "ls", str(tmp_path)]]
    for run_dir in tmp_path.glob("* *"):
        commands += [
            ["runs", "diff", str(run_dir), str(run_dir)],
            ["train", "--resume", str(run_dir), "train.max_steps=6"],
        ]
    code = """
import io, json, signal, sys
from rnncls.cli import entry as cli
codes = []
for words in json.loads(sys.argv[1]):
    signal.alarm(120)  # a pipe that blocks ends this process
    sys.argv = ["rnncls", *words]
    codes.append(cli.run())
print(json.dumps(codes))
"""
    done = run_python(code, json.dumps(commands))
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(json.loads(done.stdout.splitlines()[-1])) <= {0, 2, 4, 6}, done.stderr
    assert victim.read_text() == "mine"
    assert {path: path.read_bytes() for path in others} == others
    assert {path for path in (tmp_path / "other").rglob("*") if path.is_file()} == set(others)


def test_what_a_run_says_of_itself_cannot_steer_a_terminal(tmp_path: Path) -> None:
    for name in "ab":
        fit(config_of(train={"max_steps": 2}), tmp_path / name)
    escape = "\x1b]0;owned\x07"
    (tmp_path / "a" / "metrics.jsonl").write_text(json.dumps({"step": 1, escape: 3}) + "\n")
    status = json.loads((tmp_path / "b" / "status.json").read_text())
    (tmp_path / "b" / "status.json").write_text(json.dumps(status | {"state": escape}))
    commands: list[list[str | Path]] = [["ls", tmp_path], ["diff", tmp_path / "a", tmp_path / "b"]]
    for words in commands:
        done = run_rnncls("runs", *words)
        assert done.returncode == 0, done.stderr
        assert "\x1b" not in done.stdout + done.stderr


BANNED_IMPORTS = {
    "pickle",
    "shelve",
    "marshal",
    "dill",
    "joblib",
    "cloudpickle",
    "ctypes",
    "subprocess",
    "socketserver",
}

# Each case of `rnncls cost` is a process of its own: Python itself, with the same words whatever
# the config says. That travels through a pipe.
NEEDED_IMPORTS = {"rnncls/cost/processes.py": {"subprocess"}}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {
    "yaml.load",
    "yaml.safe_load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.load",
    "os.system",
    "os.popen",
}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "rnncls").rglob("*.py")), ids=lambda path: path.stem
)
def test_the_source_has_nothing_that_runs_data(path: Path) -> None:
    banned = BANNED_IMPORTS - NEEDED_IMPORTS.get(path.relative_to(ROOT).as_posix(), set())
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not {name.name.partition(".")[0] for name in node.names} & banned
        if isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] not in banned
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in BANNED_CALLS
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in BANNED_ATTRIBUTES
        assert not isinstance(node, ast.Assert), "assertions vanish under python -O"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "import_module":
            assert path.name == "__init__.py", (
                "only the package's own lazy imports, from a fixed table"
            )
