"""Loads the user's files as a dataset.

The files are read into tables (read_tables.py), whose rows are shared out among the splits
(splits.py). Then the vocabulary is made of what the training split has, and the rows become ids of
it (to_ids.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rnncls.config import FilesConfig
from rnncls.data.contradictions import find_contradictions
from rnncls.data.dataset import Dataset
from rnncls.data.new_files import with_options, without_keys
from rnncls.data.read_tables import Tables, data_files, read_one_split, read_tables
from rnncls.data.splits import SPLITS, Shares, assign_splits, num_shared, whole
from rnncls.data.subwords import require_package
from rnncls.data.table import SplitRows
from rnncls.data.to_ids import build_vocabulary, split_of
from rnncls.data.vocabulary import END, Vocabulary
from rnncls.errors import CheckpointError, DataError, Problem


def load_dataset(
    data: FilesConfig, vocabulary: Vocabulary | None = None, progress: bool = False
) -> Dataset:
    """Read the files of a config.

    `vocabulary` is that of a checkpoint; without it, one is made of the training split. `progress`
    shows a bar on stderr if that is a terminal.

    Raises: DataError with the bad rows by line, or for a split without sequences, or for a token or
    label that the training split lacks.
    """
    _require_tokens_of(vocabulary, data)
    read = read_tables(data_files(data), data, vocabulary, progress)
    read.tables["train"].is_train_file = True

    # Before the vocabulary, which is made of the training rows alone: what only the other splits
    # have must stay unknown to the model.
    shares = assign_splits(read.tables, data, read.labels)
    rows = shares.rows
    if not rows["train"].chosen.any():
        raise _nothing_to_train_on(shares, data)
    if vocabulary is None:
        vocabulary = build_vocabulary(shares, read.tokens, read.labels, data)

    dataset = Dataset({}, vocabulary, read.fingerprints, noticed=read.noticed, rare=shares.rare)
    for name in SPLITS:
        _add_split(dataset, name, rows[name], read, data, shares)

    dataset.in_train = {name: num_shared(rows[name], rows["train"]) for name in ("val", "test")}
    dataset.in_val = {"test": num_shared(rows["test"], rows["val"])}

    copies = shares.copies if len(read.tables) == 1 else None
    dataset.contradictions = find_contradictions(
        rows, read.tokens, read.labels, data.tokens, copies
    )
    return dataset


def _require_tokens_of(vocabulary: Vocabulary | None, data: FilesConfig) -> None:
    """Refuse a vocabulary of other tokens than the config has, before files are read.

    Raises: CheckpointError; where subwords are to be found, MachineError without their package.
    """
    if vocabulary is None:
        if data.tokens == "subwords":
            require_package()
        return

    has_subwords = vocabulary.subwords is not None
    if has_subwords != (data.tokens == "subwords"):
        found = "subwords" if has_subwords else "other tokens"
        raise _other_tokens("tokens", data.tokens, found)
    if data.end_token and END not in vocabulary.index:
        raise _other_tokens("end_token", "true", "no token <end>")
    if vocabulary.has_unknown != (data.unknown == "unk"):
        found = "a token <unk>" if vocabulary.has_unknown else "no token <unk>"
        raise _other_tokens("unknown", data.unknown, found)


def _other_tokens(key: str, wanted: str, found: str) -> CheckpointError:
    return CheckpointError(
        Problem(
            "the run of --init-from has other tokens",
            f"data.{key}",
            expected=wanted,
            found=found,
            remedy="train without --init-from, or with the tokens of that run",
            id="K8",
        )
    )


def _nothing_to_train_on(shares: Shares, data: FilesConfig) -> DataError:
    remedy = "the file"
    if len(shares.rows["train"].table.labels) and data.val_fraction + data.test_fraction > 0:
        remedy = "the file, or smaller data.val_fraction and data.test_fraction"
    if shares.rare.are_dropped:
        remedy = "data.rare_classes=keep"
    where = shares.rows["train"].table.where
    return DataError(Problem("0 sequences to train on", where, remedy=remedy, id="D2"))


def load_held_out(data: FilesConfig, vocabulary: Vocabulary, progress: bool = False) -> Dataset:
    """Read what a run is evaluated on, with the vocabulary of its checkpoint.

    If the run has test files, nothing else is read. Raises: DataError as `load_dataset` does.
    """
    if data.test is None:
        # The held-out rows are part of the training files, chosen by their hashes.
        return load_dataset(data, vocabulary, progress)
    return load_labelled_files(data.test, data, vocabulary, progress, "test")


def load_labelled_files(
    paths: str | Sequence[str],
    data: FilesConfig,
    vocabulary: Vocabulary,
    progress: bool = False,
    name: str | None = None,
) -> Dataset:
    """Read files of labelled sequences, with the vocabulary of a checkpoint.

    `paths` may be a folder or a pattern, too. The split is called `name`, or else by the paths.

    Raises: DataError. Its remedies name no config key, but options of `eval` where `name` is None:
    the run's own config decides how the files are read.
    """
    try:
        read = read_one_split(paths, name, data, vocabulary, progress)
        return _of_one_split(read, data, vocabulary)
    except DataError as error:
        # Another data.tokens, say, would not help: the model was trained with the run's own.
        remedy = "fix the file; the config of the run decides how it is read"
        if name is not None:
            raise without_keys(error, remedy) from None
        # Of a file that is not the run's own, options say how it is read.
        raise with_options(error, remedy) from None


def _of_one_split(read: Tables, data: FilesConfig, vocabulary: Vocabulary) -> Dataset:
    ((name, table),) = read.tables.items()
    dataset = Dataset({}, vocabulary, read.fingerprints, noticed=read.noticed)
    rows = whole(table)
    _add_split(dataset, name, rows, read, data)
    dataset.contradictions = find_contradictions(
        {name: rows}, read.tokens, read.labels, data.tokens
    )
    if not len(table.labels):
        what = "0 sequences"
        raise DataError(Problem(what, table.where, remedy="a file with sequences", id="D2"))
    return dataset


def _add_split(
    dataset: Dataset,
    name: str,
    rows: SplitRows,
    read: Tables,
    data: FilesConfig,
    shares: Shares | None = None,
) -> None:
    """Add the rows of a split to the dataset. `shares` are all of the splits, if there are others.

    Raises: DataError for a token or label that the vocabulary lacks.
    """
    split, num_unknown = split_of(
        name, rows, dataset.vocabulary, read.tokens, read.labels, data, shares
    )
    dataset.splits[name] = split
    dataset.unknown_tokens[name] = num_unknown

    dataset.files[name] = rows.table.paths
    dataset.file_numbers[name] = torch.from_numpy(rows.file_numbers)
    dataset.lines[name] = torch.from_numpy(rows.lines)
