"""Planes through the states of a network, as text and as JSON."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rnncls.inspect.states.halves import Halves
from rnncls.inspect.states.planes import Plane, told_apart
from rnncls.predict.predictor import Label
from rnncls.system.shown import aligned

MOST_IN_ORDER = 12  # classes that are named in a sentence

# What a plane has a share of, in the table.
SHARES = {
    "frequency": "of the power",
    "discriminants": "between classes",
    "principal": "of the variance",
}

# Accuracies: from SHOWS on a plane is said to show the answer, and what is better than chance, or
# than another plane, by less than BETTER is said not to be.
SHOWS = 0.9
BETTER = 0.2


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
