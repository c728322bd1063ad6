"""A config is made from a file: what it says is what the file has, and it trains.

The files are made here, as people have them. Each one trains for 10 steps, or is refused with its
line and the reason.
"""

import csv
import gzip
import io
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from rnncls.cli import data as data_commands
from rnncls.cli.init import FILE_OPTIONS, config_of_file
from rnncls.config import FilesConfig, load_config, parse_config
from rnncls.data import FilesTask, load_task
from rnncls.data.guess import guess_config
from rnncls.errors import DataError
from rnncls.system.file_kinds import format_by_name, other_kind_by_name
from tests.helpers import LEAN, Completed, run_rnncls

SMALL = ["train.max_steps=10", "model.hidden_size=4", "model.embedding_dim=2", "train.engine=eager"]
TINY = [*SMALL, *LEAN]

WORDS = "home shop cart pay search help back login list sale".split()  # noqa: SIM905


def texts(count: int, longest: int = 8, seed: int = 0) -> list[str]:
    """Draw texts of a few words."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, longest))) for _ in range(count)]


def labels(count: int, names: list[str] | None = None) -> list[str]:
    """Return labels that take turns."""
    names = names or ["bought", "left"]
    return [names[number % len(names)] for number in range(count)]


def table(
    header: list[str] | None, *columns: list[Any], separator: str = ",", end: str = "\n"
) -> bytes:
    """Return a table of these columns, quoted where it must be."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator=end)
    if header:
        writer.writerow(header)
    writer.writerows(zip(*columns, strict=True))
    return text.getvalue().encode()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


class Made(NamedTuple):
    """A made file: its content, and what of its config is to be as said."""

    content: bytes
    data: dict[str, Any] = {}  # noqa: RUF012
    train: dict[str, Any] = {}  # noqa: RUF012


ROWS = 60
IDS = [[number % 7, 3, number % 5] for number in range(ROWS)]
NAMES = [f"{first}{middle}{last}" for first in "ABCDE" for middle in "aeiou" for last in "nrt"]
SMILES = ["C" * (number % 9 + 1) + "(=O)O" + "N" * (number // 9) for number in range(ROWS)]

PLAIN = table(["sequence", "label"], texts(ROWS), labels(ROWS))
WORDS_READ = {"sequence_field": "sequence", "label_field": "label", "tokens": "words"}

TRAINS = {
    "plain.csv": Made(PLAIN, WORDS_READ),
    "semicolons.csv": Made(
        table(
            ["text", "label"], [f"{text}, ok" for text in texts(ROWS)], labels(ROWS), separator=";"
        ),
        {"separator": ";", "sequence_field": "text", "tokens": "words"},
    ),
    "bars.csv": Made(
        table(["label", "message"], labels(ROWS), texts(ROWS), separator="|"),
        {"separator": "|", "sequence_field": "message", "label_field": "label"},
    ),
    "tabs.tsv": Made(
        table(["text", "class"], texts(ROWS), labels(ROWS), separator="\t"),
        {"label_field": "class"},
    ),
    "tabs.csv": Made(
        table(["text", "class"], texts(ROWS), labels(ROWS), separator="\t"), {"separator": "tab"}
    ),
    "tabs.txt": Made(
        table(["text", "class"], texts(ROWS), labels(ROWS), separator="\t"), {"format": "tsv"}
    ),
    "lists.csv": Made(
        table(["tokens", "label"], [json.dumps(ids) for ids in IDS], labels(ROWS)),
        {"sequence_field": "tokens", "tokens": "ids", "max_length": 3},
    ),
    "spaces.csv": Made(
        table(["events", "label"], [" ".join(map(str, ids)) for ids in IDS], labels(ROWS)),
        {"sequence_field": "events", "tokens": "ids", "max_length": 3},
    ),
    "commas.csv": Made(
        table(["events", "label"], [",".join(map(str, ids)) for ids in IDS], labels(ROWS)),
        {"tokens": "ids", "max_length": 3},
    ),
    "smiles.csv": Made(
        table(["smiles", "toxic"], SMILES, labels(ROWS, ["0", "1"])),
        {"sequence_field": "smiles", "label_field": "toxic", "tokens": "characters"},
    ),
    "names.csv": Made(
        table(["name", "language"], NAMES, labels(len(NAMES), ["it", "nl", "pl"])),
        {
            "sequence_field": "name",
            "label_field": "language",
            "tokens": "characters",
            "max_length": 3,
        },
    ),
    "chinese.csv": Made(
        table(
            ["文本", "类别"],
            [chr(0x4E00 + n) * 3 + "好" for n in range(ROWS)],
            labels(ROWS, ["是", "否"]),
        ),
        {"sequence_field": "文本", "label_field": "类别", "tokens": "characters", "max_length": 4},
    ),
    "numbers.csv": Made(
        table(["text", "rating"], texts(ROWS), labels(ROWS, ["1", "2", "3", "4", "5"])),
        {"label_field": "rating"},
    ),
    "zero_one.csv": Made(
        table(["text", "y"], texts(ROWS), labels(ROWS, ["0", "1"])), {"label_field": "y"}
    ),
    "bom.csv": Made(b"\xef\xbb\xbf" + PLAIN, WORDS_READ),
    "packed.csv.gz": Made(gzip.compress(PLAIN), WORDS_READ),
    "crlf.csv": Made(PLAIN.replace(b"\n", b"\r\n"), WORDS_READ),
    "one_class.csv": Made(
        table(["text", "label"], texts(ROWS), ["left"] * ROWS), {"label_field": "label"}
    ),
    "ten_rows.csv": Made(
        table(["text", "label"], texts(10), labels(10)), {"sequence_field": "text"}
    ),
    "one_each.csv": Made(
        table(["text", "label"], texts(10), [f"class {number}" for number in range(10)]),
        {"val_fraction": 0.0, "test_fraction": 0.0},
    ),
    "200_classes.csv": Made(
        table(
            ["text", "label"], texts(2000), labels(2000, [f"c{number}" for number in range(200)])
        ),
        {"label_field": "label"},
    ),
    "label_first.csv": Made(
        table(["label", "text"], labels(ROWS), texts(ROWS)), {"sequence_field": "text"}
    ),
    "more_columns.csv": Made(
        table(
            ["", "id", "date", "what was done", "group it is in"],
            list(range(ROWS)),
            [f"A{number}" for number in range(ROWS)],
            ["2024-01-01"] * ROWS,
            texts(ROWS),
            labels(ROWS),
        ),
        {"sequence_field": "what was done", "label_field": "group it is in"},
    ),
    "other_names.jsonl": Made(
        json_lines([{"id": n, "body": text, "kind": n % 2} for n, text in enumerate(texts(ROWS))]),
        {"sequence_field": "body", "label_field": "kind", "tokens": "words"},
    ),
    "ids.jsonl": Made(
        json_lines([{"a": ids, "b": sum(ids) % 3} for ids in IDS]),
        {"sequence_field": "a", "label_field": "b", "tokens": "ids", "max_length": 3},
    ),
    "words.jsonl": Made(
        json_lines([{"path": text.split(), "label": "x"} for text in texts(ROWS)]),
        {"sequence_field": "path", "tokens": "words"},
    ),
    "without_end": Made(
        json_lines([{"text": text, "label": n % 2} for n, text in enumerate(texts(ROWS))]),
        {"format": "jsonl"},
    ),
    "array.json": Made(
        json.dumps([{"text": text, "label": n % 2} for n, text in enumerate(texts(ROWS))]).encode(),
        {"format": "json"},
    ),
    "array": Made(
        json.dumps([{"text": t, "label": n % 2} for n, t in enumerate(texts(ROWS))]).encode(),
        {"format": "json"},
    ),
    "empty_texts.csv": Made(
        table(["text", "label"], ["", *texts(ROWS)], labels(ROWS + 1)), {"empty": "drop"}
    ),
    "long.csv": Made(
        table(["text", "label"], [*texts(300), "pay " * 5_000], labels(301)), {"max_length": 200}
    ),
    "all_long.csv": Made(
        table(["text", "label"], [f"{text} {'pay ' * 1_200}" for text in texts(6)], labels(6)),
        {"max_length": 1_000, "val_fraction": 0.2},
    ),
    "newlines.csv": Made(
        table(["text", "label"], [text.replace(" ", "\n") for text in texts(ROWS)], labels(ROWS)),
        {"tokens": "words"},
    ),
    "uneven.csv": Made(
        table(["text", "label"], texts(400), labels(400, ["a"] * 15 + ["b"])),
        {},
        {"class_weights": "balanced", "best_metric": "macro_f1"},
    ),
    "a name # with: 'signs'.csv": Made(
        table(["the: text", "- label"], texts(ROWS), labels(ROWS)),
        {"sequence_field": "the: text", "label_field": "- label"},
    ),
    "date_last.csv": Made(
        table(
            ["note", "mood", "when", "user id"],
            texts(ROWS),
            labels(ROWS),
            [f"2024-01-0{number % 5 + 1} 10:00" for number in range(ROWS)],
            [number % 4 for number in range(ROWS)],
        ),
        {"sequence_field": "note", "label_field": "mood"},
    ),
    "row_uuid.csv": Made(
        table(
            ["row_uuid", "note", "mood"],
            [f"{n:08x}-{'abcd-' * 20}" for n in range(ROWS)],
            texts(ROWS),
            labels(ROWS),
        ),
        {"sequence_field": "note", "label_field": "mood"},
    ),
    "only_an_id.csv": Made(
        table(["text", "id"], texts(ROWS), [number % 3 for number in range(ROWS)]),
        {"label_field": "id"},
    ),
    "one_language.csv": Made(
        table(["language", "text", "mood"], ["en"] * ROWS, texts(ROWS), labels(ROWS)),
        {"label_field": "mood"},
    ),
    "nothing_varies.csv": Made(
        table(["text", "label", "z"], texts(ROWS), ["x"] * ROWS, ["y"] * ROWS),
        {"label_field": "label"},
    ),
    "long_names.csv": Made(
        table(["the text that was written", "what was thought of it"], texts(ROWS), labels(ROWS)),
        {"sequence_field": "the text that was written"},
    ),
    "clicks.csv": Made(
        table(["path", "label"], [*WORDS * 4, *texts(20, longest=3)], labels(ROWS)),
        {"tokens": "words"},
    ),
}


class Refused(NamedTuple):
    """A made file that is refused: its content, and what the message says."""

    content: bytes
    says: list[str]


REFUSED = {
    "no_header.csv": Refused(
        table(None, texts(ROWS), labels(ROWS)), ["no_header.csv:1", "looks like data", "first line"]
    ),
    "no_header_01.tsv": Refused(
        table(None, ["1", "0", "1"], texts(3), separator="\t"),
        ["no_header_01.tsv:1", "looks like data"],
    ),
    "no_header_line.csv": Refused(
        table(None, ["this line is bad", *texts(ROWS)], labels(ROWS + 1)),
        ["no_header_line.csv:1", "looks like data", "this line is bad"],
    ),
    "no_header_label.csv": Refused(
        table(None, labels(ROWS, ["__label__a", "__label__b"]), texts(ROWS)),
        ["no_header_label.csv:1", "looks like data"],
    ),
    "empty.csv": Refused(b"", ["0 sequences", "empty.csv"]),
    "header.csv": Refused(b"text,label\n", ["0 sequences", "header.csv", "rows below the header"]),
    "blank.jsonl": Refused(b"\n\n", ["0 sequences", "blank.jsonl"]),
    "binary.csv": Refused(b"\x03\x04\xff\xfe\x00" * 9, ["not UTF-8", "binary.csv:1", "0xff"]),
    "broken.csv": Refused(b"PK\x03\x04\xff\xfe\x00" * 9, ["zip file is damaged", "broken.csv"]),
    "junk.bin": Refused(b"\x00\x01\x02" * 9, ["junk.bin:1", "neither JSON lines nor a table"]),
    "lines.txt": Refused(b"hello\nworld\n", ["lines.txt:1", "neither JSON lines nor a table"]),
    "array.json": Refused(
        b'[{"text": "a b", "label": 1},\n{"text": "a b"', ["array.json:2", "ends too early"]
    ),
    "rows.npy": Refused(b"\x93NUMPY\x01\x00v\x00", ["a NumPy file is not read", "rows.npy"]),
    "free.csv": Refused(
        table(["text", "label"], texts(ROWS), [f"{n} is free text" for n in range(ROWS)]),
        ["no column of labels", "label (60 different)", "--label-field 'label'"],
    ),
    "no_label.csv": Refused(
        table(["text", "id"], texts(ROWS), list(range(ROWS))),
        ["no column of labels", "id (60 different)"],
    ),
    "measured.csv": Refused(
        table(["width", "height", "species"], *[[f"{n}.5" for n in range(ROWS)]] * 2, labels(ROWS)),
        ["no column of sequences", "width (60 different)"],
    ),
    "twice.csv": Refused(
        table(["text", "text", "label"], texts(ROWS), texts(ROWS), labels(ROWS)),
        ["twice.csv:1", "bad header", "each column once"],
    ),
    "width.csv": Refused(
        b"text,label\na b,x\na, b,x\na b,y\n",
        ["width.csv:3", "wrong number of columns", "3 columns", "quotes around a text"],
    ),
    "quote.csv": Refused(b'text,label\na b,x\n"a b,x\na b,y\n', ["quote.csv:3", "an open quote"]),
    "no_json.jsonl": Refused(
        b'{"text": "a b", "label": 1}\n{"text": oops}\n', ["no_json.jsonl:2", "not JSON"]
    ),
    "null.jsonl": Refused(
        b'{"text": "a b", "label": 1}\n{"text": "c", "label": null}\n',
        ["null.jsonl:2", "bad label"],
    ),
    "cut.csv.gz": Refused(gzip.compress(PLAIN)[:-20], ["cut.csv.gz", "gzip file is damaged"]),
}


def train(folder: Path, name: str, *words: str) -> Completed:
    """Train on a file in this folder, into the folder's run, in this process."""
    return run_rnncls("train", name, *TINY, *words, "--run-dir", "run", cwd=folder)


# The long one takes seconds.
QUICK_FILES = [name for name in TRAINS if name != "all_long.csv"]
LONG_FILES = [pytest.param("all_long.csv", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", [*QUICK_FILES, *LONG_FILES])
def test_a_made_file_is_understood_and_trains(name: str, tmp_path: Path) -> None:
    made = TRAINS[name]
    (tmp_path / name).write_bytes(made.content)
    done = train(tmp_path, name)
    assert done.returncode == 0, done.stderr

    # The config of the run is the resolved one, with what was found.
    config = load_config(tmp_path / "run" / "config.yaml").model_dump()
    raw = guess_config(tmp_path / name).raw
    for section, expected in (("data", made.data), ("train", made.train)):
        for key, value in expected.items():
            assert config[section][key] == value, key
            assert raw[section][key] == value, key

    # What the guess leaves to the defaults is not in it.
    for key in ("separator", "format", "max_length", "empty", "val_fraction", "layout"):
        assert (key in raw["data"]) == (key in made.data), key
    assert ("class_weights" in raw["train"]) == bool(made.train)
    assert f"made from {name}" in (tmp_path / "run" / "config.yaml").read_text().splitlines()[0]


BITS = [[number % 2, *map(int, f"{number:b}")] for number in range(ROWS)]
PARITY = json_lines(
    [
        {
            "sequence": bits,
            "label": sum(bits) % 2,
            "after": [sum(bits[:end]) % 2 for end in range(1, len(bits) + 1)],
        }
        for bits in BITS
    ]
)

# What a user asks for, and the keys that the guess must not have then: beside them, it is no
# config. Each in a file of 2,500 rows, in which the guess says the most.
ASKED = {
    "model.bidirectional=true": ("data.layout",),
    "data.unknown=error": ("data.token_dropout",),
    "data.max_length=null": ("data.max_length", "model.positions"),
    "train.objective=prefix": ("model.pooling", "model.skip", "train.baseline"),
    "model.cell=none": (),
    "model.ngrams=[]": (),
    "model.bidirectional=false": (),
    "data.unknown=unk": (),
    "train.objective=sequence": (),
}


@pytest.mark.parametrize("asked", ASKED)
def test_the_guess_is_not_in_the_way_of_what_is_asked_for(asked: str, tmp_path: Path) -> None:
    rows = PARITY.splitlines(keepends=True)
    of_one_length = [row for row in rows if len(json.loads(row)["sequence"]) == 6]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(of_one_length * (2_500 // len(of_one_length) + 1)))

    options = dict.fromkeys(FILE_OPTIONS)
    made = config_of_file(path, options, [asked, "data.prefix_labels_field=after"])
    config = made.model_dump(mode="json")
    key, _, value = asked.partition("=")
    section, key = key.split(".")
    assert config[section][key] == yaml.safe_load(value)

    guessed = guess_config(path).raw
    for name in ("data.layout", "data.token_dropout", "model.positions", "model.pooling"):
        section, key = name.split(".")
        kept = config[section][key] == guessed[section][key]
        assert kept == (name not in ASKED[asked]), name


# A file for each kind of tokens, and one of sequences of one length.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plain.csv", []),
        ("names.csv", []),
        ("semicolons.csv", ["--tokens", "subwords"]),
        ("ids.jsonl", ["data.tokens=ids"]),
        ("plain.csv", ["model.cell=none"]),
        ("plain.csv", ["model.ngrams=[]"]),
        ("plain.csv", ["model.bidirectional=true"]),
        ("plain.csv", ["data.unknown=error"]),
        ("parity.jsonl", ["train.objective=prefix", "data.prefix_labels_field=after"]),
    ],
)
def test_a_file_trains_with_its_control_whatever_is_asked_for(
    name: str, words: list[str], tmp_path: Path
) -> None:
    content = PARITY if name == "parity.jsonl" else TRAINS[name].content
    (tmp_path / name).write_bytes(content)
    command = ["train", name, *SMALL, *words, "--run-dir", "run"]
    done = run_rnncls(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "steps: 10; best val/" in done.stdout

    has_control = not {"model.cell=none", "train.objective=prefix"} & {*words}
    assert done.stdout.count("n-gram control: steps: 10;") == has_control
    assert done.stderr.count("eager steps") == 1 + has_control
    assert "compiling" not in done.stderr

    done = run_rnncls("eval", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ("n-gram control" in done.stdout) == has_control


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.row("D14")
def test_a_made_file_is_refused_with_line_and_reason(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(REFUSED[name].content)
    for done in (train(tmp_path, name), run_rnncls("init", name, cwd=tmp_path)):
        assert done.returncode == 3, done.stderr
        for part in REFUSED[name].says:
            assert part in done.stderr
        assert not done.stdout

    assert not (tmp_path / "run").exists()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for name in ("folder.csv", "missing.csv"):
        done = run_rnncls("init", name, cwd=tmp_path)
        assert done.returncode == 3
        assert name in done.stderr

    assert train(tmp_path, "missing.csv").returncode == 3
    done = run_rnncls("init", "some.yaml", cwd=tmp_path)
    assert done.returncode == 2
    assert "this is a config" in done.stderr


@pytest.mark.parametrize("name", TRAINS)
def test_the_text_of_a_config_is_the_config(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(TRAINS[name].content)
    done = run_rnncls("init", name, cwd=tmp_path)
    assert done.returncode == 0
    (tmp_path / "made.yaml").write_text(done.stdout)

    # A path in it is relative to the config, which was written beside the data.
    config = load_config(tmp_path / "made.yaml")
    raw = guess_config(tmp_path / name).raw
    assert config == parse_config(raw, "the guess")
    assert yaml.safe_load(done.stdout)["data"]["train"] == name


def init_into(folder: Path, config: str, data: str) -> None:
    """Redirect what init prints into a file, as a shell does."""
    with (folder / config).open("w") as output:
        words = [sys.executable, "-m", "rnncls", "init", data]
        subprocess.run(words, cwd=folder, stdout=output, stderr=subprocess.DEVNULL, check=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells where stdout leads")
def test_a_config_in_another_folder_finds_the_data(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "configs").mkdir()
    (tmp_path / "data" / "a.csv").write_bytes(PLAIN)

    config = tmp_path / "configs" / "a.yaml"
    init_into(tmp_path, "configs/a.yaml", "data/a.csv")
    assert yaml.safe_load(config.read_text())["data"]["train"] == "../data/a.csv"
    data = load_config(config).data
    assert isinstance(data, FilesConfig)
    assert isinstance(data.train, str)
    assert Path(data.train).samefile(tmp_path / "data" / "a.csv")

    # A path that is whole is right anywhere.
    whole = str(tmp_path / "data" / "a.csv")
    init_into(tmp_path, "configs/a.yaml", whole)
    assert yaml.safe_load(config.read_text())["data"]["train"] == whole


# Everything that a header, a label or a file's name can have; names differ from each other.
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0/"), min_size=1)
# Names of files, but for those that say what format they have.
FILE_NAMES = ANY_TEXT.filter(
    lambda name: (
        name not in (".", "..")
        and len(name.encode()) < 200
        and not format_by_name(name)
        and other_kind_by_name(name) is None
    )
)


@settings(max_examples=20, deadline=None)
@given(
    columns=st.lists(ANY_TEXT, min_size=2, max_size=2, unique=True),
    # White space alone is no label.
    label=ANY_TEXT.filter(str.strip),
    name=FILE_NAMES,
)
def test_any_names_and_labels_survive_the_yaml(
    tmp_path_factory: pytest.TempPathFactory, columns: list[str], label: str, name: str
) -> None:
    folder = tmp_path_factory.mktemp("made")
    path = folder / name
    rows = [{columns[0]: text, columns[1]: label} for text in texts(3)]
    path.write_bytes(json_lines(rows))

    guess = guess_config(path, sequence_field=columns[0], label_field=columns[1])
    config_path = folder / "any.yaml"
    config_path.write_text(guess.text, encoding="utf-8")
    assert load_config(config_path) == parse_config(guess.raw, "the guess")
    assert all(len(line.splitlines()) == 1 for line in guess.assumed)


def test_what_was_assumed_is_said_with_the_option_that_changes_it(tmp_path: Path) -> None:
    content = table(
        ["title", "text", "label", "topic"],
        texts(ROWS),
        texts(ROWS, seed=1),
        labels(ROWS),
        ["x", "y"] * 30,
    )
    (tmp_path / "a.csv").write_bytes(content)
    done = run_rnncls("init", "a.csv", cwd=tmp_path)
    assert "sequence: text, by its name (--sequence-field: title, label, topic)" in done.stderr
    assert "label: label, by its name (--label-field: title, text, topic)" in done.stderr
    assert "2 classes: bought (30), left (30)" in done.stderr
    assert "--tokens ids|words|characters|subwords" in done.stderr
    assert "rnncls:" not in done.stdout

    done = run_rnncls(
        "init",
        "a.csv",
        "--text-column",
        "title",
        "--label-column",
        "topic",
        "--tokens",
        "characters",
        cwd=tmp_path,
    )
    data = yaml.safe_load(done.stdout)["data"]
    assert (data["sequence_field"], data["label_field"], data["tokens"]) == (
        "title",
        "topic",
        "characters",
    )


@pytest.mark.parametrize("joint", ["|", ">", ",", ""])
def test_what_joins_words_without_spaces_is_said(tmp_path: Path, joint: str) -> None:
    path = tmp_path / "visits.csv"
    words = ["home", "shop", "cart", "pay"]
    rows = [(joint.join([*words[: i % 4], *words[i % 3 :]]), i % 2) for i in range(40)]
    path.write_text("path,bought\n" + "".join(f'"{text}",{label}\n' for text, label in rows))
    (said,) = [line for line in guess_config(path).assumed if line.startswith("tokens:")]
    assert said.startswith("tokens: characters, texts with hardly any white space")
    assert (f'; spaces in place of "{joint}" make words' in said) == bool(joint)


def test_several_columns_of_one_sequence_are_named_by_options(tmp_path: Path) -> None:
    content = table(["title", "text", "label"], texts(ROWS), texts(ROWS, seed=1), labels(ROWS))
    (tmp_path / "a.csv").write_bytes(content)
    options = ("--text-column", "title", "--text-column", "text")
    done = run_rnncls("init", "a.csv", *options, cwd=tmp_path)
    assert yaml.safe_load(done.stdout)["data"]["sequence_field"] == ["title", "text"]


def test_an_override_of_a_field_counts_as_its_option(tmp_path: Path) -> None:
    # By itself, the guess would refuse this label.
    content = table(
        ["text", "label", "z"], texts(ROWS), [f"free {n}" for n in range(ROWS)], labels(ROWS)
    )
    (tmp_path / "a.csv").write_bytes(content)
    done = train(tmp_path, "a.csv", "data.label_field=z")
    assert done.returncode == 0, done.stderr
    assert "label: z, as given" in done.stderr


def test_a_few_rows_are_validated_on_rows_of_their_own(tmp_path: Path) -> None:
    # Of 3 rows of each class, one each for validation and the test would leave too few.
    tried = {}
    for rows_of_class in range(1, 7):
        number = 2 * rows_of_class
        path = tmp_path / f"{number}.csv"
        path.write_bytes(table(["text", "label"], texts(number, seed=number), labels(number)))

        raw = guess_config(path).raw
        shares = (raw["data"].get("val_fraction", 0.1), raw["data"].get("test_fraction", 0.1))
        task = load_task(parse_config(raw, "the guess"))
        assert isinstance(task, FilesTask)
        sizes = {name: len(split) for name, split in task.dataset.splits.items()}
        assert bool(sizes["val"]) == (shares[0] > 0)
        assert 2 * sizes["train"] >= number
        tried[rows_of_class] = shares

    assert tried == {
        1: (0.0, 0.0),
        2: (0.0, 0.0),
        3: (0.2, 0.0),
        4: (0.1, 0.1),
        5: (0.1, 0.1),
        6: (0.1, 0.1),
    }


def test_a_larger_file_has_batches_of_similar_lengths(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(table(["text", "label"], texts(2_100), labels(2_100)))
    data = guess_config(tmp_path / "a.csv").raw["data"]
    assert (data["batching"], data["layout"]) == ("bucket", "padded")

    # The guess is not in the way of a model that cannot read such batches.
    done = train(tmp_path, "a.csv", "model.bidirectional=true")
    assert done.returncode == 0, done.stderr
    config = load_config(tmp_path / "run" / "config.yaml")
    assert isinstance(config.data, FilesConfig)
    assert (config.data.batching, config.data.layout) == ("bucket", "auto")


def test_a_run_finds_a_file_that_was_moved(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(PLAIN)
    assert train(tmp_path, "a.csv").returncode == 0
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")

    more = ["train.max_steps=20", "train.max_epochs=null"]
    done = run_rnncls("train", "--resume", "run", *more, cwd=tmp_path)
    assert done.returncode == 3
    assert "data.train=PATH behind train --resume RUN" in done.stderr
    assert "--data PATH behind eval RUN" in run_rnncls("eval", "run", cwd=tmp_path).stderr

    done = run_rnncls("train", "--resume", "run", *more, "data.train=b.csv", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    # From then on, the run knows where its file is.
    assert run_rnncls("eval", "run", cwd=tmp_path).returncode == 0


def test_options_of_a_file_are_refused_with_a_config(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(PLAIN)
    (tmp_path / "a.yaml").write_text(guess_config(tmp_path / "a.csv").text)
    done = train(tmp_path, "a.yaml", "--label-field", "label")
    assert done.returncode == 2
    assert "--label-field is only for a data file" in done.stderr
    assert "data.label_field" in done.stderr

    assert train(tmp_path, "a.csv", "--tokens", "letters").returncode == 2
    assert train(tmp_path, "a.csv", "--label-field", "lable").returncode == 3
    assert train(tmp_path, "a.csv", "--resume", "run").returncode == 2
    assert not (tmp_path / "run").exists()


def answers(printed: str) -> list[tuple[str, ...]]:
    """Label and probability of each line; behind them stands the sequence as it was given."""
    return [tuple(line.split()[:2]) for line in printed.splitlines()]


def test_ids_in_any_notation_are_one_sequence_everywhere(tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_bytes(TRAINS["spaces.csv"].content)
    assert train(tmp_path, "ids.csv").returncode == 0

    notations = ["6 3 4", "6,3,4", "6, 3, 4", "[6, 3, 4]"]
    done = run_rnncls("predict", "run", *notations, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    typed = answers(done.stdout)
    assert len(typed) == 4
    assert len(set(typed)) == 1

    # From files, whose separator need not be that of the training file.
    rows = table(["label", "events"], labels(4), notations, separator=";")
    (tmp_path / "other.csv").write_bytes(rows)
    done = run_rnncls("predict", "run", "--input", "other.csv", cwd=tmp_path)
    assert answers(done.stdout) == typed, done.stderr
    done = run_rnncls("eval", "run", "--data", "other.csv", "--json", cwd=tmp_path)
    report = json.loads(done.stdout)
    assert report["accuracy"] == 0.5


def test_the_default_run_directory_has_the_name_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv.gz").write_bytes(gzip.compress(PLAIN))
    done = run_rnncls("train", "clicks.csv.gz", *TINY, "--name", "first", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "runs" / "clicks").iterdir()
    assert run_dir.name.endswith("-first")


def test_nothing_is_said_to_be_assumed_of_what_an_override_sets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.csv"
    many = table(["text", "label"], texts(120), ["no"] * 108 + ["yes"] * 12)
    file.write_bytes(many + b",no\n")

    def assumed(*overrides: str) -> str:
        data_commands.check(None, [str(file), *overrides])
        return capsys.readouterr().err

    said = assumed()
    assert "classes are uneven: class_weights: balanced, best_metric: macro_f1" in said
    assert "is left out" in said
    said = assumed("train.class_weights=none", "data.empty=drop")
    assert "classes are uneven: best_metric: macro_f1" in said
    assert "class_weights" not in said
    assert "left out" not in said
    assert "uneven" not in assumed("train.class_weights=none", "train.best_metric=accuracy")

    file.write_bytes(table(["text", "label"], texts(4), ["a", "b", "c", "d"]))
    assert "held out for validation 0%, for the test 0%, because" in assumed()
    assert "held out for the test 0%, because" in assumed("data.val_fraction=0")


def rows_with_bad_ones(path: Path) -> None:
    """Write 400 rows, of which those in the lines 51, 121 and 301 are bad in their own ways."""
    lines = table(["text", "label"], texts(400), labels(400)).decode().splitlines()
    lines[50] = "home shop,"
    lines[120] = "home, shop,left"
    lines[300] = ",bought"
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.row("D5", "D9", "D14")
def test_all_bad_rows_are_named_at_once_whatever_is_wrong_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    rows_with_bad_ones(path)
    for looked_at in (100_000, 100):
        monkeypatch.setattr("rnncls.data.columns.MOST_ROWS", looked_at)
        monkeypatch.setattr("rnncls.data.guess.MOST_ROWS", looked_at)
        with pytest.raises(DataError) as caught:
            guess_config(path)
        message = caught.value.render()
        assert [problem.id for problem in caught.value.problems] == ["D5", "D14", "D9"]
        assert f"an empty label ({path}:51)" in message
        assert f"wrong number of columns ({path}:121)" in message
        assert f"an empty sequence ({path}:301)" in message

    # Where there are many, the first five, and how many in all.
    with path.open("a") as file:
        file.write("home,left,x\n,\nhome,\n")
    with pytest.raises(DataError) as caught:
        guess_config(path)
    assert len(caught.value.problems) == 6
    assert "6 bad rows in all" in caught.value.render()


def test_an_empty_text_alone_is_no_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(table(["text", "label"], [*texts(60), ""], labels(61)))
    assert guess_config(path).raw["data"]["empty"] == "drop"


def test_data_commands_take_a_data_file_in_place_of_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(table(["words", "more", "label"], texts(60), texts(60, seed=1), labels(60)))
    data_commands.check(None, [str(file), "data.val_fraction=0.5"], sequence_field=["more"])
    said, assumed = capsys.readouterr()
    assert said.endswith("ok: 11 different tokens, 2 classes\n")
    assert "sequence: more, as given" in assumed
    # As many as with a config that says the same.
    sizes = {line.split()[0]: int(line.split()[1]) for line in said.splitlines()[:-1]}
    assert 20 <= sizes["val:"] <= 40
    assert sum(sizes.values()) == 60

    data_commands.stats(None, [str(file)], as_json=True, tokens="characters")
    assert capsys.readouterr().out.startswith("{")
    done = run_rnncls("data", "sample", file, "train.batch_size=3", "--label-field", "label")
    assert done.returncode == 0, done.stderr
    assert "packed" in done.stdout

    done = run_rnncls("data", "check", "configs/smoke.yaml", "--tokens", "words")
    assert done.returncode == 2
    assert "--tokens is only for a data file" in done.stderr


def test_only_the_first_rows_of_a_large_file_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rnncls.data.columns.MOST_ROWS", 5_000)
    monkeypatch.setattr("rnncls.data.guess.MOST_ROWS", 5_000)
    # Behind those rows, nothing of it can be read.
    rows = table(["text", "label"], texts(20_000), labels(20_000))
    (tmp_path / "a.csv").write_bytes(rows + b"\xff\n" * 10)
    guess = guess_config(tmp_path / "a.csv")
    assert "about 20,000 rows; the first 5,000 were looked at" in guess.assumed[0]
    assert "about 20,000 rows" in guess.text


@pytest.mark.parametrize(
    ("rows", "least", "most"),
    [
        (10, 500, 1_000),
        (3_000, 500, 2_500),
        pytest.param(60_000, 700, 2_000, marks=pytest.mark.slow),
    ],
)
def test_a_run_is_as_long_as_its_file_needs(
    rows: int, least: int, most: int, tmp_path: Path
) -> None:
    (tmp_path / "a.csv").write_bytes(table(["text", "label"], texts(rows), labels(rows)))
    train = guess_config(tmp_path / "a.csv").raw["train"]
    steps = train["max_epochs"] * max(1, 0.8 * rows / train["batch_size"])
    assert least <= steps <= most
    assert train["eval_every"] * 2 <= steps
    assert train["max_steps"] > steps


@pytest.mark.row("D7")
@pytest.mark.parametrize("text", ["1.511 0.34", "[-0.2, 1.1]", "0.5; 2"])
def test_no_config_is_made_for_measurements(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("sequence,label\n" + f'"{text}",up\n"{text} ",down\n' * 20)
    with pytest.raises(DataError, match="numbers with fractions are not tokens") as caught:
        guess_config(path)
    (problem,) = caught.value.problems
    assert problem.remedy.startswith("bin them into integers first")
    assert "words" not in problem.remedy

    # Whoever asks for words gets them.
    assert guess_config(path, tokens="words").raw["data"]["tokens"] == "words"


def test_the_classes_of_a_config_are_those_of_training(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = ['{"sequence": "home shop", "label": true}', '{"sequence": "a b", "label": "true "}']
    path.write_text("\n".join([*rows, '{"sequence": "c d", "label": 1.0}'] * 20) + "\n")
    made = guess_config(path)
    assert any("2 classes: true (40), 1 (20)" in line for line in made.assumed)


@pytest.mark.parametrize("rule", ["data.split=hash", "data.rare_classes=drop"])
def test_the_shares_are_those_that_the_rule_of_the_split_can_begin_with(
    rule: str, tmp_path: Path
) -> None:
    rng = random.Random(0)
    options = dict.fromkeys(FILE_OPTIONS)
    path = tmp_path / "a.csv"
    for _ in range(40):
        rows = [
            f"{' '.join(f'w{rng.randrange(50)}' for _ in range(3))},c{rng.randrange(3)}\n"
            for _ in range(rng.choice([1, 3, 4, 5, 6, 8, 10]))
        ]
        path.write_text("text,label\n" + "".join(rows))
        # An error if training lacks a label, or every token of a split.
        task = load_task(config_of_file(path, options, [rule]))
        assert isinstance(task, FilesTask)
