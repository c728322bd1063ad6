"""Predict labels and probabilities for sequences without labels."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple, TextIO

import torch
from tqdm import tqdm

from rnncls.config import FilesConfig
from rnncls.data import Vocabulary, collate
from rnncls.data.records import BadRows, Record, decode_line, read_records, tokens_of
from rnncls.data.sequences import cut_for_evaluation
from rnncls.data.vocabulary import are_integers, truncate
from rnncls.errors import DataError, Problem, printable
from rnncls.model.classifier import RNNClassifier
from rnncls.rundir.checkpoint import Checkpoint
from rnncls.rundir.checkpoint_files import load_checkpoint
from rnncls.system.files import new_file, writing

MOST_SKIPPED_SHOWN = 100  # the others are counted
MOST_TOKENS_SHOWN = 12  # in a message about an unknown one

# Sequences that are sorted by length together; predictions keep the given order. It bounds what is
# in memory, and how long a pipe waits for its first answer.
CHUNK = 4096


@dataclass(frozen=True)
class Predictor:
    """A model with the meaning of its inputs and outputs. Made by `load_predictor`."""

    model: RNNClassifier
    vocabulary: Vocabulary

    # How text becomes tokens; its files are not read.
    data: FilesConfig

    # The modulus of the generated task, whose true answer is known. None for another task.
    modulus: int | None

    # Whether JSON shows labels as numbers.
    integer_labels: bool


class Item(NamedTuple):
    """One sequence to predict."""

    line: int  # where it came from, counted from 1
    ids: list[int]


class Prediction(NamedTuple):
    """The likeliest labels of one sequence, best first, with their probabilities."""

    line: int
    top: list[tuple[str, float]]


def load_predictor(path: str | Path, device: str | None = None) -> Predictor:
    """Load a checkpoint file, or the best checkpoint of a run directory.

    Raises: CheckpointError if there is none or it is damaged. MachineError if there is no such
    device.
    """
    checkpoint, model = load_checkpoint(path, device)

    vocabulary = checkpoint.vocabulary or _numbers(checkpoint)
    data = checkpoint.config.data
    modulus = None
    if not isinstance(data, FilesConfig):
        # A model of the generated task reads ids, as one of files with tokens=ids does.
        modulus = data.modulus
        data = FilesConfig(source="files", train="none", tokens="ids", unknown="error")

    return Predictor(model, vocabulary, data, modulus, are_integers(vocabulary.labels))


def _numbers(checkpoint: Checkpoint) -> Vocabulary:
    """Return the vocabulary of generated data, whose tokens and labels are numbers."""
    num_tokens, num_classes = checkpoint.sizes
    tokens = tuple(map(str, range(num_tokens)))
    labels = tuple(map(str, range(num_classes)))
    return Vocabulary(tokens, labels, has_unknown=False)


def encode(predictor: Predictor, tokens: list[str]) -> list[int] | Problem:
    """Return the ids of a sequence, truncated as in training, or the problem with its tokens."""
    if not tokens:
        return Problem(
            "an empty sequence", expected="at least one token", remedy="--bad skip", id="D9"
        )
    kept = truncate(tokens, predictor.data)
    if isinstance(kept, Problem):
        return replace(kept, remedy="--bad skip")

    # With <unk> in the vocabulary there is no KeyError.
    try:
        return predictor.vocabulary.encode(kept)
    except KeyError as error:
        known = list(predictor.vocabulary.tokens[:MOST_TOKENS_SHOWN])
        if predictor.vocabulary.num_embeddings > MOST_TOKENS_SHOWN:
            known.append("...")
        return Problem(
            "a token unknown to the model",
            expected=", ".join(known),
            found=f"{error}",
            remedy="--bad skip",
            id="D7",
        )


def encode_text(predictor: Predictor, text: str) -> list[int] | Problem:
    """Return the ids of a sequence as a person types it, or the problem with it.

    Words stand between spaces, ids between spaces or commas; characters stand as they are.
    """
    # The remedies for files would not help at a prompt or in a pipe.
    tokens = tokens_of(text, predictor.data.tokens)
    if isinstance(tokens, Problem):
        return replace(tokens, remedy="--bad skip")
    return encode(predictor, tokens)


def items_of_texts(
    predictor: Predictor, texts: Iterable[str | bytes], bad: BadRows
) -> Iterator[Item]:
    """Yield one sequence per text, numbered from 1; bytes are lines of UTF-8."""
    for number, text in enumerate(texts, 1):
        # Text from the command line has been decoded already.
        line = decode_line(text, is_first=number == 1) if isinstance(text, bytes) else text
        if isinstance(line, Problem):
            bad.add_problem(number, line)
            continue
        yield from _good(number, encode_text(predictor, line), bad)


def items_of_file(predictor: Predictor, path: str | Path, bad: BadRows) -> Iterator[Item]:
    """Yield the sequences of a JSONL, CSV or TSV file like those of training, but without labels.

    Bad rows go to `bad`. Raises: DataError if the file cannot be read.
    """
    # An empty sequence has no prediction, and this file's format is not that of the training file.
    other = {"empty": "error", "format": "auto", "separator": "auto"}
    data = predictor.data.model_copy(update=other)
    for record in read_records(path, data, bad, labelled=False):
        if isinstance(record, Record):
            yield from _good(record.line, encode(predictor, record.tokens), bad)


def _good(number: int, ids: list[int] | Problem, bad: BadRows) -> Iterator[Item]:
    """Yield the item if its ids are good; else tell `bad`."""
    if isinstance(ids, Problem):
        bad.add_problem(number, ids)
    else:
        yield Item(number, ids)


class Skipping(BadRows):
    """Reports each bad row on stderr, or raises DataError at the first one if `stop`."""

    remedy = "--bad skip"

    def __init__(self, path: str | Path, stop: bool) -> None:
        super().__init__(path)
        self.stop = stop

    def note(self, problem: Problem) -> None:
        """Report one bad row. Raises: DataError if `stop`."""
        if self.stop:
            raise DataError(problem)
        if self.count > MOST_SKIPPED_SHOWN:
            return

        # Values from a file are shown, so control characters are escaped.
        detail = f": {problem.found}" if problem.found else ""
        message = f"rnncls: skipped {problem.where}: {problem.what}{detail}"
        print(printable(message), file=sys.stderr)

    def finish(self, num_predicted: int) -> None:
        """Report how many rows were skipped. Raises: DataError if there was no good one."""
        if not self.count:
            return

        # Of all skipped rows, also those that were not shown.
        total = self.count + num_predicted
        print(f"rnncls: skipped {self.count:,} of {total:,} sequences", file=sys.stderr)
        if not num_predicted:
            raise DataError(Problem("0 sequences to predict", str(self.path), id="D2"))


@torch.inference_mode()
def predict(predictor: Predictor, items: Iterable[Item], top_k: int = 1) -> Iterator[Prediction]:
    """Yield the `top_k` likeliest labels for each item, in the order of the items.

    A prediction does not depend on what else is predicted.
    """
    # One iterator, from which each chunk takes the next items.
    items = iter(items)
    while chunk := list(islice(items, CHUNK)):
        # Sorted by length, so that sequences of one batch need little padding.
        order = sorted(range(len(chunk)), key=lambda index: len(chunk[index].ids))

        # Cut as an evaluation is, which keeps a batch of long sequences small.
        predictions: dict[int, Prediction] = {}
        lengths = [len(chunk[index].ids) for index in order]
        for first, last in cut_for_evaluation(lengths):
            indices = order[first:last]
            batch = [chunk[index] for index in indices]
            predictions |= zip(indices, _predict_batch(predictor, batch, top_k), strict=True)

        # Back in the order in which the items came.
        for index in range(len(chunk)):
            yield predictions[index]


def _predict_batch(predictor: Predictor, items: list[Item], top_k: int) -> list[Prediction]:
    """Return the predictions for a few items, in their order."""
    # Labels are required and not read.
    sequences = [torch.tensor(item.ids) for item in items]
    batch = collate(sequences, labels=torch.zeros(len(items)))

    # (B, N)
    logits = predictor.model(batch.to(predictor.model.device).tokens)

    # (B, top_k) each, best first. topk() refuses more than there are.
    top_k = min(top_k, predictor.vocabulary.num_classes)
    probabilities, classes = logits.softmax(1).topk(top_k)

    predictions = []
    rows = zip(items, classes.tolist(), probabilities.tolist(), strict=True)
    for item, row_classes, row_probabilities in rows:
        labels = [predictor.vocabulary.labels[number] for number in row_classes]
        top = list(zip(labels, row_probabilities, strict=True))
        predictions.append(Prediction(item.line, top))
    return predictions


Writer = Callable[[Prediction], object]


def write_predictions(
    predictor: Predictor, items: Iterable[Item], top_k: int, output: Path | None, format: str
) -> int:
    """Predict and write the predictions; return how many there were.

    They go to `output`, in the format of its name, or else to stdout, in `format`. The file appears
    when all of it is written.

    Raises: DataError at a bad row or if there is no good one. WriteError if the disk is full.
    """
    counted = _Counted(predictor, items)
    predictions = predict(predictor, counted, top_k)

    if output is None:
        write = writer(sys.stdout, format, predictor)
        # A bar on stderr would run into results on the same terminal. None: only on a terminal.
        no_bar = True if sys.stdout.isatty() else None
        for prediction in tqdm(predictions, unit="seq", disable=no_bar):
            write(prediction)
    else:
        # A name says what it wants; --json counts for other names only.
        suffix = output.suffix[1:].lower()
        if suffix in ("jsonl", "csv", "tsv"):
            format = suffix
        # A bar cannot run into the results here, so it is shown whenever stderr is a terminal.
        with writing(output), new_file(output) as file:
            write = writer(file, format, predictor)
            for prediction in tqdm(predictions, unit="seq", disable=None):
                write(prediction)

    # Counting happened while the predictions were drawn from the items.
    counted.warn_of_unknown()
    return counted.count


class _Counted:
    """Counts the items that pass, and those of which the model knows no token."""

    def __init__(self, predictor: Predictor, items: Iterable[Item]) -> None:
        self.predictor = predictor
        self.items = items
        self.count = 0
        self.unknown = 0

    def __iter__(self) -> Iterator[Item]:
        for item in self.items:
            self.count += 1
            if knows_nothing(self.predictor, item.ids):
                self.unknown += 1
            yield item

    def warn_of_unknown(self) -> None:
        """Warn on stderr if predictions are meaningless, because the model knows no token."""
        if self.unknown:
            print(
                f"rnncls: warning[D8]: {self.unknown:,} of {self.count:,} sequences have no token "
                "of the training data; their predictions are not meaningful",
                file=sys.stderr,
            )


def knows_nothing(predictor: Predictor, ids: list[int]) -> bool:
    """Return whether every token is `<unk>`, which has id 0."""
    # Without <unk>, id 0 is a token like any other.
    return predictor.vocabulary.has_unknown and not any(ids)


def writer(file: TextIO | IO[str], format: str, predictor: Predictor) -> Writer:
    """Return a function that writes a prediction as `text`, `jsonl`, `csv` or `tsv`."""
    if format == "jsonl":
        return _json_writer(file, predictor.integer_labels)
    if format == "text":
        return _text_writer(file)
    return _table_writer(file, delimiter="\t" if format == "tsv" else ",")


def _json_writer(file: TextIO | IO[str], integer_labels: bool) -> Writer:
    """Write one JSON object per line: the likeliest label and, if `top_k` > 1, `top` with all."""

    def write(prediction: Prediction) -> None:
        top: list[dict[str, Any]] = []
        for name, probability in prediction.top:
            label = int(name) if integer_labels else name
            top.append({"label": label, "probability": probability})

        # The likeliest label has keys of its own, so that readers need not look into `top`.
        row = {"line": prediction.line, **top[0]}
        if len(top) > 1:
            row["top"] = top

        # Labels in any script stay readable. What stdout cannot encode is escaped there.
        file.write(json.dumps(row, ensure_ascii=False) + "\n")

    return write


def _text_writer(file: TextIO | IO[str]) -> Writer:
    """Write one line for each prediction, for people."""

    def write(prediction: Prediction) -> None:
        file.write(to_text(prediction) + "\n")

    return write


def to_text(prediction: Prediction) -> str:
    """Return the labels and their probabilities as a person reads them, on one line."""
    return "   ".join(
        f"{printable(name)} {probability:.4f}" for name, probability in prediction.top
    )


def _table_writer(file: TextIO | IO[str], delimiter: str) -> Writer:
    """Write one row for each label of each prediction, below a header row."""
    # The lines end as those of the other formats do; csv's own default is CRLF.
    table = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    table.writerow(["line", "label", "probability"])

    def write(prediction: Prediction) -> None:
        for name, probability in prediction.top:
            table.writerow([prediction.line, name, f"{probability:.6g}"])

    return write


def true_answer(predictor: Predictor, ids: list[int]) -> str | None:
    """Return the right label of a sequence of the generated task; None for another task."""
    return None if predictor.modulus is None else str(sum(ids) % predictor.modulus)
