"""Predictions through real pipes and terminals: each line is answered before the next is there."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from scripts.bench_predict import peak_bytes
from tests.helpers import PYTHON, SAFETY_S, run_command, run_process, run_rnncls, started

row = pytest.mark.row


@contextmanager
def predicting(run_dir: Path, *options: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start `rnncls predict RUN` with pipes of bytes at all three ends."""
    pipe = subprocess.PIPE
    command = [PYTHON, "-m", "rnncls", "predict", run_dir, *options]
    streams = {"stdin": pipe, "stdout": pipe, "stderr": pipe, "text": False}
    # With this variable, Python would flush what the program forgets to flush.
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with started(command, env=buffered, **streams) as process:
        yield process  # type: ignore[misc]  # of bytes, because of `text`


def said_of(process: subprocess.Popen[bytes], line: bytes) -> bytes:
    """Write a line, and return the answer to it, which must come before any other line."""
    write(process, line)
    return ends(process)[1].readline()


def write(process: subprocess.Popen[bytes], content: bytes) -> None:
    ends(process)[0].write(content)
    ends(process)[0].flush()


def ends(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


@row("D7", "D9", "D11", "D12")
def test_every_line_is_answered_before_the_next_one_is_written(run_dir: Path) -> None:
    with predicting(run_dir, "--json", "--bad", "skip") as process:
        assert process.stderr is not None
        first = json.loads(said_of(process, b"\xef\xbb\xbf1 2 2\n"))
        assert (first["line"], first["label"], first["sequence"]) == (1, 2, "1 2 2")
        second = json.loads(said_of(process, b"1,1\r\n"))
        assert (second["line"], second["label"], second["sequence"]) == (2, 2, "1,1")

        # What is said about a bad line comes at once as well, and the next line is answered.
        for number, bad in enumerate((b"1 x\n", b"\n", b"\xff\n", b"9\n"), 3):
            write(process, bad)
            assert f"skipped stdin:{number}: ".encode() in process.stderr.readline()
        assert json.loads(said_of(process, b"2\n"))["line"] == 7

        # Half a line is waited for; at the end it is a line.
        write(process, b"1 ")
        write(process, b"0")
        answer, errors = process.communicate(timeout=SAFETY_S)
        assert (json.loads(answer)["line"], json.loads(answer)["sequence"]) == (8, "1 0")
        assert errors == b"rnncls: skipped 4 of 8 sequences\n"
    assert process.returncode == 0


@pytest.mark.slow
def test_many_lines_at_once_are_answered_in_order(run_dir: Path) -> None:
    texts = [
        " ".join("012"[(index + part) % 3] for part in range(1 + index % 4))
        for index in range(9000)
    ]
    piped = run_process("predict", run_dir, "--json", input="\n".join(texts))
    assert piped.returncode == 0, piped.stderr
    answers = [json.loads(line) for line in piped.stdout.splitlines()]
    assert [answer["sequence"] for answer in answers] == texts
    assert [answer["line"] for answer in answers] == list(range(1, 9001))
    for answer, text in zip(answers, texts, strict=True):
        assert answer["label"] == sum(map(int, text.split())) % 3


@pytest.mark.slow
@row("D7")
@pytest.mark.parametrize("together", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_is_answered_before_a_bad_line_does_not_depend_on_the_pipe(
    run_dir: Path, together: bool
) -> None:
    with predicting(run_dir, "--json") as process:
        if together:
            write(process, b"1\n2\nx\n1\n")
            answers = b""
        else:
            answers = said_of(process, b"1\n") + said_of(process, b"2\n")
            write(process, b"x\n")
        rest, errors = process.communicate(timeout=SAFETY_S)
    assert process.returncode == 3
    assert [json.loads(line)["line"] for line in (answers + rest).splitlines()] == [1, 2]
    assert b"error[D7]: not an integer id (stdin:3)" in errors
    assert b"Traceback" not in errors


@pytest.mark.slow
@row("D13")
def test_a_line_without_an_end_is_refused_and_those_before_it_are_answered(run_dir: Path) -> None:
    # /dev/zero never ends, so a process that waits for the end of the line never would.
    command = f"(printf '1\\n2\\n'; cat /dev/zero) | {PYTHON} -m rnncls predict {run_dir} --json"
    done = run_command(["bash", "-c", f"{command}; exit ${{PIPESTATUS[1]}}"])
    assert done.returncode == 3
    assert "error[D13]: a very long line (stdin:3)" in done.stderr
    assert len(done.stdout.splitlines()) == 2


@row("D13")
def test_a_long_line_of_a_text_file_is_refused(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"1 2\n" + b"1 " * (8 * 2**20 + 1) + b"\n")
    done = run_rnncls("predict", run_dir, "--input", path, "--output", tmp_path / "out.csv")
    assert done.returncode == 3
    assert f"error[D13]: a very long line ({path}:2)" in done.stderr
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.slow
@row("R8")
def test_predicting_ends_when_its_reader_leaves(run_dir: Path) -> None:
    # `yes` never ends, either.
    command = f"yes '1 2' | {PYTHON} -m rnncls predict {run_dir} | head -2"
    done = run_command(["bash", "-c", f"{command}; exit ${{PIPESTATUS[1]}}"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 2
    assert done.stderr == ""


@pytest.mark.slow
@row("R5")
@pytest.mark.usefixtures("signals_not_ignored")
def test_ctrl_c_between_two_lines_ends_with_130(run_dir: Path) -> None:
    with predicting(run_dir) as process:
        assert said_of(process, b"1 1\n").startswith(b"2 ")
        process.send_signal(signal.SIGINT)
        rest, errors = process.communicate(timeout=SAFETY_S)
    assert process.returncode == 130
    assert rest == b""
    assert b"Traceback" not in errors


@pytest.mark.slow
def test_a_file_from_a_pipe_is_there_whole_or_not_at_all(run_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    with predicting(run_dir, "--output", output) as process:
        write(process, b"1 1\n2\n")
        write(process, b"x\n")
        assert process.wait(SAFETY_S) == 3
    assert not list(tmp_path.iterdir())

    with predicting(run_dir, "--output", output) as process:
        write(process, b"1 1\n2\n")
        answer, errors = process.communicate(timeout=SAFETY_S)
    assert (process.returncode, answer, errors) == (0, b"", b"")
    numbers = [line.split(",")[1] for line in output.read_text().splitlines()]
    assert numbers == ["row", "1", "2"]


@pytest.mark.slow
def test_a_redirected_file_says_what_a_pipe_says(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_bytes(b"1 2\r\n2\n0 0 1")
    piped = run_process("predict", run_dir, "-", input=path.read_text())
    with path.open("rb") as file:
        redirected = run_process("predict", run_dir, "-", stdin=file)
    assert redirected.returncode == 0, redirected.stderr
    assert redirected.stdout == piped.stdout
    assert piped.stdout.count("\n") == 3


@pytest.mark.slow
@row("C17", "D1")
def test_a_stdin_that_cannot_be_read_is_an_error(run_dir: Path) -> None:
    for redirection, code, message in (
        ("<&-", 2, "error[C17]: no sequences: stdin is closed"),
        ("0>/dev/null", 3, "error[D1]: cannot read: Bad file descriptor (stdin)"),
        ("</dev/null", 0, ""),
    ):
        command = f"{PYTHON} -m rnncls predict {run_dir} {redirection}"
        done = run_command(["bash", "-c", command])
        assert done.returncode == code, done.stderr
        assert message in done.stderr
        assert (done.stdout, "Traceback" in done.stderr) == ("", False)


@pytest.mark.slow
@row("D1")
def test_a_file_as_stdin_that_is_open_for_writing_only_is_an_error(
    run_dir: Path, tmp_path: Path
) -> None:
    # Unlike a device, it is taken for a file whose lines nobody waits for.
    with (tmp_path / "written").open("wb") as file:
        done = run_process("predict", run_dir, "-", stdin=file)
    assert done.returncode == 3, done.stderr
    assert "error[D1]: cannot read: Bad file descriptor (stdin)" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow  # the pipe without a name is tested above
@row("R8")
def test_predicting_into_a_pipe_by_its_name_ends_when_its_reader_leaves(run_dir: Path) -> None:
    command = f"yes '1 2' | {PYTHON} -m rnncls predict {run_dir} - --output /dev/stdout | head -1"
    done = run_command(["bash", "-c", f"{command}; exit ${{PIPESTATUS[1]}}"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


@pytest.mark.slow
@row("D13")
def test_a_long_line_is_skipped_and_those_around_it_are_answered(
    run_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_bytes(b"1 2\n" + b"1 " * (8 * 2**20 + 1) + b"\n2\n")
    words = ["--bad", "skip", "--json"]
    with path.open("rb") as file:
        piped = run_command(
            ["bash", "-c", f"cat | {PYTHON} -m rnncls predict {run_dir} {' '.join(words)}"],
            stdin=file,
        )
    for done in (run_rnncls("predict", run_dir, "--input", path, *words), piped):
        assert done.returncode == 0, done.stderr
        assert [json.loads(line)["line"] for line in done.stdout.splitlines()] == [1, 3]
        assert ":2: a very long line" in done.stderr
        assert "skipped 1 of 3 sequences" in done.stderr


@row("R8")
def test_predictions_of_an_evaluation_into_a_pipe_cost_no_report(
    run_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "pipe.csv"
    os.mkfifo(path)
    with started(["head", "-1", str(path)], stdout=subprocess.PIPE) as head:
        done = run_rnncls(
            "eval", run_dir, "--lengths", "40", "--samples", "3000", "--predictions", path
        )
        heading, _ = head.communicate(timeout=SAFETY_S)
    assert heading.startswith("sequence,sum,true,predicted")
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stdin", "txt", "csv", "jsonl"])
def test_memory_does_not_grow_with_the_rows(run_dir: Path, tmp_path: Path, kind: str) -> None:
    # Each row has a label of its own, and every second one a token that the model does not know.
    output = str(tmp_path / "out.csv")
    few = peak_bytes(run_dir, tmp_path, kind, 20_000, "--output", output)
    many = peak_bytes(run_dir, tmp_path, kind, 200_000, "--output", output)
    # One object of 50 bytes that is kept of a row would take 9 MB.
    assert many < few + 8 * 2**20
