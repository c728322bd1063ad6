"""Write what `rnncls predict` has predicted: as text, JSON lines or a table."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TextIO

from tqdm import tqdm

from rnncls.predict.predictor import Label, Prediction, Predictor, predict_ids
from rnncls.predict.reading import Row, chunks_of
from rnncls.system.files import new_file, writing
from rnncls.system.rows import (
    format_of_name,
    on_one_line,
    shortened,
    table_writer,
    text_of,
    write_json_line,
)
from rnncls.system.streams import reader_has_left

# Of a sequence, in a line of text. The other formats have all of it.
MOST_CHARACTERS_SHOWN = 80

Writer = Callable[[Row, Prediction], object]


def write_predictions(
    predictor: Predictor,
    groups: Iterable[Iterable[Row]],
    top_k: int,
    output: Path | None,
    format: str,
    echo: bool,
) -> int:
    """Predict and write the predictions; return how many there were.

    They go to `output`, in the format of its name, or else to stdout, in `format`: those of one
    group before the next one is read. The file appears when all of it is written. With `echo`, each
    prediction has its sequence beside it.

    Raises: DataError at a bad row or if there is no good one, after the predictions of the rows
    before it. WriteError if the disk is full.
    """
    chunks = chunks_of(groups)
    tally = Tally()

    # The first rows are read before a file is begun: they say whether there are labels.
    first = next(chunks, [])
    has_labels = any(row.true is not None for row in first)

    with _opened(output) as (file, format_of_file):
        write = writer(file, format_of_file or format, echo, has_labels)

        # A bar on stderr would run into results on the same terminal. None: only on a terminal.
        no_bar = True if output is None and sys.stdout.isatty() else None
        with tqdm(unit="seq", disable=no_bar) as bar:
            for rows in chain([first], chunks):
                predictions = predict_ids(predictor, [row.ids for row in rows], top_k)
                for row, prediction in zip(rows, predictions, strict=True):
                    write(row, prediction)
                    tally.add(predictor, row, prediction)

                # Whoever waits at the other end of a pipe gets the answer now.
                file.flush()
                bar.update(len(rows))
                if reader_has_left(file):
                    break

    tally.report()
    return tally.count


@contextmanager
def _opened(output: Path | None) -> Iterator[tuple[TextIO, str]]:
    """Give the file to write and the format that its name asks for; "" if it asks for none."""
    if output is None:
        yield sys.stdout, ""
        return

    with writing(output), new_file(output) as file:
        yield file, format_of_name(output)


class Tally:
    """Counts the predictions, the right ones, and those that are not meaningful."""

    def __init__(self) -> None:
        self.count = 0
        self.unknown = 0  # sequences of which the model knows no token
        self.labelled = 0  # sequences with a label to compare with
        self.correct = 0
        self.foreign = 0  # sequences whose label the model does not know

    def add(self, predictor: Predictor, row: Row, prediction: Prediction) -> None:
        """Count one prediction."""
        self.count += 1
        if knows_nothing(predictor, row.ids):
            self.unknown += 1

        if row.true is not None:
            self.labelled += 1
            if row.true == prediction.label:
                self.correct += 1
            elif row.true not in predictor.labels:
                self.foreign += 1

    def report(self) -> None:
        """Say on stderr what the predictions are worth."""
        if self.unknown:
            _warn(
                "D8",
                f"{self.unknown:,} of {self.count:,} sequences have no token of the training data; "
                "their predictions are not meaningful",
            )
        if self.foreign:
            _warn(
                "D6",
                f"{self.foreign:,} of {self.count:,} sequences have a label that the model does "
                "not know; they count as wrong",
            )
        if self.labelled:
            accuracy = self.correct / self.labelled
            without = self.count - self.labelled
            rest = f"; {without:,} without a label" if without else ""
            shown = f"accuracy: {accuracy:.4f} ({self.correct:,} of {self.labelled:,}{rest})"
            print(f"rnncls: {shown}", file=sys.stderr)


def _warn(id: str, message: str) -> None:
    print(f"rnncls: warning[{id}]: {message}", file=sys.stderr)


def knows_nothing(predictor: Predictor, ids: list[int]) -> bool:
    """Return whether every token is `<unk>`, which has id 0."""
    # Without <unk>, id 0 is a token like any other.
    return predictor.vocabulary.has_unknown and not any(ids)


def writer(file: TextIO | IO[str], format: str, echo: bool, has_labels: bool) -> Writer:
    """Return a function that writes a prediction as `text`, `jsonl`, `csv` or `tsv`.

    With `echo` the sequence is written, too, and with `has_labels` its label in the file.
    """
    if format == "jsonl":
        return _json_writer(file, echo)
    if format == "text":
        return _text_writer(file, echo)
    return _table_writer(file, format, echo, has_labels)


def _json_writer(file: TextIO | IO[str], echo: bool) -> Writer:
    """Write one JSON object per line: the likeliest label and, if `top_k` > 1, `top` with all."""

    def write(row: Row, prediction: Prediction) -> None:
        # The likeliest label has keys of its own, so that readers need not look into `top`.
        fields: dict[str, Any] = {
            "line": row.line,
            "label": prediction.label,
            "probability": prediction.probability,
        }
        if len(prediction.top) > 1:
            fields["top"] = [
                {"label": label, "probability": probability}
                for label, probability in prediction.top
            ]
        if row.true is not None:
            fields["true"] = row.true
        if echo:
            fields["sequence"] = row.sequence

        write_json_line(file, fields)

    return write


def _text_writer(file: TextIO | IO[str], echo: bool) -> Writer:
    """Write one line for each prediction, for people."""

    def write(row: Row, prediction: Prediction) -> None:
        parts = [to_text(prediction)]
        if row.true is not None:
            parts.append(f"(true: {on_one_line(str(row.true))})")
        if echo:
            sequence = shortened(text_of(row.sequence), MOST_CHARACTERS_SHOWN)
            parts.append(f"<- {on_one_line(sequence)}")
        file.write("   ".join(parts) + "\n")

    return write


def to_text(prediction: Prediction) -> str:
    """Return the labels and their probabilities as a person reads them, on one line."""
    parts = []
    for label, probability in prediction.top:
        parts.append(f"{on_one_line(str(label))} {probability:.4f}")
    return "   ".join(parts)


def _table_writer(file: TextIO | IO[str], format: str, echo: bool, has_labels: bool) -> Writer:
    """Write one row for each label of each prediction, below a header row."""
    write_row = table_writer(file, format)
    header = ["line", "label", "probability"]
    if has_labels:
        header.append("true")
    if echo:
        header.append("sequence")
    write_row(header)

    def write(row: Row, prediction: Prediction) -> None:
        rest: list[Label | None] = []
        if has_labels:
            rest.append(row.true)
        if echo:
            rest.append(text_of(row.sequence))
        for label, probability in prediction.top:
            write_row([row.line, label, f"{probability:.6g}", *rest])

    return write
