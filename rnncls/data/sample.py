"""Shows the first batch of a task as text: padded, and packed."""

import itertools
from collections.abc import Iterable, Sequence

from rnncls.data.batches import Batch
from rnncls.data.task import Task
from rnncls.errors import on_one_line
from rnncls.system.rows import shortened
from rnncls.system.shown import visible

COLUMNS_SHOWN = 24  # of a padded batch
PACKED_SHOWN = 16  # tokens of the packed data
MOST_OF_NAME = 60  # characters of a token or a class


def sample_text(task: Task, rows: int = 8) -> str:
    """Return the first training batch as text: its first rows padded, then all of it packed."""
    batch = next(task.batches(0, 1))
    tokens = _token_names(task, batch)
    sequences = _unpacked(batch, tokens)
    shown = sequences[:rows]

    # Cells are as wide as the widest token that is shown.
    columns = min(max(len(sequence) for sequence in shown), COLUMNS_SHOWN)
    width = max(len(token) for sequence in shown for token in sequence[:columns])

    sizes = batch.tokens.batch_sizes.tolist()
    lines = [
        f"{len(sequences)} sequences; the first {len(shown)},"
        f" padded to {columns} of {len(sizes)} columns:",
        "",
    ]
    labels = batch.labels.tolist()
    lengths = batch.lengths.tolist()
    for sequence, label, length in zip(shown, labels, lengths, strict=False):
        padding = ["."] * (columns - len(sequence))
        cells = [f"{cell:>{width}}" for cell in sequence[:columns] + padding]
        name = label
        if task.vocabulary is not None:
            name = on_one_line(shortened(task.vocabulary.labels[label], MOST_OF_NAME))
        lines.append(f"{' '.join(cells)}   length {length:>4}   label {name}")

    padding_share = 1 - len(tokens) / (len(sequences) * len(sizes))
    lines += [
        "",
        "packed: one column per time step, longest sequence first",
        f"  data        {_beginning(tokens, PACKED_SHOWN)}   ({len(tokens):,} tokens)",
        f"  batch_sizes {_beginning(sizes, COLUMNS_SHOWN)}",
        *_sample_of_prefix_labels(task, batch),
        f"  padding     {padding_share:.1%} of the padded batch, none of the packed one",
    ]
    return "\n".join(lines)


def _sample_of_prefix_labels(task: Task, batch: Batch) -> list[str]:
    """Return the line below the packed tokens with what is asked after each, if that is trained."""
    if batch.prefix_labels is None:
        return []
    numbers = batch.prefix_labels[: PACKED_SHOWN + 1].tolist()
    names = [task.vocabulary.labels[n] if task.vocabulary else str(n) for n in numbers]
    shown = [visible(shortened(name, MOST_OF_NAME)) for name in names]
    return [f"  labels      {_beginning(shown, PACKED_SHOWN)}   (of the prefix up to each token)"]


def _token_names(task: Task, batch: Batch) -> list[str]:
    """Return the tokens of the packed data as text."""
    ids = batch.tokens.data.tolist()
    vocabulary = task.vocabulary
    if vocabulary is None:
        return [str(id) for id in ids]
    return [visible(shortened(vocabulary.tokens[id], MOST_OF_NAME)) for id in ids]


def _unpacked(batch: Batch, tokens: list[str]) -> list[list[str]]:
    """Return the batch's sequences, in their order; `tokens` are the names of the packed data."""
    # Packing sorts the sequences by length; sorted_indices says which one came to which place.
    order = batch.tokens.sorted_indices
    rows = order.tolist() if order is not None else list(range(len(batch.labels)))
    sequences: list[list[str]] = [[] for _ in rows]

    # Time step t holds one token of each of the first batch_sizes[t] sequences, longest first.
    remaining = iter(tokens)
    for size in batch.tokens.batch_sizes.tolist():
        for row, token in zip(rows[:size], itertools.islice(remaining, size), strict=True):
            sequences[row].append(token)
    return sequences


def _beginning(values: Sequence[object], count: int) -> str:
    """Return the first values, with an ellipsis if there are more."""
    shown: Iterable[str] = map(str, values[:count])
    return " ".join(shown) + (" ..." if len(values) > count else "")
