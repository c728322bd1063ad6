"""Checkpoints that are well signed and say something odd: refused by everything that reads them.

The checksum says that nothing was changed, not that rnncls wrote the file.
"""

import json
import math
import random
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rnncls.config import FilesConfig
from rnncls.config.load import parse_config
from rnncls.data.files.headers import nearest
from rnncls.errors import CheckpointError, ConfigError, RnnclsError
from rnncls.model.describe import describe_model
from rnncls.predict.predictor import load
from rnncls.rundir import tensorfile
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.moved import OF_RESUMING, with_files_of_run
from rnncls.training.fit import fit
from rnncls.training.go_on import _completion, _is_complete, _warn_of_other_machine
from rnncls.training.resume import restored_task, resumed_config
from rnncls.training.states import restored_state, warn_of_other_split
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
        lambda state, _: state["vocabulary"]["tokens"].reverse(),
        lambda state, _: state.update(step=-2),
        lambda state, _: state.update(step_rules=4),
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


# --- every field

ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    1,
    3,
    2**31,
    2**63,
    10**300,
    0.5,
    -0.0,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    "",
    "nan",
    "<unk>",
    "a\nb\x1b[2J",
    "\0",
    "\ud800",
    "x" * 10**5,
    [],
    [""],
    [1, [2]],
    ["a", "a"],
    ["\ud800"],
    {},
    {"": None},
    {"a": {"b": [{}]}},
)

KINDS: dict[str, dict[str, Any]] = {
    "sum_mod": {"model": {"cell": "rnn"}},
    "ids": {"data": {"tokens": "ids"}, "model": {"cell": "gru"}},
    "words": {"data": {"tokens": "words"}, "model": {"cell": "lstm", "bidirectional": True}},
    "characters": {"data": {"tokens": "characters"}, "optimizer": {"name": "sgd", "momentum": 0.5}},
}


def made_run(kind: str, folder: Path) -> Path:
    """Train two steps on data of a kind and return the newest checkpoint."""
    sections = {name: dict(values) for name, values in KINDS[kind].items()}
    if kind != "sum_mod":
        texts = [(" ".join(map(str, sequence)), label) for sequence, label in some_rows(40)]
        data = write_jsonl(folder / "data.jsonl", some_rows(40) if kind == "ids" else texts)
        sections["data"] = {"source": "files", "train": str(data), **sections["data"]}
    sections.setdefault("model", {}).update(embedding_dim=2, hidden_size=3)
    train = {"max_steps": 2, "batch_size": 4, "eval_samples": 4, "engine": "eager"}
    fit(parse_config({**sections, "train": train, "device": "cpu"}, "test"), folder / "run")
    return find_newest(folder / "run")


Places = list[tuple[str | int, ...]]


def places_of(value: Any, place: tuple[str | int, ...] = ()) -> Places:
    """Return where there is a value in a state: all keys, and the first of each list."""
    places = [place]
    if isinstance(value, dict):
        for key in value:
            places += places_of(value[key], (*place, key))
    elif isinstance(value, list) and value:
        places += places_of(value[0], (*place, 0))
    return places


def replaced(state: Any, place: tuple[str | int, ...], odd: Any) -> Any:
    """Return a copy of a state with another value in one place."""
    if not place:
        return odd
    copy = state.copy()
    copy[place[0]] = replaced(copy[place[0]], place[1:], odd)
    return copy


def use(path: Path) -> None:
    """Do everything that is done with a checkpoint but training. Raises: RnnclsError."""
    predictor = load(path, "cpu")
    predictor.predict([[1, 2] if predictor.data.tokens == "ids" else "1 2"])
    describe_model(predictor.config, (len(predictor.vocabulary.tokens), len(predictor.labels)))

    checkpoint = read_checkpoint(path)
    task = restored_task(checkpoint, resumed_config(checkpoint, ()), set())
    state = restored_state(checkpoint, task)
    _completion(state, task)
    _is_complete(state, task, checkpoint)
    _warn_of_other_machine(checkpoint, state, path.parent)
    warn_of_other_split(task, checkpoint)
    state.totals.averages()
    if isinstance(task.config.data, FilesConfig):
        with_files_of_run(checkpoint, task.config.data, OF_RESUMING)


def write_at_once(path: Path, state: str, tensors: dict[str, torch.Tensor]) -> None:
    """Write what `tensorfile.write` does, which waits for the disk."""
    metadata = {"format": tensorfile.FORMAT, "state": state}
    metadata["sha256"] = tensorfile._digest(state, tensors)
    path.write_bytes(safetensors.torch.save(tensors, metadata))


def replace_all(
    newest: Path, odd_values: Sequence[Any], most: int | None = None, below: Sequence[str] = ()
) -> None:
    """Replace the values in all places of a state by odd ones, or in `most` cases drawn at random.

    `below`: the place in the state of all these places.

    Nothing but a RnnclsError may come, and the file is refused or used at once.
    """
    text, tensors = tensorfile.read(newest)
    whole = json.loads(text)
    write_at_once(newest, text, tensors)
    use(newest)
    places = [place for place in places_of(whole) if place[: len(below)] == tuple(below)]
    cases = [(place, odd) for place in places for odd in odd_values]
    if most is not None:
        cases = random.Random(5).sample(cases, most)

    refusals = []
    threads = torch.get_num_threads()
    for place, odd in cases:
        write_at_once(newest, json.dumps(replaced(whole, place, odd)), tensors)
        try:
            use(newest)
        except RnnclsError as error:
            refusals.append(error)
        except Exception as error:
            error.add_note(f"{place} = {odd!r:.100}")
            raise
        finally:
            torch.set_num_threads(threads)
    tensorfile.write(newest, text, tensors)

    assert len(refusals) > len(cases) // 2
    assert all(error.exit_code > 1 and len(error.render()) < 10_000 for error in refusals)


@pytest.mark.slow
@row("K4", "K9", by="unit")
@pytest.mark.parametrize(
    ("kind", "odd_values"),
    [
        # Most fields are the same, so each takes a third of the values.
        ("sum_mod", ODD_VALUES[::3]),
        ("ids", ODD_VALUES[::3]),
        ("words", ODD_VALUES[1::3]),
        ("characters", ODD_VALUES[2::3]),
    ],
    ids=KINDS,
)
def test_every_field_replaced_by_every_odd_value_is_refused_or_harmless(
    tmp_path: Path, kind: str, odd_values: Sequence[Any]
) -> None:
    newest = made_run(kind, tmp_path)
    replace_all(newest, odd_values)
    if kind == "sum_mod":
        # No other kind has the keys of its data.
        others = [*ODD_VALUES[1::3], *ODD_VALUES[2::3]]
        replace_all(newest, others, below=("config", "data"))


@row("K4", "K9", by="unit")
def test_some_fields_replaced_by_odd_values_are_refused_or_harmless(tmp_path: Path) -> None:
    replace_all(made_run("words", tmp_path), ODD_VALUES, 25)


@row("K9")
def test_a_long_name_of_a_field_is_compared_with_nothing() -> None:
    with pytest.MonkeyPatch.context() as patch:
        # Neither is called: comparing takes seconds for a name of megabytes.
        patch.setattr("difflib.get_close_matches", None)
        assert nearest("x" * 10**6, ["sequence"]) == ""
        with pytest.raises(ConfigError):
            parse_config({"model": {"cell": "x" * 10**6}}, "test")
