"""A model over batches."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.data import Batch
from rnncls.model.classifier import RNNClassifier
from rnncls.model.losses import sequence_losses


class Scores(NamedTuple):
    """What a model said about each of R sequences. All are (R,) and on the CPU."""

    lengths: Tensor
    labels: Tensor
    predictions: Tensor
    losses: Tensor  # cross-entropy in nats


@torch.inference_mode()
def score(model: RNNClassifier, batches: Iterable[Batch]) -> Scores:
    """Run the model over the batches in evaluation mode; its training mode is put back afterwards."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    parts = []
    try:
        for batch in batches:
            tokens, labels, lengths = batch.to(device)
            logits = model(tokens)  # (B, N)
            parts.append((lengths, labels, logits.argmax(1), sequence_losses(logits, labels)))
    finally:
        model.train(was_training)
    return Scores(*(torch.cat(columns).cpu() for columns in zip(*parts, strict=True)))


def count_by_length(scores: Scores) -> dict[int, tuple[int, int]]:
    """(examples, errors) of each length that occurs. Logits that are not finite say nothing: an error."""
    wrong = ((scores.predictions != scores.labels) | ~scores.losses.isfinite()).double()
    examples = torch.bincount(scores.lengths)
    errors = torch.bincount(scores.lengths, weights=wrong).long()
    return {n: (int(examples[n]), int(errors[n])) for n in examples.nonzero().flatten().tolist()}
