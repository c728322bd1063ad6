"""Chooses which shares of a small file are held out, so that training can begin with the rest.

In a small file much may be held out of classes of a few rows, or nothing. Which rows are held out
is known: the choice tries it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rnncls.config import FilesConfig
from rnncls.data.copies import Copies, group
from rnncls.data.splits import DROPPED, TEST, TRAIN, VAL, shared_out
from rnncls.data.vocabulary import in_order

SMALL_FILE = 1_000  # rows
SHARES = ((0.1, 0.1), (0.2, 0.0), (0.1, 0.0), (0.0, 0.0))  # of validation and test
MOST_TOKENS_KEPT = 100  # of a row


class SmallRow(NamedTuple):
    """What decides whether a row of a small file can be held out."""

    hash: int  # of the sequence
    label: str
    tokens: frozenset[str]


def shares_of(rows: list[SmallRow], data: FilesConfig) -> tuple[float, float]:
    """Return the shares of validation and test: the first that training can begin with.

    `data` says by which rule rows are held out.
    """
    # Grouped as the file will be, and once for all shares.
    names = in_order({row.label for row in rows})
    rank = {name: number for number, name in enumerate(names)}
    hashes = np.array([row.hash for row in rows], dtype=np.uint64)
    labels = np.array([rank[row.label] for row in rows], dtype=np.int32)
    copies = group(hashes, labels)
    return next(
        (shares for shares in SHARES if _can_begin(rows, copies, data, *shares)), SHARES[-1]
    )


def _can_begin(
    rows: list[SmallRow], copies: Copies, data: FilesConfig, val: float, test: float
) -> bool:
    """Return whether training has at least half of the rows, and what it must have.

    That is a token of each held-out split and, where a hash alone decides, each held-out label:
    without them, the file is refused when it is read. A validation split that is asked for has
    rows.
    """
    places = shared_out(copies, data, val, test)[0].tolist()
    num_rows = [places.count(place) for place in (TRAIN, VAL, TEST)]
    num_kept = len(rows) - places.count(DROPPED)
    if not num_rows[TRAIN] or 2 * num_rows[TRAIN] < num_kept or (val and not num_rows[VAL]):
        return False

    # What each split has; training is the first.
    tokens = []
    labels = []
    for place in (TRAIN, VAL, TEST):
        of_split = [row for row, here in zip(rows, places, strict=True) if here == place]
        tokens.append(frozenset[str]().union(*(row.tokens for row in of_split)))
        labels.append({row.label for row in of_split})
    if data.split == "hash" and not labels[VAL] | labels[TEST] <= labels[TRAIN]:
        return False
    return all(not num_rows[place] or tokens[place] & tokens[TRAIN] for place in (VAL, TEST))
