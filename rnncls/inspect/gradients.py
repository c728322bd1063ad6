"""The gradient through time of a trained model: how much of it reaches each earlier step."""

import copy
import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnncls.config import Config, number
from rnncls.data.sequences import Sequences
from rnncls.inspect.subject import Subject, own_sequences, rows_together
from rnncls.model.cells import DIRECTIONS
from rnncls.model.classifier import RNNClassifier
from rnncls.model.losses import sequence_losses
from rnncls.model.probes import (
    EXPLODING,
    VANISHING,
    Flow,
    Kind,
    Verdict,
    flow_of,
    gradients_through_time,
    verdict_in_all,
    verdict_of,
)
from rnncls.system.rows import aligned

COUNT = 64  # sequences that are measured together

# What the states of all steps may take, which are in memory together for the way back, and the most
# steps of a sequence: each costs a fraction of a millisecond.
MOST_BYTES = 2**27
MOST_STEPS = 2**12

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

SURE = 1e-12  # nats of loss

_SURE = """\
All gradients are exactly 0: the network is sure of every sequence (p - y is 0),
and there is nothing to see. An earlier checkpoint may show more."""

_CUT_OFF = """\
All gradients are exactly 0, and the network is not sure of every sequence:
nothing passes from the answer back to the states. Its head may be all zeros."""


class LayerGradients(NamedTuple):
    """The gradient that reaches one layer in one direction."""

    layer: int  # from 0 on
    direction: str  # forward or reverse
    flow: Flow
    verdict: Verdict


@dataclass(frozen=True, eq=False)
class Gradients:
    """|dL/dh_t| by layer, direction and distance from the end, over sequences of the own data."""

    checkpoint: Path
    step: int  # training steps behind it
    num_sequences: int
    num_tokens: int
    cut_to: int | None  # how many of its last tokens a longer sequence was cut to, if one was
    loss: float  # the mean over the sequences, in nats
    layers: list[LayerGradients]
    kind: Kind  # the verdict on all layers
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
        if self.kind == "zero":
            return "\n".join([*lines, "", _SURE if self.loss < SURE else _CUT_OFF])

        lines.append("of last: divided by that of the same sequences at their last step")
        if self.has_two_directions:
            lines.append("rev: in reverse, where the end of a sequence is its first token")

        lines += ["", *self._table(), "", *self._verdicts(), ""]
        lines.append(f"in all: {MEANINGS[self.kind]}")
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
                    "counts": one.flow.counts.tolist(),
                    "norms": one.flow.norms.tolist(),
                    "ratios": one.flow.ratios.tolist(),
                }
            )
        return {
            "checkpoint": str(self.checkpoint),
            "step": self.step,
            "sequences": self.num_sequences,
            "tokens": self.num_tokens,
            "cut_to": self.cut_to,
            "loss": self.loss,
            "vanishing_below": VANISHING,
            "exploding_above": EXPLODING,
            "layers": layers,
            "verdict": self.kind,
            "remedies": self.remedies,
        }

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
        num_distances = len(shown[0].flow.norms)
        for distance in _shown_distances(num_distances):
            if distance is None:
                rows.append(["..."] * len(header))
                continue
            row = [f"{distance:,}", f"{int(shown[0].flow.counts[distance]):,}"]
            for layer in shown:
                row.append(_number(layer.flow.norms[distance].item()))
                if has_ratios:
                    row.append(_number(layer.flow.ratios[distance].item()))
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
                    _number(min(ratios, default=math.nan)),
                    _number(max(ratios, default=math.nan)),
                    _distance(layer.verdict.vanishing_from),
                    _distance(layer.verdict.exploding_from),
                ]
            )

        lines = aligned(rows, texts=2)
        left_out = len(self.layers) - MOST_VERDICTS
        if left_out > 0:
            lines.append(f"... and {left_out:,} more; --json has all")
        return lines


def gradients_of(subject: Subject, data_dir: Path | None = None) -> Gradients:
    """Measure the gradient through time on up to 64 sequences of the model's own data.

    A copy of the network in float64, on the CPU, is measured: a trained one is so sure that p - y
    is 0 in float32. Of long sequences there are fewer, and of very long ones the last tokens alone,
    run as if nothing came before them: the states of all steps are in memory together.

    Raises: DataError if files are missing or bad. CheckpointError if they have changed.
    """
    count = min(COUNT, rows_together(subject.network))
    all_sequences = own_sequences(subject, count, progress=True, data_dir=data_dir)
    most_tokens = MOST_BYTES // _bytes_per_token(subject.network)
    most_steps = max(1, min(MOST_STEPS, most_tokens))
    sequences = bounded(all_sequences, most_steps, most_tokens)

    # The weights' own gradients are not asked for, and nothing need be kept for them.
    network = copy.deepcopy(subject.network).cpu().double().requires_grad_(False)
    batch = sequences.batch(torch.arange(len(sequences)))
    with torch.no_grad():
        loss = sequence_losses(network(batch.tokens), batch.labels).mean().item()

    layers = []
    for number_of_layer, gradients in enumerate(
        gradients_through_time(network, batch.tokens, batch.labels)
    ):
        for reverse, gradient in enumerate(gradients):
            flow = flow_of(gradient, batch.tokens.batch_sizes, reverse=bool(reverse))
            direction = DIRECTIONS[reverse]
            layers.append(LayerGradients(number_of_layer, direction, flow, verdict_of(flow)))

    kind = verdict_in_all(layer.verdict for layer in layers)
    is_cut = int(all_sequences.lengths.max()) > most_steps
    return Gradients(
        checkpoint=subject.checkpoint.path,
        step=subject.predictor.step,
        num_sequences=len(sequences),
        num_tokens=len(sequences.tokens),
        cut_to=most_steps if is_cut else None,
        loss=loss,
        layers=layers,
        kind=kind,
        remedies=remedies_of(kind, subject.checkpoint.config),
    )


def remedies_of(kind: Kind, config: Config) -> list[str]:
    """Return what could help, as settings that this run does not have yet."""
    if kind not in ("vanishing", "exploding", "vanishing and exploding"):
        return []

    model = config.model
    remedies = []
    if kind != "vanishing":
        clip = config.train.max_grad_norm
        if clip is None:
            remedies.append("train.max_grad_norm=1, which clips the gradient (now null)")
        else:
            remedies.append(f"train.max_grad_norm below {clip:g}, which clips the gradient now")
        gain = number(model.init_gain)
        if gain > 1:
            remedies.append(f"model.init_gain=1, smaller weights to begin with (now {gain:g})")

    if model.recurrent_init != "orthogonal":
        now = f"(now {model.recurrent_init})"
        remedies.append(f"model.recurrent_init=orthogonal, which keeps lengths {now}")
    if model.cell == "rnn":
        remedies.append("model.cell=gru or lstm, whose gates let the gradient pass (now rnn)")

    longest = config.data.max_length
    now = "no limit" if longest is None else f"{longest:,}"
    remedies.append(f"shorter sequences, at first: data.max_length (now {now})")
    return remedies


def bounded(sequences: Sequences, most_steps: int, most_tokens: int) -> Sequences:
    """Return the last tokens of the first sequences, within both bounds; of one at least.

    `most_steps` is for each sequence, `most_tokens` for all of them together.
    """
    kept: list[Tensor] = []
    num_tokens = 0
    for start, end in pairwise(sequences.offsets.tolist()):
        tokens = sequences.tokens[max(start, end - most_steps) : end]
        num_tokens += len(tokens)
        if kept and num_tokens > most_tokens:
            break
        kept.append(tokens)

    lengths = torch.tensor([0, *map(len, kept)])
    return Sequences(torch.cat(kept), lengths.cumsum(0), sequences.labels[: len(kept)])


def _bytes_per_token(network: RNNClassifier) -> int:
    """Return about how much is kept of each token until its gradient is known."""
    rnn = network.rnn
    # Of each direction of a layer: its gates; h, c, their sums and gradients. In float64.
    gates = rnn.get_parameter("weight_hh_l0").shape[0]
    of_direction = 2 * gates + 8 * rnn.hidden_size
    return 8 * (
        network.embedding.embedding_dim + rnn.num_layers * network.num_directions * of_direction
    )


def _shown_distances(count: int) -> list[int | None]:
    """Return the distances of a table of at most 40 rows; None stands for those left out."""
    if count <= MOST_ROWS:
        return list(range(count))
    half = MOST_ROWS // 2
    return [*range(half), None, *range(count - half, count)]


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1e}"


def _distance(steps: int | None) -> str:
    return "-" if steps is None else f"{steps:,}"
