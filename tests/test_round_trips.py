"""Rows of any text that a program writes come back the same: none swallowed, none invented."""

import bz2
import csv
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnncls.config import FilesConfig
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import dialect_of
from rnncls.data.files.sniffing import sniff
from rnncls.data.records import Record, read_records
from rnncls.errors import DataError

Rows = list[tuple[str, str]]


PACKINGS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}


def packed(content: bytes, name: str, packing: str) -> tuple[bytes, str]:
    """Return the content of a packed file, and its name."""
    if packing != ".zip":
        return PACKINGS[packing](content), name + packing
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue(), name + packing


# How Python calls an encoding, and the key.
ENCODINGS = {
    "utf-8": "utf-8",
    "utf-8-sig": "utf-8",
    "utf-16": "utf-8",  # its mark says it
    "utf-16-le": "utf-16",
    "cp1252": "cp1252",
    "latin-1": "latin-1",
}


def rows_of(codec: str, without: str = "") -> st.SearchStrategy[Rows]:
    """Rows of texts and labels that an encoding can hold; surrogates are no text."""
    # Quotes, separators and line ends are rare among all characters, and what is tested most.
    codec = {"utf-8-sig": "utf-8", "utf-16-le": "utf-16"}.get(codec, codec)
    any_text = st.characters(codec=codec, exclude_characters=without, exclude_categories=["Cs"])
    special = [each for each in '"",;|\t\n\r \0' if each not in without]
    characters = any_text | st.sampled_from(special)
    sequences = st.text(characters, min_size=1, max_size=12).filter(str.strip)
    labels = st.text(characters, min_size=1, max_size=6).filter(str.strip)
    return st.lists(st.tuples(sequences, labels), min_size=1, max_size=6)


def objects(rows: Rows) -> list[dict[str, str]]:
    return [{"sequence": sequence, "label": label} for sequence, label in rows]


def read(content: bytes, name: str, **keys: Any) -> Rows:
    """Return the rows of a file, as training reads it, labels stripped. Raises: DataError."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(content)
        data = FilesConfig.model_validate(
            {"source": "files", "train": str(path), "tokens": "characters", **keys}
        )
        bad = BadRows(path)
        dialect = sniff(path, dialect_of(data), [*data.sequence_fields, data.label_field])
        records = list(read_records(path, data, dialect, bad))
        bad.raise_if_any()

    assert all(isinstance(record, Record) for record in records)
    return [
        # The labels of a file are stripped where they are numbered.
        ("".join(record.tokens), record.label.strip())
        for record in records
        if isinstance(record, Record)
    ]


def stripped(rows: Rows) -> Rows:
    """Return the rows with the labels that are learned."""
    return [(sequence, label.strip()) for sequence, label in rows]


def encodings_and_rows(without: str = "") -> st.SearchStrategy[tuple[str, Rows]]:
    """An encoding, and rows that it can hold."""
    return st.sampled_from([*ENCODINGS]).flatmap(
        lambda codec: st.tuples(st.just(codec), rows_of(codec, without))
    )


packings = st.sampled_from([*PACKINGS, ".zip"])


@settings(max_examples=60)
@given(encodings_and_rows(), packings, st.booleans())
def test_json_lines(drawn: tuple[str, Rows], packing: str, is_ascii: bool) -> None:
    codec, rows = drawn
    text = "".join(json.dumps(each, ensure_ascii=is_ascii) + "\n" for each in objects(rows))
    content, name = packed(text.encode(codec), "f.jsonl", packing)
    assert read(content, name, encoding=ENCODINGS[codec]) == stripped(rows)


@settings(max_examples=60)
@given(encodings_and_rows(), packings, st.sampled_from([None, 2]))
def test_a_json_array(drawn: tuple[str, Rows], packing: str, indent: int | None) -> None:
    codec, rows = drawn
    text = json.dumps(objects(rows), ensure_ascii=False, indent=indent)
    content, name = packed(text.encode(codec), "f.json", packing)
    assert read(content, name, encoding=ENCODINGS[codec]) == stripped(rows)


def csv_text(rows: Rows, delimiter: str, quotes_all: bool) -> str:
    """Return what Python's csv writes."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter)
    if quotes_all:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
    writer.writerows([("sequence", "label"), *rows])
    return file.getvalue()


@settings(max_examples=60)
@given(encodings_and_rows(), packings, st.sampled_from(",;|\t"), st.booleans())
def test_a_csv_writer(
    drawn: tuple[str, Rows], packing: str, delimiter: str, quotes_all: bool
) -> None:
    codec, rows = drawn
    text = csv_text(rows, delimiter, quotes_all)
    content, name = packed(text.encode(codec), "f.csv", packing)
    keys = {"encoding": ENCODINGS[codec], "quoting": "standard"}
    assert read(content, name, **keys) == stripped(rows)


@settings(max_examples=60)
@given(encodings_and_rows(), st.sampled_from(["f.csv", "f.tsv"]), st.booleans())
def test_a_csv_writer_whose_quotes_are_found(
    drawn: tuple[str, Rows], name: str, quotes_all: bool
) -> None:
    """What cannot be told is refused; nothing is read as other rows, and no row gets lost."""
    codec, rows = drawn
    text = csv_text(rows, "\t" if name == "f.tsv" else ",", quotes_all)
    try:
        found = read(text.encode(codec), name, encoding=ENCODINGS[codec])
    except DataError:
        return
    if found != stripped(rows):
        # Then each line is a row, and every quote a character.
        assert len(found) == len(text.removesuffix("\r\n").split("\n")) - 1
        assert "\n" not in "".join(sequence for sequence, _ in found)


@settings(max_examples=60)
@given(encodings_and_rows(without="\t\n"), packings)
def test_a_tsv_writer_without_quoting(drawn: tuple[str, Rows], packing: str) -> None:
    codec, rows = drawn
    lines = ["sequence\tlabel", *("\t".join(row) for row in rows)]
    text = "".join(f"{line}\n" for line in lines)
    content, name = packed(text.encode(codec), "f.tsv", packing)
    keys = {"encoding": ENCODINGS[codec], "quoting": "none"}
    assert read(content, name, **keys) == stripped(rows)


@pytest.mark.parametrize(
    "text", ["\ufeffa", "a\u2028b", "a\x85b", "a\x1cb", "\U0001f600\U0010ffff"]
)
def test_what_other_programs_take_for_a_line_end_is_text(text: str) -> None:
    rows = [(text, "x"), ("b", "y")]
    assert read(csv_text(rows, ",", False).encode(), "f.csv") == rows
    content = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects(rows))
    assert read(content.encode(), "f.jsonl") == rows
