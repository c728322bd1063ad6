"""Precision and recall of each class, as TensorBoard shows them."""

from collections.abc import Sequence

import torch
from tensorboard.compat.proto.summary_pb2 import Summary
from torch import Tensor
from torch.utils.tensorboard.summary import pr_curve

from rnncls.system.shown import on_short_line

MOST_CURVES = 10  # more charts nobody looks at
MOST_OF_NAME = 40  # characters of a class in a tag


def pr_curves(labels: Tensor, probabilities: Tensor, names: Sequence[str]) -> list[Summary]:
    """Return the curve of precision over recall of each class, each class against all others.

    `labels` (N,), `probabilities` (N, num_classes), both on any device. A class that no sequence
    has gets no curve, since it has no recall. There is none at all for more than 10 classes, for no
    sequences, or where a probability is not a number.
    """
    if len(names) > MOST_CURVES or not len(labels) or not bool(probabilities.isfinite().all()):
        return []

    # Rounding may lead beyond 1, where TensorBoard's function has no place.
    shares = probabilities.detach().cpu().double().clamp(0, 1).numpy()
    is_of = torch.nn.functional.one_hot(labels.cpu(), len(names)).bool().numpy()
    curves = []
    for number, tag in enumerate(tags_of(names)):
        if is_of[:, number].any():
            is_class = is_of[:, number]
            curves.append(pr_curve(tag, is_class, shares[:, number]))  # type: ignore[no-untyped-call]
    return curves


def tags_of(names: Sequence[str]) -> list[str]:
    """Return a tag for each class, no two of them the same, on one line and in one group."""
    tags: list[str] = []
    for number, name in enumerate(names):
        # A slash would open another group.
        shown = on_short_line(name, MOST_OF_NAME).replace("/", "_").strip() or "_"
        tag = f"val/pr/{shown}"
        tags.append(f"{tag} ({number})" if tag in tags else tag)
    return tags
