"""explain on small files that stand for much: very many classes, layers, digits of a sequence."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from rnncls.config import SumModConfig
from rnncls.errors import ConfigError
from rnncls.inspect.gradients import measure as gradients_module
from rnncls.inspect.importance import importance_of
from rnncls.inspect.padding import compare as padding_module
from rnncls.inspect.padding import view as view_module
from rnncls.inspect.states import planes as planes_module
from rnncls.inspect.states.halves import halves_of
from rnncls.inspect.subject import load_subject, own_sequences
from rnncls.inspect.trace import question as question_module
from rnncls.inspect.trace import trace as trace_module
from rnncls.inspect.trace.question import ask
from rnncls.inspect.trace.text import text_of
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.logits import rows_together
from tests.helpers import change_checkpoint, run_rnncls

MODULES = (gradients_module, padding_module, question_module, trace_module)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of three sequences fit in memory, as of a model of a million classes."""
    for module in MODULES:
        monkeypatch.setattr(module, "rows_together", lambda *_: 3)


def test_of_many_classes_few_rows_are_looked_at_together() -> None:
    def rows(num_classes: int) -> int:
        return rows_together(RNNClassifier(3, num_classes, 1, 1))

    assert rows(10) > 100_000
    assert rows(2**20) == 16
    assert rows_together(RNNClassifier(3, 2**20, 1, 1), 2**10) == 1


def test_the_trace_does_not_depend_on_how_many_are_looked_at_together(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = load_subject(run_dir, "cpu")
    whole = text_of(trace_module.trace(ask(subject, "1 2 0 1 " * 20)))
    monkeypatch.setattr(trace_module, "rows_together", lambda *_: 3)
    assert text_of(trace_module.trace(ask(subject, "1 2 0 1 " * 20))) == whole


def test_what_is_kept_of_a_long_sequence_are_its_ends(run_dir: Path) -> None:
    subject = load_subject(run_dir, "cpu")
    kept = trace_module.trace(ask(subject, "1 2 0 1 " * 500))
    assert len(kept.rows) <= 2 * trace_module.MOST_KEPT + 1
    assert kept.rows[0] == 0
    assert kept.rows[-1] == 1999
    assert len(kept.layers[0][0]["state_norm"]) == len(kept.rows)


@pytest.mark.usefixtures("few")
def test_views_of_a_model_of_many_classes(run_dir: Path) -> None:
    assert "3 sequences" in run_rnncls("explain", run_dir, "--gradients").stdout
    padding = " ".join(run_rnncls("explain", run_dir, "--padding").stdout.split())
    assert "batches of 3 " in padding
    assert "accuracy: on 8 sequences" in padding


def test_leaving_out_does_not_depend_on_how_many_are_left_out_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    network = RNNClassifier(5, 4, 3, 8).eval()
    ids = [1, 2, 0, 4, 4, 3, 1]
    whole = importance_of(network, ids, 1).left_out
    monkeypatch.setattr("rnncls.inspect.importance.rows_together", lambda *_: 2)
    assert importance_of(network, ids, 1).left_out == pytest.approx(whole, rel=1e-4, abs=1e-7)


def test_very_long_sequences_are_few(run_dir: Path) -> None:
    """64 of them would be a rectangle of half a gigabyte."""
    subject = load_subject(run_dir, "cpu")
    data = subject.checkpoint.config.data
    assert isinstance(data, SumModConfig)
    longest = data.model_copy(update={"min_length": 2**20, "max_length": 2**20})
    config = subject.checkpoint.config.model_copy(update={"data": longest})
    subject = subject._replace(checkpoint=replace(subject.checkpoint, config=config))
    assert len(own_sequences(subject, 64)) == 8
    assert len(own_sequences(subject, 5)) == 5


def test_logits_of_very_many_classes_are_not_in_the_json(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view_module, "MOST_CLASSES_IN_JSON", 2)
    shown = json.loads(run_rnncls("explain", run_dir, "--padding", "--json").stdout)
    assert {way["logits"] for way in shown["ways"]} == {None}
    assert {one["logits"] for one in shown["sequences"]} == {None}
    assert None not in shown["ways"][0]["predicted"]


def test_logits_that_are_not_numbers_predict_nothing(run_dir: Path, tmp_path: Path) -> None:
    spoilt = tmp_path / "spoilt.safetensors"
    spoilt.write_bytes((run_dir / "checkpoints/best.safetensors").read_bytes())
    change_checkpoint(spoilt, lambda _, tensors: tensors["model/head.bias"].fill_(torch.nan))
    shown = json.loads(run_rnncls("explain", spoilt, "--padding", "--json").stdout)
    assert {label for way in shown["ways"] for label in way["predicted"]} == {None}
    text = run_rnncls("explain", spoilt, "--padding").stdout
    labels = text.split("predicted labels")[1].split("logits of sequence")[0]
    assert labels.split()[-3:] == ["-", "-", "-"]


def test_of_thousands_of_classes_fewer_frequencies_are_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    classes = np.arange(600) % 30
    halves = halves_of(generator.normal(size=(600, 4)), classes, seed=0)
    assert len(planes_module.frequency_planes(halves, 30)) == 15
    monkeypatch.setattr(planes_module, "MOST_COMPARED", 1)
    assert len(planes_module.frequency_planes(halves, 30)) == 5


@pytest.mark.row("C17", by="injection")
@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("data.max_length=1", "a key of a config"),
        ("model.cell=gru", "a key of a config"),
        ("new.csv", "a file's name"),
        ("/etc/passwd", "a file's name"),
    ],
)
def test_what_is_typed_in_place_of_a_sequence(text: str, part: str, run_dir: Path) -> None:
    for view in ([], ["--graph", "g.svg"]):
        done = run_rnncls("explain", run_dir, text, *view)
        assert done.returncode == ConfigError.exit_code
        assert f"error[C17]: {part}" in done.stderr
        assert "try:" in done.stderr
