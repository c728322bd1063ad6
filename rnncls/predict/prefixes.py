"""What a model says after each token of a sequence, as if it ended there.

The states of a sequence are those of all its prefixes: one pass gives all answers.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnncls.data.batches import ranks_of
from rnncls.errors import ConfigError, Problem
from rnncls.model.cells import State
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import NO_KEYS
from rnncls.predict.logits import likeliest, packed, packed_alone, rows_together

# Tokens whose states are in memory together, as where the model itself reads piece by piece.
MOST_TOKENS = 2**13


class Prefixes(NamedTuple):
    """The answers after some tokens of a sequence, one behind the other; on the CPU.

    Both are (R, top_k), the likeliest class first.
    """

    classes: Tensor  # their numbers, int32
    probabilities: Tensor


def require_prefixes(network: RNNClassifier, where: str) -> None:
    """Raise ConfigError, which names the key, if a model's answer needs the whole sequence."""
    if not network.is_recurrent:
        wanted = "model.cell: rnn, lstm or gru"
        found = "model.cell: none"
    elif network.skip:
        wanted = "model.skip: false"
        found = "model.skip: true"
    elif network.num_directions == 2:
        wanted = "model.bidirectional: false"
        found = "model.bidirectional: true"
    elif network.pooling != "last":
        wanted = "model.pooling: last"
        found = f"model.pooling: {network.pooling}"
    else:
        return

    raise ConfigError(
        Problem(
            "an answer after each token, of a model that needs the whole sequence",
            where,
            expected=f"a run with {wanted}",
            found=found,
            remedy="each prefix as a sequence of its own",
            id="C17",
        )
    )


def prefixes_of(
    network: RNNClassifier, ids: Sequence[Sequence[int]], top_k: int
) -> Iterator[Iterator[Prefixes]]:
    """Yield what is said after each token of each sequence, in their order. None is empty.

    The answers to all short sequences are in memory together. A long one is read while its own are
    asked for, a part of it at a time.
    """
    most = min(MOST_TOKENS, rows_together(network))
    answers: dict[int, Prefixes] = {}
    for indices in _batches_of_short(ids, most):
        batch = [ids[index] for index in indices]
        answers |= zip(indices, _prefixes_of_batch(network, batch, top_k), strict=True)

    for index, sequence in enumerate(ids):
        if index in answers:
            yield iter([answers.pop(index)])
        else:
            yield _prefixes_of_long(network, sequence, most, top_k)


def _batches_of_short(ids: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Yield the numbers of sequences that are run together: of at most `most` tokens in all."""
    # Sequences of similar lengths have many rows in each time step, and few time steps.
    batch: list[int] = []
    num_tokens = 0
    for index in sorted(range(len(ids)), key=lambda index: len(ids[index])):
        length = len(ids[index])
        if length > most:
            break
        if num_tokens + length > most:
            yield batch
            batch = []
            num_tokens = 0
        batch.append(index)
        num_tokens += length
    if batch:
        yield batch


@torch.inference_mode()
def _prefixes_of_batch(
    network: RNNClassifier, ids: Sequence[Sequence[int]], top_k: int
) -> list[Prefixes]:
    """Return the answers to B sequences, which are run together."""
    tokens = packed(ids)
    moved = tokens.to(network.device)  # type: ignore[arg-type]  # torch's stub omits devices
    logits = network.prefix_logits(moved)
    classes, probabilities = _on_cpu(logits, top_k)

    # From time step by time step to sequence by sequence, longest first.
    order = ranks_of(tokens.batch_sizes).argsort(stable=True)
    lengths = sorted(map(len, ids), reverse=True)
    of_ranks = (torch.split(column[order], lengths) for column in (classes, probabilities))
    by_rank = [Prefixes(*part) for part in zip(*of_ranks, strict=True)]
    if tokens.unsorted_indices is None:
        return by_rank
    return [by_rank[rank] for rank in tokens.unsorted_indices.tolist()]


@torch.inference_mode()
def _prefixes_of_long(
    network: RNNClassifier, ids: Sequence[int], most: int, top_k: int
) -> Iterator[Prefixes]:
    """Yield the answers to one sequence, `most` tokens at a time."""
    # N-grams and positions are those of the whole sequence: of a part, their rows are read.
    state: State | None = None
    array = torch.from_numpy(np.asarray(ids, dtype=np.int64))
    tokens = packed_alone(array.to(network.device))
    whole = network.token_rows(tokens, NO_KEYS)
    for rows in zip(*(torch.split(row, most) for row in whole), strict=True):
        part = packed_alone(rows[0])
        start = network.start_state(part, state)
        outputs, state = network.run(rows, part.batch_sizes, start)
        yield Prefixes(*_on_cpu(network.head(outputs), top_k))


def _on_cpu(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    classes, probabilities = likeliest(logits, top_k)
    return classes.int().cpu(), probabilities.cpu()
