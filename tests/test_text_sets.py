"""The sets of scripts/text_sets.py, the baseline on them, and the page that has both."""

import csv
import json
import math
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import typer
from scipy.stats import t

from scripts import reproduce_text, text_sets, tfidf
from scripts.reproduce_text import KeptRun, KeptTfidf, Result
from scripts.source_lines import SPLITS
from scripts.text_sets import TOKENS, Row, chosen, dedented, named_rows, snippets, strings_in

# --- sets


@pytest.mark.slow
def test_sets_have_no_sequence_twice_and_are_the_same_each_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        text_sets.main(tmp_path / folder, files=12)

    for name in TOKENS:
        tables = {}
        for split in SPLITS:
            path = tmp_path / "one" / name / f"{split}.csv"
            assert path.read_bytes() == (tmp_path / "two" / name / f"{split}.csv").read_bytes()
            tables[split] = tfidf.read_table(path)

        texts = [text for split in SPLITS for text in tables[split][0]]
        assert len(texts) == len(set(texts)) > 100, name
        assert set(tables["test"][1]) <= set(tables["train"][1]), name
        assert len(set(tables["train"][1])) >= 3, name

    texts, _ = tfidf.read_table(tmp_path / "one" / "texts" / "train.csv")
    assert all(30 <= len(text.split()) <= 100 for text in texts)
    snippets, _ = tfidf.read_table(tmp_path / "one" / "code" / "train.csv")
    assert all(50 <= len(text) <= 300 for text in snippets)
    pixels, _ = tfidf.read_table(tmp_path / "one" / "pixels" / "train.csv")
    assert all(len(text.split()) == 64 for text in pixels)


def test_of_equal_texts_the_first_is_kept_and_a_class_has_at_most_so_many() -> None:
    rows = [Row("train", "a", "x"), Row("test", "a", "y"), Row("val", "b", "x")]
    assert sorted(chosen(rows)) == [rows[0], rows[2]]
    many = [Row("train", str(number), str(number % 2)) for number in range(100)]
    assert Counter(row.label for row in chosen(many, most=7)) == {"0": 7, "1": 7}
    assert chosen(many, most=7) == chosen(many[::-1], most=7)


def test_a_name_is_of_one_language_and_so_is_its_split() -> None:
    rows = list(named_rows())
    assert len({row.text for row in rows}) == len(rows) > 20_000
    assert {row.label for row in rows} == set(text_sets.LANGUAGES)
    split = {row.text.lower(): row.split for row in rows}
    assert all(split[row.text.lower()] == row.split for row in rows)


def test_texts_of_nested_lists() -> None:
    nested = {"a": ["b", ("c", {"d"})], "e": None, 3: {"f": 1.0}}
    assert sorted(strings_in(nested)) == ["a", "b", "c", "d", "e", "f"]
    assert list(strings_in("alone")) == []


def test_snippets_are_whole_lines_without_comments() -> None:
    assert dedented(["    if a:", "        b", "    c"]) == "if a:\n    b\nc"

    lines = [f"    value_{number} = other_{number}  # tail" for number in range(100)]
    lines[::10] = ["    # a comment", "", "    // another"] * 3 + ["    # a comment"]
    found = list(snippets(lines))
    kept = [line.strip() for line in lines if line.startswith("    value")]
    in_order = "\n".join(found).split("\n")
    assert in_order == kept[: len(in_order)]
    assert all(50 <= len(snippet) <= 300 for snippet in found)
    assert len(in_order) > 80


# --- the baseline


def write_set(folder: Path, rows: dict[str, list[tuple[str, str]]]) -> None:
    """Write the three files of a set."""
    folder.mkdir(parents=True)
    for split in SPLITS:
        with (folder / f"{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("text", "label"), *rows[split]])


def test_the_baseline_finds_what_bigrams_tell_and_words_do_not(tmp_path: Path) -> None:
    # Which word comes first decides.
    pairs = [
        (f"{first} {second} w{number // 2 % 10}", first)
        for number, (first, second) in enumerate([("ay", "bee"), ("bee", "ay")] * 30)
    ]
    write_set(tmp_path / "texts", dict.fromkeys(SPLITS, pairs))
    found = tfidf.measure(tmp_path / "texts")
    assert found.way.endswith("1-2")
    assert found.accuracy == found.macro_f1 == 1.0
    assert found.low < 1.0 == found.high
    assert found.predictions == [label for _, label in pairs]


def test_ids_of_one_length_are_tried_as_numbers(tmp_path: Path) -> None:
    # An id of the test split was never seen, but it lies beyond those that were.
    rows = [(f"{number} 8", "low" if number < 8 else "high") for number in range(2, 15)]
    unseen = [("0 8", "low"), ("16 8", "high")]
    write_set(tmp_path / "pixels", {"train": rows, "val": unseen, "test": unseen})
    found = tfidf.measure(tmp_path / "pixels")
    assert found.way == tfidf.NUMBERS
    assert found.accuracy == 1.0


# --- the page


def run_of(seed: int, accuracy: float | None, better: int = 0, worse: int = 0) -> KeptRun:
    """Return a run, failed without accuracy."""
    if accuracy is None:
        return KeptRun(seed=seed, exit_code=3, seconds=1.0)
    return KeptRun(
        seed=seed,
        exit_code=0,
        accuracy=accuracy,
        macro_f1=accuracy,
        better=better,
        worse=worse,
        seconds=10.0,
    )


@pytest.fixture
def result() -> Result:
    """A result with three runs of one way, one of which has failed."""
    found = KeptTfidf(
        way="words", strength=2, accuracy=0.8, low=0.75, high=0.85, macro_f1=0.7, seconds=3
    )
    runs = [run_of(0, 0.81, 30, 10), run_of(1, 0.83, 12, 10), run_of(2, None)]
    return Result(
        tokens="words",
        rows={"train": 1000, "val": 100, "test": 200},
        classes=4,
        majority=0.3,
        tfidf=found,
        runs={"GRU": runs},
        machine="one",
    )


def test_failed_runs_are_counted_and_have_no_accuracy(result: Result) -> None:
    text = reproduce_text.page({"texts": result})
    radius = float(t.ppf(0.975, 1)) * math.sqrt(2) / math.sqrt(2)
    score = f"82.00 ± {radius:.2f}"
    assert f"| GRU | 3 | 1 | {score} | {score} | +2.00 | 10 | 1 / 1 / 0 |" in text
    assert "| TF-IDF, words, C = 2 | 1 | 0 | 80.00 (75.00 to 85.00) | 70.00 | | 3 | |" in text

    failed = result.model_copy(update={"runs": {"GRU": [run_of(0, None)]}})
    assert "| GRU | 1 | 1 | | | | | |" in reproduce_text.page({"texts": failed})


def test_a_failed_run_is_tried_again_and_replaced(result: Result) -> None:
    assert reproduce_text.has_run(result, "GRU", 0)
    assert not reproduce_text.has_run(result, "GRU", 2)
    assert not reproduce_text.has_run(result, "LSTM", 0)

    again = reproduce_text.with_run(result, "GRU", run_of(2, 0.9))
    assert [run.accuracy for run in again.runs["GRU"]] == [0.81, 0.83, 0.9]
    more = reproduce_text.with_run(again, "n-gram control", run_of(0, 0.7))
    assert list(more.runs) == ["n-gram control", "GRU"]


def test_runs_of_another_set_are_dropped(result: Result) -> None:
    measured = result.model_copy(update={"runs": {}, "machine": "two"})
    assert reproduce_text.renewed(result, measured).runs == result.runs
    other = measured.model_copy(update={"rows": {**result.rows, "test": 201}})
    assert reproduce_text.renewed(result, other).runs == {}
    assert reproduce_text.renewed(None, measured) == measured


def test_sequences_that_only_one_has_right(tmp_path: Path) -> None:
    answers = [("a", "a"), ("a", "b"), ("b", "b"), ("b", "a"), ("a", "a")]
    rows = [
        {"line": line, "true": true, "predicted": predicted}
        for line, (true, predicted) in enumerate(answers, 2)
    ]
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    assert reproduce_text.compared(path, ["a", "a", "a", "a", "b"]) == (2, 1)
    with pytest.raises(ValueError, match="zip"):
        reproduce_text.compared(path, ["a"])


def test_the_page_is_checked_and_bad_files_are_named(tmp_path: Path, result: Result) -> None:
    kept = tmp_path / "json"
    kept.mkdir()
    output = tmp_path / "text.md"

    def command(**options: Any) -> None:
        reproduce_text.main(out=tmp_path / "out", results=kept, output=output, **options)

    reproduce_text.keep(kept / "texts.json", result)
    with pytest.raises(typer.Exit):
        command(check=True)
    command(page_only=True)
    command(check=True)
    assert output.read_text() == reproduce_text.page({"texts": result})

    (kept / "code.json").write_text('{"tokens": 3}')
    with pytest.raises(typer.BadParameter, match=r"code\.json: no result of a set: tokens"):
        command(page_only=True)
    with pytest.raises(typer.BadParameter, match="no set 'text'"):
        reproduce_text.main(only="text", results=kept)


def test_means_over_seeds_have_the_interval_of_student() -> None:
    values = [80.0, 81.0, 82.0, 83.0, 84.0]
    # Quantile 2.776 of four degrees of freedom, standard deviation sqrt(2.5).
    radius = 2.776 * math.sqrt(2.5 / 5)
    assert reproduce_text.with_interval(values) == f"{mean(values):.2f} ± {radius:.2f}"
    assert reproduce_text.with_interval([80.0]) == "80.00"
