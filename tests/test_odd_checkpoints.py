"""Checkpoints that are well signed and say something odd: refused by everything that reads them.

The checksum says that nothing was changed, not that rnncls wrote the file.
"""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from rnncls.errors import CheckpointError
from rnncls.rundir import tensorfile
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.training.fit import fit
from tests.helpers import change_checkpoint, files_config, run_rnncls, some_rows, write_jsonl

row = pytest.mark.row


# --- headers


def entries(count: int) -> str:
    """Return the entries of so many empty tensors, with the longest names of a model."""
    return ",".join(
        f'"optim/exp_avg_sq/recurrence.weight_ih_l{number}_reverse":'
        '{"dtype":"F32","shape":[1000,0],"data_offsets":[100000000,100000000]}'
        for number in range(count)
    )


def inside(start: str, piece: str, count: int, end: str) -> str:
    """Return `count` pieces with commas between them, `start` before and `end` behind them."""
    return start + ",".join([piece] * count) + end


CROWDED = {
    "tensors": inside("{", entries(1), 100_000, "}"),
    "metadata": inside('{"__metadata__":{', '"k":""', 900_000, "}}"),
    "metadata of backslashes": inside('{"__metadata__":{', r'"\\":"\\"', 900_000, "}}"),
    "lists": inside('{"a":[', "[]", 5_000_000, "]}"),
    "a shape": inside('{"a":{"shape":[', "999", 4_000_000, "]}}"),
}


@pytest.mark.parametrize("kind", CROWDED)
@row("K6")
def test_a_header_of_millions_of_entries_is_refused_before_it_is_parsed(
    tmp_path: Path, kind: str
) -> None:
    text = CROWDED[kind].encode()
    assert len(text) <= tensorfile.MAX_HEADER_BYTES
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(text)
    finally:
        tracemalloc.stop()
    assert caught.value.problems[0].id == "K6"


@row("K6")
def test_the_header_of_the_largest_model_is_read() -> None:
    """1024 layers, two directions, Adam, and tokens that look like a header."""
    odd = json.dumps({"tokens": ['"', "\\", "{", "[", ",", '\\"'] * 30_000})
    metadata = json.dumps({"format": tensorfile.FORMAT, "state": odd, "sha256": "0" * 64})
    tensors = entries(4 * (1024 * 2 * 4 + 3))
    assert not tensorfile._is_crowded(f'{{"__metadata__":{metadata},{tensors}}}'.encode())

    # A text that ends nowhere is looked through once, and the parser refuses it.
    assert not tensorfile._is_crowded(b'{"a":"' + rb"\"" * 8_000_000)


# --- states


@row("K4")
def test_a_vocabulary_that_no_model_can_have_is_refused_by_every_command(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", some_rows(40))
    run = tmp_path / "run"
    fit(files_config(data, {"max_steps": 2}), run)
    newest = find_newest(run)
    whole = newest.read_bytes()
    commands: list[list[str | Path]] = [
        ["eval", newest],
        ["predict", newest, "1 2"],
        ["model", "show", newest],
        ["train", "--init-from", newest, data, "data.tokens=ids", "--run-dir", tmp_path / "new"],
        ["train", "--resume", run],
    ]

    def without(name: str, tensor: str, state: dict[str, Any], tensors: dict[str, Any]) -> None:
        # The tensors fit the odd vocabulary: it is the state that must be refused.
        state["vocabulary"][name] = []
        for key in list(tensors):
            if key.rpartition("/")[2].startswith(tensor) and tensors[key].dim():
                tensors[key] = tensors[key][:0]

    def with_twice(name: str, state: dict[str, Any]) -> None:
        names = state["vocabulary"][name]
        state["vocabulary"][name] = [names[-1]] * len(names)

    for change in (
        lambda state, tensors: without("tokens", "embedding", state, tensors),
        lambda state, tensors: without("labels", "head", state, tensors),
        lambda state, _: with_twice("tokens", state),
        lambda state, _: with_twice("labels", state),
        lambda state, _: state.update(step=-2),
        lambda state, _: state.update(step=10**400),
    ):
        # Alone, so that resuming cannot take another one in its place.
        for path in newest.parent.iterdir():
            path.unlink()
        newest.write_bytes(whole)
        change_checkpoint(newest, change)
        for words in commands:
            done = run_rnncls(*words)
            assert done.returncode == 4, (words, done.stderr)
            assert "error[K" in done.stderr
            assert "internal error" not in done.stderr
