"""Sweeps of many members and files of many rows: bounded memory, open files, disk and threads."""

import ctypes
import itertools
import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rnncls.config import dump_config
from scripts.bench_predict import distinct_rows
from scripts.chaos.machines import (
    CANNOT_WRITE,
    CLONE_NEWNS,
    MACHINE,
    as_nobody,
    can_mount,
    let_others_in,
    limited,
    weights_of,
)
from scripts.chaos.part import SHORTER, Part, Result
from scripts.file_calls import Prepare
from scripts.processes import fork, nothing, wait_and_measure
from tests.helpers import config_of

PATIENCE_S = 1200

# For a member, its summary and its points in the pictures; and for a row of a file: nothing.
MOST_KIB_PER_MEMBER = 128
MOST_MIB_OF_ROWS = 16

MOST_OPEN = 64  # files of a process, whatever it has to do

# As little as a member can have. Its steps are compiled, so that members train in threads.
TINY = {"max_steps": 2, "log_every": 2, "eval_every": 2, "eval_samples": 4, "batch_size": 2}
TINY_MODEL = {"hidden_size": 2, "embedding_dim": 2}


def crowds(folder: Path, short: bool) -> Result:
    """Run sweeps of many members and predict many rows, with few files, threads or little disk.

    Memory grows by a bound for each member and not with the rows. A disk that fills up ends a sweep
    with 6; when it has grown, the sweep resumes to the same results.
    """
    part = Part(folder, *SHORTER)
    let_others_in(folder)
    few, many = (4, 12) if short else (25, 250)
    grown_kib = crowd(part, few, many)
    diverge(part)
    tenth = 1_000 if short else 30_000
    grown_mib = rows(part, tenth)

    tries = 4
    for most in (1,) if short else (0, 1, 2, 4):
        few_threads(part, most)
        tries += 1

    mounted = can_mount()
    if mounted:
        for share in (0.5,) if short else (0.2, 0.4, 0.6):
            full_disk(part, share)
            tries += 1

    figure = (
        f"{many} members with {MOST_OPEN} open files, {grown_kib:.0f} KiB for each more; "
        f"{10 * tenth:,} rows, {grown_mib:.0f} MiB more than for a tenth; "
        f"{tries} tries in all, with few threads and full disks"
    )
    figure += "" if mounted else "; skipped the mounts: no right to mount"
    return Result(figure, tries, part.failures, skipped=not mounted)


def planned(part: Part, members: int, *overrides: str) -> list[str]:
    """Return the words that start a sweep of so many members, without its folder."""
    config = part.folder / "tiny.yaml"
    config.write_text(dump_config(config_of(model=TINY_MODEL, train=TINY)))
    seeds = f"0-{members - 1}"
    words = ["sweep", "--config", str(config), "--seeds", seeds, "--samples", "4", *overrides]
    return [*words, "--jobs", "2", "--sweep-dir"]


def run_watched(part: Part, words: list[str], prepare: Prepare = nothing) -> tuple[int, float, int]:
    """Run a command; return its exit code, the peak of its memory in MiB and of its open files."""
    pid = fork(words, part.log, prepare)
    most = 0
    give_up_at = time.monotonic() + PATIENCE_S
    # WNOWAIT: whoever measures waits for it once more.
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, pid, options) is None and time.monotonic() < give_up_at:
        with suppress(OSError):  # it has just ended, or this is no Linux
            most = max(most, len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208 - much faster
        time.sleep(0.005)
    exit_code, peak_mib = wait_and_measure(pid, 1)
    return exit_code, peak_mib, most


def checked(part: Part, words: list[str], what: str, prepare: Prepare = nothing) -> float:
    """Run a command that must end with 0 and open few files; return the peak of its memory."""
    exit_code, peak_mib, most = run_watched(part, words, prepare)
    part.check_exit(exit_code, 0, what)
    part.check(most < MOST_OPEN, f"{what}: {most} open files")
    return peak_mib


# --- many members, many rows


def crowd(part: Part, few: int, many: int) -> float:
    """Compare a large sweep with a small one; return how many KiB each member more takes."""
    small = part.folder / "few"
    large = part.folder / "many"
    compiled = "train.engine=compiled"
    peak = checked(part, [*planned(part, few, compiled), str(small)], f"{few} members")

    limit = limited(resource.RLIMIT_NOFILE, MOST_OPEN)
    words = [*planned(part, many, compiled), str(large)]
    large_peak = checked(part, words, f"{many} members", limit)
    per_member = 1024 * max(0, large_peak - peak) / (many - few)

    # What is first used, such as a font, is no member's: the short form has too few to tell.
    bound = MOST_KIB_PER_MEMBER + 16 * 1024 / (many - few)
    part.check(per_member < bound, f"{per_member:.0f} KiB for each member of {many}")

    before = stamps(large)
    part.check(len(before) >= many, f"{len(before)} checkpoints of {many} members")
    checked(part, ["sweep", "--resume", str(large)], "nothing left to do", limit)
    part.check(stamps(large) == before, "a sweep with nothing left to do changed a checkpoint")
    return per_member


def stamps(sweep: Path) -> dict[Path, int]:
    """Return when each checkpoint of a sweep was written."""
    return {path: path.stat().st_mtime_ns for path in sweep.glob("members/*/checkpoints/*")}


def diverge(part: Part) -> None:
    """Let one of the members that profile diverge: the other ends, and so does the sweep."""
    sweep = part.folder / "diverging"
    words = planned(part, 1, "train.profile=true", "optimizer.lr=0.001,1e30", "optimizer.name=sgd")
    exit_code, _, _ = run_watched(part, [*words, str(sweep)])
    part.check_exit(exit_code, 0, "a member that profiles diverges")
    states = [path.read_text() for path in sorted(sweep.glob("members/*/status.json"))]
    ended = sorted('"finished"' in state for state in states)
    part.check(ended == [False, True], f"a member that profiles diverges: {states}")


def rows(part: Part, tenth: int) -> float:
    """Predict rows, and ten times as many; return how many MiB that takes more."""
    peaks = []
    for number in (tenth, 10 * tenth):
        path = part.folder / "rows.txt"
        with path.open("w") as file:
            file.writelines(itertools.islice(distinct_rows("txt", number), number))
        words = ["predict", str(part.whole), "--bad", "skip", "--input", str(path)]
        words += ["--output", str(part.folder / f"out-{number}.txt")]
        peaks.append(checked(part, words, f"{number:,} rows"))
        path.unlink()

    part.check(peaks[1] - peaks[0] < MOST_MIB_OF_ROWS, f"{peaks} MiB for {tenth:,} rows and more")
    return max(0, peaks[1] - peaks[0])


# --- few threads, little disk


def few_threads(part: Part, most: int) -> None:
    """Run a sweep of a user who may have so many threads; then without that limit."""
    if os.getuid() != 0:  # this limit is for other users alone
        return
    sweep = part.next_run_dir()
    words = [*planned(part, 3, "train.engine=eager"), str(sweep)]
    exit_code, _, _ = run_watched(part, words, as_nobody(resource.RLIMIT_NPROC, most))
    said = part.last_words()
    good = exit_code in (0, MACHINE) and "Traceback" not in said
    part.check(good, f"a sweep with {most} threads: exit code {exit_code}\n{said}")

    if exit_code:
        part.check("error[" in said, f"a sweep with {most} threads: no message: {said}")
    if (sweep / "sweep.yaml").exists():
        checked(part, ["sweep", "--resume", str(sweep)], f"after a sweep with {most} threads")


def full_disk(part: Part, share: float) -> None:
    """Fill a disk with a part of a sweep, let the disk grow, and resume the sweep."""
    members = 6
    words = planned(part, members, "train.engine=eager")
    undisturbed = part.next_run_dir()
    checked(part, [*words, str(undisturbed)], "a sweep with room")
    needed = sum(path.stat().st_size // 4096 * 4 + 4 for path in undisturbed.rglob("*"))

    place = part.folder / "disk"
    place.mkdir(exist_ok=True)
    what = f"a disk with room for {share:.0%} of a sweep"
    with disk(place, int(share * needed)) as holder:
        exit_code, _, _ = run_watched(part, [*words, f"{place}/sweep"], inside(holder))
        part.check_exit(exit_code, CANNOT_WRITE, what)
        part.check("error[" in part.last_words(), f"{what}: {part.last_words()}")

        grow = ["mount", "-o", "remount,size=64m", str(place)]
        subprocess.run(["nsenter", "-t", str(holder), "-m", *grow], check=True)
        checked(part, ["sweep", "--resume", f"{place}/sweep"], f"{what}, grown", inside(holder))

        # What is mounted is seen through the process that holds it.
        seen = Path(f"/proc/{holder}/root{place}/sweep")
        for member in sorted((undisturbed / "members").iterdir()):
            own = seen / "members" / member.name
            same = weights_of(own) == weights_of(member)
            part.check(same, f"{what}: other weights of {member.name}")
            left = [path.name for path in own.rglob(".tmp-*")]
            part.check(not left, f"{what}: left behind {left}")


@contextmanager
def disk(place: Path, kib: int) -> Iterator[int]:
    """Mount a disk in a namespace of its own; yield the id of the process that holds it."""
    script = (
        "mount --make-rprivate / && "
        f"mount -t tmpfs -o size={kib}k none '{place}' && echo mounted && exec sleep {PATIENCE_S}"
    )
    command = ["unshare", "-m", "sh", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        try:
            if holder.stdout.readline() != "mounted\n":
                raise OSError(f"cannot mount {place}")
            yield holder.pid
        finally:
            holder.kill()


def inside(holder: int) -> Prepare:
    """Let this process see what that one has mounted."""

    def prepare() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        namespace = os.open(f"/proc/{holder}/ns/mnt", os.O_RDONLY)
        if libc.setns(namespace, CLONE_NEWNS):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)

    return prepare
