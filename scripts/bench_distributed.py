"""Measure training steps of several processes against one, and one under torchrun against none.

    python -m scripts.bench_distributed
    python -m scripts.bench_distributed --regime large --rounds 21
    python -m scripts.bench_distributed --pairs 15

Every way of a regime is started once and stays. Then they take steps in turn, round by round: the
ways of a round share what the machine is like just then. Printed are the median milliseconds of a
step, and the medians of the ratios within each round, with an interval of 95 % by bootstrap: how
many times as fast as eager steps of one process, and as the fastest of one process. `--pairs`
trains the default run with and without torchrun, one process each. No timing is asserted.

Processes that train together run on this machine and meet on a free port of it.
"""

import os
import platform
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Annotated, NamedTuple

import torch
import typer

from rnncls.config import Config, load_config
from rnncls.data import load_task
from rnncls.rundir.tables import TrainingTime, read_metrics
from rnncls.steps.engines import choose
from rnncls.system.launch import launch_of
from rnncls.system.meeting import joined
from rnncls.training.states import new_state
from scripts.bench_dashboard import interval_of

BASE = Path("configs/sum_mod_10_plain.yaml")

# The keys of each regime.
REGIMES: dict[str, list[str]] = {
    "large": [
        "data.min_length=20",
        "data.max_length=100",
        "train.batch_size=64",
        "model.hidden_size=256",
        "model.num_layers=3",
    ],
    "tiny": [],
}


class Way(NamedTuple):
    """One way of training."""

    engine: str
    processes: int = 1
    threads: int = 1

    def __str__(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.engine}, {processes} of {threads}"


WAYS = [
    Way("eager"),
    Way("compiled"),
    Way("compiled", threads=2),
    Way("eager", processes=2),
    Way("compiled", processes=2),
]

SECONDS = 1.0  # about, of each way in each round
MEETING_SECONDS = 900.0


# --- what runs in a process of its own


def config_of(regime: str, way: Way) -> Config:
    """Return the config of a regime whose steps are taken in this way, without end."""
    never = ["train.max_steps=1000000000", "train.log_every=1000000", "train.eval_every=1000000"]
    own = [f"train.engine={way.engine}", f"train.num_threads={way.threads}", "device=cpu"]
    return load_config(BASE, [*never, "train.checkpoint_every=1000000", *own, *REGIMES[regime]])


def work(regime: str, engine: str, threads: int) -> None:
    """Take as many steps as each line of stdin says, and print the seconds of one."""
    launch = launch_of()
    way = Way(engine, launch.size, threads)
    config = config_of(regime, way)
    with joined(launch, MEETING_SECONDS) as world:
        task = load_task(config)
        state = new_state(task)
        take_steps, _ = choose(config, state.device, world=world)
        steps = take_steps(state, task)
        while True:
            wanted = _next_count() if world is None else world.first(_next_count)
            if not wanted:
                return
            started_at = time.perf_counter()
            taken = 0
            while taken < wanted:
                taken += next(steps)
            print((time.perf_counter() - started_at) / taken, flush=True)


def _next_count() -> int:
    return int(sys.stdin.readline() or 0)


# --- what starts them


@contextmanager
def started(regime: str, way: Way) -> Iterator["subprocess.Popen[str]"]:
    """Start the processes of a way; the first of them takes orders."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    words = [sys.executable, "-m", "scripts.bench_distributed", "--work", regime, way.engine]
    words.append(str(way.threads))

    with ExitStack() as stack:
        processes = []
        for rank in range(way.processes):
            place = {
                "RANK": str(rank),
                "WORLD_SIZE": str(way.processes),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            # The first one is told how many steps to take, and says how long they took.
            process = subprocess.Popen(
                words,
                env={**os.environ, **place},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            stack.callback(process.kill)
            processes.append(process)
        yield processes[0]


def milliseconds(process: "subprocess.Popen[str]", steps: int) -> float:
    """Have a way take steps; return the milliseconds of one."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("a process without pipes")
    process.stdin.write(f"{steps}\n")
    process.stdin.flush()
    return 1e3 * float(process.stdout.readline())


def measure(regime: str, rounds: int) -> dict[Way, list[float]]:
    """Return the milliseconds of a step of each way in each round."""
    found: dict[Way, list[float]] = {way: [] for way in WAYS}
    with ExitStack() as stack:
        running = {way: stack.enter_context(started(regime, way)) for way in WAYS}
        counts = {}
        for way, process in running.items():
            # Compiles, and warms up.
            milliseconds(process, 2)
            counts[way] = max(2, int(1e3 * SECONDS / milliseconds(process, 5)))
        for _ in range(rounds):
            for way in random.sample(WAYS, len(WAYS)):
                found[way].append(milliseconds(running[way], counts[way]))
    return found


def show(regime: str, found: dict[Way, list[float]]) -> None:
    """Print a line for each way."""
    alone = [way for way in WAYS if way.processes == 1]
    best = min(alone, key=lambda way: median(found[way]))
    print(f"\n{regime}: {' '.join(REGIMES[regime]) or 'the default config'}")
    print(f"{'':<34}{'ms':>9}   {'times as fast as eager':<26}as the fastest of one process")
    for way, times in found.items():
        line = f"{way!s:<34}{median(times):9.3f}   {_faster(found[Way('eager')], times):<26}"
        print(line + ("(itself)" if way == best else _faster(found[best], times)), flush=True)


def _faster(others: list[float], own: list[float]) -> str:
    ratios = [other / mine for other, mine in zip(others, own, strict=True)]
    low, high = interval_of(ratios)
    return f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"


def under_torchrun(pairs: int) -> None:
    """Print what one process loses under torchrun, in steps and in CPU seconds of training."""
    alone = [sys.executable, "-m", "rnncls"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launched = [*torchrun, "--nproc-per-node", "1", "-m", "rnncls"]
    seconds: dict[str, list[float]] = {"alone": [], "torchrun": []}
    for _ in range(pairs):
        ways = {"alone": alone, "torchrun": launched}
        for name in random.sample(list(ways), len(ways)):
            seconds[name].append(_seconds_of_steps(ways[name]))
    ratios = [more / less for more, less in zip(seconds["torchrun"], seconds["alone"], strict=True)]
    low, high = interval_of(ratios)
    print(f"\none process under torchrun, steps of {BASE}: {median(ratios) - 1:+.1%} of their time")
    print(f"({low - 1:+.1%} to {high - 1:+.1%}, {pairs} pairs)")


def _seconds_of_steps(command: list[str]) -> float:
    """Train the default run without pictures; return the seconds of its steps."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        words = ["train", str(BASE), "train.plots=false", "--run-dir", str(run_dir)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([*command, *words], check=True, capture_output=True, env=environment)
        time_of_steps = TrainingTime(load_config(BASE).train.batch_size)
        for row in read_metrics(run_dir):
            time_of_steps.add(row)
        return time_of_steps.seconds or 0.0


def main(
    regime: Annotated[list[str] | None, typer.Option(help="large, tiny; both by default.")] = None,
    rounds: Annotated[int, typer.Option(min=1)] = 15,
    pairs: Annotated[int, typer.Option(help="Runs with and without torchrun.")] = 0,
    work_: Annotated[
        tuple[str, str, int] | None, typer.Option("--work", hidden=True, help="For itself.")
    ] = None,
) -> None:
    """Measure, and print a table for each regime."""
    if work_ is not None:
        work(*work_)
        return

    print(f"{_processor()}, {os.cpu_count()} cores; torch {torch.__version__}; {rounds} rounds")
    if not torch.cuda.is_available():
        print("There is no GPU: none was measured.")
    for name in regime or REGIMES:
        show(name, measure(name, rounds))
    if pairs:
        under_torchrun(pairs)


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.machine()
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
