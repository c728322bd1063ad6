"""What a user should know about a dataset: how it was read, and what to doubt."""

from collections.abc import Iterator
from pathlib import Path

from rnncls.config import FilesConfig
from rnncls.data.dataset import Dataset
from rnncls.data.files.places import in_tuple, named
from rnncls.data.sequences import Sequences
from rnncls.data.splits import SPLITS
from rnncls.errors import on_one_line
from rnncls.system.rows import shortened

# Shares above which a warning is worth reading.
UNKNOWN_SHARE = 0.5
SHARED_SHARE = 0.01

MOST_FILES_SAID = 5
MOST_LETTERS = 60  # of a label


def dataset_warnings(dataset: Dataset) -> list[str]:
    """Return what the user should know before believing a result, one line each."""
    return [on_one_line(f"rnncls: warning{text}") for text in _warnings(dataset)]


def _warnings(dataset: Dataset) -> Iterator[str]:
    # A file that was read for evaluation alone has no split of this name.
    if "val" in dataset.splits and not len(dataset.splits["val"]):
        yield "[D3]: there are no validation sequences; validating on those of training"
    if dataset.vocabulary.num_classes == 1:
        label = shortened(dataset.vocabulary.labels[0], MOST_LETTERS)
        yield f"[D4]: all labels are {label!r}: there is nothing to learn"

    yield from _warnings_of_labels(dataset)
    for name, sequences in dataset.splits.items():
        if len(sequences):
            yield from _warnings_of_split(dataset, name, sequences)

    yield from _counted(dataset)


def _counted(dataset: Dataset) -> Iterator[str]:
    """Yield what was noticed of single rows while the files were read, counted."""
    for name, noticed in dataset.noticed.items():
        for count, text in (
            (noticed.truncated, "[D16]: {:,} sequences of {} were truncated"),
            (noticed.dropped, "[D9]: {:,} empty sequences of {} were dropped"),
            (noticed.spaced_labels, "[D5]: white space around {:,} labels of {} was taken away"),
        ):
            if count:
                yield text.format(count, name)

        if noticed.like_lists:
            what = f"{noticed.like_lists:,} sequences of {name} look like lists, the first is"
            if noticed.like_lists == 1:
                what = f"1 sequence of {name} looks like a list,"
            yield (
                f"[D7]: {what} {noticed.first_like_list}: brackets are read as text; "
                "data.tokens=ids reads lists of ids, and JSON has lists of words"
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


def files_found(wanted: FilesConfig, found: FilesConfig) -> Iterator[str]:
    """Yield which files a folder or a pattern stands for."""
    for name in SPLITS:
        if getattr(wanted, name) is None:
            continue
        files = in_tuple(getattr(found, name))
        if files == in_tuple(getattr(wanted, name)):
            continue

        names = ", ".join(Path(file).name for file in files[:MOST_FILES_SAID])
        if len(files) > MOST_FILES_SAID:
            names += f" and {len(files) - MOST_FILES_SAID:,} more"
        count = "1 file" if len(files) == 1 else f"{len(files):,} files"
        yield on_one_line(f"rnncls: {count} for {name}: {names}")


def how_read(dataset: Dataset) -> Iterator[str]:
    """Yield how the files were read, once for those that were read in the same way."""
    files: dict[str, list[str]] = {}
    for file, read_as in dataset.read_as.items():
        files.setdefault(read_as, []).append(file)
    for read_as, those in files.items():
        yield on_one_line(f"rnncls: {named(tuple(those))}: read as: {read_as}")
