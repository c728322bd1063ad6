"""The gradient through time, as text and as JSON."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from rnncls.model.gradient_flow import EXPLODING, VANISHING, Flow, Kind, Verdict
from rnncls.model.pooling import Pooling
from rnncls.system.shown import aligned, ends_of

MOST_ROWS = 40  # of a table
MOST_COLUMNS = 6  # of a table: what fits into 80 columns of a terminal
MOST_VERDICTS = 12

MEANINGS: dict[Kind, str] = {
    "vanishing": "vanishing. What early tokens say hardly changes a weight.",
    "exploding": "exploding. One step of training may ruin all weights.",
    "vanishing and exploding": "vanishing in one place and exploding in another.",
    "neither": "neither vanishing nor exploding. The gradient reaches the first tokens.",
    "zero": "no gradient at all.",
    "not finite": "not finite: the weights or the states are NaN or infinite.",
}

# Where every step has a way of its own to the loss in training: by pooling, or by the prefixes. The
# verdict is about the way from the last states back.
_MEANINGS_OF_DIRECT: dict[Kind, str] = {
    "vanishing": "vanishing. Early tokens are learned from directly, and not by what\n"
    "later states keep of them.",
    "exploding": MEANINGS["exploding"],
    "vanishing and exploding": MEANINGS["vanishing and exploding"],
    "neither": "neither vanishing nor exploding. It goes back to the first tokens.",
    "zero": "no gradient leaves a last state.",
    "not finite": MEANINGS["not finite"],
}

SURE = 1e-12  # nats of loss

_OF_LAST = "of last: divided by that of the same sequences at their last step"

_OF_LAST_OF_POOLED = """\
of last: without what the head sees of other steps than the last, divided by
that of the same sequences at their last step: what passes through time"""

_SURE = """\
All gradients are exactly 0: the network is sure of every sequence (p - y is 0),
and there is nothing to see. An earlier checkpoint may show more."""

_CUT_OFF = """\
All gradients are exactly 0, and the network is not sure of every sequence:
nothing passes from the answer back to the states. Its head may be all zeros."""

_LAST_UNSEEN = """\
No gradient leaves a last state: of no unit the head sees the value there. What
earlier states pass back through time is not measured."""


class LayerGradients(NamedTuple):
    """The gradient that reaches one layer in one direction."""

    layer: int  # from 0 on
    direction: str  # forward or reverse
    flow: Flow  # of the gradient that leaves the last states alone
    whole: Tensor  # the mean norm of all of dL/dh_t, by distance, (K,) in nats per unit of h
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Gradients:
    """|dL/dh_t| by layer, direction and distance from the end, over sequences of the own data."""

    num_sequences: int
    num_tokens: int
    cut_to: int | None  # how many of its last tokens a longer sequence was cut to, if one was
    loss: float  # the mean over the sequences, in nats
    layers: list[LayerGradients]
    kind: Kind  # the verdict on all layers
    pooling: Pooling  # what the head sees
    is_direct: bool  # whether in training every step has a way of its own to the loss
    notes: list[str]  # where training has another gradient
    remedies: list[str]

    def to_text(self) -> str:
        """Return a table of at most 40 distances, the verdicts, and what to do."""
        sequences = f"{self.num_sequences:,} sequences, {self.num_tokens:,} tokens"
        lines = [
            "gradient through time: |dL/dh_t|, nats per unit of h, by distance from the end",
            f"mean over own data ({sequences}), in float64; mean loss {self.loss:.2g}",
        ]
        if self.cut_to is not None:
            lines.append(f"only the last {self.cut_to:,} tokens of longer sequences were run")
        lines += self.notes
        if self.kind == "zero" and not self._reaches_a_step:
            return "\n".join([*lines, "", _SURE if self.loss < SURE else _CUT_OFF])

        lines.append(_OF_LAST if self.pooling == "last" else _OF_LAST_OF_POOLED)
        if self.has_two_directions:
            lines.append("rev: in reverse, where the end of a sequence is its first token")

        lines += ["", *self._table(), "", *self._verdicts(), ""]
        lines.append(f"in all: {self.meaning}")
        if self.kind == "zero":
            lines += ["", _LAST_UNSEEN]
        for index, remedy in enumerate(self.remedies):
            lines.append(f"{'  try:' if index == 0 else '      '} {remedy}")
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return every number. Index k of a list stands for k steps before the end."""
        layers = []
        for one in self.layers:
            layers.append(
                {
                    "layer": one.layer,
                    "direction": one.direction,
                    "verdict": one.verdict.kind,
                    "vanishing_from": one.verdict.vanishing_from,
                    "exploding_from": one.verdict.exploding_from,
                    # Lists, with a number for each distance from the end.
                    "counts": one.flow.counts.tolist(),
                    "norms": one.whole.tolist(),
                    "norms_from_last": one.flow.norms.tolist(),
                    "ratios": one.flow.ratios.tolist(),
                }
            )

        return {
            "num_sequences": self.num_sequences,
            "num_tokens": self.num_tokens,
            "cut_to": self.cut_to,
            "loss": self.loss,
            "notes": self.notes,
            "vanishing_below": VANISHING,
            "exploding_above": EXPLODING,
            "layers": layers,
            "verdict": self.kind,
            "remedies": self.remedies,
        }

    @property
    def meaning(self) -> str:
        """The verdict on all layers, in words."""
        meanings = _MEANINGS_OF_DIRECT if self.is_direct else MEANINGS
        return meanings[self.kind]

    @property
    def _reaches_a_step(self) -> bool:
        return any(bool(layer.whole.any()) for layer in self.layers)

    @property
    def has_two_directions(self) -> bool:
        """Whether the layers run in reverse as well."""
        return any(layer.direction == "reverse" for layer in self.layers)

    def name(self, layer: LayerGradients) -> str:
        """Return the short name of one of the layers, with its direction if there are two."""
        if not self.has_two_directions:
            return f"layer {layer.layer}"
        return f"{layer.layer} {'rev' if layer.direction == 'reverse' else 'fwd'}"

    def _table(self) -> list[str]:
        """Return the table: at most 40 distances, at most 6 layers and directions."""
        shown = self.layers
        if len(shown) > MOST_COLUMNS:
            half = MOST_COLUMNS // 2
            shown = [*shown[:half], *shown[-half:]]
        has_ratios = 2 * len(shown) <= MOST_COLUMNS

        header = ["distance", "sequences"]
        for layer in shown:
            header.append(self.name(layer))
            if has_ratios:
                header.append("of last")

        rows = [header]
        num_distances = len(shown[0].whole)
        for distance in ends_of(num_distances, MOST_ROWS // 2, MOST_ROWS // 2):
            if distance is None:
                rows.append(["..."] * len(header))
                continue
            row = [f"{distance:,}", f"{int(shown[0].flow.counts[distance]):,}"]
            for layer in shown:
                row.append(_power(layer.whole[distance].item()))
                if has_ratios:
                    row.append(_power(layer.flow.ratios[distance].item()))
            rows.append(row)

        lines = aligned(rows)
        if len(shown) < len(self.layers):
            lines.append("only the lowest and the highest layers are shown; --json has all")
        return lines

    def _verdicts(self) -> list[str]:
        """Return a table of the verdicts, of at most 12 layers and directions."""
        rows = [["", "verdict", "lowest", "highest of last", "< 1e-4 at", "> 1e2 at"]]
        for layer in self.layers[:MOST_VERDICTS]:
            ratios = layer.flow.ratios[~layer.flow.ratios.isnan()].tolist()
            rows.append(
                [
                    self.name(layer),
                    layer.verdict.kind,
                    _power(min(ratios, default=math.nan)),
                    _power(max(ratios, default=math.nan)),
                    _distance(layer.verdict.vanishing_from),
                    _distance(layer.verdict.exploding_from),
                ]
            )

        lines = aligned(rows, texts=2)
        left_out = len(self.layers) - MOST_VERDICTS
        if left_out > 0:
            lines.append(f"... and {left_out:,} more; --json has all")
        return lines


def _power(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"


def _distance(steps: int | None) -> str:
    return "-" if steps is None else f"{steps:,}"
