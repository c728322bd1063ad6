"""Logits and labels -> loss."""

from torch import Tensor
from torch.nn import functional as F


def sequence_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each sequence in nats, (B,), from logits (B, N) and labels (B,)."""
    return F.cross_entropy(logits, labels, reduction="none")
