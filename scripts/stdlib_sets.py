"""Make two real data sets on any machine with Python, of words and of ids.

    python -m scripts.stdlib_sets --output data

Both come from the Python standard library:

- `paragraphs`, words: a paragraph of a docstring or a comment. What is its module about? The
  topics are below.
- `functions`, ids: the opcodes of a function, without their arguments. Is it a special method such
  as `__init__`, another method, or no method?

Each class and each function of a module goes as a whole, with all that is in it, into the training,
validation or test split. Of equal sequences only the first is kept, so no sequence of the test
split was seen in training.
"""

import ast
import dis
import io
import json
import re
import sysconfig
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType
from typing import Annotated, NamedTuple
from zlib import crc32

import typer

from scripts.source_lines import LEFT_OUT, SPLITS

FEWEST_WORDS = 5  # of a paragraph
FEWEST_OPCODES = 3  # of a function
MOST_OPCODES = 64

# Modules and packages that no topic names are left out of `paragraphs`.
TOPICS = {
    "concurrency": """_threading_local asynchat asyncio asyncore concurrent contextvars
        multiprocessing pty queue sched selectors signal subprocess threading""",
    "data": """_collections_abc _pydatetime _pydecimal _pylong _strptime _weakrefset bisect calendar
        collections copy copyreg dataclasses datetime decimal enum fractions functools graphlib
        hashlib heapq hmac ipaddress numbers operator pprint random reprlib secrets statistics types
        typing uuid weakref zoneinfo""",
    "development": """__future__ _pyrepl ast bdb cProfile code codeop compileall dis distutils
        doctest ensurepip imp importlib inspect keyword linecache modulefinder opcode pdb
        pickletools pkgutil profile pstats py_compile pyclbr pydoc runpy site symtable sysconfig
        tabnanny timeit token tokenize trace traceback tracemalloc unittest venv warnings zipapp
        zipimport""",
    "files": """_compression _pyio argparse bz2 cmd codecs configparser csv ctypes dbm difflib
        encodings filecmp fileinput fnmatch genericpath getopt getpass gettext glob gzip io locale
        logging lzma ntpath nturl2path optparse os pathlib pickle platform plistlib posixpath re
        shelve shlex shutil sqlite3 sre_compile sre_parse stat string stringprep struct tarfile
        tempfile textwrap tomllib zipfile""",
    "graphics": "colorsys curses idlelib rlcompleter tkinter turtle turtledemo",
    "internet": """base64 binhex cgi cgitb email ftplib html http imaplib json mailbox mailcap
        mimetypes netrc nntplib poplib quopri smtpd smtplib socket socketserver ssl telnetlib urllib
        uu webbrowser wsgiref xdrlib xml xmlrpc""",
}
TOPIC_OF = {name: topic for topic, names in TOPICS.items() for name in names.split()}

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (ast.ClassDef, *FUNCTIONS)

# Instructions that the interpreter needs and no programmer wrote. Their names differ by version.
SILENT = {dis.opmap.get(name) for name in ("CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "RESUME")}


class SourceFile(NamedTuple):
    """A file of the standard library."""

    inside: Path  # relative to the library
    source: str
    tree: ast.Module


class Row(NamedTuple):
    """A labelled sequence."""

    sequence: str | list[int]
    label: str
    line: int  # of the file, which decides the split


def labelled_paragraphs(file: SourceFile) -> Iterator[Row]:
    """Yield each paragraph of the docstrings and comments of a file, with the file's topic.

    Paragraphs are words in lower case, without anything but letters. A file without a topic yields
    nothing.
    """
    topic = TOPIC_OF.get(file.inside.parts[0].removesuffix(".py"))
    if topic is None:
        return

    for text, line in [*docstrings(file.tree), *comments(file.source)]:
        for paragraph in re.split(r"\n\s*\n", text):
            words = re.findall(r"[a-z]+", paragraph.lower())
            if len(words) >= FEWEST_WORDS:
                yield Row(" ".join(words), topic, line)


def docstrings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the docstrings of a module, its classes and its functions, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, *DEFINITIONS)):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring, node.body[0].lineno


def comments(source: str) -> Iterator[tuple[str, int]]:
    """Yield the comments of a file, with their last lines.

    Comments on lines one below the other are one comment.
    """
    comment: list[str] = []
    last_line = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue

        line = token.start[0]
        if line != last_line + 1:
            yield "\n".join(comment), last_line
            comment = []
        comment.append(token.string.lstrip("#"))
        last_line = line
    yield "\n".join(comment), last_line


def labelled_functions(file: SourceFile) -> Iterator[Row]:
    """Yield the opcodes of each function of a file that is neither tiny nor long, with its kind."""
    kinds = kinds_of_functions(file.tree)
    waiting = [compile(file.source, file.inside, "exec", dont_inherit=True)]
    while waiting:
        code = waiting.pop(0)
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]

        # A class, a lambda or a comprehension has code too, but no kind.
        kind = kinds.get((code.co_firstlineno, code.co_name))
        opcodes = [opcode for opcode in code.co_code[::2] if opcode not in SILENT]
        if kind and FEWEST_OPCODES <= len(opcodes) <= MOST_OPCODES:
            yield Row(opcodes, kind, code.co_firstlineno)


def kinds_of_functions(tree: ast.Module) -> dict[tuple[int, str], str]:
    """Return the kind of each function, by its first line and its name."""
    kinds = {}
    for parent in ast.walk(tree):
        for node in ast.iter_child_nodes(parent):
            if not isinstance(node, FUNCTIONS):
                continue

            if not isinstance(parent, ast.ClassDef):
                kind = "function"
            elif node.name.startswith("__") and node.name.endswith("__"):
                kind = "special method"
            else:
                kind = "method"
            kinds[first_line(node), node.name] = kind
    return kinds


def first_line(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the first line of a definition, decorators included."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def split_of(file: SourceFile, line: int) -> str:
    """Return the split of the class or function of a module that a line belongs to.

    Two in ten are for validation and two for the test. That is more than usual, because a set of so
    few rows needs many of them to tell two settings apart.
    """
    unit = file.inside.as_posix()
    for node in file.tree.body:
        if isinstance(node, DEFINITIONS):
            last_line = node.end_lineno or node.lineno
            if first_line(node) <= line <= last_line:
                unit = f"{unit}:{node.name}"

    digit = crc32(unit.encode()) % 10
    return {0: "val", 1: "val", 2: "test", 3: "test"}.get(digit, "train")


def source_files(most: int) -> Iterator[SourceFile]:
    """Yield at most `most` files of the standard library, without those that cannot be parsed."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py"))[:most]:
        inside = path.relative_to(library)
        if LEFT_OUT & set(inside.parts):
            continue

        try:
            source = path.read_text(encoding="utf-8")
            yield SourceFile(inside, source, ast.parse(source))
        except (SyntaxError, UnicodeDecodeError):
            continue


SETS = {"paragraphs": labelled_paragraphs, "functions": labelled_functions}


def write(name: str, folder: Path, rows: list[tuple[str, Row]]) -> None:
    """Write the three files of a set from (split, row), and print how many rows each class has."""
    folder.mkdir(parents=True, exist_ok=True)
    streams = {split: (folder / f"{split}.jsonl").open("w", encoding="utf-8") for split in SPLITS}
    counts = {split: Counter[str]() for split in SPLITS}

    seen: set[str] = set()
    for split, (sequence, label, _) in rows:
        if str(sequence) in seen:
            continue
        seen.add(str(sequence))
        streams[split].write(json.dumps({"sequence": sequence, "label": label}) + "\n")
        counts[split][label] += 1

    for split, stream in streams.items():
        stream.close()
        count = counts[split]
        print(f"{name} {split}: {count.total():,} sequences: {dict(sorted(count.items()))}")


def main(
    output: Annotated[Path, typer.Option()] = Path("data"),
    files: Annotated[int, typer.Option(help="At most so many source files.")] = 10**6,
) -> None:
    """Write train.jsonl, val.jsonl and test.jsonl of both sets, each set into its own folder."""
    # Newer versions of Python warn about what some files of the library hold.
    warnings.simplefilter("ignore", SyntaxWarning)
    warnings.simplefilter("ignore", DeprecationWarning)

    rows: dict[str, list[tuple[str, Row]]] = {name: [] for name in SETS}
    for file in source_files(files):
        for name, labelled in SETS.items():
            rows[name] += [(split_of(file, row.line), row) for row in labelled(file)]

    for name in SETS:
        write(name, output / name, rows[name])


if __name__ == "__main__":
    typer.run(main)
