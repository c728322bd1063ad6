"""A sequence that is asked about, and what the model itself says about it."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rnncls.config import SumModConfig
from rnncls.errors import ConfigError, Problem, on_one_line
from rnncls.inspect.importance import Importance, importance_of
from rnncls.inspect.subject import Subject, tokens_of_text
from rnncls.model.classifier import RNNClassifier
from rnncls.predict.logits import logits_in_batches, logits_of, rows_together
from rnncls.predict.predictor import Label, ReadTokens
from rnncls.system.rows import shortened
from rnncls.system.streams import say

# A network of two directions is run anew for each prefix of a sequence of at most so many tokens.
MOST_PREFIXES = 512
MOST_PREFIX_LOGITS = 2**24

MOST_LABELS_SHOWN = 20  # in a message about an unknown one

Classes = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


class Question(NamedTuple):
    """A sequence of T tokens, and what the model itself says about it; N classes."""

    subject: Subject
    ids: Tensor  # (T,), on the network's device
    tokens: ReadTokens  # the same, as they were given
    logits: Tensor  # (N,) of the whole sequence
    prefix_logits: Tensor | None  # (T, N), of two directions only, where they are known beforehand
    truth: Classes | None  # (T,): the right class of every prefix, where the task says it
    importance: Importance | None  # of the tokens, for runs on files

    @property
    def network(self) -> RNNClassifier:
        """The model itself, in evaluation mode."""
        return self.subject.network

    def label(self, number: int) -> Label:
        """Return the name of a class."""
        return self.subject.predictor.labels[number]


def ask(subject: Subject, text: str, label: str | None = None) -> Question:
    """Run the model on a sequence as a person types it.

    `label` is the class that tokens matter for, in runs on files; by default the predicted one.

    Raises: ConfigError for a label that the model does not have, or of generated data. DataError,
    as `tokens_of_text`.
    """
    wanted = _class_of(subject, label)
    read = tokens_of_text(subject.predictor, text)
    network = subject.network
    with torch.no_grad():
        logits = logits_of(network, [read.ids])[0]

    truth = None
    importance = None
    data = subject.checkpoint.config.data
    if isinstance(data, SumModConfig):
        truth = np.cumsum(np.asarray(read.ids, dtype=np.int64)) % data.modulus
    else:
        predicted = int(logits.argmax())
        importance = importance_of(network, read.ids, predicted if wanted is None else wanted)

    prefix_logits = None
    if network.num_directions == 2:
        prefix_logits = _logits_of_prefixes(network, read.ids)
        if prefix_logits is None:
            say(
                f"rnncls: no predictions after each token: a model of two directions is run anew "
                f"for each prefix, which is done for at most {_most_prefixes(network)} tokens"
            )

    ids = torch.tensor(read.ids, device=network.device)
    return Question(subject, ids, read, logits, prefix_logits, truth, importance)


def _class_of(subject: Subject, label: str | None) -> int | None:
    """Return the number of the class with this name. Raises: ConfigError."""
    if label is None:
        return None
    if isinstance(subject.checkpoint.config.data, SumModConfig):
        what = "--label is about a run on files: of sum_mod the true sums are known"
        raise ConfigError(Problem(what, remedy="leave it out", id="C17"))

    names = [str(name) for name in subject.predictor.labels]
    if label in names:
        return names.index(label)

    shown = [shortened(on_one_line(name), 40) for name in names[:MOST_LABELS_SHOWN]]
    if len(names) > MOST_LABELS_SHOWN:
        shown.append(f"... and {len(names) - MOST_LABELS_SHOWN:,} more")
    raise ConfigError(
        Problem(
            "a label unknown to the model",
            f"--label {shortened(label, 60)}",
            expected=", ".join(shown),
            remedy="one of them, or without --label",
            id="C17",
        )
    )


def _most_prefixes(network: RNNClassifier) -> int:
    # All of their logits are in memory: of a million classes those of a few prefixes.
    return min(MOST_PREFIXES, rows_together(network, MOST_PREFIX_LOGITS))


@torch.no_grad()
def _logits_of_prefixes(network: RNNClassifier, ids: list[int]) -> Tensor | None:
    """Return the logits of every prefix, (T, N), each run alone; None for too many."""
    if len(ids) > _most_prefixes(network):
        return None
    return logits_in_batches(network, [ids[:length] for length in range(1, len(ids) + 1)])
