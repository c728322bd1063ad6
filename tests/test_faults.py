"""Faults that can happen while rnncls runs, each made to happen.

docs/faults.md is the table; every row of it has a test.
"""

import ast
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rnncls import data
from rnncls.config import dump_config
from rnncls.errors import ConfigError, Interrupted, MachineError, NonFiniteError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest, step_files
from rnncls.rundir.lock import locked
from rnncls.rundir.status import read_status
from rnncls.steps import optim
from rnncls.steps.state import TrainState
from rnncls.system.device import resolve_device
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import (
    PYTHON,
    ROOT,
    SAFETY_S,
    Completed,
    at_step,
    change_checkpoint,
    config_of,
    endless_run,
    mounting,
    outcome,
    run_command,
    run_process,
    run_python,
    run_rnncls,
    started,
    variant_of,
    wait_for,
)

row = pytest.mark.row
SMOKE: list[str | Path] = [
    "train",
    "--config",
    "configs/smoke.yaml",
    "device=cpu",
    "train.engine=eager",
]


def run_patched(patch: str, *words: str | Path, **options: Any) -> Completed:
    """Run `rnncls words` in a process of its own, after some Python."""
    beginning = "import os, signal\nfrom rnncls.training import states\n"
    end = "\nfrom rnncls.cli import main\nmain()"
    return run_python(beginning + patch + end, *words, **options)


def in_step(step: int, statement: str) -> str:
    """Return Python that makes the training step with this index begin with a statement."""
    return f"""
from rnncls.steps import eager
original = eager.train_step
def patched(state, *arguments):
    if state.step == {step}:
        {statement}
    return original(state, *arguments)
eager.train_step = patched"""


def failing(monkeypatch: pytest.MonkeyPatch, step: int, error: Exception) -> None:
    """Let the training step with this index raise an error."""

    def fail(_: object) -> None:
        raise error

    at_step(monkeypatch, step, fail)


# --- the table itself


# Who calls one of these runs a command or a run.
COMMANDS = {"fails", "fit", "resume", "run_sweep", "started"}
COMMANDS |= {"by_hand"}
COMMANDS |= {"run_command", "run_process", "run_python", "run_rnncls"}
CALLS = re.compile(r"(?<![.\w])(\w+)\(")
MARKS = re.compile(r"^@(?:pytest\.mark\.)?row\(([^)]*)\)", re.MULTILINE)
ROWS = re.compile(r"^\| ([CDKRT]\d+) \|.*\| ([a-z, ]+) \|$", re.MULTILINE)


def how_rows_are_tested() -> dict[str, set[str]]:
    """Return for each id that a test is marked with: by injection, by unit test, or both.

    A test injects if it runs a command or a run, itself or through the functions that it calls;
    one that does and only pretends the fault says `by="unit"`.
    """
    # The text of each function of each module. The formatter leaves two lines between them.
    functions: dict[str, dict[str, str]] = {}
    for path in (ROOT / "tests").glob("*.py"):
        texts = path.read_text().split("\n\n\n")
        named = [(re.search(r"^def (\w+)", text, re.MULTILINE), text) for text in texts]
        functions[path.stem] = {name[1]: text for name, text in named if name}

    def runs(text: str, module: str) -> bool:
        for name in set(CALLS.findall(text)):
            for place in (module, "helpers"):
                called = functions[place].get(name, text)
                if name in COMMANDS or (called != text and runs(called, place)):
                    return True
        return False

    tested: dict[str, set[str]] = {}
    for module, texts_of in functions.items():
        for text in texts_of.values():
            for mark in MARKS.findall(text):
                by_unit = 'by="unit"' in mark or not runs(text, module)
                for id in re.findall(r'"([A-Z]\d+)"', mark):
                    tested.setdefault(id, set()).add("unit" if by_unit else "injection")
    return tested


def test_every_row_of_the_table_has_a_test_and_every_id_in_the_code_a_row() -> None:
    rows = dict(ROWS.findall((ROOT / "docs" / "faults.md").read_text()))
    tested = how_rows_are_tested()
    code = "".join(path.read_text() for path in (ROOT / "rnncls").rglob("*.py"))
    used = set(re.findall(r'"([CDKRT]\d{1,2})"', code)) | set(
        re.findall(r"warning\[([CDKRT]\d+)\]", code)
    )
    assert len(rows) > 60
    assert used - rows.keys() == set()
    # A row without a test says `reading`, and no other does.
    without = {id: "reading" for id, kinds in rows.items() if kinds == "reading"}
    assert {id: ", ".join(sorted(kinds)) for id, kinds in tested.items()} | without == rows
    assert tested.keys() & without.keys() == set()


# --- config


@row("C20")
def test_without_assertions_the_messages_are_the_same(tmp_path: Path) -> None:
    bad = [
        "seed: no",
        "seed: 1\nseed: 2",
        "sed: 1",
        "- 1",
        "\tx",
        "train: {batch_size: 0}",
        "data: {min_length: 9}",
    ]
    bad += [
        "a: &x 1",
        "a: !!map {}",
        "[" * 100,
        "optimizer: {lr: .nan}",
        "model: {hidden_size: 1000000}",
    ]
    code = f"""
from pathlib import Path
from rnncls.config import load_config
from rnncls.errors import ConfigError
for text in {bad!r}:
    Path("c.yaml").write_text(text)
    try:
        load_config("c.yaml")
    except ConfigError as error:
        print(error.render())
"""
    outputs = []
    for options in ([], ["-OO"]):
        done = run_command([PYTHON, *options, "-c", code], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    assert outputs[0].count("rnncls: error") >= len(bad)
    assert outputs[0] == outputs[1]


@row("C12")
def test_a_batch_too_large_for_any_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="bytes of tokens") as caught:
        config_of(train={"batch_size": 2**20}, data={"max_length": 2**20})
    assert "train.batch_size" in caught.value.render()
    assert "try:" in caught.value.render()


# --- checkpoints


@row("K1")
def test_what_is_there_instead_of_a_checkpoint_is_listed(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "notes.txt").write_text("")
    for words in (["train", "--resume"], ["eval"]):
        message = fails(4, *words, tmp_path)
        assert str(tmp_path) in message
        assert "notes.txt" in message
    assert "no such checkpoint" in fails(4, "eval", tmp_path / "gone.safetensors")


@row("K4")
def test_other_files_beside_the_checkpoints_are_left_alone(tmp_path: Path) -> None:
    fit(config_of(train={"max_steps": 4}), tmp_path / "run")
    for name in (
        "notes.txt",
        "step-x.safetensors",
        "step-9.safetensors.bak",
        "stepp-9.safetensors",
    ):
        (tmp_path / "run" / "checkpoints" / name).write_text("mine")
    assert resume(tmp_path / "run", ["train.max_steps=6"]).step == 6
    assert (
        sum(path.read_bytes() == b"mine" for path in (tmp_path / "run" / "checkpoints").iterdir())
        == 4
    )


@row("K7")
def test_links_and_paths_in_names_are_not_followed(tmp_path: Path) -> None:
    fit(config_of(train={"max_steps": 4}), tmp_path / "run")
    newest = find_newest(tmp_path / "run")
    link = newest.with_name("step-00000099.safetensors")
    link.symlink_to(newest)
    done = run_rnncls("train", "--resume", tmp_path / "run", "train.max_steps=5")
    assert done.returncode == 4
    assert "error[K7]: a symbolic link" in done.stderr
    assert "try:" in done.stderr
    link.unlink()
    change_checkpoint(
        newest, lambda _, tensors: tensors.update({"model/../../canary": torch.zeros(1)})
    )
    assert run_rnncls("eval", newest).returncode == 4
    assert not list(tmp_path.rglob("canary"))
    newest.rename(newest.with_name("step-00000098.safetensors"))
    assert "error[K7]" in run_rnncls("eval", newest.with_name("step-00000098.safetensors")).stderr


@row("K8")
def test_a_checkpoint_of_another_model_names_what_would_make_it_fit(tmp_path: Path) -> None:
    fit(config_of(model={"hidden_size": 7}, train={"max_steps": 0}), tmp_path / "run")
    words = [*SMOKE, "--run-dir", tmp_path / "new", "--init-from", tmp_path / "run"]
    done = run_rnncls(*words)
    assert done.returncode == 4
    assert "error[K9]" in done.stderr
    remedy = re.search(r"try: +(.*)", done.stderr)
    assert remedy
    assert "model.hidden_size=7" in remedy[1]
    assert not (tmp_path / "new").exists()
    overrides = [word for word in remedy[1].split() if word.startswith(("model", "data.modulus"))]
    assert run_rnncls(*words, *overrides, "train.max_steps=1").returncode == 0


@row("K8")
@pytest.mark.parametrize(
    ("saved", "wanted"),
    [
        ({"initial_state": "learned"}, {}),
        ({}, {"initial_state": "learned"}),
        ({"initial_state": "learned", "cell": "lstm"}, {"initial_state": "learned", "cell": "rnn"}),
        ({"pooling": "last_mean_max"}, {}),
        ({"pooling": "mean"}, {"pooling": "last_mean_max", "initial_state": "learned"}),
    ],
)
def test_a_checkpoint_of_another_pooling_or_initial_state_says_what_would_make_it_fit(
    saved: dict[str, str], wanted: dict[str, str], tmp_path: Path
) -> None:
    state = fit(config_of(model=saved, train={"max_steps": 2}), tmp_path / "run")
    config = config_of(model=wanted, train={"max_steps": 0})
    (tmp_path / "c.yaml").write_text(dump_config(config))
    words: list[str | Path] = ["train", "--config", tmp_path / "c.yaml"]
    words += ["--run-dir", tmp_path / "new", "--init-from", tmp_path / "run"]

    done = run_rnncls(*words)
    assert done.returncode == 4
    assert "do not fit the model" in done.stderr
    assert not (tmp_path / "new").exists()
    remedy = re.search(r"try: +(.*)", done.stderr)
    assert remedy
    done = run_rnncls(*words, *(word.replace('"', "") for word in remedy[1].split()))
    assert done.returncode == 0, done.stderr
    weights = read_checkpoint(find_newest(tmp_path / "new")).model
    assert weights.keys() == state.model.state_dict().keys()


def test_weights_that_fit_are_taken_whatever_is_made_of_the_states(tmp_path: Path) -> None:
    """As with another nonlinearity: the config of the new run says what they mean there."""
    fit(config_of(model={"pooling": "mean"}, train={"max_steps": 2}), tmp_path / "run")
    old = read_checkpoint(find_newest(tmp_path / "run"))
    for pooling in ("last", "max"):
        config = config_of(model={"pooling": pooling}, train={"max_steps": 0})
        state = fit(config, tmp_path / pooling, tmp_path / "run")
        assert all(
            torch.equal(old.model[name], own) for name, own in state.model.state_dict().items()
        )


@pytest.mark.slow
@row("K9")
def test_a_well_signed_checkpoint_that_lies_about_its_size_allocates_nothing(
    tmp_path: Path,
) -> None:
    fit(config_of(train={"max_steps": 0}), tmp_path / "run")
    path = find_newest(tmp_path / "run")
    change_checkpoint(path, lambda state, _: state["config"]["model"].update(hidden_size=40_000))
    code = f"""
from rnncls.predict.predictor import load_model
from rnncls.errors import CheckpointError
from rnncls.system.process_memory import peak_bytes
before = peak_bytes()
try:
    load_model({str(path)!r})
except CheckpointError as error:
    print(error.render())
print(peak_bytes() - before)
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    assert "tensors do not fit" in done.stdout
    assert int(done.stdout.split()[-1]) < 200e6  # its weights would take 6.4 GB


@row("K13")
def test_nan_weights_are_seen_before_they_are_believed(tmp_path: Path) -> None:
    fit(config_of(train={"max_steps": 4}), tmp_path / "run")
    path = find_newest(tmp_path / "run")
    change_checkpoint(path, lambda _, tensors: tensors["model/head.bias"].fill_(torch.nan))
    done = run_rnncls("eval", path, "--json")
    assert done.returncode == 7
    assert done.stdout == ""
    assert f"warning[K13]: weights in {path} are not finite" in done.stderr
    assert "error[K13]: the loss is not finite" in done.stderr
    assert "try:" in done.stderr
    done = run_rnncls("train", "--resume", tmp_path / "run", "train.max_steps=9")
    assert (done.returncode, "error[K13]" in done.stderr) == (4, True)


@pytest.mark.slow
@row("K15")
def test_a_checkpoint_folder_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    with endless_run(tmp_path / "run") as process:
        (tmp_path / "run" / "checkpoints").rename(tmp_path / "elsewhere")
        process.send_signal(signal.SIGTERM)
        _, message = process.communicate(timeout=SAFETY_S)
        assert process.returncode == 6
    assert "error[R9]: cannot write the checkpoint: No such file or directory" in message
    assert "try:" in message
    (tmp_path / "run" / "checkpoints").write_text("a file")
    assert run_rnncls("train", "--resume", tmp_path / "run").returncode == 4


@row("K22")
def test_other_versions_are_named_on_resume(tmp_path: Path) -> None:
    fit(config_of(train={"max_steps": 4}), tmp_path / "run")
    change_checkpoint(
        find_newest(tmp_path / "run"), lambda state, _: state["versions"].update(torch="1.13.0")
    )
    done = run_rnncls("train", "--resume", tmp_path / "run", "train.max_steps=6")
    assert done.returncode == 0
    assert (
        f"warning[K22]: results may differ in the last bits: torch 1.13.0 -> {torch.__version__}"
        in done.stderr
    )


@pytest.mark.slow
@row("K23")
def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"whatever")
    path.chmod(0)

    code = "import torch, rnncls.rundir.checkpoint_files, rnncls.evaluation.evaluate\n"
    if os.geteuid() == 0:  # root may read anything: give the rights up, after the imports
        code += "import os; os.setgid(65534); os.setuid(65534)\n"
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == 0 and folder != Path("/"):
                folder.chmod(folder.stat().st_mode | 0o055)
    code += "from rnncls.cli import main; main()"
    done = run_python(code, "eval", path)
    assert done.returncode == 5, done.stderr
    assert "error[K23]: cannot read the checkpoint: Permission denied" in done.stderr
    assert "try:" in done.stderr
    assert path.exists()


# --- signals


@row("R4")
@pytest.mark.parametrize("evaluation", [1, 2])  # the second is that of the last step
def test_a_signal_during_an_evaluation_does_not_wait_for_its_end(
    evaluation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(train={"eval_samples": 100_000, "max_steps": 20, "eval_every": 10})
    fit(config, tmp_path / "whole")
    original = data.samples
    evaluations = 0
    scored = 0

    def interrupted(*arguments: Any) -> Iterator[Any]:
        nonlocal evaluations, scored
        evaluations += 1
        for number, batch in enumerate(original(*arguments)):
            scored = number
            if (evaluations, number) == (evaluation, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr("rnncls.data.sum_mod.samples", interrupted)
        with pytest.raises(Interrupted) as caught:
            fit(config, tmp_path / "run")
    assert caught.value.exit_code == 143
    assert scored == 2  # of 13
    assert read_checkpoint(find_newest(tmp_path / "run")).state.step == 10 * evaluation
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(10, 10 * evaluation, 10))
    resume(tmp_path / "run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


@pytest.mark.slow
@row("R4", "R5", "R6")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
@pytest.mark.usefixtures("signals_not_ignored")
def test_a_signal_at_the_start_ends_it_at_once(tmp_path: Path, number: int, code: int) -> None:
    patch = f"states.build_model = lambda *_: os.kill(os.getpid(), {int(number)})"
    done = run_patched(patch, *SMOKE, "--run-dir", tmp_path / "run")
    assert done.returncode == code
    assert "stopped by SIG" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@row("R5")
@pytest.mark.usefixtures("signals_not_ignored")
def test_a_second_ctrl_c_ends_at_once_without_saving(tmp_path: Path) -> None:
    patch = in_step(7, "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)")
    done = run_patched(patch, *SMOKE, "--run-dir", tmp_path / "run")
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
    assert [path.name for path in step_files(tmp_path / "run" / "checkpoints")] == [
        "step-00000000.safetensors"
    ]
    assert resume(tmp_path / "run").step == 400


@row("R6")
def test_sigusr1_saves_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = [
        "train.max_steps=30",
        "train.checkpoint_every=1000000",
        "train.eval_every=1000000",
        "train.log_every=1000000",
    ]
    at_step(monkeypatch, 7, lambda _: os.kill(os.getpid(), signal.SIGUSR1))
    done = run_rnncls(*SMOKE, *every, "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in step_files(tmp_path / "run" / "checkpoints")] == [
        "step-00000030.safetensors",
        "step-00000008.safetensors",
    ]


@pytest.mark.slow
@row("R6")
def test_sigusr1_before_a_run_is_no_reason_to_die(tmp_path: Path) -> None:
    patch = """
original = states.build_model
def build_model(*arguments):
    os.kill(os.getpid(), signal.SIGUSR1)
    return original(*arguments)
states.build_model = build_model"""
    done = run_patched(patch, *SMOKE, "train.max_steps=2", "--run-dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@row("R6")
def test_what_nohup_ignores_stays_ignored(tmp_path: Path) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    done = run_patched(
        in_step(7, "os.kill(os.getpid(), signal.SIGHUP)"),
        *SMOKE,
        "--run-dir",
        tmp_path / "run",
        preexec_fn=ignore,
    )
    assert done.returncode == 0, done.stderr
    assert read_status(tmp_path / "run")["state"] == "finished"


@pytest.mark.slow
@row("R7", "R16", "R27")
def test_stopped_by_the_terminal_it_continues_and_killed_it_is_said_to_have_died(
    tmp_path: Path,
) -> None:
    with endless_run(tmp_path / "run") as process:
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        before = read_status(tmp_path / "run")["step"]
        process.send_signal(signal.SIGCONT)
        wait_for(lambda: read_status(tmp_path / "run")["step"] > before)
        process.kill()
    assert read_status(tmp_path / "run")["state"] == "died"
    done = run_rnncls("train", "--resume", tmp_path / "run", f"train.max_steps={before}")
    assert done.returncode == 0, done.stderr
    assert "the process ended without a final status (killed?)" in done.stderr
    assert read_status(tmp_path / "run")["state"] == "finished"


# --- streams, disks, memory


@row("R8")
@pytest.mark.parametrize(
    "redirections",
    [
        "2>&1 | head -1",
        pytest.param(">&- 2>&-", marks=pytest.mark.slow),
        pytest.param("2>/dev/full", marks=pytest.mark.slow),
        # One stream of those above.
        pytest.param("| head -1", marks=pytest.mark.slow),
        pytest.param(">&-", marks=pytest.mark.slow),
        pytest.param("2>&-", marks=pytest.mark.slow),
    ],
)
def test_a_run_continues_when_nobody_listens(tmp_path: Path, redirections: str) -> None:
    quick = ["train.max_steps=40", "train.log_every=5", "train.eval_every=10"]
    words = [PYTHON, "-m", "rnncls", *SMOKE, *quick, "--run-dir", tmp_path / "run", redirections]
    done = run_command(["bash", "-o", "pipefail", "-c", " ".join(map(str, words))])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert read_status(tmp_path / "run")["state"] == "finished"
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
@row("R8", "R9")
def test_results_that_cannot_be_written_are_an_error(run_dir: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_process("eval", run_dir, stdout=full)
    assert done.returncode == 6
    assert "error[R9]: cannot write: No space left on device (stdout)" in done.stderr


@pytest.mark.slow
@row("R9")
def test_a_real_full_disk(tmp_path: Path) -> None:
    """A file system of 200 kB in a namespace of its own."""
    small = tmp_path / "small"
    small.mkdir()
    run_dir = small / "run"
    unshare, mount = mounting(small, "200k")
    words = [
        *SMOKE,
        "model.hidden_size=64",
        "train.checkpoint_every=5",
        "train.keep_checkpoints=9",
        "--run-dir",
        run_dir,
    ]
    train = f"{PYTHON} -m rnncls {' '.join(map(str, words))}"
    copy = f"cp -r {run_dir} {tmp_path}/copy"
    script = f"{mount} && {{ {train}; echo rc $?; ls -A {run_dir}/checkpoints; {copy}; }}"
    done = run_command([*unshare, script])
    assert "rc 6" in done.stdout, done.stderr
    assert "warning[R9]" in done.stderr
    assert re.search(
        r"error\[R9\]: cannot write the checkpoint: No space left on device", done.stderr
    )
    assert re.search(r"found: +[\d,]+ bytes free, [\d,]+ needed", done.stderr)
    assert ".tmp-" not in done.stdout
    assert re.search(r"^step-\d+\.safetensors$", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr

    # What was committed before can be read.
    assert "accuracy: " in run_rnncls("eval", tmp_path / "copy").stdout


def limit_file_size(limit: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


@pytest.mark.slow
@row("R10")
def test_logs_that_cannot_be_written_stop_with_one_warning_and_training_continues(
    tmp_path: Path,
) -> None:
    """A limit on file sizes that checkpoints stay below and logs do not."""
    words = [*SMOKE, "train.log_every=1", "model.hidden_size=8", "--run-dir", tmp_path / "run"]
    done = run_patched("", *words, preexec_fn=limit_file_size(25_000))
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("warning[R10]: cannot write metrics.jsonl and metrics.csv any more") == 1
    )
    assert done.stderr.count("warning[R10]: cannot write the TensorBoard log any more") == 1
    assert "Traceback" not in done.stderr
    assert read_status(tmp_path / "run")["state"] == "finished"
    assert read_checkpoint(find_newest(tmp_path / "run")).state.step == 400
    assert (
        resume(tmp_path / "run", ["train.max_steps=410"]).step == 410
    )  # a torn line does not matter
    assert "410" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[-1].split(",")[0]


@row("R12", by="unit")
def test_steps_that_are_not_finite_may_be_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {0, 5, 6, 11}
    original = optim.clip_grad_norm
    step = 0

    def poisoned(*arguments: Any) -> torch.Tensor:
        nonlocal step
        step += 1
        return original(*arguments) * (torch.nan if step - 1 in bad else 1)

    monkeypatch.setattr("rnncls.steps.eager.clip_grad_norm", poisoned)
    config = config_of(
        train={"max_steps": 16, "max_skipped_steps": 2, "log_every": 1, "eval_every": 16}
    )
    state = fit(config, tmp_path / "run")
    assert (state.step, state.skipped) == (16, 0)
    lines = [
        json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert {line["step"] - 1 for line in lines if "train/loss" not in line} | bad == bad
    updates = {int(entry["step"]) for entry in state.optimizer.state.values()}
    assert updates == {16 - len(bad)}
    bad = {3, 4, 5}
    step = 0
    with pytest.raises(NonFiniteError, match="step 6"):
        fit(config, tmp_path / "ended")
    status = read_status(tmp_path / "ended")
    assert (status["state"], status["exit_code"], status["error_id"]) == ("failed", 7, "R12")


@row("R12", by="unit")
# Each kind of parameter, and each way of computing gradients.
@pytest.mark.parametrize("variant", ["learned", "together", "prefix_in_pieces"])
def test_steps_that_are_not_finite_are_left_out_with_each_key(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight is NaN in steps 1 and 2, and what it was again in step 3."""
    kept: list[torch.Tensor] = []

    def poison(state: TrainState) -> None:
        weight = state.model.rnn.all_weights[0][1]
        kept.append(weight.detach().clone())
        weight.data.fill_(torch.nan)

    def heal(state: TrainState) -> None:
        state.model.rnn.all_weights[0][1].data.copy_(kept[0])

    at_step(monkeypatch, 0, poison)
    at_step(monkeypatch, 2, heal)
    state = fit(variant_of(variant, train={"max_steps": 6, "max_skipped_steps": 2}), tmp_path / "a")
    assert (state.step, state.skipped) == (6, 0)
    assert {int(entry["step"]) for entry in state.optimizer.state.values()} == {4}
    assert len(state.optimizer.state) == len(list(state.model.parameters()))

    # One more than may be skipped ends the run, before anything is updated.
    with pytest.raises(NonFiniteError, match="step 2") as caught:
        fit(variant_of(variant, train={"max_steps": 6, "max_skipped_steps": 1}), tmp_path / "b")
    assert "loss nan" in caught.value.render()
    assert read_status(tmp_path / "b")["error_id"] == "R12"


@row("R12")
def test_a_loss_that_is_not_finite_names_the_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, lambda state: state.model.embedding.weight.data[1].fill_(torch.nan))
    done = run_rnncls(*SMOKE, "--run-dir", tmp_path / "run")
    assert done.returncode == 7
    message = re.search(r"error\[R12\].*step 4\n(.*\n)+", done.stderr)
    assert message
    assert re.search(
        r"learning rate .*not finite for sequences \d+, \d+, .* of the batch", message[0]
    )
    assert "try:" in message[0]


@row("R12")
def test_weights_that_are_not_finite_are_never_committed(tmp_path: Path) -> None:
    words = [
        "optimizer.lr=1e300",
        "schedule.name=constant",
        "schedule.warmup_steps=0",
        "train.checkpoint_every=1",
    ]
    for steps in ("1", "5"):
        run_dir = tmp_path / steps
        done = run_rnncls(*SMOKE, *words, f"train.max_steps={steps}", "--run-dir", run_dir)
        assert done.returncode == 7
        assert "error[R12]: the weights are not finite" in done.stderr
        assert "try:" in done.stderr
        assert read_checkpoint(find_newest(run_dir)).state.step == 0


@row("R15", "R16", by="unit")
@pytest.mark.parametrize(
    ("error", "id"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "R15"), (MemoryError(), "R16")],
)
def test_out_of_memory_in_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, id: str
) -> None:
    failing(monkeypatch, 3, error)
    done = run_rnncls(*SMOKE, "--run-dir", tmp_path / "run")
    assert done.returncode == 8
    assert f"error[{id}]: out of memory" in done.stderr
    assert "batches of 128 sequences of up to 4 tokens" in done.stderr
    assert "train.batch_size" in done.stderr
    assert "Traceback" not in done.stderr
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"], status["error_id"]) == ("failed", 8, id)


@pytest.mark.slow
@row("R16")
def test_a_real_lack_of_memory(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))

    done = run_patched(
        "",
        *SMOKE,
        "train.batch_size=1000000",
        "model.hidden_size=1000",
        "--run-dir",
        tmp_path / "run",
        preexec_fn=limit,
    )
    assert done.returncode == 8, done.stderr
    assert "error[R16]: out of memory" in done.stderr
    assert "Traceback" not in done.stderr


@row("R18", by="unit")
def test_an_unexpected_error_leaves_a_crash_log_and_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        failing(patch, 3, RuntimeError("device-side assert triggered"))
        done = run_rnncls(*SMOKE, "train.max_steps=20", "--run-dir", tmp_path / "run")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"the traceback is in {tmp_path}/run/crash.log" in done.stderr
    assert "device-side assert triggered" in (tmp_path / "run" / "crash.log").read_text()
    assert [path.name for path in step_files(tmp_path / "run" / "checkpoints")] == [
        "step-00000000.safetensors"
    ]
    assert resume(tmp_path / "run").step == 20


# --- the rest of the world


@row("R28")
def test_durations_never_come_from_the_wall_clock() -> None:
    for path in (ROOT / "rnncls").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "time"
            ):
                assert node.attr in ("perf_counter", "sleep"), path


@pytest.mark.slow
@row("R29")
def test_any_terminal_will_do(tmp_path: Path) -> None:
    plain = {
        "PATH": os.environ["PATH"],
        "TERM": "dumb",
        "LANG": "C",
        "LC_ALL": "C",
        "NO_COLOR": "1",
        "COLUMNS": "20",
        "OMP_NUM_THREADS": "1",
    }
    run_dir = tmp_path / "ünïcode 試 run"
    done = run_process(*SMOKE, "train.max_steps=3", "--run-dir", run_dir, env=plain)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    code = """
import sys
from rnncls.cli import entry
for words in (["eval", sys.argv[1]], ["config", "show", "-c", sys.argv[2]], ["--help"]):
    sys.argv = ["rnncls", *words]
    assert entry.run() == 0, words"""
    ascii = plain | {"PYTHONIOENCODING": "ascii:backslashreplace"}
    done = run_python(code, run_dir, run_dir / "config.yaml", env=ascii)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(run_dir)
    no_utf8 = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_process(*SMOKE, "--run-dir", run_dir, env=plain | no_utf8)
    assert done.returncode == 5
    assert "error[R30]" in done.stderr
    assert "LANG=C.UTF-8" in done.stderr
    assert not run_dir.exists()


@row("R30")
def test_paths_of_five_thousand_letters() -> None:
    path = "/".join(["x" * 99] * 50)
    commands: list[list[str | Path]] = [
        ["eval", path],
        ["train", "--resume", path],
        ["runs", "ls", path],
        ["runs", "diff", path, path],
        [*SMOKE, "--init-from", path],
        [*SMOKE, "--run-dir", path],
        ["predict", path, "1"],
    ]
    for words in commands:
        done = run_rnncls(*words)
        assert done.returncode == 5, words
        assert done.stderr.count("try:") == 1
        assert "Traceback" not in done.stderr


@row("R26")
def test_looking_at_a_run_does_not_keep_it_from_starting(tmp_path: Path) -> None:
    fit(config_of(train={"max_steps": 2}), tmp_path / "run")
    looking = f"""
from pathlib import Path
from rnncls.rundir.lock import is_locked
print(flush=True)
while True:
    is_locked(Path({str(tmp_path / "run")!r}))
"""
    with started([PYTHON, "-c", looking], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"  # it has begun to look
        for _ in range(100):
            with locked(tmp_path / "run"):
                pass


@row("R17")
@pytest.mark.skipif(torch.cuda.device_count() > 128, reason="these devices exist")
@pytest.mark.parametrize("index", [128, 200, 255, 256, 999])
def test_an_index_that_torch_would_take_modulo_256(index: int) -> None:
    with pytest.raises(MachineError, match=f"no device cuda:{index}"):
        resolve_device(f"cuda:{index}")


@pytest.mark.slow
@row("R30")
def test_few_open_files_and_odd_paths(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (24, 24))

    assert (
        run_patched(
            "", *SMOKE, "--run-dir", tmp_path / "a 'b' \"c\"\n\t$d", preexec_fn=limit
        ).returncode
        == 0
    )
    done = run_rnncls(*SMOKE, "--run-dir", tmp_path / ("x" * 300))
    assert done.returncode == 5
    assert "error[R30]: cannot write: File name too long" in done.stderr
    assert "255 bytes" in done.stderr
    assert "try:" in done.stderr


# --- the long ones, in their short form


@pytest.mark.slow
@row("R1", "R2", "R3", "R4", "R9", "R11", "K18", "K19")
@row("K2", "K3", by="unit")
def test_chaos() -> None:
    """Run `make chaos` in its short form.

    That is a few kills, one call of each kind that is killed or fails, and samples of the rest.
    """
    parts = ["failpoints", "signals", "stops", "limits", "crowds", "disk_errors", "kills"]
    parts += ["damage", "mutations", "rights", "clocks", "compiling", "several"]
    done = run_command([PYTHON, "-m", "scripts.chaos", "--short", "--jobs", "2", *parts])

    assert done.returncode == 0, done.stdout + done.stderr
    for part in parts:
        found = re.search(rf"^{part}: .*; 0 failures", done.stdout, re.MULTILINE)
        assert found, done.stdout + done.stderr
