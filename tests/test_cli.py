"""The command line as a user meets it: a process, its two streams and its exit code."""

import json
import math
import os
import pickle
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import rnncls
from rnncls.config.ranges import parse_lengths
from rnncls.errors import ConfigError
from tests.helpers import (
    PYTHON,
    ROOT,
    SAFETY_S,
    Completed,
    run_command,
    run_python,
    run_rnncls,
    started,
    wait_for_line,
)

COMMANDS = [
    [],
    ["train"],
    ["eval"],
    ["config"],
    ["config", "show"],
    ["config", "check"],
    ["config", "schema"],
]


# No --help needs these packages, and each takes a tenth of a second or more to import.
HEAVY = ("torch", "numpy", "scipy", "numba", "tensorboard", "matplotlib", "tqdm", "safetensors")


def test_help_answers_at_once_and_without_torch() -> None:
    """One process answers for all commands: what any of them imports stays imported."""
    code = f"""
import json, sys
from rnncls.cli.app import app
for words in json.loads(sys.argv[1]):
    app([*words, "--help"], standalone_mode=False)
    print([name for name in {HEAVY} if name in sys.modules])"""
    done = run_python(code, json.dumps(COMMANDS))
    assert done.returncode == 0, done.stderr
    answers = done.stdout.split("Usage: ")
    assert answers[0] == ""
    assert len(answers) == len(COMMANDS) + 1
    for command, answer in zip(COMMANDS, answers[1:], strict=True):
        assert " ".join(command) in answer.partition("\n")[0]
        assert answer.endswith("\n[]\n"), command


def test_help_of_the_whole_program_imports_few_modules() -> None:
    """In place of a limit in seconds, which a busy machine exceeds: torch alone brings 1,500."""
    code = """
import atexit, sys
from rnncls.cli import main
atexit.register(lambda: print(len(sys.modules)))
main()"""
    done = run_python(code, "train", "--help")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 500


def test_what_is_not_needed_is_not_imported(run_dir: Path) -> None:
    """The package alone imports no torch, and what reads a checkpoint nothing that trains.

    torch._dynamo takes as long as torch itself: it came with the shapes of a model, and with the
    updates of torch's optimizers.
    """
    code = """
import sys
import rnncls
assert "torch" not in sys.modules
from rnncls.cli import entry
run_dir = sys.argv[1]
for words in (["predict", run_dir, "2 1 2"], ["explain", run_dir, "2 1 2"], ["eval", run_dir]):
    sys.argv[1:] = words
    assert entry.run() == 0
    print([name for name in ("torch._dynamo", "numba", "tensorboard") if name in sys.modules])

import torch
from rnncls.config import OptimizerConfig
from rnncls.steps.optim import build_optimizer
for name in ("sgd", "adam", "adamw"):
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = build_optimizer([weight], OptimizerConfig(name=name, weight_decay=0.0))
    weight.grad = torch.full((2,), 0.3)
    optimizer.step()
    assert torch.is_grad_enabled() and weight.requires_grad
    assert weight.detach().tolist() != [1, 1]
    assert type(optimizer).__mro__[1].__name__.lower() == name
    print(["torch._dynamo"] if "torch._dynamo" in sys.modules else [])

assert "rnncls.training.fit" not in sys.modules
print([rnncls.fit.__module__])"""
    done = run_python(code, run_dir)
    assert done.returncode == 0, done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert found == [*["[]"] * 6, "['rnncls.training.fit']"]


def test_version() -> None:
    assert run_rnncls("--version").stdout == f"rnncls {rnncls.__version__}\n"


def test_train_names_the_run_directory_first_and_last_and_keeps_stdout_for_results(
    trained: tuple[Path, Completed],
) -> None:
    run_dir, done = trained
    lines = done.stdout.splitlines()
    assert lines[0] == lines[-1] == f"run directory: {run_dir}"
    assert re.fullmatch(r"steps: 400; best val/accuracy: \d\.\d{4} at step \d+", lines[1])
    assert len(lines) == 3
    assert "val/accuracy" in done.stderr  # progress, without a terminal one line per evaluation
    assert "it/s" not in done.stderr


def test_eval_prints_a_report(run_dir: Path) -> None:
    done = run_rnncls("eval", run_dir, "--confusion")
    assert done.returncode == 0, done.stderr
    assert f"checkpoint: {run_dir}/checkpoints/best.safetensors, step 400" in done.stdout
    assert "all 120 sequences" in done.stdout
    assert re.search(r"^ +4 +81 +\d+ +\d\.\d{4} +all of them +yes$", done.stdout, re.MULTILINE)
    assert re.search(r"^   2 +\d+ +\d+ +\d+$", done.stdout, re.MULTILINE)


def test_eval_json_is_one_object_and_nothing_else(run_dir: Path) -> None:
    done = run_rnncls("eval", run_dir, "--json", "--lengths", "2-3,30", "--samples", "200")
    report = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert {"accuracy", "loss", "examples", "errors", "exhaustive", "by_length"} <= report.keys()
    assert report["examples"] == 9 + 27 + 200
    assert report["exhaustive"] is False
    assert report["accuracy"] == pytest.approx(1 - report["errors"] / report["examples"])
    assert [row["length"] for row in report["by_length"]] == [2, 3, 30]
    assert [row["trained"] for row in report["by_length"]] == [True, True, False]
    for row in report["by_length"]:
        assert {"length", "examples", "errors", "accuracy", "ci95", "trained"} <= row.keys()
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
    assert math.isfinite(report["loss"])


def test_eval_of_a_file_a_run_and_the_python_api_agree(run_dir: Path) -> None:
    by_run = json.loads(run_rnncls("eval", run_dir, "--json").stdout)
    by_file = json.loads(
        run_rnncls("eval", run_dir / "checkpoints" / "step-00000400.safetensors", "--json").stdout
    )
    report = rnncls.evaluate(
        rnncls.load_model(run_dir), rnncls.load_config(run_dir / "config.yaml")
    )
    for key in ("accuracy", "errors", "examples", "by_length"):
        assert by_run[key] == by_file[key] == json.loads(json.dumps(report.to_json()))[key]


def test_config_show_check_and_schema(tmp_path: Path) -> None:
    done = run_rnncls("config", "show", "--config", "configs/parity.yaml", "train.max_steps=7")
    (tmp_path / "shown.yaml").write_text(done.stdout)
    shown = rnncls.load_config(tmp_path / "shown.yaml")
    assert shown == rnncls.load_config(ROOT / "configs/parity.yaml", ["train.max_steps=7"])
    as_json = run_rnncls(
        "config", "show", "--config", "configs/parity.yaml", "train.max_steps=7", "--json"
    )
    assert json.loads(as_json.stdout) == shown.model_dump(mode="json")
    assert run_rnncls("config", "check", "--config", "configs/parity.yaml").stdout == (
        "configs/parity.yaml: ok; 5,014 parameters, 5,000 steps of 128 sequences\n"
    )
    assert json.loads(run_rnncls("config", "schema").stdout)["properties"].keys() >= {
        "data",
        "model",
        "seed",
    }


def test_config_keys_answers_without_a_config(fails: Callable[..., str]) -> None:
    done = run_rnncls("config", "keys")
    assert done.returncode == 0
    assert "\noptimizer.lr  " in done.stdout

    full = run_rnncls("config", "keys", "lr").stdout
    assert full.startswith("optimizer.lr\n")
    assert "Peak learning rate, reached after the warm-up." in full

    entries = json.loads(run_rnncls("config", "keys", "optimizer", "--json").stdout)["keys"]
    defaults = {entry["name"]: entry["default"] for entry in entries}
    assert defaults["optimizer.lr"] == 2e-3
    assert defaults["optimizer.weight_decay"] == {"sum_mod": 0.3, "files": 0.3}
    assert "did you mean model.hidden_size?" in fails(2, "config", "keys", "hiden_size")


def test_the_schema_is_written_whole_and_an_editor_is_told_of_it(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    done = run_rnncls("config", "schema", "--output", "own.json", cwd=tmp_path)
    assert done.stdout == "# yaml-language-server: $schema=own.json\n"
    schema = json.loads((tmp_path / "own.json").read_text())
    assert schema == json.loads(run_rnncls("config", "schema").stdout)

    # An editor must not mark the null that stands for the default of the data source.
    warmup = schema["$defs"]["ScheduleConfig"]["properties"]["warmup_steps"]
    assert {"type": "null"} in warmup["anyOf"]
    assert warmup["default"] is None

    # A link stays one, and what it points to is written; so does a device: no file may replace it.
    (tmp_path / "link.json").symlink_to("own.json")
    (tmp_path / "own.json").write_text("")
    assert run_rnncls("config", "schema", "--output", tmp_path / "link.json").returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert schema == json.loads((tmp_path / "own.json").read_text())

    assert "R9" in fails(6, "config", "schema", "--output", tmp_path / "none" / "own.json")


def test_a_saved_config_repeats_the_run(tmp_path: Path) -> None:
    words = ["configs/smoke.yaml", "train.max_steps=30", "train.eval_every=10", "seed=3"]
    words += ["train.log_every=5", "train.engine=eager"]
    once = run_rnncls("train", *words, "--run-dir", tmp_path / "run")
    assert once.returncode == 0, once.stderr
    again = run_rnncls(
        "train", "--config", tmp_path / "run" / "config.yaml", "--run-dir", tmp_path / "again"
    )
    assert again.returncode == 0, again.stderr

    def values(folder: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return [
            {key: value for key, value in line.items() if "per_second" not in key} for line in lines
        ]

    assert len(values(tmp_path / "run")) == 6
    assert values(tmp_path / "again") == values(tmp_path / "run")


@pytest.mark.row("C1", "C5", "C17", "C19")
def test_wrong_configs(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("train:\n  max_stepps: 5\n")
    stderr = fails(2, "train", "--config", tmp_path / "bad.yaml", cwd=tmp_path)
    assert f"{tmp_path}/bad.yaml:2:3, train.max_stepps" in stderr
    assert "did you mean train.max_steps?" in stderr
    assert "no.yaml" in fails(2, "train", "--config", tmp_path / "no.yaml", cwd=tmp_path)
    smoke = ROOT / "configs" / "smoke.yaml"
    assert "override model.dropout=0.5" in fails(
        2, "train", "--config", smoke, "model.dropout=0.5", cwd=tmp_path
    )
    assert "expected: section.key=value" in fails(
        2, "config", "check", "--config", smoke, "lr", cwd=tmp_path
    )
    assert "not empty" in fails(2, "train", "--config", smoke, "--run-dir", tmp_path, cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    "arguments", [[], ["trian"], ["train", "--conifg", "x"], ["eval"]], ids=" ".join
)
def test_wrong_usage_is_explained(arguments: list[str]) -> None:
    done = run_rnncls(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Usage: ")
    assert "Traceback" not in done.stderr


@pytest.mark.row("R17", by="unit")
def test_cuda_without_cuda_is_a_clear_error(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (
        [
            "train",
            "--config",
            "configs/smoke.yaml",
            "--device",
            "cuda",
            "--run-dir",
            str(tmp_path / "run"),
        ],
        [
            "train",
            "--config",
            "configs/smoke.yaml",
            "device=cuda:3",
            "--run-dir",
            str(tmp_path / "run"),
        ],
        ["eval", str(run_dir), "--device", "cuda"],
    ):
        done = run_rnncls(*arguments)
        assert done.returncode == 5, done.stderr
        assert "no device cuda" in done.stderr
        assert "device=cpu" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_wrong_checkpoints(fails: Callable[..., str], run_dir: Path, tmp_path: Path) -> None:
    whole = (run_dir / "checkpoints" / "best.safetensors").read_bytes()
    contents = {
        "truncated": whole[:-100],
        "empty": b"",
        "random": os.urandom(9999),
        "pickled": pickle.dumps({"a": 1}),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(content)
        assert str(path) in fails(4, "eval", path)
    assert "cuda:INDEX" in fails(2, "eval", run_dir, "--device", "gpu")
    assert "no such checkpoint" in fails(4, "eval", tmp_path / "missing.safetensors")
    assert "no checkpoint in this folder" in fails(4, "eval", tmp_path)


def test_a_non_finite_loss_ends_with_7(tmp_path: Path) -> None:
    overrides = [
        "optimizer.name=sgd",
        "optimizer.lr=1e30",
        "train.max_grad_norm=null",
        "schedule.warmup_steps=0",
    ]
    done = run_rnncls(
        "train", "--config", ROOT / "configs/smoke.yaml", *overrides, "--run-dir", tmp_path / "run"
    )
    assert done.returncode == 7
    assert "not finite at step" in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    done = run_rnncls("--debug", "eval", "nowhere")
    assert done.returncode == 4
    assert "Traceback" in done.stderr


@pytest.mark.row("R5")
@pytest.mark.usefixtures("signals_not_ignored")
def test_ctrl_c_ends_with_130_and_says_how_to_resume(tmp_path: Path) -> None:
    words = ["train", "--config", "configs/smoke.yaml", "train.engine=eager"]
    words += ["train.max_steps=1000000", "--run-dir", str(tmp_path / "run")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with started([PYTHON, "-m", "rnncls", *words], **streams) as process:
        wait_for_line(process, "step    200")  # the evaluation of step 100 is committed
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=SAFETY_S)
    assert process.returncode == 130
    assert re.search(r"^interrupted at step [\d,]+, saved; resume with: ", rest, re.MULTILINE)
    assert "error" not in rest
    assert "Traceback" not in rest
    assert run_rnncls("eval", tmp_path / "run").returncode == 0


@pytest.mark.slow
@pytest.mark.row("R8")
def test_stdout_closed_early_is_no_error(run_dir: Path) -> None:
    done = run_command(["sh", "-c", f"{PYTHON} -m rnncls eval {run_dir} | head -1"])
    assert done.stdout.startswith("checkpoint: ")
    assert done.stderr == ""


@pytest.mark.row("C17")
def test_ranges() -> None:
    assert parse_lengths("1-3,10,7") == [1, 2, 3, 7, 10]
    assert parse_lengths("5") == [5]
    for text in ("", "0", "3-1", "a", "1,,2", "-3", "1-", "1-2-3", "1.5", "99999999", "٣"):
        with pytest.raises(ConfigError, match="bad list of lengths"):
            parse_lengths(text)


def test_the_public_api_has_nothing_else() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fti'"):
        rnncls.fti  # noqa: B018
