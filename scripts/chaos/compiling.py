"""Processes that compile at the same time, are killed meanwhile, or cannot keep what they made."""

import errno
import hashlib
import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from scripts.chaos.machines import Mounts, can_mount, in_namespace, weights_of
from scripts.chaos.part import SHORTER, Part, Result
from scripts.file_calls import Prepare, failing, killing, listing
from scripts.processes import fork, nothing, wait_and_measure

# A core that many processes share may take a minute for what takes ten seconds alone.
PATIENCE_S = 400

# The training step of these can be compiled.
COMPILED = ("model.bidirectional=false", "model.dropout=0", "train.engine=compiled", *SHORTER)

SAID = "compiling the training step"
WARNED = "warning[R31]"


def compiling(folder: Path, short: bool) -> Result:
    """Compile in several processes at once, through kills, full disks and damaged files.

    Each start that is not killed ends with 0. What is kept afterwards is whole, and the next start
    neither compiles nor warns. A function of one line stands for the program where many starts are
    needed; the long form compiles the program itself as well.
    """
    part = Part(folder, *SHORTER)
    counts = [] if short else [whole_program(part)]

    # Numba is imported once, and not by each of many starts.
    import_module("rnncls.compiled.kept")
    counts += [
        at_once(part, (2,) if short else (2, 4, 8)),
        kill_at_each_call(part, 8 if short else 1),
        fail_at_each_call(part, 8 if short else 1),
        flip_bits(part, 2 if short else 15),
    ]
    if can_mount():
        counts.append(small_disks(part, (4,) if short else (4, 8, 12, 16, 32)))

    starts = sum(counts)
    mounts = "" if can_mount() else "; skipped the mounts: no right to mount"
    figure = (
        f"{starts} starts that compiled: several at once, killed, on full and read-only disks, "
        f"with flipped bits: exit 0, and what is kept is whole{mounts}"
    )
    return Result(figure, starts, part.failures, skipped=bool(mounts))


# --- a function of one line


def small(cache: Path, prepare: Prepare = nothing) -> Prepare:
    """Compile one function, or load it from `cache`, and end: 0 if it computes what it should."""

    def run() -> None:
        os.environ["XDG_CACHE_HOME"] = str(cache)
        from numba import njit

        from rnncls.compiled.kept import KeptCode, code_folder

        prepare()
        made: Any = njit(doubled)
        folder = code_folder(b"small")
        if folder is not None:
            made._cache = KeptCode("doubled", folder)
        raise SystemExit(0 if made(21) == 42 else 1)

    return run


def doubled(value: int) -> int:
    return 2 * value


def run_small(part: Part, cache: Path, prepare: Prepare = nothing) -> int:
    """Compile or load the function and return the exit code."""
    pid = fork(["compile"], part.log, small(cache, prepare))
    return wait_and_measure(pid, PATIENCE_S)[0]


def new_cache(part: Part) -> Path:
    """Return the folder of a new, empty cache; the one before is deleted."""
    cache = part.next_run_dir()
    cache.mkdir(mode=0o700)
    return cache


def check_kept(part: Part, cache: Path, what: str) -> None:
    """Start once more: that must neither compile nor warn, if all that is kept is whole."""
    part.check_exit(run_small(part, cache), 0, f"{what}: the next start")
    part.check_exit(run_small(part, cache), 0, f"{what}: the start after it")
    words = part.last_words()
    part.check(SAID not in words and WARNED not in words, f"{what}: not kept\n{words}")
    check_whole(part, cache, what)


def check_whole(part: Part, cache: Path, what: str) -> None:
    """Check that there is something, and that the SHA-256 of each file is that of its content."""
    # Not what a killed process left half-written under another name.
    files = list(cache.rglob("[!.]*.code"))
    damaged = []
    for path in files:
        content = path.read_bytes()
        digest = hashlib.sha256(path.name.encode() + b"\0" + content[32:]).digest()
        if digest != content[:32]:
            damaged.append(path.name)
    part.check(bool(files) and not damaged, f"{what}: {len(files)} files, damaged: {damaged}")


def at_once(part: Part, crowds: Sequence[int]) -> int:
    """Start several processes with one empty cache; return how many."""
    for number in crowds:
        cache = new_cache(part)
        logs = [part.folder / f"at-once-{index}.log" for index in range(number)]
        pids = [fork(["compile"], log, small(cache)) for log in logs]
        for pid, log in zip(pids, logs, strict=True):
            part.log = log
            exit_code = wait_and_measure(pid, PATIENCE_S)[0]
            part.check_exit(exit_code, 0, f"{number} at once")
        check_kept(part, cache, f"{number} at once")
    return sum(crowds)


def kill_at_each_call(part: Part, every: int) -> int:
    """Kill at each call that changes the cache, or every n-th, and half-way through a write."""
    calls = calls_of_small(part)
    points = [(index, False) for index in range(len(calls))]
    points = points[::every]
    points += [(index, True) for index, call in enumerate(calls) if call == "write"]

    for index, torn in points:
        cache = new_cache(part)
        what = f"kill {'half-way through' if torn else 'before'} call {index}, {calls[index]}"
        exit_code = run_small(part, cache, killing(cache, index, torn))
        part.check_exit(exit_code, -signal.SIGKILL, what)
        check_kept(part, cache, what)
    return len(points)


def calls_of_small(part: Part) -> list[str]:
    """Return the calls with which a first start changes its cache."""
    cache = new_cache(part)
    listed = part.folder / "cache-calls.jsonl"
    listed.unlink(missing_ok=True)
    part.check_exit(run_small(part, cache, listing(cache, listed)), 0, "the start that is listed")
    lines = listed.read_text().splitlines() if listed.exists() else []
    part.check(any('"write"' in line for line in lines), "nothing was kept")
    return [line.split('"')[1] for line in lines]


def fail_at_each_call(part: Part, every: int) -> int:
    """Let each call that changes the cache fail, or every n-th: that costs a warning, no start."""
    calls = list(enumerate(calls_of_small(part)))[::every]
    for index, call in calls:
        cache = new_cache(part)
        what = f"no space at call {index}, {call}, that changes the cache"
        seen = part.folder / "seen.json"
        exit_code = run_small(part, cache, failing(cache, index, errno.ENOSPC, seen))
        part.check_exit(exit_code, 0, what)
        part.check(WARNED in part.last_words(), f"{what}: no warning")
        part.check(not list(cache.rglob("*.tmp-*")), f"{what}: left a temporary file")
        check_kept(part, cache, what)
    return len(calls)


def flip_bits(part: Part, places: int) -> int:
    """Flip one bit of a kept function at a random place, then start."""
    cache = new_cache(part)
    part.check_exit(run_small(part, cache), 0, "the start whose function is damaged")
    rng = random.Random(0)
    for number in range(places):
        (path,) = cache.rglob("[!.]*.code")
        flip(path, rng)
        part.check_exit(run_small(part, cache), 0, f"flipped bit {number}")
        part.check("is damaged" in part.last_words(), f"flipped bit {number}: no warning")
        check_whole(part, cache, f"flipped bit {number}")
    return places


def flip(path: Path, rng: random.Random) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def disk_of(cache: Path, size: str) -> Mounts:
    """Mount a disk of this size on the cache."""
    return [["-t", "tmpfs", "-o", f"mode=700,{size}", "none", str(cache)]]


def small_disks(part: Part, kilobytes: Sequence[int]) -> int:
    """Start with caches on disks that are full, or read-only."""
    sizes = [f"size={size}k" for size in kilobytes]
    for size in (*sizes, "nr_inodes=2", "ro"):
        cache = new_cache(part)
        exit_code = run_small(part, cache, in_namespace(disk_of(cache, size)))
        part.check_exit(exit_code, 0, f"a cache with {size}")
        # A larger disk may have room for the function.
        must_warn = size in (sizes[0], "nr_inodes=2", "ro")
        part.check(not must_warn or WARNED in part.last_words(), f"a cache with {size}: no warning")
    return len(sizes) + 2


# --- the program


def whole_program(part: Part) -> int:
    """Compile the program itself: two runs at once, killed ones, full disks, flipped bits."""
    cache = part.folder / "cache"
    cache.mkdir(mode=0o700)
    first = start_run(part, "first", cache)
    second = start_run(part, "second", cache)
    check_run(part, first, "first")
    check_run(part, second, "second")
    check_whole(part, cache, "two cold starts at once")
    check_same(part, "second")

    return 2 + damage_program(part, cache) + starve_program(part)


def start_run(part: Part, name: str, cache: Path, prepare: Prepare = nothing) -> int:
    """Start a run with compiled steps in a fork and return its process id."""

    def changed() -> None:
        os.environ["XDG_CACHE_HOME"] = str(cache)
        prepare()

    words = [*part.command(part.folder / name), *COMPILED]
    return fork(words, part.folder / f"{name}.log", changed)


def check_run(part: Part, pid: int, name: str) -> str:
    """Wait for a run, check that it ended with 0, and return what it said."""
    part.log = part.folder / f"{name}.log"
    part.check_exit(wait_and_measure(pid, PATIENCE_S)[0], 0, f"the program: {name}")
    return part.last_words()


def check_same(part: Part, name: str) -> None:
    """Check that a run ended as the first one did."""
    same = weights_of(part.folder / name) == weights_of(part.folder / "first")
    part.check(same, f"the program: {name}: other weights")


def damage_program(part: Part, cache: Path) -> int:
    """Flip a bit of each kept function: it is compiled anew, and the run is the same."""
    rng = random.Random(1)
    names = [path.name for path in sorted(cache.rglob("[!.]*.code"))]
    pids = []
    for number, name in enumerate(names):
        copied = part.folder / f"damaged-{number}"
        shutil.copytree(cache, copied)
        (path,) = copied.rglob(name)
        flip(path, rng)
        pids.append(start_run(part, f"flipped-{number}", copied))

    for number, (pid, name) in enumerate(zip(pids, names, strict=True)):
        words = check_run(part, pid, f"flipped-{number}")
        part.check(f"{name} is damaged" in words, f"a flipped bit of {name}: no warning")
        check_whole(part, part.folder / f"damaged-{number}", f"a flipped bit of {name}")
        check_same(part, f"flipped-{number}")
    return len(pids)


def starve_program(part: Part) -> int:
    """Kill a run while it compiles and start it anew, beside runs whose caches are too small."""
    cache = part.folder / "cache-of-killed"
    cache.mkdir(mode=0o700)
    moments = (2.0, 5.0)
    for number, seconds in enumerate(moments):
        pid = start_run(part, f"killed-{number}", cache)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        exit_code = wait_and_measure(pid, PATIENCE_S)[0]
        part.check_exit(exit_code, -signal.SIGKILL, f"the program: killed after {seconds} s")

    pids = {"after-kills": start_run(part, "after-kills", cache)}
    for size in ("100k",) if can_mount() else ():
        place = part.folder / f"cache-{size}"
        place.mkdir(mode=0o700)
        full = in_namespace(disk_of(place, f"size={size}"))
        pids[f"starved-{size}"] = start_run(part, f"starved-{size}", place, full)

    for name, pid in pids.items():
        words = check_run(part, pid, name)
        is_starved = name.startswith("starved")
        part.check((WARNED in words) == is_starved, f"the program: {name}: {words}")
        check_same(part, name)
    check_whole(part, cache, "the program: after-kills")
    return len(moments) + len(pids)
