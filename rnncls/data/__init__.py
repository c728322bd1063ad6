"""Where batches come from."""

from rnncls.data.batches import Batch, collate, pack
from rnncls.data.sum_mod import all_sequences, batches, num_sequences, samples

__all__ = ["Batch", "all_sequences", "batches", "collate", "num_sequences", "pack", "samples"]
