"""Tests data files made to take all of the memory or time, and files that cannot be read."""

import gzip
import json
import sys
from array import array
from pathlib import Path

import pytest

from rnncls.config import FilesConfig
from rnncls.data import table
from rnncls.data.cells import LONG_ROW, tokens_of
from rnncls.data.files import bad_rows, json_rows, lines
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.lines import lines_of
from rnncls.data.files.opening import fingerprint, opened
from rnncls.data.files.plausible import MOST_CHARACTERS, Plausible
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


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_tokens_of_long_row(kind: str) -> None:
    """Equal ones are one text, and the same as in a short row."""
    short = "\u044f été \t größe\u2003été "
    times = LONG_ROW // len(short) + 1

    tokens = tokens_of(short * times, kind)

    assert tokens == (short.split() if kind == "words" else list(short)) * times
    assert len({id(token) for token in tokens}) == len(set(tokens))


def test_ids_of_long_row() -> None:
    values = [1_000, 2_000] * LONG_ROW

    tokens = tokens_of(values, "ids")

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
    tokens, rows, words = 200_000_000, 10_000_000, 8_000_000

    most = table.MOST_TEXT_BYTES + tokens * table.BYTES_PER_NUMBER + rows * table.BYTES_PER_ROW

    assert words * (sys.getsizeof("ninechars") + table._ENTRY_BYTES) < most


def test_values_of_column_are_bounded() -> None:
    """What labels look like is not learned from texts of any length."""
    long = "x" * (MOST_CHARACTERS // 2)
    rows = [(n, ["1", f"{n}{long}"], Span([f"{n}{long}"], n)) for n in range(1, 10)]

    plausible = Plausible(iter(rows), ["text", "label"], "label", ["text", "label"])

    assert sum(map(len, plausible.columns[1].values)) <= MOST_CHARACTERS
    assert sum(map(len, plausible.firsts)) <= MOST_CHARACTERS
