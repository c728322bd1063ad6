"""Runs of every pooling, initial state, cell and direction: eval, predict and Python agree."""

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import rnncls
from rnncls.predict.logits import logits_of
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.training.fit import fit
from tests.helpers import (
    change_checkpoint,
    config_of,
    files_config,
    run_rnncls,
    some_rows,
    write_jsonl,
)

CELLS = ("rnn", "lstm", "gru")
POOLINGS = ("last", "mean", "max", "last_mean_max")
# Of all four, every three values are in one case, and every second case is left out.
ALL = [
    (cell, is_both, pooling, initial)
    for cell, is_both, pooling, initial in product(
        CELLS, (False, True), POOLINGS, ("zeros", "learned")
    )
    if (CELLS.index(cell) + is_both + POOLINGS.index(pooling) + (initial == "zeros")) % 2 == 0
]
# Each value beside some others; the rest is slow.
SOME = [
    ("rnn", False, "last", "learned"),
    ("gru", True, "mean", "learned"),
    ("lstm", False, "max", "zeros"),
    ("rnn", True, "last_mean_max", "learned"),
]


def untrained(folder: Path, **sections: Any) -> Path:
    """Save a model of generated data that has not learnt anything; its h_0 is not zero."""
    fit(config_of(train={"max_steps": 0}, **sections), folder / "run")
    return with_other_weights(folder / "run", [[0], [1], [2], [1, 2], [2, 0, 1]])


def with_other_weights(run_dir: Path, rows: Sequence[Sequence[int]]) -> Path:
    """Give the model of a run weights with which the labels of some sequences are not the same."""

    def draw(_: Any, tensors: dict[str, torch.Tensor]) -> None:
        generator = torch.Generator().manual_seed(0)
        for name, tensor in tensors.items():
            if name.startswith("model/"):
                tensor.normal_(std=0.2, generator=generator)

    def centre(_: Any, tensors: dict[str, torch.Tensor]) -> None:
        tensors["model/head.bias"].sub_(mean)

    path = find_checkpoint(run_dir)
    change_checkpoint(path, draw)
    network = rnncls.load(path, device="cpu").network
    with torch.inference_mode():
        mean = torch.cat([logits_of(network, [row]) for row in rows]).mean(0)
    change_checkpoint(path, centre)
    return run_dir


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(each, marks=() if each in SOME else pytest.mark.slow) for each in ALL],
    ids=str,
)
def test_eval_predict_and_python_agree(
    architecture: tuple[str, bool, str, str], tmp_path: Path
) -> None:
    names = ("cell", "bidirectional", "pooling", "initial_state")
    model: dict[str, Any] = {**dict(zip(names, architecture, strict=True)), "num_layers": 2}
    rows = some_rows(120, longest=12)
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    config = files_config(path, train={"max_steps": 0})
    changed = {"model": config.model.model_copy(update=model)}
    fit(config.model_copy(update=changed), tmp_path / "run")
    run_dir = with_other_weights(tmp_path / "run", [row for row, _ in rows])

    words: list[str | Path] = ["eval", run_dir, "--data", path, "--json", "--errors", "3"]
    done = run_rnncls(*words, "--predictions", tmp_path / "all.jsonl")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    evaluated = lines_of((tmp_path / "all.jsonl").read_text())
    assert len(evaluated) == 120
    assert len({row["predicted"] for row in evaluated}) > 1
    assert len(report["mistakes"]) == 3
    assert 0 <= report["ece"] <= 1

    done = run_rnncls("predict", run_dir, "--input", path, "--json")
    assert done.returncode == 0, done.stderr
    answers = lines_of(done.stdout)
    predictor = rnncls.load(run_dir, device="cpu")
    sequences = [row["sequence"] for row in evaluated]
    in_python = predictor.predict(sequences, top_k=3)
    (alone,) = predictor.predict(sequences[-1:])

    for row, answer, prediction in zip(evaluated, answers, in_python, strict=True):
        assert row["predicted"] == answer["label"] == prediction.label
        assert answer["probability"] == pytest.approx(row["probability"], abs=1e-6)
        for label, probability in prediction.top:
            assert row["probabilities"][str(label)] == pytest.approx(probability, abs=1e-6)
    assert alone.probability == pytest.approx(in_python[-1].probability, abs=1e-6)

    assert report["errors"] == sum(row["predicted"] != row["true"] for row in evaluated)
    pairs = zip(evaluated, in_python, strict=True)
    losses = [-math.log(dict(each.top)[row["true"]]) for row, each in pairs]
    assert report["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


@pytest.mark.parametrize(
    "train",
    [
        {"objective": "prefix"},
        {"objective": "prefix", "truncate_after": 2, "recompute_every": 1},
        {"recompute_every": 2},
        {"truncate_after": 2},
    ],
    ids=str,
)
def test_how_a_run_was_trained_does_not_matter_to_eval_and_predict(
    train: dict[str, Any], tmp_path: Path
) -> None:
    config = config_of(train={"max_steps": 6, **train}, model={"initial_state": "learned"})
    fit(config, tmp_path / "run")
    words: list[str | Path] = ["--lengths", "1-3", "--predictions", tmp_path / "all.jsonl"]
    done = run_rnncls("eval", tmp_path / "run", *words, "--json")
    assert done.returncode == 0, done.stderr
    predictor = rnncls.load(tmp_path / "run")
    evaluated = lines_of((tmp_path / "all.jsonl").read_text())
    predictions = predictor.predict([row["sequence"] for row in evaluated])
    for row, prediction in zip(evaluated, predictions, strict=True):
        assert prediction.label == row["predicted"]
        assert prediction.probability == pytest.approx(row["probability"], abs=1e-6)


def test_files_to_evaluate_and_predict_need_no_prefix_labels(tmp_path: Path) -> None:
    rows = some_rows(60)
    with (tmp_path / "d.jsonl").open("w") as file:
        for ids, label in rows:
            sums = [sum(ids[: end + 1]) % 3 for end in range(len(ids))]
            file.write(json.dumps({"sequence": ids, "label": label, "prefixes": sums}) + "\n")
    config = files_config(
        tmp_path / "d.jsonl", train={"objective": "prefix"}, prefix_labels_field="prefixes"
    )
    fit(config, tmp_path / "run")

    path = write_jsonl(tmp_path / "new.jsonl", rows)
    done = run_rnncls("eval", tmp_path / "run", "--data", path, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["examples"] == 60

    for words in ([], ["--prefixes"]):
        done = run_rnncls("predict", tmp_path / "run", "--input", path, "--json", *words)
        assert done.returncode == 0, done.stderr
        assert f"({60 - report['errors']} of 60)" in done.stderr
