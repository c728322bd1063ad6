"""Writes a trace: tables of at most 80 columns for people, JSON lines for programs."""

import math
import textwrap
from typing import IO, Any, NamedTuple

from rnncls.config import SumModConfig
from rnncls.errors import on_one_line
from rnncls.inspect.computed import Computed
from rnncls.inspect.importance import Importance
from rnncls.inspect.trace import (
    GATES,
    Answers,
    Numbers,
    Question,
    Steps,
    Trace,
    answers_of,
    in_short,
    steps_of,
)
from rnncls.model.cells import DIRECTIONS
from rnncls.system.rows import aligned, shortened, write_json_line
from rnncls.system.streams import reader_has_left

WIDTH = 80
MOST_ROWS = 40  # of a table
MOST_OF_TOKEN = 14  # characters in a table

# What a layer is, by the mode of its nn.RNNBase.
_CELLS = {"RNN_TANH": "RNN, tanh", "RNN_RELU": "RNN, relu", "LSTM": "LSTM", "GRU": "GRU"}


class _Column(NamedTuple):
    name: str
    cells: list[str]  # of the rows that are shown


class _Group(NamedTuple):
    """Columns that stand in one table."""

    title: str  # of the table, where they are its first ones
    columns: list[_Column]


# --- for people


def text_of(traced: Trace) -> str:
    """Return a trace as a person reads it."""
    question = traced.question
    rows = _rows_shown(len(question.names), traced.parting)
    answers = _answers(traced, rows)

    places = [traced.rows.index(row) for row in rows]
    blocks = [_heading(question)]
    is_single = len(traced.layers) == 1 and len(traced.layers[0]) == 1
    for layer, directions in enumerate(traced.layers):
        for direction, numbers in enumerate(directions):
            title = f"layer {layer}" + (", reverse" if direction == 1 else "")
            groups = _groups(title, numbers, question, places)
            # A network of one layer has one table, where it fits.
            if is_single:
                groups += answers
            blocks += _tables(question, rows, groups)
    if not is_single:
        blocks += _tables(question, rows, answers)

    blocks.append(_legend(traced))
    blocks.append(_conclusion(traced))
    return "\n\n".join(blocks)


def _heading(question: Question) -> str:
    checkpoint = question.subject.checkpoint
    count = len(question.names)
    tokens = " ".join(map(on_one_line, question.names[: WIDTH // 2]))
    more = " ..." if count > WIDTH // 2 else ""
    shown = shortened(tokens + more, WIDTH - 32)
    step = f", step {checkpoint.state.step:,}"
    lines = {
        "checkpoint": f"{shortened(on_one_line(checkpoint.path), WIDTH - 12 - len(step))}{step}",
        "model": _model(question),
        "sequence": f"{_counted(count, 'token')}: {shown}",
    }
    known = question.subject.predictor.vocabulary.index
    unknown = dict.fromkeys(name for name in question.names if name not in known)
    if unknown:
        listed = ", ".join(map(_name, list(unknown)[: WIDTH // 2]))
        lines["unknown"] = f"{shortened(listed, WIDTH - 32)} (not in the training data)"
    return "\n".join(f"{name:<10}  {line}" for name, line in lines.items())


def _model(question: Question) -> str:
    network = question.network
    rnn = network.rnn
    kind = _CELLS[rnn.mode] + (", both directions" if rnn.bidirectional else "")
    layers = f"{_counted(rnn.num_layers, 'layer')} of {_counted(rnn.hidden_size, 'unit')}"
    classes = _counted(network.head.out_features, "class")
    return f"{kind}, {layers}, {classes}"


def _counted(count: int, noun: str) -> str:
    plural = "es" if noun.endswith(("s", "x")) else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def _rows_shown(count: int, parting: int | None) -> list[int]:
    """Return the indices of the first and the last rows, and of the one where answers go wrong."""
    if count <= MOST_ROWS:
        return list(range(count))
    first = MOST_ROWS // 2
    last = MOST_ROWS - first
    if parting is None or parting < first or parting >= count - last:
        return [*range(first), *range(count - last, count)]
    # It takes the place of one of the last rows; as the first of them it would need none.
    return [*range(first), parting, *range(count - last + 1, count)]


def _groups(
    title: str, numbers: dict[str, Numbers], question: Question, rows: list[int]
) -> list[_Group]:
    """Return the columns of one layer and direction, of some rows of its numbers."""

    def column(name: str, key: str) -> _Column:
        return _Column(name, [_number(numbers[key][row]) for row in rows])

    def range_column(name: str, key: str) -> _Column:
        low = numbers[f"{key}_min"]
        high = numbers[f"{key}_max"]
        return _Column(name, [f"{_number(low[row])}..{_number(high[row])}" for row in rows])

    def share_column(name: str, key: str) -> _Column:
        return _Column(name, [_share(numbers[key][row]) for row in rows])

    contributions = [
        column("input", "input_norm"),
        column("memory", "memory_norm"),
        range_column("sum", "pre_activation"),
    ]

    gates = [share_column(name, name) for name in GATES.get(question.network.rnn.mode, "")]
    if "cell_norm" in numbers:
        gates.append(column("|c|", "cell_norm"))

    state = [column("|h|", "state_norm"), range_column("h", "state")]
    if "off" in numbers:
        state.append(share_column("off", "off"))
    else:
        state.append(share_column("sat", "saturated"))
    return [_Group(title, columns) for columns in (contributions, gates, state) if columns]


def _answers(traced: Trace, rows: list[int]) -> list[_Group]:
    """Return the columns about each prefix, and about how much each token matters."""
    groups = []
    if traced.answers is not None:
        columns = _answer_columns(traced, traced.answers, rows)
        groups.append(_Group("after each token", columns))

    importance = traced.question.importance
    if importance is not None:
        columns = []
        for name, values in _measures(importance).items():
            if values is not None:
                columns.append(
                    _Column(name.replace("_", " "), [_signed(values[row]) for row in rows])
                )
        if columns:
            groups.append(_Group("how much each token matters", columns))
    return groups


def _measures(importance: Importance) -> dict[str, list[float] | None]:
    """Return what is known about each token, by the name in the JSON."""
    return {"left_out": importance.left_out, "gradient": importance.gradient}


def _answer_columns(traced: Trace, answers: Answers, rows: list[int]) -> list[_Column]:
    question = traced.question
    probabilities = answers.probability
    said = []
    for row in rows:
        label = str(question.label(int(answers.predicted[row])))
        said.append("-" if math.isnan(probabilities[row]) else _name(label))
    columns = [
        _Column("says", said),
        _Column("p", [_probability(probabilities[row]) for row in rows]),
    ]
    if question.truth is not None:
        truth = question.truth
        columns.append(_Column("true", [str(question.label(int(truth[row]))) for row in rows]))
    if traced.parting in rows:
        columns.append(_Column("", ["<- parts" if row == traced.parting else "" for row in rows]))
    return columns


def _tables(question: Question, rows: list[int], groups: list[_Group]) -> list[str]:
    """Return tables with all columns: as many groups in each as fit in its width."""
    steps = [f"{row + 1:,}" for row in rows]
    width = max(map(len, steps))
    keys = [
        _Column("t".rjust(width), [step.rjust(width) for step in steps]),
        _Column("token", [_name(question.names[row]) for row in rows]),
    ]

    titles: list[str] = []
    tables: list[list[_Column]] = []
    for group in groups:
        if tables and _width_of([*tables[-1], *group.columns]) <= WIDTH:
            tables[-1] += group.columns
        else:
            is_more = group.title in titles
            titles.append(f"{group.title}, continued" if is_more else group.title)
            tables.append([*keys, *group.columns])

    blocks = []
    for title, table in zip(titles, tables, strict=True):
        lines = aligned(_with_gaps(table, rows), texts=2)
        blocks.append("\n".join([title, *lines]))
    return blocks


def _width_of(columns: list[_Column]) -> int:
    widths = [max(map(len, [column.name, *column.cells])) for column in columns]
    return sum(widths) + 2 * (len(widths) - 1)


def _with_gaps(columns: list[_Column], rows: list[int]) -> list[list[str]]:
    """Return the lines of a table, with dots where rows are left out."""
    lines = [[column.name for column in columns]]
    for number, row in enumerate(rows):
        if number > 0 and row > rows[number - 1] + 1:
            lines.append(["...", *[""] * (len(columns) - 1)])
        lines.append([column.cells[number] for column in columns])
    return lines


def _name(text: str) -> str:
    # Shortened before, because it may be of any length, and after, because an escape is longer.
    return shortened(on_one_line(shortened(text, MOST_OF_TOKEN)), MOST_OF_TOKEN)


def _number(value: float) -> str:
    """Return a number with two or three digits that count, in at most seven characters."""
    value = float(value)
    size = abs(value)
    if not math.isfinite(value):
        return str(value)
    if 99.95 <= size < 99_999.5 or value == 0:
        return f"{value:.0f}"
    if 0.00995 <= size < 99.95:
        digits = 1 if size >= 9.995 else 2 if size >= 0.0995 else 3
        return f"{value:.{digits}f}"
    mantissa, exponent = f"{value:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _signed(value: float) -> str:
    return _number(value) if value <= 0 or math.isnan(value) else f"+{_number(value)}"


def _share(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.0%}"


def _probability(value: float) -> str:
    return f"{value:.4f}"


def _legend(traced: Trace) -> str:
    """Return what the columns mean."""
    question = traced.question
    mode = question.network.rnn.mode
    parts = [
        "input = |W_ih x_t + b_ih|",
        "memory = |W_hh h_(t-1) + b_hh|",
        f"sum = range of input + memory, before {_what_follows(mode)}",
    ]
    if mode == "LSTM":
        parts.append("i, f, o = means of the gates; |c| = norm of c_t")
    elif mode == "GRU":
        parts.append("r, z = means of the gates (in the sum for n, memory is multiplied by r)")
    parts.append("|h|, h = norm and range of h_t")
    if mode == "RNN_RELU":
        parts.append("off = units at 0")
    else:
        of = {"LSTM": "tanh(c_t)", "GRU": "n_t"}.get(mode, "h_t")
        parts.append(f"sat = units with |{of}| > 0.99")
    if question.network.num_directions == 2:
        parts.append("in reverse, memory is of h_(t+1)")
    if traced.answers is not None:
        parts.append("says, p = the answer if the sequence ended here, and its probability")

    importance = question.importance
    if importance is not None:
        label = _name(str(question.label(importance.label)))
        if importance.left_out is not None:
            parts.append(f"left out = log p({label}) less that without the token, in nats")
        if importance.gradient is not None:
            parts.append(f"gradient = that of log p({label}) times the embedding")
    return textwrap.fill("; ".join(parts), WIDTH)


def _what_follows(mode: str) -> str:
    return {"RNN_RELU": "relu", "RNN_TANH": "tanh"}.get(mode, "the gates and tanh")


def _conclusion(traced: Trace) -> str:
    """Return what the model answers and, if it is wrong, since when."""
    question = traced.question
    (last,) = zip(*answers_of(question.logits[None]), strict=True)
    predicted, probability = last
    if math.isnan(probability):
        return "The model's answer is not a number."

    label = _name(str(question.label(int(predicted))))
    sentence = f"The model says {label}, with probability {_probability(probability)}"
    data = question.subject.checkpoint.config.data
    if question.truth is None or not isinstance(data, SumModConfig):
        return textwrap.fill(f"{sentence}.", WIDTH)

    truth = int(question.truth[-1])
    if int(predicted) == truth:
        sentence += f", which is right: the sum modulo {data.modulus} is {truth}."
    else:
        sentence += f", which is wrong: the sum modulo {data.modulus} is {truth}."

    wrong = traced.wrong
    if traced.parting is not None and wrong is not None:
        length = traced.parting + 1
        sentence += f" Prediction and truth part first after token {length:,}"
        if not data.min_length <= length <= data.max_length:
            lengths = sorted({data.min_length, data.max_length})
            trained = " to ".join(f"{length:,}" for length in lengths)
            sentence += f" (trained on lengths of {trained})"
        right = len(wrong) - int(wrong.sum())
        sentence += f"; {right:,} of {_counted(len(wrong), 'prefix')} are answered right."
    return textwrap.fill(sentence, WIDTH)


# --- for programs


def write_json(question: Question, file: IO[str]) -> None:
    """Write one line about the sequence and one for each time step, while they are computed.

    Raises: RnnclsError after the last line, as `steps_of`.
    """
    write_json_line(file, _about(question))
    file.flush()
    for steps in steps_of(question):
        for fields in _lines_of(question, steps):
            write_json_line(file, fields)
            if reader_has_left(file):
                return
        # Whoever waits at the other end of a pipe gets the numbers now.
        file.flush()


def _about(question: Question) -> dict[str, Any]:
    checkpoint = question.subject.checkpoint
    network = question.network
    rnn = network.rnn
    importance = question.importance
    about: dict[str, Any] = {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.state.step,
        "cell": checkpoint.config.model.cell,
        "mode": rnn.mode,
        "num_layers": rnn.num_layers,
        "num_directions": network.num_directions,
        "hidden_size": rnn.hidden_size,
        "embedding_dim": network.embedding.embedding_dim,
        "labels": list(question.subject.predictor.labels),
        "num_tokens": len(question.names),
        "num_left_out": question.num_left_out,
        "tokens": question.names,
        "logits": question.logits.tolist(),
        "probabilities": question.logits.softmax(0).tolist(),
        **_answer(question, answers_of(question.logits[None]), 0, len(question.names) - 1),
    }
    if importance is not None:
        about["importance_of"] = question.label(importance.label)
    return about


def _answer(question: Question, answers: Answers, number: int, row: int) -> dict[str, Any]:
    """Return one of some answers, for the prefix that ends with the token `row`."""
    probability = float(answers.probability[number])
    known = not math.isnan(probability)
    truth = question.truth
    return {
        "predicted": question.label(int(answers.predicted[number])) if known else None,
        "probability": probability,
        "true": None if truth is None else question.label(int(truth[row])),
    }


def _lines_of(question: Question, steps: Steps) -> Any:
    """Yield the fields of each time step."""
    mode = question.network.rnn.mode
    shown = [
        [_arrays_of(mode, computed) for computed in directions] for directions in steps.piece.layers
    ]
    answers = None if steps.logits is None else answers_of(steps.logits)
    logits = None if steps.logits is None else steps.logits.cpu().numpy()
    importance = question.importance

    for number in range(len(steps.piece.layers[0][0].state)):
        row = steps.piece.first + number
        fields: dict[str, Any] = {"t": row + 1, "token": question.names[row]}
        fields["id"] = int(question.ids[row])
        if answers is not None and logits is not None:
            fields |= _answer(question, answers, number, row)
            fields["logits"] = logits[number].tolist()
        if importance is not None:
            for name, values in _measures(importance).items():
                fields[name] = None if values is None else values[row]

        fields["layers"] = []
        for layer, directions in enumerate(shown):
            for direction, arrays in enumerate(directions):
                place = {"layer": layer, "direction": DIRECTIONS[direction]}
                fields["layers"].append(place | _row_of(arrays, number))
        yield fields


def _arrays_of(mode: str, computed: Computed) -> dict[str, Any]:
    """Return everything that is known about P steps of one direction: arrays of P rows."""
    short = {name: value.cpu().numpy() for name, value in in_short(mode, computed).items()}
    means = {name: short.pop(name) for name in GATES.get(mode, "")}
    arrays: dict[str, Any] = {**short}
    if computed.gates:
        arrays["gate_means"] = means
    arrays["input"] = computed.input.cpu().numpy()
    arrays["memory"] = computed.memory.cpu().numpy()
    arrays["pre_activation"] = computed.pre_activation.cpu().numpy()
    if computed.gates:
        arrays["gates"] = {name: gate.cpu().numpy() for name, gate in computed.gates.items()}
    if computed.cell is not None:
        arrays["cell"] = computed.cell.cpu().numpy()
    arrays["state"] = computed.state.cpu().numpy()
    return arrays


def _row_of(arrays: dict[str, Any], number: int) -> dict[str, Any]:
    """Return one row of each array."""
    return {
        name: _row_of(array, number) if isinstance(array, dict) else array[number].tolist()
        for name, array in arrays.items()
    }
