"""Forward and backward of one nn.RNN layer over packed sequences, ours and torch's, as they grow longer.

    python scripts/bench_recurrence.py

B32 H64, all sequences of one length, one thread. Ours is linear in the length; torch's backward is quadratic. Medians
of interleaved rounds; no timing is asserted.
"""

import random
import time
from statistics import median
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from rnncls.model.recurrence import PackedRNN

B, H = 32, 64


def main(
    rounds: Annotated[int, typer.Option()] = 9, longest: Annotated[int, typer.Option()] = 1024
) -> None:
    torch.set_num_threads(1)
    ways = {"ours": PackedRNN(H, H), "torch": nn.RNN(H, H)}
    print("length   ours, us per token   torch, us per token   torch / ours")
    for length in (length for length in (16, 64, 256, 1024) if length <= longest):
        packed = pack_padded_sequence(torch.randn(length, B, H), torch.full((B,), length))
        us: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name in random.sample(list(ways), len(ways)):
                started_at = time.perf_counter()
                ways[name].zero_grad()
                ways[name](packed)[1].sum().backward()
                if turn:  # the first round warms up
                    us[name].append(1e6 * (time.perf_counter() - started_at) / length)
        own, stock = median(us["ours"]), median(us["torch"])
        ratio = median(theirs / our for theirs, our in zip(us["torch"], us["ours"], strict=True))
        print(f"{length:>6,} {own:>20.1f} {stock:>21.1f} {ratio:>14.2f}")


if __name__ == "__main__":
    typer.run(main)
