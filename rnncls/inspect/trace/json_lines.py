"""Writes a trace as JSON lines, which have every number."""

import math
from collections.abc import Iterator
from typing import IO, Any

from rnncls.inspect.heading import about
from rnncls.inspect.trace.computed import Computed
from rnncls.inspect.trace.question import Question
from rnncls.inspect.trace.summary import is_summarised, parts_seen
from rnncls.inspect.trace.trace import GATES, Answers, Steps, answers_of, in_short, steps_of
from rnncls.model.cells import DIRECTIONS
from rnncls.model.probes import state_before
from rnncls.system.rows import write_json_line
from rnncls.system.streams import reader_has_left


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
    """Return the first line: the model, the sequence, and the model's answer."""
    tokens = question.tokens
    fields: dict[str, Any] = {
        **about(question.subject),
        "num_tokens": len(tokens.names),
        "num_left_out": tokens.num_left_out,
        "tokens": tokens.names,
        "logits": question.logits.tolist(),
        "probabilities": question.logits.softmax(0).tolist(),
        "states_before": _states_before(question),
        **_answer(question, answers_of(question.logits[None]), 0, len(tokens.names) - 1),
    }
    if question.importance is not None:
        fields["importance_of"] = question.label(question.importance.label)
    return fields


def _states_before(question: Question) -> list[dict[str, Any]] | None:
    """Return the trained state before the first token of each layer and direction."""
    network = question.network
    if network.initial_state is None:
        return None
    found = []
    for layer in range(network.rnn.num_layers):
        for direction in range(network.num_directions):
            fields: dict[str, Any] = {"layer": layer, "direction": DIRECTIONS[direction]}
            parts = state_before(network, layer, direction)
            for name, part in zip(("state", "cell"), parts, strict=False):
                fields[name] = part[0].tolist()
            found.append(fields)
    return found


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


def _lines_of(question: Question, steps: Steps) -> Iterator[dict[str, Any]]:
    """Yield the fields of each time step."""
    mode = question.network.rnn.mode
    shown = [
        [_arrays_of(mode, computed) for computed in directions] for directions in steps.piece.layers
    ]
    answers = None if steps.logits is None else answers_of(steps.logits)
    logits = None if steps.logits is None else steps.logits.cpu().numpy()
    importance = question.importance

    for number in range(len(steps.piece.inputs)):
        row = steps.piece.first + number
        fields: dict[str, Any] = {"t": row + 1, "token": question.tokens.names[row]}
        fields["id"] = int(question.ids[row])
        if answers is not None and logits is not None:
            fields |= _answer(question, answers, number, row)
            fields["logits"] = logits[number].tolist()
        if importance is not None:
            for name, values in importance.measures().items():
                fields[name] = None if values is None else values[row]

        fields["layers"] = []
        for layer, directions in enumerate(shown):
            for direction, arrays in enumerate(directions):
                place = {"layer": layer, "direction": DIRECTIONS[direction]}
                fields["layers"].append(place | _row_of(arrays, number))

        # What the head sees, where it is not the state of the line.
        is_last = row == len(question.ids) - 1
        if steps.summary is not None and is_last and is_summarised(question.network):
            parts = parts_seen(question.network, steps.summary)
            fields["summary"] = {name: part.tolist() for name, part in parts.items()}
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
