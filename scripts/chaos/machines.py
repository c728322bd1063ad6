"""Machines that give little: open files, file sizes, threads, rights, mounts; clocks that jump."""

import ctypes
import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from scripts.chaos.part import IN_TURNS, SHORTER, Part, Result
from scripts.chaos.signals import stopping
from scripts.file_calls import Prepare
from scripts.processes import fork, wait

NOBODY = 65534

# A limit ends a command with one of these, or does not matter.
MACHINE = 5
CANNOT_WRITE = 6

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000


# --- limits


def limits(folder: Path, short: bool) -> Result:
    """Run with few open files, small files and few threads.

    Each ends with 0, 5 or 6 and a message; without the limit, the run then goes on to its end.
    """
    part = Part(folder, *SHORTER, turns=IN_TURNS)
    let_others_in(folder)
    open_files = (4, 24) if short else range(3, 40)
    file_sizes = (4_000,) if short else (0, 100, 1_000, 4_000, 8_000, 16_000, 64_000)
    threads = (1,) if short else (1, 2, 3, 4)

    for most in open_files:
        limit_run(part, limited(resource.RLIMIT_NOFILE, most), f"{most} open files")
    for most in file_sizes:
        # Its message may be cut off, because it goes to a file, too.
        limit_run(part, limited(resource.RLIMIT_FSIZE, most), f"files of {most} bytes", False)
    if os.getuid() == 0:  # this limit is for other users alone
        for most in threads:
            limit_run(part, as_nobody(resource.RLIMIT_NPROC, most), f"{most} threads")

    injected = part.num_runs
    figure = f"{injected} runs with few open files, small files or few threads: exit 0, 5 or 6"
    return Result(figure, injected, part.failures)


def let_others_in(folder: Path) -> None:
    """Let every user write into a folder of this part, and load what Python imports late."""
    folder.chmod(0o777)
    folder.parent.chmod(0o711)
    # Python may be installed where other users may not read.
    "".encode("utf-8-sig")
    import_module("matplotlib.backends.backend_agg")
    import_module("matplotlib.figure")


def limited(kind: int, most: int) -> Prepare:
    """Limit a resource of this process."""
    return lambda: resource.setrlimit(kind, (most, most))


def as_nobody(kind: int, most: int) -> Prepare:
    """Limit a resource of this process, and make it that of a user who has no rights."""

    def prepare() -> None:
        resource.setrlimit(kind, (most, most))
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    return prepare


def limit_run(part: Part, prepare: Prepare, what: str, has_message: bool = True) -> None:
    """Run with a limit, then without it."""
    run_dir = part.next_run_dir()
    exit_code = part.run(run_dir, prepare)
    words = part.last_words()
    good = exit_code in (0, MACHINE, CANNOT_WRITE) and "Traceback" not in words
    part.check(good, f"{what}: exit code {exit_code}\n{words}")
    if exit_code and has_message:
        part.check("error[" in words, f"{what}: exit code {exit_code} without a message: {words}")

    # What was logged under the limit may have a gap (R10); weights and counters may not.
    part.check_exit(part.run(run_dir), 0, f"{what}: the run was resumed")
    part.check(weights_of(run_dir) == weights_of(part.whole), f"{what}: other weights")
    left = [path.name for path in run_dir.rglob(".tmp-*")]
    part.check(not left, f"{what}: left behind {left}")


def weights_of(run_dir: Path) -> dict[str, bytes]:
    """Return the final weights and the optimizer's state as bytes."""
    checkpoint = read_checkpoint(find_newest(run_dir))
    tensors = {**checkpoint.model, **checkpoint.optim}
    tensors |= {f"average/{name}": tensor for name, tensor in checkpoint.average.items()}
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


# --- rights and mounts


def rights(folder: Path, short: bool) -> Result:
    """Run under odd umasks, and on mounts that are read-only or full.

    A finished run on a read-only mount can be evaluated, listed and used; what would write there
    ends with 5 or 6. Neither /dev/shm nor a folder for temporary files is needed.
    """
    part = Part(folder, *SHORTER)
    let_others_in(folder)
    umasks = (0o077,) if short else (0o000, 0o002, 0o027, 0o077, 0o177, 0o277, 0o777)
    for umask in umasks:
        umask_run(part, umask)

    if not can_mount():
        figure = f"{len(umasks)} umasks; skipped the mounts: no right to mount"
        return Result(figure, len(umasks), part.failures, skipped=True)

    num_mounted = 0
    for words, mounts, wanted in mount_cases(part):
        exit_code = wait(fork(words, part.log, in_namespace(mounts)))
        said = part.last_words()
        good = exit_code in wanted and "Traceback" not in said
        part.check(good, f"{' '.join(words)} with {mounts}: exit code {exit_code}\n{said}")
        num_mounted += 1

    figure = (
        f"{len(umasks)} runs under odd umasks, {num_mounted} commands on read-only and full mounts "
        "and without /dev/shm"
    )
    return Result(figure, len(umasks) + num_mounted, part.failures)


def umask_run(part: Part, umask: int) -> None:
    """Run under a umask; none of the run's files may have a right that it takes."""
    run_dir = part.next_run_dir()
    exit_code = part.run(run_dir, with_umask(umask))
    what = f"umask {umask:04o}"

    # A mask that takes the owner's own rights away leaves files that he cannot open.
    is_harmless = umask & 0o700 == 0
    may_refuse = not is_harmless and exit_code in (MACHINE, CANNOT_WRITE)
    good = exit_code == 0 or may_refuse
    part.check(good, f"{what}: exit code {exit_code}\n{part.last_words()}")

    if exit_code == 0 and is_harmless:
        wrong = [path.name for path in run_dir.rglob("*") if path.stat().st_mode & umask]
        part.check(not wrong, f"{what}: {wrong} have rights that the mask takes")
        part.check_end(run_dir, what)


def with_umask(umask: int) -> Prepare:
    """Set the umask of this process, whose user has no rights beyond it."""

    def prepare() -> None:
        os.umask(umask)
        if os.getuid() == 0:
            os.setgid(NOBODY)
            os.setuid(NOBODY)

    return prepare


Mounts = list[list[str]]  # the arguments of `mount`, one list for each


def mount_cases(part: Part) -> Iterator[tuple[list[str], Mounts, tuple[int, ...]]]:
    """Yield commands, the mounts that they find, and the exit codes that are right."""
    whole = str(part.whole)
    read_only = [["--bind", whole, whole], ["-o", "remount,bind,ro", whole]]
    refused = (MACHINE, CANNOT_WRITE)

    config = str(part.folder / "hard.yaml")
    output = str(Path(whole) / "out.csv")
    for words, wanted in (
        (["eval", whole, "--lengths", "2"], (0,)),
        (["eval", whole, "--lengths", "2", "--predictions", output], refused),
        (["predict", whole, "1 2"], (0,)),
        (["predict", whole, "1 2", "--output", output], refused),
        (["explain", whole, "1 2"], (0,)),
        (["explain", whole, "1 2", "--graph", f"{whole}/out.svg"], refused),
        (["explain", whole, "--padding", "--output", f"{whole}/out.png"], refused),
        (["explain", whole, "--states", f"{whole}/out.png"], refused),
        (["runs", "ls", str(part.folder)], (0,)),
        (["runs", "diff", whole, whole], (0,)),
        (["model", "show", whole], (0,)),
        (["config", "show", "--config", f"{whole}/config.yaml"], (0,)),
        (["train", "--resume", whole, "train.max_steps=20"], refused),
        (["train", "--config", config, "--run-dir", f"{whole}/below"], refused),
    ):
        yield words, read_only, wanted

    # A picture has more than fits.
    small = part.folder / "small"
    small.mkdir(exist_ok=True)
    full = [["-t", "tmpfs", "-o", "size=4k", "none", str(small)]]
    yield ["explain", whole, "1 2", "--graph", f"{small}/out.svg"], full, (CANNOT_WRITE,)
    yield ["explain", whole, "--gradients", "--output", f"{small}/out.png"], full, (CANNOT_WRITE,)

    # Each of these places is there, and nothing can be written into it.
    for place in ("/dev/shm", "/tmp" if not whole.startswith("/tmp") else "/var/tmp"):
        if Path(place).is_dir():
            full = [["-t", "tmpfs", "-o", "size=4k,ro", "none", place]]
            new = str(part.next_run_dir())
            yield [*part.command(Path(new))], full, (0,)
            plan = ["sweep", "--config", config, *SHORTER, "--seeds", "0-1", "--sweep-dir"]
            yield [*plan, str(part.next_run_dir())], full, (0,)


def in_namespace(mounts: Mounts) -> Prepare:
    """Give this process mounts of its own."""

    def prepare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = CLONE_NEWNS if os.getuid() == 0 else CLONE_NEWNS | CLONE_NEWUSER
        if libc.unshare(flags):
            raise OSError(ctypes.get_errno(), "unshare")
        subprocess.run(["mount", "--make-rprivate", "/"], check=True, capture_output=True)
        for arguments in mounts:
            subprocess.run(["mount", *arguments], check=True, capture_output=True)

    return prepare


def can_mount() -> bool:
    """Return whether this user may have mounts of his own here."""
    if not shutil.which("unshare") or os.getuid() != 0:
        return False
    probe = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


# --- clocks


def clocks(folder: Path, short: bool) -> Result:
    """Stop and resume runs whose clock jumps by days in both directions, in odd time zones.

    The outcome is that of an undisturbed run, and TensorBoard shows each step once, in order.
    """
    part = Part(folder, "train.log_every=1", turns=IN_TURNS)
    rng = random.Random(4)
    num_runs = 1 if short else 8
    jumps = 0
    expected = event_steps(part.whole)

    for number in range(num_runs):
        run_dir = part.next_run_dir()
        stops = sorted(rng.sample(range(part.num_steps - 1), rng.randint(1, 4)))
        for at in stops:
            exit_code = part.run(run_dir, jumping(rng.randrange(2**32), stopping(at)))
            part.check_exit(exit_code, 143, f"clock {number}, stop at {at}")
            jumps += 1

        part.check_exit(
            part.run(run_dir, jumping(rng.randrange(2**32))), 0, f"clock {number}, the last piece"
        )
        what = f"clock {number}, stops at {stops}"
        part.check_end(run_dir, what)
        steps = event_steps(run_dir)
        part.check(steps == expected, f"{what}: TensorBoard has the steps {steps}")

    figure = f"{jumps} jumps of the clock in {num_runs} runs: one outcome, steps in order"
    return Result(figure, jumps, part.failures)


def jumping(seed: int, prepare: Prepare = lambda: None) -> Prepare:
    """Set this process's clock to another day, let it jump while it runs, and move it elsewhere."""
    rng = random.Random(seed)
    zone = rng.choice(("UTC", "Pacific/Apia", "America/St_Johns", "Asia/Kathmandu", "nonsense"))
    real = time.time
    offset = rng.uniform(-400, 400) * 86400.0

    def now() -> float:
        nonlocal offset
        if rng.random() < 0.01:
            offset += rng.uniform(-2, 2) * 86400.0
        return real() + offset

    def changed() -> None:
        os.environ["TZ"] = zone
        time.tzset()
        time.time = now
        prepare()

    return changed


def event_steps(run_dir: Path) -> list[int]:
    """Return the steps of the training loss, as TensorBoard reads them."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return [event.step for event in events.Scalars("train/loss")]
