"""Kills and errors at the n-th call that changes a file of a run."""

import errno
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path

from scripts.chaos.part import PREFIX, SHORTER, TOGETHER, Part, Result
from scripts.file_calls import committed, failing, killing, listing, without_random_part

DIGITS = re.compile(r"\d+")


def list_calls(part: Part) -> list[tuple[str, str]]:
    """Return the calls of an undisturbed run that change a file: (call, path in the run)."""
    run_dir = part.next_run_dir()
    listed = part.folder / "calls.jsonl"
    part.check_exit(
        part.run(run_dir, listing(run_dir, listed)), 0, "the run whose calls are listed"
    )

    lines = listed.read_text().splitlines() if listed.exists() else []
    return [(call, path) for call, path in map(json.loads, lines)]


def failpoints(folder: Path, short: bool) -> Result:
    """SIGKILL before every call of a run that changes a file, and in the middle of every write."""
    part = Part(folder, *PREFIX, *SHORTER)
    calls = list_calls(part)

    points = []
    for index, (name, _) in enumerate(calls):
        points.append((index, False))
        if name == "write":
            points.append((index, True))

    # In short, the last of each kind: the last checkpoints are those that remove others.
    if short:
        points = [*{(calls[index][0], torn): (index, torn) for index, torn in points}.values()]
    for index, torn in points:
        run_dir = part.next_run_dir()
        what = f"kill {'half-way through' if torn else 'before'} call {index}, {calls[index]}"
        exit_code = part.run(run_dir, killing(run_dir, index, torn))
        part.check_exit(exit_code, -signal.SIGKILL, what)
        part.check_end(run_dir, what)

    where = "some" if short else "each"
    figure = (
        f"{len(points)} kills: one at {where} of {len(calls)} calls that change a file, "
        f"and half-way through {where} write"
    )
    return Result(figure, len(points), part.failures)


def disk_errors(folder: Path, short: bool) -> Result:
    """ENOSPC or EIO at every call of every save, in turns for the calls of one kind.

    The exit code must be 6, what was committed must stay byte-equal, and the run must be resumable.
    """
    part = Part(folder, *TOGETHER, *SHORTER)
    calls = list_calls(part)
    points = [
        index
        for index, (name, path) in enumerate(calls)
        if path.startswith("checkpoints") and name != "mkdir"
    ]

    # A save has each kind of call, such as an fsync of a folder, and a run has many saves.
    chosen = []
    times: Counter[str] = Counter()
    for index in points:
        kind = DIGITS.sub("", without_random_part(" ".join(calls[index])))
        chosen.append((index, (errno.ENOSPC, errno.EIO)[times[kind] % 2]))
        times[kind] += 1

    if short:
        chosen = [*{calls[index][0]: (index, error) for index, error in chosen}.values()]
    for index, error in chosen:
        fail_once(part, index, error, f"{os.strerror(error)} at call {index}, {calls[index]}")

    figure = (
        f"ENOSPC or EIO at {'some' if short else 'each'} of {len(points)} calls of a run's saves: "
        "exit 6, nothing committed changed"
    )
    return Result(figure, len(chosen), part.failures)


def fail_once(part: Part, index: int, error: int, what: str) -> None:
    """Let one call of a run fail, look at what is left, and resume the run."""
    run_dir = part.next_run_dir()
    hashes = part.folder / "hashes.json"
    hashes.unlink(missing_ok=True)

    part.check_exit(part.run(run_dir, failing(run_dir, index, error, hashes)), 6, what)
    if not part.check(hashes.exists(), f"{what}: never hit it"):
        return

    before = json.loads(hashes.read_text())
    after = committed(run_dir)
    unchanged = before == {name: after.get(name) for name in before}
    part.check(unchanged, f"{what}: a checkpoint changed")
    part.check(not list(run_dir.rglob(".tmp-*")), f"{what}: left a temporary file")
    part.check_end(run_dir, what)
