"""Other systems: macOS, which lacks some of what Linux has, and Windows, which lacks far more."""

import json
import os
from pathlib import Path

import pytest

from rnncls.system.files import flush_to_disk
from rnncls.system.machine import usable_cores
from tests.helpers import Completed, run_python

# Removes what Linux has and macOS lacks, before anything else is imported.
AS_ON_MACOS = """
import errno, fcntl, json, os, select, signal, socket, sys, time

MISSING = {
    os: "sched_getaffinity sched_setaffinity sched_getscheduler sched_setscheduler sched_getparam "
    "sched_setparam sched_rr_get_interval process_cpu_count posix_fadvise posix_fallocate "
    "copy_file_range splice memfd_create eventfd eventfd_read eventfd_write pidfd_open getrandom "
    "setns unshare getxattr setxattr listxattr removexattr getresuid getresgid setresuid setresgid "
    "fdatasync sync_file_range O_TMPFILE O_DIRECT O_PATH O_NOATIME O_LARGEFILE O_RSYNC "
    "timerfd_create pipe2",
    signal: "SIGPWR SIGSTKFLT SIGPOLL SIGRTMIN SIGRTMAX SIGCLD sigtimedwait sigwaitinfo "
    "pidfd_send_signal",
    select: "epoll",
    socket: "AF_NETLINK AF_PACKET AF_ALG AF_VSOCK SOCK_CLOEXEC SOCK_NONBLOCK",
    time: "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
    fcntl: "F_OFD_GETLK F_OFD_SETLK F_OFD_SETLKW F_ADD_SEALS F_GET_SEALS F_SETPIPE_SZ F_GETPIPE_SZ",
}
for module, names in MISSING.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

# Not supported has two numbers there.
errno.EOPNOTSUPP = 102

def without_proc(event, arguments):
    paths = arguments[:1] if event in ("open", "os.listdir", "os.scandir") else ()
    for path in paths:
        if isinstance(path, (str, bytes)) and os.fsdecode(path).startswith(("/proc", "/sys")):
            raise FileNotFoundError(errno.ENOENT, "macOS has no such folder", path)

sys.addaudithook(without_proc)
"""

# Runs command lines, given as JSON lists, one after another, and prints the exit code of each.
RUN_ALL = """
from rnncls.cli import main

for words in map(json.loads, sys.argv[1:]):
    sys.argv = ["rnncls", *words]
    try:
        main()
    except SystemExit as end:
        print("exit", *words[:2], end.code, file=sys.stderr)
"""

# As far as an import can tell, this is Windows.
AS_ON_WINDOWS = """
import os, signal, sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("fcntl", "termios", "resource", "pwd", "grp"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in ("fcntl", "termios", "resource", "pwd", "grp"):
    sys.modules.pop(name, None)
sys.meta_path.insert(0, Missing())
sys.platform = "win32"
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "sched_getaffinity", "pread"):
    delattr(os, name)
for name in ("SIGHUP", "SIGUSR1"):
    delattr(signal, name)
"""


@pytest.mark.slow
def test_every_kind_of_command_runs_without_what_macos_lacks(tmp_path: Path) -> None:
    run = str(tmp_path / "runs" / "one")
    sweep = str(tmp_path / "runs" / "sweep")
    config = ["--config", "configs/smoke.yaml", "device=cpu"]
    short = ["train.max_steps=20", "train.eval_every=10", "train.checkpoint_every=10"]
    commands = [
        ["train", *config, *short, "--run-dir", run],
        ["train", "--resume", run, "train.max_steps=30"],
        ["sweep", *config, *short, "--seeds", "0-1", "--samples", "50", "--sweep-dir", sweep],
        ["runs", "ls", str(tmp_path), "--json"],
        ["runs", "diff", run, f"{sweep}/members/seed=1"],
        ["predict", run, "1 2 0"],
        ["eval", run, "--samples", "50"],
        ["model", "show", run],
    ]

    done = run_python(AS_ON_MACOS + RUN_ALL, *map(json.dumps, commands))

    exits = [line for line in done.stderr.splitlines() if line.startswith("exit ")]
    assert exits == [f"exit {words[0]} {words[1]} 0" for words in commands], done.stderr
    assert "Traceback" not in done.stderr
    assert f'"run": "{run}", "state": "finished", "step": 30' in done.stdout


def on_windows(code: str) -> Completed:
    return run_python(f"{AS_ON_WINDOWS}\n{code}")


@pytest.mark.row("R34", by="unit")
@pytest.mark.parametrize(
    "words",
    ["train --config configs/smoke.yaml", "runs ls", "predict x", "--version", "--help", "no-such"],
)
def test_on_windows_every_command_names_wsl2_and_exits_with_5(words: str) -> None:
    done = on_windows(
        f"sys.argv = ['rnncls', *{words.split()}]\nfrom rnncls.cli import main\nmain()"
    )
    first, *_ = done.stderr.splitlines()
    assert "WSL2" in first
    assert first.startswith("rnncls: error[R34]")
    assert (done.returncode, done.stdout) == (5, "")
    assert "Traceback" not in done.stderr


@pytest.mark.row("R34", by="unit")
def test_on_windows_the_package_can_be_imported_and_says_the_same() -> None:
    done = on_windows(
        "import rnncls\n"
        "print(rnncls.__version__)\n"
        "try:\n"
        "    rnncls.fit\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error.exit_code, error)\n"
    )
    assert done.returncode == 0, done.stderr
    error = done.stdout.splitlines()[1]
    assert error.startswith("MachineError 5 rnncls: error[R34]: rnncls does not run on Windows")


def test_without_affinity_all_cores_of_the_machine_are_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert usable_cores() == len(os.sched_getaffinity(0))
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cores() == os.cpu_count()


def test_a_full_sync_that_the_file_system_refuses_becomes_an_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    original = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(descriptor)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", noted)

    # F_GETFD is a command that succeeds; Linux knows none of the other number.
    for command, expected in ((1, 0), (987654, 1)):
        monkeypatch.setattr("fcntl.F_FULLFSYNC", command, raising=False)
        with (tmp_path / "file").open("wb") as file:
            flush_to_disk(file.fileno())
        assert len(synced) == expected


def test_where_macos_refuses_links_a_copy_is_made(tmp_path: Path) -> None:
    # The number that macOS calls ENOTSUP, and for which Linux has two names.
    code = """
from pathlib import Path
from rnncls.system.files import link

def refuse(*_):
    raise OSError(errno.ENOTSUP, "Operation not supported")

os.link = refuse
folder = Path(sys.argv[1])
(folder / "a").write_bytes(b"content")
link(folder / "a", folder / "b")
"""
    done = run_python(AS_ON_MACOS + code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "b").read_bytes() == b"content"
