"""Matrix products and elementwise functions for compiled code (Numba), on 2-D float32 arrays.

Every array here is C-contiguous. Arrays that are read or written as vectors have rows of a
multiple of WIDTH floats; the padding of a row is 0 and stays 0.

A product keeps a tile of up to 8 rows by 2 vectors of its result in registers, like the inner
kernel of a BLAS (Goto and van de Geijn 2008), but it starts without packing, threads or dispatch:
at the sizes of small recurrent networks these cost more than the arithmetic.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from rnncls.compiled.compiler import jit, jit_inlined

# The code is made for the machine that it runs on. A folder that machines share does no harm: Numba
# keeps the name and the features of the CPU with everything in its cache.
AVX512 = bool(binding.get_host_cpu_features().get("avx512f"))

# In floats. Rows are padded to WIDTH on every machine, LANES fit into one vector register.
WIDTH = 16
LANES = 16 if AVX512 else 8

# Rows of a tile, largest first: 8 rows of 2 sums in 32 registers, or 4 rows of 2 sums in 16.
HEIGHTS = (8, 4, 2, 1) if AVX512 else (4, 2, 1)

# A function is compiled anew for each literal number among its arguments, but not for these.
ZERO = np.int64(0)
_ONE = np.int64(1)

# Rows of a matrix that are multiplied at a time, so that their columns stay in the cache.
BLOCK_ROWS = 256

_INT = ir.IntType(64)
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)

# A shuffle mask: every lane of the result is lane 0 of the operand.
_FIRST_LANE = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)


def padded(size: int) -> int:
    """Return the next multiple of WIDTH."""
    return -(-size // WIDTH) * WIDTH


def row_of_matrix(size: int) -> int:
    """Return how many floats a row of this size takes in a matrix that products read on the right.

    They are an odd number of cache lines: where they are a power of two of them, the columns of a
    tile share a few sets of the cache and drive each other out of it.
    """
    lines = -(-size // WIDTH)
    return WIDTH * (lines if lines % 2 else lines + 1)


# --- the matrix product, written in LLVM's intermediate representation


@intrinsic
def _tiles(
    _typing,
    out,
    out_offset,
    out_stride,
    start,
    start_offset,
    start_stride,
    left,
    left_offset,
    left_row_stride,
    left_inner_stride,
    right,
    right_offset,
    right_stride,
    rows,
    inner,
    columns,
):
    """Compute out = start + left @ right, (rows, columns) from (rows, inner) and (inner, columns).

    Each matrix is an array, the offset of its first element and the stride of its rows, in floats.
    The elements of `left` are read one by one, so both of its strides are free and it may be
    transposed. `columns` must be a multiple of WIDTH.

    Every sum over the inner dimension runs from first to last, whatever the tile, so that the
    result has the same bits every time.
    """
    size = types.intp
    signature = types.void(
        *(out, size, size),
        *(start, size, size),
        *(left, size, size, size),
        *(right, size, size),
        *(size, size, size),
    )
    return signature, _emit_tiles


class _Matrix(NamedTuple):
    """A matrix in memory, as LLVM values: the address of its first element, strides in floats."""

    first: Any
    row_stride: Any
    column_stride: Any = None  # None is 1


class _Product(NamedTuple):
    """The operands of out = start + left @ right, and the length of its sums."""

    out: _Matrix
    start: _Matrix
    left_t: _Matrix  # left transposed: row k has what is multiplied by row k of `right`
    right: _Matrix
    inner: Any


def _emit_tiles(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """Emit the loops over all tiles into the function that calls `_tiles`."""
    # The code of all tiles is long. Inlined, it would be compiled again for every call.
    builder.function.attributes.add("noinline")

    def first_element(position: int) -> Any:
        """The address in the array at this position of the arguments; its offset comes next."""
        array_type = context.make_array(signature.args[position])
        array = array_type(context, builder, args[position])
        return builder.gep(array.data, [args[position + 1]])

    # The positions are those of the arguments of `_tiles`.
    rows, inner, columns = args[13:]
    product = _Product(
        out=_Matrix(first_element(0), row_stride=args[2]),
        start=_Matrix(first_element(3), row_stride=args[5]),
        left_t=_Matrix(first_element(6), row_stride=args[9], column_stride=args[8]),
        right=_Matrix(first_element(10), row_stride=args[12]),
        inner=inner,
    )

    # All rows are multiplied with a block of columns before the next block begins, so that these
    # columns of `right` are read from the cache.
    for width, column_block in _blocks(builder, columns, [2 * LANES, LANES]):
        with column_block as column:
            for height, row_block in _blocks(builder, rows, HEIGHTS):
                with row_block as row:
                    _emit_tile(builder, product, row, column, height, width // LANES)
    return context.get_dummy_value()


def _emit_tile(
    builder: Any, product: _Product, row: Any, column: Any, height: int, vectors: int
) -> None:
    """Emit one tile of the product: `height` rows by `vectors` vectors, from (row, column) on."""
    # Python's loops run while code is emitted. The code itself has one loop only, over the inner
    # dimension; the rows and vectors of a tile are written out.
    rows = [builder.add(row, _INT(number)) for number in range(height)]
    sums = []

    # LLVM keeps these stack slots in registers, because the loop below is short and has no calls.
    for tile_row in rows:
        row_sums = []
        for address in _vectors_at(builder, product.start, tile_row, column, vectors):
            initial = builder.load(address, align=4)
            row_sums.append(cgutils.alloca_once_value(builder, initial))
        sums.append(row_sums)

    with cgutils.for_range(builder, product.inner, intp=_INT) as loop:
        addresses = _vectors_at(builder, product.right, loop.index, column, vectors)
        right = [builder.load(address, align=4) for address in addresses]

        for tile_row, row_sums in zip(rows, sums, strict=True):
            element = _address(builder, product.left_t, loop.index, tile_row)
            left = _in_all_lanes(builder, builder.load(element, align=4))
            for total, vector in zip(row_sums, right, strict=True):
                _add_product(builder, total, left, vector)

    for tile_row, row_sums in zip(rows, sums, strict=True):
        addresses = _vectors_at(builder, product.out, tile_row, column, vectors)
        for total, address in zip(row_sums, addresses, strict=True):
            builder.store(builder.load(total), address, align=4)


def _address(builder: Any, matrix: _Matrix, row: Any, column: Any) -> Any:
    """The address of one element."""
    row_start = builder.gep(matrix.first, [builder.mul(row, matrix.row_stride)])
    if matrix.column_stride is not None:
        column = builder.mul(column, matrix.column_stride)
    return builder.gep(row_start, [column])


def _vectors_at(builder: Any, matrix: _Matrix, row: Any, column: Any, vectors: int) -> list[Any]:
    """The addresses of vectors that follow each other in a row."""
    begin = _address(builder, matrix, row, column)
    addresses = []
    for number in range(vectors):
        address = builder.gep(begin, [_INT(LANES * number)])
        addresses.append(builder.bitcast(address, _VECTOR.as_pointer()))
    return addresses


def _in_all_lanes(builder: Any, scalar: Any) -> Any:
    """A vector with this number in every lane."""
    lane = builder.insert_element(_UNDEFINED, scalar, ir.IntType(32)(0))
    return builder.shuffle_vector(lane, _UNDEFINED, _FIRST_LANE)


def _add_product(builder: Any, total: Any, left: Any, right: Any) -> None:
    """Emit total += left * right with one rounding; `total` is the address of a vector."""
    signature = ir.FunctionType(_VECTOR, [_VECTOR, _VECTOR, _VECTOR])
    name = f"llvm.fma.v{LANES}f32"
    multiply_add = cgutils.get_or_insert_function(builder.module, signature, name)
    builder.store(builder.call(multiply_add, [left, right, builder.load(total)]), total)


def _blocks(builder: Any, size: Any, lengths: Any) -> Iterator[tuple[int, Any]]:
    """Cut 0..size into blocks: as many of the first length as fit, then of the next length, ...

    Yields each length with a context manager. Its body is emitted once and runs for every block of
    this length; it receives the beginning of the block.
    """
    # The last length leaves no rest: it is 1 for rows, and LANES for columns, of which there is a
    # multiple of WIDTH.
    begin = _INT(0)
    for length in lengths:
        end = builder.sub(size, builder.srem(size, _INT(length)))
        yield length, _loop(builder, begin, end, length)
        begin = end


@contextmanager
def _loop(builder: Any, begin: Any, end: Any, step: int) -> Iterator[Any]:
    with cgutils.for_range_slice(builder, begin, end, _INT(step), _INT) as (index, _):
        yield index


@jit
def _multiply(out, out_row, start, start_row, start_rows_per_row, left, left_row, right, rows):
    """Compute out[out_row:][:rows] = start[start_row:][:rows] + left[left_row:][:rows] @ right.

    With start_rows_per_row = 0 instead of 1, start[start_row] is added to every row. `out` and
    `start` have the same number of columns; `right` has as many or more, of which the rest is not
    read.
    """
    inner = left.shape[1]
    columns = out.shape[1]

    for done in range(0, rows, BLOCK_ROWS):
        count = min(rows - done, BLOCK_ROWS)
        first_start_row = start_row + done * start_rows_per_row
        _tiles(
            out=out,
            out_offset=(out_row + done) * columns,
            out_stride=columns,
            start=start,
            start_offset=first_start_row * columns,
            start_stride=start_rows_per_row * columns,
            left=left,
            left_offset=(left_row + done) * inner,
            left_row_stride=inner,
            left_inner_stride=1,
            right=right,
            right_offset=0,
            right_stride=right.shape[1],
            rows=count,
            inner=right.shape[0],  # the rest of a row of `left` is padding
            columns=columns,
        )


@jit_inlined
def multiply(out, out_row, start, left, left_row, right, rows):
    """Compute out[out_row:][:rows] = start + left[left_row:][:rows] @ right; `start` has one row.

    Shapes: out (.., N'), start (1, >= N'), left (.., >= K), right (K, >= N').
    """
    _multiply(
        out=out,
        out_row=out_row,
        start=start,
        start_row=ZERO,
        start_rows_per_row=ZERO,
        left=left,
        left_row=left_row,
        right=right,
        rows=rows,
    )


@jit_inlined
def add_product(out, out_row, left, left_row, right, rows):
    """Compute out[out_row:][:rows] += left[left_row:][:rows] @ right.

    Shapes: out (.., N'), left (.., >= K), right (K, >= N'). `out` and `left` may be one array if
    these rows do not overlap.
    """
    _multiply(
        out=out,
        out_row=out_row,
        start=out,
        start_row=out_row,
        start_rows_per_row=_ONE,
        left=left,
        left_row=left_row,
        right=right,
        rows=rows,
    )


@jit
def add_transposed(out, left, left_row, right, right_row, rows):
    """Compute out += left[left_row:][:rows].T @ right[right_row:][:rows], a sum over rows.

    Shapes: out (M, N'), left (.., >= M), right (.., N').
    """
    inner = left.shape[1]
    columns = out.shape[1]

    for done in range(0, rows, BLOCK_ROWS):
        _tiles(
            out=out,
            out_offset=0,
            out_stride=columns,
            start=out,
            start_offset=0,
            start_stride=columns,
            left=left,
            left_offset=(left_row + done) * inner,
            left_row_stride=1,
            left_inner_stride=inner,
            right=right,
            right_offset=(right_row + done) * columns,
            right_stride=columns,
            rows=out.shape[0],
            inner=min(rows - done, BLOCK_ROWS),
            columns=columns,
        )


# --- elementwise functions
#
# They walk over whole slices with indices from 0, because Numba does not use vector instructions
# where an index might be negative and so count from the end.


@jit_inlined
def tanh_of(x):
    """Return tanh(x) by Eigen's approximation for float32.

    It is a rational function of degree 13 over 6 (MathFunctionsImpl.h). NaN stays NaN.
    """
    # Beyond this, tanh is 1 in float32. Both comparisons are false for a NaN, which so stays one.
    largest = np.float32(7.90531110763549805)
    x = -largest if x < -largest else x
    x = largest if x > largest else x

    # Horner's scheme for both polynomials: tanh(x) = x p(x**2) / q(x**2).
    square = x * x
    p = square * np.float32(-2.76076847742355e-16) + np.float32(2.00018790482477e-13)
    p = square * p + np.float32(-8.60467152213735e-11)
    p = square * p + np.float32(5.12229709037114e-08)
    p = square * p + np.float32(1.48572235717979e-05)
    p = square * p + np.float32(6.37261928875436e-04)
    p = square * p + np.float32(4.89352455891786e-03)

    q = square * np.float32(1.19825839466702e-06) + np.float32(1.18534705686654e-04)
    q = square * q + np.float32(2.26843463243900e-03)
    q = square * q + np.float32(4.89352518554385e-03)
    return x * p / q


@jit
def tanh(values):
    """Replace the values by their tanh."""
    for index in range(len(values)):
        values[index] = tanh_of(values[index])


@intrinsic
def _power_of_two(_typing, _exponent):
    """Return 2.0**exponent as a float32, by writing the exponent into the bits of the result."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        # IEEE 754: a float32 stores its exponent plus 127, above 23 bits of the fraction.
        biased = builder.add(args[0], ir.IntType(32)(127))
        return builder.bitcast(builder.shl(biased, ir.IntType(32)(23)), _FLOAT)

    return types.float32(types.int32), codegen


@jit
def exp(values):
    """Replace values <= 0 by their exponential, with the polynomial of Cephes's expf.

    Values below -87 give exp(-87), which float32 can still hold as a normal number. NaN stays NaN.
    """
    for index in range(len(values)):
        x = values[index]
        x = np.float32(-87) if x < np.float32(-87) else x

        # exp(x) = 2**exponent exp(rest), where rest = x - exponent log(2). The logarithm is
        # subtracted in two parts, so that nothing of it is lost to rounding. The first factor below
        # is 1 / log(2).
        exponent = np.floor(x * np.float32(1.44269504088896341) + np.float32(0.5))
        x = x - exponent * np.float32(0.693359375) - exponent * np.float32(-2.12194440e-4)

        # exp(x) = 1 + x + x**2 p(x), for |x| <= log(2) / 2.
        p = x * np.float32(1.9875691500e-4) + np.float32(1.3981999507e-3)
        p = x * p + np.float32(8.3334519073e-3)
        p = x * p + np.float32(4.1665795894e-2)
        p = x * p + np.float32(1.6666665459e-1)
        p = x * p + np.float32(5.0000001201e-1)
        p = x * x * p + x + np.float32(1)

        # The comparison keeps a NaN away from the conversion to an integer.
        lowest = np.float32(-127)
        values[index] = p * _power_of_two(np.int32(exponent if exponent > lowest else lowest))


@jit
def relu(values):
    """Replace negative values by 0. NaN stays NaN."""
    for index in range(len(values)):
        values[index] = np.float32(0) if values[index] < np.float32(0) else values[index]


@jit
def tanh_backward(gradient, output):
    """Compute gradient *= 1 - output**2, in place, where `output` is the tanh."""
    for index in range(len(gradient)):
        gradient[index] *= np.float32(1) - output[index] * output[index]


@jit
def relu_backward(gradient, output):
    """Set the gradient to 0, in place, where `output`, the relu, is 0."""
    for index in range(len(gradient)):
        gradient[index] = gradient[index] if output[index] > np.float32(0) else np.float32(0)


# --- copies and sums


@jit
def copy(out, matrix):
    """Compute out = matrix, for as many rows and columns as both have."""
    for row in range(min(len(out), len(matrix))):
        for column in range(min(out.shape[1], matrix.shape[1])):
            out[row, column] = matrix[row, column]


@jit
def copy_transposed(out, matrix):
    """Compute out[:columns, :rows] = matrix.T, in blocks of WIDTH rows: one cache line of `out`."""
    for first in range(0, len(matrix), WIDTH):
        source = matrix[first : first + WIDTH]
        target = out[:, first : first + WIDTH]
        for column in range(matrix.shape[1]):
            for row in range(len(source)):
                target[column, row] = source[row, column]


@jit
def copy_row(out, row):
    """Compute out = row, for as many numbers as `out` has."""
    for column in range(len(out)):
        out[column] = row[column]


@jit
def add_row(out, row):
    """Compute out += row, for as many numbers as `out` has."""
    for column in range(len(out)):
        out[column] += row[column]


@jit
def sum_rows(out, matrix, rows):
    """Compute out = matrix[:rows].sum(0), for as many columns as `out` has."""
    clear(out)
    for row in range(rows):
        add_row(out, matrix[row])


@jit
def clear(values):
    """Set all values to 0."""
    for index in range(len(values)):
        values[index] = 0
