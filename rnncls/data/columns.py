"""Finds out how an unknown file is laid out: format, separator, columns and kind of tokens.

Nothing is known but the file itself. What its names say comes first, then what its values look
like. The first rows are looked at, and of each column only counts and a few examples are kept.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import dropwhile, islice
from pathlib import Path
from typing import Any, NamedTuple

from rnncls.data.cells import TokenRule, is_label, is_measured, tokens_of
from rnncls.data.files.bad_rows import FRACTIONS, FRACTIONS_REMEDY, MOST_BAD_ROWS, BadRows
from rnncls.data.files.dialect import TABLES, Dialect
from rnncls.data.files.formats import format_of
from rnncls.data.files.headers import (
    LABEL_NAMES,
    SEQUENCE_NAMES,
    has_words_of,
    nearest,
    no_header,
    words_of,
)
from rnncls.data.files.lines import read_lines
from rnncls.data.files.rows import read_rows
from rnncls.data.files.sniffing import sniff
from rnncls.data.files.splitting import SEPARATORS, parsed_rows
from rnncls.data.prefix_labels import columns_of_prefix_labels
from rnncls.errors import DataError, Problem

# What is looked at, so that neither time nor memory depend on the size of a file.
MOST_ROWS = 100_000
MOST_COLUMNS = 200
MOST_FIRST_LINES = 50  # to tell the format and the separator
MOST_EXAMPLE_CHARACTERS = 100_000  # of a column
EXAMPLE_CHARACTERS = 1_000  # of a value

MOST_WORDS_OF_NAME = 4  # of a column

# More different values are no classes. A file of a few rows may have a class for each.
MOST_CLASSES = 1_000
FEW_ROWS = 20

# With fewer words to a text, and most of them different ones, its characters say more.
WORDS_PER_TEXT = 2
SHARE_OF_DIFFERENT_WORDS = 0.2

# What may stand between words in place of spaces.
_JOINTS = "|>;,/-"

# A column with such a word in its name is about the row. It is taken for the texts or the labels
# only where there is no other.
# fmt: off
ASIDE = {
    "id", "uid", "uuid", "guid", "hash", "index", "idx", "row", "date", "datetime", "time",
    "timestamp", "year", "month", "day", "hour", "created", "updated", "split", "fold",
}
# fmt: on

_USUAL_NAMES = [[name] for name in (*SEQUENCE_NAMES, *LABEL_NAMES)]

_NUMBER_OR_DATE = re.compile(r"[-+]?[0-9][-+0-9.,:/TZeE]*")

# 2024-01-31, 31.1.2024, 1/31/24, each with or without a time behind it; or a time alone.
_DATE = re.compile(r"(\d+[-/.]\d+[-/.]\d+|\d+:\d\d)([ T:].*)?")

# A word of letters with marks behind it. So many of all words have some where texts are prose.
_MARKED = re.compile(r"[^\W\d_]{2,}[^\w\s]+")
SHARE_OF_MARKED_WORDS = 0.02

_IDS = TokenRule("ids")


class Layout(NamedTuple):
    """How the rows of a file are to be read, and why."""

    dialect: Dialect
    columns: list[str]
    sequence_field: str | tuple[str, ...]
    label_field: str
    tokens: str  # data.tokens
    why_sequence: str
    why_label: str
    why_tokens: str
    has_marks: bool = False  # whether many words end in a mark, as those of sentences do

    @property
    def format(self) -> str:
        return self.dialect.format

    @property
    def separator(self) -> str:
        """What separates the columns, by its name in a config; "" where there is no table."""
        return self.dialect.separator if self.format in TABLES else ""

    @property
    def sequence_fields(self) -> tuple[str, ...]:
        names = self.sequence_field
        return (names,) if isinstance(names, str) else names


@dataclass
class Column:
    """What is known of the values of one column, or of one field of JSON objects."""

    name: str
    count: int = 0
    size: int = 0  # characters of all texts, items of all lists
    lists: int = 0
    different: set[int] = field(default_factory=set)  # hashes of values; no more than needed
    are_ids: bool = True  # whether each value is a sequence of integer ids
    longest_ids: int = 0  # in ids
    are_labels: bool = True  # whether each value could be a label
    examples: list[str] = field(default_factory=list)  # the first texts, cut
    example_characters: int = 0

    def add(self, value: Any) -> None:
        """Count one value. One that is missing says nothing about the others."""
        if value is None:
            return
        self.count += 1
        if isinstance(value, list):
            self.lists += 1
        if isinstance(value, list | str):
            self.size += len(value)
        if not isinstance(value, str) and not is_label(value):
            self.are_labels = False
        if len(self.different) <= MOST_CLASSES:
            self.different.add(hash(str(value)))

        # The first value that is none decides: most columns need no second look.
        if self.are_ids:
            ids = tokens_of(value, _IDS)
            if isinstance(ids, Problem):
                self.are_ids = False
            else:
                self.longest_ids = max(self.longest_ids, len(ids))

        if isinstance(value, str) and self.example_characters < MOST_EXAMPLE_CHARACTERS:
            self.examples.append(value[:EXAMPLE_CHARACTERS])
            self.example_characters += len(self.examples[-1])

    @property
    def mean_size(self) -> float:
        return self.size / max(1, self.count)

    @property
    def may_be_sequences(self) -> bool:
        """Whether the values are lists or texts, and not numbers or dates."""
        if self.lists:
            return True
        if self.are_ids and self.longest_ids > 1:
            return True
        return any(text and not _NUMBER_OR_DATE.fullmatch(text) for text in self.examples)

    @property
    def is_aside(self) -> bool:
        """Whether the values most likely are ids or dates of the rows, by name or by values."""
        if not ASIDE.isdisjoint(words_of(self.name)):
            return True
        return bool(self.examples) and all(map(_DATE.fullmatch, self.examples))

    @property
    def is_constant(self) -> bool:
        return len(self.different) == 1

    @property
    def has_few_values(self) -> bool:
        """Whether there are not too many different values for them to be classes."""
        return len(self.different) <= min(MOST_CLASSES, max(FEW_ROWS, self.count // 2))

    @property
    def described(self) -> str:
        """The name and how many different values there are."""
        number = f"{len(self.different):,}"
        if len(self.different) > MOST_CLASSES:
            number = f"more than {MOST_CLASSES:,}"
        return f"{self.name} ({number} different)"


def find_layout(
    path: str | Path,
    sequence_field: str | tuple[str, ...] | None = None,
    label_field: str | None = None,
    tokens: str | None = None,
    wanted: Dialect | None = None,
    prefix_labels_field: str | None = None,
) -> Layout:
    """Return how a file is laid out. What is not None is taken as it is.

    Rows that cannot be read are left out, as long as the others tell: who reads the file names all
    of its bad rows at once.

    Raises: DataError if the file cannot be read, or if it cannot be told which columns to take.
    """
    sequences = (sequence_field,) if isinstance(sequence_field, str) else sequence_field or ()
    dialect = _dialect_of(path, wanted or Dialect(), sequences, label_field)
    bad = BadRows(path)
    columns = _read_columns(path, dialect, bad)
    # Neither sequences nor labels of them, whatever they are called.
    about_prefixes = (
        {prefix_labels_field} if prefix_labels_field else _about_prefixes(path, dialect)
    )
    try:
        _require_header(path, dialect, columns, [*sequences, label_field])
        return _layout_of(
            path, dialect, columns, sequence_field, label_field, tokens, about_prefixes
        )
    except DataError:
        # Rows that could not be read may be why nothing was found.
        bad.raise_if_any()
        raise


def _about_prefixes(path: str | Path, dialect: Dialect) -> set[str]:
    rows = (row for _, row in read_rows(path, dialect, [], BadRows(path)))
    try:
        return columns_of_prefix_labels(rows, MOST_COLUMNS)
    except DataError:
        # The rows above it were enough to be read as columns.
        return set()


def _layout_of(
    path: str | Path,
    dialect: Dialect,
    columns: list[Column],
    sequence_field: str | tuple[str, ...] | None,
    label_field: str | None,
    tokens: str | None,
    about_prefixes: set[str],
) -> Layout:
    """Choose the columns. Raises: DataError if it cannot be told which ones to take."""
    # Who names such a column nevertheless knows better.
    others = [column for column in columns if column.name not in about_prefixes]

    # The label first where it has a usual name: a column of texts is found among what is left.
    given = (sequence_field,) if isinstance(sequence_field, str) else sequence_field or ()
    label = _named(path, columns, label_field, "--label-field")
    why_label = "as given"
    if label is None:
        # A column such as `language` that is `en` in each row is not what is to be learned.
        varied = [column for column in others if not column.is_constant]
        label = _by_usual_name(varied or others, LABEL_NAMES, except_for=given)
        why_label = "by its name"

    sequences = [_named(path, columns, name, "--sequence-field") for name in given]
    sequence = sequences[0] if sequences else None
    why_sequence = "as given"
    if sequence is None:
        taken = (label.name,) if label else ()
        sequence, why_sequence = _find_sequence(path, others, except_for=taken)

    if label is None:
        label = _label_by_values(path, others, except_for=given or (sequence.name,))
        why_label = "by its few different values"
    elif label_field is None and not label.has_few_values:
        raise _no_label(path, columns, f"--label-field '{label.name}', if it is the label")

    if not tokens:
        _require_tokens(path, sequence)
    kind, why_tokens = (tokens, "as given") if tokens else _kind_of_tokens(sequence)
    if kind == "ids" and len(given) > 1 and not tokens:
        kind = "words"
        why_tokens = "several columns, which are joined by <sep>"
    return Layout(
        dialect,
        [column.name for column in columns],
        sequence_field if sequence_field is not None else sequence.name,
        label.name,
        kind,
        why_sequence,
        why_label,
        why_tokens,
        _ends_in_marks(sequence.examples),
    )


def _dialect_of(
    path: str | Path, wanted: Dialect, sequences: tuple[str, ...], label: str | None
) -> Dialect:
    """Return how a file is read: its format by its name, or else by its first lines."""
    format = wanted.format
    try:
        format = format_of(path, format, wanted.encoding)
    except DataError as error:
        if error.problems[0].what != "unknown format":
            raise
    # Without both, nothing is known of the columns.
    fields = [*sequences, label] if sequences and label else []
    if format not in ("auto", "jsonl", *TABLES):
        return sniff(path, wanted._replace(format=format), fields)

    bad = BadRows(path)
    lines = read_lines(path, bad, wanted.encoding, wanted.max_record_bytes)
    # Blank lines above the first row mean nothing, and may be any number.
    first_lines = list(_some_text(dropwhile(lambda line: not line[1].strip(), lines)))
    # Without the first line, such as the header of a table, nothing else can be told.
    if bad.count and (not first_lines or bad.problems[0].where.endswith(":1")):
        bad.raise_if_any()
    if not first_lines:
        raise DataError(Problem("0 sequences", str(path), remedy="a file with sequences", id="D2"))

    begins = next((text.strip() for text in first_lines if text.strip()), "")
    if format == "jsonl" or (format == "auto" and begins.startswith("{")):
        return sniff(path, wanted._replace(format="jsonl"), fields)
    return _dialect_of_table(path, wanted._replace(format=format), fields, first_lines)


def _dialect_of_table(
    path: str | Path, wanted: Dialect, fields: list[str], first_lines: list[str]
) -> Dialect:
    """Return how a table is read. Raises: DataError if there is nothing that separates columns."""
    is_named = wanted.format != "auto"
    dialect = sniff(path, wanted if is_named else wanted._replace(format="csv"), fields)
    if not is_named and dialect.separator == "tab":
        # Quotes are looked at in another way in a TSV.
        dialect = sniff(path, wanted._replace(format="tsv", separator="tab"), fields)

    delimiter = SEPARATORS[dialect.separator]
    rows = parsed_rows(first_lines, delimiter, dialect.quoting)
    if len(next((row for row in rows if row), [])) < 2:
        begins = next((text.strip() for text in first_lines if text.strip()), "")
        raise _one_column(path, begins, wanted.separator)
    return dialect


def _some_text(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """Yield the first lines, not too many and not too long all together."""
    characters = 0
    for _, text in islice(lines, MOST_FIRST_LINES):
        yield text
        characters += len(text)
        if characters > MOST_EXAMPLE_CHARACTERS:
            return


def _one_column(path: str | Path, begins: str, separator: str) -> DataError:
    what = "neither JSON lines nor a table of several columns"
    expected = f"a header row whose columns are separated by one of {' '.join(SEPARATORS)}"
    remedy = "a file in the format of docs/data.md; rnncls predict reads plain lines"
    if separator != "auto":
        what = f"a table of one column with data.separator='{separator}'"
        expected = "a column of sequences and one of labels"
        remedy = "data.separator=auto"
    found = repr(begins[:60])
    problem = Problem(what, f"{path}:1", expected=expected, found=found, remedy=remedy, id="D14")
    return DataError(problem)


def _read_columns(path: str | Path, dialect: Dialect, bad: BadRows) -> list[Column]:
    """Return what the first good rows have in each column; the others are added to `bad`.

    Raises: DataError if there is no good row.
    """
    columns: dict[str, Column] = {}
    try:
        for _, row in islice(read_rows(path, dialect, [], bad), MOST_ROWS):
            for name, value in islice(row.items(), MOST_COLUMNS):
                # A column without a name, such as that of row numbers, cannot be asked for.
                if name not in columns and name and len(columns) < MOST_COLUMNS:
                    columns[name] = Column(name)
                if name in columns:
                    columns[name].add(value)
            # A large row is not kept while the next one is read.
            del row
    except DataError:
        # The rows above very many bad ones tell as much as those above the MOST_ROWS.
        if not columns or bad.count < MOST_BAD_ROWS:
            raise

    if not columns:
        bad.raise_if_any()
        expected = (
            "objects with fields" if dialect.format not in TABLES else "rows below the header"
        )
        raise DataError(Problem("0 sequences", str(path), expected=expected, id="D2"))
    return list(columns.values())


def _require_header(
    path: str | Path, dialect: Dialect, columns: list[Column], given: Sequence[str | None]
) -> None:
    """Raise DataError if the first row of a table looks like data, and has no column asked for."""
    names = {column.name for column in columns}
    if dialect.format not in TABLES or dialect.is_header_known or not dialect.header:
        return
    # Whoever names a column has seen a header; where both are named, `sniff` has looked at it.
    if any(name in names for name in given):
        return
    # Only the whole name counts here: a text of the data may well have `code` or `line` in it.
    if any(words_of(name) in _USUAL_NAMES for name in names):
        return

    has_usual = _by_usual_name(columns, SEQUENCE_NAMES) or _by_usual_name(columns, LABEL_NAMES)
    is_long = any(len(name.split()) > MOST_WORDS_OF_NAME for name in names)
    if any(map(_is_headed_by_data, columns)) or (is_long and not has_usual):
        shown = [column.name for column in columns]
        or_else = "data.header=true, if these are the names"
        raise DataError(no_header(f"{path}:1", shown, or_else))


def _is_headed_by_data(column: Column) -> bool:
    """Return whether the name of a column looks like one of its values."""
    is_value = hash(column.name) in column.different
    is_number = _NUMBER_OR_DATE.fullmatch(column.name.strip()) is not None
    is_text = is_number or has_words_of(column.name, column.examples)
    return is_value or is_text or column.name.startswith(("[", "{"))


def _named(path: str | Path, columns: list[Column], name: str | None, option: str) -> Column | None:
    """Return the column that was asked for. Raises: DataError if there is none of this name."""
    if name is None:
        return None
    for column in columns:
        if column.name == name:
            return column

    names = [column.name for column in columns]
    similar = nearest(name, names)
    remedy = f"{option} {similar!r}" if similar else option
    found = ", ".join(names)
    what = f'no column "{name}"'
    raise DataError(Problem(what, str(path), found=found, remedy=remedy, id="D14"))


def _by_usual_name(
    columns: list[Column], usual: list[str], except_for: Sequence[str] = ()
) -> Column | None:
    """Return the column whose name is a usual one, or else has a usual one as a part."""
    left = [column for column in columns if column.name not in except_for]
    for name in usual:
        for column in left:
            if words_of(column.name) == [name]:
                return column
    for name in usual:
        for column in left:
            if name in words_of(column.name):
                return column
    return None


def _find_sequence(
    path: str | Path, columns: list[Column], except_for: Sequence[str]
) -> tuple[Column, str]:
    """Return the column of the sequences, and how it was found. Raises: DataError if none is."""
    left = [
        column for column in columns if column.name not in except_for and column.may_be_sequences
    ]
    column = _by_usual_name(left, SEQUENCE_NAMES)
    if column is not None:
        return column, "by its name"

    if not left:
        raise DataError(
            Problem(
                "no column of sequences was recognised",
                str(path),
                expected="a column of texts, or of lists",
                found=", ".join(column.described for column in columns),
                remedy="--sequence-field NAME",
                id="D14",
            )
        )

    def rank(column: Column) -> tuple[bool, bool, float]:
        return column.lists > 0, not column.is_aside, column.mean_size

    return max(left, key=rank), "by its long values"


def _label_by_values(path: str | Path, columns: list[Column], except_for: Sequence[str]) -> Column:
    """Return the last column with a few different values, at best one that is not aside.

    Raises: DataError if there is none.
    """
    left = []
    for column in columns:
        if column.name not in except_for and column.are_labels and column.has_few_values:
            left.append(column)
    if not left:
        raise _no_label(path, columns, "--label-field NAME")

    def rank(column: Column) -> tuple[bool, bool, bool]:
        has_usual_name = _by_usual_name([column], LABEL_NAMES) is not None
        return not column.is_constant, not column.is_aside, has_usual_name

    # Of equal ones the last, where a table mostly has its label.
    return max(reversed(left), key=rank)


def _no_label(path: str | Path, columns: list[Column], remedy: str) -> DataError:
    return DataError(
        Problem(
            "no column of labels was recognised",
            str(path),
            expected=f"a column of texts or integers, at most {MOST_CLASSES:,} different ones "
            "and each in several rows",
            found=", ".join(column.described for column in columns),
            remedy=remedy,
            id="D14",
        )
    )


def _require_tokens(path: str | Path, column: Column) -> None:
    """Raise DataError if the sequences in a column are measurements: then they have no tokens."""
    measured = [text for text in column.examples if is_measured(text)]
    if len(measured) > len(column.examples) / 2:
        raise DataError(
            Problem(
                FRACTIONS,
                str(path),
                expected=f'texts, or integers >= 0, in the column "{column.name}"',
                found=f"{measured[0]!r:.60}",
                remedy=f"{FRACTIONS_REMEDY}; or --sequence-field, if it is another column",
                id="D7",
            )
        )


def _kind_of_tokens(column: Column) -> tuple[str, str]:
    """Return the kind of tokens of the sequences in a column, and why."""
    if column.are_ids and (column.lists or column.longest_ids > 1):
        return "ids", "integers"
    if column.lists:
        return "words", "lists of texts"

    if sum(map(_is_list_of_texts, column.examples)) > len(column.examples) / 2:
        return "words", "lists in texts, whose brackets and quotes become parts of the words"

    if sum(map(_is_indented, column.examples)) > len(column.examples) / 2:
        return "characters", "texts with indented lines, such as code"

    words = [word for text in column.examples for word in text.split()]
    per_text = len(words) / max(1, len(column.examples))
    are_different = len(set(words)) > SHARE_OF_DIFFERENT_WORDS * len(words)
    if per_text < WORDS_PER_TEXT and are_different:
        why = "texts with hardly any white space"
        joint = _joint_of(column.examples)
        return "characters", why + (f'; spaces in place of "{joint}" make words' if joint else "")
    return "words", "texts with white space" if per_text > 1 else "words that occur often"


def _is_indented(text: str) -> bool:
    """Return whether a text has a line that begins with white space behind another line."""
    return "\n " in text or "\n\t" in text


def _ends_in_marks(texts: list[str]) -> bool:
    """Return whether many words of texts end in a mark, as those of sentences and of code do."""
    words = [word for text in texts for word in text.split()]
    marked = [word for word in words if _MARKED.fullmatch(word)]
    return len(marked) > SHARE_OF_MARKED_WORDS * len(words)


def _joint_of(texts: list[str]) -> str:
    """Return the sign that stands between the words of texts without spaces, "" if none does.

    Words occur again and again, and between two signs there is one.
    """
    for joint in _JOINTS:
        words = [word for text in texts for word in text.split(joint)]
        are_different = len(set(words)) > SHARE_OF_DIFFERENT_WORDS * len(words)
        if len(words) >= WORDS_PER_TEXT * len(texts) and not are_different and all(words):
            return joint
    return ""


def _is_list_of_texts(text: str) -> bool:
    """Return whether a text looks like a list of texts as JSON or Python writes it."""
    return text.lstrip().startswith(('["', "['"))
