"""Recognises the header of a table, or an object of JSON, where a sequence belongs."""

import json
import re
from pathlib import Path
from typing import Any

from rnncls.data.cells import tokens_of
from rnncls.data.files.headers import LABEL_NAMES, SEQUENCE_NAMES, shown_names
from rnncls.data.subwords import MARK
from rnncls.errors import ConfigError, DataError, Problem
from rnncls.predict.predictor import Predictor

# What may stand between the names of a header.
_SEPARATORS = "\t,;|"
_QUOTES = "\"'"

_ARRAY = re.compile(r"""\s*\[\s*(\{\s*("|$)|$)""")

_WHAT = {"jsonl": "an object of JSON", "json": "a JSON array"}

# Of a name that is not the run's own: words behind each other may be a sentence.
MOST_WORDS = 3


def refuse_names(cells: list[Any], where: str) -> None:
    """Raise DataError if the first row of a table without a header holds the names of columns."""
    if all(isinstance(cell, str) for cell in cells) and _are_names(cells, set()):
        raise DataError(
            Problem(
                "a header, where the files of training have none",
                where,
                found=shown_names(cells),
                remedy="data.header=true data.sequence_field=...; or data.header=false, if it is a "
                "row",
                id="D14",
            )
        )


def refuse_header(predictor: Predictor, first_line: str, source: str | Path) -> None:
    """Raise ConfigError if the first line of a text is not a sequence, but that of a data file.

    It would be predicted as a sequence, and so would the labels below it.
    """
    kind = _kind_of_file(predictor, first_line)
    if not kind:
        return

    if str(source) == "stdin":
        meant = "--input FILE"
        remedy = "--input FILE, which reads JSON, CSV and TSV"
    else:
        meant = f"--input {source} --read format={kind}"
        remedy = f"--read format={kind}, or a name that ends in .{kind}"
    what = _WHAT.get(kind, "a header line")
    raise ConfigError(
        Problem(
            f"{what} in place of a sequence: did you mean {meant}?",
            f"{source}:1",
            expected="one sequence per line, and nothing else",
            found=first_line,
            remedy=remedy,
            id="C17",
        )
    )


def _kind_of_file(predictor: Predictor, line: str) -> str:
    """Return json, jsonl, csv or tsv if a line begins such a file; "" if it may be a text."""
    own = {*predictor.data.sequence_fields, predictor.data.label_field}
    if line.startswith("{"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            return ""
        known = own.union(SEQUENCE_NAMES)
        return "jsonl" if isinstance(row, dict) and not known.isdisjoint(row) else ""
    # The objects of an array may follow on the same line or below. `[{` alone begins no text.
    if _ARRAY.match(line) and not _is_known(predictor, line):
        return "json"

    for separator in _SEPARATORS:
        names = [name.strip(_QUOTES) for name in line.split(separator)]
        if len(names) > 1 and _are_names(names, own):
            return "tsv" if separator == "\t" else "csv"

    # The header of a single column, unless the model has seen such a text.
    name = line.strip(_QUOTES)
    if name in predictor.data.sequence_fields and not _is_known(predictor, name):
        return "csv"
    return ""


def _is_known(predictor: Predictor, text: str) -> bool:
    """Return whether the model has seen every token of a text."""
    tokens = tokens_of(text, predictor.rule)
    if isinstance(tokens, Problem):
        return False
    # Nearly every text has known parts. A word that training has often is a part as a whole.
    if predictor.vocabulary.subwords is not None:
        tokens = [MARK + token for token in tokens]
    return all(map(predictor.vocabulary.index.get, tokens))


def _are_names(names: list[str], own: set[str]) -> bool:
    """Return whether the cells of a line are names of columns."""
    if len(set(names)) < len(names) or not all(names):
        return False
    if not own.isdisjoint(names):
        return True

    # Of columns that the run does not know, two are enough, or one among names without a space.
    if any(name != name.strip() or len(name.split()) > MOST_WORDS for name in names):
        return False
    usual = {*SEQUENCE_NAMES, *LABEL_NAMES}
    num_usual = sum(name.lower() in usual for name in names)
    are_words = all(name.isidentifier() for name in names)
    return num_usual > 1 or (num_usual == 1 and are_words)
