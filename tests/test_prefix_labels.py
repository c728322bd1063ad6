"""A label for every prefix: what files may carry, and what the training batches get of it."""

import csv
import importlib
import json
import random
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from operator import xor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnncls.config import Config, FilesConfig, SumModConfig, parse_config
from rnncls.data import Batch, FilesTask, batches, load_task, report
from rnncls.data.dataset import Dataset
from rnncls.data.guess import guess_config
from rnncls.data.loading import load_dataset, load_held_out, load_labelled_files
from rnncls.data.prefix_labels import columns_of_prefix_labels, prefix_labels_of
from rnncls.data.sample import sample_text
from rnncls.errors import ConfigError, DataError
from rnncls.training import advice
from rnncls.training.fit import fit
from tests.helpers import files_config, run_rnncls

row = pytest.mark.row

WHOLE: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
FIELD: dict[str, Any] = {"prefix_labels_field": "after"}
PREFIX: dict[str, Any] = {"objective": "prefix"}

Row = dict[str, Any]


def parity(bits: Sequence[int]) -> list[int]:
    """The parity of each prefix."""
    return list(accumulate(bits, xor))


def parity_rows(count: int, longest: int = 9, seed: int = 0) -> list[Row]:
    """Bits with the running parity, of which the last one is the label."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        bits = [rng.randrange(2) for _ in range(rng.randint(1, longest))]
        rows.append({"sequence": bits, "label": parity(bits)[-1], "after": parity(bits)})
    return rows


def written(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    return path


@pytest.fixture
def bits(tmp_path: Path) -> Path:
    """A file of 120 bit strings with their running parity."""
    return written(tmp_path / "parity.jsonl", parity_rows(120))


def data_of(path: Path, **keys: Any) -> FilesConfig:
    raw = {"source": "files", "train": str(path), "tokens": "ids", **WHOLE, **FIELD, **keys}
    return FilesConfig.model_validate(raw)


def config_of(path: Path, train: dict[str, Any] | None = None, **keys: Any) -> Config:
    return files_config(path, {**PREFIX, **(train or {})}, **{**FIELD, **keys})


def task_of(path: Path, train: dict[str, Any] | None = None, **keys: Any) -> FilesTask:
    task = load_task(config_of(path, train, **keys))
    assert isinstance(task, FilesTask)
    return task


def prefix_labels_in(dataset: Dataset) -> list[list[str]]:
    """The prefix labels of each training row."""
    sequences = dataset.splits["train"]
    assert sequences.prefix_labels is not None
    names = [dataset.vocabulary.labels[number] for number in sequences.prefix_labels.tolist()]
    return [names[start:end] for start, end in pairwise(sequences.offsets.tolist())]


def unpacked(batch: Batch, values: torch.Tensor) -> list[list[int]]:
    """Return what each sequence has, in the batch's order, of values in that of the packed data."""
    order = batch.tokens.sorted_indices
    assert order is not None
    rows: list[list[int]] = [[] for _ in range(len(order))]
    remaining = iter(values.tolist())
    for size in batch.tokens.batch_sizes.tolist():
        for number in order[:size].tolist():
            rows[number].append(next(remaining))
    assert next(remaining, None) is None
    return rows


# --- generated digits

GOLDEN_DIGITS = [[1], [7, 8], [7, 3, 0], [2, 0]]
GOLDEN_SUMS = [[1], [7, 5], [7, 0, 0], [2, 2]]


def test_the_labels_of_the_prefixes_of_digits_are_their_sums_so_far() -> None:
    data = SumModConfig(modulus=10, min_length=1, max_length=4)
    (batch,) = batches(data, 0, "train", 4, 0, 1, with_prefix_labels=True)
    assert batch.prefix_labels is not None
    # Drawn once, and looked at.
    assert unpacked(batch, batch.tokens.data) == GOLDEN_DIGITS
    assert unpacked(batch, batch.prefix_labels) == GOLDEN_SUMS
    assert batch.labels.tolist() == [sums[-1] for sums in GOLDEN_SUMS]


@given(
    st.integers(2, 12),
    st.none() | st.integers(0, 30),
    st.integers(1, 5),
    st.integers(0, 20),
    st.integers(1, 9),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_prefix_labels_of_digits_are_those_of_a_running_sum(
    modulus: int, max_value: int | None, low: int, extra: int, batch_size: int, seed: int
) -> None:
    data = SumModConfig(
        modulus=modulus, max_value=max_value, min_length=low, max_length=low + extra
    )
    with_labels = batches(data, seed, "train", batch_size, 3, 5, with_prefix_labels=True)
    without = batches(data, seed, "train", batch_size, 3, 5)
    for batch, plain in zip(with_labels, without, strict=True):
        # The digits do not depend on whether anybody asks for more labels.
        assert torch.equal(batch.tokens.data, plain.tokens.data)
        assert plain.prefix_labels is None

        assert batch.prefix_labels is not None
        assert batch.prefix_labels.dtype == torch.int64
        assert batch.prefix_labels.shape == batch.tokens.data.shape
        sums = unpacked(batch, batch.prefix_labels)
        for digits, labels, label in zip(
            unpacked(batch, batch.tokens.data), sums, batch.labels.tolist(), strict=True
        ):
            assert labels == np.mod(np.add.accumulate(digits), modulus).tolist()
            assert labels[-1] == label


def test_only_the_training_batches_of_the_objective_have_prefix_labels() -> None:
    for objective in ("sequence", "prefix"):
        task = load_task(parse_config({"train": {"objective": objective}}, "test"))
        (batch,) = task.batches(0, 1)
        assert (batch.prefix_labels is not None) == (objective == "prefix")
        assert all(batch.prefix_labels is None for batch in task.validation())


# --- reading

TEXTS = [
    "low high low",
    "low, high,low",
    "low;high; low",
    '["low", "high", "low"]',
    "['low', 'high', 'low']",
    "[low, high, low]",
    " low\thigh  low ",
    "low, high, low,",
]
SPACED = ' ["very low", "high, or so", "very low"] '


@pytest.mark.parametrize("text", TEXTS)
def test_labels_in_a_text_are_the_same_however_they_are_written(text: str) -> None:
    assert prefix_labels_of({"x": text}, "x", 3, "low") == ["low", "high", "low"]


@pytest.mark.parametrize(
    ("value", "label", "expected"),
    [
        (SPACED, "very low", ["very low", "high, or so", "very low"]),
        ([0, True, 2.0], "2", ["0", "true", "2"]),
        ([False, True], "true", ["false", "true"]),
        ([3, 4], "4", ["3", "4"]),
        (["a", "b"], "b", ["a", "b"]),
        (["a", " b"], "b ", ["a", " b"]),
        ("[true, 1.0]", "1", ["true", "1"]),
        ("1,0", "0", ["1", "0"]),
        # Of one token.
        (7, "7", ["7"]),
        (7.0, "7", ["7"]),
        (True, "true", ["true"]),
        ("7", "7", ["7"]),
        # No JSON that could be written again, but some text.
        (r'["\ud800"]', r"\ud800", [r"\ud800"]),
    ],
)
def test_labels_are_what_they_are_in_the_field_of_labels(
    value: Any, label: str, expected: list[str]
) -> None:
    assert prefix_labels_of({"x": value}, "x", len(expected), label) == expected


def test_every_format_gives_the_same_prefix_labels(tmp_path: Path, bits: Path) -> None:
    rows = [json.loads(line) for line in bits.read_text().splitlines()]
    expected = [[str(label) for label in each["after"]] for each in rows]
    assert prefix_labels_in(load_dataset(data_of(bits))) == expected

    array = tmp_path / "array.json"
    array.write_text(json.dumps(rows))
    assert prefix_labels_in(load_dataset(data_of(array))) == expected

    joints: list[tuple[str, Callable[[list[int]], str]]] = [
        ("spaces.csv", lambda items: " ".join(map(str, items))),
        ("commas.csv", lambda items: ",".join(map(str, items))),
        ("lists.tsv", json.dumps),
    ]
    for name, joined in joints:
        path = tmp_path / name
        with path.open("w", newline="") as file:
            table = csv.writer(file, delimiter="\t" if name.endswith("tsv") else ",")
            table.writerow(["after", "label", "sequence"])
            for each in rows:
                table.writerow([joined(each["after"]), each["label"], joined(each["sequence"])])
        assert prefix_labels_in(load_dataset(data_of(path))) == expected, name


def test_columnar_formats_give_the_same_prefix_labels(tmp_path: Path, bits: Path) -> None:
    pyarrow: Any = pytest.importorskip("pyarrow")
    openpyxl: Any = pytest.importorskip("openpyxl")
    rows = [json.loads(line) for line in bits.read_text().splitlines()]
    expected = [[str(label) for label in each["after"]] for each in rows]
    table = pyarrow.Table.from_pylist(rows)

    importlib.import_module("pyarrow.parquet").write_table(table, tmp_path / "d.parquet")
    with pyarrow.ipc.new_file(tmp_path / "d.arrow", table.schema) as writer:
        writer.write_table(table)
    book = openpyxl.Workbook()
    book.active.append(["sequence", "label", "after"])
    for each in rows:
        texts = [" ".join(map(str, each[name])) for name in ("sequence", "after")]
        book.active.append([texts[0], each["label"], texts[1]])
    # A number, as a spreadsheet makes it of a single one.
    book.active.append([1, 0, 0])
    book.save(tmp_path / "d.xlsx")

    for name in ("d.parquet", "d.arrow"):
        assert prefix_labels_in(load_dataset(data_of(tmp_path / name))) == expected
    assert prefix_labels_in(load_dataset(data_of(tmp_path / "d.xlsx"))) == [*expected, ["0"]]


@given(
    st.lists(
        st.lists(
            st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1).filter(
                lambda text: not text.isspace()
            ),
            min_size=1,
            max_size=5,
        ),
        min_size=1,
        max_size=5,
    ),
    st.booleans(),
)
@settings(max_examples=60)
def test_any_labels_come_back_from_json_lists(
    tmp_path_factory: pytest.TempPathFactory, labels: list[list[str]], as_table: bool
) -> None:
    """In a file of JSON lines, and in the cells of a table."""
    folder = tmp_path_factory.mktemp("any")
    path = folder / ("d.csv" if as_table else "d.jsonl")
    if as_table:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file)
            table.writerow(["sequence", "label", "after"])
            for each in labels:
                sequence = " ".join("5" for _ in each)
                table.writerow([sequence, each[-1], json.dumps(each, ensure_ascii=False)])
    else:
        rows = [{"sequence": [5] * len(each), "label": each[-1], "after": each} for each in labels]
        written(path, rows)

    stripped = [[label.strip() for label in each] for each in labels]
    # Quotes in a table are not what is tested here.
    data = data_of(path, separator=",", quoting="standard")
    assert prefix_labels_in(load_dataset(data)) == stripped


def test_white_space_around_prefix_labels_makes_no_class_of_its_own(tmp_path: Path) -> None:
    rows = [{"sequence": [1, 2], "label": "b ", "after": [" a", "b"]}] * 2
    rows += [{"sequence": [3], "label": "a", "after": ["a "]}]
    dataset = load_dataset(data_of(written(tmp_path / "d.jsonl", rows)))
    assert dataset.vocabulary.labels == ("a", "b")
    assert prefix_labels_in(dataset) == [["a", "b"]] * 2 + [["a"]]


@pytest.mark.parametrize(
    ("truncate", "tokens", "after"),
    [("head", ["1", "2"], ["a", "b"]), ("tail", ["3", "4"], ["c", "d"])],
)
def test_a_token_that_stays_keeps_its_label(
    tmp_path: Path, truncate: str, tokens: list[str], after: list[str]
) -> None:
    rows = [
        {"sequence": [1, 2, 3, 4], "label": "d", "after": ["a", "b", "c", "d"]},
        {"sequence": [4], "label": "d", "after": ["d"]},
    ]
    path = written(tmp_path / "d.jsonl", rows)
    dataset = load_dataset(data_of(path, max_length=2, truncate=truncate))
    assert prefix_labels_in(dataset) == [after, ["d"]]
    train = dataset.splits["train"]
    names = [dataset.vocabulary.tokens[token] for token in train.tokens.tolist()]
    assert names == [*tokens, "4"]
    # The label of the sequence is that of the whole one, whatever is left of it.
    assert [dataset.vocabulary.labels[label] for label in train.labels.tolist()] == ["d", "d"]


@row("D16")
def test_a_sequence_that_is_too_long_is_an_error_with_prefix_labels_too(bits: Path) -> None:
    with pytest.raises(DataError, match="a long sequence"):
        load_dataset(data_of(bits, max_length=2, truncate="error"))


def test_an_empty_sequence_is_dropped_whatever_its_prefix_labels_are(tmp_path: Path) -> None:
    rows: list[Row] = [{"sequence": [], "label": "x", "after": after} for after in ([], None, [1])]
    rows += [{"sequence": [], "label": "x"}, {"sequence": [1], "label": "x", "after": ["x"]}]
    path = written(tmp_path / "d.jsonl", rows)
    dataset = load_dataset(data_of(path, empty="drop"))
    assert prefix_labels_in(dataset) == [["x"]]
    assert dataset.noticed["train"].dropped == 4
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(path))
    assert {problem.id for problem in caught.value.problems} == {"D9"}


# --- bad rows

BAD: list[tuple[str, str, str]] = [
    ('"label": 1', 'no field "after"', "the fields sequence, label"),
    ('"label": 1, "aftr": [0, 1]', 'no field "after"', "data.prefix_labels_field=aftr"),
    ('"label": 1, "after": null', "no list of prefix labels", "null"),
    ('"label": 1, "after": {"a": 1}', "no list of prefix labels", "{'a': 1}"),
    ('"label": 1, "after": 1.5', "no list of prefix labels", "1.5"),
    ('"label": 1, "after": [0, null]', "a prefix label that is none", "None at position 2"),
    ('"label": 1, "after": ["", 1]', "a prefix label that is none", "'' at position 1"),
    ('"label": 1, "after": [0.5, 1]', "a prefix label that is none", "0.5 at position 1"),
    ('"label": 1, "after": [[0], 1]', "a prefix label that is none", "[0] at position 1"),
    ('"label": 1, "after": ["a", " "]', "a prefix label that is none", "' ' at position 2"),
    ('"label": 1, "after": "0,,1"', "a prefix label that is none", "'' at position 2"),
    ('"label": 1, "after": [1]', "not as many prefix labels", "1 label, 2 tokens"),
    ('"label": 1, "after": [0, 0, 1]', "not as many prefix labels", "3 labels, 2 tokens"),
    ('"label": 1, "after": []', "not as many prefix labels", "0 labels, 2 tokens"),
    ('"label": 1, "after": ""', "not as many prefix labels", "0 labels, 2 tokens"),
    ('"label": "not yet", "after": "yes not yet"', "3 labels, 2 tokens", "a JSON list"),
    ('"label": 1, "after": [1, 0]', "the last prefix label is not", "'0', the label is '1'"),
]


@row("D24")
@pytest.mark.parametrize(("fields", "what", "found"), BAD)
def test_a_row_without_as_many_labels_is_named(
    tmp_path: Path, fields: str, what: str, found: str
) -> None:
    path = tmp_path / "d.jsonl"
    good = '{"sequence": [5], "label": 1, "after": [1]}\n'
    path.write_text(f'{good}{good}{{"sequence": [5, 6], {fields}}}\n')
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(path))
    assert caught.value.exit_code == 3
    message = caught.value.render()
    assert "error[D24]" in message
    assert f"{path}:3" in message
    assert what in message
    assert found in message
    assert "try:" in message

    dataset = load_dataset(data_of(path, bad="skip"))
    assert dataset.noticed["train"].skipped == 1
    assert prefix_labels_in(dataset) == [["1"], ["1"]]


@row("D5", "D7")
def test_what_is_wrong_with_the_sequence_or_its_label_is_said_first(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"sequence": [-1], "label": null}\n{"sequence": [1], "label": null}\n')
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(path))
    assert [problem.id for problem in caught.value.problems] == ["D7", "D5"]


@row("D24")
def test_a_field_that_no_row_has_is_told_once(bits: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(bits, prefix_labels_field="before"))
    assert len(caught.value.problems) == 1
    assert "in all 120 rows" in caught.value.render()


@row("D24")
def test_the_exit_code_of_a_bad_list_is_that_of_bad_data(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", [{"sequence": [1, 2], "label": 0, "after": [0]}])
    words = ["data.prefix_labels_field=after", "train.objective=prefix", "--tokens", "ids"]
    done = run_rnncls("train", path, *words, "--run-dir", tmp_path / "run")
    assert done.returncode == 3
    assert f"{path}:1" in done.stderr
    assert not (tmp_path / "run").exists()


@row("C15")
def test_the_objective_and_the_field_are_named_where_one_is_missing(bits: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        files_config(bits, PREFIX)
    message = caught.value.render()
    assert "train.objective" in message
    assert "data.prefix_labels_field" in message
    assert caught.value.exit_code == 2

    with pytest.raises(ConfigError) as caught:
        files_config(bits, tokens="words", sequence_field=["a", "b"], **FIELD)
    message = caught.value.render()
    assert "data.prefix_labels_field" in message
    assert "sequence_field" in message


# --- who has them, and who needs none


def test_only_training_files_need_the_field(
    tmp_path: Path, bits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = written(tmp_path / "plain.jsonl", [{"sequence": [1, 0], "label": 1}] * 3)
    data = data_of(bits, val=str(plain), test=str(plain))
    dataset = load_dataset(data)
    assert dataset.splits["train"].prefix_labels is not None
    for name in ("val", "test"):
        assert len(dataset.splits[name]) == 3
        assert dataset.splits[name].prefix_labels is None

    # Not even a field of this name means anything there, nor a file that is called as the split.
    monkeypatch.chdir(tmp_path)
    wrong = [{"sequence": [1, 0], "label": 1, "after": [0]}] * 3
    plain = written(Path("train"), wrong)
    data = data.model_copy(update={"test": str(plain), "val": str(plain)})
    for found in (
        load_dataset(data),
        load_held_out(data, dataset.vocabulary),
        load_labelled_files(str(plain), data, dataset.vocabulary),
    ):
        split = found.splits[found.held_out()]
        assert len(split) == 3
        assert split.prefix_labels is None


def test_rows_held_out_of_the_training_files_have_none(bits: Path) -> None:
    dataset = load_dataset(data_of(bits, val_fraction=0.2, test_fraction=0.2))
    assert [dataset.splits[name].prefix_labels is None for name in ("train", "val", "test")] == [
        False,
        True,
        True,
    ]
    # Those of training are the ones of their own rows.
    rows = [json.loads(line) for line in bits.read_text().splitlines()]
    lines = dataset.lines["train"].tolist()
    expected = [[str(label) for label in rows[line - 1]["after"]] for line in lines]
    assert prefix_labels_in(dataset) == expected


@pytest.mark.parametrize("split", ["stratified", "hash"])
def test_what_is_held_out_depends_neither_on_the_objective_nor_on_who_reads(
    tmp_path: Path, split: str
) -> None:
    """A row that training skips is in no split of an evaluation either: others would move."""
    rows = parity_rows(150)
    for each in rows[::7]:
        each["after"] = each["after"] + [0]
    path = written(tmp_path / "d.jsonl", rows)
    task = task_of(path, bad="skip", split=split)
    other = task_of(path, {"objective": "sequence"}, bad="skip", split=split)
    held_out = load_held_out(task.data, task.dataset.vocabulary)
    for name in ("train", "val", "test"):
        lines = task.dataset.lines[name]
        assert len(lines)
        assert torch.equal(lines, other.dataset.lines[name])
        assert torch.equal(lines, held_out.lines[name])
    assert task.sizes == other.sizes


def test_without_a_field_there_is_not_even_an_array(bits: Path) -> None:
    dataset = load_dataset(data_of(bits, prefix_labels_field=None))
    assert all(split.prefix_labels is None for split in dataset.splits.values())


# --- batches and classes


@pytest.mark.parametrize("batching", ["shuffle", "bucket"])
def test_the_labels_of_a_batch_stand_where_their_tokens_do(bits: Path, batching: str) -> None:
    task = task_of(bits, batching=batching)
    assert task.vocabulary is not None
    numbers = [int(token) if token != "<unk>" else -1 for token in task.vocabulary.tokens]
    assert task.vocabulary.labels == ("0", "1")
    for batch in task.batches(0, 20):
        assert batch.prefix_labels is not None
        assert batch.prefix_labels.dtype == torch.int64
        sequences = unpacked(batch, batch.tokens.data)
        labels = unpacked(batch, batch.prefix_labels)
        for sequence, found, label in zip(sequences, labels, batch.labels.tolist(), strict=True):
            assert found == parity([numbers[token] for token in sequence])
            assert found[-1] == label
    assert all(batch.prefix_labels is None for batch in task.validation())


def test_batches_of_the_other_objective_have_none(bits: Path) -> None:
    task = task_of(bits, {"objective": "sequence"})
    assert all(batch.prefix_labels is None for batch in task.batches(0, 3))
    same = task_of(bits)
    for one, other in zip(task.batches(0, 3), same.batches(0, 3), strict=True):
        assert torch.equal(one.tokens.data, other.tokens.data)
        assert torch.equal(one.labels, other.labels)


UNDECIDED: list[Row] = [
    {"sequence": [1, 2, 3], "label": 10, "after": ["?", "?", 10]},
    {"sequence": [1, 3], "label": 9, "after": ["?", 9]},
    {"sequence": [3], "label": 9, "after": [9]},
]


def test_a_class_may_be_one_of_prefixes_alone(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", UNDECIDED)
    dataset = load_dataset(data_of(path))
    # In the order of all names, as always: with a text among them, they are no numbers.
    assert dataset.vocabulary.labels == ("10", "9", "?")
    assert prefix_labels_in(dataset) == [["?", "?", "10"], ["?", "9"], ["9"]]
    assert load_dataset(data_of(path, prefix_labels_field=None)).vocabulary.labels == ("9", "10")


def test_classes_come_from_the_prefixes_of_training_rows_alone(tmp_path: Path) -> None:
    rows: list[Row] = []
    for number in range(60):
        label = number % 2
        rows.append({"sequence": [number, 1], "label": label, "after": [f"p{number}", label]})
    data = data_of(written(tmp_path / "d.jsonl", rows), val_fraction=0.2, test_fraction=0.2)
    dataset = load_dataset(data)
    lines = dataset.lines["train"].tolist()
    assert len(lines) < 60
    expected = {f"p{line - 1}" for line in lines} | {"0", "1"}
    assert set(dataset.vocabulary.labels) == expected


@row("D6")
def test_a_prefix_label_that_the_first_weights_lack_is_named(tmp_path: Path) -> None:
    rows = parity_rows(30)
    known = load_dataset(data_of(written(tmp_path / "d.jsonl", rows))).vocabulary
    rows[4] = {"sequence": [0, 0, 1], "label": 1, "after": [0, "?", 1]}
    path = written(tmp_path / "other.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_task(config_of(path, **WHOLE), known)
    message = caught.value.render()
    assert "a prefix label that the run of --init-from lacks" in message
    assert f"{path}:5" in message
    assert "one of 0, 1" in message
    assert "found:    ?" in message


def test_balanced_weights_are_the_inverse_of_what_the_loss_sees(tmp_path: Path) -> None:
    path = written(tmp_path / "d.jsonl", UNDECIDED)
    task = task_of(path, {"class_weights": "balanced"}, **WHOLE)
    assert task.class_weights is not None
    # By hand: 2/3 + 1/2 for "?", 1/3 for 10, 1/2 + 1 for 9; of 3 sequences in all.
    seen = {"10": 1 / 3, "9": 3 / 2, "?": 7 / 6}
    expected = [3 / (3 * seen[label]) for label in ("10", "9", "?")]
    assert task.class_weights.tolist() == pytest.approx(expected)
    assert task.trained_shares.tolist() == pytest.approx([seen[x] / 3 for x in ("10", "9", "?")])
    assert task.class_shares.tolist() == pytest.approx([1 / 3, 2 / 3, 0])

    # A loss over whole sequences never asks for "?".
    task = task_of(path, {"class_weights": "balanced", "objective": "sequence"}, **WHOLE)
    assert task.class_weights is not None
    assert task.class_weights.tolist() == pytest.approx([1, 0.5, 1])


def test_guessing_in_training_is_to_answer_every_prefix(tmp_path: Path) -> None:
    """Nine of ten prefixes say "?", and the classes of the sequences are equally frequent."""
    rows: list[Row] = []
    for label in (0, 1):
        after = ["?"] * 9 + [label]
        rows += [{"sequence": [label] * 10, "label": label, "after": after}] * 4
    path = written(tmp_path / "d.jsonl", rows)
    of_prefixes = -(0.9 * np.log(0.9) + 0.1 * np.log(0.05))

    task = task_of(path, **WHOLE)
    guess = {"train/loss": of_prefixes, "val/loss": np.log(2)}
    assert advice.is_guessing(task, guess)
    assert not advice.is_guessing(task, guess | {"train/loss": 0.9 * of_prefixes})
    assert not advice.is_guessing(task, guess | {"val/loss": 0.9 * np.log(2)})
    assert advice.guessing_loss(task) == pytest.approx(np.log(2))

    balanced = task_of(path, {"class_weights": "balanced"}, **WHOLE)
    assert advice.guessing_loss_of_training(balanced) == pytest.approx(np.log(3))
    other = task_of(path, {"objective": "sequence"}, **WHOLE)
    assert advice.guessing_loss_of_training(other) == pytest.approx(np.log(2))


# --- commands


def test_stats_and_sample_show_them(bits: Path) -> None:
    task = task_of(bits)
    train = task.dataset.splits["train"]
    counts = report.stats(task).prefix_labels
    assert sum(counts.values()) == len(train.tokens)
    assert train.prefix_labels is not None
    assert counts["1"] == int((train.prefix_labels == 1).sum())
    assert f"labels of prefixes of train ({len(train.tokens):,})" in report.to_text(task)

    (batch,) = task.batches(0, 1)
    assert batch.prefix_labels is not None
    (line,) = [line for line in sample_text(task).splitlines() if line.startswith("  labels ")]
    shown = " ".join(map(str, batch.prefix_labels[:16].tolist()))
    assert line.startswith(f"  labels      {shown} ... ")

    plain = task_of(bits, {"objective": "sequence"}, prefix_labels_field=None)
    assert report.stats(plain).prefix_labels == {}
    assert "prefixes" not in report.to_text(plain)
    assert "labels  " not in sample_text(plain)


def test_a_run_trains_on_prefixes_and_is_evaluated_on_files_without_them(
    tmp_path: Path, bits: Path
) -> None:
    fit(config_of(bits), tmp_path / "run")
    plain = written(tmp_path / "plain.jsonl", [{"sequence": [1, 0, 1], "label": 0}] * 2)
    for command, option in (("eval", "--data"), ("predict", "--input")):
        done = run_rnncls(command, tmp_path / "run", option, plain)
        assert done.returncode == 0, done.stderr
    assert run_rnncls("eval", tmp_path / "run").returncode == 0


# --- guessing how a file is laid out

NAMES = [
    ("sequence", "label", "after"),
    # None of them says anything, or it says something else.
    ("bits", "odd", "after"),
    ("bits", "odd", "labels"),
    ("bits", "odd", "steps"),
    ("zeros", "class", "prefix_labels"),
    ("a", "b", "c"),
    ("c", "b", "a"),
]


def renamed(rows: Sequence[Row], names: tuple[str, str, str], order: Sequence[int]) -> list[Row]:
    keys = ("sequence", "label", "after")
    return [{names[place]: each[keys[place]] for place in order} for each in rows]


@pytest.mark.parametrize("as_table", [False, True])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
@pytest.mark.parametrize("names", NAMES)
def test_a_guess_takes_prefix_labels_neither_for_sequences_nor_for_labels(
    tmp_path: Path, names: tuple[str, str, str], order: tuple[int, ...], as_table: bool
) -> None:
    rows = renamed(parity_rows(60), names, order)
    path = tmp_path / "d.jsonl"
    if as_table:
        path = tmp_path / "d.csv"
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            for each in rows:
                texts = {
                    key: " ".join(map(str, value)) if isinstance(value, list) else value
                    for key, value in each.items()
                }
                table.writerow(texts)
    else:
        written(path, rows)
    data = guess_config(path).raw["data"]
    assert (data["sequence_field"], data["label_field"]) == names[:2]
    assert data["tokens"] == "ids"
    # Nobody asked for them.
    assert "prefix_labels_field" not in data


def test_few_different_prefix_labels_are_no_classes(tmp_path: Path) -> None:
    """As cells they are texts that occur again and again, in the last column."""
    cells = [("0 1", 1, "0 1"), ("1 1", 0, "1 0"), ("1", 1, "1"), ("0 0", 0, "0 0")] * 10
    path = tmp_path / "d.csv"
    path.write_text("a,b,c\n" + "".join(f"{a},{b},{c}\n" for a, b, c in cells))
    data = guess_config(path).raw["data"]
    assert (data["sequence_field"], data["label_field"]) == ("a", "b")


def test_columns_of_prefix_labels_are_known_by_all_of_the_first_rows() -> None:
    rows = parity_rows(30)
    assert columns_of_prefix_labels(rows, 200) == {"after"}
    assert columns_of_prefix_labels(rows, 2) == set()
    for place in (0, 29):
        other = [dict(each) for each in rows]
        other[place]["after"] = [*other[place]["after"], 1 - other[place]["label"]]
        assert columns_of_prefix_labels(other, 200) == set()
        other[place]["after"] = None
        assert columns_of_prefix_labels(other, 200) == {"after"}

    # One row of several tokens is chance.
    assert columns_of_prefix_labels(parity_rows(1, longest=1) + rows[:1], 200) == set()
    # Tags, of a file whose labels are something else.
    tagged = [{"text": "a b c", "tags": "x y z", "label": label} for label in "zwzw"]
    assert columns_of_prefix_labels(tagged, 200) == set()


def test_a_sequence_that_ends_with_its_label_is_the_sequence() -> None:
    rng = random.Random(0)
    rows = []
    for _ in range(20):
        word = [rng.choice("ab") for _ in range(rng.randint(1, 5))]
        rows.append({"after": sorted(word[:-1]) + word[-1:], "text": word, "label": word[-1]})
    assert columns_of_prefix_labels(rows, 200) == {"after"}
    # Without a usual name, the first one.
    unnamed = [{"x": each["text"], "y": each["after"], "z": each["label"]} for each in rows]
    assert columns_of_prefix_labels(unnamed, 200) == {"y"}


def test_a_file_trains_on_its_prefix_labels_by_two_overrides(tmp_path: Path) -> None:
    """Their column is then none of the others, whatever it looks like."""
    rows = [
        {"text": each["after"], "bits": each["sequence"], "odd": each["label"]}
        for each in parity_rows(60)
    ]
    path = written(tmp_path / "d.jsonl", rows)
    override = "data.prefix_labels_field=text"
    done = run_rnncls("init", path, override)
    assert done.returncode == 0, done.stderr
    assert "sequence_field: bits" in done.stdout
    assert "prefix_labels_field: text" in done.stdout

    sample = run_rnncls("data", "sample", path, override, "train.objective=prefix")
    assert sample.returncode == 0, sample.stderr
    assert "(of the prefix up to each token)" in sample.stdout
    check = run_rnncls("data", "check", path, "data.prefix_labels_field=odd")
    assert check.returncode == 3
