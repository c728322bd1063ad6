"""How a file is to be read: the values of the keys of a config that say so."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.files.encodings import ENCODING_NAMES, key_of

TABLES = ("csv", "tsv")  # whose rows are lines of text, or several

_NAMES = {
    "jsonl": "JSON lines",
    "json": "a JSON array",
    "parquet": "Parquet",
    "arrow": "Arrow",
    "xlsx": "the first sheet of a workbook",
}
_SEPARATED = {",": "comma-separated", ";": "semicolon-separated", "tab": "tab-separated"}


class Dialect(NamedTuple):
    """How a file is read. The values are those of the config; after `sniff`, none is `auto`."""

    format: str = "auto"  # one of FORMATS
    separator: str = "auto"  # a name of SEPARATORS
    quoting: str = "auto"  # standard or none
    header: bool = True
    encoding: str = "utf-8"
    max_record_bytes: int = 2**24
    max_columns: int = 2**14

    # Whether somebody has said that there is a header, so that its names are not doubted.
    is_header_known: bool = False
    # Whether the quoting was found, so that a row of several lines may have to be doubted.
    is_quoting_found: bool = False
    # Whether the last one of several fields that a table must have is that of the label.
    has_label: bool = True

    def label_in(self, fields: Sequence[str]) -> str | None:
        """Return which one of the fields is that of the label, None if none is."""
        return fields[-1] if self.has_label and len(fields) > 1 else None


def dialect_of(data: FilesConfig) -> Dialect:
    """Return what a config says about its files."""
    return Dialect(
        data.format,
        data.separator,
        data.quoting,
        data.header,
        data.encoding,
        data.max_record_bytes,
        data.max_columns,
        is_header_known="header" in data.model_fields_set,
    )


def described(dialect: Dialect) -> str:
    """Return how a file is read, for people: "tab-separated, no quoting, UTF-8 with mark"."""
    parts = [_NAMES.get(dialect.format, dialect.format)]
    if dialect.format in TABLES:
        parts = [_SEPARATED.get(dialect.separator, f"separated by {dialect.separator}")]
        parts.append("no quoting" if dialect.quoting == "none" else "standard quoting")
        if not dialect.header:
            parts.append("no header")
    if dialect.format in (*TABLES, "jsonl", "json"):
        parts.append(ENCODING_NAMES[dialect.encoding])
    return ", ".join(parts)


def keys_of(dialect: Dialect) -> dict[str, Any]:
    """Return the keys of a config without which a file would not be read as the dialect says.

    The format is none of them: whether a name says it, the dialect does not know.
    """
    keys: dict[str, Any] = {}
    usual = Dialect()
    if dialect.format in TABLES:
        is_tsv = dialect.format == "tsv"
        separator = "tab" if is_tsv else ","
        quoting = "none" if is_tsv else "standard"
        keys["separator"] = dialect.separator if dialect.separator != separator else None
        keys["quoting"] = dialect.quoting if dialect.quoting != quoting else None
        is_said = dialect.is_header_known or not dialect.header
        keys["header"] = dialect.header if is_said else None

    # What has a mark is known by it.
    encoding = key_of(dialect.encoding)
    keys["encoding"] = encoding if encoding != usual.encoding else None
    for key in ("max_record_bytes", "max_columns"):
        value = getattr(dialect, key)
        keys[key] = value if value != getattr(usual, key) else None
    return {key: value for key, value in keys.items() if value is not None}


def is_remarkable(dialect: Dialect) -> bool:
    """Return whether a user should know how a file is read: JSON lines in UTF-8 go without."""
    return dialect.format != "jsonl" or dialect.encoding != "utf-8"
