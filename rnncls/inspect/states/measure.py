"""What the states of a network encode: which planes through them show it, and how well."""

from pathlib import Path

import torch
from torch import Tensor

from rnncls.config import Config, SumModConfig
from rnncls.data.sequences import Sequences
from rnncls.errors import DataError, NonFiniteError, Problem
from rnncls.inspect.states.halves import Halves, halves_of
from rnncls.inspect.states.planes import (
    Plane,
    discriminant_plane,
    frequency_planes,
    principal_plane,
)
from rnncls.inspect.states.prefixes import beginnings, distinct_prefixes, running_sums
from rnncls.inspect.states.view import Memory, States
from rnncls.inspect.states.whitening import accuracy_everywhere, fisher_whitening, shrunk_whitening
from rnncls.inspect.subject import Subject, own_sequences, require_recurrence
from rnncls.model.cells import DIRECTIONS
from rnncls.model.probes import eigenvalues_of, states_after, summaries_of
from rnncls.seeds import mix
from rnncls.system.streams import say

NUM_SEQUENCES = 4000  # that are drawn, at most

# Of generated sequences, which may be of any length: so many tokens in all, and of each sequence.
MOST_TOKENS = 2**18
MOST_LENGTH = 2**16

# Of prefixes, so that states of any width fit in memory.
MOST_STATES = 20_000

MOST_FREQUENCIES = 5  # planes that are drawn

# What the states are.
PREFIXES = "The last layer's state after a prefix"
SUMMARIES = "What the head sees of a sequence"

# Which block of W_hh the eigenvalues are those of, by the mode of the nn.RNNBase.
MATRICES = {"RNN_TANH": "W_hh", "RNN_RELU": "W_hh", "LSTM": "W_hg", "GRU": "W_hn"}


def states_shown(subject: Subject, progress: bool = False, data_dir: Path | None = None) -> States:
    """Return what the states of a model encode, on sequences of its own data.

    A model of one direction on `sum_mod` has a state after every prefix that should tell its sum.
    For any other, it is what the head sees of a whole sequence. Of sums the planes are those of
    frequencies, of other classes that of the first two discriminants.

    Raises: ConfigError for a model without recurrent layers. DataError if there are too few states
    of different classes, or files are missing or bad. CheckpointError if they have changed.
    NonFiniteError if the states are NaN or infinite.
    """
    require_recurrence(subject, "--states")
    config = subject.checkpoint.config
    modulus = config.data.modulus if isinstance(config.data, SumModConfig) else None
    # N of the running sums that states should tell; None if whole sequences are looked at.
    of_running = modulus if subject.network.num_directions == 1 else None

    sequences = own_sequences(subject, _num_drawn(config), progress, data_dir)
    if of_running is None:
        what = SUMMARIES
        unit = "sequences"
        encoded = "class" if modulus is None else f"sum modulo {modulus:,}"
        states, classes = _of_sequences(subject, sequences)
    else:
        what = PREFIXES
        unit = "prefixes"
        encoded = f"running sum modulo {of_running:,}"
        states, classes = _of_prefixes(subject, sequences, of_running)

    labels = subject.predictor.labels
    halves = halves_of(states.double().numpy(), classes.numpy(), config.seed)
    _require_states(halves, len(states), len(labels), unit)
    memories = _memories_of(subject)
    _require_finite(subject, states, memories)

    planes, num_more, in_all = _planes_of(halves, modulus)
    return States(
        what=what,
        unit=unit,
        encoded=encoded,
        modulus=modulus,
        labels=tuple(labels[number] for number in halves.numbers),
        halves=halves,
        planes=planes,
        num_more=num_more,
        accuracy_everywhere=in_all,
        num_left_out=len(labels) - halves.num_classes,
        memories=memories,
        matrix=MATRICES[subject.network.rnn.mode],
    )


def _num_drawn(config: Config) -> int:
    """Return how many sequences to look at: fewer where they are generated and very long.

    They are drawn at their longest, whatever fits in memory.
    """
    if not isinstance(config.data, SumModConfig):
        return NUM_SEQUENCES
    return max(1, min(NUM_SEQUENCES, MOST_TOKENS // config.data.max_length))


def _of_prefixes(subject: Subject, sequences: Sequences, modulus: int) -> tuple[Tensor, Tensor]:
    """Return the states after different prefixes, (P, H), and their sums modulo N, (P,)."""
    sequences = beginnings(sequences, MOST_LENGTH)
    places = distinct_prefixes(sequences)
    if len(places) > MOST_STATES:
        seed = mix(subject.checkpoint.config.seed, "prefixes")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(places), generator=generator)[:MOST_STATES]
        places = places[chosen.sort().values]
    states = states_after(subject.network, sequences, places)
    return states, running_sums(sequences, modulus)[places]


def _of_sequences(subject: Subject, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Return the summaries of different sequences, (R, D * H), and their classes, (R,)."""
    first_of: dict[bytes, int] = {}
    tokens = sequences.tokens.numpy()
    num_long = 0
    for row, length in enumerate(sequences.lengths.tolist()):
        if length > MOST_LENGTH:
            num_long += 1
            continue
        begin = int(sequences.offsets[row])
        first_of.setdefault(tokens[begin : begin + length].tobytes(), row)

    if num_long:
        say(f"rnncls: sequences of more than {MOST_LENGTH:,} tokens are left out: {num_long:,}")
    different = sequences.select(torch.tensor(list(first_of.values()), dtype=torch.int64))
    return summaries_of(subject.network, different), different.labels


def _planes_of(halves: Halves, modulus: int | None) -> tuple[list[Plane], int, float]:
    """Return the planes, the principal one last, how many are left out, and the accuracy in all.

    `modulus` is that of sums, whose planes are those of frequencies; None for classes without an
    order.
    """
    if modulus is None:
        whitening = shrunk_whitening(halves)
        planes = [discriminant_plane(halves)]
        num_more = 0
    else:
        whitening = fisher_whitening(halves)
        planes = frequency_planes(halves, modulus)[:MOST_FREQUENCIES]
        num_more = modulus // 2 - len(planes)

    planes.append(principal_plane(halves))
    return planes, num_more, accuracy_everywhere(halves, whitening)


def _memories_of(subject: Subject) -> list[Memory]:
    """Return the eigenvalues of every layer and direction."""
    network = subject.network
    memories = []
    for layer in range(network.rnn.num_layers):
        for direction in range(network.num_directions):
            eigenvalues = eigenvalues_of(network, layer, direction).tolist()
            memories.append(Memory(layer, DIRECTIONS[direction], tuple(eigenvalues)))
    return memories


def _require_states(halves: Halves, num_states: int, num_classes: int, unit: str) -> None:
    """Raise DataError unless there are states to fit and to hold out, of two classes."""
    if num_states >= num_classes and halves.num_classes >= 2:
        return
    found = f"{num_states:,} different {unit}"
    if num_states >= num_classes:
        found += f", and classes with two of them: {halves.num_classes}"
    raise DataError(
        Problem(
            "too few states to look for what they encode",
            expected=f"one for each of {num_classes:,} classes, and two classes with two of them",
            found=found,
            remedy="a run with more sequences of each class, or longer ones",
            id="D23",
        )
    )


def _require_finite(subject: Subject, states: Tensor, memories: list[Memory]) -> None:
    """Raise NonFiniteError if a state or a recurrent matrix is not finite."""
    radii = torch.tensor([memory.radius for memory in memories])
    if bool(states.isfinite().all()) and bool(radii.isfinite().all()):
        return
    what = "the model's states are not numbers"
    remedy = "an earlier checkpoint of the run"
    place = str(subject.checkpoint.path)
    raise NonFiniteError(Problem(what, place, remedy=remedy, id="K13"))
