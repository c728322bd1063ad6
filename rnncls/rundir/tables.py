"""metrics.jsonl and metrics.csv: one line per logged step."""

import csv
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from rnncls.rundir.paths import METRICS, METRICS_TABLE
from rnncls.system.files import (
    flush_to_disk,
    fsync_folder,
    new_file,
    open_regular,
    open_text,
    write_atomically,
)

# A row of ours has about 30 tags of about 30 characters. What is much larger was written by another
# program, and a line of any size would fill the memory.
MAX_LINE_BYTES = 64 * 1024
MAX_TAG_LENGTH = 200
MAX_STEP = 2**53

BLOCK_BYTES = 64 * 1024

Row = dict[str, Any]  # a step, and numbers by tag, None where not finite


class MetricsTables:
    """Both files, open for appending. Every method raises OSError if it cannot write."""

    def __init__(self, run_dir: Path, columns: Sequence[str]) -> None:
        """Append to metrics.jsonl, and to metrics.csv, which has the same rows from here on."""
        self._files: list[TextIO] = []
        try:
            # Without O_CREAT, because `keep_metrics` has made this file.
            self._lines = open_text(run_dir / METRICS, os.O_APPEND)
            self._files.append(self._lines)
            self._table_file = _open_table(run_dir, columns)
            self._files.append(self._table_file)
            self._table = _table_writer(self._table_file, columns)
        except OSError:
            self.close()
            raise

    def write(self, row: dict[str, float]) -> None:
        """Append a step's values to both files. JSON has no NaN: it becomes null."""
        finite = {tag: value if math.isfinite(value) else None for tag, value in row.items()}

        # Flushed at once: a killed process loses no line, and whoever follows the file sees it.
        self._lines.write(json.dumps(finite) + "\n")
        self._lines.flush()
        self._table.writerow(finite)
        self._table_file.flush()

    def close(self) -> None:
        """Close both files, also after an error."""
        # Closing writes what an error has left in the buffer, and then fails the same way again.
        for file in self._files:
            with suppress(OSError):
                file.close()


def keep_metrics(run_dir: Path, last_step: int) -> None:
    """Cut metrics.jsonl behind its last row of a step up to `last_step`; make it if there is none.

    Rows are in the order of their steps, so what is before that row stays as it is.

    Raises: OSError.
    """
    path = run_dir / METRICS
    try:
        file = _open_binary(path)
    except FileNotFoundError:
        write_atomically(path, b"")
        return

    with file:
        for end, line in lines_from_the_end(file):
            row = _row_of(line)
            if row is not None and row["step"] <= last_step:
                # A full disk may take all of a row but its line break.
                _cut(path, file, end, b"" if line.endswith(b"\n") else b"\n")
                return
        _cut(path, file, 0)


def _cut(path: Path, file: BinaryIO, end: int, last: bytes = b"") -> None:
    """Let `path`, which is open as `file`, end at the offset `end`, and with `last` behind it."""
    # Another name of the file may be anywhere, and what it names must not change. A copy also
    # replaces a file that may only be read.
    if not _is_ours_alone(path, file):
        with new_file(path) as copy:
            file.seek(0)
            for start in range(0, end, BLOCK_BYTES):
                copy.buffer.write(file.read(min(BLOCK_BYTES, end - start)))
            copy.buffer.write(last)
        fsync_folder(path.parent)
        return

    if end == file.seek(0, os.SEEK_END) and not last:
        return
    descriptor = open_regular(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.ftruncate(descriptor, end)
        os.write(descriptor, last)
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def _open_table(run_dir: Path, columns: Sequence[str]) -> TextIO:
    """Open metrics.csv for appending, with the rows that metrics.jsonl has."""
    path = run_dir / METRICS_TABLE
    end = _end_of_table(run_dir, columns)
    if end is not None:
        file = open_text(path, os.O_APPEND)
        os.ftruncate(file.fileno(), end)
        return file

    # Not cut to nothing: it may have another name, whose content is somebody else's.
    path.unlink(missing_ok=True)
    file = open_text(path, os.O_CREAT | os.O_EXCL)
    table = _table_writer(file, columns)
    table.writeheader()
    table.writerows(read_metrics(run_dir))
    return file


def _end_of_table(run_dir: Path, columns: Sequence[str]) -> int | None:
    """Return where metrics.csv has the last row of metrics.jsonl, as the offset behind it.

    None if it has no such row, has other columns, or is not there: then it is to be written anew.
    """
    with _open_binary(run_dir / METRICS) as lines:
        rows = (_row_of(line) for _, line in lines_from_the_end(lines))
        last = next((row for row in rows if row is not None), None)

    try:
        file = _open_binary(run_dir / METRICS_TABLE)
    except FileNotFoundError:
        return None
    with file:
        header = _table_line(columns, None)
        is_usable = _is_ours_alone(run_dir / METRICS_TABLE, file) and last is not None
        if not is_usable or file.read(len(header)) != header:
            return None
        expected = _table_line(columns, last)
        ends = (end for end, line in lines_from_the_end(file) if line == expected)
        return next(ends, None)


def _table_writer(file: TextIO, columns: Sequence[str]) -> "csv.DictWriter[str]":
    return csv.DictWriter(file, columns, extrasaction="ignore")


def _table_line(columns: Sequence[str], row: Row | None) -> bytes:
    """Return a row as a line of metrics.csv; for None, the header."""
    text = StringIO(newline="")
    table = _table_writer(text, columns)
    if row is None:
        table.writeheader()
    else:
        table.writerow(row)
    return text.getvalue().encode()


def read_metrics(run_dir: Path) -> Iterator[Row]:
    """Yield the rows of metrics.jsonl: a step, and numbers by tag, None where not finite.

    Lines that rnncls did not write are left out. Raises: OSError if there is a file that cannot
    be read.
    """
    try:
        file = _open_binary(run_dir / METRICS)
    except FileNotFoundError:
        return
    with file:
        while line := file.readline(MAX_LINE_BYTES + 1):
            row = _row_of(line)
            if row is not None:
                yield row
            # The rest of a line that is too long.
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES + 1)


def lines_from_the_end(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file with their line breaks, the last one first.

    Each comes with the offset behind it. Lines of more than MAX_LINE_BYTES are left out.
    """
    start = file.seek(0, os.SEEK_END)
    rest = b""  # what was read from `start` on and is not yielded yet
    while start:
        size = min(BLOCK_BYTES, start)
        start -= size
        file.seek(start)
        rest = file.read(size) + rest

        # The first line may begin in the block before; of the others, the last comes first.
        stop = len(rest)
        while (line_break := rest.rfind(b"\n", 0, max(0, stop - 1))) >= 0:
            if stop - line_break - 1 <= MAX_LINE_BYTES:
                yield start + stop, rest[line_break + 1 : stop]
            stop = line_break + 1
        # One byte more than allowed is enough to know that a line is too long.
        rest = rest[: min(stop, MAX_LINE_BYTES + 1)]

    if 0 < len(rest) <= MAX_LINE_BYTES:
        yield len(rest), rest


def _row_of(line: bytes) -> Row | None:
    """Return the row of a line of metrics.jsonl; None for a line that rnncls did not write."""
    if len(line) > MAX_LINE_BYTES:
        return None
    # A line that another program or a torn write left there raises or fails a test.
    try:
        row: Row = json.loads(line.decode())
        # `type`, not isinstance: true and false are integers to isinstance.
        has_step = type(row["step"]) is int and 0 <= row["step"] <= MAX_STEP
        # Tags are shown on terminals, which a control character could steer.
        has_tags = all(tag.isprintable() and len(tag) <= MAX_TAG_LENGTH for tag in row)
        numbers = [value for value in row.values() if value is not None]
        are_numbers = all(type(number) in (int, float) for number in numbers)
        if has_step and has_tags and are_numbers and all(map(math.isfinite, numbers)):
            return row
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        pass
    return None


def _open_binary(path: Path) -> BinaryIO:
    return open(open_regular(path), "rb")


def _is_ours_alone(path: Path, file: BinaryIO) -> bool:
    """Return whether a file may be written and has no second name."""
    return os.fstat(file.fileno()).st_nlink == 1 and os.access(path, os.W_OK)


class TrainingTime:
    """The seconds spent on training steps alone, from the rates that were logged."""

    def __init__(self, batch_size: int) -> None:
        self.seconds: float | None = None
        self._batch_size = batch_size
        self._last_step = 0

    def add(self, row: Row) -> None:
        """Count the steps of the next row."""
        # Each rate is the average since the row before that has one; neither evaluation nor saving
        # is part of it.
        rate = row.get("train/sequences_per_second")
        steps = row["step"] - self._last_step
        # What another program wrote may go back, or take for ever.
        if rate is None or rate <= 0 or steps <= 0:
            return

        seconds = (self.seconds or 0.0) + self._batch_size * steps / rate
        if math.isfinite(seconds):
            self.seconds = seconds
        self._last_step = row["step"]
