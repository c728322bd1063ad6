"""Measure how fast a training step is, against textbook loops, PyTorch at its best, JAX and Keras.

    python -m scripts.bench                 every regime of this machine, all cells (an hour or two)
    python -m scripts.bench --regimes tutorial,tiny --cells rnn --rounds 5 --output bench.json
    python -m scripts.bench --regimes text --directions 2           both directions
    python -m scripts.bench --regimes "" --sequences 100000         eval and predict alone
    python -m scripts.bench --regimes "" --ingredients 5,10         noise, smoothing, repeats alone

A step is everything: making the batch, forward, backward, clipping, Adam. First each way that can
be fed our batches must give the losses of five steps in float64. Then the ways take turns in random
order, round by round, each in a process of its own. The figures are medians of rounds, and the
median of the per-round ratios with its 95 % bootstrap interval.

"packed" and "padded" are eager steps with that layout, "auto" and "eager" choose it. A name that
ends in 2 is that of a way with two threads; JAX and Keras take what they want. The cost of their
batches is not counted, and compilation is not in the rates. "Floor" is the arithmetic over real
tokens at the speed of products on one thread: torch's, of two 1024 x 1024 matrices, and that of
compiled steps. Memory: the peak of the process, and how far that is above what it had before the
first step. No timing is asserted.
"""

import json
import os
import platform
import signal
import tempfile
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from rnncls.system.device import set_precision
from scripts.bench.inference import inference_table, measure_inference
from scripts.bench.ingredients import ingredients_table, measure_ingredients
from scripts.bench.measuring import (
    Results,
    gate,
    measure,
    middle,
    missing,
    product_rates,
    ratio,
    ways,
)
from scripts.bench.regimes import CELLS, FOLDER, REGIMES, Regime, regime_of, write_file

STEPS_OF_INGREDIENTS = 200  # of each way in each round


def main(
    regimes: Annotated[str, typer.Option(help="Names, or all of this machine.")] = "all",
    cells: Annotated[str, typer.Option(help="Of rnn, gru and lstm.")] = ",".join(CELLS),
    directions: Annotated[str, typer.Option(help="1, 2, or 1,2 for both; of steps.")] = "1",
    rounds: Annotated[int, typer.Option()] = 10,
    seconds: Annotated[float, typer.Option(help="Of each way in each round.")] = 2.0,
    sequences: Annotated[int, typer.Option(help="That eval and predict get; 0 for neither.")] = 0,
    ingredients: Annotated[
        str, typer.Option(help="Longest lengths for the cost of state noise and its like.")
    ] = "",
    output: Annotated[Path | None, typer.Option(help="JSON file.")] = None,
    only: Annotated[str, typer.Option(help="Names of ways, beside the textbook's.")] = "",
) -> None:
    """Measure, and print tables in Markdown."""
    # SIGTERM raises KeyboardInterrupt as Ctrl-C does; then `measure` ends what it started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    numbers = [int(number) for number in directions.split(",")]
    if not {1, 2}.issuperset(numbers):
        raise typer.BadParameter("1, 2, or 1,2", param_hint="--directions")

    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    set_precision("float32")
    rates = product_rates()
    machine = describe_machine(rates)
    print(json.dumps(machine))

    report: dict[str, Any] = {"machine": machine, "regimes": {}}
    with tempfile.TemporaryDirectory() as folder:
        os.environ[FOLDER] = folder
        for name in here() if regimes == "all" else filter(None, regimes.split(",")):
            write_file(REGIMES[name])
            for cell, number in product(cells.split(","), numbers):
                regime = regime_of(name, cell, number)
                title = f"{name} {cell}" if number == 1 else f"{name} {cell}, two directions"
                report["regimes"][title] = one(title, regime, rounds, seconds, only, rates)

        if sequences:
            of_cells = {}
            for cell in cells.split(","):
                of_cells[cell] = measure_inference(cell, sequences, rounds, Path(folder))
            print("\n" + inference_table(of_cells, sequences), flush=True)
            report["inference"] = of_cells

    if ingredients:
        lengths = [int(longest) for longest in ingredients.split(",")]
        report["ingredients"] = costs_of_ingredients(cells.split(","), lengths, rounds)

    if len(report["regimes"]) > 1:
        print("\n" + overview(report["regimes"]))
    if output:
        output.write_text(json.dumps(report, indent=1))


def costs_of_ingredients(cells: list[str], lengths: list[int], rounds: int) -> dict[str, Any]:
    """Measure what the ingredients of length generalisation cost, and print a table."""
    costs = {}
    for cell, longest in product(cells, lengths):
        taken = measure_ingredients(cell, longest, rounds, STEPS_OF_INGREDIENTS)
        costs[f"{cell}, 1-{longest}"] = taken
    print("\n" + ingredients_table(costs), flush=True)
    return costs


def one(
    title: str, regime: Regime, rounds: int, seconds: float, only: str, rates: dict[str, float]
) -> dict[str, Any]:
    """Measure one regime with one cell, and print its table."""
    taken = list(ways(regime))
    if only:
        wanted = only.split(",")
        taken = [way for way in taken if way in wanted or way.startswith("textbook packed")]

    differences = gate(regime, taken)
    listed = ", ".join(f"{way} {value:.1e}" for way, value in differences.items())
    print(f"\n{title}: losses of 5 steps against float64: {listed}")
    limit = 1e-5 if regime.device == "cpu" else 1e-3
    if max(differences.values(), default=0.0) > limit:
        raise SystemExit(f"a way computes something else: relative difference above {limit}")

    results = measure(regime, taken, rounds, seconds)
    reasons = missing(regime)
    floors = {who: 1e6 * regime.gigaflop() / rate for who, rate in rates.items() if rate}
    print(table(title, regime, results, reasons, floors), flush=True)
    return {"gate": differences, "results": results, "missing": reasons, "floors_us": floors}


def table(
    title: str,
    regime: Regime,
    results: Results,
    reasons: dict[str, str],
    floors: dict[str, float],
) -> str:
    """Return the figures of a regime as a table in Markdown."""
    best = best_textbook(results)
    rates = " and ".join(f"{us:,.0f} us at the rate of {who}" for who, us in floors.items())
    lines = [
        f"**{title}** ({regime.described()}; floor {rates})",
        "",
        f"| way | us per step | against {best} (95 %) | against JAX | share of torch's floor "
        "| first step, s | peak, MiB | of that training |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, result in results.items():
        times, low, high = ratio(results[best]["us"], result["us"])
        against_jax = ""
        if "JAX" in results:
            against_jax = f"{ratio(results['JAX']['us'], result['us'])[0]:.2f}"

        cells = [
            f"{middle(results, way):,.1f}",
            f"{times:.2f} ({low:.2f} to {high:.2f})",
            against_jax,
            f"{floors['torch'] / middle(results, way):.0%}" if regime.device == "cpu" else "",
            f"{result['first_step_s']:.1f}",
            f"{result['cuda_mib'] or result['peak_mib']:,.0f}",
            f"{result['peak_mib'] - result['before_mib']:,.0f}",
        ]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    lines += [f"| {way} | not available: {reason} |||||||" for way, reason in reasons.items()]
    return "\n".join(lines)


def overview(regimes: dict[str, dict[str, Any]]) -> str:
    """Return the milliseconds per step of all ways in all regimes as a table in Markdown."""
    names: list[str] = []
    for regime in regimes.values():
        names += [way for way in regime["results"] if way not in names]

    lines = [f"| ms per step | {' | '.join(names)} | floor: torch | floor: rnncls |"]
    lines.append("|---" * (len(names) + 3) + "|")
    for name, regime in regimes.items():
        results = regime["results"]
        cells = [f"{middle(results, way) / 1e3:.3g}" if way in results else "" for way in names]
        floors = regime["floors_us"]
        cells += [
            f"{floors[who] / 1e3:.3g}" if who in floors else "" for who in ("torch", "rnncls")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def best_textbook(results: Results) -> str:
    """Return the name of the textbook loop that is fastest."""
    names = [way for way in results if way.startswith("textbook")]
    return min(names, key=lambda way: middle(results, way))


def here() -> list[str]:
    """Return the names of the regimes that this machine has a device for."""
    has_gpu = torch.cuda.is_available()
    return [name for name, regime in REGIMES.items() if regime.device == "cpu" or has_gpu]


def describe_machine(rates: dict[str, float]) -> dict[str, Any]:
    """Return what figures depend on: devices, versions, load, precision."""
    has_gpu = torch.cuda.is_available()
    return {
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "load": os.getloadavg()[0],
        "product_gflops": rates,
        "tf32": torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32,
    }


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    app()
