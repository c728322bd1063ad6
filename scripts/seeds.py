"""Train one config with several seeds and tabulate what came out: the numbers behind the README's results.

    python scripts/seeds.py --config configs/sum_mod_10.yaml --seeds 0-9 --lengths 1-5,50,100,500

Every seed is reported, also one that failed. The last checkpoint is evaluated: nothing is selected by test
accuracy. A length with few sequences is evaluated exhaustively (see `rnncls eval`). Runs are kept below --out, and
a seed that finished is not trained again, one that was stopped goes on, and one that diverged stays failed.
"""

import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Annotated, Any

import typer

from rnncls.cli import parse_ranges


def main(
    config: Annotated[Path, typer.Option()],
    seeds: Annotated[str, typer.Option(help="For example 0-9.")] = "0-9",
    lengths: Annotated[str, typer.Option(help="Test lengths.")] = "1-5,50,100,500",
    samples: Annotated[int, typer.Option(help="Sequences per length where not all.")] = 10_000,
    jobs: Annotated[int, typer.Option(help="Seeds trained at the same time.")] = 2,
    out: Annotated[Path, typer.Option(help="Where the runs are kept.")] = Path("runs/seeds"),
    override: Annotated[list[str] | None, typer.Option(help="section.key=value")] = None,
) -> None:
    numbers = [number - 1 for number in parse_ranges(",".join(_shifted(part) for part in seeds.split(",")))]
    tasks = [(config, seed, parse_ranges(lengths), samples, out, override or []) for seed in numbers]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(_one_seed, tasks))
    print(_table(rows, parse_ranges(lengths)))
    folder = out / config.stem
    (folder / "results.json").write_text(json.dumps(rows, indent=2))
    print(f"\n{folder / 'results.json'} has every count", file=sys.stderr)


def _shifted(part: str) -> str:
    """Seeds start at 0 and `parse_ranges` at 1."""
    return "-".join(str(int(bound) + 1) for bound in part.split("-"))


def _one_seed(task: tuple[Path, int, list[int], int, Path, list[str]]) -> dict[str, Any]:
    import rnncls
    from rnncls.checkpoint import find_newest, read_checkpoint, restore_model
    from rnncls.errors import NonFiniteError
    from rnncls.resume import resume
    from rnncls.rundir import read_status

    config_path, seed, lengths, samples, out, overrides = task
    config = rnncls.load_config(config_path, [*overrides, f"seed={seed}"])
    run_dir = out / config_path.stem / f"seed-{seed}"
    started_at = time.perf_counter()
    try:
        status = read_status(run_dir)
        if not run_dir.exists():
            rnncls.fit(config, run_dir)
        elif status.get("exit_code") == NonFiniteError.exit_code:
            return {"seed": seed, "failed": "not finite in an earlier call", "by_length": []}
        elif status.get("state") != "finished":
            resume(run_dir)
    except NonFiniteError as error:
        return {"seed": seed, "failed": str(error), "by_length": []}
    elapsed_s = time.perf_counter() - started_at
    model = restore_model(read_checkpoint(find_newest(run_dir)))
    report = rnncls.evaluate(model, config, lengths, samples)
    return {"seed": seed, "train_s": elapsed_s, **report.to_json()}


def _table(rows: list[dict[str, Any]], lengths: list[int]) -> str:
    lines = ["| seed | " + " | ".join(f"length {n}" for n in lengths) + " |", "|---" * (len(lengths) + 1) + "|"]
    accuracies: dict[int, list[float]] = {n: [] for n in lengths}
    for row in rows:
        found = {entry["length"]: entry for entry in row["by_length"]}
        cells = []
        for n in lengths:
            accuracies[n].append(found[n]["accuracy"] if n in found else 0.0)  # a run that failed counts as 0
            cells.append(f"{accuracies[n][-1]:.4f} ({found[n]['errors']})" if n in found else "failed")
        lines.append(f"| {row['seed']} | " + " | ".join(cells) + " |")
    for name, function in (("median", median), ("mean", mean), ("minimum", min)):
        lines.append(f"| {name} | " + " | ".join(f"{function(accuracies[n]):.4f}" for n in lengths) + " |")
    solved = " | ".join(f"{sum(a >= 0.99 for a in accuracies[n])}/{len(rows)}" for n in lengths)
    return "\n".join([*lines, f"| >= 99 % | {solved} |"])


if __name__ == "__main__":
    typer.run(main)
