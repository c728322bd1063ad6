"""Predictions: the same for a sequence whatever is around it, in order, on a clean stdout."""

import csv
import json
import os
import pty
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.errors import DataError, NonFiniteError
from rnncls.evaluation.evaluate import evaluate
from rnncls.predict.predictor import Predictor, load
from rnncls.training.fit import fit
from tests.helpers import (
    PYTHON,
    SAFETY_S,
    change_checkpoint,
    run_process,
    run_rnncls,
    some_rows,
    started,
    write_jsonl,
)
from tests.helpers import files_config as config_of

row = pytest.mark.row


def train_on_files(folder: Path, cell: str) -> Path:
    config = config_of(
        write_jsonl(folder / "d.jsonl", some_rows(300, longest=30)), val_fraction=0.1
    )
    model = config.model.model_copy(update={"cell": cell, "num_layers": 2, "bidirectional": True})
    fit(config.model_copy(update={"model": model}), folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def run_of_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on_files(tmp_path_factory.mktemp("predict"), "gru")


def probabilities(predictor: Predictor, texts: list[str]) -> list[dict[str, float]]:
    predictions = predictor.predict(texts, top_k=3)
    return [
        {str(label): probability for label, probability in prediction.top}
        for prediction in predictions
    ]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_a_prediction_does_not_depend_on_what_is_predicted_beside_it(
    cell: str, tmp_path: Path
) -> None:
    predictor = load(train_on_files(tmp_path, cell))
    texts = [" ".join(map(str, sequence)) for sequence, _ in some_rows(200, seed=5, longest=30)]
    alone = [probabilities(predictor, [text])[0] for text in texts]
    order = list(range(len(texts)))
    random.Random(0).shuffle(order)
    shuffled = probabilities(predictor, [texts[index] for index in order])
    together = probabilities(predictor, texts)
    longer = probabilities(predictor, [*texts, " ".join(["1"] * 3000)])[:-1]
    for index, expected in enumerate(alone):
        assert sum(expected.values()) == pytest.approx(1, abs=1e-6)
        assert together[index] == pytest.approx(expected, abs=1e-6)
        assert longer[index] == pytest.approx(expected, abs=1e-6)
        assert shuffled[order.index(index)] == pytest.approx(expected, abs=1e-6)


def test_arguments_a_file_and_a_pipe_agree_and_stdout_is_clean(
    run_of_files: Path, tmp_path: Path
) -> None:
    texts = ["3 1 4 1", "2", "0 0 3"]
    by_argument = run_rnncls("predict", run_of_files, *texts, "--json", "--top-k", "2")
    assert by_argument.returncode == 0, by_argument.stderr
    predictions = [json.loads(line) for line in by_argument.stdout.splitlines()]
    assert [line["line"] for line in predictions] == [1, 2, 3]
    for line in predictions:
        assert line["label"] == line["top"][0]["label"] in (0, 1, 2)
        assert line["probability"] == line["top"][0]["probability"] >= line["top"][1]["probability"]
    piped = run_rnncls(
        "predict", run_of_files, "-", "--json", "--top-k", "2", input="\n".join(texts)
    )
    assert piped.stdout == by_argument.stdout
    write_jsonl(
        tmp_path / "new.jsonl", [([int(token) for token in text.split()], None) for text in texts]
    )
    (tmp_path / "new.txt").write_text("\r\n".join(texts))
    for name in ("new.jsonl", "new.txt"):
        words: list[str | Path] = [
            "--input",
            tmp_path / name,
            "--output",
            tmp_path / "out.jsonl",
            "--top-k",
            "2",
        ]
        done = run_rnncls("predict", run_of_files, *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        # Beside each prediction is its sequence as it was given: here as text, there as a list.
        for ours, theirs in zip(written, predictions, strict=True):
            given = ours.pop("sequence")
            if name == "new.jsonl":
                given = " ".join(map(str, given))
            assert {**ours, "sequence": given} == theirs
    run_rnncls("predict", run_of_files, *texts, "--output", tmp_path / "out.csv")
    table = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [line["predicted"] for line in table] == [str(line["label"]) for line in predictions]
    assert [line["sequence"] for line in table] == texts
    text = run_rnncls("predict", run_of_files, *texts).stdout.splitlines()
    assert [line.split()[0] for line in text] == [str(line["label"]) for line in predictions]
    assert [line.split("   <- ")[1] for line in text] == texts
    # Whoever asks about one sequence knows which one.
    assert "<-" not in run_rnncls("predict", run_of_files, texts[0]).stdout
    assert "sequence" not in run_rnncls("predict", run_of_files, texts[0], "--json").stdout


@row("D7", "D9", "D11", "D14")
def test_bad_lines_are_fatal_or_skipped_by_number(
    run_of_files: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = tmp_path / "new.txt"
    path.write_bytes(b"1 2\n\n3 x\n\xff\n4 4\n")
    message = fails(3, "predict", run_of_files, "--input", path, "--output", tmp_path / "out.jsonl")
    assert f"error[D9]: an empty sequence ({path}:2)" in message
    assert "try:      --bad skip" in message
    assert not list(tmp_path.glob("*out*"))
    done = run_rnncls("predict", run_of_files, "--input", path, "--bad", "skip", "--json")
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 5]
    for line, part in ((2, "empty"), (3, "'x' at position 2"), (4, "byte 0xff")):
        assert f"skipped {path}:{line}" in done.stderr
        assert part in done.stderr
    (tmp_path / "new.csv").write_text("sequence\n1 2\n3,4\n")
    assert "1 column" in fails(3, "predict", run_of_files, "--input", tmp_path / "new.csv")
    assert "No such file" in fails(3, "predict", run_of_files, "--input", tmp_path / "gone.txt")


def test_unknown_tokens_follow_the_policy_of_training(tmp_path: Path) -> None:
    rows: list[tuple[Any, Any]] = [("up", "a"), ("down down", "b")] * 20
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    whole: dict[str, Any] = {
        "tokens": "words",
        "val_fraction": 0.0,
        "test_fraction": 0.0,
        "max_length": 2,
    }
    fit(config_of(path, **whole), tmp_path / "unk")
    fit(config_of(path, unknown="error", truncate="error", **whole), tmp_path / "error")
    lenient, strict = load(tmp_path / "unk"), load(tmp_path / "error")
    assert probabilities(lenient, ["sideways"]) == probabilities(lenient, ["elsewhere"])
    assert probabilities(lenient, ["up down up"]) == probabilities(
        lenient, ["up down"]
    )  # cut as in training
    for text, message in (("sideways", "unknown to the model"), ("up up up", "a long sequence")):
        with pytest.raises(DataError, match=message):
            probabilities(strict, [text])
    assert set(probabilities(strict, ["up"])[0]) == {"a", "b"}


def at_prompt(run_dir: Path, typed: bytes, *options: str | Path) -> str:
    """Return what a terminal shows when this is typed at `rnncls predict RUN`."""
    terminal, end = pty.openpty()
    command = [PYTHON, "-m", "rnncls", "predict", run_dir, *options]
    with started(command, stdin=end, stdout=end, stderr=end, text=False) as process:
        os.close(end)
        os.write(terminal, typed)
        shown = b""
        while True:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
        assert process.wait(SAFETY_S) == 0
    os.close(terminal)
    return shown.decode(errors="replace")


@pytest.mark.parametrize("leaving", [b"quit\n", pytest.param(b"\x04", marks=pytest.mark.slow)])
def test_the_prompt_answers_knows_the_truth_and_can_be_left(run_dir: Path, leaving: bytes) -> None:
    shown = at_prompt(run_dir, b"1 2 2\n1 9\n\n" + leaving)
    assert "(true: 2)" in shown  # 5 mod 3
    assert shown.count("(true:") == 1
    assert "error[D7]" in shown
    assert "integers in 0..2" in shown
    assert "'9' at position 2" in shown
    # An empty line is no question, and what helps elsewhere is no option here.
    assert "error[D9]" not in shown
    assert "--bad" not in shown
    assert "Traceback" not in shown


@pytest.mark.slow
def test_json_and_a_file_are_written_of_what_is_typed_too(run_dir: Path, tmp_path: Path) -> None:
    shown = at_prompt(run_dir, b"1 2 2\n\x04", "--json")
    assert '"label": 2' in shown
    at_prompt(run_dir, b"1 2 2\n\x04", "--output", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text().startswith("sequence,row,line,predicted,")


@pytest.mark.slow
def test_the_prompt_names_tokens_that_training_has_not_seen(tmp_path: Path) -> None:
    rows: list[tuple[Any, Any]] = [("home shop pay", "bought"), ("home search", "left")] * 20
    path = write_jsonl(tmp_path / "d.jsonl", rows)
    fit(config_of(path, tokens="words", val_fraction=0.0, test_fraction=0.0), tmp_path / "run")
    shown = at_prompt(tmp_path / "run", b"home shp pay\nhome\n\xff\nquit\n")
    assert shown.count("not in the training data") == 1
    assert "(not in the training data: shp)" in shown
    assert "error[D11]" in shown
    assert "not UTF-8" in shown
    assert "try:" not in shown


@row("D6")
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.tsv"])
def test_labelled_files_say_how_many_predictions_are_right(
    run_dir: Path, tmp_path: Path, name: str
) -> None:
    rows = [([1, 2], "0"), ([2], "1"), ([1, 1], "2"), ([0], "seven"), ([1], "")]
    path = tmp_path / name
    if name == "rows.jsonl":
        listed = [(ids, int(label) if label.isdigit() else label or None) for ids, label in rows]
        write_jsonl(path, listed)
    else:
        separator = "," if name == "rows.csv" else "\t"
        lines = [separator.join([" ".join(map(str, ids)), label]) for ids, label in rows]
        path.write_text("\n".join([separator.join(["sequence", "label"]), *lines, ""]))

    done = run_rnncls("predict", run_dir, "--input", path, "--json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["label"] for answer in answers] == [0, 2, 2, 0, 1]
    assert [answer.get("true") for answer in answers] == [0, 1, 2, "seven", None]
    assert "warning[D6]: 1 of 5 sequences has a label that the model does not know" in done.stderr
    assert "rnncls: accuracy: 0.5000 (2 of 4; 1 without a label)" in done.stderr

    run_rnncls("predict", run_dir, "--input", path, "--output", tmp_path / "out.csv")
    table = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    assert [line["label"] for line in table] == ["0", "1", "2", "seven", ""]
    assert [line["predicted"] for line in table] == ["0", "2", "2", "0", "1"]
    assert [line["sequence"] for line in table] == ["1 2", "2", "1 1", "0", "1"]
    text = run_rnncls("predict", run_dir, "--input", path).stdout.splitlines()
    assert text[1].endswith("   (true: 1)   <- 2")
    assert "true" not in text[4]


@row("C17")
def test_the_name_of_a_file_is_no_sequence(
    run_dir: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "notes.txt").write_text("1 2\n")
    (tmp_path / "2").write_text("a file whose name is a good sequence")
    for name in ("new.csv", "new.jsonl.gz", "notes.txt", "./2"):
        message = fails(2, "predict", run_dir, "1 2", name, cwd=tmp_path)
        assert f"error[C17]: a file's name as a sequence: did you mean --input {name}?" in message
    assert run_rnncls("predict", run_dir, "2", cwd=tmp_path).returncode == 0
    # No file is there, and no name ends in a data format: then it is a sequence, though a bad one.
    assert "error[D7]" in fails(3, "predict", run_dir, "gone.txt", cwd=tmp_path)


def test_a_long_sequence_is_shortened_in_text_alone(run_of_files: Path) -> None:
    long = " ".join(["1"] * 60)
    text = run_rnncls("predict", run_of_files, long, "2").stdout.splitlines()
    # Its beginning and its end, as among the errors of `eval`.
    assert text[0].endswith("   <- " + " ".join(["1"] * 19) + " ... " + " ".join(["1"] * 18))
    shown = run_rnncls("predict", run_of_files, long, "2", "--json").stdout.splitlines()
    assert json.loads(shown[0])["sequence"] == long


@row("C17")
@pytest.mark.parametrize("name", ["out.xlsx", "out.parquet", "out.json", "out.csv.gz"])
def test_text_is_not_written_under_the_name_of_another_format(
    run_dir: Path, tmp_path: Path, fails: Callable[..., str], name: str
) -> None:
    message = fails(2, "predict", run_dir, "1 2", "--output", tmp_path / name)
    assert "predictions are not written in this format" in message
    assert f"--output {tmp_path / 'out.csv'}" in message
    assert not (tmp_path / name).exists()


@row("C17")
def test_what_is_read_is_not_replaced(
    run_dir: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [([1, 2], 0)])
    (tmp_path / "link.jsonl").symlink_to(path)
    before = path.read_bytes()
    for output in (path, tmp_path / "link.jsonl"):
        message = fails(2, "predict", run_dir, "--input", path, "--output", output)
        assert f"error[C17]: would replace what is read (--output {output})" in message
    assert path.read_bytes() == before


@row("D14")
def test_a_file_without_the_field_of_training_lists_those_that_it_has(
    run_dir: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    for line, found in (
        ('{"text": "1 2", "class": "0"}', "the fields text, class"),
        ('{"sequence": null}', "null"),
        ("{}", "no fields"),
    ):
        (tmp_path / "new.jsonl").write_text(f"{line}\n")
        message = fails(3, "predict", run_dir, "--input", tmp_path / "new.jsonl")
        assert 'expected: a list or a text in "sequence", as in the training data' in message
        assert f"found:    {found}\n" in message

    # A table says so at its header, and advises no key of a config, which predict does not take.
    (tmp_path / "new.csv").write_text("id,comment\n7,1 2\n")
    message = fails(3, "predict", run_dir, "--input", tmp_path / "new.csv")
    assert "found:    id, comment" in message
    assert "try:      --sequence-field comment" in message
    assert "data." not in message


@row("K13")
def test_an_answer_that_is_not_a_number_is_no_label(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    path.write_bytes((run_dir / "checkpoints" / "best.safetensors").read_bytes())
    change_checkpoint(path, lambda _, tensors: tensors["model/head.bias"].fill_(torch.nan))
    with pytest.raises(NonFiniteError, match="not a number"):
        load(path).predict(["1"])
    done = run_rnncls("predict", path, "1 2", "--json", "--output", tmp_path / "out.jsonl")
    assert (done.returncode, done.stdout) == (7, "")
    assert f"error[K13]: the model's answer is not a number ({path})" in done.stderr
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("bias", [[1e-9, 2e-9, 0.0], [0.0, 1e-9, 1e-9]])
def test_classes_that_are_all_but_equal_are_those_of_eval(bias: list[float], run_dir: Path) -> None:
    predictor = load(run_dir, device="cpu")
    with torch.no_grad():
        predictor.network.head.weight.zero_()
        predictor.network.head.bias.copy_(torch.tensor(bias))

    # Their probabilities are equal as float32.
    for top_k in (1, 3):
        (prediction,) = predictor.predict(["1 2"], top_k)
        assert prediction.label == 1
    report = evaluate(predictor.network, predictor.config)
    assert report.by_class is not None
    assert [row.recall for row in report.by_class] == [0, 1, 0]


def test_predict_without_input_reads_a_pipe(run_dir: Path) -> None:
    done = run_rnncls("predict", run_dir, input="1 1\n2,2\n")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["2", "1"]
    assert run_rnncls("predict", run_dir, input="").stdout == ""


@pytest.mark.slow
def test_output_goes_into_what_is_no_plain_file_and_the_link_stays(
    run_of_files: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    link = tmp_path / "link.csv"
    target = tmp_path / "target.csv"
    os.mkfifo(pipe)
    link.symlink_to(target)
    with started(["cat", pipe], stdout=subprocess.PIPE) as reader:
        assert run_rnncls("predict", run_of_files, "1 2", "--output", pipe).returncode == 0
        assert reader.communicate(timeout=SAFETY_S)[0].count("\n") == 1
    assert pipe.is_fifo()
    assert run_rnncls("predict", run_of_files, "1 2", "--output", link).returncode == 0
    assert link.is_symlink()
    assert target.read_text().startswith("sequence,row,line,predicted,probability\n1 2,1,1,")
    to_stdout = run_process("predict", run_of_files, "1 2", "--output", "/dev/stdout")
    assert to_stdout.stdout.count("\n") == 1
    assert run_rnncls("predict", run_of_files, "1 2", "--output", tmp_path).returncode == 6


@row("D2", "D8", "D12", "D14")
def test_what_was_skipped_or_is_not_known_is_said(run_of_files: Path, tmp_path: Path) -> None:
    mixed = run_rnncls("predict", run_of_files, "1 2", "x", "99 98", "--bad", "skip")
    assert mixed.stdout.count("\n") == 2
    assert "skipped 1 of 3 sequences" in mixed.stderr
    assert "warning[D8]: 1 of 2 sequences has no token" in mixed.stderr
    nothing = run_rnncls("predict", run_of_files, "x", "y", "--bad", "skip")
    assert nothing.returncode == 3
    assert "error[D2]" in nothing.stderr
    marked = run_rnncls("predict", run_of_files, "-", input="\ufeff1 2\n1 2\n")
    assert len(set(marked.stdout.splitlines())) == 1
    (tmp_path / "p.CSV").write_text('sequence\n1 2\n"3\n' + "4\n" * 50)
    quoted = run_rnncls("predict", run_of_files, "--input", tmp_path / "p.CSV", "--bad", "skip")
    # The line with the open quote alone is skipped, and those below it are predicted.
    assert quoted.returncode == 0, quoted.stderr
    assert "p.CSV:3: an open quote" in quoted.stderr
    assert "skipped 1 of 52 sequences" in quoted.stderr
    assert quoted.stdout.count("\n") == 51
