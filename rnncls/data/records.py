"""Reads labelled sequences from the user's files, and names every bad row.

A row comes from `read_rows`, whatever the format of its file: {"sequence": [3, 1, 4], "label": 8}.
Only the current row is kept in memory.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.cells import (
    TokenRule,
    bad_label,
    empty_sequence,
    fields_of,
    label_of,
    looks_like_list,
    rule_of,
    sequence_of,
    tokens_of,
)
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import Dialect
from rnncls.data.files.headers import SEQUENCE_NAMES, key_of_field
from rnncls.data.files.opening import ReportBytes
from rnncls.data.files.rows import read_rows
from rnncls.data.prefix_labels import prefix_labels_of
from rnncls.errors import Problem


class Record(NamedTuple):
    """One good row: its line in the file, its tokens (at least one), its label as it is there."""

    line: int
    tokens: list[str]
    label: str

    # One for each token, where the config names a field of them.
    prefix_labels: list[str] | None = None


def read_records(
    path: str | Path,
    data: FilesConfig,
    dialect: Dialect,
    bad: BadRows,
    report_bytes: ReportBytes = lambda _: None,
) -> Iterator[Record | int]:
    """Yield the good rows of a file; a number stands for an empty sequence dropped on that line.

    `dialect` comes from `sniff`. Bad rows are added to `bad`.

    Raises: DataError if the file cannot be read any further.
    """
    # Asked for once, and not for each row.
    names = data.sequence_fields
    rule = rule_of(data)
    may_be_lists = data.tokens != "ids"
    for line, row in read_rows(path, dialect, [*names, data.label_field], bad, report_bytes):
        record = _record_of(line, row, names, rule, data)
        if isinstance(record, Problem):
            bad.add_problem(line, record)
            continue

        # Its brackets are parts of words. The first letter is enough for nearly every row.
        if may_be_lists and type(record) is Record and record.tokens[0][0] == "[":
            value = sequence_of(row, names)
            if isinstance(value, str) and looks_like_list(value):
                bad.note_like_list(line)
        yield record
        # A large row is not kept while the next one is read.
        del row, record


def _record_of(
    line: int, row: dict[str, Any], names: tuple[str, ...], rule: TokenRule, data: FilesConfig
) -> Record | int | Problem:
    """Return the record of a row, its line if its sequence is empty and dropped, or a Problem.

    `names` are those of the fields with the sequence.
    """
    # Nearly always one field, for which a call would be a part of the time.
    value = row.get(names[0]) if len(names) == 1 else sequence_of(row, names)
    if value is None and not any(name in row for name in names):
        return _no_sequence(row, names)
    tokens = tokens_of(value, rule)
    if isinstance(tokens, Problem):
        return tokens

    label = label_of(row.get(data.label_field))
    if label is None:
        return bad_label(row, data.label_field)

    # The label was checked first: a bad one is named even if the sequence is dropped.
    if tokens:
        field = data.prefix_labels_field
        if field is None:
            return Record(line, tokens, label)
        prefix_labels = prefix_labels_of(row, field, len(tokens), label)
        if isinstance(prefix_labels, Problem):
            return prefix_labels
        return Record(line, tokens, label, prefix_labels)
    if data.empty == "drop":
        return line
    return empty_sequence("data.empty=drop")


def _no_sequence(row: dict[str, Any], names: tuple[str, ...]) -> Problem:
    fields = " or ".join(f'"{name}"' for name in names)
    return Problem(
        f"no sequence: no field {fields}",
        expected="a field with a list or a text",
        found=fields_of(row),
        remedy=f"{key_of_field('sequence_field', names[0], row, SEQUENCE_NAMES)}, or fix the line",
        id="D14",
    )
