"""metrics.jsonl, metrics.csv and status.json of any size and content: cut, read and compared."""

import io
import json
import math
import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rnncls.rundir import tables
from rnncls.rundir.compare import compare
from rnncls.rundir.log import prepare_logs
from rnncls.rundir.status import read_status
from rnncls.rundir.tables import MetricsTables, keep_metrics, lines_from_the_end, read_metrics
from rnncls.sweep.outcomes import outcomes
from rnncls.sweep.plan import plan_sweep
from rnncls.training.fit import fit
from rnncls.training.resume import resume
from tests.helpers import config_of, outcome, run_python, run_rnncls

ROWS = [b'{"step": %d, "train/loss": 0.5}\n' % step for step in range(1, 2001)]
COLUMNS = ["step", "train/loss"]


@pytest.fixture(scope="module")
def twenty_steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("logs") / "run"
    fit(config_of(train={"max_steps": 20, "log_every": 2, "eval_every": 10}), run_dir)
    return run_dir


@pytest.fixture
def run(twenty_steps: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(twenty_steps, tmp_path / "run"))


def peak_bytes(action: Callable[[], object]) -> int:
    """Return how much more memory Python objects took during `action` than before."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# --- cutting


@given(st.lists(st.sampled_from([b"\n", b"\r", b"a", b"bcd", b"0123456789"])), st.integers(1, 9))
def test_lines_from_the_end_are_the_lines(pieces: list[bytes], block: int) -> None:
    content = b"".join(pieces)
    expected = []
    end = 0
    for line in io.BytesIO(content):
        end += len(line)
        expected.append((end, line))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK_BYTES", block)
        patch.setattr(tables, "MAX_LINE_BYTES", 8)
        found = list(lines_from_the_end(io.BytesIO(content)))
    assert found == [(end, line) for end, line in reversed(expected) if len(line) <= 8]


KEPT = b"".join(ROWS[:10])
ENDS = {
    "nothing": b"",
    "later_rows": b"".join(ROWS[10:]),
    "torn": ROWS[10][:9],
    "later_rows_and_torn": b"".join(ROWS[10:20]) + ROWS[20][:20],
    "zeros": bytes(200_000),
    "endless_line": b"x" * 200_000,
    "many_lines": b"[]\n" * 50_000,
    "not_utf_8": b"\xff\xfe\n",
}


@pytest.mark.parametrize("end", ENDS)
def test_what_comes_behind_the_last_row_that_counts_is_cut_off(end: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(KEPT + ENDS[end])
    keep_metrics(tmp_path, 10)
    assert path.read_bytes() == KEPT
    keep_metrics(tmp_path, 7)
    assert path.read_bytes() == b"".join(ROWS[:7])
    keep_metrics(tmp_path, -1)
    assert path.read_bytes() == b""
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        (b"".join(ROWS[:3])[:-1], b"".join(ROWS[:3])),  # all but the last line break
        (b"[]\n" + ROWS[0] + b"x\n" + ROWS[1] + b"[]\n", b"[]\n" + ROWS[0] + b"x\n" + ROWS[1]),
        (ROWS[0].replace(b"\n", b"\r\n") + b"\r\n", ROWS[0].replace(b"\n", b"\r\n")),
        (b"x" * 200_000 + b"\n" + ROWS[0] + b"y" * 200_000, b"x" * 200_000 + b"\n" + ROWS[0]),
        (b"\n\n\n", b""),
        (b"x" * 70_000, b""),
    ],
)  # fmt: skip
def test_what_comes_before_it_stays(content: bytes, kept: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    keep_metrics(tmp_path, 10)
    assert path.read_bytes() == kept
    # And what is appended is a line of its own.
    log = MetricsTables(tmp_path, COLUMNS)
    log.write({"step": 11, "train/loss": 2.0})
    log.close()
    assert list(read_metrics(tmp_path))[-1] == {"step": 11, "train/loss": 2.0}


def test_a_second_name_of_a_log_keeps_its_content(run: Path, tmp_path: Path) -> None:
    contents = {}
    for name in ("metrics.jsonl", "metrics.csv"):
        victim = tmp_path / f"victim of {name}"
        os.link(run / name, victim)
        with victim.open("a") as file:
            file.write('{"step": 99, "train/loss": 9}\n' if name.endswith("l") else "99,9\r\n")
        contents[victim] = victim.read_bytes()

    resume(run, ["train.max_steps=30"])
    assert {victim: victim.read_bytes() for victim in contents} == contents
    assert [line["step"] for line in outcome(run)[1]] == list(range(2, 31, 2))
    assert [row.split(",")[0] for row in (run / "metrics.csv").read_text().splitlines()[1:]] == [
        str(step) for step in range(2, 31, 2)
    ]


@pytest.mark.row("R9")
def test_a_long_run_with_dense_logs_is_resumed_from_the_end_of_its_files(run: Path) -> None:
    """Files of 1.2 GB, of which only the ends are on the disk."""
    for name in ("metrics.jsonl", "metrics.csv"):
        path = run / name
        content = path.read_bytes()
        header, line_break, _ = content.partition(b"\n")
        with path.open("r+b") as file:
            if name == "metrics.csv":
                file.write(header + line_break)
            file.truncate(1_200_000_000)
            file.seek(0, os.SEEK_END)
            file.write(b"\n" + content)
    inode = (run / "metrics.csv").stat().st_ino

    assert peak_bytes(lambda: keep_metrics(run, 18)) < 2**20
    columns = header.decode().strip().split(",")
    assert peak_bytes(lambda: MetricsTables(run, columns).close()) < 2**20
    assert resume(run, ["train.max_steps=30"]).step == 30
    for name, first in (("metrics.jsonl", '{"step": %d,'), ("metrics.csv", "%d,")):
        with (run / name).open("rb") as file:
            file.seek(1_200_000_001)
            lines = file.read().decode().splitlines()
        steps = [2, 4, 6, 8, 10, 12, 14, 16, 18, 22, 24, 26, 28, 30]
        assert len(lines) == len(steps) + (name == "metrics.csv")
        for line, step in zip(lines[-len(steps) :], steps, strict=True):
            assert line.startswith(first % step)
    assert (run / "metrics.csv").stat().st_ino == inode


# --- the table


def header_of(content: bytes) -> bytes:
    return content.splitlines(keepends=True)[0]


TABLES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "header_alone": header_of,
    "torn": lambda content: content[:-9],
    "without_last_row": lambda content: b"".join(content.splitlines(keepends=True)[:-1]),
    "other_columns": lambda content: content.replace(b"train/loss", b"loss", 1),
    "another_last_row": lambda content: content[:-4] + b"99\r\n",
    "zeros": lambda content: bytes(len(content)),
    "other_line_breaks": lambda content: content.replace(b"\r\n", b"\n"),
    "without_the_last_line_break": lambda content: content[:-2],
}


@pytest.mark.parametrize("damage", TABLES)
def test_a_table_that_does_not_agree_is_written_anew(damage: str, run: Path) -> None:
    path = run / "metrics.csv"
    content = path.read_bytes()
    damaged = TABLES[damage](content)
    path.unlink()
    if damaged is not None:
        path.write_bytes(damaged)
    columns = header_of(content).decode().strip().split(",")
    MetricsTables(run, columns).close()
    assert path.read_bytes() == content


def test_a_table_that_agrees_is_cut_and_not_written_anew(run: Path) -> None:
    path = run / "metrics.csv"
    content = path.read_bytes()
    inode = path.stat().st_ino
    with path.open("ab") as file:
        file.write(b"22,0.5\r\n24,0.")
    MetricsTables(run, header_of(content).decode().strip().split(",")).close()
    assert (path.read_bytes(), path.stat().st_ino) == (content, inode)


# --- reading


def test_a_line_of_any_length_takes_no_memory(run: Path) -> None:
    expected = list(read_metrics(run))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 21, "a": "')
        file.truncate(file.tell() + 30_000_000)  # zeros, which take no space on the disk
        file.seek(0, os.SEEK_END)
        file.write(b'"}\n' + ROWS[21])
    found: list[dict[str, Any]] = []
    assert peak_bytes(lambda: found.extend(read_metrics(run))) < 2**20
    assert found == [*expected, {"step": 22, "train/loss": 0.5}]


def test_tags_without_end_take_no_memory(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        for number in range(100):
            tags = {f"{number}/{i}": 1.0 for i in range(200)}
            file.write(json.dumps({"step": 21 + number} | tags) + "\n")
    assert len(compare(run, run).result) == 0
    (run.parent / "other").mkdir()
    other = shutil.copytree(run, run.parent / "other" / "run")
    (other / "metrics.jsonl").unlink()
    assert 900 < len(compare(run, other).result) < 1100


@pytest.mark.slow
def test_two_runs_with_long_logs_are_compared_within_a_limit_of_memory(run: Path) -> None:
    """120 MB of real rows and a line of 30 MB; the process may take 128 MiB more than it has."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    row = json.loads(lines[-1])

    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 1, "a" * 30_000_000: 1}) + "\n")
        block = "".join(json.dumps(row | {"step": 21 + step}) + "\n" for step in range(10_000))
        for _ in range(120_000_000 // len(block)):
            file.write(block)

    code = """
import resource, sys
from pathlib import Path
from rnncls.rundir.compare import compare
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**27, taken + 2**27))
print(compare(Path(sys.argv[1]), Path(sys.argv[1])).result)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")

    done = run_python(code, run)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "{}\n"


# --- the first line of config.yaml


@pytest.mark.parametrize("kind", ["endless", "link", "pipe", "folder"])
def test_only_a_first_line_of_ours_is_taken_from_a_config(kind: str, run: Path) -> None:
    path = run / "config.yaml"
    config = path.read_text()
    path.unlink()
    secret = run.parent / "secret"
    secret.write_text("# secret\n")
    if kind == "endless":
        path.write_bytes(b"# ")
        os.truncate(path, 500_000_000)
    elif kind == "link":
        path.symlink_to(secret)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(run.parent)

    config_20 = config_of(train={"max_steps": 20, "log_every": 2, "eval_every": 10})
    assert peak_bytes(lambda: prepare_logs(run, config_20, 20)) < 2**20
    assert path.read_text() == config
    assert secret.read_text() == "# secret\n"


def test_the_first_line_of_a_config_stays(run: Path) -> None:
    path = run / "config.yaml"
    path.write_text("# from configs/some.yaml\n" + path.read_text())
    resume(run, ["train.max_steps=22"])
    assert path.read_text().startswith("# from configs/some.yaml\n")


# --- numbers and texts that rnncls did not write


def refuse(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


RATE = "train/sequences_per_second"
NUMBERS = [
    f'{{"step": 30, "{RATE}": 1e-320}}',
    f'{{"step": 30, "{RATE}": 0}}',
    f'{{"step": 30, "{RATE}": -5}}',
    f'{{"step": 3, "{RATE}": 5}}',  # it goes back
    f'{{"step": 30, "{RATE}": NaN}}',
    f'{{"step": 30, "{RATE}": Infinity}}',
    f'{{"step": 1{"0" * 300}, "{RATE}": 5}}',
    f'{{"step": 1{"0" * 308}, "{RATE}": 5}}',
    f'{{"step": 9007199254740992, "{RATE}": 1e-300}}',
    f'{{"step": -1, "{RATE}": 5}}',
    f'{{"step": 30, "{RATE}": 1{"0" * 308}}}',
    f'{{"step": 30, "{RATE}": 1e-292}}\n{{"step": 9007199254740991, "{RATE}": 1e-291}}',
    '{"step": 30, "state": 1, "best_metric": 2, "best_value": 3, "train_seconds": 4}',
    '{"step": 30, "val/accuracy": 1e308, "val/loss": -1e308}',
]


@pytest.mark.parametrize("row", NUMBERS)
def test_foreign_numbers_in_metrics_are_compared_as_valid_json(
    row: str, run: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    with (other / "metrics.jsonl").open("a") as file:
        file.write(row + "\n")
    found = compare(run, other).to_json()
    result = json.loads(json.dumps(found), parse_constant=refuse)["result"]
    assert "state" not in result
    assert "best_metric" not in result
    for seconds in result.get("train_seconds", []):
        assert seconds is None or seconds > 0


@pytest.mark.parametrize("row", NUMBERS)
def test_foreign_numbers_in_metrics_do_not_end_a_summary(row: str, tmp_path: Path) -> None:
    sweep = plan_sweep(config_of(), "0", {}, None, 20, tmp_path / "sweep")
    run_dir = sweep.run_dir(sweep.members[0])
    run_dir.mkdir(parents=True)
    before = json.dumps({"step": 10, RATE: 16.0})
    (run_dir / "metrics.jsonl").write_text(f"{before}\n{row}\n")
    (found,) = outcomes(sweep)
    assert found.train_s is not None
    assert 0 < found.train_s < math.inf


VALUES: list[Any] = [
    None,
    True,
    [],
    {"a": float("nan")},
    float("nan"),
    float("inf"),
    -1,
    10**4000,
    -0.5,
    1e308,
    "\x1b]0;owned\x07",
    "a\nforged  40",
    "x" * 1000,
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_a_status_with_foreign_fields_is_compared_as_valid_json(
    value: Any, run: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    status = json.loads((run / "status.json").read_text())
    foreign = status | dict.fromkeys(status.keys() - {"state"}, value)
    (other / "status.json").write_text(json.dumps(foreign))
    commands: list[list[str | Path]] = [["diff", run, other], ["diff", run, other, "--json"]]
    for words in commands:
        done = run_rnncls("runs", *words)
        assert done.returncode == 0, done.stderr
        assert not {"\x1b", "\x07"} & set(done.stdout)
        assert not any(line.startswith("forged") for line in done.stdout.splitlines())

    differences = json.loads(done.stdout, parse_constant=refuse)
    for pair in differences["result"].values():
        assert all(type(one) in (int, float, str, type(None)) for one in pair)
        assert all(len(str(one)) < 100 for one in pair)


def test_a_status_of_a_foreign_state_is_none(run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    for value in VALUES:
        (run / "status.json").write_text(json.dumps(status | {"state": value}))
        assert read_status(run) == {}


def test_what_rnncls_did_not_write_is_left_out_of_a_status(run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    foreign = status | {"best_accuracy": math.nan, "best_step": 2.5, "pid": True}
    (run / "status.json").write_text(json.dumps(foreign))
    for key in ("best_accuracy", "best_step", "pid"):
        del status[key]
    assert read_status(run) == status
