"""The predictions and losses of a model over batches."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.data import Batch
from rnncls.model.classifier import RNNClassifier
from rnncls.model.losses import sequence_losses
from rnncls.system.distributed import World

# Gives the logits (B, N) of packed ids: a model, or another way of computing the same.
LogitsOf = Callable[[PackedSequence], Tensor]


class Scored(NamedTuple):
    """What a model says about one batch of B sequences. Only the batch is always on the CPU."""

    batch: Batch
    logits: Tensor  # (B, N)
    predictions: Tensor  # (B,)
    losses: Tensor  # (B,) cross-entropy in nats


class Scores(NamedTuple):
    """The predictions for R sequences, beside the truth. All are (R,) and on the CPU."""

    lengths: Tensor
    labels: Tensor
    predictions: Tensor
    losses: Tensor  # cross-entropy in nats

    def wrong(self) -> Tensor:
        """Return which predictions count as errors, (R,) bool: also those of logits with NaN."""
        # argmax of NaN is some class, which may be the right one by chance.
        return (self.predictions != self.labels) | ~self.losses.isfinite()


def score(
    model: RNNClassifier, batches: Iterable[Batch], logits_of: LogitsOf | None = None
) -> Scores:
    """Run the model over at least one batch in evaluation mode, then restore its training mode.

    `logits_of` gives its logits, if it is not the model itself that computes them.
    """
    with closing(scored(model, batches, logits_of)) as parts:
        return gather(parts)


@torch.inference_mode()
def scored(
    model: RNNClassifier,
    batches: Iterable[Batch],
    logits_of: LogitsOf | None = None,
    world: World | None = None,
) -> Generator[Scored, None, None]:
    """Run the model over batches in evaluation mode, and yield what it says about each of them.

    `logits_of` gives its logits, if it is not the model itself that computes them. With other
    processes, in `world`, each runs the model over some of the batches, and all of them yield all.
    Whoever stops early closes the generator, which restores the model's training mode.
    """
    # Training validates between two steps, and must find its dropout switched on again.
    was_training = model.training
    model.eval()
    try:
        for batch, logits in _with_logits(model, batches, logits_of or model, world):
            losses = sequence_losses(logits, batch.labels.to(model.device))
            yield Scored(batch, logits, logits.argmax(1), losses)
    finally:
        model.train(was_training)


def _with_logits(
    model: RNNClassifier, batches: Iterable[Batch], logits_of: LogitsOf, world: World | None
) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the batches with their logits (B, N)."""
    remaining = iter(batches)
    if world is None:
        for batch in remaining:
            yield batch, logits_of(batch.to(model.device).tokens)
        return

    # Process r has number r of each turn. Whole batches, so that a sequence has the same logits as
    # if there were one process.
    while turn := [*islice(remaining, world.size)]:
        mine = None
        if world.rank < len(turn):
            mine = logits_of(turn[world.rank].to(model.device).tokens)
        counts = [len(batch.labels) for batch in turn]
        rows = world.gather_rows(mine, model.head.out_features, model.device, counts)
        yield from zip(turn, rows, strict=True)
        world.agree()


@torch.inference_mode()
def gather(parts: Iterable[Scored]) -> Scores:
    """Return the scores of all sequences of at least one batch, in their order."""
    columns = []
    for part in parts:
        columns.append((part.batch.lengths, part.batch.labels, part.predictions, part.losses))

    # Only now, because each copy to the CPU would wait for the device.
    return Scores(*(torch.cat(column).cpu() for column in zip(*columns, strict=True)))


def count_by_length(scores: Scores) -> dict[int, tuple[int, int]]:
    """Return (examples, errors) of each length that occurs.

    A sequence whose logits are not finite counts as an error, whatever its label.
    """
    examples = torch.bincount(scores.lengths)
    errors = torch.bincount(scores.lengths, weights=scores.wrong().double()).long()

    counts = {}
    for length in examples.nonzero().flatten().tolist():
        counts[length] = (int(examples[length]), int(errors[length]))
    return counts
