"""Sequences of very many tokens: read and predicted in little memory."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.data import collate
from rnncls.data.sequences import BATCH_TOKENS
from rnncls.errors import Problem
from rnncls.model.classifier import RNNClassifier
from rnncls.predict import long_sequences
from rnncls.predict.long_sequences import too_long_for
from rnncls.predict.predictor import encode, load
from tests.helpers import PYTHON, run_command

row = pytest.mark.row


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_streamed_sequence_has_the_logits_of_the_whole(
    cell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_sequences, "PIECE_STEPS", 50)
    torch.manual_seed(0)
    for num_layers in (1, 2, 3):
        network = RNNClassifier(5, 3, hidden_size=8, num_layers=num_layers, cell=cell).eval()
        ids = torch.randint(5, (109,))
        batch = collate([ids], torch.zeros(1))
        with torch.inference_mode():
            streamed = logits_of_long(network, ids.tolist())
            torch.testing.assert_close(streamed, network(batch.tokens), rtol=1e-4, atol=1e-5)


def test_one_long_sequence_of_one_direction_is_streamed() -> None:
    longer = [0] * (BATCH_TOKENS + 1)
    network = RNNClassifier(5, 3, hidden_size=8)
    assert is_streamed(network, [longer])
    assert not is_streamed(network, [longer[1:]])
    assert not is_streamed(network, [[0], longer])
    assert not is_streamed(RNNClassifier(5, 3, hidden_size=8, bidirectional=True), [longer])


@pytest.mark.slow
@row("D13")
@pytest.mark.parametrize(
    ("kind", "text"),
    [("characters", "'\\u0416' * 2**23"), ("ids", "'1,' * 2**23")],
)
def test_the_longest_line_takes_little_more_memory_than_its_text(
    kind: str, text: str, run_dir: Path
) -> None:
    # The tokens of 16 MiB alone were over 400 MB, and a model's states of them gigabytes.
    code = f"""
import resource
from dataclasses import replace
from rnncls.predict.predictor import encode, load
predictor = load({str(run_dir)!r}, device="cpu")
data = predictor.data.model_copy(update={{"tokens": {kind!r}}})
known = replace(predictor.vocabulary, has_unknown=True)
predictor = replace(predictor, data=data, vocabulary=known)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(encode(predictor, {text})))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = run_command([PYTHON, "-c", code])
    assert done.returncode == 0, done.stderr
    length, grown = map(int, done.stdout.split())
    assert length == 2**23
    # In KiB; on macOS in bytes.
    assert grown < 256 * (2**20 if sys.platform == "darwin" else 2**10)


@row("D13")
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_model_of_two_directions_refuses_what_its_states_have_no_room_for(cell: Any) -> None:
    """Their states of all steps are in memory together: gigabytes for a line of 16 MiB."""
    one = RNNClassifier(10, 2, cell=cell)
    two = RNNClassifier(10, 2, cell=cell, bidirectional=True, hidden_size=128)

    assert too_long_for(one, 10**8) is None
    assert too_long_for(two, 20_000) is None
    problem = too_long_for(two, 200_000)
    assert problem is not None
    assert problem.id == "D13"
    assert "data.max_length" in problem.expected


@row("D13")
def test_a_long_line_is_a_bad_row_of_a_model_of_two_directions(run_dir: Path) -> None:
    predictor = load(run_dir)
    network = RNNClassifier(10, 2, bidirectional=True, hidden_size=256)
    predictor = replace(predictor, network=network)

    assert isinstance(encode(predictor, "1 " * 100), list)
    for size in (100_000, 2**20):
        problem = encode(predictor, "1 " * size)
        assert isinstance(problem, Problem)
        assert problem.id == "D13"
