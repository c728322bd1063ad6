"""Takes the white space away that stands around labels: " x" and "x" are one class."""

from collections.abc import Iterable

import numpy as np

from rnncls.data.table import Table
from rnncls.data.vocabulary import Vocabulary


def strip_labels(
    tables: Iterable[Table], labels: list[str], vocabulary: Vocabulary | None
) -> list[str]:
    """Return the labels of the tables' numbers without white space around them.

    Numbers whose labels become the same become one number in the tables, which also say how many
    of their rows had such white space. `labels` are the texts of the numbers so far.

    A run made when white space was a part of its labels keeps it: `vocabulary` is that of a
    checkpoint.
    """
    if vocabulary is not None and any(label != label.strip() for label in vocabulary.labels):
        return labels

    # Each different label is looked at once, and in most data nothing else is to be done.
    stripped = [label.strip() for label in labels]
    if stripped == labels:
        return labels

    numbers = {label: number for number, label in enumerate(dict.fromkeys(stripped))}
    number_of = np.array([numbers[label] for label in stripped], dtype=np.int32)
    has_space = np.array([new != old for new, old in zip(stripped, labels, strict=True)])
    for table in tables:
        # The arrays share the memory of the table's.
        of_rows = np.frombuffer(table.labels, dtype=np.int32)
        table.noticed.spaced_labels = int(has_space[of_rows].sum())
        of_rows[:] = number_of[of_rows]
        if table.prefix_labels is not None:
            of_prefixes = np.frombuffer(table.prefix_labels, dtype=np.int32)
            of_prefixes[:] = number_of[of_prefixes]
    return list(numbers)
