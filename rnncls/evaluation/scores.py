"""The predictions and losses of a model over batches."""

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.data import Batch
from rnncls.model.classifier import RNNClassifier
from rnncls.model.losses import sequence_losses

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
) -> Generator[Scored, None, None]:
    """Run the model over batches in evaluation mode, and yield what it says about each of them.

    `logits_of` gives its logits, if it is not the model itself that computes them. Whoever stops
    early closes the generator, which restores the model's training mode.
    """
    # Training validates between two steps, and must find its dropout switched on again.
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            moved = batch.to(model.device)
            logits = (logits_of or model)(moved.tokens)  # (B, N)
            losses = sequence_losses(logits, moved.labels)
            yield Scored(batch, logits, logits.argmax(1), losses)
    finally:
        model.train(was_training)


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
