"""What rnncls explain --gradients shows: how much of the gradient reaches each step; remedies."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from rnncls.inspect.gradients import measure as gradients_module
from rnncls.inspect.gradients.measure import MOST_BYTES, gradients_of, remedies_of
from rnncls.inspect.gradients.view import Gradients, LayerGradients
from rnncls.inspect.subject import Subject, load_subject
from rnncls.model.bounds import bounded
from rnncls.model.classifier import RNNClassifier
from rnncls.model.gradient_flow import Flow, Kind, Verdict
from rnncls.model.pooling import Pooling
from rnncls.training.fit import fit
from tests.helpers import config_of, copy_of_run, run_rnncls, sequences_of

# --- remedies


@pytest.mark.parametrize(
    ("kind", "sections", "has", "has_not"),
    [
        (
            "vanishing",
            {"model": {"recurrent_init": "default"}},
            ["model.recurrent_init=orthogonal", "model.cell=gru", "data.max_length (now 5)"],
            ["max_grad_norm"],
        ),
        (
            "vanishing",
            {"model": {"cell": "gru", "recurrent_init": "orthogonal"}},
            ["data.max_length"],
            ["model.cell", "recurrent_init", "max_grad_norm"],
        ),
        (
            "exploding",
            {"train": {"max_grad_norm": None}, "model": {"init_gain": 6}},
            ["train.max_grad_norm=1,", "model.init_gain=1,"],
            [],
        ),
        ("exploding", {"train": {"max_grad_norm": 0.5}}, ["max_grad_norm below 0.5"], ["gain"]),
        ("neither", {"model": {"recurrent_init": "default"}}, [], ["model"]),
        ("vanishing", {}, ["train.objective=prefix", "model.pooling=mean"], []),
        (
            "vanishing",
            {"model": {"bidirectional": True}},
            ["model.pooling=mean"],
            ["train.objective"],
        ),
        ("vanishing", {"model": {"pooling": "max"}}, [], ["train.objective", "model.pooling"]),
        ("vanishing", {"train": {"objective": "prefix"}}, [], ["objective", "model.pooling"]),
        ("exploding", {}, [], ["train.objective", "model.pooling"]),
    ],
)
def test_remedies_are_what_the_run_does_not_have(
    kind: Kind, sections: dict[str, Any], has: list[str], has_not: list[str]
) -> None:
    sections = {"data": {"max_length": 5}, **sections}
    remedies = "\n".join(remedies_of(kind, config_of(**sections)))
    assert all(part in remedies for part in has), remedies
    assert not any(part in remedies for part in has_not), remedies


# --- bounds


def test_long_sequences_are_fewer_and_very_long_ones_are_cut() -> None:
    all_of_them = sequences_of([range(3), range(3, 11), range(11, 13), range(13, 17)])
    same = bounded(all_of_them, most_steps=8, most_tokens=17)
    assert [one.tolist() for one in same[:3]] == [one.tolist() for one in all_of_them[:3]]

    fewer = bounded(all_of_them, most_steps=8, most_tokens=12)
    assert fewer.lengths.tolist() == [3, 8]
    assert fewer.labels.tolist() == [0, 1]

    cut = bounded(all_of_them, most_steps=3, most_tokens=100)
    assert cut.lengths.tolist() == [3, 3, 2, 3]
    assert cut.tokens.tolist() == [0, 1, 2, 8, 9, 10, 11, 12, 14, 15, 16]

    assert len(bounded(all_of_them, most_steps=3, most_tokens=1)) == 1


# --- what is shown


def patched_sequences(patch: pytest.MonkeyPatch, lengths: list[int], label: int = 0) -> None:
    """Let the own data of each model be sequences of token 1 with these lengths."""
    sequences = sequences_of([[1] * length for length in lengths], [label] * len(lengths))
    patch.setattr(gradients_module, "own_sequences", lambda *_, **__: sequences)


def test_explain_gradients_prints_and_draws_them(run_dir: Path, tmp_path: Path) -> None:
    picture = tmp_path / "grad.png"
    done = run_rnncls("explain", run_dir, "--gradients", "--output", picture)
    assert done.returncode == 0, done.stderr
    assert "in all: " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert picture.read_bytes().startswith(b"\x89PNG")

    found = json.loads(run_rnncls("explain", run_dir, "--gradients", "--json").stdout)
    (layer,) = found["layers"]
    assert layer["counts"][0] == found["num_sequences"] == 64
    assert sum(layer["counts"]) == found["num_tokens"]
    assert layer["ratios"][0] == 1
    subject = load_subject(run_dir)
    expected = gradients_of(subject)
    assert layer["norms"] == expected.layers[0].flow.norms.tolist()
    assert f"{layer['norms'][0]:.1e}" in done.stdout
    # The network itself stays in float32, for whatever else is shown of it.
    assert subject.network.head.weight.dtype == torch.float32


def test_a_table_has_at_most_forty_rows_and_json_all(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched_sequences(monkeypatch, [100, 3])
    gradients = gradients_of(load_subject(run_dir))
    rows = [line.split() for line in gradients.to_text().splitlines()]
    distances = [row[0] for row in rows if len(row) == 4 and row[0].isdigit()]
    assert distances == [str(distance) for distance in [*range(20), *range(80, 100)]]
    assert len(gradients.to_json()["layers"][0]["norms"]) == 100


def test_very_long_sequences_are_cut_and_it_is_said(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched_sequences(monkeypatch, [300, 300, 300])
    monkeypatch.setattr(gradients_module, "MOST_STEPS", 100)
    gradients = gradients_of(load_subject(run_dir))
    assert (gradients.num_sequences, gradients.num_tokens) == (3, 300)
    assert "only the last 100 tokens of longer sequences" in gradients.to_text()

    monkeypatch.setattr(gradients_module, "MOST_BYTES", MOST_BYTES // 2**12)
    gradients = gradients_of(load_subject(run_dir))
    assert gradients.num_sequences < 3


def test_a_network_that_is_sure_of_every_sequence_is_told_from_one_without_gradient(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched_sequences(monkeypatch, [2, 3])

    def sure(of: float) -> Callable[[dict[str, Tensor]], object]:
        return lambda tensors: tensors["model/head.bias"][0].fill_(of)

    # p - y is 0 in float32 already, and in float64 only for the second.
    barely = gradients_of(load_subject(copy_of_run(run_dir, tmp_path / "a", sure(200))))
    assert barely.kind != "zero"
    assert 0 < barely.layers[0].flow.norms[0] < 1e-40

    surest = gradients_of(load_subject(copy_of_run(run_dir, tmp_path / "b", sure(1e4))))
    assert surest.kind == "zero"
    assert "sure of every sequence (p - y is 0)" in surest.to_text()

    run = copy_of_run(run_dir, tmp_path / "c", lambda tensors: tensors["model/head.weight"].zero_())
    cut_off = gradients_of(load_subject(run))
    assert cut_off.kind == "zero"
    assert "not sure of every sequence" in cut_off.to_text()
    for gradients in (barely, surest, cut_off):
        assert max(map(len, gradients.to_text().splitlines())) <= 80


def other_network(subject: Subject, **options: Any) -> Subject:
    """Put a network of random weights in the place of a run's."""
    torch.manual_seed(0)
    network = RNNClassifier(3, 3, 4, 16, nonlinearity="tanh", **options).eval()
    return subject._replace(predictor=replace(subject.predictor, network=network))


@pytest.mark.parametrize("pooling", ["mean", "last_mean_max"])
def test_of_pooled_states_the_verdict_is_about_time(
    run_dir: Path, pooling: Pooling, monkeypatch: pytest.MonkeyPatch
) -> None:
    patched_sequences(monkeypatch, [60, 60])
    subject = other_network(load_subject(run_dir), pooling=pooling)
    subject.network.rnn.get_parameter("weight_hh_l0").data *= 0.2
    gradients = gradients_of(subject)
    (layer,) = gradients.layers

    # A mean reaches every step, and what leaves the last state none of the first.
    assert gradients.kind == "vanishing"
    assert layer.flow.ratios[59] < 1e-20
    assert (layer.whole > 1e-3 * layer.whole[0]).all()
    text = " ".join(gradients.to_text().split())
    assert "learned from directly, and not by what later states keep of them" in text
    assert "what passes through time" in text

    found = gradients.to_json()["layers"][0]
    assert found["norms"] == layer.whole.tolist()
    assert found["norms_from_last"] == layer.flow.norms.tolist()


def test_maxima_that_are_never_at_the_end_are_told_from_no_gradient(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Every state is as large as the first one, whose the maximum is.
    patched_sequences(monkeypatch, [5, 5])
    subject = other_network(load_subject(run_dir), pooling="max")
    subject.network.rnn.get_parameter("weight_hh_l0").data.zero_()
    gradients = gradients_of(subject)
    assert gradients.kind == "zero"
    assert gradients.layers[0].whole[4] > 0
    text = gradients.to_text()
    assert "No gradient leaves a last state" in text
    assert f"{gradients.layers[0].whole[4]:.1e}" in text
    assert max(map(len, text.splitlines())) <= 80


def test_what_training_does_otherwise_is_said(tmp_path: Path) -> None:
    train = {"max_steps": 1, "objective": "prefix", "truncate_after": 2}
    fit(config_of(train=train), tmp_path / "run")
    gradients = gradients_of(load_subject(tmp_path / "run"))
    assert len(gradients.notes) == 2
    text = gradients.to_text()
    assert "training also has the loss of every prefix" in text
    assert "training has gradients for the last 2 tokens alone" in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.row("K13")
def test_weights_that_are_nan_have_no_verdict(run_dir: Path, tmp_path: Path) -> None:
    def spoil(tensors: dict[str, Tensor]) -> None:
        tensors["model/rnn.weight_hh_l0"][0, 0] = float("nan")

    run = copy_of_run(run_dir, tmp_path / "run", spoil)
    picture = tmp_path / "grad.png"
    done = run_rnncls("explain", run, "--gradients", "--output", picture)
    assert done.returncode == 0, done.stderr
    assert "warning[K13]" in done.stderr
    assert "in all: not finite" in done.stdout
    assert picture.exists()
    done = run_rnncls("explain", run, "--gradients", "--json")
    assert json.loads(done.stdout)["layers"][0]["norms"][0] is None


def view_of(
    num_layers: int, directions: list[str], verdict: Verdict, pooling: Pooling = "last"
) -> Gradients:
    ratios = torch.full((50,), 1e-10, dtype=torch.float64)
    flow = Flow(torch.ones(50), ratios, ratios)
    layers = []
    for layer in range(1, num_layers + 1):
        layers += [
            LayerGradients(layer, direction, flow, ratios, verdict) for direction in directions
        ]
    return Gradients(
        num_sequences=64,
        num_tokens=3200,
        cut_to=8192,
        loss=123.456,
        layers=layers,
        kind=verdict.kind,
        pooling=pooling,
        is_direct=pooling != "last",
        notes=[],
        remedies=remedies_of(verdict.kind, config_of(model={"recurrent_init": "identity"})),
    )


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("directions", [["forward"], ["forward", "reverse"]])
def test_tables_of_many_layers_fit_into_eighty_columns(
    num_layers: int, directions: list[str]
) -> None:
    for pooling in get_args(Pooling):
        verdict = Verdict("vanishing and exploding", 8191, 8190)
        view = view_of(num_layers, directions, verdict, pooling)
        lines = view.to_text().splitlines()
        assert max(map(len, lines)) <= 80
    assert len(lines) < 80
    assert len(view.to_json()["layers"]) == num_layers * len(directions)
    has_many = num_layers * len(directions) > 6
    assert ("--json has all" in view.to_text()) is has_many
