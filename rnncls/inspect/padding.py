"""Runs one batch with padding in it, in the ways that are common, and shows which are right.

A batch of B sequences of unequal lengths is a rectangle of T time steps and B rows, of which the
cells behind a sequence's end are padding. Taking the state after the last column is the classic
mistake: it has read the padding. Three ways are right: to take the state at each sequence's own
end, to keep the old state where there is padding, and to pack, which computes no padding at all.

Letters: B sequences, T time steps, N classes, hidden_size H, D directions.
"""

import math
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rnncls.config import SumModConfig
from rnncls.data.batches import rectangle
from rnncls.data.sequences import Sequences
from rnncls.errors import DataError, Problem, on_one_line
from rnncls.inspect.subject import Subject, own_sequences
from rnncls.model.cells import State, step, weights_of, zero_state
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.predictor import Label
from rnncls.system.rows import aligned, shortened

SHOWN = 8  # sequences in the batch that is shown
SCORED = 2000  # sequences whose labels are predicted in each way

# What keeps the rectangles small enough to be run step by step: the tokens of a sequence, and the
# cells of all sequences that are scored, as if they were padded to the longest.
MOST_TOKENS = 2000
MOST_CELLS = 2**20

MOST_DRAWN = 2**23  # digits of generated sequences, of which too long ones are left out

SCORED_TOGETHER = 128  # sequences of a batch, each batch padded to its longest

OTHER_ID = 7  # pads in the third naive way, or the last id of a smaller vocabulary

MOST_CLASSES = 5  # whose logits are printed
MOST_OF_NAME = 10  # characters of a label or a token in a table
WIDTH = 80


class Rectangle(NamedTuple):
    """B sequences, padded to T time steps."""

    ids: Tensor  # (T, B) int64; what stands behind a sequence's end has no meaning
    is_token: Tensor  # (T, B) bool, False for padding
    lengths: Tensor  # (B,) int64, on the same device


class Way(NamedTuple):
    """One way to run the batch, and what came out."""

    name: str  # as short as the head of a column
    description: str
    is_right: bool  # by how it works, not by what came out
    logits: list[list[float]]  # (B, N)
    largest_difference: float  # of a logit to that of the sequence run alone
    cells: int  # time steps times rows that are computed, for each layer and direction
    num_padding: int  # of these cells
    accuracy: float  # on the sequences that are scored

    @property
    def share_of_padding(self) -> float:
        """Return the share of the cells that is computed for nothing."""
        return self.num_padding / self.cells


@dataclass(frozen=True)
class PaddingView:
    """One batch of the model's own data, run in six ways."""

    ids: list[list[int]]  # of each of the B sequences
    tokens: list[list[str]]
    true: list[Label]
    labels: tuple[Label, ...]  # of the N classes
    alone: list[list[float]]  # (B, N): the logits of each sequence, run by itself
    ways: list[Way]
    batch_sizes: list[int]  # of the packed batch, (T,): how many sequences still run
    order: list[int]  # of its rows, (B,): the longest sequence first
    num_scored: int
    num_too_long: int  # sequences of more than MOST_TOKENS, which were left out
    why_id_0: str  # what padding with id 0 means to this model

    @property
    def largest_logit(self) -> float:
        """Return the largest absolute value of the logits of the sequences run alone."""
        return max(abs(logit) for logits in self.alone for logit in logits)

    @property
    def most_padded(self) -> int:
        """Return the number of the shortest sequence, the first of them."""
        lengths = [len(ids) for ids in self.ids]
        return lengths.index(min(lengths))

    def to_text(self) -> str:
        """Return the batch, what each way computes and predicts, and what to learn from it."""
        parts = [self._batch(), self._ways(), self._remarks(), self._labels(), self._logits()]
        return "\n\n".join("\n".join(lines) for lines in parts)

    def to_json(self) -> dict[str, Any]:
        """Return every number. `relative` divides by the largest logit, if that is above 1."""
        sequences = []
        for ids, tokens, label, logits in zip(
            self.ids, self.tokens, self.true, self.alone, strict=True
        ):
            sequences.append({"ids": ids, "tokens": tokens, "label": label, "logits": logits})

        ways = []
        for way in self.ways:
            fields = way._asdict()
            fields["share_of_padding"] = way.share_of_padding
            fields["relative"] = way.largest_difference / max(1.0, self.largest_logit)
            fields["predicted"] = [self.labels[_likeliest(logits)] for logits in way.logits]
            ways.append(fields)

        return {
            "sequences": sequences,
            "classes": list(self.labels),
            "time_steps": len(self.batch_sizes),
            "batch_sizes": self.batch_sizes,
            "order": self.order,
            "ways": ways,
            "scored": self.num_scored,
            "left_out": self.num_too_long,
        }

    def _batch(self) -> list[str]:
        """Return the sequences, and how they are packed."""
        longest = len(self.batch_sizes)
        rows = [["sequence", "tokens", "length", "padding"]]
        for number, tokens in enumerate(self.tokens):
            text = shortened(on_one_line(" ".join(tokens)), 48)
            padding = longest - len(tokens)
            rows.append([str(number), text, str(len(tokens)), str(padding)])

        order = " ".join(map(str, self.order))
        sizes = shortened(" ".join(map(str, self.batch_sizes)), WIDTH - len("batch_sizes: "))
        return [
            f"{_counted(len(self.ids), 'sequence')} of the model's own data, in "
            f"{_counted(longest, 'time step')}",
            "",
            *aligned(rows, texts=2),
            "",
            f"packed, longest first: {order}",
            f"batch_sizes: {sizes}",
        ]

    def _ways(self) -> list[str]:
        """Return what each way costs, and how far it is off."""
        rows = [["way", "cells", "padding", "logits off by", "accuracy"]]
        for way in self.ways:
            rows.append(
                [
                    way.description,
                    f"{way.cells:,}",
                    f"{way.share_of_padding:.0%}",
                    f"{way.largest_difference:.2g}",
                    f"{way.accuracy:.3f}",
                ]
            )
        return aligned(rows, texts=1)

    def _remarks(self) -> list[str]:
        """Return what the columns of the ways mean, and what to learn from them."""
        legend = (
            "cells: time steps times rows, for each layer and direction. logits off by: the "
            "largest difference to a sequence's logits when it is run alone, of which the largest "
            f"is {self.largest_logit:.3g}. accuracy: on {self.num_scored:,} sequences of the "
            f"model's own data, in batches of {SCORED_TOGETHER} that are padded to their longest."
        )
        remarks = [legend, self._lesson()]
        if self.num_too_long:
            left_out = _counted(self.num_too_long, "sequence")
            remarks.append(f"{left_out} of more than {MOST_TOKENS:,} tokens were left out.")
        return [line for remark in remarks for line in textwrap.wrap(remark, WIDTH)]

    def _lesson(self) -> str:
        """Return why no naive way is to be trusted."""
        if self.ways[0].num_padding == 0:
            return "All these sequences are of one length: there is no padding to go wrong."
        naive = self.ways[0]
        packed = self.ways[-1]
        return (
            "The naive ways take the state after the padding: the model has read on behind the "
            f"end. {self.why_id_0} With id 0 the accuracy is {naive.accuracy:.3f}, against "
            f"{packed.accuracy:.3f} packed, and the logits move by {naive.largest_difference:.2g}: "
            "no way to rely on."
        )

    def _labels(self) -> list[str]:
        """Return the labels that the naive ways predict beside the right ones."""
        naive = [way for way in self.ways if not way.is_right]
        rows = [["sequence", "true", "alone", *(way.name for way in naive)]]
        for number, (label, logits) in enumerate(zip(self.true, self.alone, strict=True)):
            alone = _likeliest(logits)
            row = [str(number), _name(label), _name(self.labels[alone])]
            for way in naive:
                predicted = _likeliest(way.logits[number])
                mark = " " if predicted == alone else "*"
                row.append(_name(self.labels[predicted]) + mark)
            rows.append(row)
        title = "predicted labels; * not that of the sequence alone"
        return [title, "", *aligned(rows, texts=0)]

    def _logits(self) -> list[str]:
        """Return the logits of the sequence with most padding, for the classes likeliest alone."""
        alone = self.alone[self.most_padded]
        likeliest = sorted(range(len(alone)), key=lambda label: -alone[label])[:MOST_CLASSES]
        classes = sorted(likeliest)

        rows = [["way", *(_name(self.labels[label]) for label in classes)]]
        for name, logits in [
            ("alone", alone),
            *((way.name, way.logits[self.most_padded]) for way in self.ways),
        ]:
            rows.append([name, *(f"{logits[label]:.5g}" for label in classes)])
        title = f"logits of sequence {self.most_padded}"
        if len(classes) < len(alone):
            title += f", of the {len(classes)} classes that are likeliest alone"
        return [title, "", *aligned(rows, texts=1)]


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _name(label: Label) -> str:
    return shortened(on_one_line(label), MOST_OF_NAME)


def _likeliest(logits: list[float]) -> int:
    """Return the number of the likeliest class, the first of several."""
    return logits.index(max(logits))


@torch.inference_mode()
def compare_padding(
    subject: Subject, progress: bool = False, data_dir: Path | None = None
) -> PaddingView:
    """Run eight sequences of the model's own data in every way, and score each way on many more.

    The sequences are always the same ones, and their lengths differ if the data has several.

    Raises: DataError if files are missing or bad, or all sequences are too long. CheckpointError if
    the files have changed.
    """
    network = subject.network
    drawn = own_sequences(subject, _num_drawn(subject), progress, data_dir)
    sequences = _short_enough(drawn)
    num_too_long = int((drawn.lengths > MOST_TOKENS).sum())

    shown = sequences.select(_rows_shown(sequences.lengths))
    everyone = torch.arange(len(shown))
    alone = torch.cat([_packed_logits(network, shown, row.view(1)) for row in everyone])
    packed = shown.batch(everyone).tokens
    if packed.sorted_indices is None:
        raise ValueError("a packed batch without its order")

    ways = []
    for name, description, is_right, run in _ways_of(subject):
        logits = run(shown, everyone)
        num_tokens = len(shown.tokens)
        cells = num_tokens if name == "packed" else len(shown) * int(shown.lengths.max())
        ways.append(
            Way(
                name,
                description,
                is_right,
                logits.tolist(),
                float((logits - alone).abs().max()),
                cells,
                cells - num_tokens,
                _accuracy(run, sequences),
            )
        )

    vocabulary = subject.predictor.vocabulary
    ids = [shown.tokens[start:end].tolist() for start, end in pairwise(shown.offsets.tolist())]
    return PaddingView(
        ids=ids,
        tokens=[[vocabulary.tokens[token] for token in of_one] for of_one in ids],
        true=[subject.predictor.labels[label] for label in shown.labels.tolist()],
        labels=subject.predictor.labels,
        alone=alone.tolist(),
        ways=ways,
        batch_sizes=packed.batch_sizes.tolist(),
        order=packed.sorted_indices.tolist(),
        num_scored=len(sequences),
        num_too_long=num_too_long,
        why_id_0=_why_id_0(subject),
    )


# --- which sequences


def _num_drawn(subject: Subject) -> int:
    """Return how many sequences to begin with: fewer where they are generated and very long.

    They are drawn as a rectangle as wide as the longest may be.
    """
    data = subject.checkpoint.config.data
    if not isinstance(data, SumModConfig):
        return SCORED
    return max(SHOWN, min(SCORED, MOST_DRAWN // data.max_length))


def _short_enough(sequences: Sequences) -> Sequences:
    """Return the sequences that can be run step by step, as many as make MOST_CELLS padded cells.

    Raises: DataError if all are too long.
    """
    rows = (sequences.lengths <= MOST_TOKENS).nonzero().flatten()
    if not len(rows):
        raise DataError(
            Problem(
                "sequences too long to be padded and run step by step",
                expected=f"some of at most {MOST_TOKENS:,} tokens",
                found=f"at least {int(sequences.lengths.min()):,} in each",
                remedy="a run with data.max_length",
                id="D13",
            )
        )
    longest = int(sequences.lengths_of(rows).max())
    return sequences.select(rows[: max(SHOWN, MOST_CELLS // longest)])


def _rows_shown(lengths: Tensor) -> Tensor:
    """Return which sequences are shown: evenly from the shortest to the longest, in their order."""
    by_length = lengths.argsort(stable=True)
    count = min(SHOWN, len(lengths))
    places = torch.linspace(0, len(lengths) - 1, count).round().long()
    return by_length[places].sort().values


# --- the ways

# Runs the sequences with these numbers (B,); returns their logits (B, N).
Run = Callable[[Sequences, Tensor], Tensor]


def _ways_of(subject: Subject) -> Iterator[tuple[str, str, bool, Run]]:
    """Yield name, description, whether it is right, and how it runs, of each way."""
    network = subject.network

    def padded(run: Callable[[RNNClassifier, Rectangle], Tensor]) -> Run:
        return lambda sequences, rows: run(network, padded_of(sequences, rows, network.device))

    def naive(padding_id: int | None) -> Run:
        return padded(lambda network, batch: naive_logits(network, batch, padding_id))

    def packed(sequences: Sequences, rows: Tensor) -> Tensor:
        return _packed_logits(network, sequences, rows)

    tokens = subject.predictor.vocabulary.tokens
    other = min(OTHER_ID, len(tokens) - 1)
    with_0 = f"naive, padded with id 0, {_quoted(tokens[0])}"
    with_other = f"naive, padded with id {other}, {_quoted(tokens[other])}"

    yield "id 0", with_0, False, naive(0)
    yield "zeros", "naive, padded with vectors of zeros", False, naive(None)
    yield f"id {other}", with_other, False, naive(other)

    yield "gather", "padded, the state at each own end", True, padded(gathered_logits)
    yield "masked", "padded, masked and carried", True, padded(masked_logits)
    yield "packed", "packed", True, packed


def _quoted(token: str) -> str:
    return f'"{_name(token)}"'


def _why_id_0(subject: Subject) -> str:
    """Return a sentence on what the id 0 means to the model."""
    if isinstance(subject.checkpoint.config.data, SumModConfig):
        return (
            "Id 0 is the digit 0, which adds nothing to a sum: a model that has learned the sum "
            "keeps its answer while it reads on, by the luck of this task alone."
        )
    vocabulary = subject.predictor.vocabulary
    meaning = "every unknown token" if vocabulary.has_unknown else "a token like any other"
    return f"Id 0 is {_quoted(vocabulary.tokens[0])}, {meaning}, and the model reads it as such."


def padded_of(sequences: Sequences, rows: Tensor, device: torch.device) -> Rectangle:
    """Return the sequences with the numbers `rows` (B,), padded to their longest."""
    lengths = sequences.lengths_of(rows)
    ids = rectangle(sequences.tokens, sequences.offsets[rows], lengths).t()
    is_token = torch.arange(len(ids)).unsqueeze(1) < lengths
    return Rectangle(ids.to(device), is_token.to(device), lengths.to(device))


def naive_logits(network: RNNClassifier, batch: Rectangle, padding_id: int | None) -> Tensor:
    """Return logits (B, N) of the states after the padding: the mistake.

    The padding is a token like any other; if `padding_id` is None, vectors of zeros. In reverse the
    padding comes first.
    """
    data = _embedded(network, batch, padding_id)
    for layer in range(network.rnn.num_layers):
        outputs = [
            _run(network, layer, direction, data) for direction in range(network.num_directions)
        ]
        data = torch.cat(outputs, 2)
    return _logits_of_finals(network, outputs)


def masked_logits(network: RNNClassifier, batch: Rectangle) -> Tensor:
    """Return logits (B, N) of states that are carried over the padding.

    h_t = m_t h_new + (1 - m_t) h_(t-1), where m_t is 1 for a token and 0 for padding; c_t as well.
    In reverse the state is still that of zeros when the first token comes.
    """
    data = _embedded(network, batch, 0)
    for layer in range(network.rnn.num_layers):
        outputs = [
            _run(network, layer, direction, data, batch.is_token)
            for direction in range(network.num_directions)
        ]
        data = torch.cat(outputs, 2)
    return _logits_of_finals(network, outputs)


def gathered_logits(network: RNNClassifier, batch: Rectangle) -> Tensor:
    """Return logits (B, N) of the states at each sequence's own end.

    What the recurrence makes of the padding comes behind that end. In reverse it would come first,
    so each row is reversed within its own length, run forwards, and reversed back.
    """
    data = _embedded(network, batch, 0)
    for layer in range(network.rnn.num_layers):
        outputs = [_run(network, layer, 0, data)]
        if network.num_directions == 2:
            turned = _reversed(data, batch.lengths)
            backward = _run(network, layer, 1, turned, forwards=True)
            outputs.append(_reversed(backward, batch.lengths))
        data = torch.cat(outputs, 2)

    # One index for each sequence and unit, (1, B, H), as `gather` wants it.
    last = (batch.lengths - 1).view(1, -1, 1).expand(1, -1, network.rnn.hidden_size)
    summary = [outputs[0].gather(0, last)[0]]
    # Reversed back, the end of the backward direction is the first time step.
    summary += [backward[0] for backward in outputs[1:]]
    return _head(network, summary)


def _packed_logits(network: RNNClassifier, sequences: Sequences, rows: Tensor) -> Tensor:
    """Return the logits (B, N) of the model itself, which packs."""
    logits: Tensor = network(sequences.batch(rows).to(network.device).tokens)
    return logits


def _embedded(network: RNNClassifier, batch: Rectangle, padding_id: int | None) -> Tensor:
    """Return the embeddings (T, B, embedding_dim), with the padding's, or zeros for None."""
    ids = batch.ids.masked_fill(~batch.is_token, padding_id or 0)
    embedded: Tensor = network.embedding(ids)
    if padding_id is None:
        embedded = embedded.masked_fill(~batch.is_token.unsqueeze(2), 0.0)
    return embedded


def _run(
    network: RNNClassifier,
    layer: int,
    direction: int,
    inputs: Tensor,
    is_token: Tensor | None = None,
    forwards: bool = False,
) -> Tensor:
    """Return the states (T, B, H) of one direction of one layer, from its inputs (T, B, width).

    Where `is_token` (T, B) is False, the state is the one before. The second direction begins at
    the last time step, unless it is to run `forwards`.
    """
    rnn = network.rnn
    weights = weights_of(rnn, layer, direction)
    num_steps, num_rows, _ = inputs.shape

    order: Iterable[int] = range(num_steps)
    if direction == 1 and not forwards:
        order = reversed(range(num_steps))

    states = inputs.new_empty(num_steps, num_rows, rnn.hidden_size)
    state = zero_state(rnn, num_rows)
    for t in order:
        new = step(rnn.mode, weights, inputs[t], state)
        state = new if is_token is None else _carried(is_token[t], new, state)
        states[t] = state.hidden
    return states


def _carried(is_token: Tensor, new: State, old: State) -> State:
    """Return the new state of the rows (B,) that read a token, and the old one of the others."""
    mask = is_token.unsqueeze(1)
    hidden = torch.where(mask, new.hidden, old.hidden)
    if new.cell is None or old.cell is None:
        return State(hidden)
    return State(hidden, torch.where(mask, new.cell, old.cell))


def _reversed(data: Tensor, lengths: Tensor) -> Tensor:
    """Return rows (T, B, width) with their first `lengths` (B,) time steps in reverse order."""
    steps = torch.arange(len(data), device=data.device).unsqueeze(1)
    mirrored = lengths - 1 - steps
    source = torch.where(steps < lengths, mirrored, steps)
    return data.gather(0, source.unsqueeze(2).expand_as(data))


def _logits_of_finals(network: RNNClassifier, outputs: list[Tensor]) -> Tensor:
    """Return the logits of the last state of each direction, whatever came last."""
    finals = [outputs[0][-1]]
    finals += [backward[0] for backward in outputs[1:]]
    return _head(network, finals)


def _head(network: RNNClassifier, summary: list[Tensor]) -> Tensor:
    """Return the logits (B, N) from the state (B, H) of each direction."""
    logits: Tensor = network.head(torch.cat(summary, 1))
    return logits


def _accuracy(run: Run, sequences: Sequences) -> float:
    """Return the share of all sequences whose label is predicted, in batches as they come."""
    num_right = 0
    for rows in torch.split(torch.arange(len(sequences)), SCORED_TOGETHER):
        logits = run(sequences, rows)
        if not bool(logits.isfinite().all()):
            # What is not a number stands for no label.
            return math.nan
        num_right += int((logits.argmax(1).cpu() == sequences.labels[rows]).sum())
    return num_right / len(sequences)
