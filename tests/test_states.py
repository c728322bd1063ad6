"""The states of a network in planes: `rnncls explain --states`."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnncls.data.sequences import Sequences
from rnncls.inspect import states as states_module
from rnncls.inspect.planes import (
    Array,
    Halves,
    accuracy_everywhere,
    accuracy_of,
    discriminant_plane,
    fisher_whitening,
    frequency_planes,
    halves_of,
    ledoit_wolf,
    principal_plane,
)
from rnncls.inspect.states import PREFIXES, SUMMARIES, states_shown
from rnncls.inspect.subject import load_subject
from rnncls.model.classifier import RNNClassifier
from rnncls.model.probes import (
    distinct_prefixes,
    eigenvalues_of,
    running_sums,
    states_after,
    summaries_of,
)
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.system.rows import json_text
from rnncls.training.fit import fit
from tests.helpers import change_checkpoint, config_of, files_config, run_rnncls

row = pytest.mark.row

PNG = b"\x89PNG\r\n\x1a\n"
ROWS = [[1], [1, 2], [1, 2, 0, 3], [2, 2], [1, 2, 0], [2]]


def sequences_of(rows: list[list[int]]) -> Sequences:
    """The rows as sequences, labelled with their numbers."""
    lengths = torch.tensor([0, *map(len, rows)])
    tokens = torch.tensor([token for tokens in rows for token in tokens], dtype=torch.int32)
    return Sequences(tokens, lengths.cumsum(0), torch.arange(len(rows)))


def network_of(cell: str, num_layers: int = 1, bidirectional: bool = False) -> RNNClassifier:
    torch.manual_seed(3)
    options: dict[str, Any] = {"num_layers": num_layers, "bidirectional": bidirectional}
    return RNNClassifier(5, 4, 3, 6, cell=cell, **options).eval()  # type: ignore[arg-type]


def ring(
    frequency: int, count: int = 3000, modulus: int = 10, noise: float = 5
) -> tuple[Array, Any]:
    """States with a ring of radius 0.05 in two directions, noise of this size in ten others.

    A rotation hides which directions they are.
    """
    rng = np.random.default_rng(0)
    classes = rng.integers(0, modulus, count)
    angles = 2 * np.pi * frequency * classes / modulus
    points = 0.05 * np.stack([np.cos(angles), np.sin(angles)], 1)
    points += 0.003 * rng.normal(size=points.shape)
    states = np.concatenate([points, noise * rng.normal(size=(count, 10))], 1)
    rotation, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    return states @ rotation, classes


# --- what is measured in a network


def test_each_prefix_is_there_once() -> None:
    sequences = sequences_of(ROWS)
    found = []
    for place in distinct_prefixes(sequences).tolist():
        begin = max(start for start in sequences.offsets.tolist() if start <= place)
        found.append(tuple(sequences.tokens[begin : place + 1].tolist()))
    expected = {tuple(row[:end]) for row in ROWS for end in range(1, len(row) + 1)}
    assert len(found) == len(expected) == 6
    assert set(found) == expected


def test_running_sums() -> None:
    sums = running_sums(sequences_of(ROWS), 3).tolist()
    assert sums == [sum(row[:end]) % 3 for row in ROWS for end in range(1, len(row) + 1)]


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_states_are_those_of_each_prefix_alone(cell: str) -> None:
    network = network_of(cell, num_layers=2)
    sequences = sequences_of(ROWS)
    places = distinct_prefixes(sequences)
    found = states_after(network, sequences, places)
    for place, state in zip(places.tolist(), found, strict=True):
        begin = max(start for start in sequences.offsets.tolist() if start <= place)
        embedded = network.embedding(sequences.tokens[begin : place + 1].long())
        expected = network.rnn(embedded)[0][-1]
        assert torch.allclose(state, expected, atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_summaries_are_what_the_head_sees(cell: str, bidirectional: bool) -> None:
    network = network_of(cell, 2, bidirectional)
    sequences = sequences_of(ROWS)
    found = network.head(summaries_of(network, sequences))
    alone = torch.cat([network(sequences.batch(torch.tensor([row])).tokens) for row in range(6)])
    assert torch.allclose(found, alone, atol=1e-6)


@pytest.mark.parametrize(("cell", "block"), [("rnn", 0), ("lstm", 2), ("gru", 2)])
def test_eigenvalues_are_those_of_the_candidate(cell: str, block: int) -> None:
    network = network_of(cell, 2, bidirectional=True)
    weight = network.rnn.get_parameter("weight_hh_l1_reverse").detach().numpy()
    expected = np.linalg.eigvals(weight[6 * block : 6 * block + 6].astype(np.float64))
    found = eigenvalues_of(network, 1, 1).numpy()
    assert np.allclose(np.sort_complex(found), np.sort_complex(expected), atol=1e-9)


# --- planes


@pytest.mark.parametrize(("frequency", "order"), [(1, "0123456789"), (3, "0741852963")])
def test_a_ring_in_small_directions_is_found(frequency: int, order: str) -> None:
    states, classes = ring(frequency)
    halves = halves_of(states, classes, seed=0)
    principal = principal_plane(halves)
    assert principal.accuracy < 0.2

    best, *others = frequency_planes(halves, 10)
    assert best.frequency == frequency
    assert best.accuracy > 0.99
    assert best.share > 0.99
    assert best.is_cyclic
    assert "".join(map(str, best.order)) == order
    assert accuracy_everywhere(halves, fisher_whitening(halves)) > 0.99
    assert {plane.frequency for plane in others} == {1, 2, 3, 4, 5} - {frequency}


def test_a_ring_begins_at_the_top_and_goes_clockwise() -> None:
    states, classes = ring(1)
    best = frequency_planes(halves_of(states, classes, seed=0), 10)[0]
    angles = 2 * np.pi * np.arange(10) / 10
    clock = np.stack([np.sin(angles), np.cos(angles)], 1)
    radius = np.linalg.norm(best.means, axis=1, keepdims=True)
    assert np.allclose(best.means / radius, clock, atol=0.05)


def test_a_wrong_order_is_seen() -> None:
    states, classes = ring(1)
    # Classes 2 and 3 change places.
    swapped = np.array([0, 1, 3, 2, 4, 5, 6, 7, 8, 9])[classes]
    planes = frequency_planes(halves_of(states, swapped, seed=0), 10)
    plane = next(plane for plane in planes if plane.frequency == 1)
    assert plane.order == (0, 1, 3, 2, 4, 5, 6, 7, 8, 9)
    assert not plane.is_cyclic


def isotropic(means: Array) -> Halves:
    """Two equal halves whose covariance within each class is a multiple of the unit matrix."""
    num_classes, width = means.shape
    steps = np.concatenate([np.eye(width), -np.eye(width)])
    states = (means[:, None] + steps).reshape(-1, width)
    classes = np.repeat(np.arange(num_classes), len(steps))
    return Halves(states, classes, states, classes, np.arange(num_classes))


def test_shares_of_the_power() -> None:
    # A ring of radius 3, once around, and even against odd, 2 to each side.
    angles = 2 * np.pi * np.arange(6) / 6
    sides = 2 * (-1.0) ** np.arange(6)
    means = np.stack([3 * np.cos(angles), 3 * np.sin(angles), sides], 1)
    planes = {plane.frequency: plane for plane in frequency_planes(isotropic(means), 6)}

    # |F_1|^2 = 2 (6 * 3 / 2)^2, as |F_5|^2, and |F_3|^2 = (6 * 2)^2.
    assert planes[1].share == pytest.approx(324 / (324 + 144))
    assert planes[3].share == pytest.approx(144 / (324 + 144))
    assert planes[2].share == pytest.approx(0, abs=1e-12)
    assert planes[3].means.shape == (6, 1)
    assert set(planes[3].order[:3]) == {0, 2, 4}
    assert planes[3].accuracy < planes[1].accuracy


def test_halves_have_no_state_in_common() -> None:
    classes = np.array([4] * 5 + [7] * 2 + [9])
    states = np.arange(16, dtype=np.float64).reshape(8, 2)
    halves = halves_of(states, classes, seed=1)
    assert halves.numbers.tolist() == [4, 7]
    assert np.bincount(halves.fit_classes).tolist() == [3, 1]
    assert np.bincount(halves.held_out_classes).tolist() == [2, 1]

    fit = {float(state[0]) for state in halves.fit}
    held_out = {float(state[0]) for state in halves.held_out}
    assert not fit & held_out
    assert fit | held_out == set(states[:7, 0].tolist())
    for state, number in zip(halves.fit, halves.fit_classes, strict=True):
        assert classes[int(state[0]) // 2] == halves.numbers[number]


def test_the_nearest_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnncls.inspect.planes.MOST_DISTANCES", 30)
    rng = np.random.default_rng(0)
    rows, means = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    classes = rng.integers(0, 4, 50)
    nearest = [min(range(4), key=lambda c: math.dist(row, means[c])) for row in rows]
    assert accuracy_of(rows, classes, means) == np.mean(np.array(nearest) == classes)


@pytest.mark.parametrize(("number", "width"), [(5, 12), (40, 12), (2000, 3)])
def test_ledoit_and_wolf_by_their_definition(number: int, width: int) -> None:
    rng = np.random.default_rng(number)
    rows = rng.normal(size=(number, width)) * np.arange(1, width + 1)
    sample = sum(np.outer(row, row) for row in rows) / number
    target = np.trace(sample) / width * np.eye(width)
    distance = np.linalg.norm(sample - target) ** 2
    errors = [np.linalg.norm(np.outer(row, row) - sample) ** 2 for row in rows]
    expected = min(sum(errors) / number**2, distance) / distance

    assert ledoit_wolf(rows) == pytest.approx(expected, rel=1e-10)
    assert ledoit_wolf(1e30 * rows) == pytest.approx(expected, rel=1e-10)
    assert 0 < expected <= 1


def test_states_that_are_all_the_same_are_shrunk_to_the_end() -> None:
    assert ledoit_wolf(np.zeros((4, 3))) == 1


def test_discriminants_tell_what_the_largest_directions_do_not() -> None:
    states, classes = ring(1, modulus=3, noise=0.1)
    halves = halves_of(states, classes, seed=0)
    plane = discriminant_plane(halves)
    assert plane.accuracy > 0.99
    assert plane.share == pytest.approx(1)
    assert principal_plane(halves).accuracy < 0.5

    # What is drawn has about the unit matrix for its covariance within the classes.
    points = plane.of(halves.fit) - plane.means[halves.fit_classes]
    covariance = points.T @ points / len(points)
    assert np.allclose(covariance, covariance[0, 0] * np.eye(2), atol=0.1)


def test_two_classes_have_one_discriminant_and_the_largest_direction_left() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 2, 2000)
    states = rng.normal(size=(2000, 6))
    states[:, 2] += 8 * classes
    plane = discriminant_plane(halves_of(states, classes, seed=0))
    assert plane.accuracy > 0.99
    assert abs(plane.means[0, 0] - plane.means[1, 0]) == pytest.approx(8, rel=0.05)
    assert plane.means[0, 1] == pytest.approx(plane.means[1, 1], abs=1e-6)


def test_dead_units_and_one_unit() -> None:
    states, classes = ring(1)
    dead = np.concatenate([states, np.zeros((len(states), 4))], 1)
    halves = halves_of(dead, classes, seed=0)
    assert frequency_planes(halves, 10)[0].accuracy > 0.99

    for narrow in (states[:, :1], np.zeros((len(states), 1)), np.zeros((len(states), 3))):
        halves = halves_of(narrow, classes, seed=0)
        for plane in (*frequency_planes(halves, 10), principal_plane(halves)):
            assert np.isfinite(plane.means).all()
            assert 0 <= plane.accuracy <= 1
        assert np.isfinite(discriminant_plane(halves).means).all()


# --- the command


def explain(run: Path, picture: Path) -> tuple[str, dict[str, Any]]:
    """The table that is printed, and the same for programs; a picture is drawn."""
    done = run_rnncls("explain", run, "--states", picture)
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(PNG)
    assert max(map(len, done.stdout.splitlines())) <= 80
    return done.stdout, json.loads(json_text(states_shown(load_subject(run)).to_json()))


def test_a_run_on_sums(run_dir: Path, tmp_path: Path) -> None:
    text, found = explain(run_dir, tmp_path / "states.png")
    as_json = run_rnncls("explain", run_dir, "--states", tmp_path / "states.png", "--json")
    assert json.loads(as_json.stdout).items() >= found.items()
    assert "frequency 1" in text
    assert "principal plane" in text
    assert "chance" in text
    assert found["encoded"] == "running sum modulo 3"
    assert found["classes"] == [0, 1, 2]

    # Every sequence of up to four digits below three: 3 + 9 + 27 + 81.
    assert found["num_fit"] + found["num_held_out"] == 120
    best, principal = found["planes"]
    assert best["accuracy_held_out"] > 0.8
    assert best["in_cyclic_order"]
    assert principal["kind"] == "principal"

    (memory,) = found["recurrent"]
    sizes = [math.hypot(*value) for value in memory["eigenvalues"]]
    assert memory["spectral_radius"] == pytest.approx(max(sizes))
    assert f"{max(sizes):.3f}" in text


@pytest.mark.parametrize(
    ("model", "matrix"),
    [
        ({"bidirectional": True, "num_layers": 2}, "W_hh"),
        pytest.param({"cell": "gru"}, "W_hn", marks=pytest.mark.slow),
        pytest.param({"cell": "lstm"}, "W_hg", marks=pytest.mark.slow),
    ],
)
def test_other_models(model: dict[str, Any], matrix: str, tmp_path: Path) -> None:
    fit(config_of(model=model, train={"max_steps": 2}), tmp_path / "run")
    text, found = explain(tmp_path / "run", tmp_path / "states.png")
    is_prefix = "bidirectional" not in model
    assert (PREFIXES if is_prefix else SUMMARIES) in text
    # Of sums, whichever states hold them, the frequencies are drawn.
    assert found["planes"][0]["kind"] == "frequency"
    assert len(found["recurrent"]) == (1 if is_prefix else 4)
    assert matrix in text


@pytest.mark.parametrize("num_labels", [2, pytest.param(25, marks=pytest.mark.slow)])
def test_a_run_on_files(num_labels: int, tmp_path: Path) -> None:
    names = ["$x_1$", "a\x1b[31mb", *(f"label {number}" for number in range(23))][:num_labels]
    lines = ["sequence,label"]
    for number in range(60 * num_labels):
        # The label is the first token; each sequence is there once.
        label = number % num_labels
        first, second = divmod(number // num_labels, 8)
        lines.append(f"{label} {100 + first} {200 + second},{names[label]}")
    path = tmp_path / "d.csv"
    path.write_text("\n".join(lines) + "\n")
    fit(files_config(path, train={"max_steps": 30}, unknown="unk"), tmp_path / "run")

    text, found = explain(tmp_path / "run", tmp_path / "states.png")
    kind = "discriminant, largest rest" if num_labels == 2 else "first two discriminants"
    assert kind in text
    assert sorted(found["classes"]) == sorted(names)
    assert found["num_fit"] == found["num_held_out"] == 3 * num_labels


def test_long_sequences_are_cut_or_left_out(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "MOST_LENGTH", 2)
    halves = states_shown(load_subject(run_dir)).halves
    assert len(halves.fit) + len(halves.held_out) == 3 + 9

    monkeypatch.setattr(states_module, "MOST_STATES", 8)
    halves = states_shown(load_subject(run_dir)).halves
    assert len(halves.fit) + len(halves.held_out) in (7, 8)

    fit(config_of(model={"bidirectional": True}, train={"max_steps": 2}), tmp_path / "run")
    done = run_rnncls("explain", tmp_path / "run", "--states", tmp_path / "states.png")
    assert "sequences of more than 2 tokens are left out" in done.stderr
    assert "12 different sequences" in done.stdout


@row("D23")
@pytest.mark.parametrize(
    ("data", "found"),
    [
        ({"modulus": 30, "max_value": 1, "max_length": 3}, "14 different prefixes"),
        ({"modulus": 3, "max_value": 0}, "4 different prefixes, and classes with two of them: 1"),
        (
            {"modulus": 20, "max_length": 1},
            "20 different prefixes, and classes with two of them: 0",
        ),
    ],
)
def test_too_few_states(data: dict[str, Any], found: str, tmp_path: Path) -> None:
    fit(config_of(data=data, train={"max_steps": 1}), tmp_path / "run")
    picture = tmp_path / "states.png"
    done = run_rnncls("explain", tmp_path / "run", "--states", picture)
    assert done.returncode == 3, done.stderr
    assert "error[D23]" in done.stderr
    assert found in done.stderr
    assert "Traceback" not in done.stderr
    assert not picture.exists()


@row("K13")
@pytest.mark.parametrize("name", ["embedding.weight", "rnn.weight_hh_l0"])
def test_states_that_are_not_numbers(name: str, run_dir: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    path = find_newest(run)

    def spoil(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"model/{name}"].fill_(math.nan)

    change_checkpoint(path, spoil)
    done = run_rnncls("explain", path, "--states", tmp_path / "states.png")
    assert done.returncode == 7, done.stderr
    assert "error[K13]: the model's states are not numbers" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_without_an_answer_in_its_states(run_dir: Path, tmp_path: Path) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    path = find_newest(run)

    def empty(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith("model/"):
                tensor.zero_()

    change_checkpoint(path, empty)
    text, found = explain(path, tmp_path / "states.png")
    assert "does not find the running sum" in text
    assert found["planes"][0]["share"] is None
    assert found["recurrent"][0]["spectral_radius"] == 0


@pytest.mark.slow
def test_the_ring_of_ten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_rnncls("train", "--config", "configs/sum_mod_10.yaml", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    _, found = explain(run, tmp_path / "states.png")
    best, *_, principal = found["planes"]
    assert best["accuracy_held_out"] >= 0.99
    assert best["in_cyclic_order"]
    assert principal["accuracy_held_out"] < 0.2
    orders = [list(map(int, order)) for order in ("0123456789", "0741852963")]
    assert best["order"] in orders
