"""Data: the user's files and the generated task, as batches."""

from rnncls.data.batches import Batch, Block, Padded, PaddedBatch, collate, pack
from rnncls.data.lengths import spread_lengths
from rnncls.data.sum_mod import all_sequences, batches, num_sequences, samples
from rnncls.data.task import FilesTask, SumModTask, Task, load_task
from rnncls.data.vocabulary import Vocabulary

__all__ = [
    "Batch",
    "Block",
    "FilesTask",
    "Padded",
    "PaddedBatch",
    "SumModTask",
    "Task",
    "Vocabulary",
    "all_sequences",
    "batches",
    "collate",
    "load_task",
    "num_sequences",
    "pack",
    "samples",
    "spread_lengths",
]
