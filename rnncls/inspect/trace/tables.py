"""The tables of a trace: a line for each time step, and as many tables as the columns need."""

from typing import NamedTuple

from rnncls.system.shown import WIDTH, aligned, on_short_line

MOST_OF_TOKEN = 14  # characters in a table


class Column(NamedTuple):
    """One column of a table."""

    name: str
    cells: list[str]  # of the rows that are shown


class Group(NamedTuple):
    """Columns that stand in one table."""

    title: str  # of the table, where they are its first ones
    columns: list[Column]


def tables_of(tokens: list[str], rows: list[int], groups: list[Group]) -> list[str]:
    """Return tables with all columns: as many groups in each as fit in its width.

    `rows` are the time steps that are shown, from 0 on, of the T tokens.
    """
    steps = [f"{row + 1:,}" for row in rows]
    width = max(map(len, steps))
    keys = [
        Column("t".rjust(width), [step.rjust(width) for step in steps]),
        Column("token", [name_of(tokens[row]) for row in rows]),
    ]

    titles: list[str] = []
    tables: list[list[Column]] = []
    for group in groups:
        if tables and _width_of([*tables[-1], *group.columns]) <= WIDTH:
            tables[-1] += group.columns
        else:
            is_more = group.title in titles
            titles.append(f"{group.title}, continued" if is_more else group.title)
            tables.append([*keys, *group.columns])

    blocks = []
    for title, table in zip(titles, tables, strict=True):
        lines = aligned(_with_gaps(table, rows), texts=2)
        blocks.append("\n".join([title, *lines]))
    return blocks


def _width_of(columns: list[Column]) -> int:
    """Return the width of a table in characters."""
    widths = [max(map(len, [column.name, *column.cells])) for column in columns]
    return sum(widths) + 2 * (len(widths) - 1)


def _with_gaps(columns: list[Column], rows: list[int]) -> list[list[str]]:
    """Return the lines of a table, with dots where rows are left out."""
    lines = [[column.name for column in columns]]
    for number, row in enumerate(rows):
        if number > 0 and row > rows[number - 1] + 1:
            lines.append(["...", *[""] * (len(columns) - 1)])
        lines.append([column.cells[number] for column in columns])
    return lines


def name_of(foreign: object) -> str:
    """Return a token or a label as it stands in a table."""
    return on_short_line(foreign, MOST_OF_TOKEN)
