"""The user's files as a dataset: splits of sequences, as ids of a vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rnncls.data.contradictions import Contradictions
from rnncls.data.sequences import Sequences
from rnncls.data.splits import RareClasses
from rnncls.data.table import Noticed
from rnncls.data.vocabulary import Vocabulary

Fingerprints = dict[str, tuple[str, ...]]  # SHA-256 of each file of a split, by split


@dataclass
class Dataset:
    """All splits of the user's data, and what was noticed while they were read."""

    splits: dict[str, Sequences]
    vocabulary: Vocabulary
    fingerprints: Fingerprints

    # Where each split was read: its files, the number among them of each sequence's file, (R,)
    # int32, and the line of each sequence in its file, (R,) int32.
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    file_numbers: dict[str, torch.Tensor] = field(default_factory=dict)
    lines: dict[str, torch.Tensor] = field(default_factory=dict)

    # What was noticed while files were read, by split: one without files of its own is counted with
    # the training files.
    noticed: dict[str, Noticed] = field(default_factory=dict)

    # How many tokens of each split the vocabulary lacks.
    unknown_tokens: dict[str, int] = field(default_factory=dict)

    # How many sequences of val and test are in train too, and how many of test are in val too: a
    # model may have memorised them.
    in_train: dict[str, int] = field(default_factory=dict)
    in_val: dict[str, int] = field(default_factory=dict)

    # What the labels of all rows say: classes of too few sequences to be held out, and sequences
    # with different labels. None where nobody has counted them.
    rare: RareClasses | None = None
    contradictions: Contradictions | None = None

    @property
    def read_as(self) -> dict[str, str]:
        """How each file was read, in words, if that is worth a word."""
        read_as: dict[str, str] = {}
        for noticed in self.noticed.values():
            read_as |= noticed.read_as
        return read_as

    def file_of(self, split: str, row: int) -> str:
        """Return the file of a sequence of a split."""
        return self.files[split][int(self.file_numbers[split][row])]

    def place(self, split: str, row: int) -> str:
        """Return `file:line` of a sequence of a split."""
        return f"{self.file_of(split, row)}:{int(self.lines[split][row])}"

    def held_out(self) -> str:
        """Return the name of the split that a model is evaluated on.

        That is the test split; if it is empty the validation split, and if that is empty too the
        training split, or what was read for evaluation alone.
        """
        for name in ("test", "val", "train", *self.splits):
            if len(self.splits.get(name, ())):
                return name
        raise ValueError("a dataset without sequences")
