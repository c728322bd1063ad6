"""One sequence on its way through a network: every time step in numbers, every prefix's answer.

`steps_of` takes what the model computes apart, piece by piece, and compares it with what the model
itself says, and `trace` keeps a few numbers of some steps. text.py and json_lines.py write them.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnncls.inspect.trace.computed import (
    Computed,
    Piece,
    difference,
    disagreement,
    pieces_of,
    tolerance_of,
)
from rnncls.inspect.trace.question import Classes, Question
from rnncls.inspect.trace.summary import nothing_seen, summaries_after
from rnncls.model.probes import saturation
from rnncls.predict.logits import logits_of, rows_together
from rnncls.system.streams import say

# At each end of a sequence, the numbers of so many steps are kept for a table.
MOST_KEPT = 40

# The gates whose means are shown. The candidates g and n are no gates, but in the JSON.
GATES = {"LSTM": "ifo", "GRU": "rz"}

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Steps(NamedTuple):
    """What is known about P time steps."""

    piece: Piece
    logits: Tensor | None  # (P, N): the answer after each token
    summary: Tensor | None  # (summary_size,): what the head sees, known with the last step


class Answers(NamedTuple):
    """The model's answer to every prefix."""

    predicted: Classes  # (T,)
    probability: Numbers  # (T,): NaN where there is no answer


class Trace(NamedTuple):
    """A sequence with the numbers of its first and last steps; none of them of a single unit."""

    question: Question
    rows: list[int]  # the indices of the R steps whose numbers are kept, rising
    layers: list[list[dict[str, Numbers]]]  # of each layer and direction: (R,) each, as `in_short`
    answers: Answers | None
    summary: Numbers  # (summary_size,): what the head sees

    @property
    def parting(self) -> int | None:
        """The index of the first prefix whose answer is not the truth; None without either."""
        return None if self.wrong is None else _first(self.wrong)

    @property
    def wrong(self) -> Flags | None:
        """Whether the answer to each prefix is wrong, (T,); None where nobody knows."""
        truth = self.question.truth
        if self.answers is None or truth is None:
            return None
        return _wrong(self.answers, truth)


@torch.no_grad()
def steps_of(question: Question) -> Iterator[Steps]:
    """Yield what is computed at every time step, some at a time.

    The last answer is the model's own.

    Raises: RnnclsError after the last step, if it is not also what was traced, which is a bug.
    """
    network = question.network
    num_steps = len(question.ids)
    seen = nothing_seen(network)
    most = rows_together(network)
    pieces = (part for piece in pieces_of(network, question.ids) for part in piece.parts(most))
    for piece in pieces:
        summaries, seen = summaries_after(network, seen, piece.inputs, piece.top)
        if network.num_directions == 1:
            logits = network.head(summaries)
        elif question.prefix_logits is not None:
            logits = question.prefix_logits[piece.first : seen.num_steps]
        else:
            logits = None

        if seen.num_steps < num_steps:
            yield Steps(piece, logits, None)
            continue
        if logits is not None:
            logits = torch.cat([logits[:-1], question.logits[None]])
        yield Steps(piece, logits, summaries[-1])
        _require_same(question, network.head(summaries[-1]))


def _require_same(question: Question, traced: Tensor) -> None:
    """Raise RnnclsError if the logits (N,) that were traced are not the model's own."""
    own = question.logits
    largest = float(own.abs().max())
    most = tolerance_of(own.device) * largest
    apart = difference(traced, own)
    # Neither is true of NaN: what is not finite cannot be compared.
    if not apart > most:
        return

    # Every step was right. In a network whose states explode, rounding alone may tell two ways to
    # compute the same apart.
    moved = _moved_by_rounding(question)
    if moved > most:
        say(
            f"rnncls: rounding decides the logits of this model: the trace ends {apart:.2g} from "
            f"them, and they move by {moved:.2g} if embeddings change in the sixth digit"
        )
        return
    raise disagreement(f"logits apart by {apart:.2g}, the largest is {largest:.2g}", "logits")


def _moved_by_rounding(question: Question) -> float:
    """Return how far the model's own logits move if its embeddings change a little."""
    changed = copy.deepcopy(question.network)
    tables = (changed.embedding, changed.ngram_embedding, changed.position_embedding)
    for weight in (table.weight for table in tables if table is not None):
        signs = torch.ones_like(weight)
        signs[:, ::2] = -1
        weight.mul_(1 + tolerance_of(weight.device) / 100 * signs)

    ids = [question.tokens.ids]
    return difference(logits_of(changed, ids), logits_of(question.network, ids))


def trace(question: Question) -> Trace:
    """Return the numbers of the first and the last steps, and of that where answers go wrong.

    Those of all steps of many layers would not fit in memory. Raises: RnnclsError, as `steps_of`.
    """
    network = question.network
    num_layers = network.rnn.num_layers
    pieces: list[list[list[dict[str, Tensor]]]] = [
        [[] for _ in range(network.num_directions)] for _ in range(num_layers)
    ]
    answers: list[Answers] = []
    rows: list[int] = []
    parting = None
    summary = None
    for steps in steps_of(question):
        first = steps.piece.first
        summary = steps.summary
        if steps.logits is not None:
            answers.append(answers_of(steps.logits))
            if question.truth is not None and parting is None:
                truth = question.truth[first : first + len(steps.logits)]
                found = _first(_wrong(answers[-1], truth))
                parting = None if found is None else first + found

        kept = _kept(question, steps, parting)
        rows += [first + place for place in kept]
        for layer, directions in enumerate(steps.piece.layers):
            for direction, computed in enumerate(directions):
                short = in_short(network.rnn.mode, computed)
                of_kept = {name: values[kept] for name, values in short.items()}
                pieces[layer][direction].append(of_kept)

    layers = [[_joined(parts) for parts in directions] for directions in pieces]
    if summary is None:
        raise ValueError("a sequence without a last step")
    return Trace(question, rows, layers, _all_answers(answers), summary.double().cpu().numpy())


def _kept(question: Question, steps: Steps, parting: int | None) -> list[int]:
    """Return which of P steps are kept."""
    first = steps.piece.first
    last = len(question.ids) - MOST_KEPT
    places = range(len(steps.piece.inputs))
    return [
        place
        for place in places
        if first + place < MOST_KEPT or first + place >= last or first + place == parting
    ]


def _wrong(answers: Answers, truth: Classes) -> Flags:
    """Return which answers (P,) are not the truth (P,)."""
    wrong: Flags = answers.predicted != truth
    return wrong | np.isnan(answers.probability)


def _first(flags: Flags) -> int | None:
    """Return the index of the first flag that is set; None if none is."""
    return int(flags.argmax()) if flags.any() else None


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Numbers]:
    names = parts[0].keys()
    return {name: torch.cat([part[name] for part in parts]).cpu().numpy() for name in names}


def _all_answers(parts: list[Answers]) -> Answers | None:
    if not parts:
        return None
    predicted = np.concatenate([part.predicted for part in parts])
    return Answers(predicted, np.concatenate([part.probability for part in parts]))


def answers_of(logits: Tensor) -> Answers:
    """Return the likeliest class of each row of logits (P, N) and its probability."""
    # As in predict: of classes that are equally likely the first, by logits that are not rounded.
    predicted = logits.argmax(1, keepdim=True)
    probability = logits.softmax(1).gather(1, predicted)[:, 0]
    return Answers(predicted[:, 0].cpu().numpy(), probability.double().cpu().numpy())


def in_short(mode: str, computed: Computed) -> dict[str, Tensor]:
    """Return a few numbers for each of P steps, (P,) float64 each.

    Norms are Euclidean. `saturated` and `off` are as in `probes.saturation`, `i`, `f`, `o`, `r` and
    `z` the means of gates.
    """
    numbers = {
        "input_norm": _norm(computed.input),
        "memory_norm": _norm(computed.memory),
        "pre_activation_min": computed.pre_activation.amin(1),
        "pre_activation_max": computed.pre_activation.amax(1),
    }
    numbers |= {name: computed.gates[name].mean(1) for name in GATES.get(mode, "")}
    if computed.cell is not None:
        numbers["cell_norm"] = _norm(computed.cell)

    is_relu = mode == "RNN_RELU"
    numbers["state_norm"] = _norm(computed.state)
    numbers["state_min"] = computed.state.amin(1)
    numbers["state_max"] = computed.state.amax(1)
    numbers["off" if is_relu else "saturated"] = saturation(computed.activation, is_relu)
    return {name: value.double() for name, value in numbers.items()}


def _norm(vectors: Tensor) -> Tensor:
    # In float64, where no square of a float32 overflows.
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, dtype=torch.float64)
    return norms
