"""Padding and packing keep every length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.data import Batch, collate, pack
from rnncls.errors import DataError

sequences = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=9)


def batch_of(rows: list[list[int]]) -> Batch:
    return collate([torch.tensor(row) for row in rows], torch.arange(len(rows)))


@given(sequences)
def test_a_batch_gives_back_the_sequences_in_their_order(rows: list[list[int]]) -> None:
    batch = batch_of(rows)
    padded, lengths = pad_packed_sequence(batch.tokens, batch_first=True)
    assert [padded[i, : lengths[i]].tolist() for i in range(len(rows))] == rows
    assert batch.lengths.tolist() == [len(row) for row in rows]
    assert batch.labels.tolist() == list(range(len(rows)))


@given(sequences)
def test_packed_data_holds_real_tokens_only_step_by_step_longest_first(
    rows: list[list[int]],
) -> None:
    tokens = batch_of(rows).tokens
    by_length = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    assert tokens.sorted_indices is not None
    order = tokens.sorted_indices.tolist()
    assert [len(rows[i]) for i in order] == [len(rows[i]) for i in by_length]
    longest = len(rows[order[0]])
    assert tokens.data.tolist() == [
        rows[i][t] for t in range(longest) for i in order if t < len(rows[i])
    ]
    assert tokens.batch_sizes.tolist() == [
        sum(t < len(row) for row in rows) for t in range(longest)
    ]


@given(sequences, st.integers(0, 3), st.integers(-5, 50))
def test_pack_never_reads_what_stands_behind_a_length(
    rows: list[list[int]], extra: int, filler: int
) -> None:
    width = max(map(len, rows)) + extra
    padded = torch.tensor([row + [filler] * (width - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    packed, collated = pack(padded, lengths, torch.arange(len(rows))).tokens, batch_of(rows).tokens
    for one, other in zip(packed, collated, strict=True):
        assert isinstance(one, Tensor)
        assert isinstance(other, Tensor)
        assert torch.equal(one, other)


def test_lengths_and_batch_sizes_stay_on_the_cpu() -> None:
    moved = batch_of([[1, 2], [3]]).to(torch.device("meta"))
    assert moved.tokens.data.device.type == moved.labels.device.type == "meta"
    assert moved.lengths.device.type == moved.tokens.batch_sizes.device.type == "cpu"


@pytest.mark.row("D9")
def test_an_empty_sequence_is_a_clear_error() -> None:
    with pytest.raises(DataError, match="sequence 1 of the batch is empty") as caught:
        batch_of([[1], [], [2, 3]])
    assert caught.value.exit_code == 3
    with pytest.raises(DataError, match="sequence 0 of the batch is empty"):
        pack(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([0, 2]), torch.zeros(2))


@pytest.mark.row("D2", "D10")
def test_no_sequences_and_a_length_beyond_the_padding_are_clear_errors() -> None:
    with pytest.raises(DataError, match="without sequences"):
        collate([], torch.zeros(0))
    with pytest.raises(DataError, match="sequence 1 of the batch has length 4"):
        pack(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([1, 4]), torch.zeros(2))
