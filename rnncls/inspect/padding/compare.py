"""Runs one batch with padding in it, in the ways that are common, and shows which are right.

Packing, which the model itself does, is right as well, and computes no padding at all.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.config import SumModConfig
from rnncls.data.sequences import Sequences
from rnncls.errors import DataError, Problem
from rnncls.inspect.padding.runs import (
    Rectangle,
    gathered_logits,
    masked_logits,
    naive_logits,
    padded_of,
)
from rnncls.inspect.padding.view import PaddingView, Way, quoted
from rnncls.inspect.subject import Subject, own_sequences, require_recurrence
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.logits import rows_together

SHOWN = 8  # sequences in the batch that is shown
SCORED = 2000  # sequences whose labels are predicted in each way

# What keeps the rectangles small enough to be run step by step: the tokens of a sequence, and the
# cells of all sequences that are scored, as if they were padded to the longest.
MOST_TOKENS = 2000
MOST_CELLS = 2**20

SCORED_TOGETHER = 128  # sequences of a batch, each batch padded to its longest

# What keeps the answers of a model with a million classes small: sequences that are scored times
# classes.
MOST_SCORES = 2**28

OTHER_ID = 7  # pads in the third naive way, or the last id of a smaller vocabulary

# Runs the sequences with these numbers (B,); returns their logits (B, N).
Run = Callable[[Sequences, Tensor], Tensor]


class _Method(NamedTuple):
    """A way to run a batch, before it has run."""

    name: str  # as short as the head of a column
    description: str
    is_right: bool  # by how it works
    run: Run


@torch.inference_mode()
def compare_padding(
    subject: Subject, progress: bool = False, data_dir: Path | None = None
) -> PaddingView:
    """Run eight sequences of the model's own data in every way, and score each way on many more.

    The sequences are always the same ones, and their lengths differ if the data has several.

    Raises: ConfigError for a model without recurrent layers. DataError if files are missing or bad,
    or all sequences are too long. CheckpointError if the files have changed.
    """
    require_recurrence(subject, "--padding")
    network = subject.network
    num_scored = max(SHOWN, min(SCORED, rows_together(network, MOST_SCORES)))
    together = min(SCORED_TOGETHER, rows_together(network))
    drawn = own_sequences(subject, num_scored, progress, data_dir)
    sequences = _short_enough(drawn)
    num_too_long = int((drawn.lengths > MOST_TOKENS).sum())

    shown = sequences.select(_rows_shown(sequences.lengths))
    everyone = torch.arange(len(shown))
    alone = torch.cat([_packed_logits(network, shown, row.view(1)) for row in everyone])
    packed = shown.batch(everyone).tokens
    if packed.sorted_indices is None:
        raise ValueError("a packed batch without its order")

    methods = _methods_of(subject)
    ways = [_way_of(method, shown, alone, sequences, together) for method in methods]

    vocabulary = subject.predictor.vocabulary
    ids = [shown.tokens[start:end].tolist() for start, end in pairwise(shown.offsets.tolist())]
    return PaddingView(
        ids=ids,
        tokens=[[vocabulary.tokens[token] for token in of_one] for of_one in ids],
        true=[subject.predictor.labels[label] for label in shown.labels.tolist()],
        labels=subject.predictor.labels,
        alone=alone.cpu(),
        ways=ways,
        batch_sizes=packed.batch_sizes.tolist(),
        order=packed.sorted_indices.tolist(),
        num_scored=len(sequences),
        num_too_long=num_too_long,
        most_tokens=MOST_TOKENS,
        scored_together=together,
        why_id_0=_why_id_0(subject),
        pooling=network.pooling,
    )


# --- which sequences


def _short_enough(sequences: Sequences) -> Sequences:
    """Return the sequences that can be run step by step, as many as make MOST_CELLS padded cells.

    Raises: DataError if all are too long.
    """
    rows = (sequences.lengths <= MOST_TOKENS).nonzero().flatten()
    if not len(rows):
        raise DataError(
            Problem(
                "sequences too long to be padded and run step by step",
                expected=f"some of at most {MOST_TOKENS:,} tokens",
                found=f"at least {int(sequences.lengths.min()):,} in each",
                remedy="a run with data.max_length",
                id="D13",
            )
        )
    longest = int(sequences.lengths_of(rows).max())
    return sequences.select(rows[: max(SHOWN, MOST_CELLS // longest)])


def _rows_shown(lengths: Tensor) -> Tensor:
    """Return which sequences are shown: evenly from the shortest to the longest, in their order."""
    by_length = lengths.argsort(stable=True)
    count = min(SHOWN, len(lengths))
    places = torch.linspace(0, len(lengths) - 1, count).round().long()
    return by_length[places].sort().values


# --- the ways


def _way_of(
    method: _Method, shown: Sequences, alone: Tensor, scored: Sequences, together: int
) -> Way:
    """Run a batch in one way, whose logits of each sequence alone are known, and score the way.

    So many of the sequences that are `scored` are run `together`.
    """
    logits = method.run(shown, torch.arange(len(shown)))
    num_tokens = len(shown.tokens)
    is_padded = method.name != "packed"
    cells = len(shown) * int(shown.lengths.max()) if is_padded else num_tokens
    return Way(
        name=method.name,
        description=method.description,
        is_right=method.is_right,
        logits=logits.cpu(),
        largest_difference=float((logits - alone).abs().max()),
        cells=cells,
        num_padding=cells - num_tokens,
        accuracy=_accuracy(method.run, scored, together),
    )


def _methods_of(subject: Subject) -> list[_Method]:
    """Return the naive ways, then those that are right; the last one is packed."""
    network = subject.network

    def padded(run: Callable[[RNNClassifier, Rectangle], Tensor]) -> Run:
        return lambda sequences, rows: run(network, padded_of(sequences, rows, network.device))

    def naive(padding_id: int | None) -> Run:
        return padded(lambda network, batch: naive_logits(network, batch, padding_id))

    def packed(sequences: Sequences, rows: Tensor) -> Tensor:
        return _packed_logits(network, sequences, rows)

    tokens = subject.predictor.vocabulary.tokens
    other = min(OTHER_ID, len(tokens) - 1)
    with_0 = f"naive, padded with id 0, {quoted(tokens[0])}"
    with_other = f"naive, padded with id {other}, {quoted(tokens[other])}"

    with_zeros = "naive, padded with vectors of zeros"
    gathered = "padded, the state at each own end"
    if network.pooling != "last":
        gathered = "padded, each one's own steps"
    return [
        _Method("id 0", with_0, False, naive(0)),
        _Method("zeros", with_zeros, False, naive(None)),
        _Method(f"id {other}", with_other, False, naive(other)),
        _Method("gather", gathered, True, padded(gathered_logits)),
        _Method("masked", "padded, masked and carried", True, padded(masked_logits)),
        _Method("packed", "packed", True, packed),
    ]


def _why_id_0(subject: Subject) -> str:
    """Return a sentence on what the id 0 means to the model."""
    if isinstance(subject.checkpoint.config.data, SumModConfig):
        if subject.network.pooling != "last":
            return "Id 0 is the digit 0, which adds nothing to a sum, and yet its states count."
        return (
            "Id 0 is the digit 0, which adds nothing to a sum: a model that has learned the sum "
            "keeps its answer while it reads on, by the luck of this task alone."
        )
    vocabulary = subject.predictor.vocabulary
    meaning = "every unknown token" if vocabulary.has_unknown else "a token like any other"
    return f"Id 0 is {quoted(vocabulary.tokens[0])}, {meaning}, and the model reads it as such."


def _packed_logits(network: RNNClassifier, sequences: Sequences, rows: Tensor) -> Tensor:
    """Return the logits (B, N) of the model itself, which packs."""
    logits: Tensor = network(sequences.batch(rows).to(network.device).tokens)
    return logits


def _accuracy(run: Run, sequences: Sequences, together: int) -> float:
    """Return the share of all sequences whose label is predicted, in batches as they come."""
    num_right = 0
    for rows in torch.split(torch.arange(len(sequences)), together):
        logits = run(sequences, rows)
        if not bool(logits.isfinite().all()):
            # What is not a number stands for no label.
            return math.nan
        num_right += int((logits.argmax(1).cpu() == sequences.labels[rows]).sum())
    return num_right / len(sequences)
