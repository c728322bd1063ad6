"""Tests data files made to take all of the memory or time, and files that cannot be read."""

import gzip
import json
import lzma
import struct
import sys
import zipfile
import zlib
from array import array
from pathlib import Path

import pytest

from rnncls.config import FilesConfig
from rnncls.data import table
from rnncls.data.cells import LONG_ROW, TokenRule, tokens_of
from rnncls.data.files import bad_rows, batch_sizes, json_rows, lines, packing
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import dialect_of
from rnncls.data.files.lines import lines_of
from rnncls.data.files.opening import fingerprint, opened
from rnncls.data.files.plausible import MOST_CHARACTERS, Plausible
from rnncls.data.files.rows import read_rows
from rnncls.data.files.sniffing import sniff
from rnncls.data.files.splitting import Span
from rnncls.data.table import Numbering, read_table
from rnncls.errors import DataError
from tests.helpers import run_rnncls

# A regular file whose first bytes no process may read: they are no memory of its own.
FAILING = Path("/proc/self/mem")

needs_failing = pytest.mark.skipif(not FAILING.exists(), reason="only Linux has such a file")


@needs_failing
@pytest.mark.row("D1")
@pytest.mark.parametrize("command", [["data", "check"], ["data", "stats"], ["init"], ["train"]])
def test_failing_disk(command: list[str]) -> None:
    """A file that can be opened and not read is one message, in each command."""
    result = run_rnncls(*command, str(FAILING))

    assert result.returncode == 3
    assert "cannot read the data: Input/output error (/proc/self/mem)" in result.stderr


@needs_failing
@pytest.mark.row("D1")
def test_failing_disk_while_hashing() -> None:
    with pytest.raises(DataError, match="Input/output error"):
        fingerprint(FAILING)


@pytest.mark.row("D1")
def test_name_with_nul() -> None:
    """YAML can write a NUL, which no file has in its name."""
    with pytest.raises(DataError, match="null byte") as caught, opened("a\0b.csv"):
        pass

    assert caught.value.problems[0].id == "D1"


def _lines_of(path: Path) -> list[tuple[int, str]]:
    with opened(path) as file:
        return list(lines_of(path, file, BadRows(path), lambda _: None))


def test_very_many_blank_lines(tmp_path: Path) -> None:
    """They are skipped as a whole, and the lines below keep their numbers."""
    path = tmp_path / "blank.csv.gz"
    number = 3_000_000
    path.write_bytes(gzip.compress(b"a,b\n" + b"\n" * number + b"1,2\n", 1))

    found = _lines_of(path)

    assert len(found) == 2 + lines.MOST_BLANK_LINES
    assert found[0] == (1, "a,b")
    assert found[-1] == (number + 2, "1,2")


@pytest.mark.row("D14")
def test_very_many_bad_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading stops: a small packed file can have 2^27 of them."""
    monkeypatch.setattr(bad_rows, "MOST_BAD_ROWS", 50)
    path = tmp_path / "bad.jsonl"
    path.write_text('{"sequence": [1], "label": 0}\n' + "{}\n" * 200)

    result = run_rnncls("data", "check", str(path))

    assert result.returncode == 3
    assert "in 50 rows" in result.stderr


def test_very_many_skipped_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever skips bad rows gets what is left, however many they are."""
    monkeypatch.setattr(bad_rows, "MOST_BAD_ROWS", 50)
    path = tmp_path / "bad.jsonl"
    row = '{"sequence": [1, 2], "label": 0}\n'
    path.write_text(row + "{}\n" * 200 + row)

    result = run_rnncls("data", "check", str(path), "data.bad=skip")

    assert result.returncode == 0
    assert "2 sequences" in result.stdout


@pytest.mark.row("D13")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_very_many_objects_in_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each of them takes 40 times as much memory as its text."""
    monkeypatch.setattr(json_rows, "MOST_BRACKETS", 1_000)
    good = {"sequence": [1, 2], "label": 0}
    bad = {**good, "x": [{}] * 1_000}
    rows = [json.dumps(good), json.dumps(bad), json.dumps(good)]
    path = tmp_path / name
    path.write_text("\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]")

    result = run_rnncls("data", "check", str(path))

    assert result.returncode == 3
    assert "very many lists and objects in a row" in result.stderr


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_brackets_that_are_characters_of_a_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(json_rows, "MOST_BRACKETS", 1_000)
    text = '[ { \\ " é ' * 700
    rows = [json.dumps({"sequence": text, "label": label}) for label in (0, 1, 0)]
    path = tmp_path / name
    path.write_text("\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]")

    result = run_rnncls("data", "check", str(path))

    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_tokens_of_long_row(kind: str) -> None:
    """Equal ones are one text, and the same as in a short row."""
    short = "\u044f été \t größe\u2003été "
    times = LONG_ROW // len(short) + 1

    tokens = tokens_of(short * times, TokenRule(kind))

    assert tokens == (short.split() if kind == "words" else list(short)) * times
    assert len({id(token) for token in tokens}) == len(set(tokens))


def test_ids_of_long_row() -> None:
    values = [1_000, 2_000] * LONG_ROW

    tokens = tokens_of(values, TokenRule("ids"))

    assert tokens == ["1000", "2000"] * LONG_ROW
    assert len({id(token) for token in tokens}) == 2


@pytest.mark.row("D7")
@pytest.mark.parametrize("what", ["tokens", "labels"])
def test_very_many_different_texts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """They are refused while they are read, and not once all of them are in memory."""
    monkeypatch.setattr(table, "MOST_TEXT_BYTES", 20_000)
    path = tmp_path / "rows.csv"
    with path.open("w") as file:
        file.write("text,label\n")
        for number in range(1_000):
            file.write(f"w{number},a\n" if what == "tokens" else f"w,a{number}\n")
    data = FilesConfig(
        source="files", train=str(path), sequence_field="text", label_field="label", tokens="words"
    )

    with pytest.raises(DataError, match=f"very many different {what}") as caught:
        read_table((str(path),), data, Numbering("tokens"), Numbering("labels"), progress=False)

    assert caught.value.problems[0].id == "D7"


def test_more_different_texts_in_large_file() -> None:
    """With the rows that are kept, their texts may take more."""
    numbering = Numbering()
    numbering.most = 0
    numbering.kept += [(array("i", [0] * 10), 4), (array("q", [0] * 2), 32)]

    assert [numbering[text] for text in ("a", "b", "a")] == [0, 1, 0]
    assert numbering.most == table.MOST_TEXT_BYTES + 104
    assert numbering.size > sys.getsizeof("a")


def test_words_of_a_large_corpus_are_not_too_many() -> None:
    """Ten million rows of twenty words, of which eight million of nine letters are different."""
    tokens = 200_000_000
    rows = 10_000_000
    words = 8_000_000

    most = table.MOST_TEXT_BYTES + tokens * table.BYTES_PER_NUMBER + rows * table.BYTES_PER_ROW

    assert words * (sys.getsizeof("ninechars") + table._ENTRY_BYTES) < most


def test_values_of_column_are_bounded() -> None:
    """What labels look like is not learned from texts of any length."""
    long = "x" * (MOST_CHARACTERS // 2)
    rows = [(n, ["1", f"{n}{long}"], Span([f"{n}{long}"], n)) for n in range(1, 10)]

    plausible = Plausible(iter(rows), ["text", "label"], "label", ["text", "label"])

    assert sum(map(len, plausible.columns[1].values)) <= MOST_CHARACTERS
    assert sum(map(len, plausible.firsts)) <= MOST_CHARACTERS


@pytest.mark.row("D20")
def test_zip_of_very_many_files(tmp_path: Path) -> None:
    """Their names take 50 times as much memory, and are not read."""
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(10):
            archive.writestr(f"{number}{'n' * 60_000}", "")
        archive.writestr("last" + "n" * 65_000, "")
        for number in range(8):
            archive.writestr(f"more{number}{'n' * 60_000}", "")

    with pytest.raises(DataError, match="bytes of names of files"), opened(path) as file:
        packing.unpacked(path, file)


@pytest.mark.parametrize("is_large", [False, True])
def test_zip_with_longer_end(tmp_path: Path, is_large: bool) -> None:
    """Its directory's size is in the longer end where the usual one has no room for it."""
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.txt", "a b\n")
    content = path.read_bytes()
    at = content.rindex(b"PK\x05\x06")
    (of_directory, start) = struct.unpack_from("<II", content, at + 12)
    said = 2**21 if is_large else of_directory
    longer = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, said, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)
    usual = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 1, 1, 2**32 - 1, 2**32 - 1, 0)
    path.write_bytes(content[:at] + longer + locator + usual)

    with opened(path) as file:
        if is_large:
            with pytest.raises(DataError, match="bytes of names of files"):
                packing.unpacked(path, file)
        else:
            assert packing.unpacked(path, file).read() == b"a b\n"


def _xz_that_asks_for(exponent: int, content: bytes) -> bytes:
    """Return an xz file whose header says which size its dictionary has."""
    packed = bytearray(lzma.compress(content, lzma.FORMAT_XZ, preset=0))
    end = 12 + 4 * (packed[12] + 1) - 4
    packed[packed.index(b"\x21\x01", 12) + 2] = exponent
    packed[end : end + 4] = struct.pack("<I", zlib.crc32(bytes(packed[12:end])))
    return bytes(packed)


@pytest.mark.row("D20")
def test_xz_with_very_large_dictionary(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv.xz"
    path.write_bytes(_xz_that_asks_for(39, b"a,b\n"))

    with pytest.raises(DataError, match="xz file is damaged or a bomb"):
        _lines_of(path)


def test_xz_of_several_streams(tmp_path: Path) -> None:
    """With zeros between them and at the end, as the format allows."""
    path = tmp_path / "rows.csv.xz"
    zeros = b"\0" * 200_000
    path.write_bytes(lzma.compress(b"a\n") + zeros + lzma.compress(b"b\n" * 100_000) + zeros)

    found = _lines_of(path)

    assert len(found) == 100_001
    assert found[-1] == (100_001, "b")

    path.write_bytes(lzma.compress(b"b\n" * 100_000)[:-20])
    with pytest.raises(DataError, match="xz file is damaged"):
        _lines_of(path)


@pytest.mark.row("D13")
@pytest.mark.parametrize("is_file", [True, False])
@pytest.mark.parametrize("compression", ["zstd", "lz4", None])
def test_size_of_arrow_batches(tmp_path: Path, is_file: bool, compression: str | None) -> None:
    """It is what pyarrow then allocates, and a little more: known before anything is read."""
    pyarrow = pytest.importorskip("pyarrow")
    columns = {"s": ["a b " * 250] * 1_000, "n": list(range(1_000))}
    columns["d"] = pyarrow.array(["x" * 100_000, "y"] * 500).dictionary_encode()
    rows = pyarrow.table(columns)
    path = tmp_path / "rows.arrow"
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    make = pyarrow.ipc.new_file if is_file else pyarrow.ipc.new_stream
    with make(str(path), rows.schema, options=options) as writer:
        writer.write_table(rows, max_chunksize=500)

    size = batch_sizes.largest_batch(path, is_file)

    # Of 500 rows: their texts, their numbers, and the two texts of the dictionary.
    least = 500 * (1_000 + 8) + 100_001
    assert least < size < 1.2 * least


def write_dictionary(path: Path, count: int) -> None:
    """Write a short row, and `count` rows of a text of 512 KiB that the file has once."""
    pyarrow = pytest.importorskip("pyarrow")
    texts = pyarrow.array(["a b " * 2**14, "b " * 2**18 + "c"])
    numbers = pyarrow.array([0, *[1] * count], pyarrow.int32())
    column = pyarrow.DictionaryArray.from_arrays(numbers, texts)
    table_of_rows = pyarrow.table({"sequence": column, "label": ["x", "y", *["x"] * (count - 1)]})
    if path.suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(table_of_rows, path)
    else:
        pytest.importorskip("pyarrow.feather").write_feather(table_of_rows, str(path))


@pytest.mark.row("D13")
@pytest.mark.parametrize("name", ["rows.parquet", "rows.feather"])
def test_long_text_of_dictionary(tmp_path: Path, name: str) -> None:
    """Each row that refers to it has its own: a few are made at a time, and long ones not."""
    path = tmp_path / name
    write_dictionary(path, 100)
    bad = BadRows(path, stops=False)
    fields = ["sequence", "label"]
    dialect = sniff(path, dialect_of(FilesConfig(source="files", train=str(path))), fields)
    dialect = dialect._replace(max_record_bytes=2**18)

    rows = read_rows(path, dialect, fields, bad)

    assert len(next(rows)[1]["sequence"]) == 2**16
    assert not list(rows)
    assert bad.count == 100
    assert bad.problems[0].what == "a very long row"


@pytest.mark.row("D20")
@pytest.mark.parametrize("name", ["rows.parquet", "rows.feather"])
def test_dictionary_that_stands_for_much_more_than_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_dictionary(path, 200)  # 100 MiB

    result = run_rnncls("data", "check", str(path))

    assert result.returncode == 3
    assert "it unpacks to more than 500 times its size" in result.stderr


def test_sizes_of_columns() -> None:
    pyarrow = pytest.importorskip("pyarrow")
    text = pyarrow.array(["abc", "d" * 1_000] * 10)
    encoded = text.dictionary_encode()
    batch = pyarrow.record_batch(
        {
            "view": text.cast(pyarrow.string_view()),
            "list": pyarrow.ListArray.from_arrays(list(range(21)), encoded),
            "struct": pyarrow.StructArray.from_arrays([encoded], ["text"]),
            "number": pyarrow.array([7] * 20).dictionary_encode(),
        }
    )

    sizes = [batch_sizes.size_of(batch.slice(0, number)) for number in (1, 2, 20)]

    assert 3 * 3 <= sizes[0] < 100
    assert 3 * 1_003 <= sizes[1] < 3 * 1_003 + 200
    assert 30 * 1_003 <= sizes[2] < 30 * 1_003 + 2_000
