"""Results do not depend on the number of processes that train or evaluate together."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rnncls.config.load import parse_config
from rnncls.data.batches import Batch, Padded, PaddedBatch, pack
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.training.fit import fit
from tests.helpers import (
    PYTHON,
    Completed,
    run_command,
    run_process,
    run_rnncls,
    some_rows,
    write_jsonl,
)
from tests.together import start_together

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
        "max_steps": 60,
        "batch_size": 12,
        "log_every": 1,
        "eval_every": 30,
        "checkpoint_every": 30,
        "eval_samples": 300,
        "engine": "eager",
        "plots": False,
    },
    "device": "cpu",
}

TWO_LAYERS = {"num_layers": 2, "dropout": 0.3}
BOTH = {**TWO_LAYERS, "bidirectional": True}
# Slow, so there are fewer steps.
PIECES = {"recompute_every": 2, "truncate_after": 3, "max_steps": 50, "eval_every": 25}
SGD = {"name": "sgd", "lr": 0.02, "momentum": 0.9}

# Noise on states, smoothed labels and repeated digits.
NOISY = {**BOTH, "state_noise": 0.3}
SMOOTHED = {"label_smoothing": 0.2, "batch_size": 10, "max_steps": 20, "eval_every": 10}
REPEATED = {"repeat_share": 0.5}

# What is trained, and by how many processes besides one.
CASES: dict[str, tuple[tuple[int, ...], dict[str, Any]]] = {
    "rnn": ((2, 3, 4), {}),
    "lstm_padded": (
        (2, 4),
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
        (2,),
        {
            "model": {"cell": "lstm", **TWO_LAYERS, "initial_state": "learned"},
            "train": {"objective": "prefix", **PIECES},
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
            "train": PIECES,
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
    "noisy_rnn": ((2,), {"data": REPEATED, "model": NOISY, "train": SMOOTHED}),
    "noisy_compiled": (
        (2,),
        {
            "data": REPEATED,
            "model": {**NOISY, "cell": "gru"},
            "train": {**SMOOTHED, "engine": "compiled"},
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
    # Six batches of 12 sequences, and one of one.
    train = write_jsonl(folder / "rows.jsonl", some_rows(73, seed=1))
    held_out = write_jsonl(folder / "held_out.jsonl", some_rows(40, seed=2))
    data = {
        "source": "files",
        "train": str(train),
        "val": str(held_out),
        "test_fraction": 0.0,
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
    """Return what each process of a run held at its end."""
    paths = [folder / str(size) / f"{name}.{rank}.json" for rank in range(size)]
    return [json.loads(path.read_text()) for path in paths]


def assert_equal_rows(rows: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Losses and norms are equal within 1e-5, those of evaluations within 1e-6, counts equal."""
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, wanted in zip(rows, expected, strict=True):
        assert row.keys() == wanted.keys()
        for tag, value in wanted.items():
            rel = 1e-5 if tag.startswith("train/") else 1e-6
            # Rounding moves probabilities from one bin of the calibration to the next.
            least = 0.02 if tag == "val/calibration_error" else 1e-9
            close = pytest.approx(value, rel=rel, abs=least, nan_ok=True)
            assert row[tag] == close, (row["step"], tag)


def assert_as_one(folder: Path, size: int, name: str) -> None:
    """What several processes have trained is what one has, and all of them hold the same."""
    ends = ends_of(folder, size, name)
    assert len({end["bits"] for end in ends}) == 1
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
    # Of so many sequences, evaluations have several batches.
    "rnn": (
        (2,),
        {"train": {"max_steps": 20, "eval_every": 10, "batch_size": 10, "eval_samples": 25_000}},
    ),
    "compiled": (
        (2,),
        {"train": {"max_steps": 20, "eval_every": 10, "batch_size": 10, "engine": "compiled"}},
    ),
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
    assert_as_one(tmp_path, 2, "compiled")
    assert_as_one(tmp_path, 3, "gru_padded")


@pytest.mark.slow
def test_any_number_of_processes_trains_what_one_does(tmp_path: Path) -> None:
    cases = CASES | files_cases(tmp_path)
    train_together(tmp_path, cases_for(cases))
    for name, (sizes, _) in cases.items():
        for size in sizes:
            assert_as_one(tmp_path, size, name)


# --- the same bits, skipped steps, other numbers of processes


def short_case(size: int, name: str, **changes: Any) -> dict[str, Any]:
    """Return a case of 24 steps with dropout in two directions."""
    merged = {"model": {"cell": "gru", **BOTH}, **changes}
    merged["train"] = {"max_steps": 24, "eval_every": 12, **changes.get("train", {})}
    return {"size": size, "name": name, "config": config_of_case(merged)}


@pytest.mark.slow
def test_the_same_number_of_processes_has_the_same_bits(tmp_path: Path) -> None:
    cases = [short_case(size, name) for size in (2, 3) for name in ("once", "twice")]
    train_together(tmp_path, cases)
    for size in (2, 3):
        ends = [*ends_of(tmp_path, size, "once"), *ends_of(tmp_path, size, "twice")]
        assert len({end["bits"] for end in ends}) == 1
        runs = [tmp_path / str(size) / name for name in ("once", "twice")]
        assert rows_of(runs[0]) == rows_of(runs[1])


@pytest.mark.slow
def test_all_processes_skip_a_step_that_is_not_finite_for_one_of_them(tmp_path: Path) -> None:
    """Of the last process alone a weight is NaN in steps 3 and 9."""
    train = {"max_skipped_steps": 1}
    sizes = (1, 2, 3)
    cases = [{**short_case(size, "skipping", train=train), "spoiled": [3, 9]} for size in sizes]
    cases += [{**short_case(size, "ending"), "spoiled": [5]} for size in sizes]
    cases.sort(key=lambda case: case["size"])
    train_together(tmp_path, cases)
    for size in sizes:
        assert_as_one(tmp_path, size, "skipping")
        ends = ends_of(tmp_path, size, "ending")
        assert {end["code"] for end in ends} == {7}
        status = json.loads((tmp_path / str(size) / "ending" / "status.json").read_text())
        assert (status["state"], status["step"]) == ("failed", 5)


@pytest.mark.slow
def test_a_run_goes_on_with_any_number_of_processes(tmp_path: Path) -> None:
    """Of 1, 2, 4, 3 and 1 processes, each group takes 20 steps of the same run."""
    train = {"max_steps": 100, "eval_every": 20}
    schedule = {"name": "constant"}
    whole = short_case(1, "whole", train=train, schedule=schedule)
    begun = short_case(1, "run", train={**train, "max_steps": 20}, schedule=schedule)
    run_dir = tmp_path / "1" / "run"
    cases = [whole, begun]
    for number, size in enumerate((2, 4, 3, 1)):
        overrides = [f"train.max_steps={20 * (number + 2)}"]
        name = f"resumed-{number}"
        cases.append({"size": size, "name": name, "resume": str(run_dir), "overrides": overrides})
    train_together(tmp_path, cases)

    assert_equal_rows(rows_of(run_dir), rows_of(tmp_path / "1" / "whole"))
    expected = tensors_of(tmp_path / "1" / "whole")
    for key, tensor in tensors_of(run_dir).items():
        torch.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-6)


# --- under the launcher itself


def torchrun(size: int, *words: str | Path) -> Completed:
    """Run `rnncls words` in so many processes that torchrun starts."""
    launcher = [PYTHON, "-m", "torch.distributed.run", "--standalone"]
    return run_command([*launcher, "--nproc-per-node", str(size), "-m", "rnncls", *words])


SMALL = ("train.max_steps=40", "train.plots=false", "device=cpu", "train.engine=eager")


def bytes_of(run_dir: Path) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors_of(run_dir).items()}


@pytest.mark.slow
def test_one_process_under_torchrun_has_the_bits_of_one_without(tmp_path: Path) -> None:
    for name in ("alone", "launched"):
        words = ["train", "--config", "configs/smoke.yaml", *SMALL, "train.log_every=1"]
        words += ["--run-dir", str(tmp_path / name)]
        done = run_rnncls(*words) if name == "alone" else torchrun(1, *words)
        assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "launched") == bytes_of(tmp_path / "alone")
    assert rows_of(tmp_path / "launched") == rows_of(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize(("size", "source"), [(2, "files"), (3, "sum_mod")])
def test_several_processes_report_what_one_does(tmp_path: Path, size: int, source: str) -> None:
    data: dict[str, Any] = {}
    if source == "files":
        file = write_jsonl(tmp_path / "rows.jsonl", some_rows(3000, longest=20))
        data = {"data": {"source": "files", "train": str(file), "tokens": "ids"}}
    fit(parse_config(short_case(1, "", **data)["config"], "test"), tmp_path / "run")

    predictions = [tmp_path / "one.jsonl", tmp_path / "several.jsonl"]
    words: list[str | Path] = ["eval", tmp_path / "run", "--json", "--errors", "5", "--predictions"]
    one = run_rnncls(*words, predictions[0])
    several = torchrun(size, *words, predictions[1])
    assert several.returncode == 0, several.stderr

    # The report to the digit, printed once, and the file to the byte.
    assert several.stdout == one.stdout
    assert predictions[1].read_bytes() == predictions[0].read_bytes()


def test_a_process_that_does_not_come_is_missed() -> None:
    """It may have been killed while the others were meeting: that is no wrong port."""
    variables: dict[str, str] = {}
    store = start_together(2, variables)
    environment = {**os.environ, **variables, "RANK": "0", "TORCHELASTIC_RESTART_COUNT": "0"}
    words = ["eval", "nowhere", "--dist-timeout", "5"]
    done = run_process(*words, env=environment)
    del store
    assert done.returncode == 9
    assert "error[R21]" in done.stderr
