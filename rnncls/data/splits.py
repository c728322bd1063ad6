"""Decides which rows are for training, which for validation, and which for the test."""

import numpy as np

from rnncls.config import FilesConfig
from rnncls.data.table import SplitRows, Table

SPLITS = ("train", "val", "test")


def assign_splits(tables: dict[str, Table], data: FilesConfig) -> dict[str, SplitRows]:
    """Return the rows of each split.

    A split with its own file has all rows of that; the others share the training file by the hash
    of each sequence. A row's split depends on nothing else, so that adding rows moves no other row.
    """
    train_file = tables["train"]

    # A hash is uniform, so its place on 0..1 is, too: val has the places from 0 to val_end, test
    # those from there to test_end, train the rest. A larger test_fraction leaves val as it is.
    place = np.frombuffer(train_file.hashes, dtype=np.uint64) / 2.0**64
    val_end = 0.0 if "val" in tables else data.val_fraction
    test_end = val_end + (0.0 if "test" in tables else data.test_fraction)

    rows = {
        "train": SplitRows(train_file, place >= test_end),
        "val": SplitRows(train_file, place < val_end),
        "test": SplitRows(train_file, (place >= val_end) & (place < test_end)),
    }
    for name in ("val", "test"):
        if name in tables:
            table = tables[name]
            rows[name] = SplitRows(table, np.ones(len(table.labels), dtype=bool))
    return rows


def num_shared(rows: SplitRows, others: SplitRows) -> int:
    """Return how many of the sequences are among the others, too."""
    return int(np.isin(rows.hashes, others.hashes).sum())
