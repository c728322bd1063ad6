"""Measure the cost of committing checkpoints: serialise, SHA-256, write, fsync, rename, fsync.

    python scripts/bench_checkpoint.py --config configs/sum_mod_10_plain.yaml

Trains the config as it is and prints the share of the run's time that went into saving, retention
and status included: the median of some rounds. Then prints what one save takes by the size of the
model. Results depend on the disk below the folder for temporary files (TMPDIR).
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from rnncls.config import Config, load_config, num_parameters, sizes
from rnncls.data import load_task
from rnncls.rundir.run_directory import RunDirectory
from rnncls.training.fit import fit

SIZES = (64, 256, 512, 1024)

# What a run calls in order to save.
SAVING = ("begin", "commit")


def timed_run(config: Config) -> tuple[float, list[float]]:
    """Return the seconds of a whole run, and of each call that saves something."""
    spent: list[float] = []

    def timed(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started_at = time.perf_counter()
            try:
                return original(*arguments)
            finally:
                spent.append(time.perf_counter() - started_at)

        return call

    originals = {name: getattr(RunDirectory, name) for name in SAVING}
    for name, original in originals.items():
        setattr(RunDirectory, name, timed(original))
    try:
        with tempfile.TemporaryDirectory() as folder:
            started_at = time.perf_counter()
            fit(config, Path(folder) / "run")
            return time.perf_counter() - started_at, spent
    finally:
        for name, original in originals.items():
            setattr(RunDirectory, name, original)


def main(
    config: Annotated[Path, typer.Option("--config", "-c")] = Path("configs/sum_mod_10_plain.yaml"),
    rounds: Annotated[int, typer.Option()] = 3,
) -> None:
    """Print the share of saving in a run, then milliseconds per save by model size."""
    timed_run(load_config(config, ["train.max_steps=2"]))  # what is imported late

    shares = []
    for _ in range(rounds):
        seconds, spent = timed_run(load_config(config, ["train.plots=false"]))
        saving_s = sum(spent)
        shares.append(saving_s / seconds)
        saving = f"{1000 * saving_s:.1f} ms of it saving: {shares[-1]:.2%}"
        print(f"{config}: {seconds:.2f} s, {saving}", flush=True)
    print(f"median share of saving over {rounds} rounds: {statistics.median(shares):.2%}")

    for hidden_size in SIZES:
        print(measure_size(config, hidden_size))


def measure_size(path: Path, hidden_size: int) -> str:
    """Train a model of this size for a few steps, save it 15 times, and return its figures."""
    config = load_config(
        path,
        [
            f"model.hidden_size={hidden_size}",
            "train.eval_samples=1",
            "train.max_steps=20",
            "train.checkpoint_every=1",
            "train.eval_every=100",
            "train.log_every=100",
        ],
    )
    times = []
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        state = fit(config, run_dir)
        for _ in range(15):
            started_at = time.perf_counter()
            checkpoint = RunDirectory(run_dir).save(state, load_task(config))
            times.append(time.perf_counter() - started_at)
        size_mb = checkpoint.stat().st_size / 1e6

    parameters = f"{num_parameters(config, *sizes(config)):,} parameters"
    median_ms = 1000 * statistics.median(times)
    return f"hidden_size {hidden_size}: {parameters}, {size_mb:.2f} MB, {median_ms:.1f} ms per save"


if __name__ == "__main__":
    typer.run(main)
