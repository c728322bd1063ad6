"""How rows are shared out among the splits, and what is said of their labels."""

import json
import random
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnncls.config import FilesConfig
from rnncls.data import FilesTask, load_task
from rnncls.data.contradictions import find_contradictions
from rnncls.data.copies import group
from rnncls.data.dataset import Dataset
from rnncls.data.loading import load_dataset
from rnncls.data.report import stats
from rnncls.data.splits import DROPPED, SPLITS, TEST, TRAIN, VAL, by_hash, stratified
from rnncls.data.table import Numbering, SplitRows, hash_of, read_table
from rnncls.errors import DataError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import ROOT, Rows, change_checkpoint, files_config, run_rnncls, write_jsonl

row = pytest.mark.row

SHARES = [(0.1, 0.1), (0.2, 0.0), (0.0, 0.3), (0.45, 0.5), (0.013, 0.105), (1 / 3, 1 / 3)]
SHARES += [(0.9, 0.05), (0.001, 0.5), (0.7, 0.0), (0.5, 0.4999), (1e-9, 1e-9), (0.0, 0.999)]

# Sequences of one id and a label each, as numbers.
Pairs = list[tuple[int, int]]


def places_of(pairs: Pairs, val: float, test: float) -> dict[int, int]:
    """Return the place of each sequence. Sequence n has the hash of the text n."""
    hashes = np.array([hash_of([str(sequence)]) for sequence, _ in pairs], dtype=np.uint64)
    labels = np.array([label for _, label in pairs], dtype=np.int32)
    places = stratified(group(hashes, labels), val, test).tolist()

    found: dict[int, int] = {}
    for (sequence, _), place in zip(pairs, places, strict=True):
        # Copies of a sequence are never in two splits.
        assert found.setdefault(sequence, place) == place
    return found


def classes_of(pairs: Pairs) -> dict[int, int]:
    """Return the class that each sequence belongs to, in the plainest way."""
    labels: dict[int, Counter[int]] = {}
    for sequence, label in pairs:
        labels.setdefault(sequence, Counter())[label] += 1
    return {
        sequence: min(counts, key=lambda label: (-counts[label], label))
        for sequence, counts in labels.items()
    }


def drawn(rng: random.Random) -> tuple[Pairs, float, float]:
    """Draw a file: classes from one sequence to hundreds, copies, contradictions, and shares."""
    pairs = []
    for label in range(rng.randint(1, 12)):
        size = rng.choice([1, 2, 3, 4, 5, 9, 10, 15, 25, rng.randint(1, 300)])
        pairs += [(1000 * label + number, label) for number in range(size)]
    copied = rng.choices(pairs, k=rng.randint(0, len(pairs)))
    number = len({label for _, label in pairs})
    contradicting = [
        (sequence, rng.randrange(number))
        for sequence, _ in rng.choices(pairs, k=rng.randint(0, 40))
    ]
    pairs += copied + contradicting * rng.randint(0, 2)
    rng.shuffle(pairs)

    val, test = rng.choice(SHARES)
    return pairs, val, test


def test_each_class_has_its_share_in_every_split() -> None:
    rng = random.Random(0)
    for _ in range(200):
        pairs, val, test = drawn(rng)
        places = places_of(pairs, val, test)
        shares = {TRAIN: 1 - val - test, VAL: val, TEST: test}

        of_class: dict[int, Counter[int]] = {}
        for sequence, label in classes_of(pairs).items():
            of_class.setdefault(label, Counter())[places[sequence]] += 1

        for counts in of_class.values():
            size = counts.total()
            if size < 3:
                assert counts == {TRAIN: size}
                continue
            for place, share in shares.items():
                assert bool(counts[place]) == (share > 0)
            # Where the one sequence that each split must have leaves room for the shares.
            must_have = sum(max(1.0, share * size) for share in shares.values() if share)
            if must_have <= size + 1:
                for place, share in shares.items():
                    assert abs(counts[place] - share * size) <= 1 + 1e-9

        # Neither the order of the rows nor their copies move anything.
        assert places_of(rng.sample(pairs, len(pairs)), val, test) == places
        assert places_of(pairs + pairs, val, test) == places
        # One more row of a sequence with several labels might change its class.
        num_labels = Counter(sequence for sequence, _ in set(pairs))
        plain = [pair for pair in pairs if num_labels[pair[0]] == 1]
        assert places_of(pairs + rng.choices(plain, k=len(plain)), val, test) == places


def test_sequences_of_another_file_are_counted(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [("a b", "x"), ("c d", "y"), ("c d", "y")])
    val = write_jsonl(tmp_path / "val.jsonl", [("c d", "y"), ("a", "x"), ("c d", "y")])
    dataset = load_dataset(data_of(train, val=str(val), test=str(train)))
    assert dataset.in_train == {"val": 2, "test": 3}
    assert dataset.in_val == {"test": 2}


def test_a_hash_alone_decides_by_split_hash() -> None:
    hashes = np.array([0, 2**60, 2**61, 2**62, 2**63, 2**64 - 1], dtype=np.uint64)
    assert by_hash(hashes, 0.1, 0.1).tolist() == [VAL, VAL, TEST, TRAIN, TRAIN, TRAIN]
    assert by_hash(hashes, 0.0, 0.3).tolist() == [TEST, TEST, TEST, TEST, TRAIN, TRAIN]
    assert DROPPED not in by_hash(hashes, 0.5, 0.4)


def test_many_classes_and_no_row_at_all() -> None:
    number = 50_000
    hashes = np.arange(number, dtype=np.uint64) * 2**48
    alone = stratified(group(hashes, np.arange(number, dtype=np.int32)), 0.1, 0.1)
    assert set(alone.tolist()) == {TRAIN}
    thirds = stratified(group(hashes, np.arange(number, dtype=np.int32) // 3), 0.1, 0.1)
    assert Counter(thirds.tolist())[VAL] == number // 3
    nothing = group(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32))
    assert len(stratified(nothing, 0.1, 0.1)) == 0


# --- files


def data_of(path: Path, **keys: Any) -> FilesConfig:
    return FilesConfig.model_validate({"source": "files", "train": str(path), **keys})


def labels_of(dataset: Dataset) -> dict[str, Counter[str]]:
    """The labels of each split."""
    names = dataset.vocabulary.labels
    return {
        split: Counter(names[label] for label in sequences.labels.tolist())
        for split, sequences in dataset.splits.items()
    }


def two_classes(count: int = 300) -> Rows:
    """Rows of two classes, all of them different."""
    return [
        (f"w{number % 50} v{number % 7} u{number}", "ab"[number % 2]) for number in range(count)
    ]


@row("D6")
def test_rare_classes_stay_in_training_alone_and_are_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = [*two_classes(), *((f"w{number} x", f"rare {number}") for number in range(12))]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    task = load_task(files_config(path, tokens="words"))
    assert isinstance(task, FilesTask)
    labels = labels_of(task.dataset)
    assert labels["val"] == labels["test"] == {"a": 15, "b": 15}
    assert labels["train"].total() == 252
    said = capfd.readouterr().err
    assert "warning[D6]: 12 classes have fewer than 3 different sequences" in said
    assert "their 12 rows are in training alone: rare 0 (1), rare 1 (1)," in said

    load_task(files_config(path, tokens="words", rare_classes="drop"))
    assert "their 12 rows are left out: rare 0 (1)," in capfd.readouterr().err
    dropped = load_dataset(data_of(path, rare_classes="drop"))
    assert labels_of(dropped)["train"] == {"a": 120, "b": 120}
    assert dropped.vocabulary.labels == ("a", "b")

    with pytest.raises(DataError) as caught:
        load_dataset(data_of(path, rare_classes="error"))
    message = caught.value.render()
    assert "error[D6]: 12 classes have fewer than 3 different sequences" in message
    assert "data.rare_classes=keep or drop" in message

    # Where nothing is held out, no class is too rare.
    whole = load_dataset(data_of(path, rare_classes="error", val_fraction=0, test_fraction=0))
    assert labels_of(whole)["train"].total() == 312


def test_rare_classes_that_are_dropped_leave_sequences_to_others(tmp_path: Path) -> None:
    # The sequence w is more often r than a, and belongs to a once the rows of r are gone.
    rows: Rows = [("w one", "a"), ("w two", "a"), ("w", "a"), ("w", "r"), ("w", "r")]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    keep = load_dataset(data_of(path))
    assert keep.rare is not None
    assert keep.rare.sequences == {"a": 2, "r": 1}
    assert keep.rare.num_rows == 5

    path = write_jsonl(tmp_path / "d.jsonl", [*rows, ("w three", "a")])
    dropped = labels_of(load_dataset(data_of(path, rare_classes="drop", test_fraction=0)))
    assert sum(dropped.values(), Counter()) == {"a": 4}
    assert dropped["val"] == {"a": 1}


def test_a_label_that_only_contradictions_have_is_known(tmp_path: Path) -> None:
    # Every sequence of a has a second label, once: not all of them can be in training.
    rows: Rows = []
    for number in range(3):
        rows += [(f"w {number}", "a"), (f"w {number}", "a"), (f"w {number}", f"c{number}")]
    dataset = load_dataset(data_of(write_jsonl(tmp_path / "d.jsonl", rows)))
    assert [len(dataset.splits[name]) for name in SPLITS] == [3, 3, 3]
    assert dataset.vocabulary.labels == ("a", "c0", "c1", "c2")

    # Where there is room, a sequence with a rare label is in training.
    rows = [*two_classes(40), *((f"w{number} v{number} u{number}", "r") for number in range(2))]
    dataset = load_dataset(data_of(write_jsonl(tmp_path / "d.jsonl", rows)))
    assert labels_of(dataset)["train"]["r"] == 2


@row("D6")
def test_a_class_of_the_hidden_test_tenth_is_explained(tmp_path: Path) -> None:
    train = tmp_path / "train.csv"
    train.write_text("sequence,label\na b,x\nc d,y\na c,x\nb d,y\n")
    val = tmp_path / "val.csv"
    val.write_text("sequence,label\na b,x\n")
    dataset = load_dataset(data_of(train, val=str(val)))
    assert labels_of(dataset)["train"] == {"x": 2, "y": 2}

    with pytest.raises(DataError) as caught:
        load_dataset(data_of(train, val=str(val), split="hash"))
    message = caught.value.render()
    assert "x, which 2 rows of the training files have, all of them held out" in message
    assert "data.split=stratified, or data.test_fraction=0" in message
    val.write_text("sequence,label\na b,z\n")
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(train, val=str(val), split="hash"))
    assert "found:    z\n" in caught.value.render()


@row("D6")
def test_a_label_that_the_weights_to_begin_with_lack_is_explained(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", two_classes())
    known = load_dataset(data_of(path)).vocabulary
    other = write_jsonl(tmp_path / "other.jsonl", [*two_classes(), ("w1 v1", "new")])
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(other), known)
    message = caught.value.render()
    assert "a label that the run of --init-from lacks" in message
    assert "try:      train without --init-from, or fix the line" in message


def test_statistics_say_what_was_counted_while_files_were_read(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    rows = "".join(f"{sequence},{label} \n" for sequence, label in two_classes(60))
    path.write_text(f"sequence,label\n{rows}bad\n[1 2],a\nw1 x,rare\n")
    task = load_task(files_config(path, tokens="words", bad="skip", rare_classes="drop"))
    assert isinstance(task, FilesTask)
    found = json.loads(json.dumps(stats(task).to_json()))
    train = found["splits"]["train"]
    assert (train["bad_skipped"], train["labels_with_space"], train["like_lists"]) == (1, 60, 1)
    assert (found["rare_classes"], found["rare_rows"], found["rare_dropped"]) == (
        {"rare": 1},
        1,
        True,
    )
    assert found["read_as"] == {str(path): "comma-separated, standard quoting, UTF-8"}


def test_what_is_held_out_beside_a_file_of_ones_own_is_announced(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", two_classes())
    own = write_jsonl(tmp_path / "own.jsonl", two_classes(50))
    config = tmp_path / "my.yaml"
    config.write_text("data: {source: files, train: d.jsonl, val: own.jsonl}")
    done = run_rnncls("data", "check", config)
    held_out = f"held out of {path} (data.test_fraction=0.1)"
    assert f"test: 30 sequences, 90 tokens, {held_out}\n" in done.stdout
    assert "val: 50 sequences, 150 tokens\n" in done.stdout
    task = load_task(files_config(path, tokens="words", val=str(own)))
    assert task.described_split.endswith(f"50 of {own} for validation, 30 for the test, {held_out}")


# --- contradictions


@row("D22")
def test_the_same_sequence_with_other_labels_is_counted_and_said(tmp_path: Path) -> None:
    rows: Rows = []
    for number in range(5):
        rows += [(f"w{number} b", "x"), (f"w{number}  b", "y"), (f"w{number} b", "y")]
    rows += [(f"alone {number}", "x") for number in range(5)]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    config = tmp_path / "my.yaml"
    config.write_text("data: {source: files, train: d.jsonl}\nmodel: {hidden_size: 8}\n")

    # Every sequence with two labels belongs to y: one is for validation, and one for the test.
    said = (
        "5 sequences have different labels in 15 rows: no accuracy over all rows can exceed 75.00%,"
        " on train 75.00%, on val 75.00%, on test 75.00%"
    )
    example = f"'w0 b' is 'y' ({path}:2, 2 rows), 'x' ({path}:1)"
    check = run_rnncls("data", "check", config)
    assert f"warning[D22]: {said}\n" in check.stderr
    assert f"warning[D22]: {example}\n" in check.stderr
    assert check.stderr.count("[D22]") == 4
    shown = run_rnncls("data", "stats", config).stdout
    assert said in shown
    assert example in shown

    found = json.loads(run_rnncls("data", "stats", config, "--json").stdout)["contradictions"]
    assert (found["sequences"], found["rows"], found["most_accuracy"]) == (5, 15, 0.75)
    assert found["most_accuracy_of"] == {"train": 0.75, "val": 0.75, "test": 0.75}
    assert found["examples"][2] == {
        "sequence": "w2 b",
        "labels": {"y": 2, "x": 1},
        "places": [f"{path}:8", f"{path}:7"],
    }
    trained = run_rnncls(
        "train", config, "train.max_steps=1", "train.engine=eager", "--run-dir", tmp_path / "run"
    )
    assert said in trained.stderr
    evaluated = run_rnncls("eval", tmp_path / "run", "--data", path)
    assert f"{said.partition(',')[0]}\n" in evaluated.stderr


def most_accuracy(rows: list[tuple[str, str]]) -> float:
    """Return the share of the rows with the most frequent label of their sequence."""
    labels: dict[str, Counter[str]] = {}
    for sequence, label in rows:
        labels.setdefault(sequence, Counter())[label] += 1
    return sum(max(counts.values()) for counts in labels.values()) / len(rows)


def test_the_accuracy_that_no_model_can_exceed_is_that_of_each_split(tmp_path: Path) -> None:
    rng = random.Random(1)
    for number in range(12):
        files = {}
        for name in ("train", "test"):
            rows = [(f"{rng.randrange(64):06b}", rng.choice("abc")) for _ in range(200)]
            files[name] = str(write_jsonl(tmp_path / f"{name}.jsonl", [*rows, ("111111", "rare")]))
        keys: dict[str, Any] = [{}, {"test": files["test"]}, {"split": "hash"}][number % 3]
        if not keys:
            keys = {"rare_classes": "drop"}
        dataset = load_dataset(data_of(Path(files["train"]), tokens="characters", **keys))

        rows_of: dict[str, list[tuple[str, str]]] = {}
        for name, split in dataset.splits.items():
            digits = "".join(dataset.vocabulary.tokens[id] for id in split.tokens.tolist())
            names = [dataset.vocabulary.labels[label] for label in split.labels.tolist()]
            sequences = [digits[6 * row : 6 * row + 6] for row in range(len(split))]
            rows_of[name] = list(zip(sequences, names, strict=True))

        found = dataset.contradictions
        assert found is not None
        assert found.most_accuracy == pytest.approx(most_accuracy(list(chain(*rows_of.values()))))
        expected = {name: most_accuracy(rows) for name, rows in rows_of.items()}
        assert found.most_accuracy_of == pytest.approx(expected)
        assert f", on test {int(1e4 * expected['test'] + 1e-6) / 100:.2f}%" in found.shown


def test_a_class_whose_sequences_all_belong_to_others_is_not_called_rare(tmp_path: Path) -> None:
    # b has 30 different sequences, none of which are its own; rare has one, of which a has more.
    rows: Rows = [(f"w v{number}", label) for number in range(30) for label in "ab"]
    rows += [("w v3", "rare"), ("w alone", "alone")]
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    kept = load_dataset(data_of(path))
    assert kept.rare is not None
    assert kept.rare.sequences == {"alone": 1, "b": 0, "rare": 0}
    assert kept.rare.told == (
        "3 classes have fewer than 3 different sequences of their own; their 32 rows are in"
        " training, but for 6 whose sequences have other labels, too: alone (1), b (0), rare (0)"
    )

    # Only those that are few go.
    dropped = load_dataset(data_of(path, rare_classes="drop"))
    assert dropped.vocabulary.labels == ("a", "b")
    assert sum(map(len, dropped.splits.values())) == 60
    with pytest.raises(DataError) as caught:
        load_dataset(data_of(path, rare_classes="error"))
    assert "found:    alone (1), rare (1)\n" in caught.value.render()
    load_dataset(data_of(write_jsonl(path, rows[:-2]), rare_classes="error"))


def test_contradictions_between_files_count_too(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", [("a b", "x"), ("c d", "y"), ("e f", "x")])
    val = write_jsonl(tmp_path / "val.jsonl", [("c d", "x"), ("a b", "x")])
    found = load_dataset(data_of(train, val=str(val), test_fraction=0)).contradictions
    assert found is not None
    assert (found.sequences, found.rows, found.most_accuracy) == (1, 2, 0.8)
    assert found.examples[0].places == [f"{val}:1", f"{train}:2"]

    nothing = load_dataset(data_of(train, test_fraction=0, val_fraction=0)).contradictions
    assert nothing is not None
    assert (nothing.sequences, nothing.most_accuracy, nothing.examples) == (0, 1.0, [])


def test_a_long_contradiction_is_cut(tmp_path: Path) -> None:
    pairs = [("ab" * 500, f"label {number}") for number in range(9)]
    path = str(write_jsonl(tmp_path / "d.jsonl", pairs))
    tokens, labels = Numbering(), Numbering()
    data = data_of(Path(path), tokens="characters")
    table = read_table((path,), data, tokens, labels, progress=False)
    rows = {"train": SplitRows(table, np.ones(9, dtype=bool))}
    (example,) = find_contradictions(rows, list(tokens), list(labels), "characters").examples
    assert example.sequence == "ab" * 30 + "..."
    assert len(example.labels) == len(example.places) == 4


# --- runs from before


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    """A run on files from before there was a rule of the split, with its file where it is now."""
    here = shutil.copytree(ROOT / "tests" / "before" / "files", tmp_path / "files")

    def move(state: dict[str, Any], _: object) -> None:
        state["config"]["data"]["train"] = str(here / "words.jsonl")

    for path in here.rglob("*.safetensors"):
        change_checkpoint(path, move)
    return here / "run"


def test_a_run_from_before_keeps_its_rows(old_run: Path) -> None:
    checkpoint = read_checkpoint(find_newest(old_run))
    data = checkpoint.config.data
    assert isinstance(data, FilesConfig)
    assert data.split == "hash"

    rows = [json.loads(line) for line in (old_run.parent / "words.jsonl").read_text().splitlines()]
    places = [hash_of(row["sequence"].split()) / 2**64 for row in rows]
    expected = {
        "train": [line for line, place in enumerate(places, 1) if place >= 0.2],
        "val": [line for line, place in enumerate(places, 1) if place < 0.1],
        "test": [line for line, place in enumerate(places, 1) if 0.1 <= place < 0.2],
    }
    dataset = load_dataset(data, checkpoint.vocabulary)
    assert {name: lines.tolist() for name, lines in dataset.lines.items()} == expected

    # Resumed, it says by which rule, and so do its new checkpoints.
    resume(old_run, ["train.max_steps=41"])
    resumed = read_checkpoint(find_newest(old_run)).config.data
    assert isinstance(resumed, FilesConfig)
    assert resumed.split == "hash"
    done = run_rnncls("train", "--resume", old_run, "data.split=stratified")
    assert done.returncode == 4
    assert "a resumed run keeps its data" in done.stderr


@row("D17")
def test_weights_from_another_split_of_the_same_file_are_warned_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", two_classes(60))
    few = {"max_steps": 2}
    fit(files_config(path, few, tokens="words", split="hash"), tmp_path / "old")
    capfd.readouterr()
    fit(files_config(path, few, tokens="words"), tmp_path / "new", tmp_path / "old")
    assert "(as then: data.split=hash)" in capfd.readouterr().err
    same = files_config(path, few, tokens="words", split="hash")
    fit(same, tmp_path / "same", tmp_path / "old")
    assert "as then" not in capfd.readouterr().err
