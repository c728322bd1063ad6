"""What becomes of a gradient on its way back through time: its norm by distance, and a verdict.

Letters as in probes.py: S tokens in all, of B sequences, hidden_size H, packed.
"""

import math
from collections.abc import Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rnncls.model.probes import last_rows_of

# Of the gradient at the last step. A step that gets less learns nothing beside the last one, and
# one that gets more drowns it.
VANISHING = 1e-4
EXPLODING = 1e2


class Flow(NamedTuple):
    """How much of the gradient reaches the states of one layer and direction.

    K is the length of the longest sequence. Index k stands for the states that are k steps before
    the end of their sequence; where a layer runs in reverse, its end is the first token.
    """

    counts: Tensor  # how many sequences are longer than k, (K,)

    # The mean over those sequences of |dL/dh|, each with the loss of its own, (K,) in nats.
    norms: Tensor

    # The same mean divided by that of the same sequences at their last step, (K,): 1 at k = 0. NaN
    # where theirs is 0. Without the same sequences, this would tell how sure the network is of long
    # ones.
    ratios: Tensor


Kind = Literal["vanishing", "exploding", "vanishing and exploding", "neither", "zero", "not finite"]


class Verdict(NamedTuple):
    """What becomes of a gradient on its way back through time."""

    # neither: between the two thresholds. zero: nothing reaches even the last step.
    kind: Kind
    vanishing_from: int | None  # the first distance whose ratio is below VANISHING
    exploding_from: int | None  # the first distance whose ratio is above EXPLODING


def flow_of(gradient: Tensor, batch_sizes: Tensor, reverse: bool) -> Flow:
    """Return how much of a gradient dL/dh_t (S, H), packed, stands at each distance from the end.

    The result is in float64, on the CPU: the square of a small float32 would be 0.
    """
    norms = torch.linalg.vector_norm(gradient.detach().double(), dim=1).cpu()
    distances = distances_from_end(batch_sizes, reverse)

    # At distance 0 stand all sequences, each once.
    at_end = distances == 0
    numbers = sequence_numbers(batch_sizes)
    last = torch.empty(int(batch_sizes[0]), dtype=norms.dtype)
    last[numbers[at_end]] = norms[at_end]

    counts = torch.bincount(distances)
    sums = torch.bincount(distances, norms)
    sums_of_last = torch.bincount(distances, last[numbers])
    return Flow(counts, sums / counts, sums / sums_of_last)


def first_over_last(gradient: Tensor, batch_sizes: Tensor, reverse: bool) -> float:
    """Return how much of a gradient dL/dh_t (S, H), packed, reaches the first steps of sequences.

    It is the mean norm at the first step of each sequence over that at its last one; in reverse
    the first step is the last token. Sequences of one token say nothing. Without others, or
    without a gradient at the last steps, it is NaN.
    """
    norms = torch.linalg.vector_norm(gradient.detach().double(), dim=1).cpu()
    # Sequences of more than one token have a row in the second step.
    num_longer = int(batch_sizes[1]) if len(batch_sizes) > 1 else 0
    at_first_token = norms[:num_longer]
    at_last_token = norms[last_rows_of(batch_sizes)][:num_longer]

    first, last = (at_last_token, at_first_token) if reverse else (at_first_token, at_last_token)
    return float(first.mean() / last.mean())


def verdict_of(flow: Flow) -> Verdict:
    """Return whether the gradient vanishes or explodes on its way."""
    last = float(flow.norms[0])
    if not math.isfinite(last):
        return Verdict("not finite", None, None)
    if last == 0:
        return Verdict("zero", None, None)

    # Of finite weights only: what is not finite on the way has outgrown the numbers. A NaN where
    # the sequences that are so long have no gradient at all says nothing.
    outgrown = ~flow.norms.isfinite()
    vanishing = _first(flow.ratios < VANISHING)
    exploding = _first((flow.ratios > EXPLODING) | outgrown)
    kinds = {
        (False, False): "neither",
        (True, False): "vanishing",
        (False, True): "exploding",
        (True, True): "vanishing and exploding",
    }
    kind = kinds[vanishing is not None, exploding is not None]
    return Verdict(kind, vanishing, exploding)  # type: ignore[arg-type]


def verdict_in_all(verdicts: Iterable[Verdict]) -> Kind:
    """Return one kind for all layers and directions.

    Those whose gradient is zero do not count among others.
    """
    kinds = {verdict.kind for verdict in verdicts}
    if "not finite" in kinds:
        return "not finite"
    if kinds == {"zero"}:
        return "zero"

    vanishing = bool(kinds & {"vanishing", "vanishing and exploding"})
    exploding = bool(kinds & {"exploding", "vanishing and exploding"})
    if vanishing and exploding:
        return "vanishing and exploding"
    if vanishing:
        return "vanishing"
    return "exploding" if exploding else "neither"


def _first(conditions: Tensor) -> int | None:
    """Return the first index at which a condition holds."""
    indices = conditions.nonzero()
    return int(indices[0]) if len(indices) else None


def sequence_numbers(batch_sizes: Tensor) -> Tensor:
    """Return which sequence each token belongs to, (S,), packed; the longest one is number 0."""
    # Row i of a step belongs to sequence i.
    return torch.cat([torch.arange(size) for size in batch_sizes.tolist()])


def distances_from_end(batch_sizes: Tensor, reverse: bool) -> Tensor:
    """Return how many steps of its sequence come after each token, (S,), packed.

    In reverse, those steps are the tokens before it.
    """
    sizes = batch_sizes.tolist()
    positions = torch.repeat_interleave(torch.arange(len(sizes)), batch_sizes)
    if reverse:
        return positions

    lengths = positions[last_rows_of(batch_sizes)] + 1
    return lengths[sequence_numbers(batch_sizes)] - 1 - positions
