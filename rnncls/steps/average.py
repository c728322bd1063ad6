"""A running average of the weights, which is evaluated and predicted with in their place."""

import copy

import torch

from rnncls.model.classifier import RNNClassifier


def average_of(model: RNNClassifier) -> RNNClassifier:
    """Return what the average of a model's weights is before the first update: the weights."""
    return copy.deepcopy(model).requires_grad_(False).eval()


def kept_share(decay: float, updates: int) -> float:
    """Return the share of itself that the average keeps at an update, the last of so many.

    min(decay, (1 + updates) / (10 + updates)), as of TensorFlow's ExponentialMovingAverage with
    `num_updates`: the first weights, which are random, are soon forgotten.
    """
    return min(decay, (1 + updates) / (10 + updates))


@torch.no_grad()
def move_average(average: RNNClassifier, model: RNNClassifier, decay: float, updates: int) -> None:
    """Move an average towards a model's weights, after the last of so many updates of these."""
    pairs = zip(average.parameters(), model.parameters(), strict=True)
    # What is frozen is its own average.
    moving = [(mean, weight) for mean, weight in pairs if weight.requires_grad]
    means = [mean.detach() for mean, _ in moving]
    weights = [weight.detach() for _, weight in moving]
    torch._foreach_lerp_(means, weights, 1 - kept_share(decay, updates))
