"""Write what `rnncls predict` has predicted: as text, JSON lines or a table."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any, TextIO

from tqdm import tqdm

from rnncls.data.vocabulary import UNKNOWN_ID
from rnncls.errors import ConfigError, Problem, printable
from rnncls.predict.predictor import Prediction, Predictor, predict_ids
from rnncls.predict.reading import Fields, Row, chunks_of
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

TABLES = ("csv", "tsv")

# Columns of a table that are not the input's own.
PLACE_COLUMNS = ("row", "line")

MOST_NAMES_SHOWN = 5

# Writes a row with its prediction, None for one that was skipped.
Writer = Callable[[Row, Prediction | None], object]


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
    prediction has its sequence beside it; a table has all columns of its rows.

    Raises: DataError at a bad row or if there is no good one, after the predictions of the rows
    before it. ConfigError if the input has a column that the table would have twice. WriteError if
    the disk is full.
    """
    chunks = chunks_of(groups)
    tally = Tally(predictor)

    # The first rows are read before a file is begun: they say which columns there are.
    first = next(chunks, [])
    columns = [*first[0].fields] if first else []
    added = added_columns(min(top_k, len(predictor.labels)))
    format = (format_of_name(output) if output else "") or ("text" if output else format)
    if format in TABLES:
        _require_new(added, columns, output)

    left_out = LeftOut(columns)
    with _opened(output) as file:
        write = writer(file, format, echo, columns, added, left_out)

        # A bar on stderr would run into results on the same terminal. None: only on a terminal.
        no_bar = True if output is None and sys.stdout.isatty() else None
        with tqdm(unit="seq", disable=no_bar) as bar:
            for rows in chain([first], chunks):
                # A row that was skipped has no ids.
                predictions = iter(
                    predict_ids(predictor, [row.ids for row in rows if row.ids], top_k)
                )
                for row in rows:
                    if not row.ids:
                        write(row, None)
                        continue
                    prediction = next(predictions)
                    write(row, prediction)
                    tally.add(row, prediction)

                # Whoever waits at the other end of a pipe gets the answer now.
                file.flush()
                bar.update(len(rows))
                if reader_has_left(file):
                    break

    tally.report()
    left_out.report()
    return tally.count


def added_columns(num_labels: int) -> list[str]:
    """Return the columns that a table has behind those of the input."""
    columns = [*PLACE_COLUMNS, "predicted", "probability"]
    for number in range(2, num_labels + 1):
        columns += [f"predicted_{number}", f"probability_{number}"]
    return columns


def _require_new(added: list[str], columns: list[str], output: Path | None) -> None:
    """Raise ConfigError if the input has one of the columns that are added to it."""
    both = [name for name in columns if name in added]
    if both:
        raise ConfigError(
            Problem(
                "the input has columns of names that are added to it",
                f"--output {output}",
                expected=f"other names than {', '.join(added)}",
                found=", ".join(both),
                remedy="other names in the input, or JSON lines: --output NAME.jsonl",
                id="C17",
            )
        )


@contextmanager
def _opened(output: Path | None) -> Iterator[TextIO]:
    """Give the file to write."""
    if output is None:
        yield sys.stdout
        return

    with writing(output), new_file(output) as file:
        yield file


class LeftOut:
    """Counts rows with fields that the first row lacks: a table has no columns for them."""

    def __init__(self, columns: list[str]) -> None:
        self.columns = frozenset(columns)
        self.count = 0
        self.names: dict[str, None] = {}  # in their order; the first ones

    def look_at(self, fields: Fields) -> None:
        """Note the fields of a row that have no column."""
        if self.columns.issuperset(fields):
            return
        self.count += 1
        for name in fields:
            if name not in self.columns and len(self.names) <= MOST_NAMES_SHOWN:
                self.names[name] = None

    def report(self) -> None:
        """Say on stderr what the table lacks."""
        if self.count:
            names = [*self.names]
            shown = ", ".join(names[:MOST_NAMES_SHOWN])
            more = ", ..." if len(names) > MOST_NAMES_SHOWN else ""
            rows = "1 row has" if self.count == 1 else f"{self.count:,} rows have"
            _warn(
                "D14",
                f"{rows} fields that the first one lacks, which are not in the table: "
                f"{printable(shown)}{more}",
            )


class Tally:
    """Counts the predictions, the right ones, and those that are not meaningful."""

    def __init__(self, predictor: Predictor) -> None:
        self.labels = frozenset(predictor.labels)
        # Without <unk>, its id stands for a token like any other.
        self.has_unknown = predictor.vocabulary.has_unknown
        self.count = 0
        self.unknown = 0  # sequences of which the model knows no token
        self.mostly = 0  # others of which it knows less than half
        self.labelled = 0  # sequences with a label to compare with
        self.correct = 0
        self.foreign = 0  # sequences whose label the model does not know

    def add(self, row: Row, prediction: Prediction) -> None:
        """Count one prediction."""
        self.count += 1
        if self.has_unknown and UNKNOWN_ID in row.ids:
            num_unknown = row.ids.count(UNKNOWN_ID)
            if num_unknown == len(row.ids):
                self.unknown += 1
            elif 2 * num_unknown > len(row.ids):
                self.mostly += 1

        if row.true is not None:
            self.labelled += 1
            if row.true == prediction.label:
                self.correct += 1
            elif row.true not in self.labels:
                self.foreign += 1

    def _have(self, number: int) -> str:
        return f"{number:,} of {self.count:,} sequences {'has' if number == 1 else 'have'}"

    def report(self) -> None:
        """Say on stderr what the predictions are worth."""
        if self.unknown:
            _warn(
                "D8",
                f"{self._have(self.unknown)} no token of the training data; "
                f"{_predictions(self.unknown)} not meaningful",
            )
        if self.mostly:
            _warn(
                "D8",
                f"{self._have(self.mostly)} mostly tokens that the training data lacks; "
                f"{_predictions(self.mostly)} worth little",
            )
        if self.foreign:
            # In a file without labels, another column may have the name of theirs, or the number.
            otherwise = "; if the file has no labels, the accuracy means nothing"
            _warn(
                "D6",
                f"{self._have(self.foreign)} a label that the model does not know; "
                f"{'it counts' if self.foreign == 1 else 'they count'} as wrong"
                f"{otherwise * (self.foreign == self.labelled)}",
            )
        if self.labelled:
            accuracy = self.correct / self.labelled
            without = self.count - self.labelled
            rest = f"; {without:,} without a label" if without else ""
            shown = f"accuracy: {accuracy:.4f} ({self.correct:,} of {self.labelled:,}{rest})"
            print(f"rnncls: {shown}", file=sys.stderr)


def _predictions(number: int) -> str:
    return "its prediction is" if number == 1 else "their predictions are"


def _warn(id: str, message: str) -> None:
    print(f"rnncls: warning[{id}]: {message}", file=sys.stderr)


def writer(
    file: TextIO | IO[str],
    format: str,
    echo: bool,
    columns: list[str],
    added: list[str],
    left_out: LeftOut,
) -> Writer:
    """Return a function that writes a prediction as `text`, `jsonl`, `csv` or `tsv`.

    With `echo` the sequence is written, too. A table has the `columns` of its rows and those that
    are `added`.
    """
    if format == "jsonl":
        return _json_writer(file, echo)
    if format == "text":
        return _text_writer(file, echo)
    return _table_writer(file, format, columns or ["sequence"], added, left_out)


def _json_writer(file: TextIO | IO[str], echo: bool) -> Writer:
    """Write one JSON object per line: the likeliest label and, if `top_k` > 1, `top` with all."""

    def write(row: Row, prediction: Prediction | None) -> None:
        if prediction is None:
            return

        # The likeliest label has keys of its own, so that readers need not look into `top`.
        fields: dict[str, Any] = {
            "line": row.line,
            "row": row.number,
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

    def write(row: Row, prediction: Prediction | None) -> None:
        if prediction is None:
            return
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


def _table_writer(
    file: TextIO | IO[str],
    format: str,
    columns: list[str],
    added: list[str],
    left_out: LeftOut,
) -> Writer:
    """Write one row for each row of the input, below a header row.

    A row that was skipped has empty cells where others have their prediction.
    """
    write_row = table_writer(file, format)
    write_row([*columns, *added])
    nothing = [""] * (len(added) - len(PLACE_COLUMNS))

    def write(row: Row, prediction: Prediction | None) -> None:
        # Nearly every row has the fields of the first one, in their order.
        fields = row.fields
        cells = [*fields.values()]
        if [*fields] != columns:
            left_out.look_at(fields)
            cells = [*map(fields.get, columns)]

        # Nearly every value of a table is text: a call for each would be a part of the time.
        cells = [value if type(value) is str else _cell_of(value) for value in cells]
        cells += (row.number, row.line)
        if prediction is None:
            cells += nothing
        else:
            for label, probability in prediction.top:
                cells += (label, f"{probability:.6g}")
        write_row(cells)

    return write


def _cell_of(value: Any) -> Any:
    """Return what a table has of a value: text as it is, another one as JSON writes it."""
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    # Tokens stand between spaces, as `predict` reads them.
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        return text_of(value)
    return json.dumps(value, ensure_ascii=False)
