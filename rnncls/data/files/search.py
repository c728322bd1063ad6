"""Finds data files that are no longer where they were: a file is known by its SHA-256."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from rnncls.data.files.opening import fingerprint
from rnncls.errors import DataError
from rnncls.system.file_kinds import ends_of
from rnncls.system.folders import walk
from rnncls.system.streams import say

# Below a folder that somebody names, there may be anything.
MOST_SEEN = 100_000  # files below it whose names are looked at
MOST_HASHED = 1_000  # files below it that are read for their SHA-256 alone


@dataclass
class Search:
    """Where files are looked for, and what was found already."""

    beside: Path | None = None  # a run or a sweep, or a checkpoint's file
    data_dir: Path | None = None  # a folder that the user names
    also: tuple[str, ...] = ()  # paths that a later config of the run has

    found: dict[str, str] = field(default_factory=dict)  # the path by SHA-256
    others: dict[str, str] = field(default_factory=dict)  # another file of its name, by SHA-256
    hashes: dict[tuple[str, int, int], str] = field(default_factory=dict)  # by path, size and time
    below: "_Below | None" = None  # what is in data_dir, once somebody has looked

    @property
    def described(self) -> str:
        """Where files are looked for, in words."""
        places = []
        if self.beside is not None:
            places.append(f"beside {self.beside} and in the folders above it")
        if self.data_dir is not None:
            places.append(f"below {self.data_dir}{self._rest}")
        return " and ".join(places)

    @property
    def _rest(self) -> str:
        """What was not looked at below data_dir, in words."""
        if self.data_dir is None or not self.data_dir.exists():
            return ", which does not exist"
        return "" if self.below is None else self.below.rest


class _Below:
    """The files below a folder, by their names and, once they were read, by their SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rest = ""  # what was not looked at, in words
        self.by_name: dict[str, list[str]] = {}
        self.by_suffixes: dict[str, list[str]] = {}
        self.by_hash: dict[str, list[str]] = {}
        self.is_read: set[str] = set()  # suffixes of files that were read

        files = [*islice(_files_below(folder.absolute()), MOST_SEEN)]
        if len(files) == MOST_SEEN:
            self.rest = f" (its first {MOST_SEEN:,} files)"
        for file in files:
            self.by_name.setdefault(os.path.basename(file), []).append(file)  # noqa: PTH119
            self.by_suffixes.setdefault(ends_of(file), []).append(file)

    def with_hash(self, path: str, sha256: str, search: Search) -> list[str]:
        """Return the files with this SHA-256 whose names end as `path` does."""
        suffixes = ends_of(path)
        alike = self.by_suffixes.get(suffixes, [])
        if suffixes not in self.is_read:
            self.is_read.add(suffixes)
            self._read(path, alike, search)
        return [file for file in self.by_hash.get(sha256, []) if ends_of(file) == suffixes]

    def _read(self, path: str, files: list[str], search: Search) -> None:
        """Read files for their SHA-256, and say why this takes a while."""
        if len(files) > MOST_HASHED:
            suffixes = ends_of(path)
            self.rest = (
                f" (of {len(files):,} {suffixes} files, the first {MOST_HASHED:,} were read)"
            )
        files = files[:MOST_HASHED]
        if len(files) > 1:
            name = Path(path).name
            text = (
                f"no {name} of the run is below {self.folder}: reading {len(files):,} other files"
            )
            say(f"rnncls: {text}")
        for file in files:
            self.by_hash.setdefault(hash_of(file, search), []).append(file)


def find_moved(path: str, sha256: str, search: Search, taken: set[str]) -> str | None:
    """Return where a file is now that was at `path`, as an absolute path; None if it is not found.

    It has the same SHA-256, and a name that ends alike: the name says how it is read. What is in
    `taken` is another file.
    """
    suffixes = ends_of(path)
    for candidate in _candidates(path, sha256, search):
        absolute = os.path.abspath(candidate)  # noqa: PTH100  # links are kept as they are
        if absolute in taken or ends_of(absolute) != suffixes:
            continue
        hash = hash_of(absolute, search)
        if hash == sha256:
            return absolute
        if hash and Path(absolute).name == Path(path).name:
            search.others.setdefault(sha256, absolute)
    return None


def _candidates(path: str, sha256: str, search: Search) -> Iterator[str]:
    """Yield the paths where a file may be now, the likeliest first."""
    if sha256 in search.found:
        yield search.found[sha256]
    yield from search.also

    # A run that was moved together with its data, or beside a copy of it: what the old path ends
    # in is somewhere above the run.
    ends = _ends(path)
    if search.beside is not None:
        for folder in _folder_and_above(search.beside):
            yield from (str(folder / end) for end in ends)

    if search.data_dir is None:
        return
    if search.data_dir.is_file():
        yield str(search.data_dir)
        return
    yield from (str(search.data_dir / end) for end in ends)

    # Other files are read for their hashes only if no file of this name fits.
    if search.below is None:
        search.below = _Below(search.data_dir)
    yield from search.below.by_name.get(Path(path).name, [])
    yield from search.below.with_hash(path, sha256, search)


def _ends(path: str) -> list[str]:
    """Return what a path ends in, the longest first: /a/b.csv -> a/b.csv, b.csv."""
    parts = [part for part in Path(path).parts if part != "/"]
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _folder_and_above(path: Path) -> list[Path]:
    """Return a path and all folders above it, the nearest first; also those behind links."""
    absolute = Path(os.path.abspath(path))  # noqa: PTH100  # first as it is written
    real = Path(os.path.realpath(path))
    return list(dict.fromkeys([absolute, *absolute.parents, real, *real.parents]))


def _files_below(folder: Path) -> Iterator[str]:
    """Yield the files below a folder, in the order of their names."""
    # Links to folders are not followed: they may go in a circle. A folder that may not be looked
    # into has no files.
    with suppress(OSError):
        for parent, folders, names in walk(folder, closed=[]):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in sorted(names):
                yield os.path.join(parent, name)  # noqa: PTH118  # faster


def hash_of(path: str, search: Search) -> str:
    """Return the SHA-256 of a file; "" if there is none that can be read."""
    try:
        stat = Path(path).stat()
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in search.hashes:
            search.hashes[key] = fingerprint(path)
    # ValueError: a name that no file can have.
    except (OSError, ValueError, DataError):
        return ""
    return search.hashes[key]
