"""Files of every kind: packed, encoded, one JSON array, Parquet, Arrow, Excel, and other ones."""

import bz2
import gzip
import importlib
import io
import json
import lzma
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnncls.data.files import arrow
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import Dialect, described
from rnncls.data.files.encodings import ToUtf8
from rnncls.data.files.formats import format_of
from rnncls.data.files.lines import read_lines
from rnncls.data.files.rows import read_rows
from rnncls.data.files.sniffing import sniff
from rnncls.errors import DataError

row = pytest.mark.row

ROWS = [{"sequence": "a b", "label": "x"}, {"sequence": "ä \u2028 €", "label": "y"}]
CSV = "sequence,label\na b,x\nä \u2028 €,y\n"
TSV = CSV.replace(",", "\t")


def rows_of(path: Path, bad: BadRows | None = None, **wanted: Any) -> list[tuple[int, Any]]:
    dialect = sniff(path, Dialect(**wanted), ["sequence", "label"])
    bad = bad or BadRows(path)
    rows = list(read_rows(path, dialect, ["sequence", "label"], bad))
    bad.raise_if_any()
    return rows


def refused(path: Path, **wanted: Any) -> str:
    with pytest.raises(DataError) as caught:
        rows_of(path, **wanted)
    return caught.value.render()


def zipped(**members: str) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("_", "."), text)
    return packed.getvalue()


# --- encodings


@row("D12")
@pytest.mark.parametrize(
    ("content", "encoding", "found"),
    [
        (TSV.encode("utf-8-sig"), "utf-8", "UTF-8 with mark"),
        (TSV.encode("utf-16"), "utf-8", "UTF-16 with mark"),
        (b"\xfe\xff" + TSV.encode("utf-16-be"), "utf-8", "UTF-16 with mark"),
        (TSV.encode("utf-16-le"), "utf-16", "UTF-16 without mark"),
        (TSV.encode("utf-16-be"), "utf-16", "UTF-16 without mark"),
        (TSV.encode("utf-8-sig"), "cp1252", "UTF-8 with mark"),
        (gzip.compress(TSV.encode("utf-16"), mtime=0), "utf-8", "UTF-16 with mark"),
    ],
)
def test_a_mark_says_how_text_is_encoded(
    tmp_path: Path, content: bytes, encoding: str, found: str
) -> None:
    path = tmp_path / "d.tsv"
    path.write_bytes(content)
    assert [fields for _, fields in rows_of(path, encoding=encoding)] == ROWS
    dialect = sniff(path, Dialect(encoding=encoding), [])
    assert described(dialect) == f"tab-separated, no quoting, {found}"


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_an_encoding_without_a_mark_is_read_when_it_is_asked_for(
    tmp_path: Path, encoding: str
) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes("sequence,label\né,x\n".encode(encoding))
    assert rows_of(path, encoding=encoding) == [(2, {"sequence": "é", "label": "x"})]


@pytest.mark.parametrize("order", ["utf-16-le", "utf-16-be"])
def test_an_array_without_a_mark_is_an_array(tmp_path: Path, order: str) -> None:
    path = tmp_path / "d.json"
    path.write_bytes('[{"sequence": "é", "label": "x"}]'.encode(order))
    assert rows_of(path, encoding="utf-16") == [(1, {"sequence": "é", "label": "x"})]
    assert "data.encoding=utf-16" in refused(path)


@row("D11")
@pytest.mark.parametrize("rows", ["1;gut;a\n2;schlecht;b\n", "1;schön;a\n", ""])
def test_a_row_below_a_header_that_is_no_text_is_not_the_header(tmp_path: Path, rows: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(f"Nr;Rückmeldung;Label\n{rows}".encode("cp1252"))
    with pytest.raises(DataError, match="not UTF-8") as raised:
        sniff(path, Dialect(), ["Rückmeldung", "Label"])
    problem = raised.value.problems[0]
    assert problem.where == f"{path}:1"
    assert "data.encoding=cp1252" in problem.remedy

    found = sniff(path, Dialect(encoding="cp1252"), ["Rückmeldung", "Label"])
    assert found.separator == ";"


@row("D11")
def test_text_in_another_encoding_names_those_to_try(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes("sequence,label\né,x\n".encode("cp1252"))
    assert "byte 0xe9 at offset 0" in refused(path)
    assert "data.encoding=cp1252" in refused(path)
    path.write_bytes(TSV.encode("utf-16-le"))
    assert "data.encoding=utf-16" in refused(path)
    path.write_bytes(TSV.encode("utf-32"))
    assert "UTF-32" in refused(path)

    # One bad line, not a bad file.
    path.write_bytes(b"sequence,label\n\x81,x\na,y\n")
    bad = BadRows(path)
    lines = list(read_lines(path, bad, "cp1252"))
    assert [number for number, _ in lines] == [1, 3]
    assert bad.problems[0].what == "not Windows-1252"
    assert "byte 0x81 at offset 0" in bad.problems[0].found
    path.write_bytes("ab\n".encode("utf-16") + b"\x00\xd8\n\0c\0")
    assert [text for _, text in read_lines(path, BadRows(path))] == ["ab", "c"]
    path.write_bytes("ab\n".encode("utf-16") + b"c")
    assert [text for _, text in read_lines(path, BadRows(path))] == ["ab"]


@settings(max_examples=50, deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.integers(1, 7)), st.booleans()
)
def test_a_stream_is_decoded_wherever_it_is_cut(
    text: str, sizes: list[int], has_mark: bool
) -> None:
    text = "first " + text
    content = text.encode("utf-16") if has_mark else text.encode()
    to_utf_8 = ToUtf8("stdin", "utf-8")
    found = b""
    for size in sizes:
        found += to_utf_8.feed(content[:size])
        content = content[size:]
    found += to_utf_8.feed(content) + to_utf_8.feed(b"", is_last=True)
    assert found.decode().removeprefix("\ufeff") == text


# --- packed files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv.gz", gzip.compress(CSV.encode(), mtime=0)),
        ("d.csv.bz2", bz2.compress(CSV.encode())),
        ("d.csv.xz", lzma.compress(CSV.encode())),
        ("without_an_end", bz2.compress(CSV.encode()) + bz2.compress(b"")),
        ("d.zip", zipped(d_csv=CSV, **{"__MACOSX/._d_csv": "junk"})),
        ("d.csv.zip", zipped(d_csv=CSV)),
        ("d.csv.zip", zipped(data=CSV)),
    ],
)
def test_a_packed_file_is_read(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert [fields for _, fields in rows_of(path)] == ROWS


@row("D20", "D14")
def test_packed_files_that_are_damaged_or_hold_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.csv"
    many = "".join(f"{random.Random(n).random()},x\n" for n in range(2000))
    for pack in (bz2.compress, lzma.compress, gzip.compress):
        packed = pack(many.encode())
        path.write_bytes(packed[:-40])
        assert "error[D20]" in refused(path)
        path.write_bytes(packed[:400] + b"\xff\x00\xff" + packed[403:])
        assert "error[D20]" in refused(path)
    path.write_bytes(zipped(d_csv=CSV)[:-30])
    assert "the zip file is damaged" in refused(path)

    path.write_bytes(zipped(a_csv=CSV, b_csv=CSV))
    assert "2 files: a.csv, b.csv" in refused(path)
    path.write_bytes(zipped())
    assert "an empty zip" in refused(path)
    path.write_bytes(bz2.compress(gzip.compress(CSV.encode())))
    assert "packed twice: gzip in bzip2" in refused(path)
    path.write_bytes(b"\x28\xb5\x2f\xfd" + b"x" * 20)
    assert "a Zstandard file" in refused(path)

    # A Python without the library.
    path.write_bytes(lzma.compress(CSV.encode()))
    monkeypatch.setitem(__import__("sys").modules, "lzma", None)
    assert "this Python cannot read xz" in refused(path)


@row("D20")
@pytest.mark.slow
@pytest.mark.parametrize("pack", [bz2.compress, gzip.compress, lzma.compress])
def test_no_bomb_is_unpacked(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "d.csv"
    # Long rows, so that the bound is reached after a few thousand of them.
    path.write_bytes(pack(b"sequence,label\n" + (b"a" * 1021 + b",b\n") * 2**17))
    assert "unpacks to more than 500 times" in refused(path)


# --- JSON


ARRAY = '[\n{"sequence": "a b", "label": "x"},\n\n{"sequence":"ä \u2028 €","label":"y"} ]\n'


def test_an_array_is_read_with_the_lines_of_its_objects(tmp_path: Path) -> None:
    path = tmp_path / "d.json"
    path.write_text(ARRAY)
    assert rows_of(path) == [(2, ROWS[0]), (4, ROWS[1])]
    assert described(sniff(path, Dialect(), [])) == "a JSON array, UTF-8"
    path.write_text(json.dumps(ROWS, indent=4))
    assert rows_of(path) == [(2, ROWS[0]), (6, ROWS[1])]
    path.write_bytes(json.dumps(ROWS, ensure_ascii=False).encode("utf-16"))
    assert [fields for _, fields in rows_of(path)] == ROWS
    for text in ("[]", " [ ] \n", ""):
        path.write_text(text)
        assert rows_of(path, format="json") == []

    # Lines with an object each are what the name has always meant.
    path.write_text("".join(json.dumps(fields) + "\n" for fields in ROWS))
    assert rows_of(path) == [(1, ROWS[0]), (2, ROWS[1])]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.dictionaries(st.text('ab{}[]",\\'), VALUES, max_size=3), max_size=8),
    st.sampled_from([None, 0, 2]),
    st.integers(1, 40),
)
def test_an_array_is_read_wherever_its_blocks_end(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[dict[str, Any]],
    indent: int | None,
    block_bytes: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rnncls.data.files.json_rows.BLOCK_BYTES", block_bytes)
        found = list(read_rows(path, Dialect("json"), [], BadRows(path)))
    assert [fields for _, fields in found] == rows


@row("D11", "D13", "D14")
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"sequence": "a"},\n{"sequence": b},\n{"sequence": "c"}]', [":2", "not JSON"]),
        ('[{"sequence": "a"},\n3]', [":2", "not a JSON object"]),
        ('[{"sequence": "a"}\n{"sequence": "b"}]', [":2", "a comma or ]"]),
        ('[{"sequence": "a"},\n{"sequence": "b"', [":2", "ends too early"]),
        ('[{"sequence": "a"},\n', [":2", "ends too early"]),
        ('[{"sequence": "a"}', [":1", "a comma or ]", "cut off"]),
        ('[{"sequence": "a"}]\nx', [":2", "nothing behind the end"]),
        ('[{"sequence": "a", "label": "x},\n{"sequence": "b"}, {"sequence": "c"}]', [":1"]),
        ('{"sequence": "a"}', [":1", "an array of objects"]),
        ('[{"sequence": "a"},\n{"sequence": "\\ud800"}]', [":2", "half of a surrogate pair"]),
        ('[{"sequence": "' + "a" * 3000 + '"}]', [":1", "a very long", "max_record_bytes=8192"]),
        ("[" * 100_000, [":1"]),
    ],
)
def test_bad_arrays_are_refused_with_the_line(tmp_path: Path, text: str, says: list[str]) -> None:
    path = tmp_path / "d.json"
    path.write_text(text)
    message = refused(path, format="json", max_record_bytes=1024)
    assert f"{path}{says[0]}" in message
    assert all(part in message for part in says)

    # What is no UTF-8 is one bad object.
    path.write_bytes(b'[{"sequence": "a"},\n{"sequence": "\xff"},\n{"sequence": "c"}]')
    bad = BadRows(path)
    rows = list(read_rows(path, Dialect("json"), [], bad))
    assert [line for line, _ in rows] == [1, 3]
    assert bad.problems[0].id == "D11"


@row("D13")
def test_a_long_line_is_one_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(f'{{"a": 1}}\n{{"a": "{"x" * 300_000}"}}\n{{"a": 3}}\n')
    bad = BadRows(path)
    rows = list(read_rows(path, Dialect("jsonl", max_record_bytes=1024), [], bad))
    assert rows == [(1, {"a": 1}), (3, {"a": 3})]
    assert bad.problems[0].where.endswith(":2")
    assert "data.max_record_bytes=8192" in bad.problems[0].remedy


# --- Parquet, Arrow and Excel


TYPED = [
    {"sequence": "a b", "label": True, "ids": [1, 2], "n": 1.5},
    {"sequence": "ä €", "label": None, "ids": [], "n": 2.0},
]


def write_typed(path: Path) -> None:
    pa: Any = pytest.importorskip("pyarrow")
    table = pa.Table.from_pylist(TYPED)
    if path.suffix == ".parquet":
        importlib.import_module("pyarrow.parquet").write_table(table, path)
        return
    make = pa.ipc.new_stream if path.suffix == ".arrows" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, make(file, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "d.arrows", "d.feather"])
def test_typed_columns_are_read_as_json_has_them(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_typed(path)
    assert rows_of(path) == [(1, TYPED[0]), (2, TYPED[1])]
    # By what it begins with, whatever its name.
    assert (
        format_of(path.rename(tmp_path / "d.bin")) == sniff(path.parent / "d.bin", Dialect(), [])[0]
    )


@row("D14", "D20")
@pytest.mark.parametrize("name", ["d.parquet", "d.arrow", "d.arrows"])
def test_damaged_columns_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_typed(path)
    content = path.read_bytes()
    with pytest.raises(DataError, match="bad header"):
        list(read_rows(path, sniff(path, Dialect(), []), ["text"], BadRows(path)))
    for length in range(9, len(content), len(content) // 9):
        path.write_bytes(content[:length])
        assert "error[D20]" in refused(path), length


@row("D13")
def test_an_arrow_file_is_read_in_batches_that_memory_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.arrow"
    write_typed(path)
    monkeypatch.setattr(arrow, "MOST_BATCH_BYTES", 8)
    assert "a very large batch of rows" in refused(path)


@row("D14")
def test_without_the_package_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "d.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert "pip install 'rnncls[files]'" in refused(path)


def test_a_sheet_is_read_as_the_csv_that_it_makes(tmp_path: Path) -> None:
    openpyxl: Any = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for cells in (["sequence", "label"], [7, 1.0], [None, None], ["a\nb", True], [1.5, "x"]):
        book.active.append(cells)
    book.create_sheet("other").append(["no"])
    path = tmp_path / "d.xlsx"
    book.save(path)
    assert rows_of(path) == [
        (2, {"sequence": "7", "label": "1"}),
        (4, {"sequence": "a\nb", "label": "true"}),
        (5, {"sequence": "1.5", "label": "x"}),
    ]
    path.write_bytes(path.read_bytes()[:-200])
    assert "error[D20]" in refused(path)


# --- other files


@row("D14")
@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("d.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office file"),
        ("d.csv", b"\x93NUMPY\x01\x00", "a NumPy file"),
        ("d.pkl", b"\x80\x04\x95", "a pickle"),
        ("d.docx", zipped(**{"word/document_xml": "<w/>"}), "a document"),
        ("d.csv", b"<!DOCTYPE html><html>", "a page of the web"),
        ("d.csv", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("d.csv.gz", gzip.compress(b"PAR1", mtime=0), "a Parquet file, and no text"),
        ("d.orc", b"ORC\x0a", "pandas.read_orc"),
        ("d.dat", b"some words\n", "unknown format"),
    ],
)
def test_files_of_other_kinds_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes, says: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert says in refused(path)


@pytest.mark.parametrize(
    ("text", "format"),
    [
        (TSV, "tsv"),
        (CSV, "csv"),
        (CSV.replace(",", ";"), "csv"),
        (ARRAY, "json"),
        ('{"a": 1}\n', "jsonl"),
    ],
)
def test_the_format_is_found_where_the_name_says_none(
    tmp_path: Path, text: str, format: str
) -> None:
    path = tmp_path / "d.txt"
    path.write_text(text, encoding="utf-8")
    assert format_of(path) == format
