"""Reads that fail: each file that a command looks at, opens or reads gives an error at that moment.

The disk may be broken, a server of files may have gone, another process may delete or truncate a
file between two calls.
"""

import errno
import os
import random
from pathlib import Path

from scripts.file_calls import failing_read, listing_reads
from scripts.fuzz.scene import (
    HALF_COMMANDS,
    RUN_COMMANDS,
    SWEEP_COMMANDS,
    Failed,
    attempt,
    changes,
    command,
    content_of,
    copied,
    outcome_of,
)

# 0: the file ends there, as if it had been truncated after it was opened.
ERRORS = (errno.EIO, errno.EACCES, errno.ESTALE, errno.ENOENT, 0)

DATA_COMMANDS = [
    command("train data.csv --run-dir new train.max_steps=2 train.engine=eager", "new"),
    command("train --config tiny.yaml --run-dir new", "new"),
    command("sweep --config tiny.yaml --seeds 0-1 --sweep-dir new --jobs 1", "new"),
    command("init data.csv"),
    command("data check data.csv"),
    command("data stats tiny.yaml"),
    command("config show tiny.yaml"),
]

# Each command of the scene, with the names that it needs.
ALL_COMMANDS = [
    *((("run", "other"), each) for each in RUN_COMMANDS),
    *((("sweep",), each) for each in SWEEP_COMMANDS),
    *((("half",), each) for each in HALF_COMMANDS),
    *(((), each) for each in DATA_COMMANDS),
]


# How often each undisturbed command reads something in its folder, of those that were asked for.
_num_reads: dict[int, int] = {}


def num_reads(index: int, folder: Path) -> int:
    """Return how often an undisturbed command reads something in its folder."""
    if index in _num_reads:
        return _num_reads[index]

    names, chosen = ALL_COMMANDS[index]
    work = copied(folder, *names)
    listed = folder / "reads.jsonl"
    attempt(chosen.words, work, listing_reads(work, listed))
    _num_reads[index] = len(listed.read_text().splitlines())
    return _num_reads[index]


def one_read(rng: random.Random, folder: Path) -> str:
    """Let one call of a command that reads fail."""
    number = rng.randrange(len(ALL_COMMANDS))
    names, chosen = ALL_COMMANDS[number]
    index = rng.randrange(num_reads(number, folder))
    error = rng.choice(ERRORS)

    work = copied(folder, *names)
    left_out = [folder / "log", *(work / name for name in chosen.writes)]
    before = content_of(folder, left_out)
    ended = attempt(chosen.words, work, failing_read(work, index, error))

    name = os.strerror(error) if error else "end of file"
    what = f"{name} at read {index} of {' '.join(chosen.words)}"
    difference = changes(before, content_of(folder, left_out))
    if difference:
        raise Failed("wrote outside", f"{what}: {difference}")
    return outcome_of([what], ended)
