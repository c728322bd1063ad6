"""Write RESULTS.md from sweeps that this script runs, or resumes, below runs/results.

    python -m scripts.reproduce                    everything: about an hour on two cores
    python -m scripts.reproduce --only ladder,T5   some of it; the others stay in RESULTS.md if
                                                   their sweeps are there
    python -m scripts.reproduce --short            the same with two seeds and few steps, as a test

Nothing in RESULTS.md is typed by hand. Members that have finished are not trained again.
"""

import json
import platform
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from rnncls.data import collate
from rnncls.rundir.checkpoint import read_checkpoint
from rnncls.rundir.checkpoint_files import find_newest
from rnncls.rundir.restore import restore_model
from rnncls.sweep.outcomes import Outcome
from rnncls.sweep.plan import load_sweep
from rnncls.sweep.summary import HorizonStatistics, Setting, Statistics, SuccessRate, summarize
from rnncls.system.files import write_atomically
from rnncls.system.machine import usable_cores

TIMING = "timing.json"


@dataclass(frozen=True)
class Sweep:
    """One section of RESULTS.md: its words, and the command line of its sweep."""

    title: str
    text: str
    config: str
    seeds: str
    lengths: str
    samples: int = 1000
    words: tuple[str, ...] = ()  # overrides, and lists of values
    shown: tuple[int, ...] = ()  # lengths of the table
    structured: tuple[int, ...] = ()  # lengths of sequences with a structure


# What the short form changes in every config.
SHORT = (
    "train.max_steps=20",
    "train.eval_samples=50",
    "schedule.warmup_steps=5",
    "model.hidden_size=16",
)

RUNGS = ("baseline", "larger_batch", "larger_batch_lr", "deeper", "combined", "combined_warmup")
LADDER = {
    f"ladder-{rung}": Sweep(
        f"The ladder of a tutorial: {rung}",
        "tanh, PyTorch's own initialisation, trained on lengths 2-5."
        " Lengths 2-5 are evaluated on every sequence.",
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
        "Trained on lengths 1-5, which are evaluated on all 111,110 sequences;"
        " the others on 10,000 each.",
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
        "Lengths 1-5 are evaluated on all 111,110 sequences, the others on 1,000 each. Width and"
        " learning rate were chosen with seeds 100-119 and the lengths 300 and 700.",
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
    """Return the command line of a sweep."""
    seeds = "0-1" if short else sweep.seeds
    lengths = "1-3,10" if short else sweep.lengths
    samples = 20 if short else sweep.samples
    words = [*sweep.words, *(SHORT if short else ())]

    command = ["rnncls", "sweep", "--config", sweep.config, *words]
    command += ["--seeds", seeds, "--lengths", lengths, "--samples", str(samples)]
    return [*command, "--sweep-dir", str(out / name)]


# --- a section of RESULTS.md


def section(name: str, sweep: Sweep, command: list[str], out: Path, short: bool) -> list[str]:
    """Return the lines of a sweep's section; none while its members have not all ended."""
    if not (out / name / "summary.json").exists():
        return []
    summary = summarize(load_sweep(out / name))
    if any(setting.ended < setting.members for setting in summary.settings):
        return []

    lengths = [1, 2, 3, 10] if short else list(sweep.shown)
    lines = [f"## {sweep.title}", "", sweep.text, "", "```sh", shlex.join(command), "```", ""]
    lines += _success_table(summary.settings)
    lines += ["", *_length_table(summary.settings, lengths)]
    lines += _significance(summary.settings)
    lines += ["", _cost(summary.outcomes, out / name), ""]
    if sweep.structured:
        structured = (10,) if short else sweep.structured
        lines += [*_structured_table(out / name, structured), ""]
    return lines


def _success_table(settings: list[Setting]) -> list[str]:
    """Return a row per setting: how many members succeed, how soon, and up to what length."""
    lines = [
        "| | members | not finite | at least 99 % | at least 99.9 % | 100 % | steps to 99.9 % "
        "| horizon |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for setting in settings:
        statistics = _statistics(setting)
        rates = []
        for success in statistics.success.values():
            low, high = success.ci95
            rates.append(f"{success.count} ({low:.2f} to {high:.2f})")

        solved = statistics.to_solved
        steps = f"{solved.reached} reach it"
        if solved.steps:
            steps = f"{solved.steps:,.0f}"

        name = setting.name or "all"
        counts = [str(setting.members), str(statistics.diverged)]
        lines.append(_row([name, *counts, *rates, steps, _horizon(statistics.horizon)]))
    return lines


def _length_table(settings: list[Setting], lengths: list[int]) -> list[str]:
    """Return rows of each setting: accuracies over its members by length, and how many succeed."""
    lines = _header(lengths)
    for setting in settings:
        label = f"{setting.name} " if setting.name else ""
        by_length = _statistics(setting).by_length
        at = [by_length[n] for n in lengths if n in by_length]  # none where all members diverged

        lines.append(_row([f"{label}median", *(f"{length.median:.4f}" for length in at)]))
        lines.append(_row([f"{label}inter-quartile mean", *(f"{length.iqm:.4f}" for length in at)]))
        lines.append(_row([f"{label}lowest", *(f"{length.min:.4f}" for length in at)]))
        lines.append(_row([f"{label}>= 99 %", *(_count(length.success[0.99]) for length in at)]))
        lines.append(_row([f"{label}100 %", *(_count(length.success[1.0]) for length in at)]))
    return lines


def _statistics(setting: Setting) -> Statistics:
    """Return the statistics of a setting whose members have all ended."""
    assert setting.statistics is not None
    return setting.statistics


def _significance(settings: list[Setting]) -> list[str]:
    """Return a line for each setting after the first, where the two were compared."""
    lines = []
    first = settings[0].name
    for setting in settings[1:]:
        p = setting.p_against_first[0.99] if setting.p_against_first else None
        if p is not None:
            against = f"{first} against {setting.name}"
            lines += ["", f"Fisher's exact test, {against}, at 99 %: p = {p:.2g}."]
    return lines


def _cost(outcomes: list[Outcome], folder: Path) -> str:
    """Return a line on the time that the sweep took."""
    per_member = ""
    seconds = [outcome.train_s for outcome in outcomes if outcome.train_s]
    if seconds:
        per_member = f"{median(seconds):.1f} s of steps per member (median, beside another one), "

    timing = json.loads((folder / TIMING).read_text())
    return f"{per_member}{timing['seconds']:,.0f} s in all on {timing['machine']}."


def _structured_table(folder: Path, lengths: tuple[int, ...]) -> list[str]:
    """Return a row per kind of structure: how many members answer such sequences rightly.

    Random sequences, on which the members were trained, are never like these.
    """
    sweep = load_sweep(folder)
    top = 9
    modulus = 10
    kinds: dict[str, Any] = {
        "all zeros": lambda n: torch.zeros(n, dtype=torch.int64),
        "all nines": lambda n: torch.full((n,), top),
        "one 7, then zeros": lambda n: torch.tensor([7] + [0] * (n - 1)),
        "0 and 9 in turns": lambda n: torch.arange(n) % 2 * top,
        "counting": lambda n: torch.arange(n) % modulus,
    }

    right = Counter[tuple[str, int]]()
    for member in sweep.members:
        model = restore_model(read_checkpoint(find_newest(sweep.run_dir(member))))
        for kind, n in product(kinds, lengths):
            tokens = kinds[kind](n)
            with torch.no_grad():
                answer = int(model(collate([tokens], torch.zeros(1)).tokens).argmax())
            right[kind, n] += answer == int(tokens.sum()) % modulus

    lines = ["Sequences with a structure; members that are right:", "", *_header(lengths)]
    for kind in kinds:
        counts = [f"{right[kind, n]}/{len(sweep.members)}" for n in lengths]
        lines.append(_row([kind, *counts]))
    return lines


def _header(lengths: Sequence[int]) -> list[str]:
    """Return the head of a table with a column for each length."""
    titles = [f"length {n:,}" for n in lengths]
    return [f"| | {' | '.join(titles)} |", "|---" * (len(lengths) + 1) + "|"]


def _row(cells: list[str]) -> str:
    """Return a row of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def _horizon(horizon: HorizonStatistics) -> str:
    """Return the median and the lowest horizon of a setting.

    A horizon that is the longest length tested may in truth be longer.
    """
    texts = []
    for length in (horizon.median, horizon.min):
        at_least = ">= " if length == horizon.tested else ""
        texts.append(f"{at_least}{length:,.0f}")
    return ", lowest ".join(texts)


def _count(success: SuccessRate) -> str:
    """Return how many members succeed, of how many."""
    return f"{success.count}/{success.of}"


# --- the whole file

HEAD = """# Results

Written by `python -m scripts.reproduce` from the sweeps it runs; nothing is typed by hand. Every
seed counts, also one that failed; the last checkpoint of each is evaluated; nothing is selected
by test accuracy. Labels are of whole sequences. Success is by the mean accuracy over the
training lengths; intervals are Wilson's, 95 %; steps to 99.9 % are the median over all members,
those that never get there counted as later than all others; the horizon is the largest evaluated
length up to which all are at least 99.9 %.
"""


def main(
    only: Annotated[str, typer.Option(help="Names of sweeps to run, or beginnings of them.")] = "",
    short: Annotated[bool, typer.Option("--short", help="Two seeds, few steps.")] = False,
    out: Annotated[Path, typer.Option(help="Where the sweeps are kept.")] = Path("runs/results"),
    output: Annotated[Path, typer.Option(help="The file to write.")] = Path("RESULTS.md"),
) -> None:
    """Run the sweeps and write RESULTS.md."""
    # SIGTERM raises KeyboardInterrupt as Ctrl-C does; then subprocess.run kills what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    wanted = tuple(only.split(",")) if only else ("",)
    lines = [*HEAD.splitlines(), ""]
    for name, sweep in SWEEPS.items():
        command = command_of(name, sweep, out, short)
        if name.startswith(wanted):
            exit_code = run(command, out / name)
            if exit_code:
                print(f"{name}: exit code {exit_code}; {output} is unchanged", file=sys.stderr)
                raise SystemExit(exit_code)
        lines += section(name, sweep, command, out, short)

    write_atomically(output, ("\n".join(lines).rstrip() + "\n").encode())
    print(f"wrote {output}")


def run(command: list[str], folder: Path) -> int:
    """Run or resume a sweep, note how long that took, and return its exit code."""
    started_at = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, check=False)
    seconds = time.perf_counter() - started_at

    # Only the first call counts: the later ones train nothing.
    timing = folder / TIMING
    if done.returncode == 0 and not timing.exists():
        timing.write_text(json.dumps({"seconds": seconds, "machine": machine()}))
    return done.returncode


def machine() -> str:
    """Return processor, cores and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    processor = min(names, default=platform.machine())

    cores = usable_cores()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{cores} cores of {processor}, {versions}"


if __name__ == "__main__":
    typer.run(main)
