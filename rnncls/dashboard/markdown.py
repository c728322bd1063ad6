"""Markdown, which TensorBoard's text tab renders."""

import re
from collections.abc import Sequence

from rnncls.system.shown import on_short_line

MOST_OF_CELL = 300  # characters

# Every character that may mean something to Markdown, or to HTML in it.
_MARKS = re.compile(r"[^\w\s.,=%:/+-]|_")


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table; every cell is shown as the text that it is."""
    lines = [_row(headings), "| " + " | ".join(["---"] * len(headings)) + " |"]
    lines += [_row(row) for row in rows]
    return "\n".join(lines)


def block(text: str) -> str:
    """Return a text as a block that is shown as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def in_markdown(foreign: object, most: int) -> str:
    """Return what comes from anywhere so that Markdown shows it as it is, on one line."""
    # Entities and not backslashes, which stay visible in front of some characters.
    return _MARKS.sub(lambda match: f"&#{ord(match[0])};", on_short_line(foreign, most))


def _row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(in_markdown(cell, MOST_OF_CELL) for cell in cells) + " |"
