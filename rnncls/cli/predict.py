"""Defines rnncls predict."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from rnncls.cli.options import (
    Bad,
    CsvSafe,
    Device,
    NewLabelField,
    Read,
    SequenceFields,
    refuse_to_replace,
    require_bad,
    require_table,
)
from rnncls.cli.sequences import KEEPS_ITS_CONFIG, is_file_name, is_override
from rnncls.config import SumModConfig
from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.system.collector import lasting
from rnncls.system.file_kinds import is_data_name, other_kind_by_name, without_packing
from rnncls.system.rows import TABLES, format_of_name
from rnncls.system.streams import say
from rnncls.system.waiting import load_torch

if TYPE_CHECKING:
    from rnncls.data.files.bad_rows import Skipping
    from rnncls.predict.predictor import Predictor
    from rnncls.predict.reading import Row

MOST_UNKNOWN_SHOWN = 5  # tokens of a sequence that was typed


def predict(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint file, or run directory (its best checkpoint).", readable=False
        ),
    ],
    sequences: Annotated[
        list[str] | None,
        typer.Argument(
            help='Sequences, such as "3 7 1 9"; - reads lines from stdin.', show_default=False
        ),
    ] = None,
    input: Annotated[
        Path | None,
        typer.Option(
            help="File to predict: a data file, by its name or by the columns of training; any "
            "other one, such as .txt, has one sequence per line.",
            readable=False,
        ),
    ] = None,
    sequence_field: SequenceFields = None,
    label_field: NewLabelField = None,
    read: Read = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .jsonl, or .csv or .tsv with all columns of the input; any other "
            "name, such as .txt, is written as text.",
            readable=False,
        ),
    ] = None,
    csv_safe: CsvSafe = False,
    top_k: Annotated[
        int | None,
        typer.Option(
            min=1, help="How many labels to show, the likeliest first (default 1; at a prompt 3)."
        ),
    ] = None,
    prefixes: Annotated[
        bool,
        typer.Option(
            "--prefixes",
            help="A label and its probability after each token; for a model of one direction with "
            "model.pooling last.",
        ),
    ] = False,
    bad: Bad = "error",
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines on stdout.")] = False,
) -> None:
    """Predict the labels of sequences: arguments, a file, stdin, or typed at a prompt.

    Examples:
        rnncls predict runs/first "1 2 0 1"
        echo "1 2 0 1" | rnncls predict runs/first - --json
        rnncls predict runs/first "1 2 0 1" --prefixes
        rnncls predict runs/mine --input new.csv --text-column visit --output out.csv
    """
    require_bad(bad)
    for text in sequences or []:
        _refuse_override(text)
    if input and sequences:
        raise ConfigError(
            Problem("both a file and sequences: pass --input FILE or sequences", id="C17")
        )
    if input is None and (sequence_field or label_field or read):
        what = "--sequence-field, --label-field and --read are about a file"
        raise ConfigError(Problem(what, remedy="--input FILE", id="C17"))
    for text in sequences or []:
        _refuse_file_name(text)
    require_table(csv_safe, "--output", output)
    if output is not None:
        refuse_to_replace("--output", output, input, checkpoint)
        _refuse_other_format(output)
    if input is None and sys.stdin is None:
        raise ConfigError(
            Problem("no sequences: stdin is closed", remedy="--input FILE or sequences", id="C17")
        )
    # After the checks of the options, because importing torch takes a second.
    with lasting():
        load_torch()
        from rnncls.data.files.bad_rows import Skipping
        from rnncls.data.new_files import overrides_of
        from rnncls.predict.predictor import for_many, load
        from rnncls.predict.prefixes import require_prefixes
        from rnncls.predict.writing import write_predictions
        from rnncls.predict.writing_prefixes import write_prefixes
        from rnncls.system.device import set_precision

        overrides = overrides_of(sequence_field, label_field, read)
        predictor = load(checkpoint, device)
    set_precision(predictor.config.train.precision)
    if prefixes:
        require_prefixes(predictor.network, "--prefixes")

    # Nothing given and nothing piped in: a person sits there. Whoever wants JSON or a file gets it
    # of what is typed as of what comes through a pipe.
    is_piped = as_json or output is not None or not sys.stdin.isatty()
    if input is None and not sequences and not is_piped:
        # A person wants to see how close the second and third label come.
        _prompt(predictor, top_k or 3, prefixes)
        return

    # Bad lines are named after where they come from.
    from_stdin = not sequences or sequences == ["-"]
    skipped = Skipping(input or ("stdin" if from_stdin else "argument"), stop=bad != "skip")
    texts = None if from_stdin else sequences

    # Whoever asks about one sequence knows which one it was.
    echo = texts is None or len(texts) > 1
    format = "jsonl" if as_json else "text"
    # A table has all columns of the input; the other formats need not keep them.
    keep_fields = output is not None and format_of_name(output) in TABLES and not prefixes
    if not prefixes:
        # The program comes with all of Numba.
        with lasting():
            predictor = for_many(predictor, size_of_input(input, texts))
    reading = _Reading(predictor, skipped, overrides, keep_fields, keep_tokens=prefixes)
    write = write_prefixes if prefixes else write_predictions
    with _groups(reading, input, texts) as groups:
        num_predicted = write(predictor, groups, top_k or 1, output, format, echo, csv_safe)
        skipped.finish(num_predicted)


def _refuse_override(text: str) -> None:
    """Raise ConfigError for a sequence that is a key of a config with its value."""
    if not is_override(text):
        return
    # Imports torch, and so only here.
    from rnncls.data.new_files import with_options

    problem = Problem(
        "a key of a config in place of a sequence",
        expected='sequences, such as "3 7 1 9", or --input FILE',
        found=text,
        remedy=text if text.startswith("data.") else KEEPS_ITS_CONFIG,
        id="C17",
    )
    raise with_options(ConfigError(problem), KEEPS_ITS_CONFIG)


def _refuse_other_format(output: Path) -> None:
    """Raise ConfigError if a file has the name of a format that predictions are not written in.

    Text under such a name, which stands for tables or what is packed, is found out late.
    """
    if is_data_name(output.name) and not format_of_name(output):
        plain = Path(without_packing(str(output))).with_suffix(".csv")
        raise ConfigError(
            Problem(
                "predictions are not written in this format",
                f"--output {output}",
                expected="a name that ends in .jsonl, .csv or .tsv; .txt for text",
                remedy=f"--output {plain}",
                id="C17",
            )
        )


def _refuse_file_name(text: str) -> None:
    """Raise ConfigError for a sequence that is the name of a file of sequences."""
    if is_file_name(text):
        raise ConfigError(
            Problem(
                f"a file's name as a sequence: did you mean --input {text}?",
                expected='sequences, such as "3 7 1 9"',
                remedy=f"--input {text}",
                id="C17",
            )
        )


def _has_rows(name: str) -> bool:
    """Return whether a file is read as rows with columns, or refused by its kind, by its name."""
    return is_data_name(name) or other_kind_by_name(name) is not None


class _Reading(NamedTuple):
    """How the input is read."""

    predictor: "Predictor"
    skipped: "Skipping"
    overrides: list[str]
    keep_fields: bool
    keep_tokens: bool


@contextmanager
def _groups(
    reading: _Reading, path: Path | None, texts: list[str] | None
) -> "Iterator[Iterable[Iterable[Row]]]":
    """Give the sequences of a file, or those of `texts`, or else those of stdin."""
    from rnncls.data.files.opening import opened
    from rnncls.predict.data_files import has_own_columns, rows_of_file
    from rnncls.predict.reading import line_groups, numbered_lines, rows_of_lines

    predictor, skipped, overrides, keep_fields, keep_tokens = reading
    if path is not None and (overrides or _has_rows(path.name) or has_own_columns(predictor, path)):
        yield [rows_of_file(predictor, path, skipped, overrides, keep_fields, keep_tokens)]
    elif path is not None:
        # Any other file is text, one sequence per line.
        # Opened before the output is begun: a missing file is reported even if the output could not
        # be written either.
        with opened(path) as file:
            lines = numbered_lines(file, str(path), *_encoding_and_bound(predictor))
            yield [rows_of_lines(predictor, lines, skipped, keep_tokens)]
    elif texts is not None:
        numbered = zip(texts, count(1), strict=False)
        yield [rows_of_lines(predictor, numbered, skipped, keep_tokens)]
    else:
        # Bytes, so that a line that is not UTF-8 is one bad line and not the end.
        groups = line_groups(sys.stdin.buffer, "stdin", _encoding_and_bound(predictor)[1])
        yield (rows_of_lines(predictor, lines, skipped, keep_tokens) for lines in groups)


def size_of_input(path: Path | None, texts: list[str] | None) -> int:
    """Return how many bytes a file has, or characters `texts`; 0 for a pipe, which may have any."""
    from rnncls.predict.reading import size_of_file

    if path is not None:
        # What cannot be looked at is an error where it is read.
        with suppress(OSError):
            return path.stat().st_size
        return 0
    if texts is not None:
        return sum(map(len, texts))
    return size_of_file(sys.stdin.buffer) or 0


def _encoding_and_bound(predictor: "Predictor") -> tuple[str, int]:
    """Return in which encoding the run reads a text without a mark, and its longest line."""
    from rnncls.data.files.dialect import Dialect

    data = predictor.config.data
    usual = Dialect()
    if isinstance(data, SumModConfig):
        return usual.encoding, usual.max_record_bytes
    return data.encoding, data.max_record_bytes


def _prompt(predictor: "Predictor", top_k: int, prefixes: bool) -> None:
    """Ask for sequences until `quit` or Ctrl-D."""
    from rnncls.data.files.lines import MAX_LINE_BYTES, decode_line
    from rnncls.predict.predictor import read_tokens
    from rnncls.predict.reading import reading
    from rnncls.predict.writing_prefixes import write_typed

    say('one sequence per line; "quit" or Ctrl-D to leave')
    while True:
        print("> ", end="", file=sys.stderr, flush=True)
        # Ctrl-D ends stdin: readline() returns no line, not even an empty one.
        line = reading("stdin", sys.stdin.buffer.readline, MAX_LINE_BYTES)
        if not line or line.strip() == b"quit":
            print(file=sys.stderr)
            return

        text = decode_line(line, is_first=False)
        read = text if isinstance(text, Problem) else read_tokens(predictor, text)
        if not isinstance(read, Problem):
            if prefixes:
                write_typed(predictor, read, top_k)
            print(_answer(predictor, str(text), read.ids, top_k), flush=True)
        # An empty line is no question.
        elif read.id != "D9":
            print(replace(read, remedy="").render(), file=sys.stderr)


def _answer(predictor: "Predictor", text: str, ids: list[int], top_k: int) -> str:
    """Return the likeliest labels of one sequence and what else is known about it."""
    from rnncls.predict.predictor import predict_ids, unknown_tokens
    from rnncls.predict.writing import to_text

    (prediction,) = predict_ids(predictor, [ids], top_k)
    parts = [to_text(prediction)]

    # A sequence of the generated task has one right answer.
    data = predictor.config.data
    if isinstance(data, SumModConfig):
        parts.append(f"(true: {sum(ids) % data.modulus})")

    unknown = unknown_tokens(predictor, text)
    if unknown:
        shown = on_one_line(", ".join(unknown[:MOST_UNKNOWN_SHOWN]))
        more = ", ..." if len(unknown) > MOST_UNKNOWN_SHOWN else ""
        parts.append(f"(not in the training data: {shown}{more})")

    return "   ".join(parts)
