"""Shows what was guessed of a file: the config as YAML with comments, and what was assumed."""

from __future__ import annotations

import json
import re
from collections.abc import Set
from typing import Any

from rnncls.data.columns import Layout
from rnncls.data.files.dialect import TABLES, described
from rnncls.data.seen import Entry, Seen
from rnncls.errors import on_one_line

_TOKENS = "--tokens ids|words|characters|subwords"

MOST_CLASSES_SHOWN = 10
COMMENT_COLUMN = 30


# Text that needs no quotes in YAML, if it is none of the words that mean true, false or nothing.
_PLAIN = re.compile(r"([A-Za-z]|\.{0,2}/)[A-Za-z0-9_./-]*")
_MEANS_OTHER = re.compile(r"true|false|null|yes|no|on|off|y|n", re.IGNORECASE)


def assumptions(seen: Seen, raw: dict[str, Any], asked: Set[str]) -> list[str]:
    """Return what was assumed, and with which option that changes.

    Of the keys that are `asked` for, nothing was.
    """
    layout = seen.layout
    # How a table is read is said on its own, as it is for the files of a config.
    lines = [f"{seen.path}: {_name_of_format(layout)}, {seen.rows}"]
    for what, names, why, option in (
        ("sequence", layout.sequence_fields, layout.why_sequence, "--sequence-field"),
        ("label", (layout.label_field,), layout.why_label, "--label-field"),
    ):
        others = [other for other in layout.columns if other not in names]
        lines.append(f"{what}: {listed(list(names))}, {why} ({option}: {listed(others)})")
    lines.append(f"tokens: {layout.tokens}, {layout.why_tokens} ({_TOKENS})")
    lines.append(_described_classes(seen))
    lines.append(_described_lengths(seen))

    if seen.num_empty and "data.empty" not in asked:
        rows = "1 row" if seen.num_empty == 1 else f"{seen.num_empty:,} rows"
        are = "is" if seen.num_empty == 1 else "are"
        lines.append(f"{rows} with an empty sequence {are} left out (data.empty)")
    if "max_length" in raw["data"] and "data.max_length" not in asked:
        limit = raw["data"]["max_length"]
        cut = f"longer sequences are cut after {limit:,} tokens (data.max_length)"
        if seen.has_positions:
            cut = f"all have one length: {cut}, and each place is learned (model.positions)"
        lines.append(cut)
    held_out = []
    for name, purpose in (("val", "validation"), ("test", "the test")):
        key = f"{name}_fraction"
        # A split with its own file takes none of the rows.
        if key in raw["data"] and asked.isdisjoint({f"data.{key}", f"data.{name}"}):
            held_out.append(f"for {purpose} {raw['data'][key]:.0%}")
    if held_out:
        lines.append(f"held out {', '.join(held_out)}, because there are few rows")

    for_uneven = [
        f"{key}: {raw['train'][key]}"
        for key in ("class_weights", "best_metric")
        if key in raw["train"] and f"train.{key}" not in asked
    ]
    if for_uneven:
        lines.append(f"classes are uneven: {', '.join(for_uneven)}")
    return [_one_line(line) for line in lines]


def _name_of_format(layout: Layout) -> str:
    return layout.format.upper() if layout.format in TABLES else described(layout.dialect)


def _described_format(layout: Layout) -> str:
    if layout.format in TABLES:
        return f"{_name_of_format(layout)}, {described(layout.dialect)}"
    return described(layout.dialect)


def _described_classes(seen: Seen) -> str:
    number = len(seen.classes)
    shown = []
    for label, count in seen.classes.most_common(MOST_CLASSES_SHOWN):
        shown.append(f"{shown_value(label)} ({count:,})")
    if number > MOST_CLASSES_SHOWN:
        shown.append("...")
    return f"{number:,} {'class' if number == 1 else 'classes'}: {', '.join(shown)}"


def _described_lengths(seen: Seen) -> str:
    median = seen.percentile(0.5)
    usual = seen.percentile(0.99)
    unit = "words" if seen.layout.tokens == "subwords" else seen.layout.tokens
    return f"length in {unit}: median {median:,}, 99 % up to {usual:,}, longest {seen.longest:,}"


def listed(names: list[str]) -> str:
    """Return the first names, for people."""
    shown = [shown_value(name) for name in names[:MOST_CLASSES_SHOWN]]
    if len(names) > MOST_CLASSES_SHOWN:
        shown.append("...")
    return ", ".join(shown) or "none"


def shown_value(text: str) -> str:
    """Return a text from the file as it can stand in a line: cut, and in quotes if need be."""
    shown = text if len(text) <= 60 else f"{text[:60]}..."
    is_plain = shown.isprintable() and shown and shown == shown.strip()
    return shown if is_plain else json.dumps(shown)


def to_yaml(seen: Seen, entries: list[Entry]) -> str:
    """Return the entries as YAML, below what was seen of the file. Each reason is a comment."""
    lines = [
        f"# Made from {shown_value(seen.path)}. Train: rnncls train THIS_FILE.yaml",
        "#",
        f"# {_described_format(seen.layout)}, {seen.rows}",
        f"# {_described_classes(seen)}",
        f"# {_described_lengths(seen)}",
        f"# example: {seen.example}",
    ]
    section = ""
    for entry in entries:
        if entry.section != section:
            section = entry.section
            lines.append(f"{section}:")

        line = f"  {entry.key}: {_to_scalar(entry.value)}"
        if entry.why:
            line = f"{line.ljust(COMMENT_COLUMN)}  # {entry.why}"
        lines.append(line)

    # A comment ends with its line: nothing that stands in the file may end it before.
    return "".join(f"{_one_line(line)}\n" for line in lines)


def _one_line(line: str) -> str:
    return on_one_line(line.replace("\t", " "))


def _to_scalar(value: Any) -> str:
    """Return a value as YAML. Text that could be read as something else is quoted."""
    if not isinstance(value, str):
        return json.dumps(value)

    # Words such as `no` and `y` mean something else to one reader or another.
    if _PLAIN.fullmatch(value) and not _MEANS_OTHER.fullmatch(value):
        return value

    # Between double quotes, YAML reads what JSON writes, and the escapes of `on_one_line`.
    return json.dumps(value, ensure_ascii=False)
