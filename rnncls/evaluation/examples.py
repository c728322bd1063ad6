"""Which sequences a model is evaluated on, and how a person reads them."""

import math
from collections.abc import Container, Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.config import FilesConfig, SumModConfig
from rnncls.config.ranges import format_ranges
from rnncls.data import Batch, all_sequences, num_sequences, samples
from rnncls.data.cells import SEPARATOR
from rnncls.data.dataset import Dataset
from rnncls.data.files.places import named
from rnncls.data.sequences import rows_of_batches
from rnncls.data.splits import SPLITS
from rnncls.data.subwords import text_of_parts
from rnncls.data.vocabulary import END, Vocabulary, are_integers
from rnncls.errors import DataError, Problem

# If a length has at most so many sequences, all of them are evaluated. The limit admits the longest
# length of the default task: there are 100,000 sequences of 5 decimal digits.
EXHAUSTIVE_LIMIT = 2**17

# So many sequences of a file are sorted by length together. What is written in the order of the
# file waits for the rest of its chunk, and no longer.
CHUNK = 2**16

# Ids, `<unk>` among them, or a text as a person types it.
Readable = str | list[int | str]


class Source(NamedTuple):
    """Where sequences of a file come from, and what their ids mean."""

    files: tuple[str, ...]
    file_numbers: Tensor  # (S,) of all sequences of the split: which of the files it is in
    lines: Tensor  # (S,) of all sequences of the split
    rows: Tensor  # (R,) of the sequences that are evaluated, in that order
    vocabulary: Vocabulary
    tokens: str  # data.tokens


class Examples(NamedTuple):
    """The sequences to evaluate, and what the report says about them."""

    total: int  # number of sequences
    num_tokens: int  # of all sequences; expected where their lengths are drawn
    batches: Iterable[Batch]
    labels: tuple[str, ...]  # the names of the classes
    trained: Container[int] | None  # lengths seen in training; None: unknown
    exhaustive: Container[int]  # lengths of which every sequence is evaluated
    data: str | None  # the name of the split or file; None: generated sequences
    source: Source | None  # None: generated sequences

    def numbers(self, first: int, count: int) -> list[int]:
        """Return the numbers of `count` sequences, of which the `first` is evaluated first.

        They are the rows of a file's split, which rise with its lines. Generated sequences are
        numbered as they are evaluated.
        """
        if self.source is None:
            return list(range(first, first + count))
        return self.source.rows[first : first + count].tolist()

    def file(self, number: int) -> str | None:
        """Return the file of a sequence; None if it was generated."""
        if self.source is None:
            return None
        return self.source.files[int(self.source.file_numbers[number])]

    def line(self, number: int) -> int | None:
        """Return the line of a sequence in its file; None if it was generated."""
        return None if self.source is None else int(self.source.lines[number])

    def readable(self, ids: list[int]) -> Readable:
        """Return a sequence as a person reads it, with `<unk>` for what training lacks.

        Words stand between spaces, characters as they are, ids in a list.
        """
        if self.source is None:
            return [*ids]
        return readable(ids, self.source.vocabulary, self.source.tokens)

    def sum(self, ids: list[int]) -> int | None:
        """Return the sum of a generated sequence, of which the label is the remainder."""
        return sum(ids) if self.source is None else None


def readable(ids: list[int], vocabulary: Vocabulary, kind: str) -> Readable:
    """Return a sequence of a file as a person reads it. `kind` is data.tokens."""
    tokens = [vocabulary.tokens[id] for id in ids]
    if kind == "ids":
        # Python's int() would refuse thousands of digits.
        return [int(token) if are_integers([token]) else token for token in tokens]
    if vocabulary.subwords is not None:
        return text_of_parts(tokens, frozenset({SEPARATOR, END}))
    return ("" if kind == "characters" else " ").join(tokens)


def generated_examples(
    data: SumModConfig, seed: int, lengths: Sequence[int] | None, num_samples: int
) -> Examples:
    """Choose the generated sequences to evaluate; see `evaluate`."""
    labels = tuple(map(str, range(data.num_classes)))
    trained = range(data.min_length, data.max_length + 1)
    chosen = sorted(set(lengths or trained))

    # In logarithms, because the number of sequences of a long length is astronomical.
    bits_per_token = math.log2(data.num_embeddings)
    limit = math.log2(EXHAUSTIVE_LIMIT)
    exhaustive = {length for length in chosen if length * bits_per_token <= limit}

    # The training lengths are too many to enumerate: one sample of them all, as in training.
    if lengths is None and len(exhaustive) < len(trained):
        drawn = samples(data, seed, "test", num_samples)
        # Lengths are uniform.
        num_tokens = num_samples * (data.min_length + data.max_length) // 2
        return Examples(num_samples, num_tokens, drawn, labels, trained, (), None, None)

    total = 0
    num_tokens = 0
    parts: list[Iterable[Batch]] = []
    for length in chosen:
        if length in exhaustive:
            count = num_sequences(data, length)
            parts.append(all_sequences(data, length))
        else:
            # A stream of its own for each length: a sample does not depend on the other lengths.
            of_length = data.model_copy(update={"min_length": length, "max_length": length})
            count = num_samples
            parts.append(samples(of_length, seed, "test", num_samples))
        total += count
        num_tokens += count * length

    batches = chain.from_iterable(parts)
    return Examples(total, num_tokens, batches, labels, trained, exhaustive, None, None)


def require_sizes(dataset: Dataset, sizes: tuple[int, int]) -> None:
    """Raise DataError unless the data has as many (tokens, classes) as the model, `sizes`."""
    # The only trace that a model has of its data, without its checkpoint.
    if (dataset.vocabulary.num_embeddings, dataset.vocabulary.num_classes) != sizes:
        raise DataError(
            Problem(
                "the data is not what this model was trained on",
                next(iter(dataset.files.values()))[0],
                remedy="the old file, or `dataset` from the checkpoint",
                id="D18",
            )
        )


def held_out_examples(
    dataset: Dataset, data: FilesConfig, lengths: Sequence[int] | None
) -> Examples:
    """Take the whole test split, or the validation split if that is empty; see `evaluate`.

    With `lengths`, only its sequences of these lengths. Raises: DataError if there are none.
    """
    # A file that was read for evaluation alone says nothing about training.
    train = dataset.splits.get("train")
    trained = None if train is None else set(train.lengths.tolist())

    name = dataset.held_out()
    split = dataset.splits[name]
    described = f"the {name} split" if name in SPLITS else name
    rows = torch.arange(len(split))
    if lengths is not None:
        rows = rows[torch.isin(split.lengths, torch.tensor(lengths))]
        described = f"{described}, {len(rows):,} of {len(split):,} sequences by their length"
        if not len(rows):
            raise _no_sequences(named(dataset.files[name]), lengths, split.lengths)

    # Chunk by chunk, so that the rows come nearly in the order of the file, and sorted by length
    # within each, so that there is little padding.
    parts: list[Tensor] = []
    for chunk in torch.split(rows, CHUNK):
        parts += rows_of_batches(split, chunk)

    source = Source(
        files=dataset.files[name],
        file_numbers=dataset.file_numbers[name],
        lines=dataset.lines[name],
        rows=torch.cat(parts),
        vocabulary=dataset.vocabulary,
        tokens=data.tokens,
    )
    batches = (split.batch(part) for part in parts)
    labels = dataset.vocabulary.labels
    num_tokens = int(split.lengths_of(rows).sum())
    return Examples(len(rows), num_tokens, batches, labels, trained, (), described, source)


def _no_sequences(file: str, lengths: Sequence[int], present: Tensor) -> DataError:
    return DataError(
        Problem(
            "0 sequences of these lengths",
            file,
            expected=f"some of the lengths {format_ranges(sorted(set(present.tolist())))}",
            found=f"the lengths {format_ranges(lengths)}",
            id="D2",
        )
    )


def unpacked(batch: Batch) -> Iterator[list[int]]:
    """Yield the ids of each sequence of a batch, in its order."""
    padded, _ = pad_packed_sequence(batch.tokens, batch_first=True)  # (B, T)
    for ids, length in zip(padded, batch.lengths.tolist(), strict=True):
        yield ids[:length].tolist()
