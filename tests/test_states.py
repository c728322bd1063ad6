"""The states of a network in planes: `rnncls explain --states`."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnncls.inspect.states import measure as states_module
from rnncls.inspect.states.measure import PREFIXES, SUMMARIES, states_shown
from rnncls.inspect.states.prefixes import distinct_prefixes, running_sums
from rnncls.inspect.subject import load_subject
from rnncls.model.classifier import RNNClassifier
from rnncls.model.probes import eigenvalues_of, states_after, summaries_of
from rnncls.system.rows import json_text
from rnncls.training.fit import fit
from tests.helpers import config_of, copy_of_run, files_config, run_rnncls, sequences_of

row = pytest.mark.row

PNG = b"\x89PNG\r\n\x1a\n"
ROWS = [[1], [1, 2], [1, 2, 0, 3], [2, 2], [1, 2, 0], [2]]


def network_of(
    cell: str, num_layers: int = 1, bidirectional: bool = False, **options: Any
) -> RNNClassifier:
    torch.manual_seed(3)
    options |= {"num_layers": num_layers, "bidirectional": bidirectional, "cell": cell}
    network = RNNClassifier(5, 4, 3, 6, **options).eval()
    if network.initial_state is not None:
        torch.nn.init.normal_(network.initial_state)
    return network


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
@pytest.mark.parametrize(("pooling", "initial_state"), [("last", "zeros"), ("max", "learned")])
def test_states_are_those_of_each_prefix_alone(cell: str, pooling: str, initial_state: str) -> None:
    network = network_of(cell, num_layers=2, pooling=pooling, initial_state=initial_state)
    start: Any = None
    if network.initial_state is not None:
        parts = tuple(network.initial_state)
        start = parts if cell == "lstm" else parts[0]
    sequences = sequences_of(ROWS)
    places = distinct_prefixes(sequences)
    found = states_after(network, sequences, places)
    for place, state in zip(places.tolist(), found, strict=True):
        begin = max(start for start in sequences.offsets.tolist() if start <= place)
        embedded = network.embedding(sequences.tokens[begin : place + 1].long())
        expected = network.rnn(embedded, start)[0][-1]
        assert torch.allclose(state, expected, atol=1e-6)


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "last_mean_max"])
def test_summaries_are_what_the_head_sees(cell: str, bidirectional: bool, pooling: str) -> None:
    network = network_of(cell, 2, bidirectional, pooling=pooling, initial_state="learned")
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
        pytest.param(
            {"cell": "lstm", "pooling": "last_mean_max", "initial_state": "learned"},
            "W_hg",
            marks=pytest.mark.slow,
        ),
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
    run = copy_of_run(
        run_dir, tmp_path / "run", lambda tensors: tensors[f"model/{name}"].fill_(math.nan)
    )
    done = run_rnncls("explain", run, "--states", tmp_path / "states.png")
    assert done.returncode == 7, done.stderr
    assert "error[K13]: the model's states are not numbers" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_without_an_answer_in_its_states(run_dir: Path, tmp_path: Path) -> None:
    def empty(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.startswith("model/"):
                tensor.zero_()

    run = copy_of_run(run_dir, tmp_path / "run", empty)
    text, found = explain(run, tmp_path / "states.png")
    assert "does not find the running sum" in text
    assert found["planes"][0]["share"] is None
    assert found["recurrent"][0]["spectral_radius"] == 0


@pytest.mark.slow
def test_the_ring_of_ten(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = run_rnncls("train", "--config", "configs/sum_mod_10_plain.yaml", "--run-dir", run)
    assert done.returncode == 0, done.stderr
    _, found = explain(run, tmp_path / "states.png")
    best, *_, principal = found["planes"]
    assert best["accuracy_held_out"] >= 0.99
    assert best["in_cyclic_order"]
    assert principal["accuracy_held_out"] < 0.2
    orders = [list(map(int, order)) for order in ("0123456789", "0741852963")]
    assert best["order"] in orders
