"""The first row of a table: names of columns, or data already."""

import difflib
import re
from collections.abc import Iterable, Sequence

from rnncls.errors import Problem

# The usual names, the likeliest first.
# fmt: off
SEQUENCE_NAMES = [
    "sequence", "seq", "text", "tokens", "words", "sentence", "message", "msg", "content", "body",
    "review", "comment", "tweet", "post", "document", "description", "title", "headline",
    "subject", "question", "query", "utterance", "events", "actions", "steps", "path", "url",
    "smiles", "formula", "name", "line", "code",
]
LABEL_NAMES = [
    "label", "labels", "class", "category", "target", "y", "sentiment", "outcome", "tag", "topic",
    "intent", "type", "kind", "genre", "language", "lang", "rating", "stars", "species", "group",
    "section",
]
# fmt: on

_USUAL = frozenset({*SEQUENCE_NAMES, *LABEL_NAMES})

_NUMBERS = re.compile(r"[-+0-9.,;\s\[\]]*[0-9][-+0-9.,;\s\[\]]*")

MOST_SHOWN = 20  # columns
SHOWN_CHARACTERS = 60  # of the name of a column


def words_of(name: str) -> list[str]:
    """Return the words of a column's name: `Review Text` and `review_text` have two."""
    return [part for part in re.split(r"[\W_]+", name.lower()) if part]


def many_columns(header: Sequence[str], most: int, where: str) -> Problem | None:
    """Return the problem of a table with more than `most` columns, None if it has no more."""
    if len(header) <= most:
        return None
    return Problem(
        "very many columns",
        where,
        expected=f"at most {most:,}",
        # One more than allowed stands for any number of them.
        found=f"{len(header):,}" if len(header) > most + 1 else f"more than {most:,}",
        remedy="a larger data.max_columns, if they are needed",
        id="D13",
    )


def bad_columns(
    header: Sequence[str], fields: Sequence[str], where: str, is_header: bool = True
) -> Problem | None:
    """Return what is wrong with the columns of a table, None if all fields are there, each once.

    Without a header, the columns have numbers.
    """
    missing = [name for name in fields if name not in header]
    if not is_header and missing:
        remedy = "data.sequence_field=1"
        if len(header) > 1:
            remedy += " data.label_field=2"
        return Problem(
            f'no column "{missing[0]}": without a header, columns have numbers',
            where,
            expected=f"one of 1 to {len(header)}" if len(header) > 1 else "1",
            found=missing[0],
            remedy=f"{remedy}, or the numbers that are right",
            id="D14",
        )

    has_duplicates = len(set(header)) < len(header)
    if not missing and not has_duplicates:
        return None

    columns = f"the columns {' and '.join(fields)}, each once" if fields else "each column once"
    return Problem(
        "bad header",
        where,
        expected=f"a header row with {columns}",
        found=shown_names(header),
        remedy=_remedy_of_header(header, fields, missing),
        id="D14",
    )


def _remedy_of_header(header: Sequence[str], fields: Sequence[str], missing: Sequence[str]) -> str:
    if not missing:
        return "another name for one of two columns"

    remedy = "data.sequence_field=..., data.label_field=..."
    similar = nearest(missing[0], header)
    if similar:
        remedy = f'"{similar}" for "{missing[0]}": {remedy}'
    # Without a header, the first row of the data stands where it would be.
    numbers = "data.header=false data.sequence_field=1 data.label_field=2"
    return f"{remedy}; or, if this row is data, a line {','.join(fields)} above it, or {numbers}"


def first_row_is_data(
    header: Sequence[str], fields: Sequence[str], rows: Iterable[Sequence[str]], where: str
) -> Problem | None:
    """Return the problem of a first row that has the fields, but looks like a row of the data.

    `fields` are the sequence's, then the label's; `rows` are some of those below.
    """
    if len(fields) < 2 or any(name.strip().lower() in _USUAL for name in fields):
        return None

    *sequences, label = [header.index(name) for name in fields]
    below = [row for row in rows if len(row) == len(header)]
    labels = {row[label].strip() for row in below}
    is_data = header[label].strip() in labels
    for position in sequences:
        is_data = is_data or _is_one_of(header[position], [row[position] for row in below])
    if not is_data:
        return None

    return no_header(where, header, "data.header=true, if these are the names of the columns")


def _is_one_of(name: str, texts: Sequence[str]) -> bool:
    """Return whether the name of a column looks like one of its texts."""
    return name in texts or bool(_NUMBERS.fullmatch(name)) or has_words_of(name, texts)


def has_words_of(name: str, texts: Iterable[str]) -> bool:
    """Return whether a name is several words of the texts below it, and none of a usual name.

    Such as `good film` above `bad film`; `review text` is none.
    """
    words = name.lower().split()
    if len(words) < 2 or not _USUAL.isdisjoint(words_of(name)):
        return False
    known = {word for text in texts for word in text.lower().split()}
    return 2 * sum(word in known for word in words) >= len(words)


def no_header(where: str, header: Sequence[str], or_else: str = "") -> Problem:
    """Return the problem of a table without a header, with both remedies and a third."""
    remedies = [
        "add a first line that names the columns, such as sequence,label",
        "data.header=false, and the columns are 1, 2, 3 and so on",
    ]
    if or_else:
        remedies.append(or_else)
    return Problem(
        "no header: the first row looks like data",
        where,
        expected="the names of the columns",
        found=shown_names(header),
        remedy="; or ".join(remedies),
        id="D14",
    )


def nearest(name: str, names: Sequence[str]) -> str:
    """Return the name that was most likely meant, "" if none is near."""
    by_lower = {known.strip().lower(): known for known in names[:1_000]}
    close = difflib.get_close_matches(name.strip().lower(), list(by_lower), n=1)
    return by_lower[close[0]] if close else ""


def shown_names(names: Sequence[str]) -> str:
    """Return the names of columns for people: the first ones, cut if they are long."""
    shown = ", ".join(name[:SHOWN_CHARACTERS] for name in names[:MOST_SHOWN])
    if len(names) > MOST_SHOWN:
        shown += f", ... ({len(names):,} columns)"
    return shown
