"""RESULTS.md, from sweeps that this script runs, or goes on with, below runs/results.

    python -m scripts.reproduce                    everything: about an hour on two cores
    python -m scripts.reproduce --only ladder,T5   some of it; the others stay in RESULTS.md if their sweeps are there
    python -m scripts.reproduce --short            the same with two seeds and few steps, to see that it works

Nothing in RESULTS.md is typed by hand. Members that are done are not trained again.
"""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from rnncls.data import collate
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.restore import restore_model
from rnncls.sweep.plan import load_sweep
from rnncls.sweep.summary import summarize
from rnncls.system.files import write_atomically

TIMING = "timing.json"


@dataclass(frozen=True)
class Sweep:
    """One table of RESULTS.md."""

    title: str
    text: str
    config: str
    seeds: str
    lengths: str
    samples: int = 1000
    words: tuple[str, ...] = ()
    shown: tuple[int, ...] = ()  # lengths of the table
    structured: tuple[int, ...] = field(default=())  # lengths of sequences with a structure


RUNGS = ("baseline", "larger_batch", "larger_batch_lr", "deeper", "combined", "combined_warmup")
LADDER = {
    f"ladder-{rung}": Sweep(
        f"The ladder of a tutorial: {rung}",
        "tanh, PyTorch's own initialisation, trained on lengths 2-5. Lengths 2-5 are evaluated on every sequence.",
        f"configs/tutorial/{rung}.yaml",
        "0-19",
        "10",
        shown=(2, 3, 4, 5, 10),
    )
    for rung in RUNGS
}
SWEEPS = {
    "sum_mod_10": Sweep(
        "The default config",
        "Trained on lengths 1-5, which are evaluated on all 111,110 sequences; the others on 10,000 each.",
        "configs/sum_mod_10.yaml",
        "0-9",
        "50,100,500",
        10_000,
        shown=(1, 2, 3, 4, 5, 50, 100, 500),
    ),
    "parity": Sweep(
        "Parity",
        "N = 2, trained on lengths 1-10.",
        "configs/parity.yaml",
        "0-9",
        "100,2000",
        10_000,
        shown=(1, 5, 10, 100, 2000),
    ),
    **LADDER,
    "T5": Sweep(
        "T5: ten digits, trained on lengths 1-5, tested to 10,000",
        "Lengths 1-5 are evaluated on all 111,110 sequences, the others on 1,000 each. Width and learning rate were"
        " chosen with seeds 100-119 and the lengths 300 and 700.",
        "configs/length_generalisation.yaml",
        "0-63",
        "6,8,10,16,20,32,50,64,100,128,256,500,1000,2000,5000,10000",
        shown=(4, 5, 6, 10, 20, 50, 100, 256, 500, 1000, 2000, 5000, 10_000),
        structured=(100, 500, 1000),
    ),
    **{
        f"S10-{modulus}": Sweep(
            f"S10: N = {modulus}, trained on lengths 1-10",
            "One ReLU layer of 128, orthogonal, gain 0.3, weight decay 1, 20,000 steps.",
            "configs/length_generalisation.yaml",
            "0-19",
            "50,100,500",
            words=(
                f"data.modulus={modulus}",
                "data.max_length=10",
                "model.hidden_size=128",
                "optimizer.weight_decay=1.0",
            ),
            shown=(1, 5, 10, 50, 100, 500),
        )
        for modulus in (2, 3, 5, 10)
    },
    "nonlinearity": Sweep(
        "ReLU against tanh",
        "The default recipe with either.",
        "configs/sum_mod_10.yaml",
        "0-19",
        "50,100",
        words=("model.nonlinearity=relu,tanh",),
        shown=(3, 4, 5, 50, 100),
    ),
    "decay": Sweep(
        "Weight decay and initial gain",
        "The default recipe with other values of both.",
        "configs/sum_mod_10.yaml",
        "0-9",
        "50,100",
        words=("optimizer.weight_decay=0.0,0.1,0.3,1.0", "model.init_gain=0.3,1.0"),
        shown=(4, 5, 50, 100),
    ),
}


def command_of(name: str, sweep: Sweep, out: Path, short: bool) -> list[str]:
    """The command line of a sweep."""
    seeds, samples, words = sweep.seeds, sweep.samples, list(sweep.words)
    lengths = sweep.lengths
    if short:
        seeds, samples, lengths = "0-1", 20, "1-3,10"
        words += [
            "train.max_steps=20",
            "train.eval_samples=50",
            "schedule.warmup_steps=5",
            "model.hidden_size=16",
        ]
    words = [
        "--config",
        sweep.config,
        *words,
        "--seeds",
        seeds,
        "--lengths",
        lengths,
        "--samples",
        str(samples),
    ]
    return ["rnncls", "sweep", *words, "--sweep-dir", str(out / name)]


def section(name: str, sweep: Sweep, command: list[str], out: Path, short: bool) -> list[str]:
    """A sweep's part of RESULTS.md; empty while it has not ended."""
    if not (out / name / "summary.json").exists():
        return []
    summary = summarize(load_sweep(out / name)).to_json()
    if any(group["ended"] < group["members"] for group in summary["groups"]):
        return []
    lengths = [1, 2, 3, 10] if short else list(sweep.shown)
    lines = [f"## {sweep.title}", "", sweep.text, "", "```sh", shlex.join(command), "```", ""]
    lines.append(
        "| | members | not finite | at least 99 % | at least 99.9 % | 100 % | steps to 99.9 % | horizon |"
    )
    lines.append("|---|---|---|---|---|---|---|---|")
    for group in summary["groups"]:
        rates = [
            f"{found['count']} ({found['ci95'][0]:.2f} to {found['ci95'][1]:.2f})"
            for found in group["success"].values()
        ]
        solved = group["to_solved"]
        steps = (
            f"{solved['steps'] or 0:,.0f}" if solved["steps"] else f"{solved['reached']} reach it"
        )
        cells = [
            group["group"] or "all",
            str(group["members"]),
            str(group["diverged"]),
            *rates,
            steps,
            _horizon(group),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "| | " + " | ".join(f"length {n:,}" for n in lengths) + " |",
        "|---" * (len(lengths) + 1) + "|",
    ]
    for group in summary["groups"]:
        label = group["group"] + " " if group["group"] else ""
        by_length = {int(n): row for n, row in group["by_length"].items()}
        at = [by_length[n] for n in lengths if n in by_length]  # none where all members diverged
        for key, title in (("median", "median"), ("iqm", "inter-quartile mean"), ("min", "lowest")):
            lines.append(
                f"| {label}{title} | " + " | ".join(f"{row[key]:.4f}" for row in at) + " |"
            )
        lines.append(f"| {label}>= 99 % | " + " | ".join(_count(row, "0.99") for row in at) + " |")
        lines.append(f"| {label}100 % | " + " | ".join(_count(row, "1.0") for row in at) + " |")
    first = summary["groups"][0]["group"]
    for group in summary["groups"][1:]:
        p = group.get("p_against_first", {}).get("0.99")
        if p is not None:
            lines += [
                "",
                f"Fisher's exact test, {first} against {group['group']}, at 99 %: p = {p:.2g}.",
            ]
    seconds = [row["train_s"] for row in summary["members"] if row["train_s"]]
    timing = json.loads((out / name / TIMING).read_text())
    per_member = (
        f"{median(seconds):.1f} s of steps per member (median, beside another one), "
        if seconds
        else ""
    )
    lines += ["", f"{per_member}{timing['seconds']:,.0f} s in all on {timing['machine']}.", ""]
    if sweep.structured:
        lines += [*_structured(out / name, (10,) if short else sweep.structured), ""]
    return lines


def _horizon(group: dict[str, Any]) -> str:
    """Median and lowest; what reaches the longest length that was tested may go further."""
    found = group["horizon"]
    middle, lowest = (
        f"{'>= ' if found[key] == found['tested'] else ''}{found[key]:,.0f}"
        for key in ("median", "min")
    )
    return f"{middle}, lowest {lowest}"


def _count(row: dict[str, Any], level: str) -> str:
    return f"{row['success'][level]['count']}/{row['success'][level]['of']}"


def _structured(folder: Path, lengths: tuple[int, ...]) -> list[str]:
    """How many members answer sequences with a structure, which random ones are not like."""
    sweep = load_sweep(folder)
    top, modulus = 9, 10
    kinds: dict[str, Any] = {
        "all zeros": lambda n: torch.zeros(n, dtype=torch.int64),
        "all nines": lambda n: torch.full((n,), top),
        "one 7, then zeros": lambda n: torch.tensor([7] + [0] * (n - 1)),
        "0 and 9 in turns": lambda n: torch.arange(n) % 2 * top,
        "counting": lambda n: torch.arange(n) % modulus,
    }
    right = {(kind, n): 0 for kind in kinds for n in lengths}
    for member in sweep.members:
        model = restore_model(read_checkpoint(find_newest(sweep.run_dir(member))))
        for kind, n in right:
            tokens = kinds[kind](n)
            with torch.no_grad():
                said = int(model(collate([tokens], torch.zeros(1)).tokens).argmax())
            right[kind, n] += said == int(tokens.sum()) % modulus
    lines = ["Sequences with a structure; members that are right:", ""]
    lines.append("| | " + " | ".join(f"length {n:,}" for n in lengths) + " |")
    lines.append("|---" * (len(lengths) + 1) + "|")
    for kind in kinds:
        cells = [f"{right[kind, n]}/{len(sweep.members)}" for n in lengths]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    return lines


def main(
    only: Annotated[str, typer.Option(help="Names of sweeps to run, or beginnings of them.")] = "",
    short: Annotated[bool, typer.Option("--short", help="Two seeds, few steps.")] = False,
    out: Annotated[Path, typer.Option(help="Where the sweeps are kept.")] = Path("runs/results"),
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("RESULTS.md"),
) -> None:
    """Run the sweeps and write RESULTS.md."""
    wanted = tuple(only.split(",")) if only else ("",)
    lines = [
        "# Results",
        "",
        "Written by `python -m scripts.reproduce` from the sweeps it runs; nothing is typed by hand. Every seed",
        "counts, also one that failed; the last checkpoint of each is evaluated; nothing is selected by test accuracy.",
        "Labels are of whole sequences. Success is by the mean accuracy over the training lengths; intervals are",
        "Wilson's, 95 %; steps to 99.9 % are the median over all members, those that never get there counted as later",
        "than all others; the horizon is the largest evaluated length up to which all are at least 99.9 %.",
        "",
    ]
    for name, sweep in SWEEPS.items():
        command = command_of(name, sweep, out, short)
        if name.startswith(wanted):
            started_at = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-m", *command], stdout=subprocess.DEVNULL, check=False
            )
            if done.returncode:
                print(
                    f"{name}: exit code {done.returncode}; {output} is as it was", file=sys.stderr
                )
                raise SystemExit(done.returncode)
            _note_time(out / name, time.perf_counter() - started_at)
        lines += section(name, sweep, command, out, short)
    write_atomically(output, ("\n".join(lines).rstrip() + "\n").encode())
    print(f"wrote {output}")


def _note_time(folder: Path, seconds: float) -> None:
    """What this call took, if it was the first; the later ones train nothing."""
    path = folder / TIMING
    if not path.exists():
        path.write_text(json.dumps({"seconds": seconds, "machine": machine()}))


def machine() -> str:
    """Processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    cores = len(os.sched_getaffinity(0))
    processor = min(names, default=platform.machine())
    return f"{cores} cores of {processor}, torch {torch.__version__}, Python {platform.python_version()}"


if __name__ == "__main__":
    typer.run(main)
