"""The predictions and losses of a model over batches."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.data import Batch
from rnncls.model.classifier import RNNClassifier
from rnncls.model.losses import sequence_losses


class Scores(NamedTuple):
    """The predictions for R sequences, beside the truth. All are (R,) and on the CPU."""

    lengths: Tensor
    labels: Tensor
    predictions: Tensor
    losses: Tensor  # cross-entropy in nats


@torch.inference_mode()
def score(model: RNNClassifier, batches: Iterable[Batch]) -> Scores:
    """Run the model over at least one batch in evaluation mode, then restore its training mode."""
    # Training validates between two steps, and must find its dropout switched on again.
    was_training = model.training
    model.eval()

    parts = []
    try:
        for batch in batches:
            # The lengths stay on the CPU; all others are on the model's device.
            tokens, labels, lengths = batch.to(model.device)
            logits = model(tokens)  # (B, N)
            parts.append((lengths, labels, logits.argmax(1), sequence_losses(logits, labels)))
    finally:
        model.train(was_training)

    # Only now, because each copy to the CPU would wait for the device.
    columns = zip(*parts, strict=True)
    return Scores(*(torch.cat(column).cpu() for column in columns))


def count_by_length(scores: Scores) -> dict[int, tuple[int, int]]:
    """Return (examples, errors) of each length that occurs.

    A sequence whose logits are not finite counts as an error, whatever its label.
    """
    # argmax of NaN is some class, which may be the right one by chance.
    wrong = (scores.predictions != scores.labels) | ~scores.losses.isfinite()
    examples = torch.bincount(scores.lengths)
    errors = torch.bincount(scores.lengths, weights=wrong.double()).long()

    counts = {}
    for length in examples.nonzero().flatten().tolist():
        counts[length] = (int(examples[length]), int(errors[length]))
    return counts
