"""The synthetic task against its definition.

The batch of a step is a pure function of (seed, split, step).
"""

from collections import Counter
from collections.abc import Iterable
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.config import SumModConfig
from rnncls.data import Batch, all_sequences, batches, num_sequences, samples, sequences, sum_mod

SPLITS: tuple[sum_mod.Split, ...] = ("train", "val", "test")
Example = tuple[tuple[int, ...], int]


def examples_of(stream: Iterable[Batch]) -> list[Example]:
    """(sequence, label) pairs, unpacked by PyTorch."""
    examples = []
    for batch in stream:
        padded, lengths = pad_packed_sequence(batch.tokens, batch_first=True)
        assert torch.equal(lengths, batch.lengths)
        rows = zip(padded.tolist(), lengths.tolist(), batch.labels.tolist(), strict=True)
        examples += [(tuple(row[:length]), label) for row, length, label in rows]
    return examples


tasks = st.builds(
    lambda modulus, max_value, low, extra: SumModConfig(
        modulus=modulus, max_value=max_value, min_length=low, max_length=low + extra
    ),
    st.integers(2, 12),
    st.none() | st.integers(0, 15),
    st.integers(1, 4),
    st.integers(0, 4),
)


@given(tasks, st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_labels_are_the_sum_mod_n_and_digits_and_lengths_are_in_range(
    data: SumModConfig, seed: int
) -> None:
    largest = data.modulus - 1 if data.max_value is None else data.max_value
    for digits, label in examples_of(batches(data, seed, "train", 7, 0, 3)):
        assert label == sum(digits) % data.modulus
        assert data.min_length <= len(digits) <= data.max_length
        assert all(0 <= digit <= largest for digit in digits)


@given(st.integers(0, 600), st.integers(0, 40))
@settings(max_examples=25)
def test_the_batch_of_a_step_does_not_depend_on_where_the_stream_begins(
    start: int, count: int
) -> None:
    data = SumModConfig(modulus=10, max_length=5)
    stream = examples_of(batches(data, 3, "train", 4, 0, start + count))
    assert examples_of(batches(data, 3, "train", 4, start, start + count)) == stream[4 * start :]


def test_large_batches_come_in_smaller_blocks_and_still_depend_on_the_step_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sum_mod, "BLOCK_TOKENS", 3 * 8 * 5)  # three steps a block
    data = SumModConfig(modulus=10, max_length=5)
    whole = examples_of(batches(data, 0, "train", 8, 0, 10))
    assert len(whole) == 80
    assert examples_of(batches(data, 0, "train", 8, 4, 10)) == whole[32:]


def test_splits_seeds_and_steps_are_different_streams() -> None:
    data = SumModConfig(modulus=10, min_length=5, max_length=5)
    streams = [
        tuple(examples_of(batches(data, seed, split, 16, start, start + 1)))
        for seed, split, start in product((0, 1), SPLITS, (0, 1, 256))
    ]
    streams += [tuple(examples_of(samples(data, 0, split, 16))) for split in SPLITS[1:]]
    assert len(set(streams)) == 2 * 3 * 3 + 2


def test_digits_and_lengths_are_uniform() -> None:
    """Pearson's chi-square is below its 99.99 % quantile, for a fixed seed.

    That is 23.5 for 4 degrees of freedom, and 33.7 for 9.
    """
    data = SumModConfig(modulus=10, min_length=1, max_length=5)
    drawn = [digits for digits, _ in examples_of(samples(data, 0, "test", 20_000))]
    lengths = Counter(map(len, drawn))
    digits = Counter(digit for row in drawn for digit in row)
    for counts, limit in ((lengths, 23.5), (digits, 33.7)):
        expected = counts.total() / (5 if counts is lengths else 10)
        assert sum((n - expected) ** 2 / expected for n in counts.values()) < limit


def test_samples_are_as_many_as_asked_for_and_always_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sequences, "BATCH_TOKENS", 100)
    monkeypatch.setattr(sum_mod, "LEAST_ROWS", 1)
    data = SumModConfig(modulus=10, max_length=5)
    assert [len(batch.labels) for batch in samples(data, 0, "val", 45)] == [20, 20, 5]
    assert examples_of(samples(data, 0, "val", 45)) == examples_of(samples(data, 0, "val", 45))


@pytest.mark.parametrize(("base", "length"), [(10, 1), (10, 3), (3, 4), (2, 7), (1, 3)])
def test_all_sequences_are_each_sequence_once(
    base: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequences, "BATCH_TOKENS", 50)  # several batches
    data = SumModConfig(modulus=4, max_value=base - 1)
    expected = [(digits, sum(digits) % 4) for digits in product(range(base), repeat=length)]
    assert examples_of(all_sequences(data, length)) == expected
    assert num_sequences(data, length) == len(expected)
