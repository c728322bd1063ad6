"""What the head sees of a sequence whose states come piece by piece.

Letters: P steps are looked at together; D directions of hidden_size H; W = D * H.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.model.classifier import RNNClassifier
from rnncls.model.pooling import Pooled, nothing_pooled, parts_of, side_by_side


class Seen(NamedTuple):
    """What is known of the steps so far."""

    num_steps: int
    pooled: Pooled  # (1, W) each
    backward_end: Tensor | None = None  # the state (1, H) at the first token, of two directions


def nothing_seen(network: RNNClassifier) -> Seen:
    """Return what is known before the first step."""
    # In float64: the sum of a million steps is to be no less exact than the model's own.
    weight = network.head.weight.double()
    return Seen(0, nothing_pooled(network.pooling, 1, network.rnn, weight))


def summaries_after(network: RNNClassifier, seen: Seen, top: list[Tensor]) -> tuple[Tensor, Seen]:
    """Return what the head would see if the sequence ended with each of P more steps.

    `top`: the states (P, H) of each direction of the last layer, in the order of time. Returns
    (P, summary_size), and what is known after these steps. Of two directions, only the summary of
    the sequence's last step is one: another sequence would have other states in reverse.
    """
    num_steps = len(top[0])
    backward_end = seen.backward_end
    last = top[0]
    if len(top) == 2:
        if backward_end is None:
            backward_end = top[1][:1]
        last = torch.cat([last, backward_end.expand(num_steps, -1)], 1)

    rows = _pooled_after(seen.pooled, torch.cat(top, 1))
    parts = []
    for part in parts_of(network.pooling):
        if part == "last":
            parts.append(last)
        elif part == "mean" and rows.total is not None:
            lengths = torch.arange(num_steps, device=last.device) + seen.num_steps + 1
            parts.append((rows.total / lengths.unsqueeze(1)).to(last.dtype))
        elif rows.largest is not None:
            parts.append(rows.largest.to(last.dtype))
    summaries = side_by_side(parts)

    pooled = Pooled(*(None if part is None else part[-1:] for part in rows))
    return summaries, Seen(seen.num_steps + num_steps, pooled, backward_end)


def _pooled_after(before: Pooled, outputs: Tensor) -> Pooled:
    """Return what was seen after each of P steps, (P, W) each, whose outputs (P, W) are given."""
    total, largest = before
    if total is not None:
        total = total + outputs.to(total.dtype).cumsum(0)
    if largest is not None:
        largest = torch.maximum(largest, outputs.to(largest.dtype).cummax(0).values)
    return Pooled(total, largest)
