"""What a step minimises: the loss of sequences or of their prefixes, in pieces or not."""

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.data import Batch, collate, load_task
from rnncls.model.build import build_model
from rnncls.model.classifier import RNNClassifier
from rnncls.steps.objective import gradients_of_batch
from rnncls.training.fit import fit
from tests.helpers import VARIANTS, config_of, losses, outcome, variant_of

# The quick ones have everything once.
SOME_VARIANTS = [
    name if name in ("max", "together", "prefix") else pytest.param(name, marks=pytest.mark.slow)
    for name in VARIANTS
]

WEIGHTS = torch.tensor([0.5, 1.0, 3.0])
IN_PIECES: list[dict[str, int]] = [
    {},
    {"recompute_every": 1},
    {"recompute_every": 3},
    {"truncate_after": 2},
    {"recompute_every": 2, "truncate_after": 3},
    {"truncate_after": 7},
]


def rows_and_labels(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """Return each sequence of a batch with the labels of its prefixes, in their order."""
    assert batch.prefix_labels is not None
    rows, lengths = pad_packed_sequence(batch.tokens, batch_first=True)
    labels, _ = pad_packed_sequence(
        batch.tokens._replace(data=batch.prefix_labels), batch_first=True
    )
    return [
        (row[:length], of_row[:length])
        for row, of_row, length in zip(rows, labels, lengths.tolist(), strict=True)
    ]


def prefix_loss(model: RNNClassifier, batch: Batch, class_weights: Tensor | None) -> Tensor:
    """Return the mean over prefixes, then over sequences, with each prefix run by itself.

    With class weights it is a weighted mean: a prefix counts by its class and 1 / length.
    """
    total = torch.tensor(0.0)
    divisor = torch.tensor(0.0)
    for row, labels in rows_and_labels(batch):
        for number, label in enumerate(labels, 1):
            logits = model(collate([row[:number]], label.unsqueeze(0)).tokens)
            weight = 1 / len(row) * (1.0 if class_weights is None else class_weights[label])
            total = total + weight * F.cross_entropy(logits, label.unsqueeze(0))
            divisor = divisor + weight
    return total / divisor


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_the_loss_of_prefixes_is_the_mean_of_each_sequence_then_of_all(
    cell: str, class_weights: Tensor | None
) -> None:
    shape = {"cell": cell, "num_layers": 2, "initial_state": "learned", "nonlinearity": "tanh"}
    config = config_of(model=shape, data={"max_length": 7}, train={"objective": "prefix"})
    model = build_model(config)
    assert model.initial_state is not None
    torch.nn.init.normal_(model.initial_state)
    (batch,) = load_task(config).batches(0, 1)

    expected = prefix_loss(model, batch, class_weights)
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = [parameter.grad for parameter in model.parameters()]
    model.eval()
    with torch.no_grad():
        whole = model(batch.tokens)

    for pieces in IN_PIECES:
        train = config.train.model_copy(update=pieces)
        task: Any = SimpleNamespace(
            config=config.model_copy(update={"train": train}), class_weights=class_weights
        )
        model.zero_grad()
        loss, logits = gradients_of_batch(model, batch, task)
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-6)

        found = [parameter.grad for parameter in model.parameters()]
        # Truncated to fewer tokens than there are, the gradient is another one.
        is_other = train.truncate_after is not None and train.truncate_after < 7
        same = [
            torch.allclose(one, other, rtol=1e-4, atol=1e-6)
            for one, other in zip(found, wanted, strict=True)
            if one is not None and other is not None
        ]
        assert len(same) == len(wanted)
        assert all(same) != is_other, pieces


def test_a_long_sequence_weighs_as_much_as_a_short_one() -> None:
    """One sequence of one token, one of many: each has half of the loss."""
    config = config_of(train={"objective": "prefix"})
    model = build_model(config)
    batch = collate([torch.tensor([1]), torch.tensor([2] * 9)], torch.tensor([0, 0]))
    labels = torch.zeros(10, dtype=torch.int64)
    task: Any = SimpleNamespace(config=config, class_weights=None)
    loss, _ = gradients_of_batch(model, batch._replace(prefix_labels=labels), task)

    parts = []
    for row in ([1], [2] * 9):
        rows = [torch.tensor(row[: number + 1]) for number in range(len(row))]
        logits = model(collate(rows, torch.zeros(len(rows))).tokens)
        parts.append(F.cross_entropy(logits, torch.zeros(len(rows), dtype=torch.int64)))
    assert float(loss) == pytest.approx(float(torch.stack(parts).mean().detach()), rel=1e-6)


def test_training_batches_of_generated_data_have_the_running_sums() -> None:
    sequences, prefixes = (
        list(load_task(config_of(train={"objective": objective})).batches(3, 6))
        for objective in ("sequence", "prefix")
    )
    for plain, batch in zip(sequences, prefixes, strict=True):
        assert plain.prefix_labels is None
        assert torch.equal(plain.tokens.data, batch.tokens.data)
        for (row, labels), label in zip(rows_and_labels(batch), batch.labels, strict=True):
            assert labels.tolist() == (row.cumsum(0) % 3).tolist()
            assert labels[-1] == label


def first_row(run_dir: Path, **sections: Any) -> dict[str, float]:
    """Train one step and return what was logged."""
    fit(config_of(**sections), run_dir)
    row: dict[str, float] = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[0])
    return row


@pytest.mark.parametrize("pieces", IN_PIECES[1:])
def test_training_accuracy_is_that_of_whole_sequences(
    pieces: dict[str, int], tmp_path: Path
) -> None:
    """Before the first update both objectives have the same weights, and so the same answers."""
    shape = {"initial_state": "learned", "nonlinearity": "tanh", "init_gain": 1.0}
    train = {"max_steps": 1, "log_every": 1, "batch_size": 64}
    sections = {"model": shape, "data": {"max_length": 7}}
    plain = first_row(tmp_path / "plain", **sections, train=train)
    prefix = first_row(
        tmp_path / "prefix", **sections, train={**train, **pieces, "objective": "prefix"}
    )
    assert prefix["train/accuracy"] == plain["train/accuracy"]
    assert prefix["train/loss"] != pytest.approx(plain["train/loss"], rel=1e-3)


# --- whole runs


@pytest.mark.parametrize(
    ("cell", "bidirectional"),
    [
        ("lstm", False),
        *[
            pytest.param(*case, marks=pytest.mark.slow)
            for case in product(("rnn", "gru", "lstm"), (False, True))
            if case != ("lstm", False)
        ],
    ],
)
def test_a_run_that_truncates_nothing_has_the_bits_of_the_plain_one(
    cell: str, bidirectional: bool, tmp_path: Path
) -> None:
    own = {"cell": cell, "bidirectional": bidirectional}
    # What is truncated is packed, and a plain LSTM would be padded.
    packed = {"layout": "packed"}
    short = {"max_steps": 10}
    for variant in ("last_mean_max", "learned"):
        plain = variant_of(variant, model=own, data=packed, train=short)
        fit(plain, tmp_path / variant / "plain")
        for after in (4, 1000):  # the longest sequence has 4 tokens
            run_dir = tmp_path / variant / str(after)
            train = {**short, "truncate_after": after}
            fit(variant_of(variant, model=own, train=train), run_dir)
            assert outcome(run_dir) == outcome(tmp_path / variant / "plain")


def test_prefixes_that_are_not_truncated_have_the_bits_of_the_plain_run(tmp_path: Path) -> None:
    fit(variant_of("prefix"), tmp_path / "plain")
    for after in (4, 1000):
        fit(variant_of("prefix", train={"truncate_after": after}), tmp_path / str(after))
        assert outcome(tmp_path / str(after)) == outcome(tmp_path / "plain")


@pytest.mark.parametrize("variant", SOME_VARIANTS)
def test_a_run_that_computes_states_again_has_the_losses_of_one_that_keeps_them(
    variant: str, tmp_path: Path
) -> None:
    # Losses of later steps show what gradients the first ones had.
    short = {"max_steps": 8, "log_every": 1}
    expected = losses(
        variant_of(variant, train={**short, "recompute_every": None}), tmp_path / "kept"
    )
    for every in (1, 2):
        train = {**short, "recompute_every": every}
        found = losses(variant_of(variant, train=train), tmp_path / str(every))
        assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("variant", SOME_VARIANTS)
def test_a_truncated_run_begins_as_the_whole_one_and_is_another(
    variant: str, tmp_path: Path
) -> None:
    train = {"truncate_after": 1, "recompute_every": None, "log_every": 1, "max_steps": 8}
    truncated = losses(variant_of(variant, train=train), tmp_path / "truncated")
    train["truncate_after"] = None
    whole = losses(variant_of(variant, train=train), tmp_path / "whole")
    assert truncated[0] == pytest.approx(whole[0], rel=1e-6)
    assert truncated != pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_trains_in_bfloat16(variant: str, tmp_path: Path) -> None:
    train = {"max_steps": 3, "log_every": 1}
    expected = losses(variant_of(variant, train=train), tmp_path / "float32")
    train["precision"] = "bfloat16"  # type: ignore[assignment]
    found = losses(variant_of(variant, train=train), tmp_path / "bfloat16")
    assert found == pytest.approx(expected, rel=0.02)
