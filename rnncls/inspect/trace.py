"""One sequence on its way through a network: every time step in numbers, every prefix's answer.

`ask` runs the model itself, `steps_of` takes what it computes apart, piece by piece, and compares,
and `trace` keeps a few numbers of some steps. trace_text.py writes them.
"""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnncls.config import SumModConfig
from rnncls.data import collate
from rnncls.data.sequences import cut_for_evaluation
from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.inspect.computed import (
    Computed,
    Piece,
    difference,
    disagreement,
    pieces_of,
    tolerance_of,
)
from rnncls.inspect.importance import Importance, importance_of
from rnncls.inspect.subject import Subject, rows_together, tokens_of_text
from rnncls.model.classifier import RNNClassifier
from rnncls.model.probes import saturation
from rnncls.predict.long_sequences import is_streamed, logits_of_long
from rnncls.predict.predictor import Label
from rnncls.system.rows import shortened
from rnncls.system.streams import say

# A network of two directions is run anew for each prefix of a sequence of at most so many tokens.
MOST_PREFIXES = 512
MOST_PREFIX_LOGITS = 2**24

# At each end of a sequence, the numbers of so many steps are kept for a table.
MOST_KEPT = 40

MOST_LABELS_SHOWN = 20  # in a message about an unknown one

# The gates whose means are shown. The candidates g and n are no gates, but in the JSON.
GATES = {"LSTM": "ifo", "GRU": "rz"}

Numbers = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Classes = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Question(NamedTuple):
    """A sequence of T tokens, and what the model itself says about it; N classes."""

    subject: Subject
    ids: Tensor  # (T,), on the network's device
    names: list[str]  # of the tokens, as they were given
    num_left_out: int  # how many tokens more there were
    logits: Tensor  # (N,) of the whole sequence
    prefix_logits: Tensor | None  # (T, N), of two directions only, where they are known beforehand
    truth: Classes | None  # (T,): the right class of every prefix, where the task says it
    importance: Importance | None  # of the tokens, for runs on files

    @property
    def network(self) -> RNNClassifier:
        """The model itself, in evaluation mode."""
        return self.subject.network

    @property
    def has_answers(self) -> bool:
        """Whether there is an answer for every prefix."""
        return self.network.num_directions == 1 or self.prefix_logits is not None

    def label(self, number: int) -> Label:
        """Return the name of a class."""
        return self.subject.predictor.labels[number]


class Steps(NamedTuple):
    """What is known about P time steps."""

    piece: Piece
    logits: Tensor | None  # (P, N): the answer after each token


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


def ask(subject: Subject, text: str, label: str | None = None) -> Question:
    """Run the model on a sequence as a person types it.

    `label` is the class that tokens matter for, in runs on files; by default the predicted one.

    Raises: ConfigError for a label that the model does not have, or of generated data. DataError,
    as `tokens_of_text`.
    """
    wanted = _class_of(subject, label)
    read = tokens_of_text(subject.predictor, text)
    network = subject.network
    logits = own_logits(network, read.ids)

    truth = None
    importance = None
    data = subject.checkpoint.config.data
    if isinstance(data, SumModConfig):
        truth = np.cumsum(np.asarray(read.ids, dtype=np.int64)) % data.modulus
    else:
        predicted = int(logits.argmax())
        importance = importance_of(network, read.ids, predicted if wanted is None else wanted)

    prefix_logits = None
    if network.num_directions == 2:
        prefix_logits = _logits_of_prefixes(network, read.ids)
        if prefix_logits is None:
            say(
                f"rnncls: no predictions after each token: a model of two directions is run anew "
                f"for each prefix, which is done for at most {_most_prefixes(network)} tokens"
            )

    ids = torch.tensor(read.ids, device=network.device)
    return Question(
        subject, ids, read.names, read.num_left_out, logits, prefix_logits, truth, importance
    )


def _class_of(subject: Subject, label: str | None) -> int | None:
    """Return the number of the class with this name. Raises: ConfigError."""
    if label is None:
        return None
    if isinstance(subject.checkpoint.config.data, SumModConfig):
        what = "--label is about a run on files: of sum_mod the true sums are known"
        raise ConfigError(Problem(what, remedy="leave it out", id="C17"))

    names = [str(name) for name in subject.predictor.labels]
    if label in names:
        return names.index(label)

    shown = [shortened(on_one_line(name), 40) for name in names[:MOST_LABELS_SHOWN]]
    if len(names) > MOST_LABELS_SHOWN:
        shown.append(f"... and {len(names) - MOST_LABELS_SHOWN:,} more")
    raise ConfigError(
        Problem(
            "a label unknown to the model",
            f"--label {shortened(label, 60)}",
            expected=", ".join(shown),
            remedy="one of them, or without --label",
            id="C17",
        )
    )


@torch.no_grad()
def own_logits(network: RNNClassifier, ids: list[int]) -> Tensor:
    """Return the model's own logits of a sequence, (N,), those that predict has."""
    if is_streamed(network, [ids]):
        return logits_of_long(network, ids)[0]
    return _logits_of([ids], network)[0]


def _logits_of(sequences: list[list[int]], network: RNNClassifier) -> Tensor:
    """Return the logits of B sequences, (B, N)."""
    # Labels are required and not read.
    batch = collate([torch.tensor(ids) for ids in sequences], torch.zeros(len(sequences)))
    logits: Tensor = network(batch.to(network.device).tokens)
    return logits


def _most_prefixes(network: RNNClassifier) -> int:
    # All of their logits are in memory: of a million classes those of a few prefixes.
    return min(MOST_PREFIXES, rows_together(network, MOST_PREFIX_LOGITS))


@torch.no_grad()
def _logits_of_prefixes(network: RNNClassifier, ids: list[int]) -> Tensor | None:
    """Return the logits of every prefix, (T, N), each run alone; None for too many."""
    if len(ids) > _most_prefixes(network):
        return None
    prefixes = [ids[:length] for length in range(1, len(ids) + 1)]

    # In batches of an evaluation's size: all of 512 prefixes are 131,328 tokens.
    batches = cut_for_evaluation(range(1, len(ids) + 1))
    return torch.cat([_logits_of(prefixes[first:last], network) for first, last in batches])


@torch.no_grad()
def steps_of(question: Question) -> Iterator[Steps]:
    """Yield what is computed at every time step, some at a time.

    The last answer is the model's own.

    Raises: RnnclsError after the last step, if it is not also what was traced, which is a bug.
    """
    network = question.network
    num_steps = len(question.ids)
    final: list[Tensor] = []
    most = rows_together(network)
    pieces = (part for piece in pieces_of(network, question.ids) for part in piece.parts(most))
    for piece in pieces:
        top = [computed.state for computed in piece.layers[-1]]
        end = piece.first + len(top[0])
        if network.num_directions == 1:
            logits = network.head(top[0])
        elif question.prefix_logits is not None:
            logits = question.prefix_logits[piece.first : end]
        else:
            logits = None

        # What the head sees: the state at the last token and, in reverse, that at the first.
        if piece.first == 0 and len(top) == 2:
            final.append(top[1][0])
        if end == num_steps:
            final.insert(0, top[0][-1])
            if logits is not None:
                logits = torch.cat([logits[:-1], question.logits[None]])
        yield Steps(piece, logits)

    _require_same(question, network.head(torch.cat(final)))


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
    weight = changed.embedding.weight
    signs = torch.ones_like(weight)
    signs[:, ::2] = -1
    weight.mul_(1 + tolerance_of(weight.device) / 100 * signs)

    ids = question.ids.tolist()
    return difference(own_logits(changed, ids), own_logits(question.network, ids))


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
    for steps in steps_of(question):
        first = steps.piece.first
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
    return Trace(question, rows, layers, _all_answers(answers))


def _kept(question: Question, steps: Steps, parting: int | None) -> list[int]:
    """Return which of P steps are kept."""
    first = steps.piece.first
    last = len(question.ids) - MOST_KEPT
    places = range(len(steps.piece.layers[0][0].state))
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
