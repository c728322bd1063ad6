"""Make a real data set on any machine with Python: is a line code, a comment or in a docstring?

    python scripts/source_lines.py --output data/source_lines
    rnncls train --config configs/source_lines.yaml

The lines of the Python standard library, labelled by Python's own parser and tokenizer. Whole
source files go into the training, validation or test split, and of equal lines only the first is
kept, so no line of the test split was seen in training. Blank lines are left out.
"""

import ast
import io
import json
import sysconfig
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated
from zlib import crc32

import typer

SPLITS = ("train", "val", "test")
LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "lib2to3"}  # folders

WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def labelled_lines(source: str) -> list[tuple[str, str]]:
    """Return (line, label) of each line of a module that is not blank.

    Raises: SyntaxError or tokenize.TokenError if the source is not Python.
    """
    docstrings = docstring_lines(source)
    comments = comment_lines(source)

    labelled = []
    for number, line in enumerate(source.splitlines(keepends=True), 1):
        if not line.strip():
            continue
        if number in docstrings:
            label = "docstring"
        elif number in comments:
            label = "comment"
        else:
            label = "code"
        labelled.append((line.rstrip("\n"), label))
    return labelled


def docstring_lines(source: str) -> set[int]:
    """Return the numbers of all lines that belong to a docstring."""
    numbers: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node):
            docstring = node.body[0]
            last = docstring.end_lineno or docstring.lineno
            numbers |= set(range(docstring.lineno, last + 1))
    return numbers


def comment_lines(source: str) -> set[int]:
    """Return the numbers of all lines that are nothing but a comment."""
    numbers = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and token.line.lstrip()[0] == "#":
            numbers.add(token.start[0])
    return numbers


def split_of(path: Path) -> str:
    """Return the split of a file: one file in ten is for validation, one for the test."""
    digit = crc32(str(path).encode()) % 10
    return {0: "val", 1: "test"}.get(digit, "train")


def library_lines(files: int) -> Iterator[tuple[str, str, str]]:
    """Yield (split, line, label) of the lines of at most `files` files of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"))[:files]:
        inside = path.relative_to(library)
        if LEFT_OUT & set(inside.parts):
            continue

        try:
            labelled = labelled_lines(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
            continue

        for line, label in labelled:
            yield split_of(inside), line, label


def main(
    output: Annotated[Path, typer.Option()] = Path("data/source_lines"),
    files: Annotated[int, typer.Option(help="At most so many source files.")] = 10**6,
) -> None:
    """Write train.jsonl, val.jsonl and test.jsonl, and print the number of lines of each class."""
    output.mkdir(parents=True, exist_ok=True)
    streams = {name: (output / f"{name}.jsonl").open("w", encoding="utf-8") for name in SPLITS}
    counts = {name: Counter[str]() for name in SPLITS}

    seen: set[str] = set()
    for split, line, label in library_lines(files):
        if line in seen:
            continue
        seen.add(line)
        streams[split].write(json.dumps({"sequence": line, "label": label}) + "\n")
        counts[split][label] += 1

    for name, stream in streams.items():
        stream.close()
        print(f"{name}: {counts[name].total():,} lines: {dict(sorted(counts[name].items()))}")


if __name__ == "__main__":
    typer.run(main)
