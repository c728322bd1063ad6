"""Labels and probabilities for sequences without labels."""

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
from rnncls.rundir.checkpoint import Checkpoint, read_checkpoint, restore_model
from rnncls.rundir.checkpoint_files import find_checkpoint
from rnncls.system import files
from rnncls.system.device import resolve_device
from rnncls.system.files import writing

MOST_SKIPPED_SHOWN = 100  # the others are counted
CHUNK = 4096  # sequences that are sorted by length together; their order comes back


@dataclass(frozen=True)
class Predictor:
    """A model with what its numbers mean. Made by `load_predictor`."""

    model: RNNClassifier
    vocabulary: Vocabulary
    data: FilesConfig  # how text becomes tokens
    modulus: int | None  # of the generated task, whose true answer is known
    integer_labels: bool


class Item(NamedTuple):
    """One sequence to predict: where it came from, and its ids."""

    line: int
    ids: list[int]


class Prediction(NamedTuple):
    """The likeliest labels of one sequence, best first, with their probabilities."""

    line: int
    top: list[tuple[str, float]]


def load_predictor(path: str | Path, device: str | None = None) -> Predictor:
    """From a checkpoint file or a run directory's best. Raises CheckpointError, MachineError."""
    checkpoint = read_checkpoint(find_checkpoint(path))
    model = restore_model(checkpoint).to(resolve_device(device or checkpoint.config.device))
    data, vocabulary, modulus = checkpoint.config.data, checkpoint.vocabulary, None
    if not isinstance(data, FilesConfig):
        modulus = data.modulus
        data = FilesConfig(source="files", train="none", tokens="ids", unknown="error")
    vocabulary = vocabulary or _numbers(checkpoint)
    return Predictor(model, vocabulary, data, modulus, are_integers(vocabulary.labels))


def _numbers(checkpoint: Checkpoint) -> Vocabulary:
    tokens, classes = checkpoint.sizes
    return Vocabulary(
        tuple(map(str, range(tokens))), tuple(map(str, range(classes))), has_unknown=False
    )


def encode(predictor: Predictor, tokens: list[str]) -> list[int] | Problem:
    """Ids, cut to the longest length in training, or what is wrong with the tokens."""
    if not tokens:
        return Problem(
            "an empty sequence", expected="at least one token", remedy="--bad skip", id="D9"
        )
    kept = truncate(tokens, predictor.data)
    if isinstance(kept, Problem):
        return replace(kept, remedy="--bad skip")
    try:
        return predictor.vocabulary.encode(kept)
    except KeyError as error:
        known = predictor.vocabulary.tokens
        expected = ", ".join(known[:12]) + (", ..." if len(known) > 12 else "")
        return Problem(
            "a token unknown to the model",
            expected=expected,
            found=f"{error}",
            remedy="--bad skip",
            id="D7",
        )


def encode_text(predictor: Predictor, text: str) -> list[int] | Problem:
    """Ids of a sequence as a person types it: words between spaces, ids also between commas, or characters."""
    kind = predictor.data.tokens
    tokens = tokens_of(text.replace(",", " ") if kind == "ids" else text, kind)
    return (
        replace(tokens, remedy="--bad skip")
        if isinstance(tokens, Problem)
        else encode(predictor, tokens)
    )


def items_of_texts(
    predictor: Predictor, texts: Iterable[str | bytes], bad: BadRows
) -> Iterator[Item]:
    """One sequence per text, numbered from 1; bytes are UTF-8 lines."""
    for number, text in enumerate(texts, 1):
        line = decode_line(text, is_first=number == 1) if isinstance(text, bytes) else text
        if isinstance(line, Problem):
            bad.add_problem(number, line)
            continue
        yield from _good(number, encode_text(predictor, line), bad)


def items_of_file(predictor: Predictor, path: str | Path, bad: BadRows) -> Iterator[Item]:
    """The sequences of a JSONL, CSV or TSV file like those of training; a label is not needed. Raises DataError."""
    data = predictor.data.model_copy(update={"empty": "error", "format": "auto"})
    for record in read_records(path, data, bad, labelled=False):
        if isinstance(record, Record):
            yield from _good(record.line, encode(predictor, record.tokens), bad)


def _good(number: int, ids: list[int] | Problem, bad: BadRows) -> Iterator[Item]:
    if isinstance(ids, Problem):
        bad.add(number, ids.what, ids.expected, ids.found, ids.remedy, ids.id)
    else:
        yield Item(number, ids)


class Skipping(BadRows):
    """Says each bad row on stderr, or raises DataError at the first."""

    def __init__(self, path: str | Path, stop: bool) -> None:
        super().__init__(path)
        self.stop = stop

    def add(
        self,
        line: int,
        what: str,
        expected: str = "",
        found: str = "",
        remedy: str = "",
        id: str = "D14",
    ) -> None:
        self.count += 1
        problem = Problem(
            what,
            f"{self.path}:{line}",
            expected=expected,
            found=found,
            remedy=remedy or "--bad skip",
            id=id,
        )
        if self.stop:
            raise DataError(problem)
        if self.count > MOST_SKIPPED_SHOWN:
            return
        print(
            printable(f"rnncls: skipped {problem.where}: {what}" + (f": {found}" if found else "")),
            file=sys.stderr,
        )

    def finish(self, predicted: int) -> None:
        """Say how many were skipped; raises DataError when there was nothing else."""
        if self.count:
            print(
                f"rnncls: skipped {self.count:,} of {self.count + predicted:,} sequences",
                file=sys.stderr,
            )
            if not predicted:
                raise DataError(Problem("0 sequences to predict", str(self.path), id="D2"))


@torch.inference_mode()
def predict(predictor: Predictor, items: Iterable[Item], top_k: int = 1) -> Iterator[Prediction]:
    """A prediction for each item, in their order. A sequence's does not depend on what else is predicted."""
    items = iter(items)
    device = next(predictor.model.parameters()).device
    top_k = min(top_k, predictor.vocabulary.num_classes)
    while chunk := list(islice(items, CHUNK)):
        order = sorted(range(len(chunk)), key=lambda index: len(chunk[index].ids))
        found: dict[int, list[tuple[str, float]]] = {}
        lengths = [len(chunk[index].ids) for index in order]
        for first, last in cut_for_evaluation(lengths):
            indices = order[first:last]
            batch = collate(
                [torch.tensor(chunk[index].ids) for index in indices], torch.zeros(len(indices))
            )
            probabilities, labels = predictor.model(batch.to(device).tokens).softmax(1).topk(top_k)
            for index, values, numbers in zip(
                indices, probabilities.tolist(), labels.tolist(), strict=True
            ):
                names = [predictor.vocabulary.labels[number] for number in numbers]
                found[index] = list(zip(names, values, strict=True))
        yield from (Prediction(item.line, found[index]) for index, item in enumerate(chunk))


Writer = Callable[[Prediction], object]


def write_predictions(
    predictor: Predictor, items: Iterable[Item], top_k: int, output: Path | None, format: str
) -> int:
    """Predict and write to `output`, in the format of its name, or to stdout in `format`; returns how many.

    The file appears when all of it is written. Raises DataError, WriteError.
    """
    watched = _Watched(predictor, items)
    predictions = predict(predictor, watched, top_k)
    if output is None:
        write = writer(sys.stdout, format, predictor)
        for prediction in tqdm(
            predictions, unit="seq", disable=None if not sys.stdout.isatty() else True
        ):
            write(prediction)
        return watched.finish()
    suffix = output.suffix[1:].lower()
    with writing(output), files.new_file(output) as file:
        write = writer(file, suffix if suffix in ("jsonl", "csv", "tsv") else format, predictor)
        for prediction in tqdm(predictions, unit="seq", disable=None):
            write(prediction)
    return watched.finish()


class _Watched:
    """The items, counted, and those of which the model knows no token."""

    def __init__(self, predictor: Predictor, items: Iterable[Item]) -> None:
        self.predictor, self.items = predictor, items
        self.count = self.unknown = 0

    def __iter__(self) -> Iterator[Item]:
        for item in self.items:
            self.count += 1
            self.unknown += knows_nothing(self.predictor, item.ids)
            yield item

    def finish(self) -> int:
        """Say on stderr what the predictions are not worth; returns how many sequences there were."""
        if self.unknown:
            what = f"{self.unknown:,} of {self.count:,} sequences have no token that the training data had"
            print(f"rnncls: warning[D8]: {what}; their predictions mean nothing", file=sys.stderr)
        return self.count


def knows_nothing(predictor: Predictor, ids: list[int]) -> bool:
    """Whether every token is `<unk>`."""
    return predictor.vocabulary.has_unknown and not any(ids)


def writer(file: TextIO | IO[str], format: str, predictor: Predictor) -> Writer:
    """What writes a prediction as `text`, `jsonl`, `csv` or `tsv`."""

    def label(name: str) -> Any:
        return int(name) if predictor.integer_labels else name

    def jsonl(prediction: Prediction) -> None:
        top = [{"label": label(name), "probability": value} for name, value in prediction.top]
        rest = {"top": top} if len(top) > 1 else {}
        file.write(
            json.dumps({"line": prediction.line, **top[0], **rest}, ensure_ascii=False) + "\n"
        )

    def text(prediction: Prediction) -> None:
        file.write(
            "   ".join(f"{printable(name)} {value:.4f}" for name, value in prediction.top) + "\n"
        )

    if format == "jsonl":
        return jsonl
    if format == "text":
        return text
    table = csv.writer(file, delimiter="\t" if format == "tsv" else ",", lineterminator="\n")
    table.writerow(["line", "label", "probability"])

    def rows(prediction: Prediction) -> None:
        table.writerows([prediction.line, name, f"{value:.6g}"] for name, value in prediction.top)

    return rows


def true_answer(predictor: Predictor, ids: list[int]) -> str | None:
    """The right label of a sequence of the generated task."""
    return None if predictor.modulus is None else str(sum(ids) % predictor.modulus)
