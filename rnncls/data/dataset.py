"""The user's files as flat arrays: tokens end to end, where each sequence begins, labels.

One pass reads, numbers tokens and labels as they come, and assigns each row of the training file to a split by a hash
of its sequence. Then the vocabulary is made of what training has, and the numbers are changed to its ids.
"""

from __future__ import annotations

import json
import sys
from array import array
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from rnncls.config import FilesConfig
from rnncls.data.records import BadRows, fingerprint, read
from rnncls.data.sequences import Sequences
from rnncls.data.vocabulary import UNKNOWN, Vocabulary, in_order
from rnncls.errors import CheckpointError, DataError, Problem, printable

SPLITS = ("train", "val", "test")
MAX_TOKENS = 2**20  # in a vocabulary
MAX_VOCABULARY_BYTES = 12 * 2**20  # a checkpoint's header may have 16 MiB

Array = np.ndarray[Any, Any]  # one-dimensional


@dataclass
class Dataset:
    """All splits of the user's data, and what was noticed while reading them."""

    splits: dict[str, Sequences]
    vocabulary: Vocabulary
    fingerprints: dict[str, str]  # SHA-256 by file
    dropped: dict[str, int] = field(default_factory=dict)  # empty sequences, by split or file
    truncated: dict[str, int] = field(default_factory=dict)
    unknown_tokens: dict[str, int] = field(default_factory=dict)
    in_train: dict[str, int] = field(
        default_factory=dict
    )  # sequences of val and test that training has too
    in_val: dict[str, int] = field(default_factory=dict)  # sequences of test that val has too

    def held_out(self) -> tuple[str, Sequences]:
        """What a model is judged by, with its name: the test split; if that is empty val, and if that is too, train."""
        name = next(
            name
            for name in ("test", "val", "train", *self.splits)
            if len(self.splits.get(name, ()))
        )
        return (f"the {name} split" if name in SPLITS else name), self.splits[name]


@dataclass
class _Table:
    """One file's rows, tokens and labels numbered as they first came up."""

    path: str
    tokens: array[int] = field(default_factory=lambda: array("i"))
    lengths: array[int] = field(default_factory=lambda: array("q"))
    labels: array[int] = field(default_factory=lambda: array("i"))
    lines: array[int] = field(default_factory=lambda: array("i"))
    hashes: array[int] = field(default_factory=lambda: array("Q"))
    dropped: int = 0
    truncated: int = 0
    of_train: bool = False  # whether this is the training file


class _Numbering(dict[str, int]):
    """Gives each new key the next number."""

    def __missing__(self, key: str) -> int:
        self[key] = number = len(self)
        return number


def load(
    data: FilesConfig, vocabulary: Vocabulary | None = None, progress: bool = False
) -> Dataset:
    """Read the files of a config. `vocabulary`: that of a checkpoint instead of a new one from the training data.

    Raises DataError with the bad rows by line, and for a split without sequences or a token or label that the training
    data lacks. `progress` shows a bar on stderr when that is a terminal.
    """
    token_numbers, label_numbers = _Numbering(), _Numbering()
    prints, paths = fingerprints(data), paths_of(data)
    tables = {
        name: _read_table(path, data, token_numbers, label_numbers, progress)
        for name, path in paths.items()
    }
    tables["train"].of_train = True
    parts: dict[str, Array] = {
        name: np.zeros(len(table.labels), dtype=np.int8) for name, table in tables.items()
    }
    parts["train"] = _parts(np.frombuffer(tables["train"].hashes, dtype=np.uint64), data)
    rows = {
        name: (tables[name], parts[name] == 0)
        if name in tables
        else (tables["train"], parts["train"] == number)
        for number, name in enumerate(SPLITS)
    }
    if not rows["train"][1].any():
        remedy = "the file, or smaller data.val_fraction and data.test_fraction"
        raise DataError(Problem("0 sequences to train on", data.train, remedy=remedy, id="D2"))
    if vocabulary is None:
        vocabulary = _vocabulary(*rows["train"], list(token_numbers), list(label_numbers), data)
    dataset = Dataset({}, vocabulary, prints)
    for name, (table, chosen) in rows.items():
        _add_split(dataset, name, table, chosen, list(token_numbers), list(label_numbers))
        if name in tables:
            dataset.dropped[name], dataset.truncated[name] = table.dropped, table.truncated
    hashes = {
        name: np.frombuffer(table.hashes, dtype=np.uint64)[chosen]
        for name, (table, chosen) in rows.items()
    }
    dataset.in_train = {
        name: int(np.isin(hashes[name], hashes["train"]).sum()) for name in SPLITS[1:]
    }
    dataset.in_val = {"test": int(np.isin(hashes["test"], hashes["val"]).sum())}
    return dataset


def load_held_out(
    data: FilesConfig, vocabulary: Vocabulary, known: dict[str, str], progress: bool = False
) -> Dataset:
    """What a checkpoint is judged by, with the checkpoint's vocabulary; `known` are the fingerprints in it.

    A test file of its own is all that is read. Raises CheckpointError for a file that has changed, and DataError.
    """
    if data.test is None:
        require_unchanged(
            data, known, paths_of(data), "the old file, or --data FILE for another one"
        )
        return load(data, vocabulary, progress)
    require_unchanged(
        data, known, {"test": data.test}, "the old file, or --data FILE for another one"
    )
    return load_file(data.test, data, vocabulary, progress, "test")


def require_unchanged(
    data: FilesConfig, known: dict[str, str], paths: dict[str, str], remedy: str
) -> None:
    """Raises CheckpointError when one of these files is not what it was, and DataError when it cannot be read."""
    for name, path in paths.items():
        if name in known and (found := fingerprint(path)) != known[name]:
            what = "the data has changed since the run began"
            raise CheckpointError(
                Problem(
                    what,
                    path,
                    expected=f"SHA-256 {known[name]}",
                    found=found,
                    remedy=remedy,
                    id="D18",
                )
            )
    if missing := known.keys() - paths_of(data).keys():
        what = f"the run had a {sorted(missing)[0]} file"
        raise CheckpointError(Problem(what, data.train, remedy=remedy, id="D18"))


def paths_of(data: FilesConfig) -> dict[str, str]:
    """The file of each split that has its own."""
    return {name: path for name in SPLITS if (path := getattr(data, name)) is not None}


def fingerprints(data: FilesConfig) -> dict[str, str]:
    """SHA-256 of each file. Raises DataError."""
    return {name: fingerprint(path) for name, path in paths_of(data).items()}


def load_file(
    path: str,
    data: FilesConfig,
    vocabulary: Vocabulary,
    progress: bool = False,
    name: str | None = None,
) -> Dataset:
    """One file of labelled sequences as the split `name`, else named after the file, with a checkpoint's vocabulary.

    Raises DataError, whose remedies name no config key: the run's own config decides how the file is read.
    """
    try:
        return _load_file(path, data, vocabulary, progress, name or path)
    except DataError as error:
        remedy = "mend the file; the config of the run decides how it is read"
        raise DataError(
            *(replace(p, remedy=remedy) if "data." in p.remedy else p for p in error.problems)
        ) from None


def _load_file(
    path: str, data: FilesConfig, vocabulary: Vocabulary, progress: bool, name: str
) -> Dataset:
    token_numbers, label_numbers = _Numbering(), _Numbering()
    table = _read_table(path, data, token_numbers, label_numbers, progress)
    dataset = Dataset(
        {}, vocabulary, {name: fingerprint(path)}, {name: table.dropped}, {name: table.truncated}
    )
    chosen = np.ones(len(table.labels), dtype=bool)
    _add_split(dataset, name, table, chosen, list(token_numbers), list(label_numbers))
    if not len(table.labels):
        raise DataError(Problem("0 sequences", path, remedy="a file with sequences", id="D2"))
    return dataset


def _read_table(
    path: str,
    data: FilesConfig,
    token_numbers: _Numbering,
    label_numbers: _Numbering,
    progress: bool,
) -> _Table:
    table, bad = _Table(path), BadRows(path)
    number, limit, tail = (
        token_numbers.__getitem__,
        data.max_length or sys.maxsize,
        data.truncate == "tail",
    )
    size = Path(path).stat().st_size if Path(path).exists() else 0
    with tqdm(
        total=size,
        unit="B",
        unit_scale=True,
        desc=Path(path).name,
        disable=None if progress else True,
    ) as bar:
        for record in read(path, data, bad, bar.update):
            if isinstance(record, int):
                table.dropped += 1
                continue
            line, tokens, label = record
            text = "\x1f".join(tokens).encode()
            table.hashes.append(int.from_bytes(blake2b(text, digest_size=8).digest(), "little"))
            if len(tokens) > limit:
                if data.truncate == "error":
                    expected, found = f"at most data.max_length = {limit} tokens", f"{len(tokens)}"
                    bad.add(
                        line,
                        "a long sequence",
                        expected,
                        found,
                        "data.truncate=head or tail",
                        "D16",
                    )
                table.truncated += 1
                tokens = tokens[-limit:] if tail else tokens[:limit]
            table.tokens.extend(map(number, tokens))
            table.lengths.append(len(tokens))
            table.labels.append(label_numbers[label])
            table.lines.append(line)
    bad.raise_if_any()
    return table


def _parts(hashes: Array, data: FilesConfig) -> Array:
    """0 for train, 1 for val, 2 for test, for each row of the training file. A row's part depends on nothing else."""
    place = hashes / 2.0**64
    val = data.val_fraction if data.val is None else 0.0
    test = data.test_fraction if data.test is None else 0.0
    return np.where(place < val, 1, np.where(place < val + test, 2, 0)).astype(np.int8)


def _vocabulary(
    table: _Table, chosen: Array, tokens: list[str], labels: list[str], data: FilesConfig
) -> Vocabulary:
    lengths = np.frombuffer(table.lengths, dtype=np.int64)
    numbers = np.frombuffer(table.tokens, dtype=np.int32)[np.repeat(chosen, lengths)]
    counts = np.bincount(numbers, minlength=len(tokens))
    known = in_order(tokens[number] for number in np.flatnonzero(counts >= data.min_count))
    used = np.unique(np.frombuffer(table.labels, dtype=np.int32)[chosen])
    has_unknown = data.unknown == "unk"
    known, classes = (
        tuple(token for token in known if token != UNKNOWN),
        in_order(labels[n] for n in used),
    )
    size = len(json.dumps(json.dumps([known, classes])))  # as it stands in a checkpoint
    if len(known) > MAX_TOKENS or size > MAX_VOCABULARY_BYTES:
        found, remedy = (
            f"{len(known):,} tokens, {len(classes):,} labels, {size:,} bytes",
            "data.min_count, data.tokens",
        )
        expected = (
            f"at most {MAX_TOKENS:,} different tokens, and {MAX_VOCABULARY_BYTES:,} bytes as JSON"
        )
        raise DataError(
            Problem(
                "a very large vocabulary",
                table.path,
                expected=expected,
                found=found,
                remedy=remedy,
                id="D7",
            )
        )
    return Vocabulary((UNKNOWN, *known) if has_unknown else known, classes, has_unknown)


def _add_split(
    dataset: Dataset, name: str, table: _Table, chosen: Array, tokens: list[str], labels: list[str]
) -> None:
    """Put the chosen rows of a table into the dataset, with the vocabulary's ids. Raises DataError."""
    vocabulary = dataset.vocabulary
    lengths = np.frombuffer(table.lengths, dtype=np.int64)
    ids = np.fromiter(
        (vocabulary.index.get(token, -1) for token in tokens), dtype=np.int32, count=len(tokens)
    )
    flat = np.frombuffer(table.tokens, dtype=np.int32)
    flat = ids[flat if chosen.all() else flat[np.repeat(chosen, lengths)]]
    unknown = flat < 0
    lengths = lengths[chosen]
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    lines = np.frombuffer(table.lines, dtype=np.int32)[chosen]
    if dataset.vocabulary.has_unknown:
        unknown = unknown | (flat == 0)  # `<unk>` written out is no better
        flat[unknown] = 0
    elif unknown.any():
        row = int(np.searchsorted(offsets, int(unknown.argmax()), side="right")) - 1
        what = f"{int(unknown.sum()):,} tokens of {name} are not in the training data"
        where = f"{table.path}:{lines[row]}"
        raise DataError(Problem(what, where, remedy="data.unknown=unk, or mend the line", id="D8"))
    dataset.unknown_tokens[name] = int(unknown.sum())
    if len(flat) and unknown.all():
        remedy = "data.tokens, or data like the training data" + _more_training(name, table)
        raise DataError(
            Problem(
                f"no token of {name} is in the training data", table.path, remedy=remedy, id="D8"
            )
        )
    places = {label: number for number, label in enumerate(vocabulary.labels)}
    classes = np.fromiter(
        (places.get(label, -1) for label in labels), dtype=np.int64, count=len(labels)
    )
    numbers = classes[np.frombuffer(table.labels, dtype=np.int32)[chosen]]
    if (numbers < 0).any():
        row = int((numbers < 0).argmax())
        found = labels[np.frombuffer(table.labels, dtype=np.int32)[chosen][row]]
        shown = ", ".join(vocabulary.labels[:10]) + (", ..." if vocabulary.num_classes > 10 else "")
        what, remedy = (
            f"a label of {name} that training lacks",
            "mend the line" + _more_training(name, table),
        )
        raise DataError(
            Problem(
                what,
                f"{table.path}:{lines[row]}",
                expected=f"one of {shown}",
                found=found,
                remedy=remedy,
                id="D6",
            )
        )
    dataset.splits[name] = Sequences(
        torch.from_numpy(flat), torch.from_numpy(offsets), torch.from_numpy(numbers)
    )


def _more_training(name: str, table: _Table) -> str:
    """A remedy for what training lacks and another part of the same file has."""
    key = f"data.{name}_fraction"
    return (
        f", or {key}=0, as the row is in {name} by its hash"
        if name in SPLITS[1:] and table.of_train
        else ""
    )


def warnings(dataset: Dataset) -> list[str]:
    """What the user should know before believing a result."""
    said = []
    if "val" in dataset.splits and not len(dataset.splits["val"]):
        said.append("[D3]: there are no validation sequences; validating on those of training")
    if dataset.vocabulary.num_classes == 1:
        said.append(
            f"[D4]: all labels are {dataset.vocabulary.labels[0]!r}: there is nothing to learn"
        )
    for name, sequences in dataset.splits.items():
        if len(sequences) and (share := dataset.unknown_tokens[name] / len(sequences.tokens)) > 0.5:
            said.append(f"[D8]: {share:.0%} of the tokens of {name} are not in the vocabulary")
        if len(sequences) and (share := dataset.in_train.get(name, 0) / len(sequences)) > 0.01:
            said.append(
                f"[D17]: {share:.1%} of the sequences of {name} are in the training data too"
            )
        if len(sequences) and (share := dataset.in_val.get(name, 0) / len(sequences)) > 0.01:
            said.append(
                f"[D17]: {share:.1%} of the sequences of {name} are in the validation data too"
            )
    said += [
        f"[D16]: {count:,} sequences of {name} were truncated"
        for name, count in dataset.truncated.items()
        if count
    ]
    said += [
        f"[D9]: {count:,} empty sequences of {name} were dropped"
        for name, count in dataset.dropped.items()
        if count
    ]
    return [printable(f"rnncls: warning{text}") for text in said]
