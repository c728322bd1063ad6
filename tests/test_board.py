"""What a run shows beside its logs: HParams, texts, pictures, the link; none of it counts."""

import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rnncls.dashboard import board as board_module
from rnncls.dashboard.board import Board
from rnncls.dashboard.link import find_running, how_to_look, link
from rnncls.dashboard.recording import Records, is_recorded
from rnncls.dashboard.watching import Watcher
from rnncls.data import collate, load_task
from rnncls.evaluation.scores import Scored
from rnncls.model.losses import sequence_losses
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import (
    PYTHON,
    SAFETY_S,
    Killed,
    at_step,
    config_of,
    kill_at,
    mounting,
    outcome,
    run_command,
    run_process,
    run_rnncls,
    started,
)
from tests.test_runlog import get, serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
PICTURES = ("accuracy_by_length_over_time", "calibration", "confusion")
# TensorBoard reads a handful of small runs within seconds; each of six tests waits for it.
READ_WITHIN_S = 60
ALL_STATUSES = ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_FAILURE", "STATUS_RUNNING"]


def events_of(run_dir: Path) -> EventAccumulator:
    sizes = {"scalars": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(run_dir), size_guidance=sizes).Reload()


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def text_of(events: EventAccumulator, tag: str) -> str:
    text: str = events.Tensors(f"{tag}/text_summary")[-1].tensor_proto.string_val[0].decode()
    return text


# --- pictures and texts of a run


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 7 evaluations, of which the 1st, 2nd, 4th and last are drawn."""
    run_dir = tmp_path_factory.mktemp("pictured") / "run"
    fit(config_of(train={"max_steps": 35, "eval_every": 5, "plots": True}), run_dir)
    return run_dir


def test_the_first_second_fourth_evaluation_and_the_last_are_recorded() -> None:
    steps = range(0, 101, 10)
    recorded = [step for step in steps if is_recorded(step, 10, is_over=step == 100)]
    assert recorded == [10, 20, 40, 80, 100]


def test_pictures_are_in_the_folder_and_at_their_steps_in_tensorboard(pictured: Path) -> None:
    names = {path.name for path in (pictured / "plots").glob("*.png")}
    assert names == {f"{name}.png" for name in (*PICTURES, "results", "first_batch")}

    events = events_of(pictured)
    for name in PICTURES:
        images = events.Images(f"val/{name}")
        assert [image.step for image in images] == [5, 10, 20, 35]
    # The file is the same picture as the last one of the slider.
    for name in (*PICTURES, "results"):
        shown = events.Images(f"val/{name}")[-1]
        assert shown.encoded_image_string == (pictured / "plots" / f"{name}.png").read_bytes()
        assert shown.encoded_image_string.startswith(b"\x89PNG")


def test_texts_say_what_the_run_is_and_what_came_out(pictured: Path) -> None:
    events = events_of(pictured)
    assert "| engine | eager steps |" in text_of(events, "run/summary")

    changes = text_of(events, "run/config_changes")
    assert "| data.modulus | 3 | 10 |" in changes
    assert "optimizer.lr" not in changes

    evaluation = Records(pictured, last_logged=35).last()
    assert evaluation is not None
    table = text_of(events, "val/worst_errors").splitlines()
    assert len(table) == 2 + len(evaluation.errors)
    assert f"accuracy: {evaluation.accuracy:.4f}" in text_of(events, "report/final")


def test_the_worst_errors_are_errors_the_most_confident_first(pictured: Path) -> None:
    evaluation = Records(pictured, last_logged=35).last()
    assert evaluation is not None
    assert evaluation.errors
    for error in evaluation.errors:
        digits = [int(digit) for digit in error.sequence.split()]
        assert len(digits) == error.length
        assert str(sum(digits) % 3) == error.true != error.predicted
        assert error.probability_of_true < error.probability
    probabilities = [error.probability for error in evaluation.errors]
    assert probabilities == sorted(probabilities, reverse=True)


def test_a_sequence_that_occurs_several_times_is_one_error() -> None:
    task = load_task(config_of())
    rows = [torch.tensor(ids) for ids in ([1, 2], [1, 2], [2], [0])]
    batch = collate(rows, torch.tensor([1, 1, 1, 0]))
    # The first three are taken for class 0, and the last one is right.
    logits = torch.tensor([[3.0, 0.0, 0.0]]).expand(4, 3)
    losses = sequence_losses(logits, batch.labels)
    watcher = Watcher(task)
    list(watcher.watch([Scored(batch, logits, logits.argmax(1), losses)]))
    assert [error.sequence for error in watcher.errors()] == ["1 2", "2"]


def test_what_is_recorded_is_what_the_logs_say(pictured: Path) -> None:
    rows = rows_of(pictured)
    evaluation = Records(pictured, last_logged=35).last()
    assert evaluation is not None
    assert evaluation.accuracy == rows[-1]["val/accuracy"]
    counts = torch.tensor(evaluation.confusion.counts)
    assert int(counts.sum()) == 100
    assert int(counts.trace()) == round(evaluation.accuracy * 100)
    assert rows[-1]["train/sequences_seen"] == 35 * 8


# That an eager run does, is said below.
@pytest.mark.slow
def test_a_compiled_run_with_pictures_ends_with_the_same_bits(tmp_path: Path) -> None:
    for plots in (False, True):
        train = {"plots": plots, "engine": "compiled", "eval_every": 5}
        fit(config_of(train=train), tmp_path / str(plots))
    assert_same_but_for_plots(tmp_path / "False", tmp_path / "True")


def test_a_killed_run_is_resumed_with_the_same_bits_and_all_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"eval_every": 10, "checkpoint_every": 5, "plots": True}
    config = config_of(train=train)
    with monkeypatch.context() as patch:
        kill_at(patch, 18)
        with pytest.raises(Killed):
            fit(config, tmp_path / "killed")
    resume(tmp_path / "killed")
    fit(config_of(train=train | {"plots": False}), tmp_path / "whole")
    assert_same_but_for_plots(tmp_path / "whole", tmp_path / "killed")

    images = events_of(tmp_path / "killed").Images("val/confusion")
    assert [image.step for image in images] == [10, 20, 40]
    assert Records(tmp_path / "killed", last_logged=40).waiting() == []


@pytest.mark.parametrize(
    ("home", "name"), [(Board, "_show_results"), (board_module, "write_projector")]
)
def test_a_run_that_is_killed_while_it_draws_gets_the_rest_when_it_is_resumed(
    home: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(home, name, killed)
        with pytest.raises(Killed):
            fit(config_of(train={"eval_every": 20, "plots": True}), run_dir)
    assert [each.step for each in Records(run_dir, last_logged=40).waiting()] == [40]
    lines = (run_dir / "metrics.jsonl").read_bytes()

    resume(run_dir)
    assert Records(run_dir, last_logged=40).waiting() == []
    assert (run_dir / "plots" / "results.png").exists()
    assert (run_dir / "projector_config.pbtxt").exists()
    assert "accuracy:" in text_of(events_of(run_dir), "report/final")
    assert (run_dir / "metrics.jsonl").read_bytes() == lines

    # What is there once, the second process does not write again.
    events = events_of(run_dir)
    assert [image.step for image in events.Images("train/first_batch")] == [1]
    assert events.Tags()["graph"]

    # And no more than that: once all is drawn, nothing is written.
    files = sorted(path.name for path in run_dir.iterdir())
    resume(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == files


@pytest.mark.parametrize(("share", "is_beside"), [(100.0, True), (0.0, False)])
def test_pictures_are_drawn_beside_training_within_their_share_alone(
    share: float, is_beside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board_module, "SHARE", share)
    monkeypatch.setattr(board_module, "FIRST_SECONDS", 0.001)
    drawn: list[int] = []
    at_step(monkeypatch, 15, lambda _: drawn.append(len(list(tmp_path.rglob("*.png")))))
    fit(config_of(train={"eval_every": 10, "plots": True}), tmp_path / "run")
    assert drawn == [len(PICTURES) if is_beside else 0]

    images = events_of(tmp_path / "run").Images("val/confusion")
    assert [image.step for image in images] == [10, 20, 40]
    fit(config_of(train={"eval_every": 10, "plots": False}), tmp_path / "plain")
    assert_same_but_for_plots(tmp_path / "plain", tmp_path / "run")


def assert_same_but_for_plots(one: Path, other: Path) -> None:
    tensors, rows, counters = outcome(one)
    other_tensors, other_rows, other_counters = outcome(other)
    assert tensors == other_tensors
    assert rows == other_rows
    assert counters == other_counters


@pytest.mark.row("R36")
def test_a_run_whose_pictures_cannot_be_written_warns_once_and_is_unharmed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    fit(config_of(train={"max_steps": 1, "plots": False}), run_dir)

    # A file in the place of the folder: no picture can be written, whoever runs the test.
    (run_dir / "plots").write_text("mine\n")
    resume(run_dir, ["train.max_steps=40", "train.plots=true"])
    error = capsys.readouterr().err
    assert error.count("rnncls: warning[R36]") == 1
    assert json.loads((run_dir / "status.json").read_text())["state"] == "finished"
    assert (run_dir / "plots").read_text() == "mine\n"


@pytest.mark.slow
@pytest.mark.row("R36")
def test_a_disk_that_is_full_while_drawing_harms_no_run(tmp_path: Path) -> None:
    """A file system with room for checkpoints and logs, and not for all pictures."""
    small = tmp_path / "small"
    small.mkdir()
    unshare, mount = mounting(small, "250k")

    run_dir = small / "run"
    words = ["configs/smoke.yaml", "model.hidden_size=8", "train.max_steps=60", "device=cpu"]
    words += ["train.eval_every=10", "train.engine=eager", "--run-dir", str(run_dir)]
    train = f"{PYTHON} -m rnncls train {' '.join(words)}"
    script = f"{mount} && {{ {train}; echo rc $?; cp -r {run_dir} {tmp_path}/copy; }}"
    done = run_command([*unshare, script])
    assert "rc 0" in done.stdout, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "warning" in line and "R9" not in line]
    assert len(warnings) == 1
    assert "R36" in warnings[0] or "R10" in warnings[0]
    assert not list((tmp_path / "copy").rglob(".tmp-*"))
    assert json.loads((tmp_path / "copy" / "status.json").read_text())["state"] == "finished"

    plain = [word for word in words if word != str(run_dir)]
    done = run_rnncls("train", *plain, tmp_path / "plain", "train.plots=false")
    assert done.returncode == 0, done.stderr
    assert_same_but_for_plots(tmp_path / "plain", tmp_path / "copy")


def test_members_of_a_sweep_draw_none_of_their_own(tmp_path: Path) -> None:
    words = ["configs/smoke.yaml", "train.eval_every=50", "train.engine=eager", "device=cpu"]
    # A run alone of 50 steps has pictures.
    for plots, steps, count in (("null", 50, 0), ("true", 2, 5)):
        sweep = tmp_path / plots
        keys = [f"train.plots={plots}", f"train.max_steps={steps}"]
        done = run_rnncls("sweep", *words, *keys, "--seeds", "0", "--sweep-dir", sweep)
        assert done.returncode == 0, done.stderr
        assert len(list((sweep / "members").rglob("*.png"))) == count
        assert len(list((sweep / "plots").glob("*.png"))) == 5


# --- HParams


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on generated data, one on a file, and a sweep of two settings."""
    folder = tmp_path_factory.mktemp("three")
    fit(config_of(), folder / "generated")
    rows = "".join(f"{n % 3} {n % 5},{n % 3}\n" for n in range(60))
    (folder / "rows.csv").write_text(f"sequence,label\n{rows}")
    words: list[str | Path] = ["train.max_steps=20", "train.eval_every=10", "device=cpu"]
    words.append("train.plots=false")
    done = run_rnncls("train", folder / "rows.csv", *words, "--run-dir", folder / "file")
    assert done.returncode == 0, done.stderr
    grid: list[str | Path] = ["optimizer.weight_decay=0.1,0.2", "--seeds", "0,1"]
    grid += ["--sweep-dir", folder / "sweep"]
    done = run_rnncls("sweep", "configs/smoke.yaml", *words, *grid)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("order", [*itertools.permutations(["generated", "file", "sweep"])])
def test_hparams_are_right_whichever_run_is_found_first(
    three: Path, tmp_path: Path, order: tuple[str, ...]
) -> None:
    for number, name in enumerate(order):
        shutil.copytree(three / name, tmp_path / f"{number}_{name}")
    with serving(tmp_path) as address:
        groups = wait_for_groups(address, count=5)
        experiment = get(f"{address}/data/plugin/hparams/experiment", {"experimentName": ""})

    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"data.modulus", "data.train", "data.tokens", "train.max_grad_norm"} <= names
    shown = {info["name"] for info in experiment["hparamInfos"] if info.get("differs")}
    fixed = {"model.cell", "model.hidden_size", "optimizer.lr", "train.batch_size", "seed"}
    # The keys of a grid show as well where a member of its sweep is found first: in the order of
    # the file system, which need not be that of the names.
    assert shown in (fixed, fixed | {"optimizer.weight_decay"})
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert metrics == ["val/best_value", "val/accuracy", "val/loss", "val/macro_f1"]

    # Two runs, the control of one of them, and the sweep's four members as the averages of its two
    # settings.
    sizes = sorted(len(group["sessions"]) for group in groups)
    assert sizes == [1, 1, 1, 2, 2]
    for group in groups:
        assert fixed <= group["hparams"].keys()
        values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
        assert values.keys() == set(metrics)
        means = dict.fromkeys(metrics, 0.0)
        for session in group["sessions"]:
            run_dir = tmp_path / session["name"]
            rows = rows_of(run_dir)
            for tag in metrics:
                means[tag] += rows[-1][tag] / len(group["sessions"])
        assert values == pytest.approx(means, rel=1e-5)


def wait_for_groups(address: str, count: int) -> list[dict[str, Any]]:
    """Return the rows of HParams, once TensorBoard has read the runs."""
    columns = ["val/best_value", "val/accuracy", "val/loss", "val/macro_f1"]
    request = {
        "experimentName": "",
        "allowedStatuses": ALL_STATUSES,
        "colParams": [{"metric": {"group": "", "tag": tag}} for tag in columns],
        "startIndex": 0,
        "sliceSize": 100,
    }
    deadline = time.monotonic() + READ_WITHIN_S
    while time.monotonic() < deadline:
        answer = get(f"{address}/data/plugin/hparams/session_groups", request)
        groups: list[dict[str, Any]] = answer.get("sessionGroups", [])
        sessions = [session for group in groups for session in group["sessions"]]
        if len(groups) == count and all(s["status"] == "STATUS_SUCCESS" for s in sessions):
            return groups
        time.sleep(0.2)
    pytest.fail("TensorBoard did not read the runs")


# --- the link


def pinned_of(address: str) -> list[dict[str, Any]]:
    pinned: list[dict[str, Any]] = json.loads(parse_qs(urlsplit(address).query)["pinnedCards"][0])
    return pinned


def test_the_link_pins_the_cards_that_matter_without_smoothing() -> None:
    address = link("http://localhost:7000/")
    query = parse_qs(urlsplit(address).query)
    assert query["smoothing"] == ["0"]
    assert [card["tag"] for card in pinned_of(address)] == [
        "val/accuracy",
        "val/loss",
        "train/loss",
        "train/grad_norm",
    ]
    of_sweep = pinned_of(link("http://localhost:7000/", ["a/sweep", "b"]))[0]
    assert of_sweep["runId"] == "defaultExperimentId/a/sweep/summary"


def test_a_run_and_a_sweep_end_with_a_link(three: Path, tmp_path: Path) -> None:
    words: list[str | Path] = ["train.max_steps=1", "train.plots=false"]
    words += ["--run-dir", tmp_path / "run"]
    done = run_rnncls("train", "configs/smoke.yaml", *words)
    assert f"dashboard: {link('http://localhost:6006/')}" in done.stderr
    assert f"rnncls board {tmp_path / 'run'}" in done.stderr
    assert "http" not in done.stdout

    (first, _) = how_to_look(three / "sweep", sweep=True)
    assert pinned_of(first)[0]["runId"] == "defaultExperimentId/summary"


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    done = run_rnncls("board", tmp_path / "none")
    assert done.returncode == 2
    assert "C17" in done.stderr


@pytest.mark.parametrize("content", ["file", "folder", "text", "stranger", "pipe"])
def test_what_anybody_may_have_written_ends_no_run(
    content: str, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The places of TensorBoards that run are told by files that anybody may write."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    infos = tmp_path / ".tensorboard-info"
    path = infos / "pid-1.info"

    if content == "file":
        infos.write_text("mine\n")
    else:
        infos.mkdir()
    if content == "folder":
        path.mkdir()
    elif content == "text":
        path.write_text("[" * 100_000)
    elif content == "stranger":
        entry = {"pid": 1, "port": 1, "logdir": "~nobody/x", "path_prefix": "\x1b[31m"}
        path.write_text(json.dumps(entry))
    elif content == "pipe":
        os.mkfifo(path)

    assert find_running(three) is None
    done = run_rnncls("board", three, "--link")
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.row("R37")
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_process("board", tmp_path, "--port", port, "--host", "127.0.0.1")
    assert done.returncode == 5
    assert "error[R37]" in done.stderr
    assert port in done.stderr


@pytest.fixture
def board(three: Path) -> Iterator[str]:
    """The link that a real `rnncls board` prints, which serves as long as the test runs."""
    command = [PYTHON, "-m", "rnncls", "board", str(three), "--host", "127.0.0.1"]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()


@pytest.mark.slow
def test_board_starts_tensorboard_and_finds_the_one_that_runs(board: str, three: Path) -> None:
    split = urlsplit(board)
    runs = get(f"{split.scheme}://{split.netloc}/data/runs")
    assert isinstance(runs, list)

    # A second one, for a run in the folder, says where it is shown.
    done = run_process("board", three / "generated")
    assert done.returncode == 0, done.stderr
    assert urlsplit(done.stdout.strip()).port == split.port
    assert pinned_of(done.stdout.strip())[0]["tag"] == "val/accuracy"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_board_without_a_trace(number: signal.Signals, three: Path) -> None:
    command = [PYTHON, "-m", "rnncls", "board", str(three), "--host", "127.0.0.1"]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        assert server.stdout.readline().startswith("http://127.0.0.1:")
        deadline = time.monotonic() + SAFETY_S
        while find_running(three) is None and time.monotonic() < deadline:
            time.sleep(0.1)
        server.send_signal(number)
        assert server.wait(SAFETY_S) == 0
    assert find_running(three) is None


@pytest.mark.slow
@needs_browser
def test_the_view_behind_the_link_opens_with_pins_and_groups(board: str, tmp_path: Path) -> None:
    page = page_of(board, tmp_path)
    assert "Pinned" in page
    assert "5 cards" in page
    for group in ("train", "val"):
        assert f">{group}<" in page
    smoothing = re.search(r'scalars-smoothing-label.*?aria-valuetext="([^"]*)"', page, re.DOTALL)
    assert smoothing is not None
    assert smoothing[1] == "0"

    # Two runs on their own, the control of one of them, two settings of two members each, and the
    # sweep's pictures.
    colours = colours_of(page)
    settings = [name.rpartition("_seed=")[0] or name for name in colours]
    assert len(colours) == 8
    assert len(set(colours.values())) == len(set(settings)) == 6
    for setting in set(settings):
        of_setting = zip(settings, colours.values(), strict=True)
        assert len({colour for name, colour in of_setting if name == setting}) == 1


def colours_of(page: str) -> dict[str, str]:
    """Return the colour of each run, by its name, as the list of runs shows it."""
    rows = re.findall(r'data-id="defaultExperimentId/([^"]+)"(.*?)(?=data-id="|$)', page, re.DOTALL)
    colours = {}
    for name, row in rows:
        colour = re.search(r"background: ?(rgb\([^)]*\))", row)
        if colour:
            colours[name] = colour[1]
    return colours


def page_of(address: str, folder: Path) -> str:
    """Return what a real browser makes of a page, once its scripts have run."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"]
    command += ["--no-first-run", "--disable-background-networking", "--disable-sync"]
    command += ["--disable-component-update", f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1600,1200", "--virtual-time-budget=20000", "--dump-dom", address]
    environment = dict(os.environ, HOME=str(folder))
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=SAFETY_S, check=True, env=environment
    )
    return done.stdout
