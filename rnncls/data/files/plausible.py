"""Whether the lines of a row with a quoted cell may as well be rows of their own.

In `"Dear Sir, hello` above `bye",pos` each line has two columns, but no row has the label hello.
"""

import re
from collections.abc import Sequence

from rnncls.data.files.splitting import SplitLines, have_width

MOST_VALUES = 100_000  # kept of a column
MOST_CHARACTERS = 2**22  # of them

_DIGITS = re.compile(r"[0-9]+")
_LETTERS = re.compile(r"[^\W\d_]+")


class Column:
    """The values of a column that rows of one line have, and what they look like."""

    def __init__(self) -> None:
        self.count = 0
        self.values: set[str] = set()
        self.shapes: set[str] = set()
        self.characters = 0

    def add(self, value: str) -> None:
        self.count += 1
        if not value or len(self.values) >= MOST_VALUES:
            return
        # A long text is not what tells rows from parts of a cell, and takes memory.
        if value not in self.values and self.characters + len(value) <= MOST_CHARACTERS:
            self.characters += len(value)
            self.values.add(value)
            self.shapes.add(_shape_of(value))

    def looks_like(self, value: str) -> bool:
        """Return whether a value looks like those of a column that differs from row to row."""
        return 2 * len(self.values) > self.count and _shape_of(value) in self.shapes


class Plausible:
    """What the rows of a table have in the columns that tell one row from two.

    That is the column of the labels, or, where `label` is None, each that is not in `others`.
    """

    def __init__(
        self, rows: SplitLines, header: Sequence[str], label: str | None, others: Sequence[str]
    ) -> None:
        self.width = len(header)
        self.is_label = label is not None
        self.columns: dict[int, Column] = {}
        for position, name in enumerate(header):
            if name == label or (label is None and name not in others):
                self.columns[position] = Column()

        num_plain = 0  # rows of one line
        firsts: list[str] = []  # lines of the others
        characters = 0  # of these
        for _, cells, span in rows:
            if span is not None and characters < MOST_CHARACTERS and len(firsts) < MOST_VALUES:
                first = span.texts[0]
                characters += len(first)
                if characters < MOST_CHARACTERS:
                    firsts.append(first)
            if len(cells) == self.width:
                num_plain += span is None
                for position, column in self.columns.items():
                    column.add(cells[position].strip())

        self.has_plain = num_plain > 0
        self.firsts = [] if num_plain else firsts

    def are_rows(self, texts: list[str], delimiter: str) -> bool:
        """Return whether each line could be a row whose quotes are characters."""
        if not self.columns or not have_width(texts, delimiter, self.width):
            return False
        self._learn_from_firsts(delimiter)
        rows = [[cell.strip() for cell in text.split(delimiter)] for text in texts]
        for position, column in self.columns.items():
            if all(row[position] in column.values for row in rows):
                return True

        # Numbers of rows, say, differ from row to row; a label is that of another row.
        return not self.is_label and all(
            column.looks_like(row[position])
            for row in rows
            for position, column in self.columns.items()
        )

    def _learn_from_firsts(self, delimiter: str) -> None:
        """Take the lines above for rows, if no row of the file is a line of its own."""
        for text in self.firsts:
            cells = text.split(delimiter)
            if len(cells) == self.width:
                for position, column in self.columns.items():
                    # White space hardly begins a label, but often a part of a sentence.
                    if cells[position] == cells[position].strip():
                        column.add(cells[position])
        self.firsts = []


def _shape_of(value: str) -> str:
    """Return what a value looks like: `x9` for `cat12` and `dog7`."""
    return _LETTERS.sub("x", _DIGITS.sub("9", value[:200]))
