"""What committing checkpoints costs: serialise, SHA-256, write, fsync, rename, fsync, retention, status.

    python scripts/bench_checkpoint.py --config configs/sum_mod_10.yaml

Trains the config as it is and prints the share of the run's time that went into saving, the median of some rounds, and
what one save takes by the size of the model. Results depend on the disk below the folder for temporary files (TMPDIR).
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
SAVING = ("begin", "commit")


def timed_run(config: Config) -> tuple[float, list[float]]:
    """Seconds of a whole run, and of each call that saves something."""
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
    config: Annotated[Path, typer.Option("--config", "-c")] = Path("configs/sum_mod_10.yaml"),
    rounds: Annotated[int, typer.Option()] = 3,
) -> None:
    """Print the share of saving in a run, then milliseconds per save by model size."""
    loaded = load_config(config)
    timed_run(load_config(config, ["train.max_steps=2"]))  # what is imported late
    shares = []
    for _ in range(rounds):
        seconds, spent = timed_run(loaded)
        shares.append(sum(spent) / seconds)
        print(
            f"{config}: {seconds:.2f} s, {1000 * sum(spent):.1f} ms of it saving: {shares[-1]:.2%}",
            flush=True,
        )
    print(f"median share of saving over {rounds} rounds: {statistics.median(shares):.2%}")
    for hidden_size in SIZES:
        every = [
            "train.max_steps=20",
            "train.checkpoint_every=1",
            "train.eval_every=100",
            "train.log_every=100",
        ]
        sized = load_config(
            config, [f"model.hidden_size={hidden_size}", "train.eval_samples=1", *every]
        )
        times = []
        with tempfile.TemporaryDirectory() as folder:
            state = fit(sized, Path(folder) / "run")
            for _ in range(15):
                started_at = time.perf_counter()
                path = RunDirectory(Path(folder) / "run").save(state, load_task(sized))
                times.append(time.perf_counter() - started_at)
            size = path.stat().st_size
        median = 1000 * statistics.median(times)
        parameters = f"{num_parameters(sized, *sizes(sized)):,} parameters"
        print(
            f"hidden_size {hidden_size}: {parameters}, {size / 1e6:.2f} MB, {median:.1f} ms per save"
        )


if __name__ == "__main__":
    typer.run(main)
