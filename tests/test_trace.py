"""rnncls explain RUN "3 7 1 9": what is computed at every step, compared with NumPy in float64."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from rnncls.errors import RnnclsError
from rnncls.inspect.importance import Importance
from rnncls.inspect.subject import Subject, load_subject
from rnncls.inspect.trace import computed as computed_module
from rnncls.inspect.trace import question as question_module
from rnncls.inspect.trace.computed import Computed, pieces_of
from rnncls.inspect.trace.json_lines import write_json
from rnncls.inspect.trace.question import ask
from rnncls.inspect.trace.text import MOST_ROWS, text_of
from rnncls.inspect.trace.trace import Trace, trace
from rnncls.model.cells import weights_of
from rnncls.model.classifier import RNNClassifier
from rnncls.model.probes import saturation
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.system.shown import WIDTH
from rnncls.training.fit import fit
from tests.helpers import (
    PYTHON,
    change_checkpoint,
    files_config,
    run_command,
    run_rnncls,
    some_rows,
    write_jsonl,
)

row = pytest.mark.row

Array = Any  # of NumPy, float64

KINDS: dict[str, dict[str, Any]] = {
    "tanh": {"cell": "rnn", "nonlinearity": "tanh"},
    "relu": {"cell": "rnn", "nonlinearity": "relu"},
    "lstm": {"cell": "lstm"},
    "gru": {"cell": "gru"},
}


# --- an independent recurrence, from the formulas in the documentation of torch.nn


class Layer(NamedTuple):
    """One direction of one layer: rows are time steps."""

    input: Array
    memory: Array
    pre_activation: Array
    gates: dict[str, Array]
    cell: Array  # None but of the LSTM
    state: Array


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def numpy_layer(network: RNNClassifier, suffix: str, inputs: Array, start: Array) -> Layer:
    """Run one direction in the order of `inputs`, one step at a time.

    `start` has h_0 and, of the LSTM, c_0 as its rows.
    """
    weights = {
        name: tensor.double().numpy()
        for name, tensor in network.rnn.state_dict().items()
        if name.endswith(suffix) and ("reverse" in suffix or "reverse" not in name)
    }
    w_ih = weights[f"weight_ih_{suffix}"]
    w_hh = weights[f"weight_hh_{suffix}"]
    b_ih = weights.get(f"bias_ih_{suffix}", np.zeros(len(w_ih)))
    b_hh = weights.get(f"bias_hh_{suffix}", np.zeros(len(w_hh)))

    size = network.rnn.hidden_size
    h = start[0]
    c = start[-1]
    rows: dict[str, list[Array]] = {}

    def note(**values: Array) -> None:
        for name, value in values.items():
            rows.setdefault(name, []).append(value)

    for x in inputs:
        from_input = w_ih @ x + b_ih
        from_memory = w_hh @ h + b_hh
        a = np.split(from_input, len(w_ih) // size)
        b = np.split(from_memory, len(w_ih) // size)
        if network.rnn.mode == "LSTM":
            i, f, o = (sigmoid(a[k] + b[k]) for k in (0, 1, 3))
            g = np.tanh(a[2] + b[2])
            c = f * c + i * g
            h = o * np.tanh(c)
            note(pre=from_input + from_memory, i=i, f=f, g=g, o=o, cell=c)
        elif network.rnn.mode == "GRU":
            r = sigmoid(a[0] + b[0])
            z = sigmoid(a[1] + b[1])
            n = np.tanh(a[2] + r * b[2])
            h = (1 - z) * n + z * h
            note(pre=np.concatenate([a[0] + b[0], a[1] + b[1], a[2] + r * b[2]]), r=r, z=z, n=n)
        else:
            pre = from_input + from_memory
            h = np.tanh(pre) if network.rnn.mode == "RNN_TANH" else np.maximum(pre, 0)
            note(pre=pre)
        note(input=from_input, memory=from_memory, state=h)

    found = {name: np.array(of_name) for name, of_name in rows.items()}
    gates = {name: found[name] for name in found if len(name) == 1}
    pre = found["pre"]
    return Layer(found["input"], found["memory"], pre, gates, found.get("cell"), found["state"])


def numpy_network(network: RNNClassifier, ids: list[int]) -> tuple[list[list[Layer]], Array]:
    """Return every layer and direction, in time order, and the logits."""
    data = network.embedding.weight.detach().double().numpy()[ids]
    num_states = network.rnn.num_layers * network.num_directions
    starts = np.zeros((2, num_states, network.rnn.hidden_size))
    if network.initial_state is not None:
        starts = network.initial_state.detach().double().numpy()
    layers = []
    for number in range(network.rnn.num_layers):
        first = number * network.num_directions
        directions = [numpy_layer(network, f"l{number}", data, starts[:, first])]
        if network.num_directions == 2:
            backward = numpy_layer(network, f"l{number}_reverse", data[::-1], starts[:, first + 1])
            gates = {name: gate[::-1] for name, gate in backward.gates.items()}
            cell = None if backward.cell is None else backward.cell[::-1]
            pre = backward.pre_activation[::-1]
            parts = (backward.input[::-1], backward.memory[::-1], pre)
            directions.append(Layer(*parts, gates, cell, backward.state[::-1]))
        layers.append(directions)
        data = np.concatenate([direction.state for direction in directions], axis=1)

    summary = np.concatenate(list(numpy_summary(network, layers[-1]).values()))
    head = network.head
    logits = head.weight.detach().double().numpy() @ summary
    return layers, logits + head.bias.detach().double().numpy()


def numpy_summary(network: RNNClassifier, top: list[Layer]) -> dict[str, Array]:
    """Return what the head sees of the last layer, by name."""
    states = np.concatenate([layer.state for layer in top], axis=1)
    ends = [top[0].state[-1], *(layer.state[0] for layer in top[1:])]
    parts = {"last": np.concatenate(ends), "mean": states.mean(0), "max": states.max(0)}
    return {name: part for name, part in parts.items() if name in network.pooling.split("_")}


def require_close(found: torch.Tensor, expected: Array) -> None:
    largest = np.abs(expected).max()
    np.testing.assert_allclose(found.double().numpy(), expected, rtol=0, atol=1e-5 * largest)


def require_same(found: Computed, expected: Layer) -> None:
    require_close(found.input, expected.input)
    require_close(found.memory, expected.memory)
    require_close(found.pre_activation, expected.pre_activation)
    require_close(found.state, expected.state)
    assert set(found.gates) == set(expected.gates)
    for name, gate in expected.gates.items():
        require_close(found.gates[name], gate)
    assert (found.cell is None) == (expected.cell is None)
    if found.cell is not None:
        require_close(found.cell, expected.cell)


def network_of(kind: str, **options: Any) -> RNNClassifier:
    torch.manual_seed(0)
    options = {"embedding_dim": 6, "hidden_size": 9, **KINDS[kind], **options}
    network = RNNClassifier(7, 4, **options).eval()
    if network.initial_state is not None:
        nn.init.normal_(network.initial_state)
    return network


def whole_of(network: RNNClassifier, ids: list[int]) -> list[list[Computed]]:
    """Put the pieces together again."""
    pieces = list(pieces_of(network, torch.tensor(ids)))

    def joined(parts: list[Any]) -> Any:
        if isinstance(parts[0], dict):
            return {name: joined([part[name] for part in parts]) for name in parts[0]}
        return None if parts[0] is None else torch.cat(parts)

    layers = []
    for layer in range(network.rnn.num_layers):
        directions = []
        for direction in range(network.num_directions):
            parts = [piece.layers[layer][direction] for piece in pieces]
            directions.append(Computed(*map(joined, map(list, zip(*parts, strict=True)))))
        layers.append(directions)
    return layers


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("bias", "initial_state"), [(False, "zeros"), (True, "zeros"), (True, "learned")]
)
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_that_of_an_independent_recurrence(
    kind: str,
    num_layers: int,
    bias: bool,
    initial_state: str,
    bidirectional: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 40 steps are three pieces, the last of which is shorter.
    monkeypatch.setattr(computed_module, "PIECE_STEPS", 16)
    options: dict[str, Any] = {"num_layers": num_layers, "bidirectional": bidirectional}
    network = network_of(kind, bias=bias, initial_state=initial_state, **options)
    for length in (1, 2, 40):
        ids = torch.randint(7, (length,)).tolist()
        expected, _ = numpy_network(network, ids)
        found = whole_of(network, ids)
        for directions, of_layer in zip(found, expected, strict=True):
            for computed, layer in zip(directions, of_layer, strict=True):
                require_same(computed, layer)


# --- subjects


def subject_with(run: Path, network: RNNClassifier) -> Subject:
    """Put another network into the run of a model of sum_mod."""
    subject = load_subject(run, "cpu")
    labels = tuple(range(network.head.out_features))
    predictor = replace(subject.predictor, network=network, labels=labels)
    return subject._replace(predictor=predictor)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a file, whose sequences are cut to 20 tokens."""
    folder = tmp_path_factory.mktemp("words")
    path = write_jsonl(folder / "rows.jsonl", some_rows(60))
    fit(files_config(path, {"max_steps": 4}, max_length=20, truncate="tail"), folder / "run")
    return folder / "run"


def fake_importance(_: RNNClassifier, ids: list[int], label: int) -> Importance:
    return Importance(
        label, [0.5 - k for k in range(len(ids))], [0.25 * k for k in range(len(ids))]
    )


@pytest.fixture
def importance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(question_module, "importance_of", fake_importance)


def lines_of(subject: Subject, text: str, label: str | None = None) -> list[dict[str, Any]]:
    file = io.StringIO()
    write_json(ask(subject, text, label), file)
    return [json.loads(line) for line in file.getvalue().splitlines()]


def traced(subject: Subject, text: str) -> Trace:
    return trace(ask(subject, text))


# --- answers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("pooling", "initial_state"),
    [("last", "zeros"), ("mean", "zeros"), ("max", "learned"), ("last_mean_max", "learned")],
)
def test_every_prefix_has_the_answer_of_predict(
    run_dir: Path,
    kind: str,
    bidirectional: bool,
    pooling: str,
    initial_state: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What was pooled goes from one piece to the next.
    monkeypatch.setattr(computed_module, "PIECE_STEPS", 8)
    options: dict[str, Any] = {"pooling": pooling, "initial_state": initial_state}
    network = network_of(kind, num_layers=2, bidirectional=bidirectional, **options)
    subject = subject_with(run_dir, network)
    tokens = torch.randint(3, (30,)).tolist()
    found = traced(subject, " ".join(map(str, tokens)))
    prefixes = [tokens[: length + 1] for length in range(30)]
    expected = subject.predictor.predict(prefixes)

    assert found.answers is not None
    assert found.answers.predicted.tolist() == [answer.label for answer in expected]
    probabilities = [answer.probability for answer in expected]
    assert found.answers.probability.tolist() == pytest.approx(probabilities, abs=1e-6)

    # The logits are also those of the independent recurrence.
    layers, logits = numpy_network(network, tokens)
    np.testing.assert_allclose(found.question.logits.detach().numpy(), logits, atol=1e-5)

    summary = numpy_summary(network, layers[-1])
    seen = np.concatenate(list(summary.values()))
    np.testing.assert_allclose(found.summary, seen, atol=1e-5)

    # In JSON, what the head sees is in the last line, unless it is the state there.
    header, *steps = lines_of(subject, " ".join(map(str, tokens)))
    assert (header["pooling"], header["initial_state"]) == (pooling, initial_state)
    assert not any("summary" in step for step in steps[:-1])
    shown = steps[-1].get("summary", {})
    assert set(shown) == (set() if pooling == "last" else set(summary))
    for name, vector in shown.items():
        assert vector == pytest.approx(summary[name], abs=1e-5)


def test_truth_and_answer_part_at_the_first_wrong_prefix(run_dir: Path) -> None:
    subject = load_subject(run_dir)
    text = " ".join(["2"] * 60)
    found = traced(subject, text)
    answers = subject.predictor.predict([[2] * (k + 1) for k in range(60)])
    wrong = [k for k in range(60) if answers[k].label != 2 * (k + 1) % 3]
    assert wrong, "this run is right at all lengths: the test needs a longer sequence"
    assert found.parting == wrong[0]

    (marked,) = [line for line in text_of(found).splitlines() if line.endswith("<- parts")]
    assert marked.split()[0] == str(wrong[0] + 1)
    conclusion = " ".join(text_of(found).split())
    assert f"part first after token {wrong[0] + 1}" in conclusion
    assert f"{60 - len(wrong)} of 60 prefixes are answered right" in conclusion


def test_two_directions_have_no_prefixes_of_a_long_sequence(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(question_module, "MOST_PREFIXES", 4)
    subject = subject_with(run_dir, network_of("lstm", bidirectional=True))
    with_prefixes = traced(subject, "1 2 0 1")
    assert with_prefixes.answers is not None
    assert capsys.readouterr().err == ""

    without = traced(subject, "1 2 0 1 1")
    assert without.answers is None
    assert without.parting is None
    assert "at most 4 tokens" in capsys.readouterr().err
    assert "after each token" not in text_of(without)
    assert "The model says" in text_of(without)
    header, *steps = lines_of(subject, "1 2 0 1 1")
    assert header["predicted"] is not None
    assert all("predicted" not in step for step in steps)


# --- JSON


@pytest.mark.parametrize("kind", KINDS)
def test_json_has_every_number(run_dir: Path, kind: str) -> None:
    network = network_of(kind, num_layers=3, bidirectional=True)
    subject = subject_with(run_dir, network)
    header, *steps = lines_of(subject, "1 2 0 1 1")
    layers, logits = numpy_network(network, [1, 2, 0, 1, 1])
    assert header["logits"] == pytest.approx(logits, abs=1e-5)
    assert sum(header["probabilities"]) == pytest.approx(1)
    assert header["tokens"] == ["1", "2", "0", "1", "1"]
    assert [step["t"] for step in steps] == [1, 2, 3, 4, 5]
    assert [step["true"] for step in steps] == [1, 0, 0, 1, 2]
    assert steps[-1]["logits"] == header["logits"]

    places = [(layer, name) for layer in range(3) for name in ("forward", "reverse")]
    for t, step in enumerate(steps):
        assert [(one["layer"], one["direction"]) for one in step["layers"]] == places
        for one in step["layers"]:
            expected = layers[one["layer"]][int(one["direction"] == "reverse")]
            require_numbers(one, expected, t, kind)


def require_numbers(found: dict[str, Any], expected: Layer, t: int, kind: str) -> None:
    """Compare the object of one step, layer and direction."""
    close: dict[str, Any] = {"abs": 1e-5, "rel": 1e-5}
    vectors = {name: getattr(expected, name)[t] for name in ("input", "memory", "state")}
    vectors["pre_activation"] = expected.pre_activation[t]
    if expected.cell is not None:
        vectors["cell"] = expected.cell[t]
        assert found["cell_norm"] == pytest.approx(np.linalg.norm(vectors["cell"]), **close)
    for name, vector in vectors.items():
        assert found[name] == pytest.approx(vector, **close)
    for name in ("input", "memory", "state"):
        assert found[f"{name}_norm"] == pytest.approx(np.linalg.norm(vectors[name]), **close)
    for name in ("pre_activation", "state"):
        assert found[f"{name}_min"] == pytest.approx(vectors[name].min(), **close)
        assert found[f"{name}_max"] == pytest.approx(vectors[name].max(), **close)
    if expected.gates:
        gates = {name: gate[t] for name, gate in expected.gates.items()}
        assert found["gates"] == {name: pytest.approx(gates[name], **close) for name in gates}
        means = {name: pytest.approx(gates[name].mean(), **close) for name in gates}
        shown = "ifo" if kind == "lstm" else "rz"
        assert found["gate_means"] == {name: means[name] for name in shown}
    if kind == "relu":
        assert found["off"] == pytest.approx((vectors["state"] == 0).mean())
    else:
        assert found["saturated"] == 0


def test_saturation_counts_units_beyond_the_bound_or_at_zero() -> None:
    activations = torch.tensor([[0.995, -0.995, 0.985, 0.0], [0.0, 0.0, 0.5, 1.0]])
    assert saturation(activations, is_relu=False).tolist() == [0.5, 0.25]
    assert saturation(activations, is_relu=True).tolist() == [0.5, 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_saturated_is_what_the_nonlinearity_returned(run_dir: Path, kind: str) -> None:
    """Large weights saturate: of the gated cells it is tanh(c_t) and n_t that count, not h_t."""
    network = network_of(kind)
    with torch.no_grad():
        network.rnn.get_parameter("weight_ih_l0").mul_(12)
    _, *steps = lines_of(subject_with(run_dir, network), "1 2 0 1 1 2")
    (((layer,),), _) = numpy_network(network, [1, 2, 0, 1, 1, 2])

    if kind == "relu":
        expected = (layer.state == 0).mean(1)
        found = [step["layers"][0]["off"] for step in steps]
    else:
        activation = layer.state
        if kind == "lstm":
            activation = np.tanh(layer.cell)
        elif kind == "gru":
            activation = layer.gates["n"]
        expected = (np.abs(activation) > 0.99).mean(1)
        found = [step["layers"][0]["saturated"] for step in steps]
    assert found == pytest.approx(expected)
    assert max(found) > 0


@pytest.mark.slow
def test_a_reader_may_leave_after_the_first_line(run_dir: Path, tmp_path: Path) -> None:
    code = "import sys; print(sys.stdin.readline())"
    words = f"{PYTHON} -m rnncls explain {run_dir} '{'1 2 ' * 20000}' --json"
    script = tmp_path / "pipe.sh"
    script.write_text(f"set -o pipefail\n{words} | {PYTHON} -c '{code}' > first.json\n")
    done = run_command(["bash", script], cwd=tmp_path, env=None)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads((tmp_path / "first.json").read_text())["num_tokens"] == 40_000


# --- the table


def table_rows(text: str) -> list[str]:
    """Return the rows of the first table, dots included."""
    block = text.split("\n\n")[1]
    return [line.split()[0] for line in block.splitlines()[2:]]


def test_a_long_table_has_its_ends_and_where_answers_go_wrong(run_dir: Path) -> None:
    subject = load_subject(run_dir)
    ids = torch.randint(3, (200,), generator=torch.Generator().manual_seed(1))
    question = ask(subject, " ".join(map(str, ids.tolist())))
    for parting, shown in [
        (None, [*range(1, 21), "...", *range(181, 201)]),
        (5, [*range(1, 21), "...", *range(181, 201)]),
        (180, [*range(1, 21), "...", *range(181, 201)]),
        (20, [*range(1, 22), "...", *range(182, 201)]),
        (100, [*range(1, 21), "...", 101, "...", *range(182, 201)]),
        (179, [*range(1, 21), "...", 180, "...", *range(182, 201)]),
    ]:
        # Where the truth is what the model says, nothing is wrong.
        answers = trace(question).answers
        assert answers is not None
        truth = answers.predicted.copy()
        if parting is not None:
            truth[parting:] = (truth[parting:] + 1) % 3
        whole = trace(question._replace(truth=truth))
        assert len(whole.rows) < 100
        text = text_of(whole)
        assert table_rows(text) == list(map(str, shown))
        assert sum(name != "..." for name in table_rows(text)) == MOST_ROWS
        assert ("<- parts" in text) == (parting is not None)

    short = text_of(traced(subject, "1 " * 40))
    assert table_rows(short) == [str(t) for t in range(1, 41)]


@pytest.mark.parametrize("kind", ["tanh", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_trained_initial_state_and_what_is_pooled_have_tables(
    run_dir: Path, kind: str, bidirectional: bool
) -> None:
    options: dict[str, Any] = {"bidirectional": bidirectional, "initial_state": "learned"}
    network = network_of(kind, pooling="last_mean_max", **options)
    subject = subject_with(run_dir, network)
    found = traced(subject, "1 2 0")
    text = text_of(found)
    assert max(map(len, text.splitlines())) <= WIDTH
    heading, before, *_, seen, _, _ = text.split("\n\n")
    assert "model.pooling: last_mean_max" in heading
    assert "model.initial_state: learned" in heading

    # A row for each direction: the norms of h_0 and c_0.
    header, *_ = lines_of(subject, "1 2 0")
    title, _, *rows = before.splitlines()
    assert title == "before the first token: trained"
    names = ["layer 0, forward", "layer 0, reverse"] if bidirectional else ["layer 0"]
    assert network.initial_state is not None
    for direction, (name, line) in enumerate(zip(names, rows, strict=True)):
        assert line.startswith(name)
        numbers = line.removeprefix(name).split()
        vectors = network.initial_state[:, direction].double()
        norms = vectors.norm(dim=1).tolist()
        assert [float(number) for number in numbers[::2]] == pytest.approx(norms, rel=0.01)
        state = header["states_before"][direction]
        parts = [state["state"], state["cell"]] if kind == "lstm" else [state["state"]]
        assert parts == vectors.tolist()

    _, _, *rows = seen.splitlines()
    assert len(rows) == 3 * network.num_directions
    norms = [float(line.split()[-2]) for line in rows]
    vectors_seen = np.split(found.summary, len(rows))
    assert norms == pytest.approx([np.linalg.norm(one) for one in vectors_seen], rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_tables_fit_in_80_columns(run_dir: Path, kind: str, bidirectional: bool) -> None:
    network = network_of(kind, num_layers=2, bidirectional=bidirectional)
    with torch.no_grad():
        network.embedding.weight[1] *= 1e5
    subject = subject_with(run_dir, network)
    text = text_of(traced(subject, "1 2 0 " * 60))
    assert max(map(len, text.splitlines())) <= WIDTH
    for layer in range(2):
        assert (f"layer {layer}\n" in text) == (not bidirectional)
        assert (f"layer {layer}, forward\n" in text) == bidirectional
        assert (f"layer {layer}, reverse\n" in text) == bidirectional


def test_a_small_network_has_one_table(run_dir: Path) -> None:
    text = text_of(traced(load_subject(run_dir), "1 2 0 1"))
    heading, table, legend, conclusion = text.split("\n\n")
    assert heading.splitlines()[2].split() == ["sequence", "4", "tokens:", "1", "2", "0", "1"]
    title, names, *rows = table.splitlines()
    assert title == "layer 0"
    assert names.split() == "t token input memory sum |h| h off says p true".split()  # noqa: SIM905
    _, *steps = lines_of(load_subject(run_dir), "1 2 0 1")
    for line, step in zip(rows, steps, strict=True):
        cells = line.split()
        (layer,) = step["layers"]
        assert float(cells[2]) == pytest.approx(layer["input_norm"], rel=0.01)
        assert float(cells[3]) == pytest.approx(layer["memory_norm"], rel=0.01)
        low, high = map(float, cells[4].split(".."))
        assert low == pytest.approx(layer["pre_activation_min"], abs=0.1)
        assert high == pytest.approx(layer["pre_activation_max"], abs=0.1)
        assert cells[7] == f"{layer['off']:.0%}"
        assert [cells[8], cells[10]] == [str(step["predicted"]), str(step["true"])]
        assert float(cells[9]) == pytest.approx(step["probability"], abs=1e-4)
    assert "off = units at 0" in " ".join(legend.split())
    assert conclusion.startswith("The model says ")


@pytest.mark.usefixtures("importance")
def test_foreign_tokens_stay_in_their_cell(words: Path) -> None:
    subject = load_subject(words)
    known = subject.predictor
    vocabulary = replace(known.vocabulary, has_unknown=True)
    data = known.data.model_copy(update={"tokens": "words"})
    predictor = replace(known, vocabulary=vocabulary, data=data)
    token = "\x1b[31m" + "y" * 500
    text = text_of(traced(subject._replace(predictor=predictor), f"{token} 1"))
    (unknown,) = [line for line in text.splitlines() if line.startswith("unknown")]
    assert "yyy" in unknown
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= WIDTH


# --- files: labels, importance, max_length


@pytest.mark.usefixtures("importance")
def test_tokens_of_files_have_their_importance(words: Path) -> None:
    subject = load_subject(words)
    predicted = subject.predictor.predict(["1 2 0"])[0].label
    header, *steps = lines_of(subject, "1 2 0")
    assert header["importance_of"] == predicted
    assert [step["left_out"] for step in steps] == [0.5, -0.5, -1.5]
    assert [step["gradient"] for step in steps] == [0.0, 0.25, 0.5]
    assert header["true"] is None

    for label in subject.predictor.labels:
        assert lines_of(subject, "1 2 0", str(label))[0]["importance_of"] == label
    text = " ".join(text_of(trace(ask(subject, "1 2 0", "2"))).split())
    assert "left out gradient" in text
    assert "log p(2)" in text
    assert "+0.50" in text


def test_a_sequence_too_long_to_leave_tokens_out_has_no_such_column(
    words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_long(network: RNNClassifier, ids: list[int], label: int) -> Importance:
        return fake_importance(network, ids, label)._replace(left_out=None)

    monkeypatch.setattr(question_module, "importance_of", too_long)
    text = text_of(traced(load_subject(words), "1 2 0"))
    assert "left out" not in text
    assert "gradient" in text
    assert lines_of(load_subject(words), "1 2")[1]["left_out"] is None


@row("C17")
def test_a_label_that_is_unknown_or_of_no_use_is_refused(
    words: Path, run_dir: Path, fails: Callable[..., str]
) -> None:
    said = fails(2, "explain", words, "1 2", "--label", "9")
    assert "error[C17]: a label unknown to the model (--label 9)" in said
    assert "expected: 0, 1, 2" in said
    said = fails(2, "explain", run_dir, "1 2", "--label", "1")
    assert "error[C17]: --label is about a run on files" in said


@pytest.mark.usefixtures("importance")
def test_what_training_cuts_is_cut_and_said(
    words: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, *steps = lines_of(load_subject(words), "4 " * 5 + "1 " * 20)
    assert len(steps) == 20
    assert header["tokens"] == ["1"] * 20
    assert header["num_left_out"] == 5
    assert "the last 20 of 25 tokens" in capsys.readouterr().err


# --- the trace is what the model computes


@row("R35", by="unit")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_trace_that_is_not_the_models_is_a_bug(
    run_dir: Path, kind: str, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = network_of(kind, num_layers=2, bidirectional=bidirectional)
    subject = subject_with(run_dir, network)

    # The parts without one of their biases.
    with monkeypatch.context() as patch:
        patch.setattr(
            computed_module,
            "weights_of",
            lambda *place: [*weights_of(*place)[:3], torch.zeros_like(weights_of(*place)[3])],
        )
        with pytest.raises(RnnclsError, match="a bug in rnncls") as caught:
            traced(subject, "1 2 0 1")
        assert caught.value.problems[0].id == "R35"
        assert caught.value.exit_code == 1
        assert "layer 0, steps 1 to 4" in caught.value.problems[0].where

    # The model itself, with another answer.
    question = ask(subject, "1 2 0 1")
    moved = question.logits + torch.tensor([0.0, 0.01, 0.0, 0.0])
    with pytest.raises(RnnclsError, match=r"logits apart by 0\.01"):
        trace(question._replace(logits=moved))
    trace(question)

    # The model as it was asked, and then with another h_0, or another pooling.
    network = network_of(kind, bidirectional=bidirectional, initial_state="learned", pooling="mean")
    question = ask(subject_with(run_dir, network), "1 2 0 1")
    trace(question)
    network.pooling = "max"
    with pytest.raises(RnnclsError, match="logits apart"):
        trace(question)
    network.pooling = "mean"
    with torch.no_grad():
        for part in question.network.parameters():
            if part is network.initial_state:
                part.zero_()
    with pytest.raises(RnnclsError, match="logits apart"):
        trace(question)


def test_logits_that_rounding_decides_are_no_bug(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A chaotic network: two right ways to compute it have nothing in common after 200 steps."""
    network = network_of("tanh", hidden_size=64)
    with torch.no_grad():
        network.rnn.get_parameter("weight_hh_l0").mul_(5)
    subject = subject_with(run_dir, network)
    question = ask(subject, "1 2 0 " * 70)
    moved = question.logits + torch.tensor([0.0, 0.1, 0.0, 0.0])
    trace(question._replace(logits=moved))
    assert "rounding decides the logits" in capsys.readouterr().err


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_traced(
    run_dir: Path, value: float, bidirectional: bool
) -> None:
    network = network_of("lstm", bidirectional=bidirectional)
    with torch.no_grad():
        network.rnn.get_parameter("weight_hh_l0")[0, 0] = value
    subject = subject_with(run_dir, network)
    header, *steps = lines_of(subject, "1 2 0 1")
    if math.isnan(value):
        assert header["predicted"] is None
        assert header["probability"] is None
        assert steps[-1]["layers"][0]["memory_norm"] is None
        assert "The model's answer is not a number." in text_of(traced(subject, "1 2 0 1"))
    assert len(steps) == 4


@row("K13")
def test_a_checkpoint_with_nan_is_warned_of_and_traced(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    path.write_bytes(find_checkpoint(run_dir).read_bytes())

    name = "model/rnn.weight_hh_l0"
    change_checkpoint(path, lambda _, tensors: tensors[name][0].fill_(math.nan))
    done = run_rnncls("explain", path, "1 2")
    assert done.returncode == 0, done.stderr
    assert "warning[K13]" in done.stderr
    assert "nan" in done.stdout
    assert done.stdout.endswith("The model's answer is not a number.\n")


# --- long sequences


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_long_sequence_is_traced_in_little_memory(kind: str) -> None:
    code = f"""
import torch
from rnncls.inspect.trace.computed import pieces_of
from rnncls.system.process_memory import peak_bytes
from tests.test_trace import network_of
network = network_of({kind!r}, num_layers=2)
ids = torch.randint(7, (100_000,))
def grown(steps):
    for piece in pieces_of(network, ids[:steps]): pass
    return peak_bytes()
few = grown(5000)
print(grown(100_000) - few)
"""
    done = run_command([PYTHON, "-c", code])
    assert done.returncode == 0, done.stderr
    # The states of all steps alone would be 7 MB.
    assert int(done.stdout) < 4 * 2**20
