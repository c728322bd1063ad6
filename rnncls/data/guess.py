"""Makes a config from a file: what `rnncls init` prints, and what `rnncls train FILE` trains.

A first pass over the file finds its columns (columns.py). A second one reads it as training will,
and counts rows, classes and lengths (seen.py). The config follows from these, each key with its
reason (guess_defaults.py).
"""

from __future__ import annotations

from array import array
from collections.abc import Set
from pathlib import Path
from typing import Any, NamedTuple, cast

from rnncls.config import FilesConfig, parse_config
from rnncls.data.cells import empty_sequence
from rnncls.data.columns import MOST_ROWS, Layout, find_layout
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import dialect_of
from rnncls.data.guess_defaults import (
    data_entries,
    keys_of_text,
    model_entries,
    train_entries,
)
from rnncls.data.guess_shown import assumptions, shown_value, to_yaml
from rnncls.data.held_out import MOST_TOKENS_KEPT, SMALL_FILE, SmallRow
from rnncls.data.records import Record, read_records
from rnncls.data.seen import Seen
from rnncls.data.table import hash_of
from rnncls.errors import DataError, Problem


class Guess(NamedTuple):
    """A config made from a file."""

    raw: dict[str, Any]  # for `parse_config`, in the current folder
    text: str  # the same as YAML, with comments
    assumed: list[str]  # what a person should look at, one line each


def guess_config(
    path: str | Path,
    sequence_field: str | tuple[str, ...] | None = None,
    label_field: str | None = None,
    tokens: str | None = None,
    path_in_text: str = "",
    asked: Set[str] = frozenset(),
    reading: FilesConfig | None = None,
) -> Guess:
    """Make a config from a data file. What is not None is taken as it is.

    The path stands in the config as it is given here; in its text `path_in_text` stands, if given.
    `asked` are the keys that others will replace: nothing is said to be assumed of them. `reading`
    says how the file is to be read, and by which rule rows are held out.

    Raises: DataError if the file cannot be read, has bad rows, or does not say what to train on.
    """
    reading = reading or FilesConfig(source="files", train=str(path))
    layout = find_layout(
        path,
        sequence_field,
        label_field,
        tokens,
        dialect_of(reading),
        reading.prefix_labels_field,
    )
    seen = _look(path, layout, reading)
    entries = [*data_entries(seen), *model_entries(seen), *train_entries(seen)]

    raw: dict[str, Any] = {}
    for entry in entries:
        raw.setdefault(entry.section, {})[entry.key] = entry.value

    if path_in_text:
        entries = [
            entry._replace(value=path_in_text) if entry.key == "train" else entry
            for entry in entries
        ]
    return Guess(raw, to_yaml(seen, entries), assumptions(seen, raw, asked))


def _look(path: str | Path, layout: Layout, reading: FilesConfig) -> Seen:
    """Count what is in the first rows. Raises: DataError for bad rows, or if there is no row."""
    data = _data_of(path, layout, reading)
    seen = Seen(str(path), layout, reading)
    stops_at_bad = reading.bad == "error"
    bad = BadRows(path, stops=stops_at_bad)
    bytes_read: list[int] = []

    for record in read_records(path, data, layout.dialect, bad, bytes_read.append):
        # A file that has bad rows is read to its end, because a user fixes all of them at once.
        has_bad = bad.count > seen.num_empty and stops_at_bad
        if seen.num_rows + seen.num_empty >= MOST_ROWS and not has_bad:
            seen.is_all = False
            break
        # A number instead of a record is the line of an empty sequence.
        if isinstance(record, Record):
            _count(seen, record)
        else:
            seen.num_empty += 1
            bad.add_problem(record, empty_sequence("fix the line, or it is left out"))
        # A large row is not kept while the next one is read.
        del record

    # Empty sequences are no error; they are only named among the errors. Rows to be skipped are
    # named by whoever reads the file next.
    if bad.count > seen.num_empty and (stops_at_bad or not seen.num_rows):
        bad.raise_if_any(seen.num_rows)
    if not seen.num_rows:
        raise DataError(Problem("0 sequences", str(path), found="empty ones", id="D2"))

    seen.lengths = array("q", sorted(seen.lengths))
    seen.total = seen.num_rows
    if not seen.is_all:
        # As many rows in the rest of the file as in its beginning.
        share = sum(bytes_read) / Path(path).stat().st_size
        seen.total = max(seen.num_rows, int(round(seen.num_rows / share, -4)))
    return seen


def _data_of(path: str | Path, layout: Layout, reading: FilesConfig) -> FilesConfig:
    """Return how the rows are read. Raises: ConfigError for keys that do not fit the tokens."""
    raw: dict[str, Any] = {
        "source": "files",
        "train": "given",  # the path itself is passed beside it
        "sequence_field": layout.sequence_field,
        "label_field": layout.label_field,
        "prefix_labels_field": reading.prefix_labels_field,
        "tokens": layout.tokens,
        "empty": "drop",
    }
    raw |= keys_of_text(layout, reading)
    data = parse_config({"data": raw}, f"the config made from {path}").data
    return cast(FilesConfig, data)


def _count(seen: Seen, record: Record) -> None:
    seen.num_rows += 1
    seen.lengths.append(len(record.tokens))
    # Classes beyond any reason would fill the memory.
    label = record.label.strip()[:200]
    seen.classes[label] += 1

    if not seen.example:
        glue = "" if seen.layout.tokens == "characters" else " "
        seen.example = f"{shown_value(glue.join(record.tokens))} -> {shown_value(label)}"
    if seen.num_rows <= SMALL_FILE:
        tokens = frozenset(record.tokens[:MOST_TOKENS_KEPT])
        seen.small.append(SmallRow(hash_of(record.tokens), label, tokens))
