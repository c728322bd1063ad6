"""What a user should know about a dataset before believing a result."""

from collections.abc import Iterator

from rnncls.data.dataset import Dataset
from rnncls.data.sequences import Sequences
from rnncls.errors import printable

# Shares above which a warning is worth reading.
UNKNOWN_SHARE = 0.5
SHARED_SHARE = 0.01


def dataset_warnings(dataset: Dataset) -> list[str]:
    """Return what the user should know before believing a result, one line each."""
    return [printable(f"rnncls: warning{text}") for text in _warnings(dataset)]


def _warnings(dataset: Dataset) -> Iterator[str]:
    # A file that was read for evaluation alone has no split of this name.
    if "val" in dataset.splits and not len(dataset.splits["val"]):
        yield "[D3]: there are no validation sequences; validating on those of training"
    if dataset.vocabulary.num_classes == 1:
        label = dataset.vocabulary.labels[0]
        yield f"[D4]: all labels are {label!r}: there is nothing to learn"

    yield from _warnings_of_labels(dataset)
    for name, sequences in dataset.splits.items():
        if len(sequences):
            yield from _warnings_of_split(dataset, name, sequences)

    yield from _counted(dataset)


def _counted(dataset: Dataset) -> Iterator[str]:
    """Yield what was noticed of single rows while the files were read, counted."""
    for counts, text in (
        (dataset.truncated, "[D16]: {:,} sequences of {} were truncated"),
        (dataset.dropped, "[D9]: {:,} empty sequences of {} were dropped"),
        (dataset.spaced_labels, "[D5]: white space around {:,} labels of {} was taken away"),
    ):
        yield from (text.format(count, name) for name, count in counts.items() if count)

    for name, (count, place) in dataset.like_lists.items():
        if count:
            what = f"{count:,} sequences of {name} look like lists, the first is {place}"
            if count == 1:
                what = f"1 sequence of {name} looks like a list, {place}"
            yield (
                f"[D7]: {what}: brackets are read as text; data.tokens=ids reads lists of ids, and "
                "JSON has lists of words"
            )


def _warnings_of_labels(dataset: Dataset) -> Iterator[str]:
    rare = dataset.rare
    if rare is not None and rare.sequences:
        yield f"[D6]: {rare.told} (data.rare_classes)"

    contradictions = dataset.contradictions
    if contradictions is not None and contradictions.sequences:
        yield f"[D22]: {contradictions.shown}"
        for example in contradictions.examples:
            yield f"[D22]: {example.shown}"


def _warnings_of_split(dataset: Dataset, name: str, sequences: Sequences) -> Iterator[str]:
    unknown = dataset.unknown_tokens[name] / len(sequences.tokens)
    if unknown > UNKNOWN_SHARE:
        yield f"[D8]: {unknown:.0%} of the tokens of {name} are not in the vocabulary"

    in_train = dataset.in_train.get(name, 0) / len(sequences)
    if in_train > SHARED_SHARE:
        yield f"[D17]: {in_train:.1%} of the sequences of {name} are in the training data too"

    in_val = dataset.in_val.get(name, 0) / len(sequences)
    if in_val > SHARED_SHARE:
        yield f"[D17]: {in_val:.1%} of the sequences of {name} are in the validation data too"
