"""Write what `rnncls predict --prefixes` has predicted: an answer after each token.

A sequence may have millions of tokens: of its answers, few are in memory as objects at a time.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from rnncls.data.vocabulary import END
from rnncls.errors import on_one_line
from rnncls.predict.predictor import (
    Prediction,
    Predictor,
    ReadTokens,
    predict_prefixes_of_ids,
    predictions_of,
)
from rnncls.predict.prefixes import Prefixes
from rnncls.predict.reading import Row, chunks_of
from rnncls.predict.tally import Tally
from rnncls.predict.writing import (
    PLACE_COLUMNS,
    added_columns,
    answer_chunks,
    chosen_format,
    opened_output,
    top_in_json,
)
from rnncls.system.rows import TABLES, json_for, table_writer
from rnncls.system.streams import reader_has_left

# Of lists in JSON, so many items are turned into text at a time.
ITEMS_TOGETHER = 2**13

# Writes a row as the answers to it come, and returns the last one, that to the whole sequence.
Writer = Callable[[Row, Iterable[Prefixes]], Prediction]


def write_prefixes(
    predictor: Predictor,
    groups: Iterable[Iterable[Row]],
    top_k: int,
    output: Path | None,
    format: str,
    echo: bool,
    csv_safe: bool = False,
) -> int:
    """Predict and write a label after each token; return how many sequences there were.

    All as `write_predictions` does it for whole sequences, with rows that have their tokens; but a
    table has a row for each token, without the columns of the input. What is counted at the end are
    the answers to whole sequences.

    Raises: as `write_predictions`.
    """
    # A label and its probability take, until they are written, a fourth of a token's memory.
    num_labels = min(top_k, len(predictor.labels))
    chunks = chunks_of(groups, of_token=1 + num_labels // 4)
    format = chosen_format(output, format)
    tally = Tally(predictor)
    with opened_output(output) as file:
        write = writer(predictor, file, format, echo, num_labels, csv_safe)

        def answer(rows: list[Row]) -> None:
            good = [row for row in rows if row.ids]
            answers = predict_prefixes_of_ids(predictor, [row.ids for row in good], top_k)
            for row, parts in zip(good, answers, strict=True):
                last = write(row, _while_read(parts, file))
                if reader_has_left(file):
                    return
                tally.add(row, last)

        answer_chunks(chunks, answer, file, output)

    tally.report()
    return tally.count


def write_typed(predictor: Predictor, read: ReadTokens, top_k: int) -> None:
    """Write the answers after each token of a sequence that was typed at a prompt."""
    (parts,) = predict_prefixes_of_ids(predictor, [read.ids], top_k)
    row = Row(1, 1, read.ids, read.names, {}, tokens=read.names)
    _text_writer(predictor, sys.stdout, echo=False)(row, parts)


def _while_read(parts: Iterable[Prefixes], file: TextIO) -> Iterator[Prefixes]:
    """Yield the parts until the reader of a file leaves; one at least."""
    for part in parts:
        yield part
        if reader_has_left(file):
            return


def writer(
    predictor: Predictor,
    file: TextIO,
    format: str,
    echo: bool,
    num_labels: int,
    csv_safe: bool = False,
) -> Writer:
    """Return a function that writes a sequence's answers as `text`, `jsonl`, `csv` or `tsv`.

    With `echo`, there are several sequences.
    """
    if format == "jsonl":
        return _json_writer(predictor, file, echo)
    if format in TABLES:
        return _table_writer(predictor, file, format, num_labels, csv_safe)
    return _text_writer(predictor, file, echo)


def _answered(
    predictor: Predictor, row: Row, parts: Iterable[Prefixes]
) -> Iterator[tuple[str, Prediction]]:
    """Yield each token with the answer after it."""
    predictions = (each for part in parts for each in predictions_of(predictor, *part))
    # Not strict: the reader of the answers may leave before the last one.
    yield from zip(row.tokens, predictions, strict=False)


def _text_writer(predictor: Predictor, file: TextIO, echo: bool) -> Writer:
    """Write a line for each token: the token, then labels and probabilities, between tabs.

    An empty line ends each of several sequences, as in the formats of CoNLL.
    """

    def write(row: Row, parts: Iterable[Prefixes]) -> Prediction:
        for token, prediction in _answered(predictor, row, parts):
            cells = [on_one_line(token)]
            for label, probability in prediction.top:
                cells += (on_one_line(str(label)), f"{probability:.4f}")
            file.write("\t".join(cells) + "\n")
        if echo:
            file.write("\n")
        return prediction

    return write


def _table_writer(
    predictor: Predictor, file: TextIO, format: str, num_labels: int, csv_safe: bool
) -> Writer:
    """Write a row for each token, below a header row.

    Without the columns of the input: of a row of a million tokens, there are a million here.
    """
    write_row = table_writer(file, format, csv_safe)
    answer_columns = added_columns(num_labels)[len(PLACE_COLUMNS) :]
    write_row([*PLACE_COLUMNS, "position", "token", *answer_columns])

    def write(row: Row, parts: Iterable[Prefixes]) -> Prediction:
        for number, (token, prediction) in enumerate(_answered(predictor, row, parts), 1):
            cells: list[Any] = [row.number, row.line, number, token]
            for label, probability in prediction.top:
                cells += (label, f"{probability:.6g}")
            write_row(cells)
        return prediction

    return write


def _json_writer(predictor: Predictor, file: TextIO, echo: bool) -> Writer:
    """Write one JSON object per line, with lists that are as long as the sequence has tokens.

    `label` and `probability` are those of the whole sequence. The lists stand one behind the other,
    so that the answers are kept; as numbers, which take little memory.
    """
    labels = predictor.labels
    are_ids = predictor.data.tokens == "ids"

    def as_item(token: str) -> int | str:
        return int(token) if are_ids and token != END else token

    def write(row: Row, parts: Iterable[Prefixes]) -> Prediction:
        kept = _joined(parts, len(row.ids))
        *_, last = predictions_of(predictor, *(column[-1:] for column in kept))
        fields: dict[str, Any] = {
            "line": row.line,
            "row": row.number,
            "label": last.label,
            "probability": last.probability,
        }
        if row.true is not None:
            fields["true"] = row.true
        if echo:
            fields["sequence"] = row.sequence
        file.write(json_for(file, fields)[:-1])

        def write_list(name: str, of_part: Callable[[int, int], Sequence[Any]]) -> None:
            _write_list(file, name, len(row.ids), of_part)

        numbers, probabilities = kept
        write_list("tokens", lambda a, b: [as_item(token) for token in row.tokens[a:b]])
        write_list("labels", lambda a, b: [labels[one] for one in numbers[a:b, 0].tolist()])
        write_list("probabilities", lambda a, b: probabilities[a:b, 0].tolist())
        if len(last.top) > 1:
            write_list("top", lambda a, b: _tops(predictor, numbers[a:b], probabilities[a:b]))
        file.write("}\n")
        return last

    return write


def _joined(parts: Iterable[Prefixes], num_tokens: int) -> Prefixes:
    """Return the answers after all tokens of a sequence."""
    joined: Prefixes | None = None
    at = 0
    for part in parts:
        # In one place, made before the second part: what is kept of each one in a place of its own
        # leaves holes in the heap that the next one does not fit in.
        if joined is None:
            joined = Prefixes(*(each.new_zeros(num_tokens, each.shape[1]) for each in part))
        for whole, each in zip(joined, part, strict=True):
            whole[at : at + len(each)] = each
        at += len(part.classes)
    if joined is None:
        raise ValueError("a sequence without tokens has no answer")
    return joined


def _tops(predictor: Predictor, classes: Tensor, probabilities: Tensor) -> list[Any]:
    predictions = predictions_of(predictor, classes, probabilities)
    return [top_in_json(each.top) for each in predictions]


def _write_list(
    file: TextIO, name: str, length: int, of_part: Callable[[int, int], Sequence[Any]]
) -> None:
    """Write a key of a JSON object, behind others, with a list of which few items are made at once.

    `of_part` returns the items from one number on, up to another one.
    """
    file.write(f', "{name}": [')
    for first in range(0, length, ITEMS_TOGETHER):
        part = of_part(first, first + ITEMS_TOGETHER)
        file.write((", " if first else "") + json_for(file, part)[1:-1])
    file.write("]")
