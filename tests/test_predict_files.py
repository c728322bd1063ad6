"""Predictions for files as people have them: other columns, tables kept whole, headers in pipes."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.new_files import as_new_file, overrides_of, with_options
from rnncls.errors import ConfigError, DataError, Problem
from rnncls.predict.data_files import has_own_columns, rows_of_file
from rnncls.predict.predictor import load
from rnncls.system.rows import table_writer
from rnncls.training.fit import fit
from tests.helpers import LEAN, files_config, run_rnncls, write_jsonl

row = pytest.mark.row

ADDED = ["row", "line", "predicted", "probability"]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that read `sequence` and `label` of a CSV; not to be changed."""
    folder = tmp_path_factory.mktemp("films")
    rows = "good film,pos\nbad film,neg\ngood day,pos\nbad day,neg\n"
    (folder / "films.csv").write_text("sequence,label\n" + 5 * rows)
    fit(_config(folder / "films.csv"), folder / "run")
    return folder / "run"


def _config(path: Path, **keys: Any) -> Any:
    wanted = {"tokens": "words", "val_fraction": 0.0, "test_fraction": 0.0, **keys}
    return files_config(path, train={"max_steps": 4, "eval_every": 2}, **wanted)


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@row("C17", "D9")
def test_a_table_has_all_columns_of_its_input_and_a_row_for_each_of_its_rows(
    films: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = tmp_path / "new.csv"
    path.write_text(
        'id,text,note\n7,good film,"a\nb"\n8,bad day,\n9,"  ",x\n10,"good, ""bad""",y\n'
    )
    output = tmp_path / "out.csv"
    words: list[str | Path] = ["predict", films, "--input", path, "--output", output]

    # What the file lacks is named, and the option is one that predict has.
    message = fails(3, *words)
    assert "try:      --sequence-field" in message
    assert "data." not in message

    # An empty cell is named with the remedy that predict has, and nothing is written.
    message = fails(3, *words, "--sequence-field", "text")
    assert f"an empty sequence ({path}:5)" in message
    assert "try:      --bad skip" in message
    assert not output.exists()

    done = run_rnncls(*words, "--text-column", "text", "--bad", "skip", "--top-k", "2")
    assert done.returncode == 0, done.stderr
    assert f"skipped {path}:5: an empty sequence" in done.stderr
    assert "skipped 1 of 4 sequences" in done.stderr

    table = _table(output)
    columns = ["id", "text", "note", *ADDED, "predicted_2", "probability_2"]
    assert [*table[0]] == columns
    assert [line["id"] for line in table] == ["7", "8", "9", "10"]
    assert [line["note"] for line in table] == ["a\nb", "", "x", "y"]
    assert [line["text"] for line in table] == ["good film", "bad day", "  ", 'good, "bad"']
    # The first row has two lines.
    assert [line["row"] for line in table] == ["1", "2", "3", "4"]
    assert [line["line"] for line in table] == ["2", "4", "5", "6"]
    assert [bool(line["predicted"]) for line in table] == [True, True, False, True]
    assert [line["probability_2"] == "" for line in table] == [False, False, True, False]

    # JSON lines have both numbers, and no line for what was skipped.
    by_line = run_rnncls(*words[:4], "--text-column", "text", "--bad", "skip", "--json")
    answers = [json.loads(line) for line in by_line.stdout.splitlines()]
    assert [(answer["row"], answer["line"]) for answer in answers] == [(1, 2), (2, 4), (4, 6)]
    predicted = [line["predicted"] for line in table if line["predicted"]]
    assert [answer["label"] for answer in answers] == predicted

    # What was written cannot be read again and have its own columns twice.
    again: list[str | Path] = ["predict", films, "--input", output, "--text-column", "text"]
    message = fails(2, *again, "--output", tmp_path / "again.csv")
    assert "error[C17]: the input has columns of names that are added to it" in message
    assert "found:    row, line, predicted, probability" in message
    assert not (tmp_path / "again.csv").exists()
    assert run_rnncls(*again, "--bad", "skip", "--json").returncode == 0


@row("D14")
def test_a_table_of_json_has_the_fields_of_its_first_object(films: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.jsonl"
    rows: list[Any] = [
        {"sequence": ["good", "film"], "label": "pos", "x": 1.5, "y": {"a": [1]}},
        {"sequence": "bad day", "x": None, "late": 1},
        {"sequence": {}, "x": True},
    ]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows) + "not JSON\n")
    output = tmp_path / "out.tsv"
    done = run_rnncls("predict", films, "--input", path, "--output", output, "--bad", "skip")
    assert done.returncode == 0, done.stderr
    assert "1 row has fields that the first one lacks" in done.stderr
    assert "table: late\n" in done.stderr
    assert "accuracy: " in done.stderr
    assert "skipped 2 of 4 sequences" in done.stderr

    table = _table(output)
    assert [*table[0]] == ["sequence", "label", "x", "y", *ADDED]
    assert [line["sequence"] for line in table] == ["good film", "bad day", "{}"]
    assert [line["x"] for line in table] == ["1.5", "", "true"]
    assert [line["y"] for line in table] == ['{"a": [1]}', "", ""]
    assert [line["line"] for line in table] == ["1", "2", "3"]


def test_lines_of_text_are_one_column(films: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    options: list[str | Path] = ["--output", output, "--bad", "skip"]
    run_rnncls("predict", films, *options, input='good\n\n"bad", film\n')
    table = _table(output)
    assert [*table[0]] == ["sequence", *ADDED]
    assert [line["sequence"] for line in table] == ["good", "", '"bad", film']
    assert [line["row"] for line in table] == [line["line"] for line in table] == ["1", "2", "3"]
    assert [line["probability"] == "" for line in table] == [False, True, False]


def test_a_row_that_cannot_be_read_counts_as_a_row(films: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("sequence,more\ngood film,1\nbad,2,3\n,4\nbad film,5\n")
    output = tmp_path / "out.csv"
    run_rnncls("predict", films, "--input", path, "--output", output, "--bad", "skip")

    # The second one is not there: nobody knows its columns. The third has no sequence.
    assert [line["row"] for line in _table(output)] == ["1", "3", "4"]
    assert [line["line"] for line in _table(output)] == ["2", "4", "5"]


@row("C17")
@pytest.mark.parametrize(
    ("lines", "kind"),
    [
        ("sequence,label\ngood film,pos\n", "csv"),
        ("id\ttext\n7\tgood film\n", "tsv"),
        ('"label";"sequence"\npos;good\n', "csv"),
        ("\ufeffsequence\ngood film\n", "csv"),
        ('{"sequence": "good film"}\n', "jsonl"),
        ('[{"sequence": "good film"}]\n', "json"),
        ('[\n  {"sequence": "good film"}\n]\n', "json"),
    ],
)
def test_a_header_is_no_sequence(
    films: Path, tmp_path: Path, fails: Callable[..., str], lines: str, kind: str
) -> None:
    done = run_rnncls("predict", films, input=lines)
    assert (done.returncode, done.stdout) == (2, "")
    assert "did you mean --input FILE? (stdin:1)" in done.stderr

    path = tmp_path / "new.txt"
    path.write_text(lines, encoding="utf-8")
    # A file with the columns of training is read by them; the others are refused.
    if "json" not in kind and "label" not in lines:
        message = fails(2, "predict", films, "--input", path)
        assert f"try:      --read format={kind}" in message
    else:
        done = run_rnncls("predict", films, "--input", path)
        assert done.stdout.count("\n") == 1, done.stderr
    if "text" not in lines:
        done = run_rnncls("predict", films, "--input", path, "--read", f"format={kind}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    "line",
    ["good", "good film, bad day", "a text, with a label", "film", "{good}", "7,8,9", "[laughs]"],
)
def test_a_sequence_is_no_header(films: Path, line: str) -> None:
    done = run_rnncls("predict", films, input=f"{line}\n")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1


@row("C17")
def test_a_key_of_the_config_is_no_sequence(
    films: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "new.csv").write_text("text\ngood\n")
    for words in (["--input", tmp_path / "new.csv"], []):
        message = fails(2, "predict", films, *words, "data.sequence_field=text")
        assert "error[C17]: a key of a config in place of a sequence" in message
        assert "try:      --sequence-field text\n" in message
    message = fails(2, "predict", films, "model.cell=lstm")
    assert "a run keeps the config that it was trained with" in message
    message = fails(2, "predict", films, "good", "--read", "header=false")
    assert "try:      --input FILE" in message
    message = fails(2, "predict", films, "--input", tmp_path / "new.csv", "--read", "tokens=ids")
    assert "expected: KEY=VALUE with one of the keys format, separator" in message
    message = fails(2, "predict", films, "--input", tmp_path / "new.csv", "--read", "encoding=x")
    assert "bad value for encoding (--read encoding=x)" in message


def test_a_bad_row_may_be_skipped_whatever_else_helps(
    films: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "new.csv").write_text("sequence,id\ngood,1\nbad,2,3\n")
    message = fails(3, "predict", films, "--input", tmp_path / "new.csv")
    assert "or fix the line; or --bad skip\n" in message


@row("D8")
def test_sequences_of_mostly_unknown_tokens_are_counted(films: Path, tmp_path: Path) -> None:
    sequences = ["a b c d e f g good", "a b", "good a", "good film"]
    path = write_jsonl(tmp_path / "new.jsonl", [(text, None) for text in sequences])
    done = run_rnncls("predict", films, "--input", path)
    assert done.returncode == 0, done.stderr
    assert "warning[D8]: 1 of 4 sequences has no token of the training data" in done.stderr
    assert "warning[D8]: 1 of 4 sequences has mostly tokens" in done.stderr


@row("C17", "D6")
def test_eval_reads_a_file_with_other_columns(
    films: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = tmp_path / "new.csv"
    path.write_text("id;text;class\n7;good film;pos\n8;bad day;neg\n")
    words: list[str | Path] = ["eval", films, "--data", path]
    message = fails(3, *words)
    assert "--sequence-field" in message
    assert "--label-field" in message
    assert "data." not in message

    named = ["--text-column", "text", "--label-column", "class"]
    output = tmp_path / "out.csv"
    done = run_rnncls(*words, *named, "--predictions", output, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 2
    table = _table(output)
    assert [*table[0]][:5] == ["line", "sequence", "true", "predicted", "probability"]
    assert [line["true"] for line in table] == ["pos", "neg"]

    message = fails(2, "eval", films, *named)
    assert "try:      --data FILE" in message

    # predict says the accuracy with the same columns.
    done = run_rnncls("predict", films, "--input", path, *named, "--json")
    assert [json.loads(line)["true"] for line in done.stdout.splitlines()] == ["pos", "neg"]
    assert " of 2)" in done.stderr


def test_several_columns_are_one_sequence(tmp_path: Path) -> None:
    (tmp_path / "news.csv").write_text("label,title,text\n" + "1,a b,c\n2,b,d c\n" * 10)
    fit(_config(tmp_path / "news.csv", sequence_field=["title", "text"]), tmp_path / "run")
    predictor = load(tmp_path / "run")
    (tmp_path / "new.csv").write_text("text,other,title\nc,x,a b\n,y,b\n")
    done = run_rnncls("predict", tmp_path / "run", "--input", tmp_path / "new.csv", "--json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]

    # From Python, a dict is a row, and the text of all of it is the same sequence.
    rows: list[dict[str, Any]] = [
        {"title": "a b", "text": "c"},
        {"title": "b", "text": None, "more": 1},
    ]
    expected = predictor.predict(rows)
    assert predictor.predict(["a b <sep> c", "b <sep>"]) == expected
    assert [answer["sequence"] for answer in answers] == ["a b <sep> c", "b <sep> "]
    for answer, prediction in zip(answers, expected, strict=True):
        assert answer["label"] == prediction.label
        assert answer["probability"] == pytest.approx(prediction.probability, abs=1e-6)
    with pytest.raises(DataError, match=r"the fields body"):
        predictor.predict([{"body": "a"}])


def test_a_new_file_is_read_as_those_of_training_but_for_what_it_shows(tmp_path: Path) -> None:
    keys = {"quoting": "none", "header": False, "encoding": "cp1252", "separator": ";"}
    data = _config(tmp_path / "a.csv", sequence_field="1", label_field="2", **keys).data
    same = as_new_file(data, "b.CSV.gz")
    assert (same.quoting, same.separator, same.header, same.encoding) == (
        "none",
        "auto",
        False,
        "cp1252",
    )
    assert as_new_file(data, "b.tsv").quoting == "auto"

    # A column with a name has a header above it; one with a number need not.
    assert as_new_file(data, "b.csv", overrides_of(["text"], None, None)).header
    assert not as_new_file(data, "b.csv", overrides_of(["3"], None, None)).header
    chosen = overrides_of(["a: [b", "c, d"], '"x"', ["data.encoding=latin-1"], "skip")
    read = as_new_file(data, "b.csv", chosen)
    assert (read.sequence_fields, read.label_field) == (("a: [b", "c, d"), '"x"')
    assert (read.encoding, read.bad) == ("latin-1", "skip")


@row("C17")
@row("D14")
def test_a_header_is_no_row_of_a_run_whose_files_had_none(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    rows = "".join(f"{label}\t{text}\n" for label, text in [("a", "good"), ("b", "bad")] * 10)
    (tmp_path / "t.tsv").write_text(rows)
    keys = [
        "data.header=false",
        "data.sequence_field=2",
        "data.label_field=1",
        "data.val_fraction=0",
    ]
    keys += ["data.test_fraction=0", "train.max_steps=2", "schedule.warmup_steps=1", *LEAN]
    run = tmp_path / "run"
    done = run_rnncls("train", tmp_path / "t.tsv", "--run-dir", run, *keys)
    assert done.returncode == 0, done.stderr

    (tmp_path / "n.tsv").write_text("label\ttext\na\tgood\n")
    message = fails(3, "predict", run, "--input", tmp_path / "n.tsv")
    assert "try:      --read header=true --sequence-field NAME; or --read header=false" in message
    for words in (["header=true", "--sequence-field", "text"], ["header=false"]):
        done = run_rnncls("predict", run, "--input", tmp_path / "n.tsv", "--read", *words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("\n") == (2 if words == ["header=false"] else 1)

    # Without the column of labels, the number of theirs is that of another one.
    (tmp_path / "n.tsv").write_text("good\nbad\n")
    done = run_rnncls("predict", run, "--input", tmp_path / "n.tsv", "--sequence-field", "1")
    assert done.returncode == 0, done.stderr
    assert "accuracy" not in done.stderr
    (tmp_path / "n.tsv").write_text("1\tgood\n2\tbad\n")
    done = run_rnncls("predict", run, "--input", tmp_path / "n.tsv")
    assert "if the file has no labels, the accuracy means nothing" in done.stderr


def test_keys_in_remedies_become_options() -> None:
    def said(remedy: str) -> str:
        error = with_options(DataError(Problem("x", remedy=remedy)), "other")
        return error.problems[0].remedy

    assert said("data.quoting=none, or data.separator=';'") == (
        "--read quoting=none, or --read separator=';'"
    )
    assert said("data.sequence_field=text; data.label_field=...") == (
        "--sequence-field text; --label-field NAME"
    )
    assert said("data.bad=skip leaves it out") == "--bad skip leaves it out"
    assert said("data.empty=drop") == "--bad skip"
    assert said("data.tokens=words") == "other"
    assert said("fix the line") == "fix the line"
    with pytest.raises(ConfigError, match="bad value for --read"):
        overrides_of(None, None, ["bad=skip"])


@given(st.lists(st.lists(st.text(), min_size=2, max_size=2), min_size=1), st.booleans())
def test_a_written_table_is_read_back_as_it_was(rows: list[list[str]], is_tsv: bool) -> None:
    # A carriage return, too: in some versions of Python csv leaves it without quotes.
    file = io.StringIO()
    write_row = table_writer(file, "tsv" if is_tsv else "csv")
    for cells in rows:
        write_row(cells)
    file.seek(0)
    assert list(csv.reader(file, delimiter="\t" if is_tsv else ",", strict=True)) == rows


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_a_file_of_any_name_is_read_by_the_columns_of_training(
    films: Path, tmp_path: Path, separator: str
) -> None:
    path = tmp_path / "new.txt"
    path.write_text("id,sequence\n7,good film\n8,bad day\n".replace(",", separator))
    predictor = load(films)
    assert has_own_columns(predictor, path)
    rows = list(rows_of_file(predictor, path, BadRows(path)))
    assert [(row.line, row.sequence) for row in rows] == [(2, "good film"), (3, "bad day")]

    path.write_text('[{"sequence": "good film"}]')
    assert has_own_columns(predictor, path)
    # Texts with as many commas in each line are texts, and so are those of one column.
    for text in ("good, film\nbad, day\n", "sequence\ngood film\n", "good film\n", ""):
        path.write_text(text)
        assert not has_own_columns(predictor, path)


def test_it_is_said_how_a_new_file_is_read(films: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("sequence;label\ngood film;pos\n")
    for command, option in {"predict": "--input", "eval": "--data"}.items():
        done = run_rnncls(command, films, option, path)
        assert done.returncode == 0, done.stderr
        said = f"rnncls: {path}: read as: semicolon-separated, standard quoting, UTF-8\n"
        assert done.stderr.count(said) == 1


# How a cell begins that a spreadsheet takes for a formula.
FORMULAS = ["=1+1", "+a", "-b", "@c", "\td", "\re", "\nf", "\uff1dg", "-2+3"]
HARMLESS = ["-1", "+2.5", "-1e-5", "a=b", "'=", "", "x;=1"]


@row("C17")
def test_a_safe_table_has_no_formulas_and_other_tables_have_what_was_given(
    films: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = tmp_path / "new.jsonl"
    cells = FORMULAS + HARMLESS
    path.write_text(
        "".join(json.dumps({"sequence": "good day", "=note": cell}) + "\n" for cell in cells)
    )
    words: list[str | Path] = ["predict", films, "--input", path]
    for name in ("out.csv", "out.tsv"):
        plain = run_rnncls(*words, "--output", tmp_path / f"plain-{name}")
        assert plain.returncode == 0, plain.stderr
        assert [line["=note"] for line in _table(tmp_path / f"plain-{name}")] == cells

        safe = run_rnncls(*words, "--output", tmp_path / name, "--csv-safe")
        assert safe.returncode == 0, safe.stderr
        expected = [f"'{cell}" for cell in FORMULAS] + HARMLESS
        assert [line["'=note"] for line in _table(tmp_path / name)] == expected
        # Where another character separates cells, none begins in the middle of one.
        assert '"x;=1"' in (tmp_path / name).read_text()

    message = fails(2, *words, "--output", tmp_path / "out.jsonl", "--csv-safe")
    assert "error[C17]: --csv-safe is about a table" in message
    assert "--csv-safe is about a table" in fails(2, "eval", films, "--csv-safe")


def test_a_safe_table_of_an_evaluation_has_no_formulas(films: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text("sequence,label\n=good film,pos\n-1,neg\n")
    predictions = tmp_path / "out.csv"
    words: list[str | Path] = ["eval", films, "--data", path, "--predictions", predictions]
    assert run_rnncls(*words, "--read", "format=csv").returncode == 0
    assert not any("'" in line["sequence"] for line in _table(predictions))
    assert run_rnncls(*words, "--csv-safe").returncode == 0
    assert predictions.read_text().startswith('"line","sequence","true"')
