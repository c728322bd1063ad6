"""Files of earlier versions are read, resumed and summarised as those versions did it."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.config import FilesConfig, SumModConfig, load_config
from rnncls.data import batches
from rnncls.data.loading import load_dataset
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.log import BY_LENGTH
from rnncls.rundir.status import read_status
from rnncls.sweep.plan import load_sweep
from rnncls.sweep.summary import summarize
from rnncls.training.resume import resume
from tests.helpers import PYTHON, ROOT, change_checkpoint, run_command, run_rnncls

BEFORE = ROOT / "tests" / "before"


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A copy of what earlier versions wrote."""
    return shutil.copytree(BEFORE, tmp_path / "before")


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The logged values, without those that say how long something took."""
    rows = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        row.pop("train/sequences_per_second", None)
        rows.append(row)
    return rows


def assert_rows_as_then(
    rows: list[dict[str, Any]], expected: list[dict[str, Any]], rel: float
) -> None:
    """Every value that was logged then is what it was; there are others by now.

    Of many lengths, accuracy is logged in groups by now.
    """
    for row, then in zip(rows, expected, strict=True):
        missing = then.keys() - row.keys()
        assert all(tag.startswith(BY_LENGTH) for tag in missing)
        kept = {tag: value for tag, value in then.items() if tag not in missing}
        assert {tag: row[tag] for tag in kept} == pytest.approx(kept, rel=rel, nan_ok=True)


def test_a_run_from_before_is_resumed_as_it_was_then(before: Path) -> None:
    state = resume(before / "run", ["train.max_steps=12"])
    assert state.step == 12

    step_12 = read_checkpoint(before / "run" / "checkpoints" / "step-00000012.safetensors")
    expected = read_checkpoint(before / "resumed" / "step-00000012.safetensors")
    assert step_12.config == expected.config
    assert step_12.state.counters.keys() == expected.state.counters.keys()
    for name, tensor in expected.model.items():
        torch.testing.assert_close(step_12.model[name], tensor, rtol=1e-5, atol=1e-6)
    for name, tensor in expected.optim.items():
        torch.testing.assert_close(step_12.optim[name], tensor, rtol=1e-4, atol=1e-6)

    rows = rows_of(before / "run" / "metrics.jsonl")
    expected_rows = rows_of(before / "resumed" / "metrics.jsonl")
    assert_rows_as_then(rows, expected_rows, 1e-4)


def test_a_checkpoint_from_before_is_evaluated_as_it_was_then(before: Path) -> None:
    done = run_rnncls("eval", before / "run", "--json")
    report = json.loads(done.stdout)
    expected = json.loads((before / "run" / "eval.json").read_text())

    # What an evaluation has learned to say since then.
    assert 0 <= report.pop("ece") <= 1
    assert 0 <= report.pop("shuffled") <= 1
    assert list(report) == list(expected)  # the order of the keys, too
    assert report.pop("checkpoint").endswith(expected.pop("checkpoint"))
    assert math.isclose(report.pop("loss"), expected.pop("loss"), rel_tol=1e-5)
    assert report == expected


def test_a_sweep_from_before_has_the_summary_that_it_had(before: Path) -> None:
    summary = summarize(load_sweep(before / "sweep")).to_json()
    expected = json.loads((before / "sweep" / "summary.json").read_text())
    assert json.loads(json.dumps(summary)) == expected
    assert json.dumps(summary) == json.dumps(expected)  # the order of the keys, too


def test_a_sweep_from_before_has_nothing_left_to_do(before: Path) -> None:
    done = run_rnncls("sweep", "--resume", before / "sweep", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    expected = json.loads((before / "sweep" / "summary.json").read_text())
    assert summary == expected


# --- a run and a sweep on files, from before files had defaults of their own


@pytest.fixture
def files(before: Path) -> Path:
    """What was trained on /before/words.jsonl, with the file where it is now."""
    return with_files_here(before / "files")


def with_files_here(here: Path) -> Path:
    """Return a folder of runs on files of /before, which are in the folder now."""

    def move(state: dict[str, Any], _: object) -> None:
        data = state["config"]["data"]
        if "train" in data:
            data["train"] = str(here / Path(data["train"]).name)

    for path in here.rglob("*.safetensors"):
        change_checkpoint(path, move)
    for path in here.rglob("*.yaml"):
        path.write_text(path.read_text().replace("/before/", f"{here}/"))
    return here


def test_a_run_on_files_from_before_is_resumed_as_it_was_then(files: Path) -> None:
    state = resume(files / "run", ["train.max_steps=80"])
    assert state.step == 80

    step_80 = read_checkpoint(files / "run" / "checkpoints" / "step-00000080.safetensors")
    expected = read_checkpoint(files / "resumed" / "step-00000080.safetensors")
    assert step_80.config == expected.config
    assert step_80.config.schedule.warmup_steps == 500
    assert step_80.config.train.eval_samples == 2000
    for name, tensor in expected.model.items():
        torch.testing.assert_close(step_80.model[name], tensor, rtol=1e-4, atol=1e-5)

    rows = rows_of(files / "run" / "metrics.jsonl")
    expected_rows = rows_of(files / "resumed" / "metrics.jsonl")
    assert_rows_as_then(rows, expected_rows, 1e-4)


def test_a_checkpoint_on_files_from_before_is_evaluated_and_predicts_as_it_did_then(
    files: Path,
) -> None:
    report = json.loads(run_rnncls("eval", files / "run", "--json").stdout)
    expected = json.loads((files / "run" / "eval.json").read_text())
    expected.pop("checkpoint")
    assert math.isclose(report.pop("loss"), expected.pop("loss"), rel_tol=1e-5)
    assert {key: report[key] for key in expected} == expected

    done = run_rnncls("predict", files / "run", "--input", files / "words.txt", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    kept = (files / "run" / "predictions.jsonl").read_text()
    wanted = [json.loads(line) for line in kept.splitlines()]
    assert [line["label"] for line in lines] == [line["label"] for line in wanted]
    probabilities = [line["probability"] for line in wanted]
    assert [line["probability"] for line in lines] == pytest.approx(probabilities, rel=1e-5)


def test_runs_on_files_from_before_are_listed_as_they_were_then(files: Path) -> None:
    (run,) = json.loads(run_rnncls("runs", "ls", files / "run", "--json").stdout)
    expected = {entry["run"]: entry for entry in json.loads((files / "runs.json").read_text())}[
        "run"
    ]
    for key in ("state", "step", "best_accuracy", "exit_code"):
        assert run[key] == expected[key]


def test_a_sweep_on_files_from_before_means_what_it_meant(files: Path) -> None:
    sweep = load_sweep(files / "sweep")
    expected = json.loads((files / "sweep" / "summary.json").read_text())
    assert json.loads(json.dumps(summarize(sweep).to_json())) == expected

    # A member that is missing is trained again, with the numbers of then.
    member = files / "sweep" / "members" / "max_epochs=4_seed=3"
    kept = member.rename(files / "kept")
    done = run_rnncls("sweep", "--resume", files / "sweep", "--json")
    assert done.returncode == 0, done.stderr
    trained = load_config(member / "config.yaml")
    assert trained == load_config(kept / "config.yaml")
    # Keys that did not exist then mean what they meant without being there.
    assert isinstance(trained.data, FilesConfig)
    assert trained.data.separator == "auto"

    evaluation = json.loads((member / "evaluation.json").read_text())
    expected = json.loads((kept / "evaluation.json").read_text())
    assert math.isclose(evaluation["loss"], expected["loss"], rel_tol=1e-4)
    assert evaluation["accuracy"] == expected["accuracy"]


# --- runs from before splits were stratified, labels stripped and lone quotes of a TSV text


@pytest.fixture
def by_hash(before: Path) -> Path:
    """What was trained on /before/rows.tsv and /before/spaced.csv, with the files here."""
    return with_files_here(before / "by_hash")


def predictions(run_dir: Path, file: Path) -> list[dict[str, Any]]:
    """Return what `predict --json` says about each row of a file."""
    done = run_rnncls("predict", run_dir, "--input", file, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_predicted_as_then(now: list[dict[str, Any]], kept: Path) -> None:
    """Every key of then has the value of then; there may be others by now."""
    then = [json.loads(line) for line in kept.read_text().splitlines()]
    assert len(now) == len(then)
    for row, expected in zip(now, then, strict=True):
        for key, value in expected.items():
            assert row[key] == (pytest.approx(value, rel=1e-4) if key == "probability" else value)


def assert_evaluated_as_then(words: list[str | Path], kept: Path) -> None:
    """`eval` with these words reports what it did then."""
    done = run_rnncls("eval", *words, "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    expected = json.loads(kept.read_text())
    assert report.pop("checkpoint").endswith(expected.pop("checkpoint"))
    assert math.isclose(report.pop("loss"), expected.pop("loss"), rel_tol=1e-4)
    assert (report.pop("data", "") or "").endswith(expected.pop("data", "") or "")
    assert {key: report[key] for key in expected} == expected


def test_a_run_from_before_keeps_its_rows_where_they_were(by_hash: Path) -> None:
    checkpoint = read_checkpoint(by_hash / "run" / "checkpoints" / "best.safetensors")
    then = json.loads((by_hash / "run" / "splits.json").read_text())

    # Neither key existed then: without it, a saved config means what it meant.
    data = checkpoint.config.data
    assert isinstance(data, FilesConfig)
    assert data.split == "hash"
    assert data.quoting == "standard"
    dataset = load_dataset(data, checkpoint.vocabulary)
    assert {name: lines.tolist() for name, lines in dataset.lines.items()} == then

    # A class of two sequences has one of them held out: today's rule keeps both in training.
    stratified = load_dataset(data.model_copy(update={"split": "stratified"}))
    assert stratified.lines["train"].tolist() != then["train"]


def test_a_run_split_by_hash_is_evaluated_as_it_was_then(by_hash: Path) -> None:
    run_dir = by_hash / "run"
    assert_evaluated_as_then([run_dir], run_dir / "eval.json")
    assert_evaluated_as_then([run_dir, "--data", by_hash / "more.tsv"], run_dir / "eval_more.json")


def test_a_run_split_by_hash_predicts_as_it_did_then(by_hash: Path) -> None:
    run_dir = by_hash / "run"
    assert_predicted_as_then(
        predictions(run_dir, by_hash / "more.tsv"), run_dir / "predictions.jsonl"
    )
    assert_predicted_as_then(predictions(run_dir, by_hash / "rows.tsv"), run_dir / "all.jsonl")


def test_a_run_split_by_hash_writes_the_predictions_of_then(by_hash: Path) -> None:
    output = by_hash / "held_out.jsonl"
    done = run_rnncls("eval", by_hash / "run", "--predictions", output)
    assert done.returncode == 0, done.stderr
    now = [json.loads(line) for line in output.read_text().splitlines()]
    then = [
        json.loads(line) for line in (by_hash / "run" / "held_out.jsonl").read_text().splitlines()
    ]
    assert len(now) == len(then)
    for row, expected in zip(now, then, strict=True):
        for key in ("sequence", "true", "predicted"):
            assert row[key] == expected[key]
        assert row["probability"] == pytest.approx(expected["probability"], rel=1e-4)
        assert row["probabilities"] == pytest.approx(expected["probabilities"], rel=1e-4)


def test_a_run_split_by_hash_is_resumed_as_it_was_then(by_hash: Path) -> None:
    state = resume(by_hash / "run", ["train.max_steps=80"])
    assert state.step == 80

    step_80 = read_checkpoint(by_hash / "run" / "checkpoints" / "step-00000080.safetensors")
    expected = read_checkpoint(by_hash / "resumed" / "step-00000080.safetensors")
    for name, tensor in expected.model.items():
        torch.testing.assert_close(step_80.model[name], tensor, rtol=1e-3, atol=1e-4)

    rows = rows_of(by_hash / "run" / "metrics.jsonl")
    expected_rows = rows_of(by_hash / "resumed" / "metrics.jsonl")
    assert_rows_as_then(rows, expected_rows, 1e-3)


def test_a_sweep_split_by_hash_is_completed_as_it_was_then(by_hash: Path) -> None:
    member = by_hash / "sweep" / "members" / "max_epochs=4_seed=3"
    kept = member.rename(by_hash / "kept")
    done = run_rnncls("sweep", "--resume", by_hash / "sweep", "--json")
    assert done.returncode == 0, done.stderr

    evaluation = json.loads((member / "evaluation.json").read_text())
    expected = json.loads((kept / "evaluation.json").read_text())
    assert math.isclose(evaluation["loss"], expected["loss"], rel_tol=1e-3)
    assert evaluation["accuracy"] == expected["accuracy"]


def test_labels_with_stray_spaces_that_a_run_has_learned_stay_its_classes(by_hash: Path) -> None:
    run_dir = by_hash / "spaced"
    vocabulary = read_checkpoint(run_dir / "checkpoints" / "best.safetensors").vocabulary
    assert vocabulary is not None
    assert vocabulary.labels == (" x", "x", "x ")
    assert_evaluated_as_then([run_dir], run_dir / "eval.json")
    assert_predicted_as_then(
        predictions(run_dir, by_hash / "spaced.csv"), run_dir / "predictions.jsonl"
    )

    # Nor do they end when it is trained further.
    assert resume(run_dir, ["train.max_steps=50"]).step == 50


# --- a run that was killed between two checkpoints, on labels with control characters


@pytest.fixture
def killed(before: Path) -> Path:
    """What was trained on /before/odd.jsonl, with the file where it is now."""
    return with_files_here(before / "killed")


def test_a_run_killed_before_is_resumed_as_it_was_then(killed: Path) -> None:
    run_dir = killed / "run"
    # It was killed in step 47, seven logged steps after its last checkpoint.
    assert rows_of(run_dir / "metrics.jsonl")[-1]["step"] == 47
    state = resume(run_dir)
    assert state.step == 60

    step_60 = read_checkpoint(run_dir / "checkpoints" / "step-00000060.safetensors")
    expected = read_checkpoint(killed / "resumed" / "step-00000060.safetensors")
    for name, tensor in expected.model.items():
        torch.testing.assert_close(step_60.model[name], tensor, rtol=1e-3, atol=1e-4)

    rows = rows_of(run_dir / "metrics.jsonl")
    expected_rows = rows_of(killed / "resumed" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert_rows_as_then(rows, expected_rows, 1e-3)


def test_the_table_of_a_run_killed_before_goes_on_as_it_did_then(killed: Path) -> None:
    resume(killed / "run")
    table = table_of(killed / "run" / "metrics.csv")
    expected = table_of(killed / "resumed" / "metrics.csv")
    assert len(table) == len(expected) == 60
    assert_rows_as_then(table, expected, 1e-3)


def table_of(path: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv, without empty cells and without what says how long it took."""
    rows = []
    with path.open(newline="") as file:
        for cells in csv.DictReader(file):
            cells.pop("train/sequences_per_second")
            rows.append({tag: float(cell) for tag, cell in cells.items() if cell})
    return rows


def test_odd_labels_of_before_are_predicted_as_they_were_then(killed: Path) -> None:
    resume(killed / "run")
    assert_predicted_as_then(
        predictions(killed / "run", killed / "odd.jsonl"), killed / "resumed" / "predictions.jsonl"
    )
    assert_evaluated_as_then([killed / "run"], killed / "resumed" / "eval.json")


def test_a_sweep_on_odd_labels_has_the_summary_that_it_had(killed: Path) -> None:
    done = run_rnncls("sweep", "--resume", killed / "sweep", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads((killed / "sweep" / "summary.json").read_text())


# --- a run of gated cells with dropout between layers, from before pooling, learned initial states,
# prefix losses and pieces


@pytest.fixture
def before_pooling(before: Path) -> Path:
    """What was trained on /before/rows.jsonl by the version before pooling, with the file here."""
    return with_files_here(before / "before_pooling")


@pytest.fixture
def before_rules(before: Path) -> Path:
    """The same of the version before a run named the rules that it began with."""
    return with_files_here(before / "before_rules")


def assert_resumed_as_then(folder: Path) -> None:
    """Resume the run in `folder` to step 60, and compare with what became of it then."""
    run_dir = folder / "run"
    state = resume(run_dir, ["train.max_steps=60"])
    assert state.step == 60

    step_60 = read_checkpoint(run_dir / "checkpoints" / "step-00000060.safetensors")
    expected = read_checkpoint(folder / "resumed" / "step-00000060.safetensors")
    assert step_60.model.keys() == expected.model.keys()
    for name, tensor in expected.model.items():
        torch.testing.assert_close(step_60.model[name], tensor, rtol=1e-3, atol=1e-4)

    rows = rows_of(run_dir / "metrics.jsonl")
    expected_rows = rows_of(folder / "resumed" / "metrics.jsonl")
    assert_rows_as_then(rows, expected_rows, 1e-3)


def test_a_run_from_before_pooling_is_resumed_as_it_was_then(before_pooling: Path) -> None:
    assert_resumed_as_then(before_pooling)

    # None of the new keys is in a file of then: without them, a config means what it meant.
    assert "pooling:" not in (before_pooling / "sweep" / "sweep.yaml").read_text()
    config = read_checkpoint(find_newest(before_pooling / "run")).config
    assert (config.model.pooling, config.model.initial_state) == ("last", "zeros")
    train = config.train
    assert (train.objective, train.recompute_every, train.truncate_after) == (
        "sequence",
        None,
        None,
    )


def test_a_run_from_before_rules_is_resumed_by_those_of_then(before_rules: Path) -> None:
    """It has dropout, in pieces, between two layers that read in both directions."""
    assert_resumed_as_then(before_rules)
    assert read_checkpoint(find_newest(before_rules / "run")).state.step_rules == 1


def test_a_run_from_before_pictures_is_resumed_without_any(before: Path) -> None:
    folder = with_files_here(before / "before_board")
    assert_resumed_as_then(folder)
    assert not (folder / "run" / "plots").exists()
    assert read_checkpoint(find_newest(folder / "run")).config.train.plots is False


@pytest.mark.parametrize(
    "version", ["before_pooling", "before_rules", "before_board", "before_text", "before_noise"]
)
def test_a_run_of_an_earlier_version_is_evaluated_and_predicts_as_it_did_then(
    before: Path, version: str
) -> None:
    folder = with_files_here(before / version)
    run_dir = folder / "run"
    assert_evaluated_as_then([run_dir], run_dir / "eval.json")
    assert_predicted_as_then(
        predictions(run_dir, folder / "rows.jsonl"), run_dir / "predictions.jsonl"
    )


OLD_RULES = ("before_pooling", "before_rules")


# Before pooling, both cells read in two directions, with dropout between the layers. Before rules,
# neither: today their steps would be compiled, and the LSTM padded.
@pytest.mark.parametrize(
    ("version", "cells"),
    [
        ("before_pooling", ("rnn", "lstm")),
        ("before_rules", ("gru", "lstm")),
        ("before_board", ("rnn", "gru")),
        ("before_processes", ("rnn", "gru")),
        ("before_text", ("rnn", "gru")),
        ("before_noise", ("rnn", "gru")),
    ],
)
def test_a_sweep_of_an_earlier_version_is_completed_as_it_was_then(
    before: Path, version: str, cells: tuple[str, str]
) -> None:
    folder = with_files_here(before / version)
    sweep = folder / "sweep"
    expected = json.loads((sweep / "summary.json").read_text())
    assert json.loads(json.dumps(summarize(load_sweep(sweep)).to_json())) == expected

    for cell in cells:
        member = sweep / "members" / f"cell={cell}_seed=5"
        member.rename(folder / cell)
    done = run_rnncls("sweep", "--resume", sweep, "--json")
    assert done.returncode == 0, done.stderr

    for cell in cells:
        member = sweep / "members" / f"cell={cell}_seed=5"
        trained = read_checkpoint(find_newest(member))
        kept = read_checkpoint(find_newest(folder / cell))
        assert trained.config == kept.config
        assert trained.state.step_rules == (1 if version in OLD_RULES else 3)
        for name, tensor in kept.model.items():
            torch.testing.assert_close(trained.model[name], tensor, rtol=1e-3, atol=1e-4)

        evaluation = json.loads((member / "evaluation.json").read_text())
        then = json.loads((folder / cell / "evaluation.json").read_text())
        assert math.isclose(evaluation["loss"], then["loss"], rel_tol=1e-3)
        assert evaluation["accuracy"] == then["accuracy"]


# --- a run from before several processes could train it


@pytest.mark.slow  # two processes, which take seconds to start
def test_a_run_from_before_processes_is_resumed_by_two_as_it_was_by_one(
    before: Path, tmp_path: Path
) -> None:
    folder = with_files_here(before / "before_processes")
    run_dir = folder / "run"
    # A status of then says neither of how many processes a run was nor of which launch.
    status = read_status(run_dir)
    assert (status["state"], status["step"]) == ("finished", 20)
    assert status.keys().isdisjoint({"world_size", "launch"})
    (listed,) = json.loads(run_rnncls("runs", "ls", run_dir, "--json").stdout)
    assert listed["state"] == "finished"

    overrides = ["train.max_steps=40"]
    case = {"size": 2, "name": "run", "resume": str(run_dir), "overrides": overrides}
    (tmp_path / "cases.json").write_text(json.dumps([case]))
    done = run_command([PYTHON, "-m", "tests.together", tmp_path])
    assert done.returncode == 0, done.stderr

    step_40 = read_checkpoint(run_dir / "checkpoints" / "step-00000040.safetensors")
    expected = read_checkpoint(folder / "resumed" / "step-00000040.safetensors")
    for name, tensor in expected.model.items():
        torch.testing.assert_close(step_40.model[name], tensor, rtol=1e-3, atol=1e-4)
    rows = rows_of(run_dir / "metrics.jsonl")
    assert_rows_as_then(rows, rows_of(folder / "resumed" / "metrics.jsonl"), 1e-3)
    assert read_status(run_dir)["world_size"] == 2


# --- a run on words from before n-grams and the control


def test_a_run_from_before_ngrams_is_resumed_without_them(before: Path) -> None:
    folder = with_files_here(before / "before_text")
    assert_resumed_as_then(folder)

    config = read_checkpoint(find_newest(folder / "run")).config
    assert (config.model.ngrams, config.model.skip, config.model.positions) == ((), False, "none")
    assert (config.train.baseline, config.train.average_weights) == ("none", None)
    assert not (folder / "run" / "control").exists()


# --- a run on generated sums from before noise on states, smoothed labels and repeated digits


def test_a_run_from_before_noise_is_resumed_without_it(before: Path) -> None:
    """Its steps are compiled."""
    folder = before / "before_noise"
    assert_resumed_as_then(folder)

    config = read_checkpoint(find_newest(folder / "run")).config
    assert isinstance(config.data, SumModConfig)
    assert (config.model.state_noise, config.data.repeat_share) == (0, 0)
    assert (config.train.label_smoothing, config.train.engine) == (0, "compiled")


def test_a_run_from_before_repeats_has_the_sequences_of_then() -> None:
    folder = BEFORE / "before_noise"
    config = load_config(folder / "run" / "config.yaml")
    assert isinstance(config.data, SumModConfig)
    size = config.train.batch_size
    found = []
    for step in (0, 255, 256):
        (batch,) = batches(config.data, config.seed, "train", size, step, step + 1)
        padded, lengths = pad_packed_sequence(batch.tokens, batch_first=True)
        for row, length, label in zip(
            padded.tolist(), lengths.tolist(), batch.labels.tolist(), strict=True
        ):
            found.append({"sequence": row[:length], "label": label})
    lines = (folder / "rows.jsonl").read_text().splitlines()
    assert found == [json.loads(line) for line in lines]
