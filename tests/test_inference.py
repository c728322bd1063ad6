"""Many sequences are run by a compiled program, whose logits are those of the model.

The reference is the model itself in float64. Within the program, the logits of a sequence have the
same bits whatever is beside it.
"""

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from rnncls.cli.predict import size_of_input
from rnncls.config import FilesConfig
from rnncls.data.loading import load_dataset
from rnncls.data.sequences import Sequences
from rnncls.data.task import FilesTask, load_task
from rnncls.errors import Interrupted
from rnncls.evaluation import ways
from rnncls.evaluation.evaluate import evaluate
from rnncls.evaluation.examples import generated_examples, held_out_examples
from rnncls.evaluation.ways import LONGEST, PICOSECONDS_OF_START, compiled_model, is_worth_compiling
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.predictor import CHUNK, for_many, load
from rnncls.predict.reading import size_of_file
from rnncls.rundir.checkpoint_files import load_checkpoint
from rnncls.training.fit import fit
from rnncls.training.progress import way_of_validation
from rnncls.training.resume import resume
from rnncls.training.states import new_state
from tests.helpers import (
    PYTHON,
    ROOT,
    config_of,
    copy_of_run,
    data_of,
    files_config,
    outcome,
    run_command,
    run_process,
    run_rnncls,
    some_rows,
    stop_at,
    write_jsonl,
)

CELLS = [("rnn", "tanh"), ("rnn", "relu"), ("gru", "tanh"), ("lstm", "tanh")]
TOKENS = 11


def program_of(model: RNNClassifier) -> Any:
    """Return the model as the compiled program runs it."""
    pytest.importorskip("numba")
    from rnncls.evaluation.compiled import CompiledModel

    return CompiledModel(model)


def model_of(seed: int = 0, **options: Any) -> RNNClassifier:
    """Return a model of TOKENS tokens and 5 classes, whose sizes are multiples of nothing."""
    torch.manual_seed(seed)
    options = {"embedding_dim": 7, "hidden_size": 19, **options}
    model = RNNClassifier(TOKENS, 5, **options).eval()
    if model.initial_state is not None:
        torch.nn.init.normal_(model.initial_state)
    # They begin at zero.
    for table in (model.ngram_embedding, model.position_embedding):
        if table is not None:
            torch.nn.init.normal_(table.weight)
    return model


def some_ids(count: int, longest: int = 30, seed: int = 0) -> list[list[int]]:
    rng = random.Random(seed)
    return [rng.choices(range(TOKENS), k=rng.randint(1, longest)) for _ in range(count)]


def packed(ids: list[list[int]]) -> PackedSequence:
    return pack_sequence([torch.tensor(row) for row in ids], enforce_sorted=False)


@torch.no_grad()
def reference(model: RNNClassifier, ids: list[list[int]]) -> Tensor:
    """Return the logits in float64, and leave the model as it was."""
    logits: Tensor = model.double()(packed(ids))
    model.float()
    return logits


def require_same(model: RNNClassifier, ids: list[list[int]], tolerance: float = 3e-6) -> None:
    """Require the program's logits, both of lists and of a packed batch, to be the model's."""
    program = program_of(model)
    logits = program.of_ids(ids)
    assert torch.equal(logits, program.of_packed(packed(ids)))
    expected = reference(model, ids)
    assert float((logits - expected).abs().max()) <= tolerance * float(expected.abs().max())


# What the first layer may read beside embeddings, and the head beside states.
MORE: list[dict[str, Any]] = [
    {"skip": True},
    {"ngrams": (2, 3), "ngram_table": 40},
    {"ngrams": (2,), "ngram_table": 40, "has_unknown": True, "num_positions": 40, "skip": True},
]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the program run any number of sequences."""
    pytest.importorskip("numba")
    monkeypatch.setattr(ways, "PICOSECONDS_OF_START", 0)


# --- the logits


def test_the_logits_of_each_cell_are_those_of_the_model() -> None:
    ids = some_ids(200)
    for cell, nonlinearity in CELLS:
        require_same(model_of(cell=cell, nonlinearity=nonlinearity, num_layers=2), ids)
    require_same(model_of(cell="gru", bidirectional=True, pooling="last_mean_max"), ids)
    for more in MORE:
        require_same(model_of(cell="gru", bidirectional=True, pooling="mean", **more), ids)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "last_mean_max"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(("cell", "nonlinearity"), CELLS)
def test_the_logits_are_those_of_the_model(
    cell: Any, nonlinearity: Any, num_layers: int, bidirectional: bool, bias: bool, pooling: Any
) -> None:
    for initial_state in ("zeros", "learned"):
        model = model_of(
            cell=cell,
            nonlinearity=nonlinearity,
            num_layers=num_layers,
            bidirectional=bidirectional,
            bias=bias,
            pooling=pooling,
            initial_state=initial_state,
        )
        require_same(model, some_ids(300))


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize(("cell", "nonlinearity"), CELLS)
def test_the_logits_with_n_grams_positions_and_skip_are_those_of_the_model(
    cell: Any, nonlinearity: Any, num_layers: int, bidirectional: bool
) -> None:
    for more in MORE:
        for pooling in ("last", "last_mean_max"):
            model = model_of(
                cell=cell,
                nonlinearity=nonlinearity,
                num_layers=num_layers,
                bidirectional=bidirectional,
                pooling=pooling,
                **more,
            )
            require_same(model, some_ids(300))


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_without_a_table_the_logits_are_the_same(
    cell: Any, bidirectional: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vocabulary may be too large for a table of what the first layer makes of its tokens."""
    pytest.importorskip("numba")
    from rnncls.evaluation import compiled

    model = model_of(cell=cell, bidirectional=bidirectional, num_layers=2)
    assert program_of(model).network.by_table
    monkeypatch.setattr(compiled, "MOST_IN_TABLE", 0)
    assert not program_of(model).network.by_table
    require_same(model, some_ids(300))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean", "max"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_sequences_of_one_token_and_of_very_many(cell: Any, pooling: Any) -> None:
    ids = [*some_ids(3, longest=5000, seed=1), [1], [2] * 5000, [3], *some_ids(150)]
    # A relu network's states may grow with every token.
    require_same(model_of(cell=cell, nonlinearity="tanh", pooling=pooling), ids)


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_vocabulary_and_a_classification_of_one(cell: Any) -> None:
    torch.manual_seed(0)
    model = RNNClassifier(1, 1, 1, 1, cell=cell).eval()
    require_same(model, [[0] * length for length in range(1, 10)])


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_units_and_classes_that_fill_whole_vectors(bidirectional: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"cell": "lstm", "bidirectional": bidirectional, "num_layers": 2}
    model = RNNClassifier(TOKENS, 32, 16, 64, **options).eval()
    require_same(model, some_ids(300))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["last", "mean", "max", "last_mean_max"])
@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_weights_that_are_nan_give_logits_that_are_nan(cell: Any, pooling: Any) -> None:
    """So that no prediction is made of them. NaN may come from anywhere, and goes everywhere."""
    for name in ("embedding.weight", "rnn.weight_hh_l0", "head.bias"):
        model = model_of(cell=cell, pooling=pooling)
        parameter = model.get_parameter(name)
        with torch.no_grad():
            parameter.fill_(torch.nan)
        assert program_of(model).of_ids(some_ids(10)).isnan().all()

    # One bad token spoils the sequences that have it, and no other.
    model = model_of(cell=cell, pooling=pooling)
    with torch.no_grad():
        model.embedding.weight[3] = torch.nan
    ids = some_ids(300, longest=8)
    has_it = torch.tensor([3 in row for row in ids])
    logits = program_of(model).of_ids(ids)
    assert torch.equal(logits.isnan().all(1), has_it)
    assert torch.equal(logits.isnan().any(1), has_it)


# --- the same bits


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, MORE[-1]], ids=["", "more"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "nonlinearity"), CELLS)
def test_a_sequence_has_the_same_bits_alone_and_in_company(
    cell: Any, nonlinearity: Any, bidirectional: bool, more: dict[str, Any]
) -> None:
    model = model_of(
        cell=cell,
        nonlinearity=nonlinearity,
        num_layers=2,
        bidirectional=bidirectional,
        pooling="last_mean_max",
        **more,
    )
    program = program_of(model)
    ids = some_ids(500, longest=40)
    logits = program.of_ids(ids)

    for index in range(0, 500, 25):
        assert torch.equal(program.of_ids([ids[index]])[0], logits[index])

    # In any order, and cut anywhere: into parts of every size that a tile of the products may have.
    order = list(range(500))
    random.Random(1).shuffle(order)
    assert torch.equal(program.of_ids([ids[index] for index in order]), logits[order])
    first = 0
    for size in [*range(1, 20), 127, 128, 129]:
        part = ids[first : first + size]
        if part:
            assert torch.equal(program.of_ids(part), logits[first : first + size])
        first += size


@pytest.mark.slow
@pytest.mark.parametrize("bidirectional", [False, True])
def test_threads_change_no_bit(bidirectional: bool) -> None:
    model = model_of(cell="gru", bidirectional=bidirectional)
    ids = some_ids(1000)
    expected = program_of(model).of_ids(ids)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            program = program_of(model)
            assert len(program.works) == number
            assert torch.equal(program.of_ids(ids), expected)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_very_long_sequence_is_read_by_the_model_itself() -> None:
    """Which reads it in pieces, in little memory, and can be interrupted."""
    model = model_of(cell="gru")
    program = program_of(model)
    longest = packed([[1, 2] * (LONGEST // 2), [3]])
    longer = packed([[1, 2] * (LONGEST // 2) + [1], [3]])
    with torch.inference_mode():
        assert not torch.equal(program.of_packed(longest), model(longest))
        assert torch.equal(program.of_packed(longer), model(longer))


# --- which way is taken


def test_the_way_depends_on_the_model_and_the_number_of_tokens() -> None:
    """For a GRU of 128 units it is the program from about 7,500 sequences of 50 tokens on."""
    model = RNNClassifier(100, 3, 32, 128, cell="gru")
    num_weights = sum(parameter.numel() for parameter in model.rnn.parameters())
    saved = ways.PICOSECONDS_OF_TOKEN + ways.PICOSECONDS_OF_WEIGHT * num_weights
    edge = -(-PICOSECONDS_OF_START // saved)
    assert 300_000 < edge < 400_000
    assert is_worth_compiling(model, edge)
    assert not is_worth_compiling(model, edge - 1)

    # A small network is quick anyway: it takes more sequences. A large one takes fewer.
    assert not is_worth_compiling(RNNClassifier(10, 3, 10, 16), edge)
    assert is_worth_compiling(RNNClassifier(100, 3, 32, 512, cell="gru"), edge // 4)
    assert is_worth_compiling(RNNClassifier(10, 2**14, 8, 8), 10**9)
    assert not is_worth_compiling(RNNClassifier(10, 2**14 + 1, 8, 8), 10**9)
    assert is_worth_compiling(RNNClassifier(10, 3, 8, 1024), 10**9)
    assert not is_worth_compiling(RNNClassifier(10, 3, 8, 1025), 10**9)


def test_what_the_program_would_not_notice_is_left_to_the_model() -> None:
    class Other(RNNClassifier):
        pass

    assert is_worth_compiling(model_of(), 10**9)
    assert not is_worth_compiling(model_of().double(), 10**9)
    assert not is_worth_compiling(Other(TOKENS, 5), 10**9)
    model = model_of()
    hook = model.head.register_forward_pre_hook(lambda *_: None)
    assert not is_worth_compiling(model, 10**9)
    hook.remove()
    assert is_worth_compiling(model, 10**9)


def test_without_numba_torch_runs_and_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ways, "_failures", [])
    monkeypatch.setattr(ways, "find_spec", lambda _: None)
    # Where torch would be taken anyway, nothing is said.
    assert compiled_model(model_of(), 10) is None
    assert capsys.readouterr().err == ""

    assert compiled_model(model_of(), 10**9) is None
    assert compiled_model(model_of(), 10**9) is None
    said = capsys.readouterr().err
    assert said.count("numba is not installed: pip install 'rnncls[fast]'") == 1
    assert len(said.splitlines()) == 1


@pytest.mark.slow
def test_a_few_sequences_do_without_numba(run_dir: Path) -> None:
    code = f"""
import sys
from rnncls.cli.entry import run
for words in (["predict", {str(run_dir)!r}, "1 2"], ["eval", {str(run_dir)!r}, "--json"]):
    sys.argv = ["rnncls", *words]
    assert run() == 0
print("numba" in sys.modules, "rnncls.compiled" in sys.modules)
"""
    done = run_command([PYTHON, "-c", code])
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.slow
def test_a_numba_that_fails_costs_time_and_nothing_else(tmp_path: Path, run_dir: Path) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text("raise ImportError('wants another NumPy')")
    path = tmp_path / "new.txt"
    # For so many tokens the program would be compiled.
    path.write_text((" ".join("120" * 32) + "\n") * 50_000)
    own = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    output = tmp_path / "out.jsonl"
    done = run_process("predict", run_dir, "--input", path, "--output", output, env=own)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("numba fails: wants another NumPy") == 1
    assert len(output.read_text().splitlines()) == 50_000


def test_an_evaluation_knows_how_many_tokens_it_has(tmp_path: Path) -> None:
    data = data_of(config_of(data={"min_length": 1, "max_length": 3, "max_value": 9}))
    examples = generated_examples(data, 0, [2, 30], 7)
    batches = list(examples.batches)
    assert examples.num_tokens == sum(int(batch.lengths.sum()) for batch in batches) == 200 + 210
    assert examples.total == 107

    # Drawn lengths are not known before: the number is the one to be expected.
    long = data_of(config_of(data={"min_length": 10, "max_length": 30}))
    assert generated_examples(long, 0, None, 100).num_tokens == 2000

    path = write_jsonl(tmp_path / "train.jsonl", some_rows(60))
    config = files_config(path, test_fraction=0.5)
    assert isinstance(config.data, FilesConfig)
    dataset = load_dataset(config.data)
    split: Sequences = dataset.splits["test"]
    assert held_out_examples(dataset, config.data, None).num_tokens == len(split.tokens)
    of_three = held_out_examples(dataset, config.data, [3])
    assert of_three.num_tokens == 3 * of_three.total


def test_a_prediction_knows_how_long_its_input_is(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def note(_: RNNClassifier, num_tokens: int) -> None:
        asked.append(num_tokens)

    monkeypatch.setattr("rnncls.predict.predictor.compiled_model", note)
    predictor = load(run_dir)
    predictor.predict(["1 2 0 1", [1, 2, 0]])
    # What is not there yet may be anything.
    predictor.predict(iter(["1 2 0 1"]))
    characters = predictor.data.model_copy(update={"tokens": "characters"})
    for_many(replace(predictor, data=characters), 12)
    assert asked == [(7 + 3 * 4) // 4, 0, 12]

    path = tmp_path / "new.txt"
    path.write_text("1 2 0 1\n" * 10)
    run_rnncls("predict", run_dir, "--input", path)
    run_rnncls("predict", run_dir, "1 2 0 1", "1 0")
    assert asked[3:] == [20, 2]

    # A pipe may have any number of sequences, and the first one is answered before that is known.
    with path.open("rb") as file:
        assert size_of_file(file) == 80
    with path.open() as stdin, monkeypatch.context() as patch:
        patch.setattr("sys.stdin", stdin)
        assert size_of_input(None, None) == 80
    assert size_of_input(tmp_path / "missing", None) == 0
    assert size_of_input(Path("x" * 5000), None) == 0
    read, write = os.pipe()
    with os.fdopen(read, "rb") as file, os.fdopen(write, "wb"):
        assert size_of_file(file) is None


# --- eval and predict


def some_lines(tmp_path: Path) -> Path:
    """Write a file of sequences for the run, more of them than a chunk has."""
    rng = random.Random(0)
    rows = []
    for _ in range(CHUNK + 500):
        ids = rng.choices(range(3), k=rng.randint(1, 12))
        rows.append(" ".join(map(str, ids)))
    path = tmp_path / "new.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_predictions_are_the_same_in_any_chunk_and_nearly_those_of_torch(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = some_lines(tmp_path)

    def predicted(name: str) -> list[dict[str, Any]]:
        output = tmp_path / name
        done = run_rnncls("predict", run_dir, "--input", path, "--output", output)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in output.read_text().splitlines()]

    whole = predicted("whole.jsonl")
    monkeypatch.setattr("rnncls.predict.reading.CHUNK", 7)
    assert predicted("parts.jsonl") == whole

    # From Python the same, and each alone.
    predictor = load(run_dir)
    texts = path.read_text().splitlines()
    for text, row in zip(texts[:20], whole, strict=False):
        (one,) = predictor.predict([text])
        assert (one.label, one.probability) == (row["label"], row["probability"])

    monkeypatch.setattr(ways, "PICOSECONDS_OF_START", 10**30)
    by_torch = predicted("torch.jsonl")
    assert by_torch != whole
    for ours, theirs in zip(whole, by_torch, strict=True):
        assert ours["label"] == theirs["label"]
        # The states of this network of ReLUs grow, and so does what rounding makes of them.
        assert abs(ours["probability"] - theirs["probability"]) < 3e-6


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_an_evaluation_says_what_a_prediction_says(tmp_path: Path, run_dir: Path) -> None:
    predictions = tmp_path / "predictions.jsonl"
    done = run_rnncls("eval", run_dir, "--predictions", predictions, "--json")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in predictions.read_text().splitlines()]
    predictor = load(run_dir)
    answers = predictor.predict([row["sequence"] for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        assert row["predicted"] == answer.label
        assert row["probability"] == answer.probability


# --- validation during training


def test_validation_knows_how_many_tokens_it_has(tmp_path: Path) -> None:
    generated = load_task(config_of(data={"min_length": 2, "max_length": 4}))
    assert generated.validation_tokens == 100 * 3

    path = write_jsonl(tmp_path / "train.jsonl", some_rows(60))
    files = load_task(files_config(path, val_fraction=0.5, test_fraction=0.0))
    assert isinstance(files, FilesTask)
    assert files.validation_tokens == len(files.validated.tokens)
    files = load_task(files_config(path, {"eval_samples": 10}, val_fraction=0.5))
    assert isinstance(files, FilesTask)
    assert files.validation_tokens == len(files.validated.tokens) * 10 // len(files.validated)


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_a_run_that_was_stopped_has_the_validation_of_an_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(model={"cell": "gru", "dropout": 0.3, "num_layers": 2})
    fit(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 27)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "stopped")
    resume(tmp_path / "stopped")
    assert outcome(tmp_path / "stopped") == outcome(tmp_path / "whole")

    # By torch, the same but for rounding; the training itself is the same to the bit.
    monkeypatch.setattr(ways, "PICOSECONDS_OF_START", 10**30)
    fit(config, tmp_path / "torch")
    weights, lines, _ = outcome(tmp_path / "torch")
    weights_of_whole, lines_of_whole, _ = outcome(tmp_path / "whole")
    assert weights == weights_of_whole
    assert lines != lines_of_whole
    for line, other in zip(lines, lines_of_whole, strict=True):
        assert line == pytest.approx(other, abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_a_run_that_began_before_is_validated_by_torch() -> None:
    task = load_task(config_of())
    state = new_state(task)
    assert way_of_validation(state, task) is not None
    state.step_rules = 1
    assert way_of_validation(state, task) is None


@pytest.mark.slow
@pytest.mark.usefixtures("always")
@pytest.mark.row("K13")
def test_weights_that_are_nan_are_an_error_as_ever(tmp_path: Path, run_dir: Path) -> None:
    bad = copy_of_run(
        run_dir, tmp_path / "bad", lambda t: t["model/rnn.weight_hh_l0"].fill_(torch.nan)
    )
    done = run_rnncls("eval", bad)
    assert done.returncode == 7, done.stderr
    assert "error[K13]" in done.stderr
    done = run_rnncls("predict", bad, "1 2 0", "0 1")
    assert done.returncode == 7, done.stderr
    assert "error[K13]" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("always")
def test_a_signal_ends_an_evaluation_as_ever(tmp_path: Path, run_dir: Path) -> None:
    # A shell may have started this process in the background, with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    checkpoint, model = load_checkpoint(run_dir, "cpu")
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            os.kill(os.getpid(), signal.SIGINT)

    path = tmp_path / "predictions.jsonl"
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate(model, checkpoint.config, predictions=path, check=check)
    finally:
        signal.signal(signal.SIGINT, before)
    assert calls == 2
    assert list(tmp_path.iterdir()) == []
