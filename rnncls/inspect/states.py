"""What the states of a network encode: which planes through them show it, and how well."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnncls.config import SumModConfig
from rnncls.data.sequences import Sequences
from rnncls.errors import DataError, NonFiniteError, Problem
from rnncls.inspect.planes import (
    Halves,
    Plane,
    accuracy_everywhere,
    discriminant_plane,
    fisher_whitening,
    frequency_planes,
    halves_of,
    principal_plane,
    shrunk_whitening,
    told_apart,
)
from rnncls.inspect.subject import Subject, own_sequences
from rnncls.model.cells import DIRECTIONS
from rnncls.model.probes import (
    distinct_prefixes,
    eigenvalues_of,
    running_sums,
    states_after,
    summaries_of,
)
from rnncls.predict.predictor import Label
from rnncls.seeds import mix
from rnncls.system.rows import aligned
from rnncls.system.streams import say

NUM_SEQUENCES = 4000

# Of generated sequences, which may be of any length: so many tokens in all, and of each sequence.
MOST_TOKENS = 2**18
MOST_LENGTH = 2**16

# Of prefixes, so that states of any width fit in memory.
MOST_STATES = 20_000

MOST_FREQUENCIES = 5  # planes that are drawn
MOST_IN_ORDER = 12  # classes that are named in a sentence

# What the states are.
PREFIXES = "The last layer's state after a prefix"
SUMMARIES = "What the head sees of a sequence"

# What a plane has a share of, in the table.
SHARES = {
    "frequency": "of the power",
    "discriminants": "between classes",
    "principal": "of the variance",
}

# From here on a plane is said to show the answer, and below the middle one it is said not to.
SHOWS = 0.9
BETTER = 0.2

# Which block of W_hh the eigenvalues are those of.
MATRICES = {"RNN_TANH": "W_hh", "RNN_RELU": "W_hh", "LSTM": "W_hg", "GRU": "W_hn"}


class Memory(NamedTuple):
    """The eigenvalues of the recurrent matrix of one layer and direction."""

    layer: int  # from 0
    direction: str  # forward or reverse
    eigenvalues: tuple[complex, ...]  # H of them

    @property
    def radius(self) -> float:
        """The spectral radius: the largest absolute value."""
        return max(map(abs, self.eigenvalues))

    @property
    def num_outside(self) -> int:
        """How many eigenvalues lie outside the unit circle."""
        return sum(abs(value) > 1 for value in self.eigenvalues)


@dataclass(frozen=True, eq=False)
class States:
    """Planes through the states, with all that is drawn and said about them."""

    what: str  # PREFIXES or SUMMARIES
    unit: str  # of which there are many different ones: prefixes or sequences
    encoded: str  # what the classes are: "running sum modulo 10"
    modulus: int | None  # N, where classes are numbers modulo N
    labels: tuple[Label, ...]  # of the classes in `halves`
    halves: Halves
    planes: list[Plane]  # the best one first, the principal one last
    num_more: int  # planes of frequencies that are left out
    accuracy_everywhere: float  # in all directions, whitened
    num_left_out: int  # classes of fewer than two states
    memories: list[Memory]
    matrix: str  # what `memories` are about

    @property
    def best(self) -> Plane:
        """The plane that shows the classes best: of frequencies, by the states to fit."""
        return self.planes[0]

    @property
    def principal(self) -> Plane:
        """The plane in which the states vary most."""
        return self.planes[-1]

    @property
    def chance(self) -> float:
        """The accuracy of always naming the class that most of the states held out have."""
        counts = np.bincount(self.halves.held_out_classes)
        return int(counts.max()) / len(self.halves.held_out)

    def name_of(self, plane: Plane) -> str:
        """Return how a plane is called."""
        if plane.kind == "principal":
            return "principal plane"
        if plane.kind == "discriminants":
            if self.halves.num_classes == 2:
                return "discriminant, largest rest"
            return "first two discriminants"

        modulus = self.modulus or 1
        groups = told_apart(plane.frequency, modulus)
        name = f"frequency {plane.frequency}"
        return name if groups == modulus else f"{name}: sum modulo {groups}"

    def share_of(self, plane: Plane) -> str:
        """Return what a plane has a share of."""
        if plane.kind == "principal":
            return "variance"
        return "class means' power" if plane.kind == "frequency" else "variance between classes"

    def to_text(self) -> str:
        """Return the tables, and what they mean."""
        fit = len(self.halves.fit)
        held_out = len(self.halves.held_out)
        lines = [
            f"{self.what}, by its {self.encoded}",
            f"{fit + held_out:,} different {self.unit}: {fit:,} to fit, "
            f"{held_out:,} held out for the accuracy",
        ]
        if self.num_left_out:
            lines.append(
                f"classes of fewer than two {self.unit} are left out: {self.num_left_out:,}"
            )
        lines += ["", *aligned(self._rows(), texts=2)]
        if self.num_more:
            lines.append(f"left out, with smaller shares: {self.num_more:,} more frequencies")

        lines += ["", *self._meaning(), "", *aligned(self._memory_rows(), texts=3)]
        lines.append("Below 1 the matrix alone lets a state fade, above 1 it lets it grow;")
        lines.append("what becomes of it with the nonlinearity, --gradients measures.")
        return "\n".join(lines)

    def _rows(self) -> list[list[str]]:
        """Return the table of planes, with its header."""
        has_rings = self.best.kind == "frequency"
        rows = [["plane", "share", "accuracy", "cyclic order" if has_rings else ""]]
        for plane in self.planes:
            share = f"{_percent(plane.share)} {SHARES[plane.kind]}"
            order = ""
            if plane.kind == "frequency":
                order = "yes" if plane.is_cyclic else "no"
            rows.append([self.name_of(plane), share, f"{plane.accuracy:.3f}", order])

        width = self.halves.fit.shape[1]
        rows.append(
            [f"all {width:,} directions", "whitened", f"{self.accuracy_everywhere:.3f}", ""]
        )
        rows.append(["chance", "largest class", f"{self.chance:.3f}", ""])
        return rows

    def _meaning(self) -> list[str]:
        """Return the table in sentences."""
        best = self.best
        right = f"the nearest class mean is right for {_percent(best.accuracy)}"
        lines = []
        if best.accuracy >= SHOWS and best.kind == "frequency" and best.is_cyclic:
            lines.append(f"The plane of frequency {best.frequency} shows the {self.encoded}:")
            lines.append(f"the classes lie on a ring, in the order {self._order()}, and")
            lines.append(f"{right} of the states held out.")
        elif best.accuracy >= SHOWS:
            lines.append(f"The first of these planes shows the {self.encoded}:")
            lines.append(f"{right} of the states held out.")
        elif self.accuracy_everywhere >= SHOWS:
            lines.append(f"The states hold the {self.encoded}, but no single plane shows it all.")
        elif self.accuracy_everywhere >= self.chance + BETTER:
            lines.append(f"The states hold the {self.encoded} in part.")
        else:
            lines.append(f"The nearest class mean does not find the {self.encoded}: it is not in")
            lines.append("the states, or not in a place of its own for each class.")

        principal = f"The principal plane has {_percent(self.principal.share)} of the variance and"
        principal += f" is right for {_percent(self.principal.accuracy)}"
        if best.accuracy >= self.principal.accuracy + BETTER:
            lines.append(f"{principal}:")
            lines.append("where the states vary most is not where the answer is.")
        else:
            lines.append(f"{principal}.")

        number, width = self.halves.fit.shape
        if number < width:
            lines.append(
                f"There are only {number:,} states to fit {width:,} directions: the planes are "
                "uncertain."
            )
        return lines

    def _order(self) -> str:
        """Return the classes around the ring of the best plane."""
        names = list(map(str, self.best.order))
        if len(names) > MOST_IN_ORDER:
            names = [*names[: MOST_IN_ORDER - 1], "...", names[-1]]
        return " ".join(names)

    def _memory_rows(self) -> list[list[str]]:
        """Return the table of recurrent matrices, with its header."""
        rows = [["layer", "direction", "matrix", "spectral radius", "outside the unit circle"]]
        for memory in self.memories:
            outside = f"{memory.num_outside:,} of {len(memory.eigenvalues):,}"
            layer = str(memory.layer)
            rows.append([layer, memory.direction, self.matrix, f"{memory.radius:.3f}", outside])
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return every number but the states themselves."""
        return {
            "states": self.what,
            "encoded": self.encoded,
            "classes": list(self.labels),
            "num_fit": len(self.halves.fit),
            "num_held_out": len(self.halves.held_out),
            "num_classes_left_out": self.num_left_out,
            "chance": self.chance,
            "accuracy_in_all_directions": self.accuracy_everywhere,
            "planes": [self._plane_json(plane) for plane in self.planes],
            "recurrent": [
                {
                    "layer": memory.layer,
                    "direction": memory.direction,
                    "matrix": self.matrix,
                    "spectral_radius": memory.radius,
                    "eigenvalues": [[value.real, value.imag] for value in memory.eigenvalues],
                }
                for memory in self.memories
            ],
        }

    def _plane_json(self, plane: Plane) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "kind": plane.kind,
            "share": plane.share,
            "share_of": self.share_of(plane),
            "accuracy_held_out": plane.accuracy,
            "accuracy_fit": plane.accuracy_fit,
            "class_means": plane.means.tolist(),
        }
        if plane.kind == "frequency":
            fields["frequency"] = plane.frequency
            fields["order"] = list(plane.order)
            fields["in_cyclic_order"] = plane.is_cyclic
        return fields


def _percent(share: float) -> str:
    """Return a share as a person reads it; it may be that of nothing."""
    return "-" if math.isnan(share) else f"{100 * share:.1f} %"


def states_shown(subject: Subject, progress: bool = False, data_dir: Path | None = None) -> States:
    """Return what the states of a model encode, on sequences of its own data.

    A model of one direction on `sum_mod` has a state after every prefix that should tell its sum.
    For any other, it is what the head sees of a whole sequence. Of sums the planes are those of
    frequencies, of other classes that of the first two discriminants.

    Raises: DataError if there are too few states of different classes, or files are missing or bad.
    CheckpointError if they have changed. NonFiniteError if the states are NaN or infinite.
    """
    data = subject.checkpoint.config.data
    seed = subject.checkpoint.config.seed
    modulus = data.modulus if isinstance(data, SumModConfig) else None

    # Generated sequences are drawn at their longest, whatever fits in memory.
    count = NUM_SEQUENCES
    if isinstance(data, SumModConfig):
        count = max(1, min(count, MOST_TOKENS // data.max_length))
    sequences = own_sequences(subject, count, progress, data_dir)

    of_prefixes = modulus is not None and subject.network.num_directions == 1
    if modulus is not None and of_prefixes:
        states, classes = _of_prefixes(subject, sequences, modulus, seed)
        encoded = f"running sum modulo {modulus:,}"
    else:
        states, classes = _of_sequences(subject, sequences)
        encoded = "class" if modulus is None else f"sum modulo {modulus:,}"

    unit = "prefixes" if of_prefixes else "sequences"
    num_classes = len(subject.predictor.labels)
    halves = halves_of(states.double().numpy(), classes.numpy(), seed)
    _require_states(halves, len(states), num_classes, unit)
    memories = _memories_of(subject)
    _require_finite(subject, states, memories)

    if modulus is not None:
        planes = frequency_planes(halves, modulus)
        num_more = modulus // 2 - len(planes[:MOST_FREQUENCIES])
        planes = planes[:MOST_FREQUENCIES]
        whitening = fisher_whitening(halves)
    else:
        planes = [discriminant_plane(halves)]
        num_more = 0
        whitening = shrunk_whitening(halves)

    labels = subject.predictor.labels
    return States(
        what=PREFIXES if of_prefixes else SUMMARIES,
        unit=unit,
        encoded=encoded,
        modulus=modulus,
        labels=tuple(labels[number] for number in halves.numbers),
        halves=halves,
        planes=[*planes, principal_plane(halves)],
        num_more=num_more,
        accuracy_everywhere=accuracy_everywhere(halves, whitening),
        num_left_out=num_classes - halves.num_classes,
        memories=memories,
        matrix=MATRICES[subject.network.rnn.mode],
    )


def _of_prefixes(
    subject: Subject, sequences: Sequences, modulus: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return the states after different prefixes, (P, H), and their sums modulo N, (P,)."""
    sequences = _beginnings(sequences, MOST_LENGTH)
    places = distinct_prefixes(sequences)
    if len(places) > MOST_STATES:
        generator = torch.Generator().manual_seed(mix(seed, "prefixes"))
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


def _beginnings(sequences: Sequences, most: int) -> Sequences:
    """Return the first `most` tokens of each sequence; the labels stay those of the whole."""
    lengths = sequences.lengths
    if int(lengths.max()) <= most:
        return sequences
    within = torch.arange(len(sequences.tokens))
    within -= sequences.offsets[:-1].repeat_interleave(lengths)
    ends = lengths.clamp(max=most).cumsum(0)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), ends])
    return Sequences(sequences.tokens[within < most], offsets, sequences.labels)


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
