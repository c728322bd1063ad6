"""What the cells of a row mean: ids, labels, several fields; the same for every reader."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from rnncls.config import FilesConfig
from rnncls.data import Vocabulary
from rnncls.data.cells import TokenRule, label_of, looks_like_list, sequence_of, tokens_of
from rnncls.data.dataset import Dataset
from rnncls.data.loading import load_dataset, load_labelled_files
from rnncls.data.warnings import dataset_warnings
from rnncls.errors import DataError, Problem
from rnncls.predict.predictor import load
from rnncls.training.fit import fit
from tests.helpers import files_config, run_rnncls

row = pytest.mark.row

WHOLE: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}


def data_of(path: Path, **keys: Any) -> FilesConfig:
    raw = {"source": "files", "train": str(path), "tokens": "words", **WHOLE, **keys}
    return FilesConfig.model_validate(raw)


def labels_of(dataset: Dataset) -> list[str]:
    """The label of each training row."""
    return [dataset.vocabulary.labels[label] for label in dataset.splits["train"].labels.tolist()]


def tokens_in(dataset: Dataset) -> list[list[str]]:
    """The tokens of each training row."""
    sequences = dataset.splits["train"]
    ends = sequences.offsets.tolist()
    words = [dataset.vocabulary.tokens[token] for token in sequences.tokens.tolist()]
    return [words[start:end] for start, end in pairwise(ends)]


# --- ids

IDS = [
    "7 8 9",
    "7,8,9",
    "7, 8, 9",
    "7;8; 9",
    "[7, 8, 9]",
    "[7 8 9]",
    "(7, 8, 9)",
    " [7,8,9,] ",
    "['7', '8', '9']",
    '["7", "8", "9"]',
    "7, 8 9",
]


@pytest.mark.parametrize("value", [*IDS, [7, 8, 9], ["7", "8", "9"]])
def test_ids_are_the_same_however_they_are_written(value: Any) -> None:
    assert tokens_of(value, TokenRule("ids")) == ["7", "8", "9"]


def test_training_and_prediction_read_ids_alike(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    quoted = ['"' + text.replace('"', '""') + '"' for text in IDS]
    path.write_text("sequence,label\n" + "".join(f"{text},a\n3 1,b\n" for text in quoted))
    fit(files_config(path, **WHOLE), tmp_path / "run")

    predictor = load(tmp_path / "run")
    (expected,) = predictor.predict([[7, 8, 9]])
    # Alone each of them, because the sum of products depends on how many there are.
    assert [predictor.predict([text])[0] for text in IDS] == [expected] * len(IDS)
    done = run_rnncls("predict", tmp_path / "run", "--input", path, "--json")
    answers = [json.loads(line)["probability"] for line in done.stdout.splitlines()[::2]]
    assert answers == pytest.approx([expected.probability] * len(IDS), abs=1e-6)


@row("D7")
@pytest.mark.parametrize(
    ("value", "what", "found", "remedy"),
    [
        ("1.511 0.34", "numbers with fractions are not tokens", "'1.511' at position 1", "bin"),
        ("[-0.2, 1.5e-3]", "numbers with fractions", "'-0.2' at position 1", "round(10 * value)"),
        ([1, 0.5], "numbers with fractions", "0.5 at position 2", "bin them into integers"),
        (0.5, "numbers with fractions", "0.5 at position 1", "bin them into integers"),
        # The fraction says what the column is, wherever it stands.
        ("-3 nan 0.5", "numbers with fractions", "'0.5' at position 3", "bin them into integers"),
        ("1.0 2", "not an integer id", "'1.0' at position 1", "without a decimal point"),
        ([1, 2.0], "not an integer id", "2.0 at position 2", "without a decimal point"),
        # Decimal commas, or pairs: not to be told from each other.
        ("1,5 2,3", "not an integer id", "'5 2' at position 2", "one separator"),
        ("1,,2", "not an integer id", "'' at position 2", "fix the line"),
        ("1 -2", "not an integer id", "'-2' at position 2", "fix the line"),
        ("[[1, 2], [3]]", "not an integer id", "'[1' at position 1", "fix the line"),
        ("٣ ٤", "not an integer id", "'٣' at position 1", "fix the line"),
    ],
)
def test_what_is_no_id_is_called_what_it_is(value: Any, what: str, found: str, remedy: str) -> None:
    problem = tokens_of(value, TokenRule("ids"))
    assert isinstance(problem, Problem)
    assert what in problem.what
    assert found in problem.found
    assert remedy in problem.remedy
    assert problem.id == "D7"


@row("D7")
def test_words_are_never_advised_for_measurements(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("sequence,label\n1.511 0.34,up\n-2 -1,down\n-3 x,down\n")
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(path, tokens="ids"))
    message = caught.value.render()
    assert "numbers with fractions are not tokens" in message
    assert "tokens=words" not in message


@row("D7")
def test_measurements_in_json_are_named_whatever_the_tokens(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"sequence": [1.5, 2], "label": "x"}\n')
    for kind in ("ids", "words", "characters"):
        with pytest.raises(DataError, match="numbers with fractions are not tokens"):
            load_dataset(data_of(path, tokens=kind))


@row("D14")
def test_ids_with_a_decimal_point_among_words_are_told_to_be_ids(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    rows = '{"sequence": [4.0, 8.0], "label": "x"}\n{"sequence": ["a", 1], "label": "x"}\n'
    path.write_text(rows)
    with pytest.raises(DataError) as raised:
        load_dataset(data_of(path, tokens="words"))
    remedies = [problem.remedy for problem in raised.value.problems]
    assert remedies == [
        "data.tokens=ids, with integers that have no decimal point",
        "write each of them as a text",
    ]


@row("D7")
def test_texts_that_look_like_lists_are_warned_of_once_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('sequence,label\na b,x\n"[7, 8, 9]",x\n"[1]",y\n[laughs] yes,y\n')
    dataset = load_dataset(data_of(path))
    (warning,) = [line for line in dataset_warnings(dataset) if "[D7]" in line]
    assert "2 sequences of train look like lists" in warning
    assert f"the first is {path}:3" in warning
    assert "data.tokens=ids" in warning

    # As ids they are read, and nothing is to be said.
    path.write_text('sequence,label\n"[7, 8, 9]",x\n')
    assert "[D7]" not in "".join(dataset_warnings(load_dataset(data_of(path, tokens="ids"))))


@pytest.mark.parametrize(
    ("text", "is_list"),
    [
        ("[1, 2]", True),
        (" [1 2.5 -3] ", True),
        ("['a', 'b']", True),
        ('["a"]', True),
        ("[a, b]", False),
        ("[laughs]", False),
        ("[1] The first note", False),
        ("[]", False),
    ],
)
def test_what_looks_like_a_list(text: str, is_list: bool) -> None:
    assert looks_like_list(text) is is_list


# --- labels


@pytest.mark.parametrize(
    ("value", "label"),
    [
        ("a", "a"),
        (" a ", " a "),
        ("true", "true"),
        (True, "true"),
        (False, "false"),
        (1, "1"),
        (1.0, "1"),
        (-0.0, "0"),
        (10**20, "1" + "0" * 20),
        ("1.0", "1.0"),
        ("nan", "nan"),
        ("", None),
        (" \t", None),
        (None, None),
        (1.5, None),
        (float("nan"), None),
        (float("inf"), None),
        ([1], None),
        ({}, None),
    ],
)
def test_a_label_is_text_or_a_whole_number(value: Any, label: str | None) -> None:
    assert label_of(value) == label


@row("D5")
def test_json_has_the_labels_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"sequence": "a b", "label": true}\n{"sequence": "c", "label": 1.0}\n')
    dataset = load_dataset(data_of(path))
    assert labels_of(dataset) == ["true", "1"]

    table = tmp_path / "d.csv"
    table.write_text("sequence,label\na b,true\nc,1\n")
    assert labels_of(load_dataset(data_of(table))) == ["true", "1"]

    # The data of a run in the other notation.
    other = load_labelled_files(str(table), data_of(path), dataset.vocabulary)
    (split,) = other.splits.values()
    assert split.labels.tolist() == dataset.splits["train"].labels.tolist()

    path.write_text('{"sequence": "a b", "label": 0.5}\n')
    with pytest.raises(DataError, match="a number with a fraction is no label") as caught:
        load_dataset(data_of(path))
    assert caught.value.problems[0].id == "D5"


@row("D5")
def test_white_space_around_labels_is_taken_away_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("sequence,label\na b, x\nc d,x\nd,x \ne,y\n")
    dataset = load_dataset(data_of(path))
    assert dataset.vocabulary.labels == ("x", "y")
    assert labels_of(dataset) == ["x", "x", "x", "y"]
    (warning,) = [line for line in dataset_warnings(dataset) if "[D5]" in line]
    assert "white space around 2 labels of train was taken away" in warning

    path.write_text("sequence,label\na b,x\nc,\n")
    with pytest.raises(DataError, match="an empty label"):
        load_dataset(data_of(path))


def test_a_run_whose_labels_have_white_space_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("sequence,label\na, x\nb,x\n")
    old = Vocabulary(("<unk>", "a", "b"), (" x", "x"), has_unknown=True)
    assert labels_of(load_dataset(data_of(path), old)) == [" x", "x"]
    other = load_labelled_files(str(path), data_of(path), old)
    assert other.splits[str(path)].labels.tolist() == [0, 1]


# --- several fields


def test_several_fields_are_one_sequence_with_a_token_between_them(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('title,text,label\nFirm buys,"it said, on Monday",3\n,only this,4\nthat,,3\n')
    expected = [
        ["Firm", "buys", "<sep>", "it", "said,", "on", "Monday"],
        ["<sep>", "only", "this"],
        ["that", "<sep>"],
    ]
    assert tokens_in(load_dataset(data_of(path, sequence_field=["title", "text"]))) == expected

    path = tmp_path / "d.jsonl"
    path.write_text(
        '{"title": ["Firm", "buys"], "text": "it said, on Monday", "label": 3}\n'
        '{"text": "only this", "label": 4}\n'
        '{"title": "that", "text": null, "label": 3}\n'
    )
    assert tokens_in(load_dataset(data_of(path, sequence_field=["title", "text"]))) == expected

    keys = {"sequence_field": ["title", "text"], "tokens": "characters"}
    assert tokens_in(load_dataset(data_of(path, **keys)))[2] == ["t", "h", "a", "t", "<sep>"]


@row("D9", "D14")
def test_several_fields_that_are_all_empty_or_not_there_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    keys = {"sequence_field": ["title", "text"]}
    path.write_text('{"title": "", "label": 3}\n')
    with pytest.raises(DataError, match="an empty sequence"):
        load_dataset(data_of(path, **keys))
    path.write_text('{"titel": "a", "label": 3}\n')
    with pytest.raises(DataError, match='no field "title" or "text"'):
        load_dataset(data_of(path, **keys))
    path.write_text('{"title": {"a": 1}, "text": "b", "label": 3}\n')
    with pytest.raises(DataError, match="wrong kind"):
        load_dataset(data_of(path, **keys))


def test_the_sequence_of_a_row() -> None:
    fields = {"a": "x", "b": None}
    assert sequence_of(fields, ("a",)) == "x"
    assert sequence_of(fields, ("c",)) is None
    assert sequence_of(fields, ("a", "c")) == ("x", None)
    assert sequence_of(fields, ("c", "d")) is None


# --- bad rows


@row("D5", "D7", "D9", "D14")
def test_bad_rows_may_be_skipped_counted_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("sequence,label\n1 2,a\n1 x,a\n3\n,b\n0.5,b\n4,\n2 2,b\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        "data: {source: files, train: d.csv, tokens: ids, val_fraction: 0, test_fraction: 0}\n"
    )
    done = run_rnncls("data", "check", config, "data.bad=skip")
    assert done.returncode == 0, done.stderr
    skipped = [line for line in done.stderr.splitlines() if line.startswith("rnncls: skipped")]
    assert [line.split(": ")[1] for line in skipped[:5]] == [
        f"skipped {path}:{number}" for number in (3, 4, 5, 6, 7)
    ]
    assert skipped[5:] == [f"rnncls: skipped 5 of 7 rows of {path}"]
    assert "train: 2 sequences" in done.stdout

    dataset = load_dataset(data_of(path, tokens="ids", bad="skip"))
    assert dataset.noticed["train"].skipped == 5
    assert labels_of(dataset) == ["a", "b"]


@row("D2", "D14")
def test_of_many_skipped_rows_the_first_are_listed_and_none_left_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("oops\n" * 150)
    with pytest.raises(DataError, match="0 sequences are left"):
        load_dataset(data_of(path, bad="skip"))
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 101
    assert lines[-1] == f"rnncls: skipped 150 of 150 rows of {path}"


@row("D14")
def test_many_bad_rows_are_told_with_the_key_that_leaves_them_out(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    causes = ["oops\n", '{"sequence": "a"}\n', "[1]\n"]
    path.write_text("".join(causes) * 3)
    with pytest.raises(DataError, match="9 bad rows in all") as caught:
        load_dataset(data_of(path))
    assert "data.bad=skip leaves them out" in caught.value.render()

    # In an evaluation, the config of the run decides, and no key can be changed.
    vocabulary = Vocabulary(("a",), ("x",), has_unknown=False)
    with pytest.raises(DataError) as caught:
        load_labelled_files(str(path), data_of(path), vocabulary)
    assert "data." not in caught.value.render()


@row("C17")
@pytest.mark.parametrize("word", ["error", "stop", "skip"])
def test_predict_takes_the_words_of_the_config_and_stop(tmp_path: Path, word: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"sequence": [1, 2], "label": "a"}\n{"sequence": [3], "label": "b"}\n')
    fit(files_config(path, {"max_steps": 2}, **WHOLE), tmp_path / "run")
    new = tmp_path / "new.csv"
    new.write_text("sequence\n1 2\n1.5\n")
    done = run_rnncls("predict", tmp_path / "run", "--input", new, "--bad", word)
    assert done.returncode == (0 if word == "skip" else 3)
    assert "numbers with fractions are not tokens" in done.stderr
    assert len(done.stdout.splitlines()) == 1

    done = run_rnncls("predict", tmp_path / "run", "1", "--bad", "ignore")
    assert done.returncode == 2
    assert "error or skip" in done.stderr
