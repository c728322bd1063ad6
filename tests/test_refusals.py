"""What the system refuses ends with its reason, the path and exit code 5, and never as a bug."""

import errno
import json
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rnncls.config import load_config
from rnncls.data.files.opening import fingerprint
from rnncls.data.files.places import files_of
from rnncls.errors import MachineError, OutOfMemory
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.compare import compare
from rnncls.rundir.status import read_status
from rnncls.system.refusals import error_of_machine, writing
from rnncls.training.fit import fit
from rnncls.version import __version__
from tests.helpers import ROOT, at_step, config_of, run_command, run_python, run_rnncls

row = pytest.mark.row

# Runs several commands without the rights of root, who may enter everything, and returns their
# exit codes. What is imported by then need not be readable.
WITHOUT_RIGHTS = """
import encodings.utf_8_sig, io, json, os, sys
import rnncls.evaluation.evaluate, rnncls.predict.predictor, rnncls.rundir.compare
import rnncls.sweep.evaluate, rnncls.sweep.listing, rnncls.sweep.members, rnncls.sweep.report
import rnncls.training.check
from rnncls.cli import entry

if os.geteuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
ended = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["rnncls", *words]
    sys.stdout = io.StringIO()
    sys.stderr = io.StringIO()
    ended.append([entry.run(), sys.stderr.getvalue(), sys.stdout.getvalue()])
print(json.dumps(ended), file=sys.__stdout__)
"""


def run_without_rights(folder: Path, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Run commands in a folder as a user who owns nothing; returns code, stderr and stdout of each.

    Paths have to be relative: the folders above may be closed to all but their owner.
    """
    folder.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_python(WITHOUT_RIGHTS, json.dumps(commands), cwd=folder, env=environment)
    assert done.returncode == 0, done.stderr
    return [(code, err, out) for code, err, out in json.loads(done.stdout)]


@pytest.mark.slow
@row("R30")
def test_a_folder_that_may_not_be_entered(tmp_path: Path) -> None:
    fit(config_of(train={"max_steps": 2}), tmp_path / "open")
    shut = tmp_path / "shut"
    for name in ("run", "sweep"):
        shutil.copytree(tmp_path / "open", shut / name)
    (shut / "sweep" / "sweep.yaml").write_text("config: {}\n")
    names_only = shutil.copytree(tmp_path / "open", tmp_path / "names")
    shutil.copy(ROOT / "configs" / "smoke.yaml", tmp_path)
    smoke = ["smoke.yaml", "train.max_steps=2"]

    refused = []
    for run in ("shut", "shut/run", "shut/sweep", "names"):
        refused += [
            ["train", "--resume", run],
            ["runs", "ls", run],
            ["runs", "diff", run, "open"],
            ["runs", "diff", "open", run],
            ["eval", run],
            ["predict", run, "1 2"],
            ["model", "show", run],
            ["train", *smoke, "--init-from", run, "--run-dir", "new"],
        ]
    refused += [["sweep", "--resume", sweep] for sweep in ("shut", "shut/run", "shut/sweep")]

    # Other codes are right where a path stands for a config, for data or for what is written.
    others = [
        (2, ["config", "show", "shut/run/config.yaml"]),
        (3, ["data", "check", "shut/data.csv"]),
        (6, ["train", *smoke, "--run-dir", "shut/new"]),
        (6, ["train", *smoke, "--run-dir", "shut"]),
        (6, ["sweep", *smoke, "--sweep-dir", "shut/new"]),
        (6, ["sweep", *smoke, "--sweep-dir", "shut"]),
    ]

    # To be restored, or nobody but root could remove the folders.
    shut.chmod(0)
    names_only.chmod(0o744)
    commands = refused + [words for _, words in others] + [["runs", "ls", "."]]
    try:
        ended = run_without_rights(tmp_path, commands)
    finally:
        shut.chmod(0o755)
        names_only.chmod(0o755)

    expected = [5] * len(refused) + [code for code, _ in others] + [0]
    for words, (exit_code, stderr, _), code in zip(commands, ended, expected, strict=True):
        assert exit_code == code, f"{words}\n{stderr}"
        assert "internal error" not in stderr
        if code:
            assert stderr.count("rnncls: error[") == 1
            assert "denied" in stderr

    # A list leaves out what it may not look into, and says so.
    _, stderr, stdout = ended[-1]
    assert "folders that cannot be looked into: 2; the first is" in stderr
    assert "  open\n" in stdout


@row("R30")
def test_a_current_folder_that_was_deleted(tmp_path: Path) -> None:
    commands = [
        ["train", str(ROOT / "configs" / "smoke.yaml")],
        ["train", "--resume", str(tmp_path)],
        ["sweep", str(ROOT / "configs" / "smoke.yaml")],
        ["sweep", "--resume", str(tmp_path)],
        ["data", "check", "x.csv"],
        ["init", "x.csv"],
        ["eval", str(tmp_path)],
        ["predict", str(tmp_path), "1 2"],
        ["model", "show", str(tmp_path / "x.safetensors")],
    ]

    code = """
import json, os, sys
from rnncls.cli import entry
os.mkdir(sys.argv[1])
os.chdir(sys.argv[1])
os.rmdir(sys.argv[1])
for words in json.loads(sys.argv[2]):
    sys.argv = ["rnncls", *words]
    print(entry.run(), flush=True)
"""

    done = run_python(code, tmp_path / "gone", json.dumps([*commands, ["--version"]]))
    assert done.stdout.split() == [*["5"] * len(commands), "rnncls", __version__, "0"], done.stderr
    assert done.stderr.count("rnncls: error[R30]: the current folder was deleted") == len(commands)


@pytest.mark.slow
@row("R30")
def test_a_listing_of_a_very_deep_tree(tmp_path: Path) -> None:
    """Deeper than Python calls itself, and in the end deeper than the system takes a path."""
    fit(config_of(train={"max_steps": 2}), tmp_path / "run")
    code = """
import os, shutil, sys
for number in range(int(sys.argv[2])):
    os.mkdir(sys.argv[1])
    os.chdir(sys.argv[1])
    if number == 1100:
        shutil.copytree(sys.argv[3], "run")
"""
    for name, levels in (("d", 1200), ("a long name " * 10, 100)):
        folder = tmp_path / name[:1]
        folder.mkdir()
        made = run_python(code, name, str(levels), tmp_path / "run", cwd=folder)
        assert made.returncode == 0, made.stderr
        try:
            done = run_rnncls("runs", "ls", folder, "--json")
        finally:
            # shutil.rmtree, with which pytest cleans up, calls itself for each level, too.
            run_command(["rm", "-rf", folder])
        assert done.returncode == 0, done.stderr

        if name == "d":
            (found,) = json.loads(done.stdout)
            assert found["run"] == str(folder / Path(*["d"] * 1101) / "run")
        else:
            assert "rnncls: warning[R30]: folders that cannot be looked into: 1;" in done.stderr
            assert "name too long" in done.stderr


@row("R9", "R16", "R30")
@pytest.mark.parametrize(
    ("number", "exit_code", "id"),
    [
        (errno.EACCES, 5, "R30"),
        (errno.EIO, 5, "R30"),
        (errno.ELOOP, 5, "R30"),
        (errno.EMFILE, 5, "R30"),
        (errno.ENAMETOOLONG, 5, "R30"),
        (errno.EAGAIN, 5, "R30"),
        (errno.ENOSPC, 6, "R9"),
        (errno.EROFS, 6, "R9"),
        (errno.ENOMEM, 8, "R16"),
    ],
)
def test_any_other_refusal_has_its_reason_and_its_path(
    number: int, exit_code: int, id: str
) -> None:
    for error in (OSError(number, "a reason", b"a/path"), OSError(number, "a reason")):
        shown = error_of_machine(error)
        assert shown is not None
        assert shown.exit_code == exit_code
        assert shown.problems[0].id == id
        if exit_code != 8:
            assert "a reason" in shown.render()
        if number not in (errno.EAGAIN, errno.ENOMEM):
            assert ("a/path" in shown.render()) == (error.filename is not None)


@pytest.fixture
def no_more_files() -> Iterator[None]:
    """Let the system refuse each further open file, the next one already."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open("rb") as newest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (newest.fileno(), limits[1]))
    # Descriptors below the limit may be free; each of them is taken.
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    yield
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@row("R30")
@pytest.mark.parametrize(
    "open_one",
    [
        load_config,
        fingerprint,
        lambda path: files_of(str(path.parent)),
        lambda path: compare(path.parent, path.parent),
        read_checkpoint,
    ],
)
def test_no_more_open_files_is_never_a_fault_of_the_next_file(
    open_one: Callable[[Path], object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("{}")
    (tmp_path / "checkpoints").mkdir()

    request.getfixturevalue("no_more_files")
    with pytest.raises(MachineError, match="Too many open files"):
        open_one(path)


@row("R16")
def test_no_memory_while_a_file_is_written_is_no_full_disk() -> None:
    with pytest.raises(OutOfMemory), writing(Path("file")):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.fixture
def no_threads() -> Iterator[None]:
    """Let the system refuse each new thread: none can have a stack of 64 TiB."""
    before = threading.stack_size(2**46)
    try:
        yield
    finally:
        threading.stack_size(before)


@pytest.mark.usefixtures("no_threads")
@pytest.mark.parametrize("command", [pytest.param("train", marks=pytest.mark.slow), "sweep"])
@row("R30")
def test_a_thread_that_the_system_refuses(tmp_path: Path, command: str) -> None:
    words = ["configs/smoke.yaml", "device=cpu", "train.max_steps=4"]
    if command == "train":
        # These steps draw the batches that come next in a thread.
        words += ["train.engine=compiled", "--run-dir"]
    else:
        words += ["train.engine=eager", "--seeds", "0-2", "--jobs", "2", "--sweep-dir"]

    done = run_rnncls(command, *words, tmp_path / "new")
    assert done.returncode == 5, done.stderr
    assert "error[R30]: the system starts no more threads" in done.stderr
    assert "ulimit -u" in done.stderr
    assert "--jobs" in done.stderr
    assert "internal error" not in done.stderr
    if command == "train":
        status = read_status(tmp_path / "new")
        assert (status["state"], status["exit_code"], status["error_id"]) == ("failed", 5, "R30")
        assert not (tmp_path / "new" / "crash.log").exists()


@row("R30")
def test_a_refusal_in_a_run_is_in_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_step(monkeypatch, 3, lambda _: Path("x" * 5000).stat())
    words = ["configs/smoke.yaml", "device=cpu", "train.engine=eager"]
    done = run_rnncls("train", *words, "--run-dir", tmp_path / "run")
    assert done.returncode == 5, done.stderr
    status = read_status(tmp_path / "run")
    assert (status["state"], status["exit_code"], status["error_id"]) == ("failed", 5, "R30")
