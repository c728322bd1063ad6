"""Sequences of very many tokens: read and predicted in little memory."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rnncls.errors import Problem
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.long_sequences import too_long_for
from rnncls.predict.predictor import encode, load
from tests.helpers import PYTHON, run_command

row = pytest.mark.row


@pytest.mark.slow
@pytest.mark.parametrize("options", ["pooling='last_mean_max'", "initial_state='learned'"])
def test_a_sequence_of_a_million_tokens_takes_the_memory_of_its_ids(options: str) -> None:
    # The states of all its tokens would be 244 MiB.
    code = f"""
import torch
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.logits import logits_of
from rnncls.system.process_memory import peak_bytes
network = RNNClassifier(5, 3, hidden_size=64, {options}).eval()
ids = [1, 2, 3, 4] * 250_000
with torch.inference_mode():
    logits_of(network, [ids[:100_000]])
    before = peak_bytes()
    logits_of(network, [ids])
print(peak_bytes() - before)
"""
    done = run_command([PYTHON, "-c", code])
    assert done.returncode == 0, done.stderr
    # A few arrays of 8 bytes for each token.
    assert int(done.stdout) < 64 * 2**20


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
from dataclasses import replace
from rnncls.predict.predictor import encode, load
from rnncls.system.process_memory import peak_bytes
predictor = load({str(run_dir)!r}, device="cpu")
data = predictor.data.model_copy(update={{"tokens": {kind!r}}})
known = replace(predictor.vocabulary, has_unknown=True)
predictor = replace(predictor, data=data, vocabulary=known)
before = peak_bytes()
print(len(encode(predictor, {text})))
print(peak_bytes() - before)
"""
    done = run_command([PYTHON, "-c", code])
    assert done.returncode == 0, done.stderr
    length, grown = map(int, done.stdout.split())
    assert length == 2**23
    assert grown < 256 * 2**20


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


@pytest.mark.slow
@row("D13")
def test_the_longest_sequence_of_two_directions_fits_with_every_pooling() -> None:
    code = """
import torch
from rnncls.model.classifier import RNNClassifier
from rnncls.predict import long_sequences
from rnncls.predict.logits import logits_of
from rnncls.system.process_memory import peak_bytes
options = {"hidden_size": 128, "cell": "lstm", "bidirectional": True}
network = RNNClassifier(5, 3, pooling="last_mean_max", **options).eval()
longest = 10**5
while long_sequences.too_long_for(network, longest):
    longest -= 1
with torch.inference_mode():
    logits_of(network, [[1]])
    before = peak_bytes()
    logits_of(network, [[1] * longest])
print(longest, long_sequences.MOST_STATE_BYTES)
print(peak_bytes() - before)
"""
    done = run_command([PYTHON, "-c", code])
    assert done.returncode == 0, done.stderr
    longest, most, grown = map(int, done.stdout.split())
    assert longest > 50_000
    assert grown < most


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
