"""Reads all files of a config, or of an evaluation, as tables with one numbering of their texts."""

from collections.abc import Sequence
from typing import NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.dataset import Fingerprints
from rnncls.data.files.opening import fingerprint
from rnncls.data.files.places import as_in_config, files_of, named
from rnncls.data.labels import strip_labels
from rnncls.data.splits import SPLITS
from rnncls.data.table import Noticed, Numbering, Table, read_table
from rnncls.data.vocabulary import Vocabulary

# The keys of a config that name data files.
DATA_KEYS = frozenset(f"data.{name}" for name in SPLITS)


class Tables(NamedTuple):
    """The files of each split that has its own, as tables."""

    tables: dict[str, Table]
    tokens: list[str]  # the text of each number in the tables
    labels: list[str]
    fingerprints: Fingerprints

    @property
    def noticed(self) -> dict[str, Noticed]:
        """What was noticed while the files of each split were read."""
        return {name: table.noticed for name, table in self.tables.items()}


def read_tables(
    files: dict[str, tuple[str, ...]],
    data: FilesConfig,
    vocabulary: Vocabulary | None,
    progress: bool,
) -> Tables:
    """Read the files of each split.

    `vocabulary` is that of a checkpoint, which knows whether its labels have white space around
    them. `progress` shows a bar on stderr if that is a terminal. Raises: DataError.
    """
    # All files share one numbering: the same token has the same number in each of them.
    token_numbers = Numbering("tokens")
    label_numbers = Numbering("labels")

    # Hashed before they are read: a file that changes in between is noticed on resume.
    fingerprints = {name: tuple(map(fingerprint, paths)) for name, paths in files.items()}
    tables: dict[str, Table] = {}
    for name, paths in files.items():
        of_split = data if name == "train" else _without_prefix_labels(data)
        tables[name] = read_table(paths, of_split, token_numbers, label_numbers, progress)

    # A dict keeps the order of insertion: the text of number i is at position i.
    labels = strip_labels(tables.values(), list(label_numbers), vocabulary)
    return Tables(tables, list(token_numbers), labels, fingerprints)


def read_one_split(
    paths: str | Sequence[str],
    name: str | None,
    data: FilesConfig,
    vocabulary: Vocabulary,
    progress: bool,
) -> Tables:
    """Read files as one split, called `name`, or else by the paths.

    `paths` may be a folder or a pattern, too. Raises: DataError.
    """
    files = files_of(paths)
    shown = paths if isinstance(paths, str) else named(files)
    return read_tables({name or shown: files}, _without_prefix_labels(data), vocabulary, progress)


def _without_prefix_labels(data: FilesConfig) -> FilesConfig:
    """Return how files are read that nothing is trained on: they need no labels of prefixes."""
    return data.model_copy(update={"prefix_labels_field": None})


def data_files(data: FilesConfig) -> dict[str, tuple[str, ...]]:
    """Return the files of each split that has its own. Raises: DataError, as `files_of` does."""
    paths = {"train": data.train, "val": data.val, "test": data.test}
    return {name: files_of(path) for name, path in paths.items() if path is not None}


def with_files_found(data: FilesConfig) -> FilesConfig:
    """Return the config with the files that its folders and patterns stand for.

    A run keeps these: what else comes into a folder later is none of its files.

    Raises: DataError, as `files_of` does.
    """
    found: dict[str, str | tuple[str, ...]] = {}
    for name, paths in data_files(data).items():
        found[name] = as_in_config(paths)
    return data.model_copy(update=found)
