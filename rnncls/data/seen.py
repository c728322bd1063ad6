"""What was counted in the rows of a file, and the keys of a config that follow from it."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rnncls.config import FilesConfig
from rnncls.data.columns import Layout
from rnncls.data.held_out import SmallRow


class Entry(NamedTuple):
    """One key of the config."""

    section: str
    key: str
    value: Any
    why: str


@dataclass
class Seen:
    """What was counted in the rows that were looked at."""

    path: str
    layout: Layout
    reading: FilesConfig
    num_rows: int = 0
    num_empty: int = 0
    total: int = 0  # rows of the whole file; an estimate unless `is_all`
    is_all: bool = True
    classes: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("q"))
    example: str = ""
    small: list[SmallRow] = field(default_factory=list)

    def percentile(self, share: float) -> int:
        """Return the length that this share of the sequences does not exceed."""
        return self.lengths[min(len(self.lengths) - 1, int(share * len(self.lengths)))]

    @property
    def longest(self) -> int:
        return self.lengths[-1]

    @property
    def rows(self) -> str:
        """The number of rows, for people."""
        if self.is_all:
            return "1 row" if self.num_rows == 1 else f"{self.num_rows:,} rows"
        return f"about {self.total:,} rows; the first {self.num_rows:,} were looked at"

    @property
    def has_positions(self) -> bool:
        """Whether all sequences are of one length, so that a place may have its own meaning."""
        return self.is_all and self.num_rows > 1 and self.lengths[0] == self.longest > 1
