"""The logs of a run, read by TensorBoard's own reader and by a real TensorBoard server."""

import csv
import json
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins.hparams import plugin_data_pb2
from torch.utils.tensorboard import SummaryWriter

from rnncls.config import load_config
from rnncls.config.keys import all_keys
from rnncls.data import load_task
from rnncls.rundir import events as events_module
from rnncls.rundir.events import EventLog, _next_name
from rnncls.rundir.paths import default_run_dir
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import PYTHON, ROOT, SAFETY_S, Completed, config_of, started

TRAIN_TAGS = {"loss", "accuracy", "grad_norm", "clip_fraction", "lr"}
TRAIN_TAGS |= {"sequences_per_second", "sequences_seen"}
VAL_TAGS = {"loss", "accuracy", "macro_f1", "calibration_error", "best_value"}
VAL_TAGS |= {f"accuracy_by_length/{n}" for n in range(1, 5)}
ALL_TAGS = {f"train/{tag}" for tag in TRAIN_TAGS} | {f"val/{tag}" for tag in VAL_TAGS}


@pytest.fixture(scope="module")
def events(trained: tuple[Path, Completed]) -> EventAccumulator:
    accumulator = EventAccumulator(
        str(trained[0]), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0}
    )
    return accumulator.Reload()


def test_event_files_of_one_second_are_read_in_their_order(tmp_path: Path) -> None:
    steps = list(range(5, 65, 5))
    for step in steps:
        log = EventLog(tmp_path, config_of(), step, last_logged=step - 1)
        log.write(step, {"train/loss": 1.0})
        log.close()
    scalars = EventAccumulator(str(tmp_path)).Reload().Scalars("train/loss")
    assert [event.step for event in scalars] == steps


@pytest.mark.parametrize("name", ["9999999999.host.1.0", "9999999998.host.1.0", "zzz", "18\n"])
def test_an_event_file_comes_behind_those_of_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / f"events.out.tfevents.{name}").touch()
    live = EventAccumulator(str(tmp_path)).Reload()  # follows the last file that there is
    for step in (5, 10, 15):
        log = EventLog(tmp_path, config_of(), step, last_logged=step - 1)
        log.write(step, {"train/loss": 1.0})
        log.close()
    assert [event.step for event in live.Reload().Scalars("train/loss")] == [5, 10, 15]


def train_with_a_clock_that_goes_back(run_dir: Path) -> Iterator[None]:
    """Train 15 steps tomorrow, and 45 more in three parts today; yields after each part."""
    fit(config_of(train={"max_steps": 15, "log_every": 5, "eval_every": 5}), run_dir)
    (written,) = run_dir.glob("events.*")
    name = re.sub(r"\d{10}", lambda second: str(int(second[0]) + 86_400), written.name)
    written.rename(run_dir / name)
    yield
    for max_steps in (30, 45, 60):
        resume(run_dir, [f"train.max_steps={max_steps}"])
        yield


@pytest.mark.row("R28")
def test_tensorboard_shows_the_steps_in_order_although_the_clock_went_back(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    live = None
    for _ in train_with_a_clock_that_goes_back(run_dir):
        # One that is open all the time reads only what comes behind the file that it has reached.
        live = live or EventAccumulator(str(run_dir))
        live.Reload()
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    expected = list(range(5, 65, 5))
    for tag in ("train/loss", "val/accuracy"):
        assert live is not None
        assert [event.step for event in live.Scalars(tag)] == expected
        assert [event.step for event in multiplexer.Scalars("run", tag)] == expected


@pytest.mark.parametrize("last", ["4000000000.host.1.0", "x"])
def test_the_name_of_an_event_file_comes_behind_all_others(last: str) -> None:
    """Many times over, and without growing where the names are those of TensorBoard."""
    names = [f"events.out.tfevents.{last}"]
    for _ in range(20):
        names.append(_next_name(names))
    assert names == sorted(names)
    assert len(set(names)) == 21

    is_numbered = last != "x"
    assert (len(names[-1]) == len(names[1])) == is_numbered


@pytest.mark.slow
@pytest.mark.row("R28")
@pytest.mark.parametrize("load_fast", ["false", "true"])  # two programs that read event files
def test_a_tensorboard_server_shows_them_in_order_too(load_fast: str, tmp_path: Path) -> None:
    for _ in train_with_a_clock_that_goes_back(tmp_path / "run"):
        pass
    with serving(tmp_path, load_fast) as address:
        deadline = time.monotonic() + SAFETY_S
        while not get(f"{address}/data/plugin/scalars/tags") and time.monotonic() < deadline:
            time.sleep(0.2)
        points = get(f"{address}/data/plugin/scalars/scalars?tag=train/loss&run=run")
    assert [step for _, step, _ in points] == list(range(5, 65, 5))


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_run_directory_has_the_documented_files(run_dir: Path) -> None:
    names = sorted(
        re.sub(r"tfevents.*", "tfevents", str(path.relative_to(run_dir)))
        for path in run_dir.rglob("*")
    )
    checkpoints = [
        f"checkpoints/{name}.safetensors" for name in ("best", "step-00000300", "step-00000400")
    ]
    pictures = [
        "accuracy_by_length_over_time",
        "calibration",
        "confusion",
        "first_batch",
        "results",
    ]

    plots = ["plots", *sorted(["plots/evaluations.jsonl", *(f"plots/{n}.png" for n in pictures)])]
    files = ["config.yaml", "events.out.tfevents", "metrics.csv", "metrics.jsonl"]
    clouds = ["last_states.tsv", "last_states_shown.tsv", "tokens.tsv", "tokens_shown.tsv"]
    projector = ["projector", *(f"projector/{n}" for n in clouds), "projector_config.pbtxt"]
    others = [".lock", "checkpoints", "status.json"]
    assert names == sorted([*others, *checkpoints, *files, *plots, *projector])


def test_the_saved_config_is_the_resolved_one(run_dir: Path) -> None:
    overrides = ["train.engine=eager", "train.histogram_every=100"]
    expected = load_config(ROOT / "configs/smoke.yaml", overrides)
    assert load_config(run_dir / "config.yaml") == expected


def test_scalars_in_tensorboard_equal_the_lines(run_dir: Path, events: EventAccumulator) -> None:
    assert set(events.Tags()["scalars"]) == ALL_TAGS
    lines = lines_of(run_dir)
    assert [line["step"] for line in lines] == list(range(50, 401, 50))
    for tag in ALL_TAGS:
        expected = [
            (line["step"], pytest.approx(line[tag], rel=1e-6)) for line in lines if tag in line
        ]
        assert [(event.step, event.value) for event in events.Scalars(tag)] == expected
        assert len(expected) == (8 if tag.startswith("train/") else 4)


def test_values_are_what_their_names_say(run_dir: Path) -> None:
    for line in lines_of(run_dir):
        assert 0 <= line["train/accuracy"] <= 1
        assert 0 <= line["train/clip_fraction"] <= 1
        assert line["train/grad_norm"] > 0
        assert line["train/sequences_per_second"] > 0
    assert lines_of(run_dir)[-1]["train/lr"] == pytest.approx(1e-4)
    assert lines_of(run_dir)[0]["train/loss"] > lines_of(run_dir)[-1]["train/loss"]


def test_the_table_equals_the_lines(run_dir: Path) -> None:
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [
            {key: float(value) for key, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    assert rows == lines_of(run_dir)


def test_the_limits_of_histograms_are_those_of_torch(tmp_path: Path) -> None:
    writer: Any = SummaryWriter(str(tmp_path))
    writer.close()
    assert writer.default_bins == events_module._LIMITS


def test_the_config_and_the_histograms_are_in_tensorboard(events: EventAccumulator) -> None:
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    hidden_size: 64" in text
    names = events.Tags()["histograms"]
    parameters = ["embedding.weight", "head.bias", "head.weight"]
    parameters += [f"rnn.{kind}_l0" for kind in ("bias_hh", "bias_ih", "weight_hh", "weight_ih")]
    assert sorted(names) == sorted(
        f"weights/{name}{suffix}" for suffix in ("", ".grad") for name in parameters
    )
    assert [event.step for event in events.Histograms("weights/head.weight")] == [
        100,
        200,
        300,
        400,
    ]


def test_hparams_are_in_the_runs_own_stream(run_dir: Path, events: EventAccumulator) -> None:
    assert len(list(run_dir.rglob("events.out.tfevents*"))) == 1
    contents = events.summary_metadata
    data = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(contents[tag].plugin_data.content)
        for tag in (
            "_hparams_/experiment",
            "_hparams_/session_start_info",
            "_hparams_/session_end_info",
        )
    }
    start = data["_hparams_/session_start_info"].session_start_info.hparams
    assert start["optimizer.lr"].number_value == 5e-3
    assert start["model.nonlinearity"].string_value == "relu"
    assert start["seed"].number_value == 0
    assert start["model.bidirectional"].bool_value is False
    assert start["optimizer.betas"].string_value == "[0.9, 0.999]"
    assert "data.max_value" not in start  # null

    # Every column of either data source is there; the first ones are those that show.
    experiment = data["_hparams_/experiment"].experiment
    shown = {info.name for info in experiment.hparam_infos if info.differs}
    expected = {"model.cell", "model.hidden_size", "optimizer.lr", "train.batch_size", "seed"}
    assert shown == expected
    assert {info.name for info in experiment.hparam_infos} == {key.name for key in all_keys()}
    metrics = {info.name.tag for info in experiment.metric_infos}
    assert metrics == {"val/best_value", "val/accuracy", "val/loss", "val/macro_f1"} < ALL_TAGS


@contextmanager
def serving(folder: Path, load_fast: str = "false") -> Iterator[str]:
    """A real server on a free loopback port; its address."""
    command = [PYTHON, "-m", "tensorboard.main", "--logdir", str(folder)]
    command += ["--port", "0", "--host", "127.0.0.1", "--load_fast", load_fast]
    with started(command, stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        for line in server.stderr:
            if address := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield address[0]
                break
        else:
            pytest.fail("TensorBoard did not start")


@pytest.fixture(scope="module")
def tensorboard(trained: tuple[Path, Completed]) -> Iterator[str]:
    with serving(trained[0].parent.parent) as address:
        yield address


def get(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=SAFETY_S) as response:
        return json.load(response)


def test_a_tensorboard_server_shows_scalars_and_hparams_over_http(
    tensorboard: str, run_dir: Path
) -> None:
    deadline = time.monotonic() + SAFETY_S
    while (
        "smoke/run" not in (runs := get(f"{tensorboard}/data/plugin/scalars/tags"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.2)
    assert list(runs) == ["smoke/run"]  # one run, no time-stamped one beside it
    assert set(runs["smoke/run"]) == ALL_TAGS
    points = get(f"{tensorboard}/data/plugin/scalars/scalars?tag=val/accuracy&run=smoke/run")
    expected = [
        (line["step"], line["val/accuracy"]) for line in lines_of(run_dir) if "val/accuracy" in line
    ]
    assert [(step, pytest.approx(value)) for _, step, value in points] == expected

    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_SUCCESS", "STATUS_UNKNOWN", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [{"metric": {"group": "", "tag": "val/accuracy"}}],
        "startIndex": 0,
        "sliceSize": 10,
    }
    (group,) = get(f"{tensorboard}/data/plugin/hparams/session_groups", request)["sessionGroups"]
    assert group["hparams"]["optimizer.lr"] == 5e-3
    values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
    assert values["val/accuracy"] == pytest.approx(expected[-1][1])
    assert group["sessions"][0]["status"] == "STATUS_SUCCESS"


def test_many_lengths_are_put_together_in_a_readable_chart() -> None:
    few, many = ({"min_length": 2, "max_length": n} for n in (5, 500))
    assert load_task(config_of(data=few)).logged_lengths == [(n, n) for n in (2, 3, 4, 5)]
    groups = load_task(config_of(data=many)).logged_lengths
    assert [str(group) for group in groups[:3]] == ["2", "3-4", "5-8"]
    assert str(groups[-1]) == "257-512"
    # Every length is in exactly one group.
    counted = [sum(group.first <= n <= group.last for group in groups) for n in range(2, 501)]
    assert counted == [1] * 499


def test_default_run_directories_are_named_after_the_config_and_the_time(run_dir: Path) -> None:
    stamp = r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d"
    assert re.fullmatch(f"runs/parity/{stamp}", str(default_run_dir(Path("configs/parity.yaml"))))
    assert re.fullmatch(
        f"runs/parity/{stamp}-wide", str(default_run_dir(Path("configs/parity.yaml"), "wide"))
    )
    assert re.fullmatch(f"runs/smoke/{stamp}", str(default_run_dir(run_dir / "config.yaml")))
    # Without `.yaml` it is the name of the folder above.
    for name in ("..yaml", "...yaml"):
        assert re.fullmatch(f"runs/{stamp}", str(default_run_dir(Path(name))))
