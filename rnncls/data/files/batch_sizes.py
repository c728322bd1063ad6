"""Tells what a batch of a Parquet or Arrow file takes in memory, before it is taken.

A few bytes of a file can stand for gigabytes: a dictionary has a long text once, and a row only
says which one it is; a batch of an Arrow file may be compressed, and is read as a whole.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BATCH_ROWS = 1_024

# A whole batch of an Arrow file is in memory while its rows are read, with the dictionaries of
# its columns and, if it is compressed, with what it was unpacked from.
MOST_BATCH_BYTES = 2**28

PIECE_BYTES = 2**24  # of rows that become Python's objects together

# Fields of the tables of FlatBuffers in an Arrow file, by their position in Arrow's schema.
_HEADER = 2  # of a message
_ID, _BATCH, _IS_DELTA = range(3)  # of a dictionary
_BUFFERS = 2  # of a batch
_COMPRESSION = 3


def largest_batch(path: str | Path, is_file: bool) -> int:
    """Return the most bytes of memory that a batch of an Arrow file, or stream, takes.

    Nothing is read but where the batches say their sizes. Raises: what pyarrow raises for a
    damaged file; struct.error.
    """
    import pyarrow
    import pyarrow.ipc

    dictionaries: dict[int, int] = {}  # bytes of each, by its id
    largest = 0
    # Mapped, because a message has its body, which may be of any size.
    with pyarrow.memory_map(str(path)) as source:
        if is_file:
            source.seek(8)
        while source.tell() < source.size():
            try:
                message = pyarrow.ipc.read_message(source)
            except EOFError:
                break
            if message.body is None:
                continue
            size, dictionary, is_delta = _size_in_memory(message)
            if dictionary is None:
                largest = max(largest, size + sum(dictionaries.values()))
            else:
                before = dictionaries.get(dictionary, 0) if is_delta else 0
                dictionaries[dictionary] = before + size
    return max(largest, sum(dictionaries.values()))


def _size_in_memory(message: Any) -> tuple[int, int | None, bool]:
    """Return the bytes of a message in memory, and which dictionary it is, and if only more of it.

    pyarrow has verified the tables of the message.
    """
    tables = bytes(message.metadata)
    batch = _target(tables, _field(tables, _target(tables, 0), _HEADER))
    dictionary = None
    is_delta = False
    if message.type == "dictionary":
        at = _field(tables, batch, _ID)
        dictionary = struct.unpack_from("<q", tables, at)[0] if at else 0
        at = _field(tables, batch, _IS_DELTA)
        is_delta = bool(at and tables[at])
        batch = _target(tables, _field(tables, batch, _BATCH))

    size = message.body.size
    if _field(tables, batch, _COMPRESSION):
        size += sum(_unpacked_sizes(message.body, tables, batch))
    return size, dictionary, is_delta


def _unpacked_sizes(body: Any, tables: bytes, batch: int) -> Iterator[int]:
    """Yield the size of each compressed buffer, which stands before it."""
    at = _field(tables, batch, _BUFFERS)
    if not at:
        return
    vector = _target(tables, at)
    (count,) = struct.unpack_from("<I", tables, vector)
    for number in range(count):
        offset, length = struct.unpack_from("<qq", tables, vector + 4 + 16 * number)
        if length >= 8:
            (size,) = struct.unpack("<q", body[offset : offset + 8])
            # -1 stands for a buffer that is not compressed, because that would be no smaller.
            yield max(size, 0)


def _target(tables: bytes, at: int) -> int:
    """Return the position that an offset in FlatBuffers points to."""
    return at + int(struct.unpack_from("<I", tables, at)[0])


def _field(tables: bytes, table: int, number: int) -> int:
    """Return the position of a field of a table of FlatBuffers, 0 if it is not there."""
    names = table - int(struct.unpack_from("<i", tables, table)[0])
    if 4 + 2 * number >= struct.unpack_from("<H", tables, names)[0]:
        return 0
    offset = int(struct.unpack_from("<H", tables, names + 4 + 2 * number)[0])
    return table + offset if offset else 0


def pieces_of(batch: Any, most: int) -> Iterator[tuple[Any, int]]:
    """Yield a batch in pieces of a few rows, each with the bytes that it takes, at most `most`.

    A piece of one row may have any number of them.
    """
    start = 0
    while start < batch.num_rows:
        piece = batch.slice(start, BATCH_ROWS)
        while (size := size_of(piece)) > most and piece.num_rows > 1:
            piece = piece.slice(0, max(1, piece.num_rows * most // size))
        yield piece, size
        start += piece.num_rows


def size_of(piece: Any) -> int:
    """Return the bytes of rows of which each has its own copy of what it takes from a dictionary.

    Raises: what pyarrow raises for damaged rows.
    """
    return sum(map(_size_of_column, piece.columns))


def _size_of_column(column: Any) -> int:
    from pyarrow import compute, types

    kind = column.type
    if types.is_dictionary(kind):
        values = column.dictionary
        if types.is_string(kind.value_type) or types.is_large_string(kind.value_type):
            lengths = compute.binary_length(values).take(column.indices)
            return int(compute.sum(lengths).as_py() or 0)
        # Numbers and dates, nearly always.
        return len(column) * min(int(values.nbytes), max(8, _widest(values)))
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return 8 * len(column) + _size_of_column(column.flatten())
    if types.is_struct(kind):
        return sum(map(_size_of_column, column.flatten()))
    if types.is_string_view(kind) or types.is_binary_view(kind):
        return _size_of_views(column)
    return int(column.nbytes)


def _widest(values: Any) -> int:
    """Return the bytes of the largest of a few values of any type."""
    return max((int(values.slice(at, 1).nbytes) for at in range(len(values))), default=0)


def _size_of_views(column: Any) -> int:
    """Return the bytes of texts that may be pieces of one text."""
    # The first 4 bytes of the 16 of each are its length.
    views = column.buffers()[1]
    start = 16 * column.offset
    lengths = memoryview(views)[start : start + 16 * len(column)].cast("B").cast("i")[::4]
    return sum(lengths) + 16 * len(column)


def longest_of_dictionaries(piece: Any) -> int:
    """Return the bytes of a row that has the longest text of each column's dictionary.

    `piece` is a row of which all texts are numbers of such a dictionary.
    """
    from pyarrow import compute, types

    size = 0
    for column in piece.columns:
        while types.is_list(column.type) or types.is_large_list(column.type):
            column = column.flatten()
        for part in column.flatten() if types.is_struct(column.type) else [column]:
            if types.is_dictionary(part.type):
                lengths = compute.binary_length(part.dictionary)
                size += int(compute.max(lengths).as_py() or 0)
    return size
