"""rnncls explain as a command: which options go together, what it refuses, old runs."""

import errno
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
import torch

from rnncls.rundir.checkpoint import read_checkpoint
from tests.helpers import PYTHON, ROOT, Completed, copy_of_run, run_process, run_rnncls, started

row = pytest.mark.row

BEFORE = ROOT / "tests" / "before"


@pytest.fixture(scope="module")
def words_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run on a file of words, not to be changed."""
    folder = tmp_path_factory.mktemp("words")
    lines = ["sequence,label"]
    for number in range(40):
        rest = f"film{number % 8} on a day{number // 8}"
        lines.append(f"good {rest},yes")
        lines.append(f"poor {rest},no")
    (folder / "films.csv").write_text("\n".join(lines) + "\n")
    small = ["train.max_steps=30", "model.hidden_size=8", "train.engine=eager"]
    done = run_rnncls("train", folder / "films.csv", "--run-dir", folder / "run", *small)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def refused(done: Completed, exit_code: int, *parts: str) -> None:
    """Check that a command ended with one clear message."""
    assert done.returncode == exit_code, done.stderr
    assert not done.stdout
    assert done.stderr.count("rnncls: error[") == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "try:" in done.stderr
    for part in parts:
        assert part in done.stderr


@row("C17", by="injection")
@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "nothing to show"),
        (["--padding", "--gradients"], "--padding and --gradients"),
        (["--states", "s.png", "--graph", "g.svg"], "--states and --graph"),
        (["1 2", "--padding"], "--padding takes no sequence"),
        (["1 2", "--rolled"], "--rolled is about --graph"),
        (["1 2", "--graph", "graph.pdf"], ".svg or .dot or .mmd"),
        (["--states", "config.yaml"], ".png"),
        (["--padding", "--output", "picture"], ".png"),
        (["1 2", "--html", "page.png"], ".html or .htm"),
        (["1 2", "--output", "o.png"], "--output is about --padding and --gradients"),
        (["1 2", "--graph", "g.svg", "--html", "o.html"], "--html and --label"),
        (["--padding", "--label", "1"], "--html and --label"),
        (["--graph", "g.svg"], "sequence"),
        (["--demo"], "--demo has a network of its own"),
        (["1 2", "--html", "o.html"], "--html"),
        (["1 2", "--label", "7"], "label"),
    ],
)
def test_options_that_do_not_go_together(
    words: list[str], part: str, run_dir: Path, tmp_path: Path
) -> None:
    refused(run_rnncls("explain", run_dir, *words, cwd=tmp_path), 2, "error[C17]", part)
    assert not list(tmp_path.iterdir())


@row("C17", by="injection")
def test_there_must_be_a_run() -> None:
    refused(run_rnncls("explain"), 2, "error[C17]", "--demo")


@row("K1", by="injection")
def test_no_run_and_a_sweep(tmp_path: Path) -> None:
    refused(run_rnncls("explain", tmp_path / "no", "1"), 4, "error[K1]")

    sweep = shutil.copytree(BEFORE / "sweep", tmp_path / "sweep")
    first = min((sweep / "members").iterdir())
    refused(run_rnncls("explain", sweep, "1"), 4, "error[K1]", str(first))
    assert run_rnncls("explain", first, "1").returncode == 0


@row("D7", by="injection")
@row("D9", by="injection")
@pytest.mark.parametrize(("text", "id"), [("1 77", "D7"), ("", "D9"), ("   ", "D9"), ("1 x", "D7")])
def test_a_sequence_that_is_none(text: str, id: str, run_dir: Path) -> None:
    refused(run_rnncls("explain", run_dir, text), 3, f"error[{id}]")


@pytest.mark.slow
def test_a_sequence_can_come_from_stdin(run_dir: Path) -> None:
    # Linux takes no argument of more than 128 KiB, and people have sequences of 100,000 tokens.
    text = "1 2 0 " * 25_000
    done = run_process("explain", run_dir, "-", input=f"{text}\nnot looked at\n")
    assert done.returncode == 0, done.stderr
    assert "sequence    75,000 tokens: 1 2 0 1" in done.stdout

    given = run_rnncls("explain", run_dir, "1 2 0", "--json")
    read = run_rnncls("explain", run_dir, "-", "--json", input="1 2 0")
    assert read.stdout == given.stdout
    assert read.returncode == 0, read.stderr


@pytest.mark.slow
def test_nothing_after_the_first_line_is_waited_for(run_dir: Path) -> None:
    command = [PYTHON, "-m", "rnncls", "explain", str(run_dir), "-"]
    with started(command, stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write("1 2 0\n")
        process.stdin.flush()
        assert process.stdout is not None
        assert "3 tokens: 1 2 0" in process.stdout.read()
        assert process.wait() == 0


@row("D9", by="injection")
@row("D11", by="injection")
@row("D13", by="injection")
@pytest.mark.parametrize(
    ("content", "id"),
    [
        (b"", "D9"),
        pytest.param(b"\n1 2\n", "D9", marks=pytest.mark.slow),
        pytest.param(b"1 \xff 2\n", "D11", marks=pytest.mark.slow),
        pytest.param(b"1 " * 2**20 + b"1", "D13", marks=pytest.mark.slow),
    ],
)
def test_a_line_of_stdin_that_is_no_sequence(
    content: bytes, id: str, run_dir: Path, tmp_path: Path
) -> None:
    if not content:  # which needs no process
        refused(run_rnncls("explain", run_dir, "-"), 3, f"error[{id}]")
        return
    path = tmp_path / "stdin"
    path.write_bytes(content)
    with path.open("rb") as file:
        refused(run_process("explain", run_dir, "-", stdin=file), 3, f"error[{id}]")


@row("K13", by="injection")
@pytest.mark.parametrize("view", [["1 2 0"], ["--padding"], ["--gradients"], ["--states", "s.png"]])
def test_weights_that_are_nan_are_warned_of(view: list[str], run_dir: Path, tmp_path: Path) -> None:
    copy = copy_of_run(
        run_dir, tmp_path / "run", lambda tensors: tensors["model/head.bias"].fill_(math.nan)
    )
    done = run_rnncls("explain", copy, *view, cwd=tmp_path)
    # The states are numbers, whatever the head makes of them.
    assert done.returncode == 0, done.stderr
    assert "rnncls: warning[K13]" in done.stderr


@row("R9", by="injection")
@pytest.mark.parametrize(
    "view",
    [
        ["1 2 0", "--graph", "{}/g.svg"],
        ["1 2 0", "--graph", "{}/g.dot"],
        ["--padding", "--output", "{}/p.png"],
        ["--gradients", "--output", "{}/g.png"],
        ["--states", "{}/s.png"],
    ],
)
def test_a_folder_for_pictures_that_is_missing(
    view: list[str], run_dir: Path, tmp_path: Path
) -> None:
    words = [word.format(tmp_path / "missing") for word in view]
    done = run_rnncls("explain", run_dir, *words)
    assert done.returncode == 6, done.stderr
    assert "error[R9]" in done.stderr
    assert os.strerror(errno.ENOENT) in done.stderr


@row("R9", by="injection")
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no disk that is always full")  # noqa: PTH110
def test_results_for_a_full_disk(run_dir: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run_process("explain", run_dir, "1 2 0", stdout=full)
    assert done.returncode == 6
    assert "error[R9]" in done.stderr


def test_no_terminal_of_forty_columns_changes_anything(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = run_rnncls("explain", run_dir, "1 2 0")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "dumb")
    narrow = run_rnncls("explain", run_dir, "1 2 0")
    assert wide.returncode == narrow.returncode == 0
    assert wide.stdout == narrow.stdout
    assert max(map(len, wide.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "view",
    [
        ["1 2 0"],
        ["1 2 0", "--graph", "g.svg"],
        ["--graph", "g.dot", "--rolled"],
        ["--padding"],
        ["--gradients"],
        ["--states", "s.png"],
    ],
)
def test_every_view_says_what_it_is_about_in_80_columns_and_in_json(
    view: list[str], run_dir: Path, tmp_path: Path
) -> None:
    best = run_dir / "checkpoints" / "best.safetensors"
    step = read_checkpoint(best).state.step

    done = run_rnncls("explain", run_dir, *view, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    checkpoint, model, *_ = done.stdout.splitlines()
    assert checkpoint.startswith("checkpoint  ")
    assert checkpoint.endswith(f"best.safetensors, step {step:,}")
    assert model == "model       RNN, relu, 1 layer of 64 units, 3 classes"

    done = run_rnncls("explain", run_dir, *view, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *others = map(json.loads, done.stdout.splitlines())
    assert all(isinstance(line, dict) for line in others)
    assert first["checkpoint"] == str(best)
    assert first["step"] == step
    assert first["labels"] == [0, 1, 2]
    assert (first["cell"], first["num_layers"], first["num_directions"]) == ("rnn", 1, 1)


@pytest.mark.parametrize(
    "view", [["good film1"], ["--padding"], ["--gradients"], ["--states", "s.png"]]
)
def test_every_view_of_a_run_on_files(view: list[str], words_run: Path, tmp_path: Path) -> None:
    done = run_rnncls("explain", words_run, *view, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.slow
def test_every_view_of_what_is_pooled_from_a_trained_state(words_run: Path, tmp_path: Path) -> None:
    keys = ["model.pooling=last_mean_max", "model.initial_state=learned", "model.cell=lstm"]
    small = ["train.max_steps=20", "model.hidden_size=8", "model.bidirectional=true"]
    films = words_run.parent / "films.csv"
    done = run_rnncls("train", films, "--run-dir", tmp_path / "run", *keys, *small)
    assert done.returncode == 0, done.stderr
    for view in (
        ["good film1", "--html", "o.html"],
        ["good film1", "--graph", "g.svg"],
        ["--graph", "g.mmd", "--rolled"],
        ["--padding", "--output", "p.png"],
        ["--gradients"],
        ["--states", "s.png"],
    ):
        done = run_rnncls("explain", "run", *view, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert "head sees   last state, mean and largest (model.pooling: last_mean_max)" in lines
        assert any(line.startswith("h_0, c_0    trained, not zeros") for line in lines)
        assert max(map(len, lines)) <= 80

    done = run_rnncls("model", "show", tmp_path / "run", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    (state,) = [one for one in shown["tensors"] if one["name"] == "initial_state"]
    assert (state["shape"], state["parameters"]) == ([2, 2, 8], 32)
    assert shown["layers"][-1]["input"] == "(B, 112)"  # 48 of the states, 64 of the inputs
    assert "mean, largest" in shown["layers"][-3]["kind"]
    assert "trained h_0 and c_0" in shown["layers"][-4]["kind"]


def test_words_are_coloured_by_how_much_they_matter(words_run: Path, tmp_path: Path) -> None:
    page = tmp_path / "out.html"
    done = run_rnncls("explain", words_run, "good film1", "--label", "yes", "--html", page)
    assert done.returncode == 0, done.stderr
    assert "good" in page.read_text(encoding="utf-8")


@pytest.fixture
def as_torch_begins() -> Iterator[None]:
    """Several threads and TF32 in cuDNN, as torch begins; restored afterwards."""
    num_threads = torch.get_num_threads()
    allowed = torch.backends.cudnn.allow_tf32
    torch.set_num_threads(num_threads + 1)
    torch.backends.cudnn.allow_tf32 = True
    yield
    torch.set_num_threads(num_threads)
    torch.backends.cudnn.allow_tf32 = allowed


@pytest.mark.usefixtures("as_torch_begins")
def test_threads_are_those_of_training(run_dir: Path) -> None:
    assert run_rnncls("explain", run_dir, "1 2 0").returncode == 0
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("as_torch_begins")
@pytest.mark.parametrize(
    "words", [["explain", "{}", "1 2 0"], ["predict", "{}", "1 2 0"], ["eval", "{}"]]
)
def test_precision_is_that_of_training(words: list[str], run_dir: Path) -> None:
    done = run_rnncls(*(word.format(run_dir) for word in words))
    assert done.returncode == 0, done.stderr
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("view", [["1 2 0"], ["--padding"], ["--gradients"], ["--states", "s.png"]])
def test_a_run_from_before_can_be_looked_into(view: list[str], tmp_path: Path) -> None:
    done = run_rnncls("explain", BEFORE / "run", *view, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_strangers_settings_of_pictures_do_nothing(run_dir: Path, tmp_path: Path) -> None:
    """With `text.usetex` each text would be a program for LaTeX, which is seldom there as well."""
    lines = "text.usetex: True\nbackend: gtk3agg\naxes.facecolor: black\n"
    (tmp_path / "matplotlibrc").write_text(lines)
    pictures = []
    for folder in (tmp_path, tmp_path / "other"):
        folder.mkdir(exist_ok=True)
        words = ["explain", str(run_dir), "--gradients", "--output", "grad.png"]
        done = run_process(*words, cwd=folder, env={**os.environ, "MPLBACKEND": "no such one"})
        assert done.returncode == 0, done.stderr
        pictures.append((folder / "grad.png").read_bytes())
    assert pictures[0] == pictures[1]
