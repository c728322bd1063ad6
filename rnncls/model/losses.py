"""The loss of each sequence, from logits and labels."""

from torch import Tensor
from torch.nn import functional as F


def sequence_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each sequence's cross-entropy in nats, (B,), from logits (B, N) and labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")
