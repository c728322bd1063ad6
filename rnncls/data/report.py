"""What is in the user's files: statistics, a picture of them, and one real batch."""

from pathlib import Path
from typing import Any

import torch

from rnncls.data.batches import Batch
from rnncls.data.dataset import Dataset
from rnncls.data.sequences import Sequences, epoch_order, padding_waste
from rnncls.data.task import FilesTask, Task
from rnncls.errors import printable

MOST_SHOWN = 20
BAR = 40  # characters


def stats(task: FilesTask) -> dict[str, Any]:
    """Rows, tokens, lengths, classes and what was noticed, by split; vocabulary and padding of the training split."""
    config, dataset = task.config, task.dataset
    counts = torch.bincount(task.train.tokens, minlength=len(dataset.vocabulary.tokens))
    frequent = counts.argsort(descending=True, stable=True)[:MOST_SHOWN]
    waste = {
        batching: padding_waste(
            task.train, epoch_order(task.train, config.seed, 0, config.train.batch_size, batching)
        )
        for batching in ("shuffle", "bucket")
    }
    return {
        "splits": {
            name: _split(dataset, name, sequences) for name, sequences in dataset.splits.items()
        },
        "vocabulary": {
            "size": len(dataset.vocabulary.tokens),
            "has_unknown": dataset.vocabulary.has_unknown,
            "most_frequent": {
                dataset.vocabulary.tokens[index]: int(counts[index]) for index in frequent
            },
        },
        "padding_waste": waste,
        "steps_per_epoch": -(-len(task.train) // config.train.batch_size),
    }


def _split(dataset: Dataset, name: str, sequences: Sequences) -> dict[str, Any]:
    lengths, labels = sequences.lengths, dataset.vocabulary.labels
    classes = torch.bincount(sequences.labels, minlength=len(labels)).tolist()
    return {
        "sequences": len(sequences),
        "tokens": len(sequences.tokens),
        "length": {
            "min": int(lengths.min()),
            "median": int(lengths.median()),
            "mean": float(lengths.double().mean()),
            "max": int(lengths.max()),
        }
        if len(sequences)
        else None,
        "classes": dict(zip(labels, classes, strict=True)),
        "majority": max(classes) / len(sequences) if len(sequences) else None,
        "empty_dropped": dataset.dropped.get(name, 0),
        "truncated": dataset.truncated.get(name, 0),
        "unknown_tokens": dataset.unknown_tokens.get(name, 0),
        "also_in_train": dataset.in_train.get(name, 0),
        "also_in_val": dataset.in_val.get(name, 0),
    }


def to_text(task: FilesTask) -> str:
    """The statistics as a person reads them."""
    found = stats(task)
    lines = [
        "split    sequences      tokens   length: min median   mean    max   unknown  also in train"
    ]
    for name, split in found["splits"].items():
        if split["length"] is None:
            lines.append(f"{name:<6} {0:>11}")
            continue
        low, median, mean, high = split["length"].values()
        unknown = split["unknown_tokens"] / split["tokens"]
        sizes = f"{split['sequences']:>11,} {split['tokens']:>11,}"
        lengths = f"{low:>11,} {median:>6,} {mean:>6.1f} {high:>6,}"
        lines.append(
            f"{name:<6} {sizes}   {lengths}   {unknown:>7.2%}  {split['also_in_train']:>13,}"
        )
    classes = found["splits"]["train"]["classes"]
    lines += [
        "",
        f"classes of train ({len(classes):,}; always the most frequent: {found['splits']['train']['majority']:.4f})",
    ]
    lines += _bars(sorted(classes.items(), key=lambda pair: -pair[1]))
    vocabulary = found["vocabulary"]
    lines += [
        "",
        f"tokens of train ({vocabulary['size']:,}, <unk> {'included' if vocabulary['has_unknown'] else 'none'})",
    ]
    lines += _bars(list(vocabulary["most_frequent"].items()))
    lines += ["", "lengths of train", *_bars(_length_bins(task.train))]
    shuffled, bucketed = found["padding_waste"].values()
    lines += [
        "",
        f"padding of a rectangle: {shuffled:.1%} with batching: shuffle, {bucketed:.1%} with batching: bucket",
    ]
    lines.append("(rnncls packs: padding costs memory traffic, never a step of the recurrence)")
    lines.append(f"steps per epoch: {found['steps_per_epoch']:,}")
    return "\n".join(lines)


def _length_bins(sequences: Sequences) -> list[tuple[str, int]]:
    """At most 16 bins of equal width."""
    lengths = sequences.lengths
    width = -(-int(lengths.max()) // 16)
    counts = torch.bincount((lengths - 1) // width).tolist()
    return [
        (f"{index * width + 1}-{(index + 1) * width}" if width > 1 else f"{index + 1}", count)
        for index, count in enumerate(counts)
    ]


def _bars(pairs: list[tuple[str, int]]) -> list[str]:
    shown = [(visible(name), count) for name, count in pairs[:MOST_SHOWN]]
    width, highest = max(len(name) for name, _ in shown), max(max(count for _, count in shown), 1)
    lines = [
        f"  {name:>{width}} {count:>10,} {'#' * round(BAR * count / highest)}"
        for name, count in shown
    ]
    return lines + (
        [f"  ... and {len(pairs) - MOST_SHOWN:,} more"] if len(pairs) > MOST_SHOWN else []
    )


def visible(token: str) -> str:
    """The token as one word: white space and what steers a terminal are escaped, a space is an open box."""
    return repr(token)[1:-1].replace(" ", "\N{OPEN BOX}")


def plot(task: FilesTask, path: Path) -> None:
    """Lengths and classes of every split as a picture. Raises OSError."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    splits = {name: split for name, split in task.dataset.splits.items() if len(split)}
    longest = max(int(split.lengths.max()) for split in splits.values())
    width = -(-longest // 30)  # whole tokens
    for offset, (name, split) in enumerate(splits.items()):
        shares = torch.bincount((split.lengths - 1) // width) / len(split)
        middles = (
            width * (torch.arange(len(shares)) + 0.5)
            + 0.5
            + 0.27 * width * (offset - (len(splits) - 1) / 2)
        )
        left.bar(middles.tolist(), shares.tolist(), width=0.25 * width, label=name)
    left.set(xlabel="length in tokens", ylabel="share of the sequences", title="lengths")
    left.legend()
    labels = task.dataset.vocabulary.labels[:MOST_SHOWN]
    for offset, (name, split) in enumerate(splits.items()):
        counts = torch.bincount(split.labels, minlength=task.sizes[1])[:MOST_SHOWN] / len(split)
        right.bar(
            [index + 0.27 * offset for index in range(len(labels))],
            counts.tolist(),
            width=0.25,
            label=name,
        )
    names = [printable(label if len(label) <= 24 else label[:23] + "...") for label in labels]
    places = [index + 0.27 for index in range(len(labels))]
    right.set_xticks(places, names, rotation=30 if len(labels) > 6 else 0, parse_math=False)
    right.set(ylabel="share of the sequences", title="classes")
    figure.savefig(path, dpi=120, format="png")


def sample(task: Task, rows: int = 8) -> str:
    """The first training batch, its first rows: padded, packed, with lengths and labels."""
    batch: Batch = next(task.batches(0, 1))
    words = task.vocabulary
    names = words.labels if words else None
    data = batch.tokens.data.tolist()
    sizes = batch.tokens.batch_sizes.tolist()
    order = batch.tokens.sorted_indices
    places = order.tolist() if order is not None else list(range(len(batch.labels)))
    sequences: list[list[int]] = [[] for _ in places]
    position = 0
    for size in sizes:
        for place in places[:size]:
            sequences[place].append(data[position])
            position += 1

    def name(token: int) -> str:
        return visible(words.tokens[token]) if words else str(token)

    shown = sequences[:rows]
    cut = min(max(map(len, shown)), 24)
    width = max(len(name(token)) for sequence in shown for token in sequence[:cut])
    lines = [
        f"{len(places)} sequences; the first {len(shown)}, padded to {cut} of {len(sizes)} columns:",
        "",
    ]
    for sequence, label, length in zip(
        shown, batch.labels.tolist(), batch.lengths.tolist(), strict=False
    ):
        cells = [name(token) for token in sequence[:cut]] + ["."] * (cut - len(sequence))
        row = " ".join(f"{cell:>{width}}" for cell in cells)
        lines.append(
            f"{row}   length {length:>4}   label {printable(names[label]) if names else label}"
        )
    lines += ["", "packed: one column per time step, longest sequence first"]
    lines.append(
        f"  data        {' '.join(map(name, data[:16]))}{' ...' if len(data) > 16 else ''}   ({len(data):,} tokens)"
    )
    lines.append(
        f"  batch_sizes {' '.join(map(str, sizes[:24]))}{' ...' if len(sizes) > 24 else ''}"
    )
    lines.append(
        f"  padding     {1 - len(data) / (len(places) * len(sizes)):.1%} of the rectangle, never computed"
    )
    return "\n".join(lines)
