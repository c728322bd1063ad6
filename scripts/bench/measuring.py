"""Has the ways of training take turns, each in a process of its own, and measures them."""

import os
import random
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from rnncls.steps.engines import choose
from rnncls.system.device import set_precision
from scripts.bench.jax_ways import jax_losses, jax_scan
from scripts.bench.keras_ways import keras_loop
from scripts.bench.own_ways import OWN, losses_of, steps_of
from scripts.bench.regimes import Regime
from scripts.bench.torch_ways import Run, float64_losses, textbook, tuned

Results = dict[str, dict[str, Any]]


def ways(regime: Regime) -> dict[str, Callable[[], Run]]:
    """Return every way that can train a regime on this machine, by its name."""
    makers: dict[str, Callable[[], Run]] = {
        "textbook packed": lambda: with_threads(1, textbook(regime, packed=True)),
    }
    # In two directions, only what is packed gives the right answer.
    is_one_way = regime.directions == 1
    if is_one_way:
        makers["textbook padded"] = lambda: with_threads(1, textbook(regime, packed=False))
    # Bucketed, where packed steps of torch take a second, that would be more of the same.
    if not regime.bucketed:
        makers["textbook packed 2"] = lambda: with_threads(2, textbook(regime, packed=True))
        makers["stock packed"] = lambda: with_threads(1, tuned(regime, packed=True))
        if is_one_way:
            makers["stock padded"] = lambda: with_threads(1, tuned(regime, packed=False))

    for name, own in OWN.items():
        if not own.why_not(regime):
            # The names are bound here: a function in a loop would see those of the last round.
            makers[name] = lambda own=own: with_threads(own.threads, steps_of(own, regime))  # type: ignore[misc]
    if not _why_no_peer("jax", regime):
        makers["JAX"] = lambda: jax_scan(regime)
    if not _why_no_peer("keras", regime):
        makers["Keras"] = lambda: keras_loop(regime)
    return makers


def missing(regime: Regime) -> dict[str, str]:
    """Return the ways that cannot train a regime on this machine, and why."""
    reasons = {name: own.why_not(regime) for name, own in OWN.items()}
    reasons["JAX"] = _why_no_peer("jax", regime)
    reasons["Keras"] = _why_no_peer("keras", regime)
    return {name: reason for name, reason in reasons.items() if reason}


def _why_no_peer(package: str, regime: Regime) -> str:
    """Return the reason why a loop of another package cannot train a regime; "" if it can."""
    if regime.directions == 2:
        return "its loop here has one direction"
    return "" if find_spec(package) else f"{package} is not installed"


def with_threads(threads: int, run: Run) -> Run:
    """Return a loop that runs with so many threads of torch."""

    def threaded(steps: int) -> int:
        torch.set_num_threads(threads)
        return run(steps)

    return threaded


def gate(regime: Regime, chosen: list[str]) -> dict[str, float]:
    """Return by way how far the losses of five steps are from those of float64 on the same device.

    It is the largest relative difference. Ways with batches or weights of their own are left out.
    """
    batches = list(regime.task().batches(0, 5))
    expected = float64_losses(regime, batches)
    losses = {name: losses_of(OWN[name], regime) for name in chosen if name in OWN}
    if "JAX" in chosen:
        losses["JAX"] = jax_losses(regime, batches)

    differences = {}
    for name, own in losses.items():
        relative = [abs(a / b - 1) for a, b in zip(own, expected, strict=True)]
        differences[name] = max(relative)
    return differences


def measure(regime: Regime, chosen: list[str], rounds: int, seconds: float) -> Results:
    """Return for each way its microseconds per step, by round, its first step and its memory.

    Each way is a process of its own, so that none has another's threads and memory; all but one
    wait.
    """
    context = get_context("spawn")
    pipes: dict[str, Any] = {}
    processes = []
    results: Results = {}
    fixed = regime.steps_of_round
    try:
        for way in chosen:
            pipes[way], other = context.Pipe()
            process = context.Process(target=_work, args=(other, regime, way), daemon=True)
            process.start()
            processes.append(process)
            other.close()  # or a process that dies would leave the pipe open, and recv waiting
            results[way] = {"us": [], **pipes[way].recv()}

        steps = {}
        for way, pipe in pipes.items():
            if fixed:
                # With the first step that was taken already, a whole round.
                _take(pipe, fixed - 1)
                steps[way] = fixed
                continue
            _take(pipe, 16)  # a warm-up
            elapsed_s, done = _take(pipe, 16)
            steps[way] = max(1, int(seconds * done / elapsed_s))

        for _ in range(rounds):
            for way in random.sample(list(pipes), len(pipes)):
                elapsed_s, done = _take(pipes[way], steps[way])
                results[way]["us"].append(1e6 * elapsed_s / done)

        for way, pipe in pipes.items():
            results[way] |= _take(pipe, 0)
    finally:
        for process in processes:
            process.kill()
    return results


def _take(pipe: Any, steps: int) -> Any:
    """Have a way take so many steps: (seconds, steps done). For 0 it ends: its use of memory."""
    pipe.send(steps)
    return pipe.recv()


def _work(pipe: Any, regime: Regime, way: str) -> None:
    """Take as many steps as the pipe says, until it says 0. Runs in a process of its own."""
    set_precision("float32")  # for all alike: cuDNN would use TF32
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # or JAX would take most of a GPU

    # What is loaded once is not what training needs.
    if way in OWN:
        choose(OWN[way].config(regime), torch.device(regime.device))
    elif way == "JAX":
        import_module("jax").numpy.zeros(1).block_until_ready()

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _mebibytes("VmRSS")
    started_at = time.perf_counter()
    run = ways(regime)[way]()
    run(1)
    pipe.send({"first_step_s": time.perf_counter() - started_at, "before_mib": before})

    while steps := pipe.recv():
        started_at = time.perf_counter()
        done = run(steps)
        pipe.send((time.perf_counter() - started_at, done))
    pipe.send({"peak_mib": _mebibytes("VmHWM"), "cuda_mib": _cuda_mebibytes(way)})


def _cuda_mebibytes(way: str) -> float:
    """Return the most memory of the GPU that this way has used; 0 without one."""
    if not torch.cuda.is_available():
        return 0.0
    used = torch.cuda.max_memory_allocated()
    if way == "JAX":
        used = import_module("jax").devices()[0].memory_stats()["peak_bytes_in_use"]
    return used / 2**20


def _mebibytes(what: str) -> float:
    """Return a figure of this process's memory, as the kernel names it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def ratio(theirs: list[float], our: list[float]) -> tuple[float, float, float]:
    """Return the median of the per-round ratios and its 95 % interval by the bootstrap."""
    ratios = np.array(theirs) / np.array(our)
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, 1), [0.025, 0.975])
    return float(np.median(ratios)), float(low), float(high)


def product_rates() -> dict[str, float]:
    """Return the speed of float32 products on one thread of the CPU, in GF/s, by who makes them.

    "torch": 1024 x 1024 matrices. "rnncls": 64 x 256 by 256 x 256, as a compiled step has them; 0
    without Numba.
    """
    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    b = torch.randn(1024, 1024)
    rates = {"torch": _rate(lambda: a @ b, 2 * 1024**3, 10), "rnncls": 0.0}
    if find_spec("numba"):
        rates["rnncls"] = _rate_of_tiles()
    return rates


def _rate_of_tiles() -> float:
    """Return the speed of the products of compiled steps, in GF/s."""
    from rnncls.compiled.compiler import entry_point
    from rnncls.compiled.kernels import add_product

    left = np.ones((64, 256), np.float32)
    right = np.ones((256, 256), np.float32)
    out = np.zeros((64, 256), np.float32)

    add = entry_point(add_product)

    def product() -> None:
        add(out=out, out_row=0, left=left, left_row=0, right=right, rows=64)

    return _rate(product, 2 * 64 * 256**2, 100)


def _rate(product: Callable[[], object], flop: float, times: int) -> float:
    seconds = []
    for _ in range(times):
        started_at = time.perf_counter()
        product()
        seconds.append(time.perf_counter() - started_at)
    return flop / min(seconds) / 1e9


def middle(results: Results, way: str) -> float:
    """Return the median of a way's microseconds per step."""
    return float(median(results[way]["us"]))
