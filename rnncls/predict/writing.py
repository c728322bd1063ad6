"""Write what `rnncls predict` has predicted: as text, JSON lines or a table."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any, TextIO

from tqdm import tqdm

from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.predict.predictor import Label, Prediction, Predictor, predict_ids
from rnncls.predict.reading import Row, chunks_of
from rnncls.predict.tally import LeftOut, Tally
from rnncls.system.files import new_file
from rnncls.system.refusals import writing
from rnncls.system.rows import (
    TABLES,
    format_of_name,
    shortened,
    table_writer,
    text_of,
    write_json_line,
)
from rnncls.system.streams import reader_has_left

# Of a sequence, in a line of text. The other formats have all of it.
MOST_CHARACTERS_SHOWN = 80

# Columns of a table that are not the input's own.
PLACE_COLUMNS = ("row", "line")

# Writes a row with its prediction, None for one that was skipped.
Writer = Callable[[Row, Prediction | None], object]


def write_predictions(
    predictor: Predictor,
    groups: Iterable[Iterable[Row]],
    top_k: int,
    output: Path | None,
    format: str,
    echo: bool,
    csv_safe: bool = False,
) -> int:
    """Predict and write the predictions; return how many there were.

    They go to `output`, in the format of its name, or else to stdout, in `format`: those of one
    group before the next one is read. The file appears when all of it is written. With `echo`, each
    prediction has its sequence beside it; a table has all columns of its rows. With `csv_safe`,
    no cell of it is a formula to a spreadsheet.

    Raises: DataError at a bad row or if there is no good one, after the predictions of the rows
    before it. ConfigError if the input has a column that the table would have twice. WriteError if
    the disk is full.
    """
    # A label and its probability take some four times as much as a token, a logit an eighth of it.
    num_labels = len(predictor.labels)
    chunks = chunks_of(groups, 4 * min(top_k, num_labels) + num_labels // 8)
    tally = Tally(predictor)

    # The first rows are read before a file is begun: they say which columns there are.
    first = next(chunks, [])
    columns = [*first[0].fields] if first else []
    added = added_columns(min(top_k, num_labels))
    format = chosen_format(output, format)
    if format in TABLES:
        _require_new(added, columns, output)

    left_out = LeftOut(columns)
    with opened_output(output) as file:
        write = writer(file, format, echo, columns, added, left_out, csv_safe)

        def answer(rows: list[Row]) -> None:
            for row, prediction in _predicted(predictor, rows, top_k):
                write(row, prediction)
                if prediction is not None:
                    tally.add(row, prediction)

        answer_chunks(chain([first], chunks), answer, file, output)

    tally.report()
    left_out.report()
    return tally.count


def chosen_format(output: Path | None, format: str) -> str:
    """Return the format of the output: by the name of its file, or `format` on stdout."""
    if output is None:
        return format
    return format_of_name(output) or "text"


def answer_chunks(
    chunks: Iterable[list[Row]],
    answer: Callable[[list[Row]], object],
    file: TextIO,
    output: Path | None,
) -> None:
    """Answer each chunk of rows before the next one is read, until the reader of `file` leaves."""
    # A bar on stderr would run into results on the same terminal. None: only on a terminal.
    no_bar = True if output is None and sys.stdout.isatty() else None
    with tqdm(unit="seq", disable=no_bar) as bar:
        for rows in chunks:
            answer(rows)

            # Whoever waits at the other end of a pipe gets the answer now.
            file.flush()
            bar.update(len(rows))
            if reader_has_left(file):
                break


def _predicted(
    predictor: Predictor, rows: list[Row], top_k: int
) -> Iterator[tuple[Row, Prediction | None]]:
    """Yield each row with its prediction, None for one that was skipped: it has no ids."""
    predictions = iter(predict_ids(predictor, [row.ids for row in rows if row.ids], top_k))
    for row in rows:
        yield row, next(predictions) if row.ids else None


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
def opened_output(output: Path | None) -> Iterator[TextIO]:
    """Give the file to write."""
    if output is None:
        yield sys.stdout
        return

    # The reader of a pipe may leave, as that of stdout may: then there is no point in the rest.
    with writing(output), suppress(BrokenPipeError), new_file(output) as file:
        yield file


def writer(
    file: TextIO | IO[str],
    format: str,
    echo: bool,
    columns: list[str],
    added: list[str],
    left_out: LeftOut,
    csv_safe: bool = False,
) -> Writer:
    """Return a function that writes a prediction as `text`, `jsonl`, `csv` or `tsv`.

    With `echo` the sequence is written, too. A table has the `columns` of its rows and those that
    are `added`.
    """
    if format == "jsonl":
        return _json_writer(file, echo)
    if format == "text":
        return _text_writer(file, echo)
    return _table_writer(file, format, columns or ["sequence"], added, left_out, csv_safe)


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
            fields["top"] = top_in_json(prediction.top)
        if row.true is not None:
            fields["true"] = row.true
        if echo:
            fields["sequence"] = row.sequence

        write_json_line(file, fields)

    return write


def top_in_json(top: list[tuple[Label, float]]) -> list[dict[str, Any]]:
    """Return the likeliest labels with their probabilities as JSON has them."""
    return [{"label": label, "probability": probability} for label, probability in top]


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
    csv_safe: bool,
) -> Writer:
    """Write one row for each row of the input, below a header row.

    A row that was skipped has empty cells where others have their prediction.
    """
    write_row = table_writer(file, format, csv_safe)
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
