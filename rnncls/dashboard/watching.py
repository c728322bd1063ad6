"""Watch an evaluation for what its scores do not keep: the worst errors, and all probabilities."""

import heapq
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rnncls.dashboard.curves import MOST_CURVES
from rnncls.dashboard.names import as_text, class_names
from rnncls.dashboard.record import Error
from rnncls.data import Task
from rnncls.evaluation.mistakes import probability_of
from rnncls.evaluation.scores import Scored

MOST_ERRORS = 20

# Probabilities are kept of so many sequences at most; a curve of more looks the same.
MOST_PROBABILITIES = 100_000


class Watcher:
    """Keeps the most confident errors of what passes, and the probabilities of a few classes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._passed = 0
        # A heap, the least confident first: (probability, -number, that of the true class, the true
        # and the predicted class, ids).
        self._worst: list[tuple[float, int, float, int, int, list[int]]] = []
        self._probabilities: list[Tensor] = []
        self._labels: list[Tensor] = []

    def watch(self, parts: Iterable[Scored]) -> Iterator[Scored]:
        """Yield the parts, and keep what is to be kept of them."""
        for part in parts:
            self._keep_errors(part)
            if has_curves(self._task) and self._passed < MOST_PROBABILITIES:
                self._probabilities.append(part.logits.softmax(1).cpu())
                self._labels.append(part.batch.labels)
            self._passed += len(part.batch.labels)
            yield part

    def _keep_errors(self, part: Scored) -> None:
        # (B,) each. Without finite logits there is no prediction that could be wrong.
        predictions = part.predictions.cpu()
        wrong = (predictions != part.batch.labels) & part.losses.cpu().isfinite()
        if not bool(wrong.any()):
            return

        confidences = probability_of(part.predictions, part.logits)
        of_true = probability_of(part.batch.labels.to(part.logits.device), part.logits)
        most = min(MOST_ERRORS, int(wrong.sum()))
        places = confidences.masked_fill(~wrong, -1).topk(most).indices.tolist()
        for place in places:
            probability = float(confidences[place])
            number = -(self._passed + place)
            if len(self._worst) == MOST_ERRORS and (probability, number) < self._worst[0][:2]:
                continue
            ids = _ids_of(part.batch.tokens, place)
            # A sequence that occurs several times is one error.
            if any(ids == other[-1] for other in self._worst):
                continue
            error = (
                probability,
                number,
                float(of_true[place]),
                int(part.batch.labels[place]),
                int(predictions[place]),
                ids,
            )
            heapq.heappush(self._worst, error)
            if len(self._worst) > MOST_ERRORS:
                heapq.heappop(self._worst)

    def errors(self) -> tuple[Error, ...]:
        """Return the errors that were kept, the most confident first."""
        names = class_names(self._task)
        errors = []
        for probability, _, of_true, true, predicted, ids in sorted(self._worst, reverse=True):
            error = Error(
                sequence=as_text(self._task, ids),
                length=len(ids),
                true=names[true],
                predicted=names[predicted],
                probability=probability,
                probability_of_true=of_true,
            )
            errors.append(error)
        return tuple(errors)

    def curves(self) -> tuple[Tensor, Tensor] | None:
        """Return the labels (R,) and the probabilities (R, N); None where there are no curves."""
        if not self._probabilities:
            return None
        return torch.cat(self._labels), torch.cat(self._probabilities)


def has_curves(task: Task) -> bool:
    """Return whether a run shows curves of precision and recall: on files, of a few classes."""
    return task.vocabulary is not None and task.sizes[1] <= MOST_CURVES


def _ids_of(tokens: PackedSequence, place: int) -> list[int]:
    """Return the ids of one sequence of a batch, by its place in it."""
    row = place
    if tokens.unsorted_indices is not None:
        row = int(tokens.unsorted_indices[place])
    sizes = tokens.batch_sizes
    steps = int((sizes > row).sum())
    first = sizes.cumsum(0)[:steps] - sizes[:steps]
    ids: list[int] = tokens.data[first + row].tolist()
    return ids
