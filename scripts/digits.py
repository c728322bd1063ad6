"""The built-in task as files, to show that files train as well as it does.

    python scripts/digits.py --output data/digits
    rnncls train --config configs/digits_from_files.yaml

train.jsonl and val.jsonl are random sequences of 1 to 5 digits with their sum mod 10; test.jsonl is every such
sequence.
"""

import json
import random
from itertools import product
from pathlib import Path
from typing import Annotated

import typer


def main(
    output: Annotated[Path, typer.Option()] = Path("data/digits"),
    rows: Annotated[int, typer.Option()] = 200_000,
) -> None:
    """Write the three files."""
    rng = random.Random(0)
    drawn = [rng.choices(range(10), k=rng.randint(1, 5)) for _ in range(rows + 5000)]
    every = [list(digits) for length in range(1, 6) for digits in product(range(10), repeat=length)]
    output.mkdir(parents=True, exist_ok=True)
    for name, sequences in {"train": drawn[:rows], "val": drawn[rows:], "test": every}.items():
        lines = (
            json.dumps({"sequence": digits, "label": sum(digits) % 10}) for digits in sequences
        )
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
        print(f"{name}: {len(sequences):,} sequences")


if __name__ == "__main__":
    typer.run(main)
