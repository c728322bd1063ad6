"""The words behind a command's name: a config or data files, then overrides."""

import difflib
import json
from pathlib import Path
from typing import Any, NamedTuple

from rnncls.errors import ConfigError, Problem
from rnncls.system.file_kinds import is_data_name, is_data_name_in_folder

# Where a config is looked for that was meant by a word such as `smoke`.
_CONFIG_FOLDERS = (Path(), Path("configs"))


def load(config: Path | None, words: list[str] | None, device: str | None = None) -> Any:
    """Load the config that --config or the first word names, with the overrides of the others.

    Raises: ConfigError, also if no config is named, or a data file instead.
    """
    path, overrides = config_of(config, words)

    # --device comes last, so that it wins over an override of the same key.
    from rnncls.config import load_config

    return load_config(path, with_device(overrides, device))


def config_of(config: Path | None, words: list[str] | None) -> tuple[Path, list[str]]:
    """Return the config that --config or the first word names, and the overrides behind it.

    Raises: ConfigError, also if no config is named, or a data file instead.
    """
    given = sort_words(config, words)
    if given.file is not None:
        raise _not_a_config(given.file)
    if given.config is None:
        expected = "a config as first word, for example configs/smoke.yaml"
        raise ConfigError(Problem("no config", expected=expected, id="C17"))
    return given.config, given.overrides


def _not_a_config(file: Path) -> ConfigError:
    """Return the error of a data file where only a config will do."""
    made = f"{_stem(file)}.yaml"
    return ConfigError(
        Problem(
            "a data file in place of a config",
            expected="a config (.yaml)",
            found=str(file),
            remedy=f"rnncls init {file} > {made}, then {made} instead of {file.name}",
            id="C17",
        )
    )


def with_device(overrides: list[str] | None, device: str | None) -> list[str]:
    """Return the overrides, with the one that --device stands for."""
    words = list(overrides or [])
    if device:
        words.append(f"device={device}")
    return words


class Words(NamedTuple):
    """The words of a command line: a config or a data file, if there is one, and overrides."""

    config: Path | None
    file: Path | None
    overrides: list[str]


def sort_words(config: Path | None, words: list[str] | None) -> Words:
    """Sort the words behind a command's name; `config` is that of --config.

    Only the first word can be a config or a data file. Several data files may follow each other,
    and a folder or a pattern stands for those that it has: an override then names them all. Whether
    a config exists is not checked: whoever reads it says that better.

    Raises: ConfigError if a word is nothing of these, or a second file beside a config.
    """
    chosen = Words(config, None, [])
    data: list[str] = []
    for position, word in enumerate(words or []):
        kind = kind_of_word(word)
        if kind == "data" and len(data) == position and config is None:
            data.append(word)
        elif kind == "override":
            chosen.overrides.append(word)
        elif kind == "unknown":
            raise _unknown_word(word, is_first=position == 0 and config is None)
        elif position > 0 or config is not None:
            raise _second_file(word, position, config, words or [])
        else:
            chosen = chosen._replace(config=Path(word))
    return _with_data(chosen, data) if data else chosen


def _with_data(chosen: Words, data: list[str]) -> Words:
    """Return the words with the data files among them; of several, the largest is looked at.

    Raises: DataError for a pattern that no file fits.
    """
    if len(data) == 1 and not _is_several(data[0]):
        return chosen._replace(file=Path(data[0]))

    # Here, because it imports torch, and most command lines name one file.
    from rnncls.data.files.places import files_of

    chosen.overrides.insert(0, f"data.train={json.dumps(data)}")
    return chosen._replace(file=max(map(Path, files_of(data)), key=_size_of))


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    # A file that is missing: it is looked at, so that whoever opens it says so.
    except (OSError, ValueError):
        return 2**63


def kind_of_word(word: str) -> str:
    """Return what a word is: a config, a data file, an override, or unknown."""
    path = Path(word)
    is_file = _on_disk(path) == "file"

    # A file may have an "=" in its name, and an override may end like a file: data.train=a.csv.
    if "=" in word and not is_file:
        return "override"
    if _is_config_name(path):
        return "config"
    if is_file or is_data_name(word) or _is_several(word):
        return "data"
    return "unknown"


def _is_several(word: str) -> bool:
    """Return whether a word is a folder with data files, or a pattern that may fit some."""
    # No word at all is not the current folder.
    if not word.strip():
        return False

    path = Path(word)
    if _on_disk(path) == "folder":
        # That of a run has tables, too.
        names = {file.name for file in _files_in(path)}
        return "config.yaml" not in names and any(map(is_data_name_in_folder, names))
    return _on_disk(path) == "nothing" and "*" in word


def _is_config_name(path: Path) -> bool:
    return path.suffix.lower() in (".yaml", ".yml")


def _on_disk(path: Path) -> str:
    """Return what has this name: a file of any kind, a folder, or nothing."""
    try:
        if not path.exists():
            return "nothing"
        return "folder" if path.is_dir() else "file"
    # A name that no file can have, for example one that is too long.
    except (OSError, ValueError):
        return "nothing"


def _unknown_word(word: str, is_first: bool) -> ConfigError:
    """Return the error of a word that is neither a file nor an override."""
    override = "section.key=value, for example optimizer.lr=1e-3"
    if not is_first:
        return ConfigError(
            Problem("malformed override", expected=override, found=_shown(word), id="C17")
        )

    return ConfigError(
        Problem(
            "neither a file nor an override",
            expected=f"a config (.yaml), a data file (.jsonl, .csv or .tsv), or {override}",
            found=_shown(word),
            remedy=_similar_file(word),
            id="C17",
        )
    )


def _shown(word: str) -> str:
    # An empty word is what the shell makes of a variable that is not set.
    if not word.strip():
        return f'"{word}", nothing'
    return f"{word} (a folder)" if _on_disk(Path(word)) == "folder" else word


def _similar_file(word: str) -> str:
    """Return advice: the config or data file that a word may have meant; "" if there is none."""
    path = Path(word)
    # A run directory in place of the config of the run.
    if _on_disk(path) == "folder":
        own = path / "config.yaml"
        return f"did you mean {own}?" if word.strip() and _on_disk(own) == "file" else ""

    candidates: dict[str, Path] = {}
    for folder in (path.parent, *_CONFIG_FOLDERS):
        for file in _files_in(folder):
            if _is_config_name(file) or is_data_name(file.name):
                candidates.setdefault(_stem(file).lower(), file)

    close = difflib.get_close_matches(_stem(path).lower(), list(candidates), n=1)
    return f"did you mean {candidates[close[0]]}?" if close else ""


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    # A folder that does not exist, or that may not be read.
    except OSError:
        return []


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


def _second_file(word: str, position: int, config: Path | None, words: list[str]) -> ConfigError:
    """Return the error of a file where there is one already, or that is not the first word."""
    if config is not None:
        what = "two files: one of --config, and one more"
        found = f"--config {config}, {word}"
        remedy = "one of them"
    elif kind_of_word(words[0]) == "override":
        what = "a file behind an override"
        found = word
        remedy = " ".join(["put the file first:", word, *words[:position]])
    else:
        what = "two files"
        found = f"{words[0]}, {word}"
        remedy = "one of them"
    expected = "one config or data file, then overrides such as optimizer.lr=1e-3"
    return ConfigError(Problem(what, expected=expected, found=found, remedy=remedy, id="C17"))
