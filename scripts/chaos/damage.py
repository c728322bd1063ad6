"""Damaged checkpoints, and whatever else can be mutated."""

import random
from pathlib import Path

from rnncls.errors import CheckpointError
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from scripts.chaos.part import TOGETHER, Part, Result
from scripts.fuzz.running import counts_of, run_all


def damage(folder: Path, short: bool) -> Result:
    """Flip bits of a checkpoint, and truncate it: each must be detected before anything is used."""
    small = ("model.hidden_size=2", "model.embedding_dim=1", "train.max_steps=4")
    part = Part(folder, *small, *TOGETHER)
    rng = random.Random(3)
    path = find_newest(part.whole)
    content = path.read_bytes()
    changed = folder / path.name
    flips = [rng.randrange(8 * len(content)) for _ in range(200 if short else 2_000)]
    # All lengths are in tests/test_checkpoint.py.
    edges = 32 if short else 256
    middle = range(edges, len(content) - edges, 197 if short else 11)
    lengths = [*range(edges), *middle, *range(len(content) - edges, len(content))]

    part.check(not is_refused(changed, content), "the undamaged checkpoint is refused")
    for position in flips:
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        part.check(is_refused(changed, bytes(flipped)), f"bit {position} flipped, not detected")
    for length in lengths:
        cut = content[:length]
        part.check(is_refused(changed, cut), f"truncated to {length} bytes, not detected")

    figure = (
        f"{len(flips):,} bit flips and {len(lengths):,} truncations of {len(content):,} bytes "
        "detected"
    )
    return Result(figure, len(flips) + len(lengths), part.failures)


def is_refused(path: Path, content: bytes) -> bool:
    """Return whether reading a checkpoint with this content raises CheckpointError."""
    path.write_bytes(content)
    try:
        read_checkpoint(path)
    except CheckpointError:
        return True
    return False


def mutations(_folder: Path, short: bool) -> Result:
    """Generated inputs of every kind (see `scripts.fuzz`)."""
    counts = counts_of(short)
    failures = run_all(counts)
    listed = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    figure = f"{sum(counts.values()):,} generated cases: {listed}"
    return Result(figure, sum(counts.values()), failures)
