"""The user's own files.

They are read or refused by line, split stably, batched by (seed, epoch), and resumed exactly.
"""

import csv
import gzip
import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.config import Config, FilesConfig, dump_config, load_config, parse_config
from rnncls.data import FilesTask, load_task
from rnncls.data.dataset import Dataset
from rnncls.data.loading import load_dataset
from rnncls.data.sequences import epoch_order, padding_waste
from rnncls.errors import CheckpointError, ConfigError, DataError, Interrupted
from rnncls.evaluation.evaluate import evaluate
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint, find_newest
from rnncls.sweep.plan import load_sweep
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import Rows, outcome, run_python, run_rnncls, some_rows, stop_at, write_jsonl
from tests.helpers import files_config as config_of

row = pytest.mark.row


def data_of(path: Path, **keys: Any) -> FilesConfig:
    return FilesConfig.model_validate(
        {"source": "files", "train": str(path), "tokens": "ids", **keys}
    )


def contents(dataset: Dataset, split: str = "train") -> Rows:
    """The sequences of a split, as tokens and labels."""
    sequences = dataset.splits[split]
    words = dataset.vocabulary
    offsets = sequences.offsets.tolist()
    return [
        (
            [words.tokens[token] for token in sequences.tokens[start:end].tolist()],
            words.labels[label],
        )
        for start, end, label in zip(offsets, offsets[1:], sequences.labels.tolist(), strict=False)
    ]


WHOLE: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}


# --- formats


@row("D12")
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
def test_every_format_gives_the_same_data(
    tmp_path: Path, suffix: str, end: str, compressed: bool
) -> None:
    rows = [(["a", "b\u2028c", 'q"uote'], "x"), (["a"], "y, z"), (["nul\x00", "a"], "x")]
    if suffix == "jsonl":
        lines = [
            json.dumps({"label": label, "other": 1, "sequence": words}, ensure_ascii=False)
            for words, label in rows
        ]
        text = "\ufeff" + end.join(lines)  # a byte order mark, and no end of the last line
    else:
        with (tmp_path / "table").open("w", newline="", encoding="utf-8-sig") as file:
            table = csv.writer(file, delimiter="," if suffix == "csv" else "\t", lineterminator=end)
            table.writerows(
                [
                    ("label", "n", "sequence"),
                    *((label, 1, " ".join(words)) for words, label in rows),
                ]
            )
        text = (tmp_path / "table").read_bytes().decode()
        rows = [(" ".join(words).split(), label) for words, label in rows]

    path = tmp_path / (f"data.{suffix}" + (".gz" if compressed else ""))
    path.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    assert contents(load_dataset(data_of(path, tokens="words", **WHOLE))) == rows


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("ids", [3, 1, 40], ["3", "1", "40"]),
        ("ids", "3 1  40", ["3", "1", "40"]),
        ("ids", "3,1, 40", ["3", "1", "40"]),
        ("ids", " [3, 1, 40] ", ["3", "1", "40"]),
        ("words", "[3, 1]", ["[3,", "1]"]),
        ("words", "to be  or", ["to", "be", "or"]),
        ("words", ["to be", "or"], ["to be", "or"]),
        ("characters", "a b", ["a", " ", "b"]),
        ("characters", "é\n", ["é", "\n"]),
    ],
)
def test_tokens(tmp_path: Path, kind: str, value: Any, expected: list[str]) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [(value, "x")])
    assert contents(load_dataset(data_of(path, tokens=kind, **WHOLE))) == [(expected, "x")]


def test_field_names_and_formats_can_be_named(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("text;x\n", encoding="utf-8")
    with pytest.raises(DataError, match="unknown format"):
        load_dataset(data_of(path))
    path.write_text("clicks\tbought\n1 2\tno\n3\tyes\n")
    keys = {"format": "tsv", "sequence_field": "clicks", "label_field": "bought", **WHOLE}
    assert contents(load_dataset(data_of(path, **keys))) == [(["1", "2"], "no"), (["3"], "yes")]


SEPARATED = [
    ("d.csv", "auto", "label;n;sequence\nx;1,5;3 1\n"),
    ("d.csv", "auto", 'label|sequence\nx|"3 1"\n'),
    ("d.csv", "auto", "label\tsequence\nx\t3 1\n"),
    ("d.tsv", "auto", "label\tsequence\nx\t3 1\n"),
    # A header that can be read with commas is: before there were other separators, it was.
    ("d.csv", "auto", "sequence,label,a;sequence;label\n3 1,x,1;2;3\n"),
    ("d.csv", ";", "n,label;sequence;label\n1;3 1;x\n"),
    ("d.tsv", ",", "sequence,label\n3 1,x\n"),
    # A field of the header that is longer than Python's own limit.
    ("d.csv", "auto", f"{'long' * 50_000};sequence;label\n1;3 1;x\n"),
]


@pytest.mark.parametrize(("name", "separator", "text"), SEPARATED)
def test_the_header_row_shows_the_separator_or_the_config_names_it(
    tmp_path: Path, name: str, separator: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(text)
    data = data_of(path, separator=separator, **WHOLE)
    assert contents(load_dataset(data)) == [(["3", "1"], "x")]


@row("D14")
def test_a_table_without_the_fields_shows_its_first_row_and_what_to_add(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    for separator in ("auto", ",", ";"):
        path.write_text("3 1,x\n1 4,y\n")
        text = problems_of(path, separator=separator)
        assert "d.csv:1" in text
        assert "3 1,x" in text.replace(", ", ",")
        assert "if this row is data, a line sequence,label above it" in text


# --- bad input


def problems_of(path: Path, **keys: Any) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(path, **{**WHOLE, **keys}))
    assert caught.value.exit_code == 3
    assert str(path) in caught.value.render()
    return caught.value.render()


BAD_LINES = [
    ('{"sequence": [1]}', "D5", 'no field "label"'),
    ('{"sequence": [1], "label": 1.5}', "D5", "1.5"),
    ('{"sequence": [1], "label": [true]}', "D5", "True"),
    ('{"sequence": [1], "label": null}', "D5", "null"),
    ('{"sequence": [1], "label": "  "}', "D5", "an empty label"),
    ('{"sequence": [1, 0.5], "label": 1}', "D7", "numbers with fractions are not tokens"),
    ('{"sequence": "1,5 2,3", "label": 1}', "D7", "'5 2' at position 2"),
    ('{"sequence": "3,,4", "label": 1}', "D7", "'' at position 2"),
    ('{"sequence": [1], "label": ""}', "D5", "an empty label"),
    ('{"sequence": [1, -3], "label": 1}', "D7", "-3 at position 2"),
    ('{"sequence": [1, 2.0], "label": 1}', "D7", "2.0 at position 2"),
    ('{"sequence": [true], "label": 1}', "D7", "True at position 1"),
    ('{"sequence": [NaN], "label": 1}', "D7", "nan at position 1"),
    ('{"sequence": ["x"], "label": 1}', "D7", "'x' at position 1"),
    ('{"sequence": "1 007", "label": 1}', "D7", "'007' at position 2"),
    ('{"sequence": {"a": 1}, "label": 1}', "D14", "wrong kind"),
    ('{"label": 1}', "D14", "no sequence"),
    ('{"sequence": [], "label": 1}', "D9", "empty sequence"),
    ('{"sequence": "  ", "label": 1}', "D9", "empty sequence"),
    ('{"sequence": [1], "label": 1', "D14", "not JSON"),
    ("[1, 2]", "D14", "not a JSON object"),
    ("[" * 100_000, "D14", "not JSON"),
]


@row("D5", "D7", "D9", "D14")
@pytest.mark.parametrize(("line", "id", "part"), BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, line: str, id: str, part: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"sequence": [1], "label": 1}\n' * 2 + line + "\n")
    message = problems_of(path)
    assert f"error[{id}]" in message
    assert f"{path}:3" in message
    assert part in message
    assert "try:" in message


@row("D14")
def test_the_first_five_bad_lines_are_named_and_all_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = '{"sequence": [1], "label": 1}\n'
    causes = ["oops\n", '{"sequence": [1]}\n', "[1]\n"]
    path.write_text("".join(good + causes[number % 3] for number in range(9)))
    message = problems_of(path)
    assert [f"{path}:{line}" in message for line in (2, 4, 6, 8, 10, 12)] == [True] * 5 + [False]
    assert "9 bad rows in all" in message


@row("D7")
def test_words_for_ids_are_advised_only_where_most_rows_have_none(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = '{"sequence": "1 2", "label": 1}\n'
    bad = '{"sequence": "1 x", "label": 1}\n'
    for content, remedy in (
        (good * 300 + bad, "fix the line"),
        (good * 30 + bad * 20, "fix the line"),
        (good * 20 + bad * 30, "data.tokens=words"),
        (bad, "data.tokens=words"),
    ):
        path.write_text(content)
        assert re.findall("try: +(.*)", problems_of(path)) == [remedy]


@row("D14")
def test_a_cause_of_many_rows_is_told_once_with_the_first_lines(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    good = '{"sequence": [1], "label": 1}\n'
    path.write_text((good + "oops\n") * 20 + '{"sequence": [1]}\n')
    message = problems_of(path)
    assert message.count("not JSON") == 1
    assert f"not JSON, in 20 of 41 rows ({path}:2)" in message
    assert "likewise in lines 4, 6, 8, 10, ..." in message
    assert f'no field "label" ({path}:41)' in message
    # Every bad row was told or counted.
    assert "in all" not in message


@row("D5", "D7", "D14")
@pytest.mark.parametrize("count", [2, 100])
def test_a_cause_of_the_whole_file_is_told_once_with_the_fields(tmp_path: Path, count: int) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"words": "a b", "class": 1}\n' * count)
    rows = f"in all {count} rows"

    message = problems_of(path)
    assert message.count("error[") == 1
    assert f'no field "sequence", {rows} ({path}:1)' in message
    assert "the fields words, class" in message

    message = problems_of(path, sequence_field="words", tokens="words")
    assert message.count("error[") == 1
    assert f'no field "label", {rows}' in message

    message = problems_of(path, sequence_field="words", label_field="class")
    assert message.count("error[") == 1
    assert f"not an integer id, {rows}" in message


@row("D14")
@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("sequence,label\n1,2\n3\n", 3, "1 column"),
        ("sequence,label\n1,2,3\n", 2, "3 columns"),
        ('sequence,label\n1,"2\n3,4\n', 2, "an open quote"),
        ('sequence,label\n1,"2\n\n3"x\n', 2, "expected after"),
        ('sequence,label\n1,"2\n2",3\n', 2, "3 columns"),
        ('sequence,label\n"1"x,2\n', 2, "expected after"),
        ("sequence,class\n1,2\n", 1, "columns sequence and label"),
        ("sequence,label,label\n1,2,3\n", 1, "each once"),
    ],
)
def test_a_bad_table_row_is_named(tmp_path: Path, text: str, line: int, part: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(text)
    message = problems_of(path)
    assert f"{path}:{line}" in message
    assert part in message
    assert "try:" in message


@row("D1")
def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        assert "not a regular file" in problems_of(tmp_path / f"{name}.jsonl")
    assert "a folder without data files" in problems_of(tmp_path / "folder.jsonl")
    assert "No such file" in problems_of(tmp_path / "missing.jsonl")


@row("D2", "D3")
def test_nothing_to_train_on_and_a_single_sequence(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    for text in ("sequence,label\n", ""):
        path.write_text(text)
        assert "error[D2]: 0 sequences to train on" in problems_of(path)
    path.write_text("sequence,label\n1 2,3\n")
    state = fit(config_of(path, {"max_steps": 3}, **WHOLE), tmp_path / "run")
    assert state.step == 3
    path.write_text("sequence,label\n1 2,3\n")
    assert "val_fraction" in problems_of(path, val_fraction=0.9999, split="hash")
    assert "data.rare_classes=keep" in problems_of(path, val_fraction=0.5, rare_classes="drop")


@row("D4", "D8", "D16", "D17")
def test_what_is_remarkable_is_said(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = [([1, 2, 3, 4], 1), ([5], 1)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "val.jsonl", [([9, 9, 9, 1], 1), rows[1]])
    files: dict[str, Any] = {
        "val": str(tmp_path / "val.jsonl"),
        "test": str(tmp_path / "train.jsonl"),
    }
    load_task(config_of(tmp_path / "train.jsonl", max_length=3, **files))
    said = capfd.readouterr().err
    for part in (
        "[D4]: all labels are '1'",
        "[D8]: 75% of the tokens of val are not in the vocabulary",
        "[D16]: 1 sequences of train were truncated",
        "[D17]: 50.0% of the sequences of val are in the training data too",
        "[D17]: 100.0% of the sequences of test",
    ):
        assert part in said, part


@row("D6", "D8")
def test_labels_and_tokens_that_training_lacks(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [([1], "a"), ([2], "b")])
    val = write_jsonl(tmp_path / "val.jsonl", [([1], "a"), ([2], "c"), ([2], "d")])
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(train, val=str(val), **WHOLE))
    assert f"{val}:2" in caught.value.render()
    assert "one of a, b" in caught.value.render()
    write_jsonl(val, [([1], "a"), ([2, 3], "b")])
    dataset = load_dataset(data_of(train, val=str(val), **WHOLE))
    assert contents(dataset, "val") == [(["1"], "a"), (["2", "<unk>"], "b")]
    with pytest.raises(DataError, match="1 tokens of val") as caught:
        load_dataset(data_of(train, val=str(val), unknown="error", **WHOLE))
    assert f"{val}:2" in caught.value.render()
    write_jsonl(val, [([7], "a"), ([8], "b")])
    with pytest.raises(DataError, match="no token of val"):
        load_dataset(data_of(train, val=str(val), **WHOLE))


@row("D11")
def test_bytes_that_are_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"sequence": [1], "label": 1}\n{"sequence": [1], "label": "\xff"}\n')
    assert "byte 0xff at offset 28 of the line" in problems_of(path)
    assert f"{path}:2" in problems_of(path)


@pytest.mark.slow
@row("D13", "D20")
def test_long_lines_and_gzip_bombs_take_no_memory(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_bytes(b"[" + b"1," * 50_000_000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress((b"x" * 20_000 + b"\n") * 10_000))
    whole = gzip.compress(b'{"sequence": [1], "label": 1}\n' * 1000)
    (tmp_path / "short.jsonl.gz").write_bytes(whole[:-20])
    (tmp_path / "bad.jsonl.gz").write_bytes(whole[:30] + b"\xff" * 9 + whole[39:])
    code = f"""
from rnncls.config import FilesConfig
from rnncls.data.loading import load_dataset
from rnncls.errors import DataError
from rnncls.system.process_memory import peak_bytes
for name in ("long.jsonl", "bomb.jsonl.gz", "short.jsonl.gz", "bad.jsonl.gz"):
    before = peak_bytes()
    try:
        path = {str(tmp_path)!r} + "/" + name
        load_dataset(FilesConfig(source="files", train=path, tokens="ids"))
    except DataError as error:
        assert peak_bytes() - before < 200e6
        print(error.render())
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "error[D13]: a very long line" in done.stdout
    assert "unpacks to more than 500 times" in done.stdout
    assert "end-of-stream" in done.stdout
    assert done.stdout.count("error[D20]") == 3


@row("D16")
@pytest.mark.parametrize(("truncate", "expected"), [("head", ["1", "2"]), ("tail", ["3", "4"])])
def test_long_sequences_are_cut_where_asked(
    tmp_path: Path, truncate: str, expected: list[str]
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [([1, 2, 3, 4], 0), ([5, 6], 1)])
    dataset = load_dataset(data_of(path, max_length=2, truncate=truncate, **WHOLE))
    assert contents(dataset) == [(expected, "0"), (["5", "6"], "1")]
    assert dataset.noticed["train"].truncated == 1
    assert "found:    4" in problems_of(path, max_length=2, truncate="error")


@row("D9")
def test_empty_sequences_can_be_dropped(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [([], 0), ([5, 6], 1), ("", 1)])
    dataset = load_dataset(data_of(path, empty="drop", **WHOLE))
    assert contents(dataset) == [(["5", "6"], "1")]
    assert dataset.noticed["train"].dropped == 2


# --- vocabulary and splits


def test_the_vocabulary_is_that_of_the_training_split_alone(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [([number, 999], number % 2) for number in range(200)])
    dataset = load_dataset(data_of(path))
    trained = {token for tokens, _ in contents(dataset) for token in tokens}
    assert set(dataset.vocabulary.tokens) == {"<unk>", *trained}
    assert dataset.vocabulary.tokens[1:] == tuple(sorted(trained, key=int))
    assert all(tokens == ["<unk>", "999"] for tokens, _ in contents(dataset, "val"))
    assert dataset.unknown_tokens["val"] == len(dataset.splits["val"]) > 0


def test_rare_tokens_become_unknown(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [("a a b", "x"), ("b c <unk>", "y")])
    dataset = load_dataset(data_of(path, tokens="words", min_count=2, **WHOLE))
    assert contents(dataset) == [(["a", "a", "b"], "x"), (["b", "<unk>", "<unk>"], "y")]
    with pytest.raises(ConfigError, match="rare tokens"):
        config_of(path, min_count=2, unknown="error")


def test_splits_by_hash_are_stable_when_rows_are_added_and_keep_equal_sequences_together(
    tmp_path: Path,
) -> None:
    rows = [([number, number % 7], number % 3) for number in range(3000)]
    keys: dict[str, Any] = {"split": "hash", "val_fraction": 0.2}
    before = load_dataset(data_of(write_jsonl(tmp_path / "a.jsonl", rows), **keys))
    more = [([number, 8], number % 3) for number in range(500)]
    mixed = [*more[:250], *rows[::-1], *more[250:], *rows[:100]]
    after = load_dataset(data_of(write_jsonl(tmp_path / "b.jsonl", mixed), **keys))
    sizes = {}
    for split in ("train", "val", "test"):
        old = Counter(map(str, contents(before, split)))
        sizes[split] = old.total()
        if split == "train":  # elsewhere tokens may be unknown before and known after
            assert old.keys() <= Counter(map(str, contents(after, split))).keys()
    assert 500 < sizes["val"] < 700
    assert 230 < sizes["test"] < 370
    assert after.in_train == {
        "val": 0,
        "test": 0,
    }  # the hundred doubled rows went where the first of them went


# --- batches


@pytest.mark.parametrize("batching", ["shuffle", "bucket"])
def test_an_epoch_is_every_sequence_once_and_a_function_of_seed_and_epoch(
    tmp_path: Path, batching: str
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(1003, longest=60))
    sequences = load_dataset(data_of(path, **WHOLE)).splits["train"]
    orders = {key: epoch_order(sequences, *key, 8, batching) for key in ((0, 0), (0, 1), (1, 0))}
    for rows in orders.values():
        assert sorted(torch.cat(rows).tolist()) == list(range(1003))
        assert sorted(map(len, rows)) == [3] + [8] * 125  # the last partial batch is used
    flat = {key: torch.cat(rows).tolist() for key, rows in orders.items()}
    assert flat[0, 0] == torch.cat(epoch_order(sequences, 0, 0, 8, batching)).tolist()
    assert flat[0, 0] != flat[0, 1] != flat[1, 0] != flat[0, 0]
    waste = padding_waste(sequences, orders[0, 0])
    assert waste < 0.05 if batching == "bucket" else waste > 0.3


@pytest.mark.parametrize("batching", ["shuffle", "bucket"])
@pytest.mark.parametrize("start", [0, 1, 7, 26, 40])
def test_the_batch_of_a_step_does_not_depend_on_where_the_stream_begins(
    tmp_path: Path, batching: str, start: int
) -> None:
    task = load_task(
        config_of(write_jsonl(tmp_path / "d.jsonl", some_rows(103)), batching=batching, **WHOLE)
    )
    stream = list(task.batches(0, 45))  # 13 steps an epoch
    for one, other in zip(stream[start:], task.batches(start, 45), strict=True):
        assert torch.equal(one.tokens.data, other.tokens.data)
        assert torch.equal(one.labels, other.labels)
    assert sum(len(batch.labels) for batch in stream[:13]) == 103


def test_epochs_end_a_run_and_its_schedule(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(103))
    state = fit(config_of(path, {"max_steps": 1000, "max_epochs": 2}, **WHOLE), tmp_path / "run")
    assert state.step == 26
    assert state.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4)
    assert resume(tmp_path / "run").step == 26
    assert resume(tmp_path / "run", ["train.max_epochs=3"]).step == 39
    with pytest.raises(ConfigError, match="max_epochs needs a training file"):
        parse_config({"train": {"max_epochs": 2}}, "test")


def test_balanced_weights_are_the_inverse_of_the_frequencies(tmp_path: Path) -> None:
    rows: Rows = [([1], "often")] * 6 + [([2], "rare")] * 2
    task = load_task(
        config_of(write_jsonl(tmp_path / "d.jsonl", rows), {"class_weights": "balanced"}, **WHOLE)
    )
    assert task.class_weights is not None
    assert task.class_weights.tolist() == pytest.approx([8 / (2 * 6), 8 / (2 * 2)])


# --- the whole way


@row("D18")
def test_a_run_on_files_resumes_exactly_and_refuses_changed_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(150))
    config = config_of(
        path, {"best_metric": "macro_f1", "class_weights": "balanced"}, batching="bucket"
    )
    fit(config, tmp_path / "whole")
    for stops in ([3], [15], [6, 20]):
        run_dir = tmp_path / "-".join(map(str, stops))
        for step in stops:
            with monkeypatch.context() as patch:
                stop_at(patch, step, signal.SIGTERM)
                with pytest.raises(Interrupted):
                    resume(run_dir) if run_dir.exists() else fit(config, run_dir)
        resume(run_dir)
        assert outcome(run_dir) == outcome(tmp_path / "whole")
    moved = path.rename(tmp_path / "moved.jsonl")
    with pytest.raises(DataError):
        resume(tmp_path / "3", ["train.max_steps=30"])
    assert resume(tmp_path / "3", ["train.max_steps=30", f"data.train={moved}"]).step == 30

    with moved.open("a") as file:
        file.write('{"sequence": [1], "label": 1}\n')

    with pytest.raises(CheckpointError, match="data has changed") as caught:
        resume(tmp_path / "3", ["train.max_steps=40"])
    assert caught.value.exit_code == 4
    assert str(moved) in caught.value.render()
    assert "--init-from" in caught.value.render()
    assert "error[D18]" in caught.value.render()


@row("D19")
def test_a_file_that_changes_during_the_run_has_no_effect(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(150))
    task = load_task(config_of(path))
    first = [batch.labels.tolist() for batch in task.batches(0, 30)]
    path.write_text("")
    assert [batch.labels.tolist() for batch in task.batches(0, 30)] == first


def test_a_checkpoint_alone_knows_tokens_and_labels(tmp_path: Path) -> None:
    rows: Rows = [
        ("up up", "north"),
        ("down", "south"),
        ("up", "north"),
        ("down down", "south"),
    ] * 10
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    fit(config_of(path, tokens="words", **WHOLE), tmp_path / "run")
    path.unlink()
    checkpoint = read_checkpoint(find_checkpoint(tmp_path / "run"))
    assert checkpoint.vocabulary is not None
    assert checkpoint.vocabulary.tokens == ("<unk>", "down", "up")
    assert checkpoint.vocabulary.labels == ("north", "south")


def test_evaluation_of_files_agrees_with_counting(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(400))
    config = config_of(path, test_fraction=0.3)
    state = fit(config, tmp_path / "run")
    report = evaluate(state.model, config)
    task = load_task(config)
    assert isinstance(task, FilesTask)

    test = task.dataset.splits["test"]
    state.model.eval()
    predicted = torch.tensor(
        [int(state.model(test.batch(torch.tensor([i])).tokens).argmax()) for i in range(len(test))]
    )
    assert report.examples == len(test)
    assert report.errors == int((predicted != test.labels).sum())

    f1 = []
    for label in range(3):
        both = int(((predicted == label) & (test.labels == label)).sum())
        said, true = int((predicted == label).sum()), int((test.labels == label).sum())
        f1.append(2 * both / (said + true) if said + true else 0.0)
        assert report.by_class is not None
        assert report.by_class[label].recall == pytest.approx(both / true)
        assert report.by_class[label].precision == pytest.approx(both / said if said else 0.0)
    assert report.macro_f1 == pytest.approx(sum(f1) / 3)
    assert report.majority == pytest.approx(max(Counter(test.labels.tolist()).values()) / len(test))

    held_out = write_jsonl(tmp_path / "held.jsonl", some_rows(50, seed=9))
    done = run_rnncls("eval", tmp_path / "run", "--data", held_out, "--json")
    assert json.loads(done.stdout)["examples"] == 50

    write_jsonl(held_out, [([1], 7)])
    assert "error[D6]" in fails(3, "eval", tmp_path / "run", "--data", held_out)

    done = run_rnncls("eval", tmp_path / "run", "--lengths", "2-3,90", "--json")
    of_lengths = json.loads(done.stdout)["by_length"]
    by_length = {row.length: row.errors for row in report.by_length}
    assert list(by_length) == [2, 3, 4, 5, 6]  # by their hashes, all of length 1 are for training
    assert [row["length"] for row in of_lengths] == [2, 3]
    assert [row["errors"] for row in of_lengths] == [by_length[2], by_length[3]]

    message = fails(3, "eval", tmp_path / "run", "--lengths", "8-9,90")
    assert f"error[D2]: 0 sequences of these lengths ({path})" in message
    assert "expected: some of the lengths 2-6\n  found:    the lengths 8-9,90" in message


def test_data_commands(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_jsonl(tmp_path / "d.jsonl", some_rows(300))
    (tmp_path / "my.yaml").write_text(
        "data: {source: files, train: d.jsonl, tokens: ids}"
    )  # relative to the config
    done = run_rnncls("data", "check", "--config", tmp_path / "my.yaml")
    assert done.returncode == 0, done.stderr
    assert "ok: 6 different tokens, 3 classes" in done.stdout

    statistics = json.loads(
        run_rnncls("data", "stats", "--config", tmp_path / "my.yaml", "--json").stdout
    )
    assert sum(split["sequences"] for split in statistics["splits"].values()) == 300
    assert statistics["padding_waste"]["bucket"] < statistics["padding_waste"]["shuffle"]

    picture = tmp_path / "p.png"
    done = run_rnncls("data", "stats", "--config", tmp_path / "my.yaml", "--plot", picture)
    assert "lengths of train" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")

    config = load_config(tmp_path / "my.yaml")
    assert config.data.source == "files"

    batch = next(load_task(config).batches(0, 1))
    done = run_rnncls("data", "sample", "--config", tmp_path / "my.yaml")
    assert f"batch_sizes {' '.join(map(str, batch.tokens.batch_sizes.tolist()))}" in done.stdout
    assert "generated data has no files" in fails(
        2, "data", "check", "--config", "configs/smoke.yaml"
    )
    picture = tmp_path / "batch.png"
    done = run_rnncls("data", "sample", "--config", "configs/smoke.yaml", "--plot", picture)
    assert "packed" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")

    (tmp_path / "d.jsonl").write_text("oops\n")
    assert "d.jsonl:1" in fails(3, "data", "check", "--config", tmp_path / "my.yaml")


@row("D18")
def test_evaluation_takes_the_checkpoints_vocabulary_and_refuses_changed_data(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    path, held_out = (
        write_jsonl(tmp_path / "d.jsonl", some_rows(200)),
        write_jsonl(tmp_path / "t.jsonl", some_rows(50, 9)),
    )
    fit(config_of(path), tmp_path / "by_hash")
    fit(config_of(path, test=str(held_out)), tmp_path / "own_file")
    fit(
        config_of(write_jsonl(tmp_path / "e.jsonl", [([1], 1), ([2], 0), ([0], 2)])),
        tmp_path / "began",
        tmp_path / "by_hash",
    )
    reports = [
        run_rnncls("eval", tmp_path / name).stdout for name in ("by_hash", "own_file", "began")
    ]
    assert "evaluated on: the test split" in reports[0]
    assert json.loads(run_rnncls("eval", tmp_path / "began", "--json").stdout)["examples"] == 3
    assert (
        (tmp_path / "began" / "config.yaml")
        .read_text()
        .startswith(f"# began with the weights of {tmp_path}")
    )

    with path.open("a") as file:
        file.write('{"sequence": [99], "label": 7}\n')

    message = fails(4, "eval", tmp_path / "by_hash")
    assert "error[D18]" in message
    assert "--data FILE" in message

    path.unlink()  # a test file of its own is all that an evaluation needs
    assert run_rnncls("eval", tmp_path / "own_file").stdout == reports[1]

    by_path = run_rnncls("eval", tmp_path / "own_file", "--data", held_out).stdout
    assert f"evaluated on: {held_out}" in by_path
    assert by_path.splitlines()[2] == reports[1].splitlines()[2]
    assert not {"yes", "no"} & set(
        by_path.split()
    )  # whether a length was trained is not known here


@row("D5", "D7", "D11")
@pytest.mark.parametrize("kind", ["words", "characters"])
def test_odd_tokens_and_labels_are_read_or_named(tmp_path: Path, kind: str) -> None:
    rows = [(["1", "--5"], "a"), (["007"], "--1"), (["9" * 5000], "1"), (["-0"], "9" * 5000)]
    path = tmp_path / "odd.jsonl"
    lines = [json.dumps({"sequence": "".join(tokens), "label": label}) for tokens, label in rows]
    path.write_text("\n".join(lines) + "\n")
    dataset = load_dataset(data_of(path, tokens=kind, **WHOLE))
    assert set(dataset.vocabulary.labels) == {"a", "--1", "1", "9" * 5000}
    for bad in (
        '{"sequence": "a\\ud800b", "label": "x"}',
        '{"sequence": "ab", "label": "a\\uD800"}',
    ):
        path.write_text(bad + "\n")
        message = problems_of(path, tokens=kind)
        assert "[D11]" in message
        assert f"{path}:1" in message


@pytest.mark.slow
@row("D7")
def test_a_vocabulary_that_no_checkpoint_could_hold_is_refused_at_once(tmp_path: Path) -> None:
    words = [
        chr(0x4E00 + number // 150) * 6 + chr(0x4E00 + number % 150) for number in range(300_000)
    ]
    path = tmp_path / "d.jsonl"
    path.write_text(
        "".join(
            json.dumps({"sequence": " ".join(words[i : i + 1000]), "label": 1}) + "\n"
            for i in range(0, len(words), 1000)
        )
    )
    assert "a very large vocabulary" in problems_of(path, tokens="words", **WHOLE)
    path.write_text(
        "".join(
            json.dumps({"sequence": "a", "label": f"{number:0140}"}) + "\n"
            for number in range(100_000)
        )
    )
    assert "a very large vocabulary" in problems_of(path, tokens="words", **WHOLE)


@row("D21")
def test_a_run_that_ends_too_early_is_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(100))
    config = config_of(path, {"max_epochs": 2, "max_steps": 1000, "batch_size": 10}, **WHOLE)
    load_task(
        config.model_copy(
            update={"schedule": config.schedule.model_copy(update={"warmup_steps": 500})}
        )
    )
    assert "20 steps, all of them within schedule.warmup_steps = 500" in capfd.readouterr().err
    load_task(config_of(path, {"max_epochs": 50, "max_steps": 20, "batch_size": 10}, **WHOLE))
    assert "train.max_steps = 20 ends the run in epoch 2 of 50" in capfd.readouterr().err


# --- defaults that depend on the data source


def defaults_of(path: Path, train: dict[str, Any] | None = None) -> Config:
    """A config whose warm-up and number of validation sequences are the defaults of files."""
    raw = {
        "data": {"source": "files", "train": str(path), "tokens": "ids"},
        "model": {"embedding_dim": 4, "hidden_size": 8},
        "train": {
            "max_steps": 100,
            "batch_size": 10,
            "engine": "eager",
            "plots": False,
            **(train or {}),
        },
    }
    return parse_config(raw, "test")


def test_what_is_counted_in_the_files_is_fixed_when_they_are_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(2500))
    task = load_task(defaults_of(path))
    assert isinstance(task, FilesTask)
    validation = task.dataset.splits["val"]
    assert task.config.schedule.warmup_steps == 3
    assert task.config.train.eval_samples == len(validation)
    assert sum(len(batch.labels) for batch in task.validation()) == len(validation)

    # Whichever ends first decides: 2 epochs are fewer than 10,000 steps.
    steps = load_task(defaults_of(path, {"max_steps": 10_000, "max_epochs": 2})).max_steps
    task = load_task(defaults_of(path, {"max_steps": 10_000, "max_epochs": 2}))
    assert 300 < steps < 500
    assert task.config.schedule.warmup_steps == round(0.03 * steps)

    # A number that was given stays, and is a sample if there are more.
    task = load_task(defaults_of(path, {"eval_samples": 20}))
    assert sum(len(batch.labels) for batch in task.validation()) == 20

    # Without a validation split, the training split is what evaluations see.
    config = defaults_of(path)
    data = config.data.model_copy(update=WHOLE)
    task = load_task(config.model_copy(update={"data": data}))
    assert task.config.train.eval_samples == 2500


def test_a_run_holds_the_numbers_and_keeps_its_warm_up_when_it_is_resumed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(200))
    fit(defaults_of(path), tmp_path / "run")

    written = load_config(tmp_path / "run" / "config.yaml")
    assert written.schedule.warmup_steps == 3
    assert written.train.eval_samples is not None
    assert read_checkpoint(find_checkpoint(tmp_path / "run")).config == written

    resume(tmp_path / "run", ["train.max_steps=200"])
    assert load_config(tmp_path / "run" / "config.yaml").schedule.warmup_steps == 3

    # Asked for again, the default is that of the longer run, and again a number.
    resume(tmp_path / "run", ["train.max_steps=300", "schedule.warmup_steps=null"])
    assert load_config(tmp_path / "run" / "config.yaml").schedule.warmup_steps == 9
    assert read_checkpoint(find_newest(tmp_path / "run")).config.schedule.warmup_steps == 9


def test_a_run_from_other_weights_counts_its_own_steps(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(200))
    fit(defaults_of(path), tmp_path / "run")
    fit(defaults_of(path, {"max_steps": 50}), tmp_path / "next", init_from=tmp_path / "run")
    assert load_config(tmp_path / "next" / "config.yaml").schedule.warmup_steps == 2


def test_config_show_counts_in_the_files_and_says_where_it_cannot(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(200))
    (tmp_path / "c.yaml").write_text(dump_config(defaults_of(path, {"max_epochs": 4})))
    words: list[str | Path] = ["config", "show", "-c", tmp_path / "c.yaml", "--json"]
    shown = json.loads(run_rnncls(*words).stdout)
    task = load_task(defaults_of(path, {"max_epochs": 4}))
    assert shown == task.config.model_dump(mode="json")

    path.unlink()
    done = run_rnncls(*words)
    assert done.returncode == 0
    shown = json.loads(done.stdout)
    assert shown["schedule"]["warmup_steps"] is None
    assert shown["train"]["eval_samples"] is None
    assert shown["model"]["init_gain"] == 1.0
    (line,) = done.stderr.splitlines()
    assert "schedule.warmup_steps, train.eval_samples shown as null" in line
    assert str(path) in line

    # Without epochs the steps are known, and nothing is read to check a config.
    shown = json.loads(run_rnncls(*words, "train.max_epochs=null").stdout)
    assert shown["schedule"]["warmup_steps"] == 3
    assert run_rnncls("config", "check", "-c", tmp_path / "c.yaml").stderr == ""


@pytest.mark.slow
def test_every_member_of_a_sweep_has_the_defaults_of_its_own_steps(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(200))
    (tmp_path / "c.yaml").write_text(dump_config(defaults_of(path)))
    words: list[str | Path] = ["sweep", "-c", tmp_path / "c.yaml", "--seeds", "0"]
    words += ["--sweep-dir", tmp_path / "sweep"]
    axes = ["train.max_epochs=1,4", "model.init_gain=null,0.5", "schedule.warmup_steps=null,5"]
    done = run_rnncls(*words, *axes)
    assert done.returncode == 0, done.stderr
    assert "member failed" not in done.stderr

    seen = set()
    for member in load_sweep(tmp_path / "sweep").members:
        config = load_config(tmp_path / "sweep" / "members" / member.name / "config.yaml")
        seen.add((config.train.max_epochs, config.model.init_gain, config.schedule.warmup_steps))
    steps = {
        epochs: load_task(defaults_of(path, {"max_epochs": epochs})).max_steps for epochs in (1, 4)
    }
    warmup = {epochs: round(0.03 * count) for epochs, count in steps.items()}
    assert warmup[1] != warmup[4]
    assert seen == {
        (epochs, gain, warm)
        for epochs in (1, 4)
        for gain in (1.0, 0.5)
        for warm in (warmup[epochs], 5)
    }

    # Planned and trained are still compared, and the same command is the same sweep.
    again = run_rnncls(*words, *axes)
    assert again.returncode == 0, again.stderr


@row("C19")
@pytest.mark.slow
def test_a_member_trained_with_another_warm_up_is_not_the_planned_one(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(200))
    (tmp_path / "c.yaml").write_text(dump_config(defaults_of(path, {"max_steps": 40})))
    words: list[str | Path] = ["sweep", "-c", tmp_path / "c.yaml", "--seeds", "0"]
    words += ["--sweep-dir", tmp_path / "sweep"]
    assert run_rnncls(*words).returncode == 0

    member = tmp_path / "sweep" / "members" / "seed=0"
    config = load_config(member / "config.yaml", ["schedule.warmup_steps=7"])
    shutil.rmtree(member)
    fit(config, member)
    done = run_rnncls("sweep", "--resume", tmp_path / "sweep")
    assert "schedule.warmup_steps: 1 -> 7" in done.stderr
