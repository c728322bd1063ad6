"""Results do not depend on the number of processes that train or evaluate together."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnncls.data.batches import Batch, Padded, PaddedBatch, pack
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from tests.helpers import PYTHON, run_command, some_rows, write_jsonl

# --- shares of a batch


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Draw tokens (B, T), lengths (B,) and labels (B,)."""
    lengths = torch.tensor(draw(st.lists(st.integers(1, 6), min_size=1, max_size=9)))
    width = int(lengths.max()) + draw(st.integers(0, 2))
    tokens = torch.arange(len(lengths) * width).view(len(lengths), width)
    return tokens, lengths, torch.arange(len(lengths)) + 100


@given(batches(), st.integers(1, 5), st.booleans())
def test_the_shares_of_a_packed_batch_are_its_rows_packed_again(
    drawn: tuple[Tensor, Tensor, Tensor], of: int, has_prefixes: bool
) -> None:
    tokens, lengths, labels = drawn
    batch = pack(tokens, lengths, labels, -tokens if has_prefixes else None)
    padded, found_lengths = pad_packed_sequence(batch.tokens, batch_first=True)
    seen = []
    for number in range(of):
        share = batch.share(number, of)
        if number >= len(labels):
            assert share is None
            continue

        assert share is not None
        rows = padded[number::of]
        expected = pack_padded_sequence(
            rows, found_lengths[number::of], batch_first=True, enforce_sorted=False
        )
        assert_same_packed(share, Batch(expected, labels[number::of], lengths[number::of]))
        if has_prefixes:
            assert share.prefix_labels is not None
            assert torch.equal(share.prefix_labels, -share.tokens.data)
        seen += share.labels.tolist()
    assert sorted(seen) == labels.tolist()


def assert_same_packed(share: Batch, expected: Batch) -> None:
    """Both have the same sequences in the same order, and are whole packed batches.

    Equally long sequences may be packed in either order.
    """
    assert torch.equal(share.labels, expected.labels)
    assert torch.equal(share.lengths, expected.lengths)
    assert torch.equal(share.tokens.batch_sizes, expected.tokens.batch_sizes)
    rows, lengths = pad_packed_sequence(share.tokens, batch_first=True)
    expected_rows, expected_lengths = pad_packed_sequence(expected.tokens, batch_first=True)
    assert torch.equal(rows, expected_rows)
    assert torch.equal(lengths, expected_lengths)

    order = share.tokens.sorted_indices
    assert order is not None
    assert share.tokens.unsorted_indices is not None
    assert torch.equal(share.tokens.unsorted_indices[order], torch.arange(len(order)))
    assert share.lengths[order].tolist() == sorted(share.lengths.tolist(), reverse=True)


@given(batches(), st.integers(1, 5))
def test_the_shares_of_a_padded_batch_are_its_rows(
    drawn: tuple[Tensor, Tensor, Tensor], of: int
) -> None:
    tokens, lengths, labels = drawn
    batch = PaddedBatch(Padded(tokens, lengths), labels)
    for number in range(of):
        share = batch.share(number, of)
        if number >= len(labels):
            assert share is None
            continue

        assert share is not None
        assert torch.equal(share.labels, labels[number::of])
        assert torch.equal(share.tokens.lengths, lengths[number::of])
        assert share.tokens.tokens.shape[1] == int(share.tokens.lengths.max())
        for row, length in enumerate(share.tokens.lengths.tolist()):
            whole = tokens[number + row * of, :length]
            assert torch.equal(share.tokens.tokens[row, :length], whole)


# --- training

# Small networks, and every step logged. With these rates no loss comes near zero, where a relative
# difference would say little.
BASE: dict[str, Any] = {
    "data": {"modulus": 3, "min_length": 1, "max_length": 6},
    "model": {"embedding_dim": 4, "hidden_size": 6, "nonlinearity": "tanh"},
    "optimizer": {"lr": 2e-3},
    "schedule": {"warmup_steps": 5},
    "train": {
        "max_steps": 200,
        "batch_size": 12,
        "log_every": 1,
        "eval_every": 100,
        "checkpoint_every": 100,
        "eval_samples": 300,
        "engine": "eager",
        "plots": False,
    },
    "device": "cpu",
}

TWO_LAYERS = {"num_layers": 2, "dropout": 0.3}
BOTH = {**TWO_LAYERS, "bidirectional": True}
SGD = {"name": "sgd", "lr": 0.02, "momentum": 0.9}

# What is trained, and by how many processes besides one.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "rnn": ((2, 3, 4), {}),
    "lstm_padded": (
        (2, 3, 4),
        {
            "data": {"layout": "padded"},
            "model": {"cell": "lstm", **TWO_LAYERS},
            "train": {"batch_size": 10},
        },
    ),
    "gru_both": ((3,), {"model": {"cell": "gru", **BOTH}, "train": {"batch_size": 10}}),
    "sgd_padded": (
        (4,),
        {"data": {"layout": "padded"}, "optimizer": SGD, "train": {"batch_size": 10}},
    ),
    "one_sequence": ((3,), {"train": {"batch_size": 1}, "model": {"cell": "gru"}}),
    "prefix": (
        (2, 4),
        {
            "model": {"cell": "lstm", **TWO_LAYERS, "initial_state": "learned"},
            "train": {"objective": "prefix", "recompute_every": 2, "truncate_after": 3},
        },
    ),
    "pieces": (
        (3,),
        {
            "model": {
                "cell": "gru",
                **BOTH,
                "initial_state": "learned",
                "pooling": "last_mean_max",
            },
            "train": {"recompute_every": 2, "truncate_after": 3},
        },
    ),
    "compiled_rnn": ((2, 4), {"train": {"engine": "compiled"}}),
    "compiled_gru": (
        (3,),
        {
            "model": {"cell": "gru", **BOTH},
            "optimizer": SGD,
            "train": {"engine": "compiled", "batch_size": 10},
        },
    ),
    "compiled_lstm": (
        (2,),
        {
            "model": {"cell": "lstm", "bidirectional": True},
            "train": {"engine": "compiled", "batch_size": 1},
        },
    ),
}


def config_of_case(changes: dict[str, Any]) -> dict[str, Any]:
    """Return BASE with the changes of a case."""
    merged = dict(BASE)
    for section, values in changes.items():
        is_whole = section == "data" and "source" in values
        merged[section] = values if is_whole else {**merged.get(section, {}), **values}
    return merged


def files_cases(folder: Path) -> dict[str, tuple[tuple[int, ...], dict[str, Any]]]:
    """Return cases on a file whose epochs end with a batch of one sequence."""
    # Of 85 sequences 12 are held out: 73 are six batches of 12, and one.
    train = write_jsonl(folder / "rows.jsonl", some_rows(73, seed=1))
    held_out = write_jsonl(folder / "held_out.jsonl", some_rows(40, seed=2))
    data = {
        "source": "files",
        "train": str(train),
        "val": str(held_out),
        "tokens": "ids",
        "batching": "bucket",
    }
    weights = {"class_weights": "balanced"}
    return {
        "files": ((2, 4), {"data": data, "train": weights}),
        "files_compiled": (
            (3,),
            {"data": data, "model": {"cell": "gru"}, "train": {**weights, "engine": "compiled"}},
        ),
    }


def train_together(folder: Path, cases: list[dict[str, Any]]) -> None:
    """Have processes train cases, see tests/together.py."""
    (folder / "cases.json").write_text(json.dumps(cases))
    done = run_command([PYTHON, "-m", "tests.together", folder])
    assert done.returncode == 0, done.stderr[-4000:]


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    """Return the logged values, without those that say how long something took."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{tag: row[tag] for tag in row if "per_second" not in tag} for row in rows]


def tensors_of(run_dir: Path) -> dict[str, Tensor]:
    """Return weights and optimizer state of the newest checkpoint."""
    checkpoint = read_checkpoint(find_newest(run_dir))
    return {**checkpoint.model, **checkpoint.optim}


def ends_of(folder: Path, size: int, name: str) -> list[dict[str, Any]]:
    """Return what each process of a run held at its end; all must have held the same."""
    ends = [
        json.loads((folder / str(size) / f"{name}.{rank}.json").read_text())
        for rank in range(size)
    ]
    return ends


def assert_equal_rows(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Losses and norms are equal within 1e-5, those of evaluations within 1e-6, counts equal."""
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for tag, value in wanted.items():
            rel = 1e-5 if tag.startswith("train/") else 1e-6
            close = pytest.approx(value, rel=rel, abs=1e-9, nan_ok=True)
            assert row[tag] == close, (row["step"], tag)


def assert_as_one(folder: Path, size: int, name: str) -> None:
    """What several processes have trained is what one has, and all of them hold the same."""
    bits = {end["bits"] for end in ends_of(folder, size, name)}
    assert len(bits) == 1
    assert_equal_rows(rows_of(folder / str(size) / name), rows_of(folder / "1" / name))

    expected = tensors_of(folder / "1" / name)
    found = tensors_of(folder / str(size) / name)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        if key in read_checkpoint(find_newest(folder / "1" / name)).model:
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-6)


def cases_for(
    cases: dict[str, tuple[tuple[int, ...], dict[str, Any]]], most: int = 4
) -> list[dict[str, Any]]:
    """Return what tests/together.py is to do: each case by one process and by those it names."""
    wanted = []
    for size in range(1, most + 1):
        for name, (sizes, changes) in cases.items():
            if size == 1 or size in sizes:
                wanted.append({"size": size, "name": name, "config": config_of_case(changes)})
    return wanted


# Shorter than the others, and each process count once.
QUICK: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "rnn": ((2,), {"train": {"max_steps": 20, "eval_every": 10, "batch_size": 10}}),
    "gru_padded": (
        (3,),
        {
            "data": {"layout": "padded"},
            "model": {"cell": "gru", **TWO_LAYERS},
            "train": {"max_steps": 20, "eval_every": 10, "batch_size": 2},
        },
    ),
}


def test_two_and_three_processes_train_what_one_does(tmp_path: Path) -> None:
    train_together(tmp_path, cases_for(QUICK))
    assert_as_one(tmp_path, 2, "rnn")
    assert_as_one(tmp_path, 3, "gru_padded")


@pytest.mark.slow
def test_any_number_of_processes_trains_what_one_does(tmp_path: Path) -> None:
    cases = CASES | files_cases(tmp_path)
    train_together(tmp_path, cases_for(cases))
    for name, (sizes, _) in cases.items():
        for size in sizes:
            assert_as_one(tmp_path, size, name)
