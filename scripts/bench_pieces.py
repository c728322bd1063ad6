"""Measure one step on long sequences: all states kept, computed again in pieces, or truncated.

    python -m scripts.bench_pieces                      rnn, gru and lstm at length 10,000
    python -m scripts.bench_pieces --cells rnn --length 100000 --rounds 1

Forward and backward of 16 sequences of one length, hidden 256, one thread. Each way is a process of
its own, and rounds take turns. Printed are the most memory that the process had, how much of it
beyond what it had with the batch before its first step, the median time, and the median of the
per-round ratios to the same step with all states kept. No timing is asserted. The memory is read
from /proc, which Linux alone has; what the C library keeps of freed memory is a part of it. All
states at length 10,000 take 0.7 GiB for the RNN and 2.4 for the LSTM, which are there at the same
time in several ways; --no-whole leaves them out, for longer sequences.
"""

import multiprocessing
import time
from statistics import median
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple, cast

import torch
import typer

from rnncls.config import Config
from rnncls.data import Batch, Task, collate
from rnncls.model.build import build_model
from rnncls.model.classifier import RNNClassifier
from rnncls.steps.objective import gradients_of_batch
from rnncls.system.process_memory import (
    forget_peak,
    peak_bytes,
    resident_bytes,
)

BATCH_SIZE = 16
HIDDEN_SIZE = 256
EVERY = 100
AFTER = 200

# Tokens of a step that comes first, so that all that torch imports and sets up late is there.
SHORT = 20


class Case(NamedTuple):
    """A step: the model, the length of its sequences, and how it is cut."""

    cell: str
    length: int
    recompute_every: int | None = None
    truncate_after: int | None = None
    objective: str = "sequence"
    pooling: str = "last"
    bidirectional: bool = False

    @property
    def name(self) -> str:
        """How the way of this case is called in the table."""
        parts = []
        if self.objective != "sequence":
            parts.append(self.objective)
        if self.pooling != "last":
            parts.append(self.pooling)
        if self.bidirectional:
            parts.append("two directions")
        if self.recompute_every is not None:
            parts.append(f"recompute_every {self.recompute_every}")
        if self.truncate_after is not None:
            parts.append(f"truncate_after {self.truncate_after}")
        return ", ".join(parts) or "sequence"


class Memory(NamedTuple):
    """The most memory of a process in MiB, and how much of it came with the steps."""

    process: float
    beyond: float


def cases_of(cell: str, length: int, whole: bool) -> list[Case]:
    """Return the ways of one cell that are compared."""
    shapes = [Case(cell, length), Case(cell, length, objective="prefix")]
    if cell == "rnn":
        shapes.append(Case(cell, length, pooling="last_mean_max"))
        shapes.append(Case(cell, length, bidirectional=True))

    cases = []
    for shape in shapes:
        if whole:
            cases.append(shape)
        cases.append(shape._replace(recompute_every=EVERY))
        cases.append(shape._replace(truncate_after=AFTER))
    return cases


# --- one step


class Step:
    """Forward and backward of a case on one batch."""

    def __init__(self, case: Case) -> None:
        torch.set_num_threads(1)
        # In as many ways as those that are measured, but hardly any memory.
        every = case.recompute_every and 2
        after = case.truncate_after and 5
        short = case._replace(length=SHORT, recompute_every=every, truncate_after=after)
        self.model = build_model(config_of(case))
        take(self.model, batch_of(short), config_of(short))

        self.config = config_of(case)
        self.batch = batch_of(case)

    def take(self) -> None:
        """Compute the gradients."""
        take(self.model, self.batch, self.config)


def take(model: RNNClassifier, batch: Batch, config: Config) -> None:
    """Compute the gradients of a batch as a run with this config does."""
    # Of a task, a step reads no more than that.
    task = cast(Task, SimpleNamespace(config=config, class_weights=None))
    model.zero_grad()
    gradients_of_batch(model, batch, task)


def config_of(case: Case) -> Config:
    """Return the config of a case."""
    return Config.model_validate(
        {
            "model": {
                "cell": case.cell,
                "hidden_size": HIDDEN_SIZE,
                "pooling": case.pooling,
                "bidirectional": case.bidirectional,
            },
            "train": {
                "objective": case.objective,
                "recompute_every": case.recompute_every,
                "truncate_after": case.truncate_after,
            },
            "device": "cpu",
        }
    )


def batch_of(case: Case) -> Batch:
    """Return random digits, all sequences of one length; as labels of prefixes the digits."""
    rows = list(torch.randint(10, (BATCH_SIZE, case.length)))
    batch = collate(rows, torch.randint(10, (BATCH_SIZE,)))
    if case.objective == "sequence":
        return batch
    return batch._replace(prefix_labels=batch.tokens.data.clone())


def memory_of(case: Case) -> Memory:
    """Take a step in this process, which should be a new one, and return its memory."""
    step = Step(case)
    before = begin_to_measure()
    step.take()
    return measured(before)


def begin_to_measure() -> float:
    """Forget the peak of this process so far; returns the MiB that it has now."""
    forget_peak()
    return resident_bytes() / 2**20


def measured(before: float) -> Memory:
    """Return the peak since `begin_to_measure`."""
    peak = peak_bytes() / 2**20
    return Memory(peak, peak - before)


# --- several ways, in turns


def compare(cases: list[Case], rounds: int) -> list[tuple[list[float], Memory]]:
    """Return the seconds of each round and the memory of each case, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    pipes = []
    processes = []
    try:
        for case in cases:
            pipe, other = context.Pipe()
            process = context.Process(target=_work, args=(other, case), daemon=True)
            process.start()
            other.close()
            pipe.recv()
            pipes.append(pipe)
            processes.append(process)

        seconds: list[list[float]] = [[] for _ in cases]
        for _ in range(rounds):
            for pipe, of_case in zip(pipes, seconds, strict=True):
                pipe.send(True)
                of_case.append(pipe.recv())

        memories = []
        for pipe in pipes:
            pipe.send(False)
            memories.append(pipe.recv())
    finally:
        for process in processes:
            process.kill()
    return list(zip(seconds, memories, strict=True))


def _work(pipe: Any, case: Case) -> None:
    """Take a step for each True that the pipe says, and say its seconds; then the memory."""
    step = Step(case)
    before = begin_to_measure()
    pipe.send(None)
    while pipe.recv():
        started_at = time.perf_counter()
        step.take()
        pipe.send(time.perf_counter() - started_at)
    pipe.send(measured(before))


def main(
    cells: Annotated[str, typer.Option(help="Some of rnn, gru and lstm.")] = "rnn,gru,lstm",
    length: Annotated[int, typer.Option(help="Tokens of each sequence.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=1)] = 5,
    whole: Annotated[bool, typer.Option(help="Also keep all states.")] = True,
) -> None:
    """Compare the ways of each cell and print a line for each."""
    print(f"B{BATCH_SIZE} H{HIDDEN_SIZE}, length {length:,}, torch {torch.__version__}, 1 thread")
    print("cell  way                                      process    beyond    time   ratio")
    for cell in cells.split(","):
        cases = cases_of(cell, length, whole)
        results = dict(zip(cases, compare(cases, rounds), strict=True))
        for case, (seconds, memory) in results.items():
            shown = "-"
            kept = results.get(case._replace(recompute_every=None, truncate_after=None))
            if kept is not None:
                ratios = [own / plain for own, plain in zip(seconds, kept[0], strict=True)]
                shown = f"{median(ratios):.2f}"
            print(
                f"{cell:<5} {case.name:<36} {memory.process:>6,.0f} MiB {memory.beyond:>5,.0f} MiB"
                f" {median(seconds):>6.1f}s  {shown:>6}",
                flush=True,
            )


if __name__ == "__main__":
    typer.run(main)
