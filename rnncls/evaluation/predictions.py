"""Writes what a model says about every sequence that it is evaluated on, as a table or as JSONL."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rnncls.data.vocabulary import are_integers
from rnncls.errors import ConfigError, NonFiniteError, Problem
from rnncls.evaluation.examples import Examples, unpacked
from rnncls.evaluation.mistakes import probability_of
from rnncls.evaluation.scores import Scored
from rnncls.system.files import new_file
from rnncls.system.refusals import writing
from rnncls.system.rows import format_of_name, table_writer, text_of, write_json_line

# Of one sequence. With more classes, JSONL has the likeliest, and a table none of their own.
MOST_PROBABILITIES = 100


class Row(NamedTuple):
    """What is written about one sequence."""

    number: int  # rows of a file are written in the order of their numbers
    ids: list[int]
    true: int
    predicted: int
    probability: float  # of the predicted class
    classes: list[int]  # those whose probabilities follow
    probabilities: list[float]


Stage = Callable[[Iterable[Scored]], Iterator[Scored]]


def format_of_predictions(path: Path) -> str:
    """Return jsonl, csv or tsv, by the name of the file. Raises: ConfigError for another name."""
    format = format_of_name(path)
    if format:
        return format
    raise ConfigError(
        Problem(
            "predictions are not written in this format",
            f"--predictions {path}",
            expected="a name that ends in .jsonl, .csv or .tsv",
            id="C17",
        )
    )


@contextmanager
def writing_predictions(
    path: Path | None, examples: Examples, csv_safe: bool = False
) -> Iterator[Stage]:
    """Give a stage that writes what passes it into a .jsonl, .csv or .tsv file.

    The file appears, or replaces the one that is there, when the body ends without an exception.
    Without a path, the stage lets everything pass. If the file is a pipe whose reader leaves, it
    does so from then on. With `csv_safe`, no cell of a table is a formula to a spreadsheet.

    Raises: ConfigError for another name. WriteError. NonFiniteError at logits that are not finite.
    """
    if path is None:
        yield iter
        return

    format = format_of_predictions(path)
    # When the file is closed, what was not written to a pipe without a reader is tried once more.
    with writing(path), suppress(BrokenPipeError), new_file(path) as file:
        write = _writer(file, format, examples, csv_safe)

        def stage(parts: Iterable[Scored]) -> Generator[Scored, None, None]:
            # Sequences come by length within each chunk of a file: those that come too early wait.
            waiting: dict[int, Row] = {}
            order = _order(examples)
            following = next(order, None)
            passed = 0
            for part in parts:
                _require_finite(part, path)
                for row in _rows(part, examples, passed):
                    waiting[row.number] = row
                passed += len(part.batch.labels)

                try:
                    while following in waiting:
                        write(waiting.pop(following))
                        following = next(order, None)
                except BrokenPipeError:
                    yield part
                    yield from parts
                    return
                yield part

        yield stage


def _order(examples: Examples) -> Iterator[int]:
    """Return the numbers of the sequences in the order in which they are written."""
    if examples.source is None:
        return iter(range(examples.total))
    rows, _ = examples.source.rows.sort()
    return iter(rows.tolist())


def _rows(part: Scored, examples: Examples, passed: int) -> Iterator[Row]:
    """Yield a row for each sequence of a part, before which others have passed."""
    probabilities = part.logits.softmax(1)
    num_classes = probabilities.shape[1]
    if num_classes > MOST_PROBABILITIES:
        # (B, 100) each, the likeliest first.
        probabilities, likeliest = probabilities.topk(MOST_PROBABILITIES)
        classes = likeliest.tolist()
    else:
        classes = [list(range(num_classes))] * len(probabilities)

    columns: list[Iterable[Any]] = [
        examples.numbers(passed, len(classes)),
        unpacked(part.batch),
        part.batch.labels.tolist(),
        part.predictions.tolist(),
        probability_of(part.predictions, part.logits).tolist(),
        classes,
        probabilities.tolist(),
    ]
    for values in zip(*columns, strict=True):
        yield Row(*values)


def _require_finite(part: Scored, path: Path) -> None:
    """Raise NonFiniteError unless every loss is finite: NaN stands for no class."""
    if not bool(part.losses.isfinite().all()):
        what = "the loss is not finite, so there are no predictions to write"
        remedy = "an earlier checkpoint of the run"
        raise NonFiniteError(Problem(what, str(path), remedy=remedy, id="K13"))


def _writer(
    file: TextIO, format: str, examples: Examples, csv_safe: bool
) -> Callable[[Row], object]:
    """Return a function that writes a row as `jsonl`, `csv` or `tsv`."""
    if format == "jsonl":
        return _json_writer(file, examples)
    return _table_writer(file, format, examples, csv_safe)


def _json_writer(file: TextIO, examples: Examples) -> Callable[[Row], object]:
    """Write one JSON object per line; labels are numbers if all of them are integers."""
    labels: list[str | int] = [*examples.labels]
    if are_integers(examples.labels):
        labels = [int(label) for label in examples.labels]

    def write(row: Row) -> None:
        named = zip(row.classes, row.probabilities, strict=True)
        content = {
            **_place(row, examples),
            "sequence": examples.readable(row.ids),
            **_sum(row, examples),
            "true": labels[row.true],
            "predicted": labels[row.predicted],
            "probability": row.probability,
            # In JSON, every key is text.
            "probabilities": {examples.labels[number]: value for number, value in named},
        }
        write_json_line(file, content)

    return write


def _table_writer(
    file: TextIO, format: str, examples: Examples, csv_safe: bool
) -> Callable[[Row], object]:
    """Write one row per sequence below a header row, with a column for each of few classes."""
    write_row = table_writer(file, format, csv_safe)
    has_columns = len(examples.labels) <= MOST_PROBABILITIES
    heading = ["sequence", "sum"] if examples.source is None else ["line", "sequence"]
    if _has_files(examples):
        heading.insert(0, "file")
    heading += ["true", "predicted", "probability"]
    if has_columns:
        heading += [f"probability_{label}" for label in examples.labels]
    write_row(heading)

    def write(row: Row) -> None:
        sequence = text_of(examples.readable(row.ids))
        values = [*_place(row, examples).values(), sequence, *_sum(row, examples).values()]
        values += [examples.labels[row.true], examples.labels[row.predicted]]
        values.append(f"{row.probability:.8g}")
        if has_columns:
            values += [f"{value:.8g}" for value in row.probabilities]
        write_row(values)

    return write


def _has_files(examples: Examples) -> bool:
    """Return whether the sequences are from several files: then a line alone says too little."""
    return examples.source is not None and len(examples.source.files) > 1


def _place(row: Row, examples: Examples) -> dict[str, Any]:
    """Return the line of a row of a file, and which file that is, of several."""
    if examples.source is None:
        return {}
    file = {"file": examples.file(row.number)} if _has_files(examples) else {}
    return {**file, "line": examples.line(row.number)}


def _sum(row: Row, examples: Examples) -> dict[str, Any]:
    """Return the sum of a generated sequence."""
    return {"sum": examples.sum(row.ids)} if examples.source is None else {}
