"""Writes a trace for people: tables of at most 80 columns, what they mean, and the answer."""

import math
import textwrap

import numpy as np
import torch

from rnncls.config import SumModConfig
from rnncls.errors import on_one_line
from rnncls.inspect.heading import heading_of
from rnncls.inspect.trace.question import Question
from rnncls.inspect.trace.summary import MEAN_OF_INPUTS, is_summarised, parts_seen
from rnncls.inspect.trace.tables import Column, Group, name_of, tables_of
from rnncls.inspect.trace.trace import GATES, Answers, Numbers, Trace, answers_of
from rnncls.model.cells import DIRECTIONS, layer_name
from rnncls.model.classifier import RNNClassifier
from rnncls.model.probes import state_before
from rnncls.system.rows import shortened
from rnncls.system.shown import WIDTH, aligned, counted

MOST_ROWS = 40  # of a table


def text_of(traced: Trace) -> str:
    """Return a trace as a person reads it."""
    question = traced.question
    rows = _rows_shown(len(question.tokens.names), traced.parting)
    answers = _answers(traced, rows)

    # Their places among the rows whose numbers were kept.
    places = [traced.rows.index(row) for row in rows]

    blocks = [_heading(question)]
    if question.network.initial_state is not None:
        blocks.append(_states_before(question.network))
    is_single = len(traced.layers) == 1 and len(traced.layers[0]) == 1
    for layer, directions in enumerate(traced.layers):
        for direction, numbers in enumerate(directions):
            title = layer_name(layer, direction, len(directions))
            groups = _groups(title, numbers, question, places)
            # A network of one layer has one table, where it fits.
            if is_single:
                groups += answers
            blocks += tables_of(question.tokens.names, rows, groups)
    if not is_single:
        blocks += tables_of(question.tokens.names, rows, answers)

    if is_summarised(question.network):
        blocks.append(_summary(traced))
    blocks.append(_legend(traced))
    blocks.append(_conclusion(traced))
    return "\n\n".join(blocks)


def _heading(question: Question) -> str:
    """Return the lines above the tables: run, model, sequence, and tokens that are unknown."""
    names = question.tokens.names
    tokens = " ".join(map(on_one_line, names[: WIDTH // 2]))
    more = " ..." if len(names) > WIDTH // 2 else ""
    shown = shortened(tokens + more, WIDTH - 32)
    lines = {"sequence": f"{counted(len(names), 'token')}: {shown}"}

    known = question.subject.predictor.vocabulary.index
    unknown = dict.fromkeys(name for name in names if name not in known)
    if unknown:
        listed = ", ".join(map(name_of, list(unknown)[: WIDTH // 2]))
        lines["unknown"] = f"{shortened(listed, WIDTH - 32)} (not in the training data)"
    return heading_of(question.subject, **lines)


def _states_before(network: RNNClassifier) -> str:
    """Return a table of the trained states from which layers and directions begin."""
    rows = [["", "|h|", "h", "|c|", "c"][: 5 if network.rnn.mode == "LSTM" else 3]]
    for layer in range(network.rnn.num_layers):
        for direction in range(network.num_directions):
            row = [layer_name(layer, direction, network.num_directions)]
            for part in state_before(network, layer, direction):
                row += _in_short(part[0].double().detach().cpu().numpy())
            rows.append(row)
    return "\n".join(["before the first token: trained", *aligned(rows)])


def _summary(traced: Trace) -> str:
    """Return a table of what the head sees: a row for each part and direction."""
    network = traced.question.network
    rows = [["", "norm", "range"]]
    for part, of_part in parts_seen(network, torch.from_numpy(traced.summary)).items():
        name = part.replace("_", " ")
        if network.num_directions == 1 or part == MEAN_OF_INPUTS:
            rows.append([name, *_in_short(of_part.numpy())])
            continue
        for direction, numbers in zip(DIRECTIONS, of_part.chunk(2), strict=True):
            rows.append([f"{name}, {direction}", *_in_short(numbers.numpy())])
    return "\n".join(["what the head sees", *aligned(rows)])


def _in_short(numbers: Numbers) -> list[str]:
    """Return norm and range of a vector (H,)."""
    norm = _number(float(np.linalg.norm(numbers)))
    return [norm, f"{_number(numbers.min())}..{_number(numbers.max())}"]


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
) -> list[Group]:
    """Return the columns of one layer and direction."""

    def column(name: str, key: str) -> Column:
        return Column(name, [_number(numbers[key][row]) for row in rows])

    def range_column(name: str, key: str) -> Column:
        low = numbers[f"{key}_min"]
        high = numbers[f"{key}_max"]
        return Column(name, [f"{_number(low[row])}..{_number(high[row])}" for row in rows])

    def share_column(name: str, key: str) -> Column:
        return Column(name, [_share(numbers[key][row]) for row in rows])

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
    return [Group(title, columns) for columns in (contributions, gates, state) if columns]


def _answers(traced: Trace, rows: list[int]) -> list[Group]:
    """Return the columns about each prefix, and about how much each token matters."""
    groups = []
    if traced.answers is not None:
        columns = _answer_columns(traced, traced.answers, rows)
        groups.append(Group("after each token", columns))

    importance = traced.question.importance
    if importance is not None:
        columns = []
        for name, values in importance.measures().items():
            if values is not None:
                columns.append(
                    Column(name.replace("_", " "), [_signed(values[row]) for row in rows])
                )
        if columns:
            groups.append(Group("how much each token matters", columns))
    return groups


def _answer_columns(traced: Trace, answers: Answers, rows: list[int]) -> list[Column]:
    question = traced.question
    probabilities = answers.probability
    said = []
    for row in rows:
        label = question.label(int(answers.predicted[row]))
        said.append("-" if math.isnan(probabilities[row]) else name_of(label))
    columns = [
        Column("says", said),
        Column("p", [_probability(probabilities[row]) for row in rows]),
    ]
    if question.truth is not None:
        truth = question.truth
        columns.append(Column("true", [str(question.label(int(truth[row]))) for row in rows]))
    if traced.parting in rows:
        columns.append(Column("", ["<- parts" if row == traced.parting else "" for row in rows]))
    return columns


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
    """Return a number as `_number` does, with its sign."""
    return _number(value) if value <= 0 or math.isnan(value) else f"+{_number(value)}"


def _share(value: float) -> str:
    return "nan" if math.isnan(value) else f"{value:.0%}"


def _probability(value: float) -> str:
    return f"{value:.4f}"


def _legend(traced: Trace) -> str:
    """Return what the columns mean."""
    question = traced.question
    parts = _legend_of_layers(question.network) if question.network.is_recurrent else []
    if traced.answers is not None:
        parts.append("says, p = the answer if the sequence ended here, and its probability")

    importance = question.importance
    if importance is not None:
        label = name_of(question.label(importance.label))
        if importance.left_out is not None:
            parts.append(f"left out = log p({label}) less that without the token, in nats")
        if importance.gradient is not None:
            parts.append(
                f"gradient = that of log p({label}) times {_what_is_read(question.network)}"
            )
    return textwrap.fill("; ".join(parts), WIDTH)


def _what_is_read(network: RNNClassifier) -> str:
    """Return what the first layer reads of a token, in words."""
    read = ["embedding"]
    if network.ngrams:
        read.append("n-grams that end there")
    if network.num_positions is not None:
        read.append("position")
    return f"the {' + '.join(read)}"


def _legend_of_layers(network: RNNClassifier) -> list[str]:
    """Return what the columns of the tables of layers mean."""
    mode = network.rnn.mode
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

    if network.num_directions == 2:
        parts.append("in reverse, memory is of h_(t+1)")
    return parts


def _what_follows(mode: str) -> str:
    return {"RNN_RELU": "relu", "RNN_TANH": "tanh"}.get(mode, "the gates and tanh")


def _conclusion(traced: Trace) -> str:
    """Return what the model answers and, if it is wrong, since when."""
    question = traced.question
    (last,) = zip(*answers_of(question.logits[None]), strict=True)
    predicted, probability = last
    if math.isnan(probability):
        return "The model's answer is not a number."

    label = name_of(question.label(int(predicted)))
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
        sentence += f"; {right:,} of {counted(len(wrong), 'prefix')} are answered right."
    return textwrap.fill(sentence, WIDTH)
