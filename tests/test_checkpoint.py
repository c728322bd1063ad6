"""A checkpoint is one file that loads into plain PyTorch; a damaged one is never used."""

import hashlib
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn

from rnncls.config import Config
from rnncls.data import batches, collate, load_task
from rnncls.errors import CheckpointError, Damaged, WriteError
from rnncls.model.build import build_model
from rnncls.predict.predictor import load_model
from rnncls.rundir import tensorfile
from rnncls.rundir.checkpoint import read_checkpoint, write_checkpoint
from rnncls.rundir.checkpoint_files import find_checkpoint, mark_best, tidy
from rnncls.rundir.paths import step_path
from rnncls.rundir.restore import restore_model
from rnncls.steps import train_step
from rnncls.steps.optim import build_optimizer
from rnncls.steps.state import TrainState
from tests.helpers import change_checkpoint, config_of, data_of, run_python


def trained_state(config: Config, steps: int = 3) -> TrainState:
    model = build_model(config)
    state = TrainState(model, build_optimizer(model.parameters(), config.optimizer))
    for batch in batches(data_of(config), 0, "train", 8, 0, steps):
        train_step(state, batch, load_task(config))
    return state


def save(folder: Path, config: Config, steps: int = 3) -> tuple[Path, TrainState]:
    state = trained_state(config, steps)
    folder.mkdir(parents=True, exist_ok=True)
    return write_checkpoint(folder, state, load_task(config)), state


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_model_and_optimizer_come_back_to_the_bit(tmp_path: Path, name: str) -> None:
    momentum = 0.9 if name == "sgd" else 0.0
    config = config_of(
        optimizer={"name": name, "momentum": momentum},
        model={"num_layers": 2, "bidirectional": True},
    )
    path, state = save(tmp_path, config)
    checkpoint = read_checkpoint(path)
    assert checkpoint.config == config
    assert checkpoint.state.step == 3
    assert checkpoint.state.counters == state.counters()
    assert checkpoint.model.keys() == state.model.state_dict().keys()
    for key, value in state.model.state_dict().items():
        assert torch.equal(checkpoint.model[key], value)
    kinds = {"momentum_buffer"} if name == "sgd" else {"step", "exp_avg", "exp_avg_sq"}
    parameters = dict(state.model.named_parameters())
    assert checkpoint.optim.keys() == {f"{kind}/{key}" for kind in kinds for key in parameters}
    for key, value in checkpoint.optim.items():
        kind, _, parameter = key.partition("/")
        assert torch.equal(state.optimizer.state[parameters[parameter]][kind], value)


def test_the_model_part_loads_into_plain_modules_and_gives_the_same_logits(tmp_path: Path) -> None:
    path, state = save(tmp_path, config_of())
    with safe_open(path, "pt") as file:
        assert set(file.metadata()) == {"format", "state", "sha256"}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    embedding, rnn, head = (
        nn.Embedding(3, 4),
        nn.RNN(4, 16, nonlinearity="relu", batch_first=True),
        nn.Linear(16, 3),
    )
    for prefix, module in (
        ("model/embedding.", embedding),
        ("model/rnn.", rnn),
        ("model/head.", head),
    ):
        module.load_state_dict(
            {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        )
    sequence = torch.tensor([2, 0, 1, 1])
    expected = head(rnn(embedding(sequence.unsqueeze(0)))[0][:, -1])
    actual = load_model(path)(collate([sequence], torch.zeros(1)).tokens)
    torch.testing.assert_close(actual, expected)
    assert not load_model(path).training
    assert torch.equal(actual, state.model(collate([sequence], torch.zeros(1)).tokens))


def test_the_checksum_is_the_documented_one(tmp_path: Path) -> None:
    path, _ = save(tmp_path, config_of())
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    sha = hashlib.sha256()
    fields: list[bytes] = [metadata["state"].encode()]
    for name, tensor in sorted(safetensors.torch.load_file(path).items()):
        fields += [
            name.encode(),
            b"F32",
            json.dumps(list(tensor.shape)).encode(),
            tensor.numpy().tobytes(),
        ]
    for field in fields:
        sha.update(len(field).to_bytes(8, "little") + field)
    assert sha.hexdigest() == metadata["sha256"]


@pytest.mark.row("K2")
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_truncation_is_detected(every: int, tmp_path: Path) -> None:
    path, _ = save(tmp_path, config_of(model={"hidden_size": 2, "embedding_dim": 1}))
    content = path.read_bytes()
    short = tmp_path / "short.safetensors"
    for length in range(0, len(content), every):
        short.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            read_checkpoint(short)
    short.write_bytes(content + b"\0")
    with pytest.raises(CheckpointError):
        read_checkpoint(short)


@pytest.mark.row("K3")
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_flipped_bits_are_detected(every: int, tmp_path: Path) -> None:
    path, _ = save(tmp_path, config_of(model={"hidden_size": 2, "embedding_dim": 1}))
    content = path.read_bytes()
    flipped = tmp_path / "flipped.safetensors"
    rng = random.Random(0)
    in_header = range(8 * 64)
    anywhere = [rng.randrange(8 * len(content)) for _ in range(2000)]
    for position in [*in_header, *anywhere][::every]:
        changed = bytearray(content)
        changed[position // 8] ^= 1 << position % 8
        flipped.write_bytes(changed)
        with pytest.raises(CheckpointError):
            read_checkpoint(flipped)


def header_of(header: dict[str, Any]) -> bytes:
    """A file that is a safetensors header and nothing else."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


class Canary:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["CANARY"],)


@pytest.mark.row("K4", "K5", "K6")
def test_foreign_files_are_refused_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    monkeypatch.setenv("CANARY", str(canary))
    plain = safetensors.torch.save({"model/head.bias": torch.zeros(3)})
    zipped = tmp_path / "zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Canary()))
    foreign = {
        "empty": (b"", "damaged"),
        "random": (random.Random(1).randbytes(5000), "damaged"),
        "pickle": (pickle.dumps(Canary()), "never unpickles"),
        "torch_zip": (zipped.read_bytes(), "never unpickles"),
        "plain_safetensors": (plain, "not a checkpoint of rnncls"),
        "huge_header": ((2**63).to_bytes(8, "little") + b"{}", "damaged"),
        "deep_header": ((60_000).to_bytes(8, "little") + b"[" * 60_000, "damaged"),
        "surrogate": (
            header_of({"__metadata__": {"format": "\ud800", "state": "", "sha256": ""}}),
            "damaged",
        ),
        "surrogate_name": (
            header_of({"\ud800": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
            "damaged",
        ),
        "number_in_metadata": (
            header_of({"__metadata__": {"format": 1, "state": "", "sha256": ""}}),
            "damaged",
        ),
        "fractional_offset": (
            header_of({"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0.0]}}),
            "damaged",
        ),
        "list_header": ((2).to_bytes(8, "little") + b"[]", "damaged"),
        "text": (b"seed: 1\n" * 100, "damaged"),
    }
    for name, (content, message) in foreign.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert caught.value.exit_code == 4
        assert message in caught.value.render(), name
        assert str(path) in caught.value.render()
    assert not canary.exists()


@pytest.mark.row("K6")
@pytest.mark.parametrize("shape", [[1] * 9, [1] * 70, [0, 2**62]])
def test_well_signed_shapes_that_numpy_may_not_hold_are_damage(
    shape: list[int], tmp_path: Path
) -> None:
    path = tmp_path / "x.safetensors"
    tensorfile.write(path, "{}", {"model/head.bias": torch.zeros(shape)})
    with pytest.raises(Damaged) as caught:
        tensorfile.read(path)
    assert caught.value.problems[0].id == "K6"


@pytest.mark.row("K1", "K7")
def test_missing_files_links_pipes_and_folders(tmp_path: Path) -> None:
    path, _ = save(tmp_path / "run" / "checkpoints", config_of())
    (tmp_path / "link.safetensors").symlink_to(path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    for missing in ("link.safetensors", "no.safetensors", "pipe.safetensors"):
        with pytest.raises(CheckpointError):
            read_checkpoint(find_checkpoint(tmp_path / missing))
    with pytest.raises(CheckpointError, match="no checkpoint in this folder") as caught:
        read_checkpoint(find_checkpoint(tmp_path))
    assert str(tmp_path / "run") in caught.value.render()


def test_a_run_directory_means_its_best_and_without_one_its_newest(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    newest, best = (save(folder, config_of(), steps)[0] for steps in (12, 4))
    assert find_checkpoint(tmp_path) == newest == step_path(folder, 12)
    mark_best(best)
    assert read_checkpoint(find_checkpoint(tmp_path)).state.step == 4
    mark_best(newest)
    assert read_checkpoint(find_checkpoint(tmp_path)).state.step == 12
    mark_best(newest)
    assert sorted(path.name for path in folder.iterdir()) == [
        "best.safetensors",
        best.name,
        newest.name,
    ]


@pytest.mark.row("R28")
def test_pruning_goes_by_number_and_keeps_the_best(tmp_path: Path) -> None:
    paths = [save(tmp_path, config_of(), steps)[0] for steps in (9, 10, 2)]
    os.utime(paths[1], (0, 0))
    tidy(paths[2], is_best=True, keep=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "step-00000010.safetensors",
    ]
    assert read_checkpoint(tmp_path / "best.safetensors").state.step == 2


def test_a_write_that_fails_leaves_the_old_file_and_no_residue(tmp_path: Path) -> None:
    path, _ = save(tmp_path, config_of())
    before = path.read_bytes()
    path.unlink()
    path.mkdir()  # a rename onto a folder fails
    (path / "inside").write_text("")
    with pytest.raises(WriteError) as caught:
        save(tmp_path, config_of())
    assert caught.value.exit_code == 6
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    (path / "inside").unlink()
    path.rmdir()
    path.write_bytes(before)
    assert read_checkpoint(path).state.step == 3


@pytest.mark.slow
@pytest.mark.row("R9")
def test_a_file_size_limit_is_a_clear_error_and_keeps_earlier_checkpoints(tmp_path: Path) -> None:
    """A real limit of the operating system (EFBIG), in a process of its own."""
    code = """
import resource, signal
from rnncls.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
main()"""
    # With compiled steps, the limit would hit the compiler's files first.
    words = ["train", "--config", "configs/smoke.yaml", "train.engine=eager", "train.max_steps=4"]
    done = run_python(code, *words, "train.checkpoint_every=2", "--run-dir", tmp_path / "run")
    assert done.returncode == 6, done.stderr
    assert "cannot write the checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _, tensors: tensors.pop("model/head.bias"), "1 tensors do not fit"),
        (
            lambda _, tensors: tensors.update({"model/extra": torch.zeros(1)}),
            "1 tensors do not fit",
        ),
        (
            lambda _, tensors: tensors.update({"model/head.bias": torch.zeros(4)}),
            "head.bias: ((4,)",
        ),
        (
            lambda _, tensors: tensors.update({"model/head.bias": torch.zeros(3).double()}),
            "float64",
        ),
        (lambda state, _: state["config"]["model"].update(hidden_size=17), "tensors do not fit"),
        (
            lambda state, _: state["config"]["model"].update(hidden_size="x"),
            "bad value for model.hidden_size",
        ),
        (lambda state, _: state["config"].update(future=1), "unknown key"),
        (lambda state, _: state.pop("counters"), "damaged"),
        (lambda state, _: state.update(step=7), "damaged"),
    ],
)
@pytest.mark.row("K9")
def test_a_well_signed_checkpoint_that_does_not_fit_is_refused_whole(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], message: str
) -> None:
    path, _ = save(tmp_path, config_of())
    change_checkpoint(path, change)
    with pytest.raises(CheckpointError) as caught:
        restore_model(read_checkpoint(path))
    assert message in caught.value.render()


@pytest.mark.row("K10")
def test_a_newer_format_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorfile, "FORMAT", "rnncls-checkpoint/99")
    path, _ = save(tmp_path, config_of())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="another version") as caught:
        read_checkpoint(path)
    assert "rnncls-checkpoint/99" in caught.value.render()
