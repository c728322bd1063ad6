"""Reports against counting by hand."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from rnncls.config import Config
from rnncls.data import batches
from rnncls.errors import ConfigError
from rnncls.evaluation.evaluate import evaluate
from rnncls.evaluation.report import Report
from rnncls.evaluation.scores import score
from rnncls.model.classifier import build_model
from tests.helpers import config_of, data_of


class Oracle(nn.Module):
    """Knows the answer, except for sequences that contain `blind`: those it calls 0."""

    def __init__(self, modulus: int, blind: int = -1) -> None:
        super().__init__()
        self.modulus, self.blind = modulus, blind
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
