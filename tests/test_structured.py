"""Sequences that are read a few digits at a time, against models that read every prefix."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

from rnncls.config import Config, SumModConfig, dump_config
from rnncls.config.ranges import Long
from rnncls.errors import ConfigError, NonFiniteError
from rnncls.evaluation.compiled import CompiledStream
from rnncls.evaluation.streaming import (
    BLOCK_STEPS,
    NO_CLASS,
    TOGETHER,
    Stream,
    TorchStream,
    first_errors,
    require_stream,
)
from rnncls.evaluation.structured import (
    ALTERNATING,
    KINDS,
    MOST_OF_KIND,
    REPEATED,
    THEN_ZEROS,
    ZEROS,
    digits_of_kind,
    ends_of_kind,
    evaluate_structured,
    kinds_of,
)
from rnncls.evaluation.until_wrong import evaluate_until_wrong, random_digits, report_of
from rnncls.model.build import build_model
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir.checkpoint_files import load_checkpoint
from rnncls.sweep.evaluate import evaluate_all
from rnncls.sweep.outcomes import outcomes
from rnncls.sweep.plan import load_sweep, plan_sweep
from rnncls.sweep.summary import member_row, summarize
from rnncls.training.fit import fit
from tests.helpers import config_of, data_of, files_config, run_rnncls, some_rows, write_jsonl

CELLS: dict[str, dict[str, Any]] = {
    "relu": {},
    "tanh": {"nonlinearity": "tanh", "initial_state": "learned"},
    "gru": {"cell": "gru"},
    "lstm": {"cell": "lstm", "num_layers": 2, "initial_state": "learned"},
}
DATA = SumModConfig(modulus=3, max_length=4)


def model_of(config: Config) -> RNNClassifier:
    return build_model(config)


def first_wrong(model: RNNClassifier, digits: Tensor, shortest: int = 1) -> int | None:
    """Return the first prefix that the model is wrong on, by reading each from its beginning."""
    with torch.no_grad():
        for length in range(shortest, len(digits) + 1):
            prefix = digits[:length]
            if int(model(pack_sequence([prefix])).argmax()) != int(prefix.sum()) % 3:
                return length
    return None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is right on some sequences, and wrong on longer ones."""
    folder = tmp_path_factory.mktemp("structured") / "run"
    config = config_of(train={"max_steps": 150, "batch_size": 32}, optimizer={"lr": 1e-2})
    fit(config, folder)
    return folder


def loaded(run_dir: Path) -> tuple[RNNClassifier, Config]:
    checkpoint, model = load_checkpoint(run_dir, "cpu")
    return model.eval(), checkpoint.config


def test_the_first_error_is_that_of_a_loop_over_prefixes(trained: Path) -> None:
    model, config = loaded(trained)
    longest = BLOCK_STEPS + 9
    report = evaluate_until_wrong(model, config, longest, num_sequences=40)
    digits = torch.cat([random_digits(DATA, config.seed, 0)(block) for block in range(2)])[:longest]
    expected = [first_wrong(model, digits[:, row]) for row in range(40)]
    assert report.first_errors == expected
    assert len({*expected}) > 3
    assert report.never == expected.count(None)

    # The sequences do not depend on how many there are, nor on the limit.
    few = evaluate_until_wrong(model, config, 5, num_sequences=7).first_errors
    assert few == [first if first and first <= 5 else None for first in expected[:7]]


@pytest.mark.parametrize("trains", [True, False])
def test_a_model_that_was_in_training_goes_on_with_it(trains: bool) -> None:
    config = config_of()
    model = model_of(config).train(trains)
    evaluate_until_wrong(model, config, 5, num_sequences=2)
    assert model.training == trains
    evaluate_structured(model, config, 5)
    assert model.training == trains


@pytest.mark.parametrize("name", CELLS)
def test_both_ways_read_the_same_and_go_on_with_what_is_kept(name: str) -> None:
    torch.manual_seed(4)
    model = model_of(config_of(model=CELLS[name])).eval()
    with torch.no_grad():
        # Large weights, so that what a sequence has been matters for its class.
        for parameter in (*model.rnn.parameters(), *model.head.parameters()):
            parameter.normal_()
    tokens = torch.randint(3, (12, TOGETHER))
    keep = torch.randperm(TOGETHER)[:40]
    whole = model.prefix_logits(pack_sequence([*tokens[:, keep].T])).argmax(1).view(12, 40)
    assert whole.min() < whole.max()
    streams: list[Stream] = [TorchStream(model), CompiledStream(model)]
    with torch.inference_mode():
        for stream in streams:
            stream.begin(TOGETHER)
            first = stream.classes(tokens[:5])[:, keep]
            stream.keep(keep)
            rest = torch.cat([stream.classes(tokens[5:6, keep]), stream.classes(tokens[6:, keep])])
            assert torch.equal(torch.cat([first, rest]), whole)


def test_logits_that_are_not_finite_are_wrong() -> None:
    model = model_of(config_of()).eval()
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.head.bias[2] = value
        streams: list[Stream] = [TorchStream(model), CompiledStream(model)]
        with torch.inference_mode():
            for stream in streams:
                stream.begin(2)
                assert stream.classes(torch.zeros(3, 2, dtype=torch.int64)).eq(NO_CLASS).all()


def test_only_lengths_from_the_shortest_training_length_on_count() -> None:
    data = SumModConfig(modulus=3, min_length=3, max_length=4)
    model = model_of(config_of()).eval()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    digits = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 2, 2]]).T
    blocks = torch.zeros(4, BLOCK_STEPS, 3, dtype=torch.int64)
    blocks[0, :3] = digits
    told: list[int] = []
    found = first_errors(TorchStream(model), data, lambda block: blocks[block], 3, 200, told.append)
    assert found == [None, 3, 3]
    assert sum(told) == 600


def test_the_kinds_of_structure() -> None:
    def sequences(kind: str, num_digits: int) -> set[tuple[int, ...]]:
        digits = digits_of_kind(kind, ends_of_kind(kind, num_digits))
        rows = torch.cat([digits(0), digits(1)])[:, :].T.tolist()
        assert len(rows) == len({*map(tuple, rows)})
        return {*map(tuple, rows)}

    places = range(2 * BLOCK_STEPS)
    assert sequences(ZEROS, 4) == {(0,) * len(places)}
    assert sequences(REPEATED, 4) == {(digit,) * len(places) for digit in (1, 2, 3)}
    then = {(digit, *[0] * (len(places) - 1)) for digit in (1, 2, 3)}
    assert sequences(THEN_ZEROS, 4) == then
    pairs = {(a, b) for a, b in product(range(4), repeat=2) if a != b}
    assert sequences(ALTERNATING, 4) == {pair * BLOCK_STEPS for pair in pairs}

    # Of many pairs, some: different ones, and always the same.
    many = ends_of_kind(ALTERNATING, 100)
    assert many.shape == (MOST_OF_KIND, 2)
    assert len({*map(tuple, many.tolist())}) == MOST_OF_KIND
    assert (many[:, 0] != many[:, 1]).all()
    assert torch.equal(many, ends_of_kind(ALTERNATING, 100))
    assert ends_of_kind(ALTERNATING, 1).shape == (0, 2)


def test_structured_sequences_against_a_loop_over_prefixes(trained: Path) -> None:
    model, config = loaded(trained)
    longest = 40
    report = evaluate_structured(model, config, longest)
    for kind in report.kinds:
        digits = digits_of_kind(kind.kind, ends_of_kind(kind.kind, 3))(0)[:longest]
        firsts = [first_wrong(model, column) for column in digits.T]
        assert kind.sequences == kind.of == len(firsts)
        assert kind.right == firsts.count(None)
        assert kind.longest_right == min(first or longest + 1 for first in firsts) - 1
    assert [kind.kind for kind in report.kinds] == [*KINDS]
    assert report.all_right == all(kind.longest_right == longest for kind in report.kinds)


def test_what_is_never_wrong_counts_as_later_than_all() -> None:
    report = report_of([None, 7, 3, None, 5, None, None, None], 10)
    assert (report.never, report.lowest, report.lower_quartile) == (5, 3, 5)
    assert (report.median, report.upper_quartile) == (None, None)
    assert report_of([None], 10).lowest is None


@pytest.mark.row("C17")
@pytest.mark.parametrize(
    "model",
    [
        {"cell": "none"},
        {"skip": True},
        {"bidirectional": True},
        {"pooling": "max"},
        {"ngrams": [2]},
        {"positions": "learned"},
    ],
)
def test_models_that_need_the_whole_sequence_are_refused_by_name(model: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        require_stream(config_of(model=model), "--structured", 9)
    (problem,) = caught.value.problems
    assert problem.id == "C17"
    assert f"model.{next(iter(model))}: " in problem.found


@pytest.mark.row("C17")
def test_files_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(20))
    with pytest.raises(ConfigError, match="sum_mod only"):
        require_stream(files_config(path), "--until-wrong", 9)
    config = files_config(path)
    with pytest.raises(ConfigError, match="sum_mod only"):
        plan_sweep(config, "0", {}, None, 10, tmp_path / "s", long=Long(structured=5))


@pytest.mark.row("C17")
@pytest.mark.parametrize("option", ["--structured", "--until-wrong"])
def test_lengths_that_are_all_too_short_are_refused(option: str, tmp_path: Path) -> None:
    config = config_of(data={"min_length": 4, "max_length": 5}, train={"max_steps": 2})
    assert require_stream(config, option, 4) == config.data
    with pytest.raises(ConfigError) as caught:
        require_stream(config, option, 3)
    (problem,) = caught.value.problems
    assert (problem.id, problem.where, problem.found) == ("C17", option, "3")
    assert problem.expected == "at least data.min_length = 4"
    assert problem.remedy

    short = Long(3, None) if option == "--structured" else Long(None, 3)
    with pytest.raises(ConfigError, match=f"no length to look at.*{option}"):
        plan_sweep(config, "0", {}, None, 10, tmp_path / "s", long=short)
    assert not (tmp_path / "s").exists()
    plan_sweep(config, "0", {}, None, 10, tmp_path / "s")
    with pytest.raises(ConfigError, match=f"no length to look at.*{option}"):
        evaluate_all(tmp_path / "s", None, None, long=short)

    # The command as well, which reads nothing and says so.
    fit(config, tmp_path / "run")
    words = [option, "--structured-length", "3"] if option == "--structured" else [option, "3"]
    done = run_rnncls("eval", str(tmp_path / "run"), *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected: at least data.min_length = 4" in done.stderr


@pytest.mark.row("C17")
@pytest.mark.parametrize("order", ["last,mean", "mean,last"])
def test_a_sweep_names_the_setting_that_cannot_be_read(order: str, tmp_path: Path) -> None:
    grid = {"model.pooling": order.split(",")}
    config = config_of(train={"max_steps": 2})
    with pytest.raises(ConfigError, match=r"--until-wrong, model\.pooling=mean"):
        plan_sweep(config, "0,1", grid, None, 10, tmp_path / "s", long=Long(until_wrong=9))

    # Of a sweep that is there already, no member is evaluated.
    plan_sweep(config, "0,1", grid, None, 10, tmp_path / "s")
    with pytest.raises(ConfigError, match=r"--structured, model\.pooling=mean"):
        evaluate_all(tmp_path / "s", None, None, long=Long(structured=9))


def test_kinds_without_sequences_are_left_out(tmp_path: Path) -> None:
    config = config_of(data={"max_value": 0}, train={"max_steps": 2})
    (kind,) = evaluate_structured(model_of(config), config, 9).kinds
    assert (kind.kind, kind.sequences, kind.of) == (ZEROS, 1, 1)

    # A sweep has no numbers for them, neither of members that have ended nor of those that
    # diverged.
    sweep = plan_sweep(config, "0", {}, None, 10, tmp_path / "s", long=Long(structured=9))
    fit(sweep.members[0].config, sweep.run_dir(sweep.members[0]))
    member = outcomes(sweep)[0]
    for exit_code, zeros in ((None, None), (NonFiniteError.exit_code, 0)):
        row = member_row(replace(member, exit_code=exit_code))
        found = {kind: row[f"right_on_{kind}"] for kind in KINDS}
        assert found == dict.fromkeys(KINDS) | {ZEROS: zeros}
    assert kinds_of(2) == [*KINDS]


def test_eval_prints_both(trained: Path) -> None:
    words = ["eval", str(trained), "--structured", "--structured-length", "30"]
    words += ["--until-wrong", "50", "--samples", "20"]
    text = run_rnncls(*words).stdout
    assert "two digits in turns" in text
    assert "20 random sequences up to length 50: " in text

    content = json.loads(run_rnncls(*words, "--json").stdout)
    model, config = loaded(trained)
    assert content["structured"] == evaluate_structured(model, config, 30).to_json()
    expected = evaluate_until_wrong(model, config, 50, 20).to_json()
    assert content["until_wrong"] == json.loads(json.dumps(expected))

    done = run_rnncls("eval", str(trained), "--structured-length", "30")
    assert done.returncode == 2
    assert "[C17]" in done.stderr
    assert "structured" not in json.loads(run_rnncls("eval", str(trained), "--json").stdout)


@pytest.mark.slow
def test_a_sweep_has_columns_of_both(tmp_path: Path) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(config_of(train={"max_steps": 6})))
    folder = tmp_path / "sweep"
    words = ("--seeds", "0-1", "--samples", "20", "--sweep-dir", str(folder))
    long = ("--structured", "--structured-length", "30", "--until-wrong", "50")
    done = run_rnncls("sweep", str(path), *words, *long)
    assert done.returncode == 0, done.stderr
    assert "all sequences with a structure right, up to 30: " in done.stdout
    assert "no random sequence wrong, up to 50: " in done.stdout

    sweep = load_sweep(folder)
    assert sweep.long == Long(30, 50)
    header = (folder / "summary.csv").read_text().splitlines()[0].split(",")
    wanted = [f"right_on_{kind}" for kind in KINDS]
    wanted += ["never_wrong", "first_wrong_lowest", "first_wrong_median"]
    assert header[-len(wanted) :] == wanted

    # What each member has is what `eval` says of the sweep.
    summary = summarize(sweep).to_json()
    again = evaluate_all(folder, None, None, long=Long(30, 50)).to_json()
    for row in summary["members"]:
        said = again["structured"][row["name"]]
        for kind in said["kinds"]:
            assert row[f"right_on_{kind['kind']}"] == kind["longest_right"]
        assert again["until_wrong"][row["name"]]["sequences"] == 20
        assert row["first_wrong_lowest"] == again["until_wrong"][row["name"]]["lowest"]
    right = [said["all_right"] for said in again["structured"].values()]
    assert summary["groups"][0]["structured"]["count"] == sum(right)

    # It cannot be asked for later, and a sweep that has not asked for it says nothing of it.
    assert run_rnncls("sweep", "--resume", str(folder), "--until-wrong", "9").returncode == 2
    plain = tmp_path / "plain"
    assert run_rnncls("sweep", str(path), "--seeds", "0", "--sweep-dir", str(plain)).returncode == 0
    assert "structured" not in (plain / "summary.json").read_text()
    old = (plain / "sweep.yaml").read_text().splitlines()
    kept = [line for line in old if not line.startswith(("structured:", "until_wrong:"))]
    assert len(kept) == len(old) - 2
    (plain / "sweep.yaml").write_text("\n".join(kept) + "\n")
    assert load_sweep(plain).long == Long()


def test_data_of_a_config_is_its_own() -> None:
    assert require_stream(config_of(), "--structured", 1) == data_of(config_of())
