"""Files as people have them: needs from public reports, each with its right answer.

The same file is read alike by every door: `train`, `eval --data`, `data check`, `predict --input`,
a pipe and Python. What is not read is refused with a remedy that works where it is shown.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import shlex
import shutil
import sys
import zipfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import rnncls
from rnncls.data import FilesTask, load_task
from rnncls.data.table import hash_of
from tests.helpers import LEAN, PYTHON, ROOT, Completed, at_step, run_command, run_rnncls

FEWEST_STEPS: dict[str, dict[str, Any]] = {
    "model": {"cell": "gru", "hidden_size": 16, "init_gain": 1.0},
    "train": {
        "max_steps": 3,
        "batch_size": 8,
        "eval_every": 3,
        "log_every": 3,
        "engine": "eager",
    },
    "schedule": {"warmup_steps": 1},
}
WHOLE = {"tokens": "words", "val_fraction": 0.0, "test_fraction": 0.0}

Words = list[str | Path]  # of a command line
Rows = list[tuple[str, str]]  # the text of each sequence, as the file has it, and its label


def write(path: Path, content: bytes | str) -> Path:
    """Write a file, text as UTF-8; returns the path."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def config_of(file: str | Path | list[str], folder: Path, **data: Any) -> Path:
    """Write a config beside the data that trains on all of it unless `data` says otherwise."""
    train = file if isinstance(file, list) else str(file)
    section = {"source": "files", "train": train, **WHOLE, **data}
    # JSON is YAML.
    return write(folder / "c.yaml", json.dumps({"data": section, **FEWEST_STEPS}))


def train(config: Path) -> Completed:
    """Train a run beside the config."""
    return run_rnncls("train", config, "--run-dir", config.parent / "run")


def trained_on(file: str | Path | list[str], folder: Path, **data: Any) -> Path:
    """Train on a file that can be read; returns the run directory."""
    done = train(config_of(file, folder, **data))
    assert done.returncode == 0, done.stderr
    return folder / "run"


def rows_of(config: Path, split: str = "train") -> Rows:
    """Return what Python reads: the tokens of each sequence, with blanks between, and its label."""
    task = load_task(rnncls.load_config(config))
    assert isinstance(task, FilesTask)
    vocabulary = task.dataset.vocabulary
    sequences = task.dataset.splits[split]
    offsets = sequences.offsets.tolist()
    rows = []
    for row, label in enumerate(sequences.labels.tolist()):
        ids = sequences.tokens[offsets[row] : offsets[row + 1]].tolist()
        tokens = " ".join(vocabulary.tokens[id] for id in ids)
        rows.append((tokens, vocabulary.labels[label]))
    return rows


def predicted(run_dir: Path, *words: str | Path, input: str = "") -> list[dict[str, Any]]:
    """Return the JSON lines of `predict`."""
    done = run_rnncls("predict", run_dir, *words, "--json", input=input)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def input_of(file: Path) -> list[str | Path]:
    """Return the words with which `predict` reads a file of labelled rows."""
    # In a .txt file each line is a sequence. The message about its header line says what to add.
    return ["--input", file, *(["--read", "format=tsv"] if file.suffix == ".txt" else [])]


def one_line(text: str) -> str:
    """Return a message with one blank between its words: where its lines break says nothing."""
    return " ".join(text.split())


# --- files that are read: the same rows by every door


class Readable(NamedTuple):
    """A file, the keys that it needs, and its rows."""

    file: str
    content: bytes | str
    rows: Rows
    data: dict[str, Any]
    said: str = ""  # on stderr


def zip_of(name: str, content: bytes) -> bytes:
    """Return a zip file with one member."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, content)
    return packed.getvalue()


def tar_gz(content: bytes) -> bytes:
    """Return gzip of two parts, which is one file."""
    half = len(content) // 2
    return gzip.compress(content[:half]) + gzip.compress(content[half:])


FILMS = "sequence,label\ngood film,pos\nbad film,neg\ngood plot,pos\nbad plot,neg\n"
FILM_ROWS = [
    ("good film", "pos"),
    ("bad film", "neg"),
    ("good plot", "pos"),
    ("bad plot", "neg"),
]
FILM_OBJECTS = [{"sequence": text, "label": label} for text, label in FILM_ROWS]
LONE_QUOTES = 'sequence\tlabel\none a\ta\n"two b\tb\nthree c\ta\nfour d"\tb\nfive e\ta\nsix f\tb\n'
LONE_QUOTE_ROWS = [
    ("one a", "a"),
    ('"two b', "b"),
    ("three c", "a"),
    ('four d"', "b"),
    ("five e", "a"),
    ("six f", "b"),
]
IDS = [("7 8 9", "a"), ("7 8 9", "a"), ("1 2 3", "b"), ("7 8 9", "a"), ("7 8 9", "a")]
HUGE = "x" * 200_000

READABLE = {
    "1 lone quotes in a TSV": Readable(
        "f.tsv", LONE_QUOTES, LONE_QUOTE_ROWS, {}, "tab-separated, no quoting"
    ),
    "1 lone quotes, by key": Readable("f.tsv", LONE_QUOTES, LONE_QUOTE_ROWS, {"quoting": "none"}),
    "1 lone quotes in a CSV, by key": Readable(
        "f.csv", LONE_QUOTES.replace("\t", ","), LONE_QUOTE_ROWS, {"quoting": "none"}
    ),
    "1b one lone quote": Readable(
        "f.tsv",
        'sequence\tlabel\na b\ta\n" b c\ta\nd e\tb\n',
        [("a b", "a"), ('" b c', "a"), ("d e", "b")],
        {},
    ),
    "1 quotes around the cells of a TSV": Readable(
        "f.tsv",
        'sequence\tlabel\n"a ""b"" c"\t"a"\n"d e"\t"b"\n"a\tc"\t"a"\n',
        [('a "b" c', "a"), ("d e", "b"), ("a\tc", "a")],
        {"quoting": "standard"},
    ),
    "3 ids in CSV": Readable(
        "f.csv",
        'sequence,label\n"[7, 8, 9]",a\n"7,8,9",a\n"1, 2, 3",b\n7 8 9,a\n7;8;9,a\n',
        IDS,
        {"tokens": "ids"},
    ),
    "3 ids in JSON": Readable(
        "f.jsonl",
        "".join(
            json.dumps({"sequence": sequence, "label": label}) + "\n"
            for sequence, label in zip(
                ["[7, 8, 9]", "7,8,9", "1, 2, 3", "7 8 9", [7, 8, 9]], "aabaa", strict=True
            )
        ),
        IDS,
        {"tokens": "ids"},
    ),
    "5 no header, by key": Readable(
        "f.tsv",
        "good film\tpos\nbad film\tneg\n",
        FILM_ROWS[:2],
        {"header": False, "sequence_field": "1", "label_field": "2"},
    ),
    "9 UTF-16, little first": Readable("f.csv", FILMS.encode("utf-16"), FILM_ROWS, {}, "UTF-16"),
    "9 UTF-16, big first": Readable(
        "f.csv", b"\xfe\xff" + FILMS.encode("utf-16-be"), FILM_ROWS, {}, "UTF-16"
    ),
    "9 UTF-16 in a TSV with CRLF": Readable(
        "f.tsv",
        FILMS.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
        FILM_ROWS,
        {},
        "UTF-16",
    ),
    "9 cp1252, by key": Readable(
        "f.csv",
        "sequence,label\ncafé: 3 €,a\nnaïve,b\n".encode("cp1252"),
        [("café: 3 €", "a"), ("naïve", "b")],
        {"encoding": "cp1252"},
    ),
    "9 latin-1, by key": Readable(
        "f.csv",
        "sequence,label\ncafé,a\nnaïve,b\n".encode("latin-1"),
        [("café", "a"), ("naïve", "b")],
        {"encoding": "latin-1"},
    ),
    "9 a mark of UTF-8 and CRLF": Readable(
        "f.csv",
        b"\xef\xbb\xbf" + FILMS.replace("\n", "\r\n").encode(),
        FILM_ROWS,
        {},
        "UTF-8 with mark",
    ),
    "10 semicolons": Readable(
        "f.csv",
        "sequence;label\nHallo, Welt;a\nTschüß, Welt;b\n",
        [("Hallo, Welt", "a"), ("Tschüß, Welt", "b")],
        {},
        "semicolon",
    ),
    "11 booleans and whole floats": Readable(
        "f.jsonl",
        '{"sequence":"a b","label":true}\n{"sequence":"c","label":1.0}\n'
        '{"sequence":"a","label":"true"}\n{"sequence":"d","label":1}\n',
        [("a b", "true"), ("c", "1"), ("a", "true"), ("d", "1")],
        {},
    ),
    "13 labels with stray spaces": Readable(
        "f.csv",
        "sequence,label\na b, x\nc d,x\nd,x \ne,y\n",
        [("a b", "x"), ("c d", "x"), ("d", "x"), ("e", "y")],
        {},
        "white space",
    ),
    "14 gzip of two parts": Readable("f.csv.gz", tar_gz(FILMS.encode()), FILM_ROWS, {}),
    "14 bz2": Readable("f.csv.bz2", bz2.compress(FILMS.encode()), FILM_ROWS, {}),
    "14 xz": Readable("f.csv.xz", lzma.compress(FILMS.encode()), FILM_ROWS, {}),
    "14 zip": Readable("f.csv.zip", zip_of("f.csv", FILMS.encode()), FILM_ROWS, {}),
    "14 zip by its member": Readable("f.zip", zip_of("films.csv", FILMS.encode()), FILM_ROWS, {}),
    "14 tab-separated text": Readable("f.txt", FILMS.replace(",", "\t"), FILM_ROWS, {}),
    "14 a JSON array": Readable("f.json", json.dumps(FILM_OBJECTS), FILM_ROWS, {}),
    "14 a JSON array, pretty": Readable(
        "f.json", json.dumps(FILM_OBJECTS, indent=2), FILM_ROWS, {}
    ),
    "right: newline, comma, doubled quotes": Readable(
        "f.csv",
        'sequence,label\n"a\nb",x\n"c, d",y\n"e ""f""",x\n',
        [("a\nb", "x"), ("c, d", "y"), ('e "f"', "x")],
        {},
    ),
    "right: a cell of 200,000 characters": Readable(
        "f.csv", f"sequence,label\n{HUGE},a\nb,b\n", [(HUGE, "a"), ("b", "b")], {}
    ),
    "right: names of nothing": Readable(
        "f.csv",
        "sequence,label\nNA,NA\nNone,None\nnull,null\nnan,nan\n",
        [(name, name) for name in ("NA", "None", "null", "nan")],
        {},
    ),
    "right: numbers as labels": Readable(
        "f.jsonl",
        "".join(
            json.dumps({"sequence": "a", "label": label}) + "\n"
            for label in (1, -1, 20, "1", 12345678901234567890)
        ),
        [("a", label) for label in ("1", "-1", "20", "1", "12345678901234567890")],
        {},
    ),
}

readable = pytest.mark.parametrize("case", READABLE.values(), ids=READABLE)


@readable
def test_every_door_reads_every_row(case: Readable, tmp_path: Path) -> None:
    file = write(tmp_path / case.file, case.content)
    config = config_of(file, tmp_path, **case.data)
    done = run_rnncls("data", "check", config)
    assert done.returncode == 0, done.stderr
    assert f"train: {len(case.rows):,} sequences" in done.stdout
    assert case.said in done.stderr

    done = train(config)
    assert done.returncode == 0, done.stderr
    assert case.said in done.stderr
    # Once, however many files and splits are read so.
    assert done.stderr.count("read as:") <= 1
    run_dir = tmp_path / "run"

    done = run_rnncls("eval", run_dir, "--data", file, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == len(case.rows)

    answers = predicted(run_dir, *input_of(file))
    assert [str(answer["true"]) for answer in answers] == [label for _, label in case.rows]
    assert [answer["row"] for answer in answers] == [*range(1, len(case.rows) + 1)]
    if case.data.get("tokens") != "ids":
        assert [answer["sequence"] for answer in answers] == [text for text, _ in case.rows]

    # And Python reads the same; a sequence from Python is the one of the file.
    assert rows_of(config) == [(" ".join(text.split()), label) for text, label in case.rows]
    from_python = rnncls.load(run_dir).predict([text for text, _ in case.rows])
    for prediction, answer in zip(from_python, answers, strict=True):
        assert prediction.label == answer["label"]
        assert prediction.probability == pytest.approx(answer["probability"], rel=1e-4)


# --- files that are refused: the same message by every door


class Refused(NamedTuple):
    """A file that is not read, and what the message says and does not say."""

    file: str
    content: bytes | str
    data: dict[str, Any]
    says: tuple[str, ...]
    never: tuple[str, ...] = ()


MEASUREMENTS = "sequence,label\n1.511 0.34,up\n-0.2 1.1,down\n"
REFUSED = {
    "5 no header": Refused(
        "f.tsv",
        "good film\tpos\nbad film\tneg\n",
        {},
        ("header", "data.header=false", "good film"),
    ),
    "5 no header, and the cells of the first row as names": Refused(
        "f.tsv",
        "good film\tpos\nbad film\tneg\ngood plot\tpos\nbad plot\tneg\n",
        {"sequence_field": "good film", "label_field": "pos"},
        ("header", "data.header=false"),
    ),
    "5 a name that is nearly there": Refused(
        "f.csv",
        "id,sequence,label\n1,good,a\n2,bad,b\n",
        {"sequence_field": "seqence"},
        ("id, sequence, label", "data.sequence_field=sequence"),
    ),
    "9 not UTF-8": Refused(
        "f.csv",
        "sequence,label\ncafé,a\nnaïve,b\n".encode("cp1252"),
        {},
        ("not UTF-8", "data.encoding=cp1252"),
    ),
    "12 measurements": Refused(
        "f.csv",
        MEASUREMENTS,
        {"tokens": "ids"},
        ("numbers with fractions are not tokens", "integers"),
        ("tokens=words",),
    ),
    "12 measurements in JSON": Refused(
        "f.jsonl",
        '{"sequence": [1.511, 0.34], "label": "up"}\n{"sequence": [-0.2], "label": "down"}\n',
        {"tokens": "ids"},
        ("numbers with fractions are not tokens",),
        ("tokens=words",),
    ),
    "11 empty labels": Refused(
        "f.csv", "sequence,label\na,x\nb,\nc,  \n", {}, ("f.csv:3", "label")
    ),
    "11 null as a label": Refused(
        "f.jsonl",
        '{"sequence":"a","label":"x"}\n{"sequence":"b","label":null}\n',
        {},
        ("f.jsonl:2",),
    ),
    "11 fractions as labels": Refused(
        "f.jsonl",
        '{"sequence":"a","label":"x"}\n{"sequence":"b","label":1.5}\n',
        {},
        ("f.jsonl:2",),
    ),
    "14 a zip with two members": Refused("f.zip", b"", {}, ("f.zip", "a.csv", "b.csv")),
    "14 a spreadsheet of old": Refused(
        "f.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500), {}, (".xls", "CSV"), ("jsonl",)
    ),
    "14 a pickle": Refused(
        "f.pkl", b"\x80\x04\x95" + bytes(100), {}, ("pickle",), ("data.format=jsonl",)
    ),
    "14 an array": Refused(
        "f.npy", b"\x93NUMPY\x01\x00" + bytes(100), {}, ("npy",), ("data.format=jsonl",)
    ),
    "right: ragged rows": Refused(
        "f.csv", "sequence,label\na,x\nb,y,z\nc,x\n", {}, ("f.csv:3", "2 columns", "3 columns")
    ),
}
refused = pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)


def refused_file(case: Refused, folder: Path) -> Path:
    """Write the file of a case."""
    path = write(folder / case.file, case.content)
    if case.file == "f.zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("a.csv", FILMS)
            file.writestr("b.csv", FILMS)
    return path


def assert_says(done: Completed, case: Refused) -> None:
    """The command was refused with a message that helps."""
    assert done.returncode == 3, done.stdout + done.stderr
    for text in case.says:
        assert text in one_line(done.stderr)
    for text in case.never:
        assert text not in one_line(done.stderr)


@refused
def test_training_and_a_check_refuse_alike(case: Refused, tmp_path: Path) -> None:
    config = config_of(refused_file(case, tmp_path), tmp_path, **case.data)
    assert_says(train(config), case)
    assert_says(run_rnncls("data", "check", config), case)
    assert_says(run_rnncls("data", "stats", config), case)
    assert not (tmp_path / "run" / "checkpoints").exists()


@refused
def test_python_refuses_as_the_command_line_does(case: Refused, tmp_path: Path) -> None:
    config = config_of(refused_file(case, tmp_path), tmp_path, **case.data)
    with pytest.raises(rnncls.DataError) as caught:
        rnncls.fit(rnncls.load_config(config), tmp_path / "run")
    for text in case.says:
        assert text in one_line(str(caught.value))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows films, not to be changed."""
    folder = tmp_path_factory.mktemp("films")
    return trained_on(write(folder / "films.csv", FILMS), folder)


# What a run cannot change is no advice to who predicts with it.
@pytest.mark.parametrize("name", [name for name in REFUSED if name[:2] in ("9 ", "14", "ri")])
def test_prediction_and_eval_refuse_with_remedies_of_their_own(
    name: str, films: Path, tmp_path: Path
) -> None:
    file = refused_file(REFUSED[name], tmp_path)
    commands: list[Words] = [
        ["predict", films, "--input", file],
        ["eval", films, "--data", file],
    ]
    for words in commands:
        done = run_rnncls(*words)
        assert done.returncode == 3, done.stderr
        assert "f." in done.stderr
        assert "Traceback" not in done.stderr
        assert "data." not in done.stderr.partition("try:")[2]


# --- 1: quotes


def test_a_quote_swallows_no_row(tmp_path: Path) -> None:
    config = config_of(write(tmp_path / "f.tsv", LONE_QUOTES), tmp_path)
    assert rows_of(config) == LONE_QUOTE_ROWS

    # In a CSV, it may as well be around a cell: refused with both readings, never read as fewer.
    config = config_of(write(tmp_path / "f.csv", LONE_QUOTES.replace("\t", ",")), tmp_path)
    done = run_rnncls("data", "check", config)
    assert done.returncode == 3
    assert "data.quoting=standard for one row, data.quoting=none for several" in done.stderr


def test_an_open_quote_is_one_bad_row(tmp_path: Path) -> None:
    content = 'sequence\tlabel\na b\ta\n" b c\ta\nd e\tb\nf g\ta\n'
    file = write(tmp_path / "f.tsv", content)
    config = config_of(file, tmp_path, quoting="standard")
    done = run_rnncls("data", "check", config)
    assert done.returncode == 3
    assert "f.tsv:3" in done.stderr

    config = config_of(file, tmp_path, quoting="standard", bad="skip")
    assert rows_of(config) == [("a b", "a"), ("d e", "b"), ("f g", "a")]
    done = train(config)
    assert done.returncode == 0, done.stderr
    assert f"skipped {file}:3" in done.stderr

    done = run_rnncls("predict", tmp_path / "run", "--input", file, "--bad", "skip", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [2, 4, 5]
    assert f"skipped {file}:3" in done.stderr


def test_a_quote_that_a_far_line_closes_ends_at_its_line(tmp_path: Path) -> None:
    """A cell of more than 1,000 lines is no cell."""
    lines = ["sequence,label", '"open,a', *[f"word {n},{'ab'[n % 2]}" for n in range(1500)], 'x",b']
    file = write(tmp_path / "f.csv", "\n".join(lines) + "\n")
    config = config_of(file, tmp_path, quoting="standard", bad="skip")
    rows = rows_of(config)
    assert ("word 0", "a") in rows
    assert ("word 1499", "b") in rows
    assert len(rows) >= 1500


def test_cells_of_several_lines_stay_readable(tmp_path: Path) -> None:
    with (tmp_path / "f.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["sequence", "label"])
        writer.writerow(["Dear Sir, hello\nbye", "pos"])
        writer.writerow(["one\n\nthree", "neg"])
    assert rows_of(config_of(tmp_path / "f.csv", tmp_path)) == [
        ("Dear Sir, hello bye", "pos"),
        ("one three", "neg"),
    ]


# --- 2: a run that was moved


@pytest.fixture
def moved(tmp_path: Path) -> Path:
    """A finished run in B, whose file is in B too; A, where it was trained, is gone."""
    (tmp_path / "A").mkdir()
    rows = "".join(f"good {n},pos\nbad {n},neg\n" for n in range(40))
    file = write(tmp_path / "A" / "films.csv", f"sequence,label\n{rows}")
    trained_on(file, tmp_path / "A", val_fraction=0.1, test_fraction=0.1)
    return (tmp_path / "A").rename(tmp_path / "B")


def test_a_run_that_was_moved_with_its_file_is_evaluated(moved: Path) -> None:
    done = run_rnncls("eval", moved / "run", "--json")
    assert done.returncode == 0, done.stderr
    assert str(moved / "films.csv") in done.stderr
    assert json.loads(done.stdout)["examples"] > 0

    done = run_rnncls("train", "--resume", moved / "run", "train.max_steps=5")
    assert done.returncode == 0, done.stderr
    assert run_rnncls("eval", moved / "run").returncode == 0


def test_a_file_that_was_moved_elsewhere_is_found_by_its_sha(moved: Path) -> None:
    place = moved.parent / "C"
    place.mkdir()
    (moved / "films.csv").rename(place / "other name.csv")
    write(place / "films.csv", FILMS)

    done = run_rnncls("eval", moved / "run")
    assert done.returncode != 0
    assert "--data-dir" in one_line(done.stderr)
    assert "films.csv" in done.stderr

    done = run_rnncls("eval", moved / "run", "--data-dir", place)
    assert done.returncode == 0, done.stderr
    assert "other name.csv" in done.stderr

    done = run_rnncls("train", "--resume", moved / "run", "--data-dir", place, "train.max_steps=5")
    assert done.returncode == 0, done.stderr


def test_a_file_that_has_changed_is_refused_as_before(moved: Path) -> None:
    with (moved / "films.csv").open("a") as file:
        file.write("new,pos\n")
    assert run_rnncls("eval", moved / "run").returncode != 0
    assert run_rnncls("eval", moved / "run", "--data-dir", moved).returncode != 0


# --- 3: ids


def test_ids_are_the_same_everywhere(tmp_path: Path) -> None:
    case = READABLE["3 ids in CSV"]
    file = write(tmp_path / case.file, case.content)
    run_dir = trained_on(file, tmp_path, tokens="ids")
    texts = ["[7, 8, 9]", "7,8,9", "7, 8, 9", "7 8 9", "7;8;9", "7; 8; 9"]
    answers = predicted(run_dir, *texts)
    assert len({answer["probability"] for answer in answers}) == 1

    piped = predicted(run_dir, "-", input="".join(f"{text}\n" for text in texts))
    assert [answer["probability"] for answer in piped] == pytest.approx(
        [answer["probability"] for answer in answers]
    )

    from_python = rnncls.load(run_dir).predict([*texts, [7, 8, 9]])
    assert [prediction.probability for prediction in from_python] == pytest.approx(
        [answers[0]["probability"]] * 7
    )


@pytest.mark.parametrize("tokens", ["words", "characters"])
def test_a_bracketed_list_as_text_is_warned_of_once(tokens: str, tmp_path: Path) -> None:
    rows = "".join(f'"[{n}, 8, 9]",{"ab"[n % 2]}\n' for n in range(9))
    file = write(tmp_path / "f.csv", f"sequence,label\n{rows}")
    done = run_rnncls("data", "check", config_of(file, tmp_path, tokens=tokens))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("data.tokens=ids") == 1


# --- 4: rare classes and splits


@pytest.fixture
def rare(tmp_path: Path) -> Path:
    """300 rows of two classes, and twelve classes of one row."""
    rows = [f"good {n},pos" if n % 2 else f"bad {n},neg" for n in range(300)]
    rows += [f"odd {n},rare{n}" for n in range(12)]
    return write(tmp_path / "f.csv", "\n".join(["sequence,label", *rows]) + "\n")


DEFAULT_SHARES = {"val_fraction": 0.1, "test_fraction": 0.1}


def test_rare_classes_are_kept_in_training_and_named(rare: Path, tmp_path: Path) -> None:
    config = config_of(rare, tmp_path, **DEFAULT_SHARES)
    done = train(config)
    assert done.returncode == 0, done.stderr
    assert "12 classes" in one_line(done.stderr)
    assert "rare0" in done.stderr
    assert {f"rare{n}" for n in range(12)} <= {label for _, label in rows_of(config)}
    assert {label for _, label in rows_of(config, "test")} == {"pos", "neg"}

    done = run_rnncls("train", rare, "--run-dir", tmp_path / "other", "train.max_steps=3")
    assert done.returncode == 0, done.stderr


def test_rare_classes_may_be_dropped_or_an_error(rare: Path, tmp_path: Path) -> None:
    config = config_of(rare, tmp_path, rare_classes="drop", **DEFAULT_SHARES)
    assert {label for _, label in rows_of(config)} == {"pos", "neg"}
    done = run_rnncls("data", "check", config)
    assert "12 classes" in one_line(done.stderr)

    done = run_rnncls(
        "data", "check", config_of(rare, tmp_path, rare_classes="error", **DEFAULT_SHARES)
    )
    assert done.returncode == 3
    assert "rare0" in done.stderr
    assert "data.rare_classes" in done.stderr


def own_validation(folder: Path) -> Path:
    write(folder / "val.csv", "sequence,label\na b,x\n")
    return write(folder / "f.csv", "sequence,label\na b,x\nc d,y\na c,x\nb d,y\n")


def test_a_validation_file_of_ones_own(tmp_path: Path) -> None:
    file = own_validation(tmp_path)
    done = train(config_of(file, tmp_path, val=str(tmp_path / "val.csv"), **DEFAULT_SHARES))
    assert done.returncode == 0, done.stderr

    rows = "".join(f"good {n},x\nbad {n},y\n" for n in range(40))
    write(file, f"sequence,label\n{rows}")
    done = run_rnncls("data", "check", config_of(file, tmp_path, val=str(file), **DEFAULT_SHARES))
    assert done.returncode == 0, done.stderr
    # It takes a tenth of the training file.
    assert "data.test_fraction" in done.stdout
    shutil.rmtree(tmp_path / "run")
    assert "data.test_fraction" in train(tmp_path / "c.yaml").stderr


def test_a_class_that_fell_into_the_test_is_not_called_unknown(tmp_path: Path) -> None:
    # By their hashes alone, half of the sequences are for the test.
    held_out = next(
        text for text in map("only {}".format, count()) if hash_of(text.split()) < 2**63
    )
    rows = "".join(f"good {n},y\n" for n in range(30))
    file = write(tmp_path / "f.csv", f"sequence,label\n{held_out},x\n{rows}")
    val = write(tmp_path / "val.csv", "sequence,label\ngood,x\n")
    config = config_of(file, tmp_path, val=str(val), split="hash", test_fraction=0.5)
    done = run_rnncls("data", "check", config)
    assert done.returncode == 3
    assert "x, which 1 row of the training files has, all of them held out" in one_line(done.stderr)
    assert "data.split=stratified" in done.stderr

    # By class, it is in training.
    config = config_of(file, tmp_path, val=str(val), test_fraction=0.5)
    assert run_rnncls("data", "check", config).returncode == 0


# --- 5: no header, several columns


def test_a_file_without_a_header_is_guessed_with_the_key(tmp_path: Path) -> None:
    rows = "".join(f"good film {n}\tpos\nbad film {n}\tneg\n" for n in range(20))
    file = write(tmp_path / "f.tsv", rows)
    done = run_rnncls("train", file, "--run-dir", tmp_path / "run")
    assert done.returncode == 3
    assert "data.header=false" in done.stderr
    assert "first line" in one_line(done.stderr)  # the other remedy

    words = ["data.header=false", "train.max_steps=3", *LEAN]
    done = run_rnncls("train", file, *words, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert len(predicted(tmp_path / "run", "--input", file)) == 40

    done = run_rnncls("data", "check", file, "data.header=false")
    assert done.returncode == 0, done.stderr


NEWS = (
    '"3","Firm buys","The firm said, on Monday"\n"1","Rain falls","It rained, again"\n'
    '"3","Bank sells",""\n"1","","Snow, too"\n'
)


def test_two_text_columns_are_one_sequence(tmp_path: Path) -> None:
    file = write(tmp_path / "f.csv", NEWS)
    keys = {"header": False, "sequence_field": ["2", "3"], "label_field": "1"}
    config = config_of(file, tmp_path, **keys)
    assert rows_of(config) == [
        ("Firm buys <sep> The firm said, on Monday", "3"),
        ("Rain falls <sep> It rained, again", "1"),
        ("Bank sells <sep>", "3"),
        ("<sep> Snow, too", "1"),
    ]
    run_dir = trained_on(file, tmp_path, **keys)
    answers = predicted(run_dir, "--input", file)
    assert [str(answer["true"]) for answer in answers] == ["3", "1", "3", "1"]
    (single,) = predicted(run_dir, "Firm buys <sep> The firm said, on Monday")
    assert single["probability"] == pytest.approx(answers[0]["probability"], rel=1e-5)
    done = run_rnncls("eval", run_dir, "--data", file, "--json")
    assert json.loads(done.stdout)["examples"] == 4


# --- 6, 7, 8, 17, 18: prediction


def test_another_column_at_prediction(films: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "new.csv", "id,text\n7,good film\n")
    done = run_rnncls("predict", films, "--input", file)
    assert done.returncode == 3
    assert "--sequence-field" in done.stderr
    assert "data." not in done.stderr.partition("try:")[2]

    (answer,) = predicted(films, "good film")
    for option in ("--sequence-field", "--text-column"):
        (same,) = predicted(films, "--input", file, option, "text")
        assert same["probability"] == pytest.approx(answer["probability"], rel=1e-5)

    file = write(tmp_path / "labelled.csv", "id,text,kind\n7,good film,pos\n8,bad film,neg\n")
    words: Words = ["--data", file, "--sequence-field", "text", "--label-field", "kind", "--json"]
    done = run_rnncls("eval", films, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 2


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV or TSV file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_columns_are_kept_and_rows_are_numbered(suffix: str, films: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "new.csv", 'id,sequence\n7,"good\nfilm"\n8,bad film\n')
    output = tmp_path / f"out.{suffix}"
    done = run_rnncls("predict", films, "--input", file, "--output", output, "--top-k", "2")
    assert done.returncode == 0, done.stderr

    rows = table(output)
    assert list(rows[0]) == [
        "id",
        "sequence",
        "row",
        "line",
        "predicted",
        "probability",
        "predicted_2",
        "probability_2",
    ]
    assert [row["id"] for row in rows] == ["7", "8"]
    assert [row["sequence"] for row in rows] == ["good\nfilm", "bad film"]
    assert [row["row"] for row in rows] == ["1", "2"]
    assert [row["line"] for row in rows] == ["2", "4"]

    answers = predicted(films, "--input", file)
    assert [row["predicted"] for row in rows] == [answer["label"] for answer in answers]


def test_a_column_that_prediction_would_write_is_refused(films: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "new.csv", "predicted,sequence\n7,good film\n")
    done = run_rnncls("predict", films, "--input", file, "--output", tmp_path / "out.csv")
    assert done.returncode == 2
    assert "predicted" in done.stderr
    assert not (tmp_path / "out.csv").exists()


def test_a_blank_cell_at_prediction(films: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "new.csv", 'sequence\ngood\n"  "\nbad\n')
    done = run_rnncls("predict", films, "--input", file)
    assert done.returncode == 3
    assert "new.csv:3" in done.stderr
    assert "--bad skip" in one_line(done.stderr)
    assert "data.empty" not in done.stderr

    output = tmp_path / "out.csv"
    done = run_rnncls("predict", films, "--input", file, "--bad", "skip", "--output", output)
    assert done.returncode == 0, done.stderr
    rows = table(output)
    assert [row["row"] for row in rows] == ["1", "2", "3"]
    assert rows[1]["predicted"] == rows[1]["probability"] == ""


@pytest.mark.parametrize("word", ["error", "stop"])
def test_bad_rows_end_a_prediction_by_either_word(word: str, films: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "new.csv", 'sequence\ngood\n"  "\nbad\n')
    done = run_rnncls("predict", films, "--input", file, "--bad", word)
    assert done.returncode == 3


def test_mostly_unknown_words_are_warned_of(films: Path, tmp_path: Path) -> None:
    text = "good " + " ".join(f"new{n}" for n in range(7))
    done = run_rnncls("predict", films, text)
    assert done.returncode == 0
    assert "tokens that the training data lacks" in one_line(done.stderr)

    file = write(tmp_path / "new.csv", "sequence\n" + f"{text}\n" * 9 + "good film\n")
    done = run_rnncls("predict", films, "--input", file)
    assert done.stderr.count("warning") == 1
    assert "9 of 10" in done.stderr

    assert "warning" not in run_rnncls("predict", films, "good film").stderr


@pytest.mark.parametrize("content", [FILMS, FILMS.replace(",", "\t"), "id,sequence\n1,good\n"])
def test_a_table_in_a_pipe(content: str, films: Path) -> None:
    commands: list[Words] = [["predict", films], ["predict", films, "-"]]
    for words in commands:
        done = run_rnncls(*words, input=content)
        assert done.returncode in (2, 3)
        assert "--input" in done.stderr
        assert not done.stdout

    # A sentence is no header.
    assert len(predicted(films, "-", input="the sequence, or the label\n")) == 1


# --- 13: labels with stray spaces


def test_stray_spaces_are_counted(tmp_path: Path) -> None:
    file = write(tmp_path / "f.csv", "sequence,label\na b, x\nc d,x\nd,x \ne,y\n")
    done = run_rnncls("data", "check", config_of(file, tmp_path))
    assert "2 classes" in done.stdout
    assert "2 labels" in one_line(done.stderr)


# --- 14: files that need an extra


def parquet(path: Path, with_ids: bool = False) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet_files = pytest.importorskip("pyarrow.parquet")
    sequences: list[Any] = [text for text, _ in FILM_ROWS]
    if with_ids:
        sequences = [[1, 2, 3], [4, 5], [1, 2], [4]]
    columns = {"sequence": sequences, "label": [label for _, label in FILM_ROWS]}
    parquet_files.write_table(pyarrow.table(columns), path)
    return path


def arrow(path: Path, as_stream: bool = False) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    content = pyarrow.Table.from_pylist(FILM_OBJECTS)
    new = pyarrow.ipc.new_stream if as_stream else pyarrow.ipc.new_file
    with new(str(path), content.schema) as writer:
        writer.write_table(content)
    return path


def xlsx(path: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for cells in [("sequence", "label"), *FILM_ROWS]:
        book.active.append(cells)
    book.save(path)
    return path


COLUMNAR: dict[str, Callable[[Path], Path]] = {
    "f.parquet": parquet,
    "f.arrow": arrow,
    "stream.arrow": lambda path: arrow(path, as_stream=True),
    "f.xlsx": xlsx,
}


@pytest.mark.parametrize("name", COLUMNAR)
def test_columnar_files_are_read(name: str, tmp_path: Path) -> None:
    file = COLUMNAR[name](tmp_path / name)
    config = config_of(file, tmp_path)
    assert rows_of(config) == FILM_ROWS
    run_dir = trained_on(file, tmp_path)
    assert [answer["true"] for answer in predicted(run_dir, "--input", file)] == [
        label for _, label in FILM_ROWS
    ]
    done = run_rnncls("eval", run_dir, "--data", file, "--json")
    assert json.loads(done.stdout)["examples"] == 4
    assert run_rnncls("data", "check", file).returncode == 0


def test_lists_of_ids_in_parquet(tmp_path: Path) -> None:
    file = parquet(tmp_path / "f.parquet", with_ids=True)
    rows = rows_of(config_of(file, tmp_path, tokens="ids"))
    assert rows == [("1 2 3", "pos"), ("4 5", "neg"), ("1 2", "pos"), ("4", "neg")]


@pytest.fixture
def no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python without what the extra installs."""
    for name in [*sys.modules]:
        if name.split(".")[0] in ("pyarrow", "openpyxl"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "openpyxl", None)


@pytest.mark.parametrize("name", ["f.parquet", "f.arrow", "f.xlsx"])
@pytest.mark.usefixtures("no_extra")
def test_columnar_files_without_the_extra_name_the_command(
    name: str, films: Path, tmp_path: Path
) -> None:
    content = {
        "f.parquet": b"PAR1" + bytes(50) + b"PAR1",
        "f.arrow": b"ARROW1\0\0" + bytes(50),
        "f.xlsx": zip_of("xl/workbook.xml", b"<workbook/>"),
    }[name]
    file = write(tmp_path / name, content)
    commands: list[Words] = [
        ["train", config_of(file, tmp_path)],
        ["data", "check", file],
        ["predict", films, "--input", file],
        ["eval", films, "--data", file],
    ]
    for words in commands:
        done = run_rnncls(*words)
        assert done.returncode == 3, done.stderr
        assert "pip install 'rnncls[files]'" in one_line(done.stderr)


# --- 15: several files


def test_several_files_are_read_as_one(tmp_path: Path) -> None:
    header, *lines = FILMS.splitlines(keepends=True)
    parts = tmp_path / "parts"
    parts.mkdir()
    write(parts / "part1.csv", header + "".join(lines[:2]))
    write(parts / "part2.csv.gz", gzip.compress((header + "".join(lines[2:])).encode()))
    write(parts / ".hidden.csv", "not,a,table\n")

    names = [str(parts / "part1.csv"), str(parts / "part2.csv.gz")]
    for train_files in (names, str(parts), str(parts / "part*")):
        config = config_of(train_files, tmp_path)
        assert rows_of(config) == FILM_ROWS
        done = run_rnncls("data", "check", config)
        assert "train: 4 sequences" in done.stdout

    run_dir = trained_on(str(parts / "part*"), tmp_path)
    for data in (parts, parts / "part*"):
        done = run_rnncls("eval", run_dir, "--data", data, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["examples"] == 4

    # A file that comes later belongs to the next run.
    write(parts / "part3.csv", header + "new,pos\n")
    done = run_rnncls("train", "--resume", run_dir, "train.max_steps=5")
    assert done.returncode == 0, done.stderr


def test_bad_rows_of_several_files_are_named_by_their_own(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "sequence,label\na,x\nb,y\n")
    write(tmp_path / "b.csv", "sequence,label\na,x\nb\n")
    config = config_of([str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], tmp_path)
    done = run_rnncls("data", "check", config)
    assert done.returncode == 3
    assert "b.csv:3" in done.stderr


@pytest.mark.parametrize("name", ["none*.csv", "empty"])
def test_a_pattern_or_a_folder_without_files(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = run_rnncls("data", "check", config_of(str(tmp_path / name), tmp_path))
    assert done.returncode == 3
    assert name in done.stderr


# --- 16: contradictions


def test_contradictions_are_counted_and_shown(tmp_path: Path) -> None:
    rows = "".join(f"same {n},x\nsame {n},y\n" for n in range(10))
    file = write(tmp_path / "f.csv", f"sequence,label\n{rows}")
    config = config_of(file, tmp_path)
    for done in (
        run_rnncls("data", "check", config),
        run_rnncls("data", "stats", config),
        train(config),
    ):
        said = one_line(done.stdout + done.stderr)
        assert done.returncode == 0, done.stderr
        assert "10 sequences" in said
        assert "same 0" in said
        assert "50" in said  # the accuracy that cannot be exceeded, in percent

    done = run_rnncls("data", "stats", config, "--json")
    assert json.loads(done.stdout)["contradictions"]["sequences"] == 10


# --- 19: no runs yet


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_runs_of_a_folder_that_is_not_there(options: list[str], tmp_path: Path) -> None:
    done = run_rnncls("runs", "ls", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "runs" in done.stderr
    assert not done.stdout.strip("[]\n ")

    (tmp_path / "runs").mkdir()
    done = run_rnncls("runs", "ls", *options, cwd=tmp_path)
    assert done.returncode == 0
    assert not done.stderr.startswith("rnncls: error")


# --- 20: remedies that are in force


def test_the_remedy_of_a_nan_differs_from_what_is_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = config_of(write(tmp_path / "f.csv", FILMS), tmp_path)
    at_step(monkeypatch, 1, lambda state: state.model.embedding.weight.data.fill_(float("nan")))
    words: Words = ["train.max_grad_norm=1", "--run-dir", tmp_path / "run"]
    done = run_rnncls("train", config, *words)
    assert done.returncode == 7, done.stderr
    assert "try:" in done.stderr
    assert "max_grad_norm=1 " not in done.stderr.partition("try:")[2] + " "
    assert "max_grad_norm=1\n" not in done.stderr.partition("try:")[2]


# --- a file without a config


@pytest.mark.parametrize(
    "name",
    [
        "1 lone quotes in a TSV",
        "9 UTF-16, little first",
        "10 semicolons",
        "14 bz2",
        "14 zip by its member",
        "14 tab-separated text",
        "14 a JSON array, pretty",
    ],
)
def test_a_file_alone_is_enough(name: str, tmp_path: Path) -> None:
    case = READABLE[name]
    file = write(tmp_path / case.file, case.content)
    done = run_rnncls("data", "check", file)
    assert done.returncode == 0, done.stderr
    assert case.said in done.stderr

    run_dir = tmp_path / "run"
    done = run_rnncls("train", file, "--run-dir", run_dir, "train.max_steps=3", *LEAN)
    assert done.returncode == 0, done.stderr
    assert len(predicted(run_dir, *input_of(file))) == len(case.rows)

    # The config that it takes reads it again.
    done = run_rnncls("init", file)
    assert done.returncode == 0, done.stderr
    config = write(tmp_path / "made.yaml", done.stdout)
    assert run_rnncls("data", "check", config).returncode == 0
    shutil.rmtree(run_dir)


# --- docs/data.md: what you have, and what to write

PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("| what you have | what to write |")[2].partition("\n\n")[0]
COMMANDS = re.findall(r"`(rnncls [^`]*)`", TABLE)


def numbered(rows: Rows) -> str:
    """Return a CSV of 40 rows: these in turn, each with a number."""
    cells = [(f"{text} {n}", label) for n in range(40 // len(rows)) for text, label in rows]
    return "sequence,label\n" + "".join(f"{text},{label}\n" for text, label in cells)


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every file that the table names. Commands may add files, and change none."""
    folder = tmp_path_factory.mktemp("people")
    plain = numbered(FILM_ROWS)
    body = plain.partition("\n")[2]
    news = {
        "source": "files",
        "train": "news.csv",
        "sequence_field": ["title", "text"],
        "label_field": "class",
    }

    files: dict[str, bytes | str] = {
        "quotes.tsv": plain.replace("film", '5" film').replace(",", "\t"),
        "quotes.csv": plain.replace("\ngood", '\n"good'),
        "open.tsv": plain.replace(",", "\t").replace("good film 3", '" good film 3'),
        "ids.csv": "sequence,label\n" + '"[3, 1, 2]",a\n"3,1",b\n3 1,a\n3;2,b\n' * 10,
        "rare.csv": plain + "odd,rare\n",
        "part1.csv": plain,
        "part2.csv": plain,
        "plain.tsv": body.replace(",", "\t"),
        "news.csv": "class,title,text\n" + '3,"Firm, buys",It said\n1,Rain,\n' * 20,
        "news.yaml": json.dumps({"data": news}),
        "new.csv": "id,text\n7,good film\n8,bad film\n",
        "blank.csv": 'sequence\ngood\n"  "\nbad\n',
        "utf16.csv": plain.encode("utf-16"),
        "cp1252.csv": plain.replace("plot", "café").encode("cp1252"),
        "semicolons.csv": plain.replace(",", ";"),
        "booleans.jsonl": '{"sequence":"a b","label":true}\n{"sequence":"c","label":1.0}\n' * 20,
        "spaces.csv": plain.replace(",pos", ", pos "),
        "binned.csv": "sequence,label\n" + "15 3,up\n2 11,down\n" * 20,
        "packed.csv.xz": lzma.compress(plain.encode()),
        "array.json": json.dumps(FILM_OBJECTS * 10, indent=2),
        "tabs.txt": plain.replace(",", "\t"),
        "parts/a.csv": plain,
        "parts/b.csv": plain,
        "parts.yaml": '{"data": {"source": "files", "train": "parts/*.csv"}}',
        "same.csv": plain + "good film 1,neg\n",
        "films/films.csv": plain,
    }

    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name, content)

    # A run beside its data, and a copy of it that was moved away from them.
    trained_on(folder / "films" / "films.csv", folder / "films", test_fraction=0.1)
    shutil.copytree(folder / "films" / "run", folder / "run")
    (folder / "moved").mkdir()
    (folder / "films").rename(folder / "elsewhere")
    shutil.move(folder / "elsewhere" / "run", folder / "moved" / "run")
    return folder


@pytest.mark.parametrize("command", COMMANDS)
def test_what_the_table_says_is_so(command: str, people: Path, tmp_path: Path) -> None:
    if "parquet" in command:
        parquet(people / "table.parquet")
    words = shlex.split(command)[1:]
    if words[0] == "train":
        words += [
            "train.max_steps=3",
            "train.engine=eager",
            *LEAN,
            "--run-dir",
            str(tmp_path / "run"),
        ]
    done = run_rnncls(*words, cwd=people)
    assert done.returncode == 0, done.stderr


def test_the_table_has_a_line_for_each_case() -> None:
    assert len(TABLE.strip().splitlines()) - 1 == 25
    # Of the others, "runs ls" and the remedies of a loss that is NaN have nothing to write.
    assert len(COMMANDS) >= 25


# --- damaged files of every format


@pytest.mark.slow
def test_damaged_files_lose_no_row() -> None:
    done = run_command([PYTHON, "-m", "scripts.mutate_files", "--files", "600", "--large", "2"])
    assert done.returncode == 0, done.stdout + done.stderr
