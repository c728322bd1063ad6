"""Sequences of very many tokens: read piece by piece, and predicted with a few states in memory."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.config import FilesConfig
from rnncls.data import Vocabulary, collate
from rnncls.data.cells import tokens_of
from rnncls.data.sequences import BATCH_TOKENS
from rnncls.data.vocabulary import truncate
from rnncls.errors import Problem
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.long_sequences import (
    PIECE,
    PIECE_STEPS,
    UnknownToken,
    ids_of_long,
    is_long,
    is_streamed,
    logits_of_long,
    too_long_for,
)
from rnncls.predict.predictor import encode, load
from tests.helpers import PYTHON, run_command

row = pytest.mark.row

KNOWN = ("<unk>", "1", "2", "12", "a", "é", "<sep>")


def _data(**keys: Any) -> FilesConfig:
    return FilesConfig(source="files", train="none", **keys)


def _whole(value: Any, data: FilesConfig, vocabulary: Vocabulary) -> list[int]:
    """Return the ids as those of any shorter sequence."""
    tokens = tokens_of(value, data.tokens)
    assert not isinstance(tokens, Problem)
    kept = truncate(tokens, data)
    assert not isinstance(kept, Problem)
    return vocabulary.encode(kept)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("ids", "12 1\t2  7\n" * (PIECE // 5)),
        ("ids", [12, 1, 2, 7] * (PIECE // 3)),
        ("words", " é a\u2003bb 12" * (PIECE // 7)),
        ("words", ["a", "bb", "é"] * (PIECE // 2)),
        ("characters", "1aé " * (PIECE // 3)),
        ("words", ("a " * PIECE, None, "2")),
    ],
)
@pytest.mark.parametrize("keys", [{}, {"max_length": 7, "truncate": "tail"}])
def test_the_pieces_of_a_long_sequence_are_its_tokens(
    kind: str, value: Any, keys: dict[str, Any]
) -> None:
    data = _data(tokens=kind, **keys)
    vocabulary = Vocabulary(KNOWN, ("x",), has_unknown=True)
    assert is_long(value)
    ids = ids_of_long(value, data, vocabulary)
    assert ids is not None
    assert not isinstance(ids, Problem)
    assert list(ids) == _whole(value, data, vocabulary)


@row("D7", "D16")
def test_what_is_wrong_with_a_long_sequence_is_said_as_of_a_short_one(run_dir: Path) -> None:
    vocabulary = Vocabulary(KNOWN[1:], ("x",), has_unknown=False)
    words = "a " * PIECE
    with pytest.raises(UnknownToken) as caught:
        ids_of_long(f"{words}b a", _data(tokens="words"), vocabulary)
    assert (caught.value.token, caught.value.position) == ("b", PIECE)

    # What is cut off may be unknown, on either side.
    for text, cut in ((f"{words}b", "head"), (f"b {words}", "tail")):
        ids = ids_of_long(text, _data(tokens="words", max_length=3, truncate=cut), vocabulary)
        assert ids is not None
        assert not isinstance(ids, Problem)
        assert list(ids) == [3, 3, 3]
    limited = _data(tokens="words", max_length=3, truncate="error")
    too_many = ids_of_long(words, limited, vocabulary)
    assert isinstance(too_many, Problem)
    assert too_many.id == "D16"

    # Read as a whole: ids with commas, what is no id, lists of several kinds, nothing at all.
    predictor = load(run_dir, device="cpu")
    commas = encode(predictor, "1," * PIECE)
    assert not isinstance(commas, Problem)
    assert len(commas) == PIECE
    for bad, id in (
        ("1 " * PIECE + "x", "D7"),
        ("1 " * PIECE + "99", "D7"),
        ([1] * PIECE + ["1"], "D7"),
        (" " * (PIECE + 1), "D9"),
    ):
        problem = encode(predictor, bad)
        assert isinstance(problem, Problem)
        assert problem.id == id
        if id == "D7":
            assert f"at position {PIECE + 1}" in problem.found


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_streamed_sequence_has_the_logits_of_the_whole(cell: Any) -> None:
    torch.manual_seed(0)
    network = RNNClassifier(5, 3, hidden_size=8, num_layers=2, cell=cell).eval()
    ids = torch.randint(5, (PIECE_STEPS + 9,))
    assert is_streamed(network, [[0] * (BATCH_TOKENS + 1)])
    assert not is_streamed(network, [[0], [0] * BATCH_TOKENS])
    batch = collate([ids], torch.zeros(1))
    with torch.inference_mode():
        torch.testing.assert_close(
            logits_of_long(network, ids.tolist()), network(batch.tokens), rtol=1e-4, atol=1e-5
        )


@pytest.mark.slow
@row("D13")
def test_the_longest_line_takes_little_more_memory_than_its_text(run_dir: Path) -> None:
    # The tokens of 16 MiB alone were over 400 MB, and a model's states of them gigabytes.
    code = f"""
import resource
from dataclasses import replace
from rnncls.predict.predictor import encode, load
predictor = load({str(run_dir)!r}, device="cpu")
words = replace(predictor, data=predictor.data.model_copy(update={{"tokens": "characters"}}))
words = replace(words, vocabulary=replace(words.vocabulary, has_unknown=True))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(len(encode(words, "\\u0416" * 2**23)))
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
