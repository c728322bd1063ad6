"""Dropout: which inputs of a layer stay, and how they reach it.

There are two ways. By position, whether a number stays is a function of a key for the layer, its
sequence's row in the batch, its token's time step and its column. Nothing else matters: neither how
the batch is laid out or cut, nor what else is in it, nor who computes it. By generator, torch's own
draws one number after the other for a layer as a whole: for runs that began before there was the
first way (`rules`), and for a model that is given no keys.

Letters: B sequences of S tokens in all, of at most T time steps; W inputs of a layer.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from rnncls.data.batches import ranks_of
from rnncls.model.splitmix import GOLDEN, finalize, signed
from rnncls.seeds import mix


class InputKeys(NamedTuple):
    """The keys of dropout outside the recurrence, which always goes by position."""

    tokens: int
    ngrams: int
    embedding: int
    head: int


class Keys(NamedTuple):
    """What dropout by position is a function of, besides the positions.

    `of_layers`: one number for each layer but the first; none means that torch's generator draws.
    `of_inputs`: those outside the recurrence; None: torch's generator draws the keys.
    `of_states`: those of the noise on states, one for each layer and direction; none: no noise.
    A batch may be every n-th row of a larger one, whose rows then count: first_row, first_row +
    row_step and so on.
    """

    of_layers: tuple[int, ...] = ()
    first_row: int = 0
    row_step: int = 1
    of_inputs: InputKeys | None = None
    of_states: tuple[int, ...] = ()


NO_KEYS = Keys()

# Leaves some inputs (S, W) or (T, B, W) of the layer of this number out, and enlarges the others.
Drop = Callable[[int, Tensor], Tensor]

# Pairs of columns that are drawn at a time: on the CPU as many as its cache holds.
_PAIRS = 2**15
_PAIRS_CUDA = 2**22


# Turned over, the highest bit of both halves makes signed halves compare as unsigned ones do.
_HIGHEST_BITS = signed(0x8000000080000000)


def dropout_keys(seed: int, step: int, num_layers: int) -> tuple[int, ...]:
    """Return the key of each layer but the first for the step that follows `step` steps."""
    return tuple(mix(seed, "dropout", step, layer) for layer in range(1, num_layers))


def input_keys(seed: int, step: int) -> InputKeys:
    """Return the keys of dropout outside the recurrence for the step that follows `step` steps."""
    return InputKeys(*(mix(seed, f"{name}_dropout", step) for name in InputKeys._fields))


def random_input_keys() -> InputKeys:
    """Return such keys as torch's generator draws them."""
    return InputKeys(*torch.randint(-(2**63), 2**63 - 1, (len(InputKeys._fields),)).tolist())


def places_of_packed(tokens: PackedSequence, keys: Keys = NO_KEYS) -> Tensor:
    """Return the place of each packed row, (S,) int64 on the device of the tokens.

    A place stands for the sequence's row in the order in which the sequences were given, and for
    the token's time step. `kept` takes it. `keys` says which rows of a batch the sequences are.
    """
    sizes = tokens.batch_sizes
    ranks = ranks_of(sizes)
    times = torch.arange(len(sizes)).repeat_interleave(sizes)
    device = tokens.data.device
    ranks = ranks.to(device)
    rows = ranks if tokens.sorted_indices is None else tokens.sorted_indices[ranks]
    return _places(rows, times.to(device), keys)


def places_of_sequences(count: int, device: torch.device, keys: Keys = NO_KEYS) -> Tensor:
    """Return the places of what there is once for each of B sequences, (B,) int64."""
    return _places(torch.arange(count, device=device), torch.zeros((), dtype=torch.int64), keys)


def places_of_padded(tokens: Tensor, keys: Keys = NO_KEYS) -> Tensor:
    """Return the places, (T, B), of padded sequences (B, T); otherwise as `places_of_packed`."""
    num_sequences, longest = tokens.shape
    times = torch.arange(longest, device=tokens.device).unsqueeze(1)
    return _places(torch.arange(num_sequences, device=tokens.device), times, keys)


def _places(rows: Tensor, times: Tensor, keys: Keys) -> Tensor:
    if keys.row_step > 1:
        rows = keys.first_row + keys.row_step * rows
    return ((rows << 32) + times + 1) * GOLDEN


def kept(key: int, places: Tensor, width: int, dropout: float) -> Tensor:
    """Return which inputs of a layer stay, bool, in the shape of `places` and a last one of W.

    The numbers are those of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
    number generators"). Modulo 2**64, with `finalize` as its finalizer:

        x = finalize(key + ((row << 32) + time + 1) * GOLDEN)
        y = finalize(x + (column // 2 + 1) * GOLDEN)

    The lower 32 bits of y belong to the even column of the two, the upper ones to the odd one. What
    is at least round(dropout * 2**32) stays.
    """
    # Less than a number in 2**32 stays, and no int32 is as large.
    least = round(dropout * 2**32) - 2**31
    if least == 2**31:
        return places.new_zeros((*places.shape, width), dtype=torch.bool)

    begins: Any = places.flatten() + key
    pairs: Any = torch.arange(1, (width + 1) // 2 + 1, device=places.device) * GOLDEN
    stays = places.new_empty((len(begins), 2 * len(pairs)), dtype=torch.bool)
    result: Any = stays
    half: Any = torch.int32
    most = _PAIRS_CUDA
    if not places.is_cuda:
        # The same memory: NumPy needs half the time of torch for these integers.
        begins, pairs, result = begins.numpy(), pairs.numpy(), stays.numpy()
        half = np.int32
        most = _PAIRS

    begins = finalize(begins)
    step = max(1, most // len(pairs))
    for first in range(0, len(begins), step):
        drawn = finalize(begins[first : first + step, None] + pairs)
        drawn ^= _HIGHEST_BITS
        # In the machine's order of bytes, which is little-endian, the lower half comes first.
        result[first : first + step] = drawn.view(half) >= least
    return stays.view(*places.shape, -1)[..., :width]


def dropped(key: int, places: Tensor, data: Tensor, dropout: float) -> Tensor:
    """Return the numbers of `data`, in the shape of `places` and W, of which some are left out."""
    # As a float32, so that what stays has the same bits whoever computes it.
    scale = float(np.float32(1 / (1 - dropout)))
    stays = kept(key, places, data.shape[-1], dropout)
    # The backward pass needs the mask alone, a byte for each number.
    return (data * scale).mul_(stays)


def by_position(keys: Keys, places: Tensor, dropout: float) -> Drop:
    """Return dropout as a function of `places`, (S,) or (T, B)."""
    return lambda layer, data: dropped(keys.of_layers[layer - 1], places, data, dropout)


def by_generator(dropout: float) -> Drop:
    """Return dropout as torch's generator draws it, for layers one after the other."""
    return lambda _, data: F.dropout(data, dropout)


def by_masks(masks: Sequence[Tensor], dropout: float) -> Drop:
    """Return dropout by what `draw_masks` returned, or the same rows of each."""
    # As F.dropout does it, to the bit.
    return lambda layer, data: data * masks[layer - 1].to(data.dtype).div_(1 - dropout)


def draw_masks(weight: Tensor, shape: tuple[int, int], dropout: float, count: int) -> list[Tensor]:
    """Return which inputs of `count` layers stay, bool of a shape (S, W), on the weight's device.

    They are those that F.dropout would draw for whole layers, so that pieces have the same.
    """
    masks = []
    for _ in range(count):
        # F.dropout takes 12 bytes for each number, more than all else of a step in pieces. On the
        # CPU this draws the same in few; CUDA has another kernel for F.dropout.
        if weight.is_cuda:
            mask = F.dropout(weight.new_ones(shape), dropout) != 0
        else:
            mask = weight.new_empty(shape, dtype=torch.bool).bernoulli_(1 - dropout)
        masks.append(mask)
    return masks
