"""How sure a model is of its predictions, and whether they depend on the order of the tokens."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_packed_sequence

from rnncls.data import Batch, pack
from rnncls.evaluation.scores import LogitsOf, Scored
from rnncls.model.classifier import RNNClassifier
from rnncls.seeds import mix

# Of an evaluation, about so many sequences are shuffled, however many there are: each costs a
# second prediction.
MOST_SHUFFLED = 2000


class Confidences:
    """Keeps the probability of each predicted class."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []

    def watch(self, parts: Iterable[Scored]) -> Iterator[Scored]:
        """Yield the parts, and keep how sure the model is of each prediction."""
        for part in parts:
            self._parts.append(part.logits.softmax(1).amax(1))
            yield part

    def all(self) -> Tensor:
        """Return the probabilities of all that has passed, (R,) on the CPU, in its order."""
        # Only now, because each copy to the CPU would wait for the device.
        return torch.cat(self._parts).cpu()


class Shuffled:
    """Predicts the sequences of an evaluation once more, each with its tokens in a random order.

    Of more than MOST_SHUFFLED sequences, about that many are drawn. Those that a shuffle leaves as
    they are do not count, such as all of length 1: their prediction survives whatever the model is.
    """

    def __init__(self, model: RNNClassifier, total: int, seed: int, logits_of: LogitsOf) -> None:
        self._device = model.device
        self._logits_of = logits_of
        self._share = min(1.0, MOST_SHUFFLED / total)

        # A function of the run's seed: the same evaluation shuffles in the same way.
        self._generator = torch.Generator().manual_seed(mix(seed, "shuffle"))
        self._survived: list[Tensor] = []  # whether a prediction did, on the model's device

    def watch(self, parts: Iterable[Scored]) -> Iterator[Scored]:
        """Yield the parts, and predict some of their sequences with their tokens shuffled."""
        for part in parts:
            self._predict(part)
            yield part

    @torch.inference_mode()
    def _predict(self, part: Scored) -> None:
        rows, batch = shuffled_rows(part.batch, self._share, self._generator)
        if batch is None:
            return
        again = self._logits_of(batch.to(self._device).tokens).argmax(1)
        self._survived.append(again == part.predictions[rows.to(self._device)])

    def surviving(self) -> float | None:
        """Return the share of predictions that stay as they are; None if nothing was shuffled."""
        if not self._survived:
            return None
        survived = torch.cat(self._survived)
        return int(survived.sum()) / len(survived)


def shuffled_rows(
    batch: Batch, share: float, generator: torch.Generator
) -> tuple[Tensor, Batch | None]:
    """Draw a share of a batch's sequences, and shuffle the tokens of each.

    Returns the rows of those that the shuffle has changed, and a batch of them; None if there are
    none.
    """
    drawn = torch.rand(len(batch.labels), generator=generator) < share
    if not bool(drawn.any()):
        return drawn.nonzero().flatten(), None

    # Random keys sort the tokens; padding, (B, T) from each length on, stays behind them.
    padded, _ = pad_packed_sequence(batch.tokens, batch_first=True)
    padded = padded[drawn]
    lengths = batch.lengths[drawn]
    keys = torch.rand(padded.shape, generator=generator)
    keys[torch.arange(padded.shape[1]) >= lengths.unsqueeze(1)] = 2.0
    shuffled = padded.gather(1, keys.argsort(1))

    changed = (shuffled != padded).any(1)
    rows = drawn.nonzero().flatten()[changed]
    if not len(rows):
        return rows, None
    return rows, pack(shuffled[changed], lengths[changed], batch.labels[rows])
