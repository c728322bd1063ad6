"""Measure how long making a batch takes, against a Python loop over samples.

    python scripts/bench_data.py

All ways make the same kind of batch (B = 64, lengths 2-5, N = 10) up to the `Batch` that the model
takes: ours draws with tensor operations and packs. The rounds of the ways are interleaved. Printed
are the medians of the rounds, and the median of the per-round ratios with its range. No timing is
asserted.
"""

import platform
import random
import statistics
import time
from collections.abc import Callable
from typing import Annotated

import torch
import typer
from torch import Tensor

from rnncls.config import SumModConfig
from rnncls.data import Batch, batches, collate

DATA = SumModConfig(modulus=10, min_length=2, max_length=5)
B = 64
OURS = "block draw + pack (rnncls)"


def block_batches(count: int) -> None:
    """Make batches as training does: draw the digits of a block of steps, padded, then pack."""
    for _ in batches(DATA, 0, "train", B, 0, count):
        pass


def loop_with(sample: Callable[[], tuple[Tensor, int]]) -> Callable[[int], None]:
    """Return a way that draws one sample at a time in Python, and then uses the same `collate`."""

    def run(count: int) -> None:
        for _ in range(count):
            sequences, labels = zip(*(sample() for _ in range(B)), strict=True)
            batch: Batch = collate(sequences, torch.tensor(labels))
            assert len(batch.labels) == B

    return run


def torch_sample() -> tuple[Tensor, int]:
    """Draw one sample with torch."""
    length = int(torch.randint(2, 6, ()))
    digits = torch.randint(10, (length,))
    return digits, int(digits.sum()) % 10


def python_sample() -> tuple[Tensor, int]:
    """Draw one sample with Python's random."""
    digits = [random.randrange(10) for _ in range(random.randint(2, 5))]
    return torch.tensor(digits), sum(digits) % 10


WAYS: dict[str, Callable[[int], None]] = {
    OURS: block_batches,
    "loop over samples, torch + collate": loop_with(torch_sample),
    "loop over samples, random + collate": loop_with(python_sample),
}


def main(
    rounds: Annotated[int, typer.Option()] = 15, count: Annotated[int, typer.Option()] = 512
) -> None:
    """Measure all ways and print a line for each."""
    torch.set_num_threads(1)

    seconds: dict[str, list[float]] = {name: [] for name in WAYS}  # per batch
    for turn in range(rounds + 1):
        for name in random.sample(list(WAYS), len(WAYS)):
            started_at = time.perf_counter()
            WAYS[name](count)
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - started_at) / count)

    machine = f"{platform.machine()}, torch {torch.__version__}, 1 thread"
    print(f"{machine}, {rounds} rounds of {count} batches of {B}")
    for name, times in seconds.items():
        ratios = [theirs / our for theirs, our in zip(times, seconds[OURS], strict=True)]
        spread = f"{statistics.median(ratios):5.1f}x ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"{name:<38} {1e6 * statistics.median(times):8.1f} us per batch   {spread}")


if __name__ == "__main__":
    typer.run(main)
