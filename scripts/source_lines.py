"""A real data set from what every machine with Python has: is this line code, a comment or part of a docstring?

    python scripts/source_lines.py --output data/source_lines
    rnncls train --config configs/source_lines.yaml

The lines of the Python standard library, labelled by Python's own parser and tokenizer. Whole source files go into the
training, validation or test split, and of equal lines only the first is kept, so no line of the test was seen in
training. Blank lines are left out.
"""

import ast
import io
import json
import sysconfig
import tokenize
from collections import Counter
from pathlib import Path
from typing import Annotated
from zlib import crc32

import typer


def labelled_lines(source: str) -> list[tuple[str, str]]:
    """(line, label) of a module. Raises SyntaxError for what is no Python."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(
            node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        ) and ast.get_docstring(node):
            first = node.body[0]
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {
        token.start[0]
        for token in tokens
        if token.type == tokenize.COMMENT and token.line.lstrip()[0] == "#"
    }
    labelled = []
    for number, line in enumerate(source.splitlines(keepends=True), 1):
        if line.strip():
            label = (
                "docstring" if number in docstrings else "comment" if number in comments else "code"
            )
            labelled.append((line.rstrip("\n"), label))
    return labelled


def split_of(path: Path) -> str:
    """One file in ten for validation, one for the test."""
    return {0: "val", 1: "test"}.get(crc32(str(path).encode()) % 10, "train")


def main(
    output: Annotated[Path, typer.Option()] = Path("data/source_lines"),
    files: Annotated[int, typer.Option(help="At most so many source files.")] = 10**6,
) -> None:
    """Write train.jsonl, val.jsonl and test.jsonl, and print how many lines of each class they have."""
    library = Path(sysconfig.get_path("stdlib"))
    output.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    counts = {name: Counter[str]() for name in ("train", "val", "test")}
    streams = {name: (output / f"{name}.jsonl").open("w", encoding="utf-8") for name in counts}
    for path in sorted(library.rglob("*.py"))[:files]:
        inside = path.relative_to(library)
        if {"site-packages", "test", "tests", "idle_test", "lib2to3"} & set(inside.parts):
            continue
        try:
            labelled = labelled_lines(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            continue
        for line, label in labelled:
            if line not in seen:
                seen.add(line)
                streams[split_of(inside)].write(
                    json.dumps({"sequence": line, "label": label}) + "\n"
                )
                counts[split_of(inside)][label] += 1
    for name, stream in streams.items():
        stream.close()
        print(f"{name}: {counts[name].total():,} lines: {dict(sorted(counts[name].items()))}")


if __name__ == "__main__":
    typer.run(main)
