"""What scripts/length_failures measures, against networks whose numbers are known."""

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rnncls
from rnncls.model.classifier import RNNClassifier
from scripts.length_failures.measuring import (
    Array,
    Network,
    class_means,
    drift,
    ending,
    greatest_growth,
    lyapunov_exponents,
    margins,
    neighbour_distance,
    seen_directions,
)
from scripts.length_failures.runs import kept_times, network_of, repeating
from tests.helpers import PYTHON, run_command


def exact(modulus: int) -> Network:
    """Return a relu network that counts without error: one unit is 1, all others are 0.

    Unit u * modulus + v is the one if the sum is u and v came last. Without a state its input says
    so: u is v. From a sum w that is not 0, v leads to w + v instead, and the input is taken back.
    """
    size = modulus**2
    recurrent = np.zeros((size, size), np.float32)
    inputs = np.full((modulus, size), -1.0, np.float32)
    head = np.zeros((modulus, size), np.float32)
    for digit in range(modulus):
        for total in range(modulus):
            unit = total * modulus + digit
            inputs[digit, unit] = float(total == digit)
            head[total, total * modulus : (total + 1) * modulus] = 1.0
        for before in range(1, modulus):
            of_before = slice(before * modulus, (before + 1) * modulus)
            recurrent[(before + digit) % modulus * modulus + digit, of_before] += 1.0
            recurrent[digit * modulus + digit, of_before] -= 1.0
    return Network(recurrent, inputs, head, np.zeros(modulus, np.float32), "relu")


def linear(matrix: Array) -> Network:
    """Return a relu network whose units are always active, so that its Jacobian is the matrix."""
    size = len(matrix)
    return Network(matrix, np.full((2, size), 100.0), np.eye(2, size), np.zeros(2), "relu")


def drawn(nonlinearity: Literal["tanh", "relu"]) -> RNNClassifier:
    """Return a model with random weights for five digits and five classes."""
    torch.manual_seed(0)
    return RNNClassifier(5, 5, embedding_dim=4, hidden_size=6, nonlinearity=nonlinearity).eval()


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_margins_are_those_of_the_model_on_each_prefix(
    nonlinearity: Literal["tanh", "relu"],
) -> None:
    model = drawn(nonlinearity)
    digits = np.random.default_rng(1).integers(0, 5, (3, 7))
    found = margins(network_of(model), digits)

    for row, sequence in enumerate(digits.tolist()):
        for end in range(1, len(sequence) + 1):
            prefix = sequence[:end]
            logits = model(pack_sequence([torch.tensor(prefix)]))[0].tolist()
            right = logits.pop(sum(prefix) % 5)
            assert found[row, end - 1] == pytest.approx(right - max(logits), abs=1e-5)


def test_class_means_are_those_of_a_plain_loop() -> None:
    model = drawn("tanh")
    digits = np.random.default_rng(2).integers(0, 5, (20, 4))
    states: dict[int, list[Array]] = {}
    for sequence in digits.tolist():
        for end in range(1, 5):
            (state,) = model.final_state(pack_sequence([torch.tensor(sequence[:end])]))
            of_class = states.setdefault(sum(sequence[:end]) % 5, [])
            of_class.append(state[0, 0].detach().numpy())

    wanted = np.array([np.mean(states[label], axis=0) for label in range(5)])
    np.testing.assert_allclose(class_means(network_of(model), digits), wanted, atol=1e-6)


def test_a_network_that_counts_exactly_stays_where_it_is_on_zeros() -> None:
    network = exact(5)
    zeros = repeating(5, 100)["zeros"]
    means = np.eye(25)[::5]  # of the units that stand for each sum with a zero behind it
    found = drift(network, zeros, means)

    # After the first digit another unit of the same class is active, which the head cannot tell.
    np.testing.assert_allclose(found.seen, 0, atol=1e-7)
    np.testing.assert_allclose(found.rest[:, 0], 1, atol=1e-7)
    np.testing.assert_allclose(found.rest[:, 1:], 0, atol=1e-7)
    np.testing.assert_array_equal(found.margins, 1)
    assert found.ends == ["stops"] * 4

    # What is active stays active and reads itself, so that an error stays too.
    assert lyapunov_exponents(network, zeros[0], 1, skip=10)[0] == pytest.approx(0, abs=1e-12)


def test_a_network_that_counts_exactly_has_margin_one_on_everything() -> None:
    network = exact(4)
    random = np.random.default_rng(3).integers(0, 4, (10, 200))
    np.testing.assert_array_equal(margins(network, random), 1)

    for name, digits in repeating(4, 100).items():
        found = drift(network, digits, class_means(network, random))
        np.testing.assert_array_equal(found.margins, 1)
        assert set(found.ends) <= {"stops", "cycles"}, name


def test_the_two_parts_of_the_drift_are_all_of_it() -> None:
    network = network_of(drawn("tanh"))
    digits = np.random.default_rng(4).integers(0, 5, (6, 3))
    means = class_means(network, digits)
    found = drift(network, digits, means)
    unit = neighbour_distance(means)

    state = np.zeros(6)
    for time, digit in enumerate(digits[0]):
        state = np.tanh(network.recurrent @ state + network.inputs[digit])
        delta = state - means[digits[0, : time + 1].sum() % 5]
        both = found.seen[0, time] ** 2 + found.rest[0, time] ** 2
        assert both == pytest.approx((delta**2).sum() / unit**2, rel=1e-4)


def test_what_the_head_sees_decides_which_class_wins() -> None:
    head = np.random.default_rng(5).standard_normal((4, 9))
    basis = seen_directions(head)
    np.testing.assert_allclose(basis.T @ basis, np.eye(3), atol=1e-12)

    change = np.random.default_rng(6).standard_normal(9)
    unseen = change - basis @ (basis.T @ change)
    logits = head @ unseen
    np.testing.assert_allclose(logits, logits[0], atol=1e-12)


def test_neighbours_are_the_nearest_means() -> None:
    # 1, 1 and 3 from the nearest.
    assert neighbour_distance(np.array([[0.0], [1.0], [4.0]])) == pytest.approx(5 / 3)


def test_endings_are_told_apart() -> None:
    turns = np.arange(65)
    still = np.ones((65, 2))
    assert ending(still, unit=1, size=1) == "stops"
    assert ending(20 * still, unit=1, size=1) == "grows"
    assert ending(np.stack([turns % 7, turns % 7], 1), unit=1, size=1) == "cycles"
    assert ending(np.stack([turns / 100, 0 * turns], 1), unit=1, size=1) == "moves"
    assert ending(np.full((65, 2), np.nan), unit=1, size=1) == "grows"


def test_exponents_of_a_linear_network_are_the_logarithms_of_its_eigenvalues() -> None:
    matrix = np.array([[0.9, 0.3, 0.1], [0.0, 0.5, 0.2], [0.0, 0.0, 0.2]])
    digits = np.zeros(1000, np.int64)
    found = lyapunov_exponents(linear(matrix), digits, 3, skip=50)
    np.testing.assert_allclose(found, np.log([0.9, 0.5, 0.2]), atol=1e-3)

    power = np.linalg.matrix_power(matrix, 19)
    wanted = np.log(np.linalg.norm(power, 2)) / 19
    assert greatest_growth(linear(matrix), digits[:20]) == pytest.approx(wanted, abs=1e-12)


def test_exponents_of_tanh_have_its_slope() -> None:
    # One unit with the fixed point h = tanh(w h + a), whose exponent is log(w (1 - h^2)).
    state = 0.6
    weight = 0.8
    inputs = np.full((2, 1), np.arctanh(state) - weight * state)
    network = Network(np.array([[weight]]), inputs, np.ones((2, 1)), np.zeros(2), "tanh")
    found = lyapunov_exponents(network, np.zeros(500, np.int64), 1, skip=300)
    assert found[0] == pytest.approx(np.log(weight * (1 - state**2)), abs=1e-9)


def test_an_error_in_units_that_are_off_dies_at_once() -> None:
    network = Network(np.eye(2), np.full((2, 2), -1.0), np.eye(2), np.zeros(2), "relu")
    assert lyapunov_exponents(network, np.zeros(20, np.int64), 1)[0] < -700
    assert np.isfinite(greatest_growth(network, np.zeros(20, np.int64)))


def test_repeating_sequences_are_what_their_names_say() -> None:
    found = repeating(3, 4)
    assert found["zeros"].tolist() == [[1, 0, 0, 0], [2, 0, 0, 0]]
    assert found["repeated"].tolist() == [[1, 1, 1, 1], [2, 2, 2, 2]]
    assert [0, 2, 0, 2] in found["alternating"].tolist()
    assert len(found["alternating"]) == 6
    assert len(repeating(30, 4)["alternating"]) == 100


def test_the_times_that_are_kept_rise_to_the_last() -> None:
    times = kept_times(1000)
    assert times[0] == 1
    assert times[-1] == 1000
    assert sorted(set(times)) == times


@pytest.mark.slow
def test_the_command_writes_numbers_and_pictures_of_runs_that_it_can_measure(
    tmp_path: Path,
) -> None:
    small = {"train.max_steps": 3, "train.engine": "eager", "model.hidden_size": 8}
    values = {**small, "schedule.warmup_steps": 2, "train.label_smoothing": 0.1}
    rnncls.fit(rnncls.load_config("configs/smoke.yaml", values), tmp_path / "runs" / "one")
    rnncls.fit(
        rnncls.load_config("configs/smoke.yaml", {**values, "model.cell": "gru"}),
        tmp_path / "gru",
    )
    options = ["--output", str(tmp_path / "out"), "--length", "50", "--drift-length", "20"]

    command = [PYTHON, "-m", "scripts.length_failures"]
    done = run_command([*command, str(tmp_path / "runs"), *options])
    assert done.returncode == 0, done.stderr
    assert "smoothing 0.1" in done.stderr
    (result,) = json.loads((tmp_path / "out" / "length_failures.json").read_text())
    assert result["margins"]["times"][-1] == 50
    for name in ("margins", "drift", "exponents"):
        png = (tmp_path / "out" / f"length_failures_{name}.png").read_bytes()
        assert png.startswith(b"\x89PNG")

    done = run_command([*command, str(tmp_path / "gru"), *options])
    assert done.returncode != 0
    assert "model.initial_state" in done.stderr
