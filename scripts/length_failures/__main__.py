"""Measure why trained runs go wrong on long sequences, and draw it.

    python -m scripts.length_failures RUN... --output DIR

RUN is a run directory, or a folder with some below it, such as a sweep's. Each has one nn.RNN layer
and the task sum_mod; its newest checkpoint is measured. DIR gets length_failures.json with every
number, and three pictures: margins, drift on zeros, and Lyapunov exponents. measuring.py has the
formulas. A run takes 10 to 30 s of one core.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from rnncls.system.files import write_atomically
from rnncls.system.pictures import write_png
from rnncls.system.rows import json_text
from rnncls.system.streams import say
from scripts.length_failures.pictures import drift_picture, exponents_picture, margins_picture
from scripts.length_failures.runs import measure, run_directories

NAME = "length_failures"


def main(
    runs: Annotated[list[Path], typer.Argument()],
    output: Annotated[Path, typer.Option()],
    sequences: Annotated[int, typer.Option(min=1, help="How many random sequences.")] = 200,
    length: Annotated[int, typer.Option(min=10, help="Their length.")] = 10_000,
    drift_length: Annotated[int, typer.Option(min=10, help="That of zeros.")] = 1000,
) -> None:
    """Measure all runs; print a line for each, and write the numbers and the pictures."""
    output.mkdir(parents=True, exist_ok=True)
    results = []
    for path in [each for given in runs for each in run_directories(given)]:
        result = measure(path, sequences, length, drift_length)
        results.append(result)
        say(line_of(result))
    if not results:
        raise typer.BadParameter("there is no run directory")

    write_atomically(output / f"{NAME}.json", json_text(results).encode())
    write_png(margins_picture(results), output / f"{NAME}_margins.png")
    write_png(drift_picture(results), output / f"{NAME}_drift.png")
    write_png(exponents_picture(results), output / f"{NAME}_exponents.png")
    say(f"numbers and pictures: {output}")


def line_of(result: dict[str, Any]) -> str:
    """Return the most telling numbers of a run."""
    margins = result["margins"]
    drift = result["drift"]
    exponents = result["exponents"]
    wrong = [f"{name} {each['ever_wrong']}/{each['sequences']}" for name, each in drift.items()]
    return (
        f"{result['setting']}, seed {result['seed']}: ever wrong random "
        f"{margins['ever_wrong']}/{margins['sequences']}, {', '.join(wrong)}; zeros end "
        f"{drift['zeros']['ends']}; leading exponent {exponents['random'][0]:+.3f}, on the first "
        f"zeros {exponents['first_zeros'][0]:+.3f}, later {exponents['zeros'][0]:+.3f}"
    )


if __name__ == "__main__":
    typer.run(main)
