"""How long does a batch take? Generated with tensor operations and packed, against a Python loop over samples.

    python scripts/bench_data.py

All ways make the same kind of batch (B = 64, lengths 2-5, N = 10) up to the `Batch` the model takes. The rounds of the
ways are interleaved; medians of rounds, and the median of the per-round ratios with its range. No timing is asserted.
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


def block_batches(count: int) -> None:
    """What training uses: digits drawn for a block of steps at a time, already padded, then packed."""
    for _ in batches(DATA, 0, "train", B, 0, count):
        pass


def loop_with(sample: Callable[[], tuple[Tensor, int]]) -> Callable[[int], None]:
    """A Python loop that draws one sample at a time, and the same `collate`."""

    def run(count: int) -> None:
        for _ in range(count):
            sequences, labels = zip(*(sample() for _ in range(B)), strict=True)
            batch: Batch = collate(sequences, torch.tensor(labels))
            assert len(batch.labels) == B

    return run


def torch_sample() -> tuple[Tensor, int]:
    digits = torch.randint(10, (int(torch.randint(2, 6, ())),))
    return digits, int(digits.sum()) % 10


def python_sample() -> tuple[Tensor, int]:
    digits = [random.randrange(10) for _ in range(random.randint(2, 5))]
    return torch.tensor(digits), sum(digits) % 10


WAYS: dict[str, Callable[[int], None]] = {
    "block draw + pack (rnncls)": block_batches,
    "loop over samples, torch + collate": loop_with(torch_sample),
    "loop over samples, random + collate": loop_with(python_sample),
}


def main(
    rounds: Annotated[int, typer.Option()] = 15, count: Annotated[int, typer.Option()] = 512
) -> None:
    torch.set_num_threads(1)
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(rounds + 1):
        for name in random.sample(list(WAYS), len(WAYS)):
            started_at = time.perf_counter()
            WAYS[name](count)
            if turn:  # the first round warms up
                seconds[name].append((time.perf_counter() - started_at) / count)
    print(
        f"{platform.machine()}, torch {torch.__version__}, 1 thread, {rounds} rounds of {count} batches of {B}"
    )
    ours = seconds["block draw + pack (rnncls)"]
    for name, times in seconds.items():
        ratios = [theirs / our for theirs, our in zip(times, ours, strict=True)]
        spread = f"{statistics.median(ratios):5.1f}x ({min(ratios):.1f} to {max(ratios):.1f})"
        print(f"{name:<38} {1e6 * statistics.median(times):8.1f} us per batch   {spread}")


if __name__ == "__main__":
    typer.run(main)
