"""Matrix products and elementwise functions for compiled code (Numba), on 2-D float32 arrays.

Every array here is C-contiguous, and one that vectors read or write has rows of a multiple of WIDTH floats; what pads a
row is 0 and stays 0. A product keeps a tile of up to 8 rows by 2 vectors of its result in registers, like the inner
kernel of a BLAS (Goto and van de Geijn 2008), but begins without packing, threads or dispatch: at the sizes of small
recurrent networks these cost more than the arithmetic.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

AVX512 = bool(binding.get_host_cpu_features().get("avx512f"))
WIDTH = 16  # floats; what rows are padded to, on every machine
LANES = 16 if AVX512 else 8  # floats in a vector register
HEIGHTS = (
    (8, 4, 2, 1) if AVX512 else (4, 2, 1)
)  # rows of a tile: 8 * 2 sums in 32 registers, or 4 * 2 in 16

STAYS = 256  # rows of two matrices whose columns stay in cache while they are multiplied

# Without nnan and ninf: a loss or gradient that is not finite must be seen.
FAST = {"reassoc", "contract", "nsz", "arcp"}
OPTIONS: dict[str, Any] = {"fastmath": FAST, "error_model": "numpy", "nogil": True}
compiled: Callable[..., Any] = njit(**OPTIONS)

_INT, _FLOAT = ir.IntType(64), ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_SAME = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)  # shuffles one lane into all
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)


def padded(size: int) -> int:
    """The next multiple of WIDTH."""
    return -(-size // WIDTH) * WIDTH


@intrinsic
def _tiles(  # type: ignore[no-untyped-def]
    _typing,
    out,
    o,
    out_step,
    start,
    s,
    start_step,
    a,
    i,
    row_step,
    inner_step,
    w,
    j,
    w_step,
    rows,
    inner,
    columns,
):
    """out = start + a @ w: (rows, columns) from (rows, inner) and (inner, columns).

    Each matrix is (array, offset of its first element, stride of its rows), in floats. Of `a`, whose elements are read
    one by one, both strides are free, so that it may be transposed. Every sum over the inner dimension runs from first
    to last, whatever the tile: the same bits every time.
    """
    n = types.intp
    return types.void(out, n, n, start, n, n, a, n, n, n, w, n, n, n, n, n), _emit_tiles


def _emit_tiles(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    def matrix(position: int) -> Any:
        array = context.make_array(signature.args[position])(context, builder, args[position])
        return builder.gep(array.data, [args[position + 1]])

    def at(base: Any, row: Any, step: Any, column: Any = None) -> Any:
        place = builder.gep(base, [builder.mul(row, step)])
        return place if column is None else builder.gep(place, [column])

    def vectors_at(base: Any, count: int) -> list[Any]:
        places = [builder.gep(base, [_INT(LANES * number)]) for number in range(count)]
        return [builder.bitcast(place, _VECTOR.as_pointer()) for place in places]

    builder.function.attributes.add("noinline")  # else every call compiles all tiles again
    out, start, a, w = (matrix(position) for position in (0, 3, 6, 10))
    out_step, start_step, row_step, inner_step, w_step = (
        args[position] for position in (2, 5, 8, 9, 12)
    )
    rows, inner, columns = args[13:]
    signature_of_fma = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    multiply_add = cgutils.get_or_insert_function(
        builder.module, signature_of_fma, f"llvm.fma.v{LANES}f32"
    )

    def emit_tile(height: int, width: int, row: Any, column: Any) -> None:
        numbers = [builder.add(row, _INT(number)) for number in range(height)]
        sums = [
            cgutils.alloca_once_value(builder, builder.load(place, align=4))
            for number in numbers
            for place in vectors_at(at(start, number, start_step, column), width)
        ]
        with cgutils.for_range(builder, inner, intp=_INT) as loop:
            weights = [
                builder.load(place, align=4)
                for place in vectors_at(at(w, loop.index, w_step, column), width)
            ]
            for index, number in enumerate(numbers):
                scalar = builder.load(at(at(a, loop.index, inner_step), number, row_step), align=4)
                lane = builder.insert_element(_UNDEFINED, scalar, ir.IntType(32)(0))
                everywhere = builder.shuffle_vector(lane, _UNDEFINED, _SAME)
                for total, weight in zip(sums[index * width :], weights, strict=False):
                    builder.store(
                        builder.call(multiply_add, [everywhere, weight, builder.load(total)]), total
                    )
        for index, number in enumerate(numbers):
            places = vectors_at(at(out, number, out_step, column), width)
            for total, place in zip(sums[index * width :], places, strict=False):
                builder.store(builder.load(total), place, align=4)

    for width, column_block in _blocks(builder, columns, [2 * LANES, LANES]):
        with column_block as column:
            for height, row_block in _blocks(builder, rows, HEIGHTS):
                with row_block as row:
                    emit_tile(height, width // LANES, row, column)
    return context.get_dummy_value()


def _blocks(builder: Any, size: Any, lengths: Any) -> Iterator[tuple[int, Any]]:
    """Cut 0..size into as many blocks of the first length as fit, of what is left as many of the next, ...

    For each length, a context manager whose body is emitted once and runs for each block, with its beginning.
    """
    begin = _INT(0)
    for length in lengths:
        end = builder.sub(size, builder.srem(size, _INT(length)))
        yield length, _loop(builder, begin, end, length)
        begin = end


@contextmanager
def _loop(builder: Any, begin: Any, end: Any, step: int) -> Iterator[Any]:
    with cgutils.for_range_slice(builder, begin, end, _INT(step), _INT) as (index, _):
        yield index


@compiled
def multiply(out, o, start, s, start_step, a, i, w, rows):  # type: ignore[no-untyped-def]
    """out[o:o+rows] = start[s:s+rows] + a[i:i+rows] @ w; with start_step = 0, start[s] in every row."""
    k, n = a.shape[1], out.shape[1]
    for done in range(0, rows, STAYS):
        count, first = min(rows - done, STAYS), s + done * start_step
        _tiles(
            out,
            (o + done) * n,
            n,
            start,
            first * n,
            start_step * n,
            a,
            (i + done) * k,
            k,
            1,
            w,
            0,
            n,
            count,
            w.shape[0],
            n,
        )


@compiled
def multiply_transposed(out, zeros, a, i, b, j, rows):  # type: ignore[no-untyped-def]
    """out = a[i:i+rows].T @ b[j:j+rows], for as many columns of `a` as `out` has rows. `zeros`: a row of them."""
    k, n = a.shape[1], out.shape[1]
    for done in range(0, max(rows, 1), STAYS):
        start, step = (out, n) if done else (zeros, 0)
        count = min(rows - done, STAYS)
        _tiles(
            out,
            0,
            n,
            start,
            0,
            step,
            a,
            (i + done) * k,
            1,
            k,
            b,
            (j + done) * n,
            n,
            out.shape[0],
            count,
            n,
        )


# What follows walks over whole slices with indices from 0, because Numba gives up vectors where an index might be
# negative and so count from the end.


@compiled
def tanh(x):  # type: ignore[no-untyped-def]
    """In place, by the rational approximation of degree 13 over 6 that Eigen has for float32 (MathFunctionsImpl.h)."""
    for index in range(len(x)):
        v = x[index]
        v = (
            np.float32(-7.90531110763549805) if v < np.float32(-7.90531110763549805) else v
        )  # NaN stays NaN
        v = np.float32(7.90531110763549805) if v > np.float32(7.90531110763549805) else v
        y = v * v
        p = y * np.float32(-2.76076847742355e-16) + np.float32(2.00018790482477e-13)
        p = y * p + np.float32(-8.60467152213735e-11)
        p = y * p + np.float32(5.12229709037114e-08)
        p = y * p + np.float32(1.48572235717979e-05)
        p = y * p + np.float32(6.37261928875436e-04)
        p = y * p + np.float32(4.89352455891786e-03)
        q = y * np.float32(1.19825839466702e-06) + np.float32(1.18534705686654e-04)
        q = y * q + np.float32(2.26843463243900e-03)
        q = y * q + np.float32(4.89352518554385e-03)
        x[index] = v * p / q


@intrinsic
def _power_of_two(_typing, _exponent):  # type: ignore[no-untyped-def]
    """2.0**exponent as a float32, by writing the exponent where a float32 keeps its own."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        biased = builder.add(args[0], ir.IntType(32)(127))
        return builder.bitcast(builder.shl(biased, ir.IntType(32)(23)), _FLOAT)

    return types.float32(types.int32), codegen


@compiled
def exp(x):  # type: ignore[no-untyped-def]
    """The exponential in place, of numbers <= 0, by the polynomial of Cephes's expf; below -87 as at -87."""
    for index in range(len(x)):
        v = x[index]
        v = np.float32(-87) if v < np.float32(-87) else v  # NaN stays NaN
        exponent = np.floor(v * np.float32(1.44269504088896341) + np.float32(0.5))
        v = v - exponent * np.float32(0.693359375) - exponent * np.float32(-2.12194440e-4)
        p = v * np.float32(1.9875691500e-4) + np.float32(1.3981999507e-3)
        p = v * p + np.float32(8.3334519073e-3)
        p = v * p + np.float32(4.1665795894e-2)
        p = v * p + np.float32(1.6666665459e-1)
        p = v * p + np.float32(5.0000001201e-1)
        p = v * v * p + v + np.float32(1)
        x[index] = p * _power_of_two(
            np.int32(exponent if exponent > np.float32(-127) else np.float32(-127))
        )


@compiled
def relu(x):  # type: ignore[no-untyped-def]
    """In place."""
    for index in range(len(x)):
        x[index] = np.float32(0) if x[index] < np.float32(0) else x[index]  # NaN stays NaN


@compiled
def tanh_backward(gradient, value):  # type: ignore[no-untyped-def]
    """gradient *= 1 - value**2, where value is the tanh."""
    for index in range(len(gradient)):
        gradient[index] *= np.float32(1) - value[index] * value[index]


@compiled
def relu_backward(gradient, value):  # type: ignore[no-untyped-def]
    """Gradient = 0 where value, which is the relu, is 0."""
    for index in range(len(gradient)):
        gradient[index] = gradient[index] if value[index] > np.float32(0) else np.float32(0)


@compiled
def copy(out, a):  # type: ignore[no-untyped-def]
    """out[:rows, :columns] = a, of as many rows and columns as both have."""
    for row in range(min(len(out), len(a))):
        for column in range(min(out.shape[1], a.shape[1])):
            out[row, column] = a[row, column]


@compiled
def copy_transposed(out, a):  # type: ignore[no-untyped-def]
    """out[:columns, :rows] = a.T, in blocks of WIDTH rows: a cache line of `out` at a time."""
    for first in range(0, len(a), WIDTH):
        block = a[first : first + WIDTH]
        to = out[:, first : first + WIDTH]
        for column in range(a.shape[1]):
            for row in range(len(block)):
                to[column, row] = block[row, column]


@compiled
def copy_row(out, a):  # type: ignore[no-untyped-def]
    """out = a, one row."""
    for column in range(len(out)):
        out[column] = a[column]


@compiled
def add_row(out, a):  # type: ignore[no-untyped-def]
    """out += a, one row."""
    for column in range(len(out)):
        out[column] += a[column]


@compiled
def clear(x):  # type: ignore[no-untyped-def]
    """x = 0, one row."""
    for index in range(len(x)):
        x[index] = 0
