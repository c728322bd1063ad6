"""The data files of a run or a sweep that began earlier: unchanged, though perhaps moved."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.dataset import Fingerprints
from rnncls.data.files.opening import fingerprint
from rnncls.data.files.places import as_in_config, files_of, in_tuple, named
from rnncls.data.files.search import Search, find_moved, hash_of
from rnncls.data.splits import SPLITS
from rnncls.errors import CheckpointError, DataError, Problem
from rnncls.system.streams import say


class Remedies(NamedTuple):
    """What helps where a file is missing or has changed. {name} stands for the split's name."""

    missing: str
    changed: str


def with_files_now(
    data: FilesConfig,
    known: Fingerprints,
    search: Search,
    remedies: Remedies,
    splits: Sequence[str] = SPLITS,
    overridden: Sequence[str] = (),
) -> FilesConfig:
    """Return the config with the paths where the files of these splits are now.

    `known` are the fingerprints of the run; a split without any is not looked at. The paths of the
    `overridden` splits are the user's: their files are nowhere else.

    Says on stderr where a file was found that is no longer where it was.

    Raises: CheckpointError if a file has changed, or if the run had files that the config lacks.
    DataError if there is no such file any more.
    """
    for name in splits:
        paths = getattr(data, name)
        if paths is None or name not in known:
            continue

        if name in overridden:
            files = _among(files_of(paths), known[name], name, remedies)
        else:
            saved = in_tuple(paths)
            files = _files_now(saved, known[name], name, search, remedies)
            hashes = dict(zip(saved, known[name], strict=True))
            say_moved(name, hashes, dict(zip(saved, files, strict=True)), search)
        data = data.model_copy(update={name: as_in_config(files)})

    # Without its files, a split would silently be taken from the training files instead.
    missing = sorted(name for name in known if getattr(data, name, None) is None)
    if missing:
        what = f"the run had a {missing[0]} file"
        remedy = remedies.changed.format(name=missing[0])
        raise CheckpointError(Problem(what, named(data.train), remedy=remedy, id="D18"))
    return data


def _among(
    files: tuple[str, ...], hashes: tuple[str, ...], name: str, remedies: Remedies
) -> tuple[str, ...]:
    """Return the files of a run among those that the user names, in the order of the run.

    Raises: CheckpointError if one of them is not there. DataError if a file cannot be read.
    """
    # Two equal files are two.
    places: dict[str, list[str]] = {}
    for file in files:
        places.setdefault(fingerprint(file), []).append(file)

    among: list[str] = []
    for hash in hashes:
        if not places.get(hash):
            what = "the data has changed since the run began"
            found = ", ".join(places) if len(files) == 1 else f"{len(files):,} other files"
            raise _changed(what, named(files), hash, found, remedies.changed.format(name=name))
        among.append(places[hash].pop(0))
    return tuple(among)


def _files_now(
    paths: tuple[str, ...],
    hashes: tuple[str, ...],
    name: str,
    search: Search,
    remedies: Remedies,
) -> tuple[str, ...]:
    """Return where the files of a split are now. Raises: CheckpointError. DataError."""
    if len(paths) != len(hashes):
        what = "the run began with another number of files"
        found = f"{len(paths):,}"
        remedy = remedies.changed.format(name=name)
        expected = f"{len(hashes):,}"
        raise CheckpointError(
            Problem(what, named(paths), expected=expected, found=found, remedy=remedy, id="D18")
        )

    hash_by_path = dict(zip(paths, hashes, strict=True))
    return tuple(files_now(hash_by_path, search, "run", remedies, name).values())


def files_now(
    hashes: dict[str, str], search: Search, of_what: str, remedies: Remedies, name: str = ""
) -> dict[str, str]:
    """Return where each file is now, by the path that it had when `of_what` began.

    Raises: CheckpointError if there is only another file. DataError if there is none.
    """
    # Two equal files are two: a copy must not stand for both.
    taken = {path for path, hash in hashes.items() if hash_of(path, search) == hash}
    now: dict[str, str] = {}
    for path, hash in hashes.items():
        now[path] = _file_now(path, hash, search, taken, of_what, remedies, name)
        taken.add(now[path])
    return now


def _file_now(
    path: str,
    hash: str,
    search: Search,
    taken: set[str],
    of_what: str,
    remedies: Remedies,
    name: str,
) -> str:
    """Return where a file is now that was at `path` with this SHA-256. Raises: see above."""
    there = hash_of(path, search)
    if there == hash:
        return path

    now = find_moved(path, hash, search, taken)
    if now is not None:
        return now

    looked = f"looked {search.described}"
    if there:
        what = f"the data has changed since the {of_what} began"
        raise _changed(what, path, hash, f"{there}; {looked}", remedies.changed.format(name=name))
    found = "no file that fits"
    if hash in search.others:
        found = f"{search.others[hash]}, which is another file"
    raise DataError(
        Problem(
            _why_unreadable(path),
            path,
            expected=f"the file that the {of_what} began with, SHA-256 {hash}",
            found=f"{found}; {looked}",
            remedy=remedies.missing.format(name=name),
            id="D1",
        )
    )


def _why_unreadable(path: str) -> str:
    try:
        fingerprint(path)
    except DataError as error:
        return error.problems[0].what
    return "the data was not there"


def _changed(what: str, path: str, hash: str, found: str, remedy: str) -> CheckpointError:
    expected = f"SHA-256 {hash}"
    return CheckpointError(
        Problem(what, path, expected=expected, found=found, remedy=remedy, id="D18")
    )


def say_moved(name: str, hashes: dict[str, str], now: dict[str, str], search: Search) -> None:
    """Say on stderr which files were moved, and where to, once for each search.

    `hashes` and `now` are the SHA-256 and the new path of each file by its old path.
    """
    moved: list[str] = []
    for old, new in now.items():
        if new not in (old, search.found.get(hashes[old])):
            search.found[hashes[old]] = new
            moved.append(old)
    if not moved:
        return

    old = moved[0]
    text = f"the {name} file is now {now[old]}, it was {old} (the same SHA-256)"
    if len(moved) > 1:
        folders = {str(Path(now[old]).parent) for old in moved}
        where = folders.pop() if len(folders) == 1 else f"{len(folders):,} folders"
        text = f"{len(moved):,} {name} files are now in {where}, where {old} is {now[old]}"
        text += " (the same SHA-256)"
    say(f"rnncls: {text}")
