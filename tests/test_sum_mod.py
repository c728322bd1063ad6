"""The synthetic task against its definition.

The batch of a step is a pure function of (seed, split, step).
"""

from collections import Counter
from collections.abc import Iterable
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.config import SumModConfig
from rnncls.data import Batch, all_sequences, batches, num_sequences, samples, sequences, sum_mod
from rnncls.seeds import mix

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
    lambda modulus, max_value, low, extra, share: SumModConfig(
        modulus=modulus,
        max_value=max_value,
        min_length=low,
        max_length=low + extra,
        repeat_share=share,
    ),
    st.integers(2, 12),
    st.none() | st.integers(0, 15),
    st.integers(1, 4),
    st.integers(0, 4),
    st.sampled_from([0.0, 0.5, 1.0]),
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


@given(st.integers(0, 600), st.integers(0, 40), st.sampled_from([0.0, 0.5]))
@settings(max_examples=25)
def test_the_batch_of_a_step_does_not_depend_on_where_the_stream_begins(
    start: int, count: int, share: float
) -> None:
    data = SumModConfig(modulus=10, max_length=5, repeat_share=share)
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


# --- sequences that repeat digits


def repeating(share: float, **keys: int) -> SumModConfig:
    """Return a task of 10 digits of whose training sequences a share repeats digits."""
    values: dict[str, Any] = {"modulus": 10, "max_length": 5, "repeat_share": share, **keys}
    return SumModConfig(**values)


def test_repeated_digits_are_those_of_the_rule() -> None:
    digits = torch.randint(10, (200, 9), generator=torch.Generator().manual_seed(1))
    kinds = torch.rand(200, generator=torch.Generator().manual_seed(2))
    found = sum_mod.repeated(digits, kinds, 0.6, torch.Generator().manual_seed(3))

    numbers = torch.rand(200, 9, generator=torch.Generator().manual_seed(3)).tolist()
    expected = []
    for row, kind, chances in zip(digits.tolist(), kinds.tolist(), numbers, strict=True):
        new: list[int] = []
        for digit, chance in zip(row, chances, strict=True):
            repeated = digit
            if kind < 0.2:
                repeated = 0
            elif kind < 0.4:
                repeated = new[-1] if new else digit
            elif kind < 0.6:
                repeated = new[-2] if len(new) > 1 else digit
            new.append(repeated if new and chance < 0.75 else digit)
        expected.append(new)
    assert found.tolist() == expected


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_long_sequences_repeats_digits(share: float) -> None:
    """Every count is within 5 standard deviations of what is expected, for a fixed seed."""
    length = 300
    data = repeating(share, min_length=length, max_length=length)
    drawn = [digits for digits, _ in examples_of(batches(data, 4, "train", 600, 0, 2))]
    rows = torch.tensor(drawn)
    is_zero = rows[:, 1:] == 0
    is_last = rows[:, 1:] == rows[:, :-1]
    is_last_but_one = rows[:, 2:] == rows[:, :-2]

    # Zeros stand in .775 of the places of one kind, and in .1 of those of the others; a digit is
    # the one before it, or the last but one, in .775 of the places of their kinds.
    zeros = is_zero.double().mean(1) > 0.5
    last = (is_last.double().mean(1) > 0.5) & ~zeros
    last_but_one = (is_last_but_one.double().mean(1) > 0.5) & ~zeros & ~last
    near(int(zeros.sum()), len(rows), share / 3)
    near(int(last.sum()), len(rows), share / 3)
    near(int(last_but_one.sum()), len(rows), share / 3)
    near(int(is_zero[zeros].sum()), is_zero[zeros].numel(), 0.775)
    near(int(is_last[last].sum()), is_last[last].numel(), 0.775)
    turns = is_last_but_one[last_but_one]
    near(int(turns.sum()), turns.numel(), 0.775)
    uniform = ~zeros & ~last & ~last_but_one
    near(int(is_last[uniform].sum()), is_last[uniform].numel(), 0.1)
    near(int(is_last_but_one[uniform].sum()), is_last_but_one[uniform].numel(), 0.1)

    # What is not a repetition is any digit: the first one, and those unlike 0 or the last.
    others = rows[zeros][:, 1:][~is_zero[zeros]]
    changes = ((rows[:, 1:] - rows[:, :-1]) % 10)[last][~is_last[last]]
    for digit in range(10):
        near(int((rows[:, 0] == digit).sum()), len(rows), 0.1)
        if digit > 0:
            near(int((others == digit).sum()), len(others), 1 / 9)
            near(int((changes == digit).sum()), len(changes), 1 / 9)


def near(count: int, of: int, rate: float) -> None:
    """A binomial count is within 5 standard deviations of its mean."""
    assert abs(count - of * rate) <= 5 * (of * rate * (1 - rate)) ** 0.5


def test_without_a_share_digits_are_those_of_always() -> None:
    data = repeating(0.0)
    generator = torch.Generator().manual_seed(mix(6, "train", 0))
    lengths = torch.randint(1, 6, (256 * 4,), generator=generator)
    digits = torch.randint(10, (256 * 4, 5), generator=generator)
    rows = zip(digits.tolist(), lengths.tolist(), strict=True)
    expected = [tuple(row[:length]) for row, length in rows]
    found = [row for row, _ in examples_of(batches(data, 6, "train", 4, 0, 256))]
    assert found == expected

    # With one, sequences have the lengths that they have without.
    again = [row for row, _ in examples_of(batches(repeating(0.5), 6, "train", 4, 0, 256))]
    assert again != found
    assert [len(row) for row in again] == lengths.tolist()


def test_what_is_evaluated_does_not_repeat_digits() -> None:
    always, never = repeating(1.0), repeating(0.0)
    for split in SPLITS[1:]:
        found, expected = (examples_of(samples(data, 0, split, 50)) for data in (always, never))
        assert found == expected
        found, expected = (
            examples_of(batches(data, 0, split, 8, 0, 3)) for data in (always, never)
        )
        assert found == expected
    assert examples_of(all_sequences(always, 2)) == examples_of(all_sequences(never, 2))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_rows_of_a_draw_do_not_depend_on_which_are_wanted(share: float) -> None:
    data = repeating(0.0)

    def drawn(wanted: slice = sum_mod.ALL) -> sum_mod.DigitRows:
        return sum_mod.draw(data, 60, torch.Generator().manual_seed(5), wanted, share)

    whole = drawn()
    for wanted in (slice(0, 1), slice(7, 20), slice(20, 60), slice(59, 60), slice(0, 60)):
        for part, expected in zip(drawn(wanted), whole, strict=True):
            assert torch.equal(part, expected[wanted])


def test_blocks_with_repeats_have_the_sequences_of_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sum_mod, "BLOCK_TOKENS", 3 * 8 * 5)  # three steps a block
    data = repeating(0.5)
    whole = examples_of(batches(data, 0, "train", 8, 0, 11))
    for start, stop in ((0, 11), (1, 2), (4, 11), (5, 9)):
        found = []
        for block in sum_mod.blocks(data, 0, "train", 8, start, stop):
            found += examples_of(block.batch(step) for step in range(block.num_steps))
        assert found == whole[8 * start : 8 * stop]
        assert examples_of(batches(data, 0, "train", 8, start, stop)) == found


def test_prefixes_of_repeated_digits_are_labelled_with_their_sums() -> None:
    data = repeating(0.7, max_length=9)
    plain = batches(data, 2, "train", 16, 0, 3)
    labelled = batches(data, 2, "train", 16, 0, 3, with_prefix_labels=True)
    for batch, same in zip(labelled, plain, strict=True):
        assert batch.prefix_labels is not None
        assert torch.equal(batch.tokens.data, same.tokens.data)
        digits, lengths = pad_packed_sequence(batch.tokens, batch_first=True)
        labels, _ = pad_packed_sequence(
            batch.tokens._replace(data=batch.prefix_labels), batch_first=True
        )
        rows = zip(digits.tolist(), labels.tolist(), lengths.tolist(), strict=True)
        for row, of_prefixes, length in rows:
            sums = [sum(row[:end]) % 10 for end in range(1, length + 1)]
            assert of_prefixes[:length] == sums
