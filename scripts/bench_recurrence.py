"""Measure forward and backward of one nn.RNN layer over packed sequences, ours and torch's.

    python scripts/bench_recurrence.py

B32 H64, all sequences of one length, one thread. The time of ours grows linearly with the length,
that of torch's backward quadratically. Medians of interleaved rounds; no timing is asserted.
"""

import random
import time
from statistics import median
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from rnncls.model.recurrence import PackedRNN

B = 32
H = 64
LENGTHS = (16, 64, 256, 1024)


def measure(length: int, ways: dict[str, nn.Module], rounds: int) -> dict[str, list[float]]:
    """Return the microseconds per token of each way, by round."""
    inputs = torch.randn(length, B, H)
    packed = pack_padded_sequence(inputs, torch.full((B,), length))

    us: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in random.sample(list(ways), len(ways)):
            started_at = time.perf_counter()
            step(ways[name], packed)
            if turn:  # the first round warms up
                us[name].append(1e6 * (time.perf_counter() - started_at) / length)
    return us


def step(layer: nn.Module, packed: PackedSequence) -> None:
    """Go forward and backward once."""
    layer.zero_grad()
    _, last_hidden = layer(packed)
    last_hidden.sum().backward()


def main(
    rounds: Annotated[int, typer.Option()] = 9, longest: Annotated[int, typer.Option()] = 1024
) -> None:
    """Measure both for each length and print a line for it."""
    torch.set_num_threads(1)
    ways: dict[str, nn.Module] = {"ours": PackedRNN(H, H), "torch": nn.RNN(H, H)}

    print("length   ours, us per token   torch, us per token   torch / ours")
    for length in LENGTHS:
        if length > longest:
            break
        us = measure(length, ways, rounds)
        own = median(us["ours"])
        stock = median(us["torch"])
        ratio = median(theirs / our for theirs, our in zip(us["torch"], us["ours"], strict=True))
        print(f"{length:>6,} {own:>20.1f} {stock:>21.1f} {ratio:>14.2f}")


if __name__ == "__main__":
    typer.run(main)
