"""Make five real data sets of different kinds, on any machine with the packages of development.

    pip install -e '.[dev,bench]'
    python -m scripts.text_sets --output data/text

- `texts`, words: 30 to 100 words of a docstring. Which package is it from?
- `words`, characters: a name that some language or program has built in, as Pygments lists them.
  Which language is it?
- `code`, characters: 50 to 300 characters of lines of code without comments. Which
  package is it from, or, if it is not Python, which language is it?
- `functions`, ids: the opcodes of a function of Python's library; scripts/stdlib_sets.py has them.
- `pixels`, ids: the 64 pixels of a written digit, 0 to 16 each, row by row. Which digit is it?

Each set is three tables, train.csv, val.csv and test.csv, with the columns `text` and `label`; ids
stand in their cells as `3 1 2`. A source file goes as a whole into one of them, or in `functions`
each class and function of a module. Of equal sequences only the first is kept, and in `words` none
that two languages have. The sets depend on the versions of Python and of the packages, and on
nothing else.
"""

import ast
import csv
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Annotated, NamedTuple
from zlib import crc32

import typer

from scripts import stdlib_sets
from scripts.source_lines import LEFT_OUT, SPLITS

# What torch, matplotlib, scikit-learn and the tools of development bring along.
LIBRARY = "python"  # the label of Python's own library
WITH_TEXTS = ["fontTools", "matplotlib", "networkx", "numpy", LIBRARY, "scipy", "sklearn"]
WITH_TEXTS += ["sympy", "torch"]
WITH_CODE = ["fontTools", "matplotlib", "mypy", "networkx", "numpy", "sklearn", "sympy", "torch"]

# Code that is not Python: its label, and folders of packages with the endings of its files. What
# torch/include/ATen/ops has was written by a program.
OTHER_CODE = {
    "c": [("mypyc", ".c"), ("mypyc", ".h"), ("numpy", ".h")],
    "c++": [("torch/include/c10", ".h"), ("torch/include/torch", ".h")],
    "cython": [("sklearn", ".pyx"), ("scipy", ".pyx"), ("scipy", ".pxd"), ("numpy", ".pyx")],
    "stubs": [("mypy/typeshed", ".pyi")],
}
COMMENT = ("#", "//", "/*", "*")

MOST_FILES = 700  # of a package
MOST_BYTES = 400_000  # of a source file: longer ones are tables that a program has written
MOST_OF_CLASS = {"texts": 2_800, "code": 2_000}

FEWEST_WORDS = 30
MOST_WORDS = 100

FEWEST_CHARACTERS = 50
MOST_CHARACTERS = 300

# Modules of Pygments with the names that a language has built in.
LANGUAGES = ["asy", "cocoa", "csound", "lasso", "lilypond", "openedge", "php", "scheme"]
LANGUAGES += ["scilab", "stata", "vim"]
NAME = re.compile(r"\S{3,40}")

WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


# What a token of each set is.
TOKENS = {
    "texts": "words",
    "words": "characters",
    "code": "characters",
    "functions": "ids",
    "pixels": "ids",
}


class Row(NamedTuple):
    """A labelled sequence, as the cells of a table."""

    split: str
    text: str
    label: str


class SourceFile(NamedTuple):
    """A source file of a package, or of a language."""

    owner: str
    split: str
    source: str


def split_of(unit: str) -> str:
    """Return the split of a source: two in ten are for validation, and two for the test."""
    digit = crc32(unit.encode()) % 10
    return {0: "val", 1: "val", 2: "test", 3: "test"}.get(digit, "train")


def files_of(owner: str, folder: Path, ending: str, most: int) -> Iterator[SourceFile]:
    """Yield at most `most` files below a folder, in an order that their paths alone decide."""
    paths = [path.relative_to(folder) for path in folder.rglob(f"*{ending}")]
    paths = [path for path in paths if not LEFT_OUT & set(path.parts)]
    paths.sort(key=lambda path: (crc32(path.as_posix().encode()), path))

    for path in paths[:most]:
        if (folder / path).stat().st_size <= MOST_BYTES:
            source = (folder / path).read_text(encoding="utf-8", errors="replace")
            yield SourceFile(owner, split_of(f"{owner}/{path.as_posix()}"), source)


def folder_of(package: str) -> Path:
    """Return the folder of an installed package.

    Raises: typer.BadParameter if there is none.
    """
    if package == LIBRARY:
        return Path(sysconfig.get_path("stdlib"))

    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise typer.BadParameter(f"no package {package}: pip install -e '.[dev,bench]'")
    return Path(spec.origin).parent


def rows_of_packages(most: int) -> dict[str, list[Row]]:
    """Return texts and code of the packages, from at most `most` files each."""
    rows: dict[str, list[Row]] = {"texts": [], "code": []}
    for package in sorted({*WITH_TEXTS, *WITH_CODE}):
        for file in files_of(package, folder_of(package), ".py", most):
            try:
                tree = ast.parse(file.source)
            except (SyntaxError, ValueError):
                continue

            if package in WITH_TEXTS:
                rows["texts"] += texts_of(file, tree)
            if package in WITH_CODE:
                rows["code"] += code_of(file, tree)

    for language, folders in OTHER_CODE.items():
        for place, ending in folders:
            package, _, inside = place.partition("/")
            for file in files_of(language, folder_of(package) / inside, ending, most):
                lines = file.source.splitlines()
                rows["code"] += [Row(file.split, text, language) for text in snippets(lines)]
    return rows


# --- texts


def texts_of(file: SourceFile, tree: ast.Module) -> Iterator[Row]:
    """Yield pieces of MOST_WORDS words of the docstrings of a file, without their examples."""
    for node in ast.walk(tree):
        docstring = ast.get_docstring(node) if isinstance(node, WITH_DOCSTRING) else None
        if not docstring:
            continue

        paragraphs = re.split(r"\n\s*\n", docstring)
        kept = [each for each in paragraphs if ">>>" not in each]
        words = " ".join(kept).split()
        for start in range(0, len(words), MOST_WORDS):
            piece = words[start : start + MOST_WORDS]
            if len(piece) >= FEWEST_WORDS:
                yield Row(file.split, " ".join(piece), file.owner)


# --- code


def code_of(file: SourceFile, tree: ast.Module) -> Iterator[Row]:
    """Yield snippets of the functions of a file: whole lines of a body, without its docstring."""
    lines = file.source.splitlines()
    for node in ast.walk(tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue

        body = node.body[1:] if ast.get_docstring(node) else node.body
        if not body:
            continue
        last = node.end_lineno or node.lineno
        for snippet in snippets(lines[body[0].lineno - 1 : last]):
            yield Row(file.split, snippet, file.owner)


def snippets(lines: list[str]) -> Iterator[str]:
    """Yield pieces of some lines of code, without comments and blank lines.

    How long a piece may become depends on its first line, so that pieces of all lengths are there.
    """
    piece: list[str] = []
    size = 0
    for line in lines:
        if not line.strip() or line.lstrip().startswith(COMMENT):
            continue

        piece.append(line)
        size += len(line.strip()) + 1
        enough = FEWEST_CHARACTERS + crc32(piece[0].encode()) % 200
        if size >= enough:
            text = dedented(piece)
            if FEWEST_CHARACTERS <= len(text) <= MOST_CHARACTERS:
                yield text
            piece = []
            size = 0


def dedented(lines: list[str]) -> str:
    """Return lines with as little indentation as possible."""
    margin = min(len(line) - len(line.lstrip()) for line in lines)
    return "\n".join(line[margin:].rstrip() for line in lines)


# --- words


def named_rows() -> Iterator[Row]:
    """Yield each name that just one of the languages has, in the order of the alphabet."""
    languages = {name: names_of(name) for name in LANGUAGES}
    counts = Counter(name for names in languages.values() for name in names)
    for language, names in languages.items():
        for name in sorted(names):
            if counts[name] == 1:
                # Names that differ by their capitals are in one split.
                yield Row(split_of(name.lower()), name, language)


def names_of(language: str) -> set[str]:
    """Return the built-in names of a language."""
    module = import_module(f"pygments.lexers._{language}_builtins")
    found: set[str] = set()
    for name, value in vars(module).items():
        if not name.startswith("__"):
            found |= set(strings_in(value))
    return {name for name in found if NAME.fullmatch(name)}


def strings_in(value: object) -> Iterator[str]:
    """Yield the texts in nested lists, sets and dicts, but not one that stands alone."""
    members: list[object] = []
    if isinstance(value, dict):
        members = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set, frozenset)):
        members = list(value)

    for member in members:
        if isinstance(member, str):
            yield member
        else:
            yield from strings_in(member)


# --- ids


def opcode_rows(most: int) -> Iterator[Row]:
    """Yield the functions of scripts/stdlib_sets.py, from at most `most` source files."""
    for file in stdlib_sets.source_files(most):
        for row in stdlib_sets.labelled_functions(file):
            split = stdlib_sets.split_of(file, row.line)
            yield Row(split, " ".join(map(str, row.sequence)), row.label)


def pixel_rows() -> Iterator[Row]:
    """Yield the images of digits that scikit-learn has."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for image, label in zip(digits.data.astype(int).tolist(), digits.target.tolist(), strict=True):
        text = " ".join(map(str, image))
        yield Row(split_of(text), text, str(label))


# --- writing


def chosen(rows: list[Row], most: int | None = None) -> list[Row]:
    """Return the first of each text, at most `most` of a class, in an order that texts decide."""
    first = list({row.text: row for row in reversed(rows)}.values())
    first.sort(key=lambda row: (crc32(row.text.encode()), row.text))

    counts = Counter[str]()
    kept = []
    for row in first:
        counts[row.label] += 1
        if most is None or counts[row.label] <= most:
            kept.append(row)
    return kept


def write(name: str, folder: Path, rows: list[Row]) -> None:
    """Write the three files of a set, and print how many rows each class has."""
    folder.mkdir(parents=True, exist_ok=True)
    size: Callable[[str], int] = (
        len if name in ("words", "code") else lambda text: len(text.split())
    )
    for split in SPLITS:
        own = [row for row in rows if row.split == split]
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as stream:
            table = csv.writer(stream, lineterminator="\n")
            table.writerow(["text", "label"])
            table.writerows((row.text, row.label) for row in own)

        counts = Counter(row.label for row in own)
        length = mean(size(row.text) for row in own) if own else 0
        classes = dict(sorted(counts.items()))
        print(f"{name} {split}: {len(own):,} rows, mean length {length:.1f}: {classes}")


def main(
    output: Annotated[Path, typer.Option()] = Path("data/text"),
    files: Annotated[int, typer.Option(help="At most so many files a package.")] = MOST_FILES,
) -> None:
    """Write train.csv, val.csv and test.csv of each set, each set into its own folder."""
    # Newer versions of Python warn about what some files hold.
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)

    rows = rows_of_packages(files)
    rows["words"] = list(named_rows())
    rows["functions"] = list(opcode_rows(10 * files))  # of them, folders of tests are left out
    rows["pixels"] = list(pixel_rows())
    for name, own in rows.items():
        write(name, output / name, chosen(own, MOST_OF_CLASS.get(name)))


if __name__ == "__main__":
    typer.run(main)
