"""predict --prefixes: after each token, what predict says about the sequence up to there."""

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rnncls.errors import ConfigError, DataError, NonFiniteError
from rnncls.predict import prefixes as prefixes_module
from rnncls.predict import writing_prefixes
from rnncls.predict.predictor import Predictor, load
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.training.fit import fit
from tests.helpers import (
    PYTHON,
    change_checkpoint,
    config_of,
    files_config,
    run_command,
    run_rnncls,
    write_jsonl,
)
from tests.test_pooled_runs import lines_of, untrained
from tests.test_predict import at_prompt
from tests.test_predict_pipe import ends, predicting, write

row = pytest.mark.row

ALIKE = 1e-6


@pytest.fixture(scope="module", params=["rnn", "gru", "lstm"])
def predictor(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Predictor:
    model = {"cell": request.param, "num_layers": 2, "initial_state": "learned"}
    return load(untrained(tmp_path_factory.mktemp("prefixes"), model=model), device="cpu")


@pytest.fixture(scope="module")
def run_of_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    rows: list[tuple[Any, Any]] = [("home shop pay", "bought"), ("home search", "left")] * 20
    data: dict[str, Any] = {"tokens": "words", "val_fraction": 0.0, "test_fraction": 0.0}
    fit(files_config(write_jsonl(folder / "d.jsonl", rows), **data, max_length=3), folder / "run")
    return folder / "run"


def require_those_of_predict(predictor: Predictor, rows: list[list[int]], top_k: int) -> None:
    """Compare the answers after each token with those to each prefix as a sequence of its own."""
    answers = predictor.predict_prefixes(rows, top_k)
    assert [len(answer) for answer in answers] == [len(ids) for ids in rows]
    for ids, answer in zip(rows, answers, strict=True):
        alone = predictor.predict([ids[: end + 1] for end in range(len(ids))], top_k)
        for found, expected in zip(answer, alone, strict=True):
            assert [label for label, _ in found.top] == [label for label, _ in expected.top]
            pairs = zip(found.top, expected.top, strict=True)
            assert all(one[1] == pytest.approx(other[1], abs=ALIKE) for one, other in pairs)
            assert (found.label, found.probability) == found.top[0]


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), max_size=7),
    st.sampled_from([1, 2, 5, 8, 1000]),
    st.integers(1, 4),
)
@settings(max_examples=40)
def test_the_answers_are_those_to_each_prefix_alone(
    predictor: Predictor, rows: list[list[int]], most: int, top_k: int
) -> None:
    # However many tokens are run together: short sequences in batches, long ones in pieces.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefixes_module, "MOST_TOKENS", most)
        require_those_of_predict(predictor, rows, top_k)


def test_more_sequences_than_are_predicted_together(run_dir: Path) -> None:
    rng = random.Random(0)
    rows = [rng.choices(range(3), k=rng.randint(1, 9)) for _ in range(5000)]
    predictor = load(run_dir, device="cpu")
    answers = predictor.predict_prefixes(rows)
    expected = predictor.predict(rows)
    assert [answer[-1].label for answer in answers] == [each.label for each in expected]
    for ids, answer in zip(rows, answers, strict=True):
        # The model has learnt its task: the label of a prefix is its sum.
        sums = [sum(ids[: end + 1]) % 3 for end in range(len(ids))]
        assert [each.label for each in answer][:5] == sums[:5]


@pytest.mark.parametrize("together", [2, 2**13])
def test_text_json_and_tables_say_the_same(
    together: int, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["1 2 0", "2"]
    expected = load(run_dir).predict_prefixes(texts, top_k=2)
    # A long sequence is answered part by part.
    monkeypatch.setattr(prefixes_module, "MOST_TOKENS", together)
    monkeypatch.setattr(writing_prefixes, "ITEMS_TOGETHER", together)

    text = run_rnncls("predict", run_dir, *texts, "--prefixes", "--top-k", "2")
    assert text.returncode == 0, text.stderr
    first, second, rest = text.stdout.split("\n\n")
    assert rest == ""
    for block, tokens, answer in zip((first, second), texts, expected, strict=True):
        wanted = []
        for token, each in zip(tokens.split(), answer, strict=True):
            cells = [f"{label}\t{probability:.4f}" for label, probability in each.top]
            wanted.append("\t".join([token, *cells]))
        assert block.splitlines() == wanted

    # Whoever asks about one sequence knows where it ends.
    alone = run_rnncls("predict", run_dir, "1 2 0", "--prefixes").stdout
    assert [line.split("\t")[:2] for line in alone.splitlines()] == [
        ["1", "1"],
        ["2", "0"],
        ["0", "0"],
    ]

    (tmp_path / "rows.txt").write_text("\n".join(texts))
    words: list[str | Path] = ["predict", run_dir, "--prefixes", "--top-k", "2"]
    piped = run_rnncls(*words, "-", "--json", input="\n".join(texts))
    run_rnncls(*words, "--input", tmp_path / "rows.txt", "--output", tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == piped.stdout
    for number, (answer, found) in enumerate(zip(expected, lines_of(piped.stdout), strict=True)):
        assert (found["line"], found["row"]) == (number + 1, number + 1)
        assert found["sequence"] == texts[number]
        assert found["tokens"] == [int(token) for token in texts[number].split()]
        assert found["labels"] == [each.label for each in answer]
        assert found["probabilities"] == pytest.approx([each.probability for each in answer])
        for top, each in zip(found["top"], answer, strict=True):
            assert [one["label"] for one in top] == [label for label, _ in each.top]
            wanted_probabilities = [probability for _, probability in each.top]
            assert [one["probability"] for one in top] == pytest.approx(
                wanted_probabilities, abs=ALIKE
            )
        assert found["label"] == answer[-1].label
        assert found["probability"] == pytest.approx(answer[-1].probability)

    for name in ("out.csv", "out.tsv"):
        run_rnncls(*words, "--input", tmp_path / "rows.txt", "--output", tmp_path / name)
        with (tmp_path / name).open(newline="") as file:
            table = list(csv.DictReader(file, delimiter="\t" if name == "out.tsv" else ","))
        assert [line["position"] for line in table] == ["1", "2", "3", "1"]
        assert [line["row"] for line in table] == ["1", "1", "1", "2"]
        assert [line["token"] for line in table] == ["1", "2", "0", "2"]
        in_order = [each for answer in expected for each in answer]
        for line, each in zip(table, in_order, strict=True):
            (label, probability), (second_label, second_probability) = each.top
            assert (line["predicted"], line["predicted_2"]) == (str(label), str(second_label))
            assert float(line["probability"]) == pytest.approx(probability, abs=ALIKE)
            assert float(line["probability_2"]) == pytest.approx(second_probability, abs=ALIKE)


def test_words_are_shown_as_they_were_given(run_of_words: Path, tmp_path: Path) -> None:
    # The second one is unknown, and the fourth is left out, as in training.
    path = write_jsonl(tmp_path / "new.jsonl", [("home p\x1b pay shop", "left"), ("pay", None)])
    words: list[str | Path] = ["predict", run_of_words, "--input", path, "--prefixes"]
    text = run_rnncls(*words)
    assert text.returncode == 0, text.stderr
    tokens = [line.split("\t")[0] for line in text.stdout.splitlines()]
    assert tokens == ["home", "p\\x1b", "pay", "", "pay", ""]
    # What is counted is the answer to the whole sequence.
    assert "rnncls: accuracy: " in text.stderr
    assert "of 1; 1 without a label" in text.stderr

    one, other = lines_of(run_rnncls(*words, "--json").stdout)
    assert one["tokens"] == ["home", "p\x1b", "pay"]
    assert (one["true"], one["sequence"]) == ("left", "home p\x1b pay shop")
    assert set(one["labels"]) <= {"bought", "left"}
    assert "true" not in other
    plain = lines_of(run_rnncls(*[word for word in words if word != "--prefixes"], "--json").stdout)
    assert [(each["label"], each["line"]) for each in plain] == [
        (each["labels"][-1], each["line"]) for each in (one, other)
    ]


def test_characters_and_several_fields_are_tokens_too(tmp_path: Path) -> None:
    data: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
    rows: list[tuple[Any, Any]] = [("a b", "x"), ("ba", "y")] * 20
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    fit(files_config(path, tokens="characters", **data), tmp_path / "characters")
    done = run_rnncls("predict", tmp_path / "characters", "a \tb", "--prefixes")
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == ["a", " ", "\\t", "b"]

    (tmp_path / "d.csv").write_text("title,text,label\n" + 9 * "a b,c,x\nb,c a,y\n")
    fields = {"tokens": "words", "sequence_field": ["title", "text"], **data}
    fit(files_config(tmp_path / "d.csv", **fields), tmp_path / "fields")
    words: list[str | Path] = ["predict", tmp_path / "fields", "--input", tmp_path / "d.csv"]
    done = run_rnncls(*words, "--prefixes", "--output", tmp_path / "out.csv")
    assert done.returncode == 0, done.stderr
    table = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [line["token"] for line in table[:4]] == ["a", "b", "<sep>", "c"]


@row("D7")
def test_bad_rows_have_no_answers(run_dir: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    path = tmp_path / "new.csv"
    path.write_text("sequence,note\n1 2,a\nx,b\n2,c\n")
    words: list[str | Path] = ["predict", run_dir, "--input", path, "--prefixes"]
    assert "error[D7]" in fails(3, *words, "--output", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()
    done = run_rnncls(*words, "--output", tmp_path / "out.csv", "--bad", "skip", "--csv-safe")
    assert done.returncode == 0, done.stderr
    assert "skipped 1 of 3 sequences" in done.stderr
    table = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    # Not those of the input: of a row of a million tokens, there are as many here.
    assert [*table[0]] == ["row", "line", "position", "token", "predicted", "probability"]
    places = [(line["row"], line["line"], line["position"]) for line in table]
    assert places == [("1", "2", "1"), ("1", "2", "2"), ("3", "4", "1")]


@row("C17")
@pytest.mark.parametrize(
    ("key", "model"),
    [
        ("model.bidirectional: true", {"bidirectional": True}),
        ("model.pooling: mean", {"pooling": "mean"}),
        ("model.pooling: max", {"pooling": "max"}),
        ("model.pooling: last_mean_max", {"pooling": "last_mean_max"}),
    ],
)
def test_a_model_that_needs_the_whole_sequence_is_refused_by_the_key(
    key: str, model: dict[str, Any], tmp_path: Path, fails: Callable[..., str]
) -> None:
    run_dir = untrained(tmp_path, model=model)
    for words in (["1 2"], ["1 2", "--json", "--top-k", "2"], ["-"]):
        message = fails(2, "predict", run_dir, *words, "--prefixes")
        assert "error[C17]: an answer after each token, of a model that needs the whole" in message
        assert "(--prefixes)" in message
        assert f"found:    {key}" in message
    with pytest.raises(ConfigError, match=key):
        load(run_dir).predict_prefixes(["1 2"])
    assert run_rnncls("predict", run_dir, "1 2").returncode == 0


@row("K13")
def test_answers_that_are_not_numbers_are_none(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    path.write_bytes(find_checkpoint(run_dir).read_bytes())
    # From the first 2 on.
    change_checkpoint(
        path, lambda _, tensors: tensors["model/embedding.weight"][2].fill_(torch.nan)
    )
    with pytest.raises(NonFiniteError, match="not a number"):
        load(path).predict_prefixes(["1", "1 2 1"])
    for option in ("--json", "--top-k=2"):
        done = run_rnncls("predict", path, "1 2", "--prefixes", option)
        assert (done.returncode, done.stdout) == (7, "")
        assert "error[K13]" in done.stderr
    with pytest.raises(ValueError, match="top_k"):
        load(path).predict_prefixes(["1"], top_k=0)
    with pytest.raises(DataError, match=r"items\[1\]"):
        load(path).predict_prefixes(["1", ""])


@pytest.mark.slow
def test_each_line_of_a_pipe_is_answered_before_the_next_one(run_dir: Path) -> None:
    with predicting(run_dir, "--prefixes") as process:
        for text in (b"1 2\n", b"2\n", b"0 0 0\n"):
            write(process, text)
            answer = [ends(process)[1].readline() for _ in range(len(text.split()) + 1)]
            assert [line.split(b"\t")[0] for line in answer[:-1]] == text.split()
            # An empty line says that this was all.
            assert answer[-1] == b"\n"


@pytest.mark.slow
def test_at_a_prompt_each_token_has_an_answer_above_that_of_the_sequence(run_dir: Path) -> None:
    shown = at_prompt(run_dir, b"1 2 2\nquit\n", "--prefixes", "--top-k", "1")
    answers = shown.replace("> ", "").splitlines()
    lines = [line.split("\t")[:2] for line in answers if "\t" in line]
    assert lines == [["1", "1"], ["2", "0"], ["2", "2"]]
    assert "(true: 2)" in shown


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--json"], ["--output", "out.csv"]], ids=str)
def test_many_tokens_are_answered_in_little_memory(options: list[str], tmp_path: Path) -> None:
    # All their logits would be 1.6 GB.
    data = {"modulus": 1000, "max_value": 9}
    fit(config_of(data=data, model={"hidden_size": 4}, train={"max_steps": 0}), tmp_path / "run")
    (tmp_path / "long.txt").write_text("1 2 3 4 " * 100_000)
    code = """
import sys
from rnncls.cli.entry import run
from rnncls.system.process_memory import peak_bytes
sys.argv = ["rnncls", *sys.argv[1:]]
code = run()
print(peak_bytes() // 1024, file=sys.stderr)
sys.exit(code)
"""
    words = [PYTHON, "-c", code, "predict", "run", "--input", "long.txt", "--prefixes", *options]
    with (tmp_path / "answers").open("w") as file:
        done = run_command(words, cwd=tmp_path, stdout=file)
    assert done.returncode == 0, done.stderr
    peak = int(done.stderr.split()[-1])
    assert peak < 1000 * 2**10

    path = tmp_path / (options[1] if options[:1] == ["--output"] else "answers")
    if options == ["--json"]:
        (answer,) = lines_of(path.read_text())
        assert len(answer["labels"]) == len(answer["probabilities"]) == 400_000
        assert answer["tokens"][:5] == [1, 2, 3, 4, 1]
    else:
        with path.open() as file:
            assert sum(1 for _ in file) == 400_000 + 1  # a heading, or an empty line


@pytest.mark.slow
def test_a_long_line_ends_when_its_reader_leaves(run_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("1 2 " * 10_000)
    command = (
        f"{PYTHON} -m rnncls predict {run_dir} --input {tmp_path}/long.txt --prefixes | head -2"
    )
    done = run_command(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 2


def test_json_of_one_sequence_is_one_line(run_dir: Path) -> None:
    done = run_rnncls("predict", run_dir, "2 2", "--prefixes", "--json")
    answer = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert [*answer] == ["line", "row", "label", "probability", "tokens", "labels", "probabilities"]
