"""The package as a Python user meets it: load, predict, errors, types."""

import doctest
import json
import math
import pickle
import shutil
from array import array
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rnncls
from rnncls.data import collate
from rnncls.errors import Interrupted, Problem
from rnncls.model import classifier
from tests.helpers import (
    PYTHON,
    ROOT,
    files_config,
    run_command,
    run_rnncls,
    some_rows,
    write_jsonl,
)

row = pytest.mark.row


@pytest.fixture(scope="module")
def run_of_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    rows: list[tuple[Any, Any]] = [("home shop pay", "bought"), ("home search", "left")] * 20
    path = write_jsonl(folder / "d.jsonl", rows)
    rnncls.fit(
        files_config(path, tokens="words", val_fraction=0.0, test_fraction=0.0), folder / "run"
    )
    return folder / "run"


@pytest.fixture(scope="module")
def run_of_ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ids")
    path = write_jsonl(folder / "d.jsonl", some_rows(300, longest=30))
    rnncls.fit(files_config(path), folder / "run")
    return folder / "run"


def test_python_the_command_line_and_eval_agree(run_of_ids: Path, tmp_path: Path) -> None:
    # More than are predicted together.
    rows = some_rows(5000, seed=7, longest=30)
    path = write_jsonl(tmp_path / "new.jsonl", rows)
    predictions = rnncls.load(run_of_ids).predict((ids for ids, _ in rows), top_k=3)

    words: list[str | Path] = ["--input", path, "--output", tmp_path / "out.jsonl", "--top-k", "3"]
    done = run_rnncls("predict", run_of_ids, *words)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for prediction, line in zip(predictions, lines, strict=True):
        assert prediction.label == line["label"]
        assert prediction.probability == pytest.approx(line["probability"], abs=1e-6)
        for (label, probability), entry in zip(prediction.top, line["top"], strict=True):
            assert label == entry["label"]
            assert probability == pytest.approx(entry["probability"], abs=1e-6)

    report = json.loads(run_rnncls("eval", run_of_ids, "--data", path, "--json").stdout)
    true = [label for _, label in rows]
    correct = sum(a.label == b for a, b in zip(predictions, true, strict=True))
    assert report["errors"] == 5000 - correct
    assert f"({correct:,} of 5,000)" in done.stderr
    losses = [-math.log(dict(a.top)[b]) for a, b in zip(predictions, true, strict=True)]
    assert report["loss"] == pytest.approx(sum(losses) / 5000, abs=1e-6)


def test_every_form_of_a_sequence_is_the_same_sequence(
    run_of_ids: Path, run_of_words: Path
) -> None:
    ids: list[Any] = [
        "3 1 4",
        "3, 1, 4",
        [3, 1, 4],
        (3, 1, 4),
        torch.tensor([3, 1, 4]),
        np.array([3, 1, 4]),
        list(np.array([3, 1, 4])),
        array("q", [3, 1, 4]),
        deque([3, 1, 4]),
    ]
    predictions = rnncls.load(run_of_ids).predict(ids)
    assert len(set(map(str, predictions))) == 1
    assert type(predictions[0].label) is int
    assert rnncls.load(run_of_ids).predict([range(3)]) == rnncls.load(run_of_ids).predict(["0 1 2"])

    words: list[Any] = ["home shop pay", ["home", "shop", "pay"], np.array(["home", "shop", "pay"])]
    predictions = rnncls.load(run_of_words).predict(words, top_k=9)
    assert len(set(map(str, predictions))) == 1
    assert {label for label, _ in predictions[0].top} == {"bought", "left"}
    assert predictions[0].top[0] == (predictions[0].label, predictions[0].probability)


def test_no_items_and_items_without_end_in_one_batch(run_of_ids: Path) -> None:
    predictor = rnncls.load(run_of_ids)
    assert predictor.predict([]) == []
    assert len(predictor.predict(f"{number % 5}" for number in range(4097))) == 4097


@row("D7", "D9", "D14")
@pytest.mark.parametrize(
    ("item", "found"),
    [
        (None, "None"),
        (3.5, "float: 3.5"),
        ({"sequence": "1"}, "dict: {'sequence': '1'}"),
        (b"1 2", "bytes: b'1 2'"),
        (torch.zeros(1, 2), "Tensor of shape (1, 2)"),
        (torch.tensor(3), "Tensor of shape ()"),
        ([[1, 2]], "[1, 2] at position 1"),
        ([1, 2.5], "2.5 at position 2"),
        ([True], "True at position 1"),
        ("1 x", "'x' at position 2"),
        ([-1], "-1 at position 1"),
        ([], ""),
        ("", ""),
    ],
)
def test_another_item_is_named_with_its_position(run_of_ids: Path, item: Any, found: str) -> None:
    with pytest.raises(rnncls.DataError) as caught:
        rnncls.load(run_of_ids).predict(["1 2", [3], item])
    message = str(caught.value)
    assert "(items[2])" in message
    assert "expected:" in message
    assert found in message
    assert "--bad" not in message


@row("D14")
def test_what_is_not_a_list_of_sequences_gets_advice(run_of_ids: Path) -> None:
    predictor = rnncls.load(run_of_ids)
    with pytest.raises(rnncls.DataError, match=r"try: +predict\(\[text\]\)"):
        predictor.predict("1 2")
    with pytest.raises(rnncls.DataError, match=r"try: +predict\(\[ids\]\)"):
        predictor.predict([1, 2])  # type: ignore[list-item]
    for items in (None, 5, {"a": 1}, b"1"):
        with pytest.raises(rnncls.DataError, match="not a list of sequences"):
            predictor.predict(items)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="top_k must be at least 1"):
        predictor.predict(["1"], top_k=0)


@row("D7")
def test_a_token_of_the_generated_task_has_a_range(run_dir: Path) -> None:
    predictor = rnncls.load(run_dir)
    with pytest.raises(rnncls.DataError) as caught:
        predictor.predict([[1, 9]])
    assert "integers in 0..2" in str(caught.value)
    assert "'9' at position 2" in str(caught.value)


def test_a_predictor_says_what_it_is(run_dir: Path, run_of_words: Path) -> None:
    predictor = rnncls.load(run_dir)
    assert predictor.labels == (0, 1, 2)
    assert predictor.config.data.source == "sum_mod"
    assert predictor.checkpoint == run_dir / "checkpoints" / "best.safetensors"
    assert f"step {predictor.step:,}, 3 tokens, 3 labels" in repr(predictor)
    assert not predictor.network.training
    assert rnncls.load(predictor.checkpoint).predict(["1"]) == predictor.predict(["1"])

    words = rnncls.load(run_of_words, device="cpu")
    assert words.labels == ("bought", "left")
    assert words.vocabulary.index["shop"] > 0
    # The network alone, on ids of one's own.
    ids = [torch.tensor(words.vocabulary.encode(["home", "shop", "pay"]))]
    logits = rnncls.load_model(run_of_words)(pack_sequence(ids))
    best = words.predict(["home shop pay"])[0]
    assert logits.softmax(1).max().item() == pytest.approx(best.probability, abs=1e-6)
    assert words.labels[int(logits.argmax())] == best.label


def test_a_model_that_gets_no_packed_ids_says_what_to_use(run_dir: Path) -> None:
    network = rnncls.load_model(run_dir)
    batch = collate([torch.tensor([1, 2])], torch.zeros(1))
    for wrong in (torch.tensor([1, 2]), [1, 2], "1 2", None, batch):
        with pytest.raises(TypeError, match="use rnncls") as caught:
            network(wrong)
        assert type(wrong).__name__ in str(caught.value)
        assert "pack_sequence" in str(caught.value)

    for ids, found in (
        (torch.tensor([1.0, 2.0]), "float32 with data of shape (2,)"),
        (torch.tensor([[1, 2]]), "int64 with data of shape (1, 2)"),
        (torch.tensor([True]), "bool with data of shape (1,)"),
    ):
        with pytest.raises(TypeError, match="use rnncls") as caught:
            network(pack_sequence([ids]))
        assert f"not a PackedSequence of {found}" in str(caught.value)

    # What it advises works, and so does the example in the docstring.
    packed = pack_sequence([torch.tensor([1, 2])], enforce_sorted=False)
    assert torch.equal(network(packed), network(batch.tokens))
    results = doctest.testmod(classifier, extraglobs={"torch": torch})
    assert (results.failed, results.attempted) == (0, 8)


def test_the_text_of_an_error_is_its_whole_block() -> None:
    problem = Problem("bad", "file:3", expected="good", found="bad", remedy="better", id="D14")
    error = rnncls.DataError(problem, Problem("worse"))
    assert str(error) == error.render()
    for part in ("error[D14]: bad (file:3)", "expected: good", "found:    bad", "try:      better"):
        assert part in str(error)
    assert "error: worse" in str(error)

    # An error reaches another process as it was.
    for original in (error, Interrupted(143, problem)):
        copy = pickle.loads(pickle.dumps(original))
        assert (type(copy), str(copy), copy.exit_code) == (
            type(original),
            str(original),
            original.exit_code,
        )


def test_the_package_lists_its_public_names_and_has_them_all() -> None:
    public = {name for name in dir(rnncls) if not name.startswith("__")}
    assert public == set(rnncls.__all__) - {"__version__"}
    for name in public:
        assert getattr(rnncls, name).__name__ == name
    assert {"load", "fit", "evaluate", "load_config", "load_model", "DataError"} <= public


USER = """
from typing import assert_type
import numpy as np
import torch
import rnncls

predictor = rnncls.load("runs/mine", device="cpu")
assert_type(predictor, rnncls.Predictor)
predictions = predictor.predict(["home shop pay", ["home", "cart"]], top_k=2)
assert_type(predictions, list[rnncls.Prediction])
assert_type(predictions[0].label, str | int)
assert_type(predictions[0].probability, float)
assert_type(predictions[0].top, list[tuple[str | int, float]])
predictor.predict([[3, 1, 4], "3 1 4", (3, 1), torch.tensor([1]), np.array([1])])
predictor.predict(text for text in "ab")
predictor.predict([3.5])  # type: ignore[list-item]
predictor.predict(3)  # type: ignore[arg-type]
assert_type(predictor.labels, tuple[str | int, ...])
assert_type(predictor.vocabulary.encode(["home"]), list[int])
module: torch.nn.Module = predictor.network
try:
    config = rnncls.load_config("configs/smoke.yaml", ["train.max_steps=5"])
    state = rnncls.fit(config, "runs/typed")
    print(rnncls.evaluate(state.model, config).to_text())
except rnncls.RnnclsError as error:
    assert_type(error.exit_code, int)
    assert_type(error.problems[0].expected, str)
"""


@pytest.mark.slow
def test_a_script_of_a_user_passes_mypy_strict(tmp_path: Path) -> None:
    # The package lies where an installed one would, so that py.typed is what makes it typed.
    site = tmp_path / "venv" / "site"
    shutil.copytree(ROOT / "rnncls", site / "rnncls", ignore=shutil.ignore_patterns("__pycache__"))
    assert (site / "rnncls" / "py.typed").is_file()
    (tmp_path / "user.py").write_text(USER)
    config = f"[mypy]\nstrict = true\nfollow_imports = silent\nmypy_path = {site}\n"
    (tmp_path / "mypy.ini").write_text(config)
    done = run_command(
        [PYTHON, "-m", "mypy", "--cache-dir", tmp_path / "cache", "user.py"], cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
