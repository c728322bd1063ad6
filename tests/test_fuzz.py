"""What the generators of scripts/fuzz look for is found when it is there."""

import errno
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from scripts.fuzz.links import second_name
from scripts.fuzz.memory import SKIPPED
from scripts.fuzz.running import report
from scripts.fuzz.scene import Ended, Failed, changes, content_of, outcome_of
from scripts.fuzz.terminal import what_is_wrong
from scripts.processes import HUNG
from tests.helpers import run_python


@pytest.mark.parametrize(
    ("output", "wrong"),
    [
        ("rnncls: a\\nFORGED\n", None),
        ("\x1b[1;31mrnncls: error\x1b[0m: a\r\n", None),
        ("50%\r\x1b[Aeval\n\ttab", None),
        ("a\nFORGED", "forged line"),
        ("a\rFORGED", "forged line"),
        ("FORGED", "forged line"),
        ("a\x1b[32mFORGED", "raw control character"),
        ("a\x9b31m", "raw control character"),
        ("a\u202eb", "raw control character"),
        ("a\u2028b", "raw control character"),
        ("a\udcff", "raw control character"),
    ],
)
def test_what_steers_a_terminal_is_seen(output: str, wrong: str | None) -> None:
    found = what_is_wrong(output)
    assert (found and found[0]) == wrong


def test_a_write_outside_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/file").write_text("x")
    (tmp_path / "link").symlink_to("a")
    before = content_of(tmp_path)
    assert not changes(before, content_of(tmp_path))

    status = (tmp_path / "a/file").stat()
    (tmp_path / "a/file").write_text("y")
    os.utime(tmp_path / "a/file", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changes(before, content_of(tmp_path)) == str(tmp_path / "a/file")

    (tmp_path / "link").unlink()
    assert str(tmp_path / "link") in changes(before, content_of(tmp_path))
    assert content_of(tmp_path, [tmp_path / "a"]) == {}


def test_a_write_through_a_second_name_is_seen(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "run/metrics.jsonl").write_text("{}\n")
    (tmp_path / "outside/file").write_text("yours\n")
    rng = random.Random(1)
    second_name(tmp_path / "run/metrics.jsonl", tmp_path / "outside", rng)
    second_name(tmp_path / "run/.lock", tmp_path / "outside", rng)
    before = content_of(tmp_path, [tmp_path / "run"])

    for name in ("metrics.jsonl", ".lock"):
        with (tmp_path / "run" / name).open("a") as file:
            file.write("ours\n")
    assert changes(before, content_of(tmp_path, [tmp_path / "run"])).count("outside/") == 2


def test_a_kind_that_cannot_be_run_is_no_failure() -> None:
    assert report("memory", Counter({SKIPPED: 6})) == 0
    assert report("memory", Counter({"accepted": 6})) == 1
    assert report("memory", Counter({"accepted": 5, "FAILED (exit 1)": 1, "exit 3": 1})) == 1


def test_a_bad_end_is_seen() -> None:
    assert outcome_of(["eval"], Ended(0, "", 0.0)) == "accepted"
    assert outcome_of(["eval"], Ended(4, "", 0.0)) == "exit 4"
    for exit_code, output, kind in (
        (1, "", "exit 1"),
        (8, "", "exit 8"),
        (-11, "", "exit -11"),
        (HUNG, "", "hung"),
        (3, "Traceback (most recent call last):\n", "traceback"),
    ):
        with pytest.raises(Failed) as failed:
            outcome_of(["eval"], Ended(exit_code, output, 0.0))
        assert failed.value.kind == kind


READING = """
import errno, sys
from pathlib import Path
from scripts.file_calls import failing_read
root, index, error = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
failing_read(root, index, error)()
try:
    print((root / "file").read_text())
except OSError as problem:
    print(errno.errorcode[problem.errno])
"""


@pytest.mark.parametrize(
    ("index", "error", "found"),
    [
        (0, errno.ENOENT, "ENOENT"),  # at its opening
        (1, errno.EIO, "EIO"),
        (1, 0, ""),  # truncated
        (99, errno.EIO, "content"),
    ],
)
def test_a_read_fails_where_it_is_told_to(
    tmp_path: Path, index: int, error: int, found: str
) -> None:
    (tmp_path / "file").write_text("content")
    done = run_python(READING, str(tmp_path), str(index), str(error))
    assert (done.returncode, done.stdout) == (0, f"{found}\n"), done.stderr
