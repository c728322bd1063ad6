"""Every command with n-grams, positions and a skip, and with a model without recurrent layers."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import rnncls
from rnncls.config import Config, sizes
from rnncls.config.names import advice
from rnncls.dashboard.graph import nodes_of
from rnncls.dashboard.health import health_scalars
from rnncls.dashboard.projector import write_projector
from rnncls.data import SumModTask
from rnncls.errors import ConfigError, DataError
from rnncls.inspect.graph.build import rolled_graph, unrolled_graph
from rnncls.inspect.graph.graph import Architecture
from rnncls.inspect.importance import gradient_at_embeddings
from rnncls.inspect.padding.compare import compare_padding
from rnncls.inspect.subject import load_subject
from rnncls.inspect.trace import computed
from rnncls.inspect.trace.question import ask
from rnncls.inspect.trace.trace import steps_of
from rnncls.model.classifier import RNNClassifier
from rnncls.model.describe import describe_model
from rnncls.model.probes import summaries_of
from rnncls.predict import prefixes
from rnncls.predict.logits import logits_of
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from rnncls.training.states import new_state
from tests.helpers import (
    PYTHON,
    config_of,
    data_of,
    outcome,
    run_rnncls,
    sequences_of,
    started,
    wait_for,
    write_jsonl,
)

PARTS: dict[str, Any] = {"ngrams": [2, 3], "ngram_table": 30, "positions": "learned"}
MODELS: dict[str, dict[str, Any]] = {
    "one direction": {**PARTS, "cell": "gru", "skip": True},
    "pooled": {**PARTS, "cell": "rnn", "skip": True, "pooling": "last_mean_max"},
    "two directions": {**PARTS, "cell": "lstm", "skip": True, "bidirectional": True},
    "two layers": {"ngrams": [2], "cell": "gru", "num_layers": 2, "pooling": "mean"},
    "no recurrence": {**PARTS, "cell": "none"},
}
RECURRENT = [name for name in MODELS if name != "no recurrence"]


def config_with(model: dict[str, Any], max_length: int = 12) -> Config:
    data = {"modulus": 3, "min_length": 1, "max_length": max_length}
    train = {"max_steps": 6, "eval_every": 3, "checkpoint_every": 3, "eval_samples": 30}
    return config_of(data=data, model=model, train=train)


@pytest.fixture(scope="module", params=MODELS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps of each model."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    fit(config_with(MODELS[request.param]), folder)
    return folder


def is_recurrent(run: Path) -> bool:
    return load_subject(run).network.is_recurrent


TEXT = "1 2 0 0 1 2 2 1 0 1"
IDS = [int(token) for token in TEXT.split()]


def test_the_trace_is_what_the_model_computes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = load_subject(run)
    for piece_steps in (3, 1000):
        monkeypatch.setattr(computed, "PIECE_STEPS", piece_steps)
        question = ask(subject, TEXT)
        steps = list(steps_of(question))
        logits = torch.cat([part.logits for part in steps if part.logits is not None])

        # The answer to each prefix is that of the prefix alone.
        for length in range(1, len(IDS) + 1):
            alone = logits_of(subject.network, [IDS[:length]])[0]
            torch.testing.assert_close(logits[length - 1], alone, rtol=1e-4, atol=1e-5)

        # What the head sees gives the logits again.
        summary = steps[-1].summary
        assert summary is not None
        again = subject.network.head(summary)
        torch.testing.assert_close(again, question.logits, rtol=1e-4, atol=1e-5)


def test_explain_says_what_is_read_and_seen(run: Path) -> None:
    shown = run_rnncls("explain", run, TEXT)
    assert shown.returncode == 0
    assert "n-grams of 2" in shown.stdout
    assert max(map(len, shown.stdout.splitlines()[1:])) <= 80
    lines = run_rnncls("explain", run, TEXT, "--json").stdout.splitlines()
    assert len(lines) == 1 + len(IDS)
    about = json.loads(lines[0])
    last = json.loads(lines[-1])
    network = load_subject(run).network
    if network.skip or not network.is_recurrent:
        mean = network.embedded(pack_sequence([torch.tensor(IDS)])).mean(0)
        np.testing.assert_allclose(last["summary"]["mean_of_inputs"], mean.detach(), atol=1e-5)
        assert "mean of inputs" in shown.stdout
    assert about["ngrams"] == list(network.ngrams)
    assert about["num_positions"] == network.num_positions


def test_other_views_work_or_say_that_there_are_no_recurrent_layers(
    run: Path, tmp_path: Path
) -> None:
    views: list[list[str | Path]] = [
        ["--padding"],
        ["--gradients"],
        ["--states", tmp_path / "states.png"],
        # What becomes of a graph does not depend on the model: test_graph.py draws it.
        [TEXT, "--graph", tmp_path / "graph.dot"],
        ["--graph", tmp_path / "rolled.mmd", "--rolled"],
    ]
    for view in views:
        shown = run_rnncls("explain", run, *view)
        if is_recurrent(run) and view[0] == "--states":
            # A run of six steps may have too few states, which is another matter.
            assert shown.returncode in (0, 3)
        elif is_recurrent(run):
            assert shown.returncode == 0, shown.stderr
        else:
            assert shown.returncode == 2
            assert "this model has no recurrent layers" in shown.stderr
            assert "model.cell: none" in shown.stderr


@pytest.mark.parametrize("name", RECURRENT)
def test_ways_that_respect_padding_agree_with_the_model(name: str, tmp_path: Path) -> None:
    fit(config_with(MODELS[name]), tmp_path / "run")
    for way in compare_padding(load_subject(tmp_path / "run")).ways:
        if way.is_right:
            assert way.largest_difference < 1e-5, way.name


def network_of(**options: Any) -> RNNClassifier:
    torch.manual_seed(2)
    shape = {"embedding_dim": 4, "hidden_size": 5, "ngrams": (2, 3), "ngram_table": 30}
    network = RNNClassifier(8, 3, **{**shape, **options}).double().eval()
    for table in (network.ngram_embedding, network.position_embedding):
        if table is not None:
            torch.nn.init.normal_(table.weight)
    return network


@pytest.mark.parametrize("options", [
    {"cell": "none"},
    {"cell": "gru", "skip": True, "num_positions": 9},
    {"cell": "lstm", "skip": True, "bidirectional": True, "pooling": "last_mean_max"},
])  # fmt: skip
def test_the_gradient_of_importance_is_that_of_finite_differences(options: dict[str, Any]) -> None:
    network = network_of(**options)
    tokens = pack_sequence([torch.tensor([3, 1, 1, 7, 2])])
    read, gradient = gradient_at_embeddings(network, tokens.data, label=1)
    assert torch.equal(read, network.embedded(tokens))

    def log_p(data: torch.Tensor) -> float:
        network.embed = lambda *_: data  # type: ignore[method-assign]
        logits = network(tokens)
        del network.embed
        return float(logits.detach().log_softmax(1)[0, 1])

    small = 1e-6
    for place in np.ndindex(*read.shape):
        change = torch.zeros_like(read)
        change[place] = small
        slope = (log_p(read + change) - log_p(read - change)) / (2 * small)
        assert float(gradient[place]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_answers_to_prefixes_are_those_of_prefixes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(config_with({**PARTS, "cell": "lstm"}), tmp_path / "run")
    predictor = rnncls.load(tmp_path / "run")
    alone = predictor.predict([IDS[: length + 1] for length in range(len(IDS))])
    # Together with others; and read in parts, whose n-grams reach back into the part before.
    for most in (prefixes.MOST_TOKENS, 3):
        monkeypatch.setattr(prefixes, "MOST_TOKENS", most)
        found = predictor.predict_prefixes([[1], IDS, [2, 2]])[1]
        assert [one.label for one in found] == [one.label for one in alone]
        of_found = [one.probability for one in found]
        assert of_found == pytest.approx([one.probability for one in alone], rel=1e-5)


@pytest.mark.parametrize(
    ("model", "found"), [({"cell": "none"}, "model.cell: none"), ({"skip": True}, "model.skip")]
)
def test_prefixes_are_refused_where_a_mean_is_read(
    model: dict[str, Any], found: str, tmp_path: Path
) -> None:
    fit(config_with(model), tmp_path / "run")
    shown = run_rnncls("predict", tmp_path / "run", "--prefixes", input="1 2 0\n")
    assert shown.returncode == 2
    assert found in shown.stderr
    with pytest.raises(ConfigError):
        rnncls.load(tmp_path / "run").predict_prefixes([[1, 2, 0]])


def test_sequences_beyond_the_last_position_are_refused_by_name(tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit(config_with({**PARTS, "cell": "gru"}, max_length=4), run)
    commands: list[tuple[list[str | Path], str]] = [
        (["eval", run, "--lengths", "2,5"], ""),
        (["predict", run], "1 2 0 1 2\n"),
        (["explain", run, "1 2 0 1 2"], ""),
    ]
    for words, text in commands:
        shown = run_rnncls(*words, input=text)
        assert shown.returncode == 3
        assert "model.positions" in shown.stderr
        assert "data.max_length" in shown.stderr
        assert "5 tokens" in shown.stderr
    with pytest.raises(DataError, match=r"model\.positions"):
        rnncls.load(run).predict([[1, 2, 0, 1, 2]])
    assert run_rnncls("eval", run, "--lengths", "4").returncode == 0

    config = tmp_path / "config.yaml"
    config.write_text("data: {modulus: 3, max_length: 4}\nmodel: {positions: learned}\n")
    folder = tmp_path / "sweep"
    words = ["sweep", config, "--seeds", "0,1", "--lengths", "9", "--sweep-dir", folder]
    shown = run_rnncls(*words)
    assert shown.returncode == 2
    assert "model.positions" in shown.stderr


def test_files_are_cut_at_the_last_position(tmp_path: Path) -> None:
    rows = write_jsonl(
        tmp_path / "rows.jsonl", [(list(range(1, 3)) * n, n % 2) for n in range(1, 40)]
    )
    words = [f"data.train={rows}", "data.tokens=ids", "data.max_length=3", "data.truncate=tail"]
    words += ["model.positions=learned", "model.ngrams=[2]", "train.max_steps=4"]
    config = tmp_path / "config.yaml"
    config.write_text(f"data: {{source: files, train: {rows}}}\n")
    shown = run_rnncls("train", config, *words, "--run-dir", tmp_path / "run")
    assert shown.returncode == 0, shown.stderr
    assert len(rnncls.load(tmp_path / "run").predict([[1] * 50, [2]])) == 2


@pytest.mark.parametrize("name", MODELS)
def test_the_dashboard_knows_every_part(name: str, tmp_path: Path) -> None:
    config = config_with(MODELS[name])
    task = SumModTask(config, data_of(config))
    state = new_state(task)
    model = state.model
    scalars = health_scalars(state, task)
    assert ("within/saturated" in scalars) == model.is_recurrent
    assert "weights/grad_norm/ngram_embedding.weight" in scalars

    nodes = {node.name: node for node in nodes_of(model, 8, 12)}
    for node in nodes.values():
        assert set(node.input) <= nodes.keys()
    parameters = {node.attr["parameter"].s.decode() for node in nodes.values()} - {""}
    assert parameters == dict(model.named_parameters()).keys()

    write_projector(tmp_path, state, task)
    sequences = sequences_of([[1, 2, 0], [2], [1, 1, 1, 1]])
    packed = sequences.batch(torch.arange(3)).tokens
    torch.testing.assert_close(model.head(summaries_of(model, sequences)), model(packed))


def test_layers_and_parameters_are_described() -> None:
    for model in MODELS.values():
        config = config_with(model)
        described = describe_model(config, sizes(config))
        names = [layer.name for layer in described.layers]
        assert "ngram_embedding" in names
        assert ("position_embedding" in names) == ("positions" in model)
        assert ("rnn" in "".join(names)) == (model["cell"] != "none")
        is_mean_read = model.get("skip", False) or model["cell"] == "none"
        assert any(layer.kind == "mean of the inputs" for layer in described.layers) == is_mean_read
        # The head reads as many numbers as it has weights for each class.
        shapes = {tensor.name: tensor.shape for tensor in described.tensors}
        assert described.layers[-1].input == f"(B, {shapes['head.weight'][1]})"


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("num_directions", [1, 2])
@pytest.mark.parametrize("pooling", ["last", "last_mean_max"])
def test_a_skip_is_a_node_of_the_graph(cell: str, num_directions: int, pooling: Any) -> None:
    shape = {"num_layers": 2, "num_directions": num_directions, "pooling": pooling}
    architecture = Architecture(cell, **shape, skip=True, has_ngrams=True)
    for graph in (unrolled_graph(architecture, ["a"] * 9), rolled_graph(architecture)):
        assert len(graph.nodes) == graph.whole.nodes
        assert len(graph.edges) == graph.whole.edges
        reads = [edge.source for edge in graph.edges if edge.target == "skip"]
        tokens = [node.name for node in graph.nodes if node.kind == "token"]
        assert reads == tokens
        assert [edge.target for edge in graph.edges if edge.source == "skip"] == ["logits"]


def test_what_others_call_the_keys_is_told() -> None:
    for name, value, meant in (
        ("ngram_range", "(1,3)", "'model.ngrams=[2, 3]'"),
        ("wordNgrams", "2", "'model.ngrams=[2]'"),
        ("bucket", "1000", "model.ngram_table=1000"),
        ("ema", "0.99", "train.average_weights=0.99"),
        ("use_ema", "true", "train.average_weights=0.999"),
        ("word_dropout", "0.1", "data.token_dropout=0.1"),
        ("do_lower_case", "true", "data.lowercase=true"),
        ("positional_encoding", "true", "model.positions=learned"),
        ("label_smoothing", "0.1", "train.label_smoothing=0.1"),
        ("label_smoothing_factor", "0.1", "train.label_smoothing=0.1"),
        ("hidden_noise", "0.3", "model.state_noise=0.3"),
    ):
        assert f"did you mean {meant}?" in advice(name, value, "files")


@pytest.mark.parametrize(
    ("value", "meant"),
    [("[2,2]", "[2]"), ("2", "[2]"), ("3,2", "[2, 3]"), ("[1]", ""), ("[0]", "")],
)
def test_bad_lengths_of_ngrams_are_refused_with_what_was_meant(value: str, meant: str) -> None:
    shown = run_rnncls("train", "configs/smoke.yaml", f"model.ngrams={value}")
    assert shown.returncode == 2
    assert "model.ngrams" in shown.stderr
    assert f"try:      {meant}\n" in shown.stderr if meant else "2 to 16" in shown.stderr


def test_a_table_without_rows_is_refused() -> None:
    shown = run_rnncls("train", "configs/smoke.yaml", "model.ngram_table=0")
    assert shown.returncode == 2
    assert "1 to 16,777,216" in shown.stderr


@pytest.mark.slow
def test_a_run_with_all_parts_that_is_killed_ends_like_one_that_is_not(tmp_path: Path) -> None:
    dropouts = {"embedding_dropout": 0.2, "ngram_dropout": 0.3, "head_dropout": 0.2}
    config = config_with({**MODELS["pooled"], **dropouts})
    train = config.train.model_copy(update={"max_steps": 400, "checkpoint_every": 20})
    config = config.model_copy(update={"train": train})
    fit(config, tmp_path / "whole")

    path = tmp_path / "config.yaml"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    run = tmp_path / "killed"
    command: list[str | Path] = [PYTHON, "-m", "rnncls", "train", path, "--run-dir", run]
    with started(command) as process:
        wait_for((run / "checkpoints" / "step-00000020.safetensors").exists)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    resume(run)
    assert outcome(run)[0] == outcome(tmp_path / "whole")[0]
