"""Knows what is typed in the place of a sequence and is none: a key of a config, a file's name."""

import os
import re

from rnncls.errors import ConfigError, Problem
from rnncls.system.file_kinds import is_data_name

_OVERRIDE = re.compile(r"(data|model|train|optimizer|schedule)\.[a-z_]+=\S*")

# What to do about a key of a config.
KEEPS_ITS_CONFIG = "nothing in its place: a run keeps the config that it was trained with"


def is_override(text: str) -> bool:
    """Return whether a sequence is a key of a config with its value, such as `data.x=1`."""
    return _OVERRIDE.fullmatch(text) is not None


def is_file_name(text: str) -> bool:
    """Return whether a sequence is the name of a file of sequences."""
    if any(map(str.isspace, text)):
        return False

    # A word such as "home" may be the name of a file by chance, and is a sequence all the same.
    looks_like_path = "." in text or "/" in text
    # os.path answers False where pathlib raises, for example for a long sequence of characters.
    is_file = looks_like_path and os.path.isfile(text)  # noqa: PTH113
    return is_file or is_data_name(text)


def require_sequence(text: str) -> None:
    """Raise ConfigError for one sequence that is no sequence, where nothing else can be read."""
    expected = 'a sequence, such as "3 7 1 9"'
    if is_override(text):
        what, remedy = "a key of a config in place of a sequence", KEEPS_ITS_CONFIG
    elif is_file_name(text):
        what = "a file's name as a sequence"
        remedy = "one sequence of it; rnncls predict RUN --input FILE takes all"
    else:
        return
    raise ConfigError(Problem(what, expected=expected, found=text, remedy=remedy, id="C17"))
