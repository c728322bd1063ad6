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

Letters: R states of H numbers each.
"""

import math
from typing import Any

import torch
from torch import Tensor

from rnncls.model.splitmix import GOLDEN, finalize
from rnncls.seeds import mix


def noise_keys(seed: int, step: int, num_units: int) -> tuple[int, ...]:
    """Return the keys of the step that follows `step` steps, one for each layer and direction.

    That of a direction has the number layer * num_directions + direction.
    """
    return tuple(mix(seed, "state_noise", step, unit) for unit in range(num_units))


def noised(key: int, places: Tensor, states: Tensor, sigma: float) -> Tensor:
    """Return states (R, H) with noise; `places` (R,) are as `dropout.places_of_packed` has them."""
    constant = states.detach()
    scale = constant.square().mean(-1, keepdim=True).sqrt_().mul_(sigma)
    noise = normals(key, places, states.shape[-1]).to(states.dtype)
    return states + scale * noise


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
