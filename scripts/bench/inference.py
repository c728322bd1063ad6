"""How many sequences `rnncls eval` and `rnncls predict` take in a second, against a plain loop.

All are processes of their own, from their start to their end, on one thread, for the same file of
random sequences. What counts is processor time, which other programs on the machine hardly change.
"""

import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from statistics import median

from scripts.bench.regimes import write_sequences

LENGTHS = (1, 99)
NUM_TOKENS = 100
TRAINED = 2_000  # sequences of the file that the run has its vocabulary from

Seconds = dict[str, list[float]]


def measure_inference(cell: str, count: int, rounds: int, folder: Path) -> Seconds:
    """Return the processor seconds of each way for `count` sequences, by round.

    The model is E32 H128 with its initial weights, of one layer: it takes as long as another one.
    """
    few = folder / "few.jsonl"
    many = folder / "many.jsonl"
    write_sequences(few, TRAINED, *LENGTHS, NUM_TOKENS)
    write_sequences(many, count, *LENGTHS, NUM_TOKENS)
    run_dir = folder / cell

    config = folder / "config.yaml"
    config.write_text("data: {source: files, train: few.jsonl, tokens: ids}\n")
    overrides = ["model.embedding_dim=32", "model.hidden_size=128", f"model.cell={cell}"]
    overrides += ["train.max_steps=0", "train.engine=eager", "device=cpu"]
    if cell == "rnn":
        overrides.append("model.nonlinearity=tanh")
    _run(_rnncls("train", "--config", config, *overrides, "--run-dir", run_dir))

    loop = [sys.executable, "-m", "scripts.bench.plain_loop"]
    commands = {
        "eval": _rnncls("eval", run_dir, "--data", many),
        "predict": _rnncls("predict", run_dir, "--input", many, "--output", folder / "own.jsonl"),
        "plain loop": [*loop, str(run_dir), str(many), str(folder / "plain.jsonl")],
    }
    seconds: Seconds = {name: [] for name in commands}
    for _ in range(rounds):
        for name in random.sample(list(commands), len(commands)):
            before = _processor_seconds()
            _run(commands[name])
            seconds[name].append(_processor_seconds() - before)
    return seconds


def inference_table(seconds: dict[str, Seconds], count: int) -> str:
    """Return the figures of all cells as a table in Markdown."""
    lines = [
        f"**inference** (E32 H128 L1, {count:,} sequences of lengths {LENGTHS[0]}-{LENGTHS[1]}; "
        "from the start of the process to its end)",
        "",
        "| cell | way | sequences per processor second | against the plain loop |",
        "|---|---|---|---|",
    ]
    for cell, of_cell in seconds.items():
        for way, own in of_cell.items():
            pairs = zip(of_cell["plain loop"], own, strict=True)
            ratio = median(theirs / our for theirs, our in pairs)
            lines.append(f"| {cell} | {way} | {count / median(own):,.0f} | {ratio:.2f} |")
    return "\n".join(lines)


def _rnncls(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "rnncls", *map(str, words)]


def _run(command: list[str]) -> None:
    """Run a command on one thread. Raises: subprocess.CalledProcessError if it fails."""
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=own, check=True, capture_output=True)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
