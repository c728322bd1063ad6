"""Every engine gives the results of the eager one.

Its own results are the same to the bit, however its steps are cut into chunks.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnncls.compiled import kernels
from rnncls.compiled.compiler import entry_point
from rnncls.compiled.kept import CodeFolder, code_folder
from rnncls.data import Block, load_task
from rnncls.errors import Interrupted, MachineError, NonFiniteError
from rnncls.model.build import build_model
from rnncls.rundir.log import RunLog
from rnncls.steps import chunks, eager_steps
from rnncls.steps.beside import copy_of
from rnncls.steps.captured import engine as captured_engine
from rnncls.steps.captured.engine import CapturedRun, captured_steps
from rnncls.steps.captured.graphs import Graphs
from rnncls.steps.chunks import Rates, ahead, in_chunks
from rnncls.steps.compiled.code import load_program
from rnncls.steps.compiled.engine import CompiledRun
from rnncls.steps.eager import batches_of, train_step
from rnncls.steps.engines import choose
from rnncls.steps.state import TrainState, next_due
from rnncls.system.signals import StopRequest
from rnncls.training.fit import fit
from rnncls.training.profiling import PARTS, _take_steps, write_profile
from rnncls.training.resume import resume
from rnncls.training.states import new_state
from tests.golden_losses import GOLDEN_CASES, first_losses, golden_losses
from tests.helpers import (
    CASES,
    HARD,
    ROOT,
    config_of,
    config_with,
    files_config,
    losses,
    needs_cuda,
    outcome,
    run_process,
    run_python,
    run_rnncls,
    some_rows,
    variant_of,
    write_jsonl,
)

row = pytest.mark.row

# Noise on states and smoothed labels, with dropout between layers that read in two directions.
NOISY: dict[str, Any] = {"state_noise": 0.3, "num_layers": 2, "dropout": 0.3, "bidirectional": True}
SMOOTHED = {"label_smoothing": 0.2}

# What graphs on a GPU cannot do.
COMPILED_CASES: dict[str, dict[str, Any]] = {
    **CASES,
    "mean": {"model": {"pooling": "mean", "num_layers": 2}, "data": {"max_length": 12}},
    "noise_relu": {"model": {"state_noise": 0.5}, "train": SMOOTHED, "data": {"max_length": 12}},
    "noisy_relu": {"model": NOISY, "train": SMOOTHED},
    "noisy_gru": {"model": {**NOISY, "cell": "gru"}, "train": SMOOTHED},
    "noisy_lstm": {"model": {**NOISY, "cell": "lstm"}, "train": SMOOTHED},
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("noisy") else name
        for name in COMPILED_CASES
    ],
)
def test_compiled_losses_are_the_eager_ones(name: str, tmp_path: Path) -> None:
    case = COMPILED_CASES[name]
    expected = losses(config_with("eager", case), tmp_path / "eager")
    actual = losses(config_with("compiled", case), tmp_path / "compiled")
    assert len(expected) == 200
    assert actual[:20] == pytest.approx(expected[:20], rel=1e-6)
    assert actual == pytest.approx(expected, rel=1e-3)  # rounding grows as training continues


def test_compiled_steps_on_files_with_class_weights(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(100, longest=30))
    losses_by_engine = {}
    for engine in ("eager", "compiled"):
        train = {
            "class_weights": "balanced",
            "batch_size": 16,
            "max_steps": 60,
            "log_every": 1,
            "engine": engine,
        }
        losses_by_engine[engine] = losses(
            files_config(path, train, batching="bucket"), tmp_path / engine
        )
    assert losses_by_engine["compiled"] == pytest.approx(losses_by_engine["eager"], rel=1e-4)


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_every_engine_keeps_to_the_golden_losses(case: str) -> None:
    # The generator is the rule of runs from before, whose steps are eager.
    if case in ("prefix", "gated_in_pieces", "dropout_by_generator"):
        pytest.skip("it is computed by eager steps")
    assert first_losses(case, "compiled") == pytest.approx(golden_losses(case), rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_compiled_steps_do_not_depend_on_how_they_are_cut(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {
        "optimizer": {"name": optimizer, "momentum": 0.9 if optimizer == "sgd" else 0.0},
        "data": {"max_length": 9},
    }
    config = config_with("compiled", case, max_steps=150, log_every=50, eval_every=70, batch_size=5)
    fit(config, tmp_path / "whole")
    for name, seconds in (("single", 0.0), ("large", 10.0)):
        monkeypatch.setattr(chunks, "CHUNK_SECONDS", seconds)
        fit(config, tmp_path / name)
        assert outcome(tmp_path / name) == outcome(tmp_path / "whole")


def test_compiled_steps_resume_exactly_after_a_signal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_with(
        "compiled", CASES["three_layers"], max_steps=120, log_every=30, checkpoint_every=40
    )
    fit(config, tmp_path / "whole")
    drawn = random.Random(1)
    for number in range(5):
        stops, run_dir = sorted(drawn.sample(range(1, 110), 2)), tmp_path / str(number)
        for stop in stops:
            with monkeypatch.context() as patch:
                stop_after(patch, stop)
                with pytest.raises(Interrupted):
                    resume(run_dir) if run_dir.exists() else fit(config, run_dir)
        resume(run_dir)
        assert outcome(run_dir) == outcome(tmp_path / "whole"), stops


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    """Make chunks end at this step, and send this process a real SIGTERM there."""
    original = next_due

    def due(train: Any, at: int) -> int:
        if at >= step:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0)
        return min(original(train, at), step) if at < step else at + 1

    patch.setattr(chunks, "next_due", due)


def test_two_threads_give_the_same_bits_every_time_and_the_same_results(tmp_path: Path) -> None:
    case = COMPILED_CASES["mean"]
    losses_by_run = []
    for name in ("one", "two", "again"):
        threads = 1 if name == "one" else 2
        losses_by_run.append(
            losses(
                config_with("compiled", case, num_threads=threads, max_steps=40), tmp_path / name
            )
        )
    torch.set_num_threads(1)
    assert outcome(tmp_path / "two") == outcome(tmp_path / "again")
    assert losses_by_run[1] == pytest.approx(losses_by_run[0], rel=1e-4)


@row("R12")
def test_a_compiled_step_that_is_not_finite_is_left_to_the_eager_one(tmp_path: Path) -> None:
    wild = {
        "optimizer": {"name": "sgd", "lr": 1e20},
        "schedule": {"name": "constant", "warmup_steps": 0},
    }
    messages = []
    for engine in ("eager", "compiled"):
        with pytest.raises(NonFiniteError) as caught:
            fit(config_with(engine, wild, max_grad_norm=None), tmp_path / engine)
        messages.append(caught.value.problems[0].what)
    assert messages[0] == messages[1]

    state = new_state(load_task(config_with("compiled", wild)))
    before = [weight.clone() for weight in state.model.parameters()]
    state.model.embedding.weight.data[0] = float("nan")
    engine_of, _ = choose(config_with("compiled", wild, max_skipped_steps=3), torch.device("cpu"))
    taken = engine_of(state, load_task(config_with("compiled", wild, max_skipped_steps=3)))
    assert [next(taken) for _ in range(3)] == [1, 1, 1]
    assert state.skipped == 3
    assert state.totals.steps == 0

    with pytest.raises(NonFiniteError):
        next(taken)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before[1:], list(state.model.parameters())[1:], strict=True)
    )


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_steps_left_to_the_eager_one_have_the_noise_of_compiled_ones(
    cell: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", 0.0)  # one step at a time, on any machine
    case = {"model": {**NOISY, "cell": cell}, "data": {"max_length": 9}}
    task = load_task(config_with("compiled", case, max_steps=20, max_skipped_steps=2, **SMOOTHED))
    states = [new_state(task) for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        run = CompiledRun(states[1], task, pool)

        # It takes every other step, and none of the numbers 5 and 6, which are not finite.
        def take(block: Block, rates: Rates, first: int, last: int) -> int:
            return run.take(block, rates, first, last) if first % 2 == 0 else 0

        for state, steps in (
            (states[0], eager_steps(states[0], task)),
            (states[1], in_chunks(states[1], task, take)),
        ):
            bias = state.model.head.bias.data
            kept = bias.clone()
            for _ in steps:
                if state.step == 5:
                    kept = bias.clone()
                    bias[0] = float("nan")
                elif state.step == 7:
                    assert state.skipped == 2
                    bias.copy_(kept)

    first, second = (state.totals for state in states)
    assert first.steps == second.steps == 18
    assert second.loss == pytest.approx(first.loss, rel=1e-6)
    assert second.grad_norm == pytest.approx(first.grad_norm, rel=1e-5)
    for own, other in zip(states[1].model.parameters(), states[0].model.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_gradients_and_histograms_are_there_after_compiled_steps(tmp_path: Path) -> None:
    state = fit(config_with("compiled", {}, max_steps=20, histogram_every=10), tmp_path / "run")
    reference = fit(config_with("eager", {}, max_steps=20), tmp_path / "eager")
    for own, other in zip(state.model.parameters(), reference.model.parameters(), strict=True):
        assert own.grad is not None
        assert other.grad is not None
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-3, atol=1e-5)


@row("R32", by="unit")
def test_an_engine_that_cannot_be_is_refused_or_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cpu = torch.device("cpu")
    case: dict[str, dict[str, Any]]
    for case, reason in (
        ({"train": {"precision": "bfloat16"}}, "precision"),
        ({"model": {"initial_state": "learned"}}, "model.initial_state is learned"),
        ({"train": {"objective": "prefix"}}, "train.objective is prefix"),
        ({"train": {"recompute_every": 2}}, "train.recompute_every is 2"),
        ({"train": {"truncate_after": 1000}}, "train.truncate_after is 1,000"),
    ):
        engine, how = choose(config_with("auto", case), cpu)
        assert engine is eager_steps
        assert reason in how
        with pytest.raises(MachineError, match=reason):
            choose(config_with("compiled", case), cpu)
    # Captured steps read the last state alone; compiled ones take every pooling.
    cuda = torch.device("cuda")
    for case, reason in (
        ({"model": {"bidirectional": True}}, "model.bidirectional is true"),
        ({"model": {"num_layers": 2, "dropout": 0.1}}, "model.dropout is not 0"),
        ({"model": {"pooling": "mean"}}, "model.pooling is mean"),
        ({"model": {"initial_state": "learned"}}, "model.initial_state is learned"),
        ({"train": {"objective": "prefix"}}, "train.objective is prefix"),
        ({"train": {"recompute_every": 2}}, "train.recompute_every is 2"),
        ({"train": {"truncate_after": 2}}, "train.truncate_after is 2"),
    ):
        engine, how = choose(config_with("auto", case), cuda)
        assert (engine, how) == (eager_steps, f"eager steps ({reason})")
        with pytest.raises(MachineError, match=reason):
            choose(config_with("captured", case), cuda)

    words: list[str | Path] = [
        "train",
        "-c",
        "configs/smoke.yaml",
        "train.engine=captured",
        "device=cpu",
        "--run-dir",
    ]
    done = run_rnncls(*words, tmp_path / "run")
    assert done.returncode == 5
    assert not (tmp_path / "run").exists()
    assert "error[R32]" in done.stderr
    assert choose(config_with("auto", {}), cpu)[1] == "compiled steps"

    monkeypatch.setattr("rnncls.steps.engines.find_spec", lambda _: None)
    assert "pip install" in choose(config_with("auto", {}), cpu)[1]


@pytest.mark.slow
@row("R32")
def test_a_numba_that_cannot_be_imported_is_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(
        "raise ImportError('Numba needs NumPy 2.4 or less')"
    )
    own = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    words = ["train", "-c", "configs/smoke.yaml", "train.max_steps=5", "--run-dir"]
    done = run_process(*words, tmp_path / "auto", env=own)
    assert done.returncode == 0, done.stderr
    assert "eager steps (numba fails: Numba needs NumPy 2.4 or less)" in done.stderr

    done = run_process(*words, tmp_path / "compiled", "train.engine=compiled", env=own)
    assert done.returncode == 5, done.stderr
    assert "error[R32]" in done.stderr


@row("R31")
def test_code_is_kept_only_where_nobody_else_could_put_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    made = code_folder(b"sources")
    assert made is not None
    place = made.path
    assert place.parent == base / "rnncls"
    assert [path.stat().st_mode & 0o777 for path in (place, place.parent, base)] == [0o700] * 3

    # The folder itself, and those above it, in which it could be replaced by another.
    for folder in (place, place.parent, base):
        for mode in (0o777, 0o702):
            folder.chmod(mode)
            assert code_folder(b"sources") is None
            said = capsys.readouterr().err
            assert "warning[R31]: compiled code is not kept" in said
            assert f"others may write to {folder}" in said
        folder.chmod(0o700)

    # Of a sticky folder everybody may rename only what is his own.
    base.chmod(0o1777)
    again = code_folder(b"sources")
    assert again is not None
    assert again.path == place
    assert not capsys.readouterr().err


def test_what_a_killed_process_left_beside_the_code_is_removed(tmp_path: Path) -> None:
    old = tmp_path / ".tmp-1-ab-f.code"
    new = tmp_path / ".tmp-2-ab-f.code"
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))

    CodeFolder(tmp_path).write("f.code", b"whole")

    # Another process may just be writing the other one.
    assert {path.name for path in tmp_path.iterdir()} == {new.name, "f.code"}


# Compiles a small function, and then loads it from a file of which one bit is another.
FLIPS = """
import sys
from pathlib import Path
from numba import njit
from rnncls.compiled.kept import CodeFolder, KeptCode

def add(left, right):
    return left + right

def dispatcher(folder):
    made = njit(add)
    made._cache = KeptCode("add", CodeFolder(folder))
    return made

folder = Path(sys.argv[1])
first = dispatcher(folder)
assert first(1, 2) == 3
(signature,) = first.signatures
(path,) = folder.iterdir()
content = path.read_bytes()

second = dispatcher(folder)
assert second(1, 2) == 3
print(sum(second._cache_hits.values()), "loaded")

third = dispatcher(folder)
context = third.targetctx
refused = 0
places = range(0, 8 * len(content), max(1, 8 * len(content) // 500))
for place in places:
    damaged = bytearray(content)
    damaged[place // 8] ^= 1 << place % 8
    path.write_bytes(damaged)
    refused += third._cache.load_overload(signature, context) is None
for size in (0, 1, 31, 32, 33, len(content) - 1):
    path.write_bytes(content[:size])
    refused += third._cache.load_overload(signature, context) is None
print(len(places) + 6 - refused, "accepted")
"""


@pytest.mark.slow  # a process that compiles
@row("R31")
def test_one_flipped_bit_in_compiled_code_is_noticed_before_it_is_loaded(tmp_path: Path) -> None:
    done = run_python(FLIPS, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "loaded", "0", "accepted"]
    assert "is damaged; it is compiled anew" in done.stderr


@pytest.mark.slow  # the whole program is compiled once more
@row("R31")
def test_compiled_code_is_kept_and_a_damaged_or_missing_place_only_costs_time(
    tmp_path: Path,
) -> None:
    """The process that compiles has the bits of those that read what is kept.

    With these sizes, functions that LLVM has optimized on their own round otherwise than their
    copies in the program.
    """
    words = ["train", "-c", "configs/smoke.yaml", "train.engine=compiled", "train.max_steps=60"]
    words += ["model.num_layers=2", "model.hidden_size=40", "model.nonlinearity=tanh"]
    words += ["data.max_length=60", "data.modulus=40", "data.max_value=200", "train.batch_size=33"]
    words.append("--run-dir")
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    load_program()
    usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rnncls"
    shutil.copytree(usual, tmp_path / "cache" / "rnncls")
    first = run_process(*words, tmp_path / "1", env=own)
    assert first.returncode == 0, first.stderr
    assert "compiling" not in first.stderr

    # One flipped bit in the middle of each file: in a pickle or in machine code.
    kept = list((tmp_path / "cache").rglob("*.code"))
    assert kept
    for path in kept:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    second = run_process(*words, tmp_path / "2", env=own)
    assert second.returncode == 0, second.stderr
    assert "warning[R31]" in second.stderr
    assert "compiling the training step" in second.stderr
    assert outcome(tmp_path / "2") == outcome(tmp_path / "1")

    # What was damaged has been replaced.
    third = run_process(*words, tmp_path / "3", env=own)
    assert third.returncode == 0, third.stderr
    assert "R31" not in third.stderr
    assert "compiling" not in third.stderr
    assert outcome(tmp_path / "3") == outcome(tmp_path / "2")


# The smallest of the programs: all are compiled, kept and read by the same functions.
LOADED = """
from rnncls.evaluation.compiled import load_program
load_program()
"""

# What a version of Numba whose private parts have other names would do to rnncls.
OTHER_NUMBA = f"""
import numba.core.caching
del numba.core.serialize.loads
{LOADED}"""


@pytest.mark.slow  # a program is compiled
@row("R31")
def test_another_numba_only_costs_time(tmp_path: Path) -> None:
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = run_python(OTHER_NUMBA, env=own)
    assert done.returncode == 0, done.stderr
    warning, compiling = done.stderr.splitlines()
    assert warning.startswith("rnncls: warning[R31]: compiled code cannot be kept in")
    assert compiling == "compiling evaluation and prediction (about 6 s)"


@pytest.mark.slow  # a program is compiled as any other
def test_a_numba_without_the_private_parts_compiles_all_the_same(tmp_path: Path) -> None:
    own = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script = f"import sys\nsys.modules['rnncls.compiled.numba_internals'] = None\n{LOADED}"
    without = run_python(script, env=own)
    assert without.returncode == 0, without.stderr
    assert "R31" not in without.stderr
    assert "compiling evaluation and prediction" in without.stderr

    # What it kept is read by the next process.
    again = run_python(script, env=own)
    assert again.returncode == 0, again.stderr
    assert "compiling" not in again.stderr


# --- padded batches and captured steps


@pytest.mark.parametrize("cell", ["rnn", "lstm", "gru"])
def test_padded_batches_give_what_packed_ones_give(cell: str, tmp_path: Path) -> None:
    case: dict[str, dict[str, Any]] = {
        "model": {"cell": cell, "num_layers": 2},
        "data": {"max_length": 9},
    }
    losses_by_layout = {}
    for layout in ("packed", "padded"):
        case["data"]["layout"] = layout
        losses_by_layout[layout] = losses(
            config_with("eager", case, max_steps=50), tmp_path / layout
        )
    assert losses_by_layout["padded"] == pytest.approx(losses_by_layout["packed"], rel=1e-5)


def test_padding_has_no_influence_and_no_gradient() -> None:
    config = config_of(data={"max_length": 6}, model={"num_layers": 2})
    block = next(load_task(config).blocks(0, 1))
    model = build_model(config).double()
    batch = block.padded(0)
    rubbish = batch.tokens.tokens.clone()
    behind = torch.arange(rubbish.shape[1]) >= batch.tokens.lengths.unsqueeze(1)
    rubbish[behind] = 2
    logits = model(batch.tokens)
    torch.testing.assert_close(model(batch.tokens._replace(tokens=rubbish)), logits, rtol=0, atol=0)
    torch.testing.assert_close(model(block.batch(0).tokens), logits)
    both = build_model(config_of(model={"bidirectional": True}))
    with pytest.raises(ValueError, match="reverse"):
        both(batch.tokens)


def test_padded_two_directions_are_refused() -> None:
    words = ["-c", "configs/smoke.yaml", "data.layout=padded", "model.bidirectional=true"]
    done = run_rnncls("config", "check", *words)
    assert done.returncode == 2
    assert "would read the padding first" in done.stderr


@pytest.mark.parametrize(
    "name", ["tutorial", "three_layers", "adam", "sgd", "plain_sgd", "small_batches"]
)
def test_the_step_that_is_captured_gives_the_eager_losses(name: str) -> None:
    """On the CPU the step of the graphs is run as it is.

    Capture and replay are tested where there is a GPU.
    """
    losses_by_engine = {}
    for engine in ("eager", "graphs"):
        config = config_with("eager", CASES[name], max_steps=60)
        task = load_task(config)
        state = new_state(task)
        losses_by_engine[engine] = [state.totals.loss for _ in steps_with(engine, state, task)]
        assert state.step == 60
        assert state.totals.steps == 60
    assert losses_by_engine["graphs"] == pytest.approx(losses_by_engine["eager"], rel=1e-5)


def steps_with(engine: str, state: TrainState, task: Any) -> Any:
    return (
        eager_steps(state, task)
        if engine == "eager"
        else in_chunks(state, task, CapturedRun(state, task).take_chunk)
    )


def test_captured_steps_stop_before_what_is_not_finite_and_before_an_odd_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(100, longest=9))
    task = load_task(files_config(path, {"batch_size": 16, "max_steps": 40, "engine": "eager"}))
    states = {engine: new_state(task) for engine in ("eager", "graphs")}
    for engine, state in states.items():
        for _ in steps_with(engine, state, task):
            pass
    assert states["graphs"].totals.loss == pytest.approx(states["eager"].totals.loss, rel=1e-5)
    assert states["graphs"].totals.sequences == states["eager"].totals.sequences
    config = config_with("eager", {}, max_skipped_steps=2)
    state = new_state(load_task(config))
    state.model.head.bias.data[0] = float("inf")
    taken = in_chunks(state, load_task(config), CapturedRun(state, load_task(config)).take_chunk)
    assert [next(taken), next(taken), state.skipped, state.totals.steps] == [1, 1, 2, 0]
    assert not state.optimizer.state  # no update yet, and so nothing that a checkpoint should have
    state.model.head.bias.data[0] = 0
    monkeypatch.setattr(chunks, "train_step", None)  # from here on the graphs must do it
    assert next(taken) == state.totals.steps >= 1


def test_after_a_step_that_was_skipped_an_odd_batch_is_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_SECONDS", 0.0)  # one step at a time, on any machine
    path = write_jsonl(tmp_path / "d.jsonl", some_rows(100, longest=9))
    task = load_task(
        files_config(path, {"batch_size": 16, "max_steps": 40, "max_skipped_steps": 3})
    )

    heads = []
    for engine in ("eager", "graphs"):
        state = new_state(task)
        # The batch at the end of an epoch is smaller.
        sizes = next(task.blocks(0, 40)).edges.diff()
        odd = int((sizes != 16).nonzero()[0])
        for _ in steps_with(engine, state, task):
            if state.step == odd - 1:
                state.model.head.bias.data[0] = float("inf")  # the next step is skipped
            elif state.step == odd:
                assert state.skipped == 1
                state.model.head.bias.data[0] = 0
            elif state.step == odd + 1:
                break
        heads.append(state.model.head.bias.data.clone())
    torch.testing.assert_close(heads[1], heads[0], rtol=1e-5, atol=1e-7)


@needs_cuda
@pytest.mark.parametrize("name", CASES)
def test_captured_losses_are_the_eager_ones_on_cuda(name: str, tmp_path: Path) -> None:
    case = {**CASES[name], "device": "cuda"}
    device = case.pop("device")
    losses_by_engine = {}
    for engine in ("eager", "captured"):
        config = config_with(engine, case).model_copy(update={"device": device})
        losses_by_engine[engine] = losses(config, tmp_path / engine)
    assert losses_by_engine["captured"][:20] == pytest.approx(
        losses_by_engine["eager"][:20], rel=1e-4
    )
    assert losses_by_engine["captured"] == pytest.approx(losses_by_engine["eager"], rel=1e-2)


@needs_cuda
def test_captured_steps_resume_on_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_with("captured", {}, max_steps=100).model_copy(update={"device": "cuda"})
    expected = losses(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_after(patch, 37)
        with pytest.raises(Interrupted):
            fit(config, tmp_path / "run")
    resume(tmp_path / "run")
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert [row["train/loss"] for row in rows] == pytest.approx(expected, rel=1e-3)


def test_captured_steps_leave_no_graph_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Graphs] = []

    def making(*arguments: Any) -> Graphs:
        made.append(Graphs(*arguments))
        return made[-1]

    monkeypatch.setattr(captured_engine, "Graphs", making)
    task = load_task(config_with("eager", {}, max_steps=20))
    steps = captured_steps(new_state(task), task)
    next(steps)
    assert made[0].steps
    steps.close()
    assert not made[0].steps


@needs_cuda
def test_graphs_in_the_garbage_do_not_break_a_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_garbage() -> None:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            torch.zeros(1, device="cuda")
        cycle: list[object] = [graph]
        cycle.append(cycle)

    def capture(graphs: Graphs, width: int) -> Callable[[], object]:
        make_garbage()
        return original(graphs, width)

    def stepping(graphs: Graphs, width: int) -> None:
        if torch.cuda.is_current_stream_capturing():
            assert [[] for _ in range(100_000)]  # far more than starts a collection
        step(graphs, width)

    original = Graphs._capture
    step = Graphs._step
    monkeypatch.setattr(Graphs, "_capture", capture)
    monkeypatch.setattr(Graphs, "_step", stepping)
    config = config_with("captured", {}, max_steps=20).model_copy(update={"device": "cuda"})
    assert len(losses(config, tmp_path / "run")) == 20


@needs_cuda
def test_dropout_on_cuda_trains_without_a_warning(tmp_path: Path) -> None:
    layers = {"num_layers": 2, "dropout": 0.4}
    for model in (layers, {**layers, "bidirectional": True}, {**layers, "cell": "lstm"}):
        config = config_of(model=model).model_copy(update={"device": "cuda"})
        folder = "-".join(map(str, model.values()))
        assert fit(config, tmp_path / folder).step == 40


# --- the rest


def test_what_is_due_next() -> None:
    train = config_of(train={"log_every": 10, "eval_every": 25, "checkpoint_every": 60}).train
    assert [next_due(train, step) for step in (0, 9, 10, 24, 25, 59)] == [10, 10, 20, 25, 30, 60]


def test_items_made_ahead_keep_their_order_and_their_errors() -> None:
    def items() -> Any:
        yield from range(3)
        raise KeyError("broken")

    yielded: list[int] = []
    with pytest.raises(KeyError, match="broken"):
        yielded.extend(ahead(items()))
    assert yielded in ([], [0, 1, 2])
    stream = ahead(iter(range(10**9)))
    assert [next(stream), next(stream)] == [0, 1]
    stream.close()  # type: ignore[attr-defined]


def test_bfloat16_is_close_and_float32_is_float32(tmp_path: Path) -> None:
    exact = losses(config_with("eager", {}, max_steps=20), tmp_path / "float32")
    rough = losses(
        config_with("eager", {}, max_steps=20, precision="bfloat16"), tmp_path / "bfloat16"
    )
    assert rough != exact
    assert rough == pytest.approx(exact, rel=2e-2)
    for precision in ("tf32", "float32"):
        new_state(load_task(config_with("eager", {}, precision=precision)))
        assert (
            torch.backends.cudnn.allow_tf32
            == torch.backends.cuda.matmul.allow_tf32
            == (precision == "tf32")
        )


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "steps"), [("eager", 60), ("compiled", 10)])
def test_a_profile_can_be_opened(engine: str, steps: int, tmp_path: Path) -> None:
    fit(config_with(engine, {}, max_steps=steps, profile=True), tmp_path / "run")
    folder = tmp_path / "run" / "profile"
    trace = json.loads((folder / "steps.pt.trace.json").read_text())
    names = [event["name"] for event in trace["traceEvents"] if event.get("ph") == "X"]
    # Whatever the engine, the trace is that of 20 eager steps.
    assert names.count("autograd::engine::evaluate_function: EmbeddingBackward0") == 20
    annotated = [
        event["name"]
        for event in trace["traceEvents"]
        if event.get("cat") == "user_annotation" and event["name"] in PARTS
    ]
    assert {part: annotated.count(part) for part in ("batch", "backward", "optimizer")} == {
        "batch": 20,
        "backward": 20,
        "optimizer": 20,
    }

    lines = (folder / "profile.txt").read_text().splitlines()
    rows = {words[0]: words for words in map(str.split, lines) if len(words) == 3}
    assert list(rows) == [*PARTS, "total"]
    parts = [float(rows[part][1]) for part in PARTS]
    assert all(part > 0 for part in parts)
    assert float(rows["total"][1]) == pytest.approx(sum(parts), abs=0.01)
    assert any(f"{engine} steps" in line for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_run_that_profiles_keeps_its_bits(engine: str, tmp_path: Path) -> None:
    plain = config_of(**{**HARD, "train": {**HARD["train"], "engine": engine}})
    train = plain.train.model_copy(update={"profile": True})
    fit(plain, tmp_path / "plain")
    fit(plain.model_copy(update={"train": train}), tmp_path / "profiled")
    assert outcome(tmp_path / "profiled") == outcome(tmp_path / "plain")


@pytest.mark.parametrize("name", ["together", "prefix", "prefix_in_pieces"])
def test_steps_of_a_profile_are_training_steps(name: str) -> None:
    config = variant_of(name)
    task = load_task(config)
    state = new_state(task)
    copied = copy_of(state, config)
    seconds = _take_steps(copied, batches_of(copied, task, 5), 5, task, StopRequest())
    assert copied.step == len(seconds) == 5
    assert all(step.keys() == set(PARTS) for step in seconds)
    for batch in batches_of(state, task, 5):
        train_step(state, batch, task)
    for original, other in zip(state.model.parameters(), copied.model.parameters(), strict=True):
        assert torch.equal(original, other)


def test_a_profile_of_few_steps_and_after_a_signal(tmp_path: Path) -> None:
    task = load_task(config_of(train={"max_steps": 2}))
    state = new_state(task)
    (tmp_path / "stopped").mkdir()
    stop = StopRequest()
    stop.number = 15
    with RunLog(tmp_path / "stopped", task) as log:
        write_profile(state, task, log, stop, "eager steps")
    assert not (tmp_path / "stopped" / "profile").exists()
    assert state.step == 0


@pytest.mark.slow
def test_a_profile_says_nothing_on_stderr(tmp_path: Path) -> None:
    words = ["train", "--config", "configs/smoke.yaml", "device=cpu", "train.max_steps=4"]
    plain = run_process(*words, "--run-dir", tmp_path / "plain")
    profiled = run_process(*words, "train.profile=true", "--run-dir", tmp_path / "profiled")
    assert profiled.returncode == 0
    assert profiled.stderr.replace("profiled", "plain") == plain.stderr


# As Python can call them.
add_product = entry_point(kernels.add_product)
add_transposed = entry_point(kernels.add_transposed)


@pytest.mark.parametrize("size", [1, 3, 15, 16, 17, 40, 300])
def test_products_are_those_of_numpy(size: int) -> None:
    drawn = np.random.default_rng(size)
    wide = kernels.padded(size)
    a = drawn.standard_normal((size + 5, size)).astype(np.float32)
    w = np.zeros((size, wide), np.float32)
    w[:, :size] = drawn.standard_normal((size, size))
    out = drawn.standard_normal((size + 5, wide)).astype(np.float32)
    expected = out.copy()
    expected[2 : size + 2] += a[1 : size + 1] @ w
    add_product(out=out, out_row=2, left=a, left_row=1, right=w, rows=size)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    square = np.full((size, wide), 7, np.float32)
    add_transposed(square, a, 3, expected, 1, size)
    product = a[3 : size + 3].T @ expected[1 : size + 1]
    np.testing.assert_allclose(square, 7 + product, rtol=1e-3, atol=1e-3)


def test_elementwise_functions_are_those_of_numpy() -> None:
    x = np.concatenate([np.linspace(-90, 90, 20_001), [np.nan, np.inf, -np.inf]]).astype(np.float32)

    def applied(function: Callable[..., None]) -> np.ndarray[Any, Any]:
        y = x.copy()
        entry_point(function)(y)
        return y

    np.testing.assert_allclose(
        applied(kernels.tanh)[:-1], np.tanh(x.astype(np.float64))[:-1], rtol=0, atol=4e-7
    )
    np.testing.assert_array_equal(applied(kernels.relu), np.maximum(x, 0))
    low = x <= 0
    np.testing.assert_allclose(
        applied(kernels.exp)[low], np.exp(np.maximum(x[low].astype(np.float64), -87)), rtol=3e-7
    )
    assert np.isnan(applied(kernels.exp)[-3])


def test_the_program_of_a_cell_is_loaded_once() -> None:
    assert load_program("rnn") is load_program("rnn")
