"""What the head sees of a sequence whose states come piece by piece.

Letters: P steps are looked at together; D directions of hidden_size H; W = D * H; E numbers are
read of a token.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rnncls.model.classifier import RNNClassifier
from rnncls.model.pooling import Pooled, nothing_pooled, parts_of, side_by_side

MEAN_OF_INPUTS = "mean_of_inputs"


class Seen(NamedTuple):
    """What is known of the steps so far."""

    num_steps: int
    pooled: Pooled  # (1, W) each
    inputs: Pooled  # the total of what was read, (1, E)
    backward_end: Tensor | None = None  # the state (1, H) at the first token, of two directions


def nothing_seen(network: RNNClassifier) -> Seen:
    """Return what is known before the first step."""
    # In float64: the sum of a million steps is to be no less exact than the model's own.
    weight = network.head.weight.double()
    inputs = Pooled(total=weight.new_zeros(1, network.embedding.embedding_dim))
    return Seen(0, nothing_pooled(network.pooling, 1, network.rnn, weight), inputs)


def summaries_after(
    network: RNNClassifier, seen: Seen, inputs: Tensor, top: list[Tensor]
) -> tuple[Tensor, Seen]:
    """Return what the head would see if the sequence ended with each of P more steps.

    `inputs`: what is read at each of them, (P, E). `top`: the states (P, H) of each direction of
    the last layer, in the order of time; without recurrent layers, the inputs alone. Returns
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

    lengths = torch.arange(num_steps, device=last.device).unsqueeze(1) + seen.num_steps + 1
    rows = _pooled_after(seen.pooled, torch.cat(top, 1))
    parts = []
    for part in parts_of(network.pooling):
        if part == "last":
            parts.append(last)
        elif part == "mean" and rows.total is not None:
            parts.append((rows.total / lengths).to(last.dtype))
        elif rows.largest is not None:
            parts.append(rows.largest.to(last.dtype))

    read = _pooled_after(seen.inputs, inputs)
    if network.skip and read.total is not None:
        parts.append((read.total / lengths).to(last.dtype))
    summaries = side_by_side(parts)
    now = Seen(seen.num_steps + num_steps, _last_of(rows), _last_of(read), backward_end)
    return summaries, now


def _last_of(rows: Pooled) -> Pooled:
    """Return what was seen after the last of some steps."""
    return Pooled(*(None if part is None else part[-1:] for part in rows))


def is_summarised(network: RNNClassifier) -> bool:
    """Return whether the head sees anything but the last state of each direction."""
    return network.pooling != "last" or network.skip


def parts_seen(network: RNNClassifier, summary: Tensor) -> dict[str, Tensor]:
    """Return the parts of what the head sees (summary_size,), by their names.

    They are those of the pooling, of the states, and the mean of what is read.
    """
    names = parts_of(network.pooling)
    if not network.is_recurrent:
        return {MEAN_OF_INPUTS: summary}

    width = network.num_directions * network.rnn.hidden_size
    found: dict[str, Tensor] = dict(zip(names, torch.split(summary, width), strict=False))
    if network.skip:
        found[MEAN_OF_INPUTS] = summary[width * len(names) :]
    return found


def _pooled_after(before: Pooled, outputs: Tensor) -> Pooled:
    """Return what was seen after each of P steps, (P, W) each, whose outputs (P, W) are given."""
    total, largest = before
    if total is not None:
        total = total + outputs.to(total.dtype).cumsum(0)
    if largest is not None:
        largest = torch.maximum(largest, outputs.to(largest.dtype).cummax(0).values)
    return Pooled(total, largest)
