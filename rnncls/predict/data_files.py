"""Read the sequences of a data file, with the other fields of its rows."""

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.cells import label_of, sequence_of
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import TABLES, described, dialect_of, is_remarkable
from rnncls.data.files.headers import SEQUENCE_NAMES, meant
from rnncls.data.files.rows import read_rows
from rnncls.data.files.sniffing import sniff
from rnncls.data.new_files import as_new_file, with_options
from rnncls.errors import DataError, Problem
from rnncls.predict.headers import refuse_names
from rnncls.predict.predictor import Label, Predictor, ReadTokens, no_sequence, read_tokens
from rnncls.predict.reading import Fields, Row, as_given
from rnncls.system.streams import say

NO_FIELDS: Fields = {}


class _Kept(NamedTuple):
    """What is kept of each row beside its ids."""

    fields: bool
    tokens: bool


def rows_of_file(
    predictor: Predictor,
    path: str | Path,
    bad: BadRows,
    overrides: Sequence[str] = (),
    keep_fields: bool = False,
    keep_tokens: bool = False,
) -> Iterator[Row]:
    """Yield the sequences of a file of any format, with their labels where it has any.

    The fields are named as in training, but for what `overrides` say. Bad rows go to `bad`; with
    `keep_fields`, those of which only the sequence is bad are yielded as well, without ids. With
    `keep_tokens`, each row has its tokens.

    Raises: DataError if the file cannot be read. Its remedies name options: the run's own config
    says what its fields are called. ConfigError for bad overrides.
    """
    data = as_new_file(predictor.data, path, overrides)
    try:
        is_headless = "data.header=false" in overrides
        keep = _Kept(keep_fields, keep_tokens)
        yield from _rows_of_file(predictor, path, data, bad, keep, is_headless)
    except DataError as error:
        name = data.sequence_fields[0]
        remedy = f'--sequence-field NAME, or call the column "{name}", as in training'
        raise with_options(error, remedy) from None


def has_own_columns(predictor: Predictor, path: str | Path) -> bool:
    """Return whether a file is clearly a data file with the fields of training, whatever its name.

    Training reads such a file by what stands in it, and so does prediction.
    """
    data = as_new_file(predictor.data, path)
    # Columns without a header are called 1, 2, 3, as those of any other table.
    if not data.header:
        return False
    names = data.sequence_fields
    try:
        dialect = sniff(path, dialect_of(data)._replace(has_label=False), list(names))
        _, fields = next(read_rows(path, dialect, list(names), BadRows(path)), (0, NO_FIELDS))
    except DataError:
        return False
    # A line of text may be the name of the field, too: one column alone is none.
    is_clear = len(fields) > 1 or dialect.format not in TABLES
    return is_clear and any(name in fields for name in names)


def _rows_of_file(
    predictor: Predictor,
    path: str | Path,
    data: FilesConfig,
    bad: BadRows,
    keep: _Kept,
    is_headless: bool,
) -> Iterator[Row]:
    """Yield the rows; `is_headless`: the user has said that there is no header."""
    names = data.sequence_fields
    dialect = sniff(path, dialect_of(data)._replace(has_label=False), list(names))
    known = {str(label): label for label in predictor.labels}
    # Without a header, the first column may be that of the labels in one file and that of the
    # sequences in another one, which has no labels then.
    label = None if data.label_field in names else data.label_field

    # Rows that cannot be read at all are never seen here, but are counted in `bad`, and are rows of
    # the file all the same. Those whose sequence is bad are seen and counted.
    num_seen = 0
    num_bad = 0

    # A table needs no column of labels.
    for line, fields in read_rows(path, dialect, list(names), bad):
        num_seen += 1
        # That the files of training had no header says little of a new one.
        if num_seen == 1 and not dialect.header and not is_headless:
            refuse_names([*fields.values()], f"{path}:{line}")
        number = num_seen + bad.count - num_bad
        kept = fields if keep.fields else NO_FIELDS

        sequence = sequence_of(fields, names)
        if sequence is None:
            read: ReadTokens | Problem = _no_sequence(names, fields)
        else:
            read = read_tokens(predictor, sequence)
        if isinstance(read, Problem):
            num_bad += 1
            bad.add_problem(line, read)
            if keep.fields:
                yield Row(line, number, [], sequence, kept)
            continue

        given = sequence if type(sequence) is str else as_given(sequence)
        true = None if label is None else _true_label(fields.get(label), known)
        tokens = read.names if keep.tokens else ()
        row = Row(line, number, read.ids, given, kept, true, tokens)
        # Millions of tokens may not stay here while the row is answered.
        del read, tokens
        yield row

    # Behind the last row: an error stands alone.
    if is_remarkable(dialect):
        say(f"rnncls: {path}: read as: {described(dialect)}")


def _true_label(value: Any, known: dict[str, Label]) -> Label | None:
    """Return the label that a row has, None for what is no label to compare with, such as null.

    `known` are the labels of the model by their texts.
    """
    # Nearly all of them, as a table has them.
    if type(value) is str and value in known:
        return known[value]
    text = label_of(value)
    return None if text is None else known.get(text, known.get(text.strip(), value))


def _no_sequence(names: tuple[str, ...], fields: Fields) -> Problem:
    """Return the problem of a row without a sequence, with the field that may be meant."""
    problem = no_sequence(fields, names)
    if not fields or any(name in fields for name in names):
        return problem
    found = meant(names[0], list(fields), SEQUENCE_NAMES) or "NAME"
    remedy = f"--sequence-field {shlex.quote(found)}, or --bad skip"
    return replace(problem, remedy=remedy)
