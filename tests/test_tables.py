"""Tables as people have them: quotes, separators and headers are found, and no row is swallowed."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rnncls.data.files import splitting
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import Dialect, described
from rnncls.data.files.rows import read_rows
from rnncls.data.files.sniffing import sniff
from rnncls.errors import DataError
from tests.helpers import run_rnncls

FIELDS = ["sequence", "label"]
LONE_QUOTES = [
    "sequence\tlabel",
    "one a\ta",
    '"two b\tb',
    "three c\ta",
    'four d"\tb',
    "five e\ta",
    "six f\tb",
]


def read(path: Path, text: str, fields: list[str] = FIELDS, **keys: Any) -> tuple[Any, BadRows]:
    """Write a table and read it. Returns its rows by line, without the names, and what was bad."""
    path.write_text(text, encoding="utf-8", newline="")
    bad = BadRows(path)
    dialect = sniff(path, Dialect(**keys), fields)
    rows = read_rows(path, dialect, fields, bad)
    return {line: tuple(row.values()) for line, row in rows}, bad


def refusal(path: Path, text: str, fields: list[str] = FIELDS, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, text, fields, **keys)[1].raise_if_any()
    return caught.value.render()


# --- quotes


def test_a_lone_quote_in_a_tsv_is_a_character(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "d.tsv", "\n".join(LONE_QUOTES))
    assert len(rows) == 6
    assert rows[3] == ('"two b', "b")
    assert rows[5] == ('four d"', "b")
    assert not bad.count

    rows, bad = read(tmp_path / "d.tsv", 'sequence\tlabel\na b\ta\n" b c\ta\nd e\tb\n')
    assert list(rows) == [2, 3, 4]
    assert not bad.count


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quoted_cell_keeps_its_line_ends(tmp_path: Path, end: str) -> None:
    text = 'sequence,label\n"a\r\nb\nc\r",x\nd,y\n'.replace("x\n", f"x{end}").replace(
        "y\n", f"y{end}"
    )
    for quoting in ("auto", "standard"):
        rows, bad = read(tmp_path / "d.csv", text, quoting=quoting)
        assert rows == {2: ("a\r\nb\nc\r", "x"), 5: ("d", "y")}
        assert not bad.count


@pytest.mark.row("D14")
def test_rows_that_may_be_one_are_refused_with_both_readings(tmp_path: Path) -> None:
    text = "\n".join(LONE_QUOTES).replace("\t", ",")
    rows, bad = read(tmp_path / "d.csv", text)
    assert list(rows) == [2, 6, 7]
    assert bad.count == 3
    message = refusal(tmp_path / "d.csv", text)
    assert "d.csv:3" in message
    assert "lines 3 to 5" in message
    assert "data.quoting=standard for one row, data.quoting=none for several" in message

    # In a TSV, the labels of other rows tell; where there are none, nothing does.
    for plain in ("", "plain\ty\n"):
        text = f'sequence\tlabel\n{plain}"a\tb\nc"\tx\n"d\te\nf"\ty\n'
        message = refusal(tmp_path / "d.tsv", text)
        assert f"lines {3 if plain else 2} to {4 if plain else 3}, which can" in message
        assert len(read(tmp_path / "d.tsv", text, quoting="standard")[0]) == 2 + bool(plain)
        assert len(read(tmp_path / "d.tsv", text, quoting="none")[0]) == 4 + bool(plain)

    text = "\n".join(LONE_QUOTES).replace("\t", ",")
    assert len(read(tmp_path / "d.csv", text, quoting="none")[0]) == 6
    rows, bad = read(tmp_path / "d.csv", text, quoting="standard")
    assert rows[3] == ("two b,b\nthree c,a\nfour d", "b")
    assert not bad.count


def test_cells_of_several_lines_stay_whole(tmp_path: Path) -> None:
    texts = ["Dear Sir, hello\nbye", 'a "b"\n\nc', "d, e", "f", "x\n1,2,3\ny"]
    rows = [(text, ["pos", "neg"][number % 2]) for number, text in enumerate(texts)]
    for name, delimiter in (("d.csv", ","), ("d.tsv", "\t")):
        for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
            file = io.StringIO()
            writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator="\n")
            writer.writerows([FIELDS, *rows])
            read_again, bad = read(tmp_path / name, file.getvalue())
            assert list(read_again.values()) == rows
            assert not bad.count


def test_a_prediction_knows_no_labels_and_reads_the_same(tmp_path: Path) -> None:
    text = 'text,id\n"Dear Sir, hello\nbye",7\na,8\nb,9\n'
    rows, bad = read(tmp_path / "d.csv", text, ["text"])
    assert rows[2] == ("Dear Sir, hello\nbye", "7")
    assert not bad.count
    assert read(tmp_path / "d.csv", 'id,text\n1,a\n2,"b\n3,c"\n4,d\n', ["text"])[1].count == 2


@pytest.mark.row("D14")
def test_an_open_quote_is_one_bad_row(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "d.csv", 'sequence,label\na,x\n"b,x\nc,y\nd,y\n')
    assert list(rows) == [2, 4, 5]
    assert bad.count == 1
    assert bad.problems[0].where.endswith("d.csv:3")
    assert "data.quoting=none" in bad.problems[0].remedy

    # Another quote closes it, and text stands behind it.
    rows, bad = read(tmp_path / "d.csv", 'sequence,label\n"b,x\nc,y\nd "e",y\nf,x\n')
    assert list(rows) == [3, 4, 5]
    assert bad.count == 1

    # A row takes 1,000 lines, and as many bytes as a key says.
    lines = "".join(f"{number},x\n" for number in range(1_500))
    rows, bad = read(tmp_path / "d.csv", f'sequence,label\n"b,x\n{lines}c",x\n')
    assert len(rows) == 1_501
    assert bad.count == 1
    text = f'sequence,label\n"b,x\n{lines[:4000]}"\n'
    rows, bad = read(tmp_path / "d.csv", text, max_record_bytes=1024)
    assert bad.problems[0].where.endswith("d.csv:2")
    assert len(rows) > 100


def test_very_many_open_quotes_end_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "MOST_READ_AGAIN", 2**20)
    message = refusal(tmp_path / "d.csv", "sequence,label\n" + 'a",,"c\n' * 3_000)
    assert "open quotes in very many rows" in message
    assert "data.quoting=none" in message


@pytest.mark.parametrize(
    ("name", "rows", "quoting"),
    [
        ("d.tsv", ["a b\tx"], "none"),
        ("d.csv", ["a b,x"], "standard"),
        ("d.tsv", ['"a b"\tx', "c\ty"], "none"),  # no writer puts quotes around one of them
        ("d.tsv", ['"a b"\tx', '"c"\ty'], "standard"),
        ("d.tsv", ['"a, b"\tx', "c\ty", '"d, e"\ty'], "standard"),  # a spreadsheet
        ("d.tsv", ['"a, b"\tx', "c, d\ty", '"d, e"\ty'], "none"),
        ("d.tsv", ['"say ""a"""\tx', "c\ty"], "standard"),
        ("d.tsv", ['"a\tb"\tx', "c\ty"], "standard"),
        ("d.tsv", ['"a" b\tx', '"c"\ty'], "none"),
        ("d.tsv", ['5" pipe\tx', 'a 6" one\ty'], "none"),
        ("d.csv", ['"a" b,x', '"c d,x', "e,y"], "none"),
        ("d.csv", ['"a" b,x', '"c d",x', "e,y"], "standard"),
        ("d.csv", ['"a b,x', "e,y"], "standard"),
    ],
)
def test_the_quoting_that_the_first_rows_show(
    tmp_path: Path, name: str, rows: list[str], quoting: str
) -> None:
    header = "sequence\tlabel" if name == "d.tsv" else "sequence,label"
    path = tmp_path / name
    path.write_text("\n".join([header, *rows, ""]))
    dialect = sniff(path, Dialect(), FIELDS)
    assert dialect.quoting == quoting

    # What a config says is not looked for.
    for asked in ("standard", "none"):
        assert sniff(path, Dialect(quoting=asked), FIELDS).quoting == asked


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"))
TABLE = st.lists(st.tuples(CELL, st.sampled_from(["x", "y", "some label"])), min_size=1, max_size=9)


@settings(max_examples=100, deadline=None)
@given(rows=TABLE, delimiter=st.sampled_from(list(splitting.SEPARATORS)))
def test_what_a_writer_writes_is_read(
    rows: list[tuple[str, str]], delimiter: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("t") / "d.csv"
    file = io.StringIO()
    sign = splitting.SEPARATORS[delimiter]
    csv.writer(file, delimiter=sign, lineterminator="\n").writerows([FIELDS, *rows])
    got, bad = read(path, file.getvalue(), separator=delimiter, quoting="standard")
    assert list(got.values()) == rows
    assert not bad.count

    plain = [(text.translate({10: " ", ord(sign): " "}), label) for text, label in rows]
    written = "".join(f"{text}{sign}{label}\n" for text, label in [("sequence", "label"), *plain])
    got, bad = read(path, written, separator=delimiter, quoting="none")
    assert list(got.values()) == plain
    assert not bad.count


# --- separators and headers


def test_how_a_table_is_read_is_said_once(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b"\xef\xbb\xbfsequence;label\nHallo, Welt;a\nGuten Tag;b\n")
    assert described(sniff(path, Dialect(), FIELDS)).startswith("semicolon-separated, standard")
    (tmp_path / "c.yaml").write_text(
        "data: {source: files, train: d.csv, val: d.csv, test_fraction: 0}"
    )
    done = run_rnncls("data", "check", "c.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = "read as: semicolon-separated, standard quoting, UTF-8 with mark"
    assert done.stderr.count(said) == 1


@pytest.mark.row("D14")
def test_two_separators_that_are_equally_good_are_both_named(tmp_path: Path) -> None:
    message = refusal(tmp_path / "d.csv", "a;b,c\nd;e,f\ng;h,i\n", [])
    assert "cannot tell what separates the columns" in message
    assert "data.separator=',' or data.separator=';'" in message
    rows, _ = read(tmp_path / "d.csv", "a;b,c\nd;e,f\ng;h,i\n", [], separator=";")
    assert rows[2] == ("d", "e,f")


NO_HEADER = "good film\tpos\nbad film\tneg\n"


@pytest.mark.row("D14")
@pytest.mark.parametrize("options", [[], ["--text-column", "good film", "--label-column", "pos"]])
def test_a_missing_header_is_refused_with_both_remedies(tmp_path: Path, options: list[str]) -> None:
    (tmp_path / "d.tsv").write_text(NO_HEADER)
    done = run_rnncls("data", "check", "d.tsv", *options, cwd=tmp_path)
    assert done.returncode == 3
    assert "no header" in done.stderr
    assert "add a first line that names the columns" in done.stderr
    assert "data.header=false" in done.stderr
    assert "read as: tab-separated, no quoting, UTF-8" in done.stderr

    for word, count in (("data.header=false", 2), ("data.header=true", 1)):
        options = options if word == "data.header=true" else []
        done = run_rnncls("data", "check", "d.tsv", word, *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"train: {count} sequence" in done.stdout


@pytest.mark.parametrize(
    ("text", "is_refused"),
    [
        (NO_HEADER, True),
        ("one\tham\nbuy it\tspam\nhello\tham\n", True),  # the label occurs below
        ("3 1 2\t7\n4 5\t8\n", True),
        ("one\tham\none\tspam\n", True),
        ("review text\thelpful\nthe text is good\tyes\n", False),
        ("text\tspam\nbuy\tspam\nhello\tham\n", False),
        ("doc\tkind of it\nbuy\tspam\nhello\tham\n", False),
    ],
)
def test_a_first_row_of_data_is_not_taken_for_names(
    tmp_path: Path, text: str, is_refused: bool
) -> None:
    fields = text.partition("\n")[0].split("\t")
    path = tmp_path / "d.tsv"
    path.write_text(text)
    if is_refused:
        assert "no header" in refusal(path, text, fields)
    else:
        sniff(path, Dialect(), fields)
    sniff(path, Dialect(is_header_known=True), fields)


@pytest.mark.row("D14")
def test_a_wrong_name_shows_the_names_and_the_nearest(tmp_path: Path) -> None:
    message = refusal(tmp_path / "d.csv", "Sequences,label\na,x\n")
    assert "found:    Sequences, label" in message
    assert message.endswith("try:      data.sequence_field=Sequences")
    message = refusal(tmp_path / "d.csv", "My Text,My Label\na,x\n", ["text", "label"])
    assert message.endswith("try:      data.sequence_field='My Text' data.label_field='My Label'")
    # A usual name may be data, too.
    message = refusal(tmp_path / "d.csv", "a film,type\na plot,kind\n")
    assert "data.label_field=type; or, if this row is data" in message
    assert "data.header=false data.sequence_field=1 data.label_field=2" in message
    # What only YAML would read as something else is not to be copied.
    message = refusal(tmp_path / "d.csv", " sequence ,label\na,x\n")
    assert message.endswith('try:      " sequence " for "sequence": data.sequence_field=...')
    message = refusal(tmp_path / "d.csv", "titel,text,label\na,b,x\n", ["title", "text", "label"])
    assert message.endswith('try:      "titel" for "title" in data.sequence_field')

    # Nor are lone quotes what is wrong first.
    lone_quotes = "\n".join(["Sequences\tLabels", *LONE_QUOTES[1:]])
    message = refusal(tmp_path / "d.tsv", lone_quotes)
    assert message.endswith("try:      data.sequence_field=Sequences data.label_field=Labels")

    assert "data.separator" in refusal(tmp_path / "d.csv", "sequence:label\na:x\n")
    assert "other line ends" in refusal(tmp_path / "d.csv", "sequence,label\ra,x\r")

    text = "a b,x\nc d,y\n"
    message = refusal(tmp_path / "d.csv", text, header=False)
    assert 'no column "sequence"' in message
    assert "data.sequence_field=1 data.label_field=2" in message
    rows, _ = read(tmp_path / "d.csv", text, ["1", "2"], header=False)
    assert rows == {1: ("a b", "x"), 2: ("c d", "y")}


@pytest.mark.row("D13")
def test_a_table_has_a_bound_for_its_columns(tmp_path: Path) -> None:
    text = ",".join(["sequence", "label", *map(str, range(20_000))]) + "\n"
    message = refusal(tmp_path / "d.csv", text)
    assert "very many columns" in message
    assert "data.max_columns" in message
    assert "very many columns" in refusal(tmp_path / "d.csv", text, quoting="none")
    read(tmp_path / "d.csv", text, max_columns=30_000)


def test_every_key_of_reading_is_heard_by_the_guess(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes('"gut;1\nschön;2\nschlecht;1\n'.encode("cp1252"))
    words = ["header=false", "separator=;", "quoting=none", "encoding=cp1252", "tokens=characters"]
    words = [f"data.{word}" for word in words]
    done = run_rnncls("data", "check", "d.csv", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = "read as: semicolon-separated, no quoting, no header, Windows-1252"
    assert said in done.stderr

    done = run_rnncls("init", "d.csv", *words, cwd=tmp_path)
    (tmp_path / "d.yaml").write_text(done.stdout)
    assert said in done.stderr
    done = run_rnncls("data", "check", "d.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert said in done.stderr

    done = run_rnncls("init", "d.csv", "optimizer.lr=1", cwd=tmp_path)
    assert done.returncode == 2
