"""RESULTS.md: made of docs/results/ alone, which whole sweeps alone change."""

import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from rnncls.config import dump_config
from rnncls.sweep.plan import load_sweep
from scripts.reproduce import __main__ as command
from scripts.reproduce.page import page
from scripts.reproduce.results import (
    KeptHorizon,
    KeptLength,
    KeptNoErrors,
    KeptSetting,
    Result,
    read_results,
)
from scripts.reproduce.running import BUSY, TIMING, machine, note_time, read_timing
from scripts.reproduce.sweeps import SWEEPS, Sweep, command_of, named
from tests.helpers import PYTHON, ROOT, config_of, run_command, run_rnncls

RESULTS = ROOT / "docs" / "results"


def test_results_md_is_what_the_kept_results_give() -> None:
    kept = read_results(RESULTS, list(SWEEPS))
    assert list(kept) == list(SWEEPS)
    assert page(SWEEPS, kept) == (ROOT / "RESULTS.md").read_text(encoding="utf-8")

    for name, result in kept.items():
        assert result.command.split() == command_of(name, SWEEPS[name], Path("runs/results"))
        assert result.seconds <= 3600, name


@pytest.fixture(autouse=True)
def _handler_of_sigterm() -> Iterator[None]:
    """The command takes SIGTERM for itself."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the results of two small sweeps, "one" and "two", and their sweeps."""
    config = tmp_path / "tiny.yaml"
    config.write_text(dump_config(config_of(train={"max_steps": 6, "engine": "eager"})))
    one = Sweep("One", "Text.", str(config), "0-1", "9", samples=20, shown=(1, 9))
    grid = ("data.modulus=10", "model.nonlinearity=relu,tanh")
    two = replace(one, title="Two", words=grid, compared=True)

    def run_here(words: list[str], folder: Path, shards: int, is_busy: bool) -> int:
        assert shards >= 1
        assert not is_busy
        done = run_rnncls(*words[1:])
        assert done.returncode == 0, done.stderr
        note_time(folder, 1.0, finished=True)
        return 0

    monkeypatch.setattr(command, "run", run_here)
    others = dict(SWEEPS)
    SWEEPS.clear()
    SWEEPS.update(one=one, two=two)
    try:
        reproduce(tmp_path)
        yield tmp_path
    finally:
        SWEEPS.clear()
        SWEEPS.update(others)  # in their order


def reproduce(folder: Path, only: str = "", page_only: bool = False) -> None:
    """Do what the command does with everything below a folder."""
    out = folder / "out"
    results = folder / "json"
    command.main(only, page_only, False, out, results, folder / "RESULTS.md", False)


def written(folder: Path) -> dict[str, bytes]:
    """Return what was written: RESULTS.md and the results."""
    paths = [folder / "RESULTS.md", *sorted((folder / "json").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


@pytest.mark.slow
def test_a_sweep_replaces_its_own_section_and_needs_no_other(folder: Path) -> None:
    before = written(folder)
    assert list(before) == ["RESULTS.md", "one.json", "two.json"]
    text = before["RESULTS.md"].decode()
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["One", "Two"]

    # One small sweep of other numbers; that of the other section is gone.
    shutil.rmtree(folder / "out")
    SWEEPS["two"] = replace(SWEEPS["two"], samples=30)
    reproduce(folder, only="two")
    after = written(folder)
    assert after["one.json"] == before["one.json"]
    assert after["two.json"] != before["two.json"]
    own = before["RESULTS.md"].index(b"## Two")
    assert after["RESULTS.md"][:own] == before["RESULTS.md"][:own]
    assert b"--samples 30" in after["RESULTS.md"][own:]

    # "two" is not trained again, "one" is; and no sweep is needed for the page.
    reproduce(folder)
    again = written(folder)
    assert again["two.json"] == after["two.json"]
    shutil.rmtree(folder / "out")
    (folder / "RESULTS.md").unlink()
    reproduce(folder, page_only=True)
    assert b"--samples 30" in written(folder)["two.json"]
    assert written(folder) == again


@pytest.mark.slow
def test_a_sweep_that_is_not_whole_changes_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = written(folder)
    SWEEPS["two"] = replace(SWEEPS["two"], text="Other words.")

    # A member without an evaluation, which no error has told of; then an error.
    sweep = load_sweep(folder / "out" / "two")
    (sweep.run_dir(sweep.members[-1]) / "evaluation.json").unlink()
    for ran, expected in ((0, 1), (5, 5)):
        monkeypatch.setattr(command, "run", lambda *_, ran=ran: ran)
        with pytest.raises(typer.Exit) as ended:
            reproduce(folder, only="two")
        assert ended.value.exit_code == expected
        assert written(folder) == before
        assert f"two: exit code {expected}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("other.json", b"{}", "other.json: no sweep has this name"),
        ("T5.json", b'{"command": 3}', "T5.json: no result of a sweep: command: "),
        ("T5.json", b"\xff", "T5.json: no result of a sweep: "),
    ],
)
def test_a_file_that_is_no_result_is_named_before_anything_runs(
    tmp_path: Path, name: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(RESULTS, tmp_path / "json")
    (tmp_path / "json" / name).write_bytes(content)
    monkeypatch.setattr(command, "run", None)
    with pytest.raises(typer.BadParameter, match=message):
        reproduce(tmp_path)
    assert not (tmp_path / "RESULTS.md").exists()


def test_names_of_sweeps() -> None:
    assert named("") == list(SWEEPS)
    assert named("S10-1") == ["S10-10"]
    assert named("T5,parity") == ["parity", "T5"]
    assert len(named("ladder")) == 6
    for unknown in ("t5", "T5,,parity", "T5, parity"):
        with pytest.raises(ValueError, match="no sweep"):
            named(unknown)
    with pytest.raises(typer.BadParameter, match="--page"):
        command.main(only="T5", page_only=True)


def test_the_seconds_of_all_calls_until_a_sweep_is_finished_count(tmp_path: Path) -> None:
    note_time(tmp_path, 3.0, finished=False)
    note_time(tmp_path, 4.0, finished=True)
    note_time(tmp_path, 5.0, finished=True)
    assert read_timing(tmp_path).seconds == 7.0
    assert [path.name for path in tmp_path.iterdir()] == [TIMING]
    assert not read_timing(tmp_path).machine.endswith(BUSY)


def test_a_machine_that_was_busy_for_a_part_of_the_time_is_said_to_be(tmp_path: Path) -> None:
    note_time(tmp_path, 3.0, finished=False)
    note_time(tmp_path, 4.0, finished=False, is_busy=True)
    note_time(tmp_path, 5.0, finished=True, is_busy=True)
    assert read_timing(tmp_path).machine == machine() + BUSY


def test_settings_beside_the_first_one() -> None:
    def setting(name: str, median: float, p: float | None) -> KeptSetting:
        at = KeptLength(median=median, iqm=median, lowest=0.1, success={0.99: 3, 1.0: 2})
        return KeptSetting(
            name=name,
            members=20,
            diverged=0,
            success={0.99: 20, 0.999: 20, 1.0: 19},
            solved=4,
            steps_to_solved=None,
            horizon=KeptHorizon(median=5, lowest=1, tested=50),
            by_length={5: at, 50: at},
            train_s=1.25,
            p_success=None if p is None else {0.99: 0.5},
            p_length=None if p is None else {5: p, 50: 1.0},
        )

    settings = [setting("a.b=first", 0.5, None), setting("a.b=0.1", 0.4, 0.009)]
    settings += [setting("a.b=high", 0.6, 0.009), setting("a.b=like", 0.4, 0.011)]
    result = Result(command="rnncls", settings=settings, train_s=1.0, seconds=1.0, machine="one")
    sweep = Sweep("Title", "Text.", "", "", "", shown=(5, 50), compared=True)
    lines = page({"name": sweep}, {"name": result}).splitlines()
    assert "| b=first | 0 | 20/20 |  | 19/20 | 4 reach it | 5, lowest 1 | 1.2 |" in lines
    assert "| b=0.1 | 0.4000, 0.1000, 3/20 | 0.4000, 0.1000, 3/20 |" in lines
    own = [line for line in lines if line.startswith("- ")]
    assert own == [
        "- b=0.1: worse at length 5",
        "- b=high: better at length 5",
        "- b=like: no difference",
    ]


def test_each_row_of_a_table_has_a_cell_for_each_title() -> None:
    """Also where a length is shown that was not evaluated."""
    shown = (1, 4, 7, 100)
    sweeps = {name: replace(sweep, shown=shown) for name, sweep in SWEEPS.items()}
    text = page(sweeps, read_results(RESULTS, list(SWEEPS)))
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) > len(SWEEPS)
    for titles, *rows in tables:
        assert {row.count("|") for row in rows} == {titles.count("|")}


def test_columns_of_sequences_that_are_read_a_few_digits_at_a_time() -> None:
    asked = replace(SWEEPS["T5"], all_structured=1000, until_wrong=10_000)
    words = command_of("T5", asked, Path("out"))
    assert words[-7:-2] == ["--structured", "--structured-length", "1000", "--until-wrong", "10000"]

    result = read_results(RESULTS, list(SWEEPS))["T5"]
    (setting,) = result.settings
    found = setting.model_copy(
        update={
            "structured": KeptNoErrors(longest=1000, count=60),
            "until_wrong": KeptNoErrors(longest=10_000, count=61),
        }
    )
    lines = page({"T5": asked}, {"T5": result.model_copy(update={"settings": [found]})})
    assert "| horizon | all structured to 1,000 | never wrong to 10,000 |" in lines
    assert "| 60 (0.85 to 0.98) | 61 (0.87 to 0.98) |" in lines


@pytest.mark.slow
def test_results_are_written_by_one_command(tmp_path: Path) -> None:
    script = [PYTHON, "-m", "scripts.reproduce", "--short", "--results", str(tmp_path / "json")]
    script += ["--output", str(tmp_path / "RESULTS.md"), "--out", str(tmp_path / "sweeps")]
    assert run_command([*script, "--only", "T5,nonlinearity,objective-tanh-256"]).returncode == 0
    text = (tmp_path / "RESULTS.md").read_text()
    assert text.count("\n## ") == 3
    assert "Fisher's exact test, model.nonlinearity=relu against model.nonlinearity=tanh" in text
    assert "| all structured to 10 | never wrong to 10 |" in text
    assert "- objective=prefix initial_state=zeros: " in text

    # A sweep that cannot be run.
    shutil.rmtree(tmp_path / "sweeps" / "T5")
    (tmp_path / "sweeps" / "T5").touch()
    done = run_command([*script, "--only", "T5"])
    assert done.returncode != 0
    assert "T5: exit code" in done.stderr
    assert (tmp_path / "RESULTS.md").read_text() == text

    shutil.rmtree(tmp_path / "sweeps")
    (tmp_path / "RESULTS.md").unlink()
    assert run_command([*script, "--page"]).returncode == 0
    assert (tmp_path / "RESULTS.md").read_text() == text
