"""Folders: new ones with a number, those that must be no links, and all that are below one."""

import os
from collections.abc import Iterator
from pathlib import Path

from rnncls.errors import CheckpointError, Problem


def refuse_links(root: Path, *paths: str) -> None:
    """Raise if a folder of these paths in `root` is a symbolic link. It need not be there.

    Whoever writes, renames or deletes in a folder inside a run or a sweep calls this before: the
    files would be those of somebody else. `root` itself may be a link, as the user named it.

    Raises: CheckpointError.
    """
    for path in paths:
        folder = root
        for part in Path(path).parts:
            folder /= part
            if folder.is_symlink():
                raise CheckpointError(
                    Problem(
                        "a symbolic link in place of a folder",
                        str(folder),
                        expected="a folder, or nothing",
                        remedy="the directory that it belongs to; only the one that is named on "
                        "the command line may be a link",
                        id="K7",
                    )
                )


def make_numbered(folder: Path) -> Path:
    """Make a folder, with a number behind its name if that is taken, and return its path.

    Each of several processes that want the same name at once gets a folder of its own. One that is
    there is never used, not even if it is empty: it may be that of a process which has just begun.

    Raises: OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder
    number = 1
    while True:
        # Only one process can make it; to ask first whether it is there would not tell which.
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            path = folder.with_name(f"{folder.name}-{number}")
        else:
            return path


def walk(folder: Path, closed: list[OSError]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each folder below `folder`, itself first, and the names of its folders and files.

    The caller may take names out of the folders: those are not entered. Links are not followed.
    Why a folder could not be looked into is appended to `closed`.

    Raises: OSError if `folder` itself cannot be looked into.
    """
    # os.walk calls itself for each level on Python 3.11, and ends at a thousand.
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        folders: list[str] = []
        files: list[str] = []
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    names = folders if entry.is_dir(follow_symlinks=False) else files
                    names.append(entry.name)
            # The names may be read without the right to what they stand for.
            os.stat(os.path.join(path, os.curdir))  # noqa: PTH116, PTH118  # Path drops the dot
        except OSError as error:
            if path == folder:
                raise
            closed.append(error)
            continue

        yield path, folders, files
        waiting += [path / name for name in sorted(folders, reverse=True)]
