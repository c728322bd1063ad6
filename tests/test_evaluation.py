"""Reports against counting by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from rnncls.config import Config
from rnncls.data import batches, collate
from rnncls.errors import ConfigError
from rnncls.evaluation.calibration import shuffled_rows
from rnncls.evaluation.evaluate import evaluate
from rnncls.evaluation.report import Report
from rnncls.evaluation.scores import score
from rnncls.model.build import build_model
from rnncls.model.classifier import RNNClassifier
from tests.helpers import config_of, data_of, files_config, some_rows, write_jsonl


class Oracle(nn.Module):
    """Knows the answer, except for sequences that contain `blind`: those it calls 0."""

    def __init__(self, modulus: int, blind: int = -1) -> None:
        super().__init__()
        self.modulus, self.blind = modulus, blind
        self.num_positions = None
        self.device = torch.device("cpu")

    def forward(self, tokens: PackedSequence) -> Tensor:
        assert not self.training
        padded, _ = pad_packed_sequence(tokens, batch_first=True)
        answer = padded.sum(1) % self.modulus * ~(padded == self.blind).any(1)
        return 5.0 * nn.functional.one_hot(answer, self.modulus)


def report_of(
    config: Config, blind: int = -1, lengths: list[int] | None = None, samples: int = 500
) -> Report:
    model = Oracle(data_of(config).modulus, blind)
    return evaluate(model, config, lengths, samples, confusion=True)  # type: ignore[arg-type]


def test_a_small_input_space_is_evaluated_exhaustively() -> None:
    report = report_of(config_of(data={"modulus": 10, "min_length": 1, "max_length": 5}), blind=7)
    assert report.exhaustive
    assert report.examples == 111_110
    assert [row.examples for row in report.by_length] == [10, 100, 1000, 10_000, 100_000]
    # The model is wrong where a 7 occurs and the sum is not 0 mod 10. Of length 1, that is the one
    # sequence 7; of length 2, 19 sequences contain a 7, and 37 and 73 sum to 10.
    assert [row.errors for row in report.by_length][:2] == [1, 17]
    assert report.errors == sum(row.errors for row in report.by_length)
    assert report.accuracy == 1 - report.errors / 111_110
    assert report.chance == 0.1
    assert report.majority == pytest.approx(0.1)
    assert all(row.trained and row.exhaustive for row in report.by_length)
    assert report.loss == pytest.approx(math.log(math.exp(5) + 9) - 5 * report.accuracy)


def test_the_confusion_matrix_and_the_wilson_interval_agree_with_the_counts() -> None:
    report = report_of(config_of(data={"modulus": 3, "max_length": 4}), blind=2)
    assert report.confusion is not None
    matrix = torch.tensor(report.confusion)
    assert int(matrix.sum()) == report.examples == 3 + 9 + 27 + 81
    assert int(matrix.diagonal().sum()) == report.examples - report.errors
    assert matrix.sum(1).tolist() == [40, 40, 40]
    assert int(matrix[1:, 0].sum()) == report.errors
    low, high = report.ci95
    assert low < report.accuracy < high


def test_lengths_beyond_training_are_sampled_and_marked() -> None:
    report = report_of(config_of(data={"modulus": 10, "max_length": 5}), lengths=[6, 2, 40, 2])
    rows = [
        (row.length, row.examples, row.errors, row.trained, row.exhaustive)
        for row in report.by_length
    ]
    assert rows == [(2, 100, 0, True, True), (6, 500, 0, False, False), (40, 500, 0, False, False)]
    assert not report.exhaustive


def test_a_large_training_range_is_sampled_as_training_draws_it() -> None:
    report = report_of(
        config_of(data={"modulus": 10, "min_length": 1, "max_length": 30}), samples=3000
    )
    assert report.examples == 3000
    assert not any(row.exhaustive for row in report.by_length)
    assert [row.length for row in report.by_length] == list(range(1, 31))
    assert all(60 <= row.examples <= 140 for row in report.by_length)


def test_the_sample_of_a_length_does_not_depend_on_the_other_lengths() -> None:
    model = build_model(config_of(data={"modulus": 10}))
    config = config_of(data={"modulus": 10})
    alone = evaluate(model, config, [20], 300).by_length[0]
    among = evaluate(model, config, [6, 20, 30], 300).by_length[1]
    assert alone == among
    assert 0 < alone.errors < 300


def test_a_confusion_matrix_of_very_many_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="too many classes"):
        report_of(config_of(data={"modulus": 2000, "max_value": 1}))


def test_a_very_long_length_is_not_enumerated() -> None:
    """Also not counted: 2 to the power of 100,000 is a number nobody needs."""
    report = report_of(config_of(data={"modulus": 2}), lengths=[17, 18, 5000], samples=3)
    assert [(row.examples, row.exhaustive) for row in report.by_length] == [
        (2**17, True),
        (3, False),
        (3, False),
    ]


def test_scoring_puts_the_training_mode_back_and_draws_no_random_number() -> None:
    config = config_of(model={"num_layers": 2, "dropout": 0.5})
    model = build_model(config)
    before = torch.get_rng_state()
    first = score(model, batches(data_of(config), 0, "val", 8, 0, 3))
    second = score(model, batches(data_of(config), 0, "val", 24, 0, 1))
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert len(first.labels) == len(second.labels) == 24
    assert torch.equal(
        first.predictions, score(model, batches(data_of(config), 0, "val", 8, 0, 3)).predictions
    )


# --- calibration and shuffling


class FirstToken(nn.Module):
    """Answers with the first token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.device = torch.device("cpu")
        self.num_positions = None
        self.seen: list[list[int]] = []

    def forward(self, tokens: PackedSequence) -> Tensor:
        padded, lengths = pad_packed_sequence(tokens, batch_first=True)
        self.seen += [row[:length].tolist() for row, length in zip(padded, lengths, strict=True)]
        return 3.0 * nn.functional.one_hot(padded[:, 0], 10)


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    """The oracle has one confidence, whatever it says: one bin."""
    report = report_of(config_of(data={"modulus": 10, "min_length": 1, "max_length": 3}), blind=7)
    confidence = math.exp(5) / (math.exp(5) + 9)
    assert report.ece == pytest.approx(abs(report.accuracy - confidence), abs=1e-6)
    assert f"expected calibration error: {report.ece:.4f}; predictions" in report.to_text()


def test_a_model_that_knows_the_sum_survives_shuffling_and_one_of_the_first_token_does_not() -> (
    None
):
    config = config_of(data={"modulus": 10, "min_length": 1, "max_length": 3})
    assert report_of(config).shuffled == 1.0
    # Right or wrong: what it calls 0 it calls 0 in any order.
    assert report_of(config, blind=7).shuffled == 1.0

    first = FirstToken()
    report = evaluate(first, config)  # type: ignore[arg-type]
    assert report.shuffled is not None
    assert 0.2 < report.shuffled < 0.35
    # All 1,110 sequences are seen, and again the 825 or so that a shuffle changes.
    assert 1110 + 700 < len(first.seen) < 1110 + 950


def test_the_share_that_survives_is_that_of_the_sequences_that_changed() -> None:
    """Counted again from what the model was shown."""
    config = config_of(data={"modulus": 10, "min_length": 2, "max_length": 2})
    first = FirstToken()
    report = evaluate(first, config)  # type: ignore[arg-type]
    shown, shuffled = first.seen[:100], first.seen[100:]
    assert shown == [[a, b] for a in range(10) for b in range(10)]
    # Reversed they have another first token; those of two equal tokens are not shuffled.
    assert all(a != b for a, b in shuffled)
    assert 30 < len(shuffled) < 60
    assert report.shuffled == 0.0


def test_shuffles_are_the_same_each_time_and_keep_each_sequence_its_tokens() -> None:
    sequences = [torch.tensor(ids) for ids in ([3], [5, 5, 5], [1, 2, 3, 4, 5, 6], [7, 8])] * 50
    batch = collate(sequences, torch.arange(200))

    def draw(seed: int, share: float = 1.0) -> tuple[list[int], list[list[int]]]:
        rows, shuffled = shuffled_rows(batch, share, torch.Generator().manual_seed(seed))
        assert shuffled is not None
        assert shuffled.labels.tolist() == rows.tolist()
        padded, lengths = pad_packed_sequence(shuffled.tokens, batch_first=True)
        found = [row[:length].tolist() for row, length in zip(padded, lengths, strict=True)]
        return rows.tolist(), found

    rows, found = draw(0)
    assert draw(0) == (rows, found)
    assert draw(1) != (rows, found)
    for row, ids in zip(rows, found, strict=True):
        assert sorted(ids) == sequences[row].tolist()
        assert ids != sequences[row].tolist()
    assert {row % 4 for row in rows} == {2, 3}
    assert sum(row % 4 == 2 for row in rows) == 50
    assert {tuple(ids) for ids in found if len(ids) == 2} == {(8, 7)}

    assert 25 < len(draw(0, share=0.5)[0]) < 50
    assert shuffled_rows(batch, 0.0, torch.Generator())[1] is None
    short = collate([torch.tensor([1]), torch.tensor([2, 2])], torch.zeros(2))
    assert shuffled_rows(short, 1.0, torch.Generator())[1] is None


def test_of_many_sequences_few_are_shuffled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnncls.evaluation.calibration.MOST_SHUFFLED", 200)
    first = FirstToken()
    config = config_of(data={"modulus": 10, "min_length": 9, "max_length": 9})
    evaluate(first, config, num_samples=5000)  # type: ignore[arg-type]
    assert 5000 + 140 < len(first.seen) < 5000 + 260


def test_what_cannot_be_shuffled_has_no_share(tmp_path: Path) -> None:
    report = report_of(config_of(data={"modulus": 10, "max_length": 3}), lengths=[1])
    assert report.shuffled is None
    assert report.to_json()["shuffled"] is None
    assert "shuffling" not in report.to_text()

    # The order of words matters to most models of text.
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(100))
    config = files_config(path)
    report = evaluate(RNNClassifier(6, 3), config)
    assert report.shuffled is None
    assert report.to_text().splitlines()[3] == f"expected calibration error: {report.ece:.4f}"


def test_an_evaluation_is_the_same_each_time_and_has_null_for_no_number() -> None:
    config = config_of(data={"modulus": 10})
    model = build_model(config)
    before = torch.get_rng_state()
    first = evaluate(model, config).to_json()
    assert evaluate(model, config).to_json() == first
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < first["shuffled"] <= 1

    torch.nn.init.constant_(model.head.bias, math.nan)
    content = evaluate(model, config).to_json()
    assert content["ece"] is content["loss"] is None
    assert "NaN" not in json.dumps(content)
