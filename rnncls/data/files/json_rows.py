"""Reads JSON lines: one object per line."""

import json
from collections.abc import Iterator
from typing import Any

from rnncls.data.files.bad_rows import BadRows
from rnncls.data.files.lines import Lines

NumberedRows = Iterator[tuple[int, dict[str, Any]]]  # number of the row's first line, its fields


def json_rows(lines: Lines, bad: BadRows) -> NumberedRows:
    """Yield the JSON object of each line that has one. Blank lines are skipped."""
    for number, text in lines:
        if not text or text.isspace():
            continue

        # RecursionError is how Python answers thousands of nested brackets.
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:
            bad.add(number, "not JSON", found=f"{str(error)[:60]}: {text[:40]!r}")
            continue

        # Python reads "\ud800" as text that no file can hold. Looking for the escape is much
        # faster than looking at every value.
        if "\\ud" in text.lower() and not _is_text(row):
            bad.add(
                number,
                "half of a surrogate pair",
                expected="Unicode text",
                found=f"{text:.60}",
                id="D11",
            )
        elif isinstance(row, dict):
            yield number, row
        else:
            bad.add(
                number,
                "not a JSON object",
                expected='{"sequence": ..., "label": ...}',
                found=f"{text:.60}",
            )


def _is_text(value: Any) -> bool:
    """Return whether all text in a JSON value can be written as UTF-8."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
