"""What padding does to one batch, as text and as JSON."""

import textwrap
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from rnncls.errors import on_one_line
from rnncls.model.pooling import Pooling
from rnncls.predict.predictor import Label
from rnncls.system.rows import shortened
from rnncls.system.shown import WIDTH, aligned, counted, on_short_line

MOST_CLASSES = 5  # whose logits are printed
MOST_CLASSES_IN_JSON = 2**14  # with the logits of more, it would be a gigabyte
MOST_OF_NAME = 10  # characters of a label or a token in a table

# What the naive ways do, by what the head sees.
_MISTAKES: dict[Pooling, str] = {
    "last": "take the state after the padding",
    "mean": "take the mean of all columns, with those of padding",
    "max": "take the maximum of all columns, with those of padding",
    "last_mean_max": "take the state after the padding, and mean and maximum of all columns",
}


class Way(NamedTuple):
    """One way to run the batch, and what came out."""

    name: str  # as short as the head of a column
    description: str
    is_right: bool  # by how it works, not by what came out
    logits: Tensor  # (B, N), on the CPU
    largest_difference: float  # of a logit to that of the sequence run alone
    cells: int  # time steps times rows that are computed, for each layer and direction
    num_padding: int  # of these cells
    accuracy: float  # on the sequences that are scored

    @property
    def share_of_padding(self) -> float:
        """Return the share of the cells that is computed for nothing."""
        return self.num_padding / self.cells


@dataclass(frozen=True, eq=False)
class PaddingView:
    """One batch of the model's own data, run in six ways."""

    ids: list[list[int]]  # of each of the B sequences
    tokens: list[list[str]]
    true: list[Label]
    labels: tuple[Label, ...]  # of the N classes
    alone: Tensor  # (B, N), on the CPU: the logits of each sequence, run by itself
    ways: list[Way]
    batch_sizes: list[int]  # of the packed batch, (T,): how many sequences still run
    order: list[int]  # of its rows, (B,): the longest sequence first
    num_scored: int
    num_too_long: int  # sequences of more than `most_tokens`, which were left out
    most_tokens: int
    scored_together: int  # sequences in a batch, when they were scored
    why_id_0: str  # what padding with id 0 means to this model
    pooling: Pooling  # what the head sees

    @property
    def largest_logit(self) -> float:
        """Return the largest absolute value of the logits of the sequences run alone."""
        return float(self.alone.abs().max())

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
        """Return every number, but for the logits of very many classes, which are null.

        `relative` divides by the largest logit, if that is above 1. Where logits are not numbers,
        nothing is predicted.
        """
        sequences = []
        for ids, tokens, label, logits in zip(
            self.ids, self.tokens, self.true, self.alone, strict=True
        ):
            numbers = self._numbers(logits)
            sequences.append({"ids": ids, "tokens": tokens, "label": label, "logits": numbers})

        ways = []
        for way in self.ways:
            fields = way._asdict()
            fields["share_of_padding"] = way.share_of_padding
            fields["relative"] = way.largest_difference / max(1.0, self.largest_logit)
            fields["logits"] = self._numbers(way.logits)
            fields["predicted"] = [self._predicted(logits) for logits in way.logits]
            ways.append(fields)

        return {
            "sequences": sequences,
            "time_steps": len(self.batch_sizes),
            "batch_sizes": self.batch_sizes,
            "order": self.order,
            "ways": ways,
            "num_scored": self.num_scored,
            "num_left_out": self.num_too_long,
        }

    def _numbers(self, logits: Tensor) -> list[Any] | None:
        return logits.tolist() if len(self.labels) <= MOST_CLASSES_IN_JSON else None

    def _predicted(self, logits: Tensor) -> Label | None:
        """Return the likeliest label by logits (N,), the first of several; None for NaN."""
        if bool(logits.isnan().any()):
            return None
        return self.labels[int(logits.argmax())]

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
            f"{counted(len(self.ids), 'sequence')} of the model's own data, in "
            f"{counted(longest, 'time step')}",
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
            f"model's own data, in batches of {self.scored_together} that are padded to their "
            "longest."
        )
        remarks = [legend, self._lesson()]
        if self.num_too_long:
            left_out = counted(self.num_too_long, "sequence")
            remarks.append(f"{left_out} of more than {self.most_tokens:,} tokens were left out.")
        return [line for remark in remarks for line in textwrap.wrap(remark, WIDTH)]

    def _lesson(self) -> str:
        """Return why no naive way is to be trusted."""
        if self.ways[0].num_padding == 0:
            return "All these sequences are of one length: there is no padding to go wrong."
        naive = self.ways[0]
        packed = self.ways[-1]
        return (
            f"The naive ways {_MISTAKES[self.pooling]}: the model has read on behind the "
            f"end. {self.why_id_0} With id 0 the accuracy is {naive.accuracy:.3f}, against "
            f"{packed.accuracy:.3f} packed, and the logits move by {naive.largest_difference:.2g}: "
            "no way to rely on."
        )

    def _labels(self) -> list[str]:
        """Return the labels that the naive ways predict beside the right ones."""
        naive = [way for way in self.ways if not way.is_right]
        rows = [["sequence", "true", "alone", *(way.name for way in naive)]]
        for number, (label, logits) in enumerate(zip(self.true, self.alone, strict=True)):
            alone = self._predicted(logits)
            row = [str(number), _name(label), _name(alone)]
            for way in naive:
                predicted = self._predicted(way.logits[number])
                mark = " " if predicted == alone else "*"
                row.append(_name(predicted) + mark)
            rows.append(row)
        title = "predicted labels; * not that of the sequence alone"
        return [title, "", *aligned(rows, texts=0)]

    def _logits(self) -> list[str]:
        """Return the logits of the sequence with most padding, for the classes likeliest alone."""
        alone = self.alone[self.most_padded]
        likeliest = alone.sort(descending=True, stable=True).indices[:MOST_CLASSES]
        classes = sorted(likeliest.tolist())

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


def quoted(token: str) -> str:
    """Return a token as a table shows it, in quotes."""
    return f'"{_name(token)}"'


def _name(label: Label | None) -> str:
    return "-" if label is None else on_short_line(label, MOST_OF_NAME)
