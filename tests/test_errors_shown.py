"""What a model gets wrong: errors, confused classes and predictions, against the report."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls.config.ranges import format_ranges, parse_lengths
from rnncls.data import batches
from rnncls.errors import ConfigError, NonFiniteError
from rnncls.evaluation import examples
from rnncls.evaluation.evaluate import evaluate
from rnncls.evaluation.mistakes import (
    Confused,
    ConfusedPair,
    Mistake,
    confused_lines,
    mistake_lines,
)
from rnncls.evaluation.scores import scored
from rnncls.model.build import build_model
from rnncls.system.rows import shortened
from rnncls.training.fit import fit
from tests.helpers import (
    ROOT,
    change_checkpoint,
    config_of,
    data_of,
    files_config,
    run_rnncls,
    some_rows,
    write_jsonl,
)

row = pytest.mark.row

Rows = list[dict[str, Any]]
Words = list[str | Path]


@pytest.fixture(scope="module")
def of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the generated task that is wrong often: all 120 sequences of up to 4 digits."""
    run_dir = tmp_path_factory.mktemp("digits") / "run"
    fit(config_of(), run_dir)
    return run_dir


@pytest.fixture(scope="module")
def of_ids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file of ids, of which some rows are held out by their hash."""
    folder = tmp_path_factory.mktemp("ids")
    path = write_jsonl(folder / "d.jsonl", some_rows(300, longest=8))
    fit(files_config(path, test_fraction=0.4), folder / "run")
    return folder / "run"


def evaluated(run_dir: Path, folder: Path, *words: str | Path) -> tuple[dict[str, Any], Rows]:
    """Return the report of `rnncls eval --json` and the predictions that it writes."""
    path = folder / "predictions.jsonl"
    done = run_rnncls("eval", run_dir, "--json", "--predictions", path, *words)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), [json.loads(line) for line in path.read_text().splitlines()]


def require_as_predicted(run_dir: Path, folder: Path, rows: Rows) -> None:
    """Check that `rnncls predict` says the same about the same sequences."""
    texts = []
    for line in rows:
        sequence = line["sequence"]
        texts.append(sequence if isinstance(sequence, str) else " ".join(map(str, sequence)))
    (folder / "sequences.txt").write_text("".join(f"{text}\n" for text in texts))

    words: Words = [
        "predict",
        run_dir,
        "--input",
        folder / "sequences.txt",
        "--json",
        "--top-k",
        "99",
    ]
    done = run_rnncls(*words)
    predictions = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(predictions) == len(rows) > 0
    for line, prediction in zip(rows, predictions, strict=True):
        assert line["predicted"] == prediction["label"]
        assert line["probability"] == pytest.approx(prediction["probability"], abs=1e-6)
        expected = {str(part["label"]): part["probability"] for part in prediction["top"]}
        assert line["probabilities"] == pytest.approx(expected, abs=1e-6)


def require_consistent(report: dict[str, Any], rows: Rows) -> None:
    """Check counts, errors and confused classes of a report against its predictions."""
    wrong = [line for line in rows if line["true"] != line["predicted"]]
    assert len(rows) == report["examples"]
    assert len(wrong) == report["errors"] > 0
    for line in rows:
        best = max(line["probabilities"], key=lambda name: line["probabilities"][name])
        assert best == str(line["predicted"])
        assert line["probability"] == line["probabilities"][best]

    # sorted() is stable, so that equally confident ones keep their order.
    expected = sorted(wrong, key=lambda line: -line["probability"])[: len(report["mistakes"])]
    for mistake, line in zip(report["mistakes"], expected, strict=True):
        assert mistake["confidence"] == line["probability"]
        assert mistake["predicted"] == str(line["predicted"])
        assert mistake["true"] == str(line["true"])
        for key in ("sequence", "sum", "line"):
            assert mistake[key] == line.get(key)

    pairs = Counter((str(line["true"]), str(line["predicted"])) for line in wrong)
    examples_of = Counter(str(line["true"]) for line in rows)
    shown = report["confused"]["pairs"]
    assert [pair["count"] for pair in shown] == sorted(pairs.values(), reverse=True)[:10]
    for pair in shown:
        assert pair["count"] == pairs[pair["true"], pair["predicted"]]
        assert pair["share"] == pytest.approx(pair["count"] / examples_of[pair["true"]])

    both = Counter((str(line["true"]), str(line["predicted"])) for line in rows)
    names = report["confused"]["classes"]
    counts = [[both[true, predicted] for predicted in names] for true in names]
    assert report["confused"]["counts"] == counts


def test_errors_and_predictions_of_every_short_sequence(of_digits: Path, tmp_path: Path) -> None:
    report, rows = evaluated(of_digits, tmp_path, "--errors", "20")
    assert report["exhaustive"]
    assert len(rows) == 3 + 9 + 27 + 81
    assert len({tuple(line["sequence"]) for line in rows}) == len(rows)
    assert [len(line["sequence"]) for line in rows] == sorted(
        len(line["sequence"]) for line in rows
    )
    for line in rows:
        assert list(line) == [
            "sequence",
            "sum",
            "true",
            "predicted",
            "probability",
            "probabilities",
        ]
        assert line["sum"] == sum(line["sequence"])
        assert line["true"] == line["sum"] % 3
    assert len(report["mistakes"]) == 20
    require_consistent(report, rows)
    require_as_predicted(of_digits, tmp_path, rows)


def test_a_sample_of_lengths_is_written_as_it_is_evaluated(of_digits: Path, tmp_path: Path) -> None:
    words = ["--lengths", "2,30", "--samples", "500", "--errors", "10000"]
    report, rows = evaluated(of_digits, tmp_path, *words)
    assert [len(line["sequence"]) for line in rows] == [2] * 9 + [30] * 500
    assert len(report["mistakes"]) == report["errors"]
    require_consistent(report, rows)
    require_as_predicted(of_digits, tmp_path, rows)


def test_what_is_asked_beside_the_report_does_not_change_it(
    of_digits: Path, of_ids: Path, tmp_path: Path
) -> None:
    for run_dir in (of_digits, of_ids):
        report, _ = evaluated(run_dir, tmp_path, "--errors", "5", "--plot", tmp_path / "p.png")
        assert report.pop("mistakes")
        assert report.pop("confused")
        assert report == json.loads(run_rnncls("eval", run_dir, "--json").stdout)
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("chunk", [2**16, 16])
def test_predictions_of_a_file_come_in_its_order_with_their_lines(
    chunk: int, of_ids: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "CHUNK", chunk)
    report, rows = evaluated(of_ids, tmp_path, "--errors", "30")
    assert report["data"] == "the test split"
    lines = [line["line"] for line in rows]
    assert lines == sorted(lines)
    content = (of_ids.parent / "d.jsonl").read_text().splitlines()
    for line in rows:
        original = json.loads(content[line["line"] - 1])
        assert (line["sequence"], line["true"]) == (original["sequence"], original["label"])
    assert {mistake["file"] for mistake in report["mistakes"]} == {str(of_ids.parent / "d.jsonl")}
    require_consistent(report, rows)
    require_as_predicted(of_ids, tmp_path, rows)


def test_another_file_and_the_validation_split_have_lines_of_their_own(
    of_ids: Path, tmp_path: Path
) -> None:
    # Equal sequences with every label: equally confident errors, which keep the order of the file.
    path = write_jsonl(tmp_path / "new.jsonl", [([1, 2], label) for label in (0, 1, 2)] * 20)
    report, rows = evaluated(of_ids, tmp_path, "--data", path, "--errors", "10")
    assert [line["line"] for line in rows] == list(range(1, 61))
    of_mistakes = [mistake["line"] for mistake in report["mistakes"]]
    assert of_mistakes == [line["line"] for line in rows if line["true"] != line["predicted"]][:10]
    require_consistent(report, rows)

    data = write_jsonl(tmp_path / "d.jsonl", some_rows(200))
    fit(files_config(data, val_fraction=0.5, test_fraction=0.0), tmp_path / "run")
    report, rows = evaluated(tmp_path / "run", tmp_path, "--errors", "5")
    assert report["data"] == "the val split"
    content = data.read_text().splitlines()
    for line in rows:
        assert json.loads(content[line["line"] - 1])["sequence"] == line["sequence"]
    require_consistent(report, rows)


def test_words_and_characters_are_written_as_a_person_types_them(tmp_path: Path) -> None:
    texts = [("go  up\tnow", "yes"), ("go down", "no"), ("up", "yes"), ("down down down", "no")]
    texts += [("nowhere", "yes"), ("up nowhere up up", "no")]
    expected = {
        "words": ["go up now", "go down", "up", "down down down", "<unk>", "up <unk> up"],
        "characters": ["go ", "go ", "up", "dow", "<unk>ow", "up "],
    }
    data = write_jsonl(tmp_path / "d.jsonl", texts[:4] * 9)
    held_out = write_jsonl(tmp_path / "t.jsonl", texts)
    for kind, sequences in expected.items():
        run_dir = tmp_path / kind
        fit(files_config(data, tokens=kind, test=str(held_out), max_length=3), run_dir)
        report, rows = evaluated(run_dir, tmp_path, "--errors", "9")
        assert [line["sequence"] for line in rows] == sequences
        assert [line["true"] for line in rows] == [label for _, label in texts]
        require_consistent(report, rows)
        if kind == "words":
            require_as_predicted(run_dir, tmp_path, rows)
        shown = run_rnncls("eval", run_dir, "--errors", "9").stdout
        assert f"lines of {held_out})" in shown
        has_unknown = any("<unk>" in mistake["sequence"] for mistake in report["mistakes"])
        assert ("<unk>: a token that the training data lacks" in shown) == has_unknown


@pytest.mark.parametrize("suffix", ["csv", "TSV"])
def test_a_table_has_the_same_numbers(suffix: str, of_ids: Path, tmp_path: Path) -> None:
    _, rows = evaluated(of_ids, tmp_path)
    path = tmp_path / f"out.{suffix}"
    path.write_text("something old")
    assert run_rnncls("eval", of_ids, "--predictions", path).returncode == 0
    delimiter = "," if suffix == "csv" else "\t"
    table = list(csv.DictReader(path.read_text().splitlines(), delimiter=delimiter))
    assert len(table) == len(rows)
    for cells, line in zip(table, rows, strict=True):
        names = ("line", "true", "predicted")
        assert [cells[name] for name in names] == [str(line[name]) for name in names]
        assert cells["sequence"] == " ".join(map(str, line["sequence"]))
        assert float(cells["probability"]) == pytest.approx(line["probability"], abs=1e-7)
        for label, probability in line["probabilities"].items():
            assert float(cells[f"probability_{label}"]) == pytest.approx(probability, abs=1e-7)


def test_of_very_many_classes_only_the_likeliest_are_written(tmp_path: Path) -> None:
    rows: list[tuple[Any, Any]] = [([number % 7, number], number) for number in range(150)]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    whole: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
    fit(files_config(data, {"max_steps": 3}, **whole), tmp_path / "run")
    report, predictions = evaluated(tmp_path / "run", tmp_path, "--errors", "7")
    for line in predictions:
        values = list(line["probabilities"].values())
        assert len(values) == 100
        assert values == sorted(values, reverse=True)
    assert len(report["confused"]["classes"]) == 20
    require_consistent(report, predictions)

    path = tmp_path / "out.csv"
    assert run_rnncls("eval", tmp_path / "run", "--predictions", path).returncode == 0
    heading = path.read_text().splitlines()[0]
    assert heading == "line,sequence,true,predicted,probability"


def test_the_text_of_errors() -> None:
    generated = Mistake(0.98765, "3", "0", 4, [3, 7, 1, 9], sum=20, file=None, line=None)
    long = Mistake(0.5, "1", "2", 90, [12] * 90, sum=1080, file=None, line=None)
    assert mistake_lines([generated, long], 1234, 10) == [
        "most confident errors (2 of 1,234)",
        "confidence  predicted  true       length  sequence",
        "    0.9877  3          0               4  3 7 1 9 = 20, mod 10 = 0",
        "    0.5000  1          2              90  12 12 12 12 12 12 12 12 12 ... "
        "12 12 12 12 12 12 12 12 12 = 1,080, mod 10 = 2",
    ]

    text = "\tx = '<unk>'\n\x1b[31m"
    of_file = Mistake(0.75, "a comment \x07", "code", 19, text, sum=None, file="d.csv", line=12345)
    assert mistake_lines([of_file], 1, 2) == [
        "most confident errors (1 of 1; lines of d.csv)",
        "confidence  predicted       true            length       line  sequence",
        "    0.7500  a comment \\x07  code                19      12345  "
        "\\tx = '<unk>'\\n\\x1b[31m",
        "<unk>: a token that the training data lacks",
    ]
    assert mistake_lines([], 0, 2) == ["no errors"]

    pairs = [ConfusedPair("docstring", "code", 1120, 0.717), ConfusedPair("code", "a", 3, 0.001)]
    assert confused_lines(Confused(pairs, [], [])) == [
        "classes most often confused",
        "true       -> predicted     errors  of the true class",
        "docstring  -> code           1,120             71.70%",
        "code       -> a                  3              0.10%",
    ]


@pytest.mark.parametrize(
    "text", ["x" * 200, "12 345 " * 40, f"{'y' * 150} z", " " * 99, "a" * 31 + " b" * 31]
)
def test_a_long_sequence_is_shortened_between_its_ends(text: str) -> None:
    short = shortened(text, 60)
    beginning, gap, end = short.partition(" ... ")
    assert gap
    assert 40 < len(short) <= 60
    assert text.startswith(beginning)
    assert text.endswith(end)
    if text.startswith("12"):
        assert {*beginning.split(), *end.split()} == {"12", "345"}


def test_labels_of_several_lines_do_not_break_the_tables(tmp_path: Path) -> None:
    rows: list[tuple[Any, Any]] = [([1], "two\nlines"), ([2], "a\ttab"), ([3], "\x1b[31m")]
    whole: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
    data = write_jsonl(tmp_path / "d.jsonl", rows * 9)
    fit(files_config(data, {"max_steps": 0}, **whole), tmp_path / "run")
    shown = run_rnncls("eval", tmp_path / "run", "--confusion", "--errors", "9").stdout
    beginnings = [line.strip() for line in shown.splitlines()]
    for label in ("two\\nlines", "a\\ttab", "\\x1b[31m"):
        # In the table of classes, and in the confusion matrix.
        assert sum(line.startswith(f"{label} ") for line in beginnings) >= 2
    assert not any(line.startswith("lines") for line in beginnings)
    described = run_rnncls("model", "show", tmp_path / "run").stdout
    assert "\nlabels:      \\x1b[31m, a\\ttab, two\\nlines\n" in described


def test_a_model_without_errors_says_so_and_draws_nothing(tmp_path: Path) -> None:
    """All labels are equal, so that every model is right."""
    data = write_jsonl(tmp_path / "d.jsonl", [([1], 0), ([2, 1], 0), ([2], 0)] * 5)
    whole: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
    fit(files_config(data, **whole), tmp_path / "run")
    picture = tmp_path / "p.png"
    done = run_rnncls("eval", tmp_path / "run", "--errors", "5", "--plot", picture)
    assert done.returncode == 0
    assert done.stdout.endswith("\nno errors\n")
    assert f"no errors, so {picture} was not drawn" in done.stderr
    assert not picture.exists()


def test_from_python(tmp_path: Path) -> None:
    model = build_model(config_of())
    report = evaluate(model, config_of(), errors=3, predictions=tmp_path / "p.csv")
    assert report.mistakes is not None
    assert report.confused is not None
    assert len(report.mistakes) == 3
    assert report.mistakes[0].confidence >= report.mistakes[2].confidence
    assert (tmp_path / "p.csv").read_text().count("\n") == 121
    assert report.to_text().count("most confident errors (3 of") == 1

    alone = evaluate(model, config_of(), errors=0)
    assert alone.mistakes == []
    assert alone.confused == report.confused
    assert "most confident" not in alone.to_text()
    assert set(evaluate(model, config_of()).to_json()) == {*report.to_json()} - {
        "mistakes",
        "confused",
    }
    with pytest.raises(ConfigError, match="not written in this format"):
        evaluate(model, config_of(), predictions=tmp_path / "p.txt")


@row("K13")
def test_without_a_finite_loss_nothing_is_replaced(of_digits: Path, tmp_path: Path) -> None:
    model = build_model(config_of())
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    path = tmp_path / "old.jsonl"
    path.write_text("old")
    with pytest.raises(NonFiniteError, match="not finite"):
        evaluate(model, config_of(), predictions=path)
    assert path.read_text() == "old"
    assert [child.name for child in tmp_path.iterdir()] == ["old.jsonl"]
    report = evaluate(model, config_of(), errors=5)
    assert report.errors == report.examples
    assert report.mistakes == []  # no prediction at all is not a confident one
    assert report.confused is not None
    assert report.confused.pairs == []

    checkpoint = tmp_path / "nan.safetensors"
    checkpoint.write_bytes((of_digits / "checkpoints" / "best.safetensors").read_bytes())
    change_checkpoint(checkpoint, lambda _, tensors: tensors["model/head.bias"].fill_(torch.nan))
    done = run_rnncls("eval", checkpoint, "--predictions", path, "--errors", "3")
    assert (done.returncode, done.stdout, path.read_text()) == (7, "", "old")
    assert "error[K13]" in done.stderr


@row("R9")
def test_a_full_disk_and_what_cannot_be_written(of_digits: Path, tmp_path: Path) -> None:
    full = tmp_path / "full.jsonl"
    full.symlink_to("/dev/full")
    done = run_rnncls("eval", of_digits, "--predictions", full)
    assert (done.returncode, done.stdout) == (6, "")
    assert "error[R9]: cannot write: No space left on device" in done.stderr
    for option, name in (("--predictions", "p.csv"), ("--plot", "p.png")):
        done = run_rnncls("eval", of_digits, option, tmp_path / "no" / name)
        assert done.returncode == 6
        assert "No such file or directory" in done.stderr
    assert "accuracy:" in done.stdout  # a picture that cannot be written costs no report


@row("C17")
def test_options_that_are_refused(of_digits: Path, of_ids: Path, tmp_path: Path) -> None:
    for count in ("0", "-1", "10001", "many"):
        done = run_rnncls("eval", of_digits, "--errors", count)
        assert done.returncode == 2
        assert "--errors" in done.stderr

    for name in ("out.txt", "out", "out.jsonl.gz"):
        done = run_rnncls("eval", of_digits, "--predictions", tmp_path / name)
        assert done.returncode == 2
        assert "a name that ends in .jsonl, .csv or .tsv" in done.stderr

    data = of_ids.parent / "d.jsonl"
    before = data.read_bytes()
    done = run_rnncls("eval", of_ids, "--predictions", data)
    assert done.returncode == 2
    assert "error[C17]: would replace what is read" in done.stderr
    new = write_jsonl(tmp_path / "new.jsonl", some_rows(9))
    done = run_rnncls("eval", of_ids, "--data", new, "--predictions", tmp_path / "." / "new.jsonl")
    assert done.returncode == 2
    assert data.read_bytes() == before

    done = run_rnncls("eval", of_ids, "--samples", "5")
    assert done.returncode == 0
    assert "warning[C17]: --samples is for generated data" in done.stderr

    sweep = ROOT / "tests" / "before" / "files" / "sweep"
    for option in (["--errors", "3"], ["--plot", "p.png"], ["--predictions", "p.csv"]):
        done = run_rnncls("eval", sweep, *option)
        assert done.returncode == 2
        assert "error[C17]: option not available for sweeps" in done.stderr


@row("K1")
def test_a_folder_that_is_no_run_says_what_is_there(of_digits: Path, tmp_path: Path) -> None:
    runs = []
    for number in range(7):
        run_dir = tmp_path / "runs" / "mine" / f"run{number}"
        fit(config_of(train={"max_steps": 2}), run_dir)
        runs.append(run_dir)
    (tmp_path / "runs" / "mine" / "empty" / "checkpoints").mkdir(parents=True)
    for folder in (tmp_path / "runs" / "mine", tmp_path / "runs", tmp_path / "runs" / "mine" / "x"):
        done = run_rnncls("eval", folder)
        assert done.returncode == 4
        newest = ", ".join(map(str, runs[:1:-1]))
        assert f"try:      one of the runs below: {newest} and 2 more\n" in done.stderr

    checkpoints = of_digits / "checkpoints"
    names = ["step-00000040.safetensors", "step-00000020.safetensors", "best.safetensors"]
    expected = ", ".join(str(checkpoints / name) for name in names)
    for path in (checkpoints, checkpoints / "step-00000007.safetensors"):
        done = run_rnncls("eval", path)
        assert done.returncode == 4
        assert f"try:      one of its checkpoints: {expected}\n" in done.stderr
    assert "a checkpoint file or a run directory" in run_rnncls("eval", tmp_path / "gone").stderr


def test_whoever_stops_early_gets_the_training_mode_back() -> None:
    model = build_model(config_of())
    parts = scored(model, batches(data_of(config_of()), 0, "val", 8, 0, 3))
    assert len(next(parts).predictions) == 8
    assert not model.training
    parts.close()
    assert model.training


@pytest.mark.parametrize("text", ["1-3,10", "7", "1-2,4-5,7-8", "5,7,9"])
def test_ranges_are_written_as_they_are_read(text: str) -> None:
    assert format_ranges(parse_lengths(text)) == text


def test_very_many_ranges_are_cut() -> None:
    assert format_ranges(range(1, 100, 2), most=3) == "1,3,5,..."
