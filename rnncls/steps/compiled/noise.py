"""Noise on the states that W_hh multiplies, by the rule of rnncls/model/noise.py.

The normal numbers are those of that rule within some roundings. They are computed in loops that
LLVM turns into vector instructions: it would call libm's logarithm, sine and cosine one element at
a time. The symbols of shapes are those of `memory`.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rnncls.compiled.compiler import jit, jit_inlined
from rnncls.compiled.kernels import clear
from rnncls.steps.compiled.dropout import GOLDEN, finalize

_INT = ir.IntType(32)
_FLOAT = ir.FloatType()

# The bits of the float32 sqrt(1/2), and of the fraction of a float32.
_ROOT_OF_HALF = np.int32(0x3F3504F3)
_FRACTION = np.int32(0x007FFFFF)

# A draw has 24 bits.
_ONE_DRAW = np.float32(2.0**-24)


@intrinsic
def _lower_half(_typing, _bits):
    """Return the lower 32 bits of an uint64 as an int32."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.trunc(args[0], _INT)

    return types.int32(types.uint64), codegen


@intrinsic
def _bits_of(_typing, _number):
    """Return the bits of a float32 as an int32."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _INT)

    return types.int32(types.float32), codegen


@intrinsic
def _float_of_bits(_typing, _bits):
    """Return the float32 that has the bits of this int32."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _FLOAT)

    return types.float32(types.int32), codegen


@jit
def add_noise(sizes, work, batch, unit, key, first, step):
    """Fill the rows of a TimeStep in work.noised[unit] with what its states go on from, with noise.

    Where sequences begin that is 0. `key` is that of the unit, whose states are work.hidden[unit];
    `first` is the first sequence of the training step.
    """
    hidden = work.hidden[unit]
    noised = work.noised[unit]
    for rank in range(step.known):
        _draw(work.pairs[0], work.pairs[1], key, batch.order[rank] - first, step.time)
        half = work.pairs.shape[1]
        _box_muller(work.normals[:half], work.normals[half:], work.pairs[0], work.pairs[1])

        state = hidden[step.before + rank][: sizes.hidden]
        _add_scaled(noised[step.first + rank][: sizes.hidden], state, work.normals, sizes.noise)
    clear(noised[step.first + step.known : step.first + step.rows].reshape(-1))


@jit
def _draw(u, v, key, row, time):
    """Fill `u` and `v` (int32) with the draws of 24 bits of one state, a pair for two columns."""
    place = np.uint64((row << 32) + time + 1)
    state = finalize(key + place * GOLDEN)
    for index in range(len(u)):
        drawn = finalize(state + np.uint64(index + 1) * GOLDEN)
        u[index] = _lower_half((drawn >> np.uint64(8)) & np.uint64(0xFFFFFF))
        v[index] = _lower_half(drawn >> np.uint64(40))


@jit
def _box_muller(cosines, sines, u, v):
    """Compute the two normal numbers of each pair of draws."""
    for index in range(len(u)):
        radius = np.sqrt(np.float32(-2) * _log_of(np.float32(u[index] + np.int32(1)) * _ONE_DRAW))

        # The angle is twice pi x. Polynomials of pi x come from Chebyshev interpolation, for x**2
        # from 0 to 1/4.
        x = np.float32(v[index]) * _ONE_DRAW - np.float32(0.5)
        square = x * x
        sine = square * np.float32(0.07765591224) + np.float32(-0.5982904113)
        sine = square * sine + np.float32(2.550077387)
        sine = square * sine + np.float32(-5.167710077)
        sine = square * sine + np.float32(3.141592640)
        sine = x * sine

        cosine = square * np.float32(-0.02439593196) + np.float32(0.2349370685)
        cosine = square * cosine + np.float32(-1.335211949)
        cosine = square * cosine + np.float32(4.058709155)
        cosine = square * cosine + np.float32(-4.934802137)
        cosine = square * cosine + np.float32(1)

        cosines[index] = radius * (cosine * cosine - sine * sine)
        sines[index] = radius * (np.float32(2) * sine * cosine)


@jit_inlined
def _log_of(x):
    """Return the logarithm of a positive normal float32, with the polynomial of Cephes's logf."""
    # x = 2**exponent (1 + rest), where 1 + rest is at least sqrt(1/2) and less than sqrt(2).
    bits = _bits_of(x) - _ROOT_OF_HALF
    exponent = np.float32(bits >> np.int32(23))
    rest = _float_of_bits((bits & _FRACTION) + _ROOT_OF_HALF) - np.float32(1)

    p = rest * np.float32(7.0376836292e-2) + np.float32(-1.1514610310e-1)
    p = rest * p + np.float32(1.1676998740e-1)
    p = rest * p + np.float32(-1.2420140846e-1)
    p = rest * p + np.float32(1.4249322787e-1)
    p = rest * p + np.float32(-1.6668057665e-1)
    p = rest * p + np.float32(2.0000714765e-1)
    p = rest * p + np.float32(-2.4999993993e-1)
    p = rest * p + np.float32(3.3333331174e-1)

    # log(2) is added in two parts, so that nothing of it is lost to rounding.
    square = rest * rest
    small = rest * square * p - np.float32(0.5) * square + exponent * np.float32(-2.12194440e-4)
    return small + rest + exponent * np.float32(0.693359375)


@jit
def _add_scaled(out, state, normals, sigma):
    """Compute out = state + sigma rms(state) normals, for as many numbers as `out` has."""
    total = np.float32(0)
    for column in range(len(state)):
        total += state[column] * state[column]
    scale = np.float32(sigma) * np.sqrt(total / np.float32(len(state)))
    for column in range(len(out)):
        out[column] = state[column] + scale * normals[column]
