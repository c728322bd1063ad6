"""Record evaluations for pictures that may be drawn later, by a resumed run even.

plots/evaluations.jsonl has a line for each of them.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from rnncls.dashboard.record import MOST_CLASSES, Bin, Confusion, Error, Evaluation
from rnncls.evaluation.metrics import calibration_bins, confusion_matrix
from rnncls.evaluation.scores import Scores
from rnncls.rundir.paths import EVALUATIONS
from rnncls.system.files import read_regular, write_atomically

# Of a file that anybody may have written. A record of 30 classes has about 10 KB.
MAX_BYTES = 2**24


@dataclass(frozen=True)
class Record:
    """An evaluation, and whether its pictures are drawn."""

    drawn: bool
    evaluation: Evaluation


_READER = TypeAdapter(Record)


def is_recorded(step: int, eval_every: int, is_over: bool) -> bool:
    """Return whether the evaluation of this step is drawn: the 1st, 2nd, 4th, ..., and the last."""
    if is_over:
        return True
    number, rest = divmod(step, eval_every)
    return number > 0 and rest == 0 and number & (number - 1) == 0


def evaluation_of(
    step: int,
    scalars: dict[str, float],
    scores: Scores,
    confidences: Tensor,
    names: list[str],
    errors: tuple[Error, ...],
) -> Evaluation:
    """Return what pictures and tables need of an evaluation.

    `scalars`: its values by tag. `confidences` (R,): the probabilities of the predicted classes.
    `names`: those of all classes.
    """
    bins = calibration_bins(confidences, ~scores.wrong())
    return Evaluation(
        step=step,
        accuracy=scalars["val/accuracy"],
        loss=scalars["val/loss"],
        calibration_error=scalars["val/calibration_error"],
        confusion=_confusion(scores, names),
        bins=tuple(Bin(*values) for values in bins),
        errors=errors,
    )


def _confusion(scores: Scores, names: list[str]) -> Confusion:
    """Count which classes are taken for which; of many, those most involved in errors."""
    number = len(names)
    shown = torch.arange(number)
    if number > MOST_CLASSES:
        # Those that occur come next, so that there is a picture without errors, too.
        wrong = scores.predictions != scores.labels
        involved = torch.cat([scores.labels[wrong], scores.predictions[wrong]])
        weights = torch.bincount(involved, minlength=number).double()
        weights += torch.bincount(scores.labels, minlength=number).double() / len(scores.labels) / 2
        shown = weights.argsort(descending=True, stable=True)[:MOST_CLASSES].sort().values

    # Each class among the shown ones as its place, the others as one place behind them.
    place = torch.full((number,), len(shown))
    place[shown] = torch.arange(len(shown))
    labels = place[scores.labels]
    predictions = place[scores.predictions]
    counts = confusion_matrix(labels, predictions, len(shown) + 1)[:-1, :-1]
    return Confusion(
        classes=tuple(names[index] for index in shown.tolist()),
        counts=tuple(tuple(row) for row in counts.tolist()),
        num_classes=number,
    )


class Records:
    """The recorded evaluations of a run, in their order. Methods that write raise OSError."""

    def __init__(self, run_dir: Path, last_logged: int) -> None:
        """Read what is recorded up to the step `last_logged`; what is behind it will come again."""
        self._path = run_dir / EVALUATIONS
        self._records = [
            record for record in _read(self._path) if record.evaluation.step <= last_logged
        ]

    def waiting(self) -> list[Evaluation]:
        """Return the evaluations that are not drawn yet."""
        return [record.evaluation for record in self._records if not record.drawn]

    def last(self) -> Evaluation | None:
        """Return the latest evaluation, drawn or not."""
        return self._records[-1].evaluation if self._records else None

    def add(self, evaluation: Evaluation) -> None:
        """Record an evaluation, which is to be drawn, in place of another one of its step."""
        self._records = [each for each in self._records if each.evaluation.step != evaluation.step]
        self._records.append(Record(drawn=False, evaluation=evaluation))
        self._write()

    def note_drawn(self, step: int) -> None:
        """Note that the evaluation of this step is drawn."""
        self._records = [
            replace(record, drawn=record.drawn or record.evaluation.step == step)
            for record in self._records
        ]
        self._write()

    def _write(self) -> None:
        # As a whole, and not appended: another name of the file may be that of a copy.
        self._path.parent.mkdir(exist_ok=True)
        lines = [json.dumps(asdict(record)) + "\n" for record in self._records]
        write_atomically(self._path, "".join(lines).encode(), durable=False)


def _read(path: Path) -> list[Record]:
    """Return the records of a file; none if there is no such file, or one that is not ours."""
    try:
        return [_READER.validate_json(line) for line in read_regular(path, MAX_BYTES).splitlines()]
    except (OSError, ValidationError):
        return []
