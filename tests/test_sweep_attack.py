"""Sweeps that something tries to break: profilers, streams, and odd text and numbers in files."""

import copy
import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rnncls.config import dump_config
from rnncls.sweep.groups import plan_groups
from rnncls.sweep.members import run_sweep
from rnncls.sweep.outcomes import Outcome
from rnncls.sweep.plan import Member, Sweep, plan_sweep
from rnncls.sweep.plots.by_length import accuracy_by_length, error_rate_by_length
from rnncls.sweep.plots.looks import MOST_NAMED
from rnncls.sweep.plots.loss import _loss_curve, losses
from rnncls.sweep.plots.steps_to_solved import steps_to_solved
from rnncls.sweep.plots.success_rate import success_rates
from rnncls.sweep.results import Evaluation, LengthResult
from rnncls.sweep.summary import _as_csv, summarize
from rnncls.sweep.text import summary_text
from rnncls.system.pictures import png_of
from tests.helpers import PYTHON, config_of, run_command, run_process, run_rnncls, started, wait_for

row = pytest.mark.row

TRAIN = {"max_steps": 6, "log_every": 2, "eval_every": 3, "eval_samples": 20}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump_config(config_of(train=TRAIN)))
    return path


def words_of(config: Path, sweep: Path, seeds: str = "0") -> list[str | Path]:
    """Return the command line of a sweep."""
    words: list[str | Path] = ["sweep", "--config", config, "--seeds", seeds, "--samples", "20"]
    return [*words, "--sweep-dir", sweep]


# --- one profiler for the whole process


def test_members_that_profile_take_turns(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    config = config_of(train={**TRAIN, "engine": "auto"})
    grid = {"train.profile": ["true", "false"]}
    members = plan_sweep(config, "0-2", grid, None, 20, tmp_path / "sweep").members
    together, one_by_one = plan_groups(members, jobs=2)
    assert together.threads == 2
    assert {member.config.train.profile for member in together.members} == {False}
    assert one_by_one.threads == 1
    assert {member.config.train.profile for member in one_by_one.members} == {True}


@pytest.mark.slow  # two processes with the profiler
def test_a_sweep_that_profiles_ends_with_a_trace_of_each_member(
    config: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*words_of(config, sweep, seeds="0-1"), "--jobs", "2"]
    words += ["train.profile=true", "train.engine=auto", "train.max_steps=3000"]
    with started([PYTHON, "-m", "rnncls", *words], env=own) as process:
        wait_for(lambda: list(sweep.rglob("*.trace.json")))
        process.terminate()
        assert process.wait() == 143

    done = run_process("sweep", "--resume", sweep, "--jobs", "2", env=own)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("members with train.profile=true train one after another") == 1
    assert len(list(sweep.rglob("*.trace.json"))) == 2


# --- streams


@pytest.mark.slow
@row("R9")
def test_a_full_stdout_does_not_keep_the_summary_from_being_stored(
    config: Path, tmp_path: Path
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    sweep = tmp_path / "sweep"
    with open("/dev/full", "w") as full:
        done = run_process(*words_of(config, sweep), stdout=full)
    assert done.returncode == 6, done.stderr
    assert "error[R9]" in done.stderr
    assert json.loads((sweep / "summary.json").read_text())["groups"][0]["ended"] == 1
    assert (sweep / "summary.csv").exists()
    assert (sweep / "plots" / "loss.png").exists()


@pytest.mark.slow  # a process for each
@row("R9")
@pytest.mark.parametrize("redirected", ["2>/dev/full", ">&-", "2>&-", ">&- 2>&-", "| head -0"])
def test_a_sweep_ends_whatever_becomes_of_its_streams(
    redirected: str, config: Path, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    command = f'"{PYTHON}" -m rnncls sweep --config "{config}" --seeds 0 --samples 20'
    script = f'{command} --sweep-dir "{sweep}" {redirected}\nexit ${{PIPESTATUS[0]}}'
    done = run_command(["bash", "-c", script])
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((sweep / "summary.json").read_text())["groups"][0]["ended"] == 1


# --- text in pictures

ODD_TEXT = [
    "$\\frac{$",
    "$x$",
    "\\text{",
    "a\nb\0c",
    "\ud800",
    "\u05e9\u05dc\u05d5\u05dd",
    "\u65e5\u672c",
    "\u202eabc",
    "\x1b[31m",
    "x" * 10_000_000,
]


def outcomes_of(values: list[str]) -> list[Outcome]:
    """Return the outcome of a member for each value of a grid."""
    at_length = [LengthResult(length=length, accuracy=0.5, trained=True) for length in (1, 5)]
    evaluation = Evaluation(step=1, accuracy=0.5, chance=0.3, by_length=at_length)
    ended = []
    for number, value in enumerate(values):
        member = Member(str(number), {"data.label_field": value}, config_of())
        ended.append(Outcome(member, "finished", 0, "", 1, evaluation, (1, 5), None, None))
    return ended


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [ODD_TEXT[:2], ODD_TEXT], ids=["inside", "beside"])
def test_values_of_a_grid_are_drawn_as_text(values: list[str]) -> None:
    for draw in (accuracy_by_length, error_rate_by_length, steps_to_solved, success_rates):
        figure = draw(outcomes_of(values))
        assert png_of(figure).startswith(b"\x89PNG")
        shown = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        for legend in figure.legends:
            shown += [text.get_text() for text in legend.get_texts()]
        assert any(text.startswith("label_field=$\\frac{$") for text in shown)
        assert all(text.isprintable() and len(text) < 75 for text in shown)


def test_a_legend_names_the_first_of_many_settings() -> None:
    figure = accuracy_by_length(outcomes_of([f"v{number}" for number in range(50)]))
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == MOST_NAMED + 1
    # The settings, the training lengths and the chance.
    assert labels[-1] == f"... and {52 - MOST_NAMED} more"


# --- odd values in every field of a member's files

ODD_VALUES: list[Any] = [
    10**300,
    -(10**25),
    2**63,
    -1,
    0,
    True,
    None,
    1e308,
    1e-320,
    float("nan"),
    float("-inf"),
    0.5,
    "x",
    "\ud800\0\u202e$\\frac{$",
    "9" * 5000,
    [],
    [1],
    {"a": 1},
]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    config = config_of(train=TRAIN)
    folder = tmp_path_factory.mktemp("odd") / "sweep"
    grid = {"optimizer.lr": ["0.01", "0.02"]}
    sweep = plan_sweep(config, "0", grid, None, 20, folder)
    assert not run_sweep(sweep)
    return sweep


def places_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where something may be replaced: in every object, and the first entry of each list."""
    yield place
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places_in(inner, (*place, key))
    if isinstance(value, list) and value:
        yield from places_in(value[0], (*place, 0))


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    changed = copy.deepcopy(value)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = new
    return changed


@pytest.mark.slow  # some hundred summaries and pictures
@row("C4")
@pytest.mark.parametrize("name", ["status.json", "evaluation.json", "metrics.jsonl"])
def test_odd_values_in_a_members_files_are_never_an_internal_error(name: str, swept: Sweep) -> None:
    path = swept.run_dir(swept.members[0]) / name
    before = path.read_text()
    # metrics.jsonl has an object in each line.
    rows = [json.loads(line) for line in before.splitlines()]
    drawn = set()
    for place in places_in(rows):
        if not place:
            continue
        for odd in ODD_VALUES:
            changed = replaced(rows, place, odd)
            path.write_text("".join(f"{json.dumps(line)}\n" for line in changed))

            # All that a sweep says and stores of its members.
            summary = summarize(swept)
            text = summary_text(summary)
            assert all(character.isprintable() or character == "\n" for character in text)
            json.dumps(summary.to_json(), allow_nan=False).encode()
            assert list(csv.reader(io.StringIO(_as_csv(summary).encode().decode())))

            # Drawing takes longest, so only what differs is drawn.
            ended = [outcome for outcome in summary.outcomes if outcome.ended]
            curves = str([_loss_curve(swept, outcome) for outcome in ended])
            shown = curves
            for outcome in ended:
                steps = (outcome.steps_to_solved, outcome.step)
                shown += str((outcome.evaluation, outcome.diverged, steps))
            if shown not in drawn:
                drawn.add(shown)
                accuracy_by_length(ended).draw_without_rendering()
                error_rate_by_length(ended).draw_without_rendering()
                steps_to_solved(ended).draw_without_rendering()
                losses(swept, ended).draw_without_rendering()
    path.write_text(before)


@row("C4")
def test_an_error_id_and_a_rate_from_elsewhere_do_no_harm(swept: Sweep) -> None:
    run_dir = swept.run_dir(swept.members[0])
    before = {name: (run_dir / name).read_text() for name in ("status.json", "metrics.jsonl")}
    status = {**json.loads(before["status.json"]), "state": "failed", "step": 3}
    (run_dir / "status.json").write_text(json.dumps({**status, "error_id": "R9\ud800\x1b[31m\nR1"}))
    rate = {"step": 2, "train/sequences_per_second": 1e-320}
    (run_dir / "metrics.jsonl").write_text(json.dumps(rate) + "\n")
    summary = summarize(swept)
    # It is none of rnncls, and is not shown.
    assert not summary.outcomes[0].error_id
    assert summary.outcomes[0].state == "failed"
    assert summary_text(summary).isascii()
    json.dumps(summary.to_json(), allow_nan=False).encode()
    assert _as_csv(summary).encode()
    for name, text in before.items():
        (run_dir / name).write_text(text)


@row("C4")
@pytest.mark.parametrize("line", ['  "a\\0b.jsonl": abc', "  ? [1]\n  : abc"])
def test_a_damaged_fingerprint_is_named(line: str, config: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep"
    assert run_rnncls(*words_of(config, sweep)).returncode == 0
    path = sweep / "sweep.yaml"
    path.write_text(path.read_text().replace("fingerprints: {}", f"fingerprints:\n{line}"))
    done = run_rnncls("sweep", "--resume", sweep)
    assert done.returncode == 2, done.stderr
    assert str(path) in done.stderr
