"""Write the built-in task as files, to show that training from files gives the same accuracy.

    python scripts/digits.py --output data/digits
    rnncls train --config configs/digits_from_files.yaml

train.jsonl and val.jsonl are random sequences of 1 to 5 digits with their sum mod 10; test.jsonl is
every such sequence.
"""

import json
import random
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

LONGEST = 5
VALIDATION_ROWS = 5000


def main(
    output: Annotated[Path, typer.Option()] = Path("data/digits"),
    rows: Annotated[int, typer.Option()] = 200_000,
) -> None:
    """Write the three files."""
    rng = random.Random(0)
    drawn = [random_sequence(rng) for _ in range(rows + VALIDATION_ROWS)]

    every: list[list[int]] = []
    for length in range(1, LONGEST + 1):
        every += map(list, product(range(10), repeat=length))

    output.mkdir(parents=True, exist_ok=True)
    write(output / "train.jsonl", drawn[:rows])
    write(output / "val.jsonl", drawn[rows:])
    write(output / "test.jsonl", every)


def random_sequence(rng: random.Random) -> list[int]:
    """Return 1 to LONGEST random digits."""
    length = rng.randint(1, LONGEST)
    return rng.choices(range(10), k=length)


def write(path: Path, sequences: list[list[int]]) -> None:
    """Write one line per sequence, with its sum mod 10 as label."""
    path.write_text("\n".join(json_lines(sequences)) + "\n")
    print(f"{path.stem}: {len(sequences):,} sequences")


def json_lines(sequences: list[list[int]]) -> Iterable[str]:
    """Yield the lines of a file."""
    for digits in sequences:
        yield json.dumps({"sequence": digits, "label": sum(digits) % 10})


if __name__ == "__main__":
    typer.run(main)
