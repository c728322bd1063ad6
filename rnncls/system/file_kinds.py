"""The kinds of files that people have, by the ends of their names and by their first bytes.

A name says which format a file has and how it is packed, or that it is of a kind that is not read.
"""

import re
from pathlib import PurePath
from typing import NamedTuple

# What the end of a name says. A .json file may be one array or a line for each object: its first
# character shows.
_FORMATS = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "json": "jsonl",
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "parquet": "parquet",
    "pq": "parquet",
    "arrow": "arrow",
    "arrows": "arrow",
    "ipc": "arrow",
    "feather": "arrow",
    "xlsx": "xlsx",
    "xlsm": "xlsx",
}

# How a file may be packed, behind the end that says its format.
PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zip")

# Others are refused by name, and are data files all the same.
_PACKING = "|".join(map(re.escape, (*PACKED_SUFFIXES, ".zst", ".lz4")))
_DATA_NAME = re.compile(rf"\.({'|'.join(_FORMATS)})({_PACKING})?$|\.zip$", re.IGNORECASE)

_AS_CSV = "save its rows as CSV or JSON lines"


class Kind(NamedTuple):
    """A kind of file that is not read, and what to do with it."""

    name: str
    remedy: str


_IMAGE = Kind("an image", "a file with a sequence in each row")
_PICKLE = Kind(
    "a pickle (which could run any program)", "pandas.read_pickle(...).to_csv(..., index=False)"
)
NUMPY = Kind("a NumPy file", _AS_CSV)
_OFFICE = Kind("an old Office file (such as .xls)", "save it as .xlsx or CSV")
_DOCUMENT = Kind("a document", _AS_CSV)
_DATABASE = Kind("an SQLite database", "sqlite3 -header -csv FILE 'SELECT ...' > rows.csv")
_FEATHER = Kind("a Feather file of version 1", "pandas.read_feather(...).to_parquet(...)")
_HDF = Kind("an HDF5 file", _AS_CSV)
_STATISTICS = Kind("a file of a statistics program", _AS_CSV)
WEIGHTS = Kind("a file of weights", "a file with a sequence in each row")
_SHEET = Kind("an OpenDocument file", "save it as .xlsx or CSV")

# What they begin with.
OTHER_MAGIC = {
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": _OFFICE,
    b"\x93NUMPY": NUMPY,
    b"FEA1": _FEATHER,
    b"%PDF-": _DOCUMENT,
    b"SQLite format 3\0": _DATABASE,
    b"\x89HDF\r\n": _HDF,
    b"Obj\x01": Kind("an Avro file", _AS_CSV),
    b"\x89PNG\r\n": _IMAGE,
    b"\xff\xd8\xff": _IMAGE,
    b"GIF87a": _IMAGE,
    b"GIF89a": _IMAGE,
    b"\x80\x02": _PICKLE,
    b"\x80\x03": _PICKLE,
    b"\x80\x04": _PICKLE,
    b"\x80\x05": _PICKLE,
    b"<!DOCTYPE html": Kind("a page of the web", "download the file itself"),
    b"<!doctype html": Kind("a page of the web", "download the file itself"),
    b"version https://git-lfs.": Kind("a pointer of Git LFS, not the file", "git lfs pull"),
}

# Files in a zip by which it is known to be something else.
OTHER_MEMBERS = {
    "word/document.xml": _DOCUMENT,
    "ppt/presentation.xml": _DOCUMENT,
    "mimetype": _SHEET,
}

# Of files whose beginning says nothing. What is text is read as that, whatever its name.
_OTHER_SUFFIXES = {
    "xls": _OFFICE,
    "doc": _OFFICE,
    "docx": _DOCUMENT,
    "pdf": _DOCUMENT,
    "ods": _SHEET,
    "pkl": _PICKLE,
    "pickle": _PICKLE,
    "npy": NUMPY,
    "npz": NUMPY,
    "h5": _HDF,
    "hdf5": _HDF,
    "db": _DATABASE,
    "sqlite": _DATABASE,
    "avro": Kind("an Avro file", _AS_CSV),
    "orc": Kind("an ORC file", "pandas.read_orc(...).to_parquet(...)"),
    "rds": _STATISTICS,
    "rdata": _STATISTICS,
    "sav": _STATISTICS,
    "dta": _STATISTICS,
    "sas7bdat": _STATISTICS,
    "mat": _STATISTICS,
    "pt": WEIGHTS,
    "pth": WEIGHTS,
    "safetensors": WEIGHTS,
}


def is_data_name(name: str) -> bool:
    """Return whether a name ends as that of a data file, packed or not."""
    return _DATA_NAME.search(name) is not None


def is_data_name_in_folder(name: str) -> bool:
    """Return whether a name in a folder with data files ends as that of one of them.

    There, a text is taken for a table with tabs; anywhere else, it may be any text.
    """
    return is_data_name(name) or _suffix_of(name) == "txt"


def format_by_name(name: str) -> str:
    """Return the format that the name of a file says, "" if it says none."""
    return _FORMATS.get(_suffix_of(name), "")


def other_kind_by_name(name: str) -> Kind | None:
    """Return the kind that is not read which the name of a file says, None if it says none."""
    return _OTHER_SUFFIXES.get(_suffix_of(name))


def _suffix_of(name: str) -> str:
    return PurePath(without_packing(name)).suffix[1:].lower()


def without_packing(name: str) -> str:
    """Return a file's name without the end that says how it is packed."""
    for suffix in PACKED_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def ends_of(name: str) -> str:
    """Return what a name says of how the file is read: `/a/b.csv.gz` -> `.csv.gz`."""
    plain = without_packing(name)
    return (PurePath(plain).suffix + name[len(plain) :]).lower()
