"""The first row of a table: names of columns, or data already."""

import difflib
import re
from collections.abc import Iterable, Sequence

from rnncls.data.files.dialect import Dialect
from rnncls.errors import DataError, Problem

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

# Names that a config reads as they are, and such as it would read as something else.
_PLAIN = re.compile(r"[^\W\d](?:[\w .-]*[\w.-])?")
_MEANS_OTHER = re.compile(r"true|false|null|yes|no|on|off|y|n", re.IGNORECASE)

MOST_COMPARED = 1000  # letters of a name for which a similar one is sought
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
    header: Sequence[str],
    fields: Sequence[str],
    label: str | None,
    where: str,
    is_header: bool = True,
) -> Problem | None:
    """Return what is wrong with the columns of a table, None if all fields are there, each once.

    `label` is the field of the labels, None if there is none. Without a header, the columns have
    numbers.
    """
    missing = [name for name in fields if name not in header]
    if not is_header and missing:
        remedy = "data.sequence_field=1"
        if len(header) > 1 and label is not None:
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
    if len(fields) == 1:
        columns = f"the column {fields[0]}, once"
    return Problem(
        "bad header",
        where,
        expected=f"a header row with {columns}",
        found=shown_names(header),
        remedy=_remedy_of_header(header, fields, missing, label),
        id="D14",
    )


def _remedy_of_header(
    header: Sequence[str], fields: Sequence[str], missing: Sequence[str], label: str | None
) -> str:
    if not missing:
        return "another name for one of two columns"
    if any("\r" in name for name in header):
        return "save it with other line ends: those of this file are carriage returns alone"

    keys = [
        key_of_field("label_field", name, header, LABEL_NAMES)
        if name == label
        else key_of_field("sequence_field", name, header, SEQUENCE_NAMES)
        for name in missing
    ]
    # One of several fields cannot be replaced alone.
    if len(fields) > 1 + (label is not None) and missing[0] != label:
        keys = [f'"{meant(missing[0], header) or "..."}" for "{missing[0]}" in data.sequence_field']
    remedy = " ".join(dict.fromkeys(keys))
    if len(header) == 1 and len(fields) > 1:
        remedy = "data.separator=..., if something else separates the columns"
    elif any(nearest(name, header) for name in missing):
        return remedy

    # Without a header, the first row of the data stands where it would be.
    numbers = "data.header=false data.sequence_field=1"
    if label is not None:
        numbers += " data.label_field=2"
    return f"{remedy}; or, if this row is data, a line {','.join(fields)} above it, or {numbers}"


def key_of_field(key: str, name: str, names: Iterable[str], usual: Sequence[str]) -> str:
    """Return the key of a config with the name that is likely meant by `name`, ready to be copied.

    `names` are those that there are; `usual` those that such a column usually has.
    """
    found = meant(name, list(names), usual)
    if not found:
        return f"data.{key}=..."
    if not _PLAIN.fullmatch(found) or _MEANS_OTHER.fullmatch(found):
        return f'"{found}" for "{name}": data.{key}=...'
    return f"data.{key}='{found}'" if " " in found else f"data.{key}={found}"


def meant(name: str, names: Sequence[str], usual: Sequence[str] = ()) -> str:
    """Return the name that is most like `name`, or else a usual one; "" if there is none."""
    by_usual = (known for known in names if known.strip().lower() in usual)
    return nearest(name, names) or next(by_usual, "")


def first_row_is_data(
    header: Sequence[str],
    fields: Sequence[str],
    label: str | None,
    rows: Iterable[Sequence[str]],
    where: str,
) -> Problem | None:
    """Return the problem of a first row that has the fields, but looks like a row of the data.

    `label` is the field of the labels; `rows` are some of those below.
    """
    if label is None or any(name.strip().lower() in _USUAL for name in fields):
        return None

    below = [row for row in rows if len(row) == len(header)]
    is_data = label.strip() in {row[header.index(label)].strip() for row in below}
    for name in fields:
        position = header.index(name)
        if name != label:
            is_data = is_data or _is_one_of(name, [row[position] for row in below])
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
    # A checkpoint may name a field of megabytes, which each row would be compared with.
    if len(name) > MOST_COMPARED:
        return ""
    by_lower = {known.strip().lower(): known for known in names[:1_000]}
    close = difflib.get_close_matches(name.strip().lower(), list(by_lower), n=1)
    return by_lower[close[0]] if close else ""


def shown_names(names: Sequence[str]) -> str:
    """Return the names of columns for people: the first ones, cut if they are long."""
    shown = ", ".join(name[:SHOWN_CHARACTERS] for name in names[:MOST_SHOWN])
    if len(names) > MOST_SHOWN:
        shown += f", ... ({len(names):,} columns)"
    return shown


def require_columns(where: str, names: Sequence[str], fields: list[str], dialect: Dialect) -> None:
    """Raise DataError unless there are the fields, each column once, and not too many of them."""
    # Only a sheet may lack names.
    is_named = dialect.header or dialect.format != "xlsx"
    label = dialect.label_in(fields)
    problem = many_columns(names, dialect.max_columns, where)
    problem = problem or bad_columns(names, fields, label, where, is_named)
    if problem is not None:
        raise DataError(problem)
