"""What people are shown: tables of aligned columns, numbers of things, names on a short line."""

from collections.abc import Sequence

from rnncls.errors import on_one_line
from rnncls.system.rows import shortened

WIDTH = 80  # characters of a line, at most, in what is printed for people


def aligned(rows: Sequence[Sequence[str]], texts: int = 0) -> list[str]:
    """Return the rows of a table as lines of columns, of which the first `texts` begin at the left.

    The other columns hold numbers, which end at the right. A header is a row like any other.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            cells.append(cell.ljust(width) if number < texts else cell.rjust(width))
        lines.append("  ".join(cells).rstrip())
    return lines


def counted(count: int, noun: str) -> str:
    """Return a number of things: "1 class", "2,000 classes"."""
    plural = "es" if noun.endswith(("s", "x")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def ends_of(count: int, first: int, last: int) -> list[int | None]:
    """Return the indices that are shown of many: the first and the last ones.

    None stands for all between them, where there are any.

    >>> ends_of(8, first=2, last=1), ends_of(3, first=2, last=1)
    ([0, 1, None, 7], [0, 1, 2])
    """
    if count <= first + last:
        return list(range(count))
    return [*range(first), None, *range(count - last, count)]


def on_short_line(foreign: object, most: int) -> str:
    """Return what comes from anywhere, as `on_one_line`, in at most `most` characters."""
    # Shortened before, because it may be of any length, and after, because an escape is longer.
    return shortened(on_one_line(shortened(str(foreign), most)), most)


def visible(token: str) -> str:
    """Return a token as one printable word.

    White space and control characters are escaped; a space becomes an open box.
    """
    return repr(token)[1:-1].replace(" ", "\N{OPEN BOX}")
