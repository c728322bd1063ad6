"""Which files are meant: by one name, several, a folder or a pattern."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path

from rnncls.errors import DataError, Problem, require_more_files
from rnncls.system.file_kinds import is_data_name_in_folder

# All of them stand in the config that a run saves, which is read again as any config is.
MAX_PATH_BYTES = 40_000

_PATTERN = re.compile(r"[*?\[]")
_MOST_SHOWN = 5


def files_of(paths: str | Iterable[str]) -> tuple[str, ...]:
    """Return the files that are meant, each once, in the order in which they are read.

    A folder stands for the data files in it, a pattern such as `part*.csv` for the files that it
    fits, both sorted by name. What has the name of a file is that file. Whether a file that is
    named can be read is not asked: whoever opens it says that better.

    Raises: DataError for a folder or a pattern without a file, and for too many files.
    """
    wanted = [paths] if isinstance(paths, str) else paths
    found: dict[str, None] = {}
    for path in wanted:
        found.update(dict.fromkeys(_files_of_one(path)))

    size = sum(len(path.encode(errors="surrogateescape")) for path in found)
    if len(found) > 1 and size > MAX_PATH_BYTES:
        raise DataError(
            Problem(
                "very many data files",
                named(tuple(found)),
                expected=f"paths of at most {MAX_PATH_BYTES:,} bytes, all together",
                found=f"{len(found):,} files, whose paths have {size:,} bytes",
                remedy="fewer files: put those of one kind together, for example with cat",
                id="D1",
            )
        )
    return tuple(found)


def _files_of_one(path: str) -> list[str]:
    """Return the files that one path of a config stands for."""
    if _is_folder(path):
        return _files_in(path)
    # A file may have a star in its name.
    if not _PATTERN.search(path) or _exists(path):
        return [path]

    matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207  # names stay as written
    files = [match for match in matches if not _is_folder(match)]
    if files:
        return files

    expected = "a file, a folder with data files, or a pattern that fits some"
    found = "folders alone" if matches else "nothing of that name"
    folder = _first_folder(path)
    remedy = f"ls {folder}" if _is_folder(folder) else f"there is no folder {folder}"
    raise DataError(
        Problem(
            "no file fits this pattern",
            path,
            expected=expected,
            found=found,
            remedy=remedy,
            id="D1",
        )
    )


def _first_folder(path: str) -> str:
    """Return the folder of a pattern: its path up to the first part that is a pattern itself."""
    parts = path.split("/")
    plain = next(number for number, part in enumerate(parts) if _PATTERN.search(part))
    return "/".join(parts[:plain]) or ("/" if path.startswith("/") else ".")


def _files_in(folder: str) -> list[str]:
    """Return the data files of a folder by their names, without hidden ones and other folders."""
    try:
        names = sorted(entry.name for entry in Path(folder).iterdir())
    except OSError as error:
        what = f"cannot read the folder: {error.strerror}"
        require_more_files(error, what, folder)
        raise DataError(Problem(what, folder, remedy="a data file", id="D1")) from None

    names = [name for name in names if not name.startswith(".")]
    joined = [(name, str(Path(folder) / name)) for name in names]
    files = [path for name, path in joined if is_data_name_in_folder(name) and not _is_folder(path)]
    if files:
        return files

    shown = ", ".join(names[:_MOST_SHOWN]) + (", ..." if len(names) > _MOST_SHOWN else "")
    raise DataError(
        Problem(
            "a folder without data files",
            folder,
            expected="files whose names end in .jsonl, .csv or .tsv, for example, packed or not",
            found=shown or "nothing",
            remedy=f"a pattern that names the files, such as {Path(folder) / '*'}",
            id="D1",
        )
    )


def in_tuple(paths: str | tuple[str, ...]) -> tuple[str, ...]:
    """Return the paths of a key of a config, which may be a single text."""
    return (paths,) if isinstance(paths, str) else paths


def as_in_config(paths: tuple[str, ...]) -> str | tuple[str, ...]:
    """Return paths as a config has them: a single one is a text, as most people write it."""
    return paths[0] if len(paths) == 1 else paths


def named(paths: str | tuple[str, ...]) -> str:
    """Return files as messages name them: the first, and how many there are beside it."""
    if isinstance(paths, str):
        return paths
    return paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1:,} more"


def _exists(path: str) -> bool:
    # A name that no file can have, for example one that is too long, is no file's.
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def _is_folder(path: str) -> bool:
    try:
        return Path(path).is_dir()
    except (OSError, ValueError):
        return False
