"""Read thousands of damaged data files of every format, and look for rows that got lost.

    python -m scripts.mutate_files                      8,000 files (make chaos)
    python -m scripts.mutate_files --files 600          what the tests run
    python -m scripts.mutate_files --only csv.gz --first 4711 --files 1

Each file has rows of quotes, separators, ids, other scripts and cells of several lines. It is
damaged by one to four edits of its text, or of its bytes after packing. It must be refused with an
error of ours, or each of its rows must be read, refused or skipped. What is there is counted
without the readers: by the lines of the file, by the json module, or by the libraries of the
columnar formats.

Each format is read in a process of its own, whose peak of memory may be at most 512 MiB above what
it was before the first file. Whatever goes wrong is printed with the number of its file, and the
exit code is 1. So does a format of which all files were read whole, or all refused: then nothing
was tested.
"""

import bz2
import csv
import gzip
import importlib.util
import io
import json
import lzma
import multiprocessing
import os
import random
import re
import resource
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from itertools import repeat
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from rnncls.config import FilesConfig
from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.dialect import Dialect, dialect_of
from rnncls.data.files.rows import read_rows
from rnncls.data.files.sniffing import sniff
from rnncls.data.loading import load_dataset
from rnncls.data.records import read_records
from rnncls.errors import RnnclsError

MOST_MEMORY_MIB = 512
PROGRESS_EVERY_S = 10.0
FULL_EVERY = 20  # files that are read into a dataset, too

# fmt: off
TEXTS = [
    "good film", "a b c", '5" pipe', '"quoted"', '" opened', 'said ""twice""', "x, y", "x; y",
    "[1, 2]", "12 7", "0.5 1", "line one\nline two", "tab\tinside", "Größe", "漢字 かな", "😀 👍",
    "NA", "null", "  blanks  ", "a|b", "'single'", "\u2028 is no line end",
]
NOISE = [
    '"', '""', "\t", ",", ";", "|", "\n", "\r\n", "\r", "\0", "\ufeff", "\u2028", "\\", "{", "]",
    "[", "}", '",', ',"', '\n"', '"\n', " ", "\x1a", "é", "\ud800",
]
# fmt: on
LABELS = ["a", "b", " a", "1", "true", "c d"]
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
BEGINNINGS = {
    ".gz": re.compile(rb"\x1f\x8b"),
    ".bz2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
    ".xz": re.compile(rb"\xfd7zXZ\0"),
    ".zip": re.compile(rb"PK"),
}
TEXT_FORMATS = ("csv", "tsv", "txt", "jsonl", "json")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1")
COLUMNAR = {"parquet": "pyarrow", "arrow": "pyarrow", "xlsx": "openpyxl"}

Rows = list[tuple[str, str]]


class Wrong(Exception):
    """Rows got lost, were made up, or were read from a file that is damaged."""


class Lines(BadRows):
    """Bad rows, of which every line is kept."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self.lines: list[int] = []

    def add(self, line: int, *arguments: Any, **named: Any) -> None:
        """Keep the line, too."""
        self.lines.append(line)
        super().add(line, *arguments, **named)


class Made(NamedTuple):
    """A damaged file: what is packed in it, None if it cannot be unpacked, and the config."""

    path: Path
    content: bytes | None
    data: FilesConfig


# --- making files


def some_rows(rng: random.Random) -> Rows:
    """Draw up to 30 rows."""
    count = rng.choice((0, 1, 3, 10, 30))
    return [(rng.choice(TEXTS), rng.choice(LABELS)) for _ in range(count)]


def text_of(rows: Rows, format: str, rng: random.Random) -> str:
    """Return a file of the rows, as a program would write it."""
    objects = [{"sequence": text, "label": label} for text, label in rows]
    if format == "jsonl":
        return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in objects)
    if format == "json":
        return json.dumps(objects, indent=rng.choice((None, 2)), ensure_ascii=False)

    delimiter = rng.choice(",;|\t") if format == "csv" else "\t"
    end = rng.choice(("\n", "\r\n"))
    cells = [("sequence", "label"), *rows]
    if rng.random() < 0.4:
        # Without quoting, as many a script does it.
        return "".join(
            delimiter.join(cell.replace("\n", " ").replace(delimiter, " ") for cell in row) + end
            for row in cells
        )

    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
    if rng.random() < 0.5:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows(cells)
    return file.getvalue()


def damaged_text(text: str, rng: random.Random) -> str:
    """Return the text with one to four edits, in a tenth of the cases with none."""
    for _ in range(rng.choice((0, 1, 1, 1, 1, 1, 2, 2, 3, 4))):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            text = text[:at] + text[at + rng.randint(1, 8) :]
        elif kind in (1, 2):
            text = text[:at] + rng.choice(NOISE) + text[at:]
        elif kind == 3:
            text = text[:at]
        elif kind == 4:
            text = text[:at] + text[at + 1 :].replace('"', "", 1)
        else:
            lines = text.split("\n")
            lines.insert(rng.randrange(len(lines)), rng.choice(lines))
            text = "\n".join(lines)
    return text


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return the content with a few bytes changed, cut off or put in."""
    at = rng.randrange(len(content) + 1)
    kind = rng.randrange(4)
    if kind == 0:
        return content[:at]
    if kind == 1:
        return content[:at] + rng.randbytes(rng.randint(1, 4)) + content[at:]
    if kind == 2:
        return content + rng.randbytes(rng.randint(1, 20))
    changed = bytearray(content)
    for _ in range(rng.randint(1, 3)) if content else ():
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def zipped(content: bytes) -> bytes:
    """Return a zip file with one member."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.csv", content)
    return file.getvalue()


def unpacked(content: bytes, packing: str) -> bytes | None:
    """Return what is packed, None if the file is damaged."""
    # Whoever reads it knows a packing by the first bytes: without them, it is text, or should be.
    if packing and not BEGINNINGS[packing].match(content):
        return content
    try:
        if packing == ".gz":
            return gzip.decompress(content)
        if packing == ".bz2":
            return bz2.decompress(content)
        if packing == ".xz":
            return lzma.decompress(content)
        if packing == ".zip":
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                (name,) = archive.namelist()
                return archive.read(name)
    except Exception:
        return None
    return content


def made_text(rng: random.Random, folder: Path, format: str, packing: str) -> Made:
    """Write a damaged text file, packed or not."""
    # The other encodings are rare; all rows must be read in them, too.
    encoding = rng.choice(ENCODINGS) if rng.random() < 0.3 else "utf-8"
    text = damaged_text(text_of(some_rows(rng), format, rng), rng)
    narrow = encoding in ("cp1252", "latin-1")
    content = text.encode(encoding, "replace" if narrow else "surrogatepass")
    if rng.random() < 0.15:
        content = damaged_bytes(content, rng)

    file = zipped(content) if packing == ".zip" else PACKED[packing](content)
    kept: bytes | None = content
    if packing and rng.random() < 0.2:
        file = damaged_bytes(file, rng)
        kept = unpacked(file, packing)

    path = folder / f"data.{format}{packing}"
    path.write_bytes(file)
    keys = {"encoding": encoding if narrow or encoding == "utf-16" else "utf-8"}
    if rng.random() < 0.2:
        keys["quoting"] = rng.choice(("standard", "none"))
    return Made(path, kept, config_of(path, rng, **keys))


def config_of(path: Path, rng: random.Random, **keys: Any) -> FilesConfig:
    """Return a config that trains on all of a file, whatever its rows hold."""
    return FilesConfig.model_validate(
        {
            "source": "files",
            "train": str(path),
            "tokens": rng.choice(("words", "words", "characters", "ids")),
            "empty": rng.choice(("error", "drop")),
            "bad": "skip",
            "val_fraction": 0.0,
            "test_fraction": 0.0,
            **keys,
        }
    )


# --- counting what is there, without the readers


def lines_there(text: str) -> list[int]:
    """Return the numbers of the lines that are not empty, from 1; `decoded` took the mark away."""
    lines = text.split("\n")
    return [number for number, line in enumerate(lines, 1) if line.strip("\r")]


def decoded(content: bytes, encoding: str) -> str | None:
    """Return the text of a file, None if it has none in its encoding."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif content.startswith(b"\xef\xbb\xbf"):
        encoding = "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeError:
        return None


# --- reading files


def read(made: Made) -> str:
    """Read a file and compare with what is there; returns how it ended. Raises: Wrong."""
    fields = [*made.data.sequence_fields, made.data.label_field]
    dialect = sniff(made.path, dialect_of(made.data), fields)

    # What the cells hold is looked at by the second pass alone.
    bad = Lines(made.path)
    rows = list(read_rows(made.path, dialect, fields, bad))
    of_records = Lines(made.path)
    num_records = sum(1 for _ in read_records(made.path, made.data, dialect, of_records))
    if num_records + of_records.count != len(rows) + bad.count:
        raise Wrong(
            f"{num_records} records and {of_records.count} bad ones of "
            f"{len(rows)} rows and {bad.count} bad ones"
        )

    compare(made, dialect, rows, bad)
    return "read" if not of_records.count else "skipped"


def compare(
    made: Made, dialect: Dialect, rows: list[tuple[int, dict[str, Any]]], bad: Lines
) -> None:
    """Raise Wrong unless each row that is there was read, or is among the bad ones."""
    found = len(rows) + bad.count
    if dialect.format in COLUMNAR:
        there = columnar_rows(made.path, dialect.format)
        if found != there:
            raise Wrong(f"{found} of {there} rows")
        return

    if made.content is None:
        raise Wrong(f"{found} rows of a packed file that is damaged")
    text = decoded(made.content, dialect.encoding)
    if text is None:
        # Which bytes are a row depends on what is made of the others: only named they must be.
        if not bad.count:
            raise Wrong("text that cannot be decoded was read")
        return

    if dialect.format == "json":
        compare_array(text, found, bad)
    elif dialect.format == "jsonl":
        there = sum(1 for line in text.split("\n") if line.strip())
        if found != there:
            raise Wrong(f"{found} of {there} rows")
    else:
        compare_lines(text, dialect, made.data.quoting, rows, bad)


def compare_array(text: str, found: int, bad: Lines) -> None:
    """Raise Wrong unless as many objects were read as the json module reads."""
    try:
        there = len(json.loads(text.removeprefix("\ufeff")))
    except (ValueError, RecursionError):
        if not bad.count:
            raise Wrong("a broken array was read") from None
    else:
        if found != there:
            raise Wrong(f"{found} of {there} objects")


def compare_lines(
    text: str,
    dialect: Dialect,
    wanted: str,
    rows: list[tuple[int, dict[str, Any]]],
    bad: Lines,
) -> None:
    """Raise Wrong unless each line of a table belongs to one row, or to a bad one above it."""
    there = lines_there(text)
    all_lines = text.removeprefix("\ufeff").split("\n")
    taken: dict[int, int] = {}  # line -> the row that it belongs to
    for row, (line, cells) in enumerate(rows):
        height = 1 + sum(str(cell).count("\n") for cell in cells.values())
        for number in range(line, line + height):
            if number in taken:
                raise Wrong(f"line {number} is in two rows")
            taken[number] = row
        inner = all_lines[line - 1 : line - 1 + height]
        if wanted == "auto" and height > 1 and looks_like_rows(inner, rows, cells, dialect):
            raise Wrong(f"line {line} swallowed the {height - 1} rows below it")

    # The header comes first, and may be as high as a row.
    first_row = min([line for line, _ in rows] + bad.lines, default=None)
    known = sorted([line for line, _ in rows] + bad.lines)
    for number in there:
        if number in taken or first_row is None or number < first_row:
            continue
        above = max(line for line in known if line <= number)
        if above not in bad.lines:
            raise Wrong(f"line {number} is in no row")

    if dialect.quoting == "none" and first_row is not None and dialect.header:
        found = len(rows) + bad.count
        if found != len(there) - 1:
            raise Wrong(f"{found} of {len(there) - 1} rows")


def looks_like_rows(
    lines: list[str],
    rows: list[tuple[int, dict[str, Any]]],
    cells: dict[str, Any],
    dialect: Dialect,
) -> bool:
    """Tell whether each line of a row is a row by itself, with a label that other rows have."""
    delimiter = {"tab": "\t"}.get(dialect.separator, dialect.separator)
    place = list(cells).index("label")
    labels = {row["label"] for _, row in rows if row is not cells}
    pieces = [line.rstrip("\r").split(delimiter) for line in lines]
    return all(len(piece) == len(cells) and piece[place] in labels for piece in pieces)


# --- columnar files


def openpyxl() -> Any:
    """Return the library of Excel files, which has no types."""
    return importlib.import_module("openpyxl")


def arrow_libraries() -> tuple[Any, Any]:
    """Return pyarrow and its part for Parquet, which have no types."""
    return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")


def columnar_content(format: str, rows: Rows) -> bytes:
    """Return a Parquet, Arrow or Excel file of the rows."""
    file = io.BytesIO()
    if format == "xlsx":
        book = openpyxl().Workbook()
        for cells in [("sequence", "label"), *rows]:
            book.active.append(cells)
        book.save(file)
        return file.getvalue()

    pyarrow, parquet = arrow_libraries()
    table = pyarrow.table(
        {"sequence": [text for text, _ in rows], "label": [label for _, label in rows]}
    )
    if format == "parquet":
        parquet.write_table(table, file)
    else:
        with pyarrow.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
    return file.getvalue()


def columnar_rows(path: Path, format: str) -> int:
    """Return the number of rows that the library itself reads. Raises: Wrong if it reads none."""
    try:
        if format == "xlsx":
            sheet = openpyxl().load_workbook(path, read_only=True).worksheets[0]
            values = list(sheet.iter_rows(values_only=True))
            return sum(1 for row in values[1:] if any(cell is not None for cell in row))

        pyarrow, parquet = arrow_libraries()
        if format == "parquet":
            return int(parquet.read_table(path).num_rows)
        # The batches of an Arrow file are a stream, which is whole if only the table behind them
        # is damaged. Both must be there.
        pyarrow.ipc.open_file(path)
        with path.open("rb") as file:
            file.seek(8)
            return int(pyarrow.ipc.open_stream(file).read_all().num_rows)
    except Exception as error:
        raise Wrong(f"a damaged file was read: {str(error)[:80]}") from None


def made_columnar(rng: random.Random, folder: Path, format: str) -> Made:
    """Write a file of a columnar format, damaged in four of five cases."""
    content = columnar_content(format, some_rows(rng))
    if rng.random() < 0.8:
        content = damaged_bytes(content, rng)
    path = folder / f"data.{format}"
    path.write_bytes(content)
    return Made(path, content, config_of(path, rng))


# --- large files


def made_large(rng: random.Random, folder: Path) -> Made:
    """Write a file that asks for more memory than there may be."""
    # Piece by piece, so that no more is in memory than the reader itself takes.
    header = b"sequence,label\n"
    name, pieces = rng.choice(
        [
            ("line.csv", [header, *repeat(b"x" * 2**20, 32)]),
            ("bomb.csv.gz", [header, *repeat(b"a" * 2**18 + b",x\n", 2**10)]),
            ("line.csv.xz", [header, *repeat(bytes(2**20), 2**8)]),
            ("quote.csv", [header, b'"a,x\n', *repeat(b"b c d,y\n", 2**16)]),
            ("columns.csv", [*repeat(b"c," * 2**10, 2**10), b"\na,b\n"]),
        ]
    )
    path = folder / name
    opening: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    with opening(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
    return Made(path, None, config_of(path, rng))


def read_large(made: Made) -> str:
    """Read a large file, and count as one that is refused."""
    fields = [*made.data.sequence_fields, made.data.label_field]
    dialect = sniff(made.path, dialect_of(made.data), fields)
    bad = BadRows(made.path)
    num_rows = sum(1 for _ in read_records(made.path, made.data, dialect, bad))
    return "read" if num_rows and not bad.count else "skipped"


# --- running


def formats() -> list[str]:
    """Return the kinds of files, as endings of their names."""
    found = [format + packing for format in TEXT_FORMATS for packing in PACKED]
    found.append("csv.zip")
    found += [name for name, library in COLUMNAR.items() if importlib.util.find_spec(library)]
    return found


def one_file(kind: str, number: int, folder: Path) -> str:
    """Make and read one file; returns how it ended. Raises: what went wrong."""
    rng = random.Random(f"{kind}-{number}")
    try:
        if kind == "large":
            return read_large(made_large(rng, folder))
        format, _, packing = kind.partition(".")
        if format in COLUMNAR:
            made = made_columnar(rng, folder, format)
        else:
            made = made_text(rng, folder, format, f".{packing}" if packing else "")
        outcome = read(made)

        # The whole way once in a while: it takes longer, and says the same.
        if number % FULL_EVERY == 0:
            with redirect_stderr(io.StringIO()):
                load_dataset(made.data)
        return outcome
    except RnnclsError as error:
        if error.exit_code != 3 or not error.render():
            raise Wrong(f"exit code {error.exit_code}: {error}") from None
        return "refused"


def peak_mib() -> float:
    """Return the peak of this process's memory."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


class Result(NamedTuple):
    """How the files of a kind ended, what went wrong, and the memory above the start, in MiB."""

    kind: str
    outcomes: Counter[str]
    wrong: list[str]
    memory: float


def run_kind(kind: str, first: int, count: int, pipe: connection.Connection) -> None:
    """Read the files of one kind and send the result."""
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    before = peak_mib()
    with tempfile.TemporaryDirectory() as name:
        for number in range(first, first + count):
            try:
                outcomes[one_file(kind, number, Path(name))] += 1
            except Exception as error:
                outcomes["WRONG"] += 1
                wrong.append(f"{kind} {number}: {type(error).__name__}: {str(error)[:200]}")
    pipe.send(Result(kind, outcomes, wrong, peak_mib() - before))


class Running(NamedTuple):
    """A process that reads the files of one kind."""

    kind: str
    process: ForkProcess
    pipe: connection.Connection


def started(task: tuple[str, int, int]) -> Running:
    """Start reading the files of a kind in a fork: torch is imported once."""
    context = multiprocessing.get_context("fork")
    pipe, end = context.Pipe(duplex=False)
    process = context.Process(target=run_kind, args=(*task, end), daemon=True)
    process.start()
    end.close()
    return Running(task[0], process, pipe)


def ended(running: Running) -> Result:
    """Wait for the end of a process and return what it says, or that it was ended."""
    try:
        result: Result = running.pipe.recv()
    except EOFError:
        running.process.join()
        what = f"{running.kind}: the process ended with {running.process.exitcode}"
        result = Result(running.kind, Counter(WRONG=1), [what], 0.0)
    running.process.join()
    return result


def run_all(files: int, only: str | None, first: int, large: int) -> int:
    """Read so many files and return the number of failures."""
    kinds = [only] if only else formats()
    share = -(-files // len(kinds))
    tasks = [(kind, first, share) for kind in kinds]
    if only is None:
        tasks.append(("large", 0, large))

    missing = [name for name in COLUMNAR if name not in kinds]
    if missing and not only:
        print(f"left out, because their libraries are missing: {', '.join(missing)}")

    # A process of its own for each kind: its peak of memory is its own, and what ends it is seen.
    failures = 0
    started_at = time.monotonic()
    shown_at = started_at
    total: Counter[str] = Counter()
    running: list[Running] = []
    waiting = [*reversed(tasks)]
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            running.append(started(waiting.pop()))
        ready = connection.wait([each.pipe for each in running], timeout=PROGRESS_EVERY_S)
        for each in [each for each in running if each.pipe in ready]:
            running.remove(each)
            failures += report(*ended(each), is_single=only is not None, total=total)

        if time.monotonic() - shown_at > PROGRESS_EVERY_S:
            shown_at = time.monotonic()
            done = len(tasks) - len(waiting) - len(running)
            print(f"... {done} of {len(tasks)} kinds", file=sys.stderr, flush=True)

    listed = ", ".join(f"{value:,} {key}" for key, value in sorted(total.items()))
    seconds = time.monotonic() - started_at
    print(f"{total.total():,} files: {listed}; {failures} failures; {seconds:.0f} s")
    return failures


def report(
    kind: str,
    outcomes: Counter[str],
    wrong: list[str],
    memory: float,
    is_single: bool,
    total: Counter[str],
) -> int:
    """Print the line of a kind, add it to the total, and return its number of failures."""
    total += outcomes
    listed = ", ".join(f"{value:,} {key}" for key, value in sorted(outcomes.items()))
    print(f"{kind}: {listed}; {memory:,.0f} MiB above the start", flush=True)
    for line in wrong[:10]:
        print(f"  {line}")

    failures = len(wrong)
    if memory > MOST_MEMORY_MIB:
        print(f"  FAILED: more than {MOST_MEMORY_MIB} MiB")
        failures += 1
    if not is_single and kind != "large" and len(outcomes) == 1:
        print("  FAILED: all files ended alike")
        failures += 1
    return failures


def main(
    files: Annotated[int, typer.Option(help="Damaged files, of all formats together.")] = 8_000,
    only: Annotated[str | None, typer.Option(help="One format, such as csv.gz.")] = None,
    first: Annotated[int, typer.Option(help="Number of the first file of each format.")] = 0,
    large: Annotated[int, typer.Option(help="Large files, besides the others.")] = 6,
) -> None:
    """Make and read the files; exit code 1 if anything went wrong."""
    raise typer.Exit(1 if run_all(files, only, first, large) else 0)


if __name__ == "__main__":
    typer.run(main)
