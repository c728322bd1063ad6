"""Which layout eager steps take on the CPU: a function of the config and the data."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.data import load_task
from rnncls.steps.eager import layout_of
from tests.helpers import config_of, files_config

CPU = torch.device("cpu")
LARGE = {"batch_size": 64, "hidden_size": 64}  # a time step of 4,096 numbers
SMALL = {"batch_size": 63, "hidden_size": 64}


def layout(
    cell: str, lengths: tuple[int, int], batch_size: int, hidden_size: int, **sections: Any
) -> str:
    """The layout that auto takes for generated sequences."""
    config = config_of(
        data={"min_length": lengths[0], "max_length": lengths[1], **sections.pop("data", {})},
        model={"cell": cell, "hidden_size": hidden_size, **sections.pop("model", {})},
        train={"batch_size": batch_size, **sections.pop("train", {})},
        **sections,
    )
    return layout_of(load_task(config), CPU)


@pytest.mark.parametrize(
    ("cell", "lengths", "size", "expected"),
    [
        # An LSTM is packed only where steps are large and batches have much padding.
        ("lstm", (2, 50), LARGE, "packed"),
        ("lstm", (2, 50), SMALL, "padded"),
        ("lstm", (34, 50), LARGE, "padded"),
        # A plain cell is padded only where sequences are short and steps are small.
        ("rnn", (2, 5), SMALL, "padded"),
        ("rnn", (2, 5), LARGE, "packed"),
        ("rnn", (2, 6), SMALL, "packed"),
        ("gru", (2, 5), SMALL, "packed"),
        ("gru", (5, 5), LARGE, "packed"),
    ],
)
def test_auto_takes_the_layout_that_is_faster(
    cell: str, lengths: tuple[int, int], size: dict[str, int], expected: str
) -> None:
    assert layout(cell, lengths, **size) == expected


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_where_padding_cannot_be_batches_are_packed(cell: str) -> None:
    lengths = (5, 5)
    assert layout(cell, lengths, **SMALL) == "padded"
    assert layout(cell, lengths, **SMALL, model={"bidirectional": True}) == "packed"
    assert layout(cell, lengths, **SMALL, train={"objective": "prefix"}) == "packed"
    assert layout(cell, lengths, **SMALL, train={"recompute_every": 2}) == "packed"
    assert layout(cell, lengths, **SMALL, train={"truncate_after": 2}) == "packed"
    assert layout(cell, lengths, **SMALL, train={"precision": "bfloat16"}) == "packed"
    # Who asks for a layout gets it.
    assert layout(cell, lengths, **SMALL, data={"layout": "packed"}) == "packed"
    assert layout("gru", lengths, **SMALL, data={"layout": "padded"}) == "padded"


def test_the_share_of_tokens_in_generated_batches_is_the_one_that_they_have() -> None:
    config = config_of(data={"min_length": 2, "max_length": 9}, train={"batch_size": 3})
    task = load_task(config)
    tokens = 0
    cells = 0
    for batch in task.batches(0, 4000):
        tokens += int(batch.lengths.sum())
        cells += len(batch.lengths) * int(batch.lengths.max())
    # Four standard deviations of this mean are 0.006.
    assert tokens / cells == pytest.approx(task.filled, abs=0.01)


def test_the_share_of_tokens_in_a_file_depends_on_batching_and_not_on_the_seed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "rows.jsonl"
    # Each length from 1 to 8, eight times.
    rows = [{"sequence": [3] * (1 + number // 8), "label": number % 2} for number in range(64)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}

    bucketed = load_task(files_config(path, batching="bucket", **options))
    assert bucketed.filled == 1
    shuffled = load_task(files_config(path, **options))
    assert shuffled.filled < 0.7
    other = shuffled.config.model_copy(update={"seed": 7})
    assert load_task(other).filled == shuffled.filled
