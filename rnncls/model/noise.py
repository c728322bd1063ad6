"""Noise on the states of recurrent layers in training.

What W_hh multiplies at a step is not h, the state before it, but

    h + sigma rms(h) n,

where sigma is `model.state_noise`, rms(h) the root mean square of the numbers of that state, and n
holds independent standard normal numbers. rms(h) counts as a constant, so that the gradient passes
through unchanged. A state's noise is as large as the state: no weights can make it smaller, and
what a network does must stand it. The state itself stays as it is: the head sees it without noise,
and so does what a GRU or an LSTM carries on beside W_hh. There is none on an initial state.

n is a function of a key for the layer and direction, the sequence's row in the batch, the time step
that reads the state, and the column; see `rnncls.model.dropout`. So it does not matter how the
batch is laid out or cut, what else is in it, or who computes it.

Letters: R states of H numbers each; S tokens in all, in one direction or in two: D.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.data.batches import ranks_of
from rnncls.model.dropout import Keys, places_of_packed
from rnncls.model.splitmix import GOLDEN, finalize
from rnncls.seeds import mix

# Pairs of numbers that are drawn at a time: on the CPU as many as its cache holds.
_PAIRS = 2**15
_PAIRS_CUDA = 2**22


class Noise(NamedTuple):
    """The noise on the states that one direction of one layer reads at its S packed rows."""

    key: int
    sigma: float
    places: Tensor  # (S,), of `dropout.places_of_packed`

    # (S,) bool: whether what the direction reads at the row is an initial state.
    begins: Tensor


# Returns the noise of the layer and the direction of these numbers.
NoiseOf = Callable[[int, int], Noise]


def noise_keys(seed: int, step: int, num_units: int) -> tuple[int, ...]:
    """Return the keys of the step that follows `step` steps, one for each layer and direction.

    That of a direction has the number layer * num_directions + direction.
    """
    return tuple(mix(seed, "state_noise", step, unit) for unit in range(num_units))


def noise_rows(tokens: PackedSequence, keys: Keys, num_directions: int) -> tuple[Tensor, Tensor]:
    """Return of each packed row its place, (S,), and in which directions it begins, (S, D) bool.

    A row begins if the direction reads no token of its sequence before it.
    """
    sizes = tokens.batch_sizes
    begins = torch.zeros(int(sizes.sum()), num_directions, dtype=torch.bool)
    begins[: int(sizes[0]), 0] = True
    if num_directions == 2:
        # In reverse a sequence begins where the next time step does not have it.
        later = torch.cat([sizes[1:], sizes.new_zeros(1)])
        begins[:, 1] = ranks_of(sizes) >= later.repeat_interleave(sizes)
    return places_of_packed(tokens, keys), begins.to(tokens.data.device)


def by_keys(keys: Sequence[int], sigma: float, places: Tensor, begins: Tensor) -> NoiseOf:
    """Return the noise of each layer and direction; `keys` are those of `noise_keys`.

    `places` (S,) and `begins` (S, D) are what `noise_rows` returned, or the same rows of each.
    """
    num_directions = begins.shape[1]
    return lambda layer, direction: Noise(
        keys[layer * num_directions + direction], sigma, places, begins[:, direction]
    )


def drawn(noise: Noise, states: Tensor) -> Tensor:
    """Return n for each row, (S, H), of the type of `states` (S, H); 0 on initial states."""
    numbers = torch.empty_like(states, memory_format=torch.contiguous_format)
    most = _PAIRS_CUDA if states.is_cuda else _PAIRS
    width = states.shape[1]
    count = max(1, most // (width + 1) * 2)
    for first in range(0, len(states), count):
        rows = slice(first, first + count)
        numbers[rows] = normals(noise.key, noise.places[rows], width)
    return numbers.masked_fill_(noise.begins.unsqueeze(1), 0)


def add_to(numbers: Tensor, states: Tensor, sigma: float) -> Tensor:
    """Turn n, (R, H), in place into states (R, H) with this noise, and return them."""
    return numbers.mul_(_scale(states, sigma)).add_(states)


def noised(key: int, places: Tensor, states: Tensor, sigma: float) -> Tensor:
    """Return states (R, H) with noise; `places` (R,) are as `dropout.places_of_packed` has them."""
    return with_numbers(states, normals(key, places, states.shape[-1]), sigma)


def with_numbers(states: Tensor, numbers: Tensor, sigma: float) -> Tensor:
    """Return states (..., H) with the noise that n, `numbers` of their shape, makes."""
    return states + _scale(states.detach(), sigma) * numbers.to(states.dtype)


def _scale(states: Tensor, sigma: float) -> Tensor:
    """Return sigma rms(h) of each state, (..., 1)."""
    # Autocast may make float32 of the squares.
    return states.square().mean(-1, keepdim=True).sqrt_().mul_(sigma).to(states.dtype)


def normals(key: int, places: Tensor, width: int) -> Tensor:
    """Return standard normal numbers, float32, in the shape of `places` and a last one of H.

    With `finalize` and the 64-bit numbers of `dropout.kept`, where i counts from 0 to ceil(H / 2):

        x = finalize(key + place),    y = finalize(x + (i + 1) * GOLDEN),
        u = (bits 8 to 31 of y, plus 1) / 2**24,    v = (bits 40 to 63 of y) / 2**24

    Columns i and i + ceil(H / 2) are the two numbers that Box and Muller (1958, "A note on the
    generation of random normal deviates") make of u and v, with an angle from -pi to pi:

        sqrt(-2 log u) cos(2 pi (v - 1/2)),    sqrt(-2 log u) sin(2 pi (v - 1/2))
    """
    begins: Any = places.flatten() + key
    half = (width + 1) // 2
    pairs: Any = torch.arange(1, half + 1, device=places.device) * GOLDEN
    bits = finalize(finalize(begins)[:, None] + pairs)  # (R, half) int64

    u = ((bits >> 8 & 0xFFFFFF) + 1).float() * 2.0**-24
    v = (bits >> 40 & 0xFFFFFF).float() * 2.0**-24
    radius = u.log_().mul_(-2).sqrt_()
    angle = (v - 0.5).mul_(2 * math.pi)
    result = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
    return result[:, :width].view(*places.shape, width)
