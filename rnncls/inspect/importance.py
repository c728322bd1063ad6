"""How much each token of a sequence matters for a class."""

from typing import NamedTuple

from rnncls.model.classifier import RNNClassifier


class Importance(NamedTuple):
    """How much each of T tokens matters for the log-probability of a class, in nats."""

    label: int  # the number of the class

    # log p of the whole sequence minus log p without this token: positive where the token speaks
    # for the class. (T,); None where the sequence is too long, or where nothing would be left.
    left_out: list[float] | None

    # The gradient of log p with respect to the token's embedding, times that embedding, (T,).
    gradient: list[float]


def importance_of(network: RNNClassifier, ids: list[int], label: int) -> Importance:
    """Return how much each token matters for the class `label`."""
    raise NotImplementedError(network, ids, label)
