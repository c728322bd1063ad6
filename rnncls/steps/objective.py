"""What a step minimises: the loss of a batch, with its gradients."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from rnncls.config import Config
from rnncls.data import Batch, PaddedBatch, Task
from rnncls.model.classifier import RNNClassifier
from rnncls.model.dropout import NO_KEYS, Keys
from rnncls.model.losses import sequence_losses
from rnncls.model.pieces import Pieces
from rnncls.model.prefixes import prefix_losses, prefix_weights


def gradients_of_batch(
    model: RNNClassifier,
    batch: Batch | PaddedBatch,
    task: Task,
    keys: Keys = NO_KEYS,
    total: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Add the gradients of the batch's loss to those of the parameters.

    Returns the loss, a scalar in nats, and the logits of the whole sequences, (B, num_classes),
    both without gradient and in float32. The loss is the mean over sequences; with
    `train.objective: prefix` of the mean over the prefixes of each sequence. Class weights are
    those of a weighted mean, as in torch.nn.CrossEntropyLoss. `keys`: as of the model's `forward`.
    `total`: what the sums are divided by, if the batch is a share of a larger one; see `weight_of`.

    With `train.label_smoothing` a of N classes, the loss of a sequence with label c is
    (1 - a) w_c l_c + a / N (w_1 l_1 + ... + w_N l_N), with l_k = -log softmax(logits)_k and the
    class weights w; for all of them 1 without any. What it is divided by stays as it is.
    """
    losses: list[Tensor] = []
    logits = model.head.weight.new_empty(0)
    for loss, logits in losses_of_batch(model, batch, task, keys, total):  # noqa: B007
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    loss = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
    return loss, logits.detach()


def losses_of_batch(
    model: RNNClassifier,
    batch: Batch | PaddedBatch,
    task: Task,
    keys: Keys = NO_KEYS,
    total: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the parts of which the batch's loss is the sum, and logits, as `gradients_of_batch`.

    `backward` of each must have been called before the next one is computed. Only that of prefixes
    has more than one; the logits of whole sequences come with the last.
    """
    config = task.config
    weights = _class_weights(batch, task)
    if isinstance(batch, Batch) and batch.prefix_labels is not None:
        yield from _losses_of_prefixes(model, batch, task, keys, total)
        return

    # The loss is computed in float32, also where autocast makes the logits bfloat16.
    with precision(config, batch.labels.device):
        if isinstance(batch, PaddedBatch):
            logits = model(batch.tokens, keys=keys).float()  # (B, num_classes)
        else:
            logits = model(batch.tokens, pieces=pieces_of(config), keys=keys).float()
    reduction = "mean" if total is None else "sum"
    smoothing = config.train.label_smoothing
    loss = F.cross_entropy(
        logits, batch.labels, weights, reduction=reduction, label_smoothing=smoothing
    )
    yield loss if total is None else loss / total, logits


def _losses_of_prefixes(
    model: RNNClassifier, batch: Batch, task: Task, keys: Keys, total: Tensor | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Do what `losses_of_batch` says for the labels (S,) of all prefixes."""
    config = task.config
    device = batch.labels.device
    labels, weights = _weighted_prefixes(batch, task)
    if total is None:
        total = weight_of(batch, task)
    losses_of = sequence_losses

    # Smoothed, a loss has a share of every class, each with the weight of its own.
    smoothing = config.train.label_smoothing
    if smoothing > 0:
        weights = prefix_weights(batch.tokens.batch_sizes).to(device)
        losses_of = partial(
            F.cross_entropy,
            weight=_class_weights(batch, task),
            reduction="none",
            label_smoothing=smoothing,
        )
    weights = weights / total

    parts = prefix_losses(model, batch.tokens, labels, weights, pieces_of(config), keys, losses_of)
    while True:
        with precision(config, device):
            part = next(parts, None)
        if part is None:
            return
        yield part


def weight_of(batch: Batch | PaddedBatch, task: Task) -> Tensor:
    """Return what the sum of the batch's losses is divided by: a scalar on its device.

    The number of sequences; with class weights the sum of the weights of what is asked for.
    """
    weights = _class_weights(batch, task)
    if weights is None:
        return torch.tensor(float(len(batch.labels)), device=batch.labels.device)
    if isinstance(batch, Batch) and batch.prefix_labels is not None:
        return _weighted_prefixes(batch, task)[1].sum()
    return weights[batch.labels].sum()


def _class_weights(batch: Batch | PaddedBatch, task: Task) -> Tensor | None:
    """Return the class weights (num_classes,) on the batch's device, if there are any."""
    weights = task.class_weights
    return None if weights is None else weights.to(batch.labels.device)


def _weighted_prefixes(batch: Batch, task: Task) -> tuple[Tensor, Tensor]:
    """Return the labels and the weights, (S,) each, of the prefixes that end at each token."""
    labels = batch.prefix_labels
    if labels is None:
        raise ValueError("a batch without labels of prefixes")
    weights = prefix_weights(batch.tokens.batch_sizes).to(labels.device)
    class_weights = _class_weights(batch, task)
    return labels, weights if class_weights is None else weights * class_weights[labels]


def pieces_of(config: Config) -> Pieces:
    """Return how the config says that a batch is run for its gradients."""
    return Pieces(config.train.recompute_every, config.train.truncate_after)


def precision(config: Config, device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products are computed in the config's precision."""
    if config.train.precision == "bfloat16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
